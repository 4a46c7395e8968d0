//! Who asks, and what they may do.

mod authenticator;
pub mod authorizer;
pub(crate) mod bootstrap_token;
mod follow;
mod impersonation;
mod node;
pub mod rbac;
pub mod service_account;
pub mod signing;

use std::collections::BTreeMap;
use std::sync::Arc;

use x509_parser::prelude::{FromDer, X509Certificate};

pub(crate) use authenticator::Authenticator;
pub(crate) use impersonation::{ImpersonationError, impersonate};

/// Members may do everything.
pub const MASTERS: &str = "system:masters";
/// Everybody whose identity is known.
pub const AUTHENTICATED: &str = "system:authenticated";
/// Everybody else.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// The user without a name.
pub const ANONYMOUS: &str = "system:anonymous";
/// Nodes.
pub const NODES: &str = "system:nodes";
/// Machines that may ask to become nodes.
pub const BOOTSTRAPPERS: &str = "system:bootstrappers";
/// All service accounts; those of one namespace are in a group of this name with the namespace.
pub const SERVICE_ACCOUNTS: &str = "system:serviceaccounts";
/// Annotation that marks the API's copy of a pod that a node runs without being told.
pub(crate) const MIRROR: &str = "kubernetes.io/config.mirror";
/// What the name of a service account's user begins with.
const SERVICE_ACCOUNT_USER: &str = "system:serviceaccount:";

/// Somebody who makes requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The user's name.
    pub user: String,
    /// What tells the user from another of the same name at another time; empty where nothing does.
    pub uid: String,
    /// The user's groups.
    pub groups: Vec<String>,
    /// What else is known of the user.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl Identity {
    /// Someone who has not said who they are.
    pub fn anonymous() -> Self {
        Self {
            user: ANONYMOUS.to_owned(),
            groups: vec![UNAUTHENTICATED.to_owned()],
            ..Self::default()
        }
    }

    /// The control plane's own parts.
    pub fn control_plane() -> Self {
        Self::known("system:apiserver", vec![MASTERS.to_owned()])
    }

    /// A user whose identity was proved.
    pub fn known(user: impl Into<String>, mut groups: Vec<String>) -> Self {
        groups.push(AUTHENTICATED.to_owned());
        Self {
            user: user.into(),
            groups,
            ..Self::default()
        }
    }

    /// A service account, as everybody with one of its tokens.
    pub fn service_account(namespace: &str, name: &str, uid: &str) -> Self {
        let groups = vec![
            SERVICE_ACCOUNTS.to_owned(),
            format!("{SERVICE_ACCOUNTS}:{namespace}"),
        ];
        Self {
            uid: uid.to_owned(),
            ..Self::known(format!("{SERVICE_ACCOUNT_USER}{namespace}:{name}"), groups)
        }
    }

    /// The identity in a client certificate: the common name, and each organisation a group.
    pub fn of_certificate(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let subject = certificate.subject();
        let user = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let groups = subject
            .iter_organization()
            .filter_map(|organization| organization.as_str().ok().map(str::to_owned))
            .collect();
        Some(Self::known(user, groups))
    }

    /// Whether the user is in a group.
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|member| member == group)
    }

    /// The node's name if a node asks.
    pub fn node(&self) -> Option<&str> {
        self.user
            .strip_prefix("system:node:")
            .filter(|_| self.is_in(NODES))
    }
}

/// Namespace and name of the service account that a user's name stands for.
fn service_account_of(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix(SERVICE_ACCOUNT_USER)?.split_once(':')?;
    (!namespace.is_empty() && !name.is_empty()).then_some((namespace, name))
}

/// The identity that a connection's client certificate proved, for all its requests.
#[derive(Clone, Debug)]
pub struct ConnectionIdentity(pub Arc<Identity>);
