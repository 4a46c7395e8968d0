//! Jobs and what starts them by the clock.

use jiff::tz::TimeZone;
use serde_json::{Value, json};

use super::{Problems, at_least_zero, immutable, is_set, label_selector, pod_template, supported, text};
use crate::cron::Schedule;
use crate::selector::LabelSelector;

/// Most pods at a time of a job that counts its completions by index.
const MAX_INDEXED_PARALLELISM: i64 = 100_000;
/// A CronJob's name leaves room for the time that its jobs carry.
const MAX_CRON_NAME: usize = 52;

/// Checks a Job.
pub(crate) fn job(job: &Value, old: Option<&Value>, problems: &mut Problems) {
    let spec = &job["spec"];
    job_spec(spec, "spec", problems);
    selector(spec, &job["metadata"], old.is_none(), problems);
    if let Some(old) = old {
        changes(job, old, problems);
    }
}

fn job_spec(spec: &Value, at: &str, problems: &mut Problems) {
    for key in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        at_least_zero(&spec[key], &format!("{at}.{key}"), problems);
    }
    supported(spec, at, "completionMode", &["Indexed", "NonIndexed"], problems);
    if spec["completionMode"] == "Indexed" {
        if spec["completions"].is_null() {
            problems.required(&format!("{at}.completions"), "when completion mode is Indexed");
        }
        if spec["parallelism"]
            .as_i64()
            .is_some_and(|many| many > MAX_INDEXED_PARALLELISM)
        {
            let detail = format!(
                "must be less than or equal to {MAX_INDEXED_PARALLELISM} when completion mode is Indexed"
            );
            problems.invalid(&format!("{at}.parallelism"), &spec["parallelism"], &detail);
        }
    } else {
        for key in ["backoffLimitPerIndex", "maxFailedIndexes"] {
            if !spec[key].is_null() {
                let detail = "requires indexed completion mode";
                problems.invalid(&format!("{at}.{key}"), &spec[key], detail);
            }
        }
    }
    supported(
        spec,
        at,
        "podReplacementPolicy",
        &["Failed", "TerminatingOrFailed"],
        problems,
    );
    pod_template(&spec["template"], &format!("{at}.template"), problems);
    let policy = &spec["template"]["spec"]["restartPolicy"];
    let field = format!("{at}.template.spec.restartPolicy");
    match text(policy) {
        "Always" => problems.required(&field, "valid values: \"OnFailure\", \"Never\""),
        "OnFailure" if spec["podFailurePolicy"].is_object() => {
            let detail = "only \"Never\" is supported when podFailurePolicy is specified";
            problems.invalid(&field, policy, detail);
        }
        // Any other is no restart policy at all, which the template's check says.
        _ => {}
    }
}

/// The selector is the server's, unless the job says that it brings its own.
fn selector(spec: &Value, metadata: &Value, new: bool, problems: &mut Problems) {
    let selector = &spec["selector"];
    if selector.is_null() {
        problems.required("spec.selector", "");
        return;
    }
    label_selector(selector, "spec.selector", problems);
    let labels = &spec["template"]["metadata"]["labels"];
    if let Ok(parsed) = LabelSelector::from_value(selector)
        && !parsed.matches(labels)
    {
        let detail = "`selector` does not match template `labels`";
        problems.invalid("spec.template.metadata.labels", labels, detail);
    }
    if !new || spec["manualSelector"] == true {
        return;
    }
    for (keys, value) in [
        (
            ["batch.kubernetes.io/controller-uid", "controller-uid"],
            &metadata["uid"],
        ),
        (["batch.kubernetes.io/job-name", "job-name"], &metadata["name"]),
    ] {
        for key in keys {
            if labels[key] != *value {
                let detail = format!("must be {value}");
                problems.invalid(
                    &format!("spec.template.metadata.labels[{key}]"),
                    &labels[key],
                    &detail,
                );
            }
        }
    }
    let expected = json!({"matchLabels": {"batch.kubernetes.io/controller-uid": metadata["uid"]}});
    let legacy = json!({"matchLabels": {"controller-uid": metadata["uid"]}});
    if *selector != expected && *selector != legacy {
        problems.invalid("spec.selector", selector, "`selector` not auto-generated");
    }
}

/// What of a template may change while its job is suspended and has not started.
const DIRECTIVES: &[&str] = &["nodeSelector", "affinity", "tolerations", "schedulingGates"];

fn changes(job: &Value, old: &Value, problems: &mut Problems) {
    let (spec, before) = (&job["spec"], &old["spec"]);
    let elastic = spec["completionMode"] == "Indexed"
        && spec["completions"] == spec["parallelism"]
        && !spec["completions"].is_null();
    if !elastic {
        immutable(job, Some(old), "spec.completions", problems);
    }
    for key in [
        "selector",
        "completionMode",
        "podFailurePolicy",
        "backoffLimitPerIndex",
        "managedBy",
        "successPolicy",
    ] {
        immutable(job, Some(old), &format!("spec.{key}"), problems);
    }
    let open = before["suspend"] == true && old["status"]["startTime"].is_null();
    let fixed = |template: &Value| {
        let mut template = template.clone();
        if open {
            for key in DIRECTIVES {
                if let Some(spec) = template["spec"].as_object_mut() {
                    spec.remove(*key);
                }
            }
            for key in ["labels", "annotations"] {
                if let Some(metadata) = template["metadata"].as_object_mut() {
                    metadata.remove(key);
                }
            }
        }
        template
    };
    if fixed(&spec["template"]) != fixed(&before["template"]) {
        problems.invalid("spec.template", &spec["template"], "field is immutable");
    }
}

/// Checks a CronJob.
pub(crate) fn cron_job(cron: &Value, old: Option<&Value>, problems: &mut Problems) {
    let (name, spec) = (&cron["metadata"]["name"], &cron["spec"]);
    if old.is_none() && text(name).len() > MAX_CRON_NAME {
        let detail = format!("must be no more than {MAX_CRON_NAME} characters");
        problems.invalid("metadata.name", name, &detail);
    }
    let before = old.map_or(&Value::Null, |old| &old["spec"]);
    schedule(spec, before, problems);
    at_least_zero(
        &spec["startingDeadlineSeconds"],
        "spec.startingDeadlineSeconds",
        problems,
    );
    if is_set(&spec["concurrencyPolicy"]) {
        let policies = ["Allow", "Forbid", "Replace"];
        supported(spec, "spec", "concurrencyPolicy", &policies, problems);
    } else {
        problems.required("spec.concurrencyPolicy", "");
    }
    let job = &spec["jobTemplate"]["spec"];
    if job["manualSelector"] == true {
        problems.not_supported(
            "spec.jobTemplate.spec.manualSelector",
            &job["manualSelector"],
            &["nil", "false"],
        );
    }
    if !job["selector"].is_null() {
        let detail = "`selector` will be auto-generated";
        problems.invalid("spec.jobTemplate.spec.selector", &job["selector"], detail);
    }
    job_spec(job, "spec.jobTemplate.spec", problems);
    for key in ["successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        at_least_zero(&spec[key], &format!("spec.{key}"), problems);
    }
}

fn schedule(spec: &Value, before: &Value, problems: &mut Problems) {
    let (schedule, zone) = (&spec["schedule"], &spec["timeZone"]);
    if is_set(schedule) {
        // A zone inside the schedule is refused by name, and is no part of what is parsed.
        let zoned = text(schedule).contains("TZ");
        if !zoned && let Err(error) = text(schedule).parse::<Schedule>() {
            problems.invalid("spec.schedule", schedule, &error.to_string());
        }
        if zoned && schedule != &before["schedule"] {
            let detail = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
            problems.invalid("spec.schedule", schedule, detail);
        }
    } else {
        problems.required("spec.schedule", "");
    }
    let Some(name) = zone.as_str() else { return };
    let detail = if name.is_empty() {
        "timeZone must be nil or non-empty string".to_owned()
    } else if name.eq_ignore_ascii_case("local") {
        "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones".to_owned()
    } else if TimeZone::get(name).is_err() {
        format!("unknown time zone {name}")
    } else {
        return;
    };
    problems.invalid("spec.timeZone", zone, &detail);
}

#[cfg(test)]
mod tests {
    use super::super::tests::said;
    use super::*;

    fn good() -> Value {
        json!({
            "metadata": {"name": "pi", "uid": "u"},
            "spec": {
                "completions": 1, "parallelism": 1, "completionMode": "NonIndexed",
                "selector": {"matchLabels": {"batch.kubernetes.io/controller-uid": "u"}},
                "template": {
                    "metadata": {"labels": {"controller-uid": "u", "job-name": "pi",
                        "batch.kubernetes.io/controller-uid": "u", "batch.kubernetes.io/job-name": "pi"}},
                    "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "x"}]},
                },
            },
        })
    }

    fn with(path: &[&str], value: Value) -> Value {
        let mut object = good();
        *path.iter().fold(&mut object, |at, key| &mut at[*key]) = value;
        object
    }

    #[test]
    fn jobs_are_checked_as_kubernetes_does() {
        assert!(said(job, &good(), None).is_empty());
        for (object, expected) in [
            (
                with(&["spec", "template", "spec", "restartPolicy"], json!("Always")),
                "spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\"",
            ),
            (
                with(&["spec", "parallelism"], json!(-1)),
                "spec.parallelism: Invalid value: -1: must be greater than or equal to 0",
            ),
            (
                with(&["spec", "selector"], json!({"matchLabels": {"job-name": "pi"}})),
                "spec.selector: Invalid value: {\"matchLabels\":{\"job-name\":\"pi\"}}: `selector` not auto-generated",
            ),
            (
                with(&["spec", "backoffLimitPerIndex"], json!(1)),
                "spec.backoffLimitPerIndex: Invalid value: 1: requires indexed completion mode",
            ),
        ] {
            assert_eq!(said(job, &object, None), [expected]);
        }
        let indexed = with(&["spec", "completionMode"], json!("Indexed"));
        let mut unbounded = indexed.clone();
        unbounded["spec"]["completions"] = json!(null);
        assert_eq!(
            said(job, &unbounded, None),
            ["spec.completions: Required value: when completion mode is Indexed"]
        );
        let mut grown = indexed.clone();
        (grown["spec"]["completions"], grown["spec"]["parallelism"]) = (json!(2), json!(2));
        assert!(
            said(job, &grown, Some(&indexed)).is_empty(),
            "an elastic job grows"
        );
        let plain = with(&["spec", "completions"], json!(2));
        assert_eq!(
            said(job, &plain, Some(&good())),
            ["spec.completions: Invalid value: 2: field is immutable"]
        );
        let moved = with(&["spec", "template", "spec", "nodeSelector"], json!({"a": "b"}));
        assert!(said(job, &moved, Some(&good()))[0].starts_with("spec.template: Invalid value: {"));
        assert!(said(job, &moved, Some(&with(&["spec", "suspend"], json!(true)))).is_empty());
    }

    #[test]
    fn cron_jobs_are_checked_as_kubernetes_does() {
        let template = json!({"spec": {"template": good()["spec"]["template"]}});
        let cron = |schedule: &str, more: Value| {
            let mut spec =
                json!({"schedule": schedule, "concurrencyPolicy": "Allow", "jobTemplate": template});
            for (key, value) in more.as_object().cloned().unwrap_or_default() {
                spec[key.as_str()] = value;
            }
            json!({"metadata": {"name": "tick"}, "spec": spec})
        };
        assert!(said(cron_job, &cron("@daily", json!({"timeZone": "Asia/Tokyo"})), None).is_empty());
        for (object, expected) in [
            (cron("", json!({})), "spec.schedule: Required value"),
            (
                cron("error", json!({})),
                "spec.schedule: Invalid value: \"error\": expected exactly 5 fields, found 1: [error]",
            ),
            (
                cron("TZ=UTC 0 * * * *", json!({})),
                "spec.schedule: Invalid value: \"TZ=UTC 0 * * * *\": cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
            ),
            (
                cron("@daily", json!({"timeZone": "Mars/Base"})),
                "spec.timeZone: Invalid value: \"Mars/Base\": unknown time zone Mars/Base",
            ),
            (
                cron("@daily", json!({"concurrencyPolicy": "Race"})),
                "spec.concurrencyPolicy: Unsupported value: \"Race\": supported values: \"Allow\", \"Forbid\", \"Replace\"",
            ),
            (
                cron("@daily", json!({"failedJobsHistoryLimit": -1})),
                "spec.failedJobsHistoryLimit: Invalid value: -1: must be greater than or equal to 0",
            ),
        ] {
            assert_eq!(said(cron_job, &object, None), [expected]);
        }
        let mut long = cron("@daily", json!({}));
        long["metadata"]["name"] = json!("x".repeat(53));
        assert!(said(cron_job, &long, None)[0].ends_with("must be no more than 52 characters"));
    }
}
