//! Pods that the agent runs, from the API's point of view: on one node, with real containers.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use weft_lab::image::ImageBuilder;
use weft_lab::wait::wait_until;
use weft_lab::{Cluster, ClusterOptions, Node};

const IMAGE: &str = "weft.local/shell:test";
const PATIENCE: Duration = Duration::from_mins(1);

#[test]
fn a_pod_runs_its_containers_in_order_and_says_how_it_went() -> Result<()> {
    let cluster = start("order")?;
    cluster.client.apply(json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "words", "namespace": "default"},
        "data": {"greeting": "hello"},
    }))?;
    let mount = json!([{"name": "shared", "mountPath": "/shared"}]);
    let field = |path: &str| json!({"fieldRef": {"fieldPath": path}});
    apply_pod(
        &cluster,
        "order",
        json!({
            "restartPolicy": "Never",
            "volumes": [{"name": "shared", "emptyDir": {}}, {"name": "words", "configMap": {"name": "words"}}],
            "initContainers": [
                shell("first", "echo first > /shared/steps", &mount),
                shell("second", "test \"$(cat /shared/steps)\" = first && echo second >> /shared/steps", &mount),
            ],
            "containers": [
                {
                    "name": "main", "image": IMAGE, "imagePullPolicy": "Never",
                    "command": ["/bin/sh", "-c"],
                    "args": ["cat /shared/steps; cat /words/greeting; echo; echo $(NAME) $(IP) $(GREETING); hostname; cat /etc/hosts; cd /var/run/secrets/kubernetes.io/serviceaccount; cat namespace; echo; cat ca.crt; cat token; echo; exit 0"],
                    "env": [
                        {"name": "NAME", "valueFrom": field("metadata.name")},
                        {"name": "IP", "valueFrom": field("status.podIP")},
                        {"name": "GREETING", "valueFrom": {"configMapKeyRef": {"name": "words", "key": "greeting"}}},
                    ],
                    "volumeMounts": [{"name": "shared", "mountPath": "/shared"}, {"name": "words", "mountPath": "/words"}],
                    "resources": {"requests": {"cpu": "50m"}, "limits": {"cpu": "500m", "memory": "64Mi"}},
                },
                shell("beside", "exit 0", &mount),
            ],
        }),
    )?;

    let pod = wait_for_pod(&cluster, "order", "to succeed", |pod| {
        pod["status"]["phase"] == "Succeeded"
    })?;

    let status = &pod["status"];
    assert_eq!(status["qosClass"], "Burstable", "{status:#}");
    let main = container(&pod, "main")?;
    assert_eq!(main["state"]["terminated"]["exitCode"], 0, "{status:#}");
    assert_eq!(main["state"]["terminated"]["reason"], "Completed");
    assert_eq!(condition(&pod, "Initialized"), "True");
    assert_eq!(condition(&pod, "Ready"), "False");
    let ip = status["podIP"].as_str().context("a pod IP")?;
    // On a busy machine a start may be cut short; the status says which attempt it was.
    let attempt = main["restartCount"].as_u64().context("a count")?;
    let log = log(&cluster, &pod, "main", u32::try_from(attempt)?)?;
    for text in [
        "first",
        "second",
        "hello",
        &format!("order {ip} hello"),
        "order",
        &format!("{ip}\torder"),
        "default",
        "-----BEGIN CERTIFICATE-----",
    ] {
        assert!(
            log.lines().any(|line| line.ends_with(text)),
            "{text:?} is not in {log}"
        );
    }
    // The token that the container found is the pod's.
    let token = log
        .split_whitespace()
        .find(|word| word.starts_with("eyJ"))
        .with_context(|| format!("no token in {log}"))?;
    let review = review(&cluster, token)?;
    assert_eq!(
        review["user"]["username"],
        "system:serviceaccount:default:default"
    );
    let pod_name = &review["user"]["extra"]["authentication.kubernetes.io/pod-name"];
    assert_eq!(pod_name, &json!(["order"]), "{review:#}");
    // A pod that is over keeps no network.
    wait_until("the netns to go", PATIENCE, || {
        ensure!(cluster.nodes[0].pod_netns()?.is_empty());
        Ok(())
    })?;
    delete_and_see_nothing_left(&cluster, &["order"])
}

#[test]
fn a_failing_container_is_restarted_ever_later() -> Result<()> {
    let cluster = start("restart")?;
    apply_pod(
        &cluster,
        "crash",
        json!({"containers": [shell("main", "echo attempt; exit 3", &json!([])), shell("good", "trap 'exit 0' TERM; while :; do sleep 0.1; done", &json!([]))]}),
    )?;

    // The first restart is immediate, the second waits.
    let pod = wait_for_pod(&cluster, "crash", "to back off", |pod| {
        container(pod, "main").is_ok_and(|c| c["state"]["waiting"]["reason"] == "CrashLoopBackOff")
    })?;

    let main = container(&pod, "main")?;
    assert_eq!(main["restartCount"], 1, "{main:#}");
    assert_eq!(main["lastState"]["terminated"]["exitCode"], 3, "{main:#}");
    assert_eq!(main["ready"], false);
    assert_eq!(container(&pod, "good")?["restartCount"], 0);
    assert_eq!(pod["status"]["phase"], "Running");
    let pod = wait_for_pod(&cluster, "crash", "to be started a third time", |pod| {
        container(pod, "main").is_ok_and(|c| c["restartCount"] == 2)
    })?;
    assert!(log(&cluster, &pod, "main", 1)?.contains("attempt"));
    delete_and_see_nothing_left(&cluster, &["crash"])
}

#[test]
fn pods_outlive_the_agent_and_are_taken_over_by_the_next() -> Result<()> {
    let mut cluster = start("adopt")?;
    let forever =
        "trap 'echo bye; sleep 2; exit 0' TERM; i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done";
    for name in ["kept", "orphan"] {
        apply_pod(
            &cluster,
            name,
            json!({"terminationGracePeriodSeconds": 20, "containers": [shell("main", forever, &json!([]))]}),
        )?;
    }
    for name in ["over", "forgotten"] {
        let once = json!({"restartPolicy": "Never", "containers": [shell("main", "echo over", &json!([]))]});
        apply_pod(&cluster, name, once)?;
    }
    let is_ready = |pod: &Value| condition(pod, "Ready") == "True";
    let before = wait_for_pod(&cluster, "kept", "to be ready", is_ready)?;
    wait_for_pod(&cluster, "orphan", "to be ready", is_ready)?;
    let is_over = |pod: &Value| pod["status"]["phase"] == "Succeeded";
    let over = wait_for_pod(&cluster, "over", "to end", is_over)?;
    let forgotten = wait_for_pod(&cluster, "forgotten", "to end", is_over)?;
    wait_until("what ended to keep its logs alone", PATIENCE, || {
        ensure!(cluster.nodes[0].pod_netns()?.len() == 2);
        ensure!(fs::read_dir(cluster.nodes[0].state_dir().join("pods"))?.count() == 2);
        Ok(())
    })?;
    let logs = |pod: &Value| log_dir(&cluster.nodes[0], pod);
    let (over, forgotten) = (logs(&over)?, logs(&forgotten)?);
    assert!(over.exists() && forgotten.exists());

    cluster.nodes[0].kill_agent()?;
    let lines = log(&cluster, &before, "main", 0)?.lines().count();
    wait_until("the container to go on", PATIENCE, || {
        ensure!(log(&cluster, &before, "main", 0)?.lines().count() > lines + 3);
        Ok(())
    })?;
    // Gone from the API at once, with nobody on the node to notice.
    force_delete(&cluster, "orphan")?;
    force_delete(&cluster, "forgotten")?;
    cluster.nodes[0].start_agent()?;

    wait_until("the orphan to be taken away", PATIENCE, || {
        let left = cluster.nodes[0].pod_netns()?;
        ensure!(left.len() == 1, "{left:?}");
        ensure!(!forgotten.exists(), "{} is still there", forgotten.display());
        Ok(())
    })?;
    let after = wait_for_pod(&cluster, "kept", "to be ready", is_ready)?;
    for path in [
        "/status/containerStatuses/0/containerID",
        "/status/containerStatuses/0/restartCount",
        "/status/podIP",
        "/status/startTime",
    ] {
        assert_eq!(before.pointer(path), after.pointer(path), "{path}");
    }
    // It ends as it wants to, within its grace.
    cluster.client.delete("Pod", "default", "kept")?;
    let mut last = String::new();
    wait_until("the pod to go", PATIENCE, || {
        if let Ok(text) = log(&cluster, &before, "main", 0) {
            last = text;
        }
        ensure!(cluster.client.get("Pod", "default", "kept")?.is_none());
        Ok(())
    })?;
    assert!(last.trim_end().ends_with("bye"), "{last}");
    assert!(over.exists(), "the logs of a pod that is there are gone");
    delete_and_see_nothing_left(&cluster, &["over"])
}

#[test]
fn a_pod_whose_shim_dies_starts_over_and_an_uninstall_leaves_none() -> Result<()> {
    let mut cluster = start("shim")?;
    let mount = json!([{"name": "data", "mountPath": "/data"}]);
    let mut main = shell(
        "main",
        "echo main >> /data/log; cat /data/log; trap 'exit 0' TERM; while :; do sleep 0.1; done",
        &mount,
    );
    main["resources"] = json!({"limits": {"memory": "64Mi"}});
    apply_pod(
        &cluster,
        "pod",
        json!({
            "volumes": [{"name": "data", "emptyDir": {}}],
            "initContainers": [shell("init", "echo init >> /data/log", &mount)],
            "containers": [main],
        }),
    )?;
    let is_ready = |pod: &Value| condition(pod, "Ready") == "True";
    let pod = wait_for_pod(&cluster, "pod", "to be ready", is_ready)?;
    let uid = pod["metadata"]["uid"].as_str().context("a UID")?;
    let limits = memory_limits(&cluster, uid, "main.0");
    assert!(limits.contains(&(64 << 20)), "{limits:?}");

    let dir = cluster.nodes[0].state_dir().join("pods").join(uid);
    let shim = fs::read_to_string(dir.join("shim.pid"))?;
    let mut kill = cluster.nodes[0].machine().command("/bin/kill");
    ensure!(kill.args(["-9", shim.trim()]).status()?.success());

    let pod = wait_for_pod(&cluster, "pod", "to be started again", |pod| {
        is_ready(pod) && container(pod, "main").is_ok_and(|c| c["restartCount"] == 1)
    })?;
    assert_eq!(
        container(&pod, "main")?["lastState"]["terminated"]["exitCode"],
        137
    );
    assert_eq!(memory_limits(&cluster, uid, "main.0"), Vec::<u64>::new());
    // The pod is the same one, so it finds what it wrote; its place is a new one, so it is initialized again.
    assert_eq!(pod["status"]["initContainerStatuses"][0]["restartCount"], 1);
    let lines = log(&cluster, &pod, "main", 1)?;
    let words: Vec<_> = lines.lines().filter_map(|line| line.rsplit(' ').next()).collect();
    assert_eq!(words, ["init", "main", "init", "main"]);

    let node = &mut cluster.nodes[0];
    node.kill_agent()?;
    let scratch = node.state_dir().with_file_name("scratch");
    let text = |path: &Path| path.display().to_string();
    let (state, bpffs, nowhere) = (text(&node.state_dir()), text(&node.bpffs()), text(&scratch));
    let mut words = vec![
        "uninstall",
        "--no-systemctl",
        "--state-dir",
        &state,
        "--bpffs-root",
        &bpffs,
    ];
    for flag in [
        "--bin-dir",
        "--unit-dir",
        "--run-dir",
        "--cni-conf-dir",
        "--cni-bin-dir",
    ] {
        words.extend([flag, &nowhere]);
    }
    node.weft(&words)?;
    assert!(!node.state_dir().exists());
    assert_eq!(memory_limits(&cluster, uid, "main.1"), Vec::<u64>::new());
    let processes = cluster.nodes[0]
        .machine()
        .command("/bin/ps")
        .args(["-e", "-o", "args"])
        .output()?;
    let processes = String::from_utf8(processes.stdout)?;
    assert!(
        !processes.contains("pod-shim") && !processes.contains("sleep 0.1"),
        "{processes}"
    );
    Ok(())
}

#[test]
fn an_agent_that_dies_while_it_starts_a_pod_leaves_the_rest_to_the_next() -> Result<()> {
    let mut cluster = start("cut")?;
    let forever = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
    for moment in (0..200).step_by(20) {
        let name = format!("cut-{moment}");
        apply_pod(
            &cluster,
            &name,
            json!({
                "terminationGracePeriodSeconds": 1,
                "initContainers": [shell("init", "exit 0", &json!([]))],
                "containers": [shell("a", forever, &json!([])), shell("b", forever, &json!([]))],
            }),
        )?;
        // Whatever the agent is at then: the pod's place, its init container, or one of the others.
        std::thread::sleep(Duration::from_millis(moment));
        cluster.nodes[0].kill_agent()?;
        cluster.nodes[0].start_agent()?;
        wait_for_pod(&cluster, &name, "to be ready", |pod| {
            condition(pod, "Ready") == "True"
        })?;
        cluster.client.delete("Pod", "default", &name)?;
    }
    delete_and_see_nothing_left(&cluster, &[])
}

#[test]
fn a_readiness_gate_is_opened_and_closed_by_somebody_else() -> Result<()> {
    use k8s_openapi::api::core::v1::Pod;
    use kube::api::{Api, Patch, PatchParams};

    const GATE: &str = "example.com/open";
    let cluster = start("gate")?;
    let forever = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
    apply_pod(
        &cluster,
        "gated",
        json!({"readinessGates": [{"conditionType": GATE}], "containers": [shell("main", forever, &json!([]))]}),
    )?;
    wait_for_pod(&cluster, "gated", "to be held back", |pod| {
        condition(pod, "ContainersReady") == "True" && condition(pod, "Ready") == "False"
    })?;
    for open in ["True", "False", "True"] {
        cluster.client.call(move |client| async move {
            let api: Api<Pod> = Api::namespaced(client, "default");
            let patch = json!({"status": {"conditions": [{"type": GATE, "status": open}]}});
            api.patch_status("gated", &PatchParams::default(), &Patch::Strategic(patch))
                .await?;
            Ok(())
        })?;
        wait_for_pod(&cluster, "gated", "to follow its gate", |pod| {
            condition(pod, "Ready") == open && condition(pod, GATE) == open
        })?;
    }
    delete_and_see_nothing_left(&cluster, &["gated"])
}

#[test]
fn what_cannot_be_had_is_said_and_looked_for_again() -> Result<()> {
    let cluster = start("missing")?;
    apply_pod(
        &cluster,
        "never",
        json!({"containers": [{"name": "main", "image": "weft.local/later:1", "imagePullPolicy": "Never", "command": ["/bin/sleep", "1000"]}]}),
    )?;
    apply_pod(
        &cluster,
        "volume",
        json!({
            "volumes": [{"name": "v", "nfs": {"server": "s", "path": "/p"}}],
            "containers": [shell("main", "exit 0", &json!([{"name": "v", "mountPath": "/v"}]))],
        }),
    )?;
    apply_pod(
        &cluster,
        "program",
        json!({"restartPolicy": "Never", "containers": [{"name": "main", "image": IMAGE, "imagePullPolicy": "Never", "command": ["/no/such/program"]}]}),
    )?;
    let waiting = |reason: &'static str| {
        move |pod: &Value| container(pod, "main").is_ok_and(|c| c["state"]["waiting"]["reason"] == reason)
    };

    wait_for_pod(
        &cluster,
        "never",
        "to lack its image",
        waiting("ErrImageNeverPull"),
    )?;
    let pod = wait_for_pod(
        &cluster,
        "volume",
        "to lack its volume",
        waiting("CreateContainerConfigError"),
    )?;
    let message = container(&pod, "main")?["state"]["waiting"]["message"].to_string();
    assert!(message.contains("volume v"), "{message}");
    let pod = wait_for_pod(&cluster, "program", "to fail", |pod| {
        pod["status"]["phase"] == "Failed"
    })?;
    let end = &container(&pod, "main")?["state"]["terminated"];
    assert_eq!(
        (&end["reason"], &end["exitCode"]),
        (&json!("StartError"), &json!(128))
    );
    assert!(end["message"].to_string().contains("/no/such/program"), "{end}");

    let archive = cluster.lab().root().join("later.tar");
    shell_image("weft.local/later:1")?.write(&archive)?;
    cluster.nodes[0].load_image(&archive)?;
    wait_for_pod(&cluster, "never", "to be ready", |pod| {
        condition(pod, "Ready") == "True"
    })?;
    // They are posted from a queue of their own, after the status.
    wait_until("the events", PATIENCE, || {
        let events = cluster.client.list("Event", "default", "")?;
        for (name, reason) in [
            ("never", "Failed"),
            ("never", "Started"),
            ("volume", "Failed"),
            ("program", "Failed"),
        ] {
            let told = events
                .iter()
                .any(|e| e["involvedObject"]["name"] == name && e["reason"] == reason);
            ensure!(told, "no event {reason} of {name}");
        }
        Ok(())
    })?;
    for name in ["never", "volume", "program"] {
        force_delete(&cluster, name)?;
    }
    delete_and_see_nothing_left(&cluster, &[])
}

#[test]
fn probes_decide_who_is_ready_and_who_is_restarted() -> Result<()> {
    let cluster = start("probes")?;
    // The file that makes it ready comes from here, once it has been seen without.
    let word = cluster.nodes[0].machine().dir().join("word");
    fs::create_dir(&word)?;
    let mut main = shell(
        "main",
        "trap 'exit 0' TERM; while :; do sleep 0.1; done",
        &json!([{"name": "word", "mountPath": "/word"}]),
    );
    main["readinessProbe"] = json!({"exec": {"command": ["/bin/cat", "/word/ready"]}, "periodSeconds": 1});
    let mut sick = shell(
        "sick",
        "trap 'exit 0' TERM; while :; do sleep 0.1; done",
        &json!([]),
    );
    sick["livenessProbe"] = json!({"tcpSocket": {"port": 9}, "periodSeconds": 1, "failureThreshold": 2});
    let volumes = json!([{"name": "word", "hostPath": {"path": word}}]);
    apply_pod(
        &cluster,
        "probed",
        json!({"volumes": volumes, "containers": [main, sick]}),
    )?;

    let pod = wait_for_pod(&cluster, "probed", "to run", |pod| {
        container(pod, "main").is_ok_and(|c| c["state"]["running"].is_object())
    })?;
    assert_eq!(
        container(&pod, "main")?["ready"],
        false,
        "ready before it said so"
    );
    fs::write(word.join("ready"), "")?;
    wait_for_pod(&cluster, "probed", "to be ready", |pod| {
        container(pod, "main").is_ok_and(|c| c["ready"] == true)
    })?;
    let pod = wait_for_pod(
        &cluster,
        "probed",
        "to have its sick container restarted",
        |pod| container(pod, "sick").is_ok_and(|c| c["restartCount"].as_i64() > Some(0)),
    )?;
    assert_eq!(container(&pod, "main")?["restartCount"], 0);
    delete_and_see_nothing_left(&cluster, &["probed"])
}

/// What the API server says of a token.
fn review(cluster: &Cluster, token: &str) -> Result<Value> {
    use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};

    let question = TokenReview {
        spec: TokenReviewSpec {
            token: Some(token.to_owned()),
            ..TokenReviewSpec::default()
        },
        ..TokenReview::default()
    };
    let answer = cluster.client.call(move |client| async move {
        let api = kube::Api::<TokenReview>::all(client);
        Ok(api.create(&kube::api::PostParams::default(), &question).await?)
    })?;
    Ok(serde_json::to_value(answer.status)?)
}

/// "API Server should have Endpoints and EndpointSlices pointing to API Server"; a StatefulSet's pod writes, dies, and reads its data back; the data go with the claim.
#[test]
fn what_a_pod_writes_into_its_claim_outlives_it() -> Result<()> {
    let cluster = start("claim")?;
    let endpoints = cluster
        .client
        .get("Endpoints", "default", "kubernetes")?
        .context("endpoints")?;
    let slice = cluster
        .client
        .get("EndpointSlice", "default", "kubernetes")?
        .context("a slice")?;
    let address = endpoints["subsets"][0]["addresses"][0]["ip"].clone();
    assert!(address.is_string(), "{endpoints:#}");
    assert_eq!(slice["endpoints"][0]["addresses"], json!([address]));
    assert_eq!(
        slice["ports"][0]["port"],
        endpoints["subsets"][0]["ports"][0]["port"]
    );
    let script = "cat /data/log 2>/dev/null; echo \"written by $(cat /data/count 2>/dev/null || echo first)\" >> /data/log; \
                  echo second > /data/count; touch /tmp/ready; trap 'exit 0' TERM; while :; do sleep 0.1; done";
    let mut main = shell("main", script, &json!([{"name": "data", "mountPath": "/data"}]));
    main["readinessProbe"] = json!({"exec": {"command": ["/bin/cat", "/tmp/ready"]}, "periodSeconds": 1});
    cluster.client.apply(json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db", "namespace": "default"},
        "spec": {
            "replicas": 1, "serviceName": "db", "selector": {"matchLabels": {"app": "db"}},
            "template": {"metadata": {"labels": {"app": "db"}}, "spec": {"containers": [main]}},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {
                "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}},
            }}],
        },
    }))?;
    let is_ready = |pod: &Value| condition(pod, "Ready") == "True";
    let first = wait_for_pod(&cluster, "db-0", "to be ready", is_ready)?;
    assert_eq!(log(&cluster, &first, "main", 0)?, "");
    cluster.client.delete("Pod", "default", "db-0")?;
    let second = wait_for_pod(&cluster, "db-0", "to be another and ready", |pod| {
        is_ready(pod) && pod["metadata"]["uid"] != first["metadata"]["uid"]
    })?;
    let read = log(&cluster, &second, "main", 0)?;
    assert!(read.trim_end().ends_with("written by first"), "{read}");

    let volumes = cluster.nodes[0].state_dir().join("volumes");
    assert_eq!(fs::read_dir(&volumes)?.count(), 1);
    cluster.client.delete("StatefulSet", "default", "db")?;
    delete_and_see_nothing_left(&cluster, &["db-0"])?;
    assert_eq!(
        fs::read_dir(&volumes)?.count(),
        1,
        "its data stay as long as its claim"
    );
    cluster
        .client
        .delete("PersistentVolumeClaim", "default", "data-db-0")?;
    wait_until("the data to be gone", PATIENCE, || {
        ensure!(fs::read_dir(&volumes)?.count() == 0);
        ensure!(cluster.client.list("PersistentVolume", "", "")?.is_empty());
        Ok(())
    })
}

fn start(name: &str) -> Result<Cluster> {
    let mut options = ClusterOptions::new(name);
    options.nodes = 1;
    options.agent.runs_pods = true;
    let cluster = Cluster::start(options)?;
    let archive = cluster.lab().root().join("shell.tar");
    shell_image(IMAGE)?.write(&archive)?;
    cluster.nodes[0].load_image(&archive)?;
    Ok(cluster)
}

fn shell_image(name: &str) -> Result<ImageBuilder> {
    let mut image = ImageBuilder::new(name).directory("/tmp", 0o1777);
    for program in ["sh", "sleep", "cat", "hostname", "touch"] {
        let path = format!("/bin/{program}");
        image = image.host_program(&path, Path::new(&path))?;
    }
    Ok(image)
}

fn shell(name: &str, script: &str, mounts: &Value) -> Value {
    json!({
        "name": name, "image": IMAGE, "imagePullPolicy": "Never",
        "command": ["/bin/sh", "-c", script], "volumeMounts": mounts,
    })
}

fn apply_pod(cluster: &Cluster, name: &str, spec: Value) -> Result<()> {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"}, "spec": spec});
    cluster.client.apply(pod).map(drop)
}

fn wait_for_pod(
    cluster: &Cluster,
    name: &str,
    what: &str,
    condition: impl Fn(&Value) -> bool,
) -> Result<Value> {
    wait_until(&format!("pod {name} {what}"), PATIENCE, || {
        let pod = cluster
            .client
            .get("Pod", "default", name)?
            .context("the pod is not there")?;
        ensure!(condition(&pod), "{:#}", pod["status"]);
        Ok(pod)
    })
}

fn container<'a>(pod: &'a Value, name: &str) -> Result<&'a Value> {
    pod["status"]["containerStatuses"]
        .as_array()
        .and_then(|list| list.iter().find(|status| status["name"] == name))
        .with_context(|| format!("no status of container {name}"))
}

fn condition(pod: &Value, name: &str) -> String {
    weft_lab::cluster::condition(pod, name).unwrap_or_default()
}

/// Where a pod's logs are.
fn log_dir(node: &Node, pod: &Value) -> Result<PathBuf> {
    let metadata = &pod["metadata"];
    let dir = format!(
        "default_{}_{}",
        metadata["name"].as_str().context("a name")?,
        metadata["uid"].as_str().context("a UID")?
    );
    Ok(node.state_dir().join("logs").join(dir))
}

fn log(cluster: &Cluster, pod: &Value, container: &str, attempt: u32) -> Result<String> {
    let path = log_dir(&cluster.nodes[0], pod)?.join(container);
    let file = path.join(format!("{attempt}.log"));
    fs::read_to_string(&file).with_context(|| {
        let there: Vec<_> = fs::read_dir(&path).into_iter().flatten().flatten().collect();
        format!(
            "{} is not there, but {there:?}; {:#}",
            file.display(),
            pod["status"]
        )
    })
}

/// The memory limits of a container's cgroup in the hierarchies that have it.
fn memory_limits(cluster: &Cluster, uid: &str, id: &str) -> Vec<u64> {
    let node = &cluster.nodes[0];
    let path = cluster
        .lab()
        .cgroup()
        .join(node.name())
        .join(format!("pod{uid}"))
        .join(id);
    ["memory/{}/memory.limit_in_bytes", "{}/memory.max"]
        .iter()
        .map(|pattern| pattern.replace("{}", &path.display().to_string()))
        .filter_map(|file| fs::read_to_string(Path::new("/sys/fs/cgroup").join(file)).ok())
        .filter_map(|text| text.trim().parse().ok())
        .collect()
}

fn force_delete(cluster: &Cluster, name: &str) -> Result<()> {
    use k8s_openapi::api::core::v1::Pod;
    use kube::api::{Api, DeleteParams};

    let name = name.to_owned();
    cluster.client.call(move |client| async move {
        let api: Api<Pod> = Api::namespaced(client, "default");
        api.delete(&name, &DeleteParams::default().grace_period(0))
            .await?;
        Ok(())
    })
}

fn delete_and_see_nothing_left(cluster: &Cluster, names: &[&str]) -> Result<()> {
    for name in names {
        cluster.client.delete("Pod", "default", name)?;
    }
    let node = &cluster.nodes[0];
    wait_until("all pods and what they had to be gone", PATIENCE, || {
        let pods = cluster.client.list("Pod", "default", "")?;
        ensure!(pods.is_empty(), "{pods:#?}");
        for dir in ["pods", "netns", "logs"] {
            let left: Vec<_> = fs::read_dir(node.state_dir().join(dir))?.flatten().collect();
            ensure!(left.is_empty(), "{left:?}");
        }
        Ok(())
    })?;
    cluster.assert_no_error_logged(&[])
}
