//! What is below objects: paths, verbs, bodies.

/// What can be reached below an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subresource {
    /// The status, written apart from the rest.
    Status,
    /// The number of replicas, as `autoscaling/v1` Scale.
    Scale,
    /// Puts a pod on a node.
    Binding,
    /// Deletes a pod unless a disruption budget forbids it.
    Eviction,
    /// Ends the deletion of a namespace.
    Finalize,
    /// Approves or denies a certificate signing request.
    Approval,
    /// A container's output; needs the node's agent.
    Log,
    /// Runs a command in a container; needs the node's agent.
    Exec,
    /// Joins a container's streams; needs the node's agent.
    Attach,
    /// Carries connections to a pod; needs the node's agent.
    PortForward,
    /// A token for a service account.
    Token,
    /// Carries requests to what runs there; needs the node's agent.
    Proxy,
    /// Containers that are added to a pod to look into it.
    EphemeralContainers,
    /// What a pod's containers may use.
    Resize,
}

impl Subresource {
    /// The last part of its path.
    pub fn name(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Scale => "scale",
            Self::Binding => "binding",
            Self::Eviction => "eviction",
            Self::Finalize => "finalize",
            Self::Approval => "approval",
            Self::Log => "log",
            Self::Exec => "exec",
            Self::Attach => "attach",
            Self::PortForward => "portforward",
            Self::Token => "token",
            Self::Proxy => "proxy",
            Self::EphemeralContainers => "ephemeralcontainers",
            Self::Resize => "resize",
        }
    }

    /// The verbs it serves.
    pub fn verbs(self) -> &'static [&'static str] {
        match self {
            Self::Status | Self::Scale | Self::Approval | Self::EphemeralContainers | Self::Resize => {
                &["get", "patch", "update"]
            }
            Self::Proxy => &["create", "delete", "get", "patch", "update"],
            Self::Binding | Self::Eviction | Self::Token => &["create"],
            Self::Finalize => &["update"],
            Self::Log => &["get"],
            Self::Exec | Self::Attach | Self::PortForward => &["create", "get"],
        }
    }

    /// Group, version and kind of its body where they are not the parent's.
    pub fn foreign_kind(self) -> Option<(&'static str, &'static str, &'static str)> {
        match self {
            Self::Scale => Some(("autoscaling", "v1", "Scale")),
            Self::Eviction => Some(("policy", "v1", "Eviction")),
            Self::Token => Some(("authentication.k8s.io", "v1", "TokenRequest")),
            _ => None,
        }
    }

    /// The kind of its body where it belongs to the parent's group.
    pub fn own_kind(self, parent: &str) -> Option<&'static str> {
        match self {
            Self::Proxy => Some(match parent {
                "Node" => "NodeProxyOptions",
                "Service" => "ServiceProxyOptions",
                _ => "PodProxyOptions",
            }),
            Self::Binding => Some("Binding"),
            Self::Exec => Some("PodExecOptions"),
            Self::Attach => Some("PodAttachOptions"),
            Self::PortForward => Some("PodPortForwardOptions"),
            _ => None,
        }
    }
}
