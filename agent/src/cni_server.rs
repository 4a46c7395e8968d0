//! Serves the CNI plugin: frames on a Unix socket to the owner of the attachments and back.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;
use weft_cni::{
    deletion_queue::{DeletionQueue, LockedQueue, QueueError},
    protocol::{
        AddResult, Attachment, Cidr, CniError, ErrorCode, FrameError, Interface, IpConfig, PROTOCOL_VERSION,
        Request, Response, Route, Verb, decode_frame, encode_frame, frame_length,
    },
};

use crate::{
    datapath::netns::NetnsError,
    endpoint::{AddRequest, Attached, AttachmentKey, EndpointError, Endpoints, PodRef},
    telemetry::chain,
};

/// How many requests are read at once; more wait in the socket's backlog. Each holds one small frame.
const CONNECTIONS: usize = 256;
/// How long a plugin may take to say what it wants.
const READ_PATIENCE: Duration = Duration::from_secs(5);

/// Why the plugin cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum CniServerError {
    /// The socket cannot be made.
    #[error("socket {0} cannot be opened")]
    Listen(PathBuf, #[source] io::Error),
    /// The queue of deletions cannot be read.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The attachments have no owner any more.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
}

/// Opens a socket for root alone, in place of one that a dead agent left.
pub fn listen(path: &Path) -> Result<UnixListener, CniServerError> {
    let failed = |error| CniServerError::Listen(path.to_owned(), error);
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

/// Carries out the deletions that the plugin queued while no agent was there.
///
/// The lock comes back with the caller, to be held until the socket takes requests: a plugin that finds no agent asks once
/// more under the lock before it queues.
pub async fn drain(queue_dir: &Path, endpoints: &Endpoints) -> Result<LockedQueue, CniServerError> {
    /// A plugin holds the lock for the writing of one file; hundreds may come in a burst, and they take no turns.
    const PATIENCE: Duration = Duration::from_secs(30);
    let queue = DeletionQueue::new(queue_dir);
    let locked = tokio::task::spawn_blocking(move || queue.lock(Instant::now() + PATIENCE))
        .await
        .map_err(|_| EndpointError::Stopping)??;
    let entries = locked.entries()?;
    let waiting = entries.deletions.len();
    for deletion in &entries.deletions {
        let Attachment { container_id, ifname } = deletion.request.attachment();
        let outcome = endpoints.del(AttachmentKey::new(container_id, ifname)).await;
        if let Err(error) = outcome {
            // It stays in the queue for the next agent.
            tracing::warn!(error = &error as &dyn std::error::Error, "queued deletion failed");
        } else {
            locked.remove(deletion)?;
        }
    }
    if entries.overflowed {
        tracing::warn!(
            "deletions were lost while the queue was full; attachments without a netns are collected"
        );
        endpoints.repair().await?;
        locked.clear_overflow()?;
    }
    if waiting > 0 {
        tracing::info!(deletions = waiting, "queued deletions carried out");
    }
    Ok(locked)
}

/// Serves until `shutdown`; requests in flight are answered by the tracker's tasks.
pub async fn serve(
    listener: UnixListener,
    endpoints: Endpoints,
    tasks: TaskTracker,
    shutdown: CancellationToken,
) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let endpoints = endpoints.clone();
                tasks.spawn(async move {
                    if let Err(error) = converse(stream, &endpoints).await {
                        tracing::debug!(error = &error as &dyn std::error::Error, "plugin went away");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a plugin could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(mut stream: UnixStream, endpoints: &Endpoints) -> Result<(), FrameError> {
    let request = tokio::time::timeout(READ_PATIENCE, read_request(&mut stream)).await;
    let response = match request {
        Err(_) => Err(CniError::new(
            ErrorCode::Decode,
            "the request did not come within 5 seconds",
        )),
        Ok(Err(error @ FrameError::Io(_))) => return Err(error),
        Ok(Err(error)) => {
            Err(CniError::new(ErrorCode::Decode, "the request cannot be read").with_details(chain(&error)))
        }
        Ok(Ok(request)) => {
            let span = tracing::info_span!(
                "cni",
                verb = ?request.verb,
                container_id = request.container_id,
                ifname = request.ifname,
                pod = request.pod.as_ref().and_then(|pod| pod.name.as_deref()),
            );
            let undo = (request.verb == Verb::Add).then(|| key_of(&request));
            let outcome = handle(request, endpoints).instrument(span.clone()).await;
            if let Err(error) = &outcome {
                span.in_scope(|| tracing::warn!(code = error.code.as_u32(), %error, "request failed"));
            }
            let made = outcome.is_ok();
            let written = stream.write_all(&encode_frame(&Response::from(outcome))?).await;
            if let (Err(_), Some(key), true) = (&written, undo, made) {
                // The runtime gave up on this ADD and will not know what it made.
                span.in_scope(|| {
                    tracing::warn!("the plugin did not wait for the answer, undoing the attachment");
                });
                let _ = endpoints.del(key).await;
            }
            return Ok(written?);
        }
    };
    stream
        .write_all(&encode_frame(&Response::from(response))?)
        .await?;
    Ok(())
}

async fn read_request(stream: &mut UnixStream) -> Result<Request, FrameError> {
    let mut header = [0; 4];
    stream.read_exact(&mut header).await?;
    let mut body = vec![0; frame_length(header)?];
    stream.read_exact(&mut body).await?;
    decode_frame(&body)
}

fn key_of(request: &Request) -> AttachmentKey {
    AttachmentKey::new(&*request.container_id, &*request.ifname)
}

async fn handle(request: Request, endpoints: &Endpoints) -> Result<Option<AddResult>, CniError> {
    if request.version != PROTOCOL_VERSION {
        return Err(CniError::new(
            ErrorCode::ProtocolMismatch,
            format!(
                "the plugin speaks version {} and the agent {PROTOCOL_VERSION}",
                request.version
            ),
        )
        .with_details("install the plugin that came with the agent"));
    }
    let key = key_of(&request);
    let outcome = match request.verb {
        Verb::Add => {
            let (request, netns) = add_request(request, key)?;
            endpoints
                .add(request)
                .await
                .map(|attached| Some(result(&attached, &netns)))
        }
        Verb::Del => endpoints.del(key).await.map(|()| None),
        Verb::Check => {
            let previous = request.prev_result.clone();
            let checked = endpoints.check(key, request.netns).await;
            match (checked, previous) {
                (Ok(attached), Some(previous)) => {
                    matches_previous(&attached, &previous)?;
                    Ok(None)
                }
                (checked, _) => checked.map(|_| None),
            }
        }
        Verb::Gc => {
            let network = network_of(&request.config).unwrap_or_default();
            let valid = request.valid_attachments.ok_or_else(|| {
                CniError::new(ErrorCode::InvalidConfig, "GC without cni.dev/valid-attachments")
            })?;
            let valid = valid
                .into_iter()
                .map(|kept| AttachmentKey::new(kept.container_id, kept.ifname))
                .collect();
            endpoints.gc(network, valid).await.map(|()| None)
        }
        Verb::Status => {
            return endpoints.status().await.map(|()| None).map_err(|error| {
                CniError::new(ErrorCode::Unavailable, "pods cannot be attached").with_details(chain(&error))
            });
        }
    };
    outcome.map_err(|error| cni_error(&error))
}

fn network_of(config: &serde_json::Value) -> Option<String> {
    config.get("name")?.as_str().map(str::to_owned)
}

fn add_request(request: Request, key: AttachmentKey) -> Result<(AddRequest, PathBuf), CniError> {
    let netns = request.netns.ok_or_else(|| {
        CniError::new(
            ErrorCode::InvalidEnvironment,
            "CNI_NETNS is missing: ADD needs a netns",
        )
    })?;
    let mtu = match request.config.get("mtu") {
        None | Some(serde_json::Value::Null) => None,
        Some(value) => {
            let bytes = value.as_u64().and_then(|bytes| u32::try_from(bytes).ok());
            Some(bytes.ok_or_else(|| {
                CniError::new(
                    ErrorCode::InvalidConfig,
                    format!("mtu {value} is no number of bytes"),
                )
            })?)
            .filter(|bytes| *bytes != 0)
        }
    };
    let pod = request.pod.map(|pod| PodRef {
        namespace: pod.namespace.unwrap_or_default(),
        name: pod.name.unwrap_or_default(),
        uid: pod.uid.unwrap_or_default(),
    });
    let network = network_of(&request.config);
    Ok((
        AddRequest {
            key,
            netns: netns.clone(),
            pod,
            network,
            mtu,
        },
        netns,
    ))
}

/// What ADD made, in the words of the protocol: the node's end first, then the pod's.
fn result(attached: &Attached, netns: &Path) -> AddResult {
    const POD_INTERFACE: usize = 1;
    let cidr = |network: &ipnetwork::IpNetwork| Cidr::new(network.ip(), network.prefix()).ok();
    AddResult {
        interfaces: vec![
            Interface {
                name: attached.host_ifname.clone(),
                mac: Some(attached.host_mac.to_string()),
                mtu: Some(attached.mtu),
                ..Interface::default()
            },
            Interface {
                name: attached.ifname.clone(),
                mac: Some(attached.pod_mac.to_string()),
                mtu: Some(attached.mtu),
                sandbox: Some(netns.display().to_string()),
                ..Interface::default()
            },
        ],
        ips: attached
            .ips
            .iter()
            .zip(&attached.gateways)
            .filter_map(|(ip, gateway)| {
                Some(IpConfig {
                    address: cidr(ip)?,
                    gateway: Some(*gateway),
                    interface: Some(POD_INTERFACE),
                })
            })
            .collect(),
        routes: attached
            .routes
            .iter()
            .filter_map(|route| {
                Some(Route {
                    dst: cidr(&route.destination)?,
                    gw: route.gateway,
                    mtu: route.mtu,
                    advmss: route.advmss,
                    priority: None,
                    table: None,
                    scope: None,
                })
            })
            .collect(),
        ..AddResult::default()
    }
}

/// Checks that what the runtime remembers is what was made. Later plugins of the chain may have added to it.
fn matches_previous(attached: &Attached, previous: &AddResult) -> Result<(), CniError> {
    let missing: Vec<String> = attached
        .ips
        .iter()
        .filter(|ip| !previous.ips.iter().any(|known| known.address.addr() == ip.ip()))
        .map(|ip| format!("address {ip} is not in prevResult"))
        .collect();
    if missing.is_empty() {
        Ok(())
    } else {
        Err(
            CniError::new(ErrorCode::CheckFailed, "prevResult is not what ADD made")
                .with_details(missing.join("; ")),
        )
    }
}

/// The one place where errors get their CNI codes.
fn cni_error(error: &EndpointError) -> CniError {
    let code = match error {
        EndpointError::InvalidContainerId(_)
        | EndpointError::InvalidInterfaceName { .. }
        | EndpointError::Netns(
            NetnsError::Open(..) | NetnsError::NotNetns(_) | NetnsError::Own(_) | NetnsError::Enter(..),
        ) => ErrorCode::InvalidEnvironment,
        EndpointError::InvalidMtu { .. } => ErrorCode::InvalidConfig,
        EndpointError::AlreadyAttached(_) | EndpointError::InterfaceExists { .. } => ErrorCode::AlreadyExists,
        EndpointError::NotAttached(_) => ErrorCode::UnknownContainer,
        EndpointError::Differs { .. } => ErrorCode::CheckFailed,
        EndpointError::Ipam(_) | EndpointError::Stopping => ErrorCode::TryAgainLater,
        EndpointError::Ledger(_) | EndpointError::Checkpoint(_) => ErrorCode::Io,
        EndpointError::Netns(_) | EndpointError::Netlink(_) | EndpointError::Dataplane(_) => {
            ErrorCode::Internal
        }
    };
    let mut error: &dyn std::error::Error = error;
    let text = error.to_string();
    let mut details = Vec::new();
    while let Some(source) = error.source() {
        details.push(source.to_string());
        error = source;
    }
    CniError::new(code, text).with_details(details.join(": "))
}
