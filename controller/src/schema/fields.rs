//! Unknown fields, wrong types, and canonical values.

use serde_json::Value;

use super::facts::TypeId;

/// A value that does not fit its field, in the words of Go's JSON decoder.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct TypeError {
    message: String,
}

pub(super) fn unknown(_root: TypeId, _object: &Value) -> Vec<String> {
    Vec::new()
}

pub(super) fn prune(_root: TypeId, _object: &mut Value) {}

pub(super) fn check_types(_root: TypeId, _object: &Value) -> Result<(), TypeError> {
    Ok(())
}
