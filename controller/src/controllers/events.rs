//! Records Events without ever holding up the work they tell about.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

/// Events that wait to be written. More are dropped: events are advice, and a burst of thousands of pods must not fill memory.
const WAITING: usize = 4096;
/// Equal events within this time become one with a count.
const AGGREGATE_FOR: Duration = Duration::from_mins(10);
/// Distinct events one object may cause in a row, as in Kubernetes; one more is allowed every [`REFILL`].
const BURST: u32 = 25;
const REFILL: Duration = Duration::from_mins(5);
/// Remembered (object, reason, message) triples; the table is cleared when full.
const REMEMBERED: usize = 8192;

/// Who speaks of each kind, in Kubernetes' words: `kubectl describe` prints it. Of other kinds it is the recorder's component.
const SPEAKERS: &[(&str, &str)] = &[
    ("CronJob", "cronjob-controller"),
    ("DaemonSet", "daemonset-controller"),
    ("Deployment", "deployment-controller"),
    ("Job", "job-controller"),
    ("Node", "node-controller"),
    ("ReplicaSet", "replicaset-controller"),
    ("ReplicationController", "replication-controller"),
    ("StatefulSet", "statefulset-controller"),
];

/// Whether an event is routine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Information.
    Normal,
    /// Something a person may want to act on.
    Warning,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Kind::Normal => "Normal",
            Kind::Warning => "Warning",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Note {
    kind: Kind,
    namespace: String,
    object_kind: String,
    api_version: String,
    name: String,
    uid: String,
    reason: &'static str,
    message: String,
}

/// A handle to the writing task.
#[derive(Debug, Clone)]
pub struct Recorder {
    notes: mpsc::Sender<Note>,
    dropped: Arc<AtomicU64>,
}

impl Recorder {
    /// Starts the writing task; `component` is the events' source.
    pub fn start(
        client: Client,
        component: &'static str,
        tracker: &TaskTracker,
        shutdown: CancellationToken,
    ) -> Self {
        let (notes, mut waiting) = mpsc::channel(WAITING);
        tracker.spawn(async move {
            let mut writer = Writer {
                client,
                component,
                seen: HashMap::new(),
                spam: HashMap::new(),
                serial: 0,
            };
            loop {
                let note = tokio::select! {
                    () = shutdown.cancelled() => return,
                    note = waiting.recv() => note,
                };
                let Some(note) = note else { return };
                if let Err(error) = writer.write(note).await {
                    debug!(%error, "event not recorded");
                }
            }
        });
        Recorder {
            notes,
            dropped: Arc::default(),
        }
    }

    /// Tells about an object.
    pub fn event<K: kube::Resource<DynamicType = ()>>(
        &self,
        object: &K,
        kind: Kind,
        reason: &'static str,
        message: String,
    ) {
        self.about(
            &K::kind(&()),
            &K::api_version(&()),
            object.meta(),
            kind,
            reason,
            message,
        );
    }

    /// Tells about an object of which only the metadata is at hand.
    pub fn about(
        &self,
        object_kind: &str,
        api_version: &str,
        meta: &ObjectMeta,
        kind: Kind,
        reason: &'static str,
        message: String,
    ) {
        let note = Note {
            kind,
            namespace: meta.namespace.clone().unwrap_or_default(),
            object_kind: object_kind.to_owned(),
            api_version: api_version.to_owned(),
            name: meta.name.clone().unwrap_or_default(),
            // Events about nodes carry the name as uid: that is what `kubectl describe node` looks for.
            uid: match object_kind {
                "Node" => meta.name.clone().unwrap_or_default(),
                _ => meta.uid.clone().unwrap_or_default(),
            },
            reason,
            message,
        };
        if self.notes.try_send(note).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Events that were dropped because too many waited.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

struct Seen {
    name: String,
    count: i32,
    last: Instant,
}

struct Writer {
    client: Client,
    component: &'static str,
    seen: HashMap<Note, Seen>,
    spam: HashMap<String, (u32, Instant)>,
    serial: u64,
}

impl Writer {
    async fn write(&mut self, note: Note) -> Result<(), kube::Error> {
        let now = Instant::now();
        let namespace = if note.namespace.is_empty() {
            "default"
        } else {
            &note.namespace
        };
        let api: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        let time = Timestamp::now();
        if let Some(seen) = self
            .seen
            .get_mut(&note)
            .filter(|seen| now - seen.last < AGGREGATE_FOR)
        {
            seen.count += 1;
            seen.last = now;
            let patch = json!({ "count": seen.count, "lastTimestamp": Time(time) });
            match api
                .patch(&seen.name, &PatchParams::default(), &Patch::Merge(patch))
                .await
            {
                Err(error) if super::is_not_found(&error) => {}
                other => return other.map(|_| ()),
            }
        }
        if !self.allowed(&note.uid, now) {
            return Ok(());
        }
        self.serial += 1;
        let speaker = SPEAKERS.iter().find(|(kind, _)| *kind == note.object_kind);
        let component = speaker.map_or(self.component, |(_, speaker)| speaker);
        let name = format!(
            "{}.{:x}{:04x}",
            note.name,
            time.as_nanosecond(),
            self.serial & 0xffff
        );
        let event = Event {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            involved_object: ObjectReference {
                api_version: Some(note.api_version.clone()),
                kind: Some(note.object_kind.clone()),
                name: Some(note.name.clone()),
                namespace: Some(note.namespace.clone()).filter(|n| !n.is_empty()),
                uid: Some(note.uid.clone()),
                ..ObjectReference::default()
            },
            reason: Some(note.reason.to_owned()),
            message: Some(note.message.clone()),
            type_: Some(note.kind.as_str().to_owned()),
            count: Some(1),
            first_timestamp: Some(Time(time)),
            last_timestamp: Some(Time(time)),
            source: Some(EventSource {
                component: Some(component.to_owned()),
                host: None,
            }),
            reporting_component: Some(component.to_owned()),
            reporting_instance: Some(String::new()),
            ..Event::default()
        };
        super::create(&self.client, namespace, &event).await?;
        if self.seen.len() >= REMEMBERED {
            self.seen.clear();
        }
        self.seen.insert(
            note,
            Seen {
                name,
                count: 1,
                last: now,
            },
        );
        Ok(())
    }

    /// A token bucket per object.
    fn allowed(&mut self, uid: &str, now: Instant) -> bool {
        if self.spam.len() >= REMEMBERED {
            self.spam.clear();
        }
        let (used, since) = self.spam.entry(uid.to_owned()).or_insert((0, now));
        while *used > 0 && now.duration_since(*since) >= REFILL {
            *used -= 1;
            *since += REFILL;
        }
        if *used >= BURST {
            return false;
        }
        if *used == 0 {
            *since = now;
        }
        *used += 1;
        true
    }
}
