//! The cluster's certificate authority and what it signs: the server's certificate, the administrator's, nodes'. Kept in
//! `<data-dir>/pki`; keys are readable by their owner only.

use std::fs;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer};
use sha2::{Digest as _, Sha256};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::{OID_X509_COMMON_NAME, OID_X509_ORGANIZATION_NAME};
use x509_parser::prelude::FromDer as _;

/// How long the authority is valid.
const AUTHORITY_SECONDS: u64 = 10 * 365 * 86_400;
/// How long the server's and the administrator's certificates are valid; both are renewed at start.
const CERTIFICATE_SECONDS: u64 = 365 * 86_400;
/// Certificates begin to be valid a little early, for clocks that are behind.
const CLOCK_SKEW: Duration = Duration::from_mins(5);

/// Why a certificate could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file could not be read or written.
    #[error("cannot access {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A certificate could not be made.
    #[error("cannot make a certificate")]
    Certificate(#[from] rcgen::Error),
    /// The system has no random numbers.
    #[error("no random numbers to be had")]
    Random,
    /// A file does not hold what it should.
    #[error("{what} is not valid PEM")]
    Pem {
        /// What was read.
        what: &'static str,
    },
}

/// A certificate and its key, as PEM.
#[derive(Clone)]
pub struct Credentials {
    /// The certificate.
    pub certificate: String,
    /// The private key.
    pub key: String,
}

/// The cluster's certificate authority.
pub struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Reads the authority from a directory, or makes one there.
    ///
    /// # Errors
    /// If its files cannot be read or written.
    pub fn open(directory: &Path) -> Result<Self, PkiError> {
        fs::create_dir_all(directory).map_err(file(directory))?;
        let (certificate_path, key_path) = (directory.join("ca.crt"), directory.join("ca.key"));
        if !certificate_path.exists() || !key_path.exists() {
            let fresh = generate()?;
            write_private(&key_path, &fresh.key)?;
            write_public(&certificate_path, &fresh.certificate)?;
        }
        let certificate = fs::read_to_string(&certificate_path).map_err(file(&certificate_path))?;
        let key = fs::read_to_string(&key_path).map_err(file(&key_path))?;
        let issuer = Issuer::from_ca_cert_pem(&certificate, KeyPair::from_pem(&key)?)?;
        Ok(Self { certificate, issuer })
    }

    /// One that is kept nowhere, for a process that vouches for itself alone.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn ephemeral() -> Result<Self, PkiError> {
        let Credentials { certificate, key } = generate()?;
        let issuer = Issuer::from_ca_cert_pem(&certificate, KeyPair::from_pem(&key)?)?;
        Ok(Self { certificate, issuer })
    }

    /// The authority's certificate, as PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// What joining machines pin: `sha256:` and the hash of the authority's public key.
    ///
    /// # Errors
    /// If the certificate cannot be read.
    pub fn pin(&self) -> Result<String, PkiError> {
        const WHAT: PkiError = PkiError::Pem {
            what: "the authority's certificate",
        };
        let der = certificate_der(&self.certificate)?;
        let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(&der).map_err(|_| WHAT)?;
        let digest = Sha256::digest(certificate.public_key().raw);
        Ok(format!("sha256:{}", hex::encode(digest)))
    }

    /// A certificate for the server under these names and addresses.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn server(&self, names: &[String], addresses: &[IpAddr]) -> Result<Credentials, PkiError> {
        let mut params = CertificateParams::new(names.to_vec())?;
        params
            .subject_alt_names
            .extend(addresses.iter().copied().map(SanType::IpAddress));
        params.distinguished_name = name("weft-apiserver", None);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(params)
    }

    /// A certificate for a client who is `user`, in one group or none.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn client(&self, user: &str, group: Option<&str>) -> Result<Credentials, PkiError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = name(user, group);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(params)
    }

    /// Signs a request for a client's certificate. Its key is taken over, and of its name what was read of it.
    ///
    /// # Errors
    /// If the request's own signature is wrong.
    pub fn sign_client(&self, asked: &ClientRequest, seconds: u64) -> Result<String, PkiError> {
        let mut request = CertificateSigningRequestParams::from_der(&asked.der)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = name(&asked.user, asked.organization.as_deref());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        set_validity(&mut params, seconds);
        request.params = params;
        Ok(request.signed_by(&self.issuer)?.pem())
    }

    fn issue(&self, mut params: CertificateParams) -> Result<Credentials, PkiError> {
        let key = KeyPair::generate()?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, CERTIFICATE_SECONDS);
        Ok(Credentials {
            certificate: params.signed_by(&key, &self.issuer)?.pem(),
            key: key.serialize_pem(),
        })
    }
}

/// An authority's certificate and key.
fn generate() -> Result<Credentials, PkiError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = name("weft-ca", None);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    set_validity(&mut params, AUTHORITY_SECONDS);
    Ok(Credentials {
        certificate: params.self_signed(&key)?.pem(),
        key: key.serialize_pem(),
    })
}

/// A request for a client's certificate, read once: what is checked of it is what is signed.
#[derive(Debug)]
pub struct ClientRequest {
    der: CertificateSigningRequestDer<'static>,
    /// The name that it asks for.
    pub user: String,
    /// The group that it asks for.
    pub organization: Option<String>,
}

impl ClientRequest {
    /// Reads a request.
    ///
    /// # Errors
    /// Why it is none that can be signed: it must be one PEM block and nothing else, and its name one common name and at most
    /// one organization.
    pub fn read(pem: &str) -> Result<Self, &'static str> {
        const BEGIN: &str = "-----BEGIN CERTIFICATE REQUEST-----";
        const END: &str = "-----END CERTIFICATE REQUEST-----";
        let body = pem
            .trim()
            .strip_prefix(BEGIN)
            .and_then(|text| text.strip_suffix(END));
        let body: String = body
            .ok_or("the request is not one block of PEM of type CERTIFICATE REQUEST")?
            .split_ascii_whitespace()
            .collect();
        let der = STANDARD
            .decode(body)
            .map_err(|_| "the request is not one block of PEM of type CERTIFICATE REQUEST")?;
        let (rest, request) =
            X509CertificationRequest::from_der(&der).map_err(|_| "the request cannot be read")?;
        if !rest.is_empty() {
            return Err("there is more after the request");
        }
        let (mut users, mut organizations) = (Vec::new(), Vec::new());
        for attribute in request.certification_request_info.subject.iter_attributes() {
            let list = match attribute.attr_type() {
                kind if *kind == OID_X509_COMMON_NAME => &mut users,
                kind if *kind == OID_X509_ORGANIZATION_NAME => &mut organizations,
                _ => continue,
            };
            let text = attribute.as_str().map_err(|_| "the subject is no text")?;
            list.push(text.to_owned());
        }
        match (users.as_slice(), organizations.as_slice()) {
            ([user], [] | [_]) if !user.is_empty() => Ok(Self {
                user: user.clone(),
                organization: organizations.pop(),
                der: der.into(),
            }),
            ([_], [_, _, ..]) => Err("the subject has more than one organization"),
            _ => Err("the subject has not exactly one common name"),
        }
    }
}

/// A certificate's DER from its PEM.
///
/// # Errors
/// If it is no PEM.
pub fn certificate_der(pem: &str) -> Result<CertificateDer<'static>, PkiError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| PkiError::Pem {
        what: "a certificate",
    })
}

/// A key's DER from its PEM.
///
/// # Errors
/// If it is no PEM.
pub fn key_der(pem: &str) -> Result<PrivateKeyDer<'static>, PkiError> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| PkiError::Pem { what: "a key" })
}

/// A kubeconfig with everything in it.
pub fn kubeconfig(server: &str, authority: &str, user: &str, credentials: &Credentials) -> String {
    let encode = |text: &str| STANDARD.encode(text);
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: weft\nclusters:\n- name: weft\n  cluster:\n    server: {server}\n    \
         certificate-authority-data: {}\nusers:\n- name: {user}\n  user:\n    client-certificate-data: {}\n    \
         client-key-data: {}\ncontexts:\n- name: weft\n  context:\n    cluster: weft\n    user: {user}\n",
        encode(authority),
        encode(&credentials.certificate),
        encode(&credentials.key),
    )
}

/// Writes a file that only its owner may read, all of it or nothing.
///
/// # Errors
/// If it cannot be written.
pub fn write_private(path: &Path, text: &str) -> Result<(), PkiError> {
    write(path, text, 0o600)
}

fn write_public(path: &Path, text: &str) -> Result<(), PkiError> {
    write(path, text, 0o644)
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
    let new = path.with_extension("new");
    let write = || {
        let mut options = fs::OpenOptions::new();
        let _ = fs::remove_file(&new);
        let mut target = options.write(true).create_new(true).mode(mode).open(&new)?;
        target.write_all(text.as_bytes())?;
        target.sync_all()?;
        fs::rename(&new, path)
    };
    write().map_err(file(path))
}

fn file(path: &Path) -> impl FnOnce(io::Error) -> PkiError + use<> {
    let path = path.to_owned();
    move |source| PkiError::File { path, source }
}

fn name(common: &str, organization: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    if let Some(organization) = organization {
        name.push(DnType::OrganizationName, organization);
    }
    name.push(DnType::CommonName, common);
    name
}

fn set_validity(params: &mut CertificateParams, seconds: u64) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let epoch = date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(CLOCK_SKEW);
    params.not_after = epoch + now + Duration::from_secs(seconds);
}
