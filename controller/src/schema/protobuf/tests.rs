use super::*;
use proptest::prelude::*;
use serde_json::json;

/// What kubectl sent: a name and the body of each request.
fn kubectl_bodies() -> impl Iterator<Item = (&'static str, Vec<u8>)> {
    include_str!("fixtures/kubectl-1.33.txt")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let (name, body) = line.split_once(' ').expect("name and body");
            (name, hex::decode(body).expect("hex"))
        })
}

#[test]
fn what_kubectl_sends_is_understood() {
    let expected: Value = serde_json::from_str(include_str!("fixtures/kubectl-1.33.json")).expect("JSON");
    let mut decoded = Map::new();
    for (name, body) in kubectl_bodies() {
        decoded.insert(name.to_owned(), decode(&body).expect(name));
    }
    assert_eq!(Value::Object(decoded), expected);
}

#[test]
fn decoded_bodies_are_well_typed() {
    for (name, body) in kubectl_bodies() {
        let object = decode(&body).expect(name);
        let (group, version) = object["apiVersion"]
            .as_str()
            .expect("set")
            .rsplit_once('/')
            .unwrap_or(("", "v1"));
        let schema = super::super::kind(group, version, object["kind"].as_str().expect("set")).expect(name);
        schema.check_types(&object).expect(name);
        assert_eq!(schema.unknown_fields(&object), Vec::<String>::new(), "{name}");
    }
}

/// A length-delimited field.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2, u8::try_from(bytes.len()).expect("short")];
    out.extend_from_slice(bytes);
    out
}

fn body(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let meta = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
    [MAGIC.to_vec(), field(1, &meta), field(2, raw)].concat()
}

#[test]
fn delete_options_belong_to_every_group() {
    // gracePeriodSeconds 0 (a pointer: zero is not absent), propagationPolicy, preconditions.uid.
    let raw = [
        vec![0x08, 0x00],
        field(4, b"Background"),
        field(2, &field(1, b"u1")),
    ]
    .concat();
    for api_version in ["v1", "policy/v1"] {
        assert_eq!(
            decode(&body(api_version, "DeleteOptions", &raw)),
            Ok(
                json!({"apiVersion": api_version, "kind": "DeleteOptions", "gracePeriodSeconds": 0,
                "propagationPolicy": "Background", "preconditions": {"uid": "u1"}})
            )
        );
    }
}

#[test]
fn bad_bodies_are_refused() {
    assert_eq!(decode(b"{}"), Err(ProtobufError::Prefix));
    assert_eq!(
        decode(&body("v1", "Podd", b"")).expect_err("kind").to_string(),
        "no kind \"Podd\" is registered for version \"v1\""
    );
    for raw in [
        &b"\x0a\xff"[..],
        b"\x0a",
        b"\x00\x00",
        b"\x0b",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x08\x01",
    ] {
        assert!(
            matches!(decode(&body("v1", "Pod", raw)), Err(ProtobufError::Malformed(_))),
            "{raw:x?}"
        );
    }
    let huge_time = field(
        1,
        &field(8, &[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]),
    );
    assert_eq!(
        decode(&body("v1", "Pod", &huge_time)),
        Err(ProtobufError::Malformed("time out of range"))
    );
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        let _ = decode(&bytes);
        let _ = decode(&[MAGIC, &bytes].concat());
        let _ = decode(&body("v1", "Pod", &bytes));
    }

    #[test]
    fn no_damage_to_a_real_body_makes_it_panic(which in 0_usize..19, at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>()) {
        let (_, mut bytes) = kubectl_bodies().nth(which).expect("in range");
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = decode(&bytes);
        bytes.truncate(cut.index(bytes.len()));
        let _ = decode(&bytes);
    }
}
