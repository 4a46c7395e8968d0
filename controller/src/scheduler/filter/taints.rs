//! Taints that keep pods away, and the tolerations that let them in all the same.

use k8s_openapi::api::core::v1::{Taint, Toleration};

use crate::scheduler::node::NodeInfo;

/// Taint that stands for a cordoned node.
const UNSCHEDULABLE_TAINT: &str = "node.kubernetes.io/unschedulable";

/// Whether a toleration covers a taint.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    if !effect.is_empty() && effect != taint.effect {
        return false;
    }
    if !key.is_empty() && key != taint.key {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or_default() {
        "Exists" => true,
        "" | "Equal" => {
            !key.is_empty()
                && toleration.value.as_deref().unwrap_or_default()
                    == taint.value.as_deref().unwrap_or_default()
        }
        _ => false,
    }
}

fn tolerated(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations.iter().any(|toleration| tolerates(toleration, taint))
}

/// Whether the node is cordoned, and the pod minds.
pub(in crate::scheduler) fn cordoned(tolerations: &[Toleration], node: &NodeInfo) -> bool {
    node.unschedulable && {
        let taint = Taint {
            key: UNSCHEDULABLE_TAINT.into(),
            effect: "NoSchedule".into(),
            ..Taint::default()
        };
        !tolerated(tolerations, &taint)
    }
}

/// The first taint that keeps the pod away.
pub(in crate::scheduler) fn untolerated<'a>(
    tolerations: &[Toleration],
    node: &'a NodeInfo,
) -> Option<&'a Taint> {
    node.taints
        .iter()
        .filter(|taint| taint.effect == "NoSchedule" || taint.effect == "NoExecute")
        .find(|taint| !tolerated(tolerations, taint))
}

/// How many taints would rather not have the pod.
pub(in crate::scheduler) fn unwelcome(tolerations: &[Toleration], node: &NodeInfo) -> i64 {
    node.taints
        .iter()
        .filter(|taint| taint.effect == "PreferNoSchedule")
        .filter(|taint| !tolerated(tolerations, taint))
        .count()
        .try_into()
        .unwrap_or(i64::MAX)
}
