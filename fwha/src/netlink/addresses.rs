//! VIPs on interfaces.
//!
//! A VIP is added with the prefix that the configuration gives it, as `ip address add` does. While
//! the node has an address of its own in that subnet, the VIP is a secondary one and brings no
//! route; without one, the VIP brings the subnet's route. In the second case later addresses of the
//! node become secondaries of the VIP, and its removal would take them with it: therefore
//! [`crate::dataplane`] sets `promote_secondaries`, which lets the next address move up instead.
//!
//! Each VIP carries [`PROTOCOL`] as its origin (`IFA_PROTO`, Linux 5.18; `ip address` prints
//! `proto 0x46`), so that what a killed daemon left behind is told from what the administrator added.
//!
//! An IPv6 VIP brings no route (`noprefixroute`): it may have a lifetime, and would give it to the
//! route of the node's own address. It is there at once (`nodad`): duplicate address detection would
//! find its last owner. And it is deprecated from the beginning, lest the node itself speak from it
//! (RFC 6724, rule 3).
//!
//! And each VIP has a lifetime, which must be renewed: the addresses of a daemon that was killed, or
//! hangs, go by themselves, before their next owner has announced them for the last time.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use futures_util::{TryStreamExt, future::join_all};
use rtnetlink::{
    AddressMessageBuilder, Handle,
    packet_route::address::{
        AddressAttribute, AddressFlags, AddressMessage, AddressProtocol, AddressScope, CacheInfo,
    },
};

use super::{NetlinkError, connect, into_io, request_error};

/// Origin of the addresses that fwha adds: `F`. The kernel itself uses 1 to 3.
pub const PROTOCOL: u8 = 0x46;

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// The interface.
    pub ifindex: u32,
    /// The address.
    pub address: IpAddr,
    /// Length of its subnet's prefix, in bits.
    pub prefix_len: u8,
}

/// The addresses by which this node itself speaks on an interface; unspecified where it has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnAddresses {
    /// The first IPv4 address that is not a VIP and reaches beyond the node, not a secondary one if
    /// there is another.
    pub primary: Ipv4Addr,
    /// The first link-local IPv6 address that is not a VIP and is known to be the only one of its
    /// kind.
    pub link_local: Ipv6Addr,
}

/// Adds, removes and lists addresses. Clones share one connection.
#[derive(Clone, Debug)]
pub struct Addresses {
    handle: Handle,
}

impl Addresses {
    /// Opens a connection, driven by the present tokio runtime.
    ///
    /// # Errors
    ///
    /// No netlink socket.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn new() -> Result<Self, NetlinkError> {
        Ok(Self { handle: connect()? })
    }

    /// Adds VIPs for a time of whole seconds, all requests at once. One that is there already is
    /// fine: it is marked as ours, and its time begins anew. One whose time is over the kernel
    /// removes, up to two seconds later. More than `u32::MAX` seconds are for ever.
    ///
    /// # Errors
    ///
    /// The first failure; the others are added all the same.
    pub async fn add(&self, vips: &[Address], lifetime: Duration) -> Result<(), NetlinkError> {
        let mut cache = CacheInfo::default();
        // The kernel refuses a zero, and takes the highest number for infinity (linux/if_addr.h).
        cache.ifa_valid = u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX).max(1);
        let requests = vips.iter().map(|vip| async move {
            let mut request = self.handle.address().add(vip.ifindex, vip.address, vip.prefix_len).replace();
            cache.ifa_preferred = if vip.address.is_ipv4() { cache.ifa_valid } else { 0 };
            request.message_mut().attributes.extend([
                AddressAttribute::Protocol(AddressProtocol::Other(PROTOCOL)),
                AddressAttribute::CacheInfo(cache),
            ]);
            if vip.address.is_ipv6() {
                let flags = AddressFlags::Nodad | AddressFlags::Noprefixroute;
                request.message_mut().attributes.push(AddressAttribute::Flags(flags));
            }
            request.execute().await.map_err(|e| {
                request_error(
                    format!("add {}/{} to interface {}", vip.address, vip.prefix_len, vip.ifindex),
                    e,
                )
            })
        });
        join_all(requests).await.into_iter().collect()
    }

    /// Removes VIPs, all requests at once and the last one first: so the first address of a subnet,
    /// on which the others depend, goes after them. One that is not
    /// there, or whose interface is gone or has no IPv6 any more, is fine.
    ///
    /// # Errors
    ///
    /// The first failure; the others are removed all the same.
    pub async fn remove(&self, vips: &[Address]) -> Result<(), NetlinkError> {
        let requests = vips.iter().rev().map(|vip| async move {
            let message = match vip.address {
                IpAddr::V4(address) => AddressMessageBuilder::<Ipv4Addr>::new()
                    .index(vip.ifindex)
                    .address(address, vip.prefix_len)
                    .build(),
                IpAddr::V6(address) => AddressMessageBuilder::<Ipv6Addr>::new()
                    .index(vip.ifindex)
                    .address(address, vip.prefix_len)
                    .build(),
            };
            match self.handle.address().del(message).execute().await.map_err(into_io) {
                Err(e)
                    if !matches!(
                        e.raw_os_error(),
                        Some(libc::EADDRNOTAVAIL | libc::ENODEV | libc::ENXIO)
                    ) =>
                {
                    Err(NetlinkError::Request {
                        what: format!(
                            "remove {}/{} from interface {}",
                            vip.address, vip.prefix_len, vip.ifindex
                        ),
                        source: e,
                    })
                }
                _ => Ok(()),
            }
        });
        join_all(requests).await.into_iter().collect()
    }

    /// The VIPs, of this or an earlier run, that are on these interfaces.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub async fn list(&self, ifindexes: &[u32]) -> Result<Vec<Address>, NetlinkError> {
        let all = self.dump().await?;
        Ok(all
            .iter()
            .filter(|m| ifindexes.contains(&m.header.index) && is_ours(m))
            .filter_map(address_of)
            .collect())
    }

    /// Removes the VIPs that are on these interfaces, but those in `keep`, and returns them.
    ///
    /// # Errors
    ///
    /// The first failure; the others are removed all the same.
    pub async fn remove_leftovers(
        &self,
        ifindexes: &[u32],
        keep: &[Address],
    ) -> Result<Vec<Address>, NetlinkError> {
        let keep: HashSet<&Address> = keep.iter().collect();
        let mut leftovers = self.list(ifindexes).await?;
        leftovers.retain(|a| !keep.contains(a));
        self.remove(&leftovers).await?;
        Ok(leftovers)
    }

    /// The addresses of an interface that are not VIPs.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub async fn others(&self, ifindex: u32) -> Result<Vec<Address>, NetlinkError> {
        let all = self.dump().await?;
        let others = all.iter().filter(|m| m.header.index == ifindex && !is_ours(m));
        Ok(others.filter_map(address_of).collect())
    }

    /// See [`OwnAddresses`].
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub async fn own(&self, ifindex: u32) -> Result<OwnAddresses, NetlinkError> {
        let all = self.dump().await?;
        let own = || all.iter().filter(|m| m.header.index == ifindex && !is_ours(m));
        let primary = own()
            .filter(|m| m.header.scope != AddressScope::Host)
            .filter_map(|m| match address_of(m)?.address {
                IpAddr::V4(address) => Some((has(m, AddressFlags::Secondary), address)),
                IpAddr::V6(_) => None,
            })
            .min_by_key(|(secondary, _)| *secondary);
        let link_local = own()
            .filter(|m| !has(m, AddressFlags::Tentative | AddressFlags::Dadfailed))
            .find_map(|m| match address_of(m)?.address {
                IpAddr::V6(address) => address.is_unicast_link_local().then_some(address),
                IpAddr::V4(_) => None,
            });
        Ok(OwnAddresses {
            primary: primary.map_or(Ipv4Addr::UNSPECIFIED, |(_, address)| address),
            link_local: link_local.unwrap_or(Ipv6Addr::UNSPECIFIED),
        })
    }

    async fn dump(&self) -> Result<Vec<AddressMessage>, NetlinkError> {
        self.handle
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|e| request_error("list addresses", e))
    }
}

/// Whether fwha added this address.
pub(super) fn is_ours(message: &AddressMessage) -> bool {
    message.attributes.contains(&AddressAttribute::Protocol(AddressProtocol::Other(PROTOCOL)))
}

/// Whether an address has one of these flags.
fn has(message: &AddressMessage, wanted: AddressFlags) -> bool {
    let has = |a: &AddressAttribute| matches!(a, AddressAttribute::Flags(flags) if flags.intersects(wanted));
    message.attributes.iter().any(has)
}

/// The node's end of it: on a point-to-point interface `IFA_ADDRESS` is the other one. IPv6 has that
/// one alone where there is no other end.
pub(super) fn address_of(message: &AddressMessage) -> Option<Address> {
    let local = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let address = local.or_else(|| {
        message.attributes.iter().find_map(|a| match a {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })?;
    Some(Address { ifindex: message.header.index, address, prefix_len: message.header.prefix_len })
}
