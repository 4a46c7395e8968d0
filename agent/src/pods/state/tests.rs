use proptest::prelude::*;

use super::*;

const T0: i64 = 1_000_000;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(T0 + second).unwrap()
}

fn config() -> BackOffConfig {
    BackOffConfig::default()
}

fn plan(restart: RestartPolicy, init: &[(&str, bool)], main: &[&str]) -> Plan {
    Plan {
        init: init
            .iter()
            .map(|(name, sidecar)| InitPlan {
                name: (*name).to_owned(),
                sidecar: *sidecar,
            })
            .collect(),
        main: main.iter().map(|name| (*name).to_owned()).collect(),
        restart,
    }
}

fn running() -> Record {
    Record {
        stage: Stage::Running(at(0)),
        started: true,
        ready: true,
        ..Record::default()
    }
}

fn exited(code: i32, started: i64, finished: i64) -> Record {
    Record {
        stage: Stage::Ended(Ended {
            started_at: Some(at(started)),
            finished_at: at(finished),
            exit_code: code,
            signal: None,
            reason: String::new(),
            message: None,
        }),
        ..Record::default()
    }
}

fn records(list: &[(&str, Record)]) -> Records {
    list.iter()
        .map(|(name, record)| ((*name).to_owned(), record.clone()))
        .collect()
}

fn starts(plan: &Plan, list: &[(&str, Record)], now: i64) -> Vec<String> {
    decide(plan, &records(list), &config(), at(now)).start
}

#[test]
fn main_containers_start_together_once_the_init_containers_are_done() {
    let plan = plan(RestartPolicy::Always, &[("i", false), ("j", false)], &["a", "b"]);
    let done = exited(0, 0, 1);
    assert_eq!(starts(&plan, &[], 2), ["i"]);
    assert_eq!(starts(&plan, &[("i", running())], 2), Vec::<String>::new());
    assert_eq!(starts(&plan, &[("i", done.clone())], 2), ["j"]);
    assert_eq!(
        starts(&plan, &[("i", done.clone()), ("j", done.clone())], 2),
        ["a", "b"]
    );
    // After a restart of the node the init containers' ends may be forgotten; they are not run beside the main ones.
    assert_eq!(starts(&plan, &[("a", running())], 2), ["b"]);
}

#[test]
fn a_failed_init_container_is_run_again_or_ends_the_pod() {
    let failed = exited(1, 0, 1);
    let again = plan(RestartPolicy::OnFailure, &[("i", false)], &["a"]);
    assert_eq!(starts(&again, &[("i", failed.clone())], 2), ["i"]);
    let never = plan(RestartPolicy::Never, &[("i", false)], &["a"]);
    let decision = decide(&never, &records(&[("i", failed)]), &config(), at(2));
    assert_eq!(
        (decision.finished, decision.start.len()),
        (Some(Finished::Failed), 0)
    );
}

#[test]
fn a_sidecar_lets_the_next_start_when_it_has_started_and_is_kept_running() {
    let plan = plan(RestartPolicy::Never, &[("s", true)], &["a"]);
    assert_eq!(starts(&plan, &[], 2), ["s"]);
    let mut starting = running();
    starting.started = false;
    assert_eq!(starts(&plan, &[("s", starting)], 2), Vec::<String>::new());
    assert_eq!(starts(&plan, &[("s", running())], 2), ["a"]);
    assert_eq!(
        starts(&plan, &[("s", exited(0, 0, 1)), ("a", running())], 2),
        ["s"]
    );
    let decision = decide(
        &plan,
        &records(&[("s", exited(0, 0, 1)), ("a", exited(0, 0, 1))]),
        &config(),
        at(2),
    );
    assert_eq!(
        (decision.finished, decision.start.len()),
        (Some(Finished::Succeeded), 0)
    );
}

#[test]
fn the_restart_policy_decides_what_an_end_means() {
    use RestartPolicy::{Always, Never, OnFailure};
    for (policy, code, expected) in [
        (Always, 0, None),
        (Always, 1, None),
        (OnFailure, 0, Some(Finished::Succeeded)),
        (OnFailure, 1, None),
        (Never, 0, Some(Finished::Succeeded)),
        (Never, 1, Some(Finished::Failed)),
    ] {
        let plan = plan(policy, &[], &["a"]);
        let decision = decide(&plan, &records(&[("a", exited(code, 0, 1))]), &config(), at(2));
        assert_eq!(decision.finished, expected, "{policy:?} {code}");
        assert_eq!(decision.start.is_empty(), expected.is_some(), "{policy:?} {code}");
    }
    // One that runs keeps the pod from being over.
    let two = plan(Never, &[], &["a", "b"]);
    let decision = decide(
        &two,
        &records(&[("a", exited(1, 0, 1)), ("b", running())]),
        &config(),
        at(2),
    );
    assert_eq!(decision, Decision::default());
}

#[test]
fn restarts_are_spaced_by_10_seconds_doubling_to_5_minutes() {
    let delays: Vec<u64> = (0..9).map(|n| back_off(&config(), n).as_secs()).collect();
    assert_eq!(delays, [0, 10, 20, 40, 80, 160, 300, 300, 300]);
    assert_eq!(back_off(&config(), u32::MAX), config().max);

    let plan = plan(RestartPolicy::Always, &[], &["a"]);
    let mut record = exited(1, 0, 100);
    record.streak = 2;
    let early = decide(&plan, &records(&[("a", record.clone())]), &config(), at(119));
    assert_eq!((early.start.len(), early.wake), (0, Some(at(120))));
    assert_eq!(starts(&plan, &[("a", record.clone())], 120), ["a"]);
    // One that ran for ten minutes starts over.
    let mut long = exited(1, 0, 600);
    long.streak = 5;
    assert_eq!(starts(&plan, &[("a", long)], 600), ["a"]);
}

#[test]
fn an_obstacle_is_waited_for() {
    let plan = plan(RestartPolicy::Always, &[], &["a", "b"]);
    let blocked = Record {
        obstacle: Some(Obstacle {
            reason: "ErrImagePull".to_owned(),
            message: String::new(),
            retry_at: at(10),
        }),
        ..Record::default()
    };
    let decision = decide(&plan, &records(&[("a", blocked)]), &config(), at(1));
    assert_eq!(decision.start, ["b"]);
    assert_eq!(decision.wake, Some(at(10)));
}

fn any_record() -> impl Strategy<Value = Record> {
    let stage = prop_oneof![
        Just(Stage::Never),
        Just(Stage::Created),
        (0_i64..100).prop_map(|s| Stage::Running(at(s))),
        (0_i32..2, 0_i64..100, 0_i64..1000)
            .prop_map(|(code, start, ran)| { exited(code, start, start + ran).stage }),
    ];
    (stage, any::<bool>(), 0_u32..8).prop_map(|(stage, started, streak)| Record {
        streak,
        stage,
        started,
        ..Record::default()
    })
}

proptest! {
    /// Whatever the state: a container that runs is never started, nothing is started in a pod that is over, an ordinary
    /// init container is never started beside a main one, and a pod that does nothing now has a reason: it waits for a
    /// time, for a container, or is over.
    #[test]
    fn decisions_hold_together(
        policy in prop_oneof![Just(RestartPolicy::Always), Just(RestartPolicy::OnFailure), Just(RestartPolicy::Never)],
        sidecar in any::<bool>(),
        list in prop::collection::vec(any_record(), 4),
        now in 0_i64..2000,
    ) {
        let plan = plan(policy, &[("i", false), ("s", sidecar)], &["a", "b"]);
        let records: Records = ["i", "s", "a", "b"].iter().map(|n| (*n).to_owned()).zip(list).collect();
        let decision = decide(&plan, &records, &config(), at(now));
        for name in &decision.start {
            let ok = matches!(records[name].stage, Stage::Never | Stage::Ended(_));
            prop_assert!(ok, "{name} is started again");
        }
        let main_started = ["a", "b"].iter().any(|n| records[*n].stage != Stage::Never);
        prop_assert!(!(main_started && decision.start.contains(&"i".to_owned())));
        if decision.finished.is_some() {
            prop_assert!(decision.start.is_empty());
        }
        let active = records.values().any(|r| matches!(r.stage, Stage::Created | Stage::Running(_)));
        prop_assert!(
            decision.finished.is_some() || !decision.start.is_empty() || decision.wake.is_some() || active,
            "nothing happens, for no reason"
        );
        if let Some(wake) = decision.wake {
            prop_assert!(wake > at(now));
        }
    }
}

#[test]
fn in_a_new_place_init_containers_run_again_before_the_others() {
    let plan = plan(
        RestartPolicy::Always,
        &[("i", false), ("s", true), ("j", false)],
        &["a", "b"],
    );
    let done = exited(0, 0, 1);
    let killed = exited(137, 0, 1);
    let mut records = records(&[
        ("i", done.clone()),
        ("s", killed.clone()),
        ("j", done.clone()),
        ("a", killed),
        ("b", done.clone()),
    ]);
    let begins = |records: &Records| decide(&plan, records, &config(), at(2)).start;
    assert_eq!(begins(&records), ["s", "a", "b"]);

    displace(&plan, &mut records, |_| true);

    for (name, after) in [("i", vec!["s"]), ("s", vec!["j"]), ("j", vec!["a", "b"])] {
        assert_eq!(begins(&records), [name]);
        let record = records.get_mut(name).unwrap();
        assert_eq!(record.attempt, u32::from(name != "s"));
        record.stage = if name == "s" { running() } else { done.clone() }.stage;
        record.started = true;
        assert_eq!(begins(&records), after);
    }
    // One that is started there counts as begun.
    records.insert("a".to_owned(), running());
    records.remove("i");
    assert_eq!(begins(&records), ["b"]);
}

#[test]
fn a_pod_that_has_run_its_course_does_not_begin_anew() {
    let plan = plan(RestartPolicy::Never, &[("i", false)], &["a"]);
    let mut records = records(&[("i", exited(0, 0, 1)), ("a", exited(137, 0, 1))]);
    displace(&plan, &mut records, |_| true);
    let decision = decide(&plan, &records, &config(), at(2));
    assert_eq!(
        (decision.finished, decision.start.len()),
        (Some(Finished::Failed), 0)
    );
}
