//! The cluster's nodes as the API tells them, reduced to what the datapath needs and remembered on disk: a node whose
//! API server is away goes on with what it last knew.

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use futures::{StreamExt as _, pin_mut};
use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Client, Resource as _,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use weft_controller::informer::Unread;

use crate::{
    desired::{Cluster, NodeRecord},
    local_path::Removals,
    node::{Condition, says},
    whole_file,
};

/// Where the cluster's nodes are remembered, under the state directory.
pub fn memory_path(state_dir: &Path) -> PathBuf {
    state_dir.join("cluster.json")
}

/// What was last known of the cluster.
pub fn remembered(path: &Path) -> Cluster {
    match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
            tracing::warn!(path = %path.display(), %error, "what is remembered of the cluster is not readable");
            Cluster::default()
        }),
        Err(_) => Cluster::default(),
    }
}

fn remember(path: &Path, cluster: &Cluster) -> io::Result<()> {
    whole_file::replace(path, &serde_json::to_vec(cluster)?, 0o644)
}

/// What the datapath needs of a node.
fn record(node: &Node) -> NodeRecord {
    let addresses = node.status.as_ref().and_then(|status| status.addresses.as_ref());
    let mut ips: Vec<IpAddr> = Vec::new();
    let internal = addresses
        .into_iter()
        .flatten()
        .filter(|address| address.type_ == "InternalIP");
    for ip in internal.filter_map(|address| address.address.parse::<IpAddr>().ok()) {
        // One of each family, the first: whatever else a node claims would lead others' traffic to it.
        if ips.iter().all(|known| known.is_ipv4() != ip.is_ipv4()) {
            ips.push(ip);
        }
    }
    let spec = node.spec.as_ref();
    let many = spec.and_then(|spec| spec.pod_cidrs.clone()).unwrap_or_default();
    let one = spec.and_then(|spec| spec.pod_cidr.clone());
    let cidrs = if many.is_empty() {
        one.into_iter().collect()
    } else {
        many
    };
    let pod_cidrs: Vec<IpNetwork> = cidrs.iter().filter_map(|cidr| cidr.parse().ok()).collect();
    NodeRecord { ips, pod_cidrs }
}

/// Follows the nodes of the cluster until `shutdown`.
pub struct NodeSync {
    /// Where to read.
    pub client: Client,
    /// The name of this node.
    pub node_name: String,
    /// Where to remember.
    pub memory: PathBuf,
    /// Who wants to know.
    pub cluster: watch::Sender<Cluster>,
    /// What this node says of itself.
    pub condition: watch::Receiver<Condition>,
    /// What the controller says of this node's volumes.
    pub removals: watch::Sender<Removals>,
}

impl NodeSync {
    /// Publishes every change, and wakes `wrong` when the API has another condition of this node than it says.
    pub async fn run(self, wrong: &Notify, shutdown: CancellationToken) {
        let events = watcher(
            Unread::all::<Node>(self.client.clone()),
            watcher::Config::default(),
        )
        .default_backoff();
        pin_mut!(events);
        let mut listed: Option<Cluster> = None;
        while let Some(Some(event)) = shutdown.run_until_cancelled(events.next()).await {
            match event {
                Ok(Event::Init) => listed = Some(Cluster::default()),
                Ok(Event::InitApply(node)) => {
                    if let (Some((name, record)), Some(listed)) = (self.take_in(&node, wrong), &mut listed) {
                        listed.nodes.insert(name, record);
                    }
                }
                Ok(Event::InitDone) => {
                    if let Some(listed) = listed.take() {
                        self.publish(|cluster| *cluster = listed);
                    }
                }
                Ok(Event::Apply(node)) => {
                    if let Some((name, record)) = self.take_in(&node, wrong) {
                        self.publish(|cluster| drop(cluster.nodes.insert(name, record)));
                    }
                }
                Ok(Event::Delete(node)) => {
                    let name = node.meta().name.clone().unwrap_or_default();
                    if name == self.node_name {
                        // It registers again with its next heartbeat; its pods live on meanwhile.
                        wrong.notify_one();
                    } else {
                        self.publish(|cluster| drop(cluster.nodes.remove(&name)));
                    }
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "nodes cannot be followed, going on with what is known");
                }
            }
        }
    }

    /// The node's name and record. One that cannot be read stays as it was known.
    fn take_in(&self, node: &Unread, wrong: &Notify) -> Option<(String, NodeRecord)> {
        let name = node.meta().name.clone()?;
        let record = match node.read() {
            Ok(node) => {
                self.look_at(&node, wrong);
                record(&node)
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "going on with what is known of the node");
                self.cluster.borrow().nodes.get(&name)?.clone()
            }
        };
        Some((name, record))
    }

    fn look_at(&self, node: &Node, wrong: &Notify) {
        if node.metadata.name.as_deref() != Some(&self.node_name) {
            return;
        }
        if !says(node, &self.condition.borrow()) {
            wrong.notify_one();
        }
        let fresh = Removals::of(node);
        self.removals.send_if_modified(|removals| {
            let changed = *removals != fresh;
            *removals = fresh;
            changed
        });
    }

    fn publish(&self, change: impl FnOnce(&mut Cluster)) {
        let mut cluster = self.cluster.borrow().clone();
        let before = cluster.clone();
        change(&mut cluster);
        // A node that registers anew has no pod CIDRs for a moment; it keeps its own until it has others.
        if let Some(own) = before.nodes.get(&self.node_name)
            && cluster
                .nodes
                .get(&self.node_name)
                .is_none_or(|node| node.pod_cidrs.is_empty())
        {
            cluster.nodes.insert(self.node_name.clone(), own.clone());
        }
        if cluster == before {
            return;
        }
        if let Err(error) = remember(&self.memory, &cluster) {
            tracing::warn!(path = %self.memory.display(), %error, "the cluster cannot be remembered");
        }
        self.cluster.send_replace(cluster);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_one_address_of_each_family() {
        let address = |kind: &str, address: &str| serde_json::json!({"type": kind, "address": address});
        let node: Node = serde_json::from_value(
            serde_json::json!({"metadata": {"name": "n"}, "status": {"addresses": [
                address("Hostname", "n"),
                address("ExternalIP", "203.0.113.1"),
                address("InternalIP", "192.0.2.1"),
                address("InternalIP", "198.51.100.1"),
                address("InternalIP", "fd00::1"),
            ]}}),
        )
        .unwrap();
        let wanted: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        assert_eq!(record(&node).ips, wanted);
    }
}
