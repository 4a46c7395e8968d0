//! Ethernet addresses of the devices that Weft makes. They derive from IP addresses, so that nothing needs to learn them.

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize, de};

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct MacAddress([u8; 6]);

/// First bytes of the pod's end of a veth; locally administered, unicast.
const POD_PREFIX: [u8; 2] = [0x02, 0x50];
/// First bytes of the node's end of a veth.
const HOST_PREFIX: [u8; 2] = [0x02, 0x48];

impl MacAddress {
    /// The address of every overlay device: the inner frame's destination is right whatever node it goes to.
    pub const OVERLAY: Self = Self([0x02, 0x77, 0x65, 0x66, 0x74, 0x00]);

    /// An address from its bytes.
    pub const fn new(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }

    /// Of the pod's end of the veth of the pod with this address.
    pub fn of_pod(ip: IpAddr) -> Self {
        Self::derive(POD_PREFIX, ip)
    }

    /// Of the node's end of the veth of the pod with this address.
    pub fn of_host_end(ip: IpAddr) -> Self {
        Self::derive(HOST_PREFIX, ip)
    }

    /// The bytes in the order of the wire.
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }

    fn derive(prefix: [u8; 2], ip: IpAddr) -> Self {
        // The last four bytes tell the pods of one node apart in either family: pod CIDRs are no larger.
        let tail = match ip {
            IpAddr::V4(ip) => ip.octets(),
            IpAddr::V6(ip) => {
                let [.., a, b, c, d] = ip.octets();
                [a, b, c, d]
            }
        };
        Self([prefix[0], prefix[1], tail[0], tail[1], tail[2], tail[3]])
    }
}

impl From<[u8; 6]> for MacAddress {
    fn from(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0.map(|byte| format!("{byte:02x}"));
        f.write_str(&bytes.join(":"))
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is no Ethernet address.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not an Ethernet address: {0:?}")]
pub struct MacAddressError(String);

impl FromStr for MacAddress {
    type Err = MacAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || MacAddressError(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(refuse)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| refuse())?;
        }
        parts.next().is_none().then_some(Self(bytes)).ok_or_else(refuse)
    }
}

impl Serialize for MacAddress {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddress {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_bytes_agree() {
        let mac = MacAddress::of_pod("10.244.1.7".parse().unwrap());
        assert_eq!(mac.to_string(), "02:50:0a:f4:01:07");
        assert_eq!(mac.to_string().parse::<MacAddress>().unwrap(), mac);
        for bad in [
            "",
            "02:50",
            "02:50:0a:f4:01:07:08",
            "02:50:0a:f4:01:zz",
            "0250:0a:f4:01:07:1",
        ] {
            assert!(bad.parse::<MacAddress>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ends_of_a_veth_differ() {
        let ip = "fd00::1:2".parse().unwrap();
        assert_ne!(MacAddress::of_pod(ip), MacAddress::of_host_end(ip));
    }
}
