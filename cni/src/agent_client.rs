//! The plugin's side of the protocol: one connection, one request, one answer, one deadline.

use std::{
    io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use crate::protocol::{FrameError, Request, Response, read_frame, write_frame};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens, or may be talked to.
    #[error("cannot connect to {}", socket.display())]
    Connect {
        /// The agent's socket.
        socket: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The agent went away, or sent no frame of this protocol.
    #[error("no answer from {}", socket.display())]
    Exchange {
        /// The agent's socket.
        socket: PathBuf,
        /// Why.
        #[source]
        source: FrameError,
    },
    /// The agent did not answer in time.
    #[error("no answer from {} within {waited:?}", socket.display())]
    Timeout {
        /// The agent's socket.
        socket: PathBuf,
        /// How long was waited.
        waited: Duration,
    },
}

/// Sends `request` and waits for the answer until `deadline`.
pub fn call(socket: &Path, mut request: Request, deadline: Instant) -> Result<Response, ClientError> {
    let started = Instant::now();
    let left = deadline.saturating_duration_since(started);
    request.timeout_ms = Some(u64::try_from(left.as_millis()).unwrap_or(u64::MAX));
    let (sender, receiver) = mpsc::sync_channel(1);
    let path = socket.to_owned();
    // On a thread of its own: connecting blocks without limit while the backlog of a stopped agent is full. When time is
    // up the thread is left to the end of the process, which is near.
    thread::spawn(move || {
        let _ = sender.send(exchange(&path, &request));
    });
    receiver.recv_timeout(left).unwrap_or_else(|_| {
        Err(ClientError::Timeout {
            socket: socket.to_owned(),
            waited: started.elapsed(),
        })
    })
}

fn exchange(socket: &Path, request: &Request) -> Result<Response, ClientError> {
    let stream = UnixStream::connect(socket).map_err(|source| ClientError::Connect {
        socket: socket.to_owned(),
        source,
    })?;
    write_frame(&stream, request)
        .and_then(|()| read_frame(&stream))
        .map_err(|source| ClientError::Exchange {
            socket: socket.to_owned(),
            source,
        })
}
