//! Deletion: at once, or step by step where finalizers, a grace period or a namespace's content stand before it.

use std::sync::Arc;

use futures::{StreamExt as _, stream};
use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::negotiate::Decoded;
use super::read::Filter;
use super::status::{ApiError, success};
use super::write::{Outcome, Reply};
use super::{Call, allocate, definitions, objects};
use crate::resources::Resource;
use crate::store::{Encoded, Expect, Object, Operation, StoreError, Write};

/// How often a deletion is tried again when others write the object meanwhile.
const ATTEMPTS: usize = 50;
/// Deletions of one collection in flight.
const DELETIONS_AT_A_TIME: usize = 64;
/// A pod's grace period where neither the request nor the pod says.
const DEFAULT_GRACE_SECONDS: i64 = 30;

/// How to delete.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    grace_seconds: Option<i64>,
    propagation: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    dry_run: bool,
}

impl Options {
    /// Whether nothing is to be deleted.
    pub(crate) fn dry_run(&self) -> bool {
        self.dry_run
    }

    /// Whether they are about one version of the object.
    pub(super) fn is_of_version(&self) -> bool {
        self.resource_version.is_some()
    }

    /// The same, and for this object alone, not for another that gets its name.
    pub(super) fn of_object(mut self, object: &Value) -> Self {
        self.uid = object["metadata"]["uid"].as_str().map(str::to_owned);
        // It is written on its way out.
        self.resource_version = None;
        self
    }

    /// Reads DeleteOptions from the body, else from the query.
    pub(crate) fn of(call: &Call, decoded: &Decoded) -> Result<Self, ApiError> {
        let body = &decoded.value;
        if !body.is_null() && !body.is_object() {
            return Err(ApiError::bad_request("DeleteOptions must be an object"));
        }
        Self::read(call, body)
    }

    pub(crate) fn read(call: &Call, body: &Value) -> Result<Self, ApiError> {
        let grace = match &body["gracePeriodSeconds"] {
            Value::Null => call
                .query
                .get("gracePeriodSeconds")
                .map(|text| {
                    text.parse()
                        .map_err(|_| ApiError::bad_request("gracePeriodSeconds is not a number"))
                })
                .transpose()?,
            value => Some(
                value
                    .as_i64()
                    .ok_or_else(|| ApiError::bad_request("gracePeriodSeconds is not a number"))?,
            ),
        };
        let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        let mut propagation = text(&body["propagationPolicy"])
            .or_else(|| call.query.get("propagationPolicy").map(str::to_owned));
        if propagation.is_none()
            && let Some(orphan) = body["orphanDependents"]
                .as_bool()
                .or_else(|| call.query.get("orphanDependents")?.parse().ok())
        {
            propagation = Some(if orphan { "Orphan" } else { "Background" }.to_owned());
        }
        if let Some(policy) = &propagation
            && !matches!(policy.as_str(), "Background" | "Foreground" | "Orphan")
        {
            return Err(ApiError::unprocessable(format!(
                "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Unsupported value: {policy:?}: supported \
                 values: \"Foreground\", \"Background\", \"Orphan\", \"nil\""
            )));
        }
        let mut dry_run = call.query.dry_run();
        for entry in body["dryRun"].as_array().into_iter().flatten() {
            if entry != "All" {
                return Err(ApiError::unprocessable(format!(
                    "dryRun: Unsupported value: {entry}: supported values: \"All\""
                )));
            }
            dry_run = true;
        }
        Ok(Self {
            grace_seconds: grace,
            propagation,
            uid: text(&body["preconditions"]["uid"]),
            resource_version: text(&body["preconditions"]["resourceVersion"]),
            dry_run,
        })
    }
}

/// What a deletion does to an object.
enum Step {
    /// It goes.
    Remove,
    /// It is marked, or its mark changes.
    Mark(Value),
    /// It is marked already.
    Nothing,
}

/// DELETE of one object.
pub(crate) async fn delete(call: &Call, options: &Options) -> Result<Reply, ApiError> {
    let mut reply = delete_key(call, &call.key(), &call.path.name, options).await?;
    reply.warnings.extend(warning(call, options));
    Ok(reply)
}

/// People expect a Job's pods to go with it, and kubectl asks for that.
fn warning(call: &Call, options: &Options) -> Option<String> {
    let unsaid = options.propagation.is_none() && call.resource.storage == "batch/jobs";
    unsaid.then(|| {
        "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or \
         set propagationPolicy=Orphan to suppress this warning"
            .to_owned()
    })
}

async fn delete_key(call: &Call, key: &str, name: &str, options: &Options) -> Result<Reply, ApiError> {
    let resource = &call.resource;
    for _ in 0..ATTEMPTS {
        let current = call
            .server
            .store
            .get(resource.storage, key)
            .ok_or_else(|| ApiError::not_found(resource, name))?;
        let value = current.value();
        preconditions(resource, name, &value, options)?;
        call.admits(&value, Some(&value))?;
        let step = step(resource, name, &value, options, call.now)?;
        let operation = match &step {
            Step::Nothing => {
                return Ok(Reply {
                    code: StatusCode::OK,
                    outcome: Outcome::Stored(current),
                    warnings: Vec::new(),
                });
            }
            Step::Remove => Operation::Delete,
            Step::Mark(marked) => Operation::Put(Encoded::new(marked, call.stored_resource().index(marked))),
        };
        if options.dry_run {
            return Ok(answer(resource, step, &current, &value));
        }
        let mut writes = vec![Write {
            resource: resource.storage,
            key: key.to_owned(),
            expect: Expect::Revision(current.revision()),
            operation,
        }];
        if matches!(step, Step::Remove) {
            writes.extend(allocate::companions(call, Some(&value), None)?);
        }
        match call.server.store.commit(writes).await {
            Ok(written) => {
                let last = written.into_iter().next().unwrap_or(current);
                return Ok(answer(resource, step, &last, &value));
            }
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(ApiError::stale(resource, name))
}

fn answer(resource: &Resource, step: Step, object: &Arc<Object>, before: &Value) -> Reply {
    match step {
        Step::Remove if resource.storage != "pods" => {
            let mut details = json!({
                "name": before["metadata"]["name"], "kind": resource.plural, "uid": before["metadata"]["uid"],
            });
            if !resource.group.is_empty() {
                details["group"] = json!(resource.group);
            }
            Reply::status(StatusCode::OK, success(details))
        }
        Step::Mark(marked) if object.value()["metadata"]["deletionTimestamp"].is_null() => Reply {
            code: StatusCode::OK,
            outcome: Outcome::Value(marked),
            warnings: Vec::new(),
        },
        _ => Reply {
            code: StatusCode::OK,
            outcome: Outcome::Stored(Arc::clone(object)),
            warnings: Vec::new(),
        },
    }
}

/// Refuses to delete an object that is not the one that was meant.
pub(super) fn preconditions(
    resource: &Resource,
    name: &str,
    object: &Value,
    options: &Options,
) -> Result<(), ApiError> {
    let unmet = |what: &str, asked: &str, is: &Value| {
        let is = is.as_str().unwrap_or_default();
        let why =
            format!("Precondition failed: {what} in precondition: {asked}, {what} in object meta: {is}");
        ApiError::conflict(resource, name, &why)
    };
    let metadata = &object["metadata"];
    if let Some(uid) = &options.uid
        && metadata["uid"] != *uid
    {
        return Err(unmet("UID", uid, &metadata["uid"]));
    }
    if let Some(version) = &options.resource_version
        && metadata["resourceVersion"] != *version
    {
        return Err(unmet("ResourceVersion", version, &metadata["resourceVersion"]));
    }
    Ok(())
}

/// Namespaces that a cluster is nothing without.
const IMMORTAL: &[&str] = &["default", "kube-public", "kube-system"];

/// Decides what a deletion does to an object.
fn step(
    resource: &Resource,
    name: &str,
    object: &Value,
    options: &Options,
    now: Timestamp,
) -> Result<Step, ApiError> {
    let mut marked = object.clone();
    let finalizers = finalizers(resource, object, options);
    marked["metadata"]["finalizers"] = json!(finalizers);
    if finalizers.is_empty()
        && let Some(metadata) = marked["metadata"].as_object_mut()
    {
        metadata.remove("finalizers");
    }
    let terminating = objects::is_terminating(object);
    if resource.storage == crate::custom::DEFINITIONS && !terminating {
        definitions::mark_deleted(&mut marked, now);
        mark(&mut marked, 0, now);
        return Ok(Step::Mark(marked));
    }
    if resource.storage == "namespaces" {
        if IMMORTAL.contains(&name) {
            return Err(ApiError::forbidden(
                resource,
                name,
                "this namespace may not be deleted",
            ));
        }
        let content = object["spec"]["finalizers"]
            .as_array()
            .is_some_and(|list| !list.is_empty());
        if content || !finalizers.is_empty() {
            if terminating {
                return Ok(Step::Nothing);
            }
            mark(&mut marked, 0, now);
            marked["status"]["phase"] = json!("Terminating");
            return Ok(Step::Mark(marked));
        }
        return Ok(Step::Remove);
    }
    let grace = if resource.storage == "pods" {
        pod_grace(object, options)
    } else {
        0
    };
    if grace == 0 && finalizers.is_empty() {
        return Ok(Step::Remove);
    }
    if terminating {
        let left = object["metadata"]["deletionGracePeriodSeconds"]
            .as_i64()
            .unwrap_or(0);
        let sooner = options.grace_seconds.is_some() && grace < left;
        if !sooner && marked == *object {
            return Ok(Step::Nothing);
        }
        if sooner {
            mark(&mut marked, grace, now);
        }
        return Ok(Step::Mark(marked));
    }
    mark(&mut marked, grace, now);
    Ok(Step::Mark(marked))
}

fn mark(object: &mut Value, grace_seconds: i64, now: Timestamp) {
    let first = !objects::is_terminating(object);
    let end = now
        .checked_add(SignedDuration::from_secs(grace_seconds))
        .unwrap_or(now);
    let metadata = &mut object["metadata"];
    metadata["deletionTimestamp"] = json!(objects::timestamp(end));
    metadata["deletionGracePeriodSeconds"] = json!(grace_seconds);
    if let (true, Some(generation)) = (first, metadata["generation"].as_i64()) {
        metadata["generation"] = json!(generation + 1);
    }
}

fn pod_grace(pod: &Value, options: &Options) -> i64 {
    let on_node = pod["spec"]["nodeName"]
        .as_str()
        .is_some_and(|node| !node.is_empty());
    let finished = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if !on_node || finished {
        return 0;
    }
    let own = pod["spec"]["terminationGracePeriodSeconds"].as_i64();
    let grace = options.grace_seconds.or(own).unwrap_or(DEFAULT_GRACE_SECONDS);
    if grace < 0 { 1 } else { grace }
}

/// The object's finalizers with the one that the propagation policy stands for.
fn finalizers(resource: &Resource, object: &Value, options: &Options) -> Vec<Value> {
    const FOREGROUND: &str = "foregroundDeletion";
    const ORPHAN: &str = "orphan";
    let mut list = object["metadata"]["finalizers"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let is_policy = |finalizer: &Value| *finalizer == FOREGROUND || *finalizer == ORPHAN;
    let wanted = match options.propagation.as_deref() {
        Some("Foreground") => Some(FOREGROUND),
        Some("Orphan") => Some(ORPHAN),
        Some(_) => None,
        None if resource.orphans && !objects::is_terminating(object) && !list.iter().any(is_policy) => {
            Some(ORPHAN)
        }
        None => return list,
    };
    list.retain(|finalizer| !is_policy(finalizer) || wanted.is_some_and(|wanted| *finalizer == wanted));
    if let Some(wanted) = wanted.map(|wanted| json!(wanted))
        && !list.contains(&wanted)
    {
        list.push(wanted);
    }
    list
}

/// DELETE of a collection.
pub(crate) async fn delete_collection(call: &Call, options: &Options) -> Result<Reply, ApiError> {
    let filter = Filter::of(call)?;
    let listing = filter.list(&call.server);
    let mut items = Vec::with_capacity(listing.items.len());
    let deletions = listing.items.into_iter().map(|object| async move {
        let meta = object.meta();
        let key = call.resource.key(&meta.namespace, &meta.name);
        let deleted = delete_key(call, &key, &meta.name, options).await;
        (object, deleted)
    });
    // Deletions in flight together share commits.
    let mut deletions = stream::iter(deletions).buffered(DELETIONS_AT_A_TIME);
    while let Some((object, deleted)) = deletions.next().await {
        match deleted {
            Ok(_) => items.push(call.served(&object)),
            Err(error) if error.reason == "NotFound" => {}
            Err(error) => return Err(error),
        }
    }
    let list = json!({
        "kind": call.resource.list_kind(), "apiVersion": call.resource.api_version(),
        "metadata": {"resourceVersion": call.server.store.revision().to_string()}, "items": items,
    });
    let mut reply = Reply::status(StatusCode::OK, list);
    reply.warnings.extend(warning(call, options));
    Ok(reply)
}
