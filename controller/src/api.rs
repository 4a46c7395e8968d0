//! The API server: one path from request to answer for all resources of the table.
//!
//! A request is authenticated, counted, taken apart, authorised, and dispatched by verb. All errors leave as a `Status`.

mod access;
mod admission;
mod allocate;
pub mod audit;
mod charges;
mod components;
pub mod continuation;
mod definitions;
mod delete;
mod discovery;
mod eviction;
mod expiry;
mod health;
mod limits;
pub mod negotiate;
mod objects;
mod options;
mod part;
mod patch;
mod read;
mod repair;
pub mod request;
mod reviews;
pub mod status;
mod subresources;
mod table;
mod token_request;
mod watch;
mod write;

use std::borrow::Cow;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use bytes::{Bytes, BytesMut};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use ipnetwork::IpNetwork;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use self::audit::{AuditLog, Trail};
pub use self::limits::Limits;
use self::limits::Seats;
use self::negotiate::Form;
use self::request::{Query, ResourcePath, Verb};
use self::status::{ApiError, json_response};
use self::write::{Outcome, Reply};
use crate::auth::authorizer::{Authorizer, is_public};
use crate::auth::service_account::keys::TokenKeys;
use crate::auth::{self, Authenticator, Identity};
use crate::custom::Registry;
use crate::metrics;
use crate::pki::Authority;
use crate::resources::{self, ResourceRef, Subresource};
use crate::store::{Object, Store};

/// Bytes of warnings in one answer; clients refuse long headers.
const MAX_WARNINGS: usize = 4096;

/// How many namespaces can be written in turn at the same time.
const TURNS: usize = 64;

/// What requests share.
pub struct Server {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) authority: Arc<Authority>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) seats: Arc<Seats>,
    pub(crate) audit: Option<AuditLog>,
    pub(crate) snapshots: read::Snapshots,
    pub(crate) counters: Counters,
    /// Whose turn it is to write what the writers of a namespace share, once they got in each other's way.
    turns: [Mutex<()>; TURNS],
    pub(crate) custom: Registry,
    pub(crate) limits: Limits,
    pub(crate) token_keys: Arc<TokenKeys>,
    pub(crate) authorizer: Authorizer,
    pub(crate) authenticator: Authenticator,
    /// Ranges of Services' addresses, the default family first.
    pub(crate) service_ranges: Vec<IpNetwork>,
    /// The parts of the control plane that run in this process without an election.
    runs: String,
    address: String,
}

/// What `/metrics` tells.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    requests: AtomicU64,
    failures: AtomicU64,
    refused: AtomicU64,
}

impl Server {
    /// A server over a store; `address` is what clients are told to connect to.
    pub fn new(
        store: Arc<dyn Store>,
        authority: Arc<Authority>,
        token_keys: Arc<TokenKeys>,
        audit: Option<AuditLog>,
        limits: Limits,
        address: String,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            authorizer: Authorizer::new(Arc::clone(&store)),
            authenticator: Authenticator::new(Arc::clone(&store), Arc::clone(&token_keys)),
            token_keys,
            store,
            authority,
            shutdown,
            seats: Seats::new(limits),
            audit,
            snapshots: read::Snapshots::default(),
            counters: Counters::default(),
            turns: std::array::from_fn(|_| Mutex::new(())),
            custom: Registry::default(),
            limits,
            service_ranges: Vec::new(),
            runs: String::new(),
            address,
        }
    }

    /// Says which parts of the control plane run in this process without an election.
    #[must_use]
    pub fn with_parts(mut self, runs: String) -> Self {
        self.runs = runs;
        self
    }

    /// Sets the ranges of Services' addresses, at most one of each family, the default first.
    #[must_use]
    pub fn with_service_ranges(mut self, ranges: Vec<IpNetwork>) -> Self {
        self.service_ranges = ranges;
        self
    }

    /// Waits for the turn to write what the writers of a namespace share: a quota, or addresses. Of those that try at once only
    /// one succeeds.
    pub(crate) async fn turn(&self, namespace: &str) -> MutexGuard<'_, ()> {
        let mut hasher = DefaultHasher::new();
        namespace.hash(&mut hasher);
        self.turns[hasher.finish() as usize % TURNS].lock().await
    }

    /// What is served under a path.
    async fn resource(&self, path: &ResourcePath) -> Result<ResourceRef, ApiError> {
        if let Some(built_in) = resources::find(&path.group, &path.version, &path.plural) {
            return Ok(ResourceRef::BuiltIn(built_in));
        }
        self.store.barrier().await?;
        let table = self.custom.table(self.store.as_ref());
        let found = table.find(&path.group, &path.version, &path.plural);
        found
            .map(|resource| ResourceRef::Custom(Arc::clone(resource)))
            .ok_or_else(ApiError::no_such_path)
    }

    /// All that is served, in discovery's order.
    pub(crate) fn resources(&self) -> Vec<ResourceRef> {
        let table = self.custom.table(self.store.as_ref());
        let custom = table.resources().iter().cloned().map(ResourceRef::Custom);
        resources::all().map(ResourceRef::BuiltIn).chain(custom).collect()
    }
}

/// The server's routes: everything is decided by the request's own grammar.
pub fn router(server: Arc<Server>) -> Router {
    Router::new().fallback(handle).with_state(server)
}

/// Keeps definitions of custom resources and their objects in order, until `shutdown`.
pub async fn define(server: Arc<Server>) {
    definitions::run(&server).await;
}

/// Removes what is kept for a time only, until `shutdown`.
pub async fn expire(server: Arc<Server>) {
    expiry::run(&server).await;
}

/// Mends the records of Services' addresses and node ports, until `shutdown`.
pub async fn repair(server: Arc<Server>) {
    repair::run(&server).await;
}

async fn handle(State(server): State<Arc<Server>>, request: Request<Body>) -> Response<Body> {
    server.counters.requests.fetch_add(1, Ordering::Relaxed);
    let (parts, body) = request.into_parts();
    let now = Timestamp::now();
    let mut trail = server.audit.as_ref().map(|_| Trail::of(&parts, now));
    let answered = answer(&server, (parts, body), now, trail.as_mut()).await;
    if let (Some(log), Some(trail)) = (&server.audit, trail) {
        let (code, error) = match &answered {
            Ok(response) => (response.status(), None),
            Err(error) => (error.code(), Some(error)),
        };
        log.put(&trail.event(code, error, Timestamp::now()));
    }
    answered.unwrap_or_else(|error| {
        server.counters.failures.fetch_add(1, Ordering::Relaxed);
        if error.code == 429 {
            server.counters.refused.fetch_add(1, Ordering::Relaxed);
        }
        error.response()
    })
}

async fn answer(
    server: &Arc<Server>,
    (parts, body): (Parts, Body),
    now: Timestamp,
    mut trail: Option<&mut Trail>,
) -> Result<Response<Body>, ApiError> {
    let asks = access::authenticate(server, &parts, now)?;
    if let Some(trail) = &mut trail {
        trail.user = asks.clone();
    }
    let identity = access::impersonate(server, &parts, asks)?;
    let path = parts.uri.path();
    let query = Query::parse(parts.uri.query().unwrap_or_default())?;
    let parsed = ResourcePath::parse(path).filter(|parsed| !parsed.plural.is_empty());
    let verb = parsed
        .as_ref()
        .and_then(|parsed| Verb::of(&parts.method, parsed, &query));
    if let Some(trail) = trail {
        trail.note(&identity, verb, parsed.as_ref());
    }
    let Some(parsed) = parsed else {
        // Health is nobody's quota.
        let seat = if is_public(path) {
            None
        } else {
            Some(server.seats.request(&identity).await?)
        };
        let response = non_resource(server, &identity, &parts, path).await;
        drop(seat);
        return response;
    };
    let verb = verb.ok_or_else(ApiError::method_not_allowed)?;
    access::authorize(server, &identity, &access::attributes(verb, &parsed, &query))?;
    let resource = server.resource(&parsed).await?;
    let objects_only = !resource.verbs.contains(&"list");
    let masters = identity.is_in(auth::MASTERS) && parts.extensions.get::<InProcess>().is_some();
    let mut call = Call {
        server: Arc::clone(server),
        identity,
        form: Form::Object,
        headers: parts.headers,
        query,
        resource,
        verb,
        path: parsed,
        now,
    };
    call.check_shape()?;
    options::check(&call)?;
    call.form = negotiate::form(&call.headers, objects_only)?;
    // The control plane's own parts are not turned away: they are what gets the work done.
    let seat = match (masters, verb) {
        (true, _) => None,
        (false, Verb::Watch) => Some(server.seats.watch(&call.identity)?),
        (false, _) => Some(server.seats.request(&call.identity).await?),
    };
    // Nor do they wait: they hear of others' writes through their watches. What is not stored needs no fresh store, and tells
    // whether there is one.
    if !masters && call.query.get("resourceVersion") != Some("0") && !call.resource.is_looked_up() {
        server.store.barrier().await?;
    }
    let deprecation = call.resource.deprecation().map(str::to_owned);
    let warned = move |mut response: Response<Body>| {
        add_warnings(&mut response, deprecation);
        response
    };
    let call = Arc::new(call);
    let began = Instant::now();
    let response = if verb == Verb::Watch {
        watch::watch(Arc::clone(&call), seat).await
    } else {
        let response = dispatch(&call, body).await;
        drop(seat);
        response
    };
    call.count(&response, began);
    response.map(warned)
}

/// Tells the client's user something beside the answer.
fn add_warnings(response: &mut Response<Body>, warnings: impl IntoIterator<Item = String>) {
    let mut room = MAX_WARNINGS;
    for warning in warnings {
        let Some(left) = room.checked_sub(warning.len()) else {
            break;
        };
        room = left;
        let text: String = warning.chars().filter(|c| !c.is_control()).collect();
        let text = text.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}

/// Marks requests that come from within the process.
#[derive(Clone, Copy, Debug)]
pub struct InProcess;

/// Paths that are not a resource's: discovery, schemas, health.
async fn non_resource(
    server: &Server,
    identity: &Identity,
    parts: &Parts,
    path: &str,
) -> Result<Response<Body>, ApiError> {
    let path = if path.len() > 1 {
        path.trim_end_matches('/')
    } else {
        path
    };
    access::authorize_path(server, identity, &parts.method, path)?;
    if parts.method != Method::GET && parts.method != Method::HEAD {
        return Err(ApiError::method_not_allowed());
    }
    if path == "/readyz" {
        return Ok(health::ready(server).await);
    }
    health::serve(
        server,
        path,
        parts.uri.query().unwrap_or_default(),
        &parts.headers,
    )
    .ok_or_else(ApiError::no_such_path)?
}

async fn dispatch(call: &Call, body: Body) -> Result<Response<Body>, ApiError> {
    if call.verb.reads() && call.path.subresource.is_empty() {
        return match call.verb {
            Verb::List => read::list(call).await,
            _ => read::get(call).await,
        };
    }
    if call.resource.subresource(&call.path.subresource) == Some(Subresource::Proxy) {
        return Err(subresources::needs_node(Subresource::Proxy));
    }
    if !call.path.subresource.is_empty() && call.verb == Verb::Get {
        return subresources::get(call);
    }
    let body = read_body(body, &call.server.limits).await?;
    if call.verb == Verb::Patch {
        let reply = if call.path.subresource == Subresource::Scale.name() {
            subresources::patch_scale(call, &body).await?
        } else {
            patch::patch(call, &body).await?
        };
        return Ok(call.reply(reply));
    }
    let decoded = negotiate::decode(&call.headers, &body)?;
    let reply = match call.verb {
        Verb::Create if !call.resource.verbs.contains(&"list") => reviews::answer(call, decoded).await?,
        Verb::Create if !call.path.subresource.is_empty() => subresources::create(call, decoded).await?,
        Verb::Create => write::create(call, decoded).await?,
        Verb::Update if call.path.subresource == Subresource::Scale.name() => {
            subresources::replace_scale(call, &decoded.value).await?
        }
        Verb::Update => write::replace(call, decoded).await?,
        Verb::Delete => delete::delete(call, &delete::Options::of(call, &decoded)?).await?,
        Verb::DeleteCollection => {
            delete::delete_collection(call, &delete::Options::of(call, &decoded)?).await?
        }
        Verb::Get | Verb::List | Verb::Watch | Verb::Patch => return Err(ApiError::method_not_allowed()),
    };
    Ok(call.reply(reply))
}

async fn read_body(body: Body, limits: &Limits) -> Result<Bytes, ApiError> {
    match timeout(limits.body_timeout, collect(body, limits.body_bytes)).await {
        Ok(Ok(Some(body))) => Ok(body),
        Ok(Ok(None)) => Err(ApiError::too_large(format!(
            "Request entity too large: limit is {}",
            limits.body_bytes
        ))),
        Ok(Err(error)) => Err(ApiError::bad_request(format!(
            "the body could not be read: {error}"
        ))),
        Err(_) => Err(ApiError::timeout(format!(
            "the body of the request did not arrive within {} s",
            limits.body_timeout.as_secs()
        ))),
    }
}

/// The whole body; `None` if it is larger than `limit`. What is beyond is read all the same, within reason: a client that is
/// still sending does not hear the answer.
async fn collect(mut body: Body, limit: usize) -> Result<Option<Bytes>, axum::Error> {
    const WITHIN_REASON: usize = 32 << 20;
    let mut collected = BytesMut::new();
    let mut size = 0;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        size += data.len();
        if size <= limit {
            collected.extend_from_slice(&data);
        } else if size > limit + WITHIN_REASON {
            break;
        }
    }
    Ok((size <= limit).then(|| collected.freeze()))
}

/// One request on a resource.
pub(crate) struct Call {
    pub(crate) server: Arc<Server>,
    pub(crate) identity: Identity,
    pub(crate) form: Form,
    pub(crate) headers: HeaderMap,
    pub(crate) query: Query,
    pub(crate) resource: ResourceRef,
    pub(crate) verb: Verb,
    pub(crate) path: ResourcePath,
    pub(crate) now: Timestamp,
}

impl Call {
    /// Refuses verbs and paths that the resource does not have.
    fn check_shape(&self) -> Result<(), ApiError> {
        let Self {
            resource, path, verb, ..
        } = self;
        if *verb == Verb::Create
            && resource
                .custom()
                .is_some_and(|custom| custom.definition().terminating)
        {
            let mut error = ApiError::method_not_allowed();
            "create not allowed while custom resource definition is terminating"
                .clone_into(&mut error.message);
            return Err(error);
        }
        if !resource.namespaced && !path.namespace.is_empty() {
            return Err(ApiError::no_such_path());
        }
        if resource.namespaced && path.namespace.is_empty() && !path.name.is_empty() {
            return Err(ApiError::no_such_path());
        }
        if path.subresource.is_empty() {
            let post_to_object = *verb == Verb::Create && !path.name.is_empty();
            let reports = resource.reported && self.identity.node().is_some();
            if post_to_object || !(reports || resource.verbs.contains(&verb.name())) {
                return Err(ApiError::method_not_allowed());
            }
            return Ok(());
        }
        let subresource = resource
            .subresource(&path.subresource)
            .filter(|found| path.rest.is_empty() || *found == Subresource::Proxy)
            .filter(|_| !path.name.is_empty())
            .ok_or_else(ApiError::no_such_path)?;
        if subresource.verbs().contains(&verb.name()) {
            Ok(())
        } else {
            Err(ApiError::method_not_allowed())
        }
    }

    /// Counts an answer.
    fn count(&self, answer: &Result<Response<Body>, ApiError>, began: Instant) {
        let code = answer.as_ref().map_or_else(ApiError::code, Response::status);
        let (verb, row) = (self.verb.name(), &*self.resource);
        let labels = [
            ("verb", verb),
            ("group", row.group),
            ("version", row.version),
            ("resource", row.plural),
            ("subresource", &self.path.subresource),
            ("code", code.as_str()),
        ];
        metrics::REQUESTS.with(&labels).increment();
        if self.verb != Verb::Watch {
            let labels = [("verb", verb), ("group", row.group), ("resource", row.plural)];
            metrics::REQUEST_SECONDS.with(&labels).observe(began.elapsed());
        }
    }

    /// The store's key of the object asked for.
    pub(crate) fn key(&self) -> String {
        self.resource.key(&self.path.namespace, &self.path.name)
    }

    /// The object asked for.
    pub(crate) fn find(&self) -> Result<Arc<Object>, ApiError> {
        self.server
            .store
            .get(self.resource.storage, &self.key())
            .ok_or_else(|| ApiError::not_found(&self.resource, &self.path.name))
    }

    /// The row in whose form the store keeps the resource.
    pub(crate) fn stored_resource(&self) -> ResourceRef {
        if self.resource.conversion.is_some()
            && let Some(stored) = resources::stored_as(self.resource.storage)
        {
            return ResourceRef::BuiltIn(stored);
        }
        self.resource.clone()
    }

    /// A stored object in the version served.
    pub(crate) fn served(&self, object: &Object) -> Value {
        let mut value = object.value();
        match self.resource.custom() {
            Some(custom) => custom.serve(&mut value, object.revision()),
            None => self.convert(&mut value),
        }
        value
    }

    fn convert(&self, value: &mut Value) {
        if let Some(conversion) = self.resource.conversion {
            (conversion.served)(value);
        } else if self.resource.custom().is_some() {
            value["apiVersion"] = json!(self.resource.api_version());
        }
    }

    /// Whether an object's text is what clients of this version get.
    fn is_served_as_stored(&self, object: &Object) -> bool {
        match self.resource.custom() {
            Some(custom) => custom.is_served_as_stored(object.revision()),
            None => self.resource.conversion.is_none(),
        }
    }

    /// The text of a stored object in the version served.
    pub(crate) fn served_text<'a>(&self, object: &'a Object) -> Cow<'a, [u8]> {
        if self.is_served_as_stored(object) {
            Cow::Borrowed(object.body())
        } else {
            Cow::Owned(self.served(object).to_string().into_bytes())
        }
    }

    /// Who is recorded as the writer of fields.
    pub(crate) fn field_manager(&self) -> String {
        let agent = || {
            let agent = self.headers.get(header::USER_AGENT)?.to_str().ok()?;
            agent.split('/').next().filter(|name| !name.is_empty())
        };
        let name = self.query.get("fieldManager").or_else(agent).unwrap_or("unknown");
        name.chars().take(128).collect()
    }

    /// An object in the form asked for.
    pub(crate) fn render(&self, code: StatusCode, object: &Object) -> Response<Body> {
        if self.form == Form::Object && self.is_served_as_stored(object) {
            return json_response(code, object.body().clone());
        }
        self.render_value(code, self.served(object))
    }

    fn render_value(&self, code: StatusCode, value: Value) -> Response<Body> {
        let value = match self.form {
            Form::Object => value,
            Form::Metadata => table::partial(&value),
            Form::Table => {
                let version = value["metadata"]["resourceVersion"].clone();
                let include = table::Include::parse(self.query.get("includeObject"));
                let metadata = json!({"resourceVersion": version});
                table::table(&self.resource, &[value], metadata, include, self.now, true)
            }
        };
        json_response(code, value.to_string())
    }

    fn reply(&self, reply: Reply) -> Response<Body> {
        let mut response = match reply.outcome {
            Outcome::Stored(object) => self.render(reply.code, &object),
            Outcome::Value(mut value) => {
                self.convert(&mut value);
                self.render_value(reply.code, value)
            }
            Outcome::Status(status) => json_response(reply.code, status.to_string()),
        };
        add_warnings(&mut response, reply.warnings);
        response
    }
}
