//! What bounds the use of a namespace and the loss of pods, and what makes more of them: quotas, limit ranges, disruption budgets,
//! autoscalers.

use std::time::Duration;

use anyhow::Result;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{ConfigMap, LimitRange, Pod, ResourceQuota, Secret};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{DeleteParams, DynamicObject, EvictParams, ListParams, Patch, PatchParams};
use kube::core::ApiResource;
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};

use crate::world::{World, deployment, eventually};

fn pod(name: &str) -> Value {
    json!({ "metadata": { "name": name }, "spec": { "containers": [{ "name": "c", "image": "img:1" }] } })
}

/// The code and the message of a refusal.
fn refused<T, E: Into<anyhow::Error>>(result: Result<T, E>) -> (u16, String) {
    match result.err().map(|error| error.into().downcast::<kube::Error>()) {
        Some(Ok(kube::Error::Api(status))) => (status.code, status.message),
        _ => (0, "not refused".to_owned()),
    }
}

async fn counted(world: &World, quota: &str, expected: Value) -> Result<()> {
    eventually(&format!("{quota} to have used {expected}"), || async {
        let quota = world.api::<ResourceQuota>().get(quota).await.ok()?;
        let used = json!(quota.status?.used?);
        let same = expected
            .as_object()?
            .iter()
            .all(|(name, amount)| used[name] == *amount);
        same.then_some(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quotas_are_charged_on_creation_and_refunded() -> Result<()> {
    let world = World::start().await?;
    let range = json!({ "metadata": { "name": "l" }, "spec": { "limits": [{ "type": "Container",
        "defaultRequest": { "cpu": "100m" }, "default": { "cpu": "200m" }, "max": { "cpu": "1" } }] } });
    world.create::<LimitRange>(range).await?;
    let quota =
        json!({ "metadata": { "name": "q" }, "spec": { "hard": { "pods": "2", "requests.cpu": "1" } } });
    world.create::<ResourceQuota>(quota).await?;
    counted(&world, "q", json!({ "pods": "0", "requests.cpu": "0" })).await?;

    let first: Pod = world.create(pod("p1")).await?;
    let annotation = &first.annotations()["kubernetes.io/limit-ranger"];
    assert_eq!(
        annotation,
        "LimitRanger plugin set: cpu request for container c; cpu limit for container c"
    );
    world.create::<Pod>(pod("p2")).await?;
    let (code, message) = refused(world.create::<Pod>(pod("p3")).await);
    assert_eq!(
        (code, message.as_str()),
        (
            403,
            "pods \"p3\" is forbidden: exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2"
        )
    );
    let mut greedy = pod("p3");
    greedy["spec"]["containers"][0]["resources"] =
        json!({ "requests": { "cpu": "1" }, "limits": { "cpu": "2" } });
    let (code, message) = refused(world.create::<Pod>(greedy).await);
    assert_eq!(
        (code, message.as_str()),
        (
            403,
            "pods \"p3\" is forbidden: maximum cpu usage per Container is 1, but limit is 2"
        )
    );
    counted(&world, "q", json!({ "pods": "2", "requests.cpu": "200m" })).await?;

    world.api::<Pod>().delete("p1", &DeleteParams::default()).await?;
    counted(&world, "q", json!({ "pods": "1", "requests.cpu": "100m" })).await?;
    world.create::<Pod>(pod("p3")).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_of_a_quota_is_given_once() -> Result<()> {
    let world = World::start().await?;
    // Many at once, more than a change is tried: each is charged or refused, and none is told that others were faster.
    let quota = json!({ "metadata": { "name": "many" }, "spec": { "hard": { "secrets": "200" } } });
    world.create::<ResourceQuota>(quota).await?;
    counted(&world, "many", json!({ "secrets": "0" })).await?;
    let creations = (0..200).map(|number| {
        let secret = json!({ "metadata": { "name": format!("s{number}") } });
        world.create::<Secret>(secret)
    });
    for result in futures::future::join_all(creations).await {
        result?;
    }

    let quota = json!({ "metadata": { "name": "q" }, "spec": { "hard": { "configmaps": "5", "count/deployments.apps": "1" } } });
    world.create::<ResourceQuota>(quota).await?;
    // The CA's own ConfigMap counts as well.
    counted(
        &world,
        "q",
        json!({ "configmaps": "1", "count/deployments.apps": "0" }),
    )
    .await?;
    let creations = (0..20).map(|number| {
        let map = json!({ "metadata": { "name": format!("m{number}") } });
        world.create::<ConfigMap>(map)
    });
    let results = futures::future::join_all(creations).await;
    assert_eq!(
        results.iter().filter(|result| result.is_ok()).count(),
        4,
        "{results:?}"
    );
    counted(&world, "q", json!({ "configmaps": "5" })).await?;
    world.create::<Deployment>(deployment("a", 0, "img:1")).await?;
    let (code, message) = refused(world.create::<Deployment>(deployment("b", 0, "img:1")).await);
    assert_eq!(
        (code, message.as_str()),
        (
            403,
            "deployments.apps \"b\" is forbidden: exceeded quota: q, requested: count/deployments.apps=1, used: \
             count/deployments.apps=1, limited: count/deployments.apps=1"
        )
    );
    world
        .api::<Deployment>()
        .delete("a", &DeleteParams::default())
        .await?;
    counted(&world, "q", json!({ "count/deployments.apps": "0" })).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evictions_stop_where_the_budget_ends() -> Result<()> {
    let world = World::start().await?;
    world.join(&["n1", "n2"]).await?;
    world.create::<Deployment>(deployment("web", 3, "img:1")).await?;
    let pods = world.wait_ready("app=web", 3).await?;
    let budget = json!({ "metadata": { "name": "b" },
        "spec": { "maxUnavailable": 1, "selector": { "matchLabels": { "app": "web" } } } });
    world.create::<PodDisruptionBudget>(budget).await?;
    let allowed = |count: i32| {
        let budgets = world.api::<PodDisruptionBudget>();
        async move {
            eventually(&format!("{count} disruptions to be allowed"), || async {
                let status = budgets.get("b").await.ok()?.status?;
                let counts = (
                    status.disruptions_allowed,
                    status.expected_pods,
                    status.desired_healthy,
                );
                (counts == (count, 3, 2)).then_some(())
            })
            .await
        }
    };
    allowed(1).await?;
    // No pods come back, so that the second eviction meets a budget that is used up.
    let paused = json!({ "spec": { "unschedulable": true } });
    let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(world.client.clone());
    for node in ["n1", "n2"] {
        let patch = Patch::Merge(&paused);
        nodes.patch(node, &PatchParams::default(), &patch).await?;
    }
    world
        .api::<Pod>()
        .evict(&pods[0].name_any(), &EvictParams::default())
        .await?;
    // kube-rs tries a refused eviction again and again; kubectl says what it was told.
    let second = pods[1].name_any();
    let eviction = tempfile::NamedTempFile::new()?;
    serde_json::to_writer(
        &eviction,
        &json!({ "apiVersion": "policy/v1", "kind": "Eviction", "metadata": { "name": second } }),
    )?;
    let file = eviction.path().to_string_lossy().into_owned();
    let path = format!("/api/v1/namespaces/default/pods/{second}/eviction");
    let answer = world.kubectl(&["create", "--raw", &path, "-f", &file]).await;
    let said = answer.err().map(|error| error.to_string()).unwrap_or_default();
    assert!(
        said.contains(
            "Error from server (TooManyRequests): Cannot evict pod as it would violate the pod's disruption budget."
        ),
        "{said}"
    );
    allowed(0).await
}

fn metrics_resource() -> ApiResource {
    ApiResource {
        group: "metrics.k8s.io".to_owned(),
        version: "v1beta1".to_owned(),
        api_version: "metrics.k8s.io/v1beta1".to_owned(),
        kind: "PodMetrics".to_owned(),
        plural: "pods".to_owned(),
    }
}

fn condition(autoscaler: &HorizontalPodAutoscaler, kind: &str) -> Option<[String; 3]> {
    let conditions = autoscaler.status.as_ref()?.conditions.as_ref()?;
    let found = conditions.iter().find(|condition| condition.type_ == kind)?;
    Some([
        found.status.clone(),
        found.reason.clone()?,
        found.message.clone()?,
    ])
}

/// Says as a node what a pod of the Deployment `web` uses.
async fn report(node: &Client, pod: &str, cpu: &str) -> Result<(), kube::Error> {
    let metrics: Api<DynamicObject> = Api::namespaced_with(node.clone(), "default", &metrics_resource());
    let report = json!({
        "apiVersion": "metrics.k8s.io/v1beta1", "kind": "PodMetrics",
        "metadata": { "name": pod, "labels": { "app": "web" } },
        // Later than the pod can have become ready, from when on its use counts.
        "timestamp": "2999-01-01T00:00:00Z", "window": "0s",
        "containers": [{ "name": "c", "usage": { "cpu": cpu, "memory": "1Mi" } }],
    });
    let params = PatchParams::apply("agent").force();
    metrics.patch(pod, &params, &Patch::Apply(report)).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_is_what_nodes_report_and_nobody_else() -> Result<()> {
    let world = World::start().await?;
    world.join(&["n1", "n2"]).await?;
    world.create::<Deployment>(deployment("web", 1, "img:1")).await?;
    let pod = world.wait_ready("app=web", 1).await?.remove(0);
    let (name, on) = (
        pod.name_any(),
        pod.spec.and_then(|spec| spec.node_name).unwrap_or_default(),
    );
    let other = if on == "n1" { "n2" } else { "n1" };
    let (own, other) = (world.node_client(&on).await?, world.node_client(other).await?);
    let metrics: Api<DynamicObject> =
        Api::namespaced_with(world.client.clone(), "default", &metrics_resource());

    // While nobody reports there is nothing, and what is asked for is not found.
    assert!(metrics.list(&ListParams::default()).await?.items.is_empty());
    let missing = format!("pods.metrics.k8s.io {name:?} not found");
    assert_eq!(refused(metrics.get(&name).await), (404, missing));

    assert_eq!(
        refused(report(&world.client, &name, "1m").await).0,
        405,
        "an administrator"
    );
    assert_eq!(refused(report(&other, &name, "1m").await).0, 403, "another node");
    report(&own, &name, "7m").await?;
    report(&own, &name, "8m").await?;
    let found = metrics.get(&name).await?;
    assert_eq!(found.data["containers"][0]["usage"]["cpu"], "8m");
    let deleted = metrics.delete(&name, &DeleteParams::default()).await;
    assert_eq!(refused(deleted).0, 405);
    let printed = world.kubectl(&[
        "api-resources",
        "--api-group=metrics.k8s.io",
        "-o",
        "wide",
        "--no-headers",
    ]);
    let printed = printed.await?;
    assert_eq!(
        printed
            .lines()
            .filter(|line| line.trim_end().ends_with("get,list"))
            .count(),
        2,
        "{printed}"
    );

    // The report goes with its pod, in the same write.
    world
        .api::<Pod>()
        .delete(&name, &DeleteParams::default().grace_period(0))
        .await?;
    assert_eq!(refused(metrics.get(&name).await).0, 404);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_autoscaler_follows_its_metrics() -> Result<()> {
    let world = World::with(|config| config.autoscaler_period = Duration::from_millis(200)).await?;
    world.join(&["n1"]).await?;
    world.create::<Deployment>(deployment("web", 1, "img:1")).await?;
    let pods = world.wait_ready("app=web", 1).await?;
    let autoscaler = json!({ "metadata": { "name": "web" }, "spec": {
        "scaleTargetRef": { "apiVersion": "apps/v1", "kind": "Deployment", "name": "web" }, "minReplicas": 1, "maxReplicas": 3,
        "metrics": [{ "type": "Resource", "resource": { "name": "cpu", "target": { "type": "Utilization", "averageUtilization": 50 } } }] } });
    world.create::<HorizontalPodAutoscaler>(autoscaler).await?;
    let reads = |kind: &'static str, expected: [&'static str; 3]| {
        let api = world.api::<HorizontalPodAutoscaler>();
        async move {
            eventually(&format!("condition {kind} to be {expected:?}"), || async {
                let found = condition(&api.get("web").await.ok()?, kind)?;
                (found == expected).then_some(())
            })
            .await
        }
    };
    // Nothing reports usage, and the autoscaler says so.
    let silent = "the HPA was unable to compute the replica count: failed to get cpu utilization: unable to get metrics for \
                  resource cpu: no metrics returned from resource metrics API";
    reads("ScalingActive", ["False", "FailedGetResourceMetric", silent]).await?;

    report(&world.node_client("n1").await?, &pods[0].name_any(), "40m").await?;
    let used = world.kubectl(&["top", "pods", "--no-headers"]).await?;
    let used: Vec<_> = used.split_whitespace().collect();
    assert_eq!(used, [pods[0].name_any().as_str(), "40m", "1Mi"]);
    world.wait_ready("app=web", 3).await?;
    let found = "the HPA was able to successfully calculate a replica count from cpu resource utilization (percentage of request)";
    reads("ScalingActive", ["True", "ValidMetricFound", found]).await?;
    let rescaled = "New size: 3; reason: cpu resource utilization (percentage of request) above target";
    eventually("the event", || async {
        let events = world.events("web", "SuccessfulRescale").await.ok()?;
        (events == [rescaled]).then_some(())
    })
    .await?;
    let printed = world.kubectl(&["get", "hpa", "web"]).await?;
    assert!(
        printed.contains("Deployment/web") && printed.contains("/50%"),
        "{printed}"
    );
    Ok(())
}

/// "The sets of a Deployment are one": while they are two, the budget does not count their pods twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_does_not_use_up_a_budget() -> Result<()> {
    let world = World::start().await?;
    world.join(&["n1", "n2"]).await?;
    let mut web = deployment("web", 4, "img:1");
    web["spec"]["minReadySeconds"] = json!(300);
    world.create::<Deployment>(web).await?;
    world.wait_ready("app=web", 4).await?;
    let budget = json!({ "metadata": { "name": "web" }, "spec": {
        "maxUnavailable": 1, "selector": { "matchLabels": { "app": "web" } } } });
    world.create::<PodDisruptionBudget>(budget).await?;
    world
        .merge::<Deployment>(
            "web",
            json!({"spec": {"template": {"metadata": {"annotations": {"new": "one"}}}}}),
        )
        .await?;
    eventually("pods of two sets under the budget", || async {
        let sets = world.sets().await.ok()?;
        let with_pods = sets
            .iter()
            .filter(|set| set.status.as_ref().is_some_and(|status| status.replicas > 0));
        let pods = world.ready("app=web").await.ok()?.len();
        let status = world.api::<PodDisruptionBudget>().get("web").await.ok()?.status?;
        let seen = usize::try_from(status.current_healthy) == Ok(pods);
        (with_pods.count() == 2 && pods > 4 && seen && status.expected_pods == 4).then_some(())
    })
    .await
}
