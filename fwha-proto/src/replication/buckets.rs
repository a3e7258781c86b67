//! A set of buckets.

use std::fmt;
use std::ops::{BitAnd, BitOr, Not, Sub};

use fwha_common::BUCKETS;

const WORDS: usize = BUCKETS / 64;

/// A set of buckets, as 256 bits.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Buckets([u64; WORDS]);

impl Buckets {
    /// No bucket.
    pub const EMPTY: Self = Self([0; WORDS]);
    /// Every bucket.
    pub const ALL: Self = Self([u64::MAX; WORDS]);
    /// Bytes of a set on the wire.
    pub const WIRE_LEN: usize = BUCKETS / 8;

    /// The set of one bucket.
    pub const fn one(bucket: u8) -> Self {
        let mut words = [0; WORDS];
        words[bucket as usize / 64] = 1 << (bucket % 64);
        Self(words)
    }

    /// Whether `bucket` is in the set.
    pub const fn contains(&self, bucket: u8) -> bool {
        self.0[bucket as usize / 64] & 1 << (bucket % 64) != 0
    }

    /// Adds a bucket; whether it is new.
    pub const fn insert(&mut self, bucket: u8) -> bool {
        let new = !self.contains(bucket);
        self.0[bucket as usize / 64] |= 1 << (bucket % 64);
        new
    }

    /// Takes a bucket out; whether it was there.
    pub const fn remove(&mut self, bucket: u8) -> bool {
        let was = self.contains(bucket);
        self.0[bucket as usize / 64] &= !(1 << (bucket % 64));
        was
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        *self == Self::EMPTY
    }

    /// Number of buckets in the set, 0 to 256.
    pub fn len(&self) -> usize {
        self.0.iter().map(|w| w.count_ones() as usize).sum()
    }

    /// Whether every bucket of `other` is in this set.
    pub fn covers(&self, other: &Self) -> bool {
        (*other - *self).is_empty()
    }

    /// The lowest bucket of the set.
    pub fn first(&self) -> Option<u8> {
        let word = self.0.iter().position(|&w| w != 0)?;
        Some((word * 64) as u8 + self.0[word].trailing_zeros() as u8)
    }

    /// The buckets of the set, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u8> + use<> {
        let mut rest = *self;
        std::iter::from_fn(move || {
            let bucket = rest.first()?;
            rest.remove(bucket);
            Some(bucket)
        })
    }

    /// Bucket 0 is the lowest bit of the first byte.
    pub(super) fn to_bytes(self) -> [u8; Self::WIRE_LEN] {
        let mut out = [0; Self::WIRE_LEN];
        for (chunk, word) in out.chunks_exact_mut(8).zip(self.0) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        out
    }

    pub(super) fn from_bytes(bytes: &[u8; Self::WIRE_LEN]) -> Self {
        let mut words = [0; WORDS];
        for (i, byte) in bytes.iter().enumerate() {
            words[i / 8] |= u64::from(*byte) << (8 * (i % 8));
        }
        Self(words)
    }
}

impl FromIterator<u8> for Buckets {
    fn from_iter<I: IntoIterator<Item = u8>>(iter: I) -> Self {
        let mut set = Self::EMPTY;
        for bucket in iter {
            set.insert(bucket);
        }
        set
    }
}

impl BitOr for Buckets {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] | other.0[i]))
    }
}

impl BitAnd for Buckets {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] & other.0[i]))
    }
}

impl Sub for Buckets {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] & !other.0[i]))
    }
}

impl Not for Buckets {
    type Output = Self;

    fn not(self) -> Self {
        Self(self.0.map(|w| !w))
    }
}

impl fmt::Debug for Buckets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::ALL { f.write_str("{all}") } else { f.debug_set().entries(self.iter()).finish() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_holds_what_was_put_in() {
        let mut set: Buckets = [3, 64, 255, 3].into_iter().collect();
        assert_eq!((set.len(), set.first()), (3, Some(3)));
        assert_eq!(set.iter().collect::<Vec<_>>(), [3, 64, 255]);
        assert_eq!(Buckets::from_bytes(&set.to_bytes()), set);
        assert_eq!(set.to_bytes()[..1], [0b1000]);
        assert!(set.remove(64) && !set.remove(64) && !set.insert(255));
        assert!(Buckets::ALL.covers(&set) && !set.covers(&Buckets::one(64)));
        assert_eq!((!set).len(), 254);
        assert_eq!((set | Buckets::one(1)) - set, Buckets::one(1));
        assert_eq!(set & Buckets::one(3), Buckets::one(3));
    }
}
