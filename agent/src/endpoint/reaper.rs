//! Deletes the links of attachments that are gone.
//!
//! The kernel deletes a veth only after all processors have let go of it, some 30 ms under the lock that every other
//! change of links needs. So links are collected for a moment and deleted together; those whose netns the runtime drops
//! meanwhile are gone by then. Nothing flows over a link that waits: its endpoint is off the tables.

use std::{
    collections::BTreeMap,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use super::EndpointError;
use crate::datapath::{DOOMED_GROUP, netlink::Netlink};

/// How long links are collected.
const COLLECT_FOR: Duration = Duration::from_millis(250);
/// How many are deleted at once: the kernel holds its lock for about 0.1 ms for each.
const BATCH: usize = 128;

enum Message {
    Delete { ifindex: u32, name: String },
    Flush(mpsc::SyncSender<()>),
}

/// The handle of the thread that deletes.
#[derive(Clone)]
pub(super) struct Reaper {
    messages: mpsc::Sender<Message>,
}

impl Reaper {
    /// Starts the thread; it ends, when all is deleted, with the last handle.
    pub(super) fn start(netlink: Arc<Netlink>) -> Result<Self, EndpointError> {
        let (messages, queue) = mpsc::channel();
        thread::Builder::new()
            .name("reaper".to_owned())
            .spawn(move || run(&netlink, &queue))
            .map_err(|error| {
                tracing::error!(%error, "no thread for deleting links");
                EndpointError::Stopping
            })?;
        Ok(Self { messages })
    }

    /// Deletes a link soon.
    pub(super) fn delete(&self, ifindex: u32, name: &str) {
        // A thread that is gone leaves the link to the next agent's prune.
        let _ = self.messages.send(Message::Delete {
            ifindex,
            name: name.to_owned(),
        });
    }

    /// Deletes what waits now, and returns when it is gone.
    pub(super) fn flush(&self) {
        let (done, wait) = mpsc::sync_channel(1);
        if self.messages.send(Message::Flush(done)).is_ok() {
            let _ = wait.recv();
        }
    }
}

fn run(netlink: &Netlink, queue: &mpsc::Receiver<Message>) {
    while let Ok(first) = queue.recv() {
        let mut links = BTreeMap::new();
        let mut waiting = Vec::new();
        let deadline = Instant::now() + COLLECT_FOR;
        let mut next = Some(first);
        while let Some(message) = next {
            match message {
                Message::Delete { ifindex, name } => {
                    links.insert(ifindex, name);
                }
                Message::Flush(done) => waiting.push(done),
            }
            next = if links.len() >= BATCH {
                None
            } else if waiting.is_empty() {
                queue
                    .recv_timeout(deadline.saturating_duration_since(Instant::now()))
                    .ok()
            } else {
                queue.try_recv().ok()
            };
        }
        let links: Vec<_> = links.into_iter().collect();
        if !links.is_empty()
            && let Err(error) = netlink.delete_links(&links, DOOMED_GROUP)
        {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "links could not be deleted"
            );
        }
        drop(waiting);
    }
}
