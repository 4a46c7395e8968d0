//! What `weft-probe` does: a small server that says what it saw, and clients that ask it.
//!
//! Everything here is blocking and on the standard library, since the program runs in pods, statically linked.

pub mod check;
pub mod mtu;
pub mod serve;
pub mod stream;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// The port that a probe serves on where nothing else is said.
pub const PORT: u16 = 8080;

/// What the server tells each client, as one line of JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// The server's name.
    pub name: String,
    /// The client's address as the server sees it.
    pub peer: IpAddr,
    /// How many bytes the server got (UDP).
    pub bytes: usize,
}

/// An address without the IPv4-in-IPv6 form that a dual-stack socket gives.
pub(crate) fn plain(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// Makes room for datagrams that arrive while this process waits for a processor, so that a busy machine is not taken for loss.
pub(crate) fn widen(socket: &std::net::UdpSocket) {
    use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
    // Without the privilege the default has to do.
    let _ = setsockopt(socket, RcvBufForce, &(8 << 20));
}
