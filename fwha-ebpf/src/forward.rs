//! Sending a packet on: next hop, rewrite, verdict.

use fwha_common::{
    drop::DropReason,
    flow::{Flow, NextHop, Way},
    rule::{Interface, InterfaceKey, Tag},
    settings::{Counter, Settings},
};

use crate::{
    Verdict,
    flow::FlowRef,
    maps,
    packet::{ETH_LEN, Eth, Mac, Packet, RouteKind, Window, window},
    parse::Ip,
    tcp,
};

/// Looks up the next hop to the destination of a packet, or `back` to its source, and the zone there.
///
/// # Errors
///
/// The way leads nowhere, or out of an interface of no zone.
#[inline(always)]
pub fn route(
    packet: &impl Packet,
    settings: &Settings,
    ip: &Ip,
    back: bool,
) -> Result<(RouteKind, u8, &'static NextHop), DropReason> {
    let hop = maps::hop().ok_or(DropReason::NoRoute)?;
    *hop = NextHop::default();
    maps::add(&maps::COUNTERS, Counter::FibLookups as u32, 1);
    let generation = maps::route_generation(settings);
    let kind = packet.route(ip, back, hop);
    match kind {
        RouteKind::Local => return Ok((kind, Interface::NO_ZONE, hop)),
        RouteKind::None => return Err(DropReason::NoRoute),
        RouteKind::Resolved => hop.generation = generation,
        RouteKind::Unresolved => {}
    }
    match maps::interface(InterfaceKey::untagged(hop.out)) {
        Some(interface) if interface.zone != Interface::NO_ZONE => {
            hop.out = NextHop::out(interface.device, interface.tags[0] != Tag::NONE);
            if interface.mtu != 0 && interface.mtu < hop.mtu {
                hop.mtu = interface.mtu;
            }
            Ok((kind, interface.zone, hop))
        }
        _ => Err(DropReason::RouteNoZone),
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

/// Sends a packet of `flow` on. What needs more than a new MAC and a lower TTL is passed to the
/// stack, which answers it (TTL, MTU), resolves the neighbour or reads the options; its way out
/// leads through the egress guard.
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
    let (way, back) = flow.ways(reply);
    // SAFETY: `way` lies in a map element. Others may write it: see the module `flow`.
    if unsafe { (&raw const (*way).generation).read_volatile() } != maps::route_generation(settings) {
        match route(packet, settings, ip, false)? {
            // The way to the other end now ends here: an address of it moved to this node.
            (RouteKind::Local | RouteKind::None, ..) => return Err(DropReason::NoRoute),
            (_, zone, _) if zone != flow.zone(!reply) => return Err(DropReason::WrongZone),
            (RouteKind::Unresolved, ..) => return Ok(Verdict::Pass),
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
    if ip.ttl <= 1 || ip.slow {
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

/// Whether a packet is longer than its route takes; of a super-packet of `segment_size`, its segments.
#[inline(always)]
pub fn too_long(ip: &Ip, segment_size: u32, mtu: u16) -> bool {
    let longest = match segment_size {
        0 => ip.len,
        size => size + ip.header_len,
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
