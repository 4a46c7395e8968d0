//! Names of images, in the one form under which the store keeps them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The longest reference that is taken; registries refuse longer ones too.
const MAX_REFERENCE_BYTES: usize = 4096;

/// A full reference: `domain/path:tag` or `domain/path@digest`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Reference(String);

/// A text that is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an image reference: {reason}")]
pub struct InvalidReference {
    /// The text.
    pub text: String,
    /// What is wrong.
    pub reason: &'static str,
}

impl Reference {
    /// Reads a reference as people write it: the domain defaults to `docker.io`, the tag to `latest`.
    pub fn parse(text: &str) -> Result<Self, InvalidReference> {
        let invalid = |reason| InvalidReference {
            text: text.to_owned(),
            reason,
        };
        if text.is_empty() {
            return Err(invalid("it is empty"));
        }
        if text.len() > MAX_REFERENCE_BYTES {
            return Err(invalid("it is longer than 4096 bytes"));
        }
        let (name, suffix) = split_suffix(text);
        let (domain, path) = match name.split_once('/') {
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
            Some(_) | None => ("docker.io", name),
        };
        let domain_ok = domain.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '[')
            && domain
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || ".-:[]".contains(c));
        if !domain_ok {
            return Err(invalid("a registry is a host name, with a port perhaps"));
        }
        let path_ok = !path.is_empty()
            && path.split('/').all(|part| {
                part.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
                    && part
                        .chars()
                        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c))
            });
        if !path_ok {
            return Err(invalid(
                "a name is made of lower case letters, digits, '.', '_', '-' and '/'",
            ));
        }
        let suffix_ok = suffix.len() > 1
            && suffix[1..]
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "._-:".contains(c));
        if !suffix.is_empty() && !suffix_ok {
            return Err(invalid(
                "a tag is made of letters, digits, '.', '_' and '-', and is not empty",
            ));
        }
        let library = if domain == "docker.io" && !path.contains('/') {
            "library/"
        } else {
            ""
        };
        let suffix = if suffix.is_empty() { ":latest" } else { suffix };
        Ok(Self(format!("{domain}/{library}{path}{suffix}")))
    }

    /// The whole reference.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether kubelet's default policy for it is `Always`.
    pub fn is_latest(&self) -> bool {
        self.0.ends_with(":latest")
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Splits `:tag` or `@digest` off. A colon before the last slash is a registry's port.
fn split_suffix(text: &str) -> (&str, &str) {
    if let Some(at) = text.find('@') {
        let (name, digest) = text.split_at(at);
        // `name:tag@digest`: the digest says more.
        return (split_suffix(name).0, digest);
    }
    let last_part = text.rfind('/').map_or(0, |slash| slash + 1);
    match text[last_part..].find(':') {
        Some(colon) => text.split_at(last_part + colon),
        None => (text, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_completed() {
        for (text, full) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("weft/probe:1", "docker.io/weft/probe:1"),
            ("localhost/a:b", "localhost/a:b"),
            ("localhost:5000/a", "localhost:5000/a:latest"),
            ("quay.io/x/y@sha256:ab", "quay.io/x/y@sha256:ab"),
            ("quay.io/x/y:1@sha256:ab", "quay.io/x/y@sha256:ab"),
        ] {
            assert_eq!(Reference::parse(text).unwrap().as_str(), full, "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "", "Upper", "a//b", "a:", "a:b c", "../etc", "a/../b", ":tag", "x/@",
        ] {
            assert!(Reference::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn full_references_stay_as_they_are() {
        let once = Reference::parse("probe").unwrap();
        assert_eq!(Reference::parse(once.as_str()).unwrap(), once);
    }
}
