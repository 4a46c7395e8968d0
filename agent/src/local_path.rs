//! Persistent volumes that are directories of this node.
//!
//! The Node's annotations are the whole contract with the controller: this side says where the directories are, the other
//! which of them to remove, and this one which of those are gone. A directory is made when a pod first mounts its volume, and
//! nothing limits what is written into it.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

/// Who makes such volumes.
pub const PROVISIONER: &str = "weft.dev/local-path";
/// Annotation: the directory they are in.
pub const DIRECTORY: &str = "weft.dev/local-path";
/// Annotation: those to remove, separated by commas.
const REMOVE: &str = "weft.dev/local-path-remove";
/// Annotation: of those, the ones that are gone.
const REMOVED: &str = "weft.dev/local-path-removed";
/// Between attempts to remove what would not go.
const RETRY: Duration = Duration::from_secs(10);

/// Where the volumes are, under the state directory.
pub fn directory(state_dir: &Path) -> PathBuf {
    state_dir.join("volumes")
}

/// What the Node says about removals.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removals {
    /// What is to go.
    wanted: BTreeSet<String>,
    /// What was said to be gone.
    told: BTreeSet<String>,
}

impl Removals {
    /// What the annotations say.
    pub fn of(node: &Node) -> Self {
        let list = |key: &str| {
            let annotations = node.metadata.annotations.as_ref();
            let text = annotations
                .and_then(|all| all.get(key))
                .map_or("", String::as_str);
            let names = text.split(',').filter(|name| is_name(name));
            names.map(str::to_owned).collect()
        };
        Self {
            wanted: list(REMOVE),
            told: list(REMOVED),
        }
    }
}

/// A volume's name is one part of a path, and leads nowhere else.
fn is_name(name: &str) -> bool {
    let safe = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    !name.is_empty() && !name.starts_with('.') && name.chars().all(safe)
}

/// Removes directories; returns the names of those that are not there any more.
fn remove(directory: &Path, names: &BTreeSet<String>) -> BTreeSet<String> {
    let gone = |name: &&String| {
        let path = directory.join(name);
        match fs::remove_dir_all(&path) {
            Ok(()) => {
                tracing::info!(path = %path.display(), "volume removed");
                true
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a volume cannot be removed");
                false
            }
        }
    };
    names.iter().filter(gone).cloned().collect()
}

/// Removes what the Node says until `shutdown`.
pub async fn run(
    client: Client,
    node_name: String,
    directory: PathBuf,
    mut removals: watch::Receiver<Removals>,
    shutdown: CancellationToken,
) {
    let nodes: Api<Node> = Api::all(client);
    loop {
        let asked = removals.borrow_and_update().clone();
        let (path, wanted) = (directory.clone(), asked.wanted.clone());
        let gone = tokio::task::spawn_blocking(move || remove(&path, &wanted)).await;
        let gone = gone.unwrap_or_default();
        let mut again = gone.len() < asked.wanted.len();
        if gone != asked.told {
            let text = gone.into_iter().collect::<Vec<_>>().join(",");
            let value = Some(text).filter(|text| !text.is_empty());
            let patch = Patch::Merge(json!({"metadata": {"annotations": {REMOVED: value}}}));
            if let Err(error) = nodes.patch(&node_name, &PatchParams::default(), &patch).await {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "the controller does not hear which volumes are removed");
                again = true;
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = removals.changed() => if changed.is_err() { return },
            () = sleep(RETRY), if again => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_named_goes_and_no_name_leads_elsewhere() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("volumes");
        for name in ["pvc-a", "pvc-b"] {
            fs::create_dir_all(directory.join(name).join("data")).unwrap();
        }
        fs::create_dir(root.path().join("other")).unwrap();
        let node: Node = serde_json::from_value(json!({"metadata": {"annotations": {
            REMOVE: "pvc-a,,../other,.,..,pvc-never", REMOVED: "pvc-b",
        }}}))
        .unwrap();
        let removals = Removals::of(&node);
        let gone = remove(&directory, &removals.wanted);
        assert_eq!(gone, ["pvc-a", "pvc-never"].map(str::to_owned).into());
        assert_eq!(removals.told, ["pvc-b".to_owned()].into());
        assert!(!directory.join("pvc-a").exists());
        assert!(directory.join("pvc-b").exists() && root.path().join("other").exists());
    }
}
