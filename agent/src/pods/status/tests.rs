use serde_json::{Value, json};

use super::*;
use crate::pods::state::Obstacle;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + second).unwrap()
}

fn pod() -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "u"},
        "spec": {"containers": [{"name": "a", "image": "x:1"}, {"name": "b", "image": "y"}]},
    }))
    .unwrap()
}

fn facts<'a>(records: &'a Records, back_off: &'a BackOffConfig, ips: &'a [IpAddr]) -> Facts<'a> {
    Facts {
        records,
        finished: None,
        sandboxed: true,
        pod_ips: ips,
        node_ips: ips,
        started_at: at(0),
        back_off,
        now: at(100),
    }
}

fn shown(pod: &Pod, facts: &Facts<'_>) -> Value {
    serde_json::to_value(compute(pod, facts)).unwrap()
}

fn running() -> Record {
    Record {
        stage: Stage::Running(at(1)),
        ready: true,
        started: true,
        ..Record::default()
    }
}

fn ended(code: i32) -> Ended {
    Ended {
        started_at: Some(at(90)),
        finished_at: at(95),
        exit_code: code,
        signal: None,
        reason: "Error".to_owned(),
        message: None,
    }
}

fn records(a: Record, b: Record) -> Records {
    Records::from([("a".to_owned(), a), ("b".to_owned(), b)])
}

fn condition(status: &Value, name: &str) -> String {
    let conditions = status["conditions"].as_array().unwrap();
    let found = conditions.iter().find(|c| c["type"] == name).unwrap();
    found["status"].as_str().unwrap().to_owned()
}

#[test]
fn a_pod_is_ready_when_all_its_containers_are() {
    let config = BackOffConfig::default();
    let ips = ["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
    let mut unready = running();
    unready.ready = false;
    for (records, phase, ready) in [
        (records(Record::default(), Record::default()), "Pending", "False"),
        (records(running(), Record::default()), "Pending", "False"),
        (records(running(), unready), "Running", "False"),
        (records(running(), running()), "Running", "True"),
    ] {
        let status = shown(&pod(), &facts(&records, &config, &ips));
        assert_eq!(status["phase"], phase);
        assert_eq!(condition(&status, "Ready"), ready);
        assert_eq!(condition(&status, "ContainersReady"), ready);
        assert_eq!(condition(&status, "PodScheduled"), "True");
        assert_eq!(status["podIPs"], json!([{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]));
        assert_eq!(status["qosClass"], "BestEffort");
    }
}

#[test]
fn a_container_that_waits_says_why() {
    let config = BackOffConfig::default();
    let crashed = Record {
        stage: Stage::Ended(ended(3)),
        attempt: 1,
        streak: 1,
        ..Record::default()
    };
    let blocked = Record {
        obstacle: Some(Obstacle {
            reason: "ErrImageNeverPull".to_owned(),
            message: "no".to_owned(),
            retry_at: at(110),
        }),
        ..Record::default()
    };
    let records = records(crashed, blocked);
    let status = shown(&pod(), &facts(&records, &config, &[]));
    let a = &status["containerStatuses"][0];
    assert_eq!(a["state"]["waiting"]["reason"], "CrashLoopBackOff");
    let message = a["state"]["waiting"]["message"].as_str().unwrap();
    assert!(
        message.starts_with("back-off 10s restarting failed container=a pod=p_n(u)"),
        "{message}"
    );
    assert_eq!(a["lastState"]["terminated"]["exitCode"], 3);
    assert_eq!(a["restartCount"], 1);
    let b = &status["containerStatuses"][1];
    assert_eq!(
        b["state"]["waiting"],
        json!({"reason": "ErrImageNeverPull", "message": "no"})
    );
    assert_eq!(status["phase"], "Pending");
}

#[test]
fn a_pod_that_is_over_says_how() {
    let config = BackOffConfig::default();
    let records = records(
        Record {
            stage: Stage::Ended(ended(0)),
            ..Record::default()
        },
        Record {
            stage: Stage::Ended(ended(0)),
            ..Record::default()
        },
    );
    let mut facts = facts(&records, &config, &[]);
    facts.finished = Some(Finished::Succeeded);
    let status = shown(&pod(), &facts);
    assert_eq!(status["phase"], "Succeeded");
    assert_eq!(condition(&status, "Ready"), "False");
    let ready = status["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .find(|c| c["type"] == "Ready")
        .unwrap();
    assert_eq!(ready["reason"], "PodCompleted");
    assert_eq!(
        status["containerStatuses"][0]["state"]["terminated"]["exitCode"],
        0
    );
}

#[test]
fn a_condition_that_did_not_change_keeps_its_time_and_those_of_others_are_theirs() {
    let config = BackOffConfig::default();
    let records = records(running(), running());
    let mut pod = pod();
    pod.status = serde_json::from_value(json!({"conditions": [
        {"type": "Ready", "status": "True", "lastTransitionTime": "2001-01-01T00:00:00Z"},
        {"type": "ContainersReady", "status": "False", "lastTransitionTime": "2001-01-01T00:00:00Z"},
        {"type": "DisruptionTarget", "status": "True"},
    ]}))
    .unwrap();
    let status = compute(&pod, &facts(&records, &config, &[]));
    let conditions = status.conditions.as_ref().unwrap();
    let time = |name: &str| {
        let found = conditions.iter().find(|c| c.type_ == name).unwrap();
        found.last_transition_time.as_ref().map(|time| time.0)
    };
    assert_eq!(time("Ready"), Some("2001-01-01T00:00:00Z".parse().unwrap()));
    assert_eq!(time("ContainersReady"), Some(at(100)));
    let types: Vec<_> = conditions.iter().map(|c| c.type_.as_str()).collect();
    assert_eq!(types, CONDITIONS);
}

#[test]
fn the_quality_of_service_follows_requests_and_limits() {
    let class = |resources: &[Value]| {
        let containers: Vec<_> = resources
            .iter()
            .map(|r| json!({"name": "c", "resources": r}))
            .collect();
        let spec: PodSpec = serde_json::from_value(json!({"containers": containers})).unwrap();
        qos_class(&spec)
    };
    let all = json!({"limits": {"cpu": "1", "memory": "1Gi"}});
    assert_eq!(class(&[json!({})]), "BestEffort");
    assert_eq!(class(std::slice::from_ref(&all)), "Guaranteed");
    assert_eq!(class(&[all.clone(), json!({})]), "Burstable");
    assert_eq!(class(&[json!({"requests": {"cpu": "1m"}})]), "Burstable");
    let less = json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}});
    assert_eq!(class(&[less]), "Burstable");
}
