//! Word from the kernel that something changed, without what: whoever hears it looks for himself.

use std::{io, sync::Arc};

use bytes::BytesMut;
use futures::{Stream, StreamExt as _};
use netlink_sys::{
    AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket, protocols::NETLINK_NETFILTER,
};
use rtnetlink::{Handle, MulticastGroup};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::RECEIVE_BYTES;

const GROUPS: [MulticastGroup; 6] = [
    MulticastGroup::Link,
    MulticastGroup::Tc,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
];

/// `NFNLGRP_NFTABLES`: changes of nftables' rules.
const NFTABLES_GROUP: u32 = 7;

/// Wakes `changed` whenever links, qdiscs, filters, addresses, routes or nftables of the netns change. Ends with `shutdown`.
///
/// A burst that overflows the socket loses messages but never the wake-up: one is enough, and a slow timer of the
/// listener covers the rest.
pub fn watch(
    changed: Arc<Notify>,
    shutdown: CancellationToken,
) -> io::Result<impl Future<Output = io::Result<()>> + Send> {
    // Opened before anything is awaited: what changes from here on is heard of.
    let (connection, handle, messages) = rtnetlink::new_multicast_connection(&GROUPS)?;
    let mut rules = TokioSocket::new(NETLINK_NETFILTER)?;
    rules.socket_mut().bind(&SocketAddr::new(0, 0))?;
    rules.socket_mut().add_membership(NFTABLES_GROUP)?;
    Ok(listen(connection, handle, messages, rules, changed, shutdown))
}

async fn listen(
    connection: impl Future<Output = ()> + Send + 'static,
    _keeps_the_connection: Handle,
    mut messages: impl Stream + Unpin,
    rules: TokioSocket,
    changed: Arc<Notify>,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let connection = tokio::spawn(connection);
    let mut ignored = BytesMut::with_capacity(RECEIVE_BYTES);
    loop {
        ignored.clear();
        tokio::select! {
            () = shutdown.cancelled() => break,
            message = messages.next() => if message.is_none() { break },
            received = rules.recv(&mut ignored) => match received {
                // Messages were lost, which is a change as well.
                Err(error) if error.raw_os_error() != Some(libc::ENOBUFS) => return Err(error),
                _ => {}
            },
        }
        changed.notify_one();
    }
    connection.abort();
    Ok(())
}
