//! The control plane over a real etcd: the store's contract, several controllers at once, and the loss of any of them.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, Secret};
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use weft_controller::store::etcd::Settings;
use weft_controller::store::{Encoded, Etcd, Expect, Meta, Object, Operation, Store, StoreError, Write};
use weft_lab::wait::wait_for;

const DEADLINE: Duration = Duration::from_secs(30);

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// A process that is killed when dropped.
struct Running(Child);

impl Running {
    fn start(mut command: Command, log: &Path) -> Result<Self> {
        let log = File::options().create(true).append(true).open(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {command:?}"))?;
        Ok(Self(child))
    }

    /// Ends it as a crash would.
    fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// One etcd server in a directory of its own.
struct Server {
    directory: tempfile::TempDir,
    ports: [u16; 2],
    process: Option<Running>,
}

impl Server {
    fn start() -> Result<Self> {
        let directory = tempfile::TempDir::with_prefix("weft-etcd-")?;
        let mut server = Self {
            directory,
            ports: [free_port()?, free_port()?],
            process: None,
        };
        server.run()?;
        Ok(server)
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.ports[0])
    }

    fn run(&mut self) -> Result<()> {
        let [client, peer] = self.ports.map(|port| format!("http://127.0.0.1:{port}"));
        let mut command = Command::new(weft_lab::binaries::find("etcd")?);
        command
            .args(["--name", "only", "--listen-client-urls", &client])
            .args(["--advertise-client-urls", &client, "--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("only={peer}"), "--data-dir"])
            .arg(self.directory.path().join("data"));
        self.process = Some(Running::start(command, &self.directory.path().join("log"))?);
        let address = self.address();
        wait_for("etcd to listen", DEADLINE, || {
            std::net::TcpStream::connect(&address).ok()
        })?;
        Ok(())
    }

    fn crash(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    fn settings(&self) -> Settings {
        Settings {
            addresses: vec![self.address()],
            prefix: "/test".to_owned(),
            ca_file: None,
            certificate_file: None,
            key_file: None,
        }
    }
}

fn index(_: &str, text: &[u8]) -> Result<Meta, serde_json::Error> {
    serde_json::from_slice(text).map(|object| named(&object))
}

fn named(object: &Value) -> Meta {
    Meta {
        name: object["metadata"]["name"].as_str().unwrap_or_default().into(),
        ..Meta::default()
    }
}

async fn opened(server: &Server) -> Result<Etcd> {
    for _ in 0..100 {
        match Etcd::open(&server.settings(), index).await {
            Ok(store) => return Ok(store),
            Err(_) => tokio::task::yield_now().await,
        }
    }
    Ok(Etcd::open(&server.settings(), index).await?)
}

const MAPS: &str = "configmaps";

fn put(name: &str, expect: Expect, value: u32) -> Write {
    let object = json!({"kind": "ConfigMap", "metadata": {"name": name}, "data": {"v": value}});
    let meta = named(&object);
    Write {
        resource: MAPS,
        key: name.to_owned(),
        expect,
        operation: Operation::Put(Encoded::new(&object, meta)),
    }
}

fn delete(name: &str, object: &Object) -> Write {
    Write {
        resource: MAPS,
        key: name.to_owned(),
        expect: Expect::Revision(object.revision()),
        operation: Operation::Delete,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stores_contract_holds_between_two_of_them() -> Result<()> {
    let server = Server::start()?;
    let (here, there) = (opened(&server).await?, opened(&server).await?);
    let mut watch = there.watch(MAPS, there.revision())?;

    let a = Arc::clone(&here.commit(vec![put("a", Expect::Absent, 1)]).await?[0]);
    there.barrier().await?;
    let seen = there.get(MAPS, "a").context("what was acknowledged is there")?;
    assert_eq!((seen.revision(), seen.value()), (a.revision(), a.value()));

    let taken = there.commit(vec![put("a", Expect::Absent, 2)]).await;
    assert!(
        matches!(taken, Err(StoreError::Conflict { found: Some(found), .. }) if found.revision() == a.revision())
    );
    let both = vec![put("b", Expect::Absent, 3), put("a", Expect::Revision(7), 3)];
    assert!(matches!(there.commit(both).await, Err(StoreError::Conflict { key, .. }) if key == "a"));
    assert!(there.get(MAPS, "b").is_none(), "all or nothing");

    let both = vec![
        put("b", Expect::Absent, 4),
        put("a", Expect::Revision(a.revision()), 4),
    ];
    let written = there.commit(both).await?;
    assert_eq!(written[0].revision(), written[1].revision());
    here.barrier().await?;
    let b = here.get(MAPS, "b").context("b")?;
    let gone = here.commit(vec![delete("b", &b)]).await?;
    assert!(gone[0].revision() > b.revision());
    assert_eq!(gone[0].value()["data"], b.value()["data"]);

    let mut events = Vec::new();
    while events.len() < 4 {
        for event in watch.next().await? {
            let name = event.object.meta().name.to_string();
            events.push((name, event.deleted, event.previous.is_some()));
        }
    }
    let names: Vec<_> = events
        .iter()
        .map(|(name, deleted, changed)| (name.as_str(), *deleted, *changed))
        .collect();
    assert_eq!(names[0], ("a", false, false));
    assert!(names[1..3].contains(&("b", false, false)) && names[1..3].contains(&("a", false, true)));
    assert_eq!(names[3], ("b", true, true));

    let third = opened(&server).await?;
    assert_eq!(third.list(MAPS, "").items.len(), 1);
    assert!(
        matches!(
            third.watch(MAPS, a.revision() - 1),
            Err(StoreError::Expired { .. })
        ),
        "what happened before it began is not known to it"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_many_racing_writers_wins() -> Result<()> {
    let server = Server::start()?;
    let stores = [Arc::new(opened(&server).await?), Arc::new(opened(&server).await?)];
    let racers = (0..2).flat_map(|s| (0..50).map(move |n| (s, n)));
    let racers = racers.map(|(s, n)| {
        let store = Arc::clone(&stores[s]);
        tokio::spawn(async move {
            store
                .commit(vec![put(&format!("{n}"), Expect::Absent, n)])
                .await
                .is_ok()
        })
    });
    let mut wins = 0;
    for racer in racers.collect::<Vec<_>>() {
        wins += usize::from(racer.await?);
    }
    assert_eq!(wins, 50);
    for store in &stores {
        store.barrier().await?;
        assert_eq!(store.count(MAPS), 50);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_of_etcd_is_survived() -> Result<()> {
    let mut server = Server::start()?;
    let store = opened(&server).await?;
    let mut watch = store.watch(MAPS, store.revision())?;
    store.commit(vec![put("a", Expect::Absent, 1)]).await?;
    server.crash();
    assert!(matches!(
        store.commit(vec![put("b", Expect::Absent, 1)]).await,
        Err(StoreError::Etcd(_))
    ));
    assert!(store.barrier().await.is_err(), "nobody knows what is true");
    assert!(store.get(MAPS, "a").is_some(), "what is known can be read");
    server.run()?;
    let mut back = store.commit(vec![put("c", Expect::Absent, 1)]).await;
    for _ in 0..1000 {
        if back.is_ok() {
            break;
        }
        tokio::task::yield_now().await;
        back = store.commit(vec![put("c", Expect::Absent, 1)]).await;
    }
    back?;
    let mut names = Vec::new();
    while !names.contains(&"c".to_owned()) {
        names.extend(
            watch
                .next()
                .await?
                .iter()
                .map(|event| event.object.meta().name.to_string()),
        );
    }
    assert_eq!(names, ["a", "c"], "the watch goes on where it was");
    Ok(())
}

/// A controller process over the shared etcd.
struct Controller {
    directory: PathBuf,
    process: Running,
    client: Client,
    address: String,
}

impl Controller {
    async fn start(server: &Server, name: &str) -> Result<Self> {
        let directory = server.directory.path().join(name);
        let data = directory.join("data");
        fs::create_dir_all(&data)?;
        // Controllers of one cluster share its authority.
        let pki = server.directory.path().join("first/data/pki");
        if pki.exists() && !data.join("pki").exists() {
            let copied = Command::new("cp").arg("-a").arg(&pki).arg(&data).status()?;
            assert!(copied.success());
        }
        let mut command = Command::new(weft_lab::binaries::find("weft")?);
        command
            .args([
                "controller",
                "--listen",
                "127.0.0.1:0",
                "--advertise-address",
                "127.0.0.1",
            ])
            .args(["--store", &format!("etcd://{}", server.address()), "--data-dir"])
            .arg(&data)
            .arg("--ready-file")
            .arg(directory.join("ready"));
        let (log, ready) = (directory.join("log"), directory.join("ready"));
        let _ = fs::remove_file(&ready);
        let mut process = Running::start(command, &log)?;
        let address = wait_for("the API to be ready", DEADLINE, || {
            if let Ok(Some(status)) = process.0.try_wait() {
                return Some(Err(status));
            }
            fs::read_to_string(&ready)
                .ok()
                .filter(|text| !text.is_empty())
                .map(Ok)
        })?;
        let Ok(address) = address else {
            bail!("the controller ended: {}", fs::read_to_string(&log)?);
        };
        let kubeconfig = Kubeconfig::read_from(data.join("admin.kubeconfig"))?;
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        Ok(Self {
            directory,
            process,
            client: Client::try_from(config)?,
            address,
        })
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::default_namespaced(self.client.clone())
    }

    async fn leader(&self) -> Option<String> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), "kube-system");
        leases.get("weft-controller").await.ok()?.spec?.holder_identity
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }
}

async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, attempt: impl Fn() -> F) -> Result<T> {
    let waited = tokio::time::timeout(DEADLINE, async {
        loop {
            if let Some(value) = attempt().await {
                return value;
            }
            tokio::task::yield_now().await;
        }
    });
    waited
        .await
        .with_context(|| format!("timed out waiting for {what}"))
}

fn object<K: DeserializeOwned>(value: Value) -> Result<K> {
    Ok(serde_json::from_value(value)?)
}

fn pod(name: &str) -> Result<Pod> {
    object(json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}}))
}

async fn is_scheduled(controller: &Controller, name: &str) -> Result<()> {
    let pods = controller.api::<Pod>();
    eventually(&format!("{name} to be scheduled"), || async {
        pods.get(name).await.ok()?.spec?.node_name
    })
    .await
    .map(drop)
    .with_context(|| controller.log())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_loss_of_the_leader_loses_no_write_and_scheduling_goes_on() -> Result<()> {
    let server = Server::start()?;
    let mut first = Controller::start(&server, "first").await?;
    eventually("the first controller to lead", || async {
        (first.leader().await.as_ref() == Some(&first.address)).then_some(())
    })
    .await?;
    let second = Controller::start(&server, "second").await?;

    let nodes: Api<Node> = Api::all(first.client.clone());
    nodes
        .create(
            &PostParams::default(),
            &object(json!({"metadata": {"name": "n"}}))?,
        )
        .await?;
    let now = jiff::Timestamp::now();
    let status = json!({"status": {
        "capacity": {"cpu": "8", "memory": "8Gi", "pods": "110"},
        "allocatable": {"cpu": "8", "memory": "8Gi", "pods": "110"},
        "conditions": [{
            "type": "Ready", "status": "True", "reason": "R", "message": "", "lastHeartbeatTime": now,
            "lastTransitionTime": now,
        }],
    }});
    nodes
        .patch_status("n", &PatchParams::default(), &Patch::Merge(status))
        .await?;
    first
        .api::<Pod>()
        .create(&PostParams::default(), &pod("before")?)
        .await?;
    is_scheduled(&second, "before").await?;

    let maps = first.api::<ConfigMap>();
    let mut acknowledged = Vec::new();
    for n in 0..40 {
        let name = format!("m{n}");
        let map: ConfigMap = object(json!({"metadata": {"name": name}}))?;
        maps.create(&PostParams::default(), &map).await?;
        // The other server knows of it the moment that this one has said so.
        second.api::<ConfigMap>().get(&name).await?;
        acknowledged.push(name);
    }
    first.process.kill();

    let left = second.api::<ConfigMap>().list(&ListParams::default()).await?;
    let left: Vec<_> = left
        .items
        .iter()
        .filter_map(|map| map.metadata.name.clone())
        .collect();
    for name in &acknowledged {
        assert!(left.contains(name), "{name} was acknowledged and is lost");
    }
    second
        .api::<Pod>()
        .create(&PostParams::default(), &pod("after")?)
        .await?;
    is_scheduled(&second, "after").await?;
    assert_eq!(second.leader().await.as_ref(), Some(&second.address));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_without_its_etcd_is_not_ready() -> Result<()> {
    let mut server = Server::start()?;
    let controller = Controller::start(&server, "first").await?;
    let ask = |path: &'static str| {
        let request = http::Request::get(path).body(Vec::new());
        async { controller.client.request_text(request.ok()?).await.ok() }
    };
    assert_eq!(ask("/readyz").await.as_deref(), Some("ok"));
    server.crash();
    eventually("it not to be ready", || async {
        ask("/readyz").await.is_none().then_some(())
    })
    .await?;
    assert_eq!(
        ask("/livez").await.as_deref(),
        Some("ok"),
        "a restart would not help"
    );
    server.run()?;
    eventually("it to be ready again", || ask("/readyz")).await?;
    Ok(())
}

/// Whether a text is anywhere below a directory, as it is or in base64.
fn is_kept(directory: &Path, text: &str) -> Result<bool> {
    let needles = [text.to_owned(), STANDARD.encode(text)];
    let mut left = vec![directory.to_owned()];
    while let Some(path) = left.pop() {
        if path.is_dir() {
            for entry in fs::read_dir(&path)? {
                left.push(entry?.path());
            }
            continue;
        }
        let bytes = fs::read(&path)?;
        let found = |needle: &String| bytes.windows(needle.len()).any(|part| part == needle.as_bytes());
        if needles.iter().any(found) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_sealed_in_etcd_and_read_after_a_restart() -> Result<()> {
    let mut server = Server::start()?;
    let mut first = Controller::start(&server, "first").await?;
    let (hidden, open) = ("nobody-shall-read-this-one", "anybody-may-read-that-one");
    let secret: Secret = object(json!({"metadata": {"name": "s"}, "stringData": {"k": hidden}}))?;
    let map: ConfigMap = object(json!({"metadata": {"name": "m"}, "data": {"k": open}}))?;
    first.api().create(&PostParams::default(), &secret).await?;
    first.api().create(&PostParams::default(), &map).await?;
    first.process.kill();
    server.crash();
    let data = server.directory.path().join("data");
    assert!(is_kept(&data, open)?, "this is how it would be found");
    assert!(!is_kept(&data, hidden)?, "etcd's files hold the Secret as it is");

    server.run()?;
    let again = Controller::start(&server, "first").await?;
    let value = |secret: Secret| secret.data.and_then(|mut data| Some(data.remove("k")?.0));
    let read = again.api::<Secret>().get("s").await?;
    assert_eq!(value(read).as_deref(), Some(hidden.as_bytes()));
    // Another controller with the same keys reads it; one with keys of its own does not start over what it cannot read.
    let second = Controller::start(&server, "second").await?;
    let read = second.api::<Secret>().get("s").await?;
    assert_eq!(value(read).as_deref(), Some(hidden.as_bytes()));
    let key = server.directory.path().join("first/data/pki/encryption.key");
    fs::rename(&key, server.directory.path().join("kept"))?;
    let refused = Controller::start(&server, "third")
        .await
        .err()
        .context("it started")?;
    let said = format!("{refused:#}");
    assert!(
        said.contains("cannot open the store") && said.contains("not in the encryption key file"),
        "{said}"
    );
    Ok(())
}
