//! What a node would say of itself and of its pods, for nodes that only pretend.

use serde_json::{Value, json};

/// A Node as its agent makes it.
pub fn node(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
    })
}

/// A Node's status; `ready` is the status of its condition Ready. `now` is a time to the second.
pub fn node_status(ready: &str, now: &str) -> Value {
    json!({
        "capacity": { "cpu": "8", "memory": "32Gi", "pods": "110" },
        "allocatable": { "cpu": "8", "memory": "32Gi", "pods": "110" },
        "conditions": [{ "type": "Ready", "status": ready, "reason": "AgentReady",
            "lastHeartbeatTime": now, "lastTransitionTime": now }],
    })
}

/// The merge patch by which a node says that a pod runs.
pub fn running(uid: &str, ip: &str, now: &str) -> Value {
    json!({ "metadata": { "uid": uid }, "status": {
        "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }], "startTime": now,
        "conditions": [
            { "type": "PodScheduled", "status": "True", "lastTransitionTime": now },
            { "type": "Ready", "status": "True", "lastTransitionTime": now },
        ],
    } })
}

/// A node's Lease; `now` has microseconds.
pub fn lease(name: &str, now: &str) -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": { "name": name, "namespace": "kube-node-lease" },
        "spec": { "holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": now },
    })
}

/// A Deployment of pods that ask for little.
pub fn deployment(name: &str, replicas: usize, image: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": { "name": name },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": { "app": name } },
            "template": pod_template(name, image),
        },
    })
}

/// The template of such a pod.
pub fn pod_template(app: &str, image: &str) -> Value {
    json!({
        "metadata": { "labels": { "app": app } },
        "spec": { "containers": [{ "name": "c", "image": image, "resources": { "requests": { "cpu": "10m" } } }] },
    })
}
