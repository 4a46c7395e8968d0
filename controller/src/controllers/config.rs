//! What the controllers can be told.

use std::sync::Arc;
use std::time::Duration;

use ipnetwork::IpNetwork;

use super::{ControllerError, Selection};
use crate::auth::service_account::keys::TokenKeys;

/// Settings of all controllers. The defaults are Kubernetes' own.
#[derive(Debug, Clone)]
pub struct ControllersConfig {
    /// Ranges from which nodes get their pod CIDRs: at most one of each family. Empty: no node IPAM.
    pub cluster_cidrs: Vec<IpNetwork>,
    /// Prefix length of a node's IPv4 pod CIDR.
    pub node_cidr_mask_v4: u8,
    /// Prefix length of a node's IPv6 pod CIDR.
    pub node_cidr_mask_v6: u8,
    /// How often nodes are judged.
    pub node_monitor_period: Duration,
    /// How long a node may be silent before it counts as not ready.
    pub node_monitor_grace_period: Duration,
    /// How long pods stay on a node that is not ready or unreachable, unless they tolerate it for another time.
    pub pod_eviction_timeout: Duration,
    /// After how long pods that were evicted from a silent node are deleted without its confirmation. `None`: never, as in
    /// Kubernetes, because the node may still run them.
    pub unreachable_force_delete_after: Option<Duration>,
    /// How many finished pods are kept before the oldest are deleted.
    pub terminated_pod_threshold: usize,
    /// How often pod garbage is looked for.
    pub pod_gc_period: Duration,
    /// How long a Job waits after a pod failed; twice as long after each further one.
    pub job_pod_failure_backoff: Duration,
    /// How often an autoscaler is looked at.
    pub autoscaler_period: Duration,
    /// Certificate authority that pods get as ConfigMap `kube-root-ca.crt`; empty: none is written.
    pub root_ca_pem: String,
    /// Keys that sign the tokens kept in Secrets; `None`: none are made.
    pub token_keys: Option<Arc<TokenKeys>>,
    /// Which of them run, and whether the scheduler does.
    pub selection: Selection,
    /// How many keys of one controller are worked on at a time.
    pub workers: usize,
    /// How many requests one reconcile keeps in flight in a batch.
    pub batch_concurrency: usize,
}

impl Default for ControllersConfig {
    fn default() -> Self {
        ControllersConfig {
            cluster_cidrs: Vec::new(),
            node_cidr_mask_v4: 24,
            node_cidr_mask_v6: 64,
            node_monitor_period: Duration::from_secs(5),
            node_monitor_grace_period: Duration::from_secs(40),
            pod_eviction_timeout: Duration::from_mins(5),
            unreachable_force_delete_after: None,
            terminated_pod_threshold: 12_500,
            pod_gc_period: Duration::from_secs(20),
            job_pod_failure_backoff: Duration::from_secs(10),
            autoscaler_period: Duration::from_secs(15),
            root_ca_pem: String::new(),
            token_keys: None,
            selection: Selection::default(),
            workers: 5,
            batch_concurrency: 64,
        }
    }
}

impl ControllersConfig {
    /// Checks what the types cannot say.
    ///
    /// # Errors
    /// [`ControllerError::Config`] naming the setting and what would be right.
    pub fn validate(&self) -> Result<(), ControllerError> {
        let mut families = [0; 2];
        for cidr in &self.cluster_cidrs {
            let (family, mask, flag) = match cidr {
                IpNetwork::V4(_) => (0, self.node_cidr_mask_v4, "--node-cidr-mask-size"),
                IpNetwork::V6(_) => (1, self.node_cidr_mask_v6, "--node-cidr-mask-size-v6"),
            };
            families[family] += 1;
            if families[family] > 1 {
                return Err(ControllerError::Config(format!(
                    "more than one cluster CIDR of the family of {cidr}"
                )));
            }
            let longest = if family == 0 { 30 } else { 126 };
            if mask < cidr.prefix() || mask > longest {
                return Err(ControllerError::Config(format!(
                    "{flag} {mask} does not fit cluster CIDR {cidr}: choose {} to {longest}",
                    cidr.prefix()
                )));
            }
        }
        if self.selection.is_empty() {
            return Err(ControllerError::Config(
                "--controllers selects nothing: begin it with * for all but those that follow with a -"
                    .into(),
            ));
        }
        if self.workers == 0 || self.batch_concurrency == 0 {
            return Err(ControllerError::Config(
                "workers and batch_concurrency must be at least 1".into(),
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_must_fit_the_cluster_cidr() {
        let with = |cidrs: &[&str], v4, v6| {
            ControllersConfig {
                cluster_cidrs: cidrs.iter().map(|c| c.parse().unwrap()).collect(),
                node_cidr_mask_v4: v4,
                node_cidr_mask_v6: v6,
                ..ControllersConfig::default()
            }
            .validate()
        };
        assert!(with(&["10.244.0.0/16", "fd00::/56"], 24, 64).is_ok());
        assert!(
            with(&["10.244.0.0/16"], 16, 64).is_ok(),
            "one node may get all of it"
        );
        assert!(with(&["10.244.0.0/16"], 12, 64).is_err());
        assert!(with(&["10.244.0.0/16"], 31, 64).is_err());
        assert!(with(&["fd00::/64"], 24, 56).is_err());
        assert!(with(&["10.244.0.0/16", "10.1.0.0/16"], 24, 64).is_err());
    }
}
