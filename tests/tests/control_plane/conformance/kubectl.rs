//! The tests of sig-cli: the real kubectl, a cluster of simulated nodes.

use std::io::{BufRead as _, BufReader};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{Endpoints, Pod, ReplicationController};
use kube::ResourceExt as _;
use serde_json::json;

use super::workloads::controller;
use crate::world::{World, eventually};

const GUESTBOOK: &str = include_str!("guestbook.yaml");

async fn world() -> Result<World> {
    let world = World::start().await?;
    world.join(&["n1", "n2"]).await?;
    Ok(world)
}

/// A ReplicationController `agnhost-primary` whose pods run; their names.
async fn primary(world: &World, replicas: usize) -> Result<Vec<String>> {
    world
        .create::<ReplicationController>(controller("agnhost-primary", replicas))
        .await?;
    let pods = world.wait_ready("app=agnhost-primary", replicas).await?;
    Ok(pods.iter().map(kube::ResourceExt::name_any).collect())
}

fn contains(text: &str, parts: &[&str]) -> Result<()> {
    for part in parts {
        ensure!(text.contains(part), "{part:?} is not in:\n{text}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_client_guestbook_application_should_create_and_stop_a_working_application() -> Result<()> {
    let world = world().await?;
    let file = world.write("guestbook.yaml", GUESTBOOK)?;
    world.kubectl(&["create", "-f", &file]).await?;
    // What they say to each other through their Services is the node's half.
    for (service, count) in [("frontend", 3), ("agnhost-primary", 1), ("agnhost-replica", 2)] {
        eventually(&format!("{service} to have its endpoints"), || async {
            let subsets = world.api::<Endpoints>().get(service).await.ok()?.subsets?;
            let ready = subsets
                .iter()
                .flat_map(|subset| subset.addresses.iter().flatten());
            (ready.count() == count).then_some(())
        })
        .await?;
    }
    for deployment in ["frontend", "agnhost-primary", "agnhost-replica"] {
        let said = world
            .kubectl(&["rollout", "status", "deployment", deployment, "--timeout=60s"])
            .await?;
        contains(&said, &["successfully rolled out"])?;
    }
    world
        .kubectl(&["delete", "--grace-period=0", "--force", "-f", &file])
        .await?;
    eventually("all of it to go", || async {
        let left = world
            .kubectl(&["get", "rc,svc,pods", "-l", "part-of=guestbook", "--no-headers"])
            .await;
        left.ok()?.is_empty().then_some(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_client_kubectl_api_versions_should_check_if_v1_is_in_available_api_versions() -> Result<()> {
    let world = World::start().await?;
    let versions = world.kubectl(&["api-versions"]).await?;
    ensure!(versions.lines().any(|line| line == "v1"), "{versions}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_client_kubectl_cluster_info_should_check_if_kubernetes_control_plane_services_is_included()
-> Result<()> {
    let world = World::start().await?;
    let info = world.kubectl(&["cluster-info"]).await?;
    contains(
        &info,
        &["Kubernetes control plane", "is running at", "https://127.0.0.1:"],
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_client_kubectl_describe_should_check_if_kubectl_describe_prints_relevant_information_for_rc_and_pods()
-> Result<()> {
    let world = world().await?;
    let pods = primary(&world, 1).await?;
    let expose = ["expose", "rc", "agnhost-primary", "--port=6379"];
    world.kubectl(&expose).await?;
    let node = world
        .api::<Pod>()
        .get(&pods[0])
        .await?
        .spec
        .and_then(|spec| spec.node_name);
    let node = node.context("a node")?;
    let describe = async |what: &[&str]| world.kubectl(&[&["describe"][..], what].concat()).await;
    // What controllers have to find out is told some time after the pod is ready.
    let says = async |what: &[&str], parts: &[&str]| {
        eventually(&format!("kubectl describe {what:?} to say {parts:?}"), || async {
            contains(&describe(what).await.ok()?, parts).ok()
        })
        .await
    };
    contains(
        &describe(&["pod", &pods[0]]).await?,
        &[
            "Name:",
            "Namespace:",
            "Node:",
            "Labels:",
            "app=agnhost-primary",
            "Status:",
            "Running",
            "IP:",
            "Controlled By:",
            "ReplicationController/agnhost-primary",
            "Image:",
        ],
    )?;
    says(
        &["rc", "agnhost-primary"],
        &[
            "Name:",
            "agnhost-primary",
            "Namespace:",
            "default",
            "Selector:",
            "app=agnhost-primary",
            "Labels:",
            "Replicas:",
            "1 current",
            "1 desired",
            "Pods Status:",
            "1 Running / 0 Waiting",
            "Pod Template:",
            "Image:",
            "Events:",
        ],
    )
    .await?;
    says(
        &["service", "agnhost-primary"],
        &[
            "Name:",
            "agnhost-primary",
            "Namespace:",
            "Labels:",
            "Selector:",
            "Type:",
            "ClusterIP",
            "IP:",
            "Port:",
            "6379/TCP",
            "Endpoints:",
            ":6379",
            "Session Affinity:",
        ],
    )
    .await?;
    contains(
        &describe(&["node", &node]).await?,
        &[
            "Name:",
            &node,
            "Labels:",
            "Annotations:",
            "CreationTimestamp",
            "Conditions:",
            "Type",
            "Status",
            "LastHeartbeatTime",
            "LastTransitionTime",
            "Reason",
            "Message",
            "Addresses:",
            "Capacity:",
            "Pods:",
        ],
    )?;
    contains(
        &describe(&["namespace", "default"]).await?,
        &["Name:", "default", "Labels:", "Status:", "Active"],
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_client_kubectl_diff_should_check_if_kubectl_diff_finds_a_difference_for_deployments()
-> Result<()> {
    let world = World::start().await?;
    let image = |image: &str| weft_lab::simulated::deployment("httpd-deployment", 1, image).to_string();
    let live = world.write("live.json", &image("httpd:1"))?;
    let declared = world.write("declared.json", &image("busybox:1"))?;
    world.kubectl(&["create", "-f", &live]).await?;
    ensure!(world.kubectl(&["diff", "-f", &live]).await?.is_empty());
    // A difference is told by the exit code, too.
    let differs = world
        .kubectl(&["diff", "-f", &declared])
        .await
        .unwrap_err()
        .to_string();
    contains(&differs, &["httpd:1", "busybox:1"])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_client_kubectl_expose_should_create_services_for_rc() -> Result<()> {
    let world = world().await?;
    primary(&world, 1).await?;
    for (kind, of, name, port) in [
        ("rc", "agnhost-primary", "rm2", "1234"),
        ("service", "rm2", "rm3", "2345"),
    ] {
        let (named, at) = (format!("--name={name}"), format!("--port={port}"));
        world
            .kubectl(&["expose", kind, of, &named, &at, "--target-port=6379"])
            .await?;
        let path = "jsonpath={.spec.ports[0].port} {.spec.ports[0].targetPort}";
        let ports = world.kubectl(&["get", "service", name, "-o", path]).await?;
        ensure!(ports == format!("{port} 6379"), "{ports}");
        let listed = eventually("its endpoint", || async {
            let endpoints = world.api::<Endpoints>().get(name).await.ok()?;
            let subset = endpoints.subsets?.into_iter().next()?;
            Some((subset.addresses?.len(), subset.ports?[0].port))
        })
        .await?;
        ensure!(listed == (1, 6379), "{listed:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_client_kubectl_label_should_update_the_label_on_a_resource() -> Result<()> {
    let world = world().await?;
    let pod = primary(&world, 1).await?.remove(0);
    let run = async |arguments: &[&str]| world.kubectl(arguments).await;
    run(&["label", "pods", &pod, "testing-label=testing-label-value"]).await?;
    let shown = run(&["get", "pod", &pod, "-L", "testing-label"]).await?;
    contains(&shown, &["TESTING-LABEL", "testing-label-value"])?;
    let selected = run(&["get", "pods", "-l", "testing-label", "-o", "name"]).await?;
    ensure!(selected.trim() == format!("pod/{pod}"), "{selected}");
    run(&["label", "pods", &pod, "testing-label-"]).await?;
    let shown = run(&["get", "pod", &pod, "-L", "testing-label"]).await?;
    ensure!(!shown.contains("testing-label-value"), "{shown}");
    ensure!(
        run(&["get", "pods", "-l", "testing-label", "-o", "name"])
            .await?
            .is_empty()
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_client_kubectl_patch_should_add_annotations_for_pods_in_rc() -> Result<()> {
    let world = world().await?;
    for pod in primary(&world, 2).await? {
        world
            .kubectl(&[
                "patch",
                "pod",
                &pod,
                "-p",
                r#"{"metadata":{"annotations":{"x":"y"}}}"#,
            ])
            .await?;
        let pod = world.api::<Pod>().get(&pod).await?;
        ensure!(pod.annotations().get("x").map(String::as_str) == Some("y"));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_client_kubectl_replace_should_update_a_single_container_pod_s_image() -> Result<()> {
    let world = world().await?;
    let run = async |arguments: &[&str]| world.kubectl(arguments).await;
    run(&["run", "pod", "--image=httpd:1", "--labels=run=pod"]).await?;
    world.wait_ready("run=pod", 1).await?;
    let live = run(&["get", "pod", "pod", "-o", "json"]).await?;
    let changed = world.write("pod.json", &live.replace("httpd:1", "busybox:1"))?;
    run(&["replace", "-f", &changed]).await?;
    let path = "jsonpath={.spec.containers[0].image}";
    ensure!(run(&["get", "pod", "pod", "-o", path]).await? == "busybox:1");
    // Made anew where it is forced.
    let before = world.api::<Pod>().get("pod").await?.uid();
    let mut fresh: serde_json::Value = serde_json::from_str(&live)?;
    fresh["metadata"] = json!({ "name": "pod", "labels": { "run": "pod" } });
    fresh["spec"] = json!({ "containers": [{ "name": "pod", "image": "other:1" }] });
    let fresh = world.write("fresh.json", &fresh.to_string())?;
    run(&["replace", "--force", "-f", &fresh]).await?;
    world.wait_ready("run=pod", 1).await?;
    ensure!(world.api::<Pod>().get("pod").await?.uid() != before);
    ensure!(run(&["get", "pod", "pod", "-o", path]).await? == "other:1");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_client_kubectl_run_pod_should_create_a_pod_from_an_image_when_restart_is_never() -> Result<()>
{
    let world = world().await?;
    world
        .kubectl(&["run", "pod", "--restart=Never", "--image=httpd:1"])
        .await?;
    let spec = world
        .wait_ready("run=pod", 1)
        .await?
        .remove(0)
        .spec
        .context("a spec")?;
    ensure!(spec.restart_policy.as_deref() == Some("Never"));
    ensure!(spec.containers.len() == 1 && spec.containers[0].image.as_deref() == Some("httpd:1"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_client_kubectl_server_side_dry_run_should_check_if_kubectl_can_dry_run_update_pods()
-> Result<()> {
    let world = world().await?;
    let run = async |arguments: &[&str]| world.kubectl(arguments).await;
    run(&["run", "pod", "--image=httpd:1"]).await?;
    let patch = r#"{"spec":{"containers":[{"name": "pod","image": "busybox:1"}]}}"#;
    let said = run(&["patch", "pod", "pod", "-p", patch, "--dry-run=server"]).await?;
    ensure!(
        said == "pod/pod patched (server dry run)\n" || said == "pod/pod patched\n",
        "{said}"
    );
    let path = "jsonpath={.spec.containers[0].image}";
    ensure!(run(&["get", "pod", "pod", "-o", path]).await? == "httpd:1");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_client_kubectl_version_should_check_is_all_data_is_printed() -> Result<()> {
    let world = World::start().await?;
    let shown = world.kubectl(&["version"]).await?;
    contains(&shown, &["Client Version: v1.", "Server Version: v1.33."])?;
    let shown = world.kubectl(&["version", "-o", "json"]).await?;
    let shown: serde_json::Value = serde_json::from_str(&shown)?;
    for side in ["clientVersion", "serverVersion"] {
        for field in ["major", "minor", "gitVersion", "platform"] {
            ensure!(
                shown[side][field].as_str().is_some_and(|text| !text.is_empty()),
                "{side} {field}: {shown:#}"
            );
        }
    }
    Ok(())
}

/// A `kubectl proxy`, killed when dropped, and what it said first.
struct Proxy {
    child: Child,
    said: String,
}

impl Proxy {
    fn start(world: &World, flag: &str) -> Result<Self> {
        let mut child = Command::new("kubectl")
            .args(["proxy", flag])
            .env("KUBECONFIG", world.path("admin.kubeconfig"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("kubectl is not installed")?;
        let output = child.stdout.take().context("a pipe")?;
        let mut proxy = Self {
            child,
            said: String::new(),
        };
        BufReader::new(output).read_line(&mut proxy.said)?;
        Ok(proxy)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks a proxy for the API's versions.
fn versions(mut stream: impl std::io::Read + std::io::Write) -> Result<()> {
    stream.write_all(b"GET /api HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    contains(&answer, &["200 OK", "\"APIVersions\"", "\"v1\""])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_client_proxy_server_should_support_proxy_with_port_0() -> Result<()> {
    let world = World::start().await?;
    tokio::task::block_in_place(|| {
        let proxy = Proxy::start(&world, "--port=0")?;
        let address = proxy.said.trim().strip_prefix("Starting to serve on ");
        versions(TcpStream::connect(address.context(proxy.said.clone())?)?)
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_client_proxy_server_should_support_unix_socket() -> Result<()> {
    let world = World::start().await?;
    tokio::task::block_in_place(|| {
        let socket = world.path("proxy.sock");
        let proxy = Proxy::start(&world, &format!("--unix-socket={}", socket.display()))?;
        ensure!(proxy.said.starts_with("Starting to serve on"), "{}", proxy.said);
        versions(UnixStream::connect(socket)?)
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_client_update_demo_should_create_and_stop_a_replication_controller() -> Result<()> {
    let world = world().await?;
    let file = world.write("nautilus.json", &typed("update-demo", 2))?;
    world.kubectl(&["create", "-f", &file]).await?;
    world.wait_ready("app=update-demo", 2).await?;
    world
        .kubectl(&["delete", "--grace-period=0", "--force", "-f", &file])
        .await?;
    eventually("controller and pods to go", || async {
        let left = world
            .kubectl(&["get", "rc,pods", "-l", "app=update-demo", "--no-headers"])
            .await;
        left.ok()?.is_empty().then_some(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_client_update_demo_should_scale_a_replication_controller() -> Result<()> {
    let world = world().await?;
    let file = world.write("nautilus.json", &typed("update-demo", 2))?;
    world.kubectl(&["create", "-f", &file]).await?;
    world.wait_ready("app=update-demo", 2).await?;
    for replicas in [1, 2] {
        let wanted = format!("--replicas={replicas}");
        world
            .kubectl(&["scale", "rc", "update-demo", &wanted, "--timeout=5m"])
            .await?;
        world.wait_ready("app=update-demo", replicas).await?;
    }
    Ok(())
}

fn typed(name: &str, replicas: usize) -> String {
    let mut controller = controller(name, replicas);
    controller["apiVersion"] = json!("v1");
    controller["kind"] = json!("ReplicationController");
    controller.to_string()
}
