//! The sockets by which nodes speak with each other. All are nonblocking and can be polled; the
//! election's thread owns them, outside of any runtime.
//!
//! | module | speaks | authority |
//! |---|---|---|
//! | [`vrrp`] | VRRP on zone interfaces (raw IP) | none: it is forgeable |
//! | [`probe`] | keyed frames that the peer's data plane answers (packet socket) | says who is alive |
//! | [`sync`] | sealed datagrams on sync links (UDP) | all |

pub mod probe;
pub mod sync;
#[cfg(test)]
mod tests;
pub mod vrrp;

pub use probe::ProbeSocket;
pub use sync::{Refused, SyncSocket};
pub use vrrp::VrrpSocket;

/// Class selector 6, "internetwork control" (RFC 4594), as a TOS byte.
const TOS_CONTROL: u32 = 0xc0;

/// `TC_PRIO_CONTROL`: ahead of everything else in the interface's queue.
const PRIORITY_CONTROL: i32 = 7;
