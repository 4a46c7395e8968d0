//! The plugin's and the agent's decoders take any bytes: network configurations, results, and frames of the socket.

use weft_cni::netconf::{NetConf, reported_version};
use weft_cni::protocol::{Request, Response, encode_frame, read_frame};
use weft_lab::fuzz::{mutate, replay};

fn netconf(data: &[u8]) {
    reported_version(data);
    if let Ok(conf) = NetConf::parse(data) {
        let _ = conf.prev_result();
        let _ = conf.valid_attachments();
    }
}

/// A frame that is read is the same when it is written and read again.
fn frame(data: &[u8]) {
    if let Ok(request) = read_frame::<Request>(data) {
        let bytes = encode_frame(&request).expect("it came in a frame");
        let again: Request = read_frame(bytes.as_slice()).expect("our own frame");
        // Numbers of the configuration may lose their last digit on the way, the rest loses nothing.
        assert_eq!(
            (again.verb, again.attachment()),
            (request.verb, request.attachment())
        );
        assert_eq!(again.valid_attachments, request.valid_attachments);
    }
    if let Ok(response) = read_frame::<Response>(data) {
        let bytes = encode_frame(&response).expect("it came in a frame");
        let again: Response = read_frame(bytes.as_slice()).expect("our own frame");
        assert_eq!(again, response);
    }
}

/// A frame's body without its length, so that mutations reach the message.
fn body(data: &[u8]) {
    let mut framed = u32::try_from(data.len())
        .unwrap_or_default()
        .to_be_bytes()
        .to_vec();
    framed.extend_from_slice(data);
    frame(&framed);
}

type Target = (&'static str, fn(&[u8]));

const TARGETS: &[Target] = &[("netconf", netconf), ("frame", frame), ("frame-body", body)];

#[test]
fn the_corpus_is_decoded() {
    for (name, run) in TARGETS {
        replay(name, *run);
    }
}

#[test]
#[ignore = "long"]
fn mutations_of_the_corpus_are_decoded() {
    for (name, run) in TARGETS {
        mutate(name, *run);
    }
}
