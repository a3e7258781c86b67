//! Neighbours in use: the kernel is told of those that the programs send to.
//!
//! What the programs forward touches no neighbour entry of the kernel (`bpf_fib_lookup` only reads them). Left to itself the
//! kernel would take one that is STALE for idle: it would never find out that the host has another MAC or is gone, and would
//! delete the entry in favour of others (`neigh_periodic_work` of net/core/neighbour.c: unused for `gc_stale_time`, 60 s, once
//! there are `gc_thresh1`, 128). So the sweeper notes whom flows were sent to, and here the kernel hears it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use fwha_common::flow::{Flow, NextHop};
use tokio::sync::watch;

use super::limit::Limit;
use crate::netlink::{Station, use_stale};

/// Between two times that the sweeper notes them: so long after it became STALE a neighbour in use is probed at the latest,
/// or after a pass if that takes longer. It is not STALE again for some tens of seconds (`base_reachable_time_ms`).
pub const INTERVAL: Duration = Duration::from_secs(10);
/// For so long after its last packet, in ns, a flow uses its neighbours.
const RECENT_NS: u64 = 30_000_000_000;
/// Stations that are noted. The kernel has no more than 1024 neighbours unless it is told to (`gc_thresh3`, arp(7)).
const MAX: usize = 65_536;
/// Neighbours of which the kernel is told in one go: each costs it a probe some seconds later, if nobody confirms it.
const BURST: usize = 1024;
/// Between two of those.
const PAUSE: Duration = Duration::from_secs(1);

/// Whom flows were sent to a moment ago.
#[derive(Debug)]
pub struct InUse {
    /// All of them.
    pub stations: HashSet<Station>,
    /// Some of those, each where [`place`] says: most flows are to somebody who was noted a moment before, and the set is slow.
    known: Box<[Station; PLACES]>,
}

/// Places in [`InUse::known`]: 12 bytes each.
const PLACES: usize = 1 << 12;

/// Fibonacci hashing: the upper 12 bits of the product.
fn place((ifindex, [a, b, c, d, e, f]): Station) -> usize {
    let number = u64::from_le_bytes([a, b, c, d, e, f, 0, 0]) ^ u64::from(ifindex) << 48;
    (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52) as usize
}

impl Default for InUse {
    fn default() -> Self {
        Self { stations: HashSet::new(), known: Box::new([Station::default(); PLACES]) }
    }
}

impl InUse {
    /// Those of a flow of this node. Whether the next hop is still that of the present routes makes no difference: it was used.
    #[inline]
    pub fn note(&mut self, flow: &Flow, now_ns: u64) {
        for way in &flow.ways {
            if way.generation == 0 || now_ns.saturating_sub(way.last_seen_ns) >= RECENT_NS {
                continue;
            }
            let station = (NextHop::ifindex(way.out), way.dst_mac);
            let known = &mut self.known[place(station)];
            if *known != station && self.stations.len() < MAX {
                *known = station;
                self.stations.insert(station);
            }
        }
    }
}

/// Who notes them, and who tells the kernel of them.
pub fn channel() -> (watch::Sender<Arc<InUse>>, watch::Receiver<Arc<InUse>>) {
    watch::channel(Arc::default())
}

/// Tells the kernel of what is noted, until nobody notes any more.
pub async fn run(mut noted: watch::Receiver<Arc<InUse>>) {
    let mut complaints = Limit::default();
    while noted.changed().await.is_ok() {
        let in_use = Arc::clone(&noted.borrow_and_update());
        while !in_use.stations.is_empty() {
            match use_stale(&in_use.stations, BURST).await {
                Ok(BURST) => tokio::time::sleep(PAUSE).await,
                Ok(_) => break,
                Err(error) => {
                    if let Some(held) = complaints.pass() {
                        tracing::warn!(held, "cannot tell the kernel which neighbours are in use: {error}");
                    }
                    break;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_NS: u64 = 1_000_000_000_000;

    /// A flow whose ways were used so many seconds ago, at a route generation, by an interface to a MAC that ends so.
    fn flow(ways: [(u64, u32, u32, u8); 2]) -> Flow {
        let mut flow = Flow::default();
        for (way, (seconds, generation, out, mac)) in flow.ways.iter_mut().zip(ways) {
            way.last_seen_ns = NOW_NS - seconds * 1_000_000_000;
            (way.generation, way.out) = (generation, out);
            way.dst_mac = [2, 0, 0, 0, 0, mac];
        }
        flow
    }

    #[test]
    fn stations_are_noted_that_flows_were_sent_to_a_moment_ago() {
        let mut noted = InUse::default();
        noted.note(&flow([(1, 7, 3, 1), (29, 6, 4, 2)]), NOW_NS);
        noted.note(&flow([(0, 7, 3, 1), (2, 7, NextHop::out(5, true, true), 3)]), NOW_NS);
        // No packet for long; no next hop, as of what came from a peer.
        noted.note(&flow([(31, 7, 3, 9), (1, 0, 3, 9)]), NOW_NS);
        // Seen by another CPU since the clock was read.
        noted.note(&flow([(0, 7, 4, 4), (40, 7, 3, 9)]), NOW_NS - 5);
        let expected = [(3, 1), (4, 2), (5, 3), (4, 4)].map(|(ifindex, mac)| (ifindex, [2, 0, 0, 0, 0, mac]));
        assert_eq!(noted.stations, HashSet::from(expected));
    }

    #[test]
    fn stations_are_bounded() {
        let mut noted = InUse::default();
        for out in 0..MAX as u32 + 10 {
            noted.note(&flow([(1, 7, out, 1), (1, 7, out, 1)]), NOW_NS);
        }
        assert_eq!(noted.stations.len(), MAX);
    }
}
