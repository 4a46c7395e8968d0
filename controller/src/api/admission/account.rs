//! The service account of a new pod: that it is there, and that the pod's containers find its token.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;

use crate::api::status::ApiError;
use crate::api::{Call, objects};
use crate::auth::MIRROR;
use crate::resources;

/// The account of pods that name none. A controller makes it with the namespace.
const DEFAULT: &str = "default";
/// How long a pod waits for it: who makes a namespace often makes pods in it at once.
const PATIENCE: Duration = Duration::from_secs(2);
/// Where containers look for the token.
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// What the volume's name begins with.
const VOLUME: &str = "kube-api-access-";
/// After this many seconds a pod's token is fetched anew.
const TOKEN_SECONDS: u64 = 3607;

/// Gives a new pod its service account.
///
/// # Errors
/// 403 if there is no such account.
pub(super) async fn assign(call: &Call, pod: &mut Value) -> Result<(), ApiError> {
    if pod["metadata"]["annotations"][MIRROR].is_string() {
        return Ok(());
    }
    let given = ["serviceAccountName", "serviceAccount"]
        .into_iter()
        .filter_map(|key| pod["spec"][key].as_str())
        .find(|name| !name.is_empty());
    let name = given.unwrap_or(DEFAULT).to_owned();
    let Some(account) = find(call, &name).await else {
        let why = format!(
            "error looking up service account {}/{name}: serviceaccount {name:?} not found",
            call.path.namespace
        );
        return Err(ApiError::forbidden(&call.resource, objects::name(pod), &why));
    };
    for key in ["serviceAccountName", "serviceAccount"] {
        pod["spec"][key] = json!(name);
    }
    if pod["spec"]["imagePullSecrets"]
        .as_array()
        .is_none_or(Vec::is_empty)
        && let Some(secrets) = account["imagePullSecrets"].as_array()
    {
        pod["spec"]["imagePullSecrets"] = json!(secrets);
    }
    let automount = pod["spec"]["automountServiceAccountToken"]
        .as_bool()
        .or(account["automountServiceAccountToken"].as_bool())
        .unwrap_or(true);
    if automount {
        mount(&mut pod["spec"], &objects::generated_name(VOLUME));
    }
    Ok(())
}

async fn find(call: &Call, name: &str) -> Option<Value> {
    let row = resources::find("", "v1", "serviceaccounts")?;
    let store = &call.server.store;
    let key = row.key(&call.path.namespace, name);
    let revision = store.revision();
    let get = || store.get(row.storage, &key).map(|account| account.value());
    if let Some(account) = get() {
        return Some(account);
    }
    if name != DEFAULT {
        return None;
    }
    let mut changes = store.watch(row.storage, revision).ok()?;
    let appears = async {
        loop {
            if let Some(account) = get() {
                return Some(account);
            }
            changes.next().await.ok()?;
        }
    };
    timeout(PATIENCE, appears).await.ok().flatten()
}

/// Mounts a volume with the token into each container that has nothing of its own there.
fn mount(spec: &mut Value, volume: &str) {
    let mut mounted = false;
    for part in ["initContainers", "containers"] {
        let containers = spec.get_mut(part).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let mounts = container["volumeMounts"].as_array();
            if mounts.is_some_and(|mounts| mounts.iter().any(|mount| mount["mountPath"] == MOUNT_PATH)) {
                continue;
            }
            let mount = json!({"name": volume, "readOnly": true, "mountPath": MOUNT_PATH});
            match container["volumeMounts"].as_array_mut() {
                Some(mounts) => mounts.push(mount),
                None => container["volumeMounts"] = json!([mount]),
            }
            mounted = true;
        }
    }
    if !mounted {
        return;
    }
    let volume = json!({
        "name": volume,
        "projected": {
            "defaultMode": 0o644,
            "sources": [
                {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [
                    {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}},
                ]}},
            ],
        },
    });
    match spec["volumes"].as_array_mut() {
        Some(volumes) => volumes.push(volume),
        None => spec["volumes"] = json!([volume]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_container_without_one_gets_the_token() {
        let mut spec = json!({
            "containers": [
                {"name": "a"},
                {"name": "b", "volumeMounts": [{"name": "own", "mountPath": MOUNT_PATH}]},
            ],
            "initContainers": [{"name": "i", "volumeMounts": [{"name": "x", "mountPath": "/x"}]}],
            "volumes": [{"name": "own"}],
        });
        mount(&mut spec, "v");
        let mounts =
            |part: &str, index: usize| spec[part][index]["volumeMounts"].as_array().map_or(0, Vec::len);
        assert_eq!(
            [
                mounts("containers", 0),
                mounts("containers", 1),
                mounts("initContainers", 0)
            ],
            [1, 1, 2]
        );
        assert_eq!(spec["volumes"][1]["name"], "v");
        let mut without =
            json!({"containers": [{"volumeMounts": [{"name": "own", "mountPath": MOUNT_PATH}]}]});
        mount(&mut without, "v");
        assert!(without.get("volumes").is_none() && without.get("initContainers").is_none());
    }
}
