//! What the election is told once.

use std::net::IpAddr;
use std::time::Duration;

use fwha_common::{MAX_GROUPS, MAX_NODES, MAX_ZONES};

use super::witness::MAX_WITNESSES;
use crate::NodeId;
use crate::heartbeat::{Interface, MAX_INSTANCES, MAX_LINKS, MAX_TRACKERS, Via};
use crate::seal::{Identity, KeyRing};
use crate::time::Time;
use crate::vrrp::hmac;
use crate::vrrp::packet::{ADDRESSES_MAX, Version};

/// The number of a group: index into the data plane's `GROUPS`.
pub type GroupId = u8;

/// The election's settings. Names serve for texts, and that of a group for what other nodes say of it.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node.
    pub identity: Identity,
    /// The cluster's secret.
    pub keys: KeyRing,
    /// Key of probes: [`KeyRing::siphash_key`], the same as in the data plane's settings.
    pub probe_key: [u64; 2],
    /// Hash of the cluster file; differences are reported.
    pub config_hash: u64,
    /// Between heartbeats, 1 ms to 1 s.
    pub heartbeat_interval: Duration,
    /// How long an ownership lasts unless renewed; at least five heartbeat intervals.
    pub lease: Duration,
    /// How long an offered group may wait for its taker.
    pub handover_timeout: Duration,
    /// How long a preferred node may wait for its replica before it preempts without.
    pub preempt_wait: Duration,
    /// All nodes of the cluster, this one too.
    pub nodes: Vec<NodeConfig>,
    /// Zones: number, as in the compiled ruleset, and name.
    pub zones: Vec<(u8, String)>,
    /// This node's interfaces: its sync links, numbered from 0, and that of each zone.
    pub interfaces: Vec<(Via, Interface)>,
    /// The groups, all of them.
    pub groups: Vec<GroupConfig>,
    /// The trackers that run on this node, at most [`MAX_TRACKERS`].
    pub trackers: Vec<TrackerConfig>,
    /// Hosts of which one must answer before a group of a lost peer is claimed, at most [`MAX_WITNESSES`]; see
    /// [`super::witness`]. None: nobody is asked.
    pub witnesses: Vec<IpAddr>,
    /// An operator had put this node on standby before it started.
    pub standby: bool,
}

/// A tracker: something that this node watches, and what its failure means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrackerConfig {
    /// The hash of its name, by which nodes speak of it.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// The groups that it matters for; all if there are none.
    pub groups: Vec<GroupId>,
    /// What its failure does.
    pub effect: Effect,
    /// For how long it must have failed here alone before it counts; `None` if what other nodes find
    /// does not matter. See [`super::trackers`].
    pub shared: Option<Duration>,
}

/// What the failure of a tracker does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The node may not be Active.
    Fault,
    /// Its priority is lower by so much.
    Lowers(u8),
}

/// A node of the cluster.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Its number.
    pub node: NodeId,
    /// Its name.
    pub name: String,
}

/// A group: virtual addresses that move together.
#[derive(Clone, Debug)]
pub struct GroupConfig {
    /// Its number.
    pub group: GroupId,
    /// Its name.
    pub name: String,
    /// Nodes that may have it, most preferred first, each with its priority (1 to 255). Equal
    /// priorities are told apart by the order.
    pub members: Vec<(NodeId, u8)>,
    /// Whether a preferred node takes the group from a working one.
    pub preempt: bool,
    /// For how long without a break it must have been ready to.
    pub preempt_delay: Duration,
    /// Between advertisements, centiseconds: 1 to 4095, in version 2 whole seconds up to 255.
    pub advert_interval_cs: u16,
    /// The version of VRRP that its virtual routers speak; version 2 is for IPv4 alone.
    pub version: Version,
    /// How its advertisements are authenticated, if they are.
    pub hmac: Option<hmac::Config>,
    /// When its addresses are announced again.
    pub announce: Announce,
    /// The virtual routers, at most [`MAX_INSTANCES`].
    pub instances: Vec<Instance>,
    /// What is known of an earlier life of this node.
    pub start: Start,
}

/// When the addresses of a group are announced, besides at once after a takeover.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announce {
    /// Again so long after the takeover, soonest first: the first announcements may meet a switch port
    /// that still blocks, or the last ones of the loser.
    pub repeat: Vec<Duration>,
    /// And then for ever in this rhythm.
    pub refresh: Option<Duration>,
}

impl Default for Announce {
    fn default() -> Self {
        Self { repeat: [100, 1000, 5000].map(Duration::from_millis).into(), refresh: None }
    }
}

/// A virtual router of a group.
#[derive(Clone, Debug)]
pub struct Instance {
    /// The zone on whose interface it speaks.
    pub zone: u8,
    /// Its number, 1 to 255; a pair with zone and address family.
    pub vrid: u8,
    /// The virtual addresses, at least one, of one family.
    pub addresses: Vec<IpAddr>,
    /// Unicast: whom it speaks to and listens to, of the same family; an address of this node's own does
    /// no harm. Multicast if there are none.
    pub peers: Vec<IpAddr>,
}

/// What a starting node knows of its earlier life.
#[derive(Clone, Copy, Debug, Default)]
pub struct Start {
    /// The highest term that it had seen; 0 if that is not known.
    pub term: u32,
    /// The group is still owned under a valid lease, since then: the role is resumed.
    pub owned_since: Option<Time>,
}

/// A setting that the election cannot work with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {problem}")]
pub struct ConfigError {
    object: String,
    problem: &'static str,
}

impl Config {
    /// Checks every range that the election relies on. Whether addresses and names make sense is for
    /// the reader of the config file to say.
    ///
    /// # Errors
    /// The first setting that is out of range.
    pub fn check(&self) -> Result<(), ConfigError> {
        let fail = |object: &str, problem| Err(ConfigError { object: object.into(), problem });
        let beat = self.heartbeat_interval;
        if beat < Duration::from_millis(1) || beat > Duration::from_secs(1) {
            return fail("heartbeat-interval", "must be 1 ms to 1 s");
        }
        if self.lease < beat * 5 {
            return fail("lease", "must be at least five heartbeat intervals");
        }
        let mut seen = [false; MAX_NODES + 1];
        for n in &self.nodes {
            match seen.get_mut(usize::from(n.node)) {
                Some(known) if n.node != 0 && !*known => *known = true,
                _ => return fail(&n.name, "node numbers must be distinct and run from 1 to 16"),
            }
        }
        if !seen.get(usize::from(self.identity.node)).is_some_and(|&known| known) {
            return fail("node", "this node is not in the list of nodes");
        }
        for (via, _) in &self.interfaces {
            match *via {
                Via::Sync(link) if usize::from(link) >= MAX_LINKS => {
                    return fail("sync", "too many sync links");
                }
                Via::Zone(zone) if usize::from(zone) > MAX_ZONES => return fail("zone", "too many zones"),
                _ => {}
            }
        }
        let unique = |n: usize| self.trackers[..n].iter().all(|t| t.id != self.trackers[n].id);
        if self.trackers.len() > MAX_TRACKERS || !(0..self.trackers.len()).all(unique) {
            return fail("tracker", "at most 24 trackers, and no two may have the same id");
        }
        let distinct = |n: usize| !self.witnesses[..n].contains(&self.witnesses[n]);
        if self.witnesses.len() > MAX_WITNESSES || !(0..self.witnesses.len()).all(distinct) {
            return fail("witness", "at most 8 witnesses, and none twice");
        }
        let mut known = [false; MAX_GROUPS];
        for g in &self.groups {
            match known.get_mut(usize::from(g.group)) {
                Some(known) if !*known => *known = true,
                _ => return fail(&g.name, "group numbers must be distinct and run from 0 to 31"),
            }
            if g.members.iter().any(|&(n, p)| !seen.get(usize::from(n)).is_some_and(|&k| k) || p == 0) {
                return fail(&g.name, "members must be nodes of the cluster with priorities 1 to 255");
            }
            if !g.version.allows_interval(g.advert_interval_cs) {
                return fail(&g.name, "advert-interval must be 10 ms to 40.95 s, in version 2 whole seconds");
            }
            if g.announce.refresh.is_some_and(|refresh| refresh.is_zero()) {
                return fail(&g.name, "the refresh of announcements takes time");
            }
            if g.instances.len() > MAX_INSTANCES {
                return fail(&g.name, "at most 32 virtual routers in a group");
            }
            for i in &g.instances {
                if g.version.is_v2() && i.addresses.iter().any(|a| a.is_ipv6()) {
                    return fail(&g.name, "version 2 of VRRP is for IPv4 alone");
                }
                let v4 = i.addresses.iter().filter(|a| a.is_ipv4()).count();
                if i.peers.iter().any(|peer| i.addresses.iter().any(|a| a.is_ipv4() != peer.is_ipv4())) {
                    return fail(&g.name, "unicast peers must be of the family of the virtual router");
                }
                if i.vrid == 0
                    || !(1..=ADDRESSES_MAX).contains(&i.addresses.len())
                    || !(v4 == 0 || v4 == i.addresses.len())
                {
                    return fail(
                        &g.name,
                        "a virtual router needs a vrid from 1 to 255 and 1 to 255 addresses of one family",
                    );
                }
            }
        }
        Ok(())
    }

    pub(super) fn node_name(&self, node: NodeId) -> String {
        let found = self.nodes.iter().find(|n| n.node == node);
        found.map_or_else(|| format!("node {node}"), |n| n.name.clone())
    }

    pub(super) fn via_name(&self, via: Via) -> String {
        match via {
            Via::Sync(link) => format!("sync link {link}"),
            Via::Zone(zone) => self
                .zones
                .iter()
                .find(|z| z.0 == zone)
                .map_or_else(|| format!("zone {zone}"), |z| format!("zone {}", z.1)),
        }
    }
}
