//! Probes: asking containers whether they are alive, ready, started; from the node, or by a program in the container.

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use k8s_openapi::{
    api::core::v1::{Container, Pod, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};

use super::{
    events::{Events, Kind},
    sandbox::Sandbox,
    state::{Records, Stage},
};
use crate::shim::ShimClient;

/// Results that wait for the worker; a prober waits when they pile up.
const BACKLOG: usize = 16;
/// The most that is read of an answer to find its status.
const MAX_ANSWER_BYTES: u64 = 4096;

/// What a probe is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Startup,
    Readiness,
    Liveness,
}

impl Purpose {
    fn name(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Readiness => "Readiness",
            Self::Liveness => "Liveness",
        }
    }
}

/// What a prober came to: sent when it changes, by the thresholds of the probe.
#[derive(Debug, Clone)]
pub(super) struct ProbeResult {
    pub(super) container: String,
    attempt: u32,
    purpose: Purpose,
    outcome: Result<(), String>,
}

/// The probers of one pod.
pub(super) struct Probers {
    results: mpsc::Sender<ProbeResult>,
    /// By container: the attempt that is probed, and the task that does it.
    tasks: HashMap<String, (u32, AbortOnDrop)>,
}

/// A task that ends with its owner.
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// How one probe asks, with all defaults in place.
#[derive(Debug, Clone)]
struct Plan {
    container: String,
    attempt: u32,
    purpose: Purpose,
    how: How,
    delay: Duration,
    period: Duration,
    limit: Duration,
    successes: u32,
    failures: u32,
}

#[derive(Debug, Clone)]
enum How {
    Tcp(String, u16),
    Http {
        host: String,
        port: u16,
        path: String,
        headers: Vec<(String, String)>,
    },
    Exec(Vec<String>),
}

/// Says what a container asks for that is not offered.
pub(super) fn check(container: &Container) -> Result<(), &'static str> {
    for probe in [
        &container.startup_probe,
        &container.readiness_probe,
        &container.liveness_probe,
    ]
    .into_iter()
    .flatten()
    {
        if probe.grpc.is_some() {
            return Err("a gRPC probe");
        }
        if let Some(http) = &probe.http_get
            && http.scheme.as_deref() == Some("HTTPS")
        {
            return Err("an HTTPS probe");
        }
    }
    Ok(())
}

impl Probers {
    pub(super) fn new() -> (Self, mpsc::Receiver<ProbeResult>) {
        let (results, receiver) = mpsc::channel(BACKLOG);
        let tasks = HashMap::new();
        (Self { results, tasks }, receiver)
    }

    /// Stops all probers.
    pub(super) fn stop(&mut self) {
        self.tasks.clear();
    }

    /// Stops those of one container.
    pub(super) fn forget(&mut self, container: &str) {
        self.tasks.remove(container);
    }

    /// Has a container's attempt probed: first whether it has started, if that is not known, then the rest.
    pub(super) fn ensure(&mut self, container: &Container, attempt: u32, starting: bool, sandbox: &Sandbox) {
        if self
            .tasks
            .get(&container.name)
            .is_some_and(|(known, _)| *known == attempt)
        {
            return;
        }
        let pod_ip = sandbox.record.pod_ips.first().copied();
        let plan = |probe: &Option<Probe>, purpose| {
            probe
                .as_ref()
                .and_then(|probe| plan(container, attempt, purpose, probe, pod_ip))
        };
        let startup = plan(&container.startup_probe, Purpose::Startup).filter(|_| starting);
        let then = [
            plan(&container.readiness_probe, Purpose::Readiness),
            plan(&container.liveness_probe, Purpose::Liveness),
        ];
        let (results, shim) = (self.results.clone(), sandbox.shim.clone());
        let id = Arc::new(format!("{}.{attempt}", container.name));
        if startup.is_none() && then.iter().all(Option::is_none) {
            return;
        }
        let task = tokio::spawn(async move {
            if let Some(startup) = startup
                && !probe_until_decided(startup, &shim, &id, &results).await
            {
                return;
            }
            let mut both = JoinSet::new();
            for plan in then.into_iter().flatten() {
                both.spawn(probe_for_ever(
                    plan,
                    shim.clone(),
                    Arc::clone(&id),
                    results.clone(),
                ));
            }
            both.join_all().await;
        });
        self.tasks
            .insert(container.name.clone(), (attempt, AbortOnDrop(task)));
    }

    /// Takes a result into the records. Returns the container to end, if that follows.
    #[expect(clippy::unused_self, reason = "the results are of these probers")]
    pub(super) fn judge(
        &self,
        records: &mut Records,
        events: &Events,
        pod: &Pod,
        result: &ProbeResult,
    ) -> Option<String> {
        let record = records.get_mut(&result.container)?;
        if record.attempt != result.attempt || !matches!(record.stage, Stage::Running(_)) {
            return None;
        }
        let has_readiness = pod
            .spec
            .as_ref()
            .and_then(|spec| super::state::container_of(spec, &result.container))
            .is_some_and(|container| container.readiness_probe.is_some());
        let purpose = result.purpose;
        if let Err(message) = &result.outcome {
            let text = format!("{} probe failed: {message}", purpose.name());
            events.tell(pod, Some(&result.container), Kind::Warning, "Unhealthy", text);
        }
        match (purpose, &result.outcome) {
            (Purpose::Readiness, outcome) => {
                record.ready = outcome.is_ok();
                None
            }
            (Purpose::Startup, Ok(())) => {
                record.started = true;
                record.ready |= !has_readiness;
                None
            }
            (Purpose::Liveness, Ok(())) => None,
            (Purpose::Startup | Purpose::Liveness, Err(_)) => {
                let text = format!(
                    "Container {} failed {} probe, will be restarted",
                    result.container,
                    purpose.name().to_lowercase()
                );
                events.tell(pod, Some(&result.container), Kind::Normal, "Killing", text);
                record.ready = false;
                Some(record.id.clone())
            }
        }
    }
}

fn plan(
    container: &Container,
    attempt: u32,
    purpose: Purpose,
    probe: &Probe,
    pod_ip: Option<IpAddr>,
) -> Option<Plan> {
    let port = |port: &IntOrString| match port {
        IntOrString::Int(number) => u16::try_from(*number).ok(),
        IntOrString::String(name) => name.parse().ok().or_else(|| {
            let named = container.ports.iter().flatten();
            named
                .filter(|port| port.name.as_deref() == Some(name))
                .find_map(|port| u16::try_from(port.container_port).ok())
        }),
    };
    let host = |host: &Option<String>| {
        host.clone()
            .filter(|host| !host.is_empty())
            .or_else(|| pod_ip.map(|ip| ip.to_string()))
    };
    let how = if let Some(exec) = &probe.exec {
        How::Exec(exec.command.clone().unwrap_or_default())
    } else if let Some(tcp) = &probe.tcp_socket {
        How::Tcp(host(&tcp.host)?, port(&tcp.port)?)
    } else if let Some(http) = &probe.http_get {
        How::Http {
            host: host(&http.host)?,
            port: port(&http.port)?,
            path: http
                .path
                .clone()
                .filter(|path| !path.is_empty())
                .unwrap_or_else(|| "/".to_owned()),
            headers: http
                .http_headers
                .iter()
                .flatten()
                .map(|header| (header.name.clone(), header.value.clone()))
                .collect(),
        }
    } else {
        return None;
    };
    let count = |value: Option<i32>, default: u32| {
        value
            .and_then(|n| u32::try_from(n).ok())
            .filter(|n| *n > 0)
            .unwrap_or(default)
    };
    let seconds = |value: Option<i32>, default: u32| Duration::from_secs(u64::from(count(value, default)));
    Some(Plan {
        container: container.name.clone(),
        attempt,
        purpose,
        how,
        delay: Duration::from_secs(u64::from(count(probe.initial_delay_seconds, 0))),
        period: seconds(probe.period_seconds, 10),
        limit: seconds(probe.timeout_seconds, 1),
        successes: count(probe.success_threshold, 1),
        failures: count(probe.failure_threshold, 3),
    })
}

/// Probes until success or until the failures are too many; says which. The result is sent.
async fn probe_until_decided(
    plan: Plan,
    shim: &ShimClient,
    id: &str,
    results: &mpsc::Sender<ProbeResult>,
) -> bool {
    sleep(plan.delay).await;
    let mut failures = 0;
    loop {
        let outcome = ask(&plan, shim, id).await;
        failures += 1;
        if outcome.is_ok() || failures >= plan.failures {
            let succeeded = outcome.is_ok();
            send(&plan, outcome, results).await;
            return succeeded;
        }
        sleep(plan.period).await;
    }
}

/// Probes for ever, and sends what changes by the thresholds.
async fn probe_for_ever(plan: Plan, shim: ShimClient, id: Arc<String>, results: mpsc::Sender<ProbeResult>) {
    sleep(plan.delay).await;
    let (mut streak, mut last, mut said) = (0_u32, None, None);
    loop {
        let outcome = ask(&plan, &shim, &id).await;
        let good = outcome.is_ok();
        streak = if last == Some(good) { streak + 1 } else { 1 };
        last = Some(good);
        let threshold = if good { plan.successes } else { plan.failures };
        if streak >= threshold && said != Some(good) {
            said = Some(good);
            send(&plan, outcome, &results).await;
        }
        // A container that is not ready yet is asked more often at first: a pod should not wait for a whole period.
        let pause = if plan.purpose == Purpose::Readiness && said != Some(true) {
            plan.period.min(Duration::from_secs(1))
        } else {
            plan.period
        };
        sleep(pause).await;
    }
}

async fn send(plan: &Plan, outcome: Result<(), String>, results: &mpsc::Sender<ProbeResult>) {
    let result = ProbeResult {
        container: plan.container.clone(),
        attempt: plan.attempt,
        purpose: plan.purpose,
        outcome,
    };
    // The worker is gone, and so is the reason to tell it.
    let _ = results.send(result).await;
}

async fn ask(plan: &Plan, shim: &ShimClient, id: &str) -> Result<(), String> {
    let late = || format!("no answer within {:?}", plan.limit);
    match &plan.how {
        How::Exec(args) => match shim.exec(id, args.clone(), plan.limit).await {
            Ok((Some(0), _)) => Ok(()),
            Ok((Some(code), output)) => Err(format!("exit code {code}: {}", output.trim_end())),
            Ok((None, _)) => Err(late()),
            Err(error) => Err(error.to_string()),
        },
        How::Tcp(host, port) => match timeout(plan.limit, TcpStream::connect((host.as_str(), *port))).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(format!("dial tcp {host}:{port}: {error}")),
            Err(_) => Err(late()),
        },
        How::Http {
            host,
            port,
            path,
            headers,
        } => match timeout(plan.limit, http_status(host, *port, path, headers)).await {
            Ok(Ok(status)) if (200..400).contains(&status) => Ok(()),
            Ok(Ok(status)) => Err(format!("HTTP probe failed with statuscode: {status}")),
            Ok(Err(error)) => Err(format!("Get \"http://{host}:{port}{path}\": {error}")),
            Err(_) => Err(late()),
        },
    }
}

async fn http_status(
    host: &str,
    port: u16,
    path: &str,
    headers: &[(String, String)],
) -> std::io::Result<u16> {
    let mut stream = TcpStream::connect((host, port)).await?;
    let authority = if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    };
    let mut lines = vec![format!("GET {path} HTTP/1.1")];
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        lines.push(format!("Host: {authority}"));
    }
    lines.push("User-Agent: weft-probe".to_owned());
    lines.push("Accept: */*".to_owned());
    lines.push("Connection: close".to_owned());
    lines.extend(headers.iter().map(|(name, value)| format!("{name}: {value}")));
    // A line break in a value would begin a header of its own.
    let text: Vec<String> = lines.iter().map(|line| line.replace(['\r', '\n'], " ")).collect();
    let request = format!("{}\r\n\r\n", text.join("\r\n"));
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    let mut limited = stream.take(MAX_ANSWER_BYTES);
    let mut buffer = [0; 512];
    while !answer.contains(&b'\n') {
        match limited.read(&mut buffer).await? {
            0 => break,
            read => answer.extend_from_slice(&buffer[..read]),
        }
    }
    let line = String::from_utf8_lossy(&answer);
    line.split(' ')
        .nth(1)
        .filter(|_| line.starts_with("HTTP/1."))
        .and_then(|status| status.parse().ok())
        .ok_or_else(|| std::io::Error::other("the answer is not HTTP"))
}
