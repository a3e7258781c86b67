//! What the kernel programs and the user space of fwha share.
//!
//! Everything here is plain data with a fixed layout: keys and values of BPF maps, events, probe
//! frames, reasons. The kernel side is built without `std`, so this crate is too.
//!
//! | module | holds |
//! |---|---|
//! | [`flow`] | flow key, flow value, identity, states, flow events |
//! | [`embryonic`] | the table of flows that nobody has answered |
//! | [`bloom`] | the filter that says which flows there may be |
//! | [`group`] | ownership of buckets: roles, lease |
//! | [`limit`] | limits by source address |
//! | [`rule`] | rules and zones |
//! | [`ruleset`] | the ruleset in bit-vector form, and how a rule is found in it |
//! | [`mod@drop`] | every reason for which a packet is dropped |
//! | [`capture`] | samples of dropped packets |
//! | [`probe`] | the keyed probe frame that the data plane answers by itself |
//! | [`settings`] | what user space tells the programs, and names of maps |
//! | [`siphash`] | the keyed hash behind buckets and probes |
#![cfg_attr(not(feature = "user"), no_std)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod bloom;
pub mod capture;
pub mod drop;
pub mod embryonic;
pub mod flow;
pub mod group;
pub mod limit;
pub mod probe;
pub mod route;
pub mod rule;
pub mod ruleset;
pub mod settings;
pub mod siphash;
pub mod sweep;

/// Version of every layout in this crate. Pinned maps live below a path that carries it, so that a
/// daemon never reads a map that another layout wrote. Raise it with each change of a map's key,
/// value or meaning.
pub const ABI_VERSION: u32 = 11;

/// Hash classes of flows. A bucket is the unit of ownership, of digests and of healing.
pub const BUCKETS: usize = 256;

/// Groups in one cluster.
pub const MAX_GROUPS: usize = 32;

/// Nodes in one cluster. Node ids run from 1 to this; 0 is nobody.
pub const MAX_NODES: usize = 16;

/// Zones in one cluster, [`rule::ZONE_NODE`] not counted.
pub const MAX_ZONES: usize = 32;
