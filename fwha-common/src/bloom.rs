//! Which flows there may be: a Bloom filter with one hash function.
//!
//! Most SYNs are of no flow that is there, those of a flood above all. The table says so only after a wait for memory that
//! is far away. The filter is near, as it has few bits for each flow, and says of most SYNs that no flow of the main table is
//! theirs. Where it does not say so, the table is asked.
//!
//! A bit that is set stays so when its flow ends. So the sweeper renews the filter in each of its passes over the table
//! (`fwha/src/dataplane/bloom.rs`): a bit stays that a flow of the pass has, or that was set since the pass began.
//! Whoever puts in a TCP flow sets its bit before, and once more after: the renewal may have begun, or ended, in between.
//! Embryonic flows have no bits: a flood would set them all.
//!
//! The filter is a map of words of 64 bits (`BLOOM`). A second one (`BLOOM_RECENT`), of the same shape, has the bits that were set since the
//! renewal began; whoever only asks does not look there.

/// Words in the filter, unless the loader says otherwise. A power of two.
pub const WORDS: u32 = 1 + last_word(65_536);

/// The number of the last word of a filter for so many flows, a power of two less 1: at least two bits for each of them.
pub const fn last_word(flows: u32) -> u32 {
    match flows.div_ceil(32).checked_next_power_of_two() {
        Some(words) => words - 1,
        None => u32::MAX,
    }
}

/// The place of a flow in the filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bit {
    /// The number of the word.
    pub word: u32,
    /// The bit in it.
    pub mask: u64,
}

impl Bit {
    /// In a filter of `last_word` + 1 words, by the hash of a flow's key.
    #[inline(always)]
    pub const fn new(hash: u64, last_word: u32) -> Self {
        Self { word: (hash >> 38) as u32 & last_word, mask: 1 << (hash >> 32 & 63) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_has_a_power_of_two_of_words_and_two_bits_or_more_for_each_flow() {
        assert_eq!([1, 32, 33, 64, 65, 1_000_000].map(last_word), [0, 0, 1, 1, 3, 32_767]);
        for flows in [1, 1000, 65_536, 100_000_000] {
            let last = last_word(flows);
            assert!(64 * (u64::from(last) + 1) >= 2 * u64::from(flows));
            assert_eq!(Bit::new(u64::MAX, last), Bit { word: last & ((1 << 26) - 1), mask: 1 << 63 });
        }
    }
}
