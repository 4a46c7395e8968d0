//! Create and change: one path for PUT, all patches and the subresources that write.

use std::sync::Arc;

use http::StatusCode;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::negotiate::Decoded;
use super::objects;
use super::part::Part;
use super::request::Verb;
use super::status::ApiError;
use super::{Call, admission, allocate, charges};
use crate::custom::ObjectSchema;
use crate::resources::{Problem, Problems, Reason, Resource, ResourceRef};
use crate::schema::{ApplyError, ApplyRequest, Manager, TypeError, Zeros};
use crate::store::{Encoded, Expect, Object, Operation, StoreError, Write};

/// How often a change is tried again when others write the object meanwhile.
const ATTEMPTS: usize = 50;

/// What a write comes to.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The object as it is stored.
    Stored(Arc<Object>),
    /// The object as it would be, or as it was when it went, in the store's form.
    Value(Value),
    /// A `Status`.
    Status(Value),
}

/// A write's answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) code: StatusCode,
    pub(crate) outcome: Outcome,
    pub(crate) warnings: Vec<String>,
}

impl Reply {
    pub(crate) fn status(code: StatusCode, status: Value) -> Self {
        Self {
            code,
            outcome: Outcome::Status(status),
            warnings: Vec::new(),
        }
    }
}

/// What to do with fields that the kind does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FieldValidation {
    Strict,
    Warn,
    Ignore,
}

impl FieldValidation {
    fn of(call: &Call) -> Self {
        match call.query.get("fieldValidation") {
            Some("Strict") => Self::Strict,
            Some("Ignore") => Self::Ignore,
            _ => Self::Warn,
        }
    }
}

/// What is wrong with an object's fields.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FieldError {
    /// The kind does not have them, or they came twice.
    #[error("strict decoding error: {0}")]
    Strict(String),
    /// One has a value that does not fit.
    #[error(transparent)]
    Type(TypeError),
}

/// Reads an object that a client sent: right kind, known fields, right types. It is in the version served.
pub(crate) fn receive(call: &Call, decoded: Decoded, warnings: &mut Vec<String>) -> Result<Value, ApiError> {
    receive_or(call, decoded, warnings, |error| unfit(call, error))
}

/// [`receive`] for an object that is applied: it keeps zero values, which say who sets a field.
pub(crate) fn receive_applied(
    call: &Call,
    decoded: Decoded,
    warnings: &mut Vec<String>,
) -> Result<Value, ApiError> {
    received(call, decoded, warnings, Zeros::Kept, |error| unfit(call, error))
}

fn unfit(call: &Call, error: &FieldError) -> ApiError {
    let Resource { kind, version, .. } = *call.resource;
    ApiError::bad_request(format!(
        "{kind} in version {version:?} cannot be handled as a {kind}: {error}"
    ))
}

/// As a server stores it, but for what is filled in.
fn pruned(call: &Call, mut object: Value) -> Value {
    if let Some(schema) = call.resource.schema() {
        schema.prune(&mut object);
    }
    object
}

/// [`receive`] with other words for what is wrong with fields.
pub(crate) fn receive_or(
    call: &Call,
    decoded: Decoded,
    warnings: &mut Vec<String>,
    refuse: impl FnOnce(&FieldError) -> ApiError,
) -> Result<Value, ApiError> {
    received(call, decoded, warnings, Zeros::Dropped, refuse)
}

fn received(
    call: &Call,
    decoded: Decoded,
    warnings: &mut Vec<String>,
    zeros: Zeros,
    refuse: impl FnOnce(&FieldError) -> ApiError,
) -> Result<Value, ApiError> {
    let Decoded {
        mut value,
        duplicates,
    } = decoded;
    let resource = &call.resource;
    if !value.is_object() {
        return Err(ApiError::bad_request("the body is not an object"));
    }
    let expected = resource.api_version();
    let given = value["apiVersion"].as_str().unwrap_or_default();
    if !given.is_empty() && given != expected {
        return Err(ApiError::bad_request(format!(
            "the API version in the data ({given}) does not match the expected API version ({expected})"
        )));
    }
    let kind = value["kind"].as_str().unwrap_or_default();
    if !kind.is_empty() && kind != resource.kind {
        return Err(ApiError::bad_request(format!(
            "{kind} in version {:?} cannot be handled as a {}: no kind {kind:?} is registered for this path",
            resource.version, resource.kind
        )));
    }
    value["apiVersion"] = json!(expected);
    value["kind"] = json!(resource.kind);
    if let Some(schema) = resource.schema() {
        check_fields(call, schema, &value, duplicates, warnings).map_err(|error| refuse(&error))?;
        match zeros {
            Zeros::Kept => schema.prune_applied(&mut value),
            Zeros::Dropped => schema.prune(&mut value),
        }
    }
    objects::drop_nulls(&mut value);
    if !value["metadata"].is_object() {
        value["metadata"] = json!({});
    }
    Ok(value)
}

fn check_fields(
    call: &Call,
    schema: ObjectSchema<'_>,
    value: &Value,
    duplicates: Vec<String>,
    warnings: &mut Vec<String>,
) -> Result<(), FieldError> {
    let validation = FieldValidation::of(call);
    if validation != FieldValidation::Ignore {
        let unknown = schema.unknown_fields(value);
        let found: Vec<_> = unknown
            .iter()
            .map(|path| format!("unknown field {path:?}"))
            .chain(duplicates.iter().map(|path| format!("duplicate field {path:?}")))
            .collect();
        if validation == FieldValidation::Strict && !found.is_empty() {
            return Err(FieldError::Strict(found.join(", ")));
        }
        warnings.extend(found);
    }
    schema.check_types(value).map_err(FieldError::Type)
}

/// POST to a collection.
pub(crate) async fn create(call: &Call, decoded: Decoded) -> Result<Reply, ApiError> {
    if decoded.value.is_null() {
        return Err(ApiError::bad_request("the body is empty"));
    }
    let mut warnings = Vec::new();
    let object = receive(call, decoded, &mut warnings)?;
    create_object(call, object, None, warnings).await
}

/// Creates an object; `applied_by` is set if a server-side apply does, which has tracked its fields already.
async fn create_object(
    call: &Call,
    mut object: Value,
    applied_by: Option<&str>,
    warnings: Vec<String>,
) -> Result<Reply, ApiError> {
    let resource = &call.resource;
    let dry_run = call.query.dry_run();
    if object["metadata"]["resourceVersion"]
        .as_str()
        .is_some_and(|version| !version.is_empty())
    {
        return Err(ApiError::bad_request(
            "resourceVersion should not be set on objects to be created",
        ));
    }
    place(call, &mut object)?;
    namespace_accepts(call, objects::name(&object))?;
    objects::stamp_new(&mut object, resource.generation, call.now);
    // A node may say all of itself at once.
    if resource.has_status()
        && resource.storage != "nodes"
        && let Some(fields) = object.as_object_mut()
    {
        fields.remove("status");
    }
    if let Some(conversion) = resource.conversion {
        (conversion.stored)(&mut object);
    }
    if let Some(custom) = resource.custom() {
        object["apiVersion"] = json!(custom.stored_api_version());
    }
    let stored = call.stored_resource();
    (stored.prepare)(&mut object);
    admission::on_create(call, &mut object).await?;
    admission::on_write(&stored, &mut object);
    if let Some(schema) = stored.schema() {
        schema.default(&mut object);
        if applied_by.is_none() {
            track(call, schema, None, None, &mut object);
        }
    }
    allocate::complete(&stored, &mut object, None);
    validate(&stored, &object, None)?;
    call.admits(&object, None)?;
    admission::limits::check(call, &object)?;
    let name = objects::name(&object).to_owned();
    let key = resource.key(&call.path.namespace, &name);
    if dry_run {
        if call.server.store.get(resource.storage, &key).is_some() {
            return Err(ApiError::already_exists(resource, &name));
        }
        allocate::companions(call, None, Some(&mut object))?;
        charges::charges(call, None, &object)?;
        return Ok(Reply {
            code: StatusCode::CREATED,
            outcome: Outcome::Value(object),
            warnings,
        });
    }
    let asked = allocate::concerns(&stored).then(|| object.clone());
    let mut turn = None;
    for _ in 0..ATTEMPTS {
        if asked.is_some() {
            // What another server gave out or took back is to be known here.
            call.server.store.barrier().await?;
        }
        let companions = allocate::companions(call, None, Some(&mut object))?;
        let mut writes = vec![Write {
            resource: resource.storage,
            key: key.clone(),
            expect: Expect::Absent,
            operation: Operation::Put(encode(call, &object, None)?),
        }];
        writes.extend(companions);
        writes.extend(charges::charges(call, None, &object)?);
        match call.server.store.commit(writes).await {
            Ok(written) => {
                return Ok(Reply {
                    code: StatusCode::CREATED,
                    outcome: stored_outcome(written, object),
                    warnings,
                });
            }
            Err(StoreError::Conflict {
                resource: of,
                key: at,
                ..
            }) if of == resource.storage && at == key => {
                return Err(ApiError::already_exists(resource, &name));
            }
            // Somebody was faster with what was chosen or charged: another choice may do, or enough may be left.
            Err(StoreError::Conflict { .. }) => {
                if turn.is_none() {
                    turn = Some(call.server.turn(&call.path.namespace).await);
                }
                if let Some(asked) = &asked {
                    object.clone_from(asked);
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(ApiError::stale(resource, &name))
}

/// Serialises an object; many small changes must not make one that no single request could.
fn encode(call: &Call, object: &Value, spec: Option<&RawValue>) -> Result<Encoded, ApiError> {
    let meta = call.stored_resource().index(object);
    let encoded = Encoded::with(object, spec.map(|spec| ("spec", spec)), meta);
    let limit = call.server.limits.body_bytes;
    if encoded.len() > limit {
        return Err(ApiError::too_large(format!(
            "Request entity too large: limit is {limit}"
        )));
    }
    Ok(encoded)
}

fn stored_outcome(written: Vec<Arc<Object>>, object: Value) -> Outcome {
    written
        .into_iter()
        .next()
        .map_or(Outcome::Value(object), Outcome::Stored)
}

/// Refuses an object that names itself otherwise than the URL does.
pub(super) fn check_name(call: &Call, object: &Value) -> Result<(), ApiError> {
    let (given, name) = (objects::name(object), &call.path.name);
    if given.is_empty() || given == name {
        return Ok(());
    }
    Err(ApiError::bad_request(format!(
        "the name of the object ({given}) does not match the name on the URL ({name})"
    )))
}

/// Puts the object where the URL says.
fn place(call: &Call, object: &mut Value) -> Result<(), ApiError> {
    let resource = &call.resource;
    let namespace = object["metadata"]["namespace"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    if resource.namespaced {
        if !namespace.is_empty() && namespace != call.path.namespace {
            return Err(ApiError::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        if call.path.namespace.is_empty() {
            return Err(ApiError::bad_request(
                "an empty namespace may not be set during creation",
            ));
        }
        object["metadata"]["namespace"] = json!(call.path.namespace);
    } else if let Some(metadata) = object["metadata"].as_object_mut() {
        // As in Kubernetes: templates that set one everywhere are common.
        metadata.remove("namespace");
    }
    let prefix = object["metadata"]["generateName"].as_str().unwrap_or_default();
    if objects::name(object).is_empty() {
        if prefix.is_empty() {
            let mut problems = Problems::default();
            problems.required("metadata.name", "name or generateName is required");
            return Err(ApiError::invalid(resource, "", &problems));
        }
        object["metadata"]["name"] = json!(objects::generated_name(prefix));
    }
    Ok(())
}

/// Refuses what would be created in a namespace that is missing or going.
fn namespace_accepts(call: &Call, name: &str) -> Result<(), ApiError> {
    let namespace = &call.path.namespace;
    if !call.resource.namespaced || namespace.is_empty() {
        return Ok(());
    }
    let Some(namespaces) = crate::resources::find("", "v1", "namespaces") else {
        return Ok(());
    };
    let Some(found) = call.server.store.get(namespaces.storage, namespace) else {
        return Err(ApiError::not_found(namespaces, namespace));
    };
    if is_going(&found) {
        let why =
            format!("unable to create new content in namespace {namespace} because it is being terminated");
        let mut error = ApiError::forbidden(&call.resource, name, &why);
        error.details["causes"] = json!([{
            "reason": "NamespaceTerminating", "message": format!("namespace {namespace} is being terminated"),
            "field": "metadata.namespace",
        }]);
        return Err(error);
    }
    Ok(())
}

/// Whether an object is on its way out, by its text.
fn is_going(object: &Object) -> bool {
    #[derive(Default, Deserialize)]
    struct Parts {
        metadata: Metadata,
    }
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Metadata {
        deletion_timestamp: Option<IgnoredAny>,
    }
    let parts: Parts = serde_json::from_slice(object.body()).unwrap_or_default();
    parts.metadata.deletion_timestamp.is_some()
}

fn validate(resource: &ResourceRef, object: &Value, old: Option<&Value>) -> Result<(), ApiError> {
    let mut problems = Problems::default();
    crate::resources::validate_metadata(resource, object, old, &mut problems);
    resource.check(object, old, &mut problems);
    refuse(resource, object, &problems)
}

fn validate_metadata(resource: &ResourceRef, object: &Value, old: Option<&Value>) -> Result<(), ApiError> {
    let mut problems = Problems::default();
    crate::resources::validate_metadata(resource, object, old, &mut problems);
    refuse(resource, object, &problems)
}

fn refuse(resource: &ResourceRef, object: &Value, problems: &Problems) -> Result<(), ApiError> {
    if problems.0.is_empty() {
        Ok(())
    } else {
        Err(ApiError::invalid(resource, objects::name(object), problems))
    }
}

fn track(call: &Call, schema: ObjectSchema<'_>, old: Option<&Value>, kept: Option<Value>, new: &mut Value) {
    let time = objects::timestamp(call.now);
    let name = call.field_manager();
    let manager = Manager {
        name: &name,
        subresource: (!call.path.subresource.is_empty()).then_some(call.path.subresource.as_str()),
        time: &time,
    };
    schema.track_update(old, new, kept, &manager);
}

/// A state computed from the one that is stored; both in the version served.
pub(crate) struct Change {
    pub(crate) object: Value,
    pub(crate) warnings: Vec<String>,
    /// Whether the managers of fields are up to date already.
    pub(crate) tracked: bool,
}

impl Call {
    /// An object as it was before a change, in the store's form.
    fn before(&self, object: &Object) -> Value {
        let mut value = object.value();
        if let Some(custom) = self.resource.custom() {
            custom.renew(&mut value, object.revision());
        }
        value
    }

    /// The same for a write that leaves the spec alone: what selectors ask about stands for it, and its text comes beside.
    fn before_but_spec<'a>(&self, object: &'a Object) -> (Value, Option<&'a RawValue>) {
        let parted = object.value_but("spec").and_then(|(mut value, spec)| {
            value["spec"] = self.resource.index_of_spec(spec).ok()?;
            Some((value, Some(spec)))
        });
        parted.unwrap_or_else(|| (self.before(object), None))
    }
}

/// Whether a change is made to an object with the managers of its fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Managers {
    /// The change is about them, too.
    Shown,
    /// They stay as they are but for what the change itself makes of them. They are half of a typical object, so that much is
    /// saved.
    SetAside,
}

impl Managers {
    /// What a change asks for that comes with such metadata.
    pub(crate) fn asked_for(metadata: &Value) -> Self {
        match metadata.get("managedFields") {
            Some(_) => Self::Shown,
            None => Self::SetAside,
        }
    }
}

/// Takes the managers of fields out of an object.
fn set_aside(object: &mut Value) -> Option<Value> {
    let metadata = object.get_mut("metadata")?.as_object_mut()?;
    metadata.remove("managedFields")
}

/// Changes an object: reads it, lets `compute` say what it shall be, writes it if nobody else has meanwhile.
pub(crate) async fn change(
    call: &Call,
    managers: Managers,
    compute: impl Fn(&Value) -> Result<Change, ApiError>,
) -> Result<Reply, ApiError> {
    let resource = &call.resource;
    let part = Part::of(call);
    let dry_run = call.query.dry_run();
    let key = call.key();
    let mut turn = None;
    for _ in 0..ATTEMPTS {
        let current = call.find()?;
        let (mut old, spec) = match managers {
            Managers::SetAside if part.leaves_spec && !dry_run => call.before_but_spec(&current),
            _ => (call.before(&current), None),
        };
        let mut converted = (!call.is_served_as_stored(&current)).then(|| call.served(&current));
        let kept = match managers {
            Managers::Shown => None,
            Managers::SetAside => {
                converted.as_mut().and_then(set_aside);
                set_aside(&mut old)
            }
        };
        let Change {
            object,
            warnings,
            tracked,
        } = compute(converted.as_ref().unwrap_or(&old))?;
        drop(converted);
        let Some(mut new) = finish(call, part, &old, kept, object, tracked)? else {
            return Ok(Reply {
                code: StatusCode::OK,
                outcome: Outcome::Stored(current),
                warnings,
            });
        };
        let finished = is_finished(resource, &old, &new);
        let kept = (!finished).then_some(&mut new);
        let companions = allocate::companions(call, Some(&old), kept)?;
        let charged = charges::charges(call, Some(&old), &new)?;
        if dry_run {
            return Ok(Reply {
                code: StatusCode::OK,
                outcome: Outcome::Value(new),
                warnings,
            });
        }
        let operation = if finished {
            Operation::Delete
        } else {
            Operation::Put(encode(call, &new, spec)?)
        };
        let mut writes = vec![Write {
            resource: resource.storage,
            key: key.clone(),
            expect: Expect::Revision(current.revision()),
            operation,
        }];
        writes.extend(companions);
        writes.extend(charged);
        match call.server.store.commit(writes).await {
            Ok(written) => {
                return Ok(Reply {
                    code: StatusCode::OK,
                    outcome: stored_outcome(written, new),
                    warnings,
                });
            }
            Err(StoreError::Conflict {
                resource: of,
                key: at,
                ..
            }) if of == resource.storage && at == key => {}
            Err(StoreError::Conflict { .. }) if turn.is_none() => {
                turn = Some(call.server.turn(&call.path.namespace).await);
            }
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(ApiError::stale(resource, &call.path.name))
}

/// Whether a write took away the last thing that kept a deleted object.
fn is_finished(resource: &Resource, old: &Value, new: &Value) -> bool {
    if !objects::is_terminating(new) || objects::has_finalizers(new) {
        return false;
    }
    if resource.storage == "namespaces" {
        return new["spec"]["finalizers"].as_array().is_none_or(Vec::is_empty);
    }
    objects::has_finalizers(old)
        && new["metadata"]["deletionGracePeriodSeconds"]
            .as_i64()
            .unwrap_or(0)
            == 0
}

/// Brings a computed state into the store's form and checks it; `None` if it changes nothing. `kept` are the managers of
/// fields that were set aside.
fn finish(
    call: &Call,
    part: &Part,
    old: &Value,
    kept: Option<Value>,
    mut new: Value,
    tracked: bool,
) -> Result<Option<Value>, ApiError> {
    let resource = &call.resource;
    let name = &call.path.name;
    if let Some(conversion) = resource.conversion {
        (conversion.stored)(&mut new);
    }
    check_name(call, &new)?;
    let given = |key: &str| new["metadata"][key].as_str().filter(|text| !text.is_empty());
    if resource.namespaced && given("namespace").is_some_and(|namespace| namespace != call.path.namespace) {
        return Err(ApiError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    if let (Some(given), Some(uid)) = (given("uid"), old["metadata"]["uid"].as_str())
        && given != uid
    {
        let why = format!("Precondition failed: UID in precondition: {given}, UID in object meta: {uid}");
        return Err(ApiError::conflict(resource, name, &why));
    }
    // Zero says no more than nothing does.
    if let Some(version) = given("resourceVersion").filter(|version| *version != "0")
        && old["metadata"]["resourceVersion"] != version
    {
        return Err(ApiError::stale(resource, name));
    }
    // Absent managers mean that the client does not care; an empty list forgets them.
    if new["metadata"]["managedFields"].is_null() {
        objects::copy(&mut new["metadata"], &old["metadata"], "managedFields");
    }
    new = part.take(call, old, new)?;
    objects::carry_over(&mut new, old);
    if let Some(custom) = resource.custom() {
        new["apiVersion"] = json!(custom.stored_api_version());
    }
    let stored = call.stored_resource();
    admission::on_write(&stored, &mut new);
    if let Some(schema) = stored.schema().filter(|_| !part.is_settled) {
        // What was sent has been pruned when it was read, by the version served.
        if resource.custom().is_some() {
            schema.prune(&mut new);
        }
        schema.default(&mut new);
    }
    allocate::complete(&stored, &mut new, Some(old));
    admission::on_change(call, &mut new, old)?;
    if objects::same(old, &new) {
        return Ok(None);
    }
    let status_counts = resource.custom().is_some() && !resource.has_status();
    if resource.generation
        && !part.keeps_generation
        && (objects::spec_differs(old, &new) || status_counts && old["status"] != new["status"])
    {
        let generation = old["metadata"]["generation"].as_i64().unwrap_or_default();
        new["metadata"]["generation"] = json!(generation + 1);
    }
    match stored.schema() {
        Some(schema) if !tracked => track(call, schema, Some(old), kept, &mut new),
        _ => {
            if let Some(kept) = kept {
                new["metadata"]["managedFields"] = kept;
            }
        }
    }
    no_late_finalizers(&stored, old, &new)?;
    if part.is_settled {
        validate_metadata(&stored, &new, Some(old))?;
    } else {
        validate(&stored, &new, Some(&part.before(old, &new)))?;
    }
    if part.is_limited {
        admission::limits::check(call, &new)?;
    }
    call.admits(&new, Some(old))?;
    Ok(Some(new))
}

/// An object on its way out takes no new finalizers.
fn no_late_finalizers(resource: &Resource, old: &Value, new: &Value) -> Result<(), ApiError> {
    if !objects::is_terminating(old) {
        return Ok(());
    }
    let before = old["metadata"]["finalizers"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let late: Vec<_> = new["metadata"]["finalizers"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|finalizer| !before.contains(finalizer))
        .map(ToString::to_string)
        .collect();
    if late.is_empty() {
        return Ok(());
    }
    let mut problems = Problems::default();
    let detail = format!(
        "no new finalizers can be added if the object is being deleted, found new finalizers [{}]",
        late.join(", ")
    );
    problems.forbidden("metadata.finalizers", &detail);
    Err(ApiError::invalid(resource, objects::name(old), &problems))
}

/// Definitions and their objects are replaced only by those who say what they have read.
fn conditional(call: &Call, object: &Value) -> Result<(), ApiError> {
    let resource = &call.resource;
    let must = resource.custom().is_some() || resource.storage == crate::custom::DEFINITIONS;
    let version = object["metadata"]["resourceVersion"].as_str();
    if !must || version.is_some_and(|version| !matches!(version, "" | "0")) {
        return Ok(());
    }
    let mut problems = Problems::default();
    problems.0.push(Problem {
        reason: Reason::Invalid,
        field: "metadata.resourceVersion".to_owned(),
        message: "Invalid value: 0x0: must be specified for an update".to_owned(),
    });
    Err(ApiError::invalid(resource, objects::name(object), &problems))
}

/// PUT.
pub(crate) async fn replace(call: &Call, decoded: Decoded) -> Result<Reply, ApiError> {
    if decoded.value.is_null() {
        return Err(ApiError::bad_request("the body is empty"));
    }
    let mut warnings = Vec::new();
    let object = receive(call, decoded, &mut warnings)?;
    conditional(call, &object)?;
    let managers = Managers::asked_for(&object["metadata"]);
    change(call, managers, |_| {
        Ok(Change {
            object: object.clone(),
            warnings: warnings.clone(),
            tracked: false,
        })
    })
    .await
}

/// Server-side apply of an object that was received.
pub(crate) async fn apply(
    call: &Call,
    applied: Value,
    force: bool,
    warnings: Vec<String>,
) -> Result<Reply, ApiError> {
    let resource = &call.resource;
    let schema = resource.schema().ok_or_else(|| {
        ApiError::unsupported_media_type("application/json-patch+json, application/merge-patch+json")
    })?;
    let time = objects::timestamp(call.now);
    let manager = call.field_manager();
    let request = ApplyRequest {
        applied: &applied,
        manager: Manager {
            name: &manager,
            subresource: (!call.path.subresource.is_empty()).then_some(call.path.subresource.as_str()),
            time: &time,
        },
        force,
    };
    let failed = |error: ApplyError| ApiError::apply(resource, &call.path.name, &error);
    for _ in 0..ATTEMPTS {
        if call.find().is_ok() || !call.path.subresource.is_empty() {
            return change(call, Managers::Shown, |live| {
                let object = schema.apply(Some(live), &request).map_err(failed)?;
                let mut object = pruned(call, object);
                if applied["metadata"]["resourceVersion"].is_string() {
                    objects::copy(&mut object["metadata"], &applied["metadata"], "resourceVersion");
                }
                Ok(Change {
                    object,
                    warnings: warnings.clone(),
                    tracked: true,
                })
            })
            .await;
        }
        if applied["metadata"]["uid"]
            .as_str()
            .is_some_and(|uid| !uid.is_empty())
        {
            let why = "uid mismatch: the provided object specified a uid, and no existing object was found";
            return Err(ApiError::conflict(resource, &call.path.name, why));
        }
        let mut object = pruned(call, schema.apply(None, &request).map_err(failed)?);
        check_name(call, &object)?;
        object["metadata"]["name"] = json!(call.path.name);
        call.require(Verb::Create)?;
        match create_object(call, object, Some(&manager), warnings.clone()).await {
            Err(error) if error.reason == "AlreadyExists" => {}
            other => return other,
        }
    }
    Err(ApiError::stale(resource, &call.path.name))
}
