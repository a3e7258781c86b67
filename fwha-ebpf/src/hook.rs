//! The two hooks at which the engine runs, as [`Packet`]s: XDP and tc.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LKUP_RET_SUCCESS,
        bpf_fib_lookup as FibLookup, xdp_md,
    },
    helpers::generated::{bpf_fib_lookup, bpf_ktime_get_coarse_ns, bpf_ktime_get_ns, bpf_skb_pull_data},
};
use fwha_common::flow::NextHop;

use crate::packet::{Packet, RouteKind, RouteQuery};

/// `CLOCK_MONOTONIC` in ns, as of the last tick (1 to 10 ms ago). Read once per packet: half the
/// price of the exact clock, and neither leases nor timeouts are that short.
#[inline(always)]
pub fn now_ns() -> u64 {
    // SAFETY: takes nothing, returns a number.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// `CLOCK_MONOTONIC` in ns, exact.
#[inline(always)]
pub fn exact_ns() -> u64 {
    // SAFETY: takes nothing, returns a number.
    unsafe { bpf_ktime_get_ns() }
}

/// A packet at XDP.
pub struct Xdp {
    ctx: *mut xdp_md,
    out: u32,
}

impl Xdp {
    /// The packet.
    #[inline(always)]
    pub fn new(ctx: *mut xdp_md) -> Self {
        Self { ctx, out: 0 }
    }

    /// The interface to leave by.
    #[inline(always)]
    pub fn out(&self) -> u32 {
        self.out
    }
}

impl Packet for Xdp {
    #[inline(always)]
    fn start(&self) -> usize {
        // SAFETY: the kernel's context, valid while the program runs; so below.
        unsafe { (*self.ctx).data as usize }
    }
    #[inline(always)]
    fn end(&self) -> usize {
        // SAFETY: see `start`.
        unsafe { (*self.ctx).data_end as usize }
    }
    #[inline(always)]
    fn len(&self) -> u32 {
        (self.end() - self.start()) as u32
    }
    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: see `start`.
        unsafe { (*self.ctx).ingress_ifindex }
    }
    #[inline(always)]
    fn segments(&self) -> u32 {
        1
    }
    #[inline(always)]
    fn segment_size(&self) -> u32 {
        0
    }
    #[inline(always)]
    fn tagged(&self) -> bool {
        false
    }
    #[inline(always)]
    fn leave_by(&mut self, ifindex: u32) {
        self.out = ifindex;
    }
    #[inline(always)]
    fn route(&self, query: &RouteQuery, hop: &mut NextHop) -> RouteKind {
        route(self.ctx.cast(), self.ifindex(), query, hop)
    }
}

/// Bytes from the start of a frame that hold every header the engine looks at: Ethernet, IPv4 with
/// options, ICMP, embedded IPv4 with options, eight bytes of its payload.
const HEADERS: u32 = 14 + 60 + 8 + 60 + 8;

/// A packet at tc.
pub struct Tc {
    ctx: *mut __sk_buff,
    out: u32,
}

impl Tc {
    /// The packet, with its headers where they can be read directly.
    #[inline(always)]
    pub fn new(ctx: *mut __sk_buff) -> Self {
        let packet = Self { ctx, out: 0 };
        let linear = (packet.end() - packet.start()) as u32;
        let len = packet.len();
        if linear < HEADERS && linear < len {
            // SAFETY: the kernel's context. Should it fail, the parser finds the packet truncated.
            unsafe { bpf_skb_pull_data(ctx, if len < HEADERS { len } else { HEADERS }) };
        }
        packet
    }

    /// The interface to leave by.
    #[inline(always)]
    pub fn out(&self) -> u32 {
        self.out
    }

    /// Where it entered this machine; 0 for what the machine itself sends.
    #[inline(always)]
    pub fn entered_by(&self) -> u32 {
        // SAFETY: see `start`.
        unsafe { (*self.ctx).ingress_ifindex }
    }

    /// The firewall mark.
    #[inline(always)]
    pub fn mark(&self) -> u32 {
        // SAFETY: see `start`.
        unsafe { (*self.ctx).mark }
    }

    /// Sets the firewall mark.
    #[inline(always)]
    pub fn set_mark(&self, mark: u32) {
        // SAFETY: see `start`.
        unsafe { (*self.ctx).mark = mark }
    }
}

impl Packet for Tc {
    #[inline(always)]
    fn start(&self) -> usize {
        // SAFETY: the kernel's context, valid while the program runs; so below.
        unsafe { (*self.ctx).data as usize }
    }
    #[inline(always)]
    fn end(&self) -> usize {
        // SAFETY: see `start`.
        unsafe { (*self.ctx).data_end as usize }
    }
    #[inline(always)]
    fn len(&self) -> u32 {
        // SAFETY: see `start`.
        unsafe { (*self.ctx).len }
    }
    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: see `start`.
        unsafe { (*self.ctx).ifindex }
    }
    #[inline(always)]
    fn segments(&self) -> u32 {
        // SAFETY: see `start`.
        let segments = unsafe { (*self.ctx).gso_segs };
        if segments == 0 { 1 } else { segments }
    }
    #[inline(always)]
    fn segment_size(&self) -> u32 {
        // SAFETY: see `start`.
        unsafe { (*self.ctx).gso_size }
    }
    #[inline(always)]
    fn tagged(&self) -> bool {
        // SAFETY: see `start`.
        unsafe { (*self.ctx).vlan_present != 0 }
    }
    #[inline(always)]
    fn leave_by(&mut self, ifindex: u32) {
        self.out = ifindex;
    }
    #[inline(always)]
    fn route(&self, query: &RouteQuery, hop: &mut NextHop) -> RouteKind {
        route(self.ctx.cast(), self.ifindex(), query, hop)
    }
}

const AF_INET: u8 = 2;

/// A FIB and neighbour lookup as seen from the interface the packet came in by. Not inlined: its 64
/// bytes of parameters then are on the stack only while it runs.
#[inline(never)]
fn route(ctx: *mut c_void, ifindex: u32, query: &RouteQuery, hop: &mut NextHop) -> RouteKind {
    // SAFETY: integers and unions of integers only.
    let mut params: FibLookup = unsafe { core::mem::zeroed() };
    params.family = AF_INET;
    params.l4_protocol = query.proto;
    params.sport = query.sport;
    params.dport = query.dport;
    // A length makes the kernel say the route's MTU; the shortest never exceeds it.
    params.__bindgen_anon_1.tot_len = 1;
    params.ifindex = ifindex;
    params.__bindgen_anon_2.tos = query.tos;
    params.__bindgen_anon_3.ipv4_src = query.src;
    params.__bindgen_anon_4.ipv4_dst = query.dst;
    // SAFETY: context and parameters are valid, the length is the parameters' own.
    let result = unsafe { bpf_fib_lookup(ctx, &raw mut params, size_of::<FibLookup>() as i32, 0) };
    let kind = match result as u32 {
        BPF_FIB_LKUP_RET_SUCCESS => RouteKind::Resolved,
        BPF_FIB_LKUP_RET_NO_NEIGH => RouteKind::Unresolved,
        BPF_FIB_LKUP_RET_NOT_FWDED => RouteKind::Local,
        _ => RouteKind::None,
    };
    hop.ifindex = params.ifindex;
    hop.dst_mac = params.dmac;
    hop.src_mac = params.smac;
    // SAFETY: the union holds 16 bits under either name.
    hop.mtu = if kind == RouteKind::Resolved { unsafe { params.__bindgen_anon_1.mtu_result } } else { 0 };
    kind
}
