//! The first connection to a server that is known only by the hash of its CA's public key.

use std::{
    fmt, io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Why a server is not trusted.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The address makes no sense.
    #[error("{0} is no address of a server")]
    Address(String),
    /// No connection.
    #[error("API server {0} cannot be reached")]
    Unreachable(String, #[source] io::Error),
    /// No answer.
    #[error("API server {0} does not answer")]
    Silent(String),
    /// Its CA is another one.
    #[error(
        "API server {0} is not of this cluster: no certificate that it sent has the hash given with --ca-hash"
    )]
    AnotherCa(String),
    /// The handshake failed for another reason.
    #[error("API server {0} cannot prove who it is")]
    Handshake(String, #[source] io::Error),
    /// TLS cannot be set up.
    #[error("TLS cannot be set up")]
    Tls(#[from] rustls::Error),
}

/// Connects to the server and returns the certificate, as PEM, of the CA that has this hash and vouches for it.
pub(super) async fn fetch_ca(server: &str, hash: [u8; 32]) -> Result<String, TrustError> {
    const PATIENCE: Duration = Duration::from_secs(10);
    let (host, port) = host_and_port(server).ok_or_else(|| TrustError::Address(server.to_owned()))?;
    let name = ServerName::try_from(host.clone()).map_err(|_| TrustError::Address(server.to_owned()))?;
    let provider = Arc::new(ring::default_provider());
    let verifier = Arc::new(ByHash {
        hash,
        provider: Arc::clone(&provider),
        found: Mutex::new(None),
    });
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&verifier) as Arc<dyn ServerCertVerifier>)
        .with_no_client_auth();
    let handshake = async {
        let stream = TcpStream::connect((host.as_str(), port))
            .await
            .map_err(|error| TrustError::Unreachable(server.to_owned(), error))?;
        let outcome = TlsConnector::from(Arc::new(tls)).connect(name, stream).await;
        let found = verifier
            .found
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        match (outcome, found) {
            (Ok(_), Some(ca)) => Ok(pem(&ca)),
            (Err(error), Some(_)) => Err(TrustError::Handshake(server.to_owned(), error)),
            (Err(error), None) if error.get_ref().is_none_or(|inner| !inner.is::<rustls::Error>()) => {
                Err(TrustError::Handshake(server.to_owned(), error))
            }
            (_, None) => Err(TrustError::AnotherCa(server.to_owned())),
        }
    };
    tokio::time::timeout(PATIENCE, handshake)
        .await
        .map_err(|_| TrustError::Silent(server.to_owned()))?
}

fn host_and_port(server: &str) -> Option<(String, u16)> {
    const HTTPS: u16 = 443;
    let uri: http::Uri = server.parse().ok()?;
    let host = uri.host()?;
    let host = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    Some((host.to_owned(), uri.port_u16().unwrap_or(HTTPS)))
}

fn pem(der: &[u8]) -> String {
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    let encoded = BASE64.encode(der);
    for line in encoded.as_bytes().chunks(64) {
        text.push_str(&String::from_utf8_lossy(line));
        text.push('\n');
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

/// The SHA-256 of a certificate's SubjectPublicKeyInfo.
fn public_key_hash(certificate: &[u8]) -> Option<[u8; 32]> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(Sha256::digest(parsed.tbs_certificate.subject_pki.raw).into())
}

/// Accepts a server whose chain holds the CA with this hash, if that CA vouches for it.
struct ByHash {
    hash: [u8; 32],
    provider: Arc<CryptoProvider>,
    found: Mutex<Option<Vec<u8>>>,
}

impl fmt::Debug for ByHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ByHash({})", hex::encode(self.hash))
    }
}

impl ServerCertVerifier for ByHash {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let ca = intermediates
            .iter()
            .chain([end_entity])
            .find(|certificate| public_key_hash(certificate) == Some(self.hash))
            .ok_or(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(ca.to_vec());
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PublicKeyData as _};
    use rustls::{ServerConfig, pki_types::PrivateKeyDer};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    struct Authority {
        der: CertificateDer<'static>,
        issuer: Issuer<'static, KeyPair>,
        hash: [u8; 32],
    }

    fn authority() -> Authority {
        let key = KeyPair::generate().unwrap();
        let hash = Sha256::digest(key.subject_public_key_info()).into();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let der = params.self_signed(&key).unwrap().der().clone();
        Authority {
            der,
            issuer: Issuer::new(params, key),
            hash,
        }
    }

    /// A server whose certificate is signed by `signer` and which sends `sent` along.
    async fn serve(signer: &Authority, sent: &Authority, name: &str) -> String {
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec![name.to_owned()])
            .unwrap()
            .signed_by(&key, &signer.issuer)
            .unwrap();
        let chain = vec![leaf.der().clone(), sent.der.clone()];
        let tls = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, PrivateKeyDer::try_from(key.serialize_der()).unwrap())
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = acceptor.accept(stream).await;
            }
        });
        format!("https://127.0.0.1:{port}")
    }

    #[tokio::test]
    async fn the_ca_of_the_hash_is_returned() {
        let ca = authority();
        let server = serve(&ca, &ca, "127.0.0.1").await;
        assert_eq!(fetch_ca(&server, ca.hash).await.unwrap(), pem(&ca.der));
    }

    #[tokio::test]
    async fn an_impostor_is_refused() {
        let (ours, other) = (authority(), authority());
        let stranger = serve(&other, &other, "127.0.0.1").await;
        assert!(matches!(
            fetch_ca(&stranger, ours.hash).await,
            Err(TrustError::AnotherCa(_))
        ));
        let thief = serve(&other, &ours, "127.0.0.1").await;
        assert!(matches!(
            fetch_ca(&thief, ours.hash).await,
            Err(TrustError::Handshake(..))
        ));
        let elsewhere = serve(&ours, &ours, "192.0.2.1").await;
        assert!(matches!(
            fetch_ca(&elsewhere, ours.hash).await,
            Err(TrustError::Handshake(..))
        ));
    }
}
