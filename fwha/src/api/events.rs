//! What happened.

use serde::{Deserialize, Serialize};

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
