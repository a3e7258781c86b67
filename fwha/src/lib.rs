//! The fwha daemon and its control program.
//!
//! | module | holds |
//! |---|---|
//! | [`config`] | the config file: reading, checking, resolving |
//! | [`daemon`] | `fwha run` |
//! | [`dataplane`] | programs and maps in the kernel: load, pin, adopt, attach |
//! | [`netlink`] | addresses, links, routes, gratuitous ARP |
//! | [`socket`] | VRRP, probes, sealed datagrams |
//! | [`sys`] | system calls that no crate wraps; all `unsafe` is there |

pub mod config;
pub mod daemon;
pub mod dataplane;
pub mod netlink;
pub mod socket;
pub mod sys;
#[cfg(test)]
mod testing;
