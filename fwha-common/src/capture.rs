//! Capture of dropped packets: what user space asks for, and the samples that the programs write.
//!
//! While a capture is on, a drop whose reason is asked for leaves a [`DropSample`] in the ring buffer
//! `DROP_SAMPLES`, up to [`Capture::samples_max`] of them in each [`WINDOW_NS`] on each CPU: a flood must
//! not make dropping dear. What was not sampled is counted: [`CaptureSkipped`] for the limit,
//! [`CaptureLost`] for a full ring.
//!
//! ```text
//!   0  time, ns (u64)    8  interface index (u32)   12  length of the packet (u32)
//!  16  captured (u16)   18  VLAN tag (u16)          20  reason  21  hook  22  flags  23  zero
//!  24  first bytes of the frame (256)              280  end; all numbers little-endian
//! ```
//!
//! [`CaptureSkipped`]: crate::settings::Counter::CaptureSkipped
//! [`CaptureLost`]: crate::settings::Counter::CaptureLost

use crate::drop::{DROP_REASONS, DropReason};

/// Bytes of a packet that a sample holds at most.
pub const SNAP_LEN: usize = 256;

/// The time in which [`Capture::samples_max`] samples are taken, in ns.
pub const WINDOW_NS: u64 = 100_000_000;

/// The one element of the array map `CAPTURE`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capture {
    /// Reasons to sample, see [`Capture::bit`]. 0 while no capture is on.
    pub reasons: u64,
    /// Samples in a [`WINDOW_NS`] on one CPU.
    pub samples_max: u32,
    /// Always zero.
    pub zero: u32,
}

impl Capture {
    /// All reasons.
    pub const ALL: u64 = u64::MAX >> (u64::BITS as usize - DROP_REASONS);

    /// The bit of a reason.
    #[inline(always)]
    pub const fn bit(reason: DropReason) -> u64 {
        1 << reason as u32
    }
}

/// The program that dropped a packet.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropHook {
    /// XDP on a zone interface.
    Xdp = 1,
    /// tc ingress on a zone interface.
    Ingress = 2,
    /// tc egress on a zone interface: the packet was about to leave.
    Egress = 3,
    /// tc ingress on a sync interface.
    Sync = 4,
}

impl DropHook {
    /// The hook of a number.
    pub const fn from_u8(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Xdp),
            2 => Some(Self::Ingress),
            3 => Some(Self::Egress),
            4 => Some(Self::Sync),
            _ => None,
        }
    }

    /// The name under which it is shown.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::Ingress => "ingress",
            Self::Egress => "egress",
            Self::Sync => "sync",
        }
    }
}

/// A dropped packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropSample {
    /// When it was dropped, `CLOCK_MONOTONIC` in ns.
    pub time_ns: u64,
    /// The interface it came in by; at [`DropHook::Egress`] the one it was to leave by.
    pub ifindex: u32,
    /// Length of the frame, without the VLAN tag that the driver took off; of a super-packet, the whole of it.
    pub len: u32,
    /// How many of [`DropSample::bytes`] are the packet's; what stands behind them is of earlier ones.
    pub captured: u16,
    /// The VLAN tag that the driver took off, with [`DropSample::TAGGED`].
    pub vlan_tci: u16,
    /// A [`DropReason`].
    pub reason: u8,
    /// A [`DropHook`].
    pub hook: u8,
    /// Bits; [`DropSample::TAGGED`], [`DropSample::SERVICE_TAG`].
    pub flags: u8,
    /// Always zero.
    pub zero: u8,
    /// First bytes of the frame.
    pub bytes: [u8; SNAP_LEN],
}

impl DropSample {
    /// The driver took a VLAN tag off the frame.
    pub const TAGGED: u8 = 1;
    /// That was a service tag (EtherType 0x88a8), else it was a customer's (0x8100).
    pub const SERVICE_TAG: u8 = 2;
}

#[cfg(feature = "user")]
mod pod {
    // SAFETY: `repr(C)`, integers only, no padding (asserted below), valid for any bits.
    unsafe impl aya::Pod for super::Capture {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::DropSample {}
}

const _: () = {
    assert!(size_of::<Capture>() == 16);
    assert!(size_of::<DropSample>() == 24 + SNAP_LEN);
    assert!(DROP_REASONS <= u64::BITS as usize);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_a_bit_of_its_own() {
        let all = DropReason::ALL.iter().fold(0, |bits, reason| bits | Capture::bit(*reason));
        assert_eq!(all, Capture::ALL);
        assert_eq!(all.count_ones() as usize, DROP_REASONS);
    }

    #[test]
    fn hooks_are_known_by_their_numbers() {
        let known = (0..=u8::MAX).filter_map(DropHook::from_u8).map(|hook| (hook as u8, hook.as_str()));
        assert!(known.eq([(1, "xdp"), (2, "ingress"), (3, "egress"), (4, "sync")]));
    }
}
