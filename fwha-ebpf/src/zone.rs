//! Zones: which one a packet comes from, and whether its source may be there.

use fwha_common::{drop::DropReason, flow::proto, rule::Interface, settings::Settings};

use crate::{
    maps,
    packet::{Eth, Mac, Packet},
    parse::Ip,
};

/// The interface of a zone that a packet came in by.
///
/// # Errors
///
/// It is in no zone, or the frame is for another station: a bridge floods frames whose receiver it
/// has not learned, and each of several firewalls behind it would forward them.
#[inline(always)]
pub fn of(packet: &impl Packet, settings: &Settings, eth: &Eth) -> Result<&'static Interface, DropReason> {
    let interface = maps::known_interface(packet.device(), settings).ok_or(DropReason::NoZone)?;
    if interface.zone == Interface::NO_ZONE {
        return Err(DropReason::NoZone);
    }
    let mac = Mac::new(interface.mac);
    if !eth.dst.is_group() && mac != Mac::new([0; 6]) && mac != eth.dst {
        return Err(DropReason::OtherStation);
    }
    Ok(interface)
}

/// Whether a source is one that no host has, or the packet says that its receiver sent it. Routers
/// drop those (RFC 1812, 5.3.7; RFC 6890); so does the kernel (`ip_route_input_slow`).
///
/// # Errors
///
/// It is.
#[inline(always)]
pub fn source(ip: &Ip, multicast: bool) -> Result<(), DropReason> {
    if ip.v6 {
        let first = u32::from_be(ip.src[0]);
        let zero = ip.src[0] | ip.src[1] == 0;
        // ff00::/8, ::/128, ::1/128, ::ffff:0:0/96. A host without address asks from :: (RFC 4861, 4862),
        // which passed before, as an own protocol.
        if first >> 24 == 0xff
            || zero && ip.src[2] == 0 && u32::from_be(ip.src[3]) <= 1
            || zero && u32::from_be(ip.src[2]) == 0xffff
        {
            return Err(DropReason::Martian);
        }
    } else {
        let address = u32::from_be(ip.src[3]);
        let dhcp = address == 0 && ip.proto == proto::UDP && multicast;
        // 127/8, 0/8, 224/4, 240/4.
        if address >> 24 == 127 || address >> 24 == 0 && !dhcp || address >> 29 == 7 {
            return Err(DropReason::Martian);
        }
    }
    if ip.src == ip.dst { Err(DropReason::Land) } else { Ok(()) }
}

/// Whether a destination is one that is not forwarded, whatever routes and the frame say: 0/8, 224/4, 255.255.255.255, ff00::/8
/// (RFC 1812, 5.3.5 and 5.3.7). The kernel looks at it before the routes (`ip_route_input_rcu` and
/// `ip_route_input_slow` in net/ipv4/route.c), which IPv4's lookup for programs does not.
#[inline(always)]
pub fn ends_on_link(ip: &Ip) -> bool {
    if ip.v6 {
        return u32::from_be(ip.dst[0]) >> 24 == 0xff;
    }
    let address = u32::from_be(ip.dst[3]);
    address >> 24 == 0 || address >> 28 == 0xe || address == u32::MAX
}
