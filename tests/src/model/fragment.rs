//! Datagrams in pieces: ports are in the first piece only, and no two may say different things about one byte.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Range;

use super::flow::{SECOND_NS, Tuple};
use super::packet::{Packet, Piece};
use super::tcp::Seq;
use super::verdict::Reason;

/// As many separate ranges of a datagram are remembered.
pub const RANGES: usize = 8;

/// As long is a datagram remembered after its first piece (`net.ipv4.ipfrag_time`).
pub const MEMORY_NS: u64 = 30 * SECOND_NS;

/// By what the pieces of a datagram know each other.
type Datagram = (IpAddr, IpAddr, u32, Option<u8>);

/// What is remembered of datagrams.
#[derive(Clone, Debug, Default)]
pub struct Fragments(BTreeMap<Datagram, Memory>);

/// What the first piece tells of the others.
#[derive(Clone, Copy, Debug)]
pub struct First {
    /// Whose flow they are of.
    pub tuple: Tuple,
    /// Of TCP, the number that byte 0 of the datagram would have, if it were data.
    pub origin: Option<Seq>,
}

#[derive(Clone, Debug)]
struct Memory {
    first: First,
    since_ns: u64,
    /// Bytes that came, ascending, never touching.
    ranges: Vec<Range<usize>>,
}

impl Fragments {
    /// Notes a first piece that went on.
    pub fn begin(&mut self, packet: &Packet, piece: &Piece, first: First, now_ns: u64) {
        let memory = Memory { first, since_ns: now_ns, ranges: alone(0..piece.length) };
        self.0.insert(datagram(packet, piece), memory);
    }

    /// Takes a later piece, and says what its first one told.
    pub fn follow(&mut self, packet: &Packet, piece: &Piece, now_ns: u64) -> Result<First, Reason> {
        let memory = self.0.get_mut(&datagram(packet, piece)).ok_or(Reason::Fragment)?;
        if now_ns >= memory.since_ns + MEMORY_NS {
            return Err(Reason::Fragment);
        }
        memory.ranges = cover(&memory.ranges, piece.offset..piece.offset + piece.length)?;
        Ok(memory.first)
    }
}

fn datagram(packet: &Packet, piece: &Piece) -> Datagram {
    (packet.source, packet.destination, piece.identification, piece.protocol)
}

fn alone(range: Range<usize>) -> Vec<Range<usize>> {
    cover(&[], range).expect("no overlap with nothing")
}

/// The ranges with one more.
fn cover(ranges: &[Range<usize>], new: Range<usize>) -> Result<Vec<Range<usize>>, Reason> {
    if ranges.iter().any(|old| old.start < new.end && new.start < old.end) {
        return Err(Reason::FragmentOverlap);
    }
    let mut ranges = ranges.to_vec();
    ranges.push(new);
    ranges.sort_by_key(|range| range.start);
    let mut merged: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => merged.push(range),
        }
    }
    if merged.len() > RANGES { Err(Reason::FragmentOverlap) } else { Ok(merged) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_touch_become_one_and_none_may_overlap() {
        let ranges = cover(&[0..8, 24..32], 8..16).unwrap();
        assert_eq!(ranges, [0..16, 24..32]);
        assert_eq!(cover(&ranges, 16..24).unwrap(), alone(0..32));
        for overlap in [0..8, 15..17, 23..25, 31..40, 0..64] {
            assert_eq!(cover(&ranges, overlap), Err(Reason::FragmentOverlap));
        }
    }

    #[test]
    fn there_are_only_so_many_holes() {
        let mut ranges = alone(0..8);
        for i in 1..RANGES {
            ranges = cover(&ranges, i * 16..i * 16 + 8).unwrap();
        }
        assert_eq!(cover(&ranges, 1000..1008), Err(Reason::FragmentOverlap));
        assert_eq!(cover(&ranges, 8..16).unwrap().len(), RANGES - 1, "a hole may be closed");
    }
}
