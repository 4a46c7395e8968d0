//! What the API is told of the pod.

use std::{net::IpAddr, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use serde_json::{Value, json};

use super::{StepError, Worker, in_time};
use crate::pods::status::{self, CONDITIONS, Facts};

/// A patch that leaves alone what others say in the status: conditions are merged by their types.
fn strategic(uid: &str, status: &PodStatus) -> Value {
    let mut patch = json!({ "metadata": { "uid": uid }, "status": status });
    for list in ["podIPs", "hostIPs"] {
        // Merged by address, former ones would stay.
        if let Some(list) = patch["status"].get_mut(list).and_then(Value::as_array_mut) {
            list.push(json!({ "$patch": "replace" }));
        }
    }
    let conditions = patch["status"]
        .get_mut("conditions")
        .and_then(Value::as_array_mut);
    for condition in conditions.into_iter().flatten() {
        // Merged field by field, what was said before would stay.
        if let Some(condition) = condition.as_object_mut() {
            for field in ["reason", "message"] {
                condition.entry(field).or_insert(Value::Null);
            }
        }
    }
    patch
}

impl Worker {
    /// Tells the API the pod's status, if it is not what was told last.
    pub(in crate::pods) async fn report(&mut self, pod: &Arc<Pod>) -> Result<(), StepError> {
        let mut base = Pod::clone(pod);
        if let Some(told) = &self.patched {
            // The API's copy may be older than what was told; the conditions of others are only there.
            let status = base.status.get_or_insert_default();
            let mut others = status.conditions.take().unwrap_or_default();
            others.retain(|condition| !CONDITIONS.contains(&condition.type_.as_str()));
            let ours = told.conditions.iter().flatten().cloned();
            status.conditions = Some(ours.chain(others).collect());
            status.start_time.clone_from(&told.start_time);
        }
        let pod_ips = match &self.sandbox {
            Some(sandbox) => sandbox.record.pod_ips.clone(),
            None => self.told_ips(pod),
        };
        let status = status::compute(
            &base,
            &Facts {
                records: &self.records,
                finished: self.finished,
                sandboxed: self.sandbox.is_some(),
                pod_ips: &pod_ips,
                node_ips: &self.context.node_ips,
                started_at: self.taken_up_at,
                back_off: &self.context.config.back_off,
                now: Timestamp::now(),
            },
        );
        // The control plane marks the pods of a silent node as not ready; it takes that back only by hearing otherwise.
        let readiness = |status: Option<&PodStatus>| {
            let conditions = status
                .and_then(|status| status.conditions.as_deref())
                .unwrap_or_default();
            let ready = conditions.iter().find(|condition| condition.type_ == "Ready");
            ready.map(|condition| condition.status.clone())
        };
        let contradicted = readiness(pod.status.as_ref()) != readiness(Some(&status));
        if self.patched.as_ref() == Some(&status) && !contradicted {
            return Ok(());
        }
        let (api, name) = self.api(pod);
        let patch = strategic(&self.uid, &status);
        match in_time(api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(&patch))).await? {
            Ok(_) => {
                self.patched = Some(status);
                Ok(())
            }
            // Deleted: the watch tells.
            Err(kube::Error::Api(error)) if error.code == 404 => Ok(()),
            Err(error) => Err(StepError::Status(error)),
        }
    }

    /// The addresses that a pod without a sandbox was said to have: a finished one keeps them in its status.
    fn told_ips(&self, pod: &Pod) -> Vec<IpAddr> {
        if self.finished.is_none() {
            return Vec::new();
        }
        let ips = self
            .patched
            .as_ref()
            .or(pod.status.as_ref())
            .and_then(|status| status.pod_ips.clone())
            .unwrap_or_default();
        ips.iter().filter_map(|ip| ip.ip.parse().ok()).collect()
    }

    pub(super) async fn delete_from_api(&self, pod: &Pod) -> Result<(), StepError> {
        let (api, name) = self.api(pod);
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions {
                uid: Some(self.uid.clone()),
                ..Preconditions::default()
            }),
            ..DeleteParams::default()
        };
        match in_time(api.delete(&name, &params)).await? {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(error)) if matches!(error.code, 404 | 409) => Ok(()),
            Err(error) => Err(StepError::Delete(error)),
        }
    }

    fn api(&self, pod: &Pod) -> (Api<Pod>, String) {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        let name = pod.metadata.name.clone().unwrap_or_default();
        (Api::namespaced(self.context.client.clone(), namespace), name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_says_all_that_the_node_says_and_no_more() {
        let status = serde_json::from_value(json!({
            "podIPs": [{"ip": "10.0.0.1"}],
            "conditions": [{"type": "Ready", "status": "True"}],
        }))
        .unwrap();
        assert_eq!(
            strategic("u", &status),
            json!({"metadata": {"uid": "u"}, "status": {
                "podIPs": [{"ip": "10.0.0.1"}, {"$patch": "replace"}],
                "conditions": [{"type": "Ready", "status": "True", "reason": null, "message": null}],
            }})
        );
    }
}
