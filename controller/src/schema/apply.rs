//! Server-side apply and the tracking of who set which field.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::custom::schema::Schema;

mod field_set;
mod managers;
mod walk;

use field_set::FieldSet;
use managers::{Entry, Operation};
use walk::Slot;

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

/// What is applied to: the schema and name of a kind.
pub(crate) struct Target<'a> {
    root: Slot<'a>,
    api_version: String,
    kind: &'a str,
}

impl<'a> Target<'a> {
    /// A built-in kind.
    pub(super) fn built_in(schema: &super::KindSchema) -> Self {
        Self {
            root: Slot::root(schema.root()),
            api_version: schema.api_version(),
            kind: schema.kind(),
        }
    }

    /// A custom resource.
    pub(crate) fn custom(schema: &'a Schema, api_version: String, kind: &'a str) -> Self {
        Self {
            root: Slot::custom(schema),
            api_version,
            kind,
        }
    }
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
}

fn conflict_message(conflicts: &[Conflict]) -> String {
    if let [one] = conflicts {
        return format!("Apply failed with 1 conflict: {}: {}", one.message, one.field);
    }
    let mut by_manager: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for conflict in conflicts {
        by_manager
            .entry(&conflict.message)
            .or_default()
            .push(&conflict.field);
    }
    let mut lines = Vec::new();
    for (message, fields) in by_manager {
        lines.push(format!("{}:", message.replacen("conflict ", "conflicts ", 1)));
        lines.extend(fields.into_iter().map(|field| format!("- {field}")));
    }
    format!(
        "Apply failed with {} conflicts: {}",
        conflicts.len(),
        lines.join("\n")
    )
}

/// Fields that nobody manages: they name the object, or the server sets them.
const UNMANAGED: &[&[&str]] = &[
    &["f:apiVersion"],
    &["f:kind"],
    &["f:metadata", "f:name"],
    &["f:metadata", "f:namespace"],
    &["f:metadata", "f:creationTimestamp"],
    &["f:metadata", "f:selfLink"],
    &["f:metadata", "f:uid"],
    &["f:metadata", "f:clusterName"],
    &["f:metadata", "f:generation"],
    &["f:metadata", "f:managedFields"],
    &["f:metadata", "f:resourceVersion"],
];

/// What of a write through `subresource` counts: `status` and the main resource do not change each other's part.
fn strip(set: &mut FieldSet, subresource: Option<&str>) {
    for path in UNMANAGED {
        set.remove(path);
    }
    match subresource {
        None => set.remove(&["f:status"]),
        Some("status") => {
            set.retain_only(&[
                &["f:status"],
                &["f:metadata", "f:labels"],
                &["f:metadata", "f:annotations"],
                &["f:metadata", "f:finalizers"],
            ]);
        }
        Some(_) => {}
    }
    // What only led to the fields above is nothing by itself.
    if let Some(metadata) = set.children.get_mut("f:metadata") {
        metadata.member = false;
        if metadata.is_empty() {
            set.children.remove("f:metadata");
        }
    }
    set.member = false;
}

/// Applies; `check` says what is wrong with the applied object's fields, and `canonical` brings an object into the form in which
/// it is stored.
pub(crate) fn apply(
    target: &Target<'_>,
    check: impl Fn(&Value) -> Result<(), String>,
    canonical: impl Fn(&mut Value),
    live: Option<&Value>,
    request: &ApplyRequest<'_>,
) -> Result<Value, ApplyError> {
    let manager = request.manager;
    let mut applied = request.applied.clone();
    check_applied(target, check, &mut applied)?;
    let slot = target.root;
    let mut owned = walk::collect(slot, &applied);
    // What nobody owns alone, like its name, stays with what is applied.
    let all = owned.clone();
    strip(&mut owned, manager.subresource);
    let mut merged = walk::merge(slot, live, &applied);
    let mut entries = match live {
        None => Vec::new(),
        Some(live) => managers::read(live).unwrap_or_else(|| before_first_apply(target, live)),
    };
    let api_version = target.api_version.clone();
    let is_own = |entry: &Entry| entry.is(manager.name, Operation::Apply, &api_version, manager.subresource);
    let previous = entries.iter().find(|entry| is_own(entry)).cloned();
    entries.retain(|entry| !is_own(entry));

    if let Some(live) = live {
        // What is no difference to the store is none to other managers, and a zero value takes theirs away.
        let mut stored = merged.clone();
        canonical(&mut stored);
        let found = walk::difference(slot, Some(live), Some(&stored));
        let mut changed = found.changed;
        changed.union(found.removed);
        strip(&mut changed, manager.subresource);
        let changed = changed.intersection(&owned);
        let allowed = match manager.name {
            // What it applied itself before, when it still did that on the client's side.
            "kubectl" => last_applied(target, canonical, live),
            _ => FieldSet::default(),
        };
        take_over(&mut entries, &changed, &allowed, request.force)?;
    }
    if let Some(previous) = &previous {
        let mut gone = previous.fields.clone();
        gone.subtract(&owned);
        let mut kept = all;
        for entry in &entries {
            kept.union(entry.fields.clone());
        }
        walk::remove(slot, &mut merged, &gone, &kept);
    }
    let time = match previous {
        Some(previous) if previous.fields == owned => previous.time,
        _ => Some(manager.time.to_owned()),
    };
    entries.push(Entry {
        manager: manager.name.to_owned(),
        operation: Operation::Apply,
        api_version,
        subresource: manager.subresource.map(str::to_owned),
        time,
        fields: owned,
    });
    managers::write(&mut merged, entries);
    Ok(merged)
}

/// Whatever can be wrong with the applied object itself.
fn check_applied(
    target: &Target<'_>,
    check: impl Fn(&Value) -> Result<(), String>,
    applied: &mut Value,
) -> Result<(), ApplyError> {
    let Value::Object(object) = &mut *applied else {
        return Err(ApplyError::Malformed(
            "an applied configuration must be an object".to_owned(),
        ));
    };
    if let Some(Value::Object(metadata)) = object.get_mut("metadata") {
        match metadata.remove("managedFields") {
            None | Some(Value::Null) => {}
            Some(_) => {
                return Err(ApplyError::Malformed(
                    "metadata.managedFields must be nil".to_owned(),
                ));
            }
        }
        // Nobody applies the time of creation; clients often send it as null.
        if metadata.get("creationTimestamp").is_some_and(Value::is_null) {
            metadata.remove("creationTimestamp");
        }
    }
    let described = |problem: String| {
        let metadata = |name: &str| applied["metadata"][name].as_str().unwrap_or_default();
        let name = match metadata("namespace") {
            "" => format!("/{}", metadata("name")),
            namespace => format!("{namespace}/{}", metadata("name")),
        };
        ApplyError::Malformed(format!(
            "failed to create typed patch object ({name}; {}, Kind={}): {problem}",
            target.api_version, target.kind
        ))
    };
    check(applied).map_err(described)?;
    walk::check_keys(target.root, applied).map_err(described)
}

/// The one manager of an object that was written before anybody kept track.
fn before_first_apply(target: &Target<'_>, live: &Value) -> Vec<Entry> {
    let mut fields = walk::collect(target.root, live);
    strip(&mut fields, None);
    vec![Entry {
        manager: "before-first-apply".to_owned(),
        operation: Operation::Update,
        api_version: target.api_version.clone(),
        subresource: None,
        time: None,
        fields,
    }]
}

/// The fields that are as `kubectl apply` left them when it last computed the patch itself.
fn last_applied(target: &Target<'_>, canonical: impl Fn(&mut Value), live: &Value) -> FieldSet {
    const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
    let text = live["metadata"]["annotations"][LAST_APPLIED].as_str();
    let Some(mut last) = text.and_then(|text| serde_json::from_str::<Value>(text).ok()) else {
        return FieldSet::default();
    };
    if last["apiVersion"] != target.api_version.as_str() {
        return FieldSet::default();
    }
    canonical(&mut last);
    let since = walk::difference(target.root, Some(&last), Some(live));
    let mut fields = walk::collect(target.root, &last);
    fields.subtract(&since.changed);
    fields.subtract(&since.removed);
    fields
}

/// Takes the changed fields from the other managers, or says that they are theirs. The `allowed` ones are no reason for a refusal.
fn take_over(
    entries: &mut [Entry],
    changed: &FieldSet,
    allowed: &FieldSet,
    force: bool,
) -> Result<(), ApplyError> {
    let mut conflicts = Vec::new();
    for entry in entries.iter().filter(|_| !force) {
        let mut contested = entry.fields.intersection(changed);
        contested.subtract(allowed);
        let message = format!("conflict with {}", entry.described());
        conflicts.extend(contested.paths().into_iter().map(|field| Conflict {
            message: message.clone(),
            field,
        }));
    }
    if !conflicts.is_empty() {
        return Err(ApplyError::Conflict(conflicts));
    }
    for entry in entries {
        let contested = entry.fields.intersection(changed);
        entry.fields.subtract(&contested);
    }
    Ok(())
}

pub(crate) fn track_update(
    target: &Target<'_>,
    live: Option<&Value>,
    new: &mut Value,
    kept: Option<Value>,
    manager: &Manager<'_>,
) {
    let sent = new
        .get("metadata")
        .and_then(|metadata| metadata.get("managedFields"))
        .and_then(Value::as_array);
    let reset = sent.is_some_and(|list| {
        list.is_empty()
            || list
                .iter()
                .all(|entry| entry.as_object().is_some_and(Map::is_empty))
    });
    if reset {
        managers::write(new, Vec::new());
        return;
    }
    let walk::Difference {
        mut changed,
        mut removed,
    } = walk::difference(target.root, live, Some(new));
    strip(&mut changed, manager.subresource);
    strip(&mut removed, manager.subresource);
    // What a client sent itself is to be read and brought into our form.
    let as_before = kept.is_some() || managers::list(new) == live.and_then(managers::list);
    managers::put_back(new, kept);
    if !as_before || !managers::note(target, new, manager, &changed, &removed) {
        settle(target, live, new, manager, changed, removed);
    }
}

/// Notes a change of fields that may be others' as well.
fn settle(
    target: &Target<'_>,
    live: Option<&Value>,
    new: &mut Value,
    manager: &Manager<'_>,
    changed: FieldSet,
    removed: FieldSet,
) {
    let mut entries = managers::read(new)
        .or_else(|| managers::read(live?))
        .unwrap_or_default();
    if changed.is_empty() && removed.is_empty() {
        managers::write(new, entries);
        return;
    }
    let api_version = target.api_version.clone();
    let is_own = |entry: &Entry| entry.is(manager.name, Operation::Update, &api_version, manager.subresource);
    for entry in entries.iter_mut().filter(|entry| !is_own(entry)) {
        entry.fields.subtract(&changed);
    }
    for entry in &mut entries {
        entry.fields.subtract(&removed);
    }
    if let Some(own) = entries.iter_mut().find(|entry| is_own(entry)) {
        own.fields.union(changed);
        own.time = Some(manager.time.to_owned());
    } else {
        entries.push(Entry {
            manager: manager.name.to_owned(),
            operation: Operation::Update,
            api_version,
            subresource: manager.subresource.map(str::to_owned),
            time: Some(manager.time.to_owned()),
            fields: changed,
        });
    }
    managers::write(new, entries);
}

#[cfg(test)]
mod tests;
