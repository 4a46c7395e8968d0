//! The network configuration from stdin, validated.

use std::{path::PathBuf, time::Duration};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::{
    deletion_queue::DEFAULT_QUEUE_DIR,
    error::{CniError, ErrorCode},
    log::Level,
    protocol::{Attachment, DEFAULT_AGENT_SOCKET, PLUGIN_TYPE},
    result::{AddResult, Dns},
    shape::parse_result,
    version::SpecVersion,
};

/// How long a call may take when the configuration does not say. Kubelet gives up after two minutes.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// The longest `timeoutMs`.
const MAX_TIMEOUT_MS: u64 = 600_000;

/// The smallest MTU that IPv6 allows, and the largest of any device.
const MTU_RANGE: std::ops::RangeInclusive<u64> = 1280..=65_535;

/// The list of what GC keeps, and the name that it had in drafts of the specification.
const VALID_ATTACHMENTS: [&str; 2] = ["cni.dev/valid-attachments", "cni.dev/attachments"];

/// A network configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct NetConf {
    /// `cniVersion`.
    pub version: SpecVersion,
    /// `name`.
    pub name: String,
    /// `agentSocket`.
    pub agent_socket: PathBuf,
    /// `queueDir`.
    pub queue_dir: PathBuf,
    /// `timeoutMs`.
    pub timeout: Duration,
    /// `logLevel`.
    pub log_level: Level,
    /// `logFile`, beside stderr.
    pub log_file: Option<PathBuf>,
    /// `dns`, which goes into the result as it is.
    pub dns: Dns,
    /// `prevResult`, not decoded yet: DEL must not fail for it.
    prev_result: Option<Value>,
    /// The valid attachments, not decoded yet.
    valid_attachments: Option<Value>,
    /// Everything but the two above.
    pub raw: Value,
}

/// The `cniVersion` to report an error in: the configuration's if it can be read and is supported.
pub fn reported_version(stdin: &[u8]) -> SpecVersion {
    #[derive(serde::Deserialize)]
    struct OnlyVersion {
        #[serde(rename = "cniVersion")]
        version: String,
    }
    serde_json::from_slice::<OnlyVersion>(stdin)
        .ok()
        .and_then(|conf| conf.version.parse().ok())
        .unwrap_or(SpecVersion::LATEST)
}

impl NetConf {
    /// Reads a configuration.
    pub fn parse(stdin: &[u8]) -> Result<Self, CniError> {
        let decoded: Value = serde_json::from_slice(stdin).map_err(|error| {
            CniError::new(ErrorCode::Decode, "the network configuration is not JSON")
                .with_details(error.to_string())
        })?;
        let Value::Object(mut object) = decoded else {
            return Err(CniError::new(
                ErrorCode::Decode,
                "the network configuration is not a JSON object",
            ));
        };
        let prev_result = object.remove("prevResult").filter(|value| !value.is_null());
        let valid_attachments = VALID_ATTACHMENTS
            .map(|key| object.remove(key))
            .into_iter()
            .flatten()
            .next();

        let version: String = required(&object, "cniVersion")?;
        let version = version
            .parse()
            .map_err(|error: crate::version::UnsupportedVersion| {
                CniError::new(ErrorCode::IncompatibleVersion, error.to_string()).with_details(format!(
                    "supported are {}",
                    SpecVersion::ALL.map(SpecVersion::as_str).join(", ")
                ))
            })?;
        let name: String = required(&object, "name")?;
        if !is_network_name(&name) {
            let rule = "must start with a letter or digit and go on with letters, digits, `_`, `.` or `-`";
            return Err(invalid("name", &format!("`{name}` {rule}")));
        }
        let kind: String = required(&object, "type")?;
        if kind != PLUGIN_TYPE {
            return Err(invalid("type", &format!("`{kind}` is not `{PLUGIN_TYPE}`")));
        }
        let timeout = match optional::<u64>(&object, "timeoutMs")? {
            None => DEFAULT_TIMEOUT,
            Some(ms) if (1..=MAX_TIMEOUT_MS).contains(&ms) => Duration::from_millis(ms),
            Some(ms) => {
                return Err(invalid(
                    "timeoutMs",
                    &format!("{ms} is not within 1 and {MAX_TIMEOUT_MS}"),
                ));
            }
        };
        if let Some(mtu) = optional::<u64>(&object, "mtu")?
            && !MTU_RANGE.contains(&mtu)
        {
            let (low, high) = (MTU_RANGE.start(), MTU_RANGE.end());
            return Err(invalid("mtu", &format!("{mtu} is not within {low} and {high}")));
        }
        let log_level = match optional::<String>(&object, "logLevel")? {
            None => Level::default(),
            Some(text) => text.parse().map_err(|()| {
                invalid(
                    "logLevel",
                    &format!("`{text}` is none of error, warn, info, debug"),
                )
            })?,
        };
        Ok(Self {
            version,
            name,
            agent_socket: path(&object, "agentSocket")?.unwrap_or_else(|| DEFAULT_AGENT_SOCKET.into()),
            queue_dir: path(&object, "queueDir")?.unwrap_or_else(|| DEFAULT_QUEUE_DIR.into()),
            timeout,
            log_level,
            log_file: path(&object, "logFile")?,
            dns: optional(&object, "dns")?.unwrap_or_default(),
            prev_result,
            valid_attachments,
            raw: Value::Object(object),
        })
    }

    /// The result of the plugins before this one, or on CHECK of ADD.
    pub fn prev_result(&self) -> Result<Option<AddResult>, CniError> {
        self.prev_result
            .clone()
            .map(parse_result)
            .transpose()
            .map_err(|error| {
                CniError::new(ErrorCode::Decode, "cannot decode `prevResult`").with_details(error.to_string())
            })
    }

    /// What GC must keep. Its absence is an error: taken for an empty list it would detach every container.
    pub fn valid_attachments(&self) -> Result<Vec<Attachment>, CniError> {
        let key = VALID_ATTACHMENTS[0];
        let value = self.valid_attachments.clone().ok_or_else(|| missing(key))?;
        serde_json::from_value(value).map_err(|error| {
            CniError::new(ErrorCode::Decode, format!("cannot decode `{key}`")).with_details(error.to_string())
        })
    }
}

fn is_network_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

fn invalid(key: &str, why: &str) -> CniError {
    CniError::new(
        ErrorCode::InvalidConfig,
        format!("invalid `{key}` in the network configuration"),
    )
    .with_details(why)
}

fn missing(key: &str) -> CniError {
    CniError::new(
        ErrorCode::InvalidConfig,
        format!("`{key}` is missing in the network configuration"),
    )
}

fn optional<T: DeserializeOwned>(object: &Map<String, Value>, key: &str) -> Result<Option<T>, CniError> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => T::deserialize(value).map(Some).map_err(|error| {
            CniError::new(
                ErrorCode::Decode,
                format!("cannot decode `{key}` of the network configuration"),
            )
            .with_details(error.to_string())
        }),
    }
}

fn required<T: DeserializeOwned>(object: &Map<String, Value>, key: &str) -> Result<T, CniError> {
    optional(object, key)?.ok_or_else(|| missing(key))
}

fn path(object: &Map<String, Value>, key: &str) -> Result<Option<PathBuf>, CniError> {
    let path: Option<PathBuf> = optional(object, key)?;
    match path {
        Some(path) if !path.is_absolute() => Err(invalid(
            key,
            &format!("`{}` is not an absolute path", path.display()),
        )),
        path => Ok(path),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn parse_with(key: &str, value: Option<Value>) -> Result<NetConf, CniError> {
        let mut conf = json!({"cniVersion": "1.1.0", "name": "weft", "type": "weft-cni"});
        let object = conf.as_object_mut().unwrap();
        match value {
            Some(value) => object.insert(key.to_owned(), value),
            None => object.remove(key),
        };
        NetConf::parse(conf.to_string().as_bytes())
    }

    #[test]
    fn defaults_and_keys() {
        let conf = parse_with("mtu", Some(json!(1400))).unwrap();
        assert_eq!(conf.agent_socket, PathBuf::from(DEFAULT_AGENT_SOCKET));
        assert_eq!(conf.queue_dir, PathBuf::from(DEFAULT_QUEUE_DIR));
        assert_eq!(conf.timeout, DEFAULT_TIMEOUT);
        assert_eq!(conf.raw["mtu"], 1400);
        assert_eq!(conf.prev_result(), Ok(None));
        let conf = parse_with("timeoutMs", Some(json!(1500))).unwrap();
        assert_eq!(conf.timeout, Duration::from_millis(1500));
        assert_eq!(
            parse_with("unknown", Some(json!({"a": 1}))).unwrap().raw["unknown"]["a"],
            1
        );
    }

    #[test]
    fn bad_values_have_a_code_and_name_the_key() {
        use ErrorCode::{Decode, IncompatibleVersion, InvalidConfig};
        for (key, value, code) in [
            ("cniVersion", None, InvalidConfig),
            ("cniVersion", Some(json!(1)), Decode),
            ("cniVersion", Some(json!("0.2.0")), IncompatibleVersion),
            ("cniVersion", Some(json!("9.9.9")), IncompatibleVersion),
            ("name", None, InvalidConfig),
            ("name", Some(json!("")), InvalidConfig),
            ("name", Some(json!("a/b")), InvalidConfig),
            ("name", Some(json!(["a"])), Decode),
            ("type", None, InvalidConfig),
            ("type", Some(json!("bridge")), InvalidConfig),
            ("timeoutMs", Some(json!(0)), InvalidConfig),
            ("timeoutMs", Some(json!(600_001)), InvalidConfig),
            ("timeoutMs", Some(json!("5s")), Decode),
            ("timeoutMs", Some(json!(-1)), Decode),
            ("mtu", Some(json!(100)), InvalidConfig),
            ("mtu", Some(json!(70_000)), InvalidConfig),
            ("logLevel", Some(json!("loud")), InvalidConfig),
            ("agentSocket", Some(json!("run/x")), InvalidConfig),
            ("queueDir", Some(json!(7)), Decode),
            ("dns", Some(json!({"nameservers": 1})), Decode),
        ] {
            let error = parse_with(key, value.clone()).unwrap_err();
            assert_eq!(error.code, code, "{key}={value:?}: {error}");
            if code != IncompatibleVersion {
                assert!(error.msg.contains(key), "{key}={value:?}: {error}");
            }
        }
        for text in ["", "{", "[]", "null", "\"x\"", "{}x", "\u{0}"] {
            let error = NetConf::parse(text.as_bytes()).unwrap_err();
            assert_eq!(error.code, Decode, "{text:?}: {error}");
        }
        assert_eq!(
            NetConf::parse("[".repeat(100_000).as_bytes()).unwrap_err().code,
            Decode
        );
    }

    #[test]
    fn gc_needs_its_list() {
        let conf = parse_with("x", None).unwrap();
        assert_eq!(
            conf.valid_attachments().unwrap_err().code,
            ErrorCode::InvalidConfig
        );
        let conf = parse_with(
            "cni.dev/valid-attachments",
            Some(json!([{"containerID": "a", "ifname": "eth0"}])),
        )
        .unwrap();
        assert_eq!(conf.valid_attachments().unwrap()[0].container_id, "a");
        assert_eq!(conf.raw.get("cni.dev/valid-attachments"), None);
        let conf = parse_with("cni.dev/valid-attachments", Some(json!([{"containerID": "a"}]))).unwrap();
        assert_eq!(conf.valid_attachments().unwrap_err().code, ErrorCode::Decode);
        let conf = parse_with("cni.dev/valid-attachments", Some(Value::Null)).unwrap();
        assert_eq!(conf.valid_attachments().unwrap_err().code, ErrorCode::Decode);
    }

    #[test]
    fn a_bad_previous_result_is_found_when_it_is_asked_for() {
        let conf = parse_with("prevResult", Some(json!({"ips": [{"address": "10.0.0.1"}]}))).unwrap();
        assert_eq!(conf.prev_result().unwrap_err().code, ErrorCode::Decode);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = NetConf::parse(&bytes);
            let _ = reported_version(&bytes);
        }

        #[test]
        fn any_value_of_any_key_is_read_without_panic(
            key in prop::sample::select(vec!["cniVersion", "name", "type", "timeoutMs", "mtu", "logLevel", "dns", "prevResult"]),
            value in "[\\[\\]{}\":,a-z0-9. -]{0,20}",
        ) {
            let text = format!(r#"{{"cniVersion":"1.0.0","name":"n","type":"weft-cni","{key}":{value}}}"#);
            let _ = NetConf::parse(text.as_bytes());
        }
    }
}
