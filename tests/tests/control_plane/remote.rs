//! Controllers and scheduler in processes of their own, against an API server that another process serves.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context as _, Result, bail};
use http::StatusCode;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::coordination::v1::Lease;
use kube::client::Body;
use kube::{Api, Client};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::world::{World, deployment, eventually};

/// `weft controller` against the API server of a world; killed when dropped.
pub(crate) struct Remote {
    child: Child,
    address: String,
    log: PathBuf,
}

impl Remote {
    pub(crate) async fn start(world: &World, name: &str, flags: &[&str]) -> Result<Self> {
        let kubeconfig = world.path("admin.kubeconfig");
        let mut command = weft_controller()?;
        command.arg("--kubeconfig").arg(kubeconfig).args(flags);
        Self::spawn(world, name, command).await
    }

    pub(crate) async fn spawn(world: &World, name: &str, mut command: Command) -> Result<Self> {
        let (log, ready) = (
            world.path(&format!("{name}.log")),
            world.path(&format!("{name}.ready")),
        );
        let output = File::create(&log)?;
        command
            .args([
                "--listen",
                "127.0.0.1:0",
                "--cluster-cidr",
                "10.244.0.0/16",
                "--ready-file",
            ])
            .arg(&ready)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let child = command.spawn().context("start the controllers")?;
        let mut remote = Remote {
            child,
            address: String::new(),
            log,
        };
        let address = eventually("the controllers to reach the API server", || async {
            fs::read_to_string(&ready).ok().filter(|text| !text.is_empty())
        });
        remote.address = address.await.with_context(|| remote.log())?;
        Ok(remote)
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to end, as a supervisor does, and yields how it ended.
    fn stop(&mut self) -> Result<Option<i32>> {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM)?;
        Ok(self.child.wait()?.code())
    }

    /// What it answers to somebody with this token.
    async fn get(&self, path: &str, token: Option<&str>) -> Result<(StatusCode, String)> {
        let mut config = kube::Config::new(format!("https://{}", self.address).parse()?);
        // It vouches for itself, as kube-controller-manager does.
        config.accept_invalid_certs = true;
        config.auth_info.token = token.map(|token| token.to_owned().into());
        let client = Client::try_from(config)?;
        let response = client.send(http::Request::get(path).body(Body::empty())?).await?;
        let status = response.status();
        let body = response.into_body().collect_bytes().await?;
        Ok((status, String::from_utf8(body.to_vec())?))
    }

    /// Whether its metrics say that it leads.
    async fn leads(&self, token: &str) -> Option<bool> {
        let (_, text) = self.get("/metrics", Some(token)).await.ok()?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("leader_election_master_status{name=\"weft-controller\"} "))?;
        Some(line == "1")
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn weft_controller() -> Result<Command> {
    let mut command = Command::new(weft_lab::binaries::find("weft")?);
    command.arg("controller");
    Ok(command)
}

/// The token of a service account that may do what the role allows.
async fn token(world: &World, account: &str, role: &str) -> Result<String> {
    world.kubectl(&["create", "serviceaccount", account]).await?;
    let binding = format!("{account}-{role}").replace(':', "-");
    let subject = format!("--serviceaccount=default:{account}");
    let role = format!("--clusterrole={role}");
    world
        .kubectl(&["create", "clusterrolebinding", &binding, &role, &subject])
        .await?;
    let token = world.kubectl(&["create", "token", account]).await?;
    Ok(token.trim().to_owned())
}

fn job(name: &str) -> Value {
    json!({
        "metadata": { "name": name },
        "spec": { "template": {
            "metadata": { "annotations": { "test/exit": "0" } },
            "spec": { "restartPolicy": "Never", "containers": [{ "name": "c", "image": "img:1" }] },
        } },
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_two_does_the_work_and_the_other_takes_over() -> Result<()> {
    let world = World::in_process_with(&["--api-only"]).await?;
    let mut first = Remote::start(&world, "first", &[]).await?;
    world.join(&["n1", "n2"]).await.with_context(|| first.log())?;
    let scraper = token(&world, "scraper", "system:monitoring").await?;
    eventually("the first to lead", || async {
        first.leads(&scraper).await.filter(|leads| *leads)
    })
    .await?;
    let mut second = Remote::start(&world, "second", &[]).await?;

    world.create::<Deployment>(deployment("web", 4, "img:1")).await?;
    let pods = world.wait_ready("app=web", 4).await?;
    for pod in &pods {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        assert!(matches!(node, Some("n1" | "n2")), "bound to {node:?}");
        let fields = pod.metadata.managed_fields.iter().flatten();
        let managers: Vec<_> = fields.filter_map(|entry| entry.manager.as_deref()).collect();
        assert!(managers.contains(&"weft-controller"), "{managers:?}");
    }
    assert_ne!(second.leads(&scraper).await, Some(true));

    first.kill()?;
    world
        .merge::<Deployment>("web", json!({ "spec": { "replicas": 7 } }))
        .await?;
    world
        .wait_ready("app=web", 7)
        .await
        .with_context(|| second.log())?;
    assert_eq!(second.leads(&scraper).await, Some(true));

    assert_eq!(second.stop()?, Some(0), "{}", second.log());
    let leases: Api<Lease> = Api::namespaced(world.client.clone(), "kube-system");
    let spec = leases.get("weft-controller").await?.spec.unwrap_or_default();
    assert_eq!(
        spec.holder_identity, None,
        "who ends in order lets the next one start at once"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_is_for_everybody_and_metrics_for_whom_the_api_lets() -> Result<()> {
    let world = World::in_process_with(&["--api-only"]).await?;
    let remote = Remote::start(&world, "remote", &[]).await?;
    for path in ["/healthz", "/livez", "/readyz"] {
        assert_eq!(remote.get(path, None).await?, (StatusCode::OK, "ok".to_owned()));
    }
    let refused = |answer: Result<(StatusCode, String)>| -> Result<(StatusCode, String)> {
        let (status, text) = answer?;
        let object: Value = serde_json::from_str(&text)?;
        assert_eq!(object["kind"], "Status");
        Ok((status, object["message"].as_str().unwrap_or_default().to_owned()))
    };
    let unauthorized = (StatusCode::UNAUTHORIZED, "Unauthorized".to_owned());
    assert_eq!(refused(remote.get("/metrics", None).await)?, unauthorized);
    assert_eq!(
        refused(remote.get("/metrics", Some("nonsense")).await)?,
        unauthorized
    );
    let anybody = token(&world, "anybody", "view").await?;
    let message = "forbidden: User \"system:serviceaccount:default:anybody\" cannot get path \"/metrics\"";
    assert_eq!(
        refused(remote.get("/metrics", Some(&anybody)).await)?,
        (StatusCode::FORBIDDEN, message.to_owned())
    );
    let scraper = token(&world, "scraper", "system:monitoring").await?;
    // A queue is listed once its controller has begun, which may be after the server has.
    eventually("the depth of a queue", || async {
        let (status, text) = remote.get("/metrics", Some(&scraper)).await.ok()?;
        let told = text.contains("workqueue_depth{name=\"deployment\"}");
        (status == StatusCode::OK && told).then_some(())
    })
    .await
    .with_context(|| remote.log())?;
    assert_eq!(
        refused(remote.get("/api", Some(&scraper)).await)?.0,
        StatusCode::NOT_FOUND
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_switched_off_here_runs_there() -> Result<()> {
    let world = World::in_process_with(&["--controllers=*,-job-controller,-scheduler"]).await?;
    world.join(&["n1"]).await?;
    world.create::<Job>(job("j")).await?;
    world.create::<Deployment>(deployment("web", 3, "img:1")).await?;
    eventually("the Deployment's pods", || async {
        (world.pods("app=web").await.ok()?.len() == 3).then_some(())
    })
    .await?;
    // Another Deployment's worth of time has passed for the Job and for the scheduler.
    world.create::<Deployment>(deployment("late", 1, "img:1")).await?;
    eventually("the pod of a later Deployment", || async {
        (world.pods("app=late").await.ok()?.len() == 1).then_some(())
    })
    .await?;
    let pods = world.pods("").await?;
    assert_eq!(pods.len(), 4, "the Job has a pod, and nobody to make it");
    for pod in &pods {
        assert_eq!(pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()), None);
    }
    assert_eq!(
        world
            .api::<Job>()
            .get("j")
            .await?
            .status
            .and_then(|status| status.start_time),
        None
    );

    let scheduler = [
        "--controllers",
        "scheduler",
        "--leader-elect-resource-name=scheduler",
    ];
    let _scheduler = Remote::start(&world, "scheduler", &scheduler).await?;
    world.wait_ready("app=web", 3).await?;
    assert!(world.pods("job-name=j").await?.is_empty());
    let _jobs = Remote::start(
        &world,
        "jobs",
        &["--controllers=job", "--leader-elect-resource-name=jobs"],
    )
    .await?;
    eventually("the Job to be complete", || async {
        world.api::<Job>().get("j").await.ok()?.status?.completion_time
    })
    .await?;
    Ok(())
}

/// As in a pod: the service account's token and the authority where a kubelet puts them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_pod_the_service_account_is_enough() -> Result<()> {
    let world = World::in_process_with(&["--api-only"]).await?;
    let token = token(&world, "control", "cluster-admin").await?;
    fs::write(world.path("token"), token)?;
    fs::write(world.path("namespace"), "default")?;
    let script = "mount -t tmpfs none /run && mkdir -p /run/secrets/kubernetes.io/serviceaccount \
                  && cd /run/secrets/kubernetes.io/serviceaccount && cp \"$1/token\" \"$1/namespace\" . \
                  && cp \"$1/pki/ca.crt\" . && shift && exec \"$@\"";
    let server = world.kubectl(&[
        "config",
        "view",
        "--output=jsonpath={.clusters[0].cluster.server}",
    ]);
    let server = server.await?;
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--", "sh", "-c", script, "sh"])
        .arg(world.path(""))
        .arg(weft_lab::binaries::find("weft")?)
        .args(["controller", "--api", &server]);
    let remote = Remote::spawn(&world, "in-cluster", command).await?;
    world.join(&["n1"]).await.with_context(|| remote.log())?;
    world.create::<Deployment>(deployment("web", 1, "img:1")).await?;
    world.wait_ready("app=web", 1).await?;
    let ca = world.kubectl(&[
        "get",
        "configmap",
        "kube-root-ca.crt",
        "--output=jsonpath={.data.ca\\.crt}",
    ]);
    let normal = |text: &str| text.replace('\r', "").trim().to_owned();
    assert_eq!(
        normal(&ca.await?),
        normal(&fs::read_to_string(world.path("pki/ca.crt"))?)
    );
    Ok(())
}

fn refused(flags: &[&str]) -> Result<(Option<i32>, String)> {
    let output = weft_controller()?
        .args(["--listen", "127.0.0.1:0"])
        .args(flags)
        .env_remove("KUBERNETES_SERVICE_HOST")
        .output()?;
    let Output { status, stderr, .. } = output;
    if status.success() {
        bail!("weft controller {flags:?} ended well");
    }
    Ok((status.code(), String::from_utf8(stderr)?))
}

pub(crate) fn kubeconfig(path: &Path, server: &str, ca: &Path, token: &str) -> Result<()> {
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{ "name": "c", "cluster": { "server": server, "certificate-authority": ca } }],
        "users": [{ "name": "u", "user": { "token": token } }],
        "contexts": [{ "name": "c", "context": { "cluster": "c", "user": "u" } }],
    });
    Ok(fs::write(path, text.to_string())?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mistake_is_named_with_its_remedy() -> Result<()> {
    let world = World::in_process_with(&["--api-only"]).await?;
    let server = world.kubectl(&[
        "config",
        "view",
        "--output=jsonpath={.clusters[0].cluster.server}",
    ]);
    let server = server.await?;
    let token = token(&world, "nobody", "view").await?;
    let admin = world.path("admin.kubeconfig").display().to_string();
    let file = |name: &str| world.path(name).display().to_string();
    let ca = world.path("pki/ca.crt");
    kubeconfig(&world.path("stranger"), &server, &ca, "nonsense")?;
    kubeconfig(&world.path("nobody"), &server, &ca, &token)?;
    kubeconfig(
        &world.path("plain"),
        &server.replace("https", "http"),
        &ca,
        &token,
    )?;
    fs::write(world.path("broken"), "clusters: [")?;
    let free = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let elsewhere = format!("https://{free}");
    let cases: &[(&[&str], i32, &[&str])] = &[
        (
            &["--controllers=*,-jobs"],
            2,
            &[
                "\"jobs\" is not in the list of known controllers: node-ipam, ",
                ", cronjob, ",
                ", scheduler",
            ],
        ),
        (
            &["--controllers=-job"],
            1,
            &["--controllers selects nothing: begin it with *"],
        ),
        (&["--api", "http://127.0.0.1:1"], 2, &["is not https://HOST:PORT"]),
        (
            &["--api", &elsewhere],
            1,
            &["--api needs credentials: name a file with --kubeconfig"],
        ),
        (
            &["--kubeconfig", &admin, "--store", "etcd://a:1"],
            2,
            &["cannot be used with '--store"],
        ),
        (
            &["--leader-elect-resource-name=x"],
            2,
            &["--kubeconfig <KUBECONFIG>"],
        ),
        (
            &["--kubeconfig", &file("none")],
            1,
            &["cannot use --kubeconfig", "/none: ", "No such file"],
        ),
        (
            &["--kubeconfig", &file("broken")],
            1,
            &["cannot use --kubeconfig", "YAML"],
        ),
        (
            &["--kubeconfig", &file("plain")],
            1,
            &["is not https: nothing is sent in plain text"],
        ),
        (
            &["--kubeconfig", &file("stranger")],
            1,
            &[
                &server,
                "refuses the credentials of ",
                "/stranger: they are another cluster's or have expired",
            ],
        ),
        (
            &["--kubeconfig", &file("nobody")],
            1,
            &[
                "does not allow it: leases.coordination.k8s.io \"weft-controller\" is forbidden: User",
                "cluster-admin",
            ],
        ),
        (
            &["--kubeconfig", &admin, "--api", &elsewhere],
            1,
            &[
                "cannot reach the API server ",
                &elsewhere,
                "Connection refused",
                "--api or --kubeconfig names it",
            ],
        ),
    ];
    for (flags, code, parts) in cases {
        let (found, text) = refused(flags)?;
        assert_eq!(found, Some(*code), "{flags:?}: {text}");
        for part in *parts {
            assert!(text.contains(part), "{flags:?}: {part:?} is missing in {text}");
        }
    }
    Ok(())
}

#[test]
fn help_teaches_by_example_and_lists_the_controllers() -> Result<()> {
    let output = weft_controller()?.arg("--help").output()?;
    let text = String::from_utf8(output.stdout)?;
    // However wide the terminal is.
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in [
        "--api <API>",
        "[alias: --master]",
        "--kubeconfig <KUBECONFIG>",
        "* for all that are not named",
        "persistentvolumeclaim-protection",
        "weft controller --kubeconfig admin.kubeconfig",
        "A controller must run once in a cluster",
    ] {
        assert!(text.contains(part), "{part:?} is missing in {text}");
    }
    Ok(())
}
