//! Fragments: what the first one of a datagram says holds for the others.
//!
//! Nothing is reassembled. A later fragment passes as part of the flow that its first fragment belongs
//! to, and only behind it; one that comes before is dropped, and the sender's retransmission is what
//! mends it. Of each datagram the ranges that were let through are noted, so that no fragment
//! overwrites another (RFC 5722, which Linux keeps for IPv4 too).
//!
//! Two CPUs that note two fragments of one datagram at the same moment may lose one of the notes: then
//! an overlap is not seen here, but by the receiver. Elements are replaced as a whole, and evicted by
//! LRU; their owner then counts as unknown.

use aya_ebpf::bindings::BPF_ANY;
use fwha_common::{drop::DropReason, flow::proto};

use crate::{
    maps::{self, Room},
    parse::Ip,
    tcp,
};

/// How long the rest of a datagram may take (`net.ipv4.ipfrag_time`), in ns.
const TIMEOUT_NS: u64 = 30_000_000_000;

/// Ranges of a datagram that do not touch, at most.
const RANGES: usize = 8;

/// What fragments of one datagram have in common (RFC 791, 3.2; RFC 8200, 4.5).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct DatagramKey {
    src: [u32; 4],
    dst: [u32; 4],
    id: u32,
    /// Protocol; 0 in IPv6, whose later fragments need not say it.
    proto: u32,
}

/// What is known of a datagram.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Datagram {
    /// When its first fragment came, coarse `CLOCK_MONOTONIC` in ns.
    since_ns: u64,
    /// TCP: the sequence number that byte 0 of the L4 header would have, so that the end of the data is where
    /// it is; a SYN or FIN counts.
    base: u32,
    sport: u16,
    dport: u16,
    /// Ranges let through, in units of 8 bytes: begin, end. Equal for none.
    ranges: [[u16; 2]; RANGES],
    proto: u8,
    zero: [u8; 7],
}

#[inline(always)]
fn key(ip: &Ip) -> DatagramKey {
    DatagramKey {
        src: ip.src,
        dst: ip.dst,
        id: ip.fragment.id,
        proto: if ip.v6 { 0 } else { ip.proto as u32 },
    }
}

/// Remembers the first fragment of a datagram. One that comes again begins it anew: identifications
/// are used again soon.
#[inline(always)]
pub fn remember(ip: &Ip, now: u64) {
    let Some(datagram) = maps::room().map(Room::datagram) else {
        return;
    };
    *datagram = Datagram {
        since_ns: now,
        base: ip
            .tcp
            .seq
            .wrapping_sub(ip.tcp.header_len as u32)
            .wrapping_add((ip.tcp.flags & (tcp::SYN | tcp::FIN) != 0) as u32),
        sport: ip.sport,
        dport: ip.dport,
        ranges: [[0; 2]; RANGES],
        proto: ip.proto,
        zero: [0; 7],
    };
    datagram.ranges[0] = [0, ip.fragment.units];
    // An LRU table always has room; if memory is short for a moment, the rest of it is dropped.
    let _ = maps::FRAGMENTS.insert(key(ip), &*datagram, BPF_ANY as u64);
}

/// Completes a later fragment with what its first one said; for TCP, `seq` is the number behind its
/// last byte.
///
/// # Errors
///
/// There is no first fragment.
#[inline(always)]
pub fn resume(ip: &mut Ip, now: u64) -> Result<*mut Datagram, DropReason> {
    let datagram = maps::FRAGMENTS.get_ptr_mut(key(ip)).ok_or(DropReason::Fragment)?;
    // SAFETY: from a map lookup in this run of the program; so below. What races do is said above.
    let known = unsafe { &*datagram };
    if known.since_ns.wrapping_add(TIMEOUT_NS) <= now {
        return Err(DropReason::Fragment);
    }
    ip.proto = known.proto;
    ip.sport = known.sport;
    ip.dport = known.dport;
    if known.proto == proto::TCP {
        let end = ((ip.fragment.offset as u32) << 3) + (ip.len - ip.l4);
        ip.tcp.seq = known.base.wrapping_add(end);
    }
    Ok(datagram)
}

/// Notes that a later fragment is let through.
///
/// # Errors
///
/// It overlaps another, or there are too many gaps.
#[inline(always)]
pub fn cover(datagram: *mut Datagram, ip: &Ip) -> Result<(), DropReason> {
    // SAFETY: see `resume`.
    let ranges = unsafe { &mut (*datagram).ranges };
    let begin = ip.fragment.offset;
    let end = begin.wrapping_add(ip.fragment.units);
    let mut place = RANGES;
    let mut i = 0;
    while i < RANGES {
        let [from, to] = ranges[i];
        if begin < to && from < end {
            return Err(DropReason::FragmentOverlap);
        }
        // A range that it touches, or else a free one.
        if from != to && (to == begin || from == end) || from == to && place == RANGES {
            place = i;
        }
        i += 1;
    }
    if place >= RANGES {
        return Err(DropReason::FragmentOverlap);
    }
    let [from, to] = ranges[place];
    ranges[place] = if from == to {
        [begin, end]
    } else if to == begin {
        [from, end]
    } else {
        [begin, to]
    };
    Ok(())
}
