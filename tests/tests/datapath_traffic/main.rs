//! Real traffic over the programs: two nodes on a bridge, pods behind them, no agent.
//!
//! What is proven here is the datapath's part of the network promise: every pod and node reaches every other, both
//! families, both ways of tunnelling, at sizes from one byte to aggregates beyond 64 KB. Needs root.

mod network;

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use network::{DEVICE, Network, PROGRAM, Pod, Setup, Underlay, in_namespaces, inside, node_addresses};
use nix::sys::{
    socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect, recvfrom,
        send, setsockopt, socket, sockopt,
    },
    time::{TimeVal, TimeValLike},
};
use weft_agent::datapath::maps::EncapMode;
use weft_ebpf_common::Reason;

/// Any port: a fixed one may still be held by a child of another test's thread, between its fork and its exec.
const ANY_PORT: u16 = 0;
const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes that differ everywhere, so that a misplaced one shows.
fn pattern(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    })
    .take(length)
    .collect()
}

/// Sends `length` bytes over TCP both ways at once; returns the source address the server saw.
fn tcp(client: &str, server: &str, address: IpAddr, length: usize) -> IpAddr {
    let listener = inside(server, move || {
        TcpListener::bind((address, ANY_PORT)).expect("listen")
    })
    .join()
    .expect("server");
    let target = listener.local_addr().expect("address");
    let serving = std::thread::spawn(move || {
        let (mut stream, from) = listener.accept().expect("accept");
        let mut received = vec![0; length];
        stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
        stream.read_exact(&mut received).expect("server reads");
        assert!(
            received == pattern(length),
            "what the server read is not what was sent"
        );
        stream.write_all(&received).expect("server writes");
        from.ip()
    });
    let asking = inside(client, move || {
        let mut stream = TcpStream::connect_timeout(&target, PATIENCE).expect("connect");
        stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
        stream.write_all(&pattern(length)).expect("client writes");
        let mut answer = vec![0; length];
        stream.read_exact(&mut answer).expect("client reads");
        assert!(answer == pattern(length), "what came back is not what was sent");
    });
    asking.join().expect("client");
    serving.join().expect("server")
}

/// Sends a datagram until it is echoed whole; returns the source address the server saw and how many times it took.
fn udp(client: &str, server: &str, address: IpAddr, length: usize) -> (IpAddr, u32) {
    let socket = inside(server, move || {
        UdpSocket::bind((address, ANY_PORT)).expect("bind")
    })
    .join()
    .expect("server");
    let target = socket.local_addr().expect("address");
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let serving = std::thread::spawn(move || {
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .expect("timeout");
        let mut buffer = vec![0; 65_536];
        let mut seen = None;
        while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            if let Ok((n, from)) = socket.recv_from(&mut buffer) {
                seen = Some(from.ip());
                // The first answers may be too big for the way back; that too must be learnt.
                let _ = socket.send_to(&buffer[..n], from);
            }
        }
        seen
    });
    let asking = inside(client, move || {
        let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).expect("bind");
        socket.connect(target).expect("connect");
        // Attempts are counted, so none may end early because the machine is busy.
        socket
            .set_read_timeout(Some(Duration::from_secs(2)))
            .expect("timeout");
        let sent = pattern(length);
        let mut buffer = vec![0; 65_536];
        let start = Instant::now();
        for attempt in 1.. {
            assert!(
                start.elapsed() < PATIENCE,
                "{length} bytes to {address} are not answered"
            );
            // Fails once when the path's MTU has just been learnt.
            if socket.send(&sent).is_ok() && socket.recv(&mut buffer).is_ok_and(|n| buffer[..n] == sent[..]) {
                return attempt;
            }
        }
        0
    });
    let attempts = asking.join().expect("client");
    drop(stop);
    (
        serving.join().expect("server").expect("the server heard"),
        attempts,
    )
}

/// A raw socket for SCTP: the datapath is not told what it carries, so whether the kernel has that protocol does not matter.
fn sctp_socket(address: IpAddr) -> OwnedFd {
    let family = if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(family, SockType::Raw, flags, SockProtocol::Sctp).expect("raw socket");
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(10)).expect("timeout");
    socket
}

/// Sends an SCTP packet of `length` bytes; returns the source address the server saw.
fn sctp(client: &str, server: &str, address: IpAddr, length: usize) -> IpAddr {
    let any_port = SockaddrStorage::from(SocketAddr::new(address, 0));
    let receiver = inside(server, move || {
        let socket = sctp_socket(address);
        bind(socket.as_raw_fd(), &any_port).expect("bind");
        socket
    })
    .join()
    .expect("server");
    inside(client, move || {
        let socket = sctp_socket(address);
        connect(socket.as_raw_fd(), &any_port).expect("connect");
        let sent = send(socket.as_raw_fd(), &pattern(length), MsgFlags::empty());
        assert_eq!(sent, Ok(length));
    })
    .join()
    .expect("client");
    let mut buffer = vec![0; length + 20];
    let (read, from) = recvfrom::<SockaddrStorage>(receiver.as_raw_fd(), &mut buffer)
        .unwrap_or_else(|e| panic!("{length} bytes of SCTP from {client} to {address}: {e}"));
    // An IPv4 raw socket shows the header, too.
    let header = if address.is_ipv4() { 20 } else { 0 };
    assert!(
        buffer[header..read] == pattern(length),
        "what came is not what was sent"
    );
    let from = from.expect("a source address");
    match (from.as_sockaddr_in(), from.as_sockaddr_in6()) {
        (Some(v4), _) => v4.ip().into(),
        (_, Some(v6)) => v6.ip().into(),
        _ => panic!("{from:?} is no IP address"),
    }
}

/// Every way through the datapath: (client's namespace, server's namespace, its addresses, the client's addresses).
fn ways() -> Vec<(String, String, [IpAddr; 2], [IpAddr; 2])> {
    let (a, b, remote) = (Pod(1, 'a'), Pod(1, 'b'), Pod(2, 'a'));
    let pods = [(a, b), (a, remote), (remote, a)];
    let mut ways: Vec<_> = pods
        .iter()
        .map(|(c, s)| (c.netns(), s.netns(), s.addresses(), c.addresses()))
        .collect();
    for node in [1, 2] {
        for pod in [a, remote] {
            ways.push((
                pod.netns(),
                format!("n{node}"),
                node_addresses(node),
                pod.addresses(),
            ));
            ways.push((
                format!("n{node}"),
                pod.netns(),
                pod.addresses(),
                node_addresses(node),
            ));
        }
    }
    ways
}

fn everyone_reaches_everyone(setup: Setup) {
    in_namespaces(move || {
        let network = Network::new(setup);
        for (client, server, addresses, sources) in ways() {
            for (address, source) in addresses.into_iter().zip(sources) {
                assert_eq!(
                    tcp(&client, &server, address, 1_000_000),
                    source,
                    "{client} to {address}"
                );
                for length in [1, 1000, 1400, 20_000] {
                    let (seen, attempts) = udp(&client, &server, address, length);
                    assert_eq!(seen, source, "{client} to {address}");
                    assert!(
                        attempts <= 3,
                        "{length} bytes from {client} to {address} took {attempts} attempts"
                    );
                }
            }
        }
        for (client, server) in [("p1a", Pod(1, 'b')), ("p1a", Pod(2, 'a'))] {
            for (address, source) in server.addresses().into_iter().zip(Pod(1, 'a').addresses()) {
                // The longer one in fragments.
                for length in [100, 5000] {
                    assert_eq!(sctp(client, &server.netns(), address, length), source);
                }
            }
        }
        assert_eq!(network.drops(), vec![]);
        assert!(network.counted(1, Reason::LocalDelivery) > 0);
        let (out, inn) = (
            network.counted(1, Reason::Encapsulated),
            network.counted(2, Reason::Decapsulated),
        );
        assert_eq!(
            out > 0,
            setup.encap == EncapMode::Program,
            "{out} encapsulated by the program"
        );
        assert_eq!(
            inn > 0,
            setup.decap == EncapMode::Program,
            "{inn} decapsulated by the program"
        );
        assert!(
            network.counted(1, Reason::DeviceEncapsulated) > 0,
            "the node's own traffic takes the device"
        );
    });
}

#[test]
fn everyone_reaches_everyone_by_the_program() {
    everyone_reaches_everyone(PROGRAM);
}

#[test]
fn everyone_reaches_everyone_by_the_device() {
    everyone_reaches_everyone(DEVICE);
}

#[test]
fn everyone_reaches_everyone_by_the_device_out_and_the_program_in() {
    everyone_reaches_everyone(Setup {
        decap: EncapMode::Program,
        ..DEVICE
    });
}

#[test]
fn everyone_reaches_everyone_by_the_program_out_and_the_device_in() {
    everyone_reaches_everyone(Setup {
        decap: EncapMode::Device,
        ..PROGRAM
    });
}

#[test]
fn everyone_reaches_everyone_over_ipv6_by_the_program() {
    everyone_reaches_everyone(Setup {
        underlay: Underlay::V6,
        ..PROGRAM
    });
}

#[test]
fn everyone_reaches_everyone_over_ipv6_by_the_device() {
    everyone_reaches_everyone(Setup {
        underlay: Underlay::V6,
        ..DEVICE
    });
}

#[test]
fn aggregates_beyond_64_kilobytes_pass() {
    aggregates_pass(PROGRAM);
}

#[test]
fn aggregates_beyond_64_kilobytes_pass_to_a_node_whose_device_unwraps() {
    aggregates_pass(Setup {
        decap: EncapMode::Device,
        ..PROGRAM
    });
}

fn aggregates_pass(setup: Setup) {
    in_namespaces(move || {
        let network = Network::new(Setup {
            big_tcp: Some(185_000),
            ..setup
        });
        for (client, server, addresses, sources) in ways() {
            for (address, source) in addresses.into_iter().zip(sources) {
                assert_eq!(
                    tcp(&client, &server, address, 20_000_000),
                    source,
                    "{client} to {address}"
                );
            }
        }
        // By the program even where the device is to unwrap: longer ones than that can take have come, then.
        assert!(network.counted(2, Reason::Decapsulated) > 0);
        assert_eq!(network.drops(), vec![]);
    });
}

#[test]
fn a_packet_too_big_for_the_tunnel_is_answered_as_such() {
    for setup in [PROGRAM, DEVICE] {
        in_namespaces(move || {
            // The pods' own device would let 1500 bytes pass, so only an answer from the way can teach them.
            let network = Network::new(Setup {
                route_mtu: false,
                ..setup
            });
            for (address, header) in Pod(2, 'a').addresses().into_iter().zip([28, 48]) {
                let (_, attempts) = udp("p1a", "p2a", address, 1500 - header);
                assert!(attempts > 1, "it cannot have fitted");
                tcp("p1a", "p2a", address, 1_000_000);
            }
            assert!(network.counted(1, Reason::TooBig) > 0);
            assert_eq!(network.drops(), vec![]);
        });
    }
}

#[test]
fn no_packet_is_lost_while_programs_are_replaced() {
    /// One a millisecond.
    const PROBES: u32 = 3000;
    in_namespaces(|| {
        let mut network = Network::new(PROGRAM);
        let address = Pod(2, 'a').addresses()[0];
        let server = inside("p2a", move || UdpSocket::bind((address, ANY_PORT)).expect("bind"))
            .join()
            .expect("server");
        // A busy machine may let the server wait; that is not what is tested.
        setsockopt(&server, sockopt::RcvBufForce, &(8 << 20)).expect("buffer");
        server
            .set_read_timeout(Some(Duration::from_secs(2)))
            .expect("timeout");
        let client = inside("p1a", || UdpSocket::bind("0.0.0.0:0").expect("bind"))
            .join()
            .expect("client");
        client
            .connect(server.local_addr().expect("address"))
            .expect("connect");
        let heard = std::thread::spawn(move || {
            let mut heard = std::collections::BTreeSet::new();
            let mut probe = [0; 4];
            while heard.len() < PROBES as usize && server.recv(&mut probe).is_ok() {
                heard.insert(u32::from_ne_bytes(probe));
            }
            heard
        });
        let sending = std::thread::spawn(move || {
            for probe in 0..PROBES {
                client.send(&probe.to_ne_bytes()).expect("send");
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let mut replaced = 0;
        while !sending.is_finished() {
            network.replace_programs(1);
            network.replace_programs(2);
            replaced += 1;
        }
        sending.join().expect("sender");
        let heard = heard.join().expect("server");
        let lost: Vec<u32> = (0..PROBES).filter(|probe| !heard.contains(probe)).collect();
        assert!(
            lost.is_empty(),
            "{} probes were lost over {replaced} replacements: {lost:?}",
            lost.len()
        );
        assert!(replaced > 1, "programs were replaced only {replaced} times");
        assert_eq!(network.drops(), vec![]);
    });
}
