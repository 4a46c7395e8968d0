//! Paths that are no resource's: discovery, schemas, version, health, metrics.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Body;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::Server;
use super::audit::AuditLog;
use super::discovery;
use super::status::{ApiError, json_response};
use crate::auth::service_account::ISSUER;
use crate::schema::openapi;

/// How long the store may take to show that it is there.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whether requests can be answered now: not if they would wait for a store that is out of reach, nor at the end.
pub(super) async fn ready(server: &Server) -> Response<Body> {
    let reached = timeout(PATIENCE, server.store.barrier()).await;
    let failed = match reached {
        _ if server.shutdown.is_cancelled() => "shutdown",
        Ok(Ok(())) => return text("ok"),
        Ok(Err(_)) | Err(_) => "store",
    };
    let mut response = text(format!(
        "[-]{failed} failed: reason withheld\nreadyz check failed\n"
    ));
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    response
}

/// Answers a GET of `path`; `None` if nothing is there.
pub(super) fn serve(
    server: &Server,
    path: &str,
    query: &str,
    headers: &HeaderMap,
) -> Option<Result<Response<Body>, ApiError>> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let response = match parts.as_slice() {
        [""] => json(&root(server)),
        ["version"] => json(&version()),
        ["healthz" | "livez"] | ["healthz" | "livez" | "readyz", "ping"] => text("ok"),
        ["metrics"] => text(metrics(server)),
        ["api" | "apis"] if let Some(form) = discovery::aggregated_form(accept(headers)) => {
            let body = discovery::aggregated(&server.resources(), form, parts[0] == "api");
            let mut response = json(&body);
            let headers = response.headers_mut();
            let kind = HeaderValue::from_static(form.content_type());
            headers.insert(header::CONTENT_TYPE, kind);
            headers.insert(header::VARY, HeaderValue::from_static("Accept"));
            response
        }
        ["api"] => json(&discovery::core_versions(&server.address)),
        ["apis"] => json(&discovery::group_list(&server.resources())),
        ["api", version] => json(&discovery::resource_list(&server.resources(), "", version)?),
        ["apis", group] => json(&discovery::group(&server.resources(), group)?),
        ["apis", group, version] => json(&discovery::resource_list(&server.resources(), group, version)?),
        ["openapi", "v2"] => return Some(openapi_v2(headers)),
        ["openapi", "v3"] => {
            let paths = discovery::group_versions(&server.resources());
            let find = |path: &str| document(server, path);
            json(&openapi::v3_root(paths.iter().map(String::as_str), find))
        }
        ["openid", "v1", "jwks"] => published(&server.token_keys.jwks(), "application/jwk-set+json"),
        [".well-known", "openid-configuration"] => published(&issuer(&server.address), "application/json"),
        ["openapi", "v3", rest @ ..] => openapi_v3(server, &rest.join("/"), query, headers)?,
        _ => return None,
    };
    Some(Ok(response))
}

fn accept(headers: &HeaderMap) -> &str {
    headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

fn json(value: &Value) -> Response<Body> {
    json_response(StatusCode::OK, value.to_string())
}

fn text(text: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(text.into());
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

/// What others check service accounts' tokens with.
fn issuer(address: &str) -> Value {
    json!({
        "issuer": ISSUER, "jwks_uri": format!("https://{address}/openid/v1/jwks"),
        "response_types_supported": ["id_token"], "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    })
}

fn published(value: &Value, kind: &'static str) -> Response<Body> {
    let mut response = json(value);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    // Keys are rotated rarely, and the old ones go on to vouch.
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("public, max-age=3600"),
    );
    response
}

fn root(server: &Server) -> Value {
    let mut paths = vec!["/api".to_owned(), "/apis".to_owned()];
    paths.extend(
        discovery::group_versions(&server.resources())
            .into_iter()
            .map(|path| format!("/{path}")),
    );
    for path in [
        "/.well-known/openid-configuration",
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/openid/v1/jwks",
        "/readyz",
        "/version",
    ] {
        paths.push(path.to_owned());
    }
    json!({"paths": paths})
}

/// The version clients choose their behaviour by: of the API that is served, not of this program.
fn version() -> Value {
    json!({
        "major": "1", "minor": "33", "gitVersion": concat!("v1.33.0+weft-", env!("CARGO_PKG_VERSION")),
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "", "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, go_architecture()),
    })
}

fn go_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn openapi_v2(headers: &HeaderMap) -> Result<Response<Body>, ApiError> {
    let accept = accept(headers);
    // The media type has two spellings, with `@` and with dots.
    if !accept.is_empty() && !accept.contains("protobuf") && !accept.contains("*/*") {
        return Err(ApiError::not_acceptable(openapi::V2_CONTENT_TYPE));
    }
    let mut response = Response::new(Body::from(openapi::v2_stub()));
    let kind = HeaderValue::from_static(openapi::V2_CONTENT_TYPE);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

/// The OpenAPI document of a group version.
fn document(server: &Server, path: &str) -> Option<openapi::Document> {
    openapi::v3_group(path).or_else(|| server.custom.table(server.store.as_ref()).document(path))
}

fn openapi_v3(server: &Server, path: &str, query: &str, headers: &HeaderMap) -> Option<Response<Body>> {
    let document = document(server, path)?;
    let tag = format!("\"{}\"", document.hash);
    let known = headers
        .get(header::IF_NONE_MATCH)
        .and_then(|value| value.to_str().ok());
    let mut response = if known == Some(tag.as_str()) {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        json_response(StatusCode::OK, document.body.clone())
    };
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    let headers = response.headers_mut();
    headers.insert(header::VARY, HeaderValue::from_static("Accept"));
    // A URL that names the document by its hash never means another one.
    if query
        .split('&')
        .any(|part| part.strip_prefix("hash=") == Some(&document.hash))
    {
        let public = HeaderValue::from_static("public, max-age=31536000, immutable");
        headers.insert(header::CACHE_CONTROL, public);
        let expires = jiff::Timestamp::now().saturating_add(jiff::SignedDuration::from_hours(24 * 365));
        let expires = expires.map(|time| time.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string());
        if let Some(Ok(expires)) = expires.ok().map(|text| HeaderValue::from_str(&text)) {
            headers.insert(header::EXPIRES, expires);
        }
    }
    Some(response)
}

fn metrics(server: &Server) -> String {
    let mut text = String::new();
    let counters = &server.counters;
    let mut put = |name: &str, kind: &str, help: &str, value: u64| {
        let _ = write!(
            text,
            "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n"
        );
    };
    let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    put(
        "weft_api_requests_total",
        "counter",
        "Requests answered.",
        load(&counters.requests),
    );
    put(
        "weft_api_failures_total",
        "counter",
        "Requests answered with an error.",
        load(&counters.failures),
    );
    put(
        "weft_api_refused_total",
        "counter",
        "Requests refused because there were too many.",
        load(&counters.refused),
    );
    put(
        "weft_audit_dropped_total",
        "counter",
        "Audit events dropped because the log was too slow.",
        server.audit.as_ref().map_or(0, AuditLog::dropped),
    );
    put(
        "weft_store_revision",
        "gauge",
        "The store's last revision.",
        server.store.revision(),
    );
    put(
        "weft_api_watches",
        "gauge",
        "Watches that are open.",
        server.seats.open_watches() as u64,
    );
    let _ = write!(
        text,
        "# HELP weft_store_objects Objects stored.\n# TYPE weft_store_objects gauge\n"
    );
    let mut told = BTreeSet::new();
    for resource in server.resources() {
        let stored = resource.conversion.is_none() && !resource.storage.is_empty();
        if stored && told.insert(resource.storage) {
            let count = server.store.count(resource.storage);
            let _ = writeln!(
                text,
                "weft_store_objects{{resource={:?}}} {count}",
                resource.qualified()
            );
        }
    }
    text.push_str(&crate::metrics::text());
    text
}
