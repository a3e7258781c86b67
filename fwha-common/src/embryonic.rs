//! The table of embryonic flows: those that nobody has answered yet.
//!
//! A new flow is what a flood consists of, so it must be cheap to put one in and to push one out. The table is made
//! of sets of [`PLACES`] places; the keyed hash of a flow says which set it is in. In a full set the new flow takes
//! the place of the one that was not used for the longest time.
//!
//! What is known of the places of a set lies in maps of their own, which are small enough to be near: 64 KiB of fingerprints for
//! [`CAPACITY`] flows say of most flows that they are not there, and 128 KiB say which flow of a set is to go. The flows
//! themselves take 16 MiB; a new one is written to its place without a wait for what was in it. An LRU hash of the kernel touches
//! seven pages or so, at four times the price.

use crate::flow::{Flow, FlowKey};

/// Flows in a set.
pub const PLACES: u32 = 8;

/// Flows in the table, unless the loader says otherwise. A power of two.
pub const CAPACITY: u32 = 65_536;

/// The fingerprints of a set: a byte for each place, the first one the lowest. 0 if the place is free, [`CLAIMED`] or
/// [`FILLED`] while one CPU has it for itself, or a part of the hash of the flow in it, [`Site::fingerprint`]: where it is
/// the right one, the flow's key is to be looked at.
pub type Fingerprints = u64;

/// The fingerprint of a place whose flow one CPU takes out.
pub const CLAIMED: u8 = 1;

/// The fingerprint of a place that one CPU puts a flow into. There is one such place in a set at a time.
pub const FILLED: u8 = 2;

/// The places that have this fingerprint: the highest bit of the byte of each.
#[inline(always)]
pub const fn places_of(fingerprints: Fingerprints, fingerprint: u8) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const LOW: u64 = 0x7f * ONES;
    let others = fingerprints ^ (fingerprint as u64 * ONES);
    // In a byte that is not zero the sum reaches the highest bit, or that is there already; no sum goes beyond its byte.
    !(((others & LOW) + LOW) | others | LOW)
}

/// The first of these places, which [`places_of`] gave; there is one.
#[inline(always)]
pub const fn first_of(places: u64) -> u32 {
    // Bit 0 of its byte moves byte 7 less its number of the factor to the top.
    (((places & places.wrapping_neg()) >> 7).wrapping_mul(0x0001_0203_0405_0607) >> 56) as u32
}

/// Which flow of a set was used when.
///
/// ```text
///  0      8     9     16
///  +------+-----+-----+
///  | used |clock|  0  |
///  +------+-----+-----+
/// ```
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EmbryonicUses {
    /// For each place, what [`Self::clock`] was when its flow was last used.
    pub used: [u8; PLACES as usize],
    /// Counts uses of another flow than the last one.
    pub clock: u8,
    /// Always zero.
    pub zero: [u8; 7],
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
    /// What its place is marked with; not 0, [`CLAIMED`] or [`FILLED`].
    pub fingerprint: u8,
}

impl Site {
    /// In a table of `last_set` + 1 sets, a power of two. (The bucket is the lowest byte of the hash.)
    #[inline(always)]
    pub const fn new(hash: u64, last_set: u32) -> Self {
        let byte = (hash >> 24) as u8;
        let others = FILLED + 1;
        Self {
            set: (hash >> 8) as u32 & last_set,
            fingerprint: byte + if byte < others { others } else { 0 },
        }
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
    unsafe impl aya::Pod for super::EmbryonicUses {}
}

const _: () = {
    assert!(size_of::<EmbryonicSet>() == 2048);
    assert!(size_of::<EmbryonicUses>() == 16);
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
    fn no_flow_is_marked_as_free_or_claimed() {
        let fingerprint = |byte: u64| Site::new(byte << 24, 8191).fingerprint;
        assert_eq!([0, 1, 2, 3, 255].map(fingerprint), [3, 4, 5, 3, 255]);
        assert_eq!(Site::new(!0, 8191), Site { set: 8191, fingerprint: 255 });
    }

    #[test]
    fn places_are_found_by_their_fingerprints() {
        for fingerprint in [0, 1, 2, 0x7f, 0x80, 0x81, 255] {
            for other in (0..=255u8).filter(|other| *other != fingerprint) {
                for chosen in 0..=255u8 {
                    let is = |n: u32| chosen >> n & 1 != 0;
                    let set = core::array::from_fn(|n| if is(n as u32) { fingerprint } else { other });
                    let mut places = places_of(Fingerprints::from_le_bytes(set), fingerprint);
                    for n in (0..PLACES).filter(|n| is(*n)) {
                        assert_eq!(first_of(places), n, "{fingerprint} in {set:?}");
                        places &= places - 1;
                    }
                    assert_eq!(places, 0, "{fingerprint} in {set:?}");
                }
            }
        }
    }
}
