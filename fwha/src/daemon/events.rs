//! What happened: a bounded history, and a stream for those who follow.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use fwha_proto::time::Time;
use tokio::sync::broadcast;

use crate::api::{Event, Step};

/// Events kept for `fwhactl events`; older ones are forgotten.
const HISTORY: usize = 1000;
/// Events that a follower may lag behind before it is told that it missed some.
const FOLLOWER_LAG: usize = 256;

/// The node's event log. Shared by all threads; never blocks for longer than a copy.
pub struct EventLog {
    history: Mutex<VecDeque<Event>>,
    followers: broadcast::Sender<Event>,
}

impl Default for EventLog {
    fn default() -> Self {
        Self { history: Mutex::default(), followers: broadcast::channel(FOLLOWER_LAG).0 }
    }
}

impl EventLog {
    /// Records that something happened at `at`, and writes it to the daemon's log.
    pub fn record(&self, at: Time, kind: &str, group: Option<&str>, text: String, steps: Vec<Step>) {
        tracing::info!(kind, group, "{text}{}", StepList(&steps));
        let event = Event {
            at_unix_ms: unix_ms(),
            at_mono_ms: at.as_nanos() as f64 / 1e6,
            kind: kind.to_owned(),
            group: group.map(str::to_owned),
            text,
            steps,
        };
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        if history.len() == HISTORY {
            history.pop_front();
        }
        history.push_back(event.clone());
        // Nobody following is not an error. Sent under the lock, so that no follower that just
        // copied the history misses an event or sees one twice.
        let _ = self.followers.send(event);
    }

    /// The history so far, and everything from now on.
    pub fn follow(&self) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        (history.iter().cloned().collect(), self.followers.subscribe())
    }
}

/// What a follower is told that did not read fast enough.
pub fn missed(count: u64) -> Event {
    Event {
        at_unix_ms: unix_ms(),
        at_mono_ms: 0.0,
        kind: "missed".to_owned(),
        group: None,
        text: format!("{count} events went by unread: `fwhactl events` has the latest"),
        steps: Vec::new(),
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// A step of a takeover that was done at `now`: its time since the decision.
pub fn step(name: &str, decided: Time, now: Time) -> Step {
    Step { name: name.to_owned(), ms: now.since(decided).as_secs_f64() * 1e3 }
}

struct StepList<'a>(&'a [Step]);

impl std::fmt::Display for StepList<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, step) in self.0.iter().enumerate() {
            let separator = if i == 0 { " (" } else { ", " };
            write!(f, "{separator}{} {:.2} ms", step.name, step.ms)?;
        }
        if self.0.is_empty() { Ok(()) } else { f.write_str(")") }
    }
}
