//! Single steps of a stateful firewall's work on an IPv4 TCP packet, each as small as it can be: what the step costs at
//! least, whoever writes it. They share no code with fwha's engine, whose steps may cost more.

use aya_ebpf::{
    bindings::{
        BPF_ANY,
        xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS},
        xdp_md,
    },
    btf_maps::{Array, HashMap, PerCpuArray},
    helpers::generated::{bpf_jiffies64, bpf_ktime_get_coarse_ns, bpf_ktime_get_ns, bpf_redirect},
    macros::btf_map,
};
use fwha_common::flow::{Flow, FlowKey, V4_MAPPED, proto};

use crate::frame::{Frame, V4_LEN};

/// A key as long as fwha's.
type Key = [u32; size_of::<FlowKey>() / 4];

/// A value as long as fwha's, whatever is in it there.
type Value = [u64; size_of::<Flow>() / 8];

/// As many flows as the traffic has, under keys and values as long as fwha's.
#[btf_map]
static TABLE: HashMap<Key, Value, 1_024> = HashMap::new();

/// A value that makes three cache lines of an element: the kernel's hash map adds 48 bytes, and 4 to a key of 12.
type ShortValue = [u64; 16];

const _: () = assert!(size_of::<ShortValue>() <= size_of::<Value>());

/// The same under the shortest keys: addresses, and ports with the protocol left to another table.
#[btf_map]
static TABLE_SHORT: HashMap<[u32; 3], ShortValue, 1_024> = HashMap::new();

#[btf_map]
static COUNTERS: PerCpuArray<u64, 8> = PerCpuArray::new();

#[btf_map]
static SETTINGS: Array<u64, 8> = Array::new();

/// Reads the packet's headers, within bounds, and builds its key.
#[inline(always)]
fn parse(ctx: *mut xdp_md) -> Option<Key> {
    // SAFETY: the kernel's context, valid while the program runs.
    let (start, end) = unsafe { ((*ctx).data as usize, (*ctx).data_end as usize) };
    if start + V4_LEN > end {
        return None;
    }
    let frame = Frame(start);
    // SAFETY: checked above.
    unsafe {
        if frame.u16::<12>() != 0x0800u16.to_be()
            || frame.u8::<14>() != 0x45
            || frame.u16::<20>() & 0x3fffu16.to_be() != 0
            || u16::from_be(frame.u16::<16>()) < 40
            || frame.u8::<22>() <= 1
            || frame.u8::<23>() != proto::TCP
            || frame.u8::<46>() < 0x50
            || frame.u8::<47>() & 0x17 != 0x10
        {
            return None;
        }
        // Sorted, with the number of the protocol in a word of its own: nothing is left that would be zeroed byte by byte.
        let (src, dst) = (frame.u32::<26>(), frame.u32::<30>());
        let (sport, dport) = (frame.u16::<34>() as u32, frame.u16::<36>() as u32);
        let (a, b, ports) = if u32::from_be(src) > u32::from_be(dst) {
            (dst, src, dport | sport << 16)
        } else {
            (src, dst, sport | dport << 16)
        };
        let key = [0, 0, V4_MAPPED, a, 0, 0, V4_MAPPED, b, ports, proto::TCP as u32];
        Some(key)
    }
}

/// The key without what is the same for all IPv4 TCP flows.
#[inline(always)]
fn short(key: &Key) -> [u32; 3] {
    [key[3], key[7], key[8]]
}

/// Makes an action depend on a number, so that the compiler cannot leave out what led to it.
#[inline(always)]
fn action(number: u64) -> u32 {
    if number == u64::MAX { XDP_PASS } else { XDP_DROP }
}

/// Parses, and builds the key.
#[unsafe(no_mangle)]
#[unsafe(link_section = "xdp")]
fn step_parse(ctx: *mut xdp_md) -> u32 {
    match parse(ctx) {
        Some(key) => {
            // Into memory, as a lookup needs it.
            let key = core::hint::black_box(key);
            action(key[3] as u64 | (key[8] as u64) << 32)
        }
        None => XDP_ABORTED,
    }
}

/// Reads the clock of the last tick.
#[unsafe(no_mangle)]
#[unsafe(link_section = "xdp")]
fn step_coarse_clock(_: *mut xdp_md) -> u32 {
    // SAFETY: takes nothing, returns a number.
    action(unsafe { bpf_ktime_get_coarse_ns() })
}

/// Reads the count of ticks, which the kernel compiles to one load.
#[unsafe(no_mangle)]
#[unsafe(link_section = "xdp")]
fn step_ticks(_: *mut xdp_md) -> u32 {
    // SAFETY: as above.
    action(unsafe { bpf_jiffies64() })
}

/// Reads the exact clock.
#[unsafe(no_mangle)]
#[unsafe(link_section = "xdp")]
fn step_exact_clock(_: *mut xdp_md) -> u32 {
    // SAFETY: as above.
    action(unsafe { bpf_ktime_get_ns() })
}

/// Adds to two counters of this CPU.
#[unsafe(no_mangle)]
#[unsafe(link_section = "xdp")]
fn step_counters(_: *mut xdp_md) -> u32 {
    for index in [0, 3] {
        if let Some(counter) = COUNTERS.get_ptr_mut(index) {
            // SAFETY: the element belongs to this CPU.
            unsafe { *counter += 1 }
        }
    }
    XDP_DROP
}

/// Reads four elements of an array, each found through the one before.
#[unsafe(no_mangle)]
#[unsafe(link_section = "xdp")]
fn step_settings(_: *mut xdp_md) -> u32 {
    let mut at = 0;
    for _ in 0..4 {
        at = SETTINGS.get(at as u32).copied().unwrap_or(u64::MAX);
    }
    action(at)
}

/// Parses and looks up the flow.
#[unsafe(no_mangle)]
#[unsafe(link_section = "xdp")]
fn step_lookup(ctx: *mut xdp_md) -> u32 {
    match parse(ctx).and_then(|key| TABLE.get_ptr_mut(&key)) {
        // SAFETY: a map element.
        Some(flow) => action(unsafe { (*flow)[size_of::<Value>() / 8 - 1] }),
        None => XDP_ABORTED,
    }
}

/// Parses and looks up the flow in a table for IPv4 only, whose keys are as short as they can be.
#[unsafe(no_mangle)]
#[unsafe(link_section = "xdp")]
fn step_lookup_short(ctx: *mut xdp_md) -> u32 {
    match parse(ctx).and_then(|key| TABLE_SHORT.get_ptr_mut(&short(&key))) {
        // SAFETY: a map element.
        Some(flow) => action(unsafe { (*flow)[size_of::<ShortValue>() / 8 - 1] }),
        None => XDP_ABORTED,
    }
}

/// Parses, looks up the flow, counts the packet in it.
#[unsafe(no_mangle)]
#[unsafe(link_section = "xdp")]
fn step_touch(ctx: *mut xdp_md) -> u32 {
    match parse(ctx).and_then(|key| TABLE.get_ptr_mut(&key)) {
        Some(flow) => {
            // SAFETY: a map element.
            unsafe {
                (*flow)[0] = 1;
                (*flow)[1] += 1;
                (*flow)[2] += 46;
            }
            XDP_DROP
        }
        None => XDP_ABORTED,
    }
}

/// Rewrites the headers and redirects.
#[unsafe(no_mangle)]
#[unsafe(link_section = "xdp")]
fn step_rewrite(ctx: *mut xdp_md) -> u32 {
    // SAFETY: the kernel's context, valid while the program runs.
    let (start, end) = unsafe { ((*ctx).data as usize, (*ctx).data_end as usize) };
    if start + V4_LEN > end {
        return XDP_ABORTED;
    }
    let frame = Frame(start);
    // SAFETY: checked above.
    unsafe {
        let sum = frame.u16::<24>() as u32 + u16::to_be(0x0100) as u32;
        frame.set_u16::<24>((sum + (sum >= 0xffff) as u32) as u16);
        frame.set_u8::<22>(frame.u8::<22>() - 1);
        frame.set_mac::<0, 4>(0x2222_2222_2222);
        frame.set_mac::<6, 10>(0x4444_4444_4444);
        bpf_redirect((*ctx).ingress_ifindex, 0) as u32
    }
}

/// Puts the packet's flow into both tables.
#[unsafe(no_mangle)]
#[unsafe(link_section = "xdp")]
fn insert(ctx: *mut xdp_md) -> u32 {
    let Some(key) = parse(ctx) else {
        return XDP_ABORTED;
    };
    let Some(value) = TABLE_VALUE.get_ptr_mut(0) else {
        return XDP_ABORTED;
    };
    // SAFETY: an element of this CPU's own.
    let inserted = TABLE.insert(&key, unsafe { &*value }, BPF_ANY as u64);
    // SAFETY: as above; a flow is longer.
    let inserted_short = TABLE_SHORT.insert(&short(&key), unsafe { &*value.cast() }, BPF_ANY as u64);
    if inserted.is_ok() && inserted_short.is_ok() { XDP_DROP } else { XDP_ABORTED }
}

/// An empty flow, for which the stack has no room.
#[btf_map]
static TABLE_VALUE: PerCpuArray<Value, 1> = PerCpuArray::new();
