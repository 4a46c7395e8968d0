//! The API server: one path from request to answer for all resources of the table.
//!
//! A request is authenticated, counted, taken apart, authorised, and dispatched by verb. All errors leave as a `Status`.

mod admission;
pub mod continuation;
mod definitions;
mod delete;
mod discovery;
mod expiry;
mod health;
pub mod negotiate;
mod objects;
mod options;
mod patch;
mod pods;
mod read;
pub mod request;
mod reviews;
pub mod status;
mod subresources;
mod table;
mod watch;
mod write;

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use self::negotiate::Form;
use self::request::{Query, ResourcePath, Verb};
use self::status::{ApiError, json_response};
use self::write::{Outcome, Reply};
use crate::auth::authorizer::{self, Attributes};
use crate::auth::{self, ConnectionIdentity, Identity};
use crate::custom::Registry;
use crate::pki::Authority;
use crate::resources::{self, ResourceRef, Subresource};
use crate::store::{Object, Store};

/// Bytes of warnings in one answer; clients refuse long headers.
const MAX_WARNINGS: usize = 4096;

/// Limits of the server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Largest body.
    pub body_bytes: usize,
    /// Requests in flight, watches apart.
    pub requests: usize,
    /// Watches.
    pub watches: usize,
    /// How long a pod stays on a node that is lost, unless it says otherwise.
    pub toleration_seconds: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // As in Kubernetes.
            body_bytes: 3 << 20,
            requests: 600,
            // Each costs a task and a socket; a node needs four.
            watches: 16_384,
            toleration_seconds: 300,
        }
    }
}

/// What requests share.
pub struct Server {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) authority: Arc<Authority>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) watches: Arc<Semaphore>,
    pub(crate) snapshots: read::Snapshots,
    pub(crate) counters: Counters,
    pub(crate) custom: Registry,
    pub(crate) limits: Limits,
    requests: Arc<Semaphore>,
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
        limits: Limits,
        address: String,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            store,
            authority,
            shutdown,
            watches: Arc::new(Semaphore::new(limits.watches)),
            snapshots: read::Snapshots::default(),
            counters: Counters::default(),
            custom: Registry::default(),
            limits,
            requests: Arc::new(Semaphore::new(limits.requests)),
            address,
        }
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

async fn handle(State(server): State<Arc<Server>>, request: Request<Body>) -> Response<Body> {
    server.counters.requests.fetch_add(1, Ordering::Relaxed);
    match answer(&server, request).await {
        Ok(response) => response,
        Err(error) => {
            server.counters.failures.fetch_add(1, Ordering::Relaxed);
            error.response()
        }
    }
}

async fn answer(server: &Arc<Server>, request: Request<Body>) -> Result<Response<Body>, ApiError> {
    let (parts, body) = request.into_parts();
    let now = Timestamp::now();
    let identity = authenticate(server, &parts, now)?;
    let path = parts.uri.path();
    let query = Query::parse(parts.uri.query().unwrap_or_default())?;
    let parsed = ResourcePath::parse(path).filter(|parsed| !parsed.plural.is_empty());
    let Some(parsed) = parsed else {
        return non_resource(server, &identity, &parts, path);
    };
    let verb = Verb::of(&parts.method, &parsed, &query).ok_or_else(ApiError::method_not_allowed)?;
    let identity = impersonate(&parts.headers, identity)?;
    authorize(server, &identity, verb, &parsed)?;
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
    // The control plane's own parts hear of others' writes through their watches.
    if !masters && call.query.get("resourceVersion") != Some("0") {
        server.store.barrier().await?;
    }
    let deprecation = call.resource.custom().and_then(|custom| custom.deprecation());
    let deprecation = deprecation.map(str::to_owned);
    let warned = move |mut response: Response<Body>| {
        add_warnings(&mut response, deprecation);
        response
    };
    if verb == Verb::Watch {
        return watch::watch(call).await.map(warned);
    }
    // The control plane's own parts are not turned away: they are what gets the work done.
    let permit = if masters {
        None
    } else {
        let permit = Arc::clone(&server.requests).try_acquire_owned().map_err(|_| {
            server.counters.refused.fetch_add(1, Ordering::Relaxed);
            ApiError::too_many_requests("too many requests, please try again later", 1)
        })?;
        Some(permit)
    };
    let response = dispatch(&call, body).await;
    drop(permit);
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

fn authenticate(server: &Server, parts: &http::request::Parts, now: Timestamp) -> Result<Identity, ApiError> {
    if let Some(ConnectionIdentity(identity)) = parts.extensions.get::<ConnectionIdentity>() {
        return Ok(Identity::clone(identity));
    }
    let Some(header) = parts.headers.get(header::AUTHORIZATION) else {
        return Ok(Identity::anonymous());
    };
    let token = header.to_str().ok().and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    token
        .and_then(|token| auth::authenticate_token(server.store.as_ref(), token, now))
        .ok_or_else(ApiError::unauthorized)
}

/// Masters may act as someone else.
fn impersonate(headers: &HeaderMap, identity: Identity) -> Result<Identity, ApiError> {
    let Some(user) = headers
        .get("impersonate-user")
        .and_then(|value| value.to_str().ok())
    else {
        if headers.contains_key("impersonate-group") {
            return Err(ApiError::bad_request(
                "requested groups without impersonating a user",
            ));
        }
        return Ok(identity);
    };
    if !identity.is_in(auth::MASTERS) {
        let why = format!(
            "users {user:?} is forbidden: User {:?} cannot impersonate resource \"users\" in API group \"\" at the cluster \
             scope",
            identity.user
        );
        return Err(ApiError::forbidden_path(why));
    }
    let groups = headers.get_all("impersonate-group").iter();
    let groups = groups
        .filter_map(|value| value.to_str().ok().map(str::to_owned))
        .collect();
    Ok(Identity::known(user, groups))
}

fn authorize(server: &Server, identity: &Identity, verb: Verb, path: &ResourcePath) -> Result<(), ApiError> {
    let attributes = attributes(verb, path);
    if authorizer::allows(server.store.as_ref(), identity, &attributes) {
        return Ok(());
    }
    if *identity == Identity::anonymous() {
        return Err(ApiError::unauthorized());
    }
    let mut what = path.plural.clone();
    if !path.subresource.is_empty() {
        what = format!("{what}/{}", path.subresource);
    }
    let place = if path.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {:?}", path.namespace)
    };
    let qualified = if path.group.is_empty() {
        path.plural.clone()
    } else {
        format!("{}.{}", path.plural, path.group)
    };
    let name = if path.name.is_empty() {
        String::new()
    } else {
        format!(" {:?}", path.name)
    };
    let mut error = ApiError::forbidden_path(format!(
        "{qualified}{name} is forbidden: User {:?} cannot {} resource {what:?} in API group {:?} {place}",
        identity.user,
        verb.name(),
        path.group,
    ));
    error.details = json!({"name": path.name, "group": path.group, "kind": path.plural});
    Err(error)
}

fn attributes(verb: Verb, path: &ResourcePath) -> Attributes<'_> {
    Attributes {
        verb,
        group: &path.group,
        resource: &path.plural,
        subresource: &path.subresource,
        namespace: &path.namespace,
        name: &path.name,
    }
}

/// Paths that are not a resource's: discovery, schemas, health.
fn non_resource(
    server: &Server,
    identity: &Identity,
    parts: &http::request::Parts,
    path: &str,
) -> Result<Response<Body>, ApiError> {
    let path = if path.len() > 1 {
        path.trim_end_matches('/')
    } else {
        path
    };
    if !authorizer::may_read_path(identity, path) {
        if *identity == Identity::anonymous() {
            return Err(ApiError::unauthorized());
        }
        return Err(ApiError::forbidden_path(format!(
            "forbidden: User {:?} cannot get path {path:?}",
            identity.user
        )));
    }
    if parts.method != Method::GET && parts.method != Method::HEAD {
        return Err(ApiError::method_not_allowed());
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
    let body = read_body(body, call.server.limits.body_bytes).await?;
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

async fn read_body(body: Body, limit: usize) -> Result<Bytes, ApiError> {
    match Limited::new(body, limit).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(ApiError::too_large(format!(
            "Request entity too large: limit is {limit}"
        ))),
        Err(error) => Err(ApiError::bad_request(format!(
            "the body could not be read: {error}"
        ))),
    }
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
            if post_to_object || !resource.verbs.contains(&verb.name()) {
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

    /// Refuses what the identity may not write into an object.
    pub(crate) fn admits(&self, object: &Value) -> Result<(), ApiError> {
        let attributes = attributes(self.verb, &self.path);
        authorizer::admits(&self.identity, &attributes, object)
            .map_err(|why| ApiError::forbidden(&self.resource, objects::name(object), &why))
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
