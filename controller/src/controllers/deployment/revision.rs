//! The annotations by which a Deployment and its sets remember revisions and sizes.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::decide::Limits;

/// Number of the revision; `kubectl rollout undo` finds sets by it.
pub const REVISION: &str = "deployment.kubernetes.io/revision";
/// Numbers that the same template had before.
pub const HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// Size of the Deployment when the set was last scaled.
pub const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
/// Most pods the Deployment could have then.
pub const MAX: &str = "deployment.kubernetes.io/max-replicas";

/// Annotations of the Deployment that are not its sets' business.
const OWN: &[&str] = &[
    "kubectl.kubernetes.io/last-applied-configuration",
    "deprecated.deployment.rollback.to",
    REVISION,
    HISTORY,
    DESIRED,
    MAX,
];
/// Longest history that is kept, in bytes.
const HISTORY_BYTES: usize = 2000;

/// An annotation as a number.
pub fn number(meta: &ObjectMeta, name: &str) -> Option<i64> {
    meta.annotations.as_ref()?.get(name)?.parse().ok()
}

/// The annotations of the new set. A set that had an older revision takes the `next` one and remembers the old.
pub fn annotations(
    deployment: &ObjectMeta,
    set: Option<&ObjectMeta>,
    next: i64,
    limits: Limits,
) -> BTreeMap<String, String> {
    let mut out = set.and_then(|meta| meta.annotations.clone()).unwrap_or_default();
    for (name, value) in deployment.annotations.iter().flatten() {
        if !OWN.contains(&name.as_str()) {
            out.insert(name.clone(), value.clone());
        }
    }
    let current = set.and_then(|meta| number(meta, REVISION));
    if current.is_none_or(|current| current < next) {
        out.insert(REVISION.into(), next.to_string());
        if let Some(old) = current {
            let mut history = out.get(HISTORY).cloned().unwrap_or_default();
            if !history.is_empty() {
                history.push(',');
            }
            history.push_str(&old.to_string());
            while history.len() > HISTORY_BYTES {
                history = history
                    .split_once(',')
                    .map_or(String::new(), |(_, rest)| rest.to_owned());
            }
            out.insert(HISTORY.into(), history);
        }
    }
    out.insert(DESIRED.into(), limits.replicas.to_string());
    out.insert(MAX.into(), limits.max_total().to_string());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(pairs: &[(&str, &str)]) -> ObjectMeta {
        ObjectMeta {
            annotations: Some(
                pairs
                    .iter()
                    .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                    .collect(),
            ),
            ..ObjectMeta::default()
        }
    }

    #[test]
    fn a_template_that_comes_back_gets_a_new_number() {
        let limits = Limits {
            replicas: 3,
            surge: 1,
            unavailable: 0,
        };
        let deployment = meta(&[("team", "a"), (REVISION, "7"), (OWN[0], "{}")]);
        let fresh = annotations(&deployment, None, 1, limits);
        assert_eq!(fresh[REVISION], "1");
        assert_eq!(fresh["team"], "a");
        assert_eq!((fresh[DESIRED].as_str(), fresh[MAX].as_str()), ("3", "4"));
        assert!(!fresh.contains_key(OWN[0]) && !fresh.contains_key(HISTORY));
        let back = annotations(&deployment, Some(&meta(&[(REVISION, "2")])), 5, limits);
        assert_eq!((back[REVISION].as_str(), back[HISTORY].as_str()), ("5", "2"));
        let again = annotations(
            &deployment,
            Some(&meta(&[(REVISION, "5"), (HISTORY, "2")])),
            8,
            limits,
        );
        assert_eq!(again[HISTORY], "2,5");
        let kept = annotations(&deployment, Some(&meta(&[(REVISION, "5")])), 3, limits);
        assert_eq!(kept[REVISION], "5");
    }
}
