//! Sending a packet on: next hop, rewrite, verdict.

use fwha_common::{
    drop::DropReason,
    flow::NextHop,
    settings::{Counter, Settings},
};

use crate::{
    Verdict,
    flow::FlowRef,
    maps,
    packet::{ETH_LEN, Eth, Mac, Packet, RouteKind, RouteQuery, Window, window},
    parse::Ip,
};

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
) -> Result<Verdict, DropReason> {
    if ip.ttl <= 1 || ip.options {
        return Ok(Verdict::Pass);
    }
    let generation = maps::route_generation(settings);
    let hop = flow.hop(reply);
    // SAFETY: `hop` lies in a map element. Others may write it: see the module `flow`.
    if unsafe { (&raw const (*hop).generation).read_volatile() } != generation {
        maps::add(&maps::COUNTERS, Counter::FibLookups as u32, 1);
        let mut found = NextHop::default();
        match packet.route(&query(ip), &mut found) {
            RouteKind::Resolved => {}
            RouteKind::Unresolved => return Ok(Verdict::Pass),
            // The way to the other end now ends here: an address of it moved to this node.
            RouteKind::Local | RouteKind::None => return Err(DropReason::NoRoute),
        }
        match maps::interface(found.ifindex) {
            Some(interface) if interface.zone == flow.zone(!reply) => {}
            Some(_) => return Err(DropReason::WrongZone),
            None => return Err(DropReason::RouteNoZone),
        }
        // SAFETY: as above; the generation last.
        unsafe {
            (*hop).ifindex = found.ifindex;
            (*hop).dst_mac = found.dst_mac;
            (*hop).src_mac = found.src_mac;
            (*hop).mtu = found.mtu;
            (&raw mut (*hop).generation).write_volatile(generation);
        }
    }
    // SAFETY: as above.
    let hop = unsafe { &*hop };
    let longest = match packet.segment_size() {
        0 => ip.len,
        size => size + ip.header_len,
    };
    if hop.mtu != 0 && longest > hop.mtu as u32 {
        return Ok(Verdict::Pass);
    }
    Eth::address(packet, Mac::new(hop.dst_mac), Mac::new(hop.src_mac))?;
    let header: Window<20> = window(packet, ETH_LEN)?;
    header.set_u8::<8>(ip.ttl - 1);
    header.set_u16::<10>(checksum_after_hop(header.u16::<10>()));
    packet.leave_by(hop.ifindex);
    Ok(Verdict::Forward)
}

/// What to ask of the routing table for a packet.
#[inline(always)]
pub fn query(ip: &Ip) -> RouteQuery {
    RouteQuery { src: ip.src, dst: ip.dst, tos: ip.tos, proto: ip.proto, sport: ip.sport, dport: ip.dport }
}

/// The header checksum (network byte order) after the TTL went down by one: its word, TTL and
/// protocol, is smaller by 0x0100, so the complement of the sum is larger by that (RFC 1624, eqn. 3).
#[inline(always)]
fn checksum_after_hop(checksum: u16) -> u16 {
    let sum = checksum as u32 + u16::to_be(0x0100) as u32;
    (sum + (sum >= 0xffff) as u32) as u16
}
