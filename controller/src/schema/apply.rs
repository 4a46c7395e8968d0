//! Server-side apply and the tracking of who set which field.

use serde_json::Value;

use super::{KindSchema, PatchError, patch};

/// Who writes, through which subresource, and when.
#[derive(Clone, Copy, Debug)]
pub struct Manager<'a> {
    /// The field manager's name.
    pub name: &'a str,
    /// The subresource written through, such as `status`.
    pub subresource: Option<&'a str>,
    /// The time of the write, RFC 3339 with seconds.
    pub time: &'a str,
}

/// One server-side apply.
#[derive(Clone, Copy, Debug)]
pub struct ApplyRequest<'a> {
    /// The object as the client sent it, neither pruned nor defaulted.
    pub applied: &'a Value,
    /// Who applies it.
    pub manager: Manager<'a>,
    /// Whether fields of other managers are taken over.
    pub force: bool,
}

/// One field that another manager holds with a different value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// `conflict with "kubectl" using apps/v1`: the cause's message.
    pub message: String,
    /// The field's path, such as `.spec.replicas`.
    pub field: String,
}

/// Why an apply was refused.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Other managers hold fields with different values. Kubernetes answers 409.
    #[error("{}", conflict_message(.0))]
    Conflict(Vec<Conflict>),
    /// The applied object is not fit for being applied. Kubernetes answers 400.
    #[error("{0}")]
    Malformed(String),
    /// The object cannot be merged with the live one.
    #[error(transparent)]
    Patch(#[from] PatchError),
}

fn conflict_message(conflicts: &[Conflict]) -> String {
    match conflicts {
        [one] => format!("Apply failed with 1 conflict: {}: {}", one.message, one.field),
        many => {
            let mut text = format!("Apply failed with {} conflicts:", many.len());
            let mut last = "";
            for conflict in many {
                if conflict.message != last {
                    text.push_str(&format!(" {}:", conflict.message));
                    last = &conflict.message;
                }
                text.push_str(&format!("\n- {}", conflict.field));
            }
            text
        }
    }
}

pub(super) fn apply(
    _schema: &KindSchema,
    live: Option<&Value>,
    request: &ApplyRequest<'_>,
) -> Result<Value, ApplyError> {
    match live {
        Some(live) => Ok(patch::json_merge(live, request.applied)?),
        None => Ok(request.applied.clone()),
    }
}

pub(super) fn track_update(
    _schema: &KindSchema,
    _live: Option<&Value>,
    _new: &mut Value,
    _manager: &Manager<'_>,
) {
}
