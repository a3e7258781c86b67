//! The filter that says which flows there may be, as the daemon uses it; see [`fwha_common::bloom`].

use std::{
    io,
    os::fd::AsFd as _,
    sync::atomic::{AtomicU64, Ordering::SeqCst},
};

use fwha_common::{
    bloom::Bit,
    flow::{FlowKey, proto},
    settings::name,
};

use super::{DataplaneError, maps::map_error, pins::PinDir};
use crate::sys::bpf::{self, Words};

/// The filter. Programs on all CPUs set bits in it at the same time.
#[derive(Debug)]
pub struct Bloom {
    known: Words,
    /// The bits that were set since the renewal began.
    recent: Words,
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
        let words = |name| {
            let map = bpf::open_pinned(&pins.map(name)).map_err(map_error(name))?;
            Words::new(map.as_fd()).map_err(map_error(name))
        };
        let (known, recent) = (words(name::BLOOM)?, words(name::BLOOM_RECENT)?);
        if known.len() != recent.len() {
            return Err(map_error(name::BLOOM_RECENT)(io::ErrorKind::InvalidInput.into()));
        }
        Ok(Self { known, recent, key: key.map(AtomicU64::new) })
    }

    /// Hashes are by this key from here on. If it is another one, every flow may be there until the filter is renewed.
    pub(super) fn set_key(&self, key: [u64; 2]) {
        if self.key() != key {
            for (word, key) in self.key.iter().zip(key) {
                word.store(key, SeqCst);
            }
            self.recent.iter().chain(self.known.iter()).for_each(|word| word.store(u64::MAX, SeqCst));
        }
    }

    fn key(&self) -> [u64; 2] {
        self.key.each_ref().map(|word| word.load(SeqCst))
    }

    fn last_word(&self) -> u32 {
        self.known.len() as u32 - 1
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
            for word in [&self.recent, &self.known].map(|words| &words[bit.word as usize]) {
                if word.load(SeqCst) & bit.mask == 0 {
                    word.fetch_or(bit.mask, SeqCst);
                }
            }
        }
    }

    /// Begins to renew it. After this, and before [`Self::finish`], every flow of the main table is to be kept.
    pub fn renew(&self) -> Renewal {
        self.recent.iter().for_each(|recent| recent.store(0, SeqCst));
        Renewal { key: self.key(), known: vec![0; self.known.len()] }
    }

    /// Leaves in it what was kept, and what was set since the renewal began.
    pub fn finish(&self, renewal: Renewal) {
        if renewal.key != self.key() {
            return;
        }
        for ((known, recent), kept) in self.known.iter().zip(self.recent.iter()).zip(renewal.known) {
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
        self.known[bit.word as usize].load(SeqCst) & bit.mask != 0
    }
}
