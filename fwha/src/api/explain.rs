//! Why a node has its role, and what would become of a packet.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{FlowRow, TrackerStatus};

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
    /// Why it is dropped or rejected, by the names in [`Stats::drops`](super::Stats::drops).
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
