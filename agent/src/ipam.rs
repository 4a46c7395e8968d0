//! Leases of addresses from the node's pod CIDRs. Pure: time comes in, changes go out.
//!
//! Addresses are given out in rotation and a freed one rests before it is used again: whoever still sends to the pod
//! that had it must not reach another one.

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use ipnetwork::IpNetwork;

use crate::endpoint::AttachmentKey;

pub mod ledger;

/// Time since the boot of the machine, suspension included. Unlike wall time it never jumps.
pub type BootTime = Duration;

/// Why no address could be leased.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IpamError {
    /// The node has no pod CIDR yet.
    #[error("the node has no pod CIDR yet; the control plane gives it one when it joins")]
    NoPodCidr,
    /// Every address is taken.
    #[error(
        "pod CIDR {cidr} is exhausted: {leased} addresses are leased and {resting} rest after their release; delete \
         pods, wait for addresses to rest, or give nodes larger pod CIDRs (--node-cidr-mask-size of the controller)"
    )]
    Exhausted {
        /// The pod CIDR.
        cidr: IpNetwork,
        /// How many are leased.
        leased: usize,
        /// How many rest.
        resting: usize,
    },
    /// Two pod CIDRs cannot be served together.
    #[error("pod CIDR {0} {1}")]
    BadCidr(IpNetwork, &'static str),
}

/// One pod CIDR.
#[derive(Debug, Clone)]
struct Pool {
    cidr: IpNetwork,
    /// First and last address that may be leased, as numbers.
    first: u128,
    last: u128,
    /// Where the search begins.
    next: u128,
    leased: BTreeMap<u128, AttachmentKey>,
    /// Freed addresses and the end of their rest, oldest first.
    resting: VecDeque<(u128, BootTime)>,
}

/// What a pool has and has given.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PoolUse {
    /// The pod CIDR.
    pub cidr: IpNetwork,
    /// How many addresses it can lease; a larger number than `u64` holds is cut to that.
    pub capacity: u64,
    /// How many are leased.
    pub leased: usize,
    /// How many rest after their release.
    pub resting: usize,
}

/// The addresses of the node's pod CIDRs and who has them.
#[derive(Debug, Clone, Default)]
pub struct Ipam {
    pools: Vec<Pool>,
    rest: Duration,
}

impl Ipam {
    /// No pod CIDRs yet; freed addresses rest for `rest`.
    pub fn new(rest: Duration) -> Self {
        Self {
            pools: Vec::new(),
            rest,
        }
    }

    /// Takes the node's pod CIDRs, at most one of each family. Leases in a CIDR that stays are kept.
    pub fn set_cidrs(&mut self, cidrs: &[IpNetwork]) -> Result<(), IpamError> {
        let mut pools = Vec::new();
        for cidr in cidrs {
            let pool = Pool::new(*cidr)?;
            if pools
                .iter()
                .any(|other: &Pool| other.cidr.is_ipv4() == cidr.is_ipv4())
            {
                return Err(IpamError::BadCidr(*cidr, "is the second one of its family"));
            }
            let kept = self.pools.iter().find(|old| old.cidr == pool.cidr);
            pools.push(kept.cloned().unwrap_or(pool));
        }
        // IPv4 first, everywhere.
        pools.sort_by_key(|pool| pool.cidr.is_ipv6());
        self.pools = pools;
        Ok(())
    }

    /// The pod CIDRs, IPv4 first.
    pub fn cidrs(&self) -> Vec<IpNetwork> {
        self.pools.iter().map(|pool| pool.cidr).collect()
    }

    /// Leases one address of each family, or none.
    pub fn lease(&mut self, key: &AttachmentKey, now: BootTime) -> Result<Vec<IpAddr>, IpamError> {
        if self.pools.is_empty() {
            return Err(IpamError::NoPodCidr);
        }
        let mut found = Vec::with_capacity(self.pools.len());
        for pool in &mut self.pools {
            found.push(pool.find(now)?);
        }
        Ok(self
            .pools
            .iter_mut()
            .zip(found)
            .map(|(pool, number)| pool.take(number, key))
            .collect())
    }

    /// Takes an address that an attachment has from before. False if it is another's, or of no pod CIDR.
    pub fn adopt(&mut self, key: &AttachmentKey, ip: IpAddr) -> bool {
        let Some(pool) = self.pool_of(ip) else {
            return false;
        };
        let number = number_of(ip);
        if let Some(owner) = pool.leased.get(&number) {
            return owner == key;
        }
        pool.resting.retain(|(resting, _)| *resting != number);
        pool.take(number, key);
        true
    }

    /// Frees an address, which rests from `now` on. False if the attachment does not have it.
    pub fn release(&mut self, key: &AttachmentKey, ip: IpAddr, now: BootTime) -> bool {
        let rest = self.rest;
        let Some(pool) = self.pool_of(ip) else {
            return false;
        };
        let number = number_of(ip);
        if pool.leased.get(&number) != Some(key) {
            return false;
        }
        pool.leased.remove(&number);
        pool.resting.push_back((number, now.saturating_add(rest)));
        true
    }

    /// Lets a free address rest until `end`: it was released before a restart.
    pub fn rest(&mut self, ip: IpAddr, end: BootTime) {
        let Some(pool) = self.pool_of(ip) else { return };
        let number = number_of(ip);
        if !pool.leased.contains_key(&number) && pool.is_usable(number) {
            pool.resting.retain(|(resting, _)| *resting != number);
            let position = pool.resting.partition_point(|(_, other)| *other <= end);
            pool.resting.insert(position, (number, end));
            pool.next = if number == pool.last {
                pool.first
            } else {
                number + 1
            };
        }
    }

    /// Who has an address.
    pub fn owner(&self, ip: IpAddr) -> Option<&AttachmentKey> {
        let pool = self.pools.iter().find(|pool| pool.cidr.contains(ip))?;
        pool.leased.get(&number_of(ip))
    }

    /// All leases.
    pub fn leases(&self) -> impl Iterator<Item = (IpAddr, &AttachmentKey)> {
        self.pools.iter().flat_map(|pool| {
            pool.leased
                .iter()
                .map(|(number, key)| (pool.address(*number), key))
        })
    }

    /// How full the pools are.
    pub fn usage(&self, now: BootTime) -> Vec<PoolUse> {
        self.pools
            .iter()
            .map(|pool| PoolUse {
                cidr: pool.cidr,
                capacity: u64::try_from(pool.last - pool.first + 1).unwrap_or(u64::MAX),
                leased: pool.leased.len(),
                resting: pool.resting.iter().filter(|(_, end)| *end > now).count(),
            })
            .collect()
    }

    /// Whether a lease would be given.
    pub fn has_room(&self, now: BootTime) -> Result<(), IpamError> {
        if self.pools.is_empty() {
            return Err(IpamError::NoPodCidr);
        }
        self.pools.iter().try_for_each(|pool| pool.room(now).map(drop))
    }

    fn pool_of(&mut self, ip: IpAddr) -> Option<&mut Pool> {
        self.pools.iter_mut().find(|pool| pool.cidr.contains(ip))
    }
}

impl Pool {
    fn new(cidr: IpNetwork) -> Result<Self, IpamError> {
        let cidr = IpNetwork::new(cidr.network(), cidr.prefix()).unwrap_or(cidr);
        let bits = if cidr.is_ipv4() { 32 } else { 128 };
        let host_bits = u32::from(bits - cidr.prefix());
        if host_bits < 2 {
            return Err(IpamError::BadCidr(
                cidr,
                "is too small for pods; the smallest are /30 and /126",
            ));
        }
        let network = number_of(cidr.network());
        let size = 1_u128.checked_shl(host_bits).map_or(u128::MAX, |size| size - 1);
        // The network's own address (in IPv6 the routers' anycast) and IPv4's broadcast are no host's.
        let first = network + 1;
        let last = network + size - u128::from(cidr.is_ipv4());
        Ok(Self {
            cidr,
            first,
            last,
            next: first,
            leased: BTreeMap::new(),
            resting: VecDeque::new(),
        })
    }

    fn is_usable(&self, number: u128) -> bool {
        (self.first..=self.last).contains(&number)
    }

    fn address(&self, number: u128) -> IpAddr {
        match self.cidr {
            IpNetwork::V4(_) => Ipv4Addr::from_bits(number as u32).into(),
            IpNetwork::V6(_) => Ipv6Addr::from_bits(number).into(),
        }
    }

    fn is_free(&self, number: u128) -> bool {
        !self.leased.contains_key(&number) && !self.resting.iter().any(|(resting, _)| *resting == number)
    }

    fn find(&mut self, now: BootTime) -> Result<u128, IpamError> {
        while self.resting.front().is_some_and(|(_, end)| *end <= now) {
            self.resting.pop_front();
        }
        // Among one more candidates than are taken, one is free: the search is bounded by what is in use.
        let taken = (self.leased.len() + self.resting.len()) as u128;
        let size = self.last - self.first + 1;
        if taken < size {
            let mut number = self.next;
            for _ in 0..=taken {
                if self.is_free(number) {
                    return Ok(number);
                }
                number = self.after(number);
            }
        }
        Err(self.exhausted(now))
    }

    fn room(&self, now: BootTime) -> Result<(), IpamError> {
        let resting = self.resting.iter().filter(|(_, end)| *end > now).count();
        let taken = (self.leased.len() + resting) as u128;
        if taken > self.last - self.first {
            Err(self.exhausted(now))
        } else {
            Ok(())
        }
    }

    fn exhausted(&self, now: BootTime) -> IpamError {
        IpamError::Exhausted {
            cidr: self.cidr,
            leased: self.leased.len(),
            resting: self.resting.iter().filter(|(_, end)| *end > now).count(),
        }
    }

    fn after(&self, number: u128) -> u128 {
        if number >= self.last {
            self.first
        } else {
            number + 1
        }
    }

    fn take(&mut self, number: u128, key: &AttachmentKey) -> IpAddr {
        self.leased.insert(number, key.clone());
        self.next = self.after(number);
        self.address(number)
    }
}

fn number_of(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    const REST: Duration = Duration::from_secs(30);

    fn key(number: usize) -> AttachmentKey {
        AttachmentKey::new(format!("c{number}"), "eth0")
    }

    fn at(seconds: u64) -> BootTime {
        Duration::from_secs(seconds)
    }

    fn ipam(cidrs: &[&str]) -> Ipam {
        let mut ipam = Ipam::new(REST);
        let cidrs: Vec<_> = cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
        ipam.set_cidrs(&cidrs).unwrap();
        ipam
    }

    #[test]
    fn network_and_broadcast_addresses_are_never_leased() {
        let mut ipam = ipam(&["10.0.0.0/30"]);
        let got: Vec<_> = (0..2)
            .map(|n| ipam.lease(&key(n), at(0)).unwrap()[0].to_string())
            .collect();
        assert_eq!(got, ["10.0.0.1", "10.0.0.2"]);
        assert!(matches!(
            ipam.lease(&key(3), at(0)),
            Err(IpamError::Exhausted { leased: 2, .. })
        ));
    }

    #[test]
    fn exhaustion_says_what_to_do() {
        let mut ipam = ipam(&["10.0.0.0/30"]);
        let ip = ipam.lease(&key(1), at(0)).unwrap()[0];
        ipam.lease(&key(2), at(0)).unwrap();
        assert!(ipam.release(&key(1), ip, at(0)));
        let text = ipam.lease(&key(3), at(1)).unwrap_err().to_string();
        assert!(
            text.contains("10.0.0.0/30 is exhausted: 1 addresses are leased and 1 rest"),
            "{text}"
        );
        assert!(text.contains("--node-cidr-mask-size"), "{text}");
        assert!(ipam.has_room(at(29)).is_err());
        assert_eq!(ipam.has_room(at(30)), Ok(()));
        assert_eq!(ipam.lease(&key(3), at(30)).unwrap(), [ip]);
    }

    #[test]
    fn a_dual_stack_lease_is_both_or_none() {
        let mut ipam = ipam(&["fd00:1::/64", "10.0.0.0/30"]);
        let ips = ipam.lease(&key(1), at(0)).unwrap();
        assert!(ips[0].is_ipv4() && ips[1].is_ipv6());
        ipam.lease(&key(2), at(0)).unwrap();
        assert!(ipam.lease(&key(3), at(0)).is_err());
        assert_eq!(
            ipam.usage(at(0))[1].leased,
            2,
            "no IPv6 address was kept by the failed lease"
        );
    }

    #[test]
    fn a_second_pod_cidr_of_one_family_is_refused() {
        let mut ipam = Ipam::new(REST);
        let cidrs = ["10.0.0.0/24".parse().unwrap(), "10.0.1.0/24".parse().unwrap()];
        assert!(matches!(ipam.set_cidrs(&cidrs), Err(IpamError::BadCidr(..))));
        assert!(ipam.set_cidrs(&["10.0.0.0/31".parse().unwrap()]).is_err());
    }

    #[test]
    fn the_largest_pools_do_not_overflow() {
        let mut ipam = ipam(&["0.0.0.0/0", "::/0"]);
        assert_eq!(ipam.lease(&key(1), at(0)).unwrap().len(), 2);
    }

    #[test]
    fn adopted_and_resting_addresses_are_not_leased() {
        let mut ipam = ipam(&["10.0.0.0/29"]);
        assert!(ipam.adopt(&key(1), "10.0.0.1".parse().unwrap()));
        assert!(!ipam.adopt(&key(2), "10.0.0.1".parse().unwrap()));
        assert!(!ipam.adopt(&key(2), "10.9.0.1".parse().unwrap()));
        ipam.rest("10.0.0.2".parse().unwrap(), at(10));
        let got = ipam.lease(&key(2), at(0)).unwrap()[0];
        assert_eq!(got.to_string(), "10.0.0.3");
    }

    #[derive(Debug, Clone)]
    enum Step {
        Lease(usize),
        Release(usize),
        Wait(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0_usize..12).prop_map(Step::Lease),
            (0_usize..12).prop_map(Step::Release),
            (0_u64..20).prop_map(Step::Wait),
        ];
        proptest::collection::vec(step, 0..200)
    }

    proptest! {
        /// The model knows who has what, and when what was freed.
        #[test]
        fn no_address_is_used_twice_none_leaks_and_freed_ones_rest(steps in steps()) {
            let mut ipam = ipam(&["10.0.0.0/29"]);
            let usable = 6;
            let mut now = 0;
            let mut held: BTreeMap<usize, IpAddr> = BTreeMap::new();
            let mut freed: BTreeMap<IpAddr, u64> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Wait(seconds) => now += seconds,
                    Step::Lease(who) if held.contains_key(&who) => {}
                    Step::Lease(who) => {
                        let resting = freed.values().filter(|at| now < **at + 30).count();
                        if let Ok(ips) = ipam.lease(&key(who), at(now)) {
                                prop_assert!(!held.values().any(|ip| *ip == ips[0]), "leased twice");
                                let rested = freed.remove(&ips[0]).is_none_or(|at| now >= at + 30);
                                prop_assert!(rested, "leased before it rested");
                                held.insert(who, ips[0]);
                        } else {
                            prop_assert_eq!(held.len() + resting, usable, "leaked");
                        }
                    }
                    Step::Release(who) => {
                        if let Some(ip) = held.remove(&who) {
                            prop_assert!(ipam.release(&key(who), ip, at(now)));
                            prop_assert!(!ipam.release(&key(who), ip, at(now)), "released twice");
                            freed.insert(ip, now);
                        }
                    }
                }
                let leases: BTreeSet<IpAddr> = ipam.leases().map(|(ip, _)| ip).collect();
                prop_assert_eq!(leases, held.values().copied().collect::<BTreeSet<_>>());
            }
        }
    }
}
