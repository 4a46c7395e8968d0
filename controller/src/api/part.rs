//! The part of an object that a write may change: all but its status, or what a subresource is there for.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::status::ApiError;
use super::{Call, objects};
use crate::resources::{Problems, Subresource};

const EPHEMERAL: &str = "ephemeralContainers";

/// What a write through one path may change, and what of the object is completed and checked then.
pub(super) struct Part {
    take: fn(&Call, &Value, Value) -> Result<Value, ApiError>,
    before: for<'a> fn(&'a Value, &Value) -> Cow<'a, Value>,
    /// Whether all else is as it was when it was completed and checked, so that only metadata is checked.
    pub(super) is_settled: bool,
    /// Whether a change of the spec is nothing that whoever acts on the object has to hear of.
    pub(super) keeps_generation: bool,
    /// Whether the spec is neither changed nor looked at, and its text need not be read.
    pub(super) leaves_spec: bool,
    /// Whether it can make the object ask for more than its namespace's limits allow.
    pub(super) is_limited: bool,
}

/// Whatever the caller has made of the object.
const COMPUTED: Part = Part {
    take: |_, _, new| Ok(new),
    before: |old, _| Cow::Borrowed(old),
    is_settled: false,
    keeps_generation: false,
    leaves_spec: false,
    is_limited: false,
};
const BUT_STATUS: Part = Part {
    take: |_, old, mut new| {
        objects::copy(&mut new, old, "status");
        Ok(new)
    },
    ..COMPUTED
};
const CLAIM: Part = Part {
    is_limited: true,
    ..BUT_STATUS
};
/// What keeps a namespace is let go of through `finalize` alone.
const NAMESPACE: Part = Part {
    take: |call, old, mut new| {
        objects::copy(&mut new, old, "spec");
        (BUT_STATUS.take)(call, old, new)
    },
    ..COMPUTED
};
const STATUS: Part = Part {
    take: |_, old, mut new| {
        objects::keep_status_alone(&mut new, old, objects::THROUGH_STATUS);
        Ok(new)
    },
    ..COMPUTED
};
/// Of custom resources nothing else: what keeps one or selects it is not its operator's to change by the way.
const STATUS_OF_CUSTOM: Part = Part {
    take: |_, old, mut new| {
        objects::keep_status_alone(&mut new, old, &["managedFields"]);
        Ok(new)
    },
    ..COMPUTED
};
/// The node's part of a pod, which is written more often than anything else, and which the node knows best.
const STATUS_OF_POD: Part = Part {
    is_settled: true,
    leaves_spec: true,
    ..STATUS
};
/// Says where the pod goes; what the pod is was checked when it was made.
const BINDING: Part = Part {
    is_settled: true,
    keeps_generation: true,
    ..COMPUTED
};
const APPROVAL: Part = Part {
    take: |_, old, new| {
        let mut approved = old.clone();
        approved["status"]["conditions"] = new["status"]["conditions"].clone();
        Ok(approved)
    },
    ..COMPUTED
};
const FINALIZE: Part = Part {
    take: |_, old, new| {
        let mut finalized = old.clone();
        finalized["spec"] = new["spec"].clone();
        Ok(finalized)
    },
    ..COMPUTED
};
const EPHEMERAL_CONTAINERS: Part = Part {
    take: |call, old, new| with_ephemeral_containers_of(call, old, &new),
    before: |old, new| {
        let mut before = old.clone();
        before["spec"][EPHEMERAL] = new["spec"][EPHEMERAL].clone();
        Cow::Owned(before)
    },
    ..COMPUTED
};
const RESIZE: Part = Part {
    take: |_, old, new| Ok(with_resources_of(old, &new)),
    before: |old, new| Cow::Owned(with_resources_of(old, new)),
    is_limited: true,
    ..COMPUTED
};

impl Part {
    /// What a request may change.
    pub(super) fn of(call: &Call) -> &'static Self {
        let resource = &call.resource;
        match (resource.subresource(&call.path.subresource), resource.storage) {
            (Some(Subresource::Status), "pods") => &STATUS_OF_POD,
            (Some(Subresource::Status), _) if resource.custom().is_some() => &STATUS_OF_CUSTOM,
            (Some(Subresource::Status), _) => &STATUS,
            (Some(Subresource::Approval), _) => &APPROVAL,
            (Some(Subresource::Finalize), _) => &FINALIZE,
            (Some(Subresource::EphemeralContainers), _) => &EPHEMERAL_CONTAINERS,
            (Some(Subresource::Resize), _) => &RESIZE,
            (Some(Subresource::Binding), _) => &BINDING,
            (Some(Subresource::Eviction), _) => &COMPUTED,
            (_, "namespaces") => &NAMESPACE,
            (_, "persistentvolumeclaims") => &CLAIM,
            _ if resource.has_status() => &BUT_STATUS,
            _ => &COMPUTED,
        }
    }

    /// The object as it was but for what may change, which is as in `new`.
    ///
    /// # Errors
    /// If that may not become what it is in `new`.
    pub(super) fn take(&self, call: &Call, old: &Value, new: Value) -> Result<Value, ApiError> {
        (self.take)(call, old, new)
    }

    /// The state before a change that validation compares with: what the part is there to change is no change.
    pub(super) fn before<'a>(&self, old: &'a Value, new: &Value) -> Cow<'a, Value> {
        (self.before)(old, new)
    }
}

/// The pod as it was, with the ephemeral containers of `new`, which may only become more.
fn with_ephemeral_containers_of(call: &Call, old: &Value, new: &Value) -> Result<Value, ApiError> {
    let list = |pod: &Value| pod["spec"][EPHEMERAL].as_array().cloned().unwrap_or_default();
    let (before, after) = (list(old), list(new));
    let mut problems = Problems::default();
    for container in &before {
        let name = &container["name"];
        let what = match after.iter().find(|other| other["name"] == *name) {
            None => "removed",
            Some(other) if other != container => "changed",
            Some(_) => continue,
        };
        let detail = format!("existing ephemeral containers {name} may not be {what}");
        problems.forbidden("spec.ephemeralContainers", &detail);
    }
    if !problems.0.is_empty() {
        return Err(ApiError::invalid(&call.resource, &call.path.name, &problems));
    }
    let mut pod = old.clone();
    if !after.is_empty() {
        pod["spec"][EPHEMERAL] = Value::Array(after);
    }
    Ok(pod)
}

/// The pod as it was, with the containers' resources of `new`.
fn with_resources_of(old: &Value, new: &Value) -> Value {
    let mut pod = old.clone();
    for list in ["containers", "initContainers"] {
        let containers = pod["spec"].get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let after = new["spec"][list].as_array().into_iter().flatten();
            let after = after.into_iter().find(|other| other["name"] == container["name"]);
            if let Some(resources) = after.map(|after| &after["resources"]) {
                container["resources"] = if resources.is_null() {
                    json!({})
                } else {
                    resources.clone()
                };
            }
        }
    }
    pod
}
