//! Addresses that another cluster file gives to another group, whose node may not have read it yet: they come to their
//! new place before they leave the old one.
//!
//! The node that has an address keeps it until the one that is to have it runs with the same file. That one, for as long
//! as files differ, repeats to the neighbours that the address is there: until the other lets go, both answer.

use std::time::{Duration, Instant};

use fwha_proto::election::GroupId;
use fwha_proto::heartbeat::Role;

use super::election::Snapshot;
use crate::netlink::Address;

/// For how long the new place must have been ready: to put addresses on an interface takes time.
const READY: Duration = Duration::from_secs(1);
/// For how long an address is announced after all nodes have the same file: until the other has let go.
const AFTER: Duration = Duration::from_secs(3);

/// An address that is to leave this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaving {
    /// The group that had it.
    pub from: GroupId,
    /// The group that has it.
    pub to: GroupId,
    /// The address.
    pub address: Address,
    /// Since when the other node has it.
    ready: Option<Instant>,
}

impl Leaving {
    /// From now on.
    pub const fn new(from: GroupId, to: GroupId, address: Address) -> Self {
        Self { from, to, address, ready: None }
    }

    /// Whether it may go, as the election stands.
    pub fn may_go(&mut self, now: Instant, election: &Snapshot) -> bool {
        if !has(election, self.to) {
            self.ready = None;
            return false;
        }
        now.duration_since(*self.ready.get_or_insert(now)) >= READY
    }
}

/// Whether another node with the same cluster file is Active in a group.
fn has(election: &Snapshot, group: GroupId) -> bool {
    election.status.peers.iter().any(|peer| {
        let active = |&(g, role, _): &(GroupId, Role, u32)| g == group && role == Role::Active;
        peer.other_config.is_none() && peer.roles.iter().any(active)
    })
}

/// Addresses that have come to this node while another may still have them.
#[derive(Debug, Default)]
pub struct Arrived {
    addresses: Vec<(GroupId, Address)>,
    /// Since when all nodes have the same file.
    agreed: Option<Instant>,
}

impl Arrived {
    /// These have come.
    pub fn note(&mut self, addresses: Vec<(GroupId, Address)>) {
        *self = Self { addresses, agreed: None };
    }

    /// What is to be announced once more.
    pub fn to_announce(&mut self, now: Instant, election: &Snapshot) -> Vec<(GroupId, Address)> {
        if election.status.peers.iter().any(|peer| peer.other_config.is_some()) {
            self.agreed = None;
        } else if now.duration_since(*self.agreed.get_or_insert(now)) > AFTER {
            self.addresses.clear();
        }
        self.addresses.clone()
    }
}
