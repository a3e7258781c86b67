//! The traffic: a packet of another flow at each run, then a tail call into the program under test.
//!
//! A test run (`BPF_PROG_TEST_RUN`) repeats one frame. One flow over and over would find everything in the nearest
//! cache and every branch foretold, so the headers are written anew each time. What that costs is known from the same
//! with a program that does nothing.
//!
//! Live frames (`BPF_F_TEST_XDP_LIVE_FRAMES`) leave for a real interface instead, whose other end is a firewall.

use aya_ebpf::{
    bindings::{
        __sk_buff,
        xdp_action::{XDP_ABORTED, XDP_DROP},
        xdp_md,
    },
    btf_maps::{Array, ProgramArray},
    helpers::generated::{bpf_ktime_get_ns, bpf_redirect, bpf_tail_call, bpf_xdp_adjust_tail},
    macros::btf_map,
};

use crate::{
    frame::{Frame, V4_LEN, V6_LEN},
    order::{Order, mix},
};

/// Programs under test. The kernel takes those of one kind only into an array.
const PROGRAMS: usize = 16;

#[btf_map]
pub static ORDER: Array<Order, 1> = Array::new();

#[btf_map]
static XDP_PROGRAMS: ProgramArray<PROGRAMS> = ProgramArray::new();

#[btf_map]
static TC_PROGRAMS: ProgramArray<PROGRAMS> = ProgramArray::new();

/// The generator at XDP.
#[unsafe(no_mangle)]
#[unsafe(link_section = "xdp")]
fn generate_xdp(ctx: *mut xdp_md) -> u32 {
    // SAFETY: the kernel's context, valid while the program runs.
    let (start, end) = unsafe { ((*ctx).data as usize, (*ctx).data_end as usize) };
    if let Some(program) = write(start, end) {
        // SAFETY: context and map are valid. Does not return if there is such a program.
        unsafe { bpf_tail_call(ctx.cast(), (&raw const XDP_PROGRAMS).cast_mut().cast(), program) };
    }
    XDP_ABORTED
}

/// The generator at tc.
#[unsafe(no_mangle)]
#[unsafe(link_section = "classifier")]
fn generate_tc(ctx: *mut __sk_buff) -> i32 {
    // SAFETY: the kernel's context, valid while the program runs. The last packet's mark must not stay.
    let (start, end) = unsafe {
        (*ctx).mark = 0;
        ((*ctx).data as usize, (*ctx).data_end as usize)
    };
    if let Some(program) = write(start, end) {
        // SAFETY: as above.
        unsafe { bpf_tail_call(ctx.cast(), (&raw const TC_PROGRAMS).cast_mut().cast(), program) };
    }
    FAILED
}

/// The generator of live frames. The page comes back as the last receiver left it, which is why all of the header is
/// written.
#[unsafe(no_mangle)]
#[unsafe(link_section = "xdp")]
fn generate_live(ctx: *mut xdp_md) -> u32 {
    let Some(order) = ORDER.get_ptr_mut(0) else { return XDP_ABORTED };
    // SAFETY: a map element that nobody else writes while the test runs.
    let order = unsafe { &mut *order };
    if order.burst != 0 && order.made % order.burst == 0 {
        wait(order);
    }
    if order.mix != 0 {
        // SAFETY: the kernel's context, valid while the program runs.
        let length = unsafe { (*ctx).data_end - (*ctx).data } as i32;
        order.payload = mix(order.made);
        let shorter = (HEADERS + order.payload as i32).max(V4_LEN as i32) - length;
        // SAFETY: as above.
        if shorter < 0 && unsafe { bpf_xdp_adjust_tail(ctx, shorter) } != 0 {
            return XDP_ABORTED;
        }
    }
    if order.steps != 0 {
        match take_step(order) {
            Some(true) => {}
            Some(false) => return XDP_DROP,
            None => return XDP_ABORTED,
        }
    }
    // SAFETY: as above.
    let (start, end) = unsafe { ((*ctx).data as usize, (*ctx).data_end as usize) };
    match write(start, end) {
        // SAFETY: takes and returns numbers.
        Some(_) => unsafe { bpf_redirect(order.device as u32, 0) as u32 },
        None => XDP_ABORTED,
    }
}

/// Makes the order one for the next packet of a conversation. False when the last flow has had its steps.
#[inline(always)]
fn take_step(order: &mut Order) -> Option<bool> {
    // No panic, of which the kernel would not take the program.
    let (block, place) = (order.made.checked_div(order.block)?, order.made.checked_rem(order.block)?);
    let flow = block.checked_div(order.steps)? * order.block + place;
    if flow >= order.flows {
        order.made += 1;
        return Some(false);
    }
    let step = block.checked_rem(order.steps)?;
    let (kind, sequence) = (*order.step.get(step as usize)?, *order.step_sequence.get(step as usize)?);
    order.flags = kind & 0xff;
    order.reply = kind >> 8 & 1;
    order.payload = kind >> 16;
    order.sent = sequence >> 32;
    order.heard = sequence & 0xffff_ffff;
    [order.dst_mac, order.src_mac, order.device] = if order.reply == 0 { order.way[0] } else { order.way[1] };
    // `write` adds the packet's number.
    order.first = (order.first_step + flow).wrapping_sub(order.made);
    Some(true)
}

/// Looks at the clock that a wait takes at most: some tenths of a millisecond.
const LOOKS: u32 = 8_192;

/// Waits until the next burst is due. What was missed is not made up for.
#[inline(always)]
fn wait(order: &mut Order) {
    for _ in 0..LOOKS {
        // SAFETY: takes nothing, returns a number.
        let now = unsafe { bpf_ktime_get_ns() };
        if now >= order.due {
            order.due = now + order.every;
            return;
        }
    }
}

/// Headers of UDP over IPv4 on Ethernet, in bytes.
const HEADERS: i32 = 14 + 20 + 8;

/// No action of tc.
const FAILED: i32 = 0xff;

/// Writes the next packet of the order, and says which program gets it.
#[inline(always)]
fn write(start: usize, end: usize) -> Option<u32> {
    let order = ORDER.get_ptr_mut(0)?;
    // SAFETY: a map element that nobody else writes while the test runs.
    let order = unsafe { &mut *order };
    let (turn, moved) = if order.random == 0 {
        (order.made as u32, 0)
    } else {
        // Knuth's MMIX generator; its high half is random enough.
        order.seed =
            order.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (((order.seed >> 32) * order.random >> 32) as u32, (order.made * order.advance) as u32)
    };
    order.made += 1;
    // SAFETY: takes nothing, returns a number.
    let stamp = if order.burst == 0 || order.payload < 8 { 0 } else { unsafe { bpf_ktime_get_ns() } };
    let flow = (order.first as u32).wrapping_add(turn);
    if order.family == 4 {
        if start + V4_LEN > end {
            return None;
        }
        // SAFETY: just checked.
        unsafe { Frame(start).write_v4(order, flow, moved, stamp) };
    } else {
        if start + V6_LEN > end {
            return None;
        }
        // SAFETY: just checked.
        unsafe { Frame(start).write_v6(order, flow, moved, stamp) };
    }
    Some(order.program as u32)
}
