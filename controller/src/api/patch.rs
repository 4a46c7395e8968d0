//! The four kinds of patches.

use bytes::Bytes;
use serde_json::Value;

use super::Call;
use super::negotiate::{Decoded, content_type, decode_json, decode_yaml};
use super::status::ApiError;
use super::write::{self, Change, FieldError, Managers, Reply};
use crate::custom::ObjectSchema;
use crate::resources::Problems;
use crate::schema::{go_text, patch as json_patches};

const JSON: &str = "application/json-patch+json";
const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
pub(super) const APPLY: &str = "application/apply-patch+yaml";
/// Patches a kind with a schema takes.
const ACCEPTED: &str = "application/json-patch+json, application/merge-patch+json, \
     application/strategic-merge-patch+json, application/apply-patch+yaml";

/// Patches a custom resource takes: nothing tells how its lists would merge strategically.
const ACCEPTED_BY_CUSTOM: &str =
    "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml";

/// PATCH.
pub(crate) async fn patch(call: &Call, body: &Bytes) -> Result<Reply, ApiError> {
    let kind = content_type(&call.headers);
    if kind == APPLY {
        return apply(call, body).await;
    }
    if !matches!(kind, JSON | MERGE | STRATEGIC) {
        return Err(ApiError::unsupported_media_type(ACCEPTED));
    }
    let Decoded {
        value: patch,
        duplicates,
    } = decode_json(body)?;
    let managers = match kind {
        JSON => Managers::Shown,
        _ => Managers::asked_for(patch.get("metadata").unwrap_or(&Value::Null)),
    };
    write::change(call, managers, |current| {
        let object = patched(call, kind, current, &patch)?;
        let mut warnings = Vec::new();
        let decoded = Decoded {
            value: object,
            duplicates: duplicates.clone(),
        };
        let unfit = |error: &FieldError| unfit(call, kind, current, &patch, error);
        Ok(Change {
            object: write::receive_or(call, decoded, &mut warnings, unfit)?,
            warnings,
            tracked: false,
        })
    })
    .await
}

/// `current` after the patch, which is of one of the three kinds that need no manager.
pub(crate) fn patched(call: &Call, kind: &str, current: &Value, patch: &Value) -> Result<Value, ApiError> {
    match kind {
        JSON => json_patches::json_patch(current, patch),
        STRATEGIC => match call.resource.schema() {
            Some(ObjectSchema::BuiltIn(schema)) => schema.strategic_merge(current, patch),
            Some(ObjectSchema::Custom(_)) | None => {
                return Err(ApiError::unsupported_media_type(ACCEPTED_BY_CUSTOM));
            }
        },
        _ => json_patches::json_merge(current, patch),
    }
    .map_err(|error| ApiError::patch(&error))
}

/// The refusal of a patch that leaves fields as they must not be. Kubernetes blames no object but the patch: a strategic one as it
/// came, any other by what it makes.
fn unfit(call: &Call, kind: &str, current: &Value, patch: &Value, error: &FieldError) -> ApiError {
    let (blamed, why) = match error {
        FieldError::Type(error) if kind == STRATEGIC => (go_text(patch), error.of_converter().to_owned()),
        error if kind == STRATEGIC => (go_text(patch), error.to_string()),
        error => {
            let result = patched(call, kind, current, patch).unwrap_or_default();
            (result.to_string(), error.to_string())
        }
    };
    let mut problems = Problems::default();
    problems.invalid("patch", &Value::String(blamed), &why);
    ApiError::invalid_kind("", "", "", &problems)
}

async fn apply(call: &Call, body: &Bytes) -> Result<Reply, ApiError> {
    let decoded = decode_yaml(body)?;
    let mut warnings = Vec::new();
    let applied = write::receive_applied(call, decoded, &mut warnings)?;
    if applied["metadata"]["managedFields"]
        .as_array()
        .is_some_and(|list| !list.is_empty())
    {
        return Err(ApiError::bad_request("metadata.managedFields must be nil"));
    }
    write::apply(call, applied, call.query.flag("force"), warnings).await
}
