//! The thinnest client that is still a real one: HTTP/1.1 over TLS with a client certificate, one request at a time per
//! connection. What a client library costs is not what is measured.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::{Bytes, BytesMut};
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use kube::client::ConfigExt as _;
use kube::config::{KubeConfigOptions, Kubeconfig};
use memchr::memchr;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

/// A connection that fails is made again after this time.
const RETRY: Duration = Duration::from_millis(100);
/// How often a pooled request is tried.
const ATTEMPTS: usize = 100;

pub(super) const JSON: &str = "application/json";
pub(super) const MERGE: &str = "application/merge-patch+json";

/// Where the API is and who we are.
#[derive(Clone)]
pub(super) struct Target {
    authority: String,
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl Target {
    /// As the kubeconfig says.
    pub(super) async fn of(kubeconfig: &Path) -> Result<Self> {
        let kubeconfig =
            Kubeconfig::read_from(kubeconfig).with_context(|| format!("read {}", kubeconfig.display()))?;
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        let mut tls = config.rustls_client_config()?;
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let authority = config
            .cluster_url
            .authority()
            .context("the kubeconfig names no server")?;
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        Ok(Self {
            authority: authority.to_string(),
            connector: TlsConnector::from(Arc::new(tls)),
            name: ServerName::try_from(host)?,
        })
    }
}

/// One connection.
pub(super) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    authority: String,
}

impl Connection {
    pub(super) async fn open(target: &Target) -> Result<Self> {
        let stream = TcpStream::connect(&target.authority).await?;
        stream.set_nodelay(true)?;
        let stream = target.connector.connect(target.name.clone(), stream).await?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self {
            sender,
            authority: target.authority.clone(),
        })
    }

    async fn request(
        &mut self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Bytes,
    ) -> Result<http::Response<Incoming>> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &self.authority)
            .header(header::USER_AGENT, "weft-bench");
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        self.sender.ready().await?;
        Ok(self.sender.send_request(request.body(Full::new(body))?).await?)
    }

    /// One request and its whole answer.
    pub(super) async fn send(
        &mut self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes)> {
        let response = self.request(method, path, content_type, body).await?;
        let status = response.status();
        Ok((status, response.into_body().collect().await?.to_bytes()))
    }

    /// The same; anything but success is an error.
    pub(super) async fn expect(
        &mut self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Bytes,
    ) -> Result<Bytes> {
        let (status, body) = self.send(method, path, content_type, body).await?;
        ensure!(
            status.is_success(),
            "{path}: {status}: {}",
            String::from_utf8_lossy(&body)
        );
        Ok(body)
    }

    /// An object or a list.
    pub(super) async fn get(&mut self, path: &str) -> Result<Value> {
        Ok(serde_json::from_slice(
            &self.expect(Method::GET, path, "", Bytes::new()).await?,
        )?)
    }

    /// Turns the connection into a watch.
    pub(super) async fn watch(mut self, path: &str) -> Result<Watch> {
        let response = self.request(Method::GET, path, "", Bytes::new()).await?;
        ensure!(response.status().is_success(), "{path}: {}", response.status());
        Ok(Watch {
            body: response.into_body(),
            buffer: BytesMut::new(),
            _connection: self,
        })
    }
}

/// A stream of events, one a line.
pub(super) struct Watch {
    body: Incoming,
    buffer: BytesMut,
    _connection: Connection,
}

impl Watch {
    /// The next event; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>> {
        let mut searched = 0;
        loop {
            if let Some(end) = memchr(b'\n', &self.buffer[searched..]) {
                return Ok(Some(self.buffer.split_to(searched + end + 1).freeze()));
            }
            searched = self.buffer.len();
            let Some(frame) = self.body.frame().await else {
                return Ok(None);
            };
            if let Ok(data) = frame?.into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }
}

struct Job {
    method: Method,
    path: String,
    content_type: &'static str,
    body: Bytes,
    answer: oneshot::Sender<Result<(StatusCode, Bytes)>>,
}

/// Some connections that share the work. Requests go on when the server comes back.
#[derive(Clone)]
pub(super) struct Pool {
    workers: Arc<[mpsc::UnboundedSender<Job>]>,
    next: Arc<std::sync::atomic::AtomicUsize>,
}

impl Pool {
    pub(super) fn new(target: &Target, size: usize) -> Self {
        let workers = (0..size).map(|_| {
            let (sender, jobs) = mpsc::unbounded_channel();
            tokio::spawn(work(target.clone(), jobs));
            sender
        });
        Self {
            workers: workers.collect(),
            next: Arc::default(),
        }
    }

    /// One request and its answer.
    pub(super) async fn send(
        &self,
        method: Method,
        path: String,
        content_type: &'static str,
        body: &Value,
    ) -> Result<(StatusCode, Bytes)> {
        let (answer, answered) = oneshot::channel();
        let turn = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let job = Job {
            method,
            path,
            content_type,
            body: if body.is_null() {
                Bytes::new()
            } else {
                body.to_string().into()
            },
            answer,
        };
        if self.workers[turn % self.workers.len()].send(job).is_err() {
            bail!("the pool is closed");
        }
        answered.await?
    }

    /// The same; anything but success is an error.
    pub(super) async fn expect(
        &self,
        method: Method,
        path: String,
        content_type: &'static str,
        body: &Value,
    ) -> Result<Bytes> {
        let (status, text) = self.send(method, path.clone(), content_type, body).await?;
        ensure!(
            status.is_success(),
            "{path}: {status}: {}",
            String::from_utf8_lossy(&text)
        );
        Ok(text)
    }
}

async fn work(target: Target, mut jobs: mpsc::UnboundedReceiver<Job>) {
    let mut connection = None;
    while let Some(job) = jobs.recv().await {
        let mut result = Err(anyhow::anyhow!("not tried"));
        for _ in 0..ATTEMPTS {
            let mut open = match connection.take() {
                Some(open) => open,
                None => match Connection::open(&target).await {
                    Ok(open) => open,
                    Err(error) => {
                        result = Err(error);
                        tokio::time::sleep(RETRY).await;
                        continue;
                    }
                },
            };
            result = open
                .send(job.method.clone(), &job.path, job.content_type, job.body.clone())
                .await;
            if result.is_ok() {
                connection = Some(open);
                break;
            }
        }
        let _ = job.answer.send(result);
    }
}
