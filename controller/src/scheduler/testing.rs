//! Made-up nodes and pods for the scheduler's tests and its benchmark.

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use super::pod::PodInfo;

/// A node with `cpu` cores and 4 GiB of memory for each.
pub fn node(name: &str, cpu: i64) -> Node {
    let amounts = json!({ "cpu": cpu.to_string(), "memory": format!("{}Gi", cpu * 4), "pods": "110" });
    from_json(json!({
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
        "spec": {},
        "status": { "allocatable": amounts, "capacity": amounts },
    }))
}

/// Starts a pod with this name and uid.
pub fn pod(name: &str) -> PodBuilder {
    PodBuilder(json!({
        "metadata": { "name": name, "namespace": "default", "uid": name },
        "spec": { "containers": [{ "name": "c", "resources": { "requests": {} }, "ports": [] }], "tolerations": [] },
    }))
}

/// Builds a pod step by step.
#[derive(Debug, Clone)]
pub struct PodBuilder(Value);

impl PodBuilder {
    /// Requests CPU.
    #[must_use]
    pub fn cpu(self, amount: &str) -> Self {
        self.request("cpu", amount)
    }

    /// Requests a resource.
    #[must_use]
    pub fn request(mut self, resource: &str, amount: &str) -> Self {
        self.0["spec"]["containers"][0]["resources"]["requests"][resource] = json!(amount);
        self
    }

    /// Sets the controller's uid.
    #[must_use]
    pub fn owner(mut self, uid: &str) -> Self {
        self.0["metadata"]["ownerReferences"] = json!([{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": uid, "uid": uid, "controller": true }]);
        self
    }

    /// Sets the priority.
    #[must_use]
    pub fn priority(mut self, priority: i32) -> Self {
        self.0["spec"]["priority"] = json!(priority);
        self
    }

    /// Adds to the node selector.
    #[must_use]
    pub fn selector(mut self, key: &str, value: &str) -> Self {
        self.0["spec"]["nodeSelector"][key] = json!(value);
        self
    }

    /// Adds a toleration.
    #[must_use]
    pub fn toleration(mut self, toleration: Value) -> Self {
        if let Some(all) = self.0["spec"]["tolerations"].as_array_mut() {
            all.push(toleration);
        }
        self
    }

    /// Sets required node affinity terms.
    #[must_use]
    pub fn required(mut self, terms: Value) -> Self {
        self.0["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] =
            json!({ "nodeSelectorTerms": terms });
        self
    }

    /// Sets preferred node affinity terms.
    #[must_use]
    pub fn preferred(mut self, terms: Value) -> Self {
        self.0["spec"]["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"] = terms;
        self
    }

    /// Takes a host port.
    #[must_use]
    pub fn host_port(mut self, port: i32, protocol: &str, ip: &str) -> Self {
        if let Some(all) = self.0["spec"]["containers"][0]["ports"].as_array_mut() {
            all.push(json!({ "containerPort": port, "hostPort": port, "protocol": protocol, "hostIP": ip }));
        }
        self
    }

    /// Sets a label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.0["metadata"]["labels"][key] = json!(value);
        self
    }

    /// Moves it to another namespace.
    #[must_use]
    pub fn namespace(mut self, name: &str) -> Self {
        self.0["metadata"]["namespace"] = json!(name);
        self
    }

    /// Sets a field of the spec.
    #[must_use]
    pub fn spec(mut self, field: &str, value: Value) -> Self {
        self.0["spec"][field] = value;
        self
    }

    /// Must be near to the pods of these terms.
    #[must_use]
    pub fn near(mut self, terms: Value) -> Self {
        self.0["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] = terms;
        self
    }

    /// Must be away from the pods of these terms.
    #[must_use]
    pub fn away(mut self, terms: Value) -> Self {
        self.0["spec"]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] =
            terms;
        self
    }

    /// Would like to be near to the pods of these weighted terms.
    #[must_use]
    pub fn rather_near(mut self, terms: Value) -> Self {
        self.0["spec"]["affinity"]["podAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"] = terms;
        self
    }

    /// Would like to be away from the pods of these weighted terms.
    #[must_use]
    pub fn rather_away(mut self, terms: Value) -> Self {
        self.0["spec"]["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"] =
            terms;
        self
    }

    /// Is spread by these constraints.
    #[must_use]
    pub fn spread(self, constraints: Value) -> Self {
        self.spec("topologySpreadConstraints", constraints)
    }

    /// Uses a volume claim.
    #[must_use]
    pub fn claim(self, name: &str) -> Self {
        self.spec(
            "volumes",
            json!([{ "name": "v", "persistentVolumeClaim": { "claimName": name } }]),
        )
    }

    /// Sets when it started, in seconds of 2030.
    #[must_use]
    pub fn since(mut self, seconds: u32) -> Self {
        let time = format!(
            "2030-01-01T{:02}:{:02}:{:02}Z",
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60
        );
        self.0["status"]["startTime"] = json!(time);
        self
    }

    /// Is being deleted.
    #[must_use]
    pub fn terminating(mut self) -> Self {
        self.0["metadata"]["deletionTimestamp"] = json!("2030-01-01T00:00:00Z");
        self
    }

    /// The scheduler's view of it.
    pub fn build(self) -> PodInfo {
        PodInfo::from(from_json::<Pod>(self.0))
    }
}

#[expect(
    clippy::expect_used,
    reason = "made-up objects are right or the test is wrong"
)]
fn from_json<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("made-up object")
}
