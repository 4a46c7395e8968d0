//! What an agent does with the attachments that another left, and with what is nobody's.

use std::{net::IpAddr, sync::Arc, time::Duration};

use super::{
    EndpointError,
    attach::{Kernel, Mended, ips},
    audit::Findings,
    checkpoint::{Checkpoint, Phase, host_ifname},
    owner::{Owner, Slot},
};
use crate::{
    ipam::{Ipam, ledger::Ledger},
    machine,
};

impl Owner {
    /// Takes over what an earlier agent left: mends what is whole, undoes what was begun, forgets what is gone.
    pub(super) fn take_over(
        kernel: Arc<Kernel>,
        ipam: Ipam,
        ledger: Ledger,
        address_rest: Duration,
    ) -> Result<Self, EndpointError> {
        let mut owner = Self::new(kernel, ipam, ledger, address_rest);
        for checkpoint in owner.kernel.checkpoints.load()? {
            owner.take_over_one(checkpoint)?;
        }
        let now = machine::boot_time();
        let leases = owner.ledger.leases().clone();
        let is_attached = |ip: &IpAddr| {
            owner
                .slots
                .values()
                .filter_map(|slot| slot.checkpoint.as_ref())
                .any(|known| ips(known).contains(ip))
        };
        // A lease without an attachment: the agent died between the two.
        let lost: Vec<IpAddr> = leases
            .held
            .keys()
            .filter(|ip| !is_attached(ip))
            .copied()
            .collect();
        owner.ledger.free(&lost, now + address_rest, now)?;
        for (ip, end) in owner.ledger.leases().resting.clone() {
            owner.ipam.rest(ip, end);
        }
        let checkpoints = owner.ready();
        let findings = owner.kernel.audit(&checkpoints)?;
        owner.prune(&findings)?;
        tracing::info!(
            endpoints = checkpoints.len(),
            lost_leases = lost.len(),
            "attachments taken over"
        );
        Ok(owner)
    }

    fn take_over_one(&mut self, checkpoint: Checkpoint) -> Result<(), EndpointError> {
        if checkpoint.boot_id != self.kernel.boot_id {
            return Ok(self.kernel.checkpoints.remove(&checkpoint.key)?);
        }
        self.last_id = self.last_id.max(checkpoint.attached.id.0);
        for ip in ips(&checkpoint) {
            if !self.ipam.adopt(&checkpoint.key, ip) {
                tracing::warn!(%ip, attachment = %checkpoint.key, "address is not of the node's pod CIDRs");
            }
        }
        let key = checkpoint.key.clone();
        let kept = match checkpoint.phase {
            Phase::Creating => {
                tracing::info!(attachment = %key, "undoing an attachment that was not finished");
                if self.kernel.undo(&checkpoint) {
                    None
                } else {
                    Some(checkpoint.clone())
                }
            }
            Phase::Ready => match self.kernel.mend(checkpoint.clone()) {
                Ok(Mended::Whole(checkpoint)) => Some(*checkpoint),
                Ok(Mended::Gone) => None,
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(attachment = %key, error, "attachment could not be mended");
                    Some(checkpoint.clone())
                }
            },
        };
        match kept {
            Some(checkpoint) => {
                self.slots.insert(key, Slot::holding(checkpoint));
            }
            None => self.release(&key, &ips(&checkpoint)),
        }
        Ok(())
    }

    /// Removes what carries Weft's mark and is nobody's. What was begun since the audit looked is somebody's.
    pub(super) fn prune(&mut self, findings: &Findings) -> Result<(), EndpointError> {
        for (ifindex, name) in &findings.orphan_links {
            if !self.slots.keys().any(|key| host_ifname(key) == *name) {
                tracing::debug!(ifname = name, "deleting a link that is no attachment's");
                self.kernel.reaper.delete(*ifindex, name);
            }
        }
        for ip in &findings.orphan_entries {
            let has_owner = self.ipam.owner(*ip).is_some()
                || self
                    .slots
                    .values()
                    .filter_map(|slot| slot.checkpoint.as_ref())
                    .any(|known| ips(known).contains(ip));
            if !has_owner {
                tracing::info!(%ip, "removing an address that is no attachment's from the datapath");
                self.kernel.datapath.dataplane.remove_endpoint(*ip)?;
            }
        }
        Ok(())
    }
}
