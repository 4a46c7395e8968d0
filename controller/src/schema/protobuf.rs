//! Decoding of protobuf request bodies into the JSON they stand for.

use serde_json::Value;

/// The content type of such bodies.
pub const CONTENT_TYPE: &str = "application/vnd.kubernetes.protobuf";

/// Why a protobuf body could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtobufError {
    /// The body does not begin with the four magic bytes.
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    Prefix,
    /// The wire format is broken.
    #[error("proto: {0}")]
    Malformed(&'static str),
    /// The kind has no known message.
    #[error("no kind \"{kind}\" is registered for version \"{api_version}\"")]
    UnknownKind {
        /// The group and version named in the body.
        api_version: String,
        /// The kind named in the body.
        kind: String,
    },
}

/// The object in a protobuf body, with `apiVersion` and `kind` set.
pub fn decode(body: &[u8]) -> Result<Value, ProtobufError> {
    let _ = body.strip_prefix(b"k8s\0").ok_or(ProtobufError::Prefix)?;
    Err(ProtobufError::Malformed("not supported"))
}
