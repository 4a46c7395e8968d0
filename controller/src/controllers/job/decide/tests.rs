use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use super::super::backoff;
use super::super::plan::{Plan, plan};
use super::super::terms::tests::terms;
use super::*;
use crate::controllers::pod::{COMPLETION_INDEX, End, INDEX_FAILURES};

const BASE: Duration = Duration::from_secs(10);

fn now() -> Timestamp {
    "2030-01-01T00:00:00Z".parse().unwrap()
}

fn pod(uid: &str, phase: Phase, index: Option<i32>) -> PodView {
    let annotations = index.map(|index| [(COMPLETION_INDEX.to_owned(), index.to_string())].into());
    PodView {
        metadata: ObjectMeta {
            name: Some(uid.into()),
            uid: Some(uid.into()),
            annotations,
            finalizers: Some(vec![FINALIZER.into()]),
            ..ObjectMeta::default()
        },
        phase,
        ..PodView::default()
    }
}

fn running(uid: &str) -> PodView {
    pod(uid, Phase::Running, None)
}

fn leaving(mut pod: PodView) -> PodView {
    pod.metadata.deletion_timestamp = Some(Time(now()));
    pod
}

fn tally(terms: &Terms, status: &JobStatus, pods: Vec<PodView>) -> Tally {
    let pods: Vec<_> = pods.into_iter().map(Arc::new).collect();
    Tally::of(terms, status, &pods, &BTreeSet::new())
}

fn status(value: Value) -> JobStatus {
    serde_json::from_value(value).unwrap()
}

fn verdict(spec: Value, of: Value, pods: Vec<PodView>) -> Option<(bool, String)> {
    let (terms, status) = (terms(spec), status(of));
    let tally = tally(&terms, &status, pods);
    judge(&terms, &status, &tally, now()).map(|verdict| (verdict.success, verdict.reason))
}

/// `+3` makes three, `-a,b` deletes, `#1,4` makes for indexes, `~5` waits.
fn step(spec: Value, of: Value, pods: Vec<PodView>) -> String {
    let (terms, status) = (terms(spec), status(of));
    let tally = tally(&terms, &status, pods);
    match plan(&terms, &tally, &backoff::Record::default(), BASE, 500, now()) {
        Plan::Keep => "=".into(),
        Plan::Wait(wait) => format!("~{}", wait.as_secs()),
        Plan::Create(count) => format!("+{count}"),
        Plan::CreateIndexed(indexes) => {
            let indexes: Vec<_> = indexes.iter().map(i32::to_string).collect();
            format!("#{}", indexes.join(","))
        }
        Plan::Delete(pods) => {
            let mut names: Vec<_> = pods.iter().map(|pod| pod.name()).collect();
            names.sort_unstable();
            format!("-{}", names.join(","))
        }
    }
}

#[test]
fn as_many_pods_as_are_missing() {
    let job = json!({ "completions": 5, "parallelism": 3 });
    assert_eq!(step(job.clone(), json!({}), vec![]), "+3");
    assert_eq!(
        step(job.clone(), json!({ "succeeded": 3 }), vec![running("a")]),
        "+1"
    );
    assert_eq!(
        step(job.clone(), json!({ "succeeded": 4 }), vec![running("a")]),
        "="
    );
    let surplus = leaving(running("z"));
    assert_eq!(
        step(
            job.clone(),
            json!({ "succeeded": 4 }),
            vec![running("a"), surplus]
        ),
        "="
    );
    let many = (0..3).map(|n| running(&n.to_string())).collect();
    assert_eq!(step(job, json!({ "succeeded": 5 }), many), "-0,1,2");
    let queue = json!({ "parallelism": 3 });
    assert_eq!(step(queue.clone(), json!({}), vec![running("a")]), "+2");
    assert_eq!(
        step(queue, json!({ "succeeded": 1 }), vec![running("a")]),
        "=",
        "the queue is empty"
    );
    let suspended = json!({ "completions": 5, "parallelism": 3, "suspend": true });
    assert_eq!(step(suspended, json!({}), vec![running("a")]), "-a");
}

#[test]
fn a_pod_on_its_way_out_is_replaced_at_once_unless_told_otherwise() {
    let pods = || vec![leaving(running("a"))];
    assert_eq!(step(json!({ "completions": 1 }), json!({}), pods()), "+1");
    let patient = json!({ "completions": 1, "podReplacementPolicy": "Failed" });
    assert_eq!(step(patient.clone(), json!({}), pods()), "=");
    let (eager, patient) = (terms(json!({ "completions": 1 })), terms(patient));
    assert_eq!(tally(&eager, &JobStatus::default(), pods()).failed, 1);
    assert_eq!(tally(&patient, &JobStatus::default(), pods()).failed, 0);
}

#[test]
fn indexes_are_given_out_once_and_in_order() {
    let job = json!({ "completions": 6, "parallelism": 3, "completionMode": "Indexed" });
    let of = json!({ "completedIndexes": "0,2" });
    let at = |uid: &str, index| pod(uid, Phase::Running, Some(index));
    assert_eq!(step(job.clone(), of.clone(), vec![at("a", 3)]), "#1,4");
    assert_eq!(
        step(job.clone(), of.clone(), vec![at("a", 3), at("b", 3), at("c", 9)]).len(),
        4,
        "two go"
    );
    assert_eq!(step(job.clone(), of, vec![at("a", 2)]), "-a", "its index is done");
    let done = json!({ "completedIndexes": "0-5" });
    assert_eq!(
        verdict(job, done, vec![]),
        Some((true, "CompletionsReached".into()))
    );
}

#[test]
fn an_index_that_fails_too_often_is_left() {
    let job = json!({ "completions": 2, "parallelism": 2, "completionMode": "Indexed", "backoffLimitPerIndex": 1,
        "backoffLimit": 100 });
    let failed = |uid: &str, index, failures: &str, seconds| {
        let mut pod = pod(uid, Phase::Failed, Some(index));
        let annotations = pod.metadata.annotations.get_or_insert_default();
        annotations.insert(INDEX_FAILURES.into(), failures.into());
        pod.end = Some(Box::new(End {
            at: Some(now() - SignedDuration::from_secs(seconds)),
            ..End::default()
        }));
        pod
    };
    assert_eq!(
        step(
            job.clone(),
            json!({}),
            vec![failed("a", 0, "0", 4), pod("b", Phase::Running, Some(1))]
        ),
        "~6"
    );
    assert_eq!(
        step(
            job.clone(),
            json!({}),
            vec![failed("a", 0, "0", 11), pod("b", Phase::Running, Some(1))]
        ),
        "#0"
    );
    let twice = || vec![failed("a", 0, "0", 50), failed("c", 0, "1", 9)];
    let terms = terms(job.clone());
    let counted = tally(&terms, &JobStatus::default(), twice());
    assert_eq!(
        (counted.failed_indexes.to_string().as_str(), counted.failed),
        ("0", 2)
    );
    assert!(counted.kept_back.is_empty(), "it is not tried again");
    assert_eq!(step(job.clone(), json!({}), twice()), "#1");
    assert_eq!(
        verdict(job.clone(), json!({}), twice()),
        None,
        "the other index may succeed"
    );
    let done = json!({ "completedIndexes": "1" });
    assert_eq!(
        verdict(job.clone(), done, twice()),
        Some((false, "FailedIndexes".into()))
    );
    let mut strict = job;
    strict["maxFailedIndexes"] = json!(0);
    assert_eq!(
        verdict(strict, json!({}), twice()),
        Some((false, "MaxFailedIndexesExceeded".into()))
    );
}

#[test]
fn a_job_is_over_for_a_reason() {
    let fails = |count: usize| {
        (0..count)
            .map(|n| pod(&n.to_string(), Phase::Failed, None))
            .collect::<Vec<_>>()
    };
    let job = json!({ "completions": 2, "backoffLimit": 1 });
    assert_eq!(verdict(job.clone(), json!({}), fails(1)), None);
    assert_eq!(
        verdict(job.clone(), json!({}), fails(2)),
        Some((false, "BackoffLimitExceeded".into()))
    );
    assert_eq!(
        verdict(job.clone(), json!({ "failed": 1 }), fails(1)),
        Some((false, "BackoffLimitExceeded".into()))
    );
    let noted = json!({ "uncountedTerminatedPods": { "failed": ["0"] } });
    assert_eq!(verdict(job.clone(), noted, fails(1)), None, "not counted twice");
    assert_eq!(
        verdict(job.clone(), json!({ "succeeded": 2 }), vec![running("a")]),
        None,
        "one still runs"
    );
    assert_eq!(
        verdict(job, json!({ "succeeded": 2 }), vec![]),
        Some((true, "CompletionsReached".into()))
    );

    let start = |seconds| json!({ "startTime": (now() - SignedDuration::from_secs(seconds)).to_string() });
    let hasty = json!({ "completions": 2, "activeDeadlineSeconds": 60 });
    assert_eq!(verdict(hasty.clone(), start(59), vec![]), None);
    assert_eq!(
        verdict(hasty.clone(), start(60), vec![]),
        Some((false, "DeadlineExceeded".into()))
    );
    let mut suspended = hasty;
    suspended["suspend"] = json!(true);
    assert_eq!(verdict(suspended, start(60), vec![]), None);

    let restarting = json!({ "completions": 2, "backoffLimit": 2,
        "template": { "spec": { "containers": [], "restartPolicy": "OnFailure" } } });
    let mut often = running("a");
    often.total_restarts = 2;
    assert_eq!(
        verdict(restarting, json!({}), vec![often]),
        Some((false, "BackoffLimitExceeded".into()))
    );
    let decided = json!({ "conditions": [{ "type": "FailureTarget", "status": "True", "reason": "X" }] });
    assert_eq!(
        verdict(json!({ "completions": 1 }), decided, vec![]),
        Some((false, "X".into()))
    );
}

#[test]
fn a_success_policy_ends_a_job_early() {
    let job = json!({ "completions": 4, "parallelism": 4, "completionMode": "Indexed",
        "successPolicy": { "rules": [{ "succeededIndexes": "0" }] } });
    let pods = || {
        vec![
            pod("a", Phase::Succeeded, Some(0)),
            pod("b", Phase::Running, Some(1)),
        ]
    };
    assert_eq!(
        verdict(job.clone(), json!({}), pods()),
        Some((true, "SuccessPolicy".into()))
    );
    assert_eq!(
        verdict(job, json!({}), vec![pod("b", Phase::Succeeded, Some(1))]),
        None
    );
}

#[test]
fn failures_of_the_whole_job_are_waited_out() {
    let terms = terms(json!({ "completions": 2 }));
    let failures = backoff::Record {
        failures: 1,
        last: Some(now()),
    };
    let none = tally(&terms, &JobStatus::default(), vec![]);
    assert!(matches!(plan(&terms, &none, &failures, BASE, 500, now()), Plan::Wait(wait) if wait == BASE));
}

#[test]
fn a_condition_that_says_the_same_stays() {
    let mut status = JobStatus::default();
    assert!(set_condition(
        &mut status,
        SUSPENDED,
        "True",
        "JobSuspended",
        "Job suspended",
        now()
    ));
    let later = now() + SignedDuration::from_secs(5);
    assert!(!set_condition(
        &mut status,
        SUSPENDED,
        "True",
        "JobSuspended",
        "Job suspended",
        later
    ));
    assert_eq!(
        condition(&status, SUSPENDED).unwrap().last_transition_time,
        Some(Time(now()))
    );
    assert!(set_condition(
        &mut status,
        SUSPENDED,
        "False",
        "JobResumed",
        "Job resumed",
        later
    ));
    assert!(condition(&status, SUSPENDED).is_none());
    set_condition(&mut status, "Complete", "True", "CompletionsReached", "", later);
    assert_eq!(finished_at(&status), Some(later));
}
