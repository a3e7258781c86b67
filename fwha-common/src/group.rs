//! Ownership of buckets, as the data plane sees it.
//!
//! The bucket of a flow is chosen when it begins, and stays with it: by its zones one of the groups,
//! by its hash one of that group's buckets.

use crate::{BUCKETS, MAX_GROUPS, MAX_ZONES};

/// An element of the array map `GROUPS`, indexed by group number.
///
/// This is the one write of a takeover: `role` and `term` change, and every flow of every bucket of
/// the group is owned. The election thread renews `lease_until_ns` with each heartbeat; past it the
/// data plane treats the group as not owned, whatever `role` says, so a daemon that hangs cannot
/// keep a node forwarding beside its successor.
///
/// The kernel copies map values word by word, each word at once, so a reader sees old or new words,
/// never half of one. Any mix of an old and a new element is refused or accepted for one packet by
/// a lease that was true a moment ago, which is what the lease is for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// `CLOCK_MONOTONIC` of the kernel (not of a time namespace), in ns.
    pub lease_until_ns: u64,
    /// When this node got the ownership, same clock. Inherited flows are aged from here.
    pub since_ns: u64,
    /// 1 while this node is Active, 2 while it still forwards what it has handed over, else 0.
    pub role: u32,
    /// The group's term.
    pub term: u32,
}

impl Group {
    /// [`Group::role`] of an owner.
    pub const ACTIVE: u32 = 1;
    /// [`Group::role`] of one that has handed over: its successor owns the buckets, and neighbours are
    /// about to learn that. Until [`Group::lease_until_ns`] what still comes here is forwarded.
    pub const LEAVING: u32 = 2;

    /// Whether packets of this group's flows are forwarded here at `now_ns`.
    #[inline(always)]
    pub const fn forwards(&self, now_ns: u64) -> bool {
        self.role != 0 && now_ns < self.lease_until_ns
    }

    /// Whether the buckets of this group are owned here at `now_ns`.
    #[inline(always)]
    pub const fn owned(&self, now_ns: u64) -> bool {
        self.role == Self::ACTIVE && now_ns < self.lease_until_ns
    }
}

/// An element of the array map `ZONE_BUCKETS`: the buckets that new flows between two zones fall
/// into, which are those of one group. All zero is every bucket, as with a single group.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BucketRange {
    /// The first of them.
    pub first: u8,
    /// How many of the [`BUCKETS`] are not among them. `first + BUCKETS - without` is at most
    /// [`BUCKETS`], and `without` is less.
    pub without: u8,
}

impl BucketRange {
    /// The buckets of the `index`th of `count` groups, which share all of them evenly.
    ///
    /// # Panics
    /// If `index` is not less than `count`, or `count` is more than [`BUCKETS`].
    pub const fn share(index: usize, count: usize) -> Self {
        assert!(index < count && count <= BUCKETS);
        let (first, end) = (index * BUCKETS / count, (index + 1) * BUCKETS / count);
        Self { first: first as u8, without: (BUCKETS - (end - first)) as u8 }
    }

    /// Where `ZONE_BUCKETS` has the range of flows from zone `from` to zone `to`.
    #[inline(always)]
    pub const fn index(from: u8, to: u8) -> u32 {
        from as u32 * (MAX_ZONES as u32 + 1) + to as u32
    }

    /// The bucket of a flow with this [hash](crate::flow::FlowKey::hash).
    #[inline(always)]
    pub const fn bucket(self, hash: u64) -> u8 {
        // The hash's lowest byte, scaled to as many as there are.
        let nth = (hash as u8 as u32 * (BUCKETS as u32 - self.without as u32)) >> 8;
        self.first.wrapping_add(nth as u8)
    }
}

/// A key of the hash map `VIPS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VipKey {
    /// The address, as in a flow key.
    pub address: [u32; 4],
    /// The zone of a link-local address of IPv6, which may be in several; of any other 0.
    pub zone: u32,
}

impl VipKey {
    /// Whether an address, as in a flow key, is one of a link only (`fe80::/10`).
    #[inline(always)]
    pub const fn is_link_local(address: &[u32; 4]) -> bool {
        u32::from_be(address[0]) >> 22 == 0xfe80 >> 6
    }
}

/// An element of the hash map `VIPS`: a virtual address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vip {
    /// Its group.
    pub group: u8,
    /// Its zone.
    pub zone: u8,
    /// Its virtual router.
    pub vrid: u8,
    /// Bits: [`Vip::VIRTUAL_MAC`], [`Vip::NOT_ACCEPTED`].
    pub flags: u8,
}

impl Vip {
    /// Flag: neighbours know it by the MAC of its virtual router.
    pub const VIRTUAL_MAC: u8 = 1;
    /// Flag: this node does not take what is addressed to it (RFC 9568, 6.1: Accept_Mode is off, and the node
    /// is not the owner of the address).
    pub const NOT_ACCEPTED: u8 = 2;

    /// The MAC of a virtual router for IPv4 or IPv6 (RFC 9568, 7.3).
    #[inline(always)]
    pub const fn mac(vrid: u8, v6: bool) -> [u8; 6] {
        [0, 0, 0x5e, 0, 1 + v6 as u8, vrid]
    }
}

/// An element of the hash map `CLAIMS`, by [`VipKey`]: somebody else has said that he has an address that this node owns.
///
/// ```text
///  0      8     14     15     16
///  +------+-----+------+------+
///  |at    | mac |group | zone |
///  +------+-----+------+------+
/// ```
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    /// When he last did, coarse `CLOCK_MONOTONIC` in ns.
    pub at_ns: u64,
    /// The MAC that he has given.
    pub mac: [u8; 6],
    /// The address's group.
    pub group: u8,
    /// The address's zone.
    pub zone: u8,
}

/// A key of the hash map `VIRTUAL_MACS`: a virtual router that has a MAC of its own.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VirtualMacKey {
    /// Index of its interface, as in [`crate::rule::Interface::device`].
    pub device: u32,
    /// The last two bytes of the MAC: 1 or 2 for IPv4 or IPv6, and the VRID.
    pub router: [u8; 2],
    /// Always zero.
    pub zero: [u8; 2],
}

impl VirtualMacKey {
    /// The virtual router of this VRID and family at an interface.
    #[inline(always)]
    pub const fn new(device: u32, vrid: u8, v6: bool) -> Self {
        Self { device, router: [1 + v6 as u8, vrid], zero: [0; 2] }
    }

    /// Its MAC.
    pub const fn mac(&self) -> [u8; 6] {
        Vip::mac(self.router[1], self.router[0] == 2)
    }
}

/// An element of the hash map `VIRTUAL_MACS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VirtualMac {
    /// The interface's own MAC.
    pub own: [u8; 6],
    /// The group of the virtual router.
    pub group: u8,
    /// Its zone.
    pub zone: u8,
}

/// Elements of the map `VIRTUAL_MACS`: VRIDs of both families, in every zone.
pub const MAX_VIRTUAL_MACS: usize = 2 * 255 * MAX_ZONES;

/// Virtual addresses in one cluster.
pub const MAX_VIPS: usize = 16_384;

/// Elements of the map `ZONE_BUCKETS`.
pub const ZONE_PAIRS: usize = (MAX_ZONES + 1) * (MAX_ZONES + 1);

#[cfg(feature = "user")]
mod pod {
    // SAFETY: `repr(C)`, integers only, no padding (asserted below), valid for any bits.
    unsafe impl aya::Pod for super::Group {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::BucketRange {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::VipKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Vip {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Claim {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::VirtualMacKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::VirtualMac {}
}

const _: () = assert!(size_of::<Group>() == 24);
const _: () = assert!(size_of::<BucketRange>() == 2);
const _: () = assert!(size_of::<VipKey>() == 20);
const _: () = assert!(size_of::<Claim>() == 16);
const _: () = assert!(size_of::<Vip>() == 4 && MAX_GROUPS <= u8::MAX as usize);
const _: () = assert!(size_of::<VirtualMacKey>() == 8 && size_of::<VirtualMac>() == 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_share_all_buckets_and_each_flow_falls_into_its_own_share() {
        for count in 1..=crate::MAX_GROUPS {
            let mut owner = [None; BUCKETS];
            for index in 0..count {
                let range = BucketRange::share(index, count);
                for hash in 0..=u8::MAX {
                    // Only the lowest byte counts.
                    let bucket = range.bucket(u64::from(hash) | 0xabcd << 8);
                    assert!(owner[usize::from(bucket)].is_none_or(|other| other == index));
                    owner[usize::from(bucket)] = Some(index);
                }
            }
            assert!(owner.iter().all(Option::is_some), "{count} groups leave no bucket out");
        }
        assert_eq!(BucketRange::share(0, 1), BucketRange::default());
        assert_eq!(BucketRange::default().bucket(0xfe), 0xfe);
    }

    #[test]
    fn each_pair_of_zones_has_a_place_of_its_own() {
        let mut taken = [false; ZONE_PAIRS];
        for from in 0..=MAX_ZONES as u8 {
            for to in 0..=MAX_ZONES as u8 {
                let place = BucketRange::index(from, to) as usize;
                assert!(!core::mem::replace(&mut taken[place], true));
            }
        }
        assert_eq!(taken, [true; ZONE_PAIRS]);
    }
}
