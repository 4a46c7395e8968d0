//! The door to rtnetlink: blocking sockets that take many requests in one message.
//!
//! An attachment must cost well under a millisecond, so its requests go out as one batch and are answered as one. The
//! `rtnetlink` crate sends one request per call and binds its sockets to a runtime; it serves where that does no harm
//! (see `events`). A kernel socket serves one dump at a time, so every use of a [`Netlink`] holds its lock until the
//! last answer is in.

use std::{fmt, io, sync::Mutex, sync::PoisonError};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};

pub mod address;
pub mod events;
pub mod link;
pub mod overlay;
pub mod pod;
pub mod route;
pub mod tc;
pub mod veth;

/// The kernel fills at most this much in one go of a dump.
const RECEIVE_BYTES: usize = 64 * 1024;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_HEADER_BYTES: usize = 16;
/// Set in a reply whose extended acknowledgement follows the header of the request.
const NLM_F_ACK_TLVS: u16 = 0x200;
/// Set in a reply that repeats only the header of the request.
const NLM_F_CAPPED: u16 = 0x100;
/// A dump was disturbed by a change and may have missed entries.
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// What a netlink request was about, for the error text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    verb: &'static str,
    object: String,
}

impl Operation {
    /// An operation such as `create link` on an object such as `eth0`.
    pub fn new(verb: &'static str, object: impl fmt::Display) -> Self {
        Self {
            verb,
            object: object.to_string(),
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { verb, object } = self;
        if object.is_empty() {
            f.write_str(verb)
        } else {
            write!(f, "{verb} {object}")
        }
    }
}

/// Why the kernel did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel refused the request.
    #[error("kernel refused to {operation}{}", explain(.detail.as_deref()))]
    Refused {
        /// What was asked.
        operation: Operation,
        /// The kernel's own words, where it has any.
        detail: Option<String>,
        /// Its error number.
        source: io::Error,
    },
    /// The socket could not be opened or used.
    #[error("netlink socket failed to {0}")]
    Socket(&'static str, #[source] io::Error),
    /// The answer makes no sense.
    #[error("answer to {operation} is malformed: {reason}")]
    Malformed {
        /// What was asked.
        operation: Operation,
        /// What is wrong with it.
        reason: String,
    },
}

fn explain(detail: Option<&str>) -> String {
    detail.map(|text| format!(" ({text})")).unwrap_or_default()
}

impl NetlinkError {
    /// The kernel's error number, if it gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } => source.raw_os_error(),
            Self::Socket(..) | Self::Malformed { .. } => None,
        }
    }

    /// Whether the thing that was named does not exist.
    pub fn is_absent(&self) -> bool {
        matches!(
            self.errno(),
            Some(libc::ENODEV | libc::ENOENT | libc::ESRCH | libc::EADDRNOTAVAIL)
        )
    }

    /// Whether the thing to be made is there already.
    pub fn is_existing(&self) -> bool {
        self.errno() == Some(libc::EEXIST)
    }
}

/// Takes "it was absent" as done.
pub fn absent_is_fine(result: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    match result {
        Err(error) if error.is_absent() => Ok(()),
        other => other,
    }
}

/// One request of a batch.
#[derive(Debug, Clone)]
pub struct Request {
    operation: Operation,
    flags: u16,
    message: RouteNetlinkMessage,
    may_fail: bool,
}

impl Request {
    /// A request with flags besides those that every request has.
    pub fn new(operation: Operation, flags: u16, message: RouteNetlinkMessage) -> Self {
        Self {
            operation,
            flags,
            message,
            may_fail: false,
        }
    }
}

impl Request {
    /// The same request, whose failure is no failure of the batch.
    #[must_use]
    pub fn may_fail(mut self) -> Self {
        self.may_fail = true;
        self
    }
}

/// A blocking rtnetlink socket, bound to the netns in which it was opened.
pub struct Netlink {
    inner: Mutex<Inner>,
}

struct Inner {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens a socket in the netns of the calling thread.
    pub fn open() -> Result<Self, NetlinkError> {
        let socket = Socket::new(NETLINK_ROUTE).map_err(|error| NetlinkError::Socket("open", error))?;
        // Both only improve error texts and save bytes; a kernel without them is served as well.
        let _ = socket.set_ext_ack(true);
        let _ = socket.set_cap_ack(true);
        Ok(Self {
            inner: Mutex::new(Inner {
                socket,
                sequence: 0,
                buffer: Vec::with_capacity(RECEIVE_BYTES),
            }),
        })
    }

    /// Sends all requests in one message and waits for every answer.
    ///
    /// The kernel goes on after a request that failed; the first failure is reported. Objects that were asked for (by
    /// get requests in the batch) come back in order.
    pub fn batch(&self, requests: &[Request]) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        self.inner
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .batch(requests)
    }

    /// Sends one request that has no answer but its acknowledgement.
    pub fn request(&self, request: Request) -> Result<(), NetlinkError> {
        self.batch(&[request]).map(drop)
    }

    /// Asks for one object.
    pub fn get(&self, request: Request) -> Result<RouteNetlinkMessage, NetlinkError> {
        let operation = request.operation.clone();
        self.batch(&[request])?
            .into_iter()
            .next()
            .ok_or_else(|| NetlinkError::Malformed {
                operation,
                reason: "it is empty".to_owned(),
            })
    }

    /// Asks for all objects of a kind.
    pub fn dump(&self, request: &Request) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        /// A table that changes under the dump is dumped again, and as it is after the last attempt.
        const ATTEMPTS: usize = 5;
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut answer = Vec::new();
        for _ in 0..ATTEMPTS {
            let complete;
            (answer, complete) = inner.dump(request)?;
            if complete {
                break;
            }
        }
        Ok(answer)
    }
}

impl Inner {
    fn send(&mut self, requests: &[Request], extra_flags: u16) -> Result<u32, NetlinkError> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        for request in requests {
            self.sequence = self.sequence.wrapping_add(1);
            let mut header = NetlinkHeader::default();
            header.flags = NLM_F_REQUEST | extra_flags | request.flags;
            header.sequence_number = self.sequence;
            let mut message =
                NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request.message.clone()));
            message.finalize();
            let start = bytes.len();
            bytes.resize(start + align(message.buffer_len()), 0);
            message.serialize(&mut bytes[start..]);
        }
        self.socket
            .send(&bytes, 0)
            .map_err(|error| NetlinkError::Socket("send", error))?;
        Ok(first)
    }

    fn batch(&mut self, requests: &[Request]) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        if requests.is_empty() {
            return Ok(Vec::new());
        }
        let first = self.send(requests, NLM_F_ACK)?;
        let mut outstanding = requests.len();
        let mut failure = None;
        let mut answers = Vec::new();
        while outstanding > 0 {
            self.receive()?;
            for frame in Frames(&self.buffer) {
                let position = frame.sequence.wrapping_sub(first) as usize;
                let Some(request) = requests.get(position) else {
                    continue;
                };
                if frame.kind == NLMSG_ERROR {
                    outstanding -= 1;
                    let refusal = refusal(request, &frame).filter(|_| !request.may_fail);
                    failure = failure.or(refusal);
                } else {
                    answers.push(decode(request, &frame)?);
                }
            }
        }
        failure.map_or(Ok(answers), Err)
    }

    fn dump(&mut self, request: &Request) -> Result<(Vec<RouteNetlinkMessage>, bool), NetlinkError> {
        let sequence = self.send(std::slice::from_ref(request), NLM_F_DUMP)?;
        let mut answers = Vec::new();
        let mut complete = true;
        loop {
            self.receive()?;
            for frame in Frames(&self.buffer).filter(|frame| frame.sequence == sequence) {
                complete &= frame.flags & NLM_F_DUMP_INTR == 0;
                match frame.kind {
                    NLMSG_DONE => return Ok((answers, complete)),
                    NLMSG_ERROR => return refusal(request, &frame).map_or(Ok((answers, complete)), Err),
                    // An object that the decoder does not know is none of ours.
                    _ => answers.extend(decode(request, &frame).ok()),
                }
            }
        }
    }

    fn receive(&mut self) -> Result<(), NetlinkError> {
        loop {
            self.buffer.clear();
            // `Vec` as a buffer grows by what is missing; its spare capacity is what one call may fill.
            self.buffer.reserve(RECEIVE_BYTES);
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(NetlinkError::Socket("receive", error)),
            }
        }
    }
}

fn decode(request: &Request, frame: &Frame<'_>) -> Result<RouteNetlinkMessage, NetlinkError> {
    let malformed = |reason: String| NetlinkError::Malformed {
        operation: request.operation.clone(),
        reason,
    };
    match NetlinkMessage::<RouteNetlinkMessage>::deserialize(frame.bytes) {
        Ok(NetlinkMessage {
            payload: NetlinkPayload::InnerMessage(message),
            ..
        }) => Ok(message),
        Ok(_) => Err(malformed(format!("message of type {}", frame.kind))),
        Err(error) => Err(malformed(error.to_string())),
    }
}

/// The error in an acknowledgement; none if it is a success.
fn refusal(request: &Request, frame: &Frame<'_>) -> Option<NetlinkError> {
    let code = i32::from_ne_bytes(*frame.payload.first_chunk()?);
    (code != 0).then(|| NetlinkError::Refused {
        operation: request.operation.clone(),
        detail: extended_acknowledgement(frame),
        source: io::Error::from_raw_os_error(code.wrapping_neg()),
    })
}

fn extended_acknowledgement(frame: &Frame<'_>) -> Option<String> {
    if frame.flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    let request = frame.payload.get(4..)?;
    let length = if frame.flags & NLM_F_CAPPED == 0 {
        u32::from_ne_bytes(*request.first_chunk()?) as usize
    } else {
        NLMSG_HEADER_BYTES
    };
    let mut rest = request.get(align(length)..)?;
    while let Some((size, kind)) = attribute_header(rest) {
        let value = rest.get(4..size)?;
        if kind == NLMSGERR_ATTR_MSG {
            let text = value.strip_suffix(&[0]).unwrap_or(value);
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        rest = rest.get(align(size)..)?;
    }
    None
}

fn attribute_header(bytes: &[u8]) -> Option<(usize, u16)> {
    let [a, b, c, d] = *bytes.first_chunk()?;
    let size = usize::from(u16::from_ne_bytes([a, b]));
    (size >= 4).then_some((size, u16::from_ne_bytes([c, d])))
}

/// One message within a received datagram.
struct Frame<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
    bytes: &'a [u8],
}

/// The messages of a datagram.
struct Frames<'a>(&'a [u8]);

impl<'a> Iterator for Frames<'a> {
    type Item = Frame<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let header: &[u8; NLMSG_HEADER_BYTES] = self.0.first_chunk()?;
        let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, ..] = *header;
        let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
        let bytes = self.0.get(..length)?;
        let payload = bytes.get(NLMSG_HEADER_BYTES..)?;
        self.0 = self.0.get(align(length)..).unwrap_or_default();
        Some(Frame {
            kind: u16::from_ne_bytes([k0, k1]),
            flags: u16::from_ne_bytes([f0, f1]),
            sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
            payload,
            bytes,
        })
    }
}

const fn align(length: usize) -> usize {
    (length + 3) & !3
}
