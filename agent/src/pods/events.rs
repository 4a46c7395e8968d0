//! What happened to pods, told to the API as events. Telling never delays what is told.

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference, Pod},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::{Api, Client, api::PostParams};
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Events that wait to be told. Beyond that they are dropped: what they tell is in the pods' status too.
const BACKLOG: usize = 512;

/// What kind of event it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// As it should be.
    Normal,
    /// Not as it should be.
    Warning,
}

/// The handle by which workers tell.
#[derive(Debug, Clone)]
pub(super) struct Events {
    queue: mpsc::Sender<Event>,
    node_name: String,
}

impl Events {
    /// Starts the task that posts.
    pub(super) fn start(
        client: Client,
        node_name: &str,
        tasks: &TaskTracker,
        shutdown: CancellationToken,
    ) -> Self {
        let (queue, mut waiting) = mpsc::channel::<Event>(BACKLOG);
        tasks.spawn(async move {
            loop {
                let event = tokio::select! {
                    () = shutdown.cancelled() => return,
                    event = waiting.recv() => event,
                };
                let Some(event) = event else { return };
                let namespace = event.metadata.namespace.clone().unwrap_or_default();
                let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
                if let Err(error) = api.create(&PostParams::default(), &event).await {
                    tracing::debug!(%error, "an event was not told");
                }
            }
        });
        Self {
            queue,
            node_name: node_name.to_owned(),
        }
    }

    /// Tells of a pod, or of one of its containers.
    pub(super) fn tell(&self, pod: &Pod, container: Option<&str>, kind: Kind, reason: &str, message: String) {
        let name = pod.metadata.name.clone().unwrap_or_default();
        let now = Timestamp::now();
        tracing::info!(pod = %name, container, reason, message, "pod event");
        let event = Event {
            metadata: ObjectMeta {
                name: Some(format!("{name}.{:x}", now.as_nanosecond())),
                namespace: pod.metadata.namespace.clone(),
                ..ObjectMeta::default()
            },
            involved_object: ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: Some(name),
                namespace: pod.metadata.namespace.clone(),
                uid: pod.metadata.uid.clone(),
                field_path: container.map(|container| format!("spec.containers{{{container}}}")),
                ..ObjectReference::default()
            },
            type_: Some(
                match kind {
                    Kind::Normal => "Normal",
                    Kind::Warning => "Warning",
                }
                .to_owned(),
            ),
            reason: Some(reason.to_owned()),
            message: Some(message),
            source: Some(EventSource {
                component: Some("weft-agent".to_owned()),
                host: Some(self.node_name.clone()),
            }),
            reporting_component: Some("weft-agent".to_owned()),
            reporting_instance: Some(self.node_name.clone()),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            count: Some(1),
            ..Event::default()
        };
        // A full backlog: see `BACKLOG`.
        let _ = self.queue.try_send(event);
    }
}
