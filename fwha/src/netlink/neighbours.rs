//! Neighbours: whom the kernel knows on a link, and which of them are in use.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr},
};

use futures_util::StreamExt;
use rtnetlink::{
    Handle,
    packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
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
    let mut found = talk(async |handle| {
        let mut found = Vec::new();
        list(handle, filter, |m| {
            found.extend(by_arp(m));
            found.len() < MAX
        })
        .await?;
        Ok(found)
    })
    .await?;
    found.sort_unstable();
    Ok(found.into_iter().map(|(_, address)| address).collect())
}

/// Hands out neighbours, until there are no more or `more` says that it wants none.
async fn list(
    mut handle: Handle,
    filter: NeighbourMessage,
    mut more: impl FnMut(&NeighbourMessage) -> bool,
) -> Result<(), NetlinkError> {
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetNeighbour(filter));
    request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let refused = |error| request_error("list neighbours", error);
    let mut listed = handle.request(request).map_err(refused)?;
    while let Some(answer) = listed.next().await {
        match answer.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(m)) if !more(&m) => break,
            NetlinkPayload::Error(error) => return Err(refused(rtnetlink::Error::NetlinkError(error))),
            _ => {}
        }
    }
    Ok(())
}

/// Somebody on a link, of whatever addresses: the index of the interface, and his MAC.
pub type Station = (u32, [u8; 6]);

/// Tells the kernel that these stations are in use, as it would know of what it forwards itself: all their neighbour entries
/// that are STALE, `max` at most, become DELAY. If nobody confirms one within `delay_first_probe_time` (5 s) the kernel probes
/// it, and in the end knows that it is there, or that it is not. Other entries the kernel looks after, or who made them. How
/// many there were; with `max` there may be more.
///
/// # Errors
///
/// The first failure; the others are told of all the same.
pub async fn use_stale(stations: &HashSet<Station>, max: usize) -> Result<usize, NetlinkError> {
    talk(async |mut handle| {
        let mut requests = Vec::new();
        list(handle.clone(), NeighbourMessage::default(), |m| {
            if station(m).is_some_and(|station| stations.contains(&station)) {
                requests.extend(use_request(m));
            }
            requests.len() < max
        })
        .await?;
        let count = requests.len();
        let mut told = Ok(count);
        for request in requests {
            let refused = |error| request_error("use a neighbour", error);
            let mut answers = handle.request(request).map_err(refused)?;
            while let Some(answer) = answers.next().await {
                let NetlinkPayload::Error(error) = answer.payload else { continue };
                // It may have gone meanwhile, with its interface or alone.
                if !matches!(-error.raw_code(), libc::ENOENT | libc::ENODEV) {
                    told = told.and(Err(refused(rtnetlink::Error::NetlinkError(error))));
                }
            }
        }
        told
    })
    .await
}

/// Whose entry it is.
fn station(message: &NeighbourMessage) -> Option<Station> {
    let mac = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(mac) => <[u8; 6]>::try_from(mac.as_slice()).ok(),
        _ => None,
    })?;
    Some((message.header.ifindex, mac))
}

/// What tells the kernel that a STALE entry is in use (`NTF_USE`; `neigh_add` of net/core/neighbour.c). It is never made by this
/// (no `NLM_F_CREATE`), nor does it change otherwise (no MAC, no `NLM_F_REPLACE`): the kernel takes an entry for one of a
/// control plane (`NTF_EXT_LEARNED`) as long as everybody says so. Not for those that a control plane or the kernel confirms
/// anyway (`NTF_EXT_VALIDATED`, `NTF_EXT_MANAGED`).
fn use_request(entry: &NeighbourMessage) -> Option<NetlinkMessage<RouteNetlinkMessage>> {
    let confirmed = |a: &NeighbourAttribute| matches!(a, NeighbourAttribute::ExtFlags(f) if !f.is_empty());
    if entry.header.state != NeighbourState::Stale || entry.attributes.iter().any(confirmed) {
        return None;
    }
    let mut message = NeighbourMessage::default();
    message.header.family = entry.header.family;
    message.header.ifindex = entry.header.ifindex;
    message.header.flags = NeighbourFlags::Use | (entry.header.flags & NeighbourFlags::ExtLearned);
    let address = entry.attributes.iter().find(|a| matches!(a, NeighbourAttribute::Destination(_)))?;
    message.attributes.push(address.clone());
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewNeighbour(message));
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK;
    Some(request)
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

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::neighbour::NeighbourExtFlags;

    use super::*;

    fn entry(state: NeighbourState, flags: NeighbourFlags) -> NeighbourMessage {
        let mut entry = NeighbourMessage::default();
        entry.header.family = AddressFamily::Inet;
        (entry.header.ifindex, entry.header.state, entry.header.flags) = (7, state, flags);
        entry.attributes = vec![
            NeighbourAttribute::Destination(NeighbourAddress::Inet(Ipv4Addr::new(10, 9, 0, 2))),
            NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 9]),
            NeighbourAttribute::Probes(1),
        ];
        entry
    }

    #[test]
    fn the_kernel_is_told_of_a_use_by_interface_and_address_alone() {
        let bytes = |entry: &NeighbourMessage| {
            let mut request = use_request(entry)?;
            request.finalize();
            let mut bytes = vec![0; request.buffer_len()];
            request.serialize(&mut bytes);
            Some(bytes)
        };
        let stale = |flags| entry(NeighbourState::Stale, flags);
        let expected = [
            36, 0, 0, 0, 28, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0,
            0, // length, RTM_NEWNEIGH, NLM_F_REQUEST | NLM_F_ACK
            2, 0, 0, 0, 7, 0, 0, 0, 0, 0, 1, 0, // AF_INET, interface, no state, NTF_USE
            8, 0, 1, 0, 10, 9, 0, 2, // NDA_DST
        ];
        assert_eq!(bytes(&stale(NeighbourFlags::Router)).as_deref(), Some(&expected[..]));
        // As it would not be any more if nobody said so.
        let mut learned = expected;
        learned[26] = 0x11;
        assert_eq!(bytes(&stale(NeighbourFlags::ExtLearned)).as_deref(), Some(&learned[..]));
        let mut managed = stale(NeighbourFlags::empty());
        managed.attributes.push(NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed));
        assert_eq!(bytes(&managed), None);
        for state in [NeighbourState::Permanent, NeighbourState::Reachable, NeighbourState::Failed] {
            assert_eq!(bytes(&entry(state, NeighbourFlags::empty())), None, "{state:?}");
        }
    }
}
