//! Which pods are on which nodes, and what they need.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Bound;
use std::sync::{Arc, OnceLock};

use serde_json::Value;

use super::text;
use crate::auth::authorizer::Attributes;
use crate::auth::follow::{Change, Follower};
use crate::resources;
use crate::store::{Object, Store};

/// What a pod needs of its namespace.
#[derive(Debug, Default)]
pub(super) struct Needs {
    pub(super) secrets: HashSet<Box<str>>,
    pub(super) config_maps: HashSet<Box<str>>,
    pub(super) claims: HashSet<Box<str>>,
    pub(super) account: Box<str>,
}

impl Needs {
    pub(super) fn of(pod: &Value) -> Self {
        let mut needs = Self {
            account: text(&pod["spec"]["serviceAccountName"]).into(),
            ..Self::default()
        };
        for volume in pod["spec"]["volumes"].as_array().into_iter().flatten() {
            if volume["ephemeral"].is_object() {
                let claim = format!("{}-{}", text(&pod["metadata"]["name"]), text(&volume["name"]));
                needs.claims.insert(claim.into());
            }
        }
        needs.collect(&pod["spec"]);
        needs
    }

    /// Finds references wherever they are in a spec: containers, volumes, sources of volumes.
    fn collect(&mut self, value: &Value) {
        match value {
            Value::Array(list) => list.iter().for_each(|value| self.collect(value)),
            Value::Object(map) => {
                for (key, value) in map {
                    let name = || Box::from(text(&value["name"]));
                    match key.as_str() {
                        "configMap" | "configMapRef" | "configMapKeyRef" => {
                            self.config_maps.insert(name());
                        }
                        "secretRef" | "secretKeyRef" | "nodePublishSecretRef" | "secret" => {
                            self.secrets.insert(name());
                        }
                        "secretName" => {
                            self.secrets.insert(text(value).into());
                        }
                        "claimName" => {
                            self.claims.insert(text(value).into());
                        }
                        "imagePullSecrets" => {
                            let secrets = value.as_array().into_iter().flatten();
                            self.secrets
                                .extend(secrets.map(|secret| Box::from(text(&secret["name"]))));
                        }
                        _ => {}
                    }
                    self.collect(value);
                }
            }
            _ => {}
        }
    }
}

/// Pods by their keys in the store.
type Pods = BTreeMap<Box<str>, OnceLock<Arc<Needs>>>;

/// Which pods are on which nodes; what they need is read when it is asked for.
#[derive(Debug, Default)]
pub(in crate::auth) struct NodePods {
    follower: Follower,
    nodes: HashMap<Box<str>, Pods>,
}

impl NodePods {
    pub(in crate::auth) fn is_behind(&self) -> bool {
        self.follower.is_behind()
    }

    pub(in crate::auth) fn catch_up(&mut self, store: &dyn Store) {
        let Some(row) = resources::find("", "v1", "pods") else {
            return;
        };
        let node_of = |pod: &Object| -> Box<str> {
            row.field_value(pod.meta(), "spec.nodeName")
                .unwrap_or_default()
                .into()
        };
        let key_of = |pod: &Object| Box::<str>::from(row.key(&pod.meta().namespace, &pod.meta().name));
        let nodes = &mut self.nodes;
        self.follower.catch_up(store, row.storage, |change| match change {
            Change::Reset => nodes.clear(),
            Change::Put(pod) => {
                let node = node_of(pod);
                if !node.is_empty() {
                    nodes
                        .entry(node)
                        .or_default()
                        .insert(key_of(pod), OnceLock::new());
                }
            }
            Change::Gone(pod) => {
                let node = node_of(pod);
                if let Some(pods) = nodes.get_mut(&node) {
                    pods.remove(&key_of(pod));
                    if pods.is_empty() {
                        nodes.remove(&node);
                    }
                }
            }
        });
    }

    /// What the node's pods in a namespace need; in all if it is empty.
    fn needs<'a>(
        &'a self,
        store: &'a dyn Store,
        node: &str,
        namespace: &str,
    ) -> impl Iterator<Item = (&'a str, Arc<Needs>)> {
        let prefix = if namespace.is_empty() {
            String::new()
        } else {
            format!("{namespace}/")
        };
        let pods = self.nodes.get(node).into_iter().flat_map({
            let prefix = prefix.clone();
            move |pods| {
                pods.range::<str, _>((Bound::Included(prefix.as_str()), Bound::Unbounded))
                    .collect::<Vec<_>>()
            }
        });
        pods.take_while(move |(key, _)| key.starts_with(&prefix))
            .map(move |(key, needs)| {
                let read = || {
                    let pod = store.get("pods", key).map(|pod| pod.value());
                    Arc::new(pod.as_ref().map(Needs::of).unwrap_or_default())
                };
                (&**key, Arc::clone(needs.get_or_init(read)))
            })
    }

    /// Whether a pod of the node needs the object of a request.
    ///
    /// # Errors
    /// The reason for refusing it.
    pub(in crate::auth) fn need(
        &self,
        store: &dyn Store,
        node: &str,
        request: &Attributes<'_>,
    ) -> Result<(), String> {
        let name = request.name;
        let any = |needed: &dyn Fn(&Needs) -> bool| {
            let mut needs = self.needs(store, node, request.namespace);
            needs.any(|(_, needs)| needed(&needs))
        };
        let needed = match request.resource {
            "secrets" => any(&|needs| needs.secrets.contains(name)),
            "configmaps" => any(&|needs| needs.config_maps.contains(name)),
            "persistentvolumeclaims" => any(&|needs| needs.claims.contains(name)),
            "serviceaccounts" => any(&|needs| &*needs.account == name),
            "persistentvolumes" => self.need_volume(store, node, name),
            "pods" => {
                let key = format!("{}/{name}", request.namespace);
                let pods = self.nodes.get(node);
                pods.is_some_and(|pods| pods.contains_key(key.as_str()))
            }
            _ => false,
        };
        if needed {
            Ok(())
        } else {
            Err(format!(
                "no relationship found between node '{node}' and this object"
            ))
        }
    }

    /// Whether a pod of the node uses a volume through its claim.
    fn need_volume(&self, store: &dyn Store, node: &str, volume: &str) -> bool {
        let Some(claims) = resources::find("", "v1", "persistentvolumeclaims") else {
            return false;
        };
        self.needs(store, node, "").any(|(pod, needs)| {
            let namespace = pod.split_once('/').map_or("", |(namespace, _)| namespace);
            needs.claims.iter().any(|claim| {
                let claim = store.get(claims.storage, &claims.key(namespace, claim));
                claim.is_some_and(|claim| claim.value()["spec"]["volumeName"] == volume)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_needs_what_it_refers_to_wherever_that_is() {
        let needs = Needs::of(&json!({"metadata": {"name": "p"}, "spec": {
            "serviceAccountName": "sa",
            "imagePullSecrets": [{"name": "pull"}],
            "volumes": [
                {"name": "a", "secret": {"secretName": "s1"}},
                {"name": "b", "configMap": {"name": "c1"}},
                {"name": "c", "projected": {"sources": [{"secret": {"name": "s2"}}, {"configMap": {"name": "c2"}}]}},
                {"name": "d", "persistentVolumeClaim": {"claimName": "v1"}},
                {"name": "e", "ephemeral": {"volumeClaimTemplate": {}}},
            ],
            "initContainers": [{"envFrom": [{"secretRef": {"name": "s3"}}, {"configMapRef": {"name": "c3"}}]}],
            "containers": [{"env": [
                {"name": "X", "valueFrom": {"secretKeyRef": {"name": "s4", "key": "k"}}},
                {"name": "Y", "valueFrom": {"configMapKeyRef": {"name": "c4", "key": "k"}}},
            ]}],
        }}));
        let has = |set: &HashSet<Box<str>>, names: &[&str]| names.iter().all(|name| set.contains(*name));
        assert!(
            has(&needs.secrets, &["pull", "s1", "s2", "s3", "s4"]),
            "{needs:?}"
        );
        assert!(has(&needs.config_maps, &["c1", "c2", "c3", "c4"]), "{needs:?}");
        assert!(has(&needs.claims, &["v1", "p-e"]), "{needs:?}");
        assert_eq!(&*needs.account, "sa");
        assert!(!needs.secrets.contains("x"));
    }
}
