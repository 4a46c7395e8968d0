//! The keys that sign the tokens of service accounts, and those that once did.
//!
//! `sa.key` signs. Every `sa-*.key` and `sa-*.pub` beside it only vouches for tokens signed earlier: to rotate, rename
//! `sa.key` to `sa-<date>.key` and start the controller again, which makes a new one; remove the old one once its tokens
//! have expired.

use std::path::Path;
use std::{fmt, fs};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey,
};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::pki::{self, PkiError};

/// What comes before the point of a P-256 key in its DER form (SubjectPublicKeyInfo).
const P256_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// Length of an uncompressed point: a byte and two coordinates.
const POINT: usize = 65;

/// A key that vouches for tokens.
struct PublicKey {
    id: String,
    point: Vec<u8>,
}

impl PublicKey {
    fn new(point: &[u8]) -> Self {
        let digest = Sha256::digest([&P256_PREFIX, point].concat());
        Self {
            id: URL_SAFE_NO_PAD.encode(digest),
            point: point.to_vec(),
        }
    }
}

/// The keys of the cluster's service-account tokens.
pub struct TokenKeys {
    signer: EcdsaKeyPair,
    /// The signer's first.
    public: Vec<PublicKey>,
    random: SystemRandom,
}

impl fmt::Debug for TokenKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<_> = self.public.iter().map(|key| &key.id).collect();
        f.debug_struct("TokenKeys")
            .field("public", &ids)
            .finish_non_exhaustive()
    }
}

const BROKEN: PkiError = PkiError::Pem {
    what: "a key of service-account tokens (ECDSA with P-256)",
};

impl TokenKeys {
    /// Reads the keys from a directory; makes the signer if it is not there.
    ///
    /// # Errors
    /// If a file cannot be read or written, or holds no such key.
    pub fn open(directory: &Path) -> Result<Self, PkiError> {
        let path = directory.join("sa.key");
        if !path.exists() {
            let key = rcgen::KeyPair::generate()?;
            pki::write_private(&path, &key.serialize_pem())?;
        }
        let random = SystemRandom::new();
        let signer = read_pair(&path, &random)?;
        let mut public = vec![PublicKey::new(signer.public_key().as_ref())];
        let failed = |source| PkiError::File {
            path: directory.to_owned(),
            source,
        };
        let mut others = Vec::new();
        for entry in fs::read_dir(directory).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let name = name.to_string_lossy();
            if name.starts_with("sa-") && (name.ends_with(".key") || name.ends_with(".pub")) {
                others.push(directory.join(&*name));
            }
        }
        others.sort_unstable();
        for path in others {
            let point = if path.extension().is_some_and(|extension| extension == "key") {
                read_pair(&path, &random)?.public_key().as_ref().to_vec()
            } else {
                read_public(&path)?
            };
            public.push(PublicKey::new(&point));
        }
        Ok(Self {
            signer,
            public,
            random,
        })
    }

    /// The key of a file alone.
    ///
    /// # Errors
    /// If it cannot be read or holds no such key.
    pub fn read(path: &Path) -> Result<Self, PkiError> {
        let random = SystemRandom::new();
        let signer = read_pair(path, &random)?;
        Ok(Self {
            public: vec![PublicKey::new(signer.public_key().as_ref())],
            signer,
            random,
        })
    }

    /// A token with these claims.
    ///
    /// # Errors
    /// If the system gives no random numbers.
    pub fn sign(&self, claims: &Value) -> Result<String, PkiError> {
        let header = json!({"alg": "ES256", "kid": self.public[0].id});
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", encode(&header), encode(claims));
        let signature = self
            .signer
            .sign(&self.random, signed.as_bytes())
            .map_err(|_| PkiError::Random)?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// The claims of a token that one of the keys has signed.
    pub fn verify(&self, token: &str) -> Option<Value> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).ok();
        let header: Value = serde_json::from_slice(&decode(header)?).ok()?;
        // The algorithm is ours to choose, not the token's.
        if header["alg"] != "ES256" {
            return None;
        }
        let signature = decode(signature)?;
        let id = header["kid"].as_str().unwrap_or_default();
        let key = self.public.iter().find(|key| key.id == id)?;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &key.point)
            .verify(signed.as_bytes(), &signature)
            .ok()?;
        serde_json::from_slice(&decode(claims)?).ok()
    }

    /// The public keys as a JSON Web Key Set.
    pub fn jwks(&self) -> Value {
        let keys = self.public.iter().map(|key| {
            let (x, y) = key.point[1..].split_at((POINT - 1) / 2);
            json!({
                "use": "sig", "kty": "EC", "kid": key.id, "crv": "P-256", "alg": "ES256",
                "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
            })
        });
        json!({"keys": keys.collect::<Vec<_>>()})
    }
}

fn read(path: &Path) -> Result<String, PkiError> {
    fs::read_to_string(path).map_err(|source| PkiError::File {
        path: path.to_owned(),
        source,
    })
}

fn read_pair(path: &Path, random: &SystemRandom) -> Result<EcdsaKeyPair, PkiError> {
    let key = pki::key_der(&read(path)?).map_err(|_| BROKEN)?;
    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.secret_der(), random).map_err(|_| BROKEN)
}

fn read_public(path: &Path) -> Result<Vec<u8>, PkiError> {
    let der = SubjectPublicKeyInfoDer::from_pem_slice(read(path)?.as_bytes()).map_err(|_| BROKEN)?;
    let point = der
        .strip_prefix(&P256_PREFIX)
        .filter(|point| point.len() == POINT);
    point.map(<[u8]>::to_vec).ok_or(BROKEN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotated_keys_still_vouch_and_the_newest_signs() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let first = TokenKeys::open(directory.path()).unwrap();
        let old = first.sign(&json!({"n": 1})).unwrap();
        assert_eq!(
            TokenKeys::open(directory.path()).unwrap().verify(&old),
            Some(json!({"n": 1}))
        );

        fs::rename(path("sa.key"), path("sa-1.key")).unwrap();
        let second = TokenKeys::open(directory.path()).unwrap();
        assert_eq!(second.verify(&old), Some(json!({"n": 1})));
        let new = second.sign(&json!({"n": 2})).unwrap();
        assert!(first.verify(&new).is_none());
        assert_eq!(second.jwks()["keys"].as_array().map(Vec::len), Some(2));

        // The public half does as well.
        let pem = rcgen::KeyPair::from_pem(&fs::read_to_string(path("sa-1.key")).unwrap())
            .unwrap()
            .public_key_pem();
        fs::remove_file(path("sa-1.key")).unwrap();
        assert!(TokenKeys::open(directory.path()).unwrap().verify(&old).is_none());
        fs::write(path("sa-1.pub"), pem).unwrap();
        assert_eq!(
            TokenKeys::open(directory.path()).unwrap().verify(&old),
            Some(json!({"n": 1}))
        );
        fs::write(path("sa-2.pub"), "nonsense").unwrap();
        assert!(TokenKeys::open(directory.path()).is_err());
    }

    #[test]
    fn only_our_algorithm_counts() {
        let directory = tempfile::tempdir().unwrap();
        let keys = TokenKeys::open(directory.path()).unwrap();
        let token = keys.sign(&json!({})).unwrap();
        let (_, rest) = token.split_once('.').unwrap();
        for header in [
            json!({"alg": "none"}),
            json!({"alg": "HS256", "kid": keys.public[0].id}),
        ] {
            let forged = format!("{}.{rest}", URL_SAFE_NO_PAD.encode(header.to_string()));
            assert!(keys.verify(&forged).is_none());
        }
        for nonsense in ["", ".", "..", "a.b.c"] {
            assert!(keys.verify(nonsense).is_none());
        }
    }
}
