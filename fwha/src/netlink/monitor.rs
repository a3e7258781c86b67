//! Following the network: what changes cached next hops, carriers and VIPs.

use std::collections::HashMap;

use futures_util::{FutureExt, Stream, StreamExt, TryStreamExt};
use rtnetlink::{
    Handle, MulticastGroup, new_multicast_connection,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{AddressFamily, RouteNetlinkMessage, neighbour::NeighbourMessage},
    sys::AsyncSocket,
};

use super::{
    Link, NetlinkError,
    addresses::{Address, address_of, is_ours},
    bell::Bell,
    links,
    neighbours::{NeighbourKey, neighbour},
    request_error,
};
use crate::sys::socket::set_option;

/// Messages taken in before their common result is handed out: a burst of thousands of neighbours
/// becomes a few events.
const BATCH: usize = 1024;

/// The kernel's buffer for unread messages, in bytes; whatever `net.core.rmem_max` is.
const BUFFER: i32 = 1 << 20;

/// A change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkEvent {
    /// Next hops looked up before may be wrong: a route, an address or a link changed.
    RouteChanged,
    /// Next hops looked up before may be wrong, and routes are as they were: a known neighbour went, or has another MAC.
    NeighbourMoved,
    /// An interface is new, or its state, MAC, MTU or name changed.
    LinkChanged(Link),
    /// An interface is gone. This is what it last was.
    LinkRemoved(Link),
    /// An interface has an address, or another lifetime of it; not one of fwha's own.
    AddressAdded(Address),
    /// An address was removed, by whomever.
    AddressRemoved(Address),
    /// The kernel had more messages than room for them. Interfaces were listed anew and their
    /// changes follow; removals of addresses may have been missed: look at all of them.
    EventsLost,
}

/// A stream of changes.
///
/// Noise is held back: a neighbour that goes through the reachability states with the MAC it had
/// (REACHABLE, STALE, DELAY, PROBE) is no change, nor is a link message that says nothing new.
pub struct Monitor {
    handle: Handle,
    messages: Messages,
    routes: Bell,
    table: Table,
    pending: Pending,
    /// Messages were lost: everything must be listed anew.
    stale: bool,
}

type Messages = Box<dyn Stream<Item = NetlinkMessage<RouteNetlinkMessage>> + Send + Unpin>;

impl Monitor {
    /// Starts to follow changes, on the present tokio runtime, and returns the interfaces as they are.
    ///
    /// # Errors
    ///
    /// No netlink socket, or the kernel refuses.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub async fn start() -> Result<(Self, Vec<Link>), NetlinkError> {
        let (handle, messages) = subscribe()?;
        let routes = Bell::new().map_err(NetlinkError::Socket)?;
        let (table, pending) = (Table::default(), Pending::default());
        let mut monitor = Self { handle, messages, routes, table, pending, stale: false };
        monitor.list().await?;
        monitor.pending = Pending::default();
        let mut links: Vec<Link> = monitor.table.links.values().cloned().collect();
        links.sort_by_key(|link| link.index);
        Ok((monitor, links))
    }

    /// The next changes, all that there are: first whether some were lost, then interfaces, each as it is by now, then
    /// addresses, then routes. The future may be dropped while it waits: nothing is lost.
    ///
    /// # Errors
    ///
    /// The connection broke and another cannot be opened; calling again tries again.
    pub async fn next(&mut self) -> Result<Vec<NetworkEvent>, NetlinkError> {
        loop {
            if self.stale {
                // What the old connection has still to tell is older than what is listed now.
                (self.handle, self.messages) = subscribe()?;
                self.list().await?;
                self.pending.lost = true;
                self.pending.route_changed = true;
                self.stale = false;
            }
            let events = std::mem::take(&mut self.pending).into_events();
            if !events.is_empty() {
                return Ok(events);
            }
            let first = tokio::select! {
                message = self.messages.next() => message,
                rung = self.routes.rung() => {
                    if rung.is_err() {
                        self.routes = Bell::new().map_err(NetlinkError::Socket)?;
                    }
                    return Ok(vec![NetworkEvent::RouteChanged]);
                }
            };
            let Some(first) = first else {
                self.stale = true;
                continue;
            };
            let (mut message, mut taken) = (Some(first), 0);
            while let Some(m) = message {
                self.take(m);
                taken += 1;
                message = if taken < BATCH { self.messages.next().now_or_never().flatten() } else { None };
            }
        }
    }

    fn take(&mut self, message: NetlinkMessage<RouteNetlinkMessage>) {
        use RouteNetlinkMessage as M;
        match message.payload {
            NetlinkPayload::Overrun(_) => self.stale = true,
            // Messages of AF_BRIDGE tell about ports of bridges, not about interfaces.
            NetlinkPayload::InnerMessage(M::NewLink(m))
                if m.header.interface_family == AddressFamily::Unspec =>
            {
                self.table.link(Link::from_message(&m), &mut self.pending);
            }
            NetlinkPayload::InnerMessage(M::DelLink(m))
                if m.header.interface_family == AddressFamily::Unspec =>
            {
                self.table.link_removed(m.header.index, &mut self.pending);
            }
            NetlinkPayload::InnerMessage(M::NewAddress(m)) if !is_ours(&m) => {
                self.pending.addresses.extend(address_of(&m).map(NetworkEvent::AddressAdded));
            }
            NetlinkPayload::InnerMessage(M::DelAddress(m)) => {
                self.pending.addresses.extend(address_of(&m).map(NetworkEvent::AddressRemoved));
            }
            NetlinkPayload::InnerMessage(M::NewNeighbour(m)) => {
                if let Some((key, mac)) = neighbour(&m) {
                    self.table.neighbour(key, mac, &mut self.pending);
                }
            }
            NetlinkPayload::InnerMessage(M::DelNeighbour(m)) => {
                if let Some((key, _)) = neighbour(&m) {
                    self.table.neighbour(key, None, &mut self.pending);
                }
            }
            _ => {}
        }
    }

    /// Reads the whole state and notes how it differs from what was known.
    async fn list(&mut self) -> Result<(), NetlinkError> {
        let links = links::list(&self.handle).await?;
        let neighbours: Vec<NeighbourMessage> = self
            .handle
            .neighbours()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|e| request_error("list neighbours", e))?;
        let gone: Vec<u32> =
            self.table.links.keys().copied().filter(|i| links.iter().all(|l| l.index != *i)).collect();
        for index in gone {
            self.table.link_removed(index, &mut self.pending);
        }
        for link in links {
            self.table.link(link, &mut self.pending);
        }
        self.table.neighbours =
            neighbours.iter().filter_map(neighbour).filter_map(|(key, mac)| Some((key, mac?))).collect();
        Ok(())
    }
}

fn subscribe() -> Result<(Handle, Messages), NetlinkError> {
    let groups =
        [MulticastGroup::Link, MulticastGroup::Neigh, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
    let (mut connection, handle, messages) =
        new_multicast_connection(&groups).map_err(NetlinkError::Socket)?;
    set_option(connection.socket_mut().socket_mut(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BUFFER)
        .map_err(NetlinkError::Socket)?;
    tokio::spawn(connection);
    Ok((handle, Box::new(messages.map(|(message, _)| message))))
}

/// What is known, to tell change from noise.
#[derive(Default)]
struct Table {
    links: HashMap<u32, Link>,
    /// MACs of the neighbours that may be used. As bounded as the kernel's own table (`gc_thresh3`).
    neighbours: HashMap<NeighbourKey, Vec<u8>>,
}

impl Table {
    fn link(&mut self, link: Link, pending: &mut Pending) {
        let old = self.links.insert(link.index, link.clone());
        if old.as_ref() == Some(&link) {
            return;
        }
        // An XDP program that comes or goes has no bearing on routes.
        let same_route = old
            .is_some_and(|o| (o.up, o.carrier, o.mac, o.mtu) == (link.up, link.carrier, link.mac, link.mtu));
        pending.route_changed |= !same_route;
        pending.link(NetworkEvent::LinkChanged(link));
    }

    fn link_removed(&mut self, index: u32, pending: &mut Pending) {
        if let Some(link) = self.links.remove(&index) {
            self.neighbours.retain(|(ifindex, _), _| *ifindex != index);
            pending.route_changed = true;
            pending.link(NetworkEvent::LinkRemoved(link));
        }
    }

    /// A neighbour that appears is no change: nothing was cached for it. One that vanishes is, for
    /// it may come back with another MAC.
    fn neighbour(&mut self, key: NeighbourKey, mac: Option<Vec<u8>>, pending: &mut Pending) {
        let old = match mac.clone() {
            Some(mac) => self.neighbours.insert(key, mac),
            None => self.neighbours.remove(&key),
        };
        pending.neighbour_moved |= old.is_some() && old != mac;
    }
}

/// Changes that were not handed out yet.
#[derive(Default)]
struct Pending {
    lost: bool,
    route_changed: bool,
    neighbour_moved: bool,
    links: Vec<NetworkEvent>,
    addresses: Vec<NetworkEvent>,
}

impl Pending {
    /// Only the last state of an interface matters.
    fn link(&mut self, event: NetworkEvent) {
        if let Some(index) = event.link_index() {
            self.links.retain(|e| e.link_index() != Some(index));
        }
        self.links.push(event);
    }

    fn into_events(self) -> Vec<NetworkEvent> {
        let lost = self.lost.then_some(NetworkEvent::EventsLost);
        let next_hops = match (self.route_changed, self.neighbour_moved) {
            (true, _) => Some(NetworkEvent::RouteChanged),
            (false, moved) => moved.then_some(NetworkEvent::NeighbourMoved),
        };
        lost.into_iter().chain(self.links).chain(self.addresses).chain(next_hops).collect()
    }
}

impl NetworkEvent {
    fn link_index(&self) -> Option<u32> {
        match self {
            Self::LinkChanged(link) | Self::LinkRemoved(link) => Some(link.index),
            _ => None,
        }
    }
}
