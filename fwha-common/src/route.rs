//! Plain routes: what user space has found out of the routing tables, for the programs to look up by themselves.
//!
//! A route is plain if the interface that it leads to follows from the destination alone: no rule of policy routing,
//! no route by source or type of service, one next hop. User space lists the prefixes of all routes of a family, the
//! longest first; where a route is not plain the kernel is asked, and where there are too many, for all of them.

#[cfg(feature = "user")]
use crate::flow::FlowKey;
#[cfg(feature = "user")]
use crate::flow::octets;

/// Prefixes of a family, at most.
pub const MAX_PREFIXES: usize = 32;

/// Elements of `PLAIN_ROUTES`: two tables for each family, see [`PlainRoutes::index`].
pub const TABLES: usize = 4;

/// A prefix and where it leads.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prefix {
    /// The network, as in a flow key; host bits are zero.
    pub address: [u32; 4],
    /// Its mask. That of an IPv4 prefix of length n has 96 + n bits.
    pub mask: [u32; 4],
    /// The interface; 0 if the kernel is to be asked.
    pub ifindex: u32,
}

#[cfg(feature = "user")]
impl Prefix {
    /// A network of so many bits, which must be no more than its family has.
    pub fn new(address: std::net::IpAddr, len: u8, ifindex: u32) -> Self {
        let len = if address.is_ipv4() { len + 96 } else { len };
        let mask = if len == 0 { 0 } else { u128::MAX << (128 - u32::from(len)) };
        Self {
            address: FlowKey::address((u128::from_be_bytes(octets(address)) & mask).to_be_bytes()),
            mask: FlowKey::address(mask.to_be_bytes()),
            ifindex,
        }
    }
}

/// An element of `PLAIN_ROUTES`: the routes of a family.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlainRoutes {
    /// The route generation in which it holds; 0 while it is written.
    pub generation: u32,
    /// How many prefixes there are.
    pub count: u32,
    /// The prefixes; of two that an address is in, the right one comes first.
    pub prefixes: [Prefix; MAX_PREFIXES],
}

impl PlainRoutes {
    /// None: the kernel is asked.
    pub const NONE: Self = Self {
        generation: 0,
        count: 0,
        prefixes: [Prefix { address: [0; 4], mask: [0; 4], ifindex: 0 }; MAX_PREFIXES],
    };

    /// Where the table of a family lies in a route generation. The next one has the other place, so that none is
    /// written while programs read it.
    #[inline(always)]
    pub const fn index(v6: bool, generation: u32) -> u32 {
        (v6 as u32) << 1 | generation & 1
    }

    /// The interface that an address is reached by in this generation; 0 if the kernel has to be asked.
    #[inline(always)]
    pub fn look_up(&self, address: &[u32; 4], v6: bool, generation: u32) -> u32 {
        // SAFETY: a reference; volatile, because user space writes it.
        if unsafe { (&raw const self.generation).read_volatile() } != generation {
            return 0;
        }
        let mut i = 0;
        while i < MAX_PREFIXES {
            if i as u32 >= self.count {
                return 0;
            }
            let prefix = &self.prefixes[i];
            let mut differs = (address[3] ^ prefix.address[3]) & prefix.mask[3];
            if v6 {
                differs |= (address[0] ^ prefix.address[0]) & prefix.mask[0];
                differs |= (address[1] ^ prefix.address[1]) & prefix.mask[1];
                differs |= (address[2] ^ prefix.address[2]) & prefix.mask[2];
            }
            if differs == 0 {
                return prefix.ifindex;
            }
            i += 1;
        }
        0
    }
}

impl Default for PlainRoutes {
    fn default() -> Self {
        Self::NONE
    }
}

#[cfg(feature = "user")]
mod pod {
    // SAFETY: `repr(C)`, integers only, no padding (asserted below), valid for any bits.
    unsafe impl aya::Pod for super::PlainRoutes {}
}

const _: () = {
    assert!(size_of::<Prefix>() == 36);
    assert!(size_of::<PlainRoutes>() == 8 + MAX_PREFIXES * size_of::<Prefix>());
};
