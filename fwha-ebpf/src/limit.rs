//! Limits by source address on new flows and on flows in the main table.
//!
//! Two CPUs that admit flows of one source at the same moment may count one of them only: a limit is
//! kept but for a few. User space counts again what is in the main table. Elements are evicted by LRU: a
//! flood of forged sources can make the rate of an honest one be forgotten, which admits it.

use aya_ebpf::bindings::BPF_ANY;
use fwha_common::{
    drop::DropReason,
    limit::{BURST_NS, Limits, Source},
};

use crate::{maps, parse::Ip};

/// The limits, if there are any.
#[inline(always)]
fn limits() -> Option<&'static Limits> {
    maps::LIMITS.get(0).filter(|limits| limits.interval_ns | limits.flows as u64 != 0)
}

/// Counts a new flow of a packet's source, which the rules admit.
///
/// # Errors
///
/// The source has opened more, or has more, than it may.
#[inline(always)]
pub fn open(ip: &Ip, now: u64) -> Result<(), DropReason> {
    let Some(limits) = limits() else {
        return Ok(());
    };
    let source = match maps::SOURCES.get_ptr_mut(ip.src) {
        Some(source) => source,
        None => {
            let _ = maps::SOURCES.insert(ip.src, Source::default(), BPF_ANY as u64);
            // If memory is short for a moment, it is not counted.
            match maps::SOURCES.get_ptr_mut(ip.src) {
                Some(source) => source,
                None => return Ok(()),
            }
        }
    };
    // SAFETY: from a map lookup in this run of the program; what races do is said above.
    let source = unsafe { &mut *source };
    if limits.flows != 0 && source.flows >= limits.flows {
        return Err(DropReason::SourceFlows);
    }
    if limits.interval_ns != 0 {
        let due = if source.due_ns > now { source.due_ns } else { now } + limits.interval_ns;
        if due > now + BURST_NS {
            return Err(DropReason::SourceRate);
        }
        source.due_ns = due;
    }
    Ok(())
}

/// Counts a flow that came into the main table; `answer` is the packet that brought it there.
#[inline(always)]
pub fn promoted(answer: &Ip) {
    if limits().is_some_and(|limits| limits.flows != 0)
        && let Some(source) = maps::SOURCES.get_ptr_mut(answer.dst)
    {
        // SAFETY: as above.
        unsafe { (*source).flows += 1 };
    }
}
