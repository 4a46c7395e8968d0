//! The way to the API server: credentials that are there, or new ones for a bootstrap token.
//!
//! As with kubeadm, a joining node knows the cluster by the hash of its CA's public key. The server sends the CA with its
//! own certificate; once the hash is seen to match, that CA is what every further connection is checked against.

use std::{
    fs, io,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use k8s_openapi::{
    ByteString,
    api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec},
};
use kube::{
    Api, Client, Config as ClientConfig,
    api::{ObjectMeta, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use serde_json::json;

use crate::config::{ControlPlane, Join, Trust};

use renew::Renewal;

pub mod renew;
mod trust;

/// The signer that makes client certificates for nodes.
const SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";

/// Why the API server cannot be spoken to.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The server cannot be reached, or is not the one.
    #[error(transparent)]
    Trust(#[from] trust::TrustError),
    /// A file cannot be read or written.
    #[error("{path} cannot be {verb}")]
    File {
        /// Which.
        path: PathBuf,
        /// What was tried.
        verb: &'static str,
        /// Why.
        source: io::Error,
    },
    /// There are no credentials and no way to get them.
    #[error("the node has no certificate yet and no --token to get one; `weft token create` makes one")]
    NoToken,
    /// The kubeconfig makes no sense.
    #[error("kubeconfig {0} is not usable")]
    Kubeconfig(PathBuf, #[source] kube::config::KubeconfigError),
    /// The client cannot be made.
    #[error("no client for the API server")]
    Client(#[source] Box<kube::Error>),
    /// A request failed.
    #[error("{0}")]
    Request(&'static str, #[source] Box<kube::Error>),
    /// The key or request cannot be made.
    #[error("no certificate request")]
    Certificate(#[from] rcgen::Error),
    /// The credentials make no sense.
    #[error("the new credentials are not usable: {0}")]
    Malformed(String),
    /// The controller refused the certificate.
    #[error("the certificate was refused: {0}")]
    Refused(String),
    /// The controller did not answer.
    #[error("the certificate was not signed within {0:?}")]
    NotSigned(Duration),
}

impl JoinError {
    fn request(verb: &'static str) -> impl FnOnce(kube::Error) -> Self {
        move |error| Self::Request(verb, Box::new(error))
    }
}

/// Where the node's credentials are, under the state directory.
pub fn credentials_path(state_dir: &Path) -> PathBuf {
    state_dir.join("kubeconfig")
}

/// The way to the API server.
pub struct Connection {
    /// A client with the node's credentials.
    pub client: Client,
    /// What keeps them valid; `None` if they are someone else's business.
    pub renewal: Option<Renewal>,
}

/// Makes a client, with the node's credentials if it has any, else with new ones. One attempt.
pub async fn connect(
    control_plane: &ControlPlane,
    node_name: &str,
    state_dir: &Path,
) -> Result<Connection, JoinError> {
    match control_plane {
        ControlPlane::Kubeconfig(path) => {
            let kubeconfig =
                Kubeconfig::read_from(path).map_err(|error| JoinError::Kubeconfig(path.clone(), error))?;
            let client = client(path, kubeconfig).await?;
            Ok(Connection {
                client,
                renewal: None,
            })
        }
        ControlPlane::Join(join) => {
            let path = credentials_path(state_dir);
            if let Some(kubeconfig) = stored(&path)? {
                let kubeconfig = with_server(kubeconfig, &join.server);
                let client = client(&path, kubeconfig.clone()).await?;
                if is_accepted(&client).await? {
                    return Ok(renewed(node_name, path, kubeconfig, client));
                }
                tracing::warn!("the API server does not know the node's certificate, joining again");
            }
            let kubeconfig = bootstrap(join, node_name).await?;
            store(&path, &kubeconfig)?;
            tracing::info!(node = node_name, server = join.server, "joined the cluster");
            let client = client(&path, kubeconfig.clone()).await?;
            Ok(renewed(node_name, path, kubeconfig, client))
        }
    }
}

fn renewed(node_name: &str, path: PathBuf, kubeconfig: Kubeconfig, first: Client) -> Connection {
    let (client, renewal) = Renewal::new(node_name, path, kubeconfig, first);
    Connection {
        client,
        renewal: Some(renewal),
    }
}

fn stored(path: &Path) -> Result<Option<Kubeconfig>, JoinError> {
    if !path.exists() {
        return Ok(None);
    }
    match Kubeconfig::read_from(path) {
        Ok(kubeconfig) => Ok(Some(kubeconfig)),
        Err(error) => Err(JoinError::Kubeconfig(path.to_owned(), error)),
    }
}

/// The controller may have moved; the credentials stay good as long as its CA does.
fn with_server(mut kubeconfig: Kubeconfig, server: &str) -> Kubeconfig {
    for cluster in &mut kubeconfig.clusters {
        if let Some(cluster) = &mut cluster.cluster {
            cluster.server = Some(server.to_owned());
        }
    }
    kubeconfig
}

async fn is_accepted(client: &Client) -> Result<bool, JoinError> {
    match client.apiserver_version().await {
        Err(kube::Error::Api(status)) if status.code == 401 => Ok(false),
        // It answered; what else it thinks of this request does not matter.
        Ok(_) | Err(kube::Error::Api(_)) => Ok(true),
        Err(error) => Err(JoinError::request("the API server is not reachable")(error)),
    }
}

async fn client(path: &Path, kubeconfig: Kubeconfig) -> Result<Client, JoinError> {
    /// A server that is gone must not hold up what else the agent has to do.
    const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
    let mut config = ClientConfig::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(|error| JoinError::Kubeconfig(path.to_owned(), error))?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    Client::try_from(config).map_err(|error| JoinError::Client(Box::new(error)))
}

fn store(path: &Path, kubeconfig: &Kubeconfig) -> Result<(), JoinError> {
    let failed = |source| JoinError::File {
        path: path.to_owned(),
        verb: "written",
        source,
    };
    let json = serde_json::to_vec_pretty(kubeconfig).map_err(|error| failed(error.into()))?;
    let beside = path.with_extension("new");
    let mut options = fs::OpenOptions::new();
    // It holds the node's private key. A power loss must not leave half a file: the token may be spent.
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&beside).map_err(failed)?;
    io::Write::write_all(&mut file, &json).map_err(failed)?;
    file.set_permissions(fs::Permissions::from_mode(0o600))
        .map_err(failed)?;
    file.sync_all().map_err(failed)?;
    fs::rename(&beside, path).map_err(failed)
}

/// Gets a client certificate for the token.
async fn bootstrap(join: &Join, node_name: &str) -> Result<Kubeconfig, JoinError> {
    let token = join.token.as_deref().ok_or(JoinError::NoToken)?;
    let ca_pem = match &join.trust {
        Trust::CaHash(hash) => trust::fetch_ca(&join.server, *hash).await?,
        Trust::CaFile(path) => fs::read_to_string(path).map_err(|source| JoinError::File {
            path: path.clone(),
            verb: "read",
            source,
        })?,
    };
    let joining = kubeconfig(&join.server, &ca_pem, &json!({ "token": token }));
    let client = client(Path::new("for joining"), joining).await?;

    let user = request_certificate(client, node_name).await?;
    Ok(kubeconfig(&join.server, &ca_pem, &user))
}

/// Gets a certificate for the node; it is returned as a kubeconfig's user.
async fn request_certificate(client: Client, node_name: &str) -> Result<serde_json::Value, JoinError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, "system:nodes");
    params
        .distinguished_name
        .push(DnType::CommonName, format!("system:node:{node_name}"));
    let request = params.serialize_request(&key)?.pem()?;
    let certificate = sign(client, node_name, request).await?;
    Ok(json!({
        "client-certificate-data": BASE64.encode(certificate),
        "client-key-data": BASE64.encode(key.serialize_pem()),
    }))
}

/// The client certificate in a kubeconfig, as PEM.
fn user_of(kubeconfig: &Kubeconfig) -> Option<Vec<u8>> {
    let user = kubeconfig.auth_infos.first()?.auth_info.as_ref()?;
    BASE64.decode(user.client_certificate_data.as_ref()?).ok()
}

async fn sign(client: Client, node_name: &str, request: String) -> Result<Vec<u8>, JoinError> {
    const PATIENCE: Duration = Duration::from_secs(30);
    const POLL: Duration = Duration::from_millis(100);
    let requests: Api<CertificateSigningRequest> = Api::all(client);
    let wanted = CertificateSigningRequest {
        metadata: ObjectMeta {
            generate_name: Some(format!("{node_name}-")),
            ..ObjectMeta::default()
        },
        spec: CertificateSigningRequestSpec {
            request: ByteString(request.into_bytes()),
            signer_name: SIGNER.to_owned(),
            usages: Some(vec!["digital signature".to_owned(), "client auth".to_owned()]),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    };
    let created = requests
        .create(&PostParams::default(), &wanted)
        .await
        .map_err(JoinError::request("the certificate request was not taken"))?;
    let name = created.metadata.name.unwrap_or_default();
    let signed = async {
        loop {
            let request = requests
                .get(&name)
                .await
                .map_err(JoinError::request("the certificate request cannot be read"))?;
            let status = request.status.unwrap_or_default();
            if let Some(ByteString(certificate)) = status.certificate {
                return Ok(certificate);
            }
            let refused = status
                .conditions
                .unwrap_or_default()
                .into_iter()
                .find(|condition| matches!(condition.type_.as_str(), "Denied" | "Failed"));
            if let Some(condition) = refused {
                return Err(JoinError::Refused(condition.message.unwrap_or(condition.type_)));
            }
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(PATIENCE, signed)
        .await
        .map_err(|_| JoinError::NotSigned(PATIENCE))?
}

fn kubeconfig(server: &str, ca_pem: &str, user: &serde_json::Value) -> Kubeconfig {
    let document = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": "weft",
            "cluster": { "server": server, "certificate-authority-data": BASE64.encode(ca_pem) },
        }],
        "users": [{ "name": "node", "user": user }],
        "contexts": [{ "name": "weft", "context": { "cluster": "weft", "user": "node" } }],
        "current-context": "weft",
    });
    // The document has the form of the type by construction.
    serde_json::from_value(document).unwrap_or_default()
}
