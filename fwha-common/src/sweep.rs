//! Flows that are to be deleted because they expired, if they are still as they were when that was found.

use crate::flow::{Flow, FlowKey};

/// Flows in one order at most.
pub const SWEEP_MAX: usize = 256;

/// A flow that expired, as it was.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Doomed {
    /// Its key.
    pub key: FlowKey,
    /// As [`Flow::number`].
    pub number: u64,
    /// When each direction was last seen, as [`crate::flow::Way::last_seen_ns`].
    pub last_seen_ns: [u64; 2],
    /// As [`Flow::word`].
    pub word: u32,
    /// The answer: 1 if this deleted it.
    pub gone: u32,
}

impl Doomed {
    /// A flow as it is now.
    pub const fn new(key: FlowKey, flow: &Flow) -> Self {
        let [there, back] = &flow.ways;
        let last_seen_ns = [there.last_seen_ns, back.last_seen_ns];
        Self { key, number: flow.number, last_seen_ns, word: flow.word, gone: 0 }
    }

    /// Whether a flow of this key is this one, and no packet has passed since.
    #[inline(always)]
    pub const fn is(&self, flow: &Flow) -> bool {
        let [there, back] = &flow.ways;
        flow.number == self.number
            && flow.word == self.word
            && there.last_seen_ns == self.last_seen_ns[0]
            && back.last_seen_ns == self.last_seen_ns[1]
    }
}

/// The one element of the array map `SWEEP`: an order, and the answer.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Sweep {
    /// How many flows.
    pub count: u32,
    /// Always zero.
    pub zero: u32,
    /// The flows.
    pub flows: [Doomed; SWEEP_MAX],
}

#[cfg(feature = "user")]
mod pod {
    // SAFETY: `repr(C)`, integers only, no padding (asserted below), valid for any bits.
    unsafe impl aya::Pod for super::Sweep {}
}

const _: () = {
    assert!(size_of::<Doomed>() == 72);
    assert!(size_of::<Sweep>() == 8 + SWEEP_MAX * size_of::<Doomed>());
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_that_has_moved_is_not_doomed() {
        let flow = Flow { number: 7, word: 3, ..Flow::default() };
        let doomed = Doomed::new(FlowKey::default(), &flow);
        assert!(doomed.is(&flow));
        let mut seen = flow;
        seen.ways[1].last_seen_ns = 1;
        assert!(!doomed.is(&seen), "a packet has come");
        assert!(!doomed.is(&Flow { word: 2, ..flow }), "its state has changed");
        assert!(!doomed.is(&Flow { number: 8, ..flow }), "it is another one");
    }
}
