//! What the plugin and the agent say to each other.
//!
//! One request per connection on a Unix stream socket. A frame is a 4-byte big-endian length and that many bytes of
//! JSON; the plugin sends one [`Request`] and reads one [`Response`]. The agent answers with data; the plugin gives it
//! the shape of the configuration's CNI version.

use std::{
    io::{self, Read, Write},
    path::PathBuf,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub use crate::{
    error::{CniError, ErrorCode},
    result::{AddResult, Cidr, CidrError, Dns, Interface, IpConfig, Route},
};

/// The version of this protocol. The agent answers any other with [`ErrorCode::ProtocolMismatch`].
pub const PROTOCOL_VERSION: u32 = 1;

/// The longest frame either side takes. GC of 1,000 attachments is about 0.1 MiB.
pub const MAX_FRAME_BYTES: usize = 1 << 20;

/// Where the agent listens unless told otherwise.
pub const DEFAULT_AGENT_SOCKET: &str = "/run/weft/agent.sock";

/// The CNI `type` of the plugin, which is also the name of its file.
pub const PLUGIN_TYPE: &str = "weft-cni";

/// What is asked of the agent. VERSION is answered by the plugin alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verb {
    /// Attach a container.
    Add,
    /// Detach it. Repeats safely, and needs no netns.
    Del,
    /// Compare the kernel with the result of ADD.
    Check,
    /// Detach all that is not in the list of valid attachments.
    Gc,
    /// Say whether ADD would be served.
    Status,
}

/// The key of one attachment.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Attachment {
    /// The runtime's name for the container.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// The interface inside it.
    pub ifname: String,
}

/// The pod that a container belongs to, from `CNI_ARGS`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodArgs {
    /// `K8S_POD_NAMESPACE`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// `K8S_POD_NAME`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `K8S_POD_UID`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// `K8S_POD_INFRA_CONTAINER_ID`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub infra_container_id: Option<String>,
}

/// One request. The plugin has validated the environment and the configuration; the agent trusts neither.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// [`PROTOCOL_VERSION`] of the sender.
    pub version: u32,
    /// What is asked.
    pub verb: Verb,
    /// The container; empty for GC and STATUS.
    #[serde(default)]
    pub container_id: String,
    /// The interface to make in it; empty for GC and STATUS.
    #[serde(default)]
    pub ifname: String,
    /// The path of the container's netns. Always there for ADD and CHECK, maybe for DEL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<PathBuf>,
    /// The pod, when the runtime said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodArgs>,
    /// The network configuration as it came, `prevResult` and the list of valid attachments excepted.
    #[serde(default)]
    pub config: serde_json::Value,
    /// `prevResult`: what CHECK compares with; on ADD what earlier plugins of the chain made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prev_result: Option<AddResult>,
    /// What GC must keep. Always there for GC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_attachments: Option<Vec<Attachment>>,
    /// How long the plugin will wait for the answer. ADD that takes longer is undone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

impl Request {
    /// A request with nothing but its verb and attachment.
    pub fn new(verb: Verb, container_id: impl Into<String>, ifname: impl Into<String>) -> Self {
        Self {
            version: PROTOCOL_VERSION,
            verb,
            container_id: container_id.into(),
            ifname: ifname.into(),
            netns: None,
            pod: None,
            config: serde_json::Value::Null,
            prev_result: None,
            valid_attachments: None,
            timeout_ms: None,
        }
    }

    /// The attachment that is meant.
    pub fn attachment(&self) -> Attachment {
        Attachment {
            container_id: self.container_id.clone(),
            ifname: self.ifname.clone(),
        }
    }
}

/// The answer: `{"ok": …}` with the result for ADD and null for the others, or `{"err": …}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Response {
    /// Done.
    Ok(Option<AddResult>),
    /// Not done, and nothing was changed.
    Err(CniError),
}

impl From<Result<Option<AddResult>, CniError>> for Response {
    fn from(outcome: Result<Option<AddResult>, CniError>) -> Self {
        outcome.map_or_else(Self::Err, Self::Ok)
    }
}

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The frame is longer than [`MAX_FRAME_BYTES`].
    #[error("a frame of {0} bytes is above the limit of {MAX_FRAME_BYTES}")]
    TooLong(usize),
    /// The bytes are not the JSON that was expected.
    #[error("malformed frame")]
    Malformed(#[source] serde_json::Error),
    /// The socket failed, or was closed within a frame.
    #[error("socket failed")]
    Io(#[from] io::Error),
}

/// The frame of `message`, length first.
pub fn encode_frame<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message).map_err(FrameError::Malformed)?;
    let length = frame.len() - 4;
    if length > MAX_FRAME_BYTES {
        return Err(FrameError::TooLong(length));
    }
    frame[..4].copy_from_slice(&(length as u32).to_be_bytes());
    Ok(frame)
}

/// The number of bytes that follow a frame's first four.
pub fn frame_length(header: [u8; 4]) -> Result<usize, FrameError> {
    let length = u32::from_be_bytes(header) as usize;
    if length > MAX_FRAME_BYTES {
        return Err(FrameError::TooLong(length));
    }
    Ok(length)
}

/// The message in the bytes behind a frame's length.
pub fn decode_frame<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    serde_json::from_slice(body).map_err(FrameError::Malformed)
}

/// Writes one frame, blocking.
pub fn write_frame<T: Serialize>(mut writer: impl Write, message: &T) -> Result<(), FrameError> {
    writer.write_all(&encode_frame(message)?)?;
    writer.flush()?;
    Ok(())
}

/// Reads one frame, blocking.
pub fn read_frame<T: DeserializeOwned>(mut reader: impl Read) -> Result<T, FrameError> {
    let mut header = [0; 4];
    reader.read_exact(&mut header)?;
    let mut body = vec![0; frame_length(header)?];
    reader.read_exact(&mut body)?;
    decode_frame(&body)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn request_travels_as_documented() {
        let mut request = Request::new(Verb::Add, "c1", "eth0");
        request.netns = Some("/run/netns/a".into());
        request.timeout_ms = Some(500);
        let frame = encode_frame(&request).unwrap();
        assert_eq!(
            frame_length(frame[..4].try_into().unwrap()).unwrap(),
            frame.len() - 4
        );
        assert_eq!(
            std::str::from_utf8(&frame[4..]).unwrap(),
            r#"{"version":1,"verb":"ADD","container_id":"c1","ifname":"eth0","netns":"/run/netns/a","config":null,"timeout_ms":500}"#
        );
        assert_eq!(read_frame::<Request>(frame.as_slice()).unwrap(), request);
    }

    #[test]
    fn response_is_ok_or_err() {
        let ok = Response::Ok(None);
        assert_eq!(serde_json::to_string(&ok).unwrap(), r#"{"ok":null}"#);
        let err = Response::Err(CniError::new(ErrorCode::Unavailable, "no"));
        assert_eq!(
            serde_json::to_string(&err).unwrap(),
            r#"{"err":{"code":50,"msg":"no"}}"#
        );
        for response in [ok, err] {
            let frame = encode_frame(&response).unwrap();
            assert_eq!(read_frame::<Response>(frame.as_slice()).unwrap(), response);
        }
    }

    #[test]
    fn a_long_frame_is_refused_before_it_is_read() {
        let header = (MAX_FRAME_BYTES as u32 + 1).to_be_bytes();
        assert!(matches!(
            read_frame::<Request>(header.as_slice()),
            Err(FrameError::TooLong(_))
        ));
        let long = "x".repeat(MAX_FRAME_BYTES);
        assert!(matches!(encode_frame(&long), Err(FrameError::TooLong(_))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read_frame::<Request>(bytes.as_slice());
            let _ = read_frame::<Response>(bytes.as_slice());
        }

        #[test]
        fn a_cut_frame_is_an_error(cut in 0_usize..60) {
            let frame = encode_frame(&Request::new(Verb::Del, "container", "eth0")).unwrap();
            prop_assert!(read_frame::<Request>(&frame[..cut.min(frame.len() - 1)]).is_err());
        }
    }
}
