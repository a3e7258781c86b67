//! Which way a packet goes, as `ip route get` asks it.

use std::net::IpAddr;

use futures_util::TryStreamExt;
use fwha_common::flow::proto;
use rtnetlink::packet_route::{
    AddressFamily,
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
};

use super::{NetlinkError, connect, into_io};

/// A packet, as far as routes look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// Where it goes.
    pub to: IpAddr,
    /// Where it comes from, and the index of the interface that it came by; nothing for one that is sent here.
    pub from: Option<(IpAddr, u32)>,
    /// IP protocol.
    pub proto: u8,
    /// Ports, source and destination.
    pub ports: [u16; 2],
}

/// Where a packet goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// Out of an interface, by its index, to a router, or to the destination itself.
    Out(u32, Option<IpAddr>),
    /// To this machine itself: an address of its own, broadcast, multicast.
    Here,
    /// Nowhere; in words.
    Nowhere(&'static str),
}

/// Asks the kernel.
///
/// # Errors
///
/// No netlink socket, or an answer that is none.
///
/// # Panics
///
/// Outside of a tokio runtime.
pub async fn way(question: Question) -> Result<Way, NetlinkError> {
    let refused = |source| NetlinkError::Request { what: format!("look up {}", question.to), source };
    // To be kept: the connection ends with it.
    let handle = connect()?;
    let mut answers = handle.route().get(message(&question)).execute();
    match answers.try_next().await.map_err(into_io) {
        Ok(Some(route)) => Ok(of(&route)),
        Ok(None) => Err(refused(std::io::ErrorKind::UnexpectedEof.into())),
        // As `fib_props` (net/ipv4/fib_semantics.c) and `fib6_prop` (net/ipv6/route.c) say.
        Err(error) => match error.raw_os_error() {
            Some(libc::ENETUNREACH) => Ok(Way::Nowhere("there is no route")),
            Some(libc::EHOSTUNREACH) => Ok(Way::Nowhere("unreachable")),
            Some(libc::EACCES) => Ok(Way::Nowhere("prohibit")),
            Some(libc::EINVAL) => Ok(Way::Nowhere("blackhole")),
            _ => Err(refused(error)),
        },
    }
}

fn message(question: &Question) -> RouteMessage {
    let (family, bits) =
        if question.to.is_ipv4() { (AddressFamily::Inet, 32) } else { (AddressFamily::Inet6, 128) };
    let address = |address| match address {
        IpAddr::V4(v4) => RouteAddress::Inet(v4),
        IpAddr::V6(v6) => RouteAddress::Inet6(v6),
    };
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.header.destination_prefix_length = bits;
    message.attributes.push(RouteAttribute::Destination(address(question.to)));
    if let Some((source, ifindex)) = question.from {
        message.header.source_prefix_length = bits;
        message.attributes.push(RouteAttribute::Source(address(source)));
        message.attributes.push(RouteAttribute::Iif(ifindex));
    }
    // Of others the kernel takes none (`rtm_getroute_parse_ip_proto`).
    if matches!(question.proto, proto::TCP | proto::UDP) {
        let [source, destination] = question.ports;
        message.attributes.extend([
            RouteAttribute::IpProto(question.proto),
            RouteAttribute::Sport(source),
            RouteAttribute::Dport(destination),
        ]);
    }
    message
}

fn of(route: &RouteMessage) -> Way {
    match route.header.kind {
        RouteType::Local | RouteType::Broadcast | RouteType::Multicast | RouteType::Anycast => Way::Here,
        RouteType::BlackHole => Way::Nowhere("blackhole"),
        RouteType::Unreachable => Way::Nowhere("unreachable"),
        RouteType::Prohibit => Way::Nowhere("prohibit"),
        _ => {
            let out = route.attributes.iter().find_map(|a| match a {
                RouteAttribute::Oif(index) => Some(*index),
                _ => None,
            });
            let via = route.attributes.iter().find_map(|a| match a {
                RouteAttribute::Gateway(RouteAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
                RouteAttribute::Gateway(RouteAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
                // IPv4 by a router of IPv6 (RFC 5549).
                RouteAttribute::Via(rtnetlink::packet_route::route::RouteVia::Inet6(v6)) => {
                    Some(IpAddr::V6(*v6))
                }
                _ => None,
            });
            out.map_or(Way::Nowhere("there is no route"), |out| Way::Out(out, via))
        }
    }
}
