//! Volumes of a pod: what each is on the node, and where containers find it. What is not offered is an error that says so.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Component, Path, PathBuf},
};

use k8s_openapi::api::core::v1::{Container, KeyToPath, Pod, Volume};

use super::{environment::Sources, oci::Bind};

/// The mode of files whose volume does not say.
const DEFAULT_FILE_MODE: i32 = 0o644;

/// Why a container does not get its volumes.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// A kind of volume that this runtime does not have.
    #[error("volume {0}: this runtime offers emptyDir, hostPath, configMap and secret volumes only")]
    NotOffered(String),
    /// A memory-backed directory.
    #[error("volume {0}: this runtime does not offer emptyDir with medium Memory")]
    Memory(String),
    /// A way of mounting that this runtime does not have.
    #[error("mount {path}: this runtime does not offer {what}")]
    MountOption {
        /// Where it would be.
        path: String,
        /// What is not offered.
        what: &'static str,
    },
    /// A mount of a volume that the pod does not have.
    #[error("mount {path}: the pod has no volume {name}")]
    Unknown {
        /// Where it would be.
        path: String,
        /// The volume.
        name: String,
    },
    /// An object that a volume is made of is not there.
    #[error("volume {volume}: {what} {name} does not exist")]
    NoObject {
        /// The volume.
        volume: String,
        /// `config map` or `secret`.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// A key that a volume asks for is not there.
    #[error("volume {volume}: {what} {name} has no key {key:?}")]
    NoKey {
        /// The volume.
        volume: String,
        /// `config map` or `secret`.
        what: &'static str,
        /// Its name.
        name: String,
        /// The key.
        key: String,
    },
    /// A path that leads out of its volume.
    #[error("volume {volume}: {path:?} leads out of it")]
    Escape {
        /// The volume.
        volume: String,
        /// The path.
        path: String,
    },
    /// The node's path is not what the volume says it is.
    #[error("volume {volume}: {path:?} on the node is not {wanted}")]
    HostPath {
        /// The volume.
        volume: String,
        /// The path.
        path: PathBuf,
        /// What it should be.
        wanted: String,
    },
    /// Files could not be made.
    #[error("volume {volume}: making {path:?}")]
    Make {
        /// The volume.
        volume: String,
        /// What was made.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// The names of config maps and secrets that a pod refers to, in volumes and variables.
pub fn referred(pod: &Pod) -> (Vec<String>, Vec<String>) {
    let (mut maps, mut secrets) = (Vec::new(), Vec::new());
    let Some(spec) = &pod.spec else {
        return (maps, secrets);
    };
    for volume in spec.volumes.iter().flatten() {
        maps.extend(volume.config_map.iter().map(|source| source.name.clone()));
        secrets.extend(
            volume
                .secret
                .iter()
                .filter_map(|source| source.secret_name.clone()),
        );
    }
    for container in spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
    {
        for from in container.env_from.iter().flatten() {
            maps.extend(from.config_map_ref.iter().map(|r| r.name.clone()));
            secrets.extend(from.secret_ref.iter().map(|r| r.name.clone()));
        }
        for source in container
            .env
            .iter()
            .flatten()
            .filter_map(|v| v.value_from.as_ref())
        {
            maps.extend(source.config_map_key_ref.iter().map(|r| r.name.clone()));
            secrets.extend(source.secret_key_ref.iter().map(|r| r.name.clone()));
        }
    }
    for names in [&mut maps, &mut secrets] {
        names.sort();
        names.dedup();
    }
    (maps, secrets)
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
    let own = dir.join("volumes").join(&volume.name);
    let name = volume.name.clone();
    if let Some(empty) = &volume.empty_dir {
        if !empty.medium.as_deref().unwrap_or_default().is_empty() {
            return Err(VolumeError::Memory(name));
        }
        directory(&name, &own, 0o777)?;
        let fs_group = pod
            .spec
            .as_ref()
            .and_then(|s| s.security_context.as_ref())
            .and_then(|c| c.fs_group);
        if let Some(gid) = fs_group.and_then(|gid| u32::try_from(gid).ok()) {
            std::os::unix::fs::chown(&own, None, Some(gid))
                .map_err(|source| make_error(&name, &own, source))?;
        }
        return Ok((own, false));
    }
    if let Some(host) = &volume.host_path {
        let path = PathBuf::from(&host.path);
        host_path(&name, &path, host.type_.as_deref().unwrap_or_default())?;
        return Ok((path, false));
    }
    let (what, object, optional, items, mode, table) = if let Some(map) = &volume.config_map {
        (
            "config map",
            map.name.clone(),
            map.optional,
            &map.items,
            map.default_mode,
            &sources.config_maps,
        )
    } else if let Some(secret) = &volume.secret {
        (
            "secret",
            secret.secret_name.clone().unwrap_or_default(),
            secret.optional,
            &secret.items,
            secret.default_mode,
            &sources.secrets,
        )
    } else {
        return Err(VolumeError::NotOffered(name));
    };
    let optional = optional == Some(true);
    let empty = BTreeMap::new();
    let data = match table.get(&object).and_then(Option::as_ref) {
        Some(data) => data,
        None if optional => &empty,
        None => {
            return Err(VolumeError::NoObject {
                volume: name,
                what,
                name: object,
            });
        }
    };
    directory(&name, &own, 0o755)?;
    let all = || -> Vec<KeyToPath> {
        data.keys()
            .map(|key| KeyToPath {
                key: key.clone(),
                path: key.clone(),
                mode: None,
            })
            .collect()
    };
    for item in items.clone().unwrap_or_else(all) {
        let Some(bytes) = data.get(&item.key) else {
            if optional {
                continue;
            }
            return Err(VolumeError::NoKey {
                volume: name,
                what,
                name: object,
                key: item.key,
            });
        };
        let mode = item.mode.or(mode).unwrap_or(DEFAULT_FILE_MODE);
        file(&name, &own, &item.path, bytes, mode)?;
    }
    Ok((own, true))
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

fn file(volume: &str, root: &Path, name: &str, bytes: &[u8], mode: i32) -> Result<(), VolumeError> {
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
    let scratch = root.join(".new");
    let mode = fs::Permissions::from_mode(u32::try_from(mode).unwrap_or(0o644) & 0o777);
    fs::write(&scratch, bytes)
        .and_then(|()| fs::set_permissions(&scratch, mode))
        .and_then(|()| fs::rename(&scratch, &path))
        .map_err(|source| make_error(volume, &path, source))
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
    use super::*;

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
                    Some(BTreeMap::from([("k".to_owned(), b"v".to_vec())])),
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
