//! The fwha daemon and its control program.
//!
//! | module | holds |
//! |---|---|
//! | [`args`] | the command lines of both programs |
//! | [`config`] | the config file: reading, checking, resolving |
//! | [`check`] | `fwha check` |
//! | [`cleanup`] | `fwha cleanup` |
//! | [`daemon`] | `fwha run` |
//! | [`dataplane`] | programs and maps in the kernel: load, pin, adopt, attach |
//! | [`netlink`] | addresses, links, routes, gratuitous ARP |
//! | [`policy`] | what the config says about single flows, for replication |
//! | [`socket`] | VRRP, probes, sealed datagrams |
//! | [`sys`] | system calls that no crate wraps; all `unsafe` is there |
//! | [`ctl`] | the verbs of `fwhactl` |
//! | [`api`] | what the daemon and its clients say to each other |

pub mod api;
pub mod args;
pub mod check;
pub mod cleanup;
pub mod config;
pub mod ctl;
pub mod daemon;
pub mod dataplane;
pub mod netlink;
pub mod policy;
pub mod socket;
pub mod sys;
#[cfg(test)]
mod testing;
