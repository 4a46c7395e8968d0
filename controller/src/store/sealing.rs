//! Records that nobody reads who has only the store's file: AES-256-GCM under a key that is kept beside it, or elsewhere.
//!
//! The key file has one key a line, base64 of 32 bytes. The first seals; the others open what was sealed earlier. To rotate,
//! put a new line in front and start again: records are sealed anew when they are next written.

use std::path::{Path, PathBuf};
use std::{fmt, fs, io};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom as _, SystemRandom};
use sha2::{Digest as _, Sha256};

use crate::pki::{self, PkiError};

/// Resources whose records are sealed.
const SEALED: &[&str] = &["secrets"];
/// What a sealed record begins with; a plain one begins with a brace.
const MARK: &[u8; 4] = b"\0wS1";
/// Length of a key's name: enough to tell a handful apart.
const KEY_ID: usize = 8;
/// Length of a key.
const KEY: usize = 32;

/// Why records cannot be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum SealingError {
    /// The key file cannot be read.
    #[error("cannot read the encryption key file {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The key file cannot be made.
    #[error("cannot make an encryption key")]
    Make(#[from] PkiError),
    /// The key file does not hold keys.
    #[error("{path} line {line}: not base64 of {KEY} bytes")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// The key file is empty.
    #[error("{0} holds no key")]
    NoKey(PathBuf),
    /// The system has no random numbers.
    #[error("no random numbers to be had")]
    Random,
    /// A record was sealed with a key that is not there.
    #[error("sealed with key {0}, which is not in the encryption key file")]
    UnknownKey(String),
    /// A record was changed by someone without the key.
    #[error("the seal is broken")]
    Broken,
}

struct Key {
    id: [u8; KEY_ID],
    key: LessSafeKey,
}

/// Seals and opens records.
pub struct Sealer {
    keys: Vec<Key>,
    random: SystemRandom,
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer")
            .field("keys", &self.keys.len())
            .finish_non_exhaustive()
    }
}

impl Sealer {
    /// Reads the keys from a file, or makes one there.
    ///
    /// # Errors
    /// If the file cannot be read or made, or does not hold keys.
    pub fn open(path: &Path) -> Result<Self, SealingError> {
        let random = SystemRandom::new();
        if !path.exists() {
            let mut key = [0; KEY];
            random.fill(&mut key).map_err(|_| SealingError::Random)?;
            pki::write_private(path, &format!("{}\n", STANDARD.encode(key)))?;
        }
        let text = fs::read_to_string(path).map_err(|source| SealingError::Read {
            path: path.to_owned(),
            source,
        })?;
        let mut keys = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let malformed = || SealingError::Malformed {
                path: path.to_owned(),
                line: index + 1,
            };
            let bytes = STANDARD.decode(line).map_err(|_| malformed())?;
            let key = UnboundKey::new(&AES_256_GCM, &bytes).map_err(|_| malformed())?;
            let mut id = [0; KEY_ID];
            id.copy_from_slice(&Sha256::digest(&bytes)[..KEY_ID]);
            keys.push(Key {
                id,
                key: LessSafeKey::new(key),
            });
        }
        if keys.is_empty() {
            return Err(SealingError::NoKey(path.to_owned()));
        }
        Ok(Self { keys, random })
    }

    /// Whether records of a resource are sealed.
    pub fn seals(resource: &str) -> bool {
        SEALED.contains(&resource)
    }

    /// The sealed form of a record that is kept in `place`; it can be opened there only.
    ///
    /// # Errors
    /// [`SealingError::Random`].
    pub fn seal(&self, place: &[u8], plain: &[u8]) -> Result<Vec<u8>, SealingError> {
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).map_err(|_| SealingError::Random)?;
        let first = &self.keys[0];
        let mut sealed =
            Vec::with_capacity(MARK.len() + KEY_ID + NONCE_LEN + plain.len() + AES_256_GCM.tag_len());
        sealed.extend_from_slice(MARK);
        sealed.extend_from_slice(&first.id);
        sealed.extend_from_slice(&nonce);
        let mut text = plain.to_vec();
        let nonce = Nonce::assume_unique_for_key(nonce);
        first
            .key
            .seal_in_place_append_tag(nonce, Aad::from(place), &mut text)
            .map_err(|_| SealingError::Random)?;
        sealed.extend_from_slice(&text);
        Ok(sealed)
    }

    /// Opens a record; `None` if it is not sealed.
    ///
    /// # Errors
    /// [`SealingError::UnknownKey`] or [`SealingError::Broken`].
    pub fn unseal(&self, place: &[u8], record: &[u8]) -> Result<Option<Vec<u8>>, SealingError> {
        let Some(rest) = record.strip_prefix(MARK) else {
            return Ok(None);
        };
        let (id, rest) = rest.split_first_chunk::<KEY_ID>().ok_or(SealingError::Broken)?;
        let (nonce, text) = rest
            .split_first_chunk::<NONCE_LEN>()
            .ok_or(SealingError::Broken)?;
        let key = self
            .keys
            .iter()
            .find(|key| key.id == *id)
            .ok_or_else(|| SealingError::UnknownKey(hex::encode(id)))?;
        let mut text = text.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let plain = key
            .key
            .open_in_place(nonce, Aad::from(place), &mut text)
            .map_err(|_| SealingError::Broken)?
            .len();
        text.truncate(plain);
        Ok(Some(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_in_its_place_and_nowhere_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let sealer = Sealer::open(&path).unwrap();
        let sealed = sealer.seal(b"secrets\0a", b"{\"x\":1}").unwrap();
        assert!(!sealed.windows(3).any(|part| part == b"\"x\""));
        let opened = |sealer: &Sealer, place: &[u8], record: &[u8]| sealer.unseal(place, record);
        assert_eq!(
            opened(&sealer, b"secrets\0a", &sealed).unwrap().unwrap(),
            b"{\"x\":1}"
        );
        assert!(matches!(
            opened(&sealer, b"secrets\0b", &sealed),
            Err(SealingError::Broken)
        ));
        for at in MARK.len() + KEY_ID..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(matches!(
                opened(&sealer, b"secrets\0a", &changed),
                Err(SealingError::Broken)
            ));
        }
        for length in MARK.len()..sealed.len() {
            assert!(opened(&sealer, b"secrets\0a", &sealed[..length]).is_err());
        }
        assert!(opened(&sealer, b"", b"{}").unwrap().is_none());
        assert_ne!(sealer.seal(b"p", b"x").unwrap(), sealer.seal(b"p", b"x").unwrap());
    }

    #[test]
    fn a_new_key_in_front_seals_and_the_old_one_still_opens() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let old = Sealer::open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let sealed = old.seal(b"p", b"x").unwrap();
        let first = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("# newest\n{}\n{first}", STANDARD.encode([7; KEY]))).unwrap();
        let both = Sealer::open(&path).unwrap();
        assert_eq!(both.unseal(b"p", &sealed).unwrap().unwrap(), b"x");
        let anew = both.seal(b"p", b"x").unwrap();
        assert!(matches!(
            old.unseal(b"p", &anew),
            Err(SealingError::UnknownKey(_))
        ));
        for nonsense in ["", "# nothing\n", "abc\n", "QUJD\n"] {
            fs::write(&path, nonsense).unwrap();
            assert!(Sealer::open(&path).is_err(), "{nonsense:?}");
        }
    }
}
