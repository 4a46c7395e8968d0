//! Who a container runs as: numbers from the pod, else names or numbers from the image, looked up in its own files.

use std::{fs::File, io::Read, path::Path};

use k8s_openapi::api::core::v1::{Container, PodSpec};
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use super::oci::UserIds;

/// A user database larger than this is not one.
const MAX_DATABASE_BYTES: u64 = 1024 * 1024;

/// Why it is not known who a container runs as.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// The image names a user that it does not have.
    #[error("the image has no user {0:?}")]
    NoUser(String),
    /// The image names a group that it does not have.
    #[error("the image has no group {0:?}")]
    NoGroup(String),
    /// The pod wants no root, and the image gives root.
    #[error("the pod must not run as root (runAsNonRoot), but the image runs as root")]
    Root,
    /// A number that no user can have.
    #[error("{0} is not a user or group number")]
    OutOfRange(i64),
}

/// The image's user databases.
#[derive(Debug, Default)]
pub struct Databases {
    passwd: String,
    group: String,
}

impl Databases {
    /// Reads them from the uppermost layer that has each.
    pub fn of_layers(layers_dir: &Path, layers: &[String]) -> Self {
        let read = |name: &str| {
            layers
                .iter()
                .rev()
                .map(|layer| layers_dir.join(layer))
                .find_map(|root| read_in_root(&root, name))
                .unwrap_or_default()
        };
        Self {
            passwd: read("etc/passwd"),
            group: read("etc/group"),
        }
    }

    fn user(&self, name: &str) -> Option<(u32, u32)> {
        self.passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            let known = fields.next()?;
            let uid: u32 = fields.nth(1)?.parse().ok()?;
            let gid = fields.next()?.parse().ok()?;
            (known == name || uid.to_string() == name).then_some((uid, gid))
        })
    }

    fn group(&self, name: &str) -> Option<u32> {
        self.group.lines().find_map(|line| {
            let mut fields = line.split(':');
            let known = fields.next()?;
            let gid = fields.nth(1)?.parse().ok()?;
            (known == name).then_some(gid)
        })
    }
}

/// Resolves the ids of a container.
pub fn resolve(
    spec: &PodSpec,
    container: &Container,
    image_user: &str,
    databases: &Databases,
) -> Result<UserIds, UserError> {
    let number = |value: i64| u32::try_from(value).map_err(|_| UserError::OutOfRange(value));
    let pod = spec.security_context.as_ref();
    let own = container.security_context.as_ref();
    let (mut uid, mut gid) = image_ids(image_user, databases)?;
    let wanted_uid = own
        .and_then(|c| c.run_as_user)
        .or(pod.and_then(|p| p.run_as_user));
    if let Some(wanted) = wanted_uid {
        uid = number(wanted)?;
        gid = databases.user(&uid.to_string()).map_or(0, |(_, gid)| gid);
    }
    let wanted_gid = own
        .and_then(|c| c.run_as_group)
        .or(pod.and_then(|p| p.run_as_group));
    if let Some(wanted) = wanted_gid {
        gid = number(wanted)?;
    }
    let not_root = own
        .and_then(|c| c.run_as_non_root)
        .or(pod.and_then(|p| p.run_as_non_root));
    if not_root == Some(true) && uid == 0 {
        return Err(UserError::Root);
    }
    let groups = pod
        .and_then(|p| p.supplemental_groups.as_ref())
        .into_iter()
        .flatten();
    let fs_group = pod.and_then(|p| p.fs_group);
    let additional = groups
        .copied()
        .chain(fs_group)
        .map(number)
        .collect::<Result<_, _>>()?;
    Ok(UserIds { uid, gid, additional })
}

fn image_ids(text: &str, databases: &Databases) -> Result<(u32, u32), UserError> {
    if text.is_empty() {
        return Ok((0, 0));
    }
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let (uid, primary) = match (databases.user(user), user.parse::<u32>()) {
        (Some(found), _) => found,
        (None, Ok(uid)) => (uid, 0),
        (None, Err(_)) => return Err(UserError::NoUser(user.to_owned())),
    };
    let gid = match group {
        None => primary,
        Some(name) => databases
            .group(name)
            .or(name.parse().ok())
            .ok_or_else(|| UserError::NoGroup(name.to_owned()))?,
    };
    Ok((uid, gid))
}

/// Reads a file of a layer; links in it cannot lead out of the layer.
fn read_in_root(root: &Path, name: &str) -> Option<String> {
    let root = File::open(root).ok()?;
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let file = File::from(openat2(&root, Path::new(name), how).ok()?);
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut text = Vec::new();
    file.take(MAX_DATABASE_BYTES).read_to_end(&mut text).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn databases() -> Databases {
        Databases {
            passwd: "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/:/bin/false\n".to_owned(),
            group: "root:x:0:\nstaff:x:50:\n".to_owned(),
        }
    }

    fn ids(image_user: &str, container: serde_json::Value) -> Result<(u32, u32), UserError> {
        let container: Container = serde_json::from_value(container).unwrap();
        resolve(&PodSpec::default(), &container, image_user, &databases()).map(|ids| (ids.uid, ids.gid))
    }

    #[test]
    fn names_and_numbers_are_resolved() {
        let plain = || serde_json::json!({"name": "c"});
        assert_eq!(ids("", plain()), Ok((0, 0)));
        assert_eq!(ids("web", plain()), Ok((33, 34)));
        assert_eq!(ids("33", plain()), Ok((33, 34)));
        assert_eq!(ids("web:staff", plain()), Ok((33, 50)));
        assert_eq!(ids("1000:7", plain()), Ok((1000, 7)));
        assert_eq!(
            ids("nobody", plain()),
            Err(UserError::NoUser("nobody".to_owned()))
        );
        assert_eq!(
            ids("web:none", plain()),
            Err(UserError::NoGroup("none".to_owned()))
        );
        let as_user = |json| serde_json::json!({"name": "c", "securityContext": json});
        assert_eq!(
            ids("web", as_user(serde_json::json!({"runAsUser": 5}))),
            Ok((5, 0))
        );
        assert_eq!(
            ids("", as_user(serde_json::json!({"runAsNonRoot": true}))),
            Err(UserError::Root)
        );
        assert_eq!(
            ids("", as_user(serde_json::json!({"runAsUser": -1}))),
            Err(UserError::OutOfRange(-1))
        );
    }

    #[test]
    fn links_of_an_image_do_not_lead_to_the_nodes_files() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("etc")).unwrap();
        assert_eq!(read_in_root(dir.path(), "etc/passwd"), None);
    }
}
