//! Get and list.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use axum::body::Body;
use bytes::{BufMut as _, Bytes, BytesMut};
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::continuation::Token;
use super::negotiate::Form;
use super::status::{ApiError, json_response};
use super::table::{self, Include};
use super::{Call, Server, components};
use crate::resources::{Resource, ResourceRef};
use crate::selector::{FieldSelector, LabelSelector};
use crate::store::{Aspect, Interest, Listing, Object, Revision};

/// How long a read waits for a revision that is not there yet.
const FUTURE_WAIT: Duration = Duration::from_secs(3);
/// Paginated lists that can be continued at a time.
const MAX_SNAPSHOTS: usize = 64;
/// How long a paginated list can be continued.
const SNAPSHOT_LIFETIME: Duration = Duration::from_mins(5);

/// Which objects of a resource a request is about.
#[derive(Clone, Debug)]
pub(crate) struct Filter {
    resource: ResourceRef,
    namespace: String,
    labels: LabelSelector,
    fields: FieldSelector,
}

impl Filter {
    pub(crate) fn of(call: &Call) -> Result<Self, ApiError> {
        let bad = |error: crate::selector::SelectorError| ApiError::bad_request(error.to_string());
        let labels =
            LabelSelector::parse(call.query.get("labelSelector").unwrap_or_default()).map_err(bad)?;
        let mut text = call.query.get("fieldSelector").unwrap_or_default().to_owned();
        if !call.path.name.is_empty() {
            text = format!("metadata.name={}", call.path.name);
        }
        let fields = FieldSelector::parse(&text).map_err(bad)?;
        for requirement in fields.requirements() {
            if !call.resource.selects_by(&requirement.field) {
                let message = format!("field label not supported: {}", requirement.field);
                return Err(ApiError::bad_request(message));
            }
        }
        Ok(Self {
            resource: call.resource.clone(),
            namespace: call.path.namespace.clone(),
            labels,
            fields,
        })
    }

    /// What all matching objects have in common that watchers are told apart by.
    pub(crate) fn interest(&self) -> Option<Interest> {
        let of = |aspect, value: &str| {
            Some(Interest {
                aspect,
                value: value.into(),
            })
        };
        for (place, field) in self.resource.fields.iter().enumerate() {
            if let Some(value) = self.fields.required(field.name) {
                return of(Aspect::Field(place), value);
            }
        }
        if let Some(name) = self.fields.required("metadata.name") {
            return of(Aspect::Name, name);
        }
        match self.fields.required("metadata.namespace") {
            Some(namespace) => of(Aspect::Namespace, namespace),
            None if self.namespace.is_empty() => None,
            None => of(Aspect::Namespace, &self.namespace),
        }
    }

    /// Whether both are about the same objects.
    fn is_same(&self, other: &Self) -> bool {
        self.resource.storage == other.resource.storage
            && self.namespace == other.namespace
            && self.labels == other.labels
            && self.fields == other.fields
    }

    fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything()
    }

    pub(crate) fn matches(&self, object: &Object) -> bool {
        let meta = object.meta();
        (self.namespace.is_empty() || *meta.namespace == *self.namespace)
            && self.labels.matches(meta)
            && self
                .fields
                .matches(|field| self.resource.selected_value(object, field))
    }

    /// The matching objects and the revision they are of.
    pub(crate) fn list(&self, server: &Server) -> Listing {
        let namespace = match self.fields.required("metadata.namespace") {
            Some(namespace) if self.namespace.is_empty() => namespace,
            _ => &self.namespace,
        };
        let one = self.fields.required("metadata.name");
        if let Some(name) = one.filter(|_| !self.resource.namespaced || !namespace.is_empty()) {
            let revision = server.store.revision();
            let found = server
                .store
                .get(self.resource.storage, &self.resource.key(namespace, name));
            let revision = found
                .as_ref()
                .map_or(revision, |object| revision.max(object.revision()));
            return Listing {
                revision,
                items: found.into_iter().filter(|object| self.matches(object)).collect(),
            };
        }
        let prefix = if namespace.is_empty() {
            String::new()
        } else {
            format!("{namespace}/")
        };
        let mut listing = server.store.list(self.resource.storage, &prefix);
        if !self.is_everything() {
            listing.items.retain(|object| self.matches(object));
        }
        listing
    }
}

/// GET of one object.
pub(crate) async fn get(call: &Call) -> Result<Response<Body>, ApiError> {
    if call.resource.is_looked_up() {
        let Listing { items, .. } = components::all(&call.server, &call.resource, call.now).await;
        let found = items.iter().find(|object| *object.meta().name == *call.path.name);
        let object = found.ok_or_else(|| ApiError::not_found(&call.resource, &call.path.name))?;
        return Ok(call.render(StatusCode::OK, object));
    }
    wait_for_version(call).await?;
    let object = call.find()?;
    Ok(call.render(StatusCode::OK, &object))
}

/// GET of a collection.
pub(crate) async fn list(call: &Call) -> Result<Response<Body>, ApiError> {
    let filter = Filter::of(call)?;
    let limit = call
        .query
        .number("limit")?
        .map_or(usize::MAX, |limit| limit as usize);
    let limit = if limit == 0 { usize::MAX } else { limit };
    if call.resource.is_looked_up() {
        let mut listing = components::all(&call.server, &call.resource, call.now).await;
        listing.items.retain(|object| filter.matches(object));
        return Ok(Page::first(call, &filter, listing, limit).render(call));
    }
    let page = if let Some(token) = call.query.get("continue") {
        if call
            .query
            .get("resourceVersion")
            .is_some_and(|version| version != "0")
        {
            let why = "specifying resource version is not allowed when using continue";
            return Err(ApiError::bad_request(why));
        }
        continued(call, &filter, token, limit)?
    } else {
        wait_for_version(call).await?;
        let listing = filter.list(&call.server);
        exact(call, &listing)?;
        Page::first(call, &filter, listing, limit)
    };
    Ok(page.render(call))
}

/// Waits until the store has the version asked for.
pub(crate) async fn wait_for_version(call: &Call) -> Result<Option<Revision>, ApiError> {
    let Some(text) = call.query.get("resourceVersion") else {
        return Ok(None);
    };
    let asked: Revision = text.parse().map_err(|_| {
        ApiError::bad_request(format!(
            "resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
        ))
    })?;
    let deadline = Instant::now() + FUTURE_WAIT;
    while call.server.store.revision() < asked {
        if Instant::now() >= deadline {
            let current = call.server.store.revision();
            return Err(ApiError::timeout(format!(
                "Too large resource version: {asked}, current: {current}"
            )));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(Some(asked))
}

/// Refuses a list at an exact version that is past.
fn exact(call: &Call, listing: &Listing) -> Result<(), ApiError> {
    if call.query.get("resourceVersionMatch") != Some("Exact") {
        return Ok(());
    }
    let version: Revision = call.query.number("resourceVersion")?.unwrap_or_default();
    let unchanged = call
        .server
        .store
        .watch(call.resource.storage, version)
        .and_then(|mut watch| watch.ready());
    match unchanged {
        Ok(changes) if changes.is_empty() => Ok(()),
        _ => Err(ApiError::expired(format!(
            "The provided resource version is too old: {version} ({})",
            listing.revision
        ))),
    }
}

/// The rest of a list that was cut, as it was when its first page was read.
#[derive(Debug)]
struct Snapshot {
    id: u64,
    taken: Instant,
    revision: Revision,
    /// What was listed: who goes on with a list must ask for, and so may see, the same.
    filter: Filter,
    items: Arc<[Arc<Object>]>,
}

/// Lists that can be continued.
#[derive(Debug, Default)]
pub(crate) struct Snapshots(Mutex<(u64, VecDeque<Snapshot>)>);

impl Snapshots {
    fn keep(&self, filter: &Filter, revision: Revision, items: Arc<[Arc<Object>]>) -> u64 {
        let mut guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        guard.0 += 1;
        let id = guard.0;
        let taken = Instant::now();
        while guard
            .1
            .front()
            .is_some_and(|old| old.taken.elapsed() > SNAPSHOT_LIFETIME)
            || guard.1.len() >= MAX_SNAPSHOTS
        {
            guard.1.pop_front();
        }
        guard.1.push_back(Snapshot {
            id,
            taken,
            revision,
            filter: filter.clone(),
            items,
        });
        id
    }

    fn find(&self, token: &Token, filter: &Filter) -> Option<Arc<[Arc<Object>]>> {
        let guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut kept = guard.1.iter();
        let found = kept.find(|s| s.id == token.snapshot && s.revision == token.revision);
        found
            .filter(|s| s.taken.elapsed() <= SNAPSHOT_LIFETIME && s.filter.is_same(filter))
            .map(|s| Arc::clone(&s.items))
    }
}

fn key(resource: &Resource, object: &Object) -> String {
    resource.key(&object.meta().namespace, &object.meta().name)
}

fn continued(call: &Call, filter: &Filter, token: &str, limit: usize) -> Result<Page, ApiError> {
    let token = Token::decode(token)
        .ok_or_else(|| ApiError::bad_request("continue key is not valid: bad encoding"))?;
    if token.revision == 0 {
        let mut listing = filter.list(&call.server);
        listing
            .items
            .retain(|object| key(&call.resource, object) > token.last_key);
        return Ok(Page::first(call, filter, listing, limit));
    }
    let Some(items) = call.server.snapshots.find(&token, filter) else {
        let mut error = ApiError::expired(
            "The provided continue parameter is too old to display a consistent list result. You can start a new list \
             without the continue parameter, or use the continue token in this response to retrieve the remainder of \
             the results. Continuing with the provided token results in an inconsistent list - objects that were \
             created, modified, or deleted between the time the first chunk was returned and now may show up in the \
             list.",
        );
        let fresh = Token { revision: 0, ..token };
        error.go_on = Some(fresh.encode());
        return Err(error);
    };
    let start = items.partition_point(|object| key(&call.resource, object) <= token.last_key);
    Ok(Page::cut(
        call,
        filter,
        token.revision,
        items,
        start,
        limit,
        Some(token.snapshot),
    ))
}

/// One page of a list.
struct Page {
    revision: Revision,
    items: Vec<Arc<Object>>,
    next: Option<String>,
    remaining: Option<usize>,
}

impl Page {
    fn first(call: &Call, filter: &Filter, listing: Listing, limit: usize) -> Self {
        if listing.items.len() <= limit {
            return Self {
                revision: listing.revision,
                items: listing.items,
                next: None,
                remaining: None,
            };
        }
        Self::cut(
            call,
            filter,
            listing.revision,
            listing.items.into(),
            0,
            limit,
            None,
        )
    }

    fn cut(
        call: &Call,
        filter: &Filter,
        revision: Revision,
        items: Arc<[Arc<Object>]>,
        start: usize,
        limit: usize,
        snapshot: Option<u64>,
    ) -> Self {
        let end = start.saturating_add(limit).min(items.len());
        let page = items[start..end].to_vec();
        let left = items.len() - end;
        let next = page.last().filter(|_| left > 0).map(|last| {
            let snapshot =
                snapshot.unwrap_or_else(|| call.server.snapshots.keep(filter, revision, Arc::clone(&items)));
            let last_key = key(&call.resource, last);
            Token {
                revision,
                snapshot,
                last_key,
            }
            .encode()
        });
        Self {
            revision,
            items: page,
            remaining: (left > 0 && filter.is_everything()).then_some(left),
            next,
        }
    }

    fn metadata(&self) -> Value {
        let mut metadata = json!({"resourceVersion": self.revision.to_string()});
        if let Some(next) = &self.next {
            metadata["continue"] = json!(next);
        }
        if let Some(remaining) = self.remaining {
            metadata["remainingItemCount"] = json!(remaining);
        }
        metadata
    }

    fn render(&self, call: &Call) -> Response<Body> {
        let metadata = self.metadata();
        let values = || {
            self.items
                .iter()
                .map(|object| call.served(object))
                .collect::<Vec<_>>()
        };
        let body: Bytes = match call.form {
            Form::Table => {
                let include = Include::parse(call.query.get("includeObject"));
                table::table(&call.resource, &values(), metadata, include, call.now, true)
                    .to_string()
                    .into()
            }
            Form::Metadata => {
                let head = format!(
                    "{{\"kind\":\"PartialObjectMetadataList\",\"apiVersion\":\"meta.k8s.io/v1\",\"metadata\":{metadata},\"items\":["
                );
                let mut body = BytesMut::from(head.as_bytes());
                for (index, object) in self.items.iter().enumerate() {
                    if index > 0 {
                        body.put_u8(b',');
                    }
                    body.put_slice(&table::partial_text(&call.served_text(object)));
                }
                body.put_slice(b"]}\n");
                body.freeze()
            }
            Form::Object => self.objects(call, &metadata),
        };
        json_response(StatusCode::OK, body)
    }

    fn objects(&self, call: &Call, metadata: &Value) -> Bytes {
        let head = format!(
            "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":[",
            call.resource.list_kind(),
            call.resource.api_version()
        );
        let size: usize = self.items.iter().map(|object| object.body().len() + 1).sum();
        let mut body = BytesMut::with_capacity(head.len() + size + 3);
        body.put_slice(head.as_bytes());
        for (index, object) in self.items.iter().enumerate() {
            if index > 0 {
                body.put_u8(b',');
            }
            body.put_slice(&call.served_text(object));
        }
        body.put_slice(b"]}\n");
        body.freeze()
    }
}
