//! Where the generator's packets end: counted and dropped. All others pass, so that the hosts there can be talked to.

use aya_ebpf::{
    bindings::{
        xdp_action::{XDP_DROP, XDP_PASS},
        xdp_md,
    },
    btf_maps::PerCpuArray,
    helpers::generated::bpf_ktime_get_ns,
    macros::btf_map,
};

use crate::{
    frame::{Frame, is_generated_v4, is_generated_v6},
    generator::ORDER,
    order::{BUCKETS, bucket},
};

/// Packets that have arrived, and their bytes.
#[btf_map]
static ARRIVED: PerCpuArray<[u64; 2], 1> = PerCpuArray::new();

/// Packets by the bucket of the time since their stamp.
#[btf_map]
static DELAYS: PerCpuArray<u64, BUCKETS> = PerCpuArray::new();

/// Headers of UDP over IPv4, behind which a router may cut off what pads a short packet.
const LENGTH_MIN: usize = 42;

/// The sink.
#[unsafe(no_mangle)]
#[unsafe(link_section = "xdp")]
fn sink(ctx: *mut xdp_md) -> u32 {
    // SAFETY: the kernel's context, valid while the program runs.
    let (start, end) = unsafe { ((*ctx).data as usize, (*ctx).data_end as usize) };
    if start + LENGTH_MIN > end {
        return XDP_PASS;
    }
    let frame = Frame(start);
    // SAFETY: each field lies in bytes that are there: the first 42, or as many as were checked last.
    let stamp = unsafe {
        match u16::from_be(frame.u16::<12>()) {
            0x0800 if is_generated_v4(frame) && start + 50 <= end => frame.u64::<42>(),
            0x0800 if is_generated_v4(frame) => 0,
            0x86dd if start + 54 <= end && is_generated_v6(frame) => 0,
            _ => return XDP_PASS,
        }
    };
    if let Some(arrived) = ARRIVED.get_ptr_mut(0) {
        // SAFETY: the element belongs to this CPU.
        unsafe {
            (*arrived)[0] += 1;
            (*arrived)[1] += (end - start) as u64;
        }
    }
    if stamp != 0 && ORDER.get(0).is_some_and(|order| order.burst != 0) {
        // SAFETY: takes nothing, returns a number.
        let delay = unsafe { bpf_ktime_get_ns() }.saturating_sub(stamp);
        if let Some(count) = DELAYS.get_ptr_mut(bucket(delay) as u32) {
            // SAFETY: as above.
            unsafe { *count += 1 }
        }
    }
    XDP_DROP
}

/// Lets every packet pass: with a program, a veth takes what the generator sends.
#[unsafe(no_mangle)]
#[unsafe(link_section = "xdp")]
fn pass_xdp(_: *mut xdp_md) -> u32 {
    XDP_PASS
}
