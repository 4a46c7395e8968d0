//! Who asks, and what they may do.

pub mod authorizer;
pub mod signing;
mod tokens;

use std::sync::Arc;

use x509_parser::prelude::{FromDer, X509Certificate};

pub(crate) use tokens::authenticate as authenticate_token;

/// Members may do everything.
pub const MASTERS: &str = "system:masters";
/// Everybody whose identity is known.
pub const AUTHENTICATED: &str = "system:authenticated";
/// Nodes.
pub const NODES: &str = "system:nodes";
/// Machines that may ask to become nodes.
pub const BOOTSTRAPPERS: &str = "system:bootstrappers";

/// Somebody who makes requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The user's name.
    pub user: String,
    /// The user's groups.
    pub groups: Vec<String>,
}

impl Identity {
    /// Someone who has not said who they are.
    pub fn anonymous() -> Self {
        Self {
            user: "system:anonymous".to_owned(),
            groups: vec!["system:unauthenticated".to_owned()],
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

/// The identity that a connection's client certificate proved, for all its requests.
#[derive(Clone, Debug)]
pub struct ConnectionIdentity(pub Arc<Identity>);
