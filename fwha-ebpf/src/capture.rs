//! Samples of dropped packets, for `fwhactl capture`. While no capture is on, a drop costs a load and a
//! branch more.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{__sk_buff, xdp_md},
    helpers::generated::{bpf_skb_load_bytes, bpf_xdp_get_buff_len, bpf_xdp_load_bytes},
};
use fwha_common::{
    capture::{DropHook, DropSample, SNAP_LEN, WINDOW_NS},
    settings::Counter,
};

use crate::{hook, maps, packet::bounded};

/// EtherType of a service VLAN tag, in network byte order.
const SERVICE_TAG: u32 = 0x88a8u16.to_be() as u32;

/// How much of its share a CPU has used.
#[repr(C)]
pub struct Share {
    /// When the window began, in ns.
    since_ns: u64,
    /// Samples since then.
    samples: u64,
}

/// Samples a packet that XDP drops, for the [`fwha_common::drop::DropReason`] of this number.
#[inline(always)]
pub fn xdp(ctx: *mut xdp_md, reason: u32) {
    sample_xdp(ctx, reason);
}

/// Samples a packet that a tc program drops, for the reason of this number.
#[inline(always)]
pub fn tc(ctx: *mut __sk_buff, hook: DropHook, reason: u32) {
    sample_tc(ctx, hook as u32, reason);
}

/// Whether drops for the reason of this number are to be sampled.
#[inline(always)]
pub fn wanted(reason: u32) -> bool {
    maps::CAPTURE.get(0).is_some_and(|capture| {
        // SAFETY: a reference; volatile, because user space writes it.
        let reasons = unsafe { (&raw const capture.reasons).read_volatile() };
        reasons >> (reason & 63) & 1 != 0
    })
}

// Not inlined, both of them: what they need of the stack and of the verifier's patience is not part of the
// packet's way.

#[inline(never)]
fn sample_xdp(ctx: *mut xdp_md, reason: u32) {
    // SAFETY: the kernel's context, valid while the program runs; so below.
    let (len, ifindex) = unsafe { (bpf_xdp_get_buff_len(ctx) as u32, (*ctx).ingress_ifindex) };
    let header = Header { ifindex, len, hook: DropHook::Xdp as u32, reason, vlan_tci: 0, flags: 0 };
    // SAFETY: `write` gives room for as many bytes as it names.
    write(&header, |to, n| unsafe { bpf_xdp_load_bytes(ctx, 0, to, n) });
}

#[inline(never)]
fn sample_tc(ctx: *mut __sk_buff, hook: u32, reason: u32) {
    // SAFETY: the kernel's context, valid while the program runs; so below.
    let skb = unsafe { &*ctx };
    let (vlan_tci, flags) = match skb.vlan_present {
        0 => (0, 0),
        _ if skb.vlan_proto == SERVICE_TAG => (skb.vlan_tci, DropSample::TAGGED | DropSample::SERVICE_TAG),
        _ => (skb.vlan_tci, DropSample::TAGGED),
    };
    let header = Header { ifindex: skb.ifindex, len: skb.len, hook, reason, vlan_tci, flags };
    // SAFETY: as above.
    write(&header, |to, n| unsafe { bpf_skb_load_bytes(ctx.cast(), 0, to, n) });
}

/// What a sample says of its packet.
struct Header {
    ifindex: u32,
    len: u32,
    hook: u32,
    reason: u32,
    vlan_tci: u32,
    flags: u8,
}

/// Writes a sample; `load` copies the first bytes of the packet, and returns 0.
#[inline(always)]
fn write(header: &Header, load: impl FnOnce(*mut c_void, u32) -> i64) {
    if !share() {
        maps::count(Counter::CaptureSkipped, 1);
        return;
    }
    let Some(mut entry) = maps::DROP_SAMPLES.reserve(0) else {
        maps::count(Counter::CaptureLost, 1);
        return;
    };
    let sample: *mut DropSample = entry.as_mut_ptr();
    let wanted = snapped(header.len);
    // SAFETY: `sample` points to room for one. The bytes behind those that are loaded are left as they are.
    unsafe {
        (*sample).time_ns = hook::exact_ns();
        (*sample).ifindex = header.ifindex;
        (*sample).len = header.len;
        (*sample).vlan_tci = header.vlan_tci as u16;
        (*sample).reason = header.reason as u8;
        (*sample).hook = header.hook as u8;
        (*sample).flags = header.flags;
        (*sample).zero = 0;
        let loaded = load((&raw mut (*sample).bytes).cast(), wanted) == 0;
        (*sample).captured = if loaded { wanted as u16 } else { 0 };
    }
    entry.submit(0);
}

/// How many bytes to load of a packet of `len`: 1 to [`SNAP_LEN`], as the verifier can see. (An empty packet,
/// which cannot be, has nothing to load: that fails.)
#[inline(always)]
fn snapped(len: u32) -> u32 {
    const LAST: u32 = SNAP_LEN as u32 - 1;
    const { assert!(SNAP_LEN.is_power_of_two()) };
    let last = len.wrapping_sub(1);
    bounded::<LAST>(if last < LAST { last } else { LAST }) as u32 + 1
}

/// Takes one from this CPU's share of the present window, if there is one left.
#[inline(always)]
fn share() -> bool {
    let (Some(capture), Some(share)) = (maps::CAPTURE.get(0), maps::CAPTURE_SHARE.get_ptr_mut(0)) else {
        return false;
    };
    // SAFETY: the element belongs to this CPU, which runs one of our programs at a time.
    let share = unsafe { &mut *share };
    let now = hook::now_ns();
    if now - share.since_ns >= WINDOW_NS {
        share.since_ns = now;
        share.samples = 0;
    }
    if share.samples >= capture.samples_max as u64 {
        return false;
    }
    share.samples += 1;
    true
}
