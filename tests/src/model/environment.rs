//! What the node knows besides flows: ports, routes, neighbours, rules, ownership, time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use super::flow::Key;
use super::packet::{self, Mac};
use super::verdict::Reason;

/// A zone of ports.
pub type Zone = u8;

/// An interface of the node.
#[derive(Clone, Debug)]
pub struct Port {
    /// Its zone, if it is in any.
    pub zone: Option<Zone>,
    /// Its MAC.
    pub mac: Mac,
}

/// A network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// An address in it.
    pub address: IpAddr,
    /// Bits that all its addresses share.
    pub length: u32,
}

impl Prefix {
    /// The network `address/length`.
    pub fn new(address: impl Into<IpAddr>, length: u32) -> Self {
        Self { address: address.into(), length }
    }

    /// Whether `address` is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        let (a, b) = match (self.address, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                (u128::from(u32::from(a)) << 96, u128::from(u32::from(b)) << 96)
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => (a.into(), b.into()),
            _ => return false,
        };
        self.length == 0 || (a ^ b) >> (128 - self.length) == 0
    }
}

/// Where a network is reached.
#[derive(Clone, Debug)]
pub enum Route {
    /// Out of a port, by way of a router or, without one, straight to the destination.
    Via {
        /// Index of the port.
        port: usize,
        /// The router.
        router: Option<IpAddr>,
        /// The longest packet, in bytes at layer 3.
        mtu: usize,
    },
    /// Nowhere: blackhole, unreachable, prohibited.
    Nowhere,
}

/// What a route says about a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To the node itself, or nowhere that it knows of: in either case the stack answers.
    Node,
    /// Out of a port.
    Out {
        /// Index of the port.
        port: usize,
        /// The longest packet, in bytes at layer 3.
        mtu: usize,
        /// Whether the MAC of the next hop is known.
        resolved: bool,
    },
    /// Refused.
    Nowhere,
}

/// Where a rule's flows go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The node itself.
    Node,
    /// A zone.
    Zone(Zone),
}

/// A rule: what it matches, and what it does.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Zone of the originator.
    pub from: Option<Zone>,
    /// Where the flow goes.
    pub to: Option<Target>,
    /// Sources.
    pub source: Option<Prefix>,
    /// Destinations.
    pub destination: Option<Prefix>,
    /// IP protocol.
    pub protocol: Option<u8>,
    /// Destination ports.
    pub ports: RangeInclusive<u16>,
    /// Whether it admits, else drops.
    pub accept: bool,
}

impl Rule {
    /// Admits everything.
    pub const fn accept_all() -> Self {
        Self {
            from: None,
            to: None,
            source: None,
            destination: None,
            protocol: None,
            ports: 0..=u16::MAX,
            accept: true,
        }
    }
}

/// Whether a flow is this node's to forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// It is.
    Owned,
    /// Another node's.
    NotOwned,
    /// It would be, but the lease ran out.
    Lapsed,
}

/// What a new flow asks the rules.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// Zone of the originator.
    pub from: Zone,
    /// Where it goes.
    pub to: Target,
    /// Address of the originator.
    pub source: IpAddr,
    /// Address of the responder.
    pub destination: IpAddr,
    /// IP protocol.
    pub protocol: u8,
    /// Destination port, of a protocol that has ports.
    pub port: Option<u16>,
}

/// What the node knows.
#[derive(Clone, Debug)]
pub struct Environment {
    /// The ports; elsewhere they go by their index.
    pub ports: Vec<Port>,
    /// Addresses of the node, and the broadcast addresses of its networks.
    pub own: BTreeSet<IpAddr>,
    /// The routes; the longest prefix wins.
    pub routes: Vec<(Prefix, Route)>,
    /// Port and address of each neighbour whose MAC is known.
    pub neighbours: BTreeSet<(usize, IpAddr)>,
    /// The ruleset, if one is loaded.
    pub rules: Option<Vec<Rule>>,
    /// Ownership of flows, by exception; otherwise `owned_by_default`.
    pub ownership: BTreeMap<Key, Ownership>,
    /// Ownership of all other flows.
    pub owned_by_default: Ownership,
    /// When the ownership began; no flow expires before its timeout has passed since then.
    pub owned_since_ns: u64,
    /// Elements of the main table, dead ones included.
    pub max_flows: usize,
    /// The time.
    pub now_ns: u64,
}

impl Environment {
    /// Where `destination` is reached.
    pub fn way(&self, destination: IpAddr) -> Way {
        if self.own.contains(&destination) || destination.is_multicast() || packet::is_broadcast(destination)
        {
            return Way::Node;
        }
        let matching = self.routes.iter().filter(|(prefix, _)| prefix.contains(destination));
        match matching.max_by_key(|(prefix, _)| prefix.length) {
            None => Way::Node,
            Some((_, Route::Nowhere)) => Way::Nowhere,
            Some((_, Route::Via { port, router, mtu })) => Way::Out {
                port: *port,
                mtu: *mtu,
                resolved: self.neighbours.contains(&(*port, router.unwrap_or(destination))),
            },
        }
    }

    /// Whether packets from `source` may come in by `port`: those to it would leave there (RFC 3704, strict).
    pub fn reached_by(&self, source: IpAddr, port: usize) -> bool {
        packet::is_link_local(source) || matches!(self.way(source), Way::Out { port: out, .. } if out == port)
    }

    /// Whether the flow may be forwarded here.
    pub fn owns(&self, key: &Key) -> Result<(), Reason> {
        match self.ownership.get(key).unwrap_or(&self.owned_by_default) {
            Ownership::Owned => Ok(()),
            Ownership::NotOwned => Err(Reason::NotOwner),
            Ownership::Lapsed => Err(Reason::LeaseExpired),
        }
    }

    /// What the first rule that matches says.
    pub fn admits(&self, question: &Question) -> Result<(), Reason> {
        let rules = self.rules.as_ref().ok_or(Reason::NoRuleset)?;
        match rules.iter().find(|rule| rule.matches(question)) {
            None => Err(Reason::NoRule),
            Some(rule) if !rule.accept => Err(Reason::Rule),
            Some(_) => Ok(()),
        }
    }
}

impl Rule {
    fn matches(&self, question: &Question) -> bool {
        self.from.is_none_or(|from| from == question.from)
            && self.to.is_none_or(|to| to == question.to)
            && self.source.is_none_or(|source| source.contains(question.source))
            && self.destination.is_none_or(|destination| destination.contains(question.destination))
            && self.protocol.is_none_or(|protocol| protocol == question.protocol)
            && question.port.is_none_or(|port| self.ports.contains(&port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_holds_its_addresses_and_no_others() {
        let net = Prefix::new([10, 1, 0, 0], 16);
        assert!(net.contains([10, 1, 255, 255].into()));
        assert!(!net.contains([10, 2, 0, 0].into()));
        assert!(!net.contains("::10.1.0.1".parse().unwrap()));
        assert!(Prefix::new([0; 4], 0).contains([255; 4].into()));
        assert!(Prefix::new([10, 1, 0, 1], 32).contains([10, 1, 0, 1].into()));
        assert!(!Prefix::new([10, 1, 0, 1], 32).contains([10, 1, 0, 0].into()));
        assert!(
            Prefix::new([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32).contains("2001:db8:1::1".parse().unwrap())
        );
    }
}
