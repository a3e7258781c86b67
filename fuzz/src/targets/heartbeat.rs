//! Heartbeats.

use fwha_proto::heartbeat::{Heartbeat, LEN_MAX};

/// Reads a payload.
pub fn run(data: &[u8]) {
    let Ok(heartbeat) = Heartbeat::parse(data) else { return };
    let written = heartbeat.write();
    assert!(written.len() <= LEN_MAX.min(data.len()), "what is written is not longer than what was read");
    assert_eq!(Heartbeat::parse(&written), Ok(heartbeat));
}
