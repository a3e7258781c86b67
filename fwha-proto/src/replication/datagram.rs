//! One numbered datagram while it is being filled.

use super::core::Core;
use super::flight::{Carried, Control, Sent};
use super::wire::{Deletion, Record, Writer};

/// The records of a datagram, and the account of them that is kept until it is acknowledged.
pub(super) struct Datagram<'a> {
    pub(super) w: &'a mut Writer,
    pub(super) sent: Sent,
    /// The term of the records that follow.
    term: Option<u32>,
}

/// A place to go back to.
#[derive(Clone, Copy)]
pub(super) struct Mark {
    len: usize,
    term: Option<u32>,
}

impl<'a> Datagram<'a> {
    pub(super) const fn new(w: &'a mut Writer, sent: Sent) -> Self {
        Self { w, sent, term: None }
    }

    pub(super) fn mark(&self) -> Mark {
        Mark { len: self.w.len(), term: self.term }
    }

    pub(super) fn reset(&mut self, mark: Mark) {
        self.w.truncate(mark.len);
        self.term = mark.term;
    }

    /// Makes the records that follow speak in `term`. Like all below: `false` if there is no room.
    pub(super) fn term(&mut self, term: u32) -> bool {
        if self.term == Some(term) {
            return true;
        }
        let fits = self.w.push(&Record::Term(term));
        if fits {
            self.term = Some(term);
        }
        fits
    }

    /// Adds a record of state.
    pub(super) fn control(&mut self, control: Control, record: &Record<'_>) -> bool {
        let fits = self.w.push(record);
        if fits {
            self.sent.controls.push(control);
        }
        fits
    }

    /// Adds a flow as it is now: FLOW or DELETE.
    pub(super) fn flow(&mut self, core: &Core, carried: Carried) -> bool {
        let slot = core.table.at(carried.slot);
        let mark = self.mark();
        let fits = self.term(core.speaks_in(slot.entry.bucket))
            && if carried.deletion {
                self.w.push(&Record::Delete(Deletion {
                    key: slot.key,
                    originator_is_b: slot.entry.originator_is_b,
                    bucket: slot.entry.bucket,
                    id: slot.entry.id,
                    version: slot.entry.version,
                }))
            } else {
                self.w.push_flow(&slot.key, &slot.entry)
            };
        if fits {
            self.sent.flows.push(carried);
        } else {
            self.reset(mark);
        }
        fits
    }
}
