//! What `GET /v1/status` tells.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A thread that has not shown anything for this long hangs.
const HANG: Duration = Duration::from_secs(1);

/// What a node knows of itself and its cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// This node.
    pub node: String,
    /// Its cluster.
    pub cluster: String,
    /// Hash of its config, 16 hexadecimal digits.
    pub config_hash: String,
    /// Version of the daemon.
    pub version: String,
    /// Since the daemon started.
    pub uptime_ms: u64,
    /// An operator has put this node on standby: it takes no group.
    #[serde(default)]
    pub standby: bool,
    /// The groups, in the order of the config.
    pub groups: Vec<GroupStatus>,
    /// The other nodes, in the order of the config.
    pub peers: Vec<PeerStatus>,
    /// Who is asked before a group of a lost peer is claimed, in the order of the config.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub witnesses: Vec<WitnessStatus>,
    /// Zones in which frames between the nodes are lost, while this is compared.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reaches: Vec<ReachStatus>,
    /// Where the packet programs are attached.
    pub interfaces: Vec<ZoneInterfaceStatus>,
    /// Flows in the tables.
    pub flows: FlowCounts,
    /// The threads of the daemon that know all this.
    #[serde(default)]
    pub threads: Vec<ThreadStatus>,
    /// What an operator should look at, a line each.
    pub warnings: Vec<String>,
}

impl Status {
    /// Whether somebody must look at this node: a group is troubled, or what is said of it may be old.
    pub fn troubled(&self) -> bool {
        self.groups.iter().any(|group| group.trouble().is_some())
            || self.threads.iter().any(ThreadStatus::hangs)
    }
}

/// A thread of the daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadStatus {
    /// `election` or `replication`.
    pub name: String,
    /// Since it last showed how things stand, which it does several times a second.
    pub silent_ms: u64,
}

impl ThreadStatus {
    /// Whether it has been silent for so long that it hangs: what it said last is old.
    pub const fn hangs(&self) -> bool {
        self.silent_ms as u128 > HANG.as_millis()
    }
}

/// A group as this node sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GroupStatus {
    /// Its name.
    pub name: String,
    /// This node's role in it.
    pub role: Role,
    /// The node that is Active, if one is known.
    pub active: Option<String>,
    /// Further nodes that say they are Active: a split brain.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also_active: Vec<String>,
    /// Its term.
    pub term: u32,
    /// How long this node has had its role.
    pub since_ms: u64,
    /// Why it has that role.
    pub reason: String,
    /// The group's addresses with prefix length.
    pub vips: Vec<String>,
    /// This node's priority, as its trackers leave it; 0 if it is no member.
    #[serde(default)]
    pub priority: u8,
    /// What this node watches that matters for the group.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trackers: Vec<TrackerStatus>,
    /// What runs where it is Active, in the order of starting.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<ResourceStatus>,
}

impl GroupStatus {
    /// What is wrong if not exactly one node is Active in it, as far as this node knows.
    pub fn trouble(&self) -> Option<String> {
        let name = &self.name;
        match (&self.active, &self.also_active[..]) {
            (None, _) => Some(format!("group {name}: no node is active")),
            (Some(_), []) => None,
            (Some(active), others) => {
                Some(format!("group {name}: split brain, {active} and {} are active", others.join(", ")))
            }
        }
    }
}

/// How this node is placed in a zone where that is in question.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReachStatus {
    /// The zone.
    pub zone: String,
    /// `up` if neighbours answer, `down` if none does, `unknown` until that is known.
    pub state: String,
    /// How long it has been so.
    pub since_ms: u64,
    /// Neighbours asked in the last round.
    pub asked: u64,
    /// Those of them that answered.
    pub answered: u64,
    /// Which way frames go, by peer: `both`, `unheard` (one-way: the peer does not hear this node), `deaf` (one-way:
    /// this node does not hear the peer), `cut`.
    pub paths: std::collections::BTreeMap<String, String>,
}

/// A host that tells a lost peer from a node that is cut off.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WitnessStatus {
    /// Its address.
    pub address: String,
    /// `up`, `down`, or `unknown` until the first answers tell.
    pub state: String,
    /// How long it has been so.
    pub since_ms: u64,
    /// Round trip time, if known.
    pub rtt_us: Option<u64>,
    /// Requests so far.
    pub requests: u64,
    /// Answers so far.
    pub answers: u64,
}

/// A resource on the asked node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceStatus {
    /// Its name.
    pub name: String,
    /// `running`, `stopped`, `starting`, `stopping`, `failed`, or `unknown`.
    pub state: String,
    /// How long it has been so.
    pub since_ms: u64,
    /// What the last action said.
    pub result: String,
    /// What is wrong, as long as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// Restarts that mended a failure, since the daemon started.
    pub restarts: u64,
    /// Actions that went wrong, since the daemon started.
    pub failures: u64,
}

/// A tracker, and what it means for a group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrackerStatus {
    /// Its name.
    pub name: String,
    /// `up`, `down`, or `unknown` until the first checks tell.
    pub state: String,
    /// How long it has been so.
    pub since_ms: u64,
    /// What the last check found.
    pub result: String,
    /// Whether it counts for the group now: it forbids the role, or lowers the priority.
    pub counts: bool,
    /// What it does to the group, or why nothing.
    pub effect: String,
    /// Checks so far that were good.
    pub good: u64,
    /// Checks so far that were bad.
    pub bad: u64,
}

/// What a node is for a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Not started yet, or not a member.
    #[default]
    Init,
    /// Ready to take over.
    Backup,
    /// Has the VIPs and owns the flows.
    Active,
    /// A tracker or link forbids it to be Active.
    Fault,
    /// An operator forbids it to be Active.
    Standby,
}

impl Role {
    /// The name in JSON and in output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Init => "init",
            Self::Backup => "backup",
            Self::Active => "active",
            Self::Fault => "fault",
            Self::Standby => "standby",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Another node as this node sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its name.
    pub name: String,
    /// `alive`, `dead` and what lies between: the names of the election's peer states.
    pub state: String,
    /// How long it has been so; absent if it never was otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_ms: Option<u64>,
    /// It says that an operator has put it on standby.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub standby: bool,
    /// It says that its table and that of this node agree: connections survive a move to it.
    #[serde(default)]
    pub in_sync: bool,
    /// Why, if there is more to say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Why its datagrams are refused, if they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<RefusedStatus>,
    /// The sync links to it.
    pub links: Vec<LinkStatus>,
    /// Replication with it.
    pub sync: SyncStatus,
}

/// Datagrams of a peer that are refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedStatus {
    /// `heartbeats` or `replication`.
    pub channel: String,
    /// Why: `other_cluster`, `other_key`, `version` and so on, the name under which they are counted.
    pub reason: String,
    /// The same in words, with the remedy.
    pub text: String,
}

/// A sync link to a peer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LinkStatus {
    /// This node's interface.
    pub interface: String,
    /// `up` when heartbeats arrive, otherwise what is wrong.
    pub state: String,
    /// Round trip time of a heartbeat, if known.
    pub rtt_us: Option<u64>,
    /// What replication's own probes find: `up`, `lossy`, `down`; `unknown` until they tell.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub replication: String,
    /// Of these probes, those of the last seconds that were not answered, per mille; absent until there are enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_per_mille: Option<u32>,
    /// Flows are sent over it.
    #[serde(default)]
    pub used: bool,
}

/// Replication with a peer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SyncStatus {
    /// `in-sync`, `bulk`, `down` and so on: the names of the replication's states.
    pub state: String,
    /// How long it has been so.
    #[serde(default)]
    pub since_ms: u64,
    /// Age of the oldest change that the peer has not acknowledged.
    pub lag_ms: u64,
    /// Changes that the peer has not acknowledged.
    pub unacked: u64,
    /// Whether the digests of both tables agree.
    pub digest_match: bool,
    /// How far a bulk transfer is, while there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bulk: Option<BulkStatus>,
}

/// How far a bulk transfer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BulkStatus {
    /// Which way it goes.
    pub direction: Direction,
    /// Flows transferred.
    pub flows_done: u64,
    /// Flows to transfer, as announced at its start.
    pub flows_total: u64,
    /// Buckets, of 256, of which not everything is there yet.
    pub buckets_left: u64,
    /// Since its start.
    pub elapsed_ms: u64,
    /// Until its end, if it goes on like this; absent while nothing tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remaining_ms: Option<u64>,
}

/// Which way flows go in bulk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// To the peer.
    #[default]
    Sending,
    /// From the peer.
    Receiving,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Sending => "sending",
            Self::Receiving => "receiving",
        })
    }
}

/// An interface with packet programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneInterfaceStatus {
    /// The interface.
    pub interface: String,
    /// Its zone.
    pub zone: String,
    /// Where the programs are attached.
    pub attach: Attachment,
    /// Why there.
    pub reason: String,
}

/// Where packet programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Attachment {
    /// Native XDP.
    Xdp,
    /// tc ingress.
    Tc,
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Xdp => "xdp",
            Self::Tc => "tc",
        })
    }
}

/// Flows in the tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowCounts {
    /// Flows that began at this node.
    pub local: u64,
    /// Flows that came from peers.
    pub peer: u64,
    /// New flows without an answer yet; they are in a table of their own.
    pub embryonic: u64,
    /// Limit of `local` and `peer` together.
    pub max: u64,
    /// Flows that this node owns and that no peer which answers is known to hold as they are: at most so many are
    /// lost, or fall back to an earlier state, if it is lost now.
    #[serde(default)]
    pub at_risk: u64,
}
