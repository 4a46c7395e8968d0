//! Why a packet went where it went. Every packet that meets a hook is counted under exactly one of these per hook.

/// Room in the metrics map: codes below are verdicts, codes from [`FIRST_DROP`] on are drops.
pub const MAX_REASONS: u32 = 64;

/// The first code that means a drop.
pub const FIRST_DROP: u32 = 32;

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $code:literal, $name:literal;)*) => {
        /// A verdict or a drop reason. Codes are part of the metrics map's layout: never reused, never renumbered.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason { $($(#[$doc])* $variant = $code,)* }

        impl Reason {
            /// Every reason, in the order of the codes.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The name in metrics and status output.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The reason with this code.
            #[must_use]
            pub const fn from_code(code: u32) -> Option<Self> {
                match code { $($code => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

reasons! {
    /// From a pod to a pod on this node.
    LocalDelivery = 1, "local_delivery";
    /// From a pod into the tunnel, header written by the program.
    Encapsulated = 2, "encapsulated";
    /// From the tunnel to a pod, header stripped by the program.
    Decapsulated = 3, "decapsulated";
    /// From a pod to the node's own stack: for the node itself, or for outside.
    ToStack = 4, "to_stack";
    /// From a pod to the overlay device, which is to encapsulate it.
    ToOverlayDevice = 5, "to_overlay_device";
    /// From a pod, too big for the tunnel: given to the node's stack, which fragments it or answers.
    TooBig = 6, "too_big";
    /// ARP or neighbour discovery for the gateway, answered in place.
    GatewayReply = 7, "gateway_reply";
    /// Underlay traffic that is no tunnel packet for this node.
    NotTunnel = 8, "not_tunnel";
    /// A tunnel packet left to the node's stack and its overlay device.
    TunnelToStack = 9, "tunnel_to_stack";
    /// From the tunnel to this node itself.
    TunnelToNode = 10, "tunnel_to_node";
    /// From a local pod, passed by the overlay device's ingress to the node's stack.
    PodToNode = 11, "pod_to_node";
    /// Into the tunnel by the overlay device.
    DeviceEncapsulated = 12, "device_encapsulated";
    /// From the tunnel to a pod, header stripped by the overlay device.
    DeviceDecapsulated = 13, "device_decapsulated";
    /// From the node's stack to a local pod.
    NodeToPod = 14, "node_to_pod";

    /// Shorter than its headers.
    Truncated = 32, "truncated";
    /// Not version 4, or a header length below 20.
    BadIpv4Header = 33, "bad_ipv4_header";
    /// The IPv4 total length does not fit the packet.
    BadIpv4Length = 34, "bad_ipv4_length";
    /// Not version 6.
    BadIpv6Header = 35, "bad_ipv6_header";
    /// The IPv6 payload length does not fit the packet.
    BadIpv6Length = 36, "bad_ipv6_length";
    /// Neither IPv4, IPv6 nor ARP, or with a VLAN tag.
    UnsupportedProtocol = 37, "unsupported_protocol";
    /// ARP that is no request for the gateway from the pod's own address.
    UnhandledArp = 38, "unhandled_arp";
    /// Multicast or broadcast, which the overlay does not carry.
    Multicast = 39, "multicast";
    /// Link-local traffic that is not for the gateway's neighbour discovery.
    LinkLocal = 40, "link_local";
    /// A source address that is not the pod's.
    SpoofedSource = 41, "spoofed_source";
    /// A cluster address with neither an endpoint here nor a peer behind it.
    NoPeer = 42, "no_peer";
    /// A VXLAN header without the valid-identifier flag.
    BadVxlanHeader = 43, "bad_vxlan_header";
    /// A tunnel packet shorter than its headers, or with lengths that disagree.
    TruncatedTunnel = 44, "truncated_tunnel";
    /// Another overlay's identifier.
    ForeignVni = 45, "foreign_vni";
    /// An inner source address that no peer has.
    UnknownTunnelSource = 46, "unknown_tunnel_source";
    /// An inner source address that belongs to another peer than the one that sent it.
    SpoofedTunnelSource = 47, "spoofed_tunnel_source";
    /// Congestion marked on the outside of a packet whose sender does not understand it (RFC 6040).
    EcnViolation = 48, "ecn_violation";
    /// The kernel could not change the packet: it had no memory for a copy of one that it shares. Nothing in a packet leads
    /// here; the verifier wants an answer wherever a helper or a bound could say no. (49 and 50 were finer names for it.)
    RewriteFailed = 51, "rewrite_failed";
    /// The node is not configured.
    NotConfigured = 52, "not_configured";
    /// From the tunnel, for neither this node nor a pod on it.
    NotLocal = 53, "not_local";
}

impl Reason {
    /// The code, which is the index in the metrics map.
    #[must_use]
    pub const fn code(self) -> u32 {
        self as u32
    }

    /// Whether the packet was dropped.
    #[must_use]
    pub const fn is_drop(self) -> bool {
        self.code() >= FIRST_DROP
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn codes_and_names_are_unique_and_fit_the_map() {
        let codes: BTreeSet<_> = Reason::ALL.iter().map(|r| r.code()).collect();
        let names: BTreeSet<_> = Reason::ALL.iter().map(|r| r.name()).collect();
        assert_eq!(codes.len(), Reason::ALL.len());
        assert_eq!(names.len(), Reason::ALL.len());
        assert!(codes.iter().all(|&c| c < MAX_REASONS));
        for &r in Reason::ALL {
            assert_eq!(Reason::from_code(r.code()), Some(r));
        }
        assert_eq!(Reason::from_code(0), None);
    }
}
