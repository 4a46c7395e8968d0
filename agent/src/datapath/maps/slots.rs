//! The slots before the endpoints' hashes: who is in which, and the writing of them.
//!
//! The hashes are what is true; slots are made of them anew whenever the maps are opened, since an agent of a version
//! without slots may have been at work in between.

use std::collections::HashMap;
use std::net::IpAddr;

use aya::{
    Ebpf,
    maps::{Array, MapData, MapError},
};
use weft_ebpf_common::{Endpoint, SlotV4, SlotV6, maps, slot};

use super::{DataplaneError, take};

/// The endpoints by slot; the first of a slot is in it. A pure account of what [`Slots`] writes.
#[derive(Debug, Default)]
struct Occupants(HashMap<(bool, u32), Vec<(IpAddr, Endpoint)>>);

fn index(ip: IpAddr) -> u32 {
    let last_word = match ip {
        IpAddr::V4(ip) => ip.octets(),
        IpAddr::V6(ip) => {
            let [.., a, b, c, d] = ip.octets();
            [a, b, c, d]
        }
    };
    slot::index(u32::from_ne_bytes(last_word))
}

impl Occupants {
    fn insert(&mut self, ip: IpAddr, endpoint: Endpoint) {
        let here = self.0.entry((ip.is_ipv6(), index(ip))).or_default();
        match here.iter_mut().find(|(other, _)| *other == ip) {
            Some((_, present)) => *present = endpoint,
            None => here.push((ip, endpoint)),
        }
    }

    fn remove(&mut self, ip: IpAddr) {
        if let Some(here) = self.0.get_mut(&(ip.is_ipv6(), index(ip))) {
            here.retain(|(other, _)| *other != ip);
        }
    }

    /// Who is in a slot, and whether others have it as well.
    fn of(&self, v6: bool, index: u32) -> (Option<(IpAddr, Endpoint)>, bool) {
        match self.0.get(&(v6, index)).map(Vec::as_slice) {
            Some([first, rest @ ..]) => (Some(*first), !rest.is_empty()),
            Some([]) | None => (None, false),
        }
    }

    fn slot_v4(&self, index: u32) -> SlotV4 {
        match self.of(false, index) {
            (Some((IpAddr::V4(ip), endpoint)), shared) => SlotV4 {
                address: ip.octets(),
                shared: shared.into(),
                endpoint,
            },
            _ => SlotV4::default(),
        }
    }

    fn slot_v6(&self, index: u32) -> SlotV6 {
        match self.of(true, index) {
            (Some((IpAddr::V6(ip), endpoint)), shared) => SlotV6 {
                address: ip.octets(),
                endpoint,
                shared: shared.into(),
                pad: 0,
            },
            _ => SlotV6::default(),
        }
    }
}

/// Both families' slots.
pub(super) struct Slots {
    v4: Array<MapData, SlotV4>,
    v6: Array<MapData, SlotV6>,
    occupants: Occupants,
}

impl Slots {
    /// Takes the maps out of a loaded object and makes them say what the hashes say.
    pub(super) fn take(
        ebpf: &mut Ebpf,
        endpoints: impl IntoIterator<Item = (IpAddr, Endpoint)>,
    ) -> Result<Self, DataplaneError> {
        let mut slots = Self {
            v4: take(ebpf, maps::SLOTS_V4)?,
            v6: take(ebpf, maps::SLOTS_V6)?,
            occupants: Occupants::default(),
        };
        for (ip, endpoint) in endpoints {
            slots.occupants.insert(ip, endpoint);
        }
        for index in 0..slot::SLOTS {
            slots.write_v4(index)?;
            slots.write_v6(index)?;
        }
        Ok(slots)
    }

    /// To be told after the hash was.
    pub(super) fn upsert(&mut self, ip: IpAddr, endpoint: Endpoint) -> Result<(), DataplaneError> {
        self.occupants.insert(ip, endpoint);
        self.write(ip)
    }

    /// To be told before the hash is.
    pub(super) fn remove(&mut self, ip: IpAddr) -> Result<(), DataplaneError> {
        self.occupants.remove(ip);
        self.write(ip)
    }

    fn write(&mut self, ip: IpAddr) -> Result<(), DataplaneError> {
        match ip {
            IpAddr::V4(_) => self.write_v4(index(ip)),
            IpAddr::V6(_) => self.write_v6(index(ip)),
        }
    }

    fn write_v4(&mut self, index: u32) -> Result<(), DataplaneError> {
        let wanted = self.occupants.slot_v4(index);
        let another = |present: &SlotV4| present.address != wanted.address;
        write(&mut self.v4, maps::SLOTS_V4, index, wanted, another)
    }

    fn write_v6(&mut self, index: u32) -> Result<(), DataplaneError> {
        let wanted = self.occupants.slot_v6(index);
        let another = |present: &SlotV6| present.address != wanted.address;
        write(&mut self.v6, maps::SLOTS_V6, index, wanted, another)
    }
}

/// Writes a slot unless it is as it should be. Programs read while it is written, so it is empty on the way from one
/// endpoint to `another`: nobody may see the address of one with the device of the other.
fn write<S: aya::Pod + Default + PartialEq>(
    map: &mut Array<MapData, S>,
    name: &'static str,
    index: u32,
    wanted: S,
    another: impl Fn(&S) -> bool,
) -> Result<(), DataplaneError> {
    let error = |e: MapError| DataplaneError::write(name, index, e);
    let present = map.get(&index, 0).map_err(error)?;
    if present == wanted {
        return Ok(());
    }
    if present != S::default() && another(&present) {
        map.set(index, S::default(), 0).map_err(error)?;
    }
    map.set(index, wanted, 0).map_err(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn endpoint(ifindex: u32) -> Endpoint {
        Endpoint {
            ifindex,
            ..Endpoint::default()
        }
    }

    /// What a program finds: the slot's word, and the hash's where the slot leaves it open.
    fn found(occupants: &Occupants, hash: &HashMap<IpAddr, Endpoint>, ip: IpAddr) -> Option<Endpoint> {
        let (address, endpoint, shared) = match ip {
            IpAddr::V4(_) => {
                let slot = occupants.slot_v4(index(ip));
                (IpAddr::from(slot.address), slot.endpoint, slot.shared)
            }
            IpAddr::V6(_) => {
                let slot = occupants.slot_v6(index(ip));
                (IpAddr::from(slot.address), slot.endpoint, slot.shared)
            }
        };
        if address == ip && endpoint.ifindex != 0 {
            Some(endpoint)
        } else if shared == 0 {
            None
        } else {
            hash.get(&ip).copied()
        }
    }

    proptest! {
        #[test]
        fn a_slot_and_the_hash_behind_it_say_what_the_hash_says(
            steps in prop::collection::vec((any::<bool>(), any::<bool>(), 0u8..3, 0u8..3, 1u32..9), 0..60)
        ) {
            let (mut occupants, mut hash) = (Occupants::default(), HashMap::new());
            // Addresses that differ above the slot's bits share it.
            let address = |v6: bool, high: u8, low: u8| if v6 {
                IpAddr::from([0xfd, high, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, low])
            } else {
                IpAddr::from([10, high, 0, low])
            };
            for (add, v6, high, low, ifindex) in steps {
                let ip = address(v6, high, low);
                if add {
                    occupants.insert(ip, endpoint(ifindex));
                    hash.insert(ip, endpoint(ifindex));
                } else {
                    occupants.remove(ip);
                    hash.remove(&ip);
                }
                for v6 in [false, true] {
                    for high in 0..3 {
                        for low in 0..3 {
                            let ip = address(v6, high, low);
                            prop_assert_eq!(found(&occupants, &hash, ip), hash.get(&ip).copied());
                        }
                    }
                }
            }
        }
    }
}
