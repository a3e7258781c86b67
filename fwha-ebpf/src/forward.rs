//! Sending a packet on: next hop, rewrite, verdict.

use fwha_common::{
    drop::DropReason,
    flow::{Flow, NextHop, Way},
    rule::{Interface, InterfaceKey, Tag},
    settings::{Counter, Settings},
};

use crate::{
    Verdict,
    flow::{self, FlowRef},
    hook,
    maps::{self, Room},
    packet::{ETH_LEN, Eth, Mac, Packet, RouteKind, Window, window},
    parse::{Ip, Payload},
    tcp,
};

/// Looks up the next hop to the destination of a packet, and the zone there. The interface that a plain route leads to
/// is `plain`, as [`plain_way_there`] says.
///
/// # Errors
///
/// The way leads nowhere, or out of an interface of no zone.
#[inline(always)]
pub fn route(
    packet: &impl Packet,
    settings: &Settings,
    ip: &Ip,
    plain: u32,
) -> Result<(RouteKind, u8, &'static NextHop), DropReason> {
    let hop = maps::room().map(Room::hop).ok_or(DropReason::NoRoute)?;
    // By a plain route the way is the same as a moment ago.
    if plain != 0 {
        let zone = recall(ip, packet.device(), maps::route_generation(settings));
        if zone != UNKNOWN {
            return Ok((RouteKind::Resolved, zone as u8, maps::opaque(hop)));
        }
    }
    let kind = look_up(packet, settings, ip, false, hop);
    match kind {
        RouteKind::Local => return Ok((kind, Interface::NO_ZONE, hop)),
        RouteKind::None => return Err(DropReason::NoRoute),
        RouteKind::Resolved | RouteKind::Unresolved => {}
    }
    let ifindex = hop.out;
    match maps::interface(InterfaceKey::untagged(ifindex)) {
        Some(interface) if interface.zone != Interface::NO_ZONE => {
            leave_by(hop, &interface);
            if ifindex == plain {
                remember(ip, packet.device(), interface.zone);
            }
            Ok((kind, interface.zone, hop))
        }
        _ => Err(DropReason::RouteNoZone),
    }
}

/// A route that was looked up a moment ago.
pub struct KnownRoute {
    /// The destination, as in a flow key.
    address: [u32; 4],
    /// It is believed until then.
    until_ns: u64,
    hop: NextHop,
    /// The interface that the packet came by.
    device: u32,
    /// The zone that it leads to.
    zone: u8,
}

impl KnownRoute {
    /// How long it is believed, should nobody say that routes have changed.
    const LIFETIME_NS: u64 = 1_000_000_000;
}

/// What [`recall`] says of a route that is not known: no zone.
const UNKNOWN: u32 = 0x100;

/// Puts a route that is known to where [`Room::hop`] has room for one, and returns its zone. Not inlined, and a number: the
/// verifier looks at what follows once.
#[inline(never)]
fn recall(ip: &Ip, device: u32, generation: u32) -> u32 {
    let (Some(known), Some(hop)) = (maps::known_route(&ip.dst), maps::room().map(Room::hop)) else {
        return UNKNOWN;
    };
    if known.hop.generation != generation
        || known.device != device
        || known.address != ip.dst
        || known.until_ns <= hook::now_ns()
    {
        return UNKNOWN;
    }
    *hop = known.hop;
    known.zone as u32
}

/// Remembers the route that [`Room::hop`] has, if its neighbour is known.
#[inline(never)]
fn remember(ip: &Ip, device: u32, zone: u8) {
    if let Some(hop) = maps::room().map(Room::hop)
        && hop.generation != 0
        && let Some(known) = maps::known_route(&ip.dst)
    {
        known.address = ip.dst;
        known.until_ns = hook::now_ns().saturating_add(KnownRoute::LIFETIME_NS);
        known.hop = *hop;
        known.device = device;
        known.zone = zone;
    }
}

/// Whether the plain routes say that a packet came by where answers to it would leave. If not, the kernel may know
/// better.
#[inline(always)]
pub fn passes_plain_reverse_path(packet: &impl Packet, settings: &Settings, ip: &Ip) -> bool {
    plain_way(settings, ip, &ip.src) == packet.device()
}

/// The interface that a plain route to the destination of a packet leads to; 0 if the kernel has to be asked.
#[inline(always)]
pub fn plain_way_there(settings: &Settings, ip: &Ip) -> u32 {
    plain_way(settings, ip, &ip.dst)
}

/// The interface that a plain route leads to; 0 if the kernel has to be asked, as it has to where the source counts, too:
/// packets of link-local ones are not forwarded (RFC 4291, 2.5.6; `bpf_ipv6_fib_lookup` in net/core/filter.c).
#[inline(always)]
fn plain_way(settings: &Settings, ip: &Ip, address: &[u32; 4]) -> u32 {
    if ip.v6 && u32::from_be(ip.src[0]) >> 22 == 0xfe80 >> 6 {
        return 0;
    }
    maps::plain_route(address, ip.v6, maps::route_generation(settings))
}

/// Looks up the next hop back to the source of a packet that came by `interface`.
///
/// # Errors
///
/// The way back is not by that interface.
#[inline(always)]
pub fn reverse_path(
    packet: &impl Packet,
    settings: &Settings,
    ip: &Ip,
    interface: &Interface,
) -> Result<&'static NextHop, DropReason> {
    let hop = maps::room().map(Room::hop).ok_or(DropReason::Spoofed)?;
    let kind = look_up(packet, settings, ip, true, hop);
    if !matches!(kind, RouteKind::Resolved | RouteKind::Unresolved) || hop.out != packet.device() {
        return Err(DropReason::Spoofed);
    }
    leave_by(hop, interface);
    Ok(hop)
}

/// Asks the kernel for the next hop, whose interface is then as its routes name it.
#[inline(always)]
fn look_up(packet: &impl Packet, settings: &Settings, ip: &Ip, back: bool, hop: &mut NextHop) -> RouteKind {
    *hop = NextHop::default();
    maps::count(Counter::FibLookups, 1);
    let generation = maps::route_generation(settings);
    let kind = packet.route(ip, back, hop);
    if kind == RouteKind::Resolved {
        hop.generation = generation;
    }
    kind
}

/// Says what is known of the interface that a next hop leads to.
#[inline(always)]
fn leave_by(hop: &mut NextHop, interface: &Interface) {
    let no_xmit = interface.flags & Interface::NO_XMIT != 0;
    hop.out = NextHop::out(interface.device, interface.tags[0] != Tag::NONE, no_xmit);
    if interface.mtu != 0 && interface.mtu < hop.mtu {
        hop.mtu = interface.mtu;
    }
}

/// Keeps a next hop in a flow.
///
/// # Safety
///
/// `way` lies in a map element.
#[inline(always)]
pub unsafe fn keep(way: *mut Way, hop: &NextHop) {
    // SAFETY: promised. Others may write it: see the module `flow`; the generation last.
    unsafe {
        (*way).out = hop.out;
        (*way).dst_mac = hop.dst_mac;
        (*way).src_mac = hop.src_mac;
        (*way).mtu = hop.mtu;
        (&raw mut (*way).generation).write_volatile(hop.generation);
    }
}

/// Whether the next hop that is kept was looked up before routes changed, or never.
#[inline(always)]
fn is_stale(way: *const Way, settings: &Settings) -> bool {
    // SAFETY: `way` lies in a map element. Others may write it: see the module `flow`.
    unsafe { (&raw const (*way).generation).read_volatile() != maps::route_generation(settings) }
}

/// Whether what a flow to the node sends by `way` ends here still, and is not to be forwarded: its address may have left the
/// node, or a route to it have come that was not there when the flow began. Asked once for each generation of routes.
#[inline(always)]
pub fn ends_here(packet: &impl Packet, settings: &Settings, ip: &Ip, way: *mut Way) -> bool {
    if !is_stale(way, settings) {
        return true;
    }
    let generation = maps::route_generation(settings);
    let Some(hop) = maps::room().map(Room::hop) else { return false };
    // Where nothing is forwarded, or the route leads nowhere, the stack says so.
    if matches!(look_up(packet, settings, ip, false, hop), RouteKind::Resolved | RouteKind::Unresolved) {
        return false;
    }
    // SAFETY: as in `is_stale`.
    unsafe { (&raw mut (*way).generation).write_volatile(generation) };
    true
}

/// Sends a packet of `flow` on. What needs more than a new MAC and a lower TTL is passed to the
/// stack, which answers it (TTL, MTU), resolves the neighbour or reads the options; its way out
/// leads through the egress guard. So does what comes by XDP and leaves by an interface that sends none of it.
///
/// # Errors
///
/// No route, or one out of an interface that is not of the flow's zone.
#[inline(always)]
pub fn send(
    packet: &mut impl Packet,
    settings: &Settings,
    flow: FlowRef,
    reply: bool,
    ip: &Ip,
    options: &tcp::Options,
) -> Result<Verdict, DropReason> {
    let (mut way, back) = flow.ways(reply);
    let mut resolved = true;
    if is_stale(way, settings) {
        if ip.payload == Payload::IcmpError {
            // The kernel's rules may route it otherwise than the flow, by its source or protocol: where it goes is not kept.
            way = &raw mut flow::draft().ok_or(DropReason::NoRoute)?.ways[0];
        }
        match route(packet, settings, ip, plain_way_there(settings, ip))? {
            // The way to the other end now ends here: an address of it moved to this node.
            (RouteKind::Local | RouteKind::None, ..) => return Err(DropReason::NoRoute),
            (_, zone, _) if zone != flow.zone(!reply) => return Err(DropReason::WrongZone),
            // The stack resolves it, and sends this packet, which may be a SYN, as it is here.
            (RouteKind::Unresolved, _, hop) => {
                resolved = false;
                // SAFETY: as above.
                unsafe { (*way).mtu = hop.mtu };
            }
            // SAFETY: as above.
            (RouteKind::Resolved, _, hop) => unsafe { keep(way, hop) },
        }
    }
    // SAFETY: as above.
    let way = unsafe { &*way };
    if options.mss_at != 0 && flow.mss() != 0 {
        // SAFETY: as above.
        clamp_mss(packet, ip, options, flow.mss(), way.mtu, unsafe { (*back).mtu })?;
    }
    if !resolved || ip.ttl <= 1 || ip.slow || !packet.can_leave_by(way.out) {
        return Ok(Verdict::Pass);
    }
    if too_long(ip, packet.segment_size(), way.mtu) {
        return Ok(Verdict::Pass);
    }
    Eth::address(packet, Mac::new(way.dst_mac), Mac::new(way.src_mac))?;
    let header: Window<20> = window(packet, ETH_LEN)?;
    if ip.v6 {
        header.set_u8::<7>(ip.ttl - 1);
    } else {
        header.set_u8::<8>(ip.ttl - 1);
        header.set_u16::<10>(checksum_after_hop(header.u16::<10>()));
    }
    packet.leave_by(way.out);
    Ok(Verdict::Forward)
}

/// What a tunnel puts before the payload of a segment within it, at most: its own header, and those of Ethernet with a tag, IPv6
/// and TCP with options.
const TUNNEL: u32 = 16 + 18 + 40 + 60;

/// Whether a packet may be longer than its route takes; of a super-packet of `segment_size`, its segments. Those of what is in
/// a tunnel, by UDP too, have headers that are not read here; the stack, which gets what is too long, looks at them.
#[inline(always)]
pub fn too_long(ip: &Ip, segment_size: u32, mtu: u16) -> bool {
    let longest = match (segment_size, ip.payload) {
        (0, _) => ip.len,
        (size, Payload::Tcp) => size + ip.header_len,
        (size, _) => size + ip.header_len + TUNNEL,
    };
    mtu != 0 && longest > mtu as u32
}

/// What [`Flow::mss`] says, `limit`, as a number for routes of these MTUs; 0 if it is not known.
#[inline(always)]
pub fn mss_limit(limit: u16, mtu: u16, mtu_back: u16, v6: bool) -> u16 {
    if limit != Flow::MSS_PMTU {
        return limit;
    }
    let mtu = if mtu_back != 0 && (mtu_back < mtu || mtu == 0) { mtu_back } else { mtu };
    let headers = if v6 { 60 } else { 40 };
    if mtu <= headers { 0 } else { mtu - headers }
}

/// Lowers the maximum segment size that a SYN announces (RFC 9293, 3.7.1) to `limit`; never raises it.
#[inline(always)]
fn clamp_mss(
    packet: &mut impl Packet,
    ip: &Ip,
    options: &tcp::Options,
    limit: u16,
    mtu: u16,
    mtu_back: u16,
) -> Result<(), DropReason> {
    let limit = mss_limit(limit, mtu, mtu_back, ip.v6);
    if limit == 0 {
        return Ok(());
    }
    let tcp_at = (ETH_LEN as u32) + ip.l4;
    let mut announced = [0; 2];
    if !packet.load(tcp_at + options.mss_at as u32, &mut announced) {
        return Err(DropReason::Truncated);
    }
    if u16::from_be_bytes(announced) > limit {
        let from = u16::from_ne_bytes(announced);
        packet.replace(tcp_at + options.mss_at as u32, tcp_at + 16, from, limit.to_be())?;
    }
    Ok(())
}

/// The header checksum (network byte order) after the TTL went down by one: its word, TTL and
/// protocol, is smaller by 0x0100, so the complement of the sum is larger by that (RFC 1624, eqn. 3).
#[inline(always)]
fn checksum_after_hop(checksum: u16) -> u16 {
    let sum = checksum as u32 + u16::to_be(0x0100) as u32;
    (sum + (sum >= 0xffff) as u32) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_merged_segments_of_a_tunnel_may_be_too_long_for_is_left_to_the_stack() {
        let of = |payload| Ip { payload, len: 20_000, header_len: 20 + 20, ..Ip::EMPTY };
        assert!(!too_long(&of(Payload::Tcp), 1460, 1500) && too_long(&of(Payload::Tcp), 1460, 1499));
        // IPv4, GRE, IPv4, TCP with timestamps: segments of 1,500 bytes.
        let tunnel = Ip { header_len: 20, ..of(Payload::Other) };
        assert!(too_long(&tunnel, 1424, 1492));
        assert!(!too_long(&tunnel, 1000, 1492), "with no headers of it");
        assert!(
            too_long(&of(Payload::Udp), 1398, 1492),
            "VXLAN: headers of 1398 bytes in 1492 there are none"
        );
        assert!(!too_long(&Ip { len: 1492, ..tunnel }, 0, 1492));
    }
}
