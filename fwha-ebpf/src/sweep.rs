//! Takes flows that expired out of the main table, many at a time, at the order of user space: one system call for each of
//! them costs several times as much.
//!
//! A flow goes if it still is what user space saw. The programs have taken it for gone since it expired, so none of them
//! touches it; but between the look and the deletion the answer to a new SYN may put another flow under its key. User space
//! hears of that one by its event, and puts it back.

use fwha_common::sweep::SWEEP_MAX;

use crate::maps;

/// Does what `SWEEP` says.
#[inline(always)]
pub fn sweep() {
    let Some(sweep) = maps::SWEEP.get_ptr_mut(0) else { return };
    // SAFETY: the map's element, which one thread of user space writes, and not while this runs.
    let sweep = unsafe { &mut *sweep };
    let count = sweep.count as usize;
    let mut n = 0;
    while n < SWEEP_MAX {
        if n >= count {
            return;
        }
        let doomed = &mut sweep.flows[n];
        if let Some(flow) = maps::FLOWS.get_ptr_mut(&doomed.key) {
            // SAFETY: an element stays in place as long as the program runs, even if it is deleted meanwhile; integers only.
            if doomed.is(unsafe { &*flow }) && maps::FLOWS.remove(&doomed.key).is_ok() {
                doomed.gone = 1;
            }
        }
        n += 1;
    }
}
