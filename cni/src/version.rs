//! The versions of the CNI specification, and what each allows.

use std::{fmt, str::FromStr};

/// A version of the specification that the plugin speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SpecVersion {
    /// 0.3.0
    V0_3_0,
    /// 0.3.1
    V0_3_1,
    /// 0.4.0
    V0_4_0,
    /// 1.0.0
    V1_0_0,
    /// 1.1.0
    V1_1_0,
}

/// A version that the plugin does not speak, or no version at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("CNI version `{0}` is not supported")]
pub struct UnsupportedVersion(pub String);

impl SpecVersion {
    /// All of them, oldest first.
    pub const ALL: [Self; 5] = [
        Self::V0_3_0,
        Self::V0_3_1,
        Self::V0_4_0,
        Self::V1_0_0,
        Self::V1_1_0,
    ];

    /// The newest.
    pub const LATEST: Self = Self::V1_1_0;

    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// Whether the version knows CHECK.
    pub fn has_check(self) -> bool {
        self >= Self::V0_4_0
    }

    /// Whether the version knows GC and STATUS.
    pub fn has_gc_and_status(self) -> bool {
        self >= Self::V1_1_0
    }

    /// Whether each address of a result says its family.
    pub fn names_address_family(self) -> bool {
        self < Self::V1_0_0
    }

    /// Whether results carry MTUs, and routes more than a destination and a gateway.
    pub fn has_extended_results(self) -> bool {
        self >= Self::V1_1_0
    }
}

impl fmt::Display for SpecVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for SpecVersion {
    type Err = UnsupportedVersion;

    fn from_str(text: &str) -> Result<Self, UnsupportedVersion> {
        Self::ALL
            .into_iter()
            .find(|version| version.as_str() == text)
            .ok_or_else(|| UnsupportedVersion(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_reads_as_it_is_written() {
        for version in SpecVersion::ALL {
            assert_eq!(version.to_string().parse(), Ok(version));
        }
        for text in ["", "0.1.0", "0.2.0", "1.0", "1.1.1", "v1.0.0", "2.0.0"] {
            assert_eq!(
                text.parse::<SpecVersion>(),
                Err(UnsupportedVersion(text.to_owned()))
            );
        }
    }
}
