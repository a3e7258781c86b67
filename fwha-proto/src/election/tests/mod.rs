//! What happens to a cluster, told as scenarios.

mod cuts;
mod death;
mod explain;
mod moves;
mod reach;
mod reload;
mod rules;
mod schedules;
mod start;
mod strangers;
mod trackers;
mod witness;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::rig::{Rig, Rng, group, interface, ms, zone_address, zone_link_local};
use super::*;
use crate::heartbeat::Cause;
use crate::vrrp::packet::{Advert, Auth, Checksum, Envelope, Version};

const SYNC: Via = Via::Sync(0);
const LAN: Via = Via::Zone(2);

/// A takeover of a dead node at heartbeats of 10 ms: 1.5 intervals after the last one four probes, and the way.
const DEAD_LIMIT: Duration = ms(35);

fn role_causes(rig: &Rig, n: NodeId, since: Time) -> Vec<(Role, Cause)> {
    let events = rig.events(n, since);
    events
        .iter()
        .filter_map(|e| if let Event::Role { to, cause, .. } = e { Some((*to, *cause)) } else { None })
        .collect()
}

/// What holds a node in its role in group 0.
fn because(rig: &mut Rig, node: NodeId) -> String {
    let now = rig.now;
    rig.election(node).explain(now)[0].because.join("; ")
}
