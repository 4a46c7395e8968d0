//! Masquerading of what pods send outside the cluster: the only address translation that Weft does.
//!
//! It lives in an nftables table of its own, written over raw netlink: no tool has to be installed, and nobody else's
//! rules are touched. Each rule carries a digest of itself as user data, so that looking whether the table is whole is one
//! dump.

use std::io;

use ipnetwork::IpNetwork;
use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};
use sha2::{Digest as _, Sha256};

/// The table's name.
pub const TABLE: &str = "weft";
const CHAIN: &str = "postrouting";

/// Why the table could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("kernel refused to {verb} nftables table {TABLE}")]
pub struct NftablesError {
    verb: &'static str,
    source: io::Error,
}

// From linux/netfilter/nfnetlink.h and nf_tables.h.
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const DELETE_TABLE: u16 = (SUBSYSTEM << 8) | 2;
const NEW_CHAIN: u16 = (SUBSYSTEM << 8) | 3;
const NEW_RULE: u16 = (SUBSYSTEM << 8) | 6;
const GET_RULE: u16 = (SUBSYSTEM << 8) | 7;
const FAMILY_INET: u8 = 1;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLA_F_NESTED: u16 = 0x8000;
const HEADER_BYTES: usize = 16;
const NFGEN_BYTES: usize = 4;

const NFTA_TABLE_NAME: u16 = 1;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_NUMBER: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const HOOK_POSTROUTING: u32 = 4;
const PRIORITY_SOURCE_NAT: u32 = 100;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_RULE_USERDATA: u16 = 7;
const NFTA_LIST_ELEMENT: u16 = 1;
const NFTA_EXPRESSION_NAME: u16 = 1;
const NFTA_EXPRESSION_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_META_REGISTER: u16 = 1;
const NFTA_META_KEY: u16 = 2;
const META_OUTPUT_NAME: u32 = 7;
const META_PROTOCOL_FAMILY: u32 = 15;
const NFTA_PAYLOAD_REGISTER: u16 = 1;
const NFTA_PAYLOAD_BASE: u16 = 2;
const NFTA_PAYLOAD_OFFSET: u16 = 3;
const NFTA_PAYLOAD_LENGTH: u16 = 4;
const BASE_NETWORK_HEADER: u32 = 1;
const NFTA_BITWISE_SOURCE: u16 = 1;
const NFTA_BITWISE_REGISTER: u16 = 2;
const NFTA_BITWISE_LENGTH: u16 = 3;
const NFTA_BITWISE_MASK: u16 = 4;
const NFTA_BITWISE_XOR: u16 = 5;
const NFTA_COMPARE_REGISTER: u16 = 1;
const NFTA_COMPARE_OPERATOR: u16 = 2;
const NFTA_COMPARE_DATA: u16 = 3;
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
const REGISTER: u32 = 1;
const FAMILY_IPV4: u8 = 2;
const FAMILY_IPV6: u8 = 10;
const INTERFACE_NAME_BYTES: usize = 16;

/// What is to be masqueraded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Masquerade {
    /// Sources: the node's own pods.
    pub sources: Vec<IpNetwork>,
    /// The device behind which nothing is: the overlay.
    pub except_device: String,
}

impl Masquerade {
    fn digests(&self) -> Vec<Vec<u8>> {
        self.sources
            .iter()
            .map(|source| {
                let text = format!("1 {source} {}", self.except_device);
                Sha256::digest(text.as_bytes())[..16].to_vec()
            })
            .collect()
    }

    /// Makes the table what it must be. Whether it was not.
    pub fn ensure(&self) -> Result<bool, NftablesError> {
        if rules()? == self.digests() {
            return Ok(false);
        }
        transact("write", |batch| {
            // Made so that it can be deleted, which must not fail; the kernel sees only the outcome.
            batch.table(NEW_TABLE, NLM_F_CREATE);
            batch.table(DELETE_TABLE, 0);
            batch.table(NEW_TABLE, NLM_F_CREATE);
            batch.chain();
            for (source, digest) in self.sources.iter().zip(self.digests()) {
                batch.rule(*source, &self.except_device, &digest);
            }
        })?;
        Ok(true)
    }
}

/// Deletes the table, if it is there.
pub fn remove() -> Result<(), NftablesError> {
    transact("delete", |batch| {
        batch.table(NEW_TABLE, NLM_F_CREATE);
        batch.table(DELETE_TABLE, 0);
    })
}

/// The digests of the rules that are in the kernel.
pub fn rules() -> Result<Vec<Vec<u8>>, NftablesError> {
    let failed = |source| NftablesError { verb: "read", source };
    let mut message = Batch::default();
    message.message(GET_RULE, NLM_F_DUMP, FAMILY_INET, 0, |m| {
        m.string(NFTA_RULE_TABLE, TABLE);
        m.string(NFTA_RULE_CHAIN, CHAIN);
    });
    let mut digests = Vec::new();
    exchange(&message.bytes, |kind, payload| {
        if kind == NEW_RULE {
            let attributes = payload.get(NFGEN_BYTES..).unwrap_or_default();
            if attribute(attributes, NFTA_RULE_TABLE) == Some(b"weft\0") {
                digests.push(
                    attribute(attributes, NFTA_RULE_USERDATA)
                        .unwrap_or_default()
                        .to_vec(),
                );
            }
        }
    })
    .or_else(|error| {
        if error.raw_os_error() == Some(libc::ENOENT) {
            Ok(())
        } else {
            Err(error)
        }
    })
    .map_err(failed)?;
    Ok(digests)
}

fn transact(verb: &'static str, fill: impl FnOnce(&mut Batch)) -> Result<(), NftablesError> {
    let mut batch = Batch::default();
    batch.message(BATCH_BEGIN, 0, 0, SUBSYSTEM, |_| {});
    fill(&mut batch);
    batch.message(BATCH_END, 0, 0, SUBSYSTEM, |_| {});
    exchange(&batch.bytes, |_, _| {}).map_err(|source| NftablesError { verb, source })
}

/// Sends, then hands every answer to `each`. The first error ends it.
fn exchange(bytes: &[u8], mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
    const RECEIVE_BYTES: usize = 64 * 1024;
    let socket = Socket::new(NETLINK_NETFILTER)?;
    socket.send(bytes, 0)?;
    // The kernel has answered a transaction when `send` returns, and a dump goes on with each `recv`.
    socket.set_non_blocking(true)?;
    let mut buffer = Vec::with_capacity(RECEIVE_BYTES);
    loop {
        buffer.clear();
        buffer.reserve(RECEIVE_BYTES);
        match socket.recv(&mut buffer, 0) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        let mut rest = buffer.as_slice();
        while let Some((kind, payload, behind)) = split_message(rest) {
            rest = behind;
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => {
                    let code = payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                    if code != 0 {
                        return Err(io::Error::from_raw_os_error(code.wrapping_neg()));
                    }
                }
                _ => each(kind, payload),
            }
        }
    }
}

/// The first message of a datagram: type, payload, and what follows.
fn split_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let [l0, l1, l2, l3, k0, k1, ..] = *bytes.first_chunk::<HEADER_BYTES>()?;
    let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
    let payload = bytes.get(HEADER_BYTES..length)?;
    Some((
        u16::from_ne_bytes([k0, k1]),
        payload,
        bytes.get(align(length)..).unwrap_or_default(),
    ))
}

/// The value of the first attribute of a kind.
fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let [l0, l1, k0, k1] = *bytes.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = bytes.get(4..length)?;
        if u16::from_ne_bytes([k0, k1]) & !NLA_F_NESTED == wanted {
            return Some(value);
        }
        bytes = bytes.get(align(length)..)?;
    }
}

const fn align(length: usize) -> usize {
    (length + 3) & !3
}

/// Netlink messages one behind the other.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    sequence: u32,
}

impl Batch {
    fn message(&mut self, kind: u16, flags: u16, family: u8, resource: u16, fill: impl FnOnce(&mut Self)) {
        let acknowledge = if kind == BATCH_BEGIN || kind == BATCH_END {
            0
        } else {
            NLM_F_ACK
        };
        let start = self.bytes.len();
        self.sequence += 1;
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes
            .extend_from_slice(&(NLM_F_REQUEST | acknowledge | flags).to_ne_bytes());
        self.bytes.extend_from_slice(&self.sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&[family, 0]);
        self.bytes.extend_from_slice(&resource.to_be_bytes());
        fill(self);
        let length = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    fn bytes(&mut self, kind: u16, value: &[u8]) {
        let length = (value.len() + 4) as u16;
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(align(self.bytes.len()), 0);
    }

    fn string(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes);
    }

    fn number(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
        fill(self);
        let length = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    fn table(&mut self, kind: u16, flags: u16) {
        self.message(kind, flags, FAMILY_INET, 0, |m| m.string(NFTA_TABLE_NAME, TABLE));
    }

    fn chain(&mut self) {
        self.message(NEW_CHAIN, NLM_F_CREATE, FAMILY_INET, 0, |m| {
            m.string(NFTA_CHAIN_TABLE, TABLE);
            m.string(NFTA_CHAIN_NAME, CHAIN);
            m.nest(NFTA_CHAIN_HOOK, |m| {
                m.number(NFTA_HOOK_NUMBER, HOOK_POSTROUTING);
                m.number(NFTA_HOOK_PRIORITY, PRIORITY_SOURCE_NAT);
            });
            m.string(NFTA_CHAIN_TYPE, "nat");
        });
    }

    /// `meta nfproto … ip saddr <source> oifname != <device> masquerade`
    fn rule(&mut self, source: IpNetwork, except_device: &str, digest: &[u8]) {
        let (family, offset) = match source {
            IpNetwork::V4(_) => (FAMILY_IPV4, 12),
            IpNetwork::V6(_) => (FAMILY_IPV6, 8),
        };
        let (address, mask) = match source {
            IpNetwork::V4(net) => (net.network().octets().to_vec(), net.mask().octets().to_vec()),
            IpNetwork::V6(net) => (net.network().octets().to_vec(), net.mask().octets().to_vec()),
        };
        let length = address.len() as u32;
        let mut device = except_device.as_bytes().to_vec();
        device.resize(INTERFACE_NAME_BYTES, 0);
        self.message(NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, FAMILY_INET, 0, |m| {
            m.string(NFTA_RULE_TABLE, TABLE);
            m.string(NFTA_RULE_CHAIN, CHAIN);
            m.nest(NFTA_RULE_EXPRESSIONS, |m| {
                m.meta(META_PROTOCOL_FAMILY);
                m.compare(EQUAL, &[family]);
                m.expression("payload", |m| {
                    m.number(NFTA_PAYLOAD_REGISTER, REGISTER);
                    m.number(NFTA_PAYLOAD_BASE, BASE_NETWORK_HEADER);
                    m.number(NFTA_PAYLOAD_OFFSET, offset);
                    m.number(NFTA_PAYLOAD_LENGTH, length);
                });
                m.expression("bitwise", |m| {
                    m.number(NFTA_BITWISE_SOURCE, REGISTER);
                    m.number(NFTA_BITWISE_REGISTER, REGISTER);
                    m.number(NFTA_BITWISE_LENGTH, length);
                    m.nest(NFTA_BITWISE_MASK, |m| m.bytes(NFTA_DATA_VALUE, &mask));
                    m.nest(NFTA_BITWISE_XOR, |m| {
                        m.bytes(NFTA_DATA_VALUE, &vec![0; mask.len()]);
                    });
                });
                m.compare(EQUAL, &address);
                m.meta(META_OUTPUT_NAME);
                m.compare(NOT_EQUAL, &device);
                m.expression("masq", |_| {});
            });
            m.bytes(NFTA_RULE_USERDATA, digest);
        });
    }

    fn expression(&mut self, name: &str, fill: impl FnOnce(&mut Self)) {
        self.nest(NFTA_LIST_ELEMENT, |m| {
            m.string(NFTA_EXPRESSION_NAME, name);
            m.nest(NFTA_EXPRESSION_DATA, fill);
        });
    }

    fn meta(&mut self, key: u32) {
        self.expression("meta", |m| {
            m.number(NFTA_META_KEY, key);
            m.number(NFTA_META_REGISTER, REGISTER);
        });
    }

    fn compare(&mut self, operator: u32, value: &[u8]) {
        self.expression("cmp", |m| {
            m.number(NFTA_COMPARE_REGISTER, REGISTER);
            m.number(NFTA_COMPARE_OPERATOR, operator);
            m.nest(NFTA_COMPARE_DATA, |m| m.bytes(NFTA_DATA_VALUE, value));
        });
    }
}
