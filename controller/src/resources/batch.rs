//! `batch`: work that ends, at once or by the clock.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::Subresource::Status;
use super::{Field, NAME, Resource, boolean, number, printing, row, text, validation, wide};

pub(super) static RESOURCES: &[Resource] = &[
    Resource {
        short_names: &["cj"],
        categories: &["all"],
        subresources: &[Status],
        generation: true,
        columns: &[
            NAME,
            text("Schedule"),
            text("Timezone"),
            boolean("Suspend"),
            number("Active"),
            text("Last Schedule"),
            text("Age"),
            wide("Containers"),
            wide("Images"),
            wide("Selector"),
        ],
        cells: |cron, now| {
            let (spec, status) = (&cron["spec"], &cron["status"]);
            let job = &spec["jobTemplate"]["spec"];
            let [names, images] = printing::containers(&job["template"]["spec"]);
            let last = &status["lastScheduleTime"];
            vec![
                cron["metadata"]["name"].clone(),
                spec["schedule"].clone(),
                printing::or_none(&spec["timeZone"]),
                match spec["suspend"].as_bool() {
                    Some(true) => "True",
                    Some(false) => "False",
                    None => "<unset>",
                }
                .into(),
                json!(status["active"].as_array().map_or(0, Vec::len)),
                if last.is_string() {
                    printing::since(last, now)
                } else {
                    "<none>".into()
                },
                printing::age(cron, now),
                names,
                images,
                printing::selector(&job["selector"]),
            ]
        },
        validate: validation::job::cron_job,
        ..row(
            "batch",
            "v1",
            "CronJob",
            ("cronjobs", "cronjob"),
            "batch/cronjobs",
        )
    },
    Resource {
        categories: &["all"],
        subresources: &[Status],
        generation: true,
        fields: &[Field {
            name: "status.successful",
            path: "status.succeeded",
            default: "0",
        }],
        columns: &[
            NAME,
            text("Status"),
            text("Completions"),
            text("Duration"),
            text("Age"),
            wide("Containers"),
            wide("Images"),
            wide("Selector"),
        ],
        cells: |job, now| {
            let spec = &job["spec"];
            let [names, images] = printing::containers(&spec["template"]["spec"]);
            vec![
                job["metadata"]["name"].clone(),
                state(job).into(),
                completions(job).into(),
                duration(&job["status"], now),
                printing::age(job, now),
                names,
                images,
                printing::selector(&spec["selector"]),
            ]
        },
        prepare: label_pods,
        validate: validation::job::job,
        orphans: true,
        ..row("batch", "v1", "Job", ("jobs", "job"), "batch/jobs")
    },
];

/// The labels that mark a job's pods, each under its present and its former name.
const NAME_LABELS: [&str; 2] = ["job-name", "batch.kubernetes.io/job-name"];
const UID_LABELS: [&str; 2] = ["controller-uid", "batch.kubernetes.io/controller-uid"];

/// Gives a job a selector that no other job's pods match, unless it brings its own.
fn label_pods(job: &mut Value) {
    let (name, uid) = (job["metadata"]["name"].clone(), job["metadata"]["uid"].clone());
    if job["spec"]["manualSelector"] == true || !job["spec"].is_object() {
        return;
    }
    let spec = &mut job["spec"];
    if spec["template"].is_null() {
        return;
    }
    for (keys, value) in [(NAME_LABELS, name), (UID_LABELS, uid.clone())] {
        for key in keys {
            let label = &mut spec["template"]["metadata"]["labels"][key];
            if label.is_null() {
                *label = value.clone();
            }
        }
    }
    let selected = &mut spec["selector"]["matchLabels"][UID_LABELS[1]];
    if selected.is_null() {
        *selected = uid;
    }
}

fn state(job: &Value) -> &'static str {
    let has = |kind: &str| {
        let conditions = job["status"]["conditions"].as_array();
        conditions.is_some_and(|list| list.iter().any(|c| c["type"] == kind && c["status"] == "True"))
    };
    if has("Complete") {
        "Complete"
    } else if has("Failed") {
        "Failed"
    } else if job["metadata"]["deletionTimestamp"].is_string() {
        "Terminating"
    } else if has("Suspended") {
        "Suspended"
    } else if has("FailureTarget") {
        "FailureTarget"
    } else if has("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    }
}

fn completions(job: &Value) -> String {
    let succeeded = job["status"]["succeeded"].as_i64().unwrap_or_default();
    let parallelism = job["spec"]["parallelism"].as_i64().unwrap_or_default();
    match job["spec"]["completions"].as_i64() {
        Some(wanted) => format!("{succeeded}/{wanted}"),
        None if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        None => format!("{succeeded}/1"),
    }
}

/// How long the job took, or has taken so far.
fn duration(status: &Value, now: Timestamp) -> Value {
    let time = |value: &Value| value.as_str().and_then(|text| text.parse::<Timestamp>().ok());
    let Some(start) = time(&status["startTime"]) else {
        return "".into();
    };
    let end = time(&status["completionTime"]).unwrap_or(now);
    printing::duration(end.as_second() - start.as_second()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(kind: &str, object: &Value) -> Vec<Value> {
        let resource = RESOURCES.iter().find(|resource| resource.kind == kind).unwrap();
        (resource.cells)(object, "2025-01-01T01:00:00Z".parse().unwrap())
    }

    fn job(spec: &Value, status: &Value) -> Value {
        json!({"metadata": {"name": "pi", "creationTimestamp": "2025-01-01T00:50:00Z"}, "spec": spec, "status": status})
    }

    #[test]
    fn jobs_print_as_kubectl_shows_them() {
        let template = json!({"spec": {"containers": [{"name": "c", "image": "perl"}]}});
        let done = json!({"succeeded": 1, "startTime": "2025-01-01T00:50:01Z", "completionTime": "2025-01-01T00:50:32Z",
            "conditions": [{"type": "SuccessCriteriaMet", "status": "True"}, {"type": "Complete", "status": "True"}]});
        let selector = json!({"matchLabels": {"a": "b"}});
        let object = job(
            &json!({"completions": 1, "parallelism": 1, "template": template, "selector": selector}),
            &done,
        );
        assert_eq!(
            cells("Job", &object),
            ["pi", "Complete", "1/1", "31s", "10m", "c", "perl", "a=b"]
        );
        for (spec, status, printed) in [
            (json!({"completions": 3}), json!({}), ["Running", "0/3", ""]),
            (
                json!({"parallelism": 2}),
                json!({"succeeded": 1, "startTime": "2025-01-01T00:58:00Z"}),
                ["Running", "1/1 of 2", "2m"],
            ),
            (
                json!({"parallelism": 1}),
                json!({"conditions": [{"type": "Suspended", "status": "True"}]}),
                ["Suspended", "0/1", ""],
            ),
            (
                json!({"completions": 1}),
                json!({"conditions": [{"type": "FailureTarget", "status": "True"}]}),
                ["FailureTarget", "0/1", ""],
            ),
        ] {
            assert_eq!(cells("Job", &job(&spec, &status))[1..4], printed);
        }
    }

    #[test]
    fn cron_jobs_print_as_kubectl_shows_them() {
        let cron = json!({
            "metadata": {"name": "tick", "creationTimestamp": "2025-01-01T00:00:00Z"},
            "spec": {"schedule": "*/1 * * * *", "suspend": false,
                "jobTemplate": {"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "busybox"}]}}}}},
            "status": {"lastScheduleTime": "2025-01-01T00:59:30Z", "active": [{}]},
        });
        assert_eq!(
            cells("CronJob", &cron),
            [
                json!("tick"),
                json!("*/1 * * * *"),
                json!("<none>"),
                json!("False"),
                json!(1),
                json!("30s"),
                json!("60m"),
                json!("c"),
                json!("busybox"),
                json!("<none>"),
            ]
        );
    }

    #[test]
    fn a_job_selects_its_own_pods_alone() {
        let mut object = json!({"metadata": {"name": "pi", "uid": "u"}, "spec": {"template": {"metadata": {"labels": {"a": "b"}}}}});
        label_pods(&mut object);
        assert_eq!(
            object["spec"],
            json!({
                "selector": {"matchLabels": {"batch.kubernetes.io/controller-uid": "u"}},
                "template": {"metadata": {"labels": {
                    "a": "b", "job-name": "pi", "controller-uid": "u",
                    "batch.kubernetes.io/job-name": "pi", "batch.kubernetes.io/controller-uid": "u",
                }}},
            })
        );
        let own =
            json!({"metadata": {"name": "pi", "uid": "u"}, "spec": {"manualSelector": true, "template": {}}});
        let mut object = own.clone();
        label_pods(&mut object);
        assert_eq!(object, own);
    }
}
