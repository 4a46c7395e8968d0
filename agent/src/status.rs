//! What `weft status` shows: the agent's own view, read from a socket beside the plugin's.

use std::{
    ffi::OsString,
    fmt::{self, Write as _},
    io::{self, Read as _},
    net::IpAddr,
    os::unix::{ffi::OsStringExt as _, net::UnixStream as BlockingStream},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{io::AsyncWriteExt as _, net::UnixListener, sync::watch};
use tokio_util::sync::CancellationToken;

use crate::{
    datapath::{Datapath, maps::PeerKind},
    desired::Conflict,
    endpoint::{EndpointSummary, Endpoints, EndpointsUse},
};

/// What is known without asking the kernel; published by the reconcile task.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeView {
    /// The node's name.
    pub node: String,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Whether pods can be attached.
    pub ready: bool,
    /// One sentence about that.
    pub message: String,
    /// Whether the API server was heard.
    pub joined: bool,
    /// The underlay device.
    pub underlay: String,
    /// Who writes tunnel headers.
    pub encap: String,
    /// Who strips them.
    pub decap: String,
    /// Why.
    pub mode_reason: String,
    /// MTU of pods' devices.
    pub device_mtu: u32,
    /// MTU of pods' routes.
    pub tunnel_mtu: u32,
    /// Pod CIDRs that are left out.
    pub conflicts: Vec<Conflict>,
    /// Nodes that cannot be reached, and why.
    pub unreachable: Vec<(String, String)>,
}

/// A prefix of another node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerView {
    /// The prefix.
    pub cidr: ipnetwork::IpNetwork,
    /// Where its packets go.
    pub tunnel_endpoint: IpAddr,
    /// By which neighbour.
    pub next_hop: IpAddr,
    /// "pods" or "node".
    pub kind: String,
}

/// A counter of the programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterView {
    /// The verdict or drop reason.
    pub reason: String,
    /// Whether it is a drop.
    pub drop: bool,
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The node.
    #[serde(flatten)]
    pub view: NodeView,
    /// The other nodes' prefixes.
    pub peers: Vec<PeerView>,
    /// The attachments.
    pub endpoints: Vec<EndpointSummary>,
    /// The addresses in the programs' tables.
    pub entries: Vec<IpAddr>,
    /// How full the node is.
    pub usage: EndpointsUse,
    /// What the programs counted, zeros left out.
    pub counters: Vec<CounterView>,
}

/// Answers every connection with the status, until `shutdown`.
pub async fn serve(
    listener: UnixListener,
    view: watch::Receiver<NodeView>,
    parts: watch::Receiver<Option<(Arc<Datapath>, Endpoints)>>,
    shutdown: CancellationToken,
) {
    while let Some(accepted) = shutdown.run_until_cancelled(listener.accept()).await {
        let Ok((mut stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let parts = parts.borrow().clone();
        let view = view.borrow().clone();
        let status = gather(view, parts).await;
        if let Ok(json) = serde_json::to_vec(&status) {
            // Whoever asked may be gone.
            let _ = stream.write_all(&json).await;
        }
    }
}

async fn gather(view: NodeView, parts: Option<(Arc<Datapath>, Endpoints)>) -> Status {
    let mut status = Status {
        view,
        ..Status::default()
    };
    let Some((datapath, endpoints)) = parts else {
        return status;
    };
    status.endpoints = endpoints.list().await.unwrap_or_default();
    status.usage = endpoints.usage().await.unwrap_or_default();
    let tables = tokio::task::spawn_blocking(move || {
        (
            datapath.dataplane.peers().unwrap_or_default(),
            datapath.dataplane.metrics().unwrap_or_default(),
            datapath.dataplane.endpoints().unwrap_or_default(),
        )
    });
    let (peers, metrics, entries) = tables.await.unwrap_or_default();
    status.entries = entries.into_iter().map(|(ip, _)| ip).collect();
    status.peers = peers
        .into_iter()
        .map(|(cidr, peer)| PeerView {
            cidr,
            tunnel_endpoint: peer.tunnel_endpoint,
            next_hop: peer.next_hop,
            kind: if peer.kind == PeerKind::Pods {
                "pods"
            } else {
                "node"
            }
            .to_owned(),
        })
        .collect();
    status.counters = metrics
        .into_iter()
        .filter(|metric| metric.packets > 0)
        .map(|metric| CounterView {
            reason: metric.reason.name().to_owned(),
            drop: metric.reason.is_drop(),
            packets: metric.packets,
            bytes: metric.bytes,
        })
        .collect();
    status
}

/// Why there is no status.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// Nobody answers.
    #[error("no agent answers on {0}; is `weft agent` running?")]
    NoAgent(PathBuf, #[source] io::Error),
    /// The answer makes no sense.
    #[error("the agent's answer cannot be read; are it and this program of one version?")]
    Malformed(#[from] serde_json::Error),
}

/// Notes under the state directory where the agent is to be asked.
pub fn note_socket(state_dir: &Path, socket: &Path) -> io::Result<()> {
    std::fs::write(state_dir.join(NOTE), socket.as_os_str().as_encoded_bytes())
}

/// Where the agent with this state directory is to be asked.
pub fn noted_socket(state_dir: &Path) -> PathBuf {
    let note = std::fs::read(state_dir.join(NOTE));
    note.map_or_else(
        |_| PathBuf::from(DEFAULT_SOCKET),
        |path| OsString::from_vec(path).into(),
    )
}

const NOTE: &str = "status-socket";
const DEFAULT_SOCKET: &str = "/run/weft/status.sock";

/// Asks the agent.
pub fn fetch(socket: &Path) -> Result<Status, StatusError> {
    const PATIENCE: Duration = Duration::from_secs(5);
    let failed = |error| StatusError::NoAgent(socket.to_owned(), error);
    let mut stream = BlockingStream::connect(socket).map_err(failed)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    let mut json = Vec::new();
    stream.read_to_end(&mut json).map_err(failed)?;
    Ok(serde_json::from_slice(&json)?)
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let view = &self.view;
        let addresses: Vec<String> = view.ips.iter().map(ToString::to_string).collect();
        writeln!(f, "node       {} ({})", view.node, addresses.join(", "))?;
        writeln!(
            f,
            "state      {}: {}",
            if view.ready { "ready" } else { "not ready" },
            view.message
        )?;
        writeln!(
            f,
            "api        {}",
            if view.joined {
                "joined"
            } else {
                "not reached since the agent started"
            }
        )?;
        writeln!(
            f,
            "tunnel     encapsulation by {}, decapsulation by {} ({})",
            view.encap, view.decap, view.mode_reason
        )?;
        writeln!(
            f,
            "mtu        {} on {}, {} in the tunnel",
            view.device_mtu, view.underlay, view.tunnel_mtu
        )?;
        for pool in &self.usage.pools {
            writeln!(
                f,
                "pod CIDR   {}: {} of {} addresses leased, {} rest",
                pool.cidr, pool.leased, pool.capacity, pool.resting
            )?;
        }
        for conflict in &view.conflicts {
            writeln!(f, "conflict   {conflict}")?;
        }
        for (node, reason) in &view.unreachable {
            writeln!(f, "unreached  node {node}: {reason}")?;
        }
        writeln!(f, "\npeers ({})", self.peers.len())?;
        for peer in &self.peers {
            writeln!(
                f,
                "  {:<24} {:<5} by {} over {}",
                peer.cidr.to_string(),
                peer.kind,
                peer.tunnel_endpoint,
                peer.next_hop
            )?;
        }
        writeln!(f, "\nendpoints ({}, {} busy)", self.usage.ready, self.usage.busy)?;
        for endpoint in &self.endpoints {
            let ips: Vec<String> = endpoint
                .attached
                .ips
                .iter()
                .map(|ip| ip.ip().to_string())
                .collect();
            let mut name = String::new();
            match &endpoint.pod {
                Some(pod) => write!(name, "{}/{}", pod.namespace, pod.name)?,
                None => write!(name, "{}", endpoint.key)?,
            }
            writeln!(
                f,
                "  {:<6} {:<32} {:<15} {}",
                endpoint.attached.id.to_string(),
                ips.join(" "),
                endpoint.attached.host_ifname,
                name
            )?;
        }
        writeln!(f, "\ncounters")?;
        for counter in &self.counters {
            let kind = if counter.drop { "drop" } else { "pass" };
            writeln!(
                f,
                "  {kind} {:<28} {:>12} packets {:>16} bytes",
                counter.reason, counter.packets, counter.bytes
            )?;
        }
        Ok(())
    }
}
