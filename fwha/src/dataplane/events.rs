//! Flow events from the data plane.

use std::{
    fmt,
    os::fd::{AsFd, BorrowedFd},
};

use aya::maps::{MapData, RingBuf};
use fwha_common::flow::FlowEvent;

use crate::sys::from_bytes;

/// The reader of the ring buffer of flow events. The ring is pinned like the maps: events that
/// nobody has read when a daemon dies are the next one's first.
pub struct Events {
    ring: RingBuf<MapData>,
    malformed: u64,
}

impl Events {
    pub(super) fn new(ring: RingBuf<MapData>) -> Self {
        Self { ring, malformed: 0 }
    }

    /// Hands over up to `max` events, oldest first, and returns how many there were. Events that
    /// found no room are counted in [`Maps::event_loss`](super::Maps::event_loss).
    pub fn drain(&mut self, max: usize, mut each: impl FnMut(&FlowEvent)) -> usize {
        for n in 0..max {
            let Some(item) = self.ring.next() else { return n };
            match from_bytes::<FlowEvent>(&item) {
                Some(event) => each(&event),
                None => self.malformed += 1,
            }
        }
        max
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
