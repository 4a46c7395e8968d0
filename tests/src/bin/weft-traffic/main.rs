//! `weft-traffic`: the traffic generator of the benchmarks.
//!
//! Unpinned figures measure where the scheduler put the threads, not the path: a server has a group of ports for each
//! CPU it is pinned to, and a client names its own CPU. TCP uses cubic whatever the machine's default is.

#![expect(
    clippy::cast_precision_loss,
    reason = "no figure here needs more than 52 bits"
)]

mod stats;
mod sys;

use std::{
    hint,
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd},
    process::{self, ExitCode},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, SockaddrIn6, SockaddrStorage, bind, connect, listen,
        setsockopt, socket,
        sockopt::{Ipv6V6Only, Linger, RcvBufForce, ReuseAddr, SndBufForce, TcpCongestion, TcpNoDelay},
    },
};
use serde_json::json;
use stats::Summary;

/// What a group of ports is for, by its offset.
const ECHO: u16 = 0;
const SINK: u16 = 1;
const DATAGRAMS: u16 = 2;
const COUNT: u16 = 3;

/// What a stream hands to the kernel at once.
const CHUNK_BYTES: usize = 128 << 10;

#[derive(Parser)]
#[command(
    name = "weft-traffic",
    version,
    about = "Loads a network and says what it carried"
)]
struct Args {
    /// Runs in a real-time class, which keeps other load out
    #[arg(long, global = true)]
    real_time: bool,
    #[command(subcommand)]
    mode: Mode,
}

#[derive(Subcommand)]
enum Mode {
    /// The other end of all the others
    Server {
        /// PORT:CPU or PORT:any, a group of four ports served on one CPU; may be repeated
        #[arg(long, required = true)]
        group: Vec<Group>,
    },
    /// One byte there and one back, over one connection; round trips a second
    Rr(Load),
    /// Connect, one byte there and one back, close; connections a second
    Crr(Load),
    /// Bulk data; Gbit/s
    Tp(Load),
    /// Small datagrams as fast as they go; those that arrive, a second
    Udp(Load),
}

#[derive(Clone, Debug)]
struct Group {
    port: u16,
    cpu: Option<usize>,
}

impl std::str::FromStr for Group {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (port, cpu) = text.split_once(':').ok_or("not PORT:CPU")?;
        let cpu = match cpu {
            "any" => None,
            number => Some(number.parse().map_err(|_| "not a CPU")?),
        };
        Ok(Self {
            port: port.parse().map_err(|_| "not a port")?,
            cpu,
        })
    }
}

#[derive(clap::Args)]
struct Load {
    /// The server and the first port of a group
    target: SocketAddr,
    /// How long to measure
    #[arg(long, default_value_t = 1.0)]
    secs: f64,
    /// Connections at once
    #[arg(long, default_value_t = 1)]
    streams: usize,
    /// The CPU to run on
    #[arg(long)]
    cpu: Option<usize>,
    /// The payload of a datagram
    #[arg(long, default_value_t = 18)]
    size: usize,
}

impl Load {
    fn port(&self, offset: u16) -> SocketAddr {
        SocketAddr::new(self.target.ip(), self.target.port() + offset)
    }

    fn duration(&self) -> Duration {
        Duration::from_secs_f64(self.secs)
    }
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft-traffic: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Generates load and prints `{"value": …}` in the mode's unit.
fn run(args: &Args) -> Result<()> {
    if args.real_time {
        sys::real_time().context("enter the real-time class")?;
    }
    let load = match &args.mode {
        Mode::Server { group } => return server(group),
        Mode::Rr(load) | Mode::Crr(load) | Mode::Tp(load) | Mode::Udp(load) => load,
    };
    if let Some(cpu) = load.cpu {
        sys::pin(cpu).with_context(|| format!("run on CPU {cpu}"))?;
    }
    let report = match &args.mode {
        Mode::Server { .. } => bail!("the server is no load"),
        Mode::Rr(load) => round_trips(load)?,
        Mode::Crr(load) => connections(load)?,
        Mode::Tp(load) => throughput(load)?,
        Mode::Udp(load) => datagrams(load)?,
    };
    println!("{report}");
    // Other threads may still be sending; there is nothing to wait for.
    process::exit(0);
}

/// A TCP connection with cubic and without delays.
fn connected(target: SocketAddr) -> io::Result<TcpStream> {
    let family = if target.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, TcpCongestion, &"cubic".into())?;
    setsockopt(&fd, TcpNoDelay, &true)?;
    connect(fd.as_raw_fd(), &SockaddrStorage::from(target))?;
    Ok(TcpStream::from(fd))
}

fn round_trips(load: &Load) -> Result<serde_json::Value> {
    const WARM_UP: usize = 200;
    let mut stream = connected(load.port(ECHO)).context("connect")?;
    let mut byte = [b'x'];
    for _ in 0..WARM_UP {
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
    }
    let mut samples = Vec::with_capacity(1 << 20);
    let started = Instant::now();
    let mut last = started;
    while last - started < load.duration() {
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        let now = Instant::now();
        samples.push((now - last).as_secs_f64() * 1e6);
        last = now;
    }
    let rate = samples.len() as f64 / (last - started).as_secs_f64();
    Ok(json!({"value": rate, "latency_us": Summary::of(&mut samples)}))
}

fn connections(load: &Load) -> Result<serde_json::Value> {
    const FAILURES: u32 = 10;
    let total = Arc::new(AtomicU64::new(0));
    let failures = Arc::new(AtomicU64::new(0));
    for _ in 0..load.streams.max(1) {
        let (target, total, failures) = (load.port(ECHO), Arc::clone(&total), Arc::clone(&failures));
        thread::spawn(move || {
            let once = || -> io::Result<()> {
                let mut stream = connected(target)?;
                // Closing by reset leaves no TIME_WAIT behind, so ports do not run out.
                setsockopt(
                    &stream,
                    Linger,
                    &libc::linger {
                        l_onoff: 1,
                        l_linger: 0,
                    },
                )?;
                stream.write_all(b"x")?;
                stream.read_exact(&mut [0])
            };
            while failures.load(Ordering::Relaxed) < FAILURES.into() {
                match once() {
                    Ok(()) => total.fetch_add(1, Ordering::Relaxed),
                    Err(_) => failures.fetch_add(1, Ordering::Relaxed),
                };
            }
        });
    }
    let rate = rate_of(&total, Duration::from_millis(100), load.duration());
    ensure!(
        failures.load(Ordering::Relaxed) < FAILURES.into(),
        "{FAILURES} connections failed"
    );
    Ok(json!({"value": rate}))
}

fn throughput(load: &Load) -> Result<serde_json::Value> {
    let total = Arc::new(AtomicU64::new(0));
    for _ in 0..load.streams.max(1) {
        let mut stream = connected(load.port(SINK)).context("connect")?;
        let total = Arc::clone(&total);
        thread::spawn(move || {
            let chunk = vec![0; CHUNK_BYTES];
            while let Ok(sent) = stream.write(&chunk) {
                total.fetch_add(sent as u64, Ordering::Relaxed);
            }
        });
    }
    let rate = rate_of(&total, Duration::from_millis(300), load.duration());
    Ok(json!({"value": rate * 8e-9}))
}

/// How fast a counter grows, once it had time to get going.
fn rate_of(total: &AtomicU64, warm_up: Duration, duration: Duration) -> f64 {
    thread::sleep(warm_up);
    let (before, started) = (total.load(Ordering::Relaxed), Instant::now());
    thread::sleep(duration);
    let (after, elapsed) = (total.load(Ordering::Relaxed), started.elapsed());
    (after - before) as f64 / elapsed.as_secs_f64()
}

fn datagrams(load: &Load) -> Result<serde_json::Value> {
    let any = if load.target.is_ipv4() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    } else {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    };
    let socket = UdpSocket::bind((any, 0))?;
    setsockopt(&socket, SndBufForce, &(4 << 20)).context("enlarge the send buffer")?;
    socket.connect(load.port(DATAGRAMS))?;
    let payload = vec![0; load.size];
    let received = || -> Result<u64> {
        let mut text = String::new();
        connected(load.port(COUNT))
            .context("ask for the count")?
            .read_to_string(&mut text)?;
        text.trim().parse().context("the count")
    };
    let before = received()?;
    let started = Instant::now();
    let mut sent = 0;
    while started.elapsed() < load.duration() {
        sent += sys::send_batch(&socket, &payload).unwrap_or(0);
    }
    let elapsed = started.elapsed().as_secs_f64();
    thread::sleep(Duration::from_millis(100));
    let arrived = received()? - before;
    Ok(json!({"value": arrived as f64 / elapsed, "sent_per_second": sent as f64 / elapsed}))
}

fn server(groups: &[Group]) -> Result<()> {
    let signals = sys::block_termination()?;
    for group in groups.iter().cloned() {
        let echo = listener(group.port + ECHO)?;
        let sink = listener(group.port + SINK)?;
        let datagrams = udp_socket(group.port + DATAGRAMS).context("UDP")?;
        // A stalled receiver must not decide what the path can carry.
        setsockopt(&datagrams.as_fd(), RcvBufForce, &(8 << 20)).context("enlarge the receive buffer")?;
        let count = listener(group.port + COUNT)?;
        let received = Arc::new(AtomicU64::new(0));
        // Threads started by a pinned thread are pinned as well.
        let pinned = thread::spawn(move || -> io::Result<()> {
            if let Some(cpu) = group.cpu {
                sys::pin(cpu)?;
            }
            let counter = Arc::clone(&received);
            thread::spawn(move || serve_echo(&echo));
            thread::spawn(move || serve_sink(&sink));
            thread::spawn(move || serve_datagrams(&datagrams, &counter));
            thread::spawn(move || serve_count(&count, &received));
            Ok(())
        });
        pinned
            .join()
            .expect("the thread does not panic")
            .with_context(|| format!("pin {:?}", group.cpu))?;
    }
    println!("ready");
    sys::await_termination(&signals)?;
    Ok(())
}

fn listener(port: u16) -> Result<TcpListener> {
    let listener = tcp_listener(port).with_context(|| format!("listen on port {port}"))?;
    setsockopt(&listener, TcpCongestion, &"cubic".into()).context("cubic")?;
    setsockopt(&listener, TcpNoDelay, &true)?;
    Ok(listener)
}

/// One thread for all connections: a thread for each would be what connect/close measures.
fn serve_echo(listener: &TcpListener) -> Result<()> {
    let mut streams: Vec<TcpStream> = Vec::new();
    let mut buffer = vec![0; 65536];
    loop {
        let mut ready: Vec<PollFd<'_>> = [listener.as_fd()]
            .into_iter()
            .chain(streams.iter().map(AsFd::as_fd))
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        match poll(&mut ready, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            other => other?,
        };
        let ready: Vec<bool> = ready.iter().map(|fd| fd.any().unwrap_or(true)).collect();
        let mut index = 0;
        streams.retain_mut(|stream| {
            index += 1;
            !ready[index] || echo(stream, &mut buffer)
        });
        if ready[0]
            && let Ok((stream, _)) = listener.accept()
        {
            streams.push(stream);
        }
    }
}

/// Sends back what is there; whether the connection goes on.
fn echo(stream: &mut TcpStream, buffer: &mut [u8]) -> bool {
    matches!(stream.read(buffer), Ok(length) if length > 0 && stream.write_all(&buffer[..length]).is_ok())
}

fn serve_sink(listener: &TcpListener) {
    while let Ok((mut stream, _)) = listener.accept() {
        thread::spawn(move || {
            let mut buffer = vec![0; 256 << 10];
            while stream.read(&mut buffer).is_ok_and(|length| length > 0) {}
        });
    }
}

/// Sleeps only between loads. A receiver that keeps up with its sender would sleep after every datagram, the sender would
/// pay for waking it, and the slower path, whose receiver never quite sleeps, would look like the faster one.
fn serve_datagrams(socket: &UdpSocket, received: &AtomicU64) {
    /// A load that pauses for so long is over.
    const OVER: Duration = Duration::from_millis(5);
    let mut receiver = sys::Receiver::new();
    loop {
        if let Ok(count) = receiver.receive(socket) {
            received.fetch_add(count as u64, Ordering::Relaxed);
        }
        let mut last = Instant::now();
        while last.elapsed() < OVER {
            match receiver.poll(socket) {
                Ok(count) if count > 0 => {
                    received.fetch_add(count as u64, Ordering::Relaxed);
                    last = Instant::now();
                }
                _ => hint::spin_loop(),
            }
        }
    }
}

fn serve_count(listener: &TcpListener, received: &AtomicU64) {
    while let Ok((mut stream, _)) = listener.accept() {
        let _ = writeln!(stream, "{}", received.load(Ordering::Relaxed));
    }
}

/// A socket for both families; for IPv4 alone where the kernel has no IPv6.
fn tcp_listener(port: u16) -> io::Result<TcpListener> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let Ok(fd) = socket(AddressFamily::Inet6, SockType::Stream, flags, None) else {
        return TcpListener::bind((Ipv4Addr::UNSPECIFIED, port));
    };
    setsockopt(&fd, Ipv6V6Only, &false)?;
    setsockopt(&fd, ReuseAddr, &true)?;
    bind(fd.as_raw_fd(), &any_address(port))?;
    listen(&fd, Backlog::new(4096)?)?;
    Ok(TcpListener::from(fd))
}

/// The same for UDP.
fn udp_socket(port: u16) -> io::Result<UdpSocket> {
    let Ok(fd) = socket(
        AddressFamily::Inet6,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    ) else {
        return UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port));
    };
    setsockopt(&fd, Ipv6V6Only, &false)?;
    bind(fd.as_raw_fd(), &any_address(port))?;
    Ok(UdpSocket::from(fd))
}

fn any_address(port: u16) -> SockaddrIn6 {
    SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0).into()
}
