//! Routes, and rules of policy routing, that follow a group.
//!
//! Each carries [`PROTOCOL`] as its origin (`rtm_protocol`; `FRA_PROTOCOL`; `ip route` and `ip rule` print `proto 70`), so that what a
//! killed daemon left behind is told from what the administrator or a routing daemon added. One that another has
//! added is never replaced.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::{TryStreamExt, future::join_all};
use rtnetlink::{
    Handle, IpVersion, RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol},
        rule::{RuleAction, RuleAttribute, RuleMessage},
    },
};

use super::{NetlinkError, addresses::PROTOCOL, connect_strict, into_io, request_error};

/// The metric that the kernel gives to an IPv6 route without one (`IP6_RT_PRIO_USER`, include/uapi/linux/ipv6_route.h).
const METRIC6: u32 = 1024;

/// A route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The interface.
    pub ifindex: u32,
    /// The network that it leads to.
    pub to: IpAddr,
    /// Length of that network's prefix, in bits.
    pub prefix_len: u8,
    /// The next hop.
    pub via: IpAddr,
    /// The routing table.
    pub table: u32,
    metric: u32,
}

impl Route {
    /// A route; without a metric it has the kernel's default.
    pub fn new(ifindex: u32, to: (IpAddr, u8), via: IpAddr, table: u32, metric: Option<u32>) -> Self {
        let default = if via.is_ipv6() { METRIC6 } else { 0 };
        Self { ifindex, to: to.0, prefix_len: to.1, via, table, metric: metric.unwrap_or(default) }
    }

    fn message(&self) -> RouteMessage {
        let mut message = match (self.to, self.via) {
            (IpAddr::V4(to), IpAddr::V4(via)) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(to, self.prefix_len)
                .gateway(via)
                .build(),
            (IpAddr::V6(to), IpAddr::V6(via)) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(to, self.prefix_len)
                .gateway(via)
                .build(),
            // The config does not allow it, and the kernel refuses what is left out here.
            _ => RouteMessage::default(),
        };
        message.header.protocol = RouteProtocol::Other(PROTOCOL);
        // The kernel believes the attribute, which has room for all tables.
        message.header.table = 0;
        message.attributes.extend([
            RouteAttribute::Table(self.table),
            RouteAttribute::Oif(self.ifindex),
            RouteAttribute::Priority(self.metric),
        ]);
        message
    }

    fn of(message: &RouteMessage) -> Option<Self> {
        let attributes = &message.attributes;
        let ip = |address: &RouteAddress| match address {
            RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
            RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
            _ => None,
        };
        let via = attributes.iter().find_map(|a| match a {
            RouteAttribute::Gateway(address) => ip(address),
            _ => None,
        })?;
        let everything =
            if via.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let to = attributes.iter().find_map(|a| match a {
            RouteAttribute::Destination(address) => ip(address),
            _ => None,
        });
        let number = |pick: fn(&RouteAttribute) -> Option<u32>| attributes.iter().find_map(pick);
        let table = number(|a| if let RouteAttribute::Table(n) = a { Some(*n) } else { None });
        let metric = number(|a| if let RouteAttribute::Priority(n) = a { Some(*n) } else { None });
        Some(Self {
            ifindex: number(|a| if let RouteAttribute::Oif(n) = a { Some(*n) } else { None })?,
            to: to.unwrap_or(everything),
            prefix_len: message.header.destination_prefix_length,
            via,
            table: table.unwrap_or(u32::from(message.header.table)),
            metric: metric.unwrap_or(0),
        })
    }
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{} via {} table {}", self.to, self.prefix_len, self.via, self.table)
    }
}

/// A rule of policy routing: which packets look into which table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The network of their sources, with the length of its prefix in bits; any if there is none.
    pub from: Option<(IpAddr, u8)>,
    /// The same of their destinations. One of both is there.
    pub to: Option<(IpAddr, u8)>,
    /// The routing table.
    pub table: u32,
    /// Its place among all rules; the lowest comes first.
    pub priority: u32,
}

impl Rule {
    fn message(&self) -> RuleMessage {
        let mut message = RuleMessage::default();
        let v6 = self.from.or(self.to).is_some_and(|(address, _)| address.is_ipv6());
        message.header.family = if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
        message.header.action = RuleAction::ToTable;
        if let Some((address, len)) = self.from {
            message.header.src_len = len;
            message.attributes.push(RuleAttribute::Source(address));
        }
        if let Some((address, len)) = self.to {
            message.header.dst_len = len;
            message.attributes.push(RuleAttribute::Destination(address));
        }
        message.attributes.extend([
            RuleAttribute::Table(self.table),
            RuleAttribute::Priority(self.priority),
            RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)),
        ]);
        message
    }

    fn of(message: &RuleMessage) -> Self {
        let attributes = &message.attributes;
        let (source_len, destination_len) = (message.header.src_len, message.header.dst_len);
        Self {
            from: attributes.iter().find_map(|a| match a {
                RuleAttribute::Source(address) => Some((*address, source_len)),
                _ => None,
            }),
            to: attributes.iter().find_map(|a| match a {
                RuleAttribute::Destination(address) => Some((*address, destination_len)),
                _ => None,
            }),
            table: attributes
                .iter()
                .find_map(|a| if let RuleAttribute::Table(n) = a { Some(*n) } else { None })
                .unwrap_or(u32::from(message.header.table)),
            priority: attributes
                .iter()
                .find_map(|a| if let RuleAttribute::Priority(n) = a { Some(*n) } else { None })
                .unwrap_or(0),
        }
    }
}

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (word, net) in [("from", self.from), ("to", self.to)] {
            if let Some((address, len)) = net {
                write!(f, "{word} {address}/{len} ")?;
            }
        }
        write!(f, "table {} priority {}", self.table, self.priority)
    }
}

/// Either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routing {
    /// A route.
    Route(Route),
    /// A rule.
    Rule(Rule),
}

impl std::fmt::Display for Routing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Route(route) => write!(f, "route {route}"),
            Self::Rule(rule) => write!(f, "rule {rule}"),
        }
    }
}

/// Adds, removes and lists routes and rules. Clones share one connection.
#[derive(Clone, Debug)]
pub struct Routes {
    handle: Handle,
}

impl Routes {
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
        Ok(Self { handle: connect_strict()? })
    }

    /// Adds routes and rules, all requests at once. Returns those that were there already, be they ours or another's.
    ///
    /// # Errors
    ///
    /// The first failure; the others are added all the same.
    pub async fn add(&self, routes: &[Routing]) -> Result<Vec<Routing>, NetlinkError> {
        let requests = routes.iter().map(|routing| async move {
            let added = match routing {
                Routing::Route(route) => self.handle.route().add(route.message()).execute().await,
                Routing::Rule(rule) => {
                    let mut request = self.handle.rule().add();
                    *request.message_mut() = rule.message();
                    request.execute().await
                }
            };
            match added.map_err(into_io) {
                Ok(()) => Ok(None),
                Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(Some(*routing)),
                Err(e) => Err(NetlinkError::Request { what: format!("add {routing}"), source: e }),
            }
        });
        let there: Result<Vec<Option<Routing>>, _> = join_all(requests).await.into_iter().collect();
        Ok(there?.into_iter().flatten().collect())
    }

    /// Removes routes, all requests at once. One that is not there, or whose interface is gone, is fine.
    ///
    /// # Errors
    ///
    /// The first failure; the others are removed all the same.
    pub async fn remove(&self, routes: &[Routing]) -> Result<(), NetlinkError> {
        let requests = routes.iter().map(|routing| async move {
            let removed = match routing {
                Routing::Route(route) => self.handle.route().del(route.message()).execute().await,
                Routing::Rule(rule) => self.handle.rule().del(rule.message()).execute().await,
            };
            match removed.map_err(into_io) {
                Err(e) if !matches!(e.raw_os_error(), Some(libc::ESRCH | libc::ENODEV | libc::ENOENT)) => {
                    Err(NetlinkError::Request { what: format!("remove {routing}"), source: e })
                }
                _ => Ok(()),
            }
        });
        join_all(requests).await.into_iter().collect()
    }

    /// The rules, of this or an earlier run, and the routes through these interfaces.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub async fn list(&self, ifindexes: &[u32]) -> Result<Vec<Routing>, NetlinkError> {
        let mut found = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            // A routing daemon may have filled the table with a million others: the kernel leaves them out.
            let mut filter = RouteMessage::default();
            filter.header.address_family = family;
            filter.header.protocol = RouteProtocol::Other(PROTOCOL);
            let listed: Result<Vec<RouteMessage>, _> =
                self.handle.route().get(filter).execute().try_collect().await;
            found.extend(listed.map_err(|e| request_error("list routes", e))?);
        }
        let ours = found.iter().filter(|m| m.header.protocol == RouteProtocol::Other(PROTOCOL));
        let routes = ours.filter_map(Route::of).filter(|route| ifindexes.contains(&route.ifindex));
        let mut all: Vec<Routing> = routes.map(Routing::Route).collect();
        for version in [IpVersion::V4, IpVersion::V6] {
            let listed: Result<Vec<RuleMessage>, _> =
                self.handle.rule().get(version).execute().try_collect().await;
            let listed = listed.map_err(|e| request_error("list rules", e))?;
            let mark = RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL));
            let ours = listed.iter().filter(|m| m.attributes.contains(&mark));
            all.extend(ours.map(Rule::of).map(Routing::Rule));
        }
        Ok(all)
    }

    /// Removes what [`Self::list`] finds, but those in `keep`, and returns them.
    ///
    /// # Errors
    ///
    /// The first failure; the others are removed all the same.
    pub async fn remove_leftovers(
        &self,
        ifindexes: &[u32],
        keep: &[Routing],
    ) -> Result<Vec<Routing>, NetlinkError> {
        let mut leftovers = self.list(ifindexes).await?;
        leftovers.retain(|route| !keep.contains(route));
        self.remove(&leftovers).await?;
        Ok(leftovers)
    }
}
