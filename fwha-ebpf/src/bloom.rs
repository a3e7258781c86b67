//! The filter that says which flows there may be, see [`fwha_common::bloom`].
//!
//! Several CPUs, and the daemon, change it at once: bits are set by one locked instruction each, and read without.

use fwha_common::bloom::{Bit, WORDS, Word};

use crate::{atomic::or_u64, maps};

/// The number of the last word; the loader overwrites it when it makes the filter larger or smaller.
#[unsafe(no_mangle)]
static BLOOM_LAST: u32 = WORDS - 1;

#[inline(always)]
fn find(hash: u64) -> Option<(*mut Word, u64)> {
    // SAFETY: a reference; volatile, because the loader may have changed it.
    let last = unsafe { (&raw const BLOOM_LAST).read_volatile() };
    let bit = Bit::new(hash, last);
    Some((maps::BLOOM.get_ptr_mut(bit.word)?, bit.mask))
}

/// Whether the main table may have a TCP flow whose key has this hash.
#[inline(always)]
pub fn may_hold(hash: u64) -> bool {
    // SAFETY: a map element; volatile, because others write it.
    find(hash).is_none_or(|(word, mask)| unsafe { (&raw const (*word).known).read_volatile() } & mask != 0)
}

/// Notes a TCP flow: before it is put into the main table, and once more after.
#[inline(always)]
pub fn mark(hash: u64) {
    let Some((word, mask)) = find(hash) else {
        return;
    };
    // SAFETY: a map element, 8-byte aligned; volatile, because others write it.
    unsafe {
        for at in [&raw mut (*word).recent, &raw mut (*word).known] {
            if at.read_volatile() & mask == 0 {
                or_u64(at, mask);
            }
        }
    }
}
