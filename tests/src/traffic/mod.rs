//! Traffic whose loss can be told exactly: a paced copy over one TCP connection, a UDP probe, and TCP connections that are
//! held or opened anew. And one TCP connection at a time, word by word, for tests that ask whether it is still there.
//!
//! All but the last are parts of the program `fwha-traffic`, which runs inside a box of the lab and prints one JSON object a line.
//! All stamps are milliseconds of `CLOCK_MONOTONIC`, which every namespace of a machine shares, so they can be laid
//! beside a node's events.

pub mod connections;
pub mod conversation;
pub mod copy;
pub mod probe;
mod running;

pub use self::connections::{ConnectionEvent, DialledReport, HeldReport};
pub use self::conversation::Conversation;
pub use self::copy::{CopyEvent, CopyReport};
pub use self::probe::{ProbeEvent, ProbeReport};
pub use self::running::{Connections, Copy, Plan, Probe};

use std::io::Write as _;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Now, in milliseconds of `CLOCK_MONOTONIC`.
pub fn mono_ms() -> f64 {
    mono().as_secs_f64() * 1000.0
}

/// Now, since the start of `CLOCK_MONOTONIC`.
///
/// # Panics
///
/// On a system without that clock; Linux has it.
pub fn mono() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).expect("CLOCK_MONOTONIC exists").into()
}

/// Prints one event as a line of its own, at once.
fn emit(event: &impl serde::Serialize) {
    let mut line = serde_json::to_vec(event).expect("events are plain data");
    line.push(b'\n');
    // Nobody listens any more: then nobody misses it.
    let _ = std::io::stdout().lock().write_all(&line);
}
