//! Limits on what one source address may open.

/// The one element of the array map `LIMITS`. All zero is no limit.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Time between two new flows of a source on the average, in ns; 0 for no limit. A source may open
    /// those of a second ([`BURST_NS`]) at once.
    pub interval_ns: u64,
    /// Flows of a source in the main table, at most; 0 for no limit.
    pub flows: u32,
    /// Always zero.
    pub zero: u32,
}

/// How far a source may run ahead of its rate, in ns.
pub const BURST_NS: u64 = 1_000_000_000;

/// An element of the map `SOURCES`, keyed by address as in a flow key.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// When a flow more would be on its time, in ns: as long as that is less than [`BURST_NS`] ahead, it
    /// is admitted (the generic cell rate algorithm, ITU-T I.371).
    pub due_ns: u64,
    /// Flows that it has in the main table: those that user space counted when it last walked the
    /// table, and those that came since.
    pub flows: u32,
    /// Always zero.
    pub zero: u32,
}

#[cfg(feature = "user")]
mod pod {
    // SAFETY: `repr(C)`, integers only, no padding (asserted below), valid for any bits.
    unsafe impl aya::Pod for super::Limits {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Source {}
}

const _: () = {
    assert!(size_of::<Limits>() == 16);
    assert!(size_of::<Source>() == 16);
};
