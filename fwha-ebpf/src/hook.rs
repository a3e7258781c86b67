//! The two hooks at which the engine runs, as [`Packet`]s: XDP and tc.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LKUP_RET_SUCCESS,
        BPF_FIB_LOOKUP_SKIP_NEIGH, bpf_fib_lookup as FibLookup, xdp_md,
    },
    helpers::generated::{
        bpf_fib_lookup, bpf_get_smp_processor_id, bpf_jiffies64, bpf_ktime_get_coarse_ns, bpf_ktime_get_ns,
        bpf_l4_csum_replace, bpf_skb_change_tail, bpf_skb_change_type, bpf_skb_load_bytes, bpf_skb_pull_data,
        bpf_skb_store_bytes, bpf_skb_vlan_pop, bpf_skb_vlan_push, bpf_xdp_adjust_head, bpf_xdp_adjust_tail,
        bpf_xdp_load_bytes,
    },
};
use fwha_common::{
    drop::DropReason,
    flow::{NextHop, proto},
    rule::Tag,
};

use crate::{
    maps::{self, Room},
    packet::{Arrival, Packet, RouteKind, Window, bounded, window},
    parse::Ip,
};

/// The clock as a CPU last read it.
#[repr(C)]
pub struct Clock {
    /// The tick in which it was read.
    jiffies: u64,
    /// What it said.
    ns: u64,
    /// The last number of [`unique_ns`].
    unique: u64,
}

/// `CLOCK_MONOTONIC` in ns, as of the last tick, or the one before it (1 to 20 ms ago). Read for each
/// packet, and neither leases nor timeouts are that short. The clock of ticks changes with the count of
/// ticks only, which the JIT reads in one instruction; so the helper, a sixth of a packet's time, is asked
/// once in a tick.
#[inline(always)]
pub fn now_ns() -> u64 {
    // Without a clock every lease is over, every flow has expired.
    maps::room().map(Room::clock).map_or(u64::MAX, tick)
}

/// As [`now_ns`].
#[inline(always)]
pub fn tick(clock: &mut Clock) -> u64 {
    // SAFETY: takes nothing, returns a number.
    let jiffies = unsafe { bpf_jiffies64() };
    if clock.jiffies != jiffies {
        clock.jiffies = jiffies;
        // SAFETY: as above.
        clock.ns = unsafe { bpf_ktime_get_coarse_ns() };
    }
    clock.ns
}

/// A number that no other call returns, on any CPU: the time as of [`now_ns`], or 256 ns more than the last
/// time, with the CPU in its low 8 bits. The exact clock is no faster than that for long, so neither is it
/// ever outrun, and numbers stay unique when the programs are loaded anew.
#[inline(always)]
pub fn unique_ns() -> u64 {
    let now = now_ns() & !0xff;
    // SAFETY: takes nothing, returns a number.
    let cpu = unsafe { bpf_get_smp_processor_id() } as u64 & 0xff;
    let Some(clock) = maps::room().map(Room::clock) else {
        return now | cpu;
    };
    let next = (clock.unique & !0xff) + 0x100;
    clock.unique = (if now > next { now } else { next }) | cpu;
    clock.unique
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
    room: Room,
}

impl Xdp {
    /// The packet, as if it had no tags.
    #[inline(always)]
    pub fn new(ctx: *mut xdp_md, room: Room) -> Self {
        // SAFETY: the kernel's context, valid while the program runs.
        room.arrival().begin(unsafe { (*ctx).ingress_ifindex });
        Self { ctx, room }
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
    fn arrival(&mut self) -> &mut Arrival {
        self.room.arrival()
    }
    #[inline(always)]
    fn device(&self) -> u32 {
        self.room.arrival().device
    }
    #[inline(always)]
    fn taken_tag(&self) -> Tag {
        Tag::NONE
    }
    #[inline(always)]
    fn pop_tag(&mut self) -> bool {
        let Ok(old) = window::<16>(self, 0) else {
            return false;
        };
        let (macs, rest) = (old.u64::<0>(), old.u32::<8>());
        // SAFETY: the kernel's context.
        if unsafe { bpf_xdp_adjust_head(self.ctx, TAG_LEN) } != 0 {
            return false;
        }
        let Ok(new) = window::<12>(self, 0) else {
            return false;
        };
        new.set_u64::<0>(macs);
        new.set_u32::<8>(rest);
        true
    }
    #[inline(always)]
    fn push_tag(&mut self, tag: Tag) -> bool {
        // SAFETY: the kernel's context.
        if unsafe { bpf_xdp_adjust_head(self.ctx, -TAG_LEN) } != 0 {
            return false;
        }
        let Ok(new) = window::<16>(self, 0) else {
            return false;
        };
        let (macs, rest) = (new.u64::<4>(), new.u32::<12>());
        new.set_u64::<0>(macs);
        new.set_u32::<8>(rest);
        new.set_u32::<12>(tag.0);
        true
    }
    #[inline(always)]
    fn can_leave_by(&self, out: u32) -> bool {
        !NextHop::no_xmit(out)
    }
    #[inline(always)]
    fn leave_by(&mut self, out: u32) {
        self.room.arrival().out = out;
    }
    #[inline(always)]
    fn out(&self) -> u32 {
        self.room.arrival().out
    }
    #[inline(always)]
    fn load(&self, offset: u32, bytes: &mut [u8]) -> bool {
        // SAFETY: the kernel's context; `bytes` has room.
        let result =
            unsafe { bpf_xdp_load_bytes(self.ctx, offset, bytes.as_mut_ptr().cast(), bytes.len() as u32) };
        result == 0
    }
    #[inline(always)]
    fn replace(&mut self, at: u32, checksum_at: u32, from: u16, to: u16) -> Result<(), DropReason> {
        let data: Window<2> = window(self, bounded::<OFFSET_MASK>(at))?;
        data.set_u16::<0>(to);
        let checksum: Window<2> = window(self, bounded::<OFFSET_MASK>(checksum_at))?;
        // RFC 1624, eqn. 3.
        let [from, to] = as_summed(at, checksum_at, from, to);
        let sum = !checksum.u16::<0>() as u32 + !from as u32 + to as u32;
        let sum = (sum & 0xffff) + (sum >> 16);
        checksum.set_u16::<0>(!((sum + (sum >> 16)) as u16));
        Ok(())
    }
    #[inline(always)]
    fn checksum(&mut self, at: u32, pseudo: u16, rest: u16) -> Result<(), DropReason> {
        let field: Window<2> = window(self, bounded::<OFFSET_MASK>(at))?;
        field.set_u16::<0>(!added(pseudo, rest));
        Ok(())
    }
    #[inline(always)]
    fn resize(&mut self, len: u32) -> bool {
        let delta = len.wrapping_sub(self.len()) as i32;
        // It grows at its head: there is room before every frame (XDP_PACKET_HEADROOM, uapi/linux/bpf.h), behind it a
        // veth leaves but what its rounding to cache lines does (`skb_pp_cow_data` in net/core/skbuff.c).
        // SAFETY: the kernel's context.
        unsafe {
            if delta > 0 {
                bpf_xdp_adjust_head(self.ctx, -delta) == 0
            } else {
                bpf_xdp_adjust_tail(self.ctx, delta) == 0
            }
        }
    }
    #[inline(always)]
    fn route(&self, ip: &Ip, back: bool, hop: &mut NextHop) -> RouteKind {
        route(self.ctx.cast(), self.device(), ip, back, hop)
    }
}

/// Old and new value as the checksum adds them: byte for byte in its own words (RFC 1071, 2 B).
#[inline(always)]
const fn as_summed(at: u32, checksum_at: u32, from: u16, to: u16) -> [u16; 2] {
    if (at ^ checksum_at) & 1 == 0 { [from, to] } else { [from.swap_bytes(), to.swap_bytes()] }
}

/// Bytes of a VLAN tag.
const TAG_LEN: i32 = size_of::<Tag>() as i32;
/// The sum of two sums (RFC 1071).
#[inline(always)]
const fn added(a: u16, b: u16) -> u16 {
    let sum = a as u32 + b as u32;
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// Headers end before this offset: a bound for the verifier.
const OFFSET_MASK: u32 = 0xfff;

/// Bytes from the start of a frame that hold every header the engine looks at: Ethernet, IP with options
/// or some extension headers, ICMP, embedded IP with the same, eight bytes of its payload; and two tags.
const HEADERS: u32 = 14 + 8 + 72 + 8 + 72 + 8;

/// A packet at tc.
pub struct Tc {
    ctx: *mut __sk_buff,
    room: Room,
}

impl Tc {
    /// The packet, with its headers where they can be read directly, as if it had no tags.
    #[inline(always)]
    pub fn new(ctx: *mut __sk_buff, room: Room) -> Self {
        // SAFETY: the kernel's context, valid while the program runs.
        room.arrival().begin(unsafe { (*ctx).ifindex });
        let packet = Self { ctx, room };
        let linear = (packet.end() - packet.start()) as u32;
        let len = packet.len();
        if linear < HEADERS && linear < len {
            // SAFETY: the kernel's context. Should it fail, the parser finds the packet truncated.
            unsafe { bpf_skb_pull_data(ctx, if len < HEADERS { len } else { HEADERS }) };
        }
        packet
    }

    /// Where it entered this machine; 0 for what the machine itself sends.
    #[inline(always)]
    pub fn entered_by(&self) -> u32 {
        // SAFETY: see `start`.
        unsafe { (*self.ctx).ingress_ifindex }
    }

    /// Whether it is the node's own copy of what it sends to many: the stack loops it back, without an Ethernet header
    /// (`dev_loopback_xmit` in net/core/dev.c).
    #[inline(always)]
    pub fn is_looped_back(&self) -> bool {
        // SAFETY: see `start`.
        unsafe { (*self.ctx).pkt_type == PACKET_LOOPBACK }
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
    fn arrival(&mut self) -> &mut Arrival {
        self.room.arrival()
    }
    #[inline(always)]
    fn device(&self) -> u32 {
        self.room.arrival().device
    }
    #[inline(always)]
    fn taken_tag(&self) -> Tag {
        // SAFETY: see `start`.
        unsafe {
            if (*self.ctx).vlan_present == 0 {
                Tag::NONE
            } else {
                Tag::new((*self.ctx).vlan_proto as u16, (*self.ctx).vlan_tci as u16)
            }
        }
    }
    #[inline(always)]
    fn pop_tag(&mut self) -> bool {
        // SAFETY: the kernel's context.
        unsafe { bpf_skb_vlan_pop(self.ctx) == 0 }
    }
    #[inline(always)]
    fn push_tag(&mut self, tag: Tag) -> bool {
        // SAFETY: the kernel's context.
        unsafe { bpf_skb_vlan_push(self.ctx, tag.ethertype(), tag.tci()) == 0 }
    }
    #[inline(always)]
    fn can_leave_by(&self, _: u32) -> bool {
        true
    }
    #[inline(always)]
    fn leave_by(&mut self, out: u32) {
        self.room.arrival().out = out;
    }
    #[inline(always)]
    fn out(&self) -> u32 {
        self.room.arrival().out
    }
    #[inline(always)]
    fn load(&self, offset: u32, bytes: &mut [u8]) -> bool {
        // SAFETY: the kernel's context; `bytes` has room.
        let result = unsafe {
            bpf_skb_load_bytes(self.ctx.cast(), offset, bytes.as_mut_ptr().cast(), bytes.len() as u32)
        };
        result == 0
    }
    #[inline(always)]
    fn replace(&mut self, at: u32, checksum_at: u32, from: u16, to: u16) -> Result<(), DropReason> {
        // The helper knows whether the checksum is finished or left to the hardware.
        let summed = as_summed(at, checksum_at, from, to);
        // SAFETY: the kernel's context; `to` is two bytes.
        unsafe {
            if bpf_l4_csum_replace(self.ctx, checksum_at, summed[0] as u64, summed[1] as u64, 2) != 0
                || bpf_skb_store_bytes(self.ctx, at, (&raw const to).cast(), 2, 0) != 0
            {
                return Err(DropReason::Truncated);
            }
        }
        Ok(())
    }
    #[inline(always)]
    fn checksum(&mut self, at: u32, pseudo: u16, rest: u16) -> Result<(), DropReason> {
        // Where it is left to the hardware the field has the sum of the pseudo-header, and the helper leaves that
        // alone. Elsewhere it adds what it is given to the complement, which makes it the sum of both.
        let field: Window<2> = window(self, bounded::<OFFSET_MASK>(at))?;
        field.set_u16::<0>(pseudo);
        let missing = added(added(pseudo, pseudo), rest);
        // SAFETY: the kernel's context.
        if unsafe { bpf_l4_csum_replace(self.ctx, at, 0, missing as u64, 2) } != 0 {
            return Err(DropReason::Truncated);
        }
        Ok(())
    }
    #[inline(always)]
    fn resize(&mut self, len: u32) -> bool {
        // SAFETY: the kernel's context. The headers are then where they can be written directly.
        unsafe { bpf_skb_change_tail(self.ctx, len, 0) == 0 && bpf_skb_pull_data(self.ctx, len) == 0 }
    }
    #[inline(always)]
    fn for_this_host(&mut self) {
        // SAFETY: the kernel's context.
        unsafe { bpf_skb_change_type(self.ctx, PACKET_HOST) };
    }
    #[inline(always)]
    fn route(&self, ip: &Ip, back: bool, hop: &mut NextHop) -> RouteKind {
        route(self.ctx.cast(), self.device(), ip, back, hop)
    }
}

/// `skb->pkt_type` of what is for this machine (uapi/linux/if_packet.h).
const PACKET_HOST: u32 = 0;
/// The same of what this machine sent, and nobody else can make look so.
const PACKET_LOOPBACK: u32 = 5;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// A FIB and neighbour lookup as seen from the interface the packet came in by; `back` to its source.
/// Not inlined: what it needs of the stack it then has only while it runs.
#[inline(never)]
fn route(ctx: *mut c_void, ifindex: u32, ip: &Ip, back: bool, hop: &mut NextHop) -> RouteKind {
    let Some(params) = maps::room().map(Room::fib) else {
        return RouteKind::None;
    };
    let (src, dst) = if back { (&ip.dst, &ip.src) } else { (&ip.src, &ip.dst) };
    // For a source that is no host's, or of its link, IPv6's lookup answers nothing (`rt6_need_strict` in net/ipv6/route.c,
    // asked by `bpf_ipv6_fib_lookup`). Of the way back of what goes to one it tells by no source at all.
    let first = u32::from_be(src[0]);
    let nobody = back && (first >> 24 == 0xff || first >> 22 == 0xfe80 >> 6);
    // The kernel writes its answer over the question: family and destination are then the router's.
    let mut look_up = |flags| {
        // SAFETY: integers and unions of integers only.
        *params = unsafe { core::mem::zeroed() };
        params.l4_protocol = ip.proto;
        // GRE has no ports.
        if ip.proto != proto::GRE {
            let (sport, dport) = if back { (ip.dport, ip.sport) } else { (ip.sport, ip.dport) };
            params.sport = sport;
            params.dport = dport;
        }
        // A length makes the kernel say the route's MTU; the shortest never exceeds it.
        params.__bindgen_anon_1.tot_len = 1;
        params.ifindex = ifindex;
        if ip.v6 {
            params.family = AF_INET6;
            params.__bindgen_anon_2.flowinfo = u32::to_be((ip.tos as u32) << 20);
            if !nobody {
                params.__bindgen_anon_3.ipv6_src = *src;
            }
            params.__bindgen_anon_4.ipv6_dst = *dst;
        } else {
            params.family = AF_INET;
            params.__bindgen_anon_2.tos = ip.tos;
            params.__bindgen_anon_3.ipv4_src = src[3];
            params.__bindgen_anon_4.ipv4_dst = dst[3];
        }
        // SAFETY: context and parameters are valid, the length is the parameters' own.
        unsafe { bpf_fib_lookup(ctx, &raw mut *params, size_of::<FibLookup>() as i32, flags) as u32 }
    };
    let kind = match look_up(0) {
        BPF_FIB_LKUP_RET_SUCCESS => RouteKind::Resolved,
        BPF_FIB_LKUP_RET_NO_NEIGH => RouteKind::Unresolved,
        BPF_FIB_LKUP_RET_NOT_FWDED => RouteKind::Local,
        _ => RouteKind::None,
    };
    // Of one whose neighbour it does not know it says the MTU only if it need not know it.
    let routed = kind == RouteKind::Resolved
        || kind == RouteKind::Unresolved && look_up(BPF_FIB_LOOKUP_SKIP_NEIGH) == BPF_FIB_LKUP_RET_SUCCESS;
    hop.out = params.ifindex;
    hop.dst_mac = params.dmac;
    hop.src_mac = params.smac;
    // SAFETY: the union holds 16 bits under either name.
    hop.mtu = if routed { unsafe { params.__bindgen_anon_1.mtu_result } } else { 0 };
    kind
}
