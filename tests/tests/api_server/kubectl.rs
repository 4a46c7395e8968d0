//! The real kubectl.

use anyhow::Result;

use crate::server::Server;

const DEPLOYMENT: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers: [{name: c, image: "example.com/i:1"}]
"#;

const NODE: &str = r"
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {kubernetes.io/hostname: n1}}
";

const NODE_STATUS: &str = r#"{"status":{
    "allocatable":{"cpu":"4","memory":"8Gi","pods":"110"},"capacity":{"cpu":"4","memory":"8Gi","pods":"110"},
    "nodeInfo":{"kubeletVersion":"v1.33.0"},"addresses":[{"type":"InternalIP","address":"192.0.2.1"}],
    "conditions":[{"type":"Ready","status":"True","reason":"Test"}]}}"#;

const POD_STATUS: &str = r#"{"status":{"phase":"Running","podIP":"10.244.0.9",
    "conditions":[{"type":"Ready","status":"True","lastTransitionTime":"2020-01-01T00:00:00Z"}],
    "containerStatuses":[{"name":"c","ready":true,"restartCount":0,"image":"i","imageID":"","state":{"running":{}}}]}}"#;

/// Words of a table, so that widths and ages do not matter.
fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

#[test]
fn objects_live_their_lives() -> Result<()> {
    let server = Server::api_only()?;
    let run = |arguments: &[&str]| server.kubectl(arguments);
    assert_eq!(
        run(&["create", "configmap", "a", "--from-literal=x=1"])?,
        "configmap/a created\n"
    );
    let table = run(&["get", "configmaps"])?;
    let lines: Vec<_> = table.lines().collect();
    assert_eq!(words(lines[0]), ["NAME", "DATA", "AGE"]);
    assert_eq!(words(lines[1])[..2], ["a", "1"]);
    assert_eq!(run(&["label", "cm", "a", "k=v"])?, "configmap/a labeled\n");
    assert_eq!(run(&["label", "cm", "a", "k=v"])?, "configmap/a not labeled\n");
    assert_eq!(run(&["annotate", "cm", "a", "n=1"])?, "configmap/a annotated\n");
    assert_eq!(run(&["get", "cm", "-l", "k=v", "-o", "name"])?, "configmap/a\n");
    assert_eq!(run(&["get", "cm", "-l", "k!=v", "-o", "name"])?, "");
    assert_eq!(run(&["get", "cm", "a", "-o", "jsonpath={.data.x}"])?, "1");
    assert_eq!(
        run(&["patch", "cm", "a", "-p", r#"{"data":{"y":"2"}}"#])?,
        "configmap/a patched\n"
    );
    assert_eq!(
        run(&[
            "patch",
            "cm",
            "a",
            "--type=json",
            "-p",
            r#"[{"op":"remove","path":"/data/y"}]"#
        ])?,
        "configmap/a patched\n"
    );
    assert!(run(&["describe", "cm", "a"])?.contains("Name:         a"));
    assert_eq!(
        run(&["create", "secret", "generic", "s", "--from-literal=p=q"])?,
        "secret/s created\n"
    );
    assert_eq!(
        run(&["get", "secret", "s", "-o", "jsonpath={.type}/{.data.p}"])?,
        "Opaque/cQ=="
    );
    assert_eq!(run(&["create", "sa", "bob"])?, "serviceaccount/bob created\n");
    assert_eq!(
        run(&["create", "namespace", "other"])?,
        "namespace/other created\n"
    );
    assert_eq!(run(&["delete", "cm", "a"])?, "configmap \"a\" deleted\n");
    let missing = server.try_kubectl(&["get", "cm", "a"])?;
    let text = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert_eq!(text, "Error from server (NotFound): configmaps \"a\" not found\n");
    Ok(())
}

#[test]
fn apply_creates_leaves_alone_and_configures() -> Result<()> {
    let server = Server::api_only()?;
    let file = server.write("web.yaml", DEPLOYMENT)?;
    let apply = |file: &str| server.kubectl(&["apply", "-f", file]);
    assert_eq!(apply(&file)?, "deployment.apps/web created\n");
    assert_eq!(apply(&file)?, "deployment.apps/web unchanged\n");
    let changed = server.write("changed.yaml", &DEPLOYMENT.replace("replicas: 2", "replicas: 3"))?;
    let diff = server.try_kubectl(&["diff", "-f", &changed])?;
    let text = String::from_utf8_lossy(&diff.stdout).into_owned();
    assert_eq!(diff.status.code(), Some(1), "{text}");
    assert!(
        text.contains("-  replicas: 2") && text.contains("+  replicas: 3"),
        "{text}"
    );
    assert_eq!(apply(&changed)?, "deployment.apps/web configured\n");
    assert_eq!(
        server.kubectl(&["apply", "--server-side", "-f", &changed, "--force-conflicts"])?,
        "deployment.apps/web serverside-applied\n"
    );
    assert_eq!(
        server.kubectl(&["set", "image", "deploy/web", "c=example.com/i:2"])?,
        "deployment.apps/web image updated\n"
    );
    let image = server.kubectl(&[
        "get",
        "deploy",
        "web",
        "-o",
        "jsonpath={.spec.template.spec.containers[*].image}",
    ])?;
    assert_eq!(image, "example.com/i:2");
    let unknown = server.write("unknown.yaml", &DEPLOYMENT.replace("replicas", "replicaz"))?;
    let refused = server.try_kubectl(&["apply", "-f", &unknown])?;
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(text.contains("unknown field \"spec.replicaz\""), "{text}");
    assert_eq!(
        server.kubectl(&["delete", "-f", &file])?,
        "deployment.apps \"web\" deleted\n"
    );
    Ok(())
}

#[test]
fn a_deployment_rolls_out_over_a_node_that_reports() -> Result<()> {
    let server = Server::complete()?;
    let run = |arguments: &[&str]| server.kubectl(arguments);
    let node = server.write("node.yaml", NODE)?;
    run(&["create", "-f", &node])?;
    run(&[
        "patch",
        "node",
        "n1",
        "--subresource=status",
        "--type=merge",
        "-p",
        NODE_STATUS,
    ])?;
    run(&["apply", "-f", &server.write("web.yaml", DEPLOYMENT)?])?;
    weft_lab::wait::wait_until("two pods on the node", std::time::Duration::from_secs(20), || {
        let on_node = run(&["get", "pods", "--field-selector=spec.nodeName=n1", "-o", "name"])?;
        anyhow::ensure!(on_node.lines().count() == 2, "{on_node}");
        Ok(())
    })?;
    for pod in run(&["get", "pods", "-o", "name"])?.lines() {
        run(&[
            "patch",
            pod,
            "--subresource=status",
            "--type=merge",
            "-p",
            POD_STATUS,
        ])?;
    }
    let status = run(&["rollout", "status", "deploy/web", "--timeout=20s"])?;
    assert!(
        status.contains("deployment \"web\" successfully rolled out"),
        "{status}"
    );
    run(&["wait", "--for=condition=Available", "deploy/web", "--timeout=20s"])?;
    let table = run(&["get", "deploy", "web"])?;
    let lines: Vec<_> = table.lines().collect();
    assert_eq!(
        words(lines[0]),
        ["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"]
    );
    assert_eq!(words(lines[1])[..4], ["web", "2/2", "2", "2"]);
    let pods = run(&["get", "pods", "-o", "wide"])?;
    let lines: Vec<_> = pods.lines().collect();
    assert_eq!(
        words(lines[0]),
        [
            "NAME",
            "READY",
            "STATUS",
            "RESTARTS",
            "AGE",
            "IP",
            "NODE",
            "NOMINATED",
            "NODE",
            "READINESS",
            "GATES"
        ]
    );
    assert_eq!(words(lines[1])[1..4], ["1/1", "Running", "0"]);
    assert_eq!(words(lines[1])[5..], ["10.244.0.9", "n1", "<none>", "<none>"]);
    let nodes = run(&["get", "nodes"])?;
    assert_eq!(
        words(nodes.lines().nth(1).unwrap_or_default())[..3],
        ["n1", "Ready", "<none>"]
    );
    let described = run(&["describe", "deploy", "web"])?;
    assert!(
        described.contains("Replicas:               2 desired | 2 updated | 2 total | 2 available"),
        "{described}"
    );
    assert!(run(&["describe", "node", "n1"])?.contains("InternalIP:  192.0.2.1"));
    run(&["scale", "deploy", "web", "--replicas=0"])?;
    assert_eq!(run(&["cordon", "n1"])?, "node/n1 cordoned\n");
    let nodes = run(&["get", "nodes"])?;
    assert_eq!(
        words(nodes.lines().nth(1).unwrap_or_default())[1],
        "Ready,SchedulingDisabled"
    );
    run(&["delete", "deploy", "web"])?;
    run(&["create", "namespace", "short"])?;
    run(&["create", "cm", "a", "-n", "short"])?;
    assert_eq!(
        run(&["delete", "namespace", "short"])?,
        "namespace \"short\" deleted\n"
    );
    Ok(())
}

#[test]
fn discovery_names_what_is_served() -> Result<()> {
    let server = Server::api_only()?;
    let resources = server.kubectl(&["api-resources", "--no-headers"])?;
    for line in [
        ["pods", "po", "v1", "true", "Pod"],
        ["deployments", "deploy", "apps/v1", "true", "Deployment"],
        ["nodes", "no", "v1", "false", "Node"],
    ] {
        assert!(
            resources.lines().any(|found| words(found) == line),
            "{line:?} in {resources}"
        );
    }
    let versions = server.kubectl(&["api-versions"])?;
    assert!(versions.lines().any(|line| line == "apps/v1"), "{versions}");
    assert!(server.kubectl(&["version"])?.contains("Server Version: v1.33"));
    assert!(
        server
            .kubectl(&["get", "--raw", "/api/v1"])?
            .contains("pods/eviction")
    );
    Ok(())
}
