//! One datagram of an exact size that must not be fragmented.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Greeting;

/// What became of the datagram.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// The server got all of it.
    Arrived,
    /// Someone on the way said that it is too big.
    TooBig,
    /// Nobody said anything.
    Lost,
    /// Something else.
    Failed(String),
}

/// Sends a datagram that makes an IP packet of `packet_bytes`, with "don't fragment" set and without heeding what the route
/// says about its MTU.
pub fn send(target: SocketAddr, packet_bytes: usize, timeout: Duration) -> Fate {
    match try_send(target, packet_bytes, timeout) {
        Ok(fate) => fate,
        Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => Fate::TooBig,
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
            Fate::Lost
        }
        Err(error) => Fate::Failed(error.to_string()),
    }
}

fn try_send(target: SocketAddr, packet_bytes: usize, timeout: Duration) -> io::Result<Fate> {
    let (any, headers) = match target {
        SocketAddr::V4(_) => (IpAddr::V4(Ipv4Addr::UNSPECIFIED), 28),
        SocketAddr::V6(_) => (IpAddr::V6(Ipv6Addr::UNSPECIFIED), 48),
    };
    let socket = UdpSocket::bind((any, 0))?;
    forbid_fragments(&socket, target.is_ipv4())?;
    socket.connect(target)?;
    socket.set_read_timeout(Some(timeout))?;
    let payload = vec![b'm'; packet_bytes.saturating_sub(headers)];
    socket.send(&payload)?;
    let mut buffer = [0; 1024];
    let got = socket.recv(&mut buffer)?;
    let greeting: Greeting = serde_json::from_slice(&buffer[..got])?;
    Ok(if greeting.bytes == payload.len() {
        Fate::Arrived
    } else {
        Fate::Failed(format!("{} of {} bytes arrived", greeting.bytes, payload.len()))
    })
}

/// Sets "don't fragment" and ignores the path MTU that the kernel knows, which no safe wrapper offers.
#[expect(unsafe_code, reason = "the standard library and nix have no IP_MTU_DISCOVER")]
fn forbid_fragments(socket: &UdpSocket, is_v4: bool) -> io::Result<()> {
    let (level, option, value) = if is_v4 {
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)
    } else {
        (
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU_DISCOVER,
            libc::IPV6_PMTUDISC_PROBE,
        )
    };
    // SAFETY: the descriptor is open, and the pointer and length describe one `c_int` that outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
