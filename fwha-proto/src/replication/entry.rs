//! What both sides agree on about one flow.

use fwha_common::flow::{Flow, FlowId, FlowKey, FlowState};

/// When flows of two nodes began is known to a unit of [`Flow::created_ns`], and a millisecond of the wire.
const CREATED_ERROR: u64 = 2 << 20;
/// A data plane keeps when a flow began modulo this: after 834 days of a node's life it begins again at 0.
const CREATED_WRAP: u64 = 1 << 56;

/// A flow without what is true on one node only (next hops, generations, ktime of a peer). Times
/// are this node's `CLOCK_MONOTONIC`; on the wire they are ages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// When the flow began, in ns.
    pub created_ns: u64,
    /// When the last packet of each direction was seen, in ns; 0 for never.
    pub last_seen_ns: [u64; 2],
    /// Packets of each direction.
    pub packets: [u64; 2],
    /// Bytes of each direction.
    pub bytes: [u64; 2],
    /// As in [`Flow::version`].
    pub version: u64,
    /// The identity.
    pub id: FlowId,
    /// Hash of the name of the rule that admitted it.
    pub rule_hash: u32,
    /// A [`fwha_common::flow::FlowState`].
    pub state: u8,
    /// The bucket.
    pub bucket: u8,
    /// Zone of the originator and of the responder.
    pub zones: [u8; 2],
    /// End B of the key began the connection.
    pub originator_is_b: bool,
    /// As in [`Flow::mss`].
    pub mss: u16,
    /// What each direction told at the handshake, as [`Flow::handshake`].
    pub handshake: [u32; 2],
    /// As in [`Flow::delta`].
    pub delta: u32,
}

impl Entry {
    /// The entry for a flow of this node's data plane.
    pub const fn from_flow(key: &FlowKey, flow: &Flow) -> Self {
        let [there, back] = &flow.ways;
        Self {
            created_ns: flow.created_ns(),
            last_seen_ns: [there.last_seen_ns, back.last_seen_ns],
            packets: [there.packets, back.packets],
            bytes: [there.bytes, back.bytes],
            version: flow.version,
            id: flow.id(),
            rule_hash: flow.rule_hash,
            state: Flow::state_of(flow.word),
            bucket: flow.bucket,
            zones: flow.zones(),
            originator_is_b: flow.originator_is_b(),
            mss: flow.mss,
            handshake: [flow.handshake(key.proto, false), flow.handshake(key.proto, true)],
            delta: flow.delta,
        }
    }

    /// The flow for this node's data plane: inherited, and without next hops.
    pub fn to_flow(self, key: &FlowKey) -> Flow {
        let originator = if self.originator_is_b { Flow::ORIGINATOR_IS_B } else { 0 };
        let state = FlowState::from_u8(self.state).unwrap_or(FlowState::None);
        let mut flow = Flow {
            word: Flow::word(state, originator | Flow::INHERITED, self.zones),
            bucket: self.bucket,
            version: self.version,
            delta: self.delta,
            rule_hash: self.rule_hash,
            mss: self.mss,
            ..Flow::of(self.id)
        };
        flow.set_created_ns(self.created_ns);
        for (i, way) in flow.ways.iter_mut().enumerate() {
            way.last_seen_ns = self.last_seen_ns[i];
            way.packets = self.packets[i];
            way.bytes = self.bytes[i];
        }
        flow.set_handshake(key.proto, false, self.handshake[0]);
        flow.set_handshake(key.proto, true, self.handshake[1]);
        flow
    }

    /// Whether this entry of a data plane began after `other` of the same key; `None` if that cannot be said. Flows
    /// that began in one life of a node are numbered in their order. When others began is known to [`CREATED_ERROR`]:
    /// all times that a data plane holds are of one clock, those of inherited flows too.
    pub(super) fn began_after(&self, other: &Self) -> Option<bool> {
        if (self.id.node, self.id.epoch) == (other.id.node, other.id.epoch) {
            return Some(self.id.number > other.id.number);
        }
        let later = self.created_ns.wrapping_sub(other.created_ns) & (CREATED_WRAP - 1);
        let apart = later.min(CREATED_WRAP - later);
        (apart > CREATED_ERROR).then_some(later < CREATED_WRAP / 2)
    }
}

/// The keyed hash behind the table's index and the digests. Both ends derive the same seeds from
/// the cluster key; outsiders, who choose addresses and ports, cannot aim at a chain or a digest.
#[derive(Clone, Copy)]
pub(super) struct Mix([u64; 2]);

impl Mix {
    pub(super) const fn new(seeds: [u64; 2]) -> Self {
        Self(seeds)
    }

    /// The hash of a key.
    #[inline]
    pub(super) fn key(self, key: &FlowKey) -> u64 {
        let word = |high: u32, low: u32| u64::from(u32::from_be(high)) << 32 | u64::from(u32::from_be(low));
        let [a, b] = [&key.addr_a, &key.addr_b];
        let ports = u64::from(u16::from_be(key.port_a)) << 16 | u64::from(u16::from_be(key.port_b));
        let mut hash = fold(word(a[2], a[3]) ^ self.0[0], word(b[2], b[3]) ^ self.0[1]);
        hash ^= fold(word(a[0], a[1]) ^ self.0[1], word(b[0], b[1]) ^ self.0[0].rotate_left(32));
        fold(hash ^ ports ^ u64::from(key.proto) << 32, self.0[0] ^ 0x9e37_79b9_7f4a_7c15)
    }

    /// What one entry adds to the digest of its bucket.
    #[inline]
    pub(super) fn entry(self, key: &FlowKey, entry: &Entry) -> u64 {
        let maker = u64::from(entry.id.epoch) << 8 | u64::from(entry.id.node);
        let hash = fold(self.key(key) ^ entry.id.number, maker ^ self.0[1]);
        fold(hash ^ entry.version, self.0[0] ^ 0xd1b5_4a32_d192_ed03)
    }
}

/// Both halves of a 128-bit product, folded: a fast mixing step (as in wyhash).
#[inline]
const fn fold(a: u64, b: u64) -> u64 {
    let product = (a as u128).wrapping_mul(b as u128);
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_later_of_two_flows_is_known_after_years_too() {
        let entry = |node, created_ns| {
            let id = FlowId { node, epoch: 1, number: 1, zero: [0; 3] };
            Entry { created_ns, ..Entry::from_flow(&FlowKey::default(), &Flow::of(id)) }
        };
        const SECOND: u64 = 1_000_000_000;
        // As a data plane says it, and as it follows from an age.
        for wrapped in [0, CREATED_WRAP] {
            let (old, new) = (entry(2, CREATED_WRAP - SECOND), entry(1, wrapped + SECOND));
            assert_eq!((new.began_after(&old), old.began_after(&new)), (Some(true), Some(false)));
        }
        let near = entry(2, 7 * SECOND + CREATED_ERROR);
        assert_eq!(near.began_after(&entry(1, 7 * SECOND)), None);
    }
}
