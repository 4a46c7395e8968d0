//! Continuous traffic: one TCP connection that echoes, and numbered datagrams at a fixed rate, until a file appears.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::{io, thread};

use serde::{Deserialize, Serialize};

use super::serve::ECHO;

/// How many datagrams a sender that was held up makes up for at once; more would be a flood, lost for being one.
const CATCH_UP: u32 = 10;
/// How long answers to the last datagrams are waited for.
const STRAGGLERS: Duration = Duration::from_secs(2);

/// What happened until the end.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Echoed bytes.
    pub tcp_bytes: u64,
    /// What ended the connection early; absent if nothing did.
    pub tcp_error: Option<String>,
    /// The longest time that an echo took, in milliseconds.
    pub tcp_longest_ms: u64,
    /// Datagrams sent.
    pub udp_sent: u64,
    /// Datagrams that came back.
    pub udp_received: u64,
    /// The longest time between two answers, in milliseconds.
    pub udp_longest_gap_ms: u64,
}

impl Report {
    /// How many datagrams were lost.
    pub fn udp_lost(&self) -> u64 {
        self.udp_sent - self.udp_received.min(self.udp_sent)
    }
}

/// Sends until `stop` exists, `udp_hz` datagrams a second; calls `started` once both kinds of traffic have been echoed.
///
/// # Errors
/// If the server is not reached at the start.
pub fn run(target: SocketAddr, udp_hz: u64, stop: &Path, started: impl FnOnce()) -> io::Result<Report> {
    let stream = TcpStream::connect_timeout(&target, Duration::from_secs(5))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let any = if target.is_ipv4() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    } else {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    };
    let socket = UdpSocket::bind((any, 0))?;
    super::widen(&socket);
    socket.connect(target)?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    socket.send(&[ECHO])?;
    socket.recv(&mut [0; 8])?;
    started();
    let ended = AtomicBool::new(false);
    let sent = AtomicU64::new(0);

    thread::scope(|scope| {
        let tcp = scope.spawn(|| echo(stream, &ended));
        let receiver = scope.spawn(|| receive(&socket, &ended, &sent));
        send(&socket, udp_hz, stop, &sent);
        ended.store(true, Ordering::SeqCst);
        let (tcp_bytes, longest, tcp_error) =
            tcp.join()
                .unwrap_or((0, Duration::ZERO, Some("the thread panicked".to_owned())));
        let (udp_received, gap) = receiver.join().unwrap_or_default();
        Ok(Report {
            tcp_bytes,
            tcp_error,
            tcp_longest_ms: millis(longest),
            udp_sent: sent.load(Ordering::SeqCst),
            udp_received,
            udp_longest_gap_ms: millis(gap),
        })
    })
}

fn echo(stream: TcpStream, ended: &AtomicBool) -> (u64, Duration, Option<String>) {
    let mut total = 0;
    let mut longest = Duration::ZERO;
    let run = || -> io::Result<()> {
        let mut writer = stream.try_clone()?;
        let mut reader = BufReader::new(stream);
        reader.read_line(&mut String::new())?;
        let block: Vec<u8> = (0..16 * 1024).map(|at: u32| (at % 251) as u8).collect();
        let mut back = vec![0; block.len()];
        while !ended.load(Ordering::SeqCst) {
            let start = Instant::now();
            writer.write_all(&block)?;
            reader.read_exact(&mut back)?;
            if back != block {
                return Err(io::Error::other("the echo differs from what was sent"));
            }
            total += block.len() as u64;
            longest = longest.max(start.elapsed());
            thread::sleep(Duration::from_millis(1)); // established and in use, not a load test
        }
        Ok(())
    };
    let error = run().err().map(|error| error.to_string());
    (total, longest, error)
}

fn send(socket: &UdpSocket, hz: u64, stop: &Path, sent: &AtomicU64) {
    let interval = Duration::from_nanos(1_000_000_000 / hz.max(1));
    let start = Instant::now();
    let mut number = 0_u64;
    let mut due = Duration::ZERO;
    // A look at the file system for every datagram would disturb the rate.
    while !number.is_multiple_of(50) || !stop.exists() {
        let mut datagram = [ECHO; 64];
        datagram[8..16].copy_from_slice(&number.to_be_bytes());
        // What the kernel does not take is lost like what the network drops: it counts as sent, and no answer will come.
        let _ = socket.send(&datagram);
        number += 1;
        sent.store(number, Ordering::SeqCst);
        due = (due + interval).max(start.elapsed().saturating_sub(interval * CATCH_UP));
        thread::sleep(due.saturating_sub(start.elapsed()));
    }
}

fn receive(socket: &UdpSocket, ended: &AtomicBool, sent: &AtomicU64) -> (u64, Duration) {
    let mut buffer = [0; 2048];
    let mut received = 0;
    let mut gap = Duration::ZERO;
    let mut last = Instant::now();
    let mut deadline = None;
    let _ = socket.set_read_timeout(Some(Duration::from_millis(100)));
    loop {
        if socket.recv(&mut buffer).is_ok() {
            received += 1;
            gap = gap.max(last.elapsed());
            last = Instant::now();
        }
        if ended.load(Ordering::SeqCst) {
            let until = *deadline.get_or_insert_with(|| Instant::now() + STRAGGLERS);
            if received >= sent.load(Ordering::SeqCst) || Instant::now() > until {
                return (received, gap);
            }
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
