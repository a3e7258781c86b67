//! The filter that says which flows there may be, as the daemon uses it; see [`fwha_common::bloom`].

use std::{
    os::fd::AsFd as _,
    sync::atomic::{AtomicU64, Ordering::SeqCst},
};

use fwha_common::{
    bloom::{Bit, Word},
    flow::{FlowKey, proto},
    settings::name,
};

use super::{DataplaneError, maps::map_error, pins::PinDir};
use crate::sys::bpf::{self, Words};

/// Words that a [`Word`] of the filter is: known and recent bits.
const FIELDS: usize = size_of::<Word>() / size_of::<u64>();

/// The filter. Programs on all CPUs set bits in it at the same time.
#[derive(Debug)]
pub struct Bloom {
    words: Words,
    /// That of the hash.
    key: [AtomicU64; 2],
}

/// The bits that will be left in the filter, of those that were set before this began.
#[derive(Debug)]
pub struct Renewal {
    key: [u64; 2],
    known: Vec<u64>,
}

impl Renewal {
    /// Keeps the bit of a flow, if it needs one.
    pub fn keep(&mut self, key: &FlowKey) {
        if key.proto == proto::TCP {
            let bit = Bit::new(key.hash(&self.key), self.known.len() as u32 - 1);
            self.known[bit.word as usize] |= bit.mask;
        }
    }
}

impl Bloom {
    pub(super) fn open(pins: &PinDir, key: [u64; 2]) -> Result<Self, DataplaneError> {
        let words = bpf::open_pinned(&pins.map(name::BLOOM)).and_then(|map| Words::new::<Word>(map.as_fd()));
        Ok(Self { words: words.map_err(map_error(name::BLOOM))?, key: key.map(AtomicU64::new) })
    }

    /// Hashes are by this key from here on. If it is another one, every flow may be there until the filter is renewed.
    pub(super) fn set_key(&self, key: [u64; 2]) {
        if self.key() != key {
            for (word, key) in self.key.iter().zip(key) {
                word.store(key, SeqCst);
            }
            self.words.iter().for_each(|word| word.store(u64::MAX, SeqCst));
        }
    }

    fn key(&self) -> [u64; 2] {
        self.key.each_ref().map(|word| word.load(SeqCst))
    }

    fn last_word(&self) -> u32 {
        (self.words.len() / FIELDS) as u32 - 1
    }

    /// Does what puts flows of these keys into the main table.
    pub(super) fn around<'a, T>(
        &self,
        keys: impl IntoIterator<Item = &'a FlowKey>,
        put: impl FnOnce() -> T,
    ) -> T {
        let (siphash_key, last_word) = (self.key(), self.last_word());
        let tcp = keys.into_iter().filter(|key| key.proto == proto::TCP);
        let bits: Vec<Bit> = tcp.map(|key| Bit::new(key.hash(&siphash_key), last_word)).collect();
        self.mark(&bits);
        let done = put();
        self.mark(&bits);
        done
    }

    fn mark(&self, bits: &[Bit]) {
        for bit in bits {
            let at = bit.word as usize * FIELDS;
            for word in [&self.words[at + 1], &self.words[at]] {
                if word.load(SeqCst) & bit.mask == 0 {
                    word.fetch_or(bit.mask, SeqCst);
                }
            }
        }
    }

    /// Begins to renew it. After this, and before [`Self::finish`], every flow of the main table is to be kept.
    pub fn renew(&self) -> Renewal {
        self.words.iter().skip(1).step_by(FIELDS).for_each(|recent| recent.store(0, SeqCst));
        Renewal { key: self.key(), known: vec![0; self.words.len() / FIELDS] }
    }

    /// Leaves in it what was kept, and what was set since the renewal began.
    pub fn finish(&self, renewal: Renewal) {
        if renewal.key != self.key() {
            return;
        }
        for (word, kept) in self.words.chunks(FIELDS).zip(renewal.known) {
            let [known, recent] = word else { continue };
            if known.load(SeqCst) != kept {
                known.fetch_and(kept | recent.load(SeqCst), SeqCst);
                // With those that were set in between.
                known.fetch_or(kept | recent.load(SeqCst), SeqCst);
            }
        }
    }

    /// Whether there may be a flow of this key.
    #[cfg(test)]
    pub fn may_hold(&self, key: &FlowKey) -> bool {
        let bit = Bit::new(key.hash(&self.key()), self.last_word());
        self.words[bit.word as usize * FIELDS].load(SeqCst) & bit.mask != 0
    }
}
