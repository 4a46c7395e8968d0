//! The client: does the server answer over TCP, UDP and ICMP, how fast, and does it see our own address?

use std::io;
use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, connect, recv, send,
    setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike as _};
use serde::{Deserialize, Serialize};

use super::{Greeting, plain};

/// What is spoken to the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// A connection, and the greeting over it.
    Tcp,
    /// A datagram, and the greeting in return.
    Udp,
    /// An echo request.
    Icmp,
}

/// The outcome for one target and protocol.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// Whom we spoke to.
    pub target: SocketAddr,
    /// How.
    pub protocol: Protocol,
    /// What went wrong; absent if all went well.
    pub error: Option<String>,
    /// Time of one exchange, best of three, in microseconds.
    pub latency_us: u64,
    /// The address that we sent from.
    pub local: Option<IpAddr>,
    /// Our address as the target saw it (for ICMP: the target answered the address we sent from).
    pub seen: Option<IpAddr>,
    /// The server's name.
    pub name: Option<String>,
}

impl Outcome {
    /// Whether an answer came.
    pub fn is_reached(&self) -> bool {
        self.error.is_none()
    }

    /// Whether the target saw the address that we sent from.
    pub fn is_source_kept(&self) -> bool {
        self.is_reached() && self.local.is_some() && self.local == self.seen
    }
}

/// Speaks to each target with each protocol, one after the other, so that one exchange does not slow another.
pub fn check(targets: &[SocketAddr], protocols: &[Protocol], timeout: Duration) -> Vec<Outcome> {
    targets
        .iter()
        .flat_map(|target| {
            protocols
                .iter()
                .map(move |protocol| ask(*target, *protocol, timeout))
        })
        .collect()
}

fn ask(target: SocketAddr, protocol: Protocol, timeout: Duration) -> Outcome {
    let mut outcome = Outcome {
        target,
        protocol,
        error: None,
        latency_us: u64::MAX,
        local: None,
        seen: None,
        name: None,
    };
    for _ in 0..3 {
        let result = match protocol {
            Protocol::Tcp => ask_tcp(target, timeout),
            Protocol::Udp => ask_udp(target, timeout),
            Protocol::Icmp => ask_icmp(target.ip(), timeout),
        };
        match result {
            Ok((took, local, seen, name)) => {
                outcome.latency_us = outcome
                    .latency_us
                    .min(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
                outcome.local = Some(local);
                outcome.seen = Some(seen);
                outcome.name = name;
            }
            Err(error) => {
                outcome.error = Some(error.to_string());
                outcome.latency_us = 0;
                break;
            }
        }
    }
    outcome
}

type Answer = (Duration, IpAddr, IpAddr, Option<String>);

fn ask_tcp(target: SocketAddr, timeout: Duration) -> io::Result<Answer> {
    let start = Instant::now();
    let stream = TcpStream::connect_timeout(&target, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    let local = stream.local_addr()?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let took = start.elapsed();
    let greeting: Greeting = serde_json::from_str(&line)?;
    Ok((took, plain(local.ip()), greeting.peer, Some(greeting.name)))
}

fn ask_udp(target: SocketAddr, timeout: Duration) -> io::Result<Answer> {
    let any = if target.is_ipv4() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    } else {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(target)?;
    socket.set_read_timeout(Some(timeout))?;
    let start = Instant::now();
    socket.send(b"?")?;
    let mut buffer = [0; 1024];
    let got = socket.recv(&mut buffer)?;
    let took = start.elapsed();
    let greeting: Greeting = serde_json::from_slice(&buffer[..got])?;
    Ok((
        took,
        plain(socket.local_addr()?.ip()),
        greeting.peer,
        Some(greeting.name),
    ))
}

/// An echo request by a raw socket, which needs no `ping_group_range`.
fn ask_icmp(target: IpAddr, timeout: Duration) -> io::Result<Answer> {
    let (family, protocol, request, reply) = match target {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp, 8, 0),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6, 128, 129),
    };
    let raw: OwnedFd = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    let wait = TimeVal::milliseconds(i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX));
    setsockopt(&raw, ReceiveTimeout, &wait)?;
    connect(
        raw.as_raw_fd(),
        &SockaddrStorage::from(SocketAddr::new(target, 0)),
    )?;
    // The kernel fills the checksum of ICMPv6 in; ours is for ICMP.
    let id = (std::process::id() & 0xffff) as u16 ^ (raw.as_raw_fd().cast_unsigned() as u16).rotate_left(8);
    let mut packet = vec![request, 0, 0, 0];
    packet.extend(id.to_be_bytes());
    packet.extend(1_u16.to_be_bytes());
    packet.extend([0x77; 48]);
    if target.is_ipv4() {
        let sum = checksum(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    let start = Instant::now();
    send(raw.as_raw_fd(), &packet, MsgFlags::empty())?;
    let mut buffer = [0; 2048];
    loop {
        let got = match recv(raw.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Err(Errno::EINTR) => continue,
            got => got?,
        };
        // IPv4's raw sockets hand the IP header over as well.
        let header = if target.is_ipv4() {
            usize::from(buffer[0] & 0xf) * 4
        } else {
            0
        };
        let Some(message) = buffer.get(header..got) else {
            continue;
        };
        let is_ours = message.first() == Some(&reply) && message.get(4..6) == Some(&id.to_be_bytes()[..]);
        if is_ours {
            let took = start.elapsed();
            let local: SockaddrStorage = nix::sys::socket::getsockname(raw.as_raw_fd())?;
            let local = local
                .as_sockaddr_in()
                .map(|v4| IpAddr::V4(v4.ip()))
                .or_else(|| local.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
                .ok_or_else(|| io::Error::other("no local address"))?;
            return Ok((took, local, local, None));
        }
        if start.elapsed() > timeout {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
}

fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_of_a_packet_with_its_checksum_is_zero() {
        let mut packet = vec![8, 0, 0, 0, 1, 2, 0, 1, 9, 9, 9];
        let sum = checksum(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(checksum(&packet), 0);
    }

    #[test]
    fn a_server_on_loopback_is_reached_and_sees_the_source() {
        let port = 18_080;
        std::thread::spawn(move || super::super::serve::serve(port, "here"));
        let target = SocketAddr::from(([127, 0, 0, 1], port));
        let outcome = crate::wait_for("the server", Duration::from_secs(5), || {
            let outcomes = check(
                &[target],
                &[Protocol::Tcp, Protocol::Udp],
                Duration::from_millis(500),
            );
            outcomes
                .iter()
                .all(Outcome::is_source_kept)
                .then(|| outcomes[0].clone())
        });
        assert_eq!(outcome.expect("reached").name.as_deref(), Some("here"));
    }
}
