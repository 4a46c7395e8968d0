//! A node's certificate does not last for ever: before it ends, the node asks for another with the one it has, and goes on with
//! that. Clients that were handed out before go on with it, too.

use std::{
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use http::Request;
use jiff::Timestamp;
use kube::{
    Client,
    client::Body,
    config::{AuthInfo, Kubeconfig},
};
use rand::RngExt as _;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tower::service_fn;
use x509_parser::pem::parse_x509_pem;

use super::{JoinError, client, request_certificate, store, user_of};

/// When in a certificate's life it is renewed, in hundredths of it: nodes that joined together do not come back together.
const RENEW_AT: std::ops::Range<u32> = 70..90;
/// Pause after a renewal that failed: the shortest and the longest.
const RETRY: (Duration, Duration) = (Duration::from_secs(10), Duration::from_mins(10));
/// The longest sleep between two looks at the certificate: clocks jump.
const LOOK: Duration = Duration::from_hours(1);

/// The client that carries requests now; shared by all that were made from it.
#[derive(Clone)]
struct Current(Arc<RwLock<Client>>);

impl Current {
    fn get(&self) -> Client {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, client: Client) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = client;
    }
}

/// Keeps the node's certificate valid.
pub struct Renewal {
    node_name: String,
    path: PathBuf,
    kubeconfig: Kubeconfig,
    current: Current,
}

impl Renewal {
    /// A client that always uses the newest certificate, and what renews it.
    pub(super) fn new(
        node_name: &str,
        path: PathBuf,
        kubeconfig: Kubeconfig,
        first: Client,
    ) -> (Client, Self) {
        let namespace = first.default_namespace().to_owned();
        let current = Current(Arc::new(RwLock::new(first)));
        let carrier = current.clone();
        let service = service_fn(move |request: Request<Body>| {
            let client = carrier.get();
            async move { client.send(request).await }
        });
        let renewal = Self {
            node_name: node_name.to_owned(),
            path,
            kubeconfig,
            current,
        };
        (Client::new(service, namespace), renewal)
    }

    /// Renews the certificate again and again, each time before it ends.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let part = rand::rng().random_range(RENEW_AT);
        let mut retry = RETRY.0;
        loop {
            let Some(validity) = self.validity() else {
                tracing::error!(path = %self.path.display(), "the node's certificate cannot be read, it is not renewed");
                return;
            };
            let wait = wait(validity, part, Timestamp::now());
            let wait = if wait.is_zero() {
                match self.renew().await {
                    Ok(()) => {
                        tracing::info!(node = self.node_name, "the node's certificate was renewed");
                        retry = RETRY.0;
                        continue;
                    }
                    Err(error) => {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(error, retry_in = ?retry, "the node's certificate cannot be renewed");
                        let wait = retry;
                        retry = (retry * 2).min(RETRY.1);
                        wait
                    }
                }
            } else {
                wait.min(LOOK)
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = sleep(wait) => {}
            }
        }
    }

    /// Asks for a new certificate with the one that is there, keeps it, and has all clients use it.
    ///
    /// # Errors
    /// If the control plane does not sign it, or it cannot be kept.
    pub async fn renew(&mut self) -> Result<(), JoinError> {
        let user = request_certificate(self.current.get(), &self.node_name).await?;
        let mut kubeconfig = self.kubeconfig.clone();
        let auth: AuthInfo =
            serde_json::from_value(user).map_err(|error| JoinError::Malformed(error.to_string()))?;
        for named in &mut kubeconfig.auth_infos {
            named.auth_info = Some(auth.clone());
        }
        let renewed = client(&self.path, kubeconfig.clone()).await?;
        // On disk first: should the agent end now, the next one begins with it.
        store(&self.path, &kubeconfig)?;
        self.current.set(renewed);
        self.kubeconfig = kubeconfig;
        Ok(())
    }

    /// From when until when the certificate is valid.
    fn validity(&self) -> Option<(Timestamp, Timestamp)> {
        let pem = user_of(&self.kubeconfig)?;
        let (_, block) = parse_x509_pem(&pem).ok()?;
        let (_, certificate) = x509_parser::parse_x509_certificate(&block.contents).ok()?;
        let at = |time: x509_parser::time::ASN1Time| Timestamp::from_second(time.timestamp()).ok();
        let validity = certificate.validity();
        Some((at(validity.not_before)?, at(validity.not_after)?))
    }
}

/// How long until a certificate is renewed, of whose life `part` hundredths are to pass first.
fn wait((start, end): (Timestamp, Timestamp), part: u32, now: Timestamp) -> Duration {
    let life = Duration::try_from(end.duration_since(start)).unwrap_or_default();
    let due = start.checked_add(life * part / 100).unwrap_or(start);
    Duration::try_from(due.duration_since(now)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_late_in_its_life_and_at_once_if_it_is_over() {
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let validity = (at(1000), at(2000));
        assert_eq!(wait(validity, 70, at(1000)), Duration::from_secs(700));
        assert_eq!(wait(validity, 70, at(1699)), Duration::from_secs(1));
        assert_eq!(wait(validity, 70, at(1700)), Duration::ZERO);
        assert_eq!(wait(validity, 90, at(5000)), Duration::ZERO);
        assert_eq!(wait((at(5), at(5)), 80, at(5)), Duration::ZERO);
    }
}
