//! What an identity may do. Masters may do everything; nodes what nodes need; everybody what the roles say that bindings give
//! them. Each kind of decision is made in its own module; this one holds what they look at and asks them in turn.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use serde_json::Value;

use super::follow::{Change, Follower};
use super::node::{self, NodePods, Verdict};
use super::rbac::index::{Grant, Index};
use super::rbac::{Rule, escalation};
use super::{Identity, MASTERS};
use crate::resources::{self, Resource};
use crate::store::{Object, Store};

/// The API group of roles and bindings.
pub(crate) const RBAC_GROUP: &str = "rbac.authorization.k8s.io";

/// A request on a resource as authorisation sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes<'a> {
    /// What is done.
    pub verb: &'a str,
    /// The group.
    pub group: &'a str,
    /// The resource's plural.
    pub resource: &'a str,
    /// The subresource; empty for the object.
    pub subresource: &'a str,
    /// The namespace; empty for all or none.
    pub namespace: &'a str,
    /// The object's name; empty for the collection.
    pub name: &'a str,
}

/// A request on a path that is no resource's.
#[derive(Clone, Copy, Debug)]
pub struct PathAttributes<'a> {
    /// The method in lower case.
    pub verb: &'a str,
    /// The path.
    pub path: &'a str,
}

/// Paths that anybody may read.
const PUBLIC: &[&str] = &["/healthz", "/livez", "/readyz", "/version"];

/// Whether anybody may read what is at a path.
pub(crate) fn is_public(path: &str) -> bool {
    PUBLIC.iter().any(|root| {
        let rest = path.strip_prefix(*root);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

/// What comes of asking whether something may be done; with the reason, which may be empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It may.
    Allowed(String),
    /// Nothing says that it may.
    Denied(String),
}

impl Decision {
    /// Whether it may be done.
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allowed(_))
    }
}

/// The kinds that hold roles and bindings.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Roles,
    ClusterRoles,
    RoleBindings,
    ClusterRoleBindings,
}

impl Kind {
    const ALL: [(Self, &'static str); 4] = [
        (Self::Roles, "roles"),
        (Self::ClusterRoles, "clusterroles"),
        (Self::RoleBindings, "rolebindings"),
        (Self::ClusterRoleBindings, "clusterrolebindings"),
    ];

    fn take(self, change: &Change<'_>, index: &mut Index) {
        let names = |object: &Object| (object.meta().namespace.clone(), object.meta().name.clone());
        match (self, change) {
            (Self::Roles, Change::Reset) => index.clear_roles(false),
            (Self::ClusterRoles, Change::Reset) => index.clear_roles(true),
            (Self::RoleBindings, Change::Reset) => index.clear_bindings(false),
            (Self::ClusterRoleBindings, Change::Reset) => index.clear_bindings(true),
            (Self::Roles | Self::ClusterRoles, Change::Put(object)) => {
                let (namespace, name) = names(object);
                index.put_role(&namespace, &name, &object.value());
            }
            (Self::RoleBindings | Self::ClusterRoleBindings, Change::Put(object)) => {
                let (namespace, name) = names(object);
                index.put_binding(&namespace, &name, &object.value());
            }
            (Self::Roles | Self::ClusterRoles, Change::Gone(object)) => {
                let (namespace, name) = names(object);
                index.remove_role(&namespace, &name);
            }
            (Self::RoleBindings | Self::ClusterRoleBindings, Change::Gone(object)) => {
                let (namespace, name) = names(object);
                index.remove_binding(&namespace, &name);
            }
        }
    }
}

/// The roles and bindings as of the last look.
struct Roles {
    followers: Vec<(Kind, &'static str, Follower)>,
    index: Index,
}

/// Decides what may be done.
pub struct Authorizer {
    store: Arc<dyn Store>,
    roles: RwLock<Roles>,
    pods: RwLock<NodePods>,
}

impl Authorizer {
    /// An authorizer that goes by the objects of a store.
    pub fn new(store: Arc<dyn Store>) -> Self {
        let followers = Kind::ALL.into_iter().filter_map(|(kind, plural)| {
            let row = resources::find(RBAC_GROUP, "v1", plural)?;
            Some((kind, row.storage, Follower::default()))
        });
        Self {
            store,
            roles: RwLock::new(Roles {
                followers: followers.collect(),
                index: Index::default(),
            }),
            pods: RwLock::default(),
        }
    }

    /// Whether a request on a resource may be made.
    pub fn decide(&self, identity: &Identity, request: &Attributes<'_>) -> Decision {
        if identity.is_in(MASTERS) {
            return Decision::Allowed(String::new());
        }
        let mut why = String::new();
        if let Some(node) = identity.node() {
            let decided = match node::decide(node, request) {
                Verdict::Allowed => Ok(()),
                Verdict::IfNeeded => self.pods().need(self.store.as_ref(), node, request),
                Verdict::Denied(reason) => Err(reason),
            };
            match decided {
                Ok(()) => return Decision::Allowed(String::new()),
                Err(reason) => why = reason,
            }
        }
        let roles = self.roles();
        let found = roles
            .index
            .visit(identity, request.namespace, |rule| rule.allows(request));
        decision(found, why)
    }

    /// Whether a request on a path may be made.
    pub fn decide_path(&self, identity: &Identity, request: &PathAttributes<'_>) -> Decision {
        if identity.is_in(MASTERS) || (request.verb == "get" && is_public(request.path)) {
            return Decision::Allowed(String::new());
        }
        let roles = self.roles();
        let found = roles.index.visit(identity, "", |rule| rule.allows_path(request));
        decision(found, String::new())
    }

    /// All rules that someone has in a namespace, and why there may be more.
    pub fn rules(&self, identity: &Identity, namespace: &str) -> (Vec<Rule>, Vec<String>) {
        let (mut rules, mut errors) = self.roles().index.rules(identity, namespace);
        if identity.is_in(MASTERS) {
            let all = || vec!["*".to_owned()];
            let everything = Rule {
                verbs: all(),
                groups: all(),
                resources: all(),
                ..Rule::default()
            };
            let paths = Rule {
                verbs: all(),
                paths: all(),
                ..Rule::default()
            };
            rules.splice(0..0, [everything, paths]);
        }
        if identity.node().is_some() {
            errors.push("node authorizer does not support user rule resolution".to_owned());
        }
        (rules, errors)
    }

    /// Refuses what an identity may not write although it may write the object: nodes beyond what is theirs, and roles
    /// beyond what one has.
    ///
    /// # Errors
    /// The sentence that explains the refusal.
    pub fn admits(
        &self,
        identity: &Identity,
        request: &Attributes<'_>,
        resource: &Resource,
        new: &Value,
        old: Option<&Value>,
    ) -> Result<(), String> {
        if identity.is_in(MASTERS) {
            return Ok(());
        }
        if let Some(node) = identity.node() {
            node::admits(node, request, new, old)?;
        }
        if resource.group == RBAC_GROUP && !request.verb.starts_with("delete") {
            escalation::admits(self, identity, resource, new, old)?;
        }
        Ok(())
    }

    /// The rules of a role; `None` if there is none of that name.
    pub(super) fn role(&self, namespace: &str, name: &str) -> Option<Arc<[Rule]>> {
        self.roles().index.role(namespace, name)
    }

    /// The roles and bindings as they are now.
    fn roles(&self) -> RwLockReadGuard<'_, Roles> {
        let roles = self.roles.read().unwrap_or_else(PoisonError::into_inner);
        if !roles.followers.iter().any(|(.., follower)| follower.is_behind()) {
            return roles;
        }
        drop(roles);
        let mut roles = self.roles.write().unwrap_or_else(PoisonError::into_inner);
        let Roles { followers, index } = &mut *roles;
        for (kind, storage, follower) in followers {
            follower.catch_up(self.store.as_ref(), storage, |change| kind.take(&change, index));
        }
        drop(roles);
        self.roles.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which pods are on which nodes now.
    fn pods(&self) -> RwLockReadGuard<'_, NodePods> {
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        if !pods.is_behind() {
            return pods;
        }
        drop(pods);
        self.pods
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .catch_up(self.store.as_ref());
        self.pods.read().unwrap_or_else(PoisonError::into_inner)
    }
}

fn decision(found: Result<&Grant, Vec<String>>, why: String) -> Decision {
    match found {
        Ok(grant) => Decision::Allowed(grant.reason()),
        Err(broken) => {
            let broken = match broken.as_slice() {
                [] => String::new(),
                [one] => format!("RBAC: {one}"),
                many => format!("RBAC: [{}]", many.join(", ")),
            };
            let reasons: Vec<_> = [why, broken]
                .into_iter()
                .filter(|text| !text.is_empty())
                .collect();
            Decision::Denied(reasons.join(", "))
        }
    }
}

/// The refusal of a request, in Kubernetes' words and without the object's name in front.
pub(crate) fn refusal(user: &str, request: &Attributes<'_>, reason: &str) -> String {
    let mut what = request.resource.to_owned();
    if !request.subresource.is_empty() {
        what = format!("{what}/{}", request.subresource);
    }
    let place = if request.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {:?}", request.namespace)
    };
    let reason = if reason.is_empty() {
        String::new()
    } else {
        format!(": {reason}")
    };
    format!(
        "User {user:?} cannot {} resource {what:?} in API group {:?} {place}{reason}",
        request.verb, request.group
    )
}
