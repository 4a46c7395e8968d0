//! Health, for everybody, and metrics, for whom the API server lets read them: it is asked who holds a token, and whether they
//! may.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::routing::get;
use http::{HeaderMap, HeaderValue, Response, header};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::Semaphore;

use crate::api::status::ApiError;
use crate::controllers::said;
use crate::metrics;

/// Reviews in flight; strangers cannot make us flood the API server.
const REVIEWS: usize = 4;

const METRICS: &str = "/metrics";

#[derive(Clone)]
struct Door {
    client: Client,
    reviews: Arc<Semaphore>,
}

/// What is served.
pub(super) fn router(client: Client) -> Router {
    let door = Door {
        client,
        reviews: Arc::new(Semaphore::new(REVIEWS)),
    };
    let healthy = || async { "ok" };
    Router::new()
        .route("/healthz", get(healthy))
        .route("/livez", get(healthy))
        .route("/readyz", get(healthy))
        .route(METRICS, get(figures))
        .fallback(|| async { ApiError::no_such_path().response() })
        .with_state(door)
}

async fn figures(State(door): State<Door>, headers: HeaderMap) -> Response<Body> {
    match door.admit(&headers).await {
        Ok(()) => {
            let mut response = Response::new(metrics::text().into());
            let plain = HeaderValue::from_static("text/plain; charset=utf-8");
            response.headers_mut().insert(header::CONTENT_TYPE, plain);
            response
        }
        Err(error) => error.response(),
    }
}

impl Door {
    async fn admit(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let token = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "))
            .ok_or_else(ApiError::unauthorized)?;
        let failed = |error: kube::Error| ApiError::internal(said(&error));
        let Ok(_seat) = self.reviews.acquire().await else {
            return Err(ApiError::unavailable("the server is shutting down"));
        };
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.to_owned()),
                ..TokenReviewSpec::default()
            },
            ..TokenReview::default()
        };
        let reviews: Api<TokenReview> = Api::all(self.client.clone());
        let reviewed = reviews.create(&PostParams::default(), &review).await;
        let status = reviewed.map_err(failed)?.status.unwrap_or_default();
        let user = status.user.filter(|_| status.authenticated == Some(true));
        let user = user.ok_or_else(ApiError::unauthorized)?;
        let name = user.username.clone().unwrap_or_default();
        let access = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: user.username,
                groups: user.groups,
                uid: user.uid,
                extra: user.extra,
                non_resource_attributes: Some(NonResourceAttributes {
                    path: Some(METRICS.to_owned()),
                    verb: Some("get".to_owned()),
                }),
                resource_attributes: None,
            },
            ..SubjectAccessReview::default()
        };
        let reviews: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let reviewed = reviews.create(&PostParams::default(), &access).await;
        let status = reviewed.map_err(failed)?.status.unwrap_or_default();
        if status.allowed {
            return Ok(());
        }
        Err(ApiError::forbidden_path(format!(
            "forbidden: User {name:?} cannot get path {METRICS:?}"
        )))
    }
}
