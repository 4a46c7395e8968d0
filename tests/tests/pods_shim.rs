//! A pod's shim with real containers: what they see, how they end, what stays when the agent is gone, and what does not
//! stay when the pod is.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use k8s_openapi::api::core::v1::{Container, Pod};
use weft_agent::{
    image::{Image, Reference, Store},
    pods::oci,
    shim::{
        CallError, ShimClient, end_leftover,
        protocol::{CreateContainer, Phase, Rootfs, ShimStatus},
        remove_cgroup,
    },
};
use weft_lab::{binaries, image::ImageBuilder};

const IMAGE: &str = "shell:test";
/// What the kernel and a busy machine may take for one container.
const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_container_runs_in_its_own_namespaces_and_its_exit_code_is_kept() {
    let pod = TestPod::new().await;
    pod.run(
        "c.0",
        "echo out; echo err >&2; echo pid $$; hostname; cat /etc/where; pwd; echo $GREETING; printf tail; exit 7",
    )
    .await;

    let status = pod.wait_for_exit("c.0").await;

    let Phase::Exited {
        exit_code,
        signal,
        started_at,
        finished_at,
        ..
    } = &status.containers["c.0"].phase
    else {
        panic!("not exited: {status:?}");
    };
    assert_eq!((*exit_code, *signal), (7, None));
    assert!(started_at.unwrap() <= *finished_at);
    pod.client.remove("c.0").await.unwrap();
    let log = pod.log("c.0");
    let lines: Vec<Vec<&str>> = log.lines().map(|line| line.splitn(4, ' ').collect()).collect();
    let texts: Vec<(&str, &str, &str)> = lines.iter().map(|l| (l[1], l[2], l[3])).collect();
    for expected in [
        ("stdout", "F", "out"),
        ("stderr", "F", "err"),
        ("stdout", "F", "pid 1"),
        ("stdout", "F", "test-host"),
        ("stdout", "F", "in the image"),
        ("stdout", "F", "/tmp"),
        ("stdout", "F", "hello"),
        ("stdout", "P", "tail"),
    ] {
        assert!(texts.contains(&expected), "{expected:?} not in {log}");
    }
    for line in &lines {
        line[0].parse::<jiff::Timestamp>().unwrap();
    }
    pod.end().await;
}

#[tokio::test]
async fn containers_of_a_pod_live_side_by_side_and_end_apart() {
    let pod = TestPod::new().await;
    pod.run(
        "a.0",
        "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done",
    )
    .await;
    pod.run("b.0", "echo ready; while :; do sleep 0.05; done").await;
    pod.wait_for_log("a.0", "ready").await;
    pod.wait_for_log("b.0", "ready").await;

    pod.client.kill("a.0", libc::SIGTERM).await.unwrap();
    let status = pod.wait_for_exit("a.0").await;
    assert!(matches!(
        status.containers["a.0"].phase,
        Phase::Exited {
            exit_code: 3,
            signal: None,
            ..
        }
    ));
    assert!(matches!(status.containers["b.0"].phase, Phase::Running { .. }));

    // The first process of a pid namespace ignores signals that it does not handle, and SIGKILL it cannot.
    pod.client.kill("b.0", libc::SIGTERM).await.unwrap();
    pod.client.kill("b.0", libc::SIGKILL).await.unwrap();
    let status = pod.wait_for_exit("b.0").await;
    assert!(matches!(
        status.containers["b.0"].phase,
        Phase::Exited {
            exit_code: 137,
            signal: Some(9),
            ..
        }
    ));
    // To signal what has ended is a success.
    pod.client.kill("b.0", libc::SIGTERM).await.unwrap();
    pod.end().await;
}

#[tokio::test]
async fn a_shim_serves_whoever_comes_and_what_runs_goes_on() {
    let pod = TestPod::new().await;
    pod.run("c.0", "echo ready; while :; do sleep 0.05; done").await;
    pod.wait_for_log("c.0", "ready").await;
    let before = pod.client.status().await.unwrap();

    let other = ShimClient::new(&pod.dir);
    let after = other.status().await.unwrap();

    assert_eq!(before, after);
    assert_eq!(other.last_status(), after);
    let (code, output) = other
        .exec("c.0", words("echo inside; hostname; exit 4"), PATIENCE)
        .await
        .unwrap();
    assert_eq!((code, output.as_str()), (Some(4), "inside\ntest-host\n"));
    let (code, _) = other
        .exec("c.0", words("sleep 60"), Duration::from_millis(200))
        .await
        .unwrap();
    assert_eq!(code, None);
    pod.end().await;
}

#[tokio::test]
async fn a_program_that_is_not_there_is_an_error_and_leaves_nothing() {
    let pod = TestPod::new().await;

    let error = pod
        .client
        .create(pod.container("c.0", vec!["/no/such/program".to_owned()]))
        .await
        .unwrap_err();

    assert!(error.to_string().contains("/no/such/program"), "{error}");
    assert!(matches!(error, CallError::Refused(_)));
    assert_eq!(pod.client.status().await.unwrap().containers, BTreeMap::new());
    // The name can be used again.
    pod.run("c.0", "exit 0").await;
    pod.wait_for_exit("c.0").await;
    pod.end().await;
}

#[tokio::test]
async fn a_closed_pipe_ends_a_program_as_it_would_anywhere() {
    let pod = TestPod::new().await;
    // With SIGPIPE ignored, as a Rust process has it, the writer would see an error instead.
    pod.run(
        "c.0",
        "grep SigIgn /proc/self/status; grep SigBlk /proc/self/status; exit 0",
    )
    .await;
    pod.wait_for_exit("c.0").await;
    pod.client.remove("c.0").await.unwrap();
    let log = pod.log("c.0");
    let masks: Vec<u64> = log
        .lines()
        .filter_map(|line| u64::from_str_radix(line.split_whitespace().last()?, 16).ok())
        .collect();
    let pipe = 1 << (libc::SIGPIPE - 1);
    assert_eq!(
        masks.iter().map(|mask| mask & pipe).collect::<Vec<_>>(),
        [0, 0],
        "{log}"
    );
    pod.end().await;
}

#[tokio::test]
async fn a_killed_shim_leaves_what_can_be_taken_away() {
    let pod = TestPod::new().await;
    pod.run("c.0", "echo ready; while :; do sleep 0.05; done").await;
    pod.wait_for_log("c.0", "ready").await;
    let shim: i32 = fs::read_to_string(pod.dir.join("shim.pid"))
        .unwrap()
        .parse()
        .unwrap();

    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(shim),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();

    let gone = wait_until(|| async { pod.client.status().await.is_err_and(|e| e.is_gone()) }).await;
    assert!(gone, "the shim still answers");
    let last = pod.client.last_status();
    assert!(matches!(last.containers["c.0"].phase, Phase::Running { .. }));
    end_leftover(&pod.dir);
    remove_cgroup(&pod.cgroup).unwrap();
    pod.assert_nothing_is_left();
}

/// A pod's directory, image and shim, in the test's own netns.
struct TestPod {
    _root: tempfile::TempDir,
    dir: PathBuf,
    cgroup: String,
    image: Image,
    client: ShimClient,
}

static NUMBER: AtomicU32 = AtomicU32::new(0);

impl TestPod {
    async fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let archive = root.path().join("image.tar");
        shell_image().write(&archive).unwrap();
        let store = Store::new(root.path().join("images"));
        store.load(&archive, None).unwrap();
        let image = store.image(&Reference::parse(IMAGE).unwrap()).unwrap().unwrap();
        // Longer than a socket's path may be.
        let dir = root.path().join("pods").join("d".repeat(100));
        fs::create_dir_all(&dir).unwrap();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let cgroup = format!("/weft-pods-shim-{}-{number}", std::process::id());
        let client = ShimClient::spawn(&binaries::find("weft").unwrap(), &dir, None)
            .await
            .unwrap();
        Self {
            _root: root,
            dir,
            cgroup,
            image,
            client,
        }
    }

    fn container(&self, id: &str, args: Vec<String>) -> CreateContainer {
        let bundle = self.dir.join("containers").join(id);
        fs::create_dir_all(&bundle).unwrap();
        let pod = Pod::default();
        let container = Container::default();
        let (spec, _) = oci::spec(&oci::Input {
            pod: &pod,
            container: &container,
            args,
            env: vec!["PATH=/bin:/usr/bin".to_owned(), "GREETING=hello".to_owned()],
            cwd: PathBuf::from("/tmp"),
            user: oci::UserIds::default(),
            rootfs: bundle.join("rootfs"),
            hostname: "test-host".to_owned(),
            binds: vec![],
            cgroup: format!("{}/{id}", self.cgroup),
            controllers: &oci::controllers(),
            grantable: &oci::grantable(),
        })
        .unwrap();
        fs::write(bundle.join("config.json"), serde_json::to_vec(&spec).unwrap()).unwrap();
        CreateContainer {
            id: id.to_owned(),
            labels: BTreeMap::new(),
            rootfs: Rootfs {
                layers_dir: self.image.layers_dir.clone(),
                layers: self.image.layers.clone(),
                upper: bundle.join("upper"),
                work: bundle.join("work"),
                merged: bundle.join("rootfs"),
            },
            bundle,
            cgroup: format!("{}/{id}", self.cgroup),
            oom_score_adj: Some(-997),
            log: self.dir.join(format!("{id}.log")),
            log_max_bytes: 1 << 20,
        }
    }

    async fn run(&self, id: &str, script: &str) {
        self.client
            .create(self.container(id, words(script)))
            .await
            .unwrap();
        self.client.start(id).await.unwrap();
    }

    fn log(&self, id: &str) -> String {
        fs::read_to_string(self.dir.join(format!("{id}.log"))).unwrap()
    }

    async fn wait_for_log(&self, id: &str, text: &str) {
        let found = wait_until(|| async { self.log(id).contains(text) }).await;
        assert!(found, "{text:?} not in {}", self.log(id));
    }

    async fn wait_for_exit(&self, id: &str) -> ShimStatus {
        let deadline = std::time::Instant::now() + PATIENCE;
        let mut status = self.client.status().await.unwrap();
        while !matches!(status.containers[id].phase, Phase::Exited { .. }) {
            assert!(std::time::Instant::now() < deadline, "{status:?}");
            status = self
                .client
                .wait(status.revision, Duration::from_secs(1))
                .await
                .unwrap();
        }
        status
    }

    /// Ends the pod, and sees that nothing of it is left.
    async fn end(self) {
        self.client.shutdown().await.unwrap();
        let gone = wait_until(|| async { self.client.status().await.is_err_and(|e| e.is_gone()) }).await;
        assert!(gone, "the shim still answers");
        remove_cgroup(&self.cgroup).unwrap();
        self.assert_nothing_is_left();
    }

    fn assert_nothing_is_left(&self) {
        let dir = self.dir.to_string_lossy().into_owned();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&dir), "a mount is left: {mounts}");
        assert_eq!(cgroups_named(&self.cgroup), Vec::<PathBuf>::new());
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            let processes = processes_of(&dir);
            if processes.is_empty() {
                break;
            }
            assert!(
                std::time::Instant::now() < deadline,
                "processes are left: {processes:?}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for TestPod {
    /// Takes away what a failed test leaves.
    fn drop(&mut self) {
        end_leftover(&self.dir);
        if let Err(error) = remove_cgroup(&self.cgroup) {
            eprintln!("removing {}: {error}", self.cgroup);
        }
    }
}

fn words(script: &str) -> Vec<String> {
    ["/bin/sh", "-c", script].map(str::to_owned).to_vec()
}

/// An image with a shell and a few programs, taken from this machine with the libraries that they need.
fn shell_image() -> ImageBuilder {
    let mut image = ImageBuilder::new(IMAGE)
        .file("/etc/where", "in the image\n", 0o644)
        .directory("/tmp", 0o1777);
    for (path, from) in [
        ("/bin/sh", "/bin/sh"),
        ("/bin/sleep", "/bin/sleep"),
        ("/bin/cat", "/bin/cat"),
        ("/bin/hostname", "/bin/hostname"),
        ("/bin/grep", "/bin/grep"),
    ] {
        image = image.host_program(path, Path::new(from)).unwrap();
    }
    image
}

fn cgroups_named(path: &str) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts
        .lines()
        .filter(|line| line.contains(" - cgroup"))
        .filter_map(|line| line.split(' ').nth(4))
        .map(|mount| Path::new(mount).join(path.trim_start_matches('/')))
        .collect::<HashSet<_>>()
        .into_iter()
        .filter(|path| path.exists())
        .collect()
}

/// Living processes that have the directory in their command line, or that have it mounted.
fn processes_of(dir: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let path = entry.path();
        let Ok(command) = fs::read(path.join("cmdline")) else {
            continue;
        };
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let mounts = fs::read_to_string(path.join("mountinfo")).unwrap_or_default();
        if command.contains(dir) || mounts.contains(dir) {
            found.push(format!("{}: {command}", path.display()));
        }
    }
    found
}

async fn wait_until<F: Future<Output = bool>>(mut condition: impl FnMut() -> F) -> bool {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if condition().await {
            return true;
        }
        if tokio::time::Instant::now() > deadline {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
