//! The table of embryonic flows: those that nobody has answered yet.
//!
//! A new flow is what a flood consists of, so it must be cheap to put one in and to push one out. The table is made
//! of sets of [`PLACES`] places; the keyed hash of a flow says which set it is in. In a full set the new flow takes
//! the place of the one that was not used for the longest time.
//!
//! What is known of the places of a set lies in maps of their own, the smaller the more often they are asked: 64 KiB of
//! fingerprints for [`CAPACITY`] flows, which say of most flows that they are not there; 512 KiB of tags, by which a flow is
//! found, and a new one gets a place without a wait for what was in it; and 16 MiB of flows. An LRU hash of the kernel touches
//! seven pages or so, at four times the price.

use crate::flow::{Flow, FlowKey};

/// Flows in a set.
pub const PLACES: u32 = 8;

/// Flows in the table, unless the loader says otherwise. A power of two.
pub const CAPACITY: u32 = 65_536;

/// The fingerprints of a set: a byte for each place, the first one the lowest. 0 if the place is free, or a part of the hash of
/// the flow in it, [`Site::fingerprint`].
pub type Fingerprints = u64;

/// What is known of a set, a cache line.
///
/// ```text
///  0      32     48     52     54    64
///  +------+------+------+------+-----+
///  | tags | used | lock |clock |  0  |
///  +------+------+------+------+-----+
/// ```
///
/// Programs on several CPUs change it: [`Self::lock`] keeps apart who puts flows in. Who looks for one takes no lock.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EmbryonicTags {
    /// For each place, 0 if it is free, 2 while one CPU has it for itself, or a part of the hash of the flow in it, which
    /// is odd.
    pub tags: [u32; PLACES as usize],
    /// For each place, what [`Self::clock`] was when its flow was last used.
    pub used: [u16; PLACES as usize],
    /// 1 while a CPU puts in a flow.
    pub lock: u32,
    /// Counts uses.
    pub clock: u16,
    /// Always zero.
    pub zero: [u16; 5],
}

/// The places of a set, half a page: the processor has to translate one address for all of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EmbryonicSet {
    /// The places.
    pub places: [EmbryonicPlace; PLACES as usize],
}

impl EmbryonicSet {
    /// The flows in it.
    pub fn flows(&self) -> impl Iterator<Item = (&FlowKey, &Flow)> {
        self.places.iter().filter_map(EmbryonicPlace::get)
    }
}

/// A place, of four cache lines: free if [`Flow::word`] is 0, which no flow has.
///
/// ```text
///  0     40     208    256
///  +-----+------+------+
///  | key | flow |  0   |
///  +-----+------+------+
/// ```
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EmbryonicPlace {
    /// The flow's key.
    pub key: FlowKey,
    /// The flow.
    pub flow: Flow,
    /// Always zero.
    pub zeros: [u64; 6],
}

impl EmbryonicPlace {
    /// Key and flow, if it is not free.
    pub fn get(&self) -> Option<(&FlowKey, &Flow)> {
        (self.flow.word != 0).then_some((&self.key, &self.flow))
    }
}

/// Where a flow belongs in a table, by the hash of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    /// The number of the set.
    pub set: u32,
    /// What its place is marked with.
    pub tag: u32,
    /// The same in short, not 0.
    pub fingerprint: u8,
}

impl Site {
    /// In a table of `last_set` + 1 sets, a power of two. (The bucket is the lowest byte of the hash.)
    #[inline(always)]
    pub const fn new(hash: u64, last_set: u32) -> Self {
        let short = (hash >> 24) as u8;
        Self {
            set: (hash >> 8) as u32 & last_set,
            tag: (hash >> 32) as u32 | 1,
            fingerprint: short + (short == 0) as u8,
        }
    }

    /// Whether the flow may be in a set of these fingerprints: one of their bytes is its own. (The test for a byte of zero
    /// is that of A. Mycroft: only subtracting 1 from such a one borrows from its highest bit, if that was not set before.)
    #[inline(always)]
    pub const fn may_be_among(&self, fingerprints: Fingerprints) -> bool {
        const ONES: u64 = 0x0101_0101_0101_0101;
        let others = fingerprints ^ (self.fingerprint as u64 * ONES);
        others.wrapping_sub(ONES) & !others & (ONES << 7) != 0
    }
}

/// The number of the last set in a table for so many flows, or the next smaller power of two.
pub const fn last_set(flows: u32) -> u32 {
    if flows < PLACES { 0 } else { (1 << (flows / PLACES).ilog2()) - 1 }
}

#[cfg(feature = "user")]
mod pod {
    // SAFETY: `repr(C)`, integers, keys and flows only, no padding (asserted below), valid for any bits.
    unsafe impl aya::Pod for super::EmbryonicSet {}
    // SAFETY: as above, integers only.
    unsafe impl aya::Pod for super::EmbryonicTags {}
}

const _: () = {
    assert!(size_of::<EmbryonicSet>() == 2048);
    assert!(size_of::<EmbryonicTags>() == 64);
    assert!(size_of::<EmbryonicPlace>() == 256);
    assert!(size_of::<Fingerprints>() == PLACES as usize);
    assert!(CAPACITY.is_power_of_two());
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_power_of_two_of_sets() {
        assert_eq!([0, 7, 8, 15, 16, 31, 32, CAPACITY].map(last_set), [0, 0, 0, 0, 1, 1, 3, 8191]);
    }

    #[test]
    fn no_flow_is_marked_as_free() {
        assert_ne!(Site::new(0, 8191).tag, 0);
        assert_eq!(Site::new(!0, 8191), Site { set: 8191, tag: u32::MAX, fingerprint: 255 });
        assert_eq!([0, 1, 2].map(|short| Site::new(short << 24, 8191).fingerprint), [1, 1, 2]);
    }

    #[test]
    fn a_flow_may_be_in_a_set_that_has_its_fingerprint() {
        for fingerprint in [1, 2, 0x7f, 0x80, 0x81, 255] {
            let site = Site { fingerprint, ..Site::new(0, 0) };
            assert!(!site.may_be_among(0));
            for other in (0..=255u8).filter(|other| *other != fingerprint) {
                let others = [other; PLACES as usize];
                assert!(
                    !site.may_be_among(Fingerprints::from_le_bytes(others)),
                    "{fingerprint} among {other}"
                );
                for place in 0..others.len() {
                    let mut with = others;
                    with[place] = fingerprint;
                    assert!(
                        site.may_be_among(Fingerprints::from_le_bytes(with)),
                        "{fingerprint} in {with:?}"
                    );
                }
            }
        }
    }
}
