//! Programs to compare with.
//!
//! The router is what an expert would write who wants no more than forwarding: parse, ask the kernel's routing table,
//! rewrite, redirect (compare samples/bpf/xdp_fwd_kern.c). No firewall in it. A packet that it cannot forward goes to the
//! stack.

use core::{
    ffi::c_void,
    mem::{self, MaybeUninit},
};

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup as FibLookup,
        tcx_action_base::{TCX_DROP, TCX_NEXT},
        xdp_action::{XDP_DROP, XDP_PASS},
        xdp_md,
    },
    helpers::generated::{bpf_fib_lookup, bpf_redirect},
};

use crate::frame::Frame;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPV4: u16 = 0x0800u16.to_be();
const IPV6: u16 = 0x86ddu16.to_be();

/// Does nothing: the cost of the generator, of the tail call and of the test run itself.
#[unsafe(no_mangle)]
#[unsafe(link_section = "xdp")]
fn empty_xdp(_: *mut xdp_md) -> u32 {
    XDP_DROP
}

/// The same at tc.
#[unsafe(no_mangle)]
#[unsafe(link_section = "classifier")]
fn empty_tc(_: *mut __sk_buff) -> i32 {
    TCX_DROP
}

/// The router at XDP.
#[unsafe(no_mangle)]
#[unsafe(link_section = "xdp")]
fn router_xdp(ctx: *mut xdp_md) -> u32 {
    // SAFETY: the kernel's context, valid while the program runs.
    let (start, end, from) =
        unsafe { ((*ctx).data as usize, (*ctx).data_end as usize, (*ctx).ingress_ifindex) };
    match route(ctx.cast(), start, end, from) {
        // SAFETY: takes and returns numbers.
        Some(to) => unsafe { bpf_redirect(to, 0) as u32 },
        None => XDP_PASS,
    }
}

/// The router at tc.
#[unsafe(no_mangle)]
#[unsafe(link_section = "classifier")]
fn router_tc(ctx: *mut __sk_buff) -> i32 {
    // SAFETY: as above.
    let (start, end, from) = unsafe { ((*ctx).data as usize, (*ctx).data_end as usize, (*ctx).ifindex) };
    match route(ctx.cast(), start, end, from) {
        // SAFETY: as above.
        Some(to) => unsafe { bpf_redirect(to, 0) as i32 },
        None => TCX_NEXT,
    }
}

/// What the kernel's routing table is asked and answers, where whole words can be written.
#[repr(align(8))]
struct Params(FibLookup);

const _: () = assert!(mem::size_of::<Params>() == 64);

/// Looks up where a packet goes, and makes its headers ready to go there.
#[inline(always)]
fn route(ctx: *mut c_void, start: usize, end: usize, from: u32) -> Option<u32> {
    if start + 34 > end {
        return None;
    }
    let frame = Frame(start);
    let mut params = MaybeUninit::<Params>::uninit();
    // SAFETY: integers and unions of integers only, and of this size. Written word by word: the compiler would call a
    // function that writes byte by byte, which costs as much as half of the lookup.
    let fib = unsafe {
        let words = Frame(params.as_mut_ptr() as usize);
        words.set_u64::<0>(0);
        words.set_u64::<8>(0);
        words.set_u64::<16>(0);
        words.set_u64::<24>(0);
        words.set_u64::<32>(0);
        words.set_u64::<40>(0);
        words.set_u64::<48>(0);
        words.set_u64::<56>(0);
        &mut params.assume_init_mut().0
    };
    fib.ifindex = from;
    // SAFETY: in the 34 bytes that are there, or the 54 after the second look; so below.
    let v4 = unsafe { frame.u16::<12>() } == IPV4;
    if v4 {
        // SAFETY: see above.
        unsafe {
            if frame.u8::<22>() <= 1 {
                return None;
            }
            fib.family = AF_INET;
            fib.l4_protocol = frame.u8::<23>();
            fib.__bindgen_anon_1.tot_len = u16::from_be(frame.u16::<16>());
            fib.__bindgen_anon_2.tos = frame.u8::<15>();
            fib.__bindgen_anon_3.ipv4_src = frame.u32::<26>();
            fib.__bindgen_anon_4.ipv4_dst = frame.u32::<30>();
        }
    // SAFETY: see above.
    } else if unsafe { frame.u16::<12>() } == IPV6 {
        if start + 54 > end {
            return None;
        }
        // SAFETY: see above.
        unsafe {
            if frame.u8::<21>() <= 1 {
                return None;
            }
            fib.family = AF_INET6;
            fib.l4_protocol = frame.u8::<20>();
            fib.__bindgen_anon_1.tot_len = u16::from_be(frame.u16::<18>()).wrapping_add(40);
            fib.__bindgen_anon_2.flowinfo = frame.u32::<14>() & 0x0fff_ffffu32.to_be();
            fib.__bindgen_anon_3.ipv6_src =
                [frame.u32::<22>(), frame.u32::<26>(), frame.u32::<30>(), frame.u32::<34>()];
            fib.__bindgen_anon_4.ipv6_dst =
                [frame.u32::<38>(), frame.u32::<42>(), frame.u32::<46>(), frame.u32::<50>()];
        }
    } else {
        return None;
    }
    // SAFETY: context and parameters are valid, the length is the parameters' own.
    let result = unsafe { bpf_fib_lookup(ctx, &raw mut *fib, size_of::<FibLookup>() as i32, 0) };
    if result as u32 != BPF_FIB_LKUP_RET_SUCCESS {
        return None;
    }
    let mac = |b: [u8; 6]| u64::from_ne_bytes([b[0], b[1], b[2], b[3], b[4], b[5], 0, 0]);
    // SAFETY: see above.
    unsafe {
        if v4 {
            let sum = frame.u16::<24>() as u32 + u16::to_be(0x0100) as u32;
            frame.set_u16::<24>((sum + (sum >= 0xffff) as u32) as u16);
            frame.set_u8::<22>(frame.u8::<22>() - 1);
        } else {
            frame.set_u8::<21>(frame.u8::<21>() - 1);
        }
        frame.set_mac::<0, 4>(mac(fib.dmac));
        frame.set_mac::<6, 10>(mac(fib.smac));
    }
    Some(fib.ifindex)
}
