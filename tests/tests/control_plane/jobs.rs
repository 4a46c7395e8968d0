//! Jobs and CronJobs. The nodes end a pod as its annotations say: see [`crate::world`].

use std::time::Duration;

use anyhow::{Result, bail};
use k8s_openapi::api::batch::v1::{CronJob, Job, JobCondition};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::world::{World, eventually};

/// Failed pods are replaced soon.
async fn world() -> Result<World> {
    let world = World::with(|config| config.job_pod_failure_backoff = Duration::from_millis(50)).await?;
    world.join(&["n1"]).await?;
    Ok(world)
}

fn job(name: &str, spec: Value, exits: Value) -> Value {
    let mut job = json!({
        "metadata": { "name": name },
        "spec": { "template": {
            "metadata": { "annotations": exits },
            "spec": { "restartPolicy": "Never", "containers": [{ "name": "c", "image": "img:1" }] },
        } },
    });
    for (key, value) in spec.as_object().into_iter().flatten() {
        job["spec"][key] = value.clone();
    }
    job
}

fn condition<'a>(job: &'a Job, kind: &str) -> Option<&'a JobCondition> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    conditions
        .iter()
        .find(|condition| condition.type_ == kind && condition.status == "True")
}

/// Waits until a Job is over; both of its last conditions must give this reason.
async fn over(world: &World, name: &str, kind: &str, reason: &str) -> Result<Job> {
    let job = eventually(&format!("job {name} to be {kind}"), || async {
        let job = world.api::<Job>().get(name).await.ok()?;
        (condition(&job, "Complete").is_some() || condition(&job, "Failed").is_some()).then_some(job)
    })
    .await?;
    let interim = if kind == "Complete" {
        "SuccessCriteriaMet"
    } else {
        "FailureTarget"
    };
    for kind in [kind, interim] {
        match condition(&job, kind) {
            Some(condition) if condition.reason.as_deref() == Some(reason) => {}
            _ => bail!("{kind} is not {reason}: {:#?}", job.status),
        }
    }
    let status = job.status.clone().unwrap_or_default();
    assert_eq!(
        (status.active.unwrap_or(0), status.terminating.unwrap_or(0)),
        (0, 0)
    );
    let uncounted = status.uncounted_terminated_pods.unwrap_or_default();
    assert!(uncounted.failed.is_none() && uncounted.succeeded.is_none());
    let pods = world.pods(&format!("job-name={name}")).await?;
    assert!(
        pods.iter().all(|pod| pod.finalizers().is_empty()),
        "all are counted"
    );
    Ok(job)
}

fn counts(job: &Job) -> (i32, i32) {
    let status = job.status.as_ref();
    (
        status.and_then(|status| status.succeeded).unwrap_or(0),
        status.and_then(|status| status.failed).unwrap_or(0),
    )
}

/// "should create pods for an Indexed job with completion indexes and specified hostname", "should delete pods when suspended",
/// "should not create pods when created in suspend state", and what comes after the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_indexed_job_runs_is_suspended_completes_and_goes() -> Result<()> {
    let world = world().await?;
    let spec = json!({ "completions": 3, "parallelism": 2, "completionMode": "Indexed", "suspend": true });
    world.create::<Job>(job("pi", spec, json!({}))).await?;
    eventually("the pause to be noted", || async {
        let job = world.api::<Job>().get("pi").await.ok()?;
        condition(&job, "Suspended").map(|_| {
            assert!(
                job.status
                    .as_ref()
                    .and_then(|status| status.start_time.clone())
                    .is_none()
            );
        })
    })
    .await?;
    assert!(world.pods("job-name=pi").await?.is_empty());
    world
        .merge::<Job>("pi", json!({ "spec": { "suspend": false } }))
        .await?;
    let mut pods = world.wait_ready("job-name=pi", 2).await?;
    pods.sort_by_key(kube::ResourceExt::name_any);
    for (index, pod) in pods.iter().enumerate() {
        let (name, index) = (pod.name_any(), index.to_string());
        assert!(name.starts_with(&format!("pi-{index}-")), "{name}");
        assert_eq!(pod.labels()["batch.kubernetes.io/job-completion-index"], index);
        assert_eq!(
            pod.annotations()["batch.kubernetes.io/job-completion-index"],
            index
        );
        let spec = pod.spec.clone().unwrap_or_default();
        assert_eq!(spec.hostname, Some(format!("pi-{index}")));
    }
    eventually("the ready pods to be counted", || async {
        let status = world.api::<Job>().get("pi").await.ok()?.status?;
        (status.ready == Some(2) && status.active == Some(2)).then_some(())
    })
    .await?;
    world
        .merge::<Job>("pi", json!({ "spec": { "suspend": true } }))
        .await?;
    eventually("the pods to go", || async {
        world.pods("job-name=pi").await.ok()?.is_empty().then_some(())
    })
    .await?;
    let paused = world.api::<Job>().get("pi").await?;
    assert_eq!(counts(&paused), (0, 0), "suspended pods are no failures");

    // A Job's template stays while it runs: each pod is told on its own that it is done.
    world
        .merge::<Job>("pi", json!({ "spec": { "suspend": false } }))
        .await?;
    eventually("all three to have been done", || async {
        for pod in world.ready("job-name=pi").await.ok()? {
            let done = json!({ "metadata": { "annotations": { "test/exit": "0" } } });
            world.merge::<Pod>(&pod.name_any(), done).await.ok()?;
        }
        let job = world.api::<Job>().get("pi").await.ok()?;
        condition(&job, "Complete").map(|_| ())
    })
    .await?;
    let done = over(&world, "pi", "Complete", "CompletionsReached").await?;
    assert_eq!(counts(&done), (3, 0));
    let status = done.status.unwrap_or_default();
    assert_eq!(status.completed_indexes.as_deref(), Some("0-2"));
    assert!(status.completion_time.is_some());
    eventually("the events", || async {
        let all = [
            ("Suspended", "Job suspended"),
            ("Resumed", "Job resumed"),
            ("Completed", "Job completed"),
        ];
        for (reason, message) in all {
            world
                .events("pi", reason)
                .await
                .ok()?
                .contains(&message.to_owned())
                .then_some(())?;
        }
        Some(())
    })
    .await?;
    world
        .merge::<Job>("pi", json!({ "spec": { "ttlSecondsAfterFinished": 0 } }))
        .await?;
    eventually("the Job and its pods to go", || async {
        let gone = world.api::<Job>().get("pi").await.is_err();
        (gone && world.pods("job-name=pi").await.ok()?.is_empty()).then_some(())
    })
    .await
}

/// "should exceed backoffLimit", "should allow to use the pod failure policy on exit code to fail the job early", "should allow
/// to use a pod failure policy to ignore failure matching on exit code", "should delete a job".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_fails_when_its_pods_fail_too_often_or_in_a_certain_way() -> Result<()> {
    let world = world().await?;
    let spec = json!({ "backoffLimit": 1 });
    world
        .create::<Job>(job("often", spec, json!({ "test/exit": "1" })))
        .await?;
    let policy = |action: &str| json!({ "rules": [{ "action": action, "onExitCodes": { "operator": "In", "values": [42] } }] });
    let early = json!({ "backoffLimit": 6, "completions": 2, "parallelism": 2, "podFailurePolicy": policy("FailJob") });
    world
        .create::<Job>(job("early", early, json!({ "test/exit": "42" })))
        .await?;
    let spec = json!({ "backoffLimit": 0, "podFailurePolicy": policy("Ignore") });
    world.create::<Job>(job("ignoring", spec, json!({}))).await?;

    let often = over(&world, "often", "Failed", "BackoffLimitExceeded").await?;
    assert_eq!(counts(&often), (0, 2));
    let message = condition(&often, "Failed").and_then(|condition| condition.message.clone());
    assert_eq!(
        message.as_deref(),
        Some("Job has reached the specified backoff limit")
    );
    assert!(often.status.and_then(|status| status.completion_time).is_none());
    let early = over(&world, "early", "Failed", "PodFailurePolicy").await?;
    let message = condition(&early, "Failed")
        .and_then(|condition| condition.message.clone())
        .unwrap_or_default();
    assert!(
        message.starts_with("Container c for pod default/early-"),
        "{message}"
    );
    assert!(
        message.ends_with("failed with exit code 42 matching FailJob rule at index 0"),
        "{message}"
    );

    let ended = world
        .wait_ready("job-name=ignoring", 1)
        .await?
        .remove(0)
        .name_any();
    world
        .merge::<Pod>(
            &ended,
            json!({ "metadata": { "annotations": { "test/exit": "42" } } }),
        )
        .await?;
    let again = eventually("another pod", || async {
        let pods = world.ready("job-name=ignoring").await.ok()?;
        pods.into_iter()
            .map(|pod| pod.name_any())
            .find(|name| *name != ended)
    })
    .await?;
    world
        .merge::<Pod>(
            &again,
            json!({ "metadata": { "annotations": { "test/exit": "0" } } }),
        )
        .await?;
    assert_eq!(
        counts(&over(&world, "ignoring", "Complete", "CompletionsReached").await?),
        (1, 0)
    );

    world.create::<Job>(job("endless", json!({}), json!({}))).await?;
    world.wait_ready("job-name=endless", 1).await?;
    world
        .api::<Job>()
        .delete("endless", &DeleteParams::background())
        .await?;
    eventually("its pods to go", || async {
        world
            .pods("job-name=endless")
            .await
            .ok()?
            .is_empty()
            .then_some(())
    })
    .await
}

/// "should adopt matching orphans and release non-matching pods".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_adopts_what_matches_and_releases_what_does_not() -> Result<()> {
    let world = world().await?;
    let spec = json!({ "completions": 2, "parallelism": 2 });
    let made = world.create::<Job>(job("keep", spec, json!({}))).await?;
    let uid = made.metadata.uid.clone().unwrap_or_default();
    let owned = |pod: &Pod| {
        let owners = pod.metadata.owner_references.iter().flatten();
        owners.into_iter().any(|owner| owner.uid == uid)
    };
    let tracked = |pod: &Pod| {
        pod.finalizers()
            .iter()
            .any(|name| name == "batch.kubernetes.io/job-tracking")
    };
    let pods = world.wait_ready("job-name=keep", 2).await?;
    assert!(pods.iter().all(|pod| owned(pod) && tracked(pod)));
    let (orphan, leaver) = (pods[0].name_any(), pods[1].name_any());
    // Often: whoever lets go of pods that have no Job must not take from the Job what it has just adopted.
    for _ in 0..50 {
        world
            .merge::<Pod>(&orphan, json!({ "metadata": { "ownerReferences": null } }))
            .await?;
        eventually("the orphan to be adopted and tracked", || async {
            let pod = world.api::<Pod>().get(&orphan).await.ok()?;
            (owned(&pod) && tracked(&pod)).then_some(())
        })
        .await?;
    }
    world
        .merge::<Pod>(&leaver, json!({ "metadata": { "labels": null } }))
        .await?;
    eventually("the other to be released and let go", || async {
        let pod = world.api::<Pod>().get(&leaver).await.ok()?;
        (!owned(&pod) && !tracked(&pod)).then_some(())
    })
    .await?;
    world.wait_ready("job-name=keep", 2).await?;
    Ok(())
}

/// "should execute all indexes despite some failing when using backoffLimitPerIndex", "should mark indexes as failed when the
/// FailIndex action is matched in podFailurePolicy", "with successPolicy succeededIndexes rule should succeeded even when some
/// indexes remain pending".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn indexes_fail_and_suffice_on_their_own() -> Result<()> {
    let world = world().await?;
    let spec = json!({ "completions": 4, "parallelism": 2, "completionMode": "Indexed", "backoffLimitPerIndex": 1,
        "podFailurePolicy": { "rules": [{ "action": "FailIndex", "onExitCodes": { "operator": "In", "values": [42] } }] } });
    let exits = json!({ "test/exit": "0", "test/exit-1": "1", "test/exit-3": "42" });
    world.create::<Job>(job("some", spec, exits)).await?;
    let spec = json!({ "completions": 3, "parallelism": 3, "completionMode": "Indexed",
        "successPolicy": { "rules": [{ "succeededIndexes": "1" }] } });
    world
        .create::<Job>(job("enough", spec, json!({ "test/exit-1": "0" })))
        .await?;
    let some = over(&world, "some", "Failed", "FailedIndexes").await?;
    assert_eq!(counts(&some), (2, 3), "index 1 was tried twice, index 3 once");
    let status = some.status.unwrap_or_default();
    assert_eq!(
        (
            status.completed_indexes.as_deref(),
            status.failed_indexes.as_deref()
        ),
        (Some("0,2"), Some("1,3"))
    );
    let enough = over(&world, "enough", "Complete", "SuccessPolicy").await?;
    assert_eq!(counts(&enough), (1, 0));
    let message = condition(&enough, "Complete").and_then(|condition| condition.message.clone());
    assert_eq!(message.as_deref(), Some("Matched rules at index 0"));
    Ok(())
}

/// "should not schedule new jobs when ForbidConcurrent", "should replace jobs when ReplaceConcurrent", "should delete successful
/// finished jobs with limit of one successful job", and `kubectl create job --from`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cron_job_makes_replaces_and_forgets_jobs() -> Result<()> {
    let world = world().await?;
    let template = job("", json!({}), json!({}));
    // Due in this minute, and then not for a day.
    let schedule = jiff::Timestamp::now().strftime("%M %H * * *").to_string();
    world
        .create::<CronJob>(json!({
            "metadata": { "name": "tick" },
            "spec": { "schedule": schedule, "timeZone": "Etc/UTC", "suspend": true, "concurrencyPolicy": "Forbid", "successfulJobsHistoryLimit": 1,
                "jobTemplate": { "spec": template["spec"] } },
        }))
        .await?;
    world
        .kubectl(&["create", "job", "by-hand", "--from=cronjob/tick"])
        .await?;
    world.wait_ready("job-name=by-hand", 1).await?;
    let by_hand = world.api::<Job>().get("by-hand").await?;
    eventually("the stranger to be noticed", || async {
        let events = world.events("tick", "UnexpectedJob").await.ok()?;
        events
            .iter()
            .any(|message| message.ends_with("forgot: by-hand"))
            .then_some(())
    })
    .await?;

    // As if it had run three minutes ago, and that run went on.
    let ran = jiff::Timestamp::now() - jiff::SignedDuration::from_mins(3);
    let status = json!({ "status": { "lastScheduleTime": format!("{ran:.0}"),
        "active": [{ "kind": "Job", "name": "by-hand", "namespace": "default", "uid": by_hand.metadata.uid }] } });
    world
        .api::<CronJob>()
        .patch_status("tick", &PatchParams::default(), &Patch::Merge(status))
        .await?;
    world
        .merge::<CronJob>("tick", json!({ "spec": { "suspend": false } }))
        .await?;
    eventually("the refusal", || async {
        let events = world.events("tick", "JobAlreadyActive").await.ok()?;
        events.into_iter().next()
    })
    .await?;
    world
        .merge::<CronJob>("tick", json!({ "spec": { "concurrencyPolicy": "Replace" } }))
        .await?;
    let made = eventually("the Job of the minute", || async {
        let cron = world.api::<CronJob>().get("tick").await.ok()?;
        let status = cron.status?;
        let active = status.active?.into_iter().next()?.name?;
        let minute = status.last_schedule_time?.0.as_second() / 60;
        (active == format!("tick-{minute}")).then_some(active)
    })
    .await?;
    eventually("the other to go", || async {
        world.api::<Job>().get("by-hand").await.is_err().then_some(())
    })
    .await?;
    let job = world.api::<Job>().get(&made).await?;
    let scheduled = &job.annotations()["batch.kubernetes.io/cronjob-scheduled-timestamp"];
    assert!(scheduled.ends_with(":00Z"), "{scheduled}");

    world
        .merge::<CronJob>(
            "tick",
            json!({ "spec": { "suspend": true, "successfulJobsHistoryLimit": 0 } }),
        )
        .await?;
    let pod = world.wait_ready(&format!("job-name={made}"), 1).await?.remove(0);
    world
        .merge::<Pod>(
            &pod.name_any(),
            json!({ "metadata": { "annotations": { "test/exit": "0" } } }),
        )
        .await?;
    eventually("the finished Job to be forgotten", || async {
        let status = world.api::<CronJob>().get("tick").await.ok()?.status?;
        let gone = world.api::<Job>().get(&made).await.is_err();
        (gone && status.active.is_none() && status.last_successful_time.is_some()).then_some(())
    })
    .await?;
    eventually("the events", || async {
        let seen = world.events("tick", "SawCompletedJob").await.ok()?;
        let made_events = world.events("tick", "SuccessfulCreate").await.ok()?;
        (seen.contains(&format!("Saw completed job: {made}, condition: Complete"))
            && made_events.contains(&format!("Created job {made}")))
        .then_some(())
    })
    .await
}
