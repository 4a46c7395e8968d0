//! Volumes of a pod: what each is on the node, and where containers find it. What is not offered is an error that says so.

mod claims;
mod error;
mod references;

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Component, Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use k8s_openapi::api::core::v1::{Container, KeyToPath, Pod, Volume};

use self::claims::{claim_of, claimed, remember};
pub use self::{
    claims::{Claimed, claims},
    error::VolumeError,
    references::{Referred, referred_by_variables, referred_by_volumes},
};
use super::{environment::Sources, oci::Bind, projected};
use crate::whole_file;

/// The directory of a pod's volumes, in the pod's.
pub(super) const DIR: &str = "volumes";
/// The mode of files whose volume does not say.
const DEFAULT_FILE_MODE: i32 = 0o644;

/// How many scratch files there were.
static SCRATCH_FILES: AtomicU64 = AtomicU64::new(0);

/// Where a volume of a pod is, under the pod's directory.
pub(super) fn directory_of(dir: &Path, volume: &str) -> PathBuf {
    dir.join(DIR).join(volume)
}

/// Makes the volumes that a container mounts, and says where it finds them.
pub fn prepare(
    dir: &Path,
    pod: &Pod,
    container: &Container,
    sources: &Sources,
) -> Result<Vec<Bind>, VolumeError> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let volumes: BTreeMap<&str, &Volume> = volumes.map(|v| (v.name.as_str(), v)).collect();
    if container.volume_devices.as_ref().is_some_and(|d| !d.is_empty()) {
        return Err(VolumeError::MountOption {
            path: container.name.clone(),
            what: "block devices (volumeDevices)",
        });
    }
    let mut binds = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let option = |what| VolumeError::MountOption {
            path: mount.mount_path.clone(),
            what,
        };
        if mount.sub_path.as_deref().is_some_and(|p| !p.is_empty()) || mount.sub_path_expr.is_some() {
            return Err(option("subPath"));
        }
        if !matches!(mount.mount_propagation.as_deref(), None | Some("None")) {
            return Err(option("mount propagation"));
        }
        let volume = volumes
            .get(mount.name.as_str())
            .ok_or_else(|| VolumeError::Unknown {
                path: mount.mount_path.clone(),
                name: mount.name.clone(),
            })?;
        let (source, forced_read_only) = source(dir, pod, volume, sources)?;
        binds.push(Bind {
            source,
            target: PathBuf::from(&mount.mount_path),
            read_only: forced_read_only || mount.read_only == Some(true),
        });
    }
    Ok(binds)
}

/// Where a volume is on the node, and whether nobody may write it.
fn source(dir: &Path, pod: &Pod, volume: &Volume, sources: &Sources) -> Result<(PathBuf, bool), VolumeError> {
    let own = directory_of(dir, &volume.name);
    let name = volume.name.clone();
    if let Some(empty) = &volume.empty_dir {
        if !empty.medium.as_deref().unwrap_or_default().is_empty() {
            return Err(VolumeError::Memory(name));
        }
        directory(&name, &own, 0o777)?;
        give_to_group(pod, &name, &own)?;
        return Ok((own, false));
    }
    if let Some(claim) = claim_of(pod, volume) {
        let read_only = volume
            .persistent_volume_claim
            .as_ref()
            .is_some_and(|claim| claim.read_only == Some(true));
        let path = match fs::read_link(&own) {
            // What an earlier container was given holds while the API cannot be asked.
            Ok(path) if sources.unreachable => path,
            _ => claimed(pod, &name, claim, sources)?,
        };
        remember(&name, &own, &path)?;
        return Ok((path, read_only));
    }
    if let Some(host) = &volume.host_path {
        let path = PathBuf::from(&host.path);
        host_path(&name, &path, host.type_.as_deref().unwrap_or_default())?;
        return Ok((path, false));
    }
    // Volumes' names do not begin with a dot.
    let complete = dir.join(DIR).join(format!(".{name}"));
    // What an earlier container was given is better than nothing while the API cannot be asked.
    if sources.unreachable && complete.exists() {
        return Ok((own, true));
    }
    directory(&name, &own, 0o755)?;
    if let Some(map) = &volume.config_map {
        let content = Content {
            what: "config map",
            object: &map.name,
            optional: map.optional == Some(true),
            items: map.items.as_deref(),
            mode: map.default_mode,
        };
        content.write(&own, &name, &sources.config_maps)?;
    } else if let Some(secret) = &volume.secret {
        let content = Content {
            what: "secret",
            object: secret.secret_name.as_deref().unwrap_or_default(),
            optional: secret.optional == Some(true),
            items: secret.items.as_deref(),
            mode: secret.default_mode,
        };
        content.write(&own, &name, &sources.secrets)?;
    } else if let Some(projected) = &volume.projected {
        projected::write(&own, pod, &name, projected, sources)?;
    } else if let Some(downward) = &volume.downward_api {
        let items = downward.items.iter().flatten();
        projected::write_fields(&own, pod, &name, items, downward.default_mode)?;
    } else {
        return Err(VolumeError::NotOffered(name));
    }
    fs::write(&complete, "").map_err(|source| make_error(&name, &complete, source))?;
    Ok((own, true))
}

/// Keys of an object as files.
pub(super) struct Content<'a> {
    /// `config map` or `secret`.
    pub(super) what: &'static str,
    /// The object's name.
    pub(super) object: &'a str,
    /// Whether it may be missing.
    pub(super) optional: bool,
    /// Which keys, and where; `None`: all.
    pub(super) items: Option<&'a [KeyToPath]>,
    /// The files' mode, unless a key says otherwise.
    pub(super) mode: Option<i32>,
}

impl Content<'_> {
    pub(super) fn write(
        &self,
        own: &Path,
        volume: &str,
        table: &BTreeMap<String, Option<BTreeMap<String, Vec<u8>>>>,
    ) -> Result<(), VolumeError> {
        let Some(data) = table.get(self.object).and_then(Option::as_ref) else {
            if self.optional {
                return Ok(());
            }
            return Err(VolumeError::NoObject {
                volume: volume.to_owned(),
                what: self.what,
                name: self.object.to_owned(),
            });
        };
        let Some(items) = self.items else {
            for (key, bytes) in data {
                file(volume, own, key, bytes, self.mode)?;
            }
            return Ok(());
        };
        for item in items {
            match data.get(&item.key) {
                Some(bytes) => file(volume, own, &item.path, bytes, item.mode.or(self.mode))?,
                None if self.optional => {}
                None => {
                    return Err(VolumeError::NoKey {
                        volume: volume.to_owned(),
                        what: self.what,
                        name: self.object.to_owned(),
                        key: item.key.clone(),
                    });
                }
            }
        }
        Ok(())
    }
}

/// Gives a directory to the group that the pod's volumes belong to.
fn give_to_group(pod: &Pod, volume: &str, path: &Path) -> Result<(), VolumeError> {
    let context = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let group = context.and_then(|context| context.fs_group);
    match group.and_then(|gid| u32::try_from(gid).ok()) {
        None => Ok(()),
        Some(gid) => {
            std::os::unix::fs::chown(path, None, Some(gid)).map_err(|source| make_error(volume, path, source))
        }
    }
}

fn make_error(volume: &str, path: &Path, source: io::Error) -> VolumeError {
    VolumeError::Make {
        volume: volume.to_owned(),
        path: path.to_owned(),
        source,
    }
}

fn directory(volume: &str, path: &Path, mode: u32) -> Result<(), VolumeError> {
    if path.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(path)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
        .map_err(|source| make_error(volume, path, source))
}

pub(super) fn file(
    volume: &str,
    root: &Path,
    name: &str,
    bytes: &[u8],
    mode: Option<i32>,
) -> Result<(), VolumeError> {
    let inside = !name.is_empty()
        && Path::new(name)
            .components()
            .all(|c| matches!(c, Component::Normal(_)));
    if !inside {
        return Err(VolumeError::Escape {
            volume: volume.to_owned(),
            path: name.to_owned(),
        });
    }
    let path = root.join(name);
    if let Some(parent) = path.parent() {
        directory(volume, parent, 0o755)?;
    }
    // Beside the volume: in it, it could be one of its keys. Volumes' names have no dots. Two tasks may write at once.
    let number = SCRATCH_FILES.fetch_add(1, Ordering::Relaxed);
    let scratch = root.with_extension(format!("{number}.new"));
    let mode = mode.unwrap_or(DEFAULT_FILE_MODE);
    let mode = u32::try_from(mode).unwrap_or(0o644) & 0o777;
    whole_file::replace_by(&scratch, &path, bytes, mode).map_err(|source| make_error(volume, &path, source))
}

fn host_path(volume: &str, path: &Path, kind: &str) -> Result<(), VolumeError> {
    use std::os::unix::fs::FileTypeExt;

    if !path.is_absolute() || path.components().any(|c| c == Component::ParentDir) {
        return Err(VolumeError::Escape {
            volume: volume.to_owned(),
            path: path.display().to_string(),
        });
    }
    match kind {
        "DirectoryOrCreate" => directory(volume, path, 0o755)?,
        "FileOrCreate" if !path.exists() => {
            fs::File::create(path).map_err(|source| make_error(volume, path, source))?;
        }
        _ => {}
    }
    let found = fs::metadata(path).map(|m| m.file_type());
    let right = found.as_ref().is_ok_and(|found| match kind {
        "" => true,
        "Directory" | "DirectoryOrCreate" => found.is_dir(),
        "File" | "FileOrCreate" => found.is_file(),
        "Socket" => found.is_socket(),
        "CharDevice" => found.is_char_device(),
        "BlockDevice" => found.is_block_device(),
        _ => false,
    });
    if right {
        Ok(())
    } else {
        Err(VolumeError::HostPath {
            volume: volume.to_owned(),
            path: path.to_owned(),
            wanted: if kind.is_empty() {
                "there".to_owned()
            } else {
                format!("a {kind}")
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PersistentVolume;

    use super::*;
    use crate::local_path;

    fn prepared(
        dir: &Path,
        volume: &serde_json::Value,
        mount: &serde_json::Value,
    ) -> Result<Vec<Bind>, VolumeError> {
        let pod: Pod = serde_json::from_value(serde_json::json!({"spec": {
            "volumes": [volume], "containers": [{"name": "c", "volumeMounts": [mount]}],
        }}))
        .unwrap();
        let sources = Sources {
            config_maps: BTreeMap::from([
                (
                    "m".to_owned(),
                    // A key may look like somebody's scratch file.
                    Some(BTreeMap::from(
                        [".new", "k"].map(|key| (key.to_owned(), b"v".to_vec())),
                    )),
                ),
                ("gone".to_owned(), None),
            ]),
            ..Sources::default()
        };
        let container = pod.spec.as_ref().unwrap().containers[0].clone();
        prepare(dir, &pod, &container, &sources)
    }

    #[test]
    fn config_maps_become_read_only_files() {
        let dir = tempfile::tempdir().unwrap();
        let binds = prepared(
            dir.path(),
            &serde_json::json!({"name": "v", "configMap": {"name": "m", "items": [{"key": "k", "path": "a/b", "mode": 256}]}}),
            &serde_json::json!({"name": "v", "mountPath": "/m"}),
        )
        .unwrap();
        assert!(binds[0].read_only);
        let file = binds[0].source.join("a/b");
        assert_eq!(fs::read(&file).unwrap(), b"v");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o400);
    }

    #[test]
    fn every_key_is_a_file_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let binds = prepared(
            dir.path(),
            &serde_json::json!({"name": "v", "configMap": {"name": "m"}}),
            &serde_json::json!({"name": "v", "mountPath": "/m"}),
        )
        .unwrap();
        let mut names: Vec<_> = fs::read_dir(&binds[0].source)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, [".new", "k"]);
    }

    #[test]
    fn a_claim_is_a_directory_of_the_node() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pvc-1");
        let volume = |path: &Path, annotations: serde_json::Value| -> PersistentVolume {
            serde_json::from_value(serde_json::json!({
                "metadata": {"name": "pvc-1", "annotations": annotations}, "spec": {"local": {"path": path}},
            }))
            .unwrap()
        };
        let ours = serde_json::json!({"pv.kubernetes.io/provisioned-by": local_path::PROVISIONER});
        let made = Claimed::by(&volume(&path, ours.clone()), dir.path());
        let pod: Pod = serde_json::from_value(serde_json::json!({"metadata": {"name": "p"}, "spec": {"containers": [],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c", "readOnly": true}}, {"name": "e", "ephemeral": {}}]}}))
        .unwrap();
        assert_eq!(claims(&pod), ["c", "p-e"]);
        let found = |claimed: Claimed| {
            let sources = Sources {
                unreachable: claimed == Claimed::Absent,
                claims: BTreeMap::from([("c".to_owned(), claimed)]),
                ..Sources::default()
            };
            let volumes = pod.spec.as_ref().unwrap().volumes.as_ref().unwrap();
            source(dir.path(), &pod, &volumes[0], &sources)
        };
        assert!(!path.exists());
        assert_eq!(found(made).unwrap(), (path.clone(), true));
        assert!(path.is_dir(), "made when it is first used");
        assert_eq!(
            found(Claimed::Absent).unwrap().0,
            path,
            "remembered while the API is away"
        );
        let elsewhere = dir.path().join("elsewhere");
        for (claimed, text) in [
            (
                Claimed::by(&volume(&elsewhere, ours), dir.path()),
                "is not a Directory",
            ),
            (Claimed::Unbound, "is not bound"),
            (Claimed::NotOffered("nfs".to_owned()), "nfs is another"),
        ] {
            let error = found(claimed).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn volumes_stay_as_they_are_while_the_api_is_silent() {
        let dir = tempfile::tempdir().unwrap();
        let pod: Pod = serde_json::from_value(serde_json::json!({"spec": {
            "volumes": [{"name": "v", "configMap": {"name": "m"}}],
            "containers": [{"name": "c", "volumeMounts": [{"name": "v", "mountPath": "/m"}]}],
        }}))
        .unwrap();
        let container = pod.spec.as_ref().unwrap().containers[0].clone();
        let silent = Sources {
            unreachable: true,
            ..Sources::default()
        };
        // There is nothing yet to stay, nor is there after an attempt that failed.
        for _ in 0..2 {
            assert!(prepare(dir.path(), &pod, &container, &silent).is_err());
        }
        let mut known = Sources::default();
        let data = BTreeMap::from([("k".to_owned(), b"v".to_vec())]);
        known.config_maps.insert("m".to_owned(), Some(data));
        prepare(dir.path(), &pod, &container, &known).unwrap();
        let binds = prepare(dir.path(), &pod, &container, &silent).unwrap();
        assert_eq!(fs::read(binds[0].source.join("k")).unwrap(), b"v");
    }

    #[test]
    fn what_is_wrong_or_not_offered_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let mount = serde_json::json!({"name": "v", "mountPath": "/m"});
        for (volume, mount, text) in [
            (
                serde_json::json!({"name": "v", "nfs": {"server": "s", "path": "/p"}}),
                &mount,
                "this runtime offers",
            ),
            (
                serde_json::json!({"name": "v", "emptyDir": {"medium": "Memory"}}),
                &mount,
                "Memory",
            ),
            (
                serde_json::json!({"name": "v", "configMap": {"name": "gone"}}),
                &mount,
                "does not exist",
            ),
            (
                serde_json::json!({"name": "v", "configMap": {"name": "m", "items": [{"key": "x", "path": "x"}]}}),
                &mount,
                "no key",
            ),
            (
                serde_json::json!({"name": "v", "configMap": {"name": "m", "items": [{"key": "k", "path": "../x"}]}}),
                &mount,
                "leads out",
            ),
            (
                serde_json::json!({"name": "v", "hostPath": {"path": "/nowhere/at/all"}}),
                &mount,
                "is not there",
            ),
            (
                serde_json::json!({"name": "v", "hostPath": {"path": "/", "type": "File"}}),
                &mount,
                "is not a File",
            ),
            (
                serde_json::json!({"name": "w", "emptyDir": {}}),
                &mount,
                "no volume v",
            ),
            (
                serde_json::json!({"name": "v", "emptyDir": {}}),
                &serde_json::json!({"name": "v", "mountPath": "/m", "subPath": "s"}),
                "subPath",
            ),
        ] {
            let error = prepared(dir.path(), &volume, mount).unwrap_err();
            assert!(error.to_string().contains(text), "{error}");
        }
        let optional = serde_json::json!({"name": "v", "configMap": {"name": "gone", "optional": true}});
        assert_eq!(prepared(dir.path(), &optional, &mount).unwrap().len(), 1);
    }
}
