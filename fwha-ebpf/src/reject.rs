//! Rejecting: the sender of a packet that a rule rejects is told so at once, from here: TCP by a reset
//! (RFC 9293, 3.10.7.1), anything else by ICMP "port unreachable" (RFC 792; RFC 4443, 3.1). The packet is
//! turned into its answer. As seen from its sender, the answer comes from where it was to go.

use aya_ebpf::btf_maps::PerCpuArray;
use fwha_common::{
    flow::proto,
    settings::{Counter, REJECT_WINDOW_NS, REJECTS_PER_WINDOW},
};

use crate::{
    hook,
    maps::{self, Room},
    packet::{ETH_LEN, Eth, Packet, Window, window},
    parse::{Ip, Payload},
    tcp::{ACK, FIN, RST, SYN},
    zone,
};

/// How many answers a CPU has sent.
#[repr(C)]
pub struct Share {
    /// When the present window began, in ns.
    since_ns: u64,
    /// Answers since then.
    answers: u64,
}

/// Length of an IPv4 header without options.
pub const V4: usize = 20;
/// Length of an IPv6 header.
pub const V6: usize = 40;
/// What an ICMP error quotes behind the IP header.
const QUOTED: usize = 8;

/// Turns the packet that was parsed last into its answer. `false` if there is none: it is an error or a
/// reset itself, stands for a part of something, is for more than one (RFC 1122, 3.2.2; RFC 4443, 2.4 e), or the limit
/// is reached.
#[inline(never)]
pub fn answer<P: Packet>(packet: &mut P) -> bool {
    let Some(ip) = maps::room().map(Room::ip) else {
        return false;
    };
    let Ok(eth) = Eth::read(packet) else {
        return false;
    };
    let l3 = if ip.v6 { V6 } else { V4 };
    let reset = ip.payload == Payload::Tcp;
    if ip.is_fragment()
        || ip.l4 as usize != l3
        || eth.dst.is_group()
        || zone::ends_on_link(ip)
        || reset && ip.tcp.flags & RST != 0
        || matches!(ip.payload, Payload::IcmpError | Payload::IcmpOther | Payload::Response)
        || !allowed(&maps::REJECT_SHARE)
    {
        return false;
    }
    let done = match (ip.v6, reset) {
        (false, true) => tcp_reset::<P, V4>(packet, ip),
        (true, true) => tcp_reset::<P, V6>(packet, ip),
        (false, false) => unreachable_v4(packet, ip),
        (true, false) => unreachable_v6(packet, ip),
    };
    if done.is_none() {
        return false;
    }
    maps::count(Counter::Rejected, 1);
    true
}

/// Takes one from this CPU's share of the present window, if there is one left.
#[inline(always)]
fn allowed(shares: &PerCpuArray<Share, 1>) -> bool {
    let Some(share) = shares.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: the element belongs to this CPU, which runs one of our programs at a time.
    let share = unsafe { &mut *share };
    let now = hook::now_ns();
    if now.wrapping_sub(share.since_ns) >= REJECT_WINDOW_NS {
        share.since_ns = now;
        share.answers = 0;
    }
    share.answers += 1;
    share.answers <= REJECTS_PER_WINDOW
}

/// A sum of 16-bit words in memory order (RFC 1071).
#[derive(Clone, Copy)]
pub struct Sum(u64);

impl Sum {
    /// Of nothing.
    pub const ZERO: Self = Self(0);

    /// Adds the two words in `word`.
    #[inline(always)]
    pub fn word(self, word: u32) -> Self {
        Self(self.0 + (word & 0xffff) as u64 + (word >> 16) as u64)
    }

    /// As one word.
    #[inline(always)]
    pub fn fold(self) -> u16 {
        let sum = (self.0 & 0xffff) + (self.0 >> 16);
        (sum + (sum >> 16)) as u16
    }

    #[inline(always)]
    fn checksum(self) -> u16 {
        !self.fold()
    }

    /// The pseudo-header of `len` bytes of `protocol` (RFC 9293, 3.1; RFC 8200, 8.1).
    #[inline(always)]
    pub fn pseudo(ip: &Ip, protocol: u8, len: u16) -> Self {
        let Self(addresses) = Self::addresses(ip);
        Self(addresses + (protocol as u16).to_be() as u64 + len.to_be() as u64)
    }

    /// The addresses of a packet.
    #[inline(always)]
    fn addresses(ip: &Ip) -> Self {
        let mut sum = Self::ZERO;
        if ip.v6 {
            sum = sum.word(ip.src[0]).word(ip.src[1]).word(ip.src[2]);
            sum = sum.word(ip.dst[0]).word(ip.dst[1]).word(ip.dst[2]);
        }
        sum.word(ip.src[3]).word(ip.dst[3])
    }
}

/// Gives the packet another length, `len` bytes behind the IP header, and writes Ethernet and IP headers: those
/// of an answer (`back`), or its own anew.
#[inline(always)]
pub fn headers<const L3: usize>(
    packet: &mut impl Packet,
    ip: &Ip,
    protocol: u8,
    len: u16,
    back: bool,
) -> Option<()> {
    let old: Window<{ ETH_LEN + V4 }> = window(packet, 0).ok()?;
    let (dst, src, ethertype) = (old.mac::<0, 4>(), old.mac::<6, 10>(), old.u16::<12>());
    let (dst, src) = if back { (src, dst) } else { (dst, src) };
    let ttl = match (back, L3 == V6) {
        (true, _) => 64,
        (false, true) => old.u8::<{ ETH_LEN + 7 }>(),
        (false, false) => old.u8::<{ ETH_LEN + 8 }>(),
    };
    let (to, from) = if back { (&ip.src, &ip.dst) } else { (&ip.dst, &ip.src) };
    if !packet.resize((ETH_LEN + L3) as u32 + len as u32) {
        return None;
    }
    let eth = window::<ETH_LEN>(packet, 0).ok()?;
    eth.set_mac::<0, 4>(dst);
    eth.set_mac::<6, 10>(src);
    eth.set_u16::<12>(ethertype);
    if L3 == V6 {
        let header: Window<V6> = window(packet, ETH_LEN).ok()?;
        header.set_u32::<0>(u32::to_be(0x6000_0000));
        header.set_u16::<4>(len.to_be());
        header.set_u8::<6>(protocol);
        header.set_u8::<7>(ttl);
        header.set_u32::<8>(from[0]);
        header.set_u32::<12>(from[1]);
        header.set_u32::<16>(from[2]);
        header.set_u32::<20>(from[3]);
        header.set_u32::<24>(to[0]);
        header.set_u32::<28>(to[1]);
        header.set_u32::<32>(to[2]);
        header.set_u32::<36>(to[3]);
        return Some(());
    }
    let header: Window<V4> = window(packet, ETH_LEN).ok()?;
    header.set_u16::<0>(u16::to_be(0x4500));
    header.set_u16::<2>((V4 as u16 + len).to_be());
    // No identification, do not fragment.
    header.set_u32::<4>(u32::to_be(0x4000));
    header.set_u8::<8>(ttl);
    header.set_u8::<9>(protocol);
    header.set_u16::<10>(0);
    header.set_u32::<12>(from[3]);
    header.set_u32::<16>(to[3]);
    let sum = Sum(0)
        .word(header.u32::<0>())
        .word(header.u32::<4>())
        .word(header.u32::<8>())
        .word(header.u32::<12>())
        .word(header.u32::<16>());
    header.set_u16::<10>(sum.checksum());
    Some(())
}

#[inline(always)]
fn tcp_reset<P: Packet, const L3: usize>(packet: &mut P, ip: &Ip) -> Option<()> {
    headers::<L3>(packet, ip, proto::TCP, 20, true)?;
    let answers = ip.tcp.flags & ACK != 0;
    let carried = (ip.len - ip.header_len)
        .wrapping_add((ip.tcp.flags & SYN != 0) as u32)
        .wrapping_add((ip.tcp.flags & FIN != 0) as u32);
    let tcp: Window<20> = window(packet, ETH_LEN + L3).ok()?;
    tcp.set_u16::<0>(ip.dport);
    tcp.set_u16::<2>(ip.sport);
    tcp.set_u32::<4>(if answers { ip.tcp.ack.to_be() } else { 0 });
    tcp.set_u32::<8>(if answers { 0 } else { ip.tcp.seq.wrapping_add(carried).to_be() });
    tcp.set_u8::<12>(5 << 4);
    tcp.set_u8::<13>(if answers { RST } else { RST | ACK });
    tcp.set_u16::<14>(0);
    tcp.set_u32::<16>(0);
    let rest = Sum::ZERO.word(tcp.u32::<0>()).word(tcp.u32::<4>()).word(tcp.u32::<8>()).word(tcp.u32::<12>());
    let pseudo = Sum::pseudo(ip, proto::TCP, 20).fold();
    packet.checksum((ETH_LEN + L3 + 16) as u32, pseudo, rest.fold()).ok()
}

#[inline(always)]
fn unreachable_v4(packet: &mut impl Packet, ip: &Ip) -> Option<()> {
    const LEN: usize = 8 + V4 + QUOTED;
    // What is quoted goes behind the headers.
    let old: Window<{ V4 + QUOTED }> = window(packet, ETH_LEN).ok()?;
    let quoted = [
        old.u32::<0>(),
        old.u32::<4>(),
        old.u32::<8>(),
        old.u32::<12>(),
        old.u32::<16>(),
        old.u32::<20>(),
        old.u32::<24>(),
    ];
    headers::<V4>(packet, ip, proto::ICMP, LEN as u16, true)?;
    let icmp: Window<LEN> = window(packet, ETH_LEN + V4).ok()?;
    icmp.set_u32::<0>(u32::to_be(0x0303_0000));
    icmp.set_u32::<4>(0);
    icmp.set_u32::<8>(quoted[0]);
    icmp.set_u32::<12>(quoted[1]);
    icmp.set_u32::<16>(quoted[2]);
    icmp.set_u32::<20>(quoted[3]);
    icmp.set_u32::<24>(quoted[4]);
    icmp.set_u32::<28>(quoted[5]);
    icmp.set_u32::<32>(quoted[6]);
    let mut sum = Sum(u16::to_be(0x0303) as u64);
    let mut i = 0;
    while i < quoted.len() {
        sum = sum.word(quoted[i]);
        i += 1;
    }
    icmp.set_u16::<2>(sum.checksum());
    Some(())
}

#[inline(always)]
fn unreachable_v6(packet: &mut impl Packet, ip: &Ip) -> Option<()> {
    const LEN: usize = 8 + V6 + QUOTED;
    // The quoted IP header but for its addresses, which are known; and what it carries.
    let old: Window<{ V6 + QUOTED }> = window(packet, ETH_LEN).ok()?;
    let (first, second) = (old.u32::<0>(), old.u32::<4>());
    let carried = [old.u32::<40>(), old.u32::<44>()];
    headers::<V6>(packet, ip, proto::ICMPV6, LEN as u16, true)?;
    let icmp: Window<LEN> = window(packet, ETH_LEN + V6).ok()?;
    icmp.set_u32::<0>(u32::to_be(0x0104_0000));
    icmp.set_u32::<4>(0);
    icmp.set_u32::<8>(first);
    icmp.set_u32::<12>(second);
    icmp.set_u32::<16>(ip.src[0]);
    icmp.set_u32::<20>(ip.src[1]);
    icmp.set_u32::<24>(ip.src[2]);
    icmp.set_u32::<28>(ip.src[3]);
    icmp.set_u32::<32>(ip.dst[0]);
    icmp.set_u32::<36>(ip.dst[1]);
    icmp.set_u32::<40>(ip.dst[2]);
    icmp.set_u32::<44>(ip.dst[3]);
    icmp.set_u32::<48>(carried[0]);
    icmp.set_u32::<52>(carried[1]);
    // Its pseudo-header has the addresses that are quoted, too.
    let addresses = Sum::addresses(ip).fold();
    let pseudo = Sum(addresses as u64 + (proto::ICMPV6 as u16).to_be() as u64 + (LEN as u16).to_be() as u64);
    let sum = Sum(pseudo.0 + addresses as u64)
        .word(u32::to_be(0x0104_0000))
        .word(first)
        .word(second)
        .word(carried[0])
        .word(carried[1]);
    icmp.set_u16::<2>(sum.checksum());
    // Where the checksum of the datagram before was left to the hardware, that finishes what now lies in its place, too: of
    // ICMPv4 it makes zero, what it has to be, and here as well if it finds the sum of the pseudo-header.
    let pseudo = pseudo.fold();
    packet.checksum((ETH_LEN + V6 + UDP_CHECKSUM) as u32, pseudo, !pseudo).ok()
}

/// Where a datagram has its checksum (RFC 768), and an ICMP error four bytes that mean nothing.
const UDP_CHECKSUM: usize = 6;
