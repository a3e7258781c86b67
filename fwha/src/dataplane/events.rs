//! Flow events from the data plane.

use std::{
    fmt,
    os::fd::{AsFd, BorrowedFd},
};

use aya::maps::{MapData, RingBuf};
use fwha_common::flow::FlowEvent;

use crate::sys::from_bytes;

/// Events handed over at a time.
const BATCH: usize = 64;

/// The reader of the ring buffer of flow events. The ring is pinned like the maps: events that
/// nobody has read when a daemon dies are the next one's first.
pub struct Events {
    ring: RingBuf<MapData>,
    batch: Vec<FlowEvent>,
    malformed: u64,
}

impl Events {
    pub(super) fn new(ring: RingBuf<MapData>) -> Self {
        Self { ring, batch: Vec::with_capacity(BATCH), malformed: 0 }
    }

    /// Hands over up to `max` events, oldest first, some at a time, and returns how many there were.
    /// Events that found no room are counted in [`Maps::event_loss`](super::Maps::event_loss).
    pub fn drain(&mut self, max: usize, mut take: impl FnMut(&[FlowEvent])) -> usize {
        let mut taken = 0;
        loop {
            self.batch.clear();
            let before = taken;
            while taken < max
                && self.batch.len() < BATCH
                && let Some(item) = self.ring.next()
            {
                taken += 1;
                match from_bytes::<FlowEvent>(&item) {
                    Some(event) => self.batch.push(event),
                    None => self.malformed += 1,
                }
            }
            if taken == before {
                return taken;
            }
            take(&self.batch);
        }
    }

    /// Records of a wrong length. They cannot be while daemon and programs are of one build.
    pub fn malformed(&self) -> u64 {
        self.malformed
    }
}

impl AsFd for Events {
    /// Readable when the programs woke the reader up.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("malformed", &self.malformed).finish_non_exhaustive()
    }
}
