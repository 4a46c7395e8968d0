//! The audit log: one line for each request, who did what to which object and what came of it, as Events of audit.k8s.io/v1
//! at the level Metadata.
//!
//! A thread of its own writes. Requests do not wait for it: what it cannot keep up with is dropped and counted, and the log
//! says how much that was.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use http::request::Parts;
use http::{StatusCode, header};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::request::{ResourcePath, Verb};
use super::status::ApiError;
use crate::auth::Identity;

/// Lines that may wait for the disk.
const QUEUE: usize = 16_384;

/// What of an error's message is kept.
const MAX_MESSAGE_BYTES: usize = 1024;

/// Where the log goes and how much is kept of it.
#[derive(Clone, Debug)]
pub struct AuditConfig {
    /// The file; older ones get `.1`, `.2` and so on appended to its name.
    pub file: PathBuf,
    /// Size at which a new file is begun.
    pub max_bytes: u64,
    /// How many older files are kept.
    pub backups: u32,
}

/// The log's front: takes lines.
#[derive(Debug)]
pub struct AuditLog {
    lines: SyncSender<String>,
    dropped: Arc<AtomicU64>,
}

impl AuditLog {
    /// Opens the log and starts its writer.
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub fn open(config: AuditConfig) -> io::Result<Self> {
        let file = Rotating::open(config)?;
        let (lines, queue) = sync_channel(QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&dropped);
        thread::Builder::new()
            .name("audit-writer".to_owned())
            .spawn(move || write(file, &queue, &counter))?;
        Ok(Self { lines, dropped })
    }

    /// How many events were dropped since the start.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub(crate) fn put(&self, event: &Value) {
        if self.lines.try_send(event.to_string()).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn write(mut file: Rotating, queue: &Receiver<String>, dropped: &AtomicU64) {
    let mut told = 0;
    while let Ok(line) = queue.recv() {
        let mut put = |line: &str| {
            if let Err(error) = file.put(line) {
                tracing::warn!(%error, "the audit log cannot be written");
                dropped.fetch_add(1, Ordering::Relaxed);
            }
        };
        put(&line);
        while let Ok(line) = queue.try_recv() {
            put(&line);
        }
        if let Err(error) = file.flush() {
            tracing::warn!(%error, "the audit log cannot be written");
        }
        let lost = dropped.load(Ordering::Relaxed);
        if lost > told {
            tracing::warn!(
                events = lost - told,
                "the audit log was too slow, events were dropped"
            );
            told = lost;
        }
    }
}

/// A file that makes way for a new one when it is full.
struct Rotating {
    config: AuditConfig,
    file: BufWriter<File>,
    size: u64,
}

impl Rotating {
    fn open(config: AuditConfig) -> io::Result<Self> {
        let (file, size) = append_to(&config.file)?;
        Ok(Self { config, file, size })
    }

    fn put(&mut self, line: &str) -> io::Result<()> {
        if self.size > 0 && self.size + line.len() as u64 > self.config.max_bytes {
            self.rotate()?;
        }
        self.file.write_all(line.as_bytes())?;
        self.file.write_all(b"\n")?;
        self.size += line.len() as u64 + 1;
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file.flush()?;
        let name = |number: u32| {
            let mut name = self.config.file.clone().into_os_string();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        if self.config.backups == 0 {
            fs::remove_file(&self.config.file)?;
        } else {
            for number in (1..self.config.backups).rev() {
                match fs::rename(name(number), name(number + 1)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    Ok(()) | Err(_) => {}
                }
            }
            fs::rename(&self.config.file, name(1))?;
        }
        let (file, size) = append_to(&self.config.file)?;
        (self.file, self.size) = (file, size);
        Ok(())
    }
}

fn append_to(path: &Path) -> io::Result<(BufWriter<File>, u64)> {
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)?;
    let size = file.metadata()?.len();
    Ok((BufWriter::new(file), size))
}

/// Where a connection comes from.
#[derive(Clone, Copy, Debug)]
pub struct PeerAddress(pub SocketAddr);

/// What is learnt about a request on its way.
#[derive(Debug)]
pub(super) struct Trail {
    id: String,
    uri: String,
    agent: String,
    peer: Option<SocketAddr>,
    received: Timestamp,
    pub(super) user: Identity,
    acts_as: Option<Identity>,
    verb: String,
    path: Option<ResourcePath>,
}

impl Trail {
    pub(super) fn of(parts: &Parts, now: Timestamp) -> Self {
        let agent = parts.headers.get(header::USER_AGENT);
        Self {
            id: uuid::Uuid::new_v4().to_string(),
            uri: parts.uri.to_string(),
            agent: agent
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default()
                .to_owned(),
            peer: parts.extensions.get::<PeerAddress>().map(|peer| peer.0),
            received: now,
            user: Identity::anonymous(),
            acts_as: None,
            verb: parts.method.as_str().to_lowercase(),
            path: None,
        }
    }

    /// Notes on whose behalf what is asked for.
    pub(super) fn note(&mut self, identity: &Identity, verb: Option<Verb>, path: Option<&ResourcePath>) {
        self.acts_as = (*identity != self.user).then(|| identity.clone());
        self.path = path.cloned();
        if let Some(verb) = verb {
            verb.name().clone_into(&mut self.verb);
        }
    }

    /// The event, once it is known what came of the request.
    pub(super) fn event(&self, code: StatusCode, error: Option<&ApiError>, now: Timestamp) -> Value {
        let user = |identity: &Identity| {
            let mut user = json!({"username": identity.user, "groups": identity.groups});
            if !identity.uid.is_empty() {
                user["uid"] = json!(identity.uid);
            }
            if !identity.extra.is_empty() {
                user["extra"] = json!(identity.extra);
            }
            user
        };
        let allowed = !error.is_some_and(|error| matches!(error.reason, "Forbidden" | "Unauthorized"));
        // The answer to a watch has only begun.
        let stage = if self.verb == "watch" && error.is_none() {
            "ResponseStarted"
        } else {
            "ResponseComplete"
        };
        let mut event = json!({
            "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "Metadata", "auditID": self.id,
            "stage": stage, "requestURI": self.uri, "verb": self.verb, "user": user(&self.user),
            "responseStatus": {"metadata": {}, "code": code.as_u16()},
            "requestReceivedTimestamp": micro(self.received), "stageTimestamp": micro(now),
            "annotations": {"authorization.k8s.io/decision": if allowed { "allow" } else { "forbid" }},
        });
        if let Some(identity) = &self.acts_as {
            event["impersonatedUser"] = user(identity);
        }
        if let Some(peer) = self.peer {
            event["sourceIPs"] = json!([peer.ip().to_string()]);
        }
        if !self.agent.is_empty() {
            event["userAgent"] = json!(self.agent);
        }
        if let Some(path) = &self.path {
            let mut reference = json!({"resource": path.plural, "apiVersion": path.version});
            for (key, value) in [
                ("namespace", &path.namespace),
                ("name", &path.name),
                ("apiGroup", &path.group),
                ("subresource", &path.subresource),
            ] {
                if !value.is_empty() {
                    reference[key] = json!(value);
                }
            }
            event["objectRef"] = reference;
        }
        if let Some(error) = error {
            event["responseStatus"]["status"] = json!("Failure");
            event["responseStatus"]["reason"] = json!(error.reason);
            // It may quote what was sent or what was stored.
            let secret = self
                .path
                .as_ref()
                .is_some_and(|path| path.group.is_empty() && path.plural == "secrets");
            if !secret {
                let end = error.message.floor_char_boundary(MAX_MESSAGE_BYTES);
                event["responseStatus"]["message"] = json!(error.message[..end]);
            }
        }
        event
    }
}

fn micro(time: Timestamp) -> String {
    format!("{time:.6}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_makes_way_and_the_oldest_goes() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("audit.log");
        let config = AuditConfig {
            file: file.clone(),
            max_bytes: 20,
            backups: 2,
        };
        let mut log = Rotating::open(config.clone()).unwrap();
        for line in ["first 6789", "second 789", "third", "fourth 789", "fifth 6789"] {
            log.put(line).unwrap();
        }
        log.flush().unwrap();
        let read = |name: &str| fs::read_to_string(directory.path().join(name)).ok();
        assert_eq!(read("audit.log").as_deref(), Some("fifth 6789\n"));
        assert_eq!(read("audit.log.1").as_deref(), Some("fourth 789\n"));
        assert_eq!(read("audit.log.2").as_deref(), Some("second 789\nthird\n"));
        assert_eq!(read("audit.log.3"), None);
        drop(log);
        // It goes on where it was.
        let mut log = Rotating::open(config).unwrap();
        log.put("sixth").unwrap();
        log.flush().unwrap();
        assert_eq!(read("audit.log").as_deref(), Some("fifth 6789\nsixth\n"));
    }

    #[test]
    fn what_the_writer_cannot_keep_up_with_is_counted() {
        let (lines, queue) = sync_channel(1);
        let log = AuditLog {
            lines,
            dropped: Arc::default(),
        };
        for _ in 0..3 {
            log.put(&json!({}));
        }
        assert_eq!(log.dropped(), 2);
        drop(queue);
    }
}
