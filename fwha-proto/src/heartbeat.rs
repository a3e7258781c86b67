//! The heartbeat: what a node tells each peer on every sync link, some hundred times a second.
//!
//! It is the payload of a sealed datagram ([`crate::seal::Purpose::Heartbeat`]), so it needs neither
//! checksum nor version of its own: both come with the channel. A fixed head is followed by records,
//! each with its type and length. An unknown type is skipped, and bytes behind those that a record
//! is known to have are ignored, so both can grow.
//!
//! ```text
//!   0  sequence (u64)       8  node state   9  flags: 1 in sync   10  peer's state as seen here   11  zero
//!  12  heartbeat interval, us (u32)        16  lease, ms (u32)
//!  20  config hash (u64)   28  applied (u64)
//!  36  stamp (u64)         44  echo (u64)  52  echo held for, us (u32)
//!  56  records: type (u8), length (u8), body
//!
//!  type 1, group:      0 group  1 role  2 priority  3 flags: 1 warm, 2 moved
//!                      4 term (u32)  8 age, ms (u32)  12 adverts heard (u32)  16 cause
//!                     17 Active: offered to; else: hears as Active in this term
//!  type 2, interface:  0 kind: 1 sync, 2 zone  1 number  2 flags: 1 carrier  3 MAC (6)  9 IPv4 address
//!                     13 link-local IPv6 address, if it has one and there is room
//!  type 3, trackers:   the hash of the name (u32) of each that is not known to be well; no record if
//!                      all are
//!  type 4, zone:       0 zone  1 flags: 1 asks for reasons of its own, 2 neighbours answer, 4 none does
//!                      2 nodes heard there (u16, bit n: node n)  4 IPv4 addresses of neighbours to be asked;
//!                      only while the reach there is compared
//!  type 5, names:      the hash of the name (u32) of each group, in the order of their records; if there is room
//! ```
//! Numbers are little-endian, addresses in network byte order.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fwha_common::{MAX_GROUPS, MAX_ZONES};

use crate::NodeId;
use crate::tracker::State;

/// Sync links of a cluster at most.
pub const MAX_LINKS: usize = 8;
/// Virtual routers of one group at most: one bit each in [`GroupRecord::heard`].
pub const MAX_INSTANCES: usize = 32;
/// Trackers of a node at most.
pub const MAX_TRACKERS: usize = 24;

/// Neighbours in one zone that a node tells of, at most.
pub const MAX_NEIGHBOURS: usize = 4;

const HEAD_LEN: usize = 56;
const GROUP: u8 = 1;
const GROUP_LEN: usize = 18;
const INTERFACE: u8 = 2;
const INTERFACE_LEN: usize = 13;
const LINK_LOCAL_LEN: usize = 16;
const TRACKERS: u8 = 3;
const TRACKER_LEN: usize = 4;
const REACH: u8 = 4;
const REACH_LEN: usize = 4;
const NEIGHBOUR_LEN: usize = 4;
const NAMES: u8 = 5;
const NAME_LEN: usize = 4;

/// The longest payload that [`Heartbeat::write`] makes; stays below any MTU of 1500. What is told of
/// the reach in zones, link-local addresses, and names of groups, are left out where they would exceed it: with one group
/// there is room for all names and addresses.
pub const LEN_MAX: usize =
    HEAD_LEN + MAX_GROUPS * (2 + GROUP_LEN) + TRACKERS_MAX + (MAX_ZONES + MAX_LINKS) * (2 + INTERFACE_LEN);
const TRACKERS_MAX: usize = 2 + MAX_TRACKERS * TRACKER_LEN;

const _: () = assert!(
    HEAD_LEN
        + (2 + GROUP_LEN)
        + (2 + NAME_LEN)
        + TRACKERS_MAX
        + (MAX_ZONES + MAX_LINKS) * (2 + INTERFACE_LEN)
        + MAX_ZONES * LINK_LOCAL_LEN
        <= LEN_MAX
);

/// An enum that travels as one byte: `from_u8` knows every number that `as u8` makes.
macro_rules! wire_enum {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $n:literal, $text:literal;)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum $name { $($(#[$vmeta])* $variant = $n,)* }

        impl $name {
            /// The value of this number on the wire.
            pub const fn from_u8(n: u8) -> Option<Self> {
                match n { $($n => Some(Self::$variant),)* _ => None }
            }

            /// The name under which users see it.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

wire_enum! {
    /// What a node is for a group.
    Role {
        /// Not yet started, or not a member.
        Init = 0, "init";
        /// Ready to take over.
        Backup = 1, "backup";
        /// Has the virtual addresses and owns the buckets.
        Active = 2, "active";
        /// A tracker or a link forbids it.
        Fault = 3, "fault";
        /// An operator said so.
        Standby = 4, "standby";
    }
}

wire_enum! {
    /// What a node does as a whole.
    NodeState {
        /// Takes part in elections.
        Running = 1, "running";
        /// Takes part in none; an operator said so.
        Standby = 2, "standby";
        /// Is shutting down.
        Leaving = 3, "leaving";
    }
}

wire_enum! {
    /// What one node knows of another.
    PeerState {
        /// Never heard, or there is no way left to ask.
        Unknown = 0, "unknown";
        /// Authenticated heartbeats arrive.
        Alive = 1, "alive";
        /// Heartbeats stopped; probes are under way.
        Suspect = 2, "suspect";
        /// Its data plane answers, its daemon is silent: starved, stopped or restarting.
        Silent = 3, "silent";
        /// It lives, but no heartbeat gets here.
        SyncLost = 4, "sync-lost";
        /// Answers nowhere.
        Dead = 5, "dead";
        /// Said goodbye.
        Left = 6, "left";
    }
}

wire_enum! {
    /// Why a node has its role in a group.
    Cause {
        /// It just started.
        Started = 0, "started";
        /// Nobody was Active and it was the best candidate.
        Vacant = 1, "nobody was active";
        /// The Active answered nowhere.
        PeerDead = 2, "the active node answers nowhere";
        /// The Active's daemon was silent until its lease ended.
        LeaseEnded = 3, "the active node's lease ended";
        /// No advertisement was heard for Active_Down_Interval, and no peer could be asked.
        VrrpSilence = 4, "no advertisement heard";
        /// The Active offered it: switchover, standby or shutdown.
        Offered = 5, "handed over";
        /// It is preferred over the Active.
        Preempted = 6, "preferred node";
        /// The daemon restarted inside its lease.
        Resumed = 7, "resumed within its lease";
        /// Another node is Active with a better claim.
        Outranked = 8, "another node is active";
        /// A better router advertises.
        VrrpOutranked = 9, "a better advertisement was heard";
        /// A tracker or link failed.
        Fault = 10, "fault";
        /// The fault is over.
        Recovered = 11, "fault is over";
        /// An operator said so.
        Standby = 12, "standby";
        /// It is shutting down.
        Shutdown = 13, "shutdown";
        /// It did not run for longer than its own lease.
        LeaseLapsed = 14, "own lease lapsed";
        /// The node that it was offered to, or that is preferred, is Active.
        HandedOver = 15, "handed over to another node";
        /// An operator took back the word that kept it from taking part.
        StandbyEnded = 16, "standby is over";
    }
}

/// A network interface that two nodes share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Via {
    /// The sync link of this number.
    Sync(u8),
    /// The interface of the zone of this number.
    Zone(u8),
}

/// An interface, as the node that has it knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Its primary IPv4 address; unspecified if it has none.
    pub address: Ipv4Addr,
    /// Its primary link-local IPv6 address; unspecified if it has none, or no virtual router there
    /// is one for IPv6.
    pub link_local: Ipv6Addr,
    /// Whether it is up and has a carrier.
    pub carrier: bool,
}

impl Interface {
    /// The address from which VRRP speaks there (RFC 9568, 5.1.1.1 and 5.1.2.1); `None` if it has none.
    pub fn source(&self, v6: bool) -> Option<IpAddr> {
        let source = if v6 { IpAddr::V6(self.link_local) } else { IpAddr::V4(self.address) };
        (!source.is_unspecified()).then_some(source)
    }
}

/// A node's part in a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupRecord {
    /// The group: its number at the sender.
    pub group: u8,
    /// The hash of its name, by which nodes whose files number their groups otherwise know what is meant; `None` if the
    /// sender did not say it.
    pub name: Option<u32>,
    /// The sender's role.
    pub role: Role,
    /// The sender's priority.
    pub priority: u8,
    /// The sender follows, or was, the last Active so closely that it holds that one's flows.
    pub warm: bool,
    /// The sender, or the Active that it follows in this term, is Active because an operator moved the group there: no
    /// preemption.
    pub moved: bool,
    /// The highest term that the sender knows; the term of its ownership while Active.
    pub term: u32,
    /// For how long the sender has had the role, ms.
    pub age_ms: u32,
    /// Backup: by virtual router, in the order of the config, whether the Active's adverts arrive.
    pub heard: u32,
    /// Why the sender has the role.
    pub cause: Cause,
    /// Active: the node that is to take the group over now.
    pub offered_to: Option<NodeId>,
    /// Not Active: the node whose heartbeats tell the sender that it is Active, in [`Self::term`].
    pub hears: Option<NodeId>,
}

/// How a node is placed in a zone where that is in question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneReach {
    /// The zone.
    pub zone: u8,
    /// The sender has a reason of its own to ask; others ask with it.
    pub need: bool,
    /// Whether neighbours answer the sender there.
    pub state: State,
    /// The nodes that it hears there: bit n for node n.
    pub hears: u16,
    /// Neighbours that it knows, at most [`MAX_NEIGHBOURS`].
    pub neighbours: Vec<Ipv4Addr>,
}

/// One heartbeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// Rises by one with each heartbeat tick; the same on all links.
    pub sequence: u64,
    /// What the sender does as a whole.
    pub node: NodeState,
    /// The sender holds the receiver's flows, proved by equal digests.
    pub in_sync: bool,
    /// What the sender knows of the receiver. Anything but alive says that our heartbeats get lost.
    pub seen: PeerState,
    /// Interval between heartbeats, microseconds.
    pub interval_us: u32,
    /// How long an ownership lasts unless renewed, ms.
    pub lease_ms: u32,
    /// Hash of the cluster file.
    pub config_hash: u64,
    /// How much of the receiver's replication is applied: opaque here.
    pub applied: u64,
    /// The sender's clock: opaque, to be sent back.
    pub stamp: u64,
    /// The receiver's last stamp on this link; 0 if there was none.
    pub echo: u64,
    /// For how long that stamp was held, microseconds.
    pub echo_held_us: u32,
    /// The groups that the sender is a member of, at most [`MAX_GROUPS`].
    pub groups: Vec<GroupRecord>,
    /// The trackers that are not known to be well at the sender, by the hash of their names; at most
    /// [`MAX_TRACKERS`].
    pub unwell: Vec<u32>,
    /// The zones in which the sender compares its reach with others; those that there is room for.
    pub reaches: Vec<ZoneReach>,
    /// The sender's interfaces, at most [`MAX_ZONES`] and [`MAX_LINKS`].
    pub interfaces: Vec<(Via, Interface)>,
}

/// A payload that is no heartbeat, although a peer sealed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed heartbeat")]
pub struct Malformed;

impl Heartbeat {
    /// The payload.
    pub fn write(&self) -> Vec<u8> {
        let mut b = Vec::with_capacity(LEN_MAX.min(256));
        b.extend_from_slice(&self.sequence.to_le_bytes());
        b.extend_from_slice(&[self.node as u8, u8::from(self.in_sync), self.seen as u8, 0]);
        b.extend_from_slice(&self.interval_us.to_le_bytes());
        b.extend_from_slice(&self.lease_ms.to_le_bytes());
        b.extend_from_slice(&self.config_hash.to_le_bytes());
        b.extend_from_slice(&self.applied.to_le_bytes());
        b.extend_from_slice(&self.stamp.to_le_bytes());
        b.extend_from_slice(&self.echo.to_le_bytes());
        b.extend_from_slice(&self.echo_held_us.to_le_bytes());
        debug_assert_eq!(b.len(), HEAD_LEN);
        for g in self.groups.iter().take(MAX_GROUPS) {
            let flags = u8::from(g.warm) | u8::from(g.moved) << 1;
            b.extend_from_slice(&[GROUP, GROUP_LEN as u8, g.group, g.role as u8, g.priority, flags]);
            b.extend_from_slice(&g.term.to_le_bytes());
            b.extend_from_slice(&g.age_ms.to_le_bytes());
            b.extend_from_slice(&g.heard.to_le_bytes());
            let other = if g.role == Role::Active { g.offered_to } else { g.hears };
            b.extend_from_slice(&[g.cause as u8, other.unwrap_or(0)]);
        }
        let unwell = &self.unwell[..self.unwell.len().min(MAX_TRACKERS)];
        if !unwell.is_empty() {
            b.extend_from_slice(&[TRACKERS, (unwell.len() * TRACKER_LEN) as u8]);
            unwell.iter().for_each(|id| b.extend_from_slice(&id.to_le_bytes()));
        }
        let interfaces = &self.interfaces[..self.interfaces.len().min(MAX_ZONES + MAX_LINKS)];
        let mut room = LEN_MAX - b.len() - interfaces.len() * (2 + INTERFACE_LEN);
        let names: Option<Vec<u32>> = self.groups.iter().take(MAX_GROUPS).map(|g| g.name).collect();
        if let Some(names) = names.filter(|names| !names.is_empty() && room >= 2 + names.len() * NAME_LEN) {
            b.extend_from_slice(&[NAMES, (names.len() * NAME_LEN) as u8]);
            names.iter().for_each(|name| b.extend_from_slice(&name.to_le_bytes()));
            room -= 2 + names.len() * NAME_LEN;
        }
        for r in &self.reaches {
            let neighbours = &r.neighbours[..r.neighbours.len().min(MAX_NEIGHBOURS)];
            let len = REACH_LEN + neighbours.len() * NEIGHBOUR_LEN;
            if room < 2 + len {
                break;
            }
            let state = match r.state {
                State::Unknown => 0,
                State::Up => 2,
                State::Down => 4,
            };
            b.extend_from_slice(&[REACH, len as u8, r.zone, u8::from(r.need) | state]);
            b.extend_from_slice(&r.hears.to_le_bytes());
            neighbours.iter().for_each(|n| b.extend_from_slice(&n.octets()));
            room -= 2 + len;
        }
        for (via, i) in interfaces {
            let (kind, number) = match *via {
                Via::Sync(n) => (1, n),
                Via::Zone(n) => (2, n),
            };
            let link_local = !i.link_local.is_unspecified() && room >= LINK_LOCAL_LEN;
            let len = INTERFACE_LEN + if link_local { LINK_LOCAL_LEN } else { 0 };
            b.extend_from_slice(&[INTERFACE, len as u8, kind, number, u8::from(i.carrier)]);
            b.extend_from_slice(&i.mac);
            b.extend_from_slice(&i.address.octets());
            if link_local {
                b.extend_from_slice(&i.link_local.octets());
                room -= LINK_LOCAL_LEN;
            }
        }
        b
    }

    /// Reads a payload.
    ///
    /// # Errors
    /// [`Malformed`] if it is cut short or names a state that does not exist. A cause or group flag
    /// that is unknown is not an error: it decides nothing.
    pub fn parse(payload: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader(payload);
        let mut heartbeat = Self {
            sequence: r.u64()?,
            node: NodeState::from_u8(r.u8()?).ok_or(Malformed)?,
            in_sync: r.u8()? & 1 != 0,
            seen: PeerState::from_u8(r.u8()?).ok_or(Malformed)?,
            interval_us: {
                r.u8()?;
                r.u32()?
            },
            lease_ms: r.u32()?,
            config_hash: r.u64()?,
            applied: r.u64()?,
            stamp: r.u64()?,
            echo: r.u64()?,
            echo_held_us: r.u32()?,
            groups: Vec::new(),
            unwell: Vec::new(),
            reaches: Vec::new(),
            interfaces: Vec::new(),
        };
        while !r.0.is_empty() {
            let (kind, len) = (r.u8()?, r.u8()?);
            let mut body = Reader(r.take(usize::from(len))?);
            match kind {
                GROUP if heartbeat.groups.len() < MAX_GROUPS => heartbeat.groups.push(body.group()?),
                INTERFACE if heartbeat.interfaces.len() < MAX_ZONES + MAX_LINKS => {
                    heartbeat.interfaces.push(body.interface()?);
                }
                TRACKERS => {
                    while heartbeat.unwell.len() < MAX_TRACKERS && !body.0.is_empty() {
                        heartbeat.unwell.push(body.u32()?);
                    }
                }
                NAMES => {
                    for group in &mut heartbeat.groups {
                        group.name = Some(body.u32()?);
                    }
                }
                REACH if heartbeat.reaches.len() < MAX_ZONES => heartbeat.reaches.push(body.reach()?),
                GROUP | INTERFACE | REACH => return Err(Malformed),
                _ => {}
            }
        }
        Ok(heartbeat)
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.0.split_at_checked(n).ok_or(Malformed)?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        self.array().map(u8::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    fn group(&mut self) -> Result<GroupRecord, Malformed> {
        let (group, role, priority, flags) = (self.u8()?, self.u8()?, self.u8()?, self.u8()?);
        if usize::from(group) >= MAX_GROUPS {
            return Err(Malformed);
        }
        let role = Role::from_u8(role).ok_or(Malformed)?;
        let (term, age_ms, heard) = (self.u32()?, self.u32()?, self.u32()?);
        let cause = Cause::from_u8(self.u8()?).unwrap_or(Cause::Started);
        let other = Some(self.u8()?).filter(|&node| node != 0);
        let (offered_to, hears) = if role == Role::Active { (other, None) } else { (None, other) };
        let (warm, moved) = (flags & 1 != 0, flags & 2 != 0);
        let name = None;
        Ok(GroupRecord {
            group,
            name,
            role,
            priority,
            warm,
            moved,
            term,
            age_ms,
            heard,
            cause,
            offered_to,
            hears,
        })
    }

    fn reach(&mut self) -> Result<ZoneReach, Malformed> {
        let (zone, flags) = (self.u8()?, self.u8()?);
        if usize::from(zone) > MAX_ZONES {
            return Err(Malformed);
        }
        let state = match flags & 6 {
            2 => State::Up,
            4 => State::Down,
            _ => State::Unknown,
        };
        let hears = u16::from_le_bytes(self.array()?);
        let mut neighbours = Vec::new();
        while neighbours.len() < MAX_NEIGHBOURS && !self.0.is_empty() {
            neighbours.push(Ipv4Addr::from(self.array::<NEIGHBOUR_LEN>()?));
        }
        Ok(ZoneReach { zone, need: flags & 1 != 0, state, hears, neighbours })
    }

    fn interface(&mut self) -> Result<(Via, Interface), Malformed> {
        let via = match (self.u8()?, self.u8()?) {
            (1, n) if usize::from(n) < MAX_LINKS => Via::Sync(n),
            // Zone numbers run from 1; 0 is the node itself.
            (2, n) if usize::from(n) <= MAX_ZONES => Via::Zone(n),
            _ => return Err(Malformed),
        };
        let carrier = self.u8()? & 1 != 0;
        let (mac, address) = (self.array()?, Ipv4Addr::from(self.array::<4>()?));
        let link_local = self.array::<LINK_LOCAL_LEN>().map_or(Ipv6Addr::UNSPECIFIED, Ipv6Addr::from);
        Ok((via, Interface { mac, address, link_local, carrier }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> Heartbeat {
        Heartbeat {
            sequence: 0x0102_0304_0506_0708,
            node: NodeState::Running,
            in_sync: true,
            seen: PeerState::Alive,
            interval_us: 10_000,
            lease_ms: 1000,
            config_hash: 0x1122_3344_5566_7788,
            applied: 77,
            stamp: 0xabcd,
            echo: 0xdcba,
            echo_held_us: 321,
            groups: vec![GroupRecord {
                group: 0,
                name: None,
                role: Role::Active,
                priority: 150,
                warm: true,
                moved: false,
                term: 9,
                age_ms: 12_345,
                heard: 0b11,
                cause: Cause::PeerDead,
                offered_to: Some(2),
                hears: None,
            }],
            unwell: Vec::new(),
            reaches: Vec::new(),
            interfaces: vec![
                (
                    Via::Sync(0),
                    Interface {
                        mac: [2, 0, 0, 0, 0, 1],
                        address: Ipv4Addr::new(172, 16, 0, 1),
                        link_local: Ipv6Addr::UNSPECIFIED,
                        carrier: true,
                    },
                ),
                (
                    Via::Zone(1),
                    Interface {
                        mac: [2, 0, 0, 0, 0, 2],
                        address: Ipv4Addr::UNSPECIFIED,
                        link_local: Ipv6Addr::new(0xfe80, 0, 0, 0, 1, 2, 3, 4),
                        carrier: false,
                    },
                ),
            ],
        }
    }

    #[test]
    fn a_heartbeat_has_these_bytes() {
        let golden: String = sample().write().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(golden, include_str!("../golden/heartbeat.hex").trim());
    }

    /// As [`sample`], with two trackers that are not well.
    fn unwell() -> Heartbeat {
        Heartbeat { unwell: vec![0x1122_3344, 7], ..sample() }
    }

    #[test]
    fn trackers_that_are_not_well_are_a_record_of_their_own() {
        let golden: String = unwell().write().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(golden, include_str!("../golden/heartbeat-unwell.hex").trim());
        // What a node of an earlier version reads: everything else.
        let without = golden.replacen("03084433221107000000", "", 1);
        assert_eq!(without, include_str!("../golden/heartbeat.hex").trim());
    }

    /// As [`sample`], with the name of its group.
    fn named() -> Heartbeat {
        let groups = sample().groups.into_iter().map(|g| GroupRecord { name: Some(0x1122_3344), ..g });
        Heartbeat { groups: groups.collect(), ..sample() }
    }

    #[test]
    fn names_of_groups_are_a_record_that_earlier_versions_skip() {
        let golden: String = named().write().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(golden, include_str!("../golden/heartbeat-names.hex").trim());
        let without = golden.replacen("050444332211", "", 1);
        assert_eq!(without, include_str!("../golden/heartbeat.hex").trim());
        assert_eq!(Heartbeat::parse(&named().write()), Ok(named()));
        // They go while there is room.
        for (groups, told) in [(MAX_GROUPS, false), (8, true)] {
            let mut heartbeat = named();
            heartbeat.groups = vec![heartbeat.groups[0]; groups];
            heartbeat.unwell = vec![1; MAX_TRACKERS];
            heartbeat.interfaces = vec![heartbeat.interfaces[0]; MAX_ZONES + MAX_LINKS];
            let bytes = heartbeat.write();
            assert!(bytes.len() <= LEN_MAX);
            let read = Heartbeat::parse(&bytes).unwrap().groups;
            assert!(read.len() == groups && read.iter().all(|g| g.name.is_some() == told), "{groups}");
        }
    }

    /// As [`sample`], while the reach in a zone is compared.
    fn comparing() -> Heartbeat {
        let neighbours = vec![Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 254)];
        let reach = ZoneReach { zone: 2, need: true, state: State::Down, hears: 1 << 2, neighbours };
        Heartbeat { reaches: vec![reach], ..sample() }
    }

    #[test]
    fn the_reach_in_a_zone_is_a_record_that_earlier_versions_skip() {
        let golden: String = comparing().write().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(golden, include_str!("../golden/heartbeat-reach.hex").trim());
        let without = golden.replacen("040c020504000a0000010a0000fe", "", 1);
        assert_eq!(without, include_str!("../golden/heartbeat.hex").trim());
    }

    #[test]
    fn the_reach_in_zones_goes_while_there_is_room() {
        let mut heartbeat = comparing();
        heartbeat.groups = vec![heartbeat.groups[0]; MAX_GROUPS];
        heartbeat.unwell = vec![1; MAX_TRACKERS];
        heartbeat.interfaces = vec![heartbeat.interfaces[0]; MAX_ZONES + MAX_LINKS];
        let bytes = heartbeat.write();
        assert_eq!((bytes.len(), Heartbeat::parse(&bytes).unwrap().reaches), (LEN_MAX, vec![]));
    }

    #[test]
    fn what_is_written_is_read() {
        for heartbeat in [sample(), unwell(), comparing()] {
            assert_eq!(Heartbeat::parse(&heartbeat.write()), Ok(heartbeat));
        }
    }

    #[test]
    fn whom_the_group_is_offered_to_and_whom_a_node_hears_share_a_byte() {
        for (role, hears) in [(Role::Backup, Some(3)), (Role::Standby, None)] {
            let mut heartbeat = sample();
            heartbeat.groups[0] = GroupRecord { role, offered_to: None, hears, ..heartbeat.groups[0] };
            assert_eq!(Heartbeat::parse(&heartbeat.write()), Ok(heartbeat));
        }
        assert_eq!(sample().write()[HEAD_LEN + 2 + 17], 2, "an Active's is what it was");
    }

    #[test]
    fn any_cut_inside_head_or_record_is_malformed() {
        let bytes = sample().write();
        let whole = [HEAD_LEN, HEAD_LEN + 20, HEAD_LEN + 35];
        for len in (0..bytes.len()).filter(|len| !whole.contains(len)) {
            assert_eq!(Heartbeat::parse(&bytes[..len]), Err(Malformed), "{len}");
        }
    }

    #[test]
    fn unknown_records_and_longer_records_of_a_later_version_are_read_over() {
        let mut bytes = sample().write();
        bytes.extend_from_slice(&[99, 3, 1, 2, 3]);
        bytes[HEAD_LEN + 1] += 2;
        bytes.splice(HEAD_LEN + 20..HEAD_LEN + 20, [7, 7]);
        assert_eq!(Heartbeat::parse(&bytes), Ok(sample()));
    }

    #[test]
    fn states_and_numbers_out_of_range_are_malformed() {
        for (at, value) in
            [(8, 0), (8, 9), (10, 7), (HEAD_LEN + 2, 32), (HEAD_LEN + 3, 5), (HEAD_LEN + 22, 3)]
        {
            let mut bytes = sample().write();
            bytes[at] = value;
            assert_eq!(Heartbeat::parse(&bytes), Err(Malformed), "byte {at}");
        }
    }

    #[test]
    fn a_pair_fits_into_300_bytes_and_the_largest_cluster_into_an_mtu() {
        let mut heartbeat = sample();
        assert!(heartbeat.write().len() + crate::seal::OVERHEAD <= 300);
        heartbeat.groups = vec![heartbeat.groups[0]; MAX_GROUPS + 1];
        heartbeat.unwell = vec![1; MAX_TRACKERS + 1];
        heartbeat.interfaces = vec![heartbeat.interfaces[0]; MAX_ZONES + MAX_LINKS + 1];
        let bytes = heartbeat.write();
        assert_eq!(bytes.len(), LEN_MAX);
        assert!(bytes.len() + crate::seal::OVERHEAD + 28 <= 1500);
        assert!(Heartbeat::parse(&bytes).is_ok());
    }

    #[test]
    fn link_local_addresses_go_while_there_is_room() {
        let mut heartbeat = sample();
        let zone = heartbeat.interfaces[1];
        heartbeat.interfaces = vec![zone; MAX_ZONES];
        assert_eq!(Heartbeat::parse(&heartbeat.write()).unwrap().interfaces, heartbeat.interfaces);
        heartbeat.groups = vec![heartbeat.groups[0]; MAX_GROUPS];
        heartbeat.unwell = vec![1; MAX_TRACKERS];
        let bytes = heartbeat.write();
        assert!(bytes.len() <= LEN_MAX && bytes.len() + LINK_LOCAL_LEN > LEN_MAX);
        let read = Heartbeat::parse(&bytes).unwrap().interfaces;
        assert_eq!(read.len(), MAX_ZONES);
        assert!(read.contains(&zone) && read.iter().any(|(_, i)| i.source(true).is_none()));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = Heartbeat::parse(&bytes);
        }

        #[test]
        fn a_changed_byte_is_read_or_malformed(at in 0usize..100, value: u8) {
            let mut bytes = sample().write();
            let at = at % bytes.len();
            bytes[at] = value;
            if let Ok(read) = Heartbeat::parse(&bytes) {
                prop_assert_eq!(Heartbeat::parse(&read.write()), Ok(read));
            }
        }
    }
}
