//! What a server fills in.

use serde_json::Value;

use super::KindSchema;

pub(super) fn apply(_schema: &KindSchema, _object: &mut Value) {}
