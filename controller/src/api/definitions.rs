//! The life of a CustomResourceDefinition: its names are accepted, its objects are served, and when it is deleted, they go
//! before it does.
//!
//! This is the API server's own work, not a controller's: without it a definition that was written would mean nothing.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use jiff::Timestamp;
use serde_json::{Value, json};
use tracing::{debug, warn};

use super::negotiate::{Decoded, Form};
use super::request::{Query, ResourcePath, Verb};
use super::status::ApiError;
use super::write::{self, Change, Managers};
use super::{Call, Server, delete, objects};
use crate::auth::Identity;
use crate::custom::{CLEANUP_FINALIZER, DEFINITIONS, names};
use crate::resources::{self, ResourceRef, Subresource};
use crate::store::Object;

/// How often work that could not be finished is tried again: objects may have finalizers of their own.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Makes a definition wait for its objects when it is deleted.
pub(super) fn mark_deleted(definition: &mut Value, now: Timestamp) {
    let finalizers = &mut definition["metadata"]["finalizers"];
    if !finalizers.is_array() {
        *finalizers = json!([]);
    }
    if let Some(list) = finalizers.as_array_mut()
        && !list.contains(&json!(CLEANUP_FINALIZER))
    {
        list.push(json!(CLEANUP_FINALIZER));
    }
    names::set_condition(
        &mut definition["status"],
        "Terminating",
        (
            "True",
            "InstanceDeletionPending",
            "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon",
        ),
        &objects::timestamp(now),
    );
}

/// Remembers in which versions objects may be stored.
pub(super) fn keep_stored_versions(definition: &mut Value) {
    let versions = definition["spec"]["versions"].as_array().into_iter().flatten();
    let stored = versions.filter(|version| version["storage"] == true);
    let Some(name) = stored.map(|version| version["name"].clone()).next() else {
        return;
    };
    if !definition["status"].is_object() {
        definition["status"] = json!({});
    }
    match definition["status"]["storedVersions"].as_array_mut() {
        Some(list) if list.contains(&name) => {}
        Some(list) => list.push(name),
        None => definition["status"]["storedVersions"] = json!([name]),
    }
}

/// Follows definitions until the server stops.
pub(super) async fn run(server: &Arc<Server>) {
    loop {
        let listing = server.store.list(DEFINITIONS, "");
        let mut unfinished = false;
        for object in &listing.items {
            unfinished |= match reconcile(server, object, &listing.items).await {
                Ok(done) => !done,
                // Whoever was faster makes the next change, which is seen.
                Err(error) if matches!(error.code, 404 | 409) => false,
                Err(error) => {
                    warn!(definition = %object.meta().name, %error, "a definition could not be brought in order");
                    true
                }
            };
        }
        // Old requests of definitions that changed are told at once, not when somebody asks for one.
        server.custom.table(server.store.as_ref());
        let Ok(mut changes) = server.store.watch(DEFINITIONS, listing.revision) else {
            continue;
        };
        let retry = async {
            if unfinished {
                tokio::time::sleep(RETRY_INTERVAL).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = server.shutdown.cancelled() => return,
            _ = changes.next() => {}
            () = retry => {}
        }
    }
}

/// Brings one definition in order; says whether nothing is left to do for it.
async fn reconcile(server: &Arc<Server>, object: &Object, all: &[Arc<Object>]) -> Result<bool, ApiError> {
    let definition = object.value();
    let name = &object.meta().name;
    let now = objects::timestamp(Timestamp::now());
    if objects::is_terminating(&definition) {
        let finalizers = definition["metadata"]["finalizers"].as_array();
        if !finalizers.is_some_and(|list| list.contains(&json!(CLEANUP_FINALIZER))) {
            return Ok(true);
        }
        return clean_up(server, name, &definition, &now).await;
    }
    let mut taken = names::Taken::default();
    let group = &definition["spec"]["group"];
    for row in resources::all().filter(|row| group == row.group) {
        let list_kind = format!("{}List", row.kind);
        taken.add([row.plural, row.singular], [row.kind, list_kind.as_str()]);
    }
    for other in all.iter().filter(|other| other.meta().name != *name) {
        let other = other.value();
        if other["spec"]["group"] == *group {
            taken.add_definition(&other);
        }
    }
    let status = names::decide(&definition, &taken, &now);
    if status == definition["status"] {
        return Ok(true);
    }
    write_status(server, name, move |mut current: Value| {
        // Decided on what was read; a definition that changed meanwhile is looked at again.
        if current["metadata"]["generation"] == definition["metadata"]["generation"] {
            current["status"] = status.clone();
        }
        current
    })
    .await?;
    debug!(definition = %name, "the names of a definition were decided upon");
    Ok(true)
}

/// Deletes the objects of a definition that is being deleted, then lets it go.
async fn clean_up(server: &Arc<Server>, name: &str, definition: &Value, now: &str) -> Result<bool, ApiError> {
    let table = server.custom.table(server.store.as_ref());
    if let Some(custom) = table.stored(name) {
        let resource = ResourceRef::Custom(Arc::new(custom));
        let storage = resource.storage;
        if server.store.count(storage) > 0 {
            let (reason, message) = (
                "InstanceDeletionInProgress",
                "CustomResource deletion is in progress",
            );
            let progress = ("True", reason, message);
            say_terminating(server, name, definition, progress, now).await?;
            let call = call(server, resource, Verb::DeleteCollection, "", "")?;
            let options = delete::Options::of(&call, &Decoded::default())?;
            delete::delete_collection(&call, &options).await?;
            if server.store.count(storage) > 0 {
                return Ok(false);
            }
        }
    }
    let done = ("False", "InstanceDeletionCompleted", "removed all instances");
    say_terminating(server, name, definition, done, now).await?;
    let definitions = definitions()?;
    let call = call(server, definitions, Verb::Update, name, "")?;
    write::change(&call, Managers::SetAside, |current| {
        let mut object = current.clone();
        if let Some(list) = object["metadata"]["finalizers"].as_array_mut() {
            list.retain(|finalizer| *finalizer != CLEANUP_FINALIZER);
        }
        Ok(unwarned(object))
    })
    .await?;
    Ok(true)
}

async fn say_terminating(
    server: &Arc<Server>,
    name: &str,
    definition: &Value,
    is: (&str, &str, &str),
    now: &str,
) -> Result<(), ApiError> {
    let mut after = definition["status"].clone();
    names::set_condition(&mut after, "Terminating", is, now);
    if after == definition["status"] {
        return Ok(());
    }
    write_status(server, name, |mut current| {
        names::set_condition(&mut current["status"], "Terminating", is, now);
        current
    })
    .await
}

async fn write_status(
    server: &Arc<Server>,
    name: &str,
    change: impl Fn(Value) -> Value,
) -> Result<(), ApiError> {
    let call = call(
        server,
        definitions()?,
        Verb::Update,
        name,
        Subresource::Status.name(),
    )?;
    let computed = |current: &Value| Ok(unwarned(change(current.clone())));
    write::change(&call, Managers::SetAside, computed).await?;
    Ok(())
}

fn unwarned(object: Value) -> Change {
    Change {
        object,
        warnings: Vec::new(),
        tracked: false,
    }
}

fn definitions() -> Result<ResourceRef, ApiError> {
    let row = resources::stored_as(DEFINITIONS).ok_or_else(ApiError::no_such_path)?;
    Ok(ResourceRef::BuiltIn(row))
}

/// A request of the server's own.
fn call(
    server: &Arc<Server>,
    resource: ResourceRef,
    verb: Verb,
    name: &str,
    subresource: &str,
) -> Result<Call, ApiError> {
    Ok(Call {
        server: Arc::clone(server),
        identity: Identity::control_plane(),
        form: Form::Object,
        headers: HeaderMap::new(),
        query: Query::parse("fieldManager=weft-api")?,
        path: ResourcePath {
            group: resource.group.to_owned(),
            version: resource.version.to_owned(),
            plural: resource.plural.to_owned(),
            name: name.to_owned(),
            subresource: subresource.to_owned(),
            ..ResourcePath::default()
        },
        resource,
        verb,
        now: Timestamp::now(),
    })
}
