//! The protocols of fwha, without I/O and without a clock.
//!
//! Every type here is a machine: inputs are method calls that carry `now`, outputs are drained. The
//! same inputs at the same times give the same outputs, so a seed reproduces a run and a recorded
//! run replays.
//!
//! | module | holds |
//! |---|---|
//! | [`time`] | the point in time that every call carries |
//! | [`vrrp`] | VRRPv3: packets and the RFC's state machine |
//! | [`heartbeat`] | what nodes tell each other some hundred times a second |
//! | [`election`] | who is Active for each group |
//! | [`hook`] | what programs that wait for changes of role are told, and may miss |
//! | [`resource`] | services that run where a group is Active: what is to be done next |
//! | [`seal`] | keys, the sealed datagram, the handshake that opens a channel to a peer |
//! | [`tracker`] | from single checks of something to a verdict on it |
//! | [`replication`] | flow state, from the node that owns it to those that may have to take over |
mod cipher;
pub mod election;
pub mod heartbeat;
pub mod hook;
pub mod replication;
pub mod resource;
pub mod seal;
pub mod time;
pub mod tracker;
pub mod vrrp;

/// A node's number: its place in the cluster file, from 1.
pub type NodeId = u8;

/// A term rises by one with each takeover. Who claims one that is further above what is known than this is not believed:
/// soon there would be no higher one to take over with.
pub const TERM_LEAP_MAX: u32 = 1 << 24;
