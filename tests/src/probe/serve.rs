//! The server: TCP and UDP on one port, both families. It greets, then echoes.

use std::io::{Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;
use std::{io, thread};

use super::{Greeting, plain, widen};

/// First byte of a datagram that is returned as it came and not answered by a greeting.
pub const ECHO: u8 = b'E';

/// A client that says nothing for this long is dropped.
const IDLE: Duration = Duration::from_mins(10);

/// Serves for ever on `port`, under `name`.
///
/// # Errors
/// If the port is taken.
pub fn serve(port: u16, name: &str) -> io::Result<()> {
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    // Without IPv6 in the kernel, IPv4 alone.
    let any_v4 = SocketAddr::from(([0, 0, 0, 0], port));
    let listener = TcpListener::bind(any).or_else(|_| TcpListener::bind(any_v4))?;
    let socket = UdpSocket::bind(any).or_else(|_| UdpSocket::bind(any_v4))?;
    widen(&socket);
    let udp_name = name.to_owned();
    thread::spawn(move || serve_udp(&socket, &udp_name));
    for stream in listener.incoming().flatten() {
        let name = name.to_owned();
        thread::spawn(move || serve_tcp(stream, &name));
    }
    Ok(())
}

fn serve_tcp(mut stream: TcpStream, name: &str) -> io::Result<()> {
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_nodelay(true)?;
    stream.write_all(&greeting(name, stream.peer_addr()?, 0))?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let got = stream.read(&mut buffer)?;
        if got == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..got])?;
    }
}

fn serve_udp(socket: &UdpSocket, name: &str) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        // An ICMP error about an earlier answer is no reason to stop.
        let Ok((got, peer)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let answer = if buffer.first() == Some(&ECHO) && got > 0 {
            buffer[..got].to_vec()
        } else {
            greeting(name, peer, got)
        };
        let _ = socket.send_to(&answer, peer);
    }
}

fn greeting(name: &str, peer: SocketAddr, bytes: usize) -> Vec<u8> {
    let greeting = Greeting {
        name: name.to_owned(),
        peer: plain(peer.ip()),
        bytes,
    };
    let mut line = serde_json::to_vec(&greeting).unwrap_or_default();
    line.push(b'\n');
    line
}
