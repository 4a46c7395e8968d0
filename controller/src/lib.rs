//! Weft's control plane in one process: an API server over a store, the controllers, and the scheduler.
//!
//! Everything in it speaks to the API as any client would, through the server's own router.

#![forbid(unsafe_code)]

pub mod allocation;
pub mod api;
pub mod auth;
pub mod cel;
pub mod config;
mod control;
pub mod controllers;
pub mod cron;
pub mod custom;
pub mod informer;
pub mod leader;
mod master_service;
pub mod metrics;
pub mod pki;
pub mod quantity;
pub mod queue;
pub mod quota;
mod re2;
pub mod remote;
pub mod resources;
pub mod scheduler;
pub mod schema;
pub mod selector;
pub mod server;
#[cfg(test)]
mod simulation;
pub mod store;
pub mod token;
mod typed;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnetwork::IpNetwork;
use kube::Client;
use kube::api::{Api, DynamicObject, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use config::{Args, Config, Mode};

use crate::allocation::ranges::ServiceRange;
use crate::api::audit::AuditLog;
use crate::auth::rbac;
use crate::auth::service_account::keys::TokenKeys;
use crate::control::Control;
use crate::leader::Election;
use crate::pki::{Authority, PkiError};
use crate::server::certificate::ServerCertificate;
use crate::server::{Listener, ServerError};
use crate::store::sealing::{Sealer, SealingError};
use crate::store::{Embedded, Etcd, Store, StoreError};

/// Why the control plane cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A directory cannot be made or a file not written.
    #[error("cannot write {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The certificates cannot be made.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The store cannot be opened.
    #[error("cannot open the store")]
    Store(#[from] StoreError),
    /// Secrets cannot be encrypted.
    #[error(transparent)]
    Sealing(#[from] SealingError),
    /// The API cannot be served.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The first objects cannot be made.
    #[error("cannot create the first objects")]
    Seed(#[source] Box<kube::Error>),
    /// The API server elsewhere cannot be worked with.
    #[error(transparent)]
    Remote(#[from] remote::RemoteError),
    /// Another process may lead while this one still works.
    #[error("the leader's Lease is lost, and the work under it does not stop in time")]
    Overdue,
    /// A controller or the scheduler ended.
    #[error("{0} ended, which it must not")]
    Ended(&'static str),
    /// The controllers refuse to run.
    #[error(transparent)]
    Controllers(#[from] controllers::ControllerError),
    /// The scheduler refuses to run.
    #[error(transparent)]
    Scheduler(#[from] scheduler::SchedulerError),
}

/// Runs what is asked for until `shutdown`.
///
/// # Errors
/// If a part of it cannot start, or ends on its own.
pub async fn start(mode: Mode, shutdown: CancellationToken) -> Result<(), RunError> {
    match mode {
        Mode::Server(config) => run(*config, shutdown).await,
        Mode::Remote(config) => remote::run(*config, shutdown).await,
    }
}

/// Runs the control plane until `shutdown`.
///
/// # Errors
/// If a part of it cannot start, or ends on its own.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), RunError> {
    let data_dir = &config.data_dir;
    let failed = |path: PathBuf| move |source| RunError::File { path, source };
    std::fs::create_dir_all(data_dir).map_err(failed(data_dir.clone()))?;
    let authority = Arc::new(Authority::open(&data_dir.join("pki"))?);
    let credentials = server_credentials(&config, &authority)?;
    let sealer = Sealer::open(&config.encryption_key_file)?;
    let store: Arc<dyn Store> = match &config.etcd {
        None => {
            let file = data_dir.join("store.redb");
            Arc::new(Embedded::open_sealed(&file, resources::index_text, Some(sealer))?)
        }
        Some(settings) => Arc::new(Etcd::open_sealed(settings, resources::index_text, Some(sealer)).await?),
    };

    let listener = Listener::bind(config.listen, &authority, &credentials).await?;
    let port = listener.address().port();
    let url = format!("https://{}", SocketAddr::new(config.advertise_address, port));
    write_admin_kubeconfig(&config, &authority, port)?;

    let address = SocketAddr::new(config.advertise_address, port).to_string();
    let token_keys = Arc::new(TokenKeys::open(&data_dir.join("pki"))?);
    let audit = match config.audit.clone() {
        None => None,
        Some(settings) => {
            let path = settings.file.clone();
            Some(AuditLog::open(settings).map_err(failed(path))?)
        }
    };
    let server = api::Server::new(
        store,
        Arc::clone(&authority),
        Arc::clone(&token_keys),
        audit,
        api::Limits {
            toleration_seconds: config.controllers.pod_eviction_timeout.as_secs(),
            ..config.limits
        },
        address.clone(),
        shutdown.clone(),
    );
    let alone = !config.api_only && config.etcd.is_none();
    let parts = config.controllers.selection.parts();
    let server = server
        .with_service_ranges(config.service_cidrs.clone())
        .with_parts(if alone { parts } else { String::new() });
    let server = Arc::new(server);
    let router = api::router(Arc::clone(&server));
    let client = server::in_process_client(router.clone());
    let master = master_service::Settings {
        address: SocketAddr::new(config.advertise_address, port),
        ranges: config
            .service_cidrs
            .iter()
            .copied()
            .map(ServiceRange::new)
            .collect(),
        shared: config.etcd.is_some(),
    };
    seed(&client, &master)
        .await
        .map_err(|error| RunError::Seed(Box::new(error)))?;

    let mut parts = JoinSet::new();
    parts.spawn(renew_certificates(
        config.clone(),
        Arc::clone(&authority),
        listener.certificate(),
        port,
        shutdown.clone(),
    ));
    let stop = shutdown.clone();
    parts.spawn(async move {
        listener.serve(router, stop).await;
        Ok("API server")
    });
    let own = Arc::clone(&server);
    parts.spawn(async move {
        api::define(own).await;
        Ok("definitions")
    });
    let own = Arc::clone(&server);
    parts.spawn(async move {
        api::repair(own).await;
        Ok("repair of Services' addresses")
    });
    let (own, stop) = (client.clone(), shutdown.clone());
    parts.spawn(async move {
        master_service::keep(own, master, stop).await;
        Ok("Service kubernetes")
    });
    parts.spawn(async move {
        api::expire(server).await;
        Ok("expiry")
    });
    if !config.api_only {
        let election = config.etcd.is_some().then(|| Election::new(address.clone()));
        let settings = controllers::ControllersConfig {
            root_ca_pem: authority.certificate().to_owned(),
            token_keys: Some(token_keys),
            ..config.controllers.clone()
        };
        let control = Control {
            client,
            settings,
            bounded: false,
        };
        let stop = shutdown.clone();
        parts.spawn(async move { control.run(election, stop).await });
    }
    if let Some(path) = &config.ready_file {
        note_ready(path, &address)?;
    }
    info!(%url, data_dir = %data_dir.display(), "the API is ready");
    info!(
        "join a machine: weft agent --server {url} --token <weft token create> --ca-hash {}",
        authority.pin()?
    );

    supervise(parts, shutdown).await
}

/// Tells whoever waits for the file, which is there whole or not at all.
fn note_ready(path: &Path, address: &str) -> Result<(), RunError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    std::fs::write(&beside, address)
        .and_then(|()| std::fs::rename(&beside, path))
        .map_err(|source| RunError::File {
            path: path.to_owned(),
            source,
        })
}

/// Waits until `shutdown` has ended all parts; one that ends before ends all.
async fn supervise(
    mut parts: JoinSet<Result<&'static str, RunError>>,
    shutdown: CancellationToken,
) -> Result<(), RunError> {
    let mut result = Ok(());
    while let Some(ended) = parts.join_next().await {
        let ended = ended.unwrap_or(Err(RunError::Ended("a task")));
        if !shutdown.is_cancelled() {
            shutdown.cancel();
            result = ended.and_then(|part| Err(RunError::Ended(part)));
        }
    }
    result
}

/// Replaces the server's and the administrator's certificates long before they end, for controllers that run for years.
async fn renew_certificates(
    config: Config,
    authority: Arc<Authority>,
    shown: Arc<ServerCertificate>,
    port: u16,
    shutdown: CancellationToken,
) -> Result<&'static str, RunError> {
    const PERIOD: Duration = Duration::from_hours(30 * 24);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok("renewal of certificates"),
            () = tokio::time::sleep(PERIOD) => {}
        }
        let renew = || {
            shown.replace(&authority, &server_credentials(&config, &authority)?)?;
            write_admin_kubeconfig(&config, &authority, port)?;
            Ok::<(), RunError>(())
        };
        match renew() {
            Ok(()) => info!("the server's and the administrator's certificates were renewed"),
            Err(error) => tracing::warn!(%error, "certificates cannot be renewed, which is tried again"),
        }
    }
}

fn server_credentials(config: &Config, authority: &Authority) -> Result<pki::Credentials, PkiError> {
    let mut names: Vec<String> = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "localhost",
    ]
    .map(str::to_owned)
    .to_vec();
    names.push("kubernetes.default.svc.cluster.local".to_owned());
    names.extend(config.names.iter().cloned());
    let mut addresses = vec![
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
        config.advertise_address,
    ];
    addresses.extend(config.addresses.iter().copied());
    if !config.listen.ip().is_unspecified() {
        addresses.push(config.listen.ip());
    }
    // Pods reach the API at the first address of the Services' range.
    let first = |cidr: &IpNetwork| ServiceRange::new(*cidr).first();
    addresses.extend(config.service_cidrs.iter().map(first));
    addresses.sort_unstable();
    addresses.dedup();
    authority.server(&names, &addresses)
}

fn write_admin_kubeconfig(config: &Config, authority: &Authority, port: u16) -> Result<(), PkiError> {
    let credentials = authority.client("kubernetes-admin", Some(auth::MASTERS))?;
    let server = format!("https://{}", SocketAddr::new(config.advertise_address, port));
    let text = pki::kubeconfig(&server, authority.certificate(), "kubernetes-admin", &credentials);
    pki::write_private(&config.data_dir.join("admin.kubeconfig"), &text)
}

/// Makes what every cluster has: namespaces, priority classes, the storage class of nodes' directories, and the Service that
/// leads to the API.
async fn seed(client: &Client, master: &master_service::Settings) -> Result<(), kube::Error> {
    let kind = GroupVersionKind::gvk("", "v1", "Namespace");
    let namespaces: Api<DynamicObject> = Api::all_with(client.clone(), &ApiResource::from_gvk(&kind));
    for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        create_unless_there(&namespaces, object).await?;
    }
    let kind = GroupVersionKind::gvk("scheduling.k8s.io", "v1", "PriorityClass");
    let classes: Api<DynamicObject> = Api::all_with(client.clone(), &ApiResource::from_gvk(&kind));
    for (name, value, description) in resources::SYSTEM_PRIORITY_CLASSES {
        let object = json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name},
            "value": value, "description": description,
        });
        create_unless_there(&classes, object).await?;
    }
    let kind = GroupVersionKind::gvk("", "v1", "ServiceAccount");
    rbac::seed::ensure(client).await?;
    let accounts: Api<DynamicObject> =
        Api::namespaced_with(client.clone(), "default", &ApiResource::from_gvk(&kind));
    let object = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    create_unless_there(&accounts, object).await?;
    let kind = GroupVersionKind::gvk("storage.k8s.io", "v1", "StorageClass");
    let classes: Api<DynamicObject> = Api::all_with(client.clone(), &ApiResource::from_gvk(&kind));
    create_unless_there(&classes, controllers::volumes::local_path::class()).await?;
    if let Err(error) = master_service::ensure(client, master).await {
        // The API is of use without it, and it is tried again.
        warn!(%error, "the Service kubernetes is not up to date");
    }
    Ok(())
}

async fn create_unless_there(api: &Api<DynamicObject>, object: serde_json::Value) -> Result<(), kube::Error> {
    let object: DynamicObject = serde_json::from_value(object).map_err(kube::Error::SerdeError)?;
    match api.create(&PostParams::default(), &object).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(error),
    }
}
