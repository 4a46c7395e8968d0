//! The listener: TLS only, HTTP/1.1 and HTTP/2, client certificates asked for and not required. And the same server without
//! a socket, for clients in the same process.

pub mod certificate;
mod stall;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::Request;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;
use tracing::{debug, warn};

use self::certificate::ServerCertificate;
use self::stall::Patient;
use crate::api::InProcess;
use crate::api::audit::PeerAddress;
use crate::auth::{ConnectionIdentity, Identity};
use crate::pki::{Authority, Credentials, PkiError, certificate_der};

/// How long a client may take over its handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take over the headers of a request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client may leave what it is sent unread.
const STALL_TIMEOUT: Duration = Duration::from_mins(1);
/// Largest header block.
const MAX_HEADERS: usize = 64 << 10;
/// How long requests in flight may take to end when the server stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections at a time; a node has a handful.
const MAX_CONNECTIONS: usize = 32_768;

/// Why the server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The certificates are not usable.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// TLS refuses its configuration.
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
    /// TLS refuses the authority for clients.
    #[error("cannot set up client certificates")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A listener that is bound and not yet serving.
pub struct Listener {
    socket: TcpListener,
    acceptor: TlsAcceptor,
    certificate: Arc<ServerCertificate>,
    address: SocketAddr,
}

impl Listener {
    /// Binds the address.
    ///
    /// # Errors
    /// If the certificates are not usable or the address is taken.
    pub async fn bind(
        address: SocketAddr,
        authority: &Authority,
        credentials: &Credentials,
    ) -> Result<Self, ServerError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let certificate = ServerCertificate::new(Arc::clone(&provider), authority, credentials)?;
        let certificate = Arc::new(certificate);
        let acceptor = TlsAcceptor::from(Arc::new(tls(provider, authority, Arc::clone(&certificate))?));
        let failed = |source| ServerError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self {
            socket: listener,
            acceptor,
            certificate,
            address,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The certificate it shows, which can be replaced.
    pub fn certificate(&self) -> Arc<ServerCertificate> {
        Arc::clone(&self.certificate)
    }

    /// Serves until `shutdown`, then lets requests in flight end.
    pub async fn serve(self, router: Router, shutdown: CancellationToken) {
        let tracker = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = self.socket.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) if tracker.len() < MAX_CONNECTIONS => {
                    let acceptor = self.acceptor.clone();
                    tracker.spawn(connection(
                        acceptor,
                        stream,
                        peer,
                        router.clone(),
                        shutdown.clone(),
                    ));
                }
                Ok((_, peer)) => warn!(%peer, "too many connections, one was refused"),
                Err(error) => {
                    // Out of file descriptors, most likely: connections that end make room.
                    warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        tracker.close();
        if timeout(DRAIN_TIMEOUT, tracker.wait()).await.is_err() {
            debug!("connections were cut at the end of the drain period");
        }
    }
}

fn tls(
    provider: Arc<CryptoProvider>,
    authority: &Authority,
    certificate: Arc<ServerCertificate>,
) -> Result<rustls::ServerConfig, ServerError> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate_der(authority.certificate())?)?;
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

async fn connection(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    shutdown: CancellationToken,
) {
    let _ = stream.set_nodelay(true);
    let stream = match timeout(
        HANDSHAKE_TIMEOUT,
        acceptor.accept(Patient::new(stream, STALL_TIMEOUT)),
    )
    .await
    {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return debug!(%peer, %error, "handshake failed"),
        Err(_) => return debug!(%peer, "handshake took too long"),
    };
    let certificates = stream.get_ref().1.peer_certificates();
    let identity = certificates
        .and_then(|chain| Identity::of_certificate(chain.first()?))
        .map(|identity| ConnectionIdentity(Arc::new(identity)));
    let service = router.map_request(move |request: Request<hyper::body::Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(PeerAddress(peer));
        if let Some(identity) = &identity {
            request.extensions_mut().insert(identity.clone());
        }
        request
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(hyper_util::rt::TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEADERS);
    builder
        .http2()
        .timer(hyper_util::rt::TokioTimer::new())
        .max_header_list_size(MAX_HEADERS as u32)
        .max_concurrent_streams(1024)
        .keep_alive_interval(Duration::from_secs(30));
    let connection =
        builder.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(service));
    tokio::pin!(connection);
    tokio::select! {
        result = connection.as_mut() => {
            if let Err(error) = result {
                debug!(%peer, %error, "connection ended");
            }
            return;
        }
        () = shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

/// A client of the same server without a socket, with the control plane's own identity.
pub fn in_process_client(router: Router) -> kube::Client {
    let identity = ConnectionIdentity(Arc::new(Identity::control_plane()));
    let service = router.map_request(move |request: Request<kube::client::Body>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(identity.clone());
        request.extensions_mut().insert(InProcess);
        // The name under which the fields it sets are managed.
        let agent = http::HeaderValue::from_static("weft-controller");
        request
            .headers_mut()
            .entry(http::header::USER_AGENT)
            .or_insert(agent);
        request
    });
    kube::Client::new(service, "default")
}
