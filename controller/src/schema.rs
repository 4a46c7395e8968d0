//! What is known about the shape of API objects, and everything that follows from shape alone.
//!
//! One table of facts ([`facts`]) describes every built-in type: fields, lists and their keys, defaults, protobuf numbers.
//! Over it work field validation, defaulting, the patch types, server-side apply, protobuf decoding and the OpenAPI
//! documents. All of it is pure: values in, values out; no store, no clock, no IO.

use serde_json::Value;

pub mod apply;
pub mod defaults;
pub mod facts;
pub mod fields;
pub mod json;
pub mod openapi;
pub mod patch;
pub mod protobuf;
pub mod strategic;

pub use apply::{ApplyError, ApplyRequest, Conflict, Manager};
pub(crate) use fields::go_text;
pub use fields::{TypeError, Zeros};
pub use patch::PatchError;

/// The schema of one kind in one version.
#[derive(Clone, Copy, Debug)]
pub struct KindSchema {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    root: facts::Shape,
}

/// The schema of a built-in kind; `None` for a kind the table does not have.
pub fn kind(group: &str, version: &str, kind: &str) -> Option<KindSchema> {
    let entry = facts::table().kind(group, version, kind)?;
    Some(KindSchema {
        group: entry.group,
        version: entry.version,
        kind: entry.kind,
        root: facts::Shape::Struct(entry.root),
    })
}

impl KindSchema {
    /// The schema of the metadata that every object has.
    ///
    /// # Panics
    /// Never: the table has it.
    pub fn object_meta() -> Self {
        let root = facts::table().type_named("meta.v1.ObjectMeta");
        Self {
            group: "",
            version: "v1",
            kind: "ObjectMeta",
            root: facts::Shape::Struct(root.expect("the table has metadata")),
        }
    }

    /// The API group, empty for the core.
    pub fn group(&self) -> &'static str {
        self.group
    }

    /// The version, such as `v1`.
    pub fn version(&self) -> &'static str {
        self.version
    }

    /// The kind, such as `Pod`.
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// `group/version`, or the version alone in the core group.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    pub(crate) fn root(&self) -> facts::Shape {
        self.root
    }

    /// The paths of fields the kind does not have, such as `spec.containers[0].imagee`, in the object's order.
    pub fn unknown_fields(&self, object: &Value) -> Vec<String> {
        fields::unknown(self.root, object)
    }

    /// Brings the object into the form in which a server stores it: without fields the kind does not have, nulls, and zero
    /// values that mean the same as absent ones; quantities and times in their canonical form.
    pub fn prune(&self, object: &mut Value) {
        fields::prune(self.root, object, Zeros::Dropped);
    }

    /// The same for an object that is applied: zero values stay.
    pub fn prune_applied(&self, object: &mut Value) {
        fields::prune(self.root, object, Zeros::Kept);
    }

    /// Checks that every known field has a value of its type, as decoding into the Go type would.
    pub fn check_types(&self, object: &Value) -> Result<(), TypeError> {
        fields::check_types(self.root, object)
    }

    /// Fills in what a Kubernetes server fills in for an object of this kind when it is written.
    pub fn default(&self, object: &mut Value) {
        defaults::apply(self, object);
    }

    /// `current` changed as a strategic merge patch says.
    pub fn strategic_merge(&self, current: &Value, patch: &Value) -> Result<Value, PatchError> {
        strategic::merge(self.root, current, patch)
    }

    /// Server-side apply: the merge of `live` and the applied object, with `managedFields` brought up to date.
    ///
    /// `live` is `None` when the object does not exist yet. The result is to be pruned, defaulted and validated.
    pub fn apply(&self, live: Option<&Value>, request: &ApplyRequest<'_>) -> Result<Value, ApplyError> {
        let check = |applied: &Value| {
            if let Some(field) = self.unknown_fields(applied).first() {
                return Err(format!(".{field}: field not declared in schema"));
            }
            self.check_types(applied).map_err(|error| error.to_string())
        };
        let canonical = |object: &mut Value| self.prune(object);
        apply::apply(&apply::Target::built_in(self), check, canonical, live, request)
    }

    /// Brings `managedFields` of `new` up to date after a create, update or patch by `manager`.
    ///
    /// Call it with the object as it would be stored (pruned, defaulted). An empty list of managed fields in `new`
    /// forgets all earlier managers, as in Kubernetes.
    pub fn track_update(&self, live: Option<&Value>, new: &mut Value, manager: &Manager<'_>) {
        apply::track_update(&apply::Target::built_in(self), live, new, None, manager);
    }

    /// The same for objects without `managedFields`: `kept` is what they were before, which `new` gets back.
    pub(crate) fn track_kept(
        &self,
        live: Option<&Value>,
        new: &mut Value,
        kept: Option<Value>,
        manager: &Manager<'_>,
    ) {
        apply::track_update(&apply::Target::built_in(self), live, new, kept, manager);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// Objects whose keys are real field names at wrong places, with values of all types.
    fn any_object() -> impl Strategy<Value = Value> {
        let keys = vec![
            "metadata",
            "spec",
            "status",
            "template",
            "containers",
            "name",
            "ports",
            "containerPort",
            "protocol",
            "labels",
            "limits",
            "resources",
            "volumes",
            "strategy",
            "replicas",
            "type",
            "rules",
            "behavior",
            "data",
            "stringData",
            "managedFields",
            "fieldsV1",
            "f:spec",
            "selector",
            "matchLabels",
            "creationTimestamp",
            "finalizers",
            "kind",
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f32>().prop_map(Value::from),
            "[a-z0-9=:.]{0,8}".prop_map(Value::from),
        ];
        let key = prop::sample::select(keys);
        leaf.prop_recursive(6, 60, 5, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((key.clone(), inner), 0..5).prop_map(|pairs| pairs
                    .into_iter()
                    .map(|(k, v)| (k.to_owned(), v))
                    .collect::<Value>()),
            ]
        })
    }

    proptest! {
        #[test]
        fn no_object_makes_anything_panic(which in any::<prop::sample::Index>(), a in any_object(), b in any_object()) {
            let entry = which.get(facts::table().kinds());
            let schema = kind(entry.group, entry.version, entry.kind).expect("listed");
            let (mut first, mut second) = (json!({"spec": a, "metadata": b}), b.clone());
            let _ = (schema.unknown_fields(&first), schema.check_types(&second));
            let manager = Manager { name: "m", subresource: None, time: "2025-01-01T00:00:00Z" };
            schema.track_update(Some(&second), &mut first, &manager);
            schema.track_update(None, &mut second, &manager);
            for force in [false, true] {
                let _ = schema.apply(Some(&first), &ApplyRequest { applied: &second, manager, force });
                let _ = schema.apply(None, &ApplyRequest { applied: &first, manager, force });
            }
            for object in [&mut first, &mut second] {
                schema.prune(object);
                schema.default(object);
            }
        }

        #[test]
        fn the_stored_form_is_stable(which in any::<prop::sample::Index>(), spec in any_object()) {
            let entry = which.get(facts::table().kinds());
            let schema = kind(entry.group, entry.version, entry.kind).expect("listed");
            let mut object = json!({"metadata": {"name": "x"}, "spec": spec});
            schema.prune(&mut object);
            prop_assert_eq!(schema.unknown_fields(&object), Vec::<String>::new());
            let once = object.clone();
            schema.prune(&mut object);
            prop_assert_eq!(&object, &once);
            if schema.check_types(&object).is_ok() {
                schema.default(&mut object);
                let once = object.clone();
                schema.default(&mut object);
                prop_assert_eq!(object, once);
            }
        }
    }
}
