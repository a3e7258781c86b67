//! Plain routes: how destinations are reached, as far as that follows from the destination alone.
//!
//! What this does not know for certain it leaves to the kernel: a rule of policy routing that is not one of the three
//! that are always there, for all destinations; a route by type of service or source, with several next hops, a
//! nexthop object, a tunnel, or an interface without carrier, a prefix with two routes, and whatever is in table
//! `local`, for its destinations.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use fwha_common::route::{MAX_PREFIXES, Prefix};
use rtnetlink::{
    Handle, IpVersion,
    packet_route::{
        AddressFamily,
        route::{RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteType},
        rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage},
    },
};

use super::{NetlinkError, request_error, talk};

/// Routes of a family that are looked at; a table with more is left to the kernel as a whole.
const MAX_ROUTES: usize = 4 * MAX_PREFIXES;

/// Routing tables, and the places of the rules that lead there (include/uapi/linux/rtnetlink.h,
/// `fib_default_rules_init` in net/ipv4/fib_rules.c, `fib6_rules_net_init` in net/ipv6/fib6_rules.c).
const LOCAL: u32 = 255;
const MAIN: u32 = 254;
const DEFAULT: u32 = 253;
const RULES: [(u32, u32); 3] = [(0, LOCAL), (32_766, MAIN), (32_767, DEFAULT)];

/// fe80::/10.
const LINK_LOCAL: (u8, IpAddr) = (10, IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)));

/// The plain routes of IPv4 and IPv6, as the programs want them: the first prefix that an address is in counts. Empty
/// if the kernel is to be asked for all.
///
/// # Errors
///
/// No netlink socket, or the kernel refuses.
///
/// # Panics
///
/// Outside of a tokio runtime.
pub async fn plain_routes() -> Result<[Vec<Prefix>; 2], NetlinkError> {
    // A conversation each: a list that is not read to its end ends with it.
    Ok([
        talk(async |handle| family(&handle, IpVersion::V4).await).await?,
        talk(async |handle| family(&handle, IpVersion::V6).await).await?,
    ])
}

async fn family(handle: &Handle, version: IpVersion) -> Result<Vec<Prefix>, NetlinkError> {
    let v6 = matches!(version, IpVersion::V6);
    let rules: Vec<RuleMessage> = handle
        .rule()
        .get(version)
        .execute()
        .try_collect()
        .await
        .map_err(|e| request_error("list rules", e))?;
    if !only_default(&rules) {
        return Ok(Vec::new());
    }
    Ok(routes(handle, v6).await?.map_or_else(Vec::new, |routes| prefixes(v6, &routes)))
}

/// All routes of a family, unless there are too many.
async fn routes(handle: &Handle, v6: bool) -> Result<Option<Vec<RouteMessage>>, NetlinkError> {
    let mut filter = RouteMessage::default();
    filter.header.address_family = if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let mut listed = handle.route().get(filter).execute();
    let mut routes = Vec::new();
    while let Some(route) = listed.try_next().await.map_err(|e| request_error("list routes", e))? {
        if routes.len() == MAX_ROUTES {
            return Ok(None);
        }
        routes.push(route);
    }
    Ok(Some(routes))
}

/// Whether these rules are those that are always there, and no others.
fn only_default(rules: &[RuleMessage]) -> bool {
    let places: Option<BTreeSet<(u32, u32)>> = rules.iter().map(default_rule).collect();
    places.is_some_and(|places| {
        places.contains(&RULES[0]) && places.contains(&RULES[1]) && places.iter().all(|p| RULES.contains(p))
    })
}

/// Place and table of a rule that is for all packets.
fn default_rule(rule: &RuleMessage) -> Option<(u32, u32)> {
    let header = &rule.header;
    if header.src_len != 0
        || header.dst_len != 0
        || header.tos != 0
        || header.action != RuleAction::ToTable
        || header.flags.intersects(RuleFlags::Invert)
    {
        return None;
    }
    let (mut priority, mut table) = (0, u32::from(header.table));
    for attribute in &rule.attributes {
        match attribute {
            RuleAttribute::Priority(n) => priority = *n,
            RuleAttribute::Table(n) => table = *n,
            // -1 says that nothing is suppressed.
            RuleAttribute::SuppressPrefixLen(u32::MAX) | RuleAttribute::Protocol(_) => {}
            _ => return None,
        }
    }
    Some((priority, table))
}

/// The prefixes of a family by these routes.
fn prefixes(v6: bool, routes: &[RouteMessage]) -> Vec<Prefix> {
    // By length and address, so that what covers another comes before it.
    let mut found: BTreeMap<(u8, IpAddr), u32> = BTreeMap::new();
    let mut local = Vec::new();
    for message in routes {
        let Some(network) = network(v6, message) else { return Vec::new() };
        let table = attribute(message, |a| if let RouteAttribute::Table(n) = a { Some(*n) } else { None });
        match table.unwrap_or(u32::from(message.header.table)) {
            LOCAL => {
                local.push(network);
                found.insert(network, 0);
            }
            MAIN => {
                // The kernel never forwards to its links' own addresses (`rt6_need_strict`).
                let link_local = covers(LINK_LOCAL, network);
                let out = plain(message).filter(|_| !link_local).unwrap_or(0);
                found.entry(network).and_modify(|known| *known = 0).or_insert(out);
            }
            _ => {}
        }
    }
    // Table `local` is looked at first.
    for (network, out) in &mut found {
        if local.iter().any(|other| covers(*other, *network)) {
            *out = 0;
        }
    }
    // What a shorter prefix says as well need not be said.
    let mut kept: Vec<((u8, IpAddr), u32)> = Vec::new();
    for (network, out) in found {
        let shorter = kept.iter().rev().find(|(other, _)| covers(*other, network)).map_or(0, |(_, out)| *out);
        if out != shorter {
            kept.push((network, out));
        }
    }
    if kept.len() > MAX_PREFIXES {
        return Vec::new();
    }
    kept.iter().rev().map(|((len, address), out)| Prefix::new(*address, *len, *out)).collect()
}

/// Length and address of the network that a route leads to.
fn network(v6: bool, message: &RouteMessage) -> Option<(u8, IpAddr)> {
    let everything: IpAddr = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let to = attribute(message, |a| match a {
        RouteAttribute::Destination(RouteAddress::Inet(to)) => Some(IpAddr::V4(*to)),
        RouteAttribute::Destination(RouteAddress::Inet6(to)) => Some(IpAddr::V6(*to)),
        _ => None,
    });
    let to = to.unwrap_or(everything);
    (to.is_ipv6() == v6).then_some((message.header.destination_prefix_length, to))
}

fn attribute<T>(message: &RouteMessage, pick: impl Fn(&RouteAttribute) -> Option<T>) -> Option<T> {
    message.attributes.iter().find_map(pick)
}

/// Whether all of a network is in another.
fn covers(wide: (u8, IpAddr), narrow: (u8, IpAddr)) -> bool {
    let (wide, narrow) = (Prefix::new(wide.1, wide.0, 0), Prefix::new(narrow.1, narrow.0, 0));
    (0..4).all(|i| {
        wide.mask[i] & narrow.mask[i] == wide.mask[i]
            && (wide.address[i] ^ narrow.address[i]) & wide.mask[i] == 0
    })
}

/// The interface that a route leads to, if there is no more to it than that.
fn plain(message: &RouteMessage) -> Option<u32> {
    let RouteHeader { source_prefix_length: 0, tos: 0, kind: RouteType::Unicast, flags, .. } = message.header
    else {
        return None;
    };
    if !(flags - RouteFlags::Onlink).is_empty() {
        return None;
    }
    let mut out = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(n) => out = Some(*n),
            RouteAttribute::Destination(_)
            | RouteAttribute::Gateway(_)
            | RouteAttribute::Priority(_)
            | RouteAttribute::PrefSource(_)
            | RouteAttribute::Metrics(_)
            | RouteAttribute::CacheInfo(_)
            | RouteAttribute::Preference(_)
            | RouteAttribute::Table(_) => {}
            _ => return None,
        }
    }
    out
}
