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
//! | `POST /v1/resource/cleanup` [`ResourceRequest`] | [`ResourceReply`] |
//! | `GET /v1/capture?`[`CaptureQuery`] | a [`CaptureLine`] a line, as packets are dropped |
//!
//! While the node is on standby, every answer has a header [`WARNING_HEADER`] that says so.
//! Answers of one object a line have the type [`NDJSON`] and end when there is no more. Any answer whose
//! status is not 2xx is an [`ApiError`].

mod capture;
mod events;
mod explain;
mod flows;
mod requests;
mod stats;
mod status;

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use self::capture::*;
pub use self::events::*;
pub use self::explain::*;
pub use self::flows::*;
pub use self::requests::*;
pub use self::stats::*;
pub use self::status::*;

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

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{error}")]
pub struct ApiError {
    /// In words: what is wrong, and the remedy.
    pub error: String,
}
