//! The plugin as a process: what the runtime sees for every verb, version and mistake. The agent's side is played by a
//! thread that speaks the real protocol on a real socket.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on should stop where it is"
)]

use std::{
    fs,
    io::Write,
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;
use weft_cni::{
    deletion_queue::{DeletionQueue, MAX_QUEUED},
    protocol::{AddResult, CniError, ErrorCode, Request, Response, Verb, read_frame, write_frame},
};

const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

#[test]
fn add_prints_the_agents_result_in_every_version() {
    for version in VERSIONS {
        let world = World::with_agent(|_| Response::Ok(Some(agent_result())));
        let call = world.call("ADD", json!({"cniVersion": version}));
        let result = call.succeeded();
        assert_eq!(result["cniVersion"], version);
        assert_eq!(result["interfaces"][0]["name"], "eth0");
        assert_eq!(result["interfaces"][0]["sandbox"], "/run/netns/a");
        assert_eq!(result["ips"][0]["address"], "10.244.1.5/32");
        assert_eq!(result["ips"][0]["gateway"], "169.254.1.1");
        assert_eq!(result["routes"][0]["dst"], "0.0.0.0/0");
        let (old, new) = (version < "1.0.0", version == "1.1.0");
        assert_eq!(
            result["ips"][0]["version"],
            if old { json!("4") } else { Value::Null }
        );
        assert_eq!(
            result["routes"][0]["advmss"],
            if new { json!(1410) } else { Value::Null }
        );
        assert_eq!(
            result["interfaces"][0]["mtu"],
            if new { json!(1500) } else { Value::Null }
        );
    }
}

#[test]
fn add_tells_the_agent_everything() {
    let world = World::with_agent(|_| Response::Ok(Some(agent_result())));
    world
        .call_with(
            "ADD",
            json!({"mtu": 1400}),
            &[("CNI_ARGS", Some("IgnoreUnknown=1;K8S_POD_NAME=p;K8S_POD_NAMESPACE=ns;K8S_POD_UID=u;K8S_POD_INFRA_CONTAINER_ID=i"))],
        )
        .succeeded();
    let request = world.asked();
    assert_eq!((request.version, request.verb), (1, Verb::Add));
    assert_eq!(
        (request.container_id.as_str(), request.ifname.as_str()),
        ("c1", "eth0")
    );
    assert_eq!(request.netns, Some("/run/netns/a".into()));
    assert_eq!(request.config["mtu"], 1400);
    let pod = request.pod.unwrap();
    assert_eq!(
        (pod.name.unwrap(), pod.namespace.unwrap()),
        ("p".to_owned(), "ns".to_owned())
    );
    assert_eq!(
        (pod.uid.unwrap(), pod.infra_container_id.unwrap()),
        ("u".to_owned(), "i".to_owned())
    );
    assert!(request.timeout_ms.unwrap() <= 30_000);
}

#[test]
fn add_in_a_chain_appends_to_the_previous_result() {
    for (version, family) in [("0.4.0", Some("4")), ("1.0.0", None)] {
        let world = World::with_agent(|_| Response::Ok(Some(agent_result())));
        let mut previous = json!({
            "cniVersion": version,
            "interfaces": [{"name": "first0", "sandbox": "/run/netns/a"}],
            "ips": [{"address": "192.0.2.7/24", "interface": 0}],
            "dns": {"nameservers": ["192.0.2.53"]},
        });
        if let Some(family) = family {
            previous["ips"][0]["version"] = family.into();
        }
        let call = world.call("ADD", json!({"cniVersion": version, "prevResult": previous}));
        let result = call.succeeded();
        let names: Vec<_> = result["interfaces"]
            .as_array()
            .unwrap()
            .iter()
            .map(|i| i["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["first0", "eth0", "wv12345678"]);
        assert_eq!(result["ips"][0]["address"], "192.0.2.7/24");
        assert_eq!(result["ips"][1]["interface"], 1);
        assert_eq!(result["ips"][0].get("version"), family.map(Value::from).as_ref());
        assert_eq!(result["dns"]["nameservers"][0], "192.0.2.53");
        assert_eq!(world.asked().prev_result.unwrap().interfaces[0].name, "first0");
    }
}

#[test]
fn add_puts_the_configured_dns_into_the_result() {
    let world = World::with_agent(|_| Response::Ok(Some(agent_result())));
    let result = world.call("ADD", json!({"dns": {"search": ["svc.cluster.local"]}}));
    assert_eq!(
        result.succeeded()["dns"],
        json!({"search": ["svc.cluster.local"]})
    );
}

#[test]
fn the_agents_error_is_the_runtimes_error() {
    let world = World::with_agent(|_| {
        Response::Err(
            CniError::new(ErrorCode::TryAgainLater, "no address is free").with_details("widen the pod CIDR"),
        )
    });
    let error = world.call("ADD", json!({"cniVersion": "0.4.0"})).failed(11);
    assert_eq!(
        error,
        json!({"cniVersion": "0.4.0", "code": 11, "msg": "no address is free", "details": "widen the pod CIDR"})
    );
    let world = World::with_agent(|_| Response::Err(CniError::new(ErrorCode::Other(142), "odd")));
    world.call("ADD", json!({})).failed(142);
}

#[test]
fn without_an_agent_add_is_tried_later() {
    let world = World::without_agent();
    let error = world.call("ADD", json!({})).failed(11);
    assert!(
        error["details"].as_str().unwrap().contains("agent.sock"),
        "{error}"
    );
    // A socket file that a dead agent left behind.
    drop(UnixListener::bind(world.socket()).unwrap());
    world.call("ADD", json!({})).failed(11);
    world.call("CHECK", json!({"prevResult": {}})).failed(11);
    world
        .call("GC", json!({"cni.dev/valid-attachments": []}))
        .failed(11);
}

#[test]
fn an_agent_that_hangs_does_not_hang_the_runtime() {
    let world = World::without_agent();
    let _listener = UnixListener::bind(world.socket()).unwrap();
    let started = Instant::now();
    world.call("ADD", json!({"timeoutMs": 200})).failed(11);
    world.call("STATUS", json!({"timeoutMs": 200})).failed(50);
    world.call("DEL", json!({"timeoutMs": 300})).succeeded_silently();
    assert!(started.elapsed() < Duration::from_secs(10));
    assert_eq!(world.queued().len(), 1);
}

#[test]
fn an_agent_that_speaks_nonsense_is_said_to() {
    for (bytes, code) in [
        (b"\0\0\0\x02{}".to_vec(), 103),
        (b"\0\0\0\x04nope".to_vec(), 103),
        (b"\0\0\0\x09{\"ok\":null}".to_vec(), 103),
        (b"\xff\xff\xff\xff".to_vec(), 11),
        (b"\0\0".to_vec(), 11),
        (b"".to_vec(), 11),
    ] {
        let world = World::with_raw_agent(bytes.clone());
        world.call("ADD", json!({})).failed(code);
        world.call("DEL", json!({})).succeeded_silently();
    }
    let world = World::with_agent(|_| Response::Ok(None));
    world.call("ADD", json!({})).failed(103);
}

#[test]
fn del_is_asked_with_and_without_a_netns() {
    for netns in [Some("/run/netns/a"), Some(""), None] {
        let world = World::with_agent(|_| Response::Ok(None));
        world
            .call_with("DEL", json!({}), &[("CNI_NETNS", netns)])
            .succeeded_silently();
        let request = world.asked();
        assert_eq!(request.verb, Verb::Del);
        assert_eq!(
            request.netns,
            netns.filter(|path| !path.is_empty()).map(PathBuf::from)
        );
        assert!(world.queued().is_empty());
    }
}

#[test]
fn del_does_not_care_for_the_previous_result() {
    let world = World::with_agent(|_| Response::Ok(None));
    for previous in [
        Value::Null,
        json!({"ips": "what?"}),
        json!({"interfaces": [{"name": "eth0"}]}),
    ] {
        world
            .call("DEL", json!({"prevResult": previous}))
            .succeeded_silently();
    }
}

#[test]
fn del_without_an_agent_is_queued_once_per_attachment() {
    let world = World::without_agent();
    for _ in 0..3 {
        world.call("DEL", json!({})).succeeded_silently();
    }
    world
        .call_with(
            "DEL",
            json!({}),
            &[("CNI_NETNS", None), ("CNI_CONTAINERID", Some("c2"))],
        )
        .succeeded_silently();
    let queued = world.queued();
    assert_eq!(
        queued.iter().map(|r| r.container_id.as_str()).collect::<Vec<_>>(),
        ["c1", "c2"]
    );
    assert_eq!(queued[0].netns, Some("/run/netns/a".into()));
}

#[test]
fn del_that_the_agent_cannot_serve_now_is_queued() {
    let world = World::with_agent(|_| Response::Err(CniError::new(ErrorCode::Unavailable, "starting")));
    world.call("DEL", json!({})).succeeded_silently();
    assert_eq!(world.queued().len(), 1);
    let world = World::with_agent(|_| Response::Err(CniError::new(ErrorCode::Internal, "netlink failed")));
    world.call("DEL", json!({})).failed(100);
    assert!(world.queued().is_empty());
}

#[test]
fn del_meets_an_agent_that_comes_up_while_it_waits_for_the_lock() {
    let world = World::without_agent();
    let locked = DeletionQueue::new(world.queue()).lock(Instant::now()).unwrap();
    let waiting = world.start("DEL", json!({}), &[]);
    // The plugin has failed to connect by then, and stands before the lock; if it is slower, it simply connects.
    thread::sleep(Duration::from_millis(100));
    let asked = serve(UnixListener::bind(world.socket()).unwrap(), |_| {
        Response::Ok(None)
    });
    drop(locked);
    waiting.wait().succeeded_silently();
    assert_eq!(
        asked.recv_timeout(Duration::from_secs(5)).unwrap().verb,
        Verb::Del
    );
    assert!(world.queued().is_empty());
}

#[test]
fn del_succeeds_with_a_full_queue() {
    let world = World::without_agent();
    {
        let locked = DeletionQueue::new(world.queue()).lock(Instant::now()).unwrap();
        for i in 0..MAX_QUEUED {
            locked
                .push(&Request::new(Verb::Del, format!("other{i}"), "eth0"))
                .unwrap();
        }
    }
    world.call("DEL", json!({})).succeeded_silently();
    let locked = DeletionQueue::new(world.queue()).lock(Instant::now()).unwrap();
    let entries = locked.entries().unwrap();
    assert_eq!((entries.deletions.len(), entries.overflowed), (MAX_QUEUED, true));
}

#[test]
fn del_that_can_neither_be_sent_nor_queued_says_so() {
    let world = World::without_agent();
    fs::write(world.queue(), "a file where the directory should be").unwrap();
    let error = world.call("DEL", json!({})).failed(5);
    assert!(error["details"].as_str().unwrap().contains("queue"), "{error}");
}

#[test]
fn many_deletions_at_once_are_all_queued() {
    let world = World::without_agent();
    let ids: Vec<String> = (0..40).map(|i| format!("c{i:02}")).collect();
    let running: Vec<_> = ids
        .iter()
        .map(|id| world.start("DEL", json!({}), &[("CNI_CONTAINERID", Some(id))]))
        .collect();
    for call in running {
        call.wait().succeeded_silently();
    }
    let mut queued: Vec<_> = world
        .queued()
        .into_iter()
        .map(|request| request.container_id)
        .collect();
    queued.sort();
    assert_eq!(queued, ids);
}

#[test]
fn check_hands_the_previous_result_to_the_agent() {
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        let world = World::with_agent(|_| Response::Ok(Some(agent_result())));
        let previous = world.call("ADD", json!({"cniVersion": version})).succeeded();
        world.asked();
        world
            .call("CHECK", json!({"cniVersion": version, "prevResult": previous}))
            .succeeded_silently();
        let seen = world.asked().prev_result.unwrap();
        assert_eq!(seen.ips, agent_result().ips);
        assert_eq!(seen.interfaces[0].mac, agent_result().interfaces[0].mac);
    }
    let world = World::with_agent(|_| Response::Err(CniError::new(ErrorCode::CheckFailed, "eth0 is gone")));
    world.call("CHECK", json!({"prevResult": {}})).failed(102);
    world.call("CHECK", json!({})).failed(7);
    world
        .call("CHECK", json!({"prevResult": {"ips": [{"address": "10.0.0.1"}]}}))
        .failed(6);
}

#[test]
fn gc_hands_the_valid_attachments_to_the_agent() {
    let world = World::with_agent(|_| Response::Ok(None));
    let valid = json!([{"containerID": "c1", "ifname": "eth0"}, {"containerID": "c2", "ifname": "eth0"}]);
    world
        .call("GC", json!({"cni.dev/valid-attachments": valid}))
        .succeeded_silently();
    let request = world.asked();
    assert_eq!(request.verb, Verb::Gc);
    assert_eq!(request.valid_attachments.unwrap().len(), 2);
    world
        .call("GC", json!({"cni.dev/valid-attachments": []}))
        .succeeded_silently();
    assert_eq!(world.asked().valid_attachments, Some(vec![]));
    // Without the list nothing would be valid, and everything would go.
    world.call("GC", json!({})).failed(7);
    world
        .call("GC", json!({"cni.dev/valid-attachments": {}}))
        .failed(6);
    assert!(world.asked_nothing());
}

#[test]
fn status_is_the_agents() {
    let world = World::with_agent(|_| Response::Ok(None));
    world.call("STATUS", json!({})).succeeded_silently();
    for code in [50, 51] {
        let world = World::with_agent(move |_| Response::Err(CniError::new(code.into(), "no pod CIDR yet")));
        world.call("STATUS", json!({})).failed(code);
    }
    World::without_agent().call("STATUS", json!({})).failed(50);
}

#[test]
fn verbs_that_a_version_does_not_know_are_refused() {
    let world = World::with_agent(|_| Response::Ok(None));
    for (verb, versions) in [
        ("CHECK", &VERSIONS[..2]),
        ("GC", &VERSIONS[..4]),
        ("STATUS", &VERSIONS[..4]),
    ] {
        for version in versions {
            let conf = json!({"cniVersion": version, "prevResult": {}, "cni.dev/valid-attachments": []});
            assert_eq!(world.call(verb, conf).failed(1)["cniVersion"], *version);
        }
    }
    assert!(world.asked_nothing());
}

#[test]
fn version_needs_nothing() {
    for (input, echoed) in [
        (r#"{"cniVersion":"0.4.0"}"#, "0.4.0"),
        (r#"{"cniVersion":"9.9.9"}"#, "9.9.9"),
        ("", "1.1.0"),
    ] {
        let call = World::call_raw(input.as_bytes(), &[("CNI_COMMAND", Some("VERSION"))]);
        assert_eq!(
            call.succeeded(),
            json!({"cniVersion": echoed, "supportedVersions": VERSIONS})
        );
    }
    World::call_raw(b"{", &[("CNI_COMMAND", Some("VERSION"))]).failed(6);
}

#[test]
fn bad_environments_get_code_4_with_the_variables_name() {
    let world = World::with_agent(|_| Response::Ok(None));
    for (name, value) in [
        ("CNI_COMMAND", None),
        ("CNI_COMMAND", Some("DELETE")),
        ("CNI_CONTAINERID", None),
        ("CNI_CONTAINERID", Some("../../etc")),
        ("CNI_NETNS", None),
        ("CNI_NETNS", Some("netns")),
        ("CNI_IFNAME", None),
        ("CNI_IFNAME", Some("a-much-too-long-name")),
        ("CNI_IFNAME", Some("eth/0")),
        ("CNI_ARGS", Some("K8S_POD_NAME")),
    ] {
        let error = world.call_with("ADD", json!({}), &[(name, value)]).failed(4);
        assert!(
            error["msg"].as_str().unwrap().contains(name),
            "{name}={value:?}: {error}"
        );
        assert_eq!(error["cniVersion"], "1.1.0");
    }
    assert!(world.asked_nothing());
}

#[test]
fn bad_configurations_get_their_code_and_change_nothing() {
    let world = World::with_agent(|_| Response::Ok(None));
    for verb in ["ADD", "DEL", "CHECK", "GC", "STATUS"] {
        for (stdin, code) in [
            ("", 6),
            ("not json", 6),
            ("[1]", 6),
            (r#"{"cniVersion":"1.1.0""#, 6),
            (r#"{"cniVersion":1,"name":"n","type":"weft-cni"}"#, 6),
            (r#"{"name":"n","type":"weft-cni"}"#, 7),
            (r#"{"cniVersion":"1.1.0","type":"weft-cni"}"#, 7),
            (r#"{"cniVersion":"1.1.0","name":"n"}"#, 7),
            (r#"{"cniVersion":"1.1.0","name":"-n","type":"weft-cni"}"#, 7),
            (
                r#"{"cniVersion":"1.1.0","name":"n","type":"weft-cni","timeoutMs":0}"#,
                7,
            ),
            (r#"{"cniVersion":"0.2.0","name":"n","type":"weft-cni"}"#, 1),
            (r#"{"cniVersion":"7.0.0","name":"n","type":"weft-cni"}"#, 1),
        ] {
            World::call_raw(stdin.as_bytes(), &[("CNI_COMMAND", Some(verb))]).failed(code);
        }
    }
    let long = format!(
        r#"{{"cniVersion":"1.1.0","name":"n","type":"weft-cni","x":"{}"}}"#,
        "y".repeat(2 << 20)
    );
    World::call_raw(long.as_bytes(), &[]).failed(6);
    assert!(world.asked_nothing());
    assert!(world.queued().is_empty());
}

#[test]
fn the_log_goes_to_stderr_and_to_a_file() {
    let world = World::without_agent();
    let file = world.dir.path().join("plugin.log");
    let call = world.call("DEL", json!({"logLevel": "debug", "logFile": file}));
    call.succeeded_silently();
    assert!(call.stderr.contains("putting the deletion in"), "{}", call.stderr);
    assert_eq!(fs::read_to_string(file).unwrap(), call.stderr);
    let quiet = World::with_agent(|_| Response::Ok(None)).call("STATUS", json!({}));
    assert_eq!(quiet.stderr, "");
}

#[test]
fn people_get_help() {
    for (flag, expected) in [
        ("--help", "CNI versions"),
        ("--version", env!("CARGO_PKG_VERSION")),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_weft-cni"))
            .arg(flag)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success());
        assert!(String::from_utf8(output.stdout).unwrap().contains(expected));
    }
    let output = Command::new(env!("CARGO_BIN_EXE_weft-cni"))
        .arg("ADD")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
}

/// A directory with a socket and a queue, and maybe an agent behind the socket.
struct World {
    dir: TempDir,
    asked: mpsc::Receiver<Request>,
}

/// A call of the plugin that runs.
struct Running {
    child: std::process::Child,
    label: String,
}

/// A call of the plugin that ended.
struct Call {
    code: Option<i32>,
    stdout: String,
    stderr: String,
    label: String,
}

impl World {
    fn without_agent() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            asked: mpsc::channel().1,
        }
    }

    fn with_agent(answer: impl Fn(&Request) -> Response + Send + 'static) -> Self {
        let mut world = Self::without_agent();
        world.asked = serve(UnixListener::bind(world.socket()).unwrap(), answer);
        world
    }

    /// An agent that answers with `bytes`, whatever it is asked.
    fn with_raw_agent(bytes: Vec<u8>) -> Self {
        let world = Self::without_agent();
        let listener = UnixListener::bind(world.socket()).unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream: UnixStream = stream.unwrap();
                let _: Request = read_frame(&stream).unwrap();
                stream.write_all(&bytes).unwrap();
            }
        });
        world
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("agent.sock")
    }

    fn queue(&self) -> PathBuf {
        self.dir.path().join("queue")
    }

    /// The next request that the agent got.
    fn asked(&self) -> Request {
        self.asked
            .recv_timeout(Duration::from_secs(5))
            .expect("the agent was asked")
    }

    fn asked_nothing(&self) -> bool {
        self.asked.try_recv().is_err()
    }

    fn queued(&self) -> Vec<Request> {
        if !self.queue().exists() {
            return Vec::new();
        }
        let locked = DeletionQueue::new(self.queue()).lock(Instant::now()).unwrap();
        locked
            .entries()
            .unwrap()
            .deletions
            .into_iter()
            .map(|deletion| deletion.request)
            .collect()
    }

    fn call(&self, verb: &str, conf: Value) -> Call {
        self.call_with(verb, conf, &[])
    }

    fn call_with(&self, verb: &str, conf: Value, changes: &[(&str, Option<&str>)]) -> Call {
        self.start(verb, conf, changes).wait()
    }

    fn start(&self, verb: &str, conf: Value, changes: &[(&str, Option<&str>)]) -> Running {
        let mut full = json!({
            "cniVersion": "1.1.0", "name": "weft", "type": "weft-cni",
            "agentSocket": self.socket(), "queueDir": self.queue(),
        });
        full.as_object_mut()
            .unwrap()
            .extend(conf.as_object().unwrap().clone());
        let changes: Vec<_> = [("CNI_COMMAND", Some(verb))]
            .iter()
            .chain(changes)
            .copied()
            .collect();
        start(full.to_string().as_bytes(), &changes)
    }

    fn call_raw(stdin: &[u8], changes: &[(&str, Option<&str>)]) -> Call {
        start(stdin, changes).wait()
    }
}

/// Starts the plugin as a runtime does, with a good environment for ADD but for `changes`.
fn start(stdin: &[u8], changes: &[(&str, Option<&str>)]) -> Running {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft-cni"));
    command
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.envs([
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/run/netns/a"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/opt/cni/bin"),
    ]);
    for (name, value) in changes {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let mut child = command.spawn().unwrap();
    // A plugin that refuses the environment does not read.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    let shown = String::from_utf8_lossy(&stdin[..stdin.len().min(200)]).into_owned();
    Running {
        child,
        label: format!("{changes:?} {shown}"),
    }
}

impl Running {
    fn wait(self) -> Call {
        let output = self.child.wait_with_output().unwrap();
        Call {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
            label: self.label,
        }
    }
}

impl Call {
    #[track_caller]
    fn succeeded(&self) -> Value {
        assert_eq!(self.code, Some(0), "{}: {}", self.label, self.stdout);
        serde_json::from_str(&self.stdout).unwrap()
    }

    #[track_caller]
    fn succeeded_silently(&self) {
        assert_eq!((self.code, self.stdout.as_str()), (Some(0), ""), "{}", self.label);
    }

    /// The error object, which must have `code`.
    #[track_caller]
    fn failed(&self, code: u32) -> Value {
        assert_eq!(self.code, Some(1), "{}: {}", self.label, self.stdout);
        let error: Value = serde_json::from_str(&self.stdout).unwrap();
        assert_eq!(error["code"], code, "{}: {error}", self.label);
        assert!(
            error["cniVersion"].is_string() && !error["msg"].as_str().unwrap().is_empty(),
            "{error}"
        );
        error
    }
}

/// Answers each request with `answer`, and passes the requests on.
fn serve(
    listener: UnixListener,
    answer: impl Fn(&Request) -> Response + Send + 'static,
) -> mpsc::Receiver<Request> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            let Ok(request) = read_frame::<Request>(&stream) else {
                continue;
            };
            let response = answer(&request);
            let _ = sender.send(request);
            write_frame(&stream, &response).unwrap();
        }
    });
    receiver
}

fn agent_result() -> AddResult {
    serde_json::from_value(json!({
        "interfaces": [
            {"name": "eth0", "mac": "02:00:0a:f4:01:05", "mtu": 1500, "sandbox": "/run/netns/a"},
            {"name": "wv12345678", "mac": "02:01:0a:f4:01:05", "mtu": 1500},
        ],
        "ips": [{"address": "10.244.1.5/32", "gateway": "169.254.1.1", "interface": 0}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1", "mtu": 1450, "advmss": 1410}],
    }))
    .unwrap()
}
