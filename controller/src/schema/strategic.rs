//! Strategic merge patch.

use serde_json::Value;

use super::facts::TypeId;
use super::patch::{self, PatchError};

pub(super) fn merge(_root: TypeId, current: &Value, patch: &Value) -> Result<Value, PatchError> {
    patch::json_merge(current, patch)
}
