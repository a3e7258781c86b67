//! What an operator asks a node to do, and what came of it.

use serde::{Deserialize, Serialize};

use super::BulkStatus;

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
    /// Also to a node that is not in sync with this one.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
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
    /// Also if a group is then without any node, or with one that is not in sync with this one.
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

/// What is different in the config file, and what became of it. A file with mistakes is an [`ApiError`](super::ApiError).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ReloadReply {
    /// The node.
    pub node: String,
    /// The file is in force. If not, nothing has changed: it was a dry run, or something needs a restart.
    pub applied: bool,
    /// The differences.
    pub changes: Vec<ConfigChange>,
    /// What is worth a thought in the file (`fwha check` says it, too) and was not in the one before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
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
