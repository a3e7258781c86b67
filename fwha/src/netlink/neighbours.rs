//! Neighbours: whom the kernel knows on a link.

use std::net::{IpAddr, Ipv4Addr};

use futures_util::StreamExt;
use rtnetlink::{
    packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    },
};

use super::{NetlinkError, request_error, talk};

/// Neighbours of an interface that are looked at. The kernel has no more in all unless it is told to (`gc_thresh3`, arp(7)).
const MAX: usize = 1024;

/// The IPv4 neighbours on an interface that ARP has found, those that were confirmed last first. Not those that need no ARP
/// (`NUD_NOARP`): multicast groups and broadcast addresses, which nobody answers for.
///
/// # Errors
///
/// The kernel does not tell.
pub async fn neighbours(ifindex: u32) -> Result<Vec<Ipv4Addr>, NetlinkError> {
    let mut filter = NeighbourMessage::default();
    filter.header.family = AddressFamily::Inet;
    filter.attributes.push(NeighbourAttribute::IfIndex(ifindex));
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetNeighbour(filter));
    request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let refused = |error| request_error("list neighbours", error);
    let mut found = talk(async |mut handle| {
        let mut found = Vec::new();
        let mut listed = handle.request(request).map_err(refused)?;
        while found.len() < MAX
            && let Some(answer) = listed.next().await
        {
            match answer.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(m)) => {
                    found.extend(by_arp(&m))
                }
                NetlinkPayload::Error(error) => {
                    return Err(refused(rtnetlink::Error::NetlinkError(error)));
                }
                _ => {}
            }
        }
        Ok(found)
    })
    .await?;
    found.sort_unstable();
    Ok(found.into_iter().map(|(_, address)| address).collect())
}

/// For how long a neighbour has not been confirmed, in clock ticks, and its address.
fn by_arp(message: &NeighbourMessage) -> Option<(u32, Ipv4Addr)> {
    let (key, mac) = neighbour(message)?;
    let IpAddr::V4(address) = key.1 else { return None };
    if mac.is_none() || message.header.state == NeighbourState::Noarp {
        return None;
    }
    let confirmed = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::CacheInfo(info) => Some(info.confirmed),
        _ => None,
    });
    Some((confirmed.unwrap_or(u32::MAX), address))
}

/// Interface and address of a neighbour.
pub(super) type NeighbourKey = (u32, IpAddr);

/// An IP neighbour and its MAC, as long as that may be used (`NUD_VALID` of the kernel's
/// include/net/neighbour.h).
pub(super) fn neighbour(message: &NeighbourMessage) -> Option<(NeighbourKey, Option<Vec<u8>>)> {
    let mut address = None;
    let mut mac = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => address = Some(IpAddr::V4(*a)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => address = Some(IpAddr::V6(*a)),
            NeighbourAttribute::LinkLayerAddress(m) => mac = Some(m.clone()),
            _ => {}
        }
    }
    let valid = !matches!(
        message.header.state,
        NeighbourState::None | NeighbourState::Incomplete | NeighbourState::Failed
    );
    Some(((message.header.ifindex, address?), mac.filter(|_| valid)))
}
