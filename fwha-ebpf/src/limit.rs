//! Limits by source address on new flows and on flows in the main table. The latter is asked twice: when a flow begins, and when
//! it is to come into the main table, for of many that begin at once none is there yet.
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

/// What is known of the source of a flow that is to come into the main table, if its flows there are limited; `answer` is the
/// packet that is to bring it there.
///
/// # Errors
///
/// The source has as many there as it may.
#[inline(always)]
pub fn promote(answer: &Ip) -> Result<Option<*mut Source>, DropReason> {
    let Some(limits) = limits().filter(|limits| limits.flows != 0) else {
        return Ok(None);
    };
    let source = maps::SOURCES.get_ptr_mut(answer.dst);
    // SAFETY: as above.
    if source.is_some_and(|source| unsafe { (*source).flows } >= limits.flows) {
        return Err(DropReason::SourceFlows);
    }
    Ok(source)
}

/// Counts a flow that came into the main table for its source, as [`promote`] gave it.
#[inline(always)]
pub fn promoted(source: Option<*mut Source>) {
    if let Some(source) = source {
        // SAFETY: as above.
        unsafe { (*source).flows += 1 };
    }
}
