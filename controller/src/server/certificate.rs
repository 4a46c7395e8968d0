//! The server's certificate, which is replaced while it serves.

use std::sync::{Arc, PoisonError, RwLock};

use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::ServerError;
use crate::pki::{Authority, Credentials, certificate_der, key_der};

/// What new connections are shown.
#[derive(Debug)]
pub struct ServerCertificate {
    provider: Arc<CryptoProvider>,
    current: RwLock<Arc<CertifiedKey>>,
}

impl ServerCertificate {
    pub(super) fn new(
        provider: Arc<CryptoProvider>,
        authority: &Authority,
        credentials: &Credentials,
    ) -> Result<Self, ServerError> {
        let first = certified(&provider, authority, credentials)?;
        Ok(Self {
            provider,
            current: RwLock::new(Arc::new(first)),
        })
    }

    /// Shows another certificate from now on.
    ///
    /// # Errors
    /// If it is not usable; the one before stays.
    pub fn replace(&self, authority: &Authority, credentials: &Credentials) -> Result<(), ServerError> {
        let next = Arc::new(certified(&self.provider, authority, credentials)?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }

    fn current(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

fn certified(
    provider: &CryptoProvider,
    authority: &Authority,
    credentials: &Credentials,
) -> Result<CertifiedKey, ServerError> {
    // The authority goes along: a joining machine pins it and has nothing else to know it by.
    let chain = vec![
        certificate_der(&credentials.certificate)?,
        certificate_der(authority.certificate())?,
    ];
    Ok(CertifiedKey::from_der(
        chain,
        key_der(&credentials.key)?,
        provider,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_is_shown_and_a_bad_one_never() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::open(directory.path()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let make = || authority.server(&["localhost".to_owned()], &[]).unwrap();
        let (first, second) = (make(), make());
        let shown = ServerCertificate::new(provider, &authority, &first).unwrap();
        let is = |credentials: &Credentials| {
            shown.current().cert[0] == certificate_der(&credentials.certificate).unwrap()
        };
        assert!(is(&first));
        shown.replace(&authority, &second).unwrap();
        assert!(is(&second) && !is(&first));
        let torn = Credentials {
            key: "nonsense".to_owned(),
            ..first
        };
        assert!(shown.replace(&authority, &torn).is_err());
        assert!(is(&second));
    }
}
