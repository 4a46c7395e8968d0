//! Gives every node its pod CIDRs, cut from the cluster CIDRs.
//!
//! The nodes' own `spec.podCIDRs` are the ledger: it is read in full before anything is given out, so a restart gives
//! nothing twice. A range stays reserved for its node from the moment it is chosen until the node is gone, whatever the answer
//! to the write was.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tracing::info;

use super::events::Kind;
use super::{Context, ControllerError, Outcome, spawn_workers};
use crate::informer::ObjectKey;
use crate::queue::{Backoff, Queue};

/// A node that got nothing is looked at again after this time.
const RETRY: Duration = Duration::from_secs(30);

/// Why a node cannot have a pod CIDR.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    /// Everything is given out.
    #[error(
        "no free /{mask} is left in cluster CIDR {cluster}, all {total} belong to nodes: \
         delete nodes that are gone, or start the controller with a wider --cluster-cidr or a longer --node-cidr-mask-size"
    )]
    Exhausted {
        /// The cluster CIDR.
        cluster: IpNetwork,
        /// Prefix length of a node's part.
        mask: u8,
        /// Number of parts.
        total: u128,
    },
    /// Pods and nodes would share addresses.
    #[error(
        "cluster CIDR {cluster} contains the node's own address {address}: \
         start the controller with a --cluster-cidr outside the nodes' network"
    )]
    ContainsNode {
        /// The cluster CIDR.
        cluster: IpNetwork,
        /// The node's address.
        address: IpAddr,
    },
    /// Two nodes claim the same addresses.
    #[error(
        "pod CIDR {cidr} overlaps {other} of node {owner}: delete one of the nodes and let it join again"
    )]
    Overlap {
        /// What the node claims.
        cidr: IpNetwork,
        /// What the other node has.
        other: IpNetwork,
        /// The other node.
        owner: String,
    },
}

/// One cluster CIDR and who has which part of it.
#[derive(Debug)]
pub struct CidrPool {
    cluster: IpNetwork,
    mask: u8,
    used: HashMap<u128, String>,
    next: u128,
}

impl CidrPool {
    /// A pool with nothing given out. `mask` must lie between the cluster CIDR's prefix and the length of an address.
    pub fn new(cluster: IpNetwork, mask: u8) -> Self {
        CidrPool {
            cluster,
            mask,
            used: HashMap::new(),
            next: 0,
        }
    }

    /// Number of parts.
    pub fn total(&self) -> u128 {
        1_u128
            .checked_shl(u32::from(self.mask - self.cluster.prefix()))
            .unwrap_or(u128::MAX)
    }

    /// Takes the next free part. The search goes round, so that a freed part rests as long as possible.
    pub fn allocate(&mut self, node: &str) -> Result<IpNetwork, CidrError> {
        let total = self.total();
        if u128::try_from(self.used.len()).unwrap_or(u128::MAX) >= total {
            return Err(CidrError::Exhausted {
                cluster: self.cluster,
                mask: self.mask,
                total,
            });
        }
        let mut index = self.next % total;
        while self.used.contains_key(&index) {
            index = (index + 1) % total;
        }
        self.used.insert(index, node.to_owned());
        self.next = (index + 1) % total;
        Ok(self.part(index))
    }

    /// Records what a node has already. A range outside the cluster CIDR is none of this pool's business.
    pub fn occupy(&mut self, cidr: IpNetwork, node: &str) -> Result<(), CidrError> {
        let Some((first, last)) = self.parts_of(cidr) else {
            return Ok(());
        };
        // A range wider than a part covers several; as many as there are nodes with them.
        if let Some((&index, owner)) = self
            .used
            .iter()
            .find(|(index, owner)| (first..=last).contains(*index) && *owner != node)
        {
            return Err(CidrError::Overlap {
                cidr,
                other: self.part(index),
                owner: owner.clone(),
            });
        }
        for index in first..=last.min(first + 0xffff) {
            self.used.insert(index, node.to_owned());
        }
        Ok(())
    }

    /// Frees everything a node has.
    pub fn release(&mut self, node: &str) -> bool {
        let before = self.used.len();
        self.used.retain(|_, owner| owner != node);
        self.used.len() != before
    }

    fn shift(&self) -> u32 {
        u32::from(match self.cluster {
            IpNetwork::V4(_) => 32 - self.mask,
            IpNetwork::V6(_) => 128 - self.mask,
        })
    }

    fn part(&self, index: u128) -> IpNetwork {
        let offset = index.checked_shl(self.shift()).unwrap_or(0);
        let address = match self.cluster.network() {
            IpAddr::V4(base) => IpAddr::from((u32::from(base) | offset as u32).to_be_bytes()),
            IpAddr::V6(base) => IpAddr::from((u128::from(base) | offset).to_be_bytes()),
        };
        IpNetwork::new(address, self.mask).unwrap_or(self.cluster)
    }

    /// Indexes of the first and the last part that `cidr` touches.
    fn parts_of(&self, cidr: IpNetwork) -> Option<(u128, u128)> {
        let number = |address: IpAddr| match address {
            IpAddr::V4(v4) => u128::from(u32::from(v4)),
            IpAddr::V6(v6) => u128::from(v6),
        };
        if cidr.is_ipv4() != self.cluster.is_ipv4() {
            return None;
        }
        let base = number(self.cluster.network());
        let end = number(self.cluster.broadcast());
        let (first, last) = (
            number(cidr.network()).max(base),
            number(cidr.broadcast()).min(end),
        );
        if first > last {
            return None;
        }
        let index = |address: u128| (address - base).checked_shr(self.shift()).unwrap_or(0);
        Some((index(first), index(last)))
    }
}

/// All pools, and what is reserved for nodes whose write has not been seen yet.
#[derive(Debug, Default)]
struct Ledger {
    pools: Vec<CidrPool>,
    reserved: HashMap<String, Vec<IpNetwork>>,
    loaded: bool,
}

impl Ledger {
    /// The ranges of a node: those it has, those reserved, or new ones from every pool. All or nothing.
    fn reserve(&mut self, node: &str, addresses: &[IpAddr]) -> Result<Vec<IpNetwork>, CidrError> {
        if let Some(reserved) = self.reserved.get(node) {
            return Ok(reserved.clone());
        }
        for pool in &self.pools {
            if let Some(&address) = addresses.iter().find(|address| pool.cluster.contains(**address)) {
                return Err(CidrError::ContainsNode {
                    cluster: pool.cluster,
                    address,
                });
            }
        }
        let mut cidrs = Vec::new();
        for pool in &mut self.pools {
            match pool.allocate(node) {
                Ok(cidr) => cidrs.push(cidr),
                Err(error) => {
                    self.release(node);
                    return Err(error);
                }
            }
        }
        self.reserved.insert(node.to_owned(), cidrs.clone());
        Ok(cidrs)
    }

    fn occupy(&mut self, node: &str, cidrs: &[IpNetwork]) -> Result<(), CidrError> {
        if self.reserved.get(node).is_some_and(|reserved| reserved == cidrs) {
            return Ok(());
        }
        self.release(node);
        for pool in &mut self.pools {
            for &cidr in cidrs {
                pool.occupy(cidr, node)?;
            }
        }
        self.reserved.insert(node.to_owned(), cidrs.to_vec());
        Ok(())
    }

    fn release(&mut self, node: &str) -> bool {
        self.reserved.remove(node);
        self.pools
            .iter_mut()
            .fold(false, |freed, pool| pool.release(node) | freed)
    }
}

fn cidrs_of(node: &Node) -> Vec<IpNetwork> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let listed = spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr);
    let mut out: Vec<IpNetwork> = Vec::new();
    for cidr in listed.filter_map(|cidr| cidr.parse().ok()) {
        if !out.contains(&cidr) {
            out.push(cidr);
        }
    }
    out
}

fn addresses_of(node: &Node) -> Vec<IpAddr> {
    let addresses = node
        .status
        .iter()
        .flat_map(|status| status.addresses.iter().flatten());
    addresses
        .filter(|address| address.type_ == "InternalIP")
        .filter_map(|address| address.address.parse().ok())
        .collect()
}

pub(crate) fn start(context: &Arc<Context>) {
    let config = &context.config;
    if config.cluster_cidrs.is_empty() {
        return;
    }
    let pools = config.cluster_cidrs.iter().map(|&cidr| {
        let mask = if cidr.is_ipv4() {
            config.node_cidr_mask_v4
        } else {
            config.node_cidr_mask_v6
        };
        CidrPool::new(cidr, mask)
    });
    let ledger = Arc::new(Mutex::new(Ledger {
        pools: pools.collect(),
        ..Ledger::default()
    }));
    let queue = Queue::new(Backoff::default());
    let keys = queue.clone();
    context.nodes.subscribe(move |change| {
        // Heartbeats change nothing here.
        let relevant = match (change.old, change.new) {
            (Some(old), Some(new)) => old.spec != new.spec || cidrs_of(new).is_empty(),
            _ => true,
        };
        if let Some(node) = change.latest().filter(|_| relevant) {
            keys.add(ObjectKey::of(&node.metadata));
        }
    });
    let nodes = context.nodes.clone();
    let shared = context.clone();
    let again = queue.clone();
    // One worker: what is given out is decided in one place.
    spawn_workers(
        context,
        "node-ipam",
        &queue,
        1,
        async move { nodes.wait_synced().await },
        move |key| {
            let (context, ledger, queue) = (shared.clone(), ledger.clone(), again.clone());
            async move { reconcile(&context, &ledger, &queue, &key).await }
        },
    );
}

async fn reconcile(
    context: &Context,
    ledger: &Mutex<Ledger>,
    queue: &Queue<ObjectKey>,
    key: &ObjectKey,
) -> Outcome {
    let lock = || ledger.lock().unwrap_or_else(PoisonError::into_inner);
    if !std::mem::replace(&mut lock().loaded, true) {
        load(context, &mut lock());
    }
    let Some(node) = context.nodes.get(key) else {
        if lock().release(&key.name) {
            for other in context
                .nodes
                .all()
                .iter()
                .filter(|node| cidrs_of(node).is_empty())
            {
                queue.add(ObjectKey::of(&other.metadata));
            }
        }
        return Ok(None);
    };
    let present = cidrs_of(&node);
    if !present.is_empty() {
        let taken = lock().occupy(&key.name, &present);
        if let Err(error) = taken {
            context
                .recorder
                .event(&*node, Kind::Warning, "CIDRConflict", error.to_string());
        }
        return Ok(None);
    }
    let reserved = lock().reserve(&key.name, &addresses_of(&node));
    let cidrs = match reserved {
        Ok(cidrs) => cidrs,
        Err(error) => {
            let reason = match error {
                CidrError::Exhausted { .. } => "CIDRNotAvailable",
                CidrError::ContainsNode { .. } | CidrError::Overlap { .. } => "CIDRConflict",
            };
            context
                .recorder
                .event(&*node, Kind::Warning, reason, error.to_string());
            return Ok(Some(RETRY));
        }
    };
    let texts: Vec<String> = cidrs.iter().map(ToString::to_string).collect();
    let patch = json!({
        "metadata": { "resourceVersion": node.metadata.resource_version, "uid": node.metadata.uid },
        "spec": { "podCIDR": texts[0], "podCIDRs": texts },
    });
    let api: Api<Node> = Api::all(context.client.clone());
    api.patch(&key.name, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .map_err(ControllerError::api("patch", format!("node {}", key.name)))?;
    info!(node = %key.name, cidrs = texts.join(","), "node has its pod CIDRs");
    Ok(None)
}

/// Reads what all nodes have, oldest node first, so that a conflict is blamed on the newcomer.
fn load(context: &Context, ledger: &mut Ledger) {
    let mut nodes = context.nodes.all();
    nodes.sort_by_key(|node| {
        (
            node.metadata.creation_timestamp.clone(),
            node.metadata.name.clone(),
        )
    });
    for node in nodes {
        let (name, cidrs) = (node.metadata.name.as_deref().unwrap_or_default(), cidrs_of(&node));
        if !cidrs.is_empty()
            && let Err(error) = ledger.occupy(name, &cidrs)
        {
            context
                .recorder
                .event(&*node, Kind::Warning, "CIDRConflict", error.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pool(cidr: &str, mask: u8) -> CidrPool {
        CidrPool::new(cidr.parse().unwrap(), mask)
    }

    #[test]
    fn parts_of_both_families() {
        let mut v4 = pool("10.244.0.0/16", 24);
        assert_eq!(v4.total(), 256);
        assert_eq!(v4.allocate("a").unwrap().to_string(), "10.244.0.0/24");
        assert_eq!(v4.allocate("b").unwrap().to_string(), "10.244.1.0/24");
        let mut v6 = pool("fd00:1::/56", 64);
        assert_eq!(v6.total(), 256);
        v6.allocate("a").unwrap();
        assert_eq!(v6.allocate("b").unwrap().to_string(), "fd00:1:0:1::/64");
        let mut whole = pool("10.0.0.0/24", 24);
        assert_eq!(whole.allocate("a").unwrap().to_string(), "10.0.0.0/24");
        assert!(matches!(whole.allocate("b"), Err(CidrError::Exhausted { .. })));
        assert_eq!(pool("::/0", 128).total(), u128::MAX);
    }

    #[test]
    fn freed_parts_rest_until_the_others_are_used() {
        let mut pool = pool("10.0.0.0/22", 24);
        pool.allocate("a").unwrap();
        pool.allocate("b").unwrap();
        assert!(pool.release("a"));
        assert!(!pool.release("a"));
        let next: Vec<String> = (0..3)
            .map(|i| pool.allocate(&format!("c{i}")).unwrap().to_string())
            .collect();
        assert_eq!(next, ["10.0.2.0/24", "10.0.3.0/24", "10.0.0.0/24"]);
        let error = pool.allocate("d").unwrap_err().to_string();
        assert!(
            error.contains("10.0.0.0/22") && error.contains("--cluster-cidr"),
            "{error}"
        );
    }

    #[test]
    fn foreign_and_wider_ranges() {
        let mut pool = pool("10.0.0.0/22", 24);
        pool.occupy("192.168.0.0/24".parse().unwrap(), "x").unwrap();
        pool.occupy("fd00::/64".parse().unwrap(), "x").unwrap();
        assert!(pool.used.is_empty());
        pool.occupy("10.0.0.0/23".parse().unwrap(), "wide").unwrap();
        assert_eq!(pool.allocate("a").unwrap().to_string(), "10.0.2.0/24");
        assert!(matches!(
            pool.occupy("10.0.2.128/25".parse().unwrap(), "narrow"),
            Err(CidrError::Overlap { owner, .. }) if owner == "a"
        ));
        pool.occupy("0.0.0.0/0".parse().unwrap(), "wide").unwrap_err();
    }

    #[test]
    fn a_node_gets_both_families_or_nothing_and_keeps_them() {
        let mut ledger = Ledger {
            pools: vec![pool("10.0.0.0/24", 24), pool("fd00::/63", 64)],
            ..Ledger::default()
        };
        let first = ledger.reserve("a", &[]).unwrap();
        assert_eq!(ledger.reserve("a", &[]).unwrap(), first);
        assert!(ledger.reserve("b", &[]).is_err());
        assert_eq!(ledger.pools[1].used.len(), 1, "nothing half done");
        assert!(ledger.release("a"));
        assert!(ledger.reserve("b", &[]).is_ok());
        ledger.release("b");
        let own = "10.0.0.7".parse().unwrap();
        assert!(
            matches!(ledger.reserve("c", &[own]), Err(CidrError::ContainsNode { address, .. }) if address == own)
        );
        assert!(ledger.pools.iter().all(|pool| pool.used.is_empty()));
    }

    proptest! {
        /// Ranges never overlap, whatever joins, leaves and restarts.
        #[test]
        fn never_overlapping(ops in prop::collection::vec((0u8..12, 0u8..4), 1..80)) {
            let mut ledger = Ledger { pools: vec![pool("10.0.0.0/21", 24)], ..Ledger::default() };
            let mut api: HashMap<String, Vec<IpNetwork>> = HashMap::new();
            for (n, op) in ops {
                let node = format!("n{n}");
                match op {
                    0 => { api.remove(&node); ledger.release(&node); }
                    1 => {
                        // A restart: the ledger is read from the API again.
                        ledger = Ledger { pools: vec![pool("10.0.0.0/21", 24)], ..Ledger::default() };
                        for (node, cidrs) in &api { ledger.occupy(node, cidrs).unwrap(); }
                    }
                    _ => if let Ok(cidrs) = ledger.reserve(&node, &[]) {
                        // The write may be lost.
                        if op == 2 { api.insert(node, cidrs); }
                    } else {
                        prop_assert!(ledger.reserved.len() >= 8, "refused although something is free");
                    }
                }
                let mut all: Vec<IpNetwork> = api.values().flatten().copied().collect();
                all.sort();
                let before = all.len();
                all.dedup();
                prop_assert_eq!(all.len(), before);
            }
        }
    }
}
