//! JSON merge patch (RFC 7396) and JSON patch (RFC 6902), and what can be wrong with any patch.

use serde_json::Value;

/// Limit on the operations of one JSON patch, as in Kubernetes.
pub const MAX_JSON_PATCH_OPERATIONS: usize = 10_000;

/// Why a patch could not be used.
#[derive(Debug, thiserror::Error)]
pub enum PatchError {
    /// The patch is not of the form its content type asks for. Kubernetes answers 400.
    #[error("{0}")]
    Malformed(String),
    /// The patch is well formed, but does not fit the object. Kubernetes answers 422.
    #[error("{0}")]
    Unprocessable(String),
    /// The JSON patch has too many operations. Kubernetes answers 413.
    #[error("The allowed maximum operations in a JSON patch is {MAX_JSON_PATCH_OPERATIONS}, got {0}")]
    TooManyOperations(usize),
}

/// `current` changed as a JSON merge patch says: objects merge, `null` deletes, all else replaces.
pub fn json_merge(current: &Value, patch: &Value) -> Result<Value, PatchError> {
    if !patch.is_object() {
        return Err(PatchError::Malformed(
            "a merge patch must be an object".to_owned(),
        ));
    }
    let mut result = current.clone();
    json_patch::merge(&mut result, patch);
    Ok(result)
}

/// `current` changed by the operations of a JSON patch, all or none.
pub fn json_patch(current: &Value, patch: &Value) -> Result<Value, PatchError> {
    let operations = patch
        .as_array()
        .ok_or_else(|| PatchError::Malformed("a JSON patch must be a list of operations".to_owned()))?;
    if operations.len() > MAX_JSON_PATCH_OPERATIONS {
        return Err(PatchError::TooManyOperations(operations.len()));
    }
    let operations: json_patch::Patch =
        serde_json::from_value(patch.clone()).map_err(|error| PatchError::Malformed(error.to_string()))?;
    let mut result = current.clone();
    json_patch::patch(&mut result, &operations)
        .map_err(|error| PatchError::Unprocessable(error.to_string()))?;
    Ok(result)
}
