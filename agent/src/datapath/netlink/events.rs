//! Word from the kernel that something changed, without what: whoever hears it looks for himself.

use std::{io, sync::Arc};

use futures::StreamExt as _;
use rtnetlink::MulticastGroup;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

const GROUPS: [MulticastGroup; 6] = [
    MulticastGroup::Link,
    MulticastGroup::Tc,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
];

/// Wakes `changed` whenever links, qdiscs, filters, addresses or routes of the netns change. Ends with `shutdown`.
///
/// A burst that overflows the socket loses messages but never the wake-up: one is enough, and a slow timer of the
/// listener covers the rest.
pub async fn watch(changed: Arc<Notify>, shutdown: CancellationToken) -> io::Result<()> {
    let (connection, _handle, mut messages) = rtnetlink::new_multicast_connection(&GROUPS)?;
    let connection = tokio::spawn(connection);
    while let Some(Some(_)) = shutdown.run_until_cancelled(messages.next()).await {
        changed.notify_one();
    }
    connection.abort();
    Ok(())
}
