//! Autoscalers over metrics that somebody else serves: a process in front of the API server adds `custom.metrics.k8s.io` and
//! `external.metrics.k8s.io` to it, as Kubernetes' aggregator does with an adapter, and the controllers work against that.

use std::fs;
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result};
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use http::{Request, Response, StatusCode};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};
use weft_controller::pki::Authority;
use weft_controller::server::Listener;

use crate::remote::{Remote, kubeconfig, weft_controller};
use crate::world::{World, deployment, eventually};

/// What the adapter measures in all; `None` while there is no adapter.
type Measured = Arc<Mutex<Option<Value>>>;

/// The API server with metrics of an adapter.
struct Front {
    measured: Measured,
    _stop: DropGuard,
}

impl Front {
    /// Starts it; `front.kubeconfig` leads there.
    async fn start(world: &World) -> Result<Self> {
        let authority = Authority::ephemeral()?;
        let credentials = authority.server(&["localhost".to_owned()], &[[127, 0, 0, 1].into()])?;
        let listener = Listener::bind(([127, 0, 0, 1], 0).into(), &authority, &credentials).await?;
        let ca = world.path("front.crt");
        fs::write(&ca, authority.certificate())?;
        let server = format!("https://{}", listener.address());
        kubeconfig(&world.path("front.kubeconfig"), &server, &ca, "whoever")?;
        let measured = Measured::default();
        let router = Router::new()
            .fallback(answer)
            .with_state((world.client.clone(), Arc::clone(&measured)));
        let stop = CancellationToken::new();
        tokio::spawn(listener.serve(router, stop.clone()));
        Ok(Self {
            measured,
            _stop: stop.drop_guard(),
        })
    }

    fn measure(&self, metric: &str, value: u32) {
        let mut measured = self.measured.lock().unwrap();
        measured.get_or_insert_with(|| json!({}))[metric] = json!(value);
    }
}

async fn answer(State((api, measured)): State<(Client, Measured)>, request: Request<Body>) -> Response<Body> {
    let measured = measured.lock().unwrap().clone();
    let path = request.uri().path().to_owned();
    let parts: Vec<&str> = path.split('/').collect();
    let json = |value: Value| Response::new(Body::from(value.to_string()));
    let accept = request
        .headers()
        .get("accept")
        .and_then(|value| value.to_str().ok());
    let aggregated = accept.is_some_and(|accept| accept.contains("as=APIGroupDiscoveryList"));
    match (measured, parts.as_slice()) {
        (Some(_), ["", "apis"]) if !aggregated => json(json!({ "kind": "APIGroupList", "groups": [{
            "name": "custom.metrics.k8s.io",
            "versions": [{ "groupVersion": "custom.metrics.k8s.io/v1beta1", "version": "v1beta1" }],
        }] })),
        (
            Some(measured),
            [
                "",
                "apis",
                "custom.metrics.k8s.io",
                "v1beta1",
                "namespaces",
                _,
                "pods",
                "*",
                metric,
            ],
        ) => {
            let mut pods = Vec::new();
            let selector = request.uri().query().unwrap_or_default().to_owned();
            assert!(selector.contains("labelSelector=app%3Dweb"), "{selector}");
            let api: kube::Api<k8s_openapi::api::core::v1::Pod> = kube::Api::default_namespaced(api);
            let params = kube::api::ListParams::default().labels("app=web");
            let listed = api.list(&params).await.map(|list| list.items).unwrap_or_default();
            let each = measured[*metric].as_u64().unwrap_or_default() * 1000 / listed.len().max(1) as u64;
            for pod in listed {
                pods.push(json!({
                    "describedObject": { "kind": "Pod", "name": pod.name_any() }, "metricName": metric,
                    "timestamp": "2999-01-01T00:00:00Z", "value": format!("{each}m"),
                }));
            }
            json(json!({ "kind": "MetricValueList", "items": pods }))
        }
        (
            Some(measured),
            [
                "",
                "apis",
                "custom.metrics.k8s.io",
                "v1beta1",
                "namespaces",
                _,
                "services",
                "web",
                metric,
            ],
        ) => {
            json(json!({ "kind": "MetricValueList", "items": [{ "value": measured[*metric].to_string() }] }))
        }
        (
            Some(measured),
            [
                "",
                "apis",
                "external.metrics.k8s.io",
                "v1beta1",
                "namespaces",
                _,
                metric,
            ],
        ) => json(
            json!({ "kind": "ExternalMetricValueList", "items": [{ "value": measured[*metric].to_string() }] }),
        ),
        (
            None,
            [
                "",
                "apis",
                "external.metrics.k8s.io" | "custom.metrics.k8s.io",
                ..,
            ],
        ) => {
            // What the aggregator says of a group that nobody has registered.
            let mut response = Response::new(Body::from("404 page not found\n"));
            *response.status_mut() = StatusCode::NOT_FOUND;
            response
        }
        _ => {
            let (mut head, body) = request.into_parts();
            for header in ["host", "authorization"] {
                head.headers.remove(header);
            }
            head.uri = head
                .uri
                .path_and_query()
                .map(ToString::to_string)
                .unwrap_or_default()
                .parse()
                .unwrap();
            let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default();
            let forwarded = Request::from_parts(head, kube::client::Body::from(bytes.to_vec()));
            match api.send(forwarded).await {
                Ok(response) => response.map(Body::new),
                Err(error) => {
                    let mut response = Response::new(Body::from(error.to_string()));
                    *response.status_mut() = StatusCode::BAD_GATEWAY;
                    response
                }
            }
        }
    }
}

fn autoscaler(name: &str, metric: Value) -> Value {
    json!({ "metadata": { "name": name }, "spec": {
        "scaleTargetRef": { "apiVersion": "apps/v1", "kind": "Deployment", "name": "web" },
        "minReplicas": 1, "maxReplicas": 9, "metrics": [metric],
    } })
}

async fn is_active(world: &World, name: &str, expected: [&str; 3]) -> Result<()> {
    let api = world.api::<HorizontalPodAutoscaler>();
    let what = format!("{name} to be {expected:?}");
    let waited = eventually(&what, || async {
        let status = api.get(name).await.ok()?.status?;
        let condition = status
            .conditions?
            .into_iter()
            .find(|found| found.type_ == "ScalingActive")?;
        let found = [condition.status, condition.reason?, condition.message?];
        (found == expected).then_some(())
    });
    let waited = waited.await;
    waited.with_context(|| format!("{:?}", futures::executor::block_on(api.get(name))))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_autoscaler_follows_metrics_of_an_adapter() -> Result<()> {
    let world = World::in_process_with(&["--api-only"]).await?;
    let front = Front::start(&world).await?;
    let mut command = weft_controller()?;
    command
        .arg("--kubeconfig")
        .arg(world.path("front.kubeconfig"))
        .arg("--horizontal-pod-autoscaler-sync-period=200ms");
    let remote = Remote::spawn(&world, "remote", command).await?;
    world.join(&["n1"]).await.with_context(|| remote.log())?;
    world.create::<Deployment>(deployment("web", 1, "img:1")).await?;
    world.wait_ready("app=web", 1).await?;
    let api = world.api::<HorizontalPodAutoscaler>();

    // Nobody serves such metrics, and Kubernetes' words say so.
    let pods = json!({ "type": "Pods", "pods": {
        "metric": { "name": "packets" }, "target": { "type": "AverageValue", "averageValue": "10" } } });
    world
        .create::<HorizontalPodAutoscaler>(autoscaler("pods", pods))
        .await?;
    let why = "unable to get metric packets: unable to fetch metrics from custom metrics API: no custom metrics API \
               (custom.metrics.k8s.io) registered";
    let condition = format!("the HPA was unable to compute the replica count: {why}");
    is_active(&world, "pods", ["False", "FailedGetPodsMetric", &condition]).await?;
    eventually("both events", || async {
        let first = world.events("pods", "FailedGetPodsMetric").await.ok()?;
        let whole = world.events("pods", "FailedComputeMetricsReplicas").await.ok()?;
        let expected = format!(
            "invalid metrics (1 invalid out of 1), first error is: failed to get pods metric value: {why}"
        );
        (first == [why] && whole == [expected]).then_some(())
    })
    .await?;
    // An adapter comes.
    front.measure("packets", 25);
    let found = "the HPA was able to successfully calculate a replica count from pods metric packets";
    is_active(&world, "pods", ["True", "ValidMetricFound", found]).await?;
    world
        .wait_ready("app=web", 3)
        .await
        .with_context(|| remote.log())?;
    api.delete("pods", &kube::api::DeleteParams::default()).await?;

    *front.measured.lock().unwrap() = None;
    let external = json!({ "type": "External", "external": {
        "metric": { "name": "jobs", "selector": { "matchLabels": { "queue": "q" } } },
        "target": { "type": "AverageValue", "averageValue": "30" } } });
    world
        .create::<HorizontalPodAutoscaler>(autoscaler("queue", external))
        .await?;
    let condition = "the HPA was unable to compute the replica count: unable to get external metric \
                     default/jobs/&LabelSelector{MatchLabels:map[string]string{queue: q,},MatchExpressions:[]LabelSelectorRequirement{},}: \
                     unable to fetch metrics from external metrics API: the server could not find the requested resource \
                     (get jobs.external.metrics.k8s.io)";
    is_active(&world, "queue", ["False", "FailedGetExternalMetric", condition]).await?;
    front.measure("jobs", 150);
    world
        .wait_ready("app=web", 5)
        .await
        .with_context(|| remote.log())?;
    // The status speaks of the five once it has been made again.
    eventually("the average over all five to be printed", || async {
        let printed = world
            .kubectl(&["get", "hpa", "queue", "--no-headers"])
            .await
            .ok()?;
        printed.contains("30/30 (avg)").then_some(())
    })
    .await
    .with_context(|| remote.log())?;
    api.delete("queue", &kube::api::DeleteParams::default()).await?;

    let object = json!({ "type": "Object", "object": {
        "describedObject": { "apiVersion": "v1", "kind": "Service", "name": "web" }, "metric": { "name": "hits" },
        "target": { "type": "Value", "value": "100" } } });
    front.measure("hits", 140);
    let mut service = autoscaler("service", object);
    // The metric does not fall with more pods, so nothing but this limit ends the growth.
    service["spec"]["maxReplicas"] = json!(7);
    world.create::<HorizontalPodAutoscaler>(service).await?;
    world
        .wait_ready("app=web", 7)
        .await
        .with_context(|| remote.log())?;
    Ok(())
}
