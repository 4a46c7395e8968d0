//! What Services take of the cluster: addresses of the service ranges, and node ports. Everything here is decided from
//! data alone; `api::allocate` reads the store and writes the result in one transaction with the Service.

pub mod carry;
pub mod families;
pub mod holdings;
pub mod ranges;

use std::fmt;
use std::net::IpAddr;

use serde_json::Value;

/// The value of `clusterIP` that asks for none.
pub const HEADLESS: &str = "None";

/// An address family, under the names Services use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// `IPv4`
    V4,
    /// `IPv6`
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The family of that name.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "IPv4" => Some(Self::V4),
            "IPv6" => Some(Self::V6),
            _ => None,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// The one that this is not.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether the Service is a name for something outside, and so has no address.
pub fn is_external_name(spec: &Value) -> bool {
    spec["type"] == "ExternalName"
}

/// Whether the Service asks for no address.
pub fn is_headless(spec: &Value) -> bool {
    spec["clusterIP"] == HEADLESS || spec["clusterIPs"][0] == HEADLESS
}

/// Whether every port gets a node port.
fn needs_node_ports(spec: &Value) -> bool {
    match spec["type"].as_str() {
        Some("NodePort") => true,
        Some("LoadBalancer") => spec["allocateLoadBalancerNodePorts"] != false,
        _ => false,
    }
}

/// Whether ports may have node ports.
fn may_have_node_ports(spec: &Value) -> bool {
    matches!(spec["type"].as_str(), Some("NodePort" | "LoadBalancer"))
}

/// Whether nodes answer health checks of a load balancer on a port of its own.
fn needs_health_port(spec: &Value) -> bool {
    spec["type"] == "LoadBalancer" && spec["externalTrafficPolicy"] == "Local"
}

/// The texts of a list.
fn texts(list: &Value) -> Vec<&str> {
    list.as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Number(number) => number.as_i64() == Some(0),
        Value::Bool(_) => false,
    }
}

fn remove(spec: &mut Value, key: &str) {
    if let Some(fields) = spec.as_object_mut() {
        fields.remove(key);
    }
}
