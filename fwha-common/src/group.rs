//! Ownership of buckets, as the data plane sees it.

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
    /// 1 while this node is Active, else 0.
    pub role: u32,
    /// The group's term.
    pub term: u32,
}

impl Group {
    /// [`Group::role`] of an owner.
    pub const ACTIVE: u32 = 1;

    /// Whether the buckets of this group are owned here at `now_ns`.
    #[inline(always)]
    pub const fn owned(&self, now_ns: u64) -> bool {
        self.role == Self::ACTIVE && now_ns < self.lease_until_ns
    }
}

#[cfg(feature = "user")]
mod pod {
    // SAFETY: `repr(C)`, integers only, no padding (asserted below), valid for any bits.
    unsafe impl aya::Pod for super::Group {}
}

const _: () = assert!(size_of::<Group>() == 24);
