//! The CNI error object and its codes.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A CNI error code: the specification's own, and Weft's from 100.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// 1: the plugin does not speak the configuration's `cniVersion`, or that version lacks the verb.
    IncompatibleVersion,
    /// 2: a field of the configuration is not supported; the message names key and value.
    UnsupportedField,
    /// 3: the container is unknown or gone; the runtime need not clean up.
    UnknownContainer,
    /// 4: a `CNI_*` variable is missing or invalid; the message names it.
    InvalidEnvironment,
    /// 5: input or output failed.
    Io,
    /// 6: something could not be decoded.
    Decode,
    /// 7: the network configuration is invalid.
    InvalidConfig,
    /// 11: a passing condition; the runtime should try again.
    TryAgainLater,
    /// 50: the plugin cannot serve ADD.
    Unavailable,
    /// 51: the plugin cannot serve ADD, and containers that are attached have limited connectivity.
    LimitedConnectivity,
    /// 100: the agent failed in a way that the other codes do not name.
    Internal,
    /// 101: the attachment, or an interface of its name, exists already.
    AlreadyExists,
    /// 102: CHECK found the kernel to differ from the result.
    CheckFailed,
    /// 103: plugin and agent are of incompatible releases.
    ProtocolMismatch,
    /// Any other code, as an agent of another release may send.
    Other(u32),
}

impl ErrorCode {
    /// The code as the number on the wire.
    pub const fn as_u32(self) -> u32 {
        match self {
            Self::IncompatibleVersion => 1,
            Self::UnsupportedField => 2,
            Self::UnknownContainer => 3,
            Self::InvalidEnvironment => 4,
            Self::Io => 5,
            Self::Decode => 6,
            Self::InvalidConfig => 7,
            Self::TryAgainLater => 11,
            Self::Unavailable => 50,
            Self::LimitedConnectivity => 51,
            Self::Internal => 100,
            Self::AlreadyExists => 101,
            Self::CheckFailed => 102,
            Self::ProtocolMismatch => 103,
            Self::Other(code) => code,
        }
    }
}

impl From<u32> for ErrorCode {
    fn from(code: u32) -> Self {
        match code {
            1 => Self::IncompatibleVersion,
            2 => Self::UnsupportedField,
            3 => Self::UnknownContainer,
            4 => Self::InvalidEnvironment,
            5 => Self::Io,
            6 => Self::Decode,
            7 => Self::InvalidConfig,
            11 => Self::TryAgainLater,
            50 => Self::Unavailable,
            51 => Self::LimitedConnectivity,
            100 => Self::Internal,
            101 => Self::AlreadyExists,
            102 => Self::CheckFailed,
            103 => Self::ProtocolMismatch,
            other => Self::Other(other),
        }
    }
}

impl Serialize for ErrorCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(self.as_u32())
    }
}

impl<'de> Deserialize<'de> for ErrorCode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        u32::deserialize(deserializer).map(Self::from)
    }
}

/// What went wrong, as the runtime is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{msg}{}{details}", if .details.is_empty() { "" } else { ": " })]
pub struct CniError {
    /// The code.
    pub code: ErrorCode,
    /// One line: what failed, with the name of the thing.
    pub msg: String,
    /// More, such as the cause or what to do. May be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

impl CniError {
    /// An error without details.
    pub fn new(code: ErrorCode, msg: impl Into<String>) -> Self {
        Self {
            code,
            msg: msg.into(),
            details: String::new(),
        }
    }

    /// The same error with `details`.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_survive_the_wire() {
        for code in (0..=12).chain(48..=53).chain(98..=106) {
            assert_eq!(ErrorCode::from(code).as_u32(), code);
        }
        let error = CniError::new(ErrorCode::TryAgainLater, "no address is free").with_details("add a CIDR");
        let text = serde_json::to_string(&error).unwrap();
        assert_eq!(
            text,
            r#"{"code":11,"msg":"no address is free","details":"add a CIDR"}"#
        );
        assert_eq!(serde_json::from_str::<CniError>(&text).unwrap(), error);
        assert_eq!(error.to_string(), "no address is free: add a CIDR");
    }
}
