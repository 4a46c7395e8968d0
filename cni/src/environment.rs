//! The `CNI_*` variables, validated: what is wrong is said with the name of the variable.

use std::{ffi::OsString, path::PathBuf, process};

use crate::{
    error::{CniError, ErrorCode},
    protocol::{Attachment, PodArgs, Verb},
};

/// The longest interface name that the kernel takes.
const MAX_IFNAME_BYTES: usize = 15;

/// The command of the runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Everything that the agent does.
    Agent(AgentCommand),
    /// VERSION.
    Version,
}

/// A command for the agent with the variables that it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentCommand {
    /// The verb.
    pub verb: Verb,
    /// The attachment; empty names for GC and STATUS.
    pub attachment: Attachment,
    /// The netns, if the runtime named one.
    pub netns: Option<PathBuf>,
    /// The pod, if the runtime named one.
    pub pod: Option<PodArgs>,
}

/// Reads the command from the environment, which `lookup` gives access to.
pub fn read(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Command, CniError> {
    let variable = |name: &'static str| match lookup(name) {
        None => Ok(None),
        Some(value) if value.is_empty() => Ok(None),
        Some(value) => value
            .into_string()
            .map(Some)
            .map_err(|value| invalid(name, &format!("{} is not UTF-8", value.display()))),
    };
    let required = |name: &'static str| {
        variable(name)?.ok_or_else(|| {
            CniError::new(
                ErrorCode::InvalidEnvironment,
                format!("required environment variable {name} is missing or empty"),
            )
        })
    };

    let command = required("CNI_COMMAND")?;
    let verb = match command.as_str() {
        "VERSION" => return Ok(Command::Version),
        "ADD" => Verb::Add,
        "DEL" => Verb::Del,
        "CHECK" => Verb::Check,
        "GC" => Verb::Gc,
        "STATUS" => Verb::Status,
        other => {
            return Err(invalid("CNI_COMMAND", &format!("`{other}` is no CNI command")));
        }
    };
    if matches!(verb, Verb::Gc | Verb::Status) {
        let attachment = Attachment {
            container_id: String::new(),
            ifname: String::new(),
        };
        return Ok(Command::Agent(AgentCommand {
            verb,
            attachment,
            netns: None,
            pod: None,
        }));
    }

    let container_id = required("CNI_CONTAINERID")?;
    if !is_container_id(&container_id) {
        let rule = "must start with a letter or digit and go on with letters, digits, `_`, `.` or `-`";
        return Err(invalid("CNI_CONTAINERID", &format!("`{container_id}` {rule}")));
    }
    let netns = match verb {
        Verb::Del => variable("CNI_NETNS")?,
        _ => Some(required("CNI_NETNS")?),
    };
    let netns = netns.map(|path| netns_path(&path)).transpose()?;
    let ifname = required("CNI_IFNAME")?;
    check_ifname(&ifname)?;
    let pod = variable("CNI_ARGS")?
        .map(|args| pod_args(&args))
        .transpose()?
        .flatten();
    let attachment = Attachment { container_id, ifname };
    Ok(Command::Agent(AgentCommand {
        verb,
        attachment,
        netns,
        pod,
    }))
}

fn invalid(name: &str, why: &str) -> CniError {
    CniError::new(
        ErrorCode::InvalidEnvironment,
        format!("invalid environment variable {name}"),
    )
    .with_details(why)
}

fn is_container_id(id: &str) -> bool {
    id.starts_with(|c: char| c.is_ascii_alphanumeric())
        && id.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

/// The rules of the kernel, which the specification repeats.
fn check_ifname(name: &str) -> Result<(), CniError> {
    let why = if name.len() > MAX_IFNAME_BYTES {
        "is longer than 15 bytes"
    } else if name == "." || name == ".." {
        "is a name of directories"
    } else if let Some(c) = name
        .chars()
        .find(|c| matches!(c, '/' | ':') || c.is_whitespace() || c.is_control())
    {
        return Err(invalid("CNI_IFNAME", &format!("`{name}` contains {c:?}")));
    } else {
        return Ok(());
    };
    Err(invalid("CNI_IFNAME", &format!("`{name}` {why}")))
}

/// An absolute path that means the same to the agent as to the plugin.
fn netns_path(path: &str) -> Result<PathBuf, CniError> {
    if !path.starts_with('/') {
        return Err(invalid("CNI_NETNS", &format!("`{path}` is not an absolute path")));
    }
    for own in ["/proc/self/", "/proc/thread-self/"] {
        if let Some(rest) = path.strip_prefix(own) {
            return Ok(format!("/proc/{}/{rest}", process::id()).into());
        }
    }
    Ok(path.into())
}

/// The pod in `CNI_ARGS`, `KEY=VALUE` pairs with `;` between. Keys that Weft does not know are other plugins' business.
fn pod_args(args: &str) -> Result<Option<PodArgs>, CniError> {
    let mut pod = PodArgs::default();
    for pair in args.split(';').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair
            .split_once('=')
            .ok_or_else(|| invalid("CNI_ARGS", &format!("`{pair}` is not of the form KEY=VALUE")))?;
        let field = match key {
            "K8S_POD_NAMESPACE" => &mut pod.namespace,
            "K8S_POD_NAME" => &mut pod.name,
            "K8S_POD_UID" => &mut pod.uid,
            "K8S_POD_INFRA_CONTAINER_ID" => &mut pod.infra_container_id,
            _ => continue,
        };
        *field = Some(value.to_owned()).filter(|value| !value.is_empty());
    }
    Ok(Some(pod).filter(|pod| *pod != PodArgs::default()))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, os::unix::ffi::OsStringExt};

    use super::*;

    const GOOD: [(&str, &str); 5] = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c-1_a.b"),
        ("CNI_NETNS", "/run/netns/a"),
        ("CNI_IFNAME", "eth0"),
        (
            "CNI_ARGS",
            "IgnoreUnknown=1;K8S_POD_NAME=p;K8S_POD_NAMESPACE=n;OTHER=x=y;K8S_POD_UID=",
        ),
    ];

    fn read_with(changes: &[(&str, Option<&str>)]) -> Result<Command, CniError> {
        let mut variables: BTreeMap<&str, &str> = GOOD.into();
        for (name, value) in changes {
            match value {
                Some(value) => variables.insert(name, value),
                None => variables.remove(name),
            };
        }
        read(|name| variables.get(name).map(OsString::from))
    }

    #[test]
    fn a_good_environment_is_taken_apart() {
        let Ok(Command::Agent(command)) = read_with(&[]) else {
            panic!("refused")
        };
        assert_eq!(command.verb, Verb::Add);
        assert_eq!(command.attachment.container_id, "c-1_a.b");
        assert_eq!(command.netns, Some("/run/netns/a".into()));
        let pod = command.pod.unwrap();
        assert_eq!(
            (pod.name.as_deref(), pod.namespace.as_deref(), pod.uid),
            (Some("p"), Some("n"), None)
        );
        assert_eq!(
            read_with(&[("CNI_COMMAND", Some("VERSION")), ("CNI_IFNAME", None)]),
            Ok(Command::Version)
        );
    }

    #[test]
    fn each_verb_requires_its_own() {
        let required =
            |verb: &str, name: &str| read_with(&[("CNI_COMMAND", Some(verb)), (name, None)]).is_err();
        for (verb, variables) in [
            ("ADD", [true, true, true]),
            ("CHECK", [true, true, true]),
            ("DEL", [true, false, true]),
            ("GC", [false; 3]),
            ("STATUS", [false; 3]),
            ("VERSION", [false; 3]),
        ] {
            for (name, expected) in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"]
                .into_iter()
                .zip(variables)
            {
                assert_eq!(required(verb, name), expected, "{verb} without {name}");
            }
        }
        // What the runtime sends when it removes a sandbox whose netns is gone.
        assert!(read_with(&[("CNI_COMMAND", Some("DEL")), ("CNI_NETNS", Some(""))]).is_ok());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (name, value) in [
            ("CNI_COMMAND", None),
            ("CNI_COMMAND", Some("")),
            ("CNI_COMMAND", Some("add")),
            ("CNI_CONTAINERID", Some("")),
            ("CNI_CONTAINERID", Some("-a")),
            ("CNI_CONTAINERID", Some("a/b")),
            ("CNI_CONTAINERID", Some("a b")),
            ("CNI_NETNS", Some("run/netns/a")),
            ("CNI_IFNAME", Some("sixteen-bytes-xx")),
            ("CNI_IFNAME", Some(".")),
            ("CNI_IFNAME", Some("..")),
            ("CNI_IFNAME", Some("a/b")),
            ("CNI_IFNAME", Some("a:b")),
            ("CNI_IFNAME", Some("a b")),
            ("CNI_IFNAME", Some("a\tb")),
            ("CNI_ARGS", Some("K8S_POD_NAME=a;nonsense")),
        ] {
            let error = read_with(&[(name, value)]).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidEnvironment, "{name}={value:?}");
            assert!(error.msg.contains(name), "{name}={value:?}: {error}");
        }
        let bytes = read(|_| Some(OsString::from_vec(vec![0xff]))).unwrap_err();
        assert!(bytes.msg.contains("CNI_COMMAND"));
    }

    #[test]
    fn the_plugins_own_proc_is_named_for_the_agent() {
        let Ok(Command::Agent(command)) = read_with(&[("CNI_NETNS", Some("/proc/self/ns/net"))]) else {
            panic!()
        };
        assert_eq!(
            command.netns,
            Some(format!("/proc/{}/ns/net", process::id()).into())
        );
    }
}
