//! This node in the API: its registration, its condition, its heartbeat.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        coordination::v1::{Lease, LeaseSpec},
        core::v1::Node,
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, OwnerReference, Time},
};
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::{
    sync::{Notify, watch},
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{machine, telemetry::chain};

/// The namespace of nodes' heartbeats.
const LEASE_NAMESPACE: &str = "kube-node-lease";
/// A heartbeat is good for so many intervals: three may be lost.
const LEASE_INTERVALS: u32 = 4;
/// How long a heartbeat may take at least, on a busy machine.
const LEAST_PATIENCE: Duration = Duration::from_secs(5);
/// The whole status is written at least after so many heartbeats.
const STATUS_EVERY: u32 = 30;

/// Whether the node can serve pods.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Condition {
    /// Whether it can.
    pub ready: bool,
    /// One word.
    pub reason: &'static str,
    /// One sentence.
    pub message: String,
}

impl Condition {
    /// The node cannot serve pods.
    pub fn not_ready(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            ready: false,
            reason,
            message: message.into(),
        }
    }

    /// The node can.
    pub fn ready() -> Self {
        Self {
            ready: true,
            reason: "AgentReady",
            message: "pods can be attached".to_owned(),
        }
    }

    const fn status(&self) -> &'static str {
        if self.ready { "True" } else { "False" }
    }
}

/// What the node says of itself.
#[derive(Debug, Clone)]
pub struct NodeFacts {
    /// Its name.
    pub name: String,
    /// Its addresses, the preferred family first.
    pub ips: Vec<IpAddr>,
    /// Labels besides the usual ones.
    pub labels: Vec<(String, String)>,
    /// What others must know of it.
    pub annotations: BTreeMap<String, String>,
    /// Most pods.
    pub max_pods: u32,
    /// What runs its pods.
    pub runtime: &'static str,
}

/// The node in the API and what it has to hear.
pub struct Registration {
    nodes: Api<Node>,
    leases: Api<Lease>,
    facts: NodeFacts,
    interval: Duration,
    /// When the node last changed between ready and not.
    transition: Option<(bool, Timestamp)>,
    uid: Option<String>,
}

impl Registration {
    /// A registration that is yet to be made.
    pub fn new(client: Client, facts: NodeFacts, interval: Duration) -> Self {
        Self {
            nodes: Api::all(client.clone()),
            leases: Api::namespaced(client, LEASE_NAMESPACE),
            facts,
            interval,
            transition: None,
            uid: None,
        }
    }

    /// Registers the node and keeps its condition and heartbeat up to date until `shutdown`.
    ///
    /// `wrong` tells that someone else changed the node's condition: the controller, when it missed heartbeats.
    pub async fn run(
        mut self,
        mut condition: watch::Receiver<Condition>,
        wrong: &Notify,
        shutdown: CancellationToken,
    ) {
        let mut ticks = interval(self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut registered = false;
        let mut beats = 0_u32;
        loop {
            let write_status = tokio::select! {
                () = shutdown.cancelled() => return,
                _ = ticks.tick() => beats.is_multiple_of(STATUS_EVERY),
                changed = condition.changed() => changed.is_ok(),
                () = wrong.notified() => true,
            };
            beats = beats.wrapping_add(1);
            let current = condition.borrow_and_update().clone();
            // A connection whose other end is gone says so after minutes: the next beat goes out on another one.
            let patience = self.interval.max(LEAST_PATIENCE);
            let beat = timeout(patience, self.beat(&current, !registered, write_status)).await;
            // After an error the node may have been deleted, or the write lost; after silence the shortest beat has the best
            // chances.
            let (error, heard) = match beat {
                Ok(Ok(())) => (None, true),
                Ok(Err(error)) => (Some(chain(&error)), false),
                Err(_) => (Some(format!("no answer within {patience:?}")), registered),
            };
            if let Some(error) = error {
                tracing::warn!(
                    node = self.facts.name,
                    error,
                    "the API server does not hear the node"
                );
                registered = heard;
                continue;
            }
            if !registered {
                tracing::info!(node = self.facts.name, "node registered");
            }
            registered = true;
        }
    }

    async fn beat(
        &mut self,
        condition: &Condition,
        register: bool,
        write_status: bool,
    ) -> Result<(), kube::Error> {
        if register {
            self.register().await?;
        }
        if register || write_status {
            self.write_status(condition).await?;
        }
        self.renew().await
    }

    fn labels(&self) -> BTreeMap<String, String> {
        let arch = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let usual = [
            ("kubernetes.io/hostname", self.facts.name.as_str()),
            ("kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", arch),
        ];
        let usual = usual
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        usual.chain(self.facts.labels.iter().cloned()).collect()
    }

    async fn register(&mut self) -> Result<(), kube::Error> {
        let name = self.facts.name.clone();
        let node = if let Some(node) = self.nodes.get_opt(&name).await? {
            node
        } else {
            let mut node = Node::default();
            node.metadata.name = Some(name.clone());
            node.metadata.labels = Some(self.labels());
            node.metadata.annotations = Some(self.facts.annotations.clone());
            match self.nodes.create(&PostParams::default(), &node).await {
                Ok(node) => node,
                Err(kube::Error::Api(status)) if status.code == 409 => self.nodes.get(&name).await?,
                Err(error) => return Err(error),
            }
        };
        self.uid.clone_from(&node.metadata.uid);
        if let Some(ready) = ready_condition(&node) {
            let since = ready
                .last_transition_time
                .as_ref()
                .map_or_else(Timestamp::now, |time| time.0);
            self.transition = Some((ready.status == "True", since));
        }
        let (labels, annotations) = (self.labels(), &self.facts.annotations);
        if !holds(node.metadata.labels, &labels) || !holds(node.metadata.annotations, annotations) {
            let patch = Patch::Merge(json!({ "metadata": { "labels": labels, "annotations": annotations } }));
            self.nodes.patch(&name, &PatchParams::default(), &patch).await?;
        }
        Ok(())
    }

    async fn write_status(&mut self, condition: &Condition) -> Result<(), kube::Error> {
        let now = Timestamp::now();
        let since = match self.transition {
            Some((ready, since)) if ready == condition.ready => since,
            _ => now,
        };
        let patch = Patch::Strategic(json!({ "status": self.status(condition, now, since) }));
        self.nodes
            .patch_status(&self.facts.name, &PatchParams::default(), &patch)
            .await?;
        self.transition = Some((condition.ready, since));
        Ok(())
    }

    fn status(&self, condition: &Condition, now: Timestamp, since: Timestamp) -> Value {
        let mut addresses: Vec<Value> = self
            .facts
            .ips
            .iter()
            .map(|ip| json!({ "type": "InternalIP", "address": ip }))
            .collect();
        addresses.push(json!({ "type": "Hostname", "address": self.facts.name }));
        // Merged by type, two addresses of one type would become one; so the list is replaced, as kubelet does.
        addresses.push(json!({ "$patch": "replace" }));
        let capacity = json!({
            "cpu": machine::processors().to_string(),
            "memory": format!("{}Ki", machine::memory_kib()),
            "pods": self.facts.max_pods.to_string(),
        });
        json!({
            "addresses": addresses,
            "capacity": capacity,
            "allocatable": capacity,
            "conditions": [{
                "type": "Ready",
                "status": condition.status(),
                "reason": condition.reason,
                "message": condition.message,
                "lastHeartbeatTime": Time(now),
                "lastTransitionTime": Time(since),
            }],
            "nodeInfo": {
                "architecture": self.labels().get("kubernetes.io/arch"),
                "bootID": machine::boot_id(),
                "containerRuntimeVersion": format!("{}://{}", self.facts.runtime, env!("CARGO_PKG_VERSION")),
                "kernelVersion": machine::kernel_release(),
                "kubeProxyVersion": "",
                "kubeletVersion": format!("v1.33.0-weft.{}", env!("CARGO_PKG_VERSION")),
                "machineID": machine::machine_id(),
                "operatingSystem": "linux",
                "osImage": machine::os_image(),
                "systemUUID": machine::machine_id(),
            },
        })
    }

    async fn renew(&self) -> Result<(), kube::Error> {
        let name = &self.facts.name;
        let now = MicroTime(Timestamp::now());
        let patch = Patch::Merge(json!({ "spec": { "renewTime": now, "holderIdentity": name } }));
        match self.leases.patch(name, &PatchParams::default(), &patch).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            other => return other.map(drop),
        }
        let seconds = (self.interval * LEASE_INTERVALS).as_secs_f64().ceil().max(1.0);
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                owner_references: self.uid.clone().map(|uid| {
                    vec![OwnerReference {
                        api_version: "v1".to_owned(),
                        kind: "Node".to_owned(),
                        name: name.clone(),
                        uid,
                        ..OwnerReference::default()
                    }]
                }),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(name.clone()),
                lease_duration_seconds: Some(seconds as i32),
                renew_time: Some(now),
                ..LeaseSpec::default()
            }),
        };
        self.leases.create(&PostParams::default(), &lease).await.map(drop)
    }
}

/// Whether all that is wanted is there.
fn holds(found: Option<BTreeMap<String, String>>, wanted: &BTreeMap<String, String>) -> bool {
    let found = found.unwrap_or_default();
    wanted.iter().all(|(key, value)| found.get(key) == Some(value))
}

fn ready_condition(node: &Node) -> Option<&k8s_openapi::api::core::v1::NodeCondition> {
    node.status
        .as_ref()?
        .conditions
        .as_ref()?
        .iter()
        .find(|condition| condition.type_ == "Ready")
}

/// Whether a node's condition in the API is what the node says.
pub fn says(node: &Node, condition: &Condition) -> bool {
    ready_condition(node).is_some_and(|ready| ready.status == condition.status())
}
