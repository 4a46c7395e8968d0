//! One call of the plugin from the validated environment to what is printed.

use std::{
    error::Error,
    io::{self, Read},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    agent_client::{self, ClientError},
    deletion_queue::{DeletionQueue, Pushed, QueueError},
    environment::{AgentCommand, Command},
    error::{CniError, ErrorCode},
    log::{Level, Log},
    netconf::{self, DEFAULT_TIMEOUT, NetConf},
    protocol::{AddResult, MAX_FRAME_BYTES, Request, Response, Verb},
    shape,
    version::SpecVersion,
};

/// What the plugin prints and whether it succeeded.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Success, with the result if the verb has one.
    Done(Option<Value>),
    /// Failure, with the error object.
    Failed(Value),
}

/// Carries out `command` with the configuration that `stdin` gives. The whole call ends at its deadline, which the
/// configuration's `timeoutMs` sets, counted from `started`.
pub fn run(
    command: Result<Command, CniError>,
    stdin: impl Read + Send + 'static,
    started: Instant,
) -> Outcome {
    let command = match command {
        Ok(command) => command,
        Err(error) => return failed(&error, SpecVersion::LATEST),
    };
    let input = match read_all(stdin, started + DEFAULT_TIMEOUT) {
        Ok(input) => input,
        Err(error) => return failed(&error, SpecVersion::LATEST),
    };
    let outcome = match command {
        Command::Version => version(&input),
        Command::Agent(command) => NetConf::parse(&input).and_then(|conf| ask_agent(command, &conf, started)),
    };
    match outcome {
        Ok(printed) => Outcome::Done(printed),
        Err(error) => failed(&error, netconf::reported_version(&input)),
    }
}

fn failed(error: &CniError, version: SpecVersion) -> Outcome {
    Log::default().write(Level::Error, error);
    let mut object = json!(error);
    object["cniVersion"] = version.as_str().into();
    Outcome::Failed(object)
}

/// Reads all of stdin, but not for ever and not without end.
fn read_all(stdin: impl Read + Send + 'static, deadline: Instant) -> Result<Vec<u8>, CniError> {
    let (sender, receiver) = mpsc::sync_channel(1);
    thread::spawn(move || {
        let mut input = Vec::new();
        let read = stdin
            .take(MAX_FRAME_BYTES as u64 + 1)
            .read_to_end(&mut input)
            .map(|_| input);
        let _ = sender.send(read);
    });
    let late = || io::Error::new(io::ErrorKind::TimedOut, "stdin was not closed in time");
    let input = receiver
        .recv_timeout(deadline.saturating_duration_since(Instant::now()))
        .unwrap_or_else(|_| Err(late()))
        .map_err(|error| CniError::new(ErrorCode::Io, "cannot read stdin").with_details(error.to_string()))?;
    if input.len() > MAX_FRAME_BYTES {
        let msg = format!("the network configuration is longer than {MAX_FRAME_BYTES} bytes");
        return Err(CniError::new(ErrorCode::Decode, msg));
    }
    Ok(input)
}

/// VERSION: echoes the version asked with, known or not, and lists those that are known.
fn version(input: &[u8]) -> Result<Option<Value>, CniError> {
    let decode = |details: String| {
        CniError::new(ErrorCode::Decode, "cannot decode the version request").with_details(details)
    };
    let asked = if input.trim_ascii().is_empty() {
        json!(SpecVersion::LATEST.as_str())
    } else {
        let request: Value = serde_json::from_slice(input).map_err(|error| decode(error.to_string()))?;
        match request.get("cniVersion") {
            Some(Value::String(version)) => json!(version),
            Some(other) => return Err(decode(format!("`cniVersion` is {other}"))),
            None => json!(SpecVersion::LATEST.as_str()),
        }
    };
    let supported = SpecVersion::ALL.map(SpecVersion::as_str);
    Ok(Some(json!({"cniVersion": asked, "supportedVersions": supported})))
}

fn ask_agent(command: AgentCommand, conf: &NetConf, started: Instant) -> Result<Option<Value>, CniError> {
    let AgentCommand {
        verb,
        attachment,
        netns,
        pod,
    } = command;
    check_verb(verb, conf.version)?;
    let log = Log {
        level: conf.log_level,
        file: conf.log_file.clone(),
        context: format!("{verb:?} {}/{}: ", attachment.container_id, attachment.ifname),
    };
    let prev_result = match verb {
        // Deleting must not fail for what an earlier version printed.
        Verb::Del | Verb::Gc | Verb::Status => None,
        Verb::Add => conf.prev_result()?,
        Verb::Check => Some(conf.prev_result()?.ok_or_else(|| {
            CniError::new(
                ErrorCode::InvalidConfig,
                "`prevResult` is missing in the network configuration of CHECK",
            )
        })?),
    };
    let valid_attachments = (verb == Verb::Gc).then(|| conf.valid_attachments()).transpose()?;
    let request = Request {
        netns,
        pod,
        config: conf.raw.clone(),
        prev_result: prev_result.clone(),
        valid_attachments,
        ..Request::new(verb, attachment.container_id, attachment.ifname)
    };
    let deadline = started + conf.timeout;
    log.write(
        Level::Debug,
        format_args!("asking {}", conf.agent_socket.display()),
    );
    let result = if verb == Verb::Del {
        delete(request, conf, deadline, &log).map(|()| None)
    } else {
        answer(agent_client::call(&conf.agent_socket, request, deadline), verb)
    };
    match &result {
        Ok(_) => log.write(Level::Info, format_args!("done in {:?}", started.elapsed())),
        Err(error) => log.write(
            Level::Info,
            format_args!("failed in {:?}: {error}", started.elapsed()),
        ),
    }
    let result = result?;
    if verb != Verb::Add {
        return Ok(None);
    }
    let mut own = result.ok_or_else(|| {
        CniError::new(
            ErrorCode::ProtocolMismatch,
            "the agent's answer to ADD holds no result",
        )
    })?;
    if own.dns.is_empty() {
        own.dns = conf.dns.clone();
    }
    let merged = shape::append(prev_result.unwrap_or_default(), own);
    Ok(Some(shape::result_json(&merged, conf.version)))
}

/// Refuses verbs that the configuration's version does not know.
fn check_verb(verb: Verb, version: SpecVersion) -> Result<(), CniError> {
    let known = match verb {
        Verb::Add | Verb::Del => true,
        Verb::Check => version.has_check(),
        Verb::Gc | Verb::Status => version.has_gc_and_status(),
    };
    if known {
        return Ok(());
    }
    let name = format!("{verb:?}").to_uppercase();
    Err(CniError::new(
        ErrorCode::IncompatibleVersion,
        format!("CNI version {version} has no {name}"),
    ))
}

/// What the agent's answer, or the lack of one, means to the runtime.
fn answer(called: Result<Response, ClientError>, verb: Verb) -> Result<Option<AddResult>, CniError> {
    let error = match called {
        Ok(Response::Ok(result)) => return Ok(result),
        Ok(Response::Err(error)) => return Err(error),
        Err(error) => error,
    };
    let code = match (&error, verb) {
        (
            ClientError::Exchange {
                source: crate::protocol::FrameError::Malformed(_),
                ..
            },
            _,
        ) => ErrorCode::ProtocolMismatch,
        (_, Verb::Status) => ErrorCode::Unavailable,
        _ => ErrorCode::TryAgainLater,
    };
    let hint = "is `weft agent` running on this node, with the socket that `agentSocket` names?";
    Err(CniError::new(code, "the Weft agent does not answer")
        .with_details(format!("{}; {hint}", chain(&error))))
}

/// DEL: by the agent, or by the queue if the agent cannot be asked.
fn delete(request: Request, conf: &NetConf, deadline: Instant, log: &Log) -> Result<(), CniError> {
    // A third of the time is kept for the queue.
    let now = Instant::now();
    let first = now + deadline.saturating_duration_since(now) * 2 / 3;
    let (why, hangs) = match ask_to_delete(&request, conf, first) {
        Asked::Answered(outcome) => return outcome,
        Asked::Unreachable { why, hangs } => (why, hangs),
    };
    log.write(
        Level::Warn,
        format_args!("{why}; putting the deletion in {}", conf.queue_dir.display()),
    );
    let queue = DeletionQueue::new(&conf.queue_dir);
    let locked = match queue.lock(deadline) {
        Ok(locked) => locked,
        Err(error @ QueueError::Locked { .. }) => {
            let details = format!("{why}; {error}, as while the agent starts");
            return Err(
                CniError::new(ErrorCode::TryAgainLater, "the deletion can be queued only later")
                    .with_details(details),
            );
        }
        Err(error) => return Err(queue_failed(&error, &why)),
    };
    // An agent that came up meanwhile has emptied the queue already. One that hangs would only keep others from the lock.
    const SECOND_TRY: Duration = Duration::from_secs(2);
    let second = deadline.min(Instant::now() + SECOND_TRY);
    if !hangs && let Asked::Answered(outcome) = ask_to_delete(&request, conf, second) {
        return outcome;
    }
    match locked.push(&request) {
        Ok(Pushed::Queued) => {}
        Ok(Pushed::Overflowed) => {
            log.write(
                Level::Warn,
                "the queue is full; the agent will look at every attachment when it starts",
            );
        }
        Err(error) => return Err(queue_failed(&error, &why)),
    }
    Ok(())
}

/// What came of asking the agent to delete.
enum Asked {
    /// It did, or said why not.
    Answered(Result<(), CniError>),
    /// It could not be asked, or cannot serve.
    Unreachable {
        /// What happened.
        why: String,
        /// Whether it took the request and kept silent.
        hangs: bool,
    },
}

fn ask_to_delete(request: &Request, conf: &NetConf, deadline: Instant) -> Asked {
    match agent_client::call(&conf.agent_socket, request.clone(), deadline) {
        Ok(Response::Ok(_)) => Asked::Answered(Ok(())),
        Ok(Response::Err(error))
            if matches!(
                error.code,
                ErrorCode::TryAgainLater | ErrorCode::Unavailable | ErrorCode::ProtocolMismatch
            ) =>
        {
            Asked::Unreachable {
                why: error.to_string(),
                hangs: false,
            }
        }
        Ok(Response::Err(error)) => Asked::Answered(Err(error)),
        Err(error) => Asked::Unreachable {
            why: chain(&error),
            hangs: matches!(error, ClientError::Timeout { .. }),
        },
    }
}

fn queue_failed(error: &QueueError, why: &str) -> CniError {
    CniError::new(
        ErrorCode::Io,
        "the deletion can neither be carried out nor queued",
    )
    .with_details(format!("{why}; {}", chain(error)))
}

/// An error with its causes, on one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
