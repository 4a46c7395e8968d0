//! The schema of whatever is served, built in or custom: what writing an object needs of it.

use serde_json::Value;

use super::CustomResource;
use crate::schema::apply::{self, Target};
use crate::schema::{ApplyError, ApplyRequest, KindSchema, Manager, TypeError};

/// The schema of one kind in one version.
#[derive(Clone, Copy, Debug)]
pub enum ObjectSchema<'a> {
    /// Of a built-in kind.
    BuiltIn(KindSchema),
    /// Of a custom resource.
    Custom(&'a CustomResource),
}

impl ObjectSchema<'_> {
    /// The paths of fields the kind does not have.
    pub fn unknown_fields(&self, object: &Value) -> Vec<String> {
        match self {
            Self::BuiltIn(schema) => schema.unknown_fields(object),
            Self::Custom(resource) => resource.schema().unknown_fields(object),
        }
    }

    /// Checks that values have the types of their fields, as far as decoding is concerned: of a custom resource only the
    /// metadata is decoded, all else is validated.
    ///
    /// # Errors
    /// What does not fit.
    pub fn check_types(&self, object: &Value) -> Result<(), TypeError> {
        match self {
            Self::BuiltIn(schema) => schema.check_types(object),
            Self::Custom(_) => KindSchema::object_meta().check_types(&object["metadata"]),
        }
    }

    /// Takes out what is not to be stored.
    pub fn prune(&self, object: &mut Value) {
        match self {
            Self::BuiltIn(schema) => schema.prune(object),
            Self::Custom(resource) => resource.schema().prune(object),
        }
    }

    /// The same for an object that is applied: zero values stay.
    pub fn prune_applied(&self, object: &mut Value) {
        match self {
            Self::BuiltIn(schema) => schema.prune_applied(object),
            Self::Custom(resource) => resource.schema().prune(object),
        }
    }

    /// Fills in defaults.
    pub fn default(&self, object: &mut Value) {
        match self {
            Self::BuiltIn(schema) => schema.default(object),
            Self::Custom(resource) => resource.schema().fill(object),
        }
    }

    /// Server-side apply, see [`KindSchema::apply`].
    ///
    /// # Errors
    /// Conflicts, and what is wrong with the applied object.
    pub fn apply(&self, live: Option<&Value>, request: &ApplyRequest<'_>) -> Result<Value, ApplyError> {
        match self {
            Self::BuiltIn(schema) => schema.apply(live, request),
            Self::Custom(resource) => {
                let check = |applied: &Value| match self.unknown_fields(applied).first() {
                    Some(field) => Err(format!(".{field}: field not declared in schema")),
                    None => Ok(()),
                };
                let canonical = |object: &mut Value| self.prune(object);
                apply::apply(&target(resource), check, canonical, live, request)
            }
        }
    }

    /// Brings the managers of fields up to date, see [`KindSchema::track_update`]. `kept` are those that were set aside
    /// while the object was changed.
    pub(crate) fn track_update(
        &self,
        live: Option<&Value>,
        new: &mut Value,
        kept: Option<Value>,
        manager: &Manager<'_>,
    ) {
        match self {
            Self::BuiltIn(schema) => schema.track_kept(live, new, kept, manager),
            Self::Custom(resource) => apply::track_update(&target(resource), live, new, kept, manager),
        }
    }
}

fn target(resource: &CustomResource) -> Target<'_> {
    let row = resource.row();
    Target::custom(resource.schema(), row.api_version(), row.kind)
}
