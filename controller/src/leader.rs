//! Which of several controllers leads: the one that holds a Lease. The others wait; when the holder has not renewed it for
//! its duration, one of them takes it.
//!
//! Clocks are not compared: a holder counts as silent when the Lease has not changed for its duration on *our* clock.

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt as _};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::controllers::chain;
use crate::metrics;

/// Namespace of the Lease.
pub const NAMESPACE: &str = "kube-system";
/// What keys of its Leases begin with in the store.
pub(crate) const NAMESPACE_PREFIX: &str = "kube-system/";
/// The Lease's name, unless another one is asked for.
pub const LEASE: &str = "weft-controller";
/// Annotation of the Lease: what its holder runs, [`CONTROLLERS`] or [`SCHEDULER`] or both.
pub(crate) const RUNS: &str = "weft.dev/runs";
/// The controllers, under the name that Kubernetes has for the process that runs them.
pub(crate) const CONTROLLERS: &str = "controller-manager";
/// The scheduler.
pub(crate) const SCHEDULER: &str = "scheduler";

/// How an election is held. Pods stay unscheduled for `duration` and a little more after a leader dies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Election {
    /// Name of the Lease.
    pub lease: String,
    /// What the leader runs, for [`RUNS`].
    pub runs: String,
    /// Who we are; unique among the controllers.
    pub identity: String,
    /// After how long a silent leader is replaced.
    pub duration: Duration,
    /// After how long without a renewal a leader stops its work; shorter than `duration`, so that two never lead.
    pub renew_deadline: Duration,
    /// How often to try.
    pub period: Duration,
}

impl Election {
    /// The election's ordinary times.
    pub fn new(identity: String) -> Self {
        Self {
            lease: LEASE.to_owned(),
            runs: String::new(),
            identity,
            duration: Duration::from_secs(8),
            renew_deadline: Duration::from_secs(5),
            period: Duration::from_secs(1),
        }
    }

    /// How long work may go on after the leader has given up, before somebody else may lead.
    pub fn grace(&self) -> Duration {
        self.duration.saturating_sub(self.renew_deadline)
    }
}

/// What to do about the Lease.
#[derive(Debug, PartialEq, Eq)]
enum Move {
    /// It is ours: say so again.
    Renew,
    /// It is free, or its holder is silent.
    Take,
    /// Somebody else leads.
    Wait,
}

/// What is known of the Lease: its last state and since when it has been that.
#[derive(Debug)]
struct Observed {
    version: String,
    since: Instant,
}

fn next_move(spec: &LeaseSpec, observed: &Observed, identity: &str, now: Instant) -> Move {
    let holder = spec.holder_identity.as_deref().unwrap_or_default();
    let seconds = u64::try_from(spec.lease_duration_seconds.unwrap_or_default()).unwrap_or_default();
    if holder == identity {
        Move::Renew
    } else if holder.is_empty()
        || now.saturating_duration_since(observed.since) >= Duration::from_secs(seconds)
    {
        Move::Take
    } else {
        Move::Wait
    }
}

/// A candidate.
struct Candidate {
    leases: Api<Lease>,
    election: Election,
    observed: Option<Observed>,
}

impl Candidate {
    /// Tries to get or keep the Lease; whether it is ours now.
    async fn try_once(&mut self) -> Result<bool, kube::Error> {
        let now = Instant::now();
        let Some(lease) = self.leases.get_opt(&self.election.lease).await? else {
            let lease = self.claimed(Lease::default(), true);
            return match self.leases.create(&PostParams::default(), &lease).await {
                Ok(_) => Ok(true),
                Err(error) if crate::controllers::is_conflict(&error) => Ok(false),
                Err(error) => Err(error),
            };
        };
        let version = lease.resource_version().unwrap_or_default();
        let observed = match self.observed.take() {
            Some(observed) if observed.version == version => observed,
            _ => Observed { version, since: now },
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let next = next_move(&spec, &observed, &self.election.identity, now);
        self.observed = Some(observed);
        if next == Move::Wait {
            return Ok(false);
        }
        let lease = self.claimed(lease, next == Move::Take);
        let name = &self.election.lease;
        match self.leases.replace(name, &PostParams::default(), &lease).await {
            Ok(_) => Ok(true),
            Err(error) if crate::controllers::is_conflict(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn claimed(&self, mut lease: Lease, taken: bool) -> Lease {
        let now = MicroTime(Timestamp::now());
        lease.metadata.name = Some(self.election.lease.clone());
        lease.metadata.namespace = Some(NAMESPACE.to_owned());
        let annotations = lease.metadata.annotations.get_or_insert_default();
        annotations.insert(RUNS.to_owned(), self.election.runs.clone());
        let spec = lease.spec.get_or_insert_default();
        spec.holder_identity = Some(self.election.identity.clone());
        spec.lease_duration_seconds = i32::try_from(self.election.duration.as_secs()).ok();
        spec.renew_time = Some(now.clone());
        if taken {
            spec.acquire_time = Some(now);
            spec.lease_transitions = Some(spec.lease_transitions.map_or(0, |count| count + 1));
        }
        lease
    }

    /// Lets the others go on at once.
    async fn release(&self) {
        let released = async {
            let Some(mut lease) = self.leases.get_opt(&self.election.lease).await? else {
                return Ok(());
            };
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_deref() == Some(&self.election.identity) {
                spec.holder_identity = None;
                let name = &self.election.lease;
                self.leases.replace(name, &PostParams::default(), &lease).await?;
            }
            Ok::<_, kube::Error>(())
        };
        match tokio::time::timeout(self.election.period, released).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(%error, "the leader's lease was not released"),
            Err(_) => debug!("the leader's lease was not released in time"),
        }
    }
}

/// Does `work` while we lead, again each time we come to lead, until `shutdown`. The token that `work` is given says when it
/// has to stop.
///
/// # Errors
/// Those of `work`.
pub async fn lead<F, W, E>(
    client: Client,
    election: Election,
    shutdown: CancellationToken,
    work: F,
) -> Result<(), E>
where
    F: Fn(CancellationToken) -> W,
    W: Future<Output = Result<(), E>>,
{
    let mut candidate = Candidate {
        leases: Api::namespaced(client, NAMESPACE),
        election,
        observed: None,
    };
    let identity = candidate.election.identity.clone();
    let leading = metrics::LEADING.with(&[("name", candidate.election.lease.as_str())]);
    info!(%identity, "waiting to lead");
    while wait_to_lead(&mut candidate, &shutdown).await {
        info!(%identity, "leading");
        leading.set(1);
        let stop = shutdown.child_token();
        let keep = async {
            keep_leading(&mut candidate, &stop).await;
            stop.cancel();
        };
        let (result, ()) = tokio::join!(
            async {
                let result = work(stop.clone()).await;
                stop.cancel();
                result
            },
            keep
        );
        leading.set(0);
        candidate.release().await;
        result?;
        if !shutdown.is_cancelled() {
            warn!(%identity, "no longer leading");
        }
    }
    Ok(())
}

/// Whether we lead; `false` at the end.
async fn wait_to_lead(candidate: &mut Candidate, shutdown: &CancellationToken) -> bool {
    let deadline = candidate.election.renew_deadline;
    loop {
        let tried = tokio::select! {
            () = shutdown.cancelled() => return false,
            tried = tokio::time::timeout(deadline, candidate.try_once()) => tried,
        };
        match tried {
            Ok(Ok(true)) => return !shutdown.is_cancelled(),
            Ok(Ok(false)) => {}
            Ok(Err(error)) => warn!(error = %chain(&error), "the leader's lease cannot be read or written"),
            Err(_) => warn!("the leader's lease cannot be read or written in time"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return false,
            () = tokio::time::sleep(candidate.election.period) => {}
        }
    }
}

/// Renews the Lease until that fails for too long, somebody else has it, or `stop`.
async fn keep_leading(candidate: &mut Candidate, stop: &CancellationToken) {
    let mut renewed = Instant::now();
    let Election {
        period,
        renew_deadline,
        ..
    } = candidate.election;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(period) => {}
        }
        let left = renew_deadline.saturating_sub(renewed.elapsed());
        match tokio::time::timeout(left, candidate.try_once()).await {
            Ok(Ok(true)) => renewed = Instant::now(),
            Ok(Err(error)) => debug!(%error, "the leader's lease was not renewed"),
            Ok(Ok(false)) | Err(_) => return,
        }
        if renewed.elapsed() >= renew_deadline {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_free_or_silent_lease_is_taken() {
        let start = Instant::now();
        let observed = Observed {
            version: "1".to_owned(),
            since: start,
        };
        let held = |holder: &str| LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(8),
            ..LeaseSpec::default()
        };
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(next_move(&held("me"), &observed, "me", after(100)), Move::Renew);
        assert_eq!(next_move(&held("you"), &observed, "me", after(7)), Move::Wait);
        assert_eq!(next_move(&held("you"), &observed, "me", after(8)), Move::Take);
        assert_eq!(next_move(&held(""), &observed, "me", start), Move::Take);
    }
}
