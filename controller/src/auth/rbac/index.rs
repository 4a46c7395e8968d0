//! Who has which rules: roles and bindings of the store, found by user, group and namespace without a scan.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use serde_json::Value;

use super::Rule;
use crate::auth::Identity;

/// Whom a binding is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Subject {
    User(Box<str>),
    Group(Box<str>),
}

/// That a binding gives someone a role.
#[derive(Clone, Debug)]
pub(crate) struct Grant {
    /// The binding's name.
    binding: Arc<str>,
    /// Where it counts; empty for everywhere.
    namespace: Arc<str>,
    role: RoleKey,
    /// The subject as a reason names it.
    subject: Arc<str>,
}

/// A role's namespace, empty for a ClusterRole, and its name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct RoleKey {
    namespace: Arc<str>,
    name: Arc<str>,
}

impl RoleKey {
    fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    fn kind(&self) -> &'static str {
        if self.namespace.is_empty() {
            "ClusterRole"
        } else {
            "Role"
        }
    }
}

impl Grant {
    /// Why a request is allowed, in Kubernetes' words.
    pub(crate) fn reason(&self) -> String {
        let binding = if self.namespace.is_empty() {
            format!("ClusterRoleBinding {:?}", self.binding)
        } else {
            format!("RoleBinding {:?}", format!("{}/{}", self.binding, self.namespace))
        };
        format!(
            "RBAC: allowed by {binding} of {} {:?} to {}",
            self.role.kind(),
            self.role.name,
            self.subject
        )
    }
}

/// The roles and bindings.
#[derive(Debug, Default)]
pub(crate) struct Index {
    roles: HashMap<RoleKey, Arc<[Rule]>>,
    /// By subject, then by the namespace in which the binding counts.
    grants: HashMap<Subject, HashMap<Arc<str>, Vec<Grant>>>,
    /// The subjects of each binding, to take it out again: key is namespace and name.
    bindings: HashMap<(Arc<str>, Arc<str>), Vec<Subject>>,
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

impl Index {
    /// Forgets the roles of one kind.
    pub(crate) fn clear_roles(&mut self, cluster: bool) {
        self.roles.retain(|key, _| key.namespace.is_empty() != cluster);
    }

    /// Forgets the bindings of one kind.
    pub(crate) fn clear_bindings(&mut self, cluster: bool) {
        let keys: Vec<_> = self.bindings.keys().cloned().collect();
        for (namespace, name) in keys {
            if namespace.is_empty() == cluster {
                self.remove_binding(&namespace, &name);
            }
        }
    }

    pub(crate) fn put_role(&mut self, namespace: &str, name: &str, role: &Value) {
        self.roles
            .insert(RoleKey::new(namespace, name), Rule::list(role).into());
    }

    pub(crate) fn remove_role(&mut self, namespace: &str, name: &str) {
        self.roles.remove(&RoleKey::new(namespace, name));
    }

    pub(crate) fn put_binding(&mut self, namespace: &str, name: &str, binding: &Value) {
        self.remove_binding(namespace, name);
        let (namespace, name): (Arc<str>, Arc<str>) = (namespace.into(), name.into());
        let role = &binding["roleRef"];
        let role_namespace = if role["kind"] == "Role" { &*namespace } else { "" };
        let role = RoleKey::new(role_namespace, text(&role["name"]));
        let mut subjects = Vec::new();
        for subject in binding["subjects"].as_array().into_iter().flatten() {
            let called = text(&subject["name"]);
            let (subject, shown) = match text(&subject["kind"]) {
                "User" => (Subject::User(called.into()), format!("User {called:?}")),
                "Group" => (Subject::Group(called.into()), format!("Group {called:?}")),
                "ServiceAccount" => {
                    let of = match text(&subject["namespace"]) {
                        "" => &*namespace,
                        given => given,
                    };
                    let user = format!("{}{of}:{called}", crate::auth::SERVICE_ACCOUNT_USER);
                    let shown = format!("ServiceAccount {:?}", format!("{called}/{of}"));
                    (Subject::User(user.into()), shown)
                }
                _ => continue,
            };
            let grant = Grant {
                binding: Arc::clone(&name),
                namespace: Arc::clone(&namespace),
                role: role.clone(),
                subject: shown.into(),
            };
            self.grants
                .entry(subject.clone())
                .or_default()
                .entry(Arc::clone(&namespace))
                .or_default()
                .push(grant);
            subjects.push(subject);
        }
        self.bindings.insert((namespace, name), subjects);
    }

    pub(crate) fn remove_binding(&mut self, namespace: &str, name: &str) {
        let key: (Arc<str>, Arc<str>) = (namespace.into(), name.into());
        for subject in self.bindings.remove(&key).unwrap_or_default() {
            let Some(places) = self.grants.get_mut(&subject) else {
                continue;
            };
            if let Some(grants) = places.get_mut(&key.0) {
                grants.retain(|grant| grant.binding != key.1);
                if grants.is_empty() {
                    places.remove(&key.0);
                }
            }
            if places.is_empty() {
                self.grants.remove(&subject);
            }
        }
    }

    /// The grants that count for someone in a namespace; empty: everywhere only.
    fn grants<'a, 'b>(
        &'a self,
        identity: &'b Identity,
        namespace: &'b str,
    ) -> impl Iterator<Item = &'a Grant> + use<'a, 'b> {
        let user = std::iter::once(Subject::User(identity.user.as_str().into()));
        let groups = identity
            .groups
            .iter()
            .map(|group| Subject::Group(group.as_str().into()));
        let places = [Some(""), (!namespace.is_empty()).then_some(namespace)];
        user.chain(groups)
            .filter_map(|subject| self.grants.get(&subject))
            .flat_map(move |by_place| {
                let places = places.into_iter().flatten();
                places.filter_map(|place| by_place.get(place)).flatten()
            })
    }

    /// Shows `visit` the rules that someone has in a namespace until it says that is enough; returns the grant of the last
    /// rule then, or what is wrong with the bindings.
    pub(crate) fn visit(
        &self,
        identity: &Identity,
        namespace: &str,
        mut visit: impl FnMut(&Rule) -> bool,
    ) -> Result<&Grant, Vec<String>> {
        let mut broken = Vec::new();
        for grant in self.grants(identity, namespace) {
            let Some(rules) = self.roles.get(&grant.role) else {
                let kind = grant.role.kind().to_lowercase();
                let error = format!("{kind}.rbac.authorization.k8s.io {:?} not found", grant.role.name);
                if !broken.contains(&error) {
                    broken.push(error);
                }
                continue;
            };
            if rules.iter().any(&mut visit) {
                return Ok(grant);
            }
        }
        Err(broken)
    }

    /// All rules that someone has in a namespace, and what is wrong with the bindings.
    pub(crate) fn rules(&self, identity: &Identity, namespace: &str) -> (Vec<Rule>, Vec<String>) {
        let (mut rules, mut seen) = (Vec::new(), HashSet::new());
        let collected = self.visit(identity, namespace, |rule| {
            if seen.insert(rule.clone()) {
                rules.push(rule.clone());
            }
            false
        });
        (rules, collected.err().unwrap_or_default())
    }

    /// The rules of a role; `None` if it is not there.
    pub(crate) fn role(&self, namespace: &str, name: &str) -> Option<Arc<[Rule]>> {
        self.roles.get(&RoleKey::new(namespace, name)).cloned()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::auth::authorizer::Attributes;

    fn role(verbs: &[&str], resource: &str) -> Value {
        json!({"rules": [{"verbs": verbs, "apiGroups": [""], "resources": [resource]}]})
    }

    fn binding(kind: &str, role: &str, subjects: &Value) -> Value {
        json!({"roleRef": {"kind": kind, "name": role}, "subjects": subjects})
    }

    fn allowed(
        index: &Index,
        identity: &Identity,
        namespace: &str,
        verb: &str,
        resource: &str,
    ) -> Option<String> {
        let request = Attributes {
            verb,
            group: "",
            resource,
            subresource: "",
            namespace,
            name: "",
        };
        let grant = index.visit(identity, namespace, |rule| rule.allows(&request));
        grant.ok().map(Grant::reason)
    }

    #[test]
    fn bindings_count_where_they_are() {
        let mut index = Index::default();
        index.put_role("", "view", &role(&["get"], "pods"));
        index.put_role("a", "own", &role(&["delete"], "pods"));
        index.put_binding(
            "",
            "viewers",
            &binding("ClusterRole", "view", &json!([{"kind": "Group", "name": "g"}])),
        );
        index.put_binding(
            "a",
            "owners",
            &binding(
                "Role",
                "own",
                &json!([{"kind": "ServiceAccount", "name": "s", "namespace": "b"}]),
            ),
        );
        let member = Identity::known("u", vec!["g".to_owned()]);
        let account = Identity::service_account("b", "s", "1");
        assert_eq!(
            allowed(&index, &member, "a", "get", "pods").as_deref(),
            Some(r#"RBAC: allowed by ClusterRoleBinding "viewers" of ClusterRole "view" to Group "g""#)
        );
        assert!(allowed(&index, &member, "", "get", "pods").is_some());
        assert_eq!(
            allowed(&index, &account, "a", "delete", "pods").as_deref(),
            Some(r#"RBAC: allowed by RoleBinding "owners/a" of Role "own" to ServiceAccount "s/b""#)
        );
        assert!(allowed(&index, &account, "b", "delete", "pods").is_none());
        assert!(allowed(&index, &account, "", "delete", "pods").is_none());
        assert!(allowed(&index, &member, "a", "delete", "pods").is_none());
    }

    #[test]
    fn changes_and_removals_count_at_once() {
        let mut index = Index::default();
        let user = json!([{"kind": "User", "name": "u"}]);
        let u = Identity::known("u", Vec::new());
        index.put_binding("", "b", &binding("ClusterRole", "r", &user));
        let broken = index.visit(&u, "", |_| true).err();
        assert_eq!(
            broken,
            Some(vec![
                r#"clusterrole.rbac.authorization.k8s.io "r" not found"#.to_owned()
            ])
        );
        index.put_role("", "r", &role(&["get"], "pods"));
        assert!(allowed(&index, &u, "n", "get", "pods").is_some());
        index.put_binding(
            "",
            "b",
            &binding("ClusterRole", "r", &json!([{"kind": "User", "name": "v"}])),
        );
        assert!(allowed(&index, &u, "n", "get", "pods").is_none());
        index.put_binding("", "b", &binding("ClusterRole", "r", &user));
        index.clear_bindings(false);
        assert!(allowed(&index, &u, "n", "get", "pods").is_some());
        index.clear_bindings(true);
        assert!(index.grants.is_empty() && index.bindings.is_empty());
        index.put_binding("", "b", &binding("ClusterRole", "r", &user));
        index.clear_roles(true);
        assert!(allowed(&index, &u, "n", "get", "pods").is_none());
    }
}
