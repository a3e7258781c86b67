//! The targets, a file each. What a target holds is the table in the crate's description.

pub mod config;
pub mod election;
pub mod envelope;
pub mod frame;
pub mod heartbeat;
pub mod packet;
pub mod query;
pub mod records;
pub mod replication;
pub mod tcp;
pub mod vrrp;
