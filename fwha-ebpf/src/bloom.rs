//! The filter that says which flows there may be, see [`fwha_common::bloom`].
//!
//! Several CPUs, and the daemon, change it at once: bits are set by one locked instruction each, and read without.

use fwha_common::bloom::{Bit, WORDS};

use crate::{atomic::or_u64, maps};

/// The number of the last word; the loader overwrites it when it makes the filter larger or smaller.
#[unsafe(no_mangle)]
static BLOOM_LAST: u32 = WORDS - 1;

#[inline(always)]
fn bit(hash: u64) -> Bit {
    // SAFETY: a reference; volatile, because the loader may have changed it.
    Bit::new(hash, unsafe { (&raw const BLOOM_LAST).read_volatile() })
}

/// Whether the main table may have a TCP flow whose key has this hash.
#[inline(always)]
pub fn may_hold(hash: u64) -> bool {
    let bit = bit(hash);
    // SAFETY: a map element; volatile, because others write it.
    maps::BLOOM.get_ptr(bit.word).is_none_or(|known| unsafe { known.read_volatile() } & bit.mask != 0)
}

/// Notes a TCP flow: before it is put into the main table, and once more after.
#[inline(always)]
pub fn mark(hash: u64) {
    let bit = bit(hash);
    for map in [&maps::BLOOM_RECENT, &maps::BLOOM] {
        if let Some(word) = map.get_ptr_mut(bit.word) {
            // SAFETY: a map element, 8-byte aligned; volatile, because others write it.
            unsafe {
                if word.read_volatile() & bit.mask == 0 {
                    or_u64(word, bit.mask);
                }
            }
        }
    }
}
