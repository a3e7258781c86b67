//! fwha.

pub mod dataplane;
pub mod netlink;
pub mod socket;
pub mod sys;
#[cfg(test)]
mod testing;
