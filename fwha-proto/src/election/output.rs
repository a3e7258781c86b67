//! What the election tells its shell to do, and what it tells people.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use fwha_common::probe::Probe;

use super::config::GroupId;
use super::reach::Path;
use crate::NodeId;
use crate::heartbeat::{Cause, PeerState, Role, Via};
use crate::time::Time;
use crate::tracker::State;

/// Something for the shell to do now, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Send `bytes` to `peer` over sync link `link`.
    Heartbeat {
        /// The sync link.
        link: u8,
        /// The receiver.
        peer: NodeId,
        /// A sealed datagram.
        bytes: Vec<u8>,
    },
    /// Send a VRRP packet from the interface of `zone`, with TTL 255.
    Advertise {
        /// The group.
        group: GroupId,
        /// The zone.
        zone: u8,
        /// The virtual router.
        vrid: u8,
        /// Where to: `224.0.0.18`, `ff02::12`, or a unicast peer. Also says of which family the virtual
        /// router is.
        to: IpAddr,
        /// The payload of IP protocol 112, checksum included.
        bytes: Vec<u8>,
    },
    /// Send a probe to `peer`.
    Probe {
        /// Whom it asks.
        peer: NodeId,
        /// From which interface.
        via: Via,
        /// The peer's MAC address there.
        mac: [u8; 6],
        /// What follows the Ethernet header.
        probe: Probe,
    },
    /// Send an ICMP echo request to a witness; [`super::Election::witness_reply`] takes the answer.
    AskWitness {
        /// Its address.
        address: IpAddr,
        /// The number to be sent back.
        nonce: u64,
    },
    /// Ask neighbours in a zone by ARP for [`super::reach::LISTEN`], twice in that time; [`super::Election::surveyed`]
    /// takes what was found.
    Survey {
        /// The zone.
        zone: u8,
        /// Whom peers propose to ask, beside those that this node's kernel knows.
        ask: Vec<Ipv4Addr>,
        /// Addresses of the cluster, which are no neighbours.
        own: Vec<Ipv4Addr>,
        /// The MACs there of the nodes that might be heard.
        peers: Vec<(NodeId, [u8; 6])>,
    },
    /// Own the group's buckets: one write of its element in `GROUPS`.
    Own {
        /// The group.
        group: GroupId,
        /// The term.
        term: u32,
        /// Since when.
        since: Time,
        /// Until when, unless renewed.
        until: Time,
    },
    /// Own them no more: role and lease become zero. After a planned move the data plane still forwards
    /// what comes to it, until neighbours have learned where the addresses are.
    Disown {
        /// The group.
        group: GroupId,
        /// How long it forwards.
        forward_until: Option<Time>,
    },
    /// The ownership lasts until `until`.
    RenewLease {
        /// The group.
        group: GroupId,
        /// The new end.
        until: Time,
    },
    /// Add the group's virtual addresses. Those that are there already stay.
    AddVips {
        /// The group.
        group: GroupId,
    },
    /// Remove them.
    RemoveVips {
        /// The group.
        group: GroupId,
    },
    /// Send gratuitous ARP (or unsolicited neighbour advertisements) for all of the group's addresses.
    Announce {
        /// The group.
        group: GroupId,
    },
    /// Tell whoever listens.
    Event(Event),
    /// After [`super::Election::shutdown`]: nothing is active here any more and the peers know.
    ShutdownComplete,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// This node has another role in a group.
    Role {
        /// The group.
        group: GroupId,
        /// Before.
        from: Role,
        /// Now.
        to: Role,
        /// The group's term.
        term: u32,
        /// Why.
        cause: Cause,
        /// Why, for people.
        reason: String,
    },
    /// A peer is seen in another state.
    Peer {
        /// The peer.
        peer: NodeId,
        /// Before.
        from: PeerState,
        /// Now.
        to: PeerState,
        /// What that is about.
        reason: String,
    },
    /// Two nodes were Active for a group at the same time and have met.
    SplitBrain {
        /// The group.
        group: GroupId,
        /// The other Active.
        peer: NodeId,
        /// For how long both were, as far as known.
        overlap: Duration,
        /// Who stays Active.
        winner: NodeId,
        /// How it came to it.
        cause: String,
    },
    /// It is over: one of them gave way.
    SplitBrainEnd {
        /// The group.
        group: GroupId,
        /// The other.
        peer: NodeId,
        /// From meeting to giving way.
        after: Duration,
        /// For how long both were Active, as far as known.
        lasted: Duration,
        /// How it came to it.
        cause: String,
    },
    /// We hear the peer's heartbeats and it does not hear ours (`true`), or does again (`false`).
    OneWay {
        /// The peer.
        peer: NodeId,
        /// Begins or ends.
        lost: bool,
    },
    /// `by` does not hear (or hears again) our advertisements in a zone although it lives.
    AdvertsUnheard {
        /// The group.
        group: GroupId,
        /// The zone.
        zone: u8,
        /// Who says so.
        by: NodeId,
        /// Begins or ends.
        lost: bool,
    },
    /// Frames between this node and a peer go another way in a zone.
    Path {
        /// The zone.
        zone: u8,
        /// The peer.
        peer: NodeId,
        /// Now.
        path: Path,
    },
    /// A group that was offered found no taker in time.
    HandoverFailed {
        /// The group.
        group: GroupId,
        /// Whom it was offered to.
        to: NodeId,
        /// Why, with that node as the subject.
        reason: String,
    },
    /// The verdict of a tracker is another one.
    Tracker {
        /// Its name.
        tracker: String,
        /// Now.
        to: State,
        /// What its last check said.
        text: String,
    },
    /// A tracker that fails begins to count for a group, or does not any more.
    Tracked {
        /// The group.
        group: GroupId,
        /// The tracker's name.
        tracker: String,
        /// Begins or ends.
        counts: bool,
        /// What it does now, or why nothing.
        effect: String,
    },
    /// A witness answers, or does not any more.
    Witness {
        /// Its address.
        witness: IpAddr,
        /// Now.
        to: State,
    },
    /// This node would take a group of peers that it cannot reach, but no witness answers it.
    ClaimHeld {
        /// The group.
        group: GroupId,
        /// The peers.
        peers: Vec<NodeId>,
    },
    /// A peer runs with another cluster file.
    ConfigDiffers {
        /// The peer.
        peer: NodeId,
        /// The hash of its file.
        theirs: u64,
    },
    /// Datagrams are refused; at most one event per reason in ten seconds.
    Refused {
        /// The sync link.
        link: u8,
        /// The node that the sender claims to be; 0 if it is none of the cluster.
        sender: NodeId,
        /// Why.
        reason: String,
    },
}

/// Why a command was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// There is no such group, or this node is not a member of it.
    #[error("this node is not a member of the group")]
    NotMember,
    /// Only the Active node can hand a group over.
    #[error("this node is not active for the group: give the command on {}", .active.as_deref().unwrap_or("the active node, none is known now"))]
    NotActive {
        /// Who is, if known.
        active: Option<String>,
    },
    /// The group is being handed over already.
    #[error("the group is being handed over to {to} already: wait for that to end")]
    Busy {
        /// To whom.
        to: String,
    },
    /// No other node can take the group.
    #[error("no other node can take the group now: see `fwhactl status`")]
    NoCandidate,
    /// The wanted node cannot take the group.
    #[error("{node} cannot take the group now: it is {state}")]
    NotCandidate {
        /// The node.
        node: String,
        /// What keeps it.
        state: String,
    },
    /// Without this node nobody can have a group.
    #[error("no other node can have group {group} now ({others}): it would be down")]
    LastEligible {
        /// The group's name.
        group: String,
        /// The other members and what keeps them.
        others: String,
    },
    /// The node is shutting down.
    #[error("this node is shutting down")]
    Leaving,
}

/// Counters by family and name, none of which ever goes back.
#[derive(Clone, Debug, Default)]
pub struct Counters(BTreeMap<(&'static str, &'static str), u64>);

impl Counters {
    pub(super) fn count(&mut self, family: &'static str, name: &'static str) {
        *self.0.entry((family, name)).or_default() += 1;
    }

    /// The value of one; zero if it never happened.
    pub fn get(&self, family: &str, name: &str) -> u64 {
        self.0.iter().find(|((f, n), _)| *f == family && *n == name).map_or(0, |(_, &value)| value)
    }

    /// All that happened at least once, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> + '_ {
        self.0.iter().map(|(&(family, name), &value)| (family, name, value))
    }
}
