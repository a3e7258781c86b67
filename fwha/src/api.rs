//! What the daemon and its clients say to each other: JSON over HTTP on the control socket.
//!
//! This is a stable contract: names are `snake_case`, units are in names, fields may be added and are never
//! renamed. Times called `…_ms` without more are lengths of time up to now.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/status` | [`Status`] |
//! | `GET /v1/flows?`[`FlowFilter`] | a [`FlowRow`] a line |
//! | `GET /v1/flows/diff?`[`DiffQuery`] | a [`DiffLine`] a line |
//! | `POST /v1/flows/delete` [`FlowFilter`] | [`FlowsDeleted`] |
//! | `GET /v1/stats` | [`Stats`] |
//! | `GET /metrics` | the same and more in Prometheus' text format |
//! | `GET /v1/events?`[`EventsQuery`] | an [`Event`] a line, oldest first |
//! | `POST /v1/switchover` [`SwitchoverRequest`] | [`SwitchoverReply`] |
//! | `POST /v1/standby` [`StandbyRequest`] | [`StandbyReply`] |
//! | `GET /v1/explain/role` | [`RoleExplanation`]s, a list |
//! | `GET /v1/explain/packet?`[`PacketQuery`] | [`PacketExplanation`] |
//! | `POST /v1/bulk` [`TransferRequest`] | a [`Transfer`] a line |
//! | `POST /v1/resync` [`TransferRequest`] | a [`Transfer`] a line |
//! | `POST /v1/reload` [`ReloadRequest`] | [`ReloadReply`] |
//! | `GET /v1/capture?`[`CaptureQuery`] | a [`CaptureLine`] a line, as packets are dropped |
//!
//! While the node is on standby, every answer has a header [`WARNING_HEADER`] that says so.
//! Answers of one object a line have the type [`NDJSON`] and end when there is no more. Any answer whose
//! status is not 2xx is an [`ApiError`].

use std::{collections::BTreeMap, fmt, net::IpAddr};

use fwha_common::flow::FlowState;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Paths that the daemon serves.
pub mod path {
    /// [`super::Status`].
    pub const STATUS: &str = "/v1/status";
    /// [`super::FlowRow`]s.
    pub const FLOWS: &str = "/v1/flows";
    /// [`super::DiffLine`]s.
    pub const FLOWS_DIFF: &str = "/v1/flows/diff";
    /// [`super::FlowsDeleted`].
    pub const FLOWS_DELETE: &str = "/v1/flows/delete";
    /// [`super::Stats`].
    pub const STATS: &str = "/v1/stats";
    /// Metrics for Prometheus.
    pub const METRICS: &str = "/metrics";
    /// [`super::Event`]s.
    pub const EVENTS: &str = "/v1/events";
    /// [`super::SwitchoverRequest`].
    pub const SWITCHOVER: &str = "/v1/switchover";
    /// [`super::StandbyReply`].
    pub const STANDBY: &str = "/v1/standby";
    /// [`super::RoleExplanation`]s.
    pub const EXPLAIN_ROLE: &str = "/v1/explain/role";
    /// [`super::PacketExplanation`].
    pub const EXPLAIN_PACKET: &str = "/v1/explain/packet";
    /// [`super::Transfer`]s to peers.
    pub const BULK: &str = "/v1/bulk";
    /// [`super::Transfer`]s from peers.
    pub const RESYNC: &str = "/v1/resync";
    /// [`super::ReloadReply`].
    pub const RELOAD: &str = "/v1/reload";
    /// [`super::ResourceReply`].
    pub const RESOURCE_CLEANUP: &str = "/v1/resource/cleanup";
    /// [`super::CaptureLine`]s.
    pub const CAPTURE: &str = "/v1/capture";
}

/// Content type of answers with one object a line.
pub const NDJSON: &str = "application/x-ndjson";

/// A header of answers: what an operator must not forget, whatever was asked.
pub const WARNING_HEADER: &str = "fwha-warning";

/// Where the control socket is unless something else is said.
pub const DEFAULT_SOCKET: &str = "/run/fwha/fwha.sock";

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
    /// What an operator should look at, a line each.
    pub warnings: Vec<String>,
}

impl Status {
    /// The groups that have not exactly one Active node as far as this node knows.
    pub fn troubled_groups(&self) -> impl Iterator<Item = &GroupStatus> {
        self.groups.iter().filter(|g| g.active.is_none() || !g.also_active.is_empty())
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

/// What `POST /v1/bulk` and `POST /v1/resync` take.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TransferRequest {
    /// The peer; all of them if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// Go on with the transfer's progress until its end. Without it the answer is one line for each peer.
    pub wait: bool,
}

/// A bulk transfer that was asked for: first `running` or `failed`, in the end `done` or `failed`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    /// The peer.
    pub peer: String,
    /// How it stands.
    pub state: TransferState,
    /// How far it is.
    #[serde(flatten)]
    pub bulk: BulkStatus,
    /// Of one from the peer that is done: flows that the peer does not have and that are gone here, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swept: Option<u64>,
    /// Why it failed, and the remedy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// How a [`Transfer`] stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TransferState {
    /// Asked for, or under way.
    #[default]
    Running,
    /// Complete, acknowledged, and what was not mentioned is gone at the receiver.
    Done,
    /// Refused, or broken off.
    Failed,
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

/// Where a flow in this node's table came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// It began here.
    Local,
    /// A peer sent it.
    Peer,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Local => "local",
            Self::Peer => "peer",
        })
    }
}

/// A flow. In pairs the first is the original direction, the second the reply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowRow {
    /// `tcp`, `udp`, `icmp`, or the protocol's number.
    pub proto: String,
    /// Address of the end that began it.
    pub src: IpAddr,
    /// Its port; the identifier of an ICMP echo.
    pub sport: u16,
    /// Address of the other end.
    pub dst: IpAddr,
    /// Its port; the identifier of an ICMP echo.
    pub dport: u16,
    /// State, as `conntrack -L` names it, in lower case.
    pub state: String,
    /// Zone that it comes from.
    pub zone_in: String,
    /// Zone that it goes to.
    pub zone_out: String,
    /// Node that owns it now; empty if none is known.
    pub owner: String,
    /// Where this table has it from.
    pub origin: Origin,
    /// Since it began.
    pub age_ms: u64,
    /// Since its last packet that this node knows of.
    pub idle_ms: u64,
    /// Until it ends if no packet comes.
    pub timeout_ms: u64,
    /// Packets.
    pub packets: [u64; 2],
    /// Bytes at layer 3.
    pub bytes: [u64; 2],
    /// Name of the rule that admitted it; empty if this node's ruleset has it no more.
    pub rule: String,
    /// Opened by way of the SYN proxy: the ends have sequence numbers of their own. Left out if not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub syn_proxied: bool,
}

/// Which flows are asked for: those that match all that is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FlowFilter {
    /// Where the table has it from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// Protocol, as in [`FlowRow::proto`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proto: Option<String>,
    /// Address or network of the end that began it.
    #[serde(skip_serializing_if = "Option::is_none", with = "network")]
    pub src: Option<IpNet>,
    /// Address or network of the other end.
    #[serde(skip_serializing_if = "Option::is_none", with = "network")]
    pub dst: Option<IpNet>,
    /// Port of the end that began it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sport: Option<u16>,
    /// Port of the other end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dport: Option<u16>,
    /// State, as in [`FlowRow::state`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// A zone that it comes from or goes to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
}

impl FlowFilter {
    /// The terms that [`FlowFilter::set`] knows.
    pub const TERMS: &[&str] = &["origin", "proto", "src", "dst", "sport", "dport", "state", "zone"];

    /// Whether `flow` matches.
    pub fn matches(&self, flow: &FlowRow) -> bool {
        fn is<T: PartialEq>(wanted: &Option<T>, found: &T) -> bool {
            wanted.as_ref().is_none_or(|w| w == found)
        }
        is(&self.origin, &flow.origin)
            && is(&self.proto, &flow.proto)
            && self.src.is_none_or(|net| net.contains(&flow.src))
            && self.dst.is_none_or(|net| net.contains(&flow.dst))
            && is(&self.sport, &flow.sport)
            && is(&self.dport, &flow.dport)
            && is(&self.state, &flow.state)
            && self.zone.as_ref().is_none_or(|z| *z == flow.zone_in || *z == flow.zone_out)
    }

    /// Adds a term like `dport=22`.
    ///
    /// # Errors
    /// What is wrong with the term.
    pub fn set(&mut self, term: &str) -> Result<(), String> {
        let (key, value) =
            term.split_once('=').ok_or_else(|| format!("{term:?} is not a term like dport=22"))?;
        let port = || value.parse().map_err(|_| format!("{key}: {value:?} is not a port"));
        let net =
            || network::parse(value).map_err(|()| format!("{key}: {value:?} is not an address or prefix"));
        match key {
            "origin" => {
                self.origin = Some(match value {
                    "local" => Origin::Local,
                    "peer" => Origin::Peer,
                    _ => return Err(format!("origin is local or peer, not {value:?}")),
                });
            }
            "proto" => {
                let value = value.to_ascii_lowercase();
                if !matches!(value.as_str(), "tcp" | "udp" | "icmp") && value.parse::<u8>().is_err() {
                    return Err(format!("proto is tcp, udp, icmp or a number, not {value:?}"));
                }
                self.proto = Some(value);
            }
            "src" => self.src = Some(net()?),
            "dst" => self.dst = Some(net()?),
            "sport" => self.sport = Some(port()?),
            "dport" => self.dport = Some(port()?),
            "state" => {
                let value = value.to_ascii_lowercase();
                let mut known = FlowState::ALL.iter().skip(1).map(|s| s.as_str());
                if !known.clone().any(|s| s == value) {
                    let known: Vec<_> = known.by_ref().collect();
                    return Err(format!("state is one of {}, not {value:?}", known.join(", ")));
                }
                self.state = Some(value);
            }
            "zone" => self.zone = Some(value.to_owned()),
            _ => return Err(format!("unknown term {key:?}: known are {}", Self::TERMS.join(", "))),
        }
        Ok(())
    }
}

/// Addresses and prefixes in a filter: an address alone is a prefix of its whole length.
mod network {
    use std::net::IpAddr;

    use ipnet::IpNet;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn parse(text: &str) -> Result<IpNet, ()> {
        text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).map_err(drop)
    }

    pub(super) fn serialize<S: Serializer>(net: &Option<IpNet>, serializer: S) -> Result<S::Ok, S::Error> {
        match net {
            Some(net) => serializer.collect_str(net),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IpNet>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let net = parse(&text)
            .map_err(|()| D::Error::custom(format_args!("{text:?} is not an address or prefix")))?;
        Ok(Some(net))
    }
}

/// What `GET /v1/flows/diff` takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DiffQuery {
    /// The peer; all of them if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// Compare flow by flow with peers even where digests agree.
    pub all: bool,
    /// Compare with this node's own flow table only. Without this and a peer it comes first.
    pub local: bool,
}

/// What stands for a peer where the daemon's replica is compared with this node's own flow table.
pub const KERNEL: &str = "kernel";

/// A line of a comparison with a peer or the kernel's table; the last one about each is its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum DiffLine {
    /// A flow that differs.
    Difference(FlowDifference),
    /// That was all.
    End(DiffEnd),
}

/// A flow in which two nodes differ, or this node's replica and the kernel's table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowDifference {
    /// The peer, or [`KERNEL`].
    pub peer: String,
    /// `only-here`, `only-there`, `identity` (two flows of the same addresses and ports), `version`, or `state`.
    pub kind: String,
    /// A change was on its way: the two do not differ for good.
    pub in_flight: bool,
    /// As in [`FlowRow::proto`].
    pub proto: String,
    /// Address of the end that began it.
    pub src: IpAddr,
    /// Its port; the identifier of an ICMP echo.
    pub sport: u16,
    /// Address of the other end.
    pub dst: IpAddr,
    /// Its port; the identifier of an ICMP echo.
    pub dport: u16,
    /// Its bucket.
    pub bucket: u8,
    /// What this node's replica has.
    pub here: Option<FlowSide>,
    /// What the peer has, or the kernel's table.
    pub there: Option<FlowSide>,
}

/// What one node has of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowSide {
    /// Which flow it is: the node at which it began, that node's boot epoch, a number.
    pub identity: String,
    /// The owner's term, and how often the flow changed.
    pub version: String,
    /// As in [`FlowRow::state`].
    pub state: String,
    /// Since its last change that this node knows of.
    pub age_ms: u64,
}

/// The end of a comparison.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiffEnd {
    /// The peer, or [`KERNEL`].
    pub peer: String,
    /// Buckets compared: all.
    pub buckets: u64,
    /// Those of them that were compared flow by flow.
    pub buckets_listed: u64,
    /// Flows of the peer, or of the table, that were compared.
    pub flows_listed: u64,
    /// Flows that differ.
    pub differences: u64,
    /// Flows of which a change was on its way.
    pub in_flight: u64,
    /// Differences beyond those that are told one by one.
    pub untold: u64,
    /// Why there is nothing of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What became of flows that were to be deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowsDeleted {
    /// Flows deleted, here and on the peers.
    pub deleted: u64,
    /// Flows that match and that another node owns.
    pub not_owned: u64,
}

/// Counters, a tree; those of `flows`, `drops` and `rules` live in the kernel and go on when a killed daemon is back.
/// For example `stats.drops.no_rule`, `stats.sync.peers.fw2.lost`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Flows and packets of the data plane.
    pub flows: StatSection,
    /// Replication.
    pub sync: StatSection,
    /// Sync links.
    pub link: StatSection,
    /// VRRP.
    pub vrrp: StatSection,
    /// Packets dropped, by reason.
    pub drops: StatSection,
    /// Flows admitted or dropped, by rule.
    pub rules: StatSection,
}

/// A part of [`Stats`].
pub type StatSection = BTreeMap<String, Stat>;

/// A counter, or more of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Stat {
    /// A counter.
    Count(u64),
    /// Counters of one object, by name.
    Section(StatSection),
}

impl From<u64> for Stat {
    fn from(count: u64) -> Self {
        Self::Count(count)
    }
}

impl<K: Into<String>, V: Into<Stat>> FromIterator<(K, V)> for Stat {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(items: I) -> Self {
        Self::Section(items.into_iter().map(|(k, v)| (k.into(), v.into())).collect())
    }
}

/// What `GET /v1/events` takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EventsQuery {
    /// After the history, go on with events as they happen.
    pub follow: bool,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// When, in ms since 1970, by this node's wall clock.
    pub at_unix_ms: u64,
    /// When, in ms of `CLOCK_MONOTONIC`.
    pub at_mono_ms: f64,
    /// What kind of thing: `role`, `peer`, …
    pub kind: String,
    /// The group, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// In words.
    pub text: String,
    /// The steps of a change of role, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<Step>,
}

/// A step of a change of role.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// What was done.
    pub name: String,
    /// When it was done, in ms since the decision.
    pub ms: f64,
}

/// Asks for a group to move.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SwitchoverRequest {
    /// The group; may be left out if there is only one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The node to move to; the most preferred one that is ready, if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}

/// The group has moved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SwitchoverReply {
    /// The group.
    pub group: String,
    /// Where it was.
    pub from: String,
    /// Where it is.
    pub to: String,
    /// How long that took.
    pub took_ms: f64,
}

/// Puts the node on standby, or back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StandbyRequest {
    /// Which.
    pub on: bool,
    /// Also if a group is then without any node.
    pub force: bool,
}

/// The node is on standby and has no group, or takes part again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StandbyReply {
    /// The node.
    pub node: String,
    /// Which.
    pub on: bool,
    /// The groups that it had.
    pub moved: Vec<MovedGroup>,
    /// How long that took.
    pub took_ms: f64,
}

/// A group that a node has given away.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovedGroup {
    /// The group.
    pub group: String,
    /// Who has it; absent if nobody does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}

/// Has the failures of a resource on the asked node forgotten, so that it is tried again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResourceRequest {
    /// The resource.
    pub name: String,
}

/// They are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceReply {
    /// The node.
    pub node: String,
    /// The resource.
    pub name: String,
}

/// Has the config file read again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReloadRequest {
    /// Only say what would change.
    pub dry_run: bool,
    /// End the flows, of those that this node owns, that the rules do not admit.
    pub revalidate: bool,
}

/// What is different in the config file, and what became of it. A file with mistakes is an [`ApiError`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ReloadReply {
    /// The node.
    pub node: String,
    /// The file is in force. If not, nothing has changed: it was a dry run, or something needs a restart.
    pub applied: bool,
    /// The differences.
    pub changes: Vec<ConfigChange>,
    /// Hash of the config in force, 16 hexadecimal digits.
    pub config_hash: String,
    /// Flows that were ended, with `revalidate`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flows_ended: Option<u64>,
    /// How long that took.
    pub took_ms: f64,
}

/// A difference between the config in force and the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigChange {
    /// In the words of the file.
    pub text: String,
    /// The daemon must be restarted for it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub restart: bool,
}

/// Why a node has its role in a group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleExplanation {
    /// The group.
    pub group: String,
    /// This node.
    pub node: String,
    /// Its role.
    pub role: String,
    /// How it came to it.
    pub reason: String,
    /// What holds it there, a sentence each.
    pub because: Vec<String>,
    /// The group's nodes, most preferred first.
    pub members: Vec<MemberStanding>,
    /// What this node watches that matters for the group.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trackers: Vec<TrackerStatus>,
}

/// What a node could be for a group, as the asked one sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStanding {
    /// The node.
    pub node: String,
    /// Its priority.
    pub priority: u8,
    /// In words.
    pub standing: String,
}

/// What `GET /v1/explain/packet` takes: a packet that nobody sends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PacketQuery {
    /// Protocol, by name or number, as in [`FlowRow::proto`].
    pub proto: String,
    /// Its source.
    pub src: IpAddr,
    /// Its source port, 49152 if left out; an echo's identifier, 0 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sport: Option<u16>,
    /// Its destination.
    pub dst: IpAddr,
    /// Its destination port, for protocols that have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dport: Option<u16>,
    /// The interface that it comes in by, or its zone; where answers to its source leave, if left out.
    #[serde(default, rename = "in", skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// TCP flags, of `fin`, `syn`, `rst`, `psh`, `ack`, `urg`, with commas between them; what would come next, if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp_flags: Option<String>,
}

/// What would become of a packet, as the programs say it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketExplanation {
    /// The node that was asked.
    pub node: String,
    /// The packet in words.
    pub packet: String,
    /// The interface that it comes in by.
    pub interface_in: String,
    /// The zone of that.
    pub zone_in: String,
    /// The steps of its way, in their order, up to the one that decides.
    pub steps: Vec<PacketStep>,
    /// What was taken for granted, a sentence each.
    pub assumed: Vec<String>,
    /// `forwarded`, `passed` (to the node itself, or to its stack), `answered` (by the SYN proxy), `rejected` or `dropped`.
    pub verdict: String,
    /// Why it is dropped or rejected, by the names in [`Stats::drops`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The rule that decides, or that has admitted the flow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// The known flow that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow: Option<FlowRow>,
    /// The group that owns it, unless it is for the node itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The interface that it leaves by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface_out: Option<String>,
    /// The zone that it goes to; `node` for the node itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone_out: Option<String>,
    /// The router that it is handed to; absent where the destination is a neighbour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_hop: Option<IpAddr>,
}

/// A step of a packet's way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketStep {
    /// `arrival`, `flow`, `source`, `route`, `owner`, `rules`, `reverse_path`, `syn_proxy`, `limits`, `state`, `forward`.
    pub step: String,
    /// `pass`, or what becomes of the packet there: `drop`, `reject`, `answer`.
    pub result: String,
    /// In words.
    pub text: String,
}

/// What `GET /v1/capture` takes. The capture ends when the client goes away; there is one at a time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CaptureQuery {
    /// Reasons, by the names in [`Stats::drops`], with commas between them; all if there are none.
    #[serde(skip_serializing_if = "Vec::is_empty", with = "commas")]
    pub reasons: Vec<String>,
    /// End after so many packets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// Bytes of each packet, at most; there are never more than 256.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snap_len: Option<u32>,
}

/// A line of a capture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum CaptureLine {
    /// A packet that was dropped.
    Packet(DroppedPacket),
    /// What was missed so far; told when it changes, and as the last line.
    Missed(CaptureMissed),
}

/// A packet that was dropped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DroppedPacket {
    /// When, in ns since 1970, by this node's wall clock.
    pub at_unix_ns: u64,
    /// The interface it came in by; at the hook `egress` the one it was to leave by.
    pub interface: String,
    /// Where it was dropped: `xdp` or (tc) `ingress` of a zone's interface, `egress`, or `sync` on a sync interface.
    pub hook: String,
    /// Why, by the names in [`Stats::drops`].
    pub reason: String,
    /// Its length on the wire, from the Ethernet header on; of a super-packet, the whole of it.
    pub length_bytes: u32,
    /// Its first bytes, in hexadecimal digits.
    #[serde(with = "hex")]
    pub frame: Vec<u8>,
}

/// Drops that a capture asked for and does not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureMissed {
    /// There were more than are sampled in that time.
    pub skipped: u64,
    /// The client read too slowly.
    pub lost: u64,
}

/// Words in a query: a key may come only once there.
mod commas {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(words: &[String], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&words.join(","))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ok(text.split(',').filter(|word| !word.is_empty()).map(str::to_owned).collect())
    }
}

/// Bytes as hexadecimal digits.
mod hex {
    use std::fmt::Write as _;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = String::with_capacity(2 * bytes.len());
        for byte in bytes {
            // Writing to memory does not fail.
            let _ = write!(text, "{byte:02x}");
        }
        serializer.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits: Option<Vec<u8>> = text.chars().map(|c| Some(c.to_digit(16)? as u8)).collect();
        match digits {
            Some(digits) if digits.len().is_multiple_of(2) => {
                Ok(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
            }
            _ => Err(D::Error::custom("not pairs of hexadecimal digits")),
        }
    }
}

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{error}")]
pub struct ApiError {
    /// In words: what is wrong, and the remedy.
    pub error: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow() -> FlowRow {
        FlowRow {
            proto: "tcp".into(),
            src: "192.168.100.100".parse().unwrap(),
            sport: 40000,
            dst: "10.0.0.128".parse().unwrap(),
            dport: 22,
            state: "established".into(),
            zone_in: "lan".into(),
            zone_out: "inet".into(),
            owner: "fw1".into(),
            origin: Origin::Local,
            age_ms: 1,
            idle_ms: 1,
            timeout_ms: 1,
            packets: [1, 1],
            bytes: [1, 1],
            rule: "lan-out".into(),
            syn_proxied: false,
        }
    }

    #[test]
    fn a_flow_is_the_documented_line() {
        let line = r#"{"proto":"tcp","src":"192.168.100.100","sport":40000,"dst":"10.0.0.128","dport":22,"state":"established","zone_in":"lan","zone_out":"inet","owner":"fw1","origin":"local","age_ms":1,"idle_ms":1,"timeout_ms":1,"packets":[1,1],"bytes":[1,1],"rule":"lan-out"}"#;
        assert_eq!(serde_json::to_string(&flow()).unwrap(), line);
        assert_eq!(serde_json::from_str::<FlowRow>(line).unwrap(), flow());
    }

    #[test]
    fn every_term_of_a_filter_can_match_and_can_fail() {
        for (matching, other) in [
            ("origin=local", "origin=peer"),
            ("proto=TCP", "proto=udp"),
            ("src=192.168.100.0/24", "src=192.168.100.101"),
            ("dst=10.0.0.128", "dst=fd00::/8"),
            ("sport=40000", "sport=40001"),
            ("dport=22", "dport=23"),
            ("state=established", "state=time-wait"),
            ("zone=inet", "zone=node"),
        ] {
            for (term, expected) in [(matching, true), (other, false)] {
                let mut filter = FlowFilter::default();
                filter.set(term).unwrap();
                assert_eq!(filter.matches(&flow()), expected, "{term}");
                let query = serde_urlencoded::to_string(&filter).unwrap();
                assert_eq!(serde_urlencoded::from_str::<FlowFilter>(&query).unwrap(), filter, "{query}");
            }
        }
        assert!(FlowFilter::default().matches(&flow()));
        assert_eq!(serde_urlencoded::from_str::<FlowFilter>("").unwrap(), FlowFilter::default());
    }

    #[test]
    fn a_bad_term_is_explained() {
        for (term, problem) in [
            ("dport", "\"dport\" is not a term like dport=22"),
            ("port=1", "unknown term \"port\": known are origin, proto, src"),
            ("dport=99999", "dport: \"99999\" is not a port"),
            ("src=10.0.0", "src: \"10.0.0\" is not an address or prefix"),
            ("state=new", "state is one of syn-sent, "),
            ("proto=tpc", "proto is tcp, udp, icmp or a number"),
            ("origin=me", "origin is local or peer"),
        ] {
            let found = FlowFilter::default().set(term).unwrap_err();
            assert!(found.starts_with(problem), "{found}");
        }
        assert!(serde_urlencoded::from_str::<FlowFilter>("dport=x").is_err());
        assert!(serde_urlencoded::from_str::<FlowFilter>("nonsense=1").is_err());
    }

    #[test]
    fn a_group_is_troubled_without_exactly_one_active() {
        let group = |active: Option<&str>, also: &[&str]| GroupStatus {
            active: active.map(Into::into),
            also_active: also.iter().map(|&s| s.into()).collect(),
            ..GroupStatus::default()
        };
        let count = |g| Status { groups: vec![g], ..Status::default() }.troubled_groups().count();
        assert_eq!(count(group(Some("fw1"), &[])), 0);
        assert_eq!(count(group(Some("fw1"), &["fw2"])), 1);
        assert_eq!(count(group(None, &[])), 1);
    }

    #[test]
    fn a_dropped_packet_is_the_documented_line() {
        let packet = DroppedPacket {
            at_unix_ns: 1_735_689_600_000_000_007,
            interface: "wan".into(),
            hook: "xdp".into(),
            reason: "no_rule".into(),
            length_bytes: 60,
            frame: vec![2, 0, 0xab],
        };
        let line = r#"{"at_unix_ns":1735689600000000007,"interface":"wan","hook":"xdp","reason":"no_rule","length_bytes":60,"frame":"0200ab"}"#;
        assert_eq!(serde_json::to_string(&packet).unwrap(), line);
        let read = |line: &str| serde_json::from_str::<CaptureLine>(line);
        assert_eq!(read(line).unwrap(), CaptureLine::Packet(packet));
        let missed = CaptureLine::Missed(CaptureMissed { skipped: 3, lost: 4 });
        assert_eq!(read(r#"{"skipped":3,"lost":4}"#).unwrap(), missed);
        for broken in ["0200a", "0x", "é"] {
            assert!(read(&line.replace("0200ab", broken)).is_err());
        }
    }

    #[test]
    fn a_capture_is_asked_for_by_names_of_reasons() {
        let query = CaptureQuery {
            reasons: vec!["rule".into(), "no_rule".into()],
            count: Some(3),
            snap_len: Some(64),
        };
        let text = serde_urlencoded::to_string(&query).unwrap();
        assert_eq!(text, "reasons=rule%2Cno_rule&count=3&snap_len=64");
        assert_eq!(serde_urlencoded::from_str::<CaptureQuery>(&text).unwrap(), query);
        assert_eq!(serde_urlencoded::to_string(CaptureQuery::default()).unwrap(), "");
        assert_eq!(serde_urlencoded::from_str::<CaptureQuery>("").unwrap(), CaptureQuery::default());
    }

    #[test]
    fn stats_nest() {
        let mut stats = Stats::default();
        stats.drops.insert("no_rule".into(), 3.into());
        let peers: Stat = [("fw2", [("lost", 1)].into_iter().collect::<Stat>())].into_iter().collect();
        stats.sync.insert("peers".into(), peers);
        let json = serde_json::to_value(&stats).unwrap();
        assert_eq!(json["drops"]["no_rule"], 3);
        assert_eq!(json["sync"]["peers"]["fw2"]["lost"], 1);
        assert_eq!(serde_json::from_value::<Stats>(json).unwrap(), stats);
    }
}
