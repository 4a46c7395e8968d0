//! Controllers and scheduler in a process of their own, against an API server elsewhere: Weft's or any Kubernetes'.
//!
//! Any number of such processes may stand by; the holder of a Lease in that API does the work. One that loses the Lease stands
//! by again; should its work not stop before another may take over, the process ends, so that two never work at a time.

mod endpoint;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderValue, Uri, header};
use k8s_openapi::api::coordination::v1::Lease;
use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Api, Client};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::auth::service_account::keys::TokenKeys;
use crate::control::Control;
use crate::controllers::{ControllersConfig, chain};
use crate::leader::{self, Election};
use crate::pki::Authority;
use crate::server::Listener;
use crate::{RunError, note_ready, supervise};

/// How long the API server may be out of reach at the start.
const START_PATIENCE: Duration = Duration::from_secs(10);
/// How long between attempts to reach it.
const START_PAUSE: Duration = Duration::from_millis(500);
/// How long a connection may take; an election is lost over less than two of these.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);

/// What such a process is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// The API server, in place of the one that the kubeconfig names.
    pub api: Option<Uri>,
    /// Where the API server is and who we are; without it, we are the service account of the pod we run in.
    pub kubeconfig: Option<PathBuf>,
    /// Settings of the controllers, and which of them run.
    pub controllers: ControllersConfig,
    /// The key that signs the tokens kept in Secrets; without it none are made.
    pub service_account_key: Option<PathBuf>,
    /// Name of the Lease whose holder works.
    pub lease: String,
    /// Address to serve health and metrics on.
    pub listen: SocketAddr,
    /// File that gets the address served on.
    pub ready_file: Option<PathBuf>,
}

/// Why the API server cannot be worked with.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// The kubeconfig is not usable.
    #[error("cannot use --kubeconfig {path}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: KubeconfigError,
    },
    /// There are no credentials.
    #[error(
        "--api needs credentials: name a file with --kubeconfig, or run in a pod that has its service account's token"
    )]
    NoCredentials(#[source] InClusterError),
    /// What would be sent could be read by anybody.
    #[error("the API server {0} is not https: nothing is sent in plain text")]
    PlainText(String),
    /// The credentials cannot be made use of.
    #[error("cannot use the credentials of {credentials}")]
    Credentials {
        /// Where they are from.
        credentials: String,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
    /// It does not answer.
    #[error(
        "cannot reach the API server {server}: {why}: see that it runs and that --api or --kubeconfig names it"
    )]
    Unreachable {
        /// The server.
        server: String,
        /// What the last attempt came to.
        why: String,
    },
    /// It does not know us.
    #[error(
        "the API server {server} refuses the credentials of {credentials}: they are another cluster's or have expired"
    )]
    Unauthorized {
        /// The server.
        server: String,
        /// Where the credentials are from.
        credentials: String,
    },
    /// It knows us and does not let us.
    #[error(
        "the API server {server} does not allow it: {message}: give {credentials} a role that may do what controllers do, \
         such as cluster-admin"
    )]
    Forbidden {
        /// The server.
        server: String,
        /// Where the credentials are from.
        credentials: String,
        /// What it says.
        message: String,
    },
}

/// Runs the selected controllers against the API server until `shutdown`.
///
/// # Errors
/// If the API server cannot be reached or refuses, if the address cannot be listened on, or if the work breaks down.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), RunError> {
    let settings = settings(&config).await?;
    let credentials = match &config.kubeconfig {
        Some(path) => path.display().to_string(),
        None => "the pod's service account".to_owned(),
    };
    let remote = Remote {
        server: settings.cluster_url.to_string().trim_end_matches('/').to_owned(),
        credentials,
        lease: config.lease.clone(),
    };
    let root_ca_pem = settings.root_cert.as_deref().map(pem).unwrap_or_default();
    let client = Client::try_from(settings).map_err(|error| remote.unusable(error))?;
    let mut controllers = ControllersConfig {
        root_ca_pem,
        ..config.controllers
    };
    if let Some(path) = &config.service_account_key {
        controllers.token_keys = Some(Arc::new(TokenKeys::read(path)?));
    }

    // Its certificate vouches for nothing, as that of kube-controller-manager unless it is given one.
    let authority = Authority::ephemeral()?;
    let ip = config.listen.ip();
    let credentials = authority.server(&["localhost".to_owned()], &[ip])?;
    let listener = Listener::bind(config.listen, &authority, &credentials).await?;
    let address = listener.address();

    let mut parts = JoinSet::new();
    let (router, stop) = (endpoint::router(client.clone()), shutdown.clone());
    parts.spawn(async move {
        listener.serve(router, stop).await;
        Ok("health and metrics")
    });
    let Some(reached) = shutdown.run_until_cancelled(remote.reach(&client)).await else {
        return supervise(parts, shutdown).await;
    };
    reached?;
    if let Some(path) = &config.ready_file {
        note_ready(path, &address.to_string())?;
    }
    info!(api = %remote.server, %address, "the API server answers; health and metrics are served");
    let election = Election {
        lease: remote.lease.clone(),
        ..Election::new(identity())
    };
    let control = Control {
        client,
        settings: controllers,
        bounded: true,
    };
    let stop = shutdown.clone();
    parts.spawn(async move { control.run(Some(election), stop).await });
    supervise(parts, shutdown).await
}

/// The API server, for errors and the log.
struct Remote {
    server: String,
    credentials: String,
    lease: String,
}

impl Remote {
    /// Waits until the API server answers and lets us see the Lease.
    async fn reach(&self, client: &Client) -> Result<(), RemoteError> {
        let leases: Api<Lease> = Api::namespaced(client.clone(), leader::NAMESPACE);
        let started = Instant::now();
        loop {
            let left = START_PATIENCE.saturating_sub(started.elapsed());
            let why = match timeout(left, leases.get_opt(&self.lease)).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => self.judge(error)?,
                Err(_) => "no answer".to_owned(),
            };
            if started.elapsed() >= START_PATIENCE {
                let server = self.server.clone();
                return Err(RemoteError::Unreachable { server, why });
            }
            warn!(api = %self.server, error = why, "the API server does not answer yet");
            sleep(START_PAUSE).await;
        }
    }

    /// What to say about an error that may pass; one that does not is yielded as it is.
    fn judge(&self, error: kube::Error) -> Result<String, RemoteError> {
        let (server, credentials) = (self.server.clone(), self.credentials.clone());
        match error {
            kube::Error::Api(status) if status.code == 401 => {
                Err(RemoteError::Unauthorized { server, credentials })
            }
            kube::Error::Api(status) if status.code == 403 => Err(RemoteError::Forbidden {
                server,
                credentials,
                message: status.message,
            }),
            kube::Error::Auth(_) => Err(self.unusable(error)),
            passing => Ok(chain(&passing)),
        }
    }

    fn unusable(&self, error: kube::Error) -> RemoteError {
        RemoteError::Credentials {
            credentials: self.credentials.clone(),
            source: Box::new(error),
        }
    }
}

async fn settings(config: &Config) -> Result<kube::Config, RemoteError> {
    let mut settings = match &config.kubeconfig {
        Some(path) => from_kubeconfig(path)
            .await
            .map_err(|source| RemoteError::Kubeconfig {
                path: path.clone(),
                source,
            })?,
        None => kube::Config::incluster_dns().map_err(RemoteError::NoCredentials)?,
    };
    if let Some(api) = &config.api {
        settings.cluster_url = api.clone();
    }
    if settings.cluster_url.scheme_str() != Some("https") {
        return Err(RemoteError::PlainText(settings.cluster_url.to_string()));
    }
    settings.connect_timeout = Some(CONNECT_TIMEOUT);
    // The name under which the fields it sets are managed.
    let agent = HeaderValue::from_static("weft-controller");
    settings.headers.push((header::USER_AGENT, agent));
    Ok(settings)
}

async fn from_kubeconfig(path: &Path) -> Result<kube::Config, KubeconfigError> {
    let kubeconfig = Kubeconfig::read_from(path)?;
    kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await
}

/// Who we are in the election: the machine, and which of its processes.
fn identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}_{}", host.trim(), uuid::Uuid::new_v4())
}

/// Certificates as PEM.
fn pem(certificates: &[Vec<u8>]) -> String {
    let mut text = String::new();
    for certificate in certificates {
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        for line in STANDARD.encode(certificate).as_bytes().chunks(64) {
            text.extend(line.iter().copied().map(char::from));
            text.push('\n');
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::certificate_der;

    #[test]
    fn certificates_are_written_as_they_were_read() {
        let authority = Authority::ephemeral().unwrap();
        let der = certificate_der(authority.certificate()).unwrap().to_vec();
        let text = pem(&[der.clone(), der]);
        let normal = |text: &str| text.replace("\r\n", "\n");
        assert_eq!(text, normal(authority.certificate()).repeat(2));
    }
}
