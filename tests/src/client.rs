//! Talking to the cluster's API from a machine of the lab: with `kubectl`, or with a client of our own.
//!
//! A network namespace belongs to a thread, so the client's connections are made on one thread that has entered the machine's
//! and never leaves it. Callers send it work and wait; objects are plain JSON.

use std::fs::File;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use kube::api::{Api, ApiResource, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use kube::{Config, Error};
use nix::sched::{CloneFlags, setns};
use serde_json::Value;
use tokio::task::LocalSet;

use crate::machine::{Machine, output};

/// One request may take this long.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// The kinds that suites use: kind, group, version, plural, whether it lives in a namespace.
const KINDS: &[(&str, &str, &str, &str, bool)] = &[
    ("Namespace", "", "v1", "namespaces", false),
    ("Node", "", "v1", "nodes", false),
    ("Pod", "", "v1", "pods", true),
    ("ConfigMap", "", "v1", "configmaps", true),
    ("Secret", "", "v1", "secrets", true),
    ("Event", "", "v1", "events", true),
    ("ServiceAccount", "", "v1", "serviceaccounts", true),
    ("ReplicationController", "", "v1", "replicationcontrollers", true),
    ("ReplicaSet", "apps", "v1", "replicasets", true),
    ("Deployment", "apps", "v1", "deployments", true),
    ("StatefulSet", "apps", "v1", "statefulsets", true),
    ("Endpoints", "", "v1", "endpoints", true),
    ("EndpointSlice", "discovery.k8s.io", "v1", "endpointslices", true),
    ("PersistentVolume", "", "v1", "persistentvolumes", false),
    ("PersistentVolumeClaim", "", "v1", "persistentvolumeclaims", true),
    ("Lease", "coordination.k8s.io", "v1", "leases", true),
    (
        "CertificateSigningRequest",
        "certificates.k8s.io",
        "v1",
        "certificatesigningrequests",
        false,
    ),
];

type Job = Box<dyn FnOnce(&kube::Client) + Send>;

/// A client with the administrator's rights. Clones share one thread.
#[derive(Clone, Debug)]
pub struct Client {
    jobs: tokio::sync::mpsc::UnboundedSender<Job>,
}

impl Client {
    /// Connects from `machine` as `kubeconfig` says. Nothing is sent yet.
    ///
    /// # Errors
    /// If the kubeconfig cannot be read.
    pub fn new(machine: &Machine, kubeconfig: &Path) -> Result<Self> {
        let netns = File::open(machine.netns_path()).context("open the machine's network namespace")?;
        let kubeconfig =
            Kubeconfig::read_from(kubeconfig).with_context(|| format!("read {}", kubeconfig.display()))?;
        let (jobs, mut inbox) = tokio::sync::mpsc::unbounded_channel::<Job>();
        let (ready, is_ready) = mpsc::channel();
        thread::Builder::new()
            .name("lab-client".to_owned())
            .spawn(move || {
                let work = || -> Result<()> {
                    setns(netns, CloneFlags::CLONE_NEWNET).context("enter the network namespace")?;
                    let runtime = tokio::runtime::Builder::new_current_thread()
                        .enable_all()
                        .build()?;
                    LocalSet::new().block_on(&runtime, async {
                        let config =
                            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
                        let client = kube::Client::try_from(config)?;
                        let _ = ready.send(Ok(()));
                        while let Some(job) = inbox.recv().await {
                            job(&client);
                        }
                        Ok(())
                    })
                };
                if let Err(error) = work() {
                    let _ = ready.send(Err(error));
                }
            })?;
        is_ready.recv().context("the client's thread ended")??;
        Ok(Self { jobs })
    }

    /// Runs `work` with a kube client on the client's thread, and waits for its result.
    ///
    /// # Errors
    /// What `work` fails with, or that it took longer than any request may.
    pub fn call<T, W, F>(&self, work: W) -> Result<T>
    where
        T: Send + 'static,
        W: FnOnce(kube::Client) -> F + Send + 'static,
        F: Future<Output = Result<T>> + 'static,
    {
        let (answer, result) = mpsc::channel();
        let job: Job = Box::new(move |client| {
            let future = work(client.clone());
            tokio::task::spawn_local(async move {
                let outcome = match tokio::time::timeout(REQUEST_TIMEOUT, future).await {
                    Ok(outcome) => outcome,
                    Err(_) => Err(anyhow!("no answer within {REQUEST_TIMEOUT:?}")),
                };
                let _ = answer.send(outcome);
            });
        });
        self.jobs
            .send(job)
            .map_err(|_| anyhow!("the client's thread has ended"))?;
        result.recv().context("the client's thread ended")?
    }

    /// An object, if it exists.
    ///
    /// # Errors
    /// If the request fails.
    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Result<Option<Value>> {
        let (kind, namespace, name) = (kind.to_owned(), namespace.to_owned(), name.to_owned());
        self.call(move |client| async move {
            let api = api(client, &kind, &namespace)?;
            match api.get_opt(&name).await? {
                Some(object) => Ok(Some(serde_json::to_value(object)?)),
                None => Ok(None),
            }
        })
    }

    /// The objects of a kind that a label selector matches; all namespaces if `namespace` is empty.
    ///
    /// # Errors
    /// If the request fails.
    pub fn list(&self, kind: &str, namespace: &str, labels: &str) -> Result<Vec<Value>> {
        let (kind, namespace, labels) = (kind.to_owned(), namespace.to_owned(), labels.to_owned());
        self.call(move |client| async move {
            let list = api(client, &kind, &namespace)?
                .list(&ListParams::default().labels(&labels))
                .await?;
            list.items
                .into_iter()
                .map(|object| Ok(serde_json::to_value(object)?))
                .collect()
        })
    }

    /// Creates an object, or merges it into the one that exists.
    ///
    /// # Errors
    /// If the object has no kind or name, or a request fails.
    pub fn apply(&self, object: Value) -> Result<Value> {
        self.call(move |client| async move {
            let kind = object["kind"]
                .as_str()
                .context("an object has a kind")?
                .to_owned();
            let name = object["metadata"]["name"]
                .as_str()
                .context("an object has a name")?
                .to_owned();
            let namespace = object["metadata"]["namespace"]
                .as_str()
                .unwrap_or("default")
                .to_owned();
            let api = api(client, &kind, &namespace)?;
            let typed: DynamicObject = serde_json::from_value(object.clone())?;
            let applied = match api.create(&PostParams::default(), &typed).await {
                Err(Error::Api(status)) if status.code == 409 => {
                    api.patch(&name, &PatchParams::default(), &Patch::Merge(object))
                        .await
                }
                created => created,
            };
            serde_json::to_value(applied.with_context(|| format!("apply {kind} {name}"))?)
                .context("an object is JSON")
        })
    }

    /// Applies every document of a YAML text.
    ///
    /// # Errors
    /// If the text is not YAML or a document is refused.
    pub fn apply_yaml(&self, text: &str) -> Result<()> {
        for object in documents(text)? {
            self.apply(object)?;
        }
        Ok(())
    }

    /// Merges `patch` into an object.
    ///
    /// # Errors
    /// If the request fails.
    pub fn patch(&self, kind: &str, namespace: &str, name: &str, patch: Value) -> Result<Value> {
        let (kind, namespace, name) = (kind.to_owned(), namespace.to_owned(), name.to_owned());
        self.call(move |client| async move {
            let api = api(client, &kind, &namespace)?;
            let patched = api
                .patch(&name, &PatchParams::default(), &Patch::Merge(patch))
                .await?;
            Ok(serde_json::to_value(patched)?)
        })
    }

    /// Deletes an object; one that is gone is fine.
    ///
    /// # Errors
    /// If the request fails.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) -> Result<()> {
        let (kind, namespace, name) = (kind.to_owned(), namespace.to_owned(), name.to_owned());
        self.call(move |client| async move {
            match api(client, &kind, &namespace)?
                .delete(&name, &kube::api::DeleteParams::default())
                .await
            {
                Err(Error::Api(status)) if status.code == 404 => Ok(()),
                other => other.map(drop).with_context(|| format!("delete {kind} {name}")),
            }
        })
    }
}

fn api(client: kube::Client, kind: &str, namespace: &str) -> Result<Api<DynamicObject>> {
    let Some((_, group, version, plural, namespaced)) = KINDS.iter().find(|(name, ..)| *name == kind) else {
        bail!("the lab's client does not know the kind {kind}");
    };
    let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural);
    Ok(if *namespaced && !namespace.is_empty() {
        Api::namespaced_with(client, namespace, &resource)
    } else {
        Api::all_with(client, &resource)
    })
}

/// The documents of a YAML text, as JSON.
///
/// # Errors
/// If the text is not YAML.
pub fn documents(text: &str) -> Result<Vec<Value>> {
    use serde::Deserialize as _;
    serde_yaml_ng::Deserializer::from_str(text)
        .map(|document| Value::deserialize(document).context("a YAML document"))
        .filter(|document| !matches!(document, Ok(Value::Null)))
        .collect()
}

/// `kubectl` on a machine.
#[derive(Clone, Debug)]
pub struct Kubectl {
    machine: Machine,
    kubeconfig: PathBuf,
}

impl Kubectl {
    /// `kubectl` with the administrator's kubeconfig; nothing if it is not on the PATH.
    pub fn find(machine: &Machine, kubeconfig: &Path) -> Option<Self> {
        machine.run("kubectl version --client").ok()?;
        Some(Self {
            machine: machine.clone(),
            kubeconfig: kubeconfig.to_owned(),
        })
    }

    /// A `kubectl` command, to be given more arguments.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.machine.command("kubectl");
        command
            .args(args)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HOME", self.machine.dir());
        command
    }

    /// Runs `kubectl` and returns what it printed.
    ///
    /// # Errors
    /// If it fails; the error holds what it said.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        output(self.command(args)).with_context(|| format!("kubectl {}", args.join(" ")))
    }
}

#[cfg(test)]
mod tests {
    use super::documents;

    #[test]
    fn empty_documents_are_left_out() {
        let all = documents("---\na: 1\n---\n---\nb: 2\n").expect("YAML");
        assert_eq!(all, [serde_json::json!({"a": 1}), serde_json::json!({"b": 2})]);
    }
}
