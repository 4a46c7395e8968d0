//! What a Job asks for, and what its policies say about a pod that failed.

use k8s_openapi::api::batch::v1::{Job, PodFailurePolicy, PodFailurePolicyRule, SuccessPolicy};

use super::indexes::Indexes;
use crate::controllers::pod::{COMPLETION_INDEX, INDEX_FAILURES, INDEX_IGNORED, Phase, PodView};

/// A Job's spec, with everything that is left out filled in.
#[derive(Debug, Clone, Default)]
pub struct Terms {
    /// Pods that must succeed; `None`: the first success ends it.
    pub completions: Option<i32>,
    /// Pods at a time.
    pub parallelism: i32,
    /// Each pod has an index.
    pub indexed: bool,
    /// Failures that end the Job if there is one more.
    pub backoff_limit: i32,
    /// The same for each index.
    pub per_index: Option<i32>,
    /// Failed indexes that end the Job if there is one more.
    pub max_failed_indexes: Option<i32>,
    /// What failures mean.
    pub failure_policy: Option<PodFailurePolicy>,
    /// What is enough.
    pub success_policy: Option<SuccessPolicy>,
    /// Seconds the Job may take.
    pub deadline: Option<i64>,
    /// No pods for now.
    pub suspended: bool,
    /// A pod is replaced when it has failed, not when it is on its way out.
    pub only_replace_failed: bool,
    /// Containers are restarted in their pod.
    pub restarts: bool,
}

/// What becomes of a failed pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// It counts.
    Count,
    /// It does not count.
    Ignore,
    /// Its index is not tried again.
    FailIndex,
    /// The Job fails, for this reason.
    FailJob(String),
}

impl Terms {
    /// Reads them.
    pub fn of(job: &Job) -> Self {
        let Some(spec) = &job.spec else {
            return Terms::default();
        };
        let restart = spec
            .template
            .spec
            .as_ref()
            .and_then(|spec| spec.restart_policy.as_deref());
        let replacement = spec.pod_replacement_policy.as_deref();
        Terms {
            completions: spec.completions,
            parallelism: spec.parallelism.unwrap_or(1).max(0),
            indexed: spec.completion_mode.as_deref() == Some("Indexed"),
            backoff_limit: spec.backoff_limit.unwrap_or(6),
            per_index: spec.backoff_limit_per_index,
            max_failed_indexes: spec.max_failed_indexes,
            deadline: spec.active_deadline_seconds,
            suspended: spec.suspend.unwrap_or(false),
            only_replace_failed: replacement == Some("Failed") || spec.pod_failure_policy.is_some(),
            failure_policy: spec.pod_failure_policy.clone(),
            success_policy: spec.success_policy.clone(),
            restarts: restart == Some("OnFailure"),
        }
    }

    /// Whether a pod counts as failed. One that is deleted under way does, unless only real failures are replaced.
    pub fn failed(&self, pod: &PodView) -> bool {
        pod.phase == Phase::Failed
            || (!self.only_replace_failed && pod.is_terminating() && pod.phase != Phase::Succeeded)
    }

    /// The index a pod works on, if the Job has it.
    pub fn index(&self, pod: &PodView) -> Option<i32> {
        let index = number(pod, COMPLETION_INDEX)?;
        (index >= 0 && index < self.completions.unwrap_or(0)).then_some(index)
    }

    /// What the policy says about a pod that failed.
    pub fn action(&self, pod: &PodView) -> Action {
        let rules = self.failure_policy.as_ref().map(|policy| policy.rules.as_slice());
        for (at, rule) in rules.unwrap_or_default().iter().enumerate() {
            let Some(why) = matched(rule, pod) else { continue };
            return match rule.action.as_str() {
                "FailJob" => Action::FailJob(format!("{why} matching FailJob rule at index {at}")),
                "Ignore" => Action::Ignore,
                "FailIndex" if self.per_index.is_some() => Action::FailIndex,
                _ => Action::Count,
            };
        }
        Action::Count
    }

    /// Whether a failed pod means that its index is not tried again.
    pub fn fails_index(&self, pod: &PodView) -> bool {
        let Some(limit) = self.per_index else { return false };
        match self.action(pod) {
            Action::FailIndex => true,
            Action::Ignore => false,
            Action::Count | Action::FailJob(_) => number(pod, INDEX_FAILURES).unwrap_or(0) >= limit,
        }
    }

    /// The rule of the success policy that these indexes meet.
    pub fn enough(&self, succeeded: &Indexes) -> Option<usize> {
        let policy = self.success_policy.as_ref().filter(|_| self.indexed)?;
        policy.rules.iter().position(|rule| {
            let completions = self.completions.unwrap_or(0);
            let named = rule
                .succeeded_indexes
                .as_deref()
                .map(|text| Indexes::parse(text, completions));
            match (named, rule.succeeded_count) {
                (Some(named), Some(count)) => named.shared_with(succeeded) >= count,
                (Some(named), None) => named.shared_with(succeeded) == named.len(),
                (None, Some(count)) => succeeded.len() >= count,
                (None, None) => false,
            }
        })
    }
}

/// A number in an annotation.
pub fn number(pod: &PodView, annotation: &str) -> Option<i32> {
    pod.metadata.annotations.as_ref()?.get(annotation)?.parse().ok()
}

/// How often the pod's index has failed, this pod included: those that counted, and those that did not.
pub fn index_failures(terms: &Terms, pod: &PodView) -> (i32, i32) {
    let counted = number(pod, INDEX_FAILURES).unwrap_or(0);
    let ignored = number(pod, INDEX_IGNORED).unwrap_or(0);
    match terms.action(pod) {
        Action::Ignore => (counted, ignored + 1),
        _ => (counted + 1, ignored),
    }
}

/// How a rule describes the pod, if it matches. Only a pod that has ended in failure is matched.
fn matched(rule: &PodFailurePolicyRule, pod: &PodView) -> Option<String> {
    let end = pod.end.as_ref().filter(|_| pod.phase == Phase::Failed)?;
    let (namespace, name) = (pod.namespace(), pod.name());
    if let Some(codes) = &rule.on_exit_codes {
        let (container, code) = end.exits.iter().find(|(container, code)| {
            let named = codes
                .container_name
                .as_deref()
                .is_none_or(|named| named == &**container);
            let listed = codes.values.contains(code);
            // A container that ended well is no failure, whatever the rule lists.
            named && *code != 0 && listed == (codes.operator == "In")
        })?;
        return Some(format!(
            "Container {container} for pod {namespace}/{name} failed with exit code {code}"
        ));
    }
    let (kind, _) = end.conditions.iter().find(|(kind, status)| {
        rule.on_pod_conditions
            .iter()
            .flatten()
            .any(|asked| asked.type_ == **kind && asked.status == **status)
    })?;
    Some(format!("Pod {namespace}/{name} has condition {kind}"))
}

#[cfg(test)]
pub(super) mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
    use serde_json::{Value, json};

    use super::*;
    use crate::controllers::pod::End;

    pub(in crate::controllers::job) fn terms(spec: Value) -> Terms {
        let mut full = json!({ "template": { "spec": { "containers": [], "restartPolicy": "Never" } } });
        full.as_object_mut()
            .unwrap()
            .extend(spec.as_object().unwrap().clone());
        Terms::of(&serde_json::from_value(json!({ "spec": full })).unwrap())
    }

    fn failed(exits: &[(&str, i32)], conditions: &[(&str, &str)]) -> PodView {
        PodView {
            metadata: ObjectMeta {
                name: Some("p".into()),
                namespace: Some("a".into()),
                annotations: Some([(INDEX_FAILURES.to_owned(), "2".to_owned())].into()),
                ..ObjectMeta::default()
            },
            phase: Phase::Failed,
            end: Some(Box::new(End {
                exits: exits.iter().map(|(name, code)| ((*name).into(), *code)).collect(),
                conditions: conditions
                    .iter()
                    .map(|(kind, status)| ((*kind).into(), (*status).into()))
                    .collect(),
                at: None,
            })),
            ..PodView::default()
        }
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let terms = terms(
            json!({ "completions": 3, "completionMode": "Indexed", "backoffLimitPerIndex": 2,
            "podFailurePolicy": { "rules": [
                { "action": "Ignore", "onPodConditions": [{ "type": "DisruptionTarget", "status": "True" }] },
                { "action": "FailJob", "onExitCodes": { "containerName": "main", "operator": "In", "values": [42, 43] } },
                { "action": "FailIndex", "onExitCodes": { "operator": "NotIn", "values": [1, 2] } },
            ] } }),
        );
        assert_eq!(
            terms.action(&failed(&[("main", 42)], &[("DisruptionTarget", "True")])),
            Action::Ignore
        );
        assert_eq!(
            terms.action(&failed(
                &[("side", 1), ("main", 42)],
                &[("DisruptionTarget", "False")]
            )),
            Action::FailJob(
                "Container main for pod a/p failed with exit code 42 matching FailJob rule at index 1".into()
            )
        );
        assert_eq!(terms.action(&failed(&[("side", 42)], &[])), Action::FailIndex);
        assert_eq!(terms.action(&failed(&[("main", 1)], &[])), Action::Count);
        assert_eq!(
            terms.action(&failed(&[("main", 0)], &[])),
            Action::Count,
            "0 is no failure"
        );
        let (counted, ignored) = (
            failed(&[("main", 1)], &[]),
            failed(&[], &[("DisruptionTarget", "True")]),
        );
        assert_eq!(
            (index_failures(&terms, &counted), index_failures(&terms, &ignored)),
            ((3, 0), (2, 1))
        );
        assert!(terms.fails_index(&counted) && !terms.fails_index(&ignored));
    }

    #[test]
    fn a_success_policy_is_met_by_indexes_and_counts() {
        let with = |rule: Value| {
            terms(
                json!({ "completions": 10, "completionMode": "Indexed", "successPolicy": { "rules": [rule] } }),
            )
        };
        let done = Indexes::parse("0,2-4", 10);
        assert_eq!(with(json!({ "succeededIndexes": "2-3" })).enough(&done), Some(0));
        assert_eq!(with(json!({ "succeededIndexes": "1-3" })).enough(&done), None);
        assert_eq!(
            with(json!({ "succeededIndexes": "1-5", "succeededCount": 3 })).enough(&done),
            Some(0)
        );
        assert_eq!(with(json!({ "succeededCount": 4 })).enough(&done), Some(0));
        assert_eq!(with(json!({ "succeededCount": 5 })).enough(&done), None);
    }
}
