//! What `status` warns of when this daemon or this machine is to blame, not a peer.

use std::sync::Arc;
use std::time::Duration;

use fwha_common::drop::DropReason;
use fwha_common::settings::Counter;
use fwha_proto::election::reach::Path;
use fwha_proto::election::status::{GroupStatus, Stranger};
use fwha_proto::heartbeat::{NodeState, Role};
use fwha_proto::resource::State;
use fwha_proto::tracker;

use super::claims;
use super::election;
use super::moves;
use super::network::Attached;
use super::replication::Snapshot;
use super::rises::LOOK_INTERVAL;
use super::server::Server;
use crate::dataplane::{AttachKind, stack_forwards_ipv6};
use crate::netlink::ipsec;
use crate::sys::interface::{filters_tags, takes_tags_off};

/// How long a stranger on a sync link is worth a warning.
const STRANGER_MEMORY: Duration = Duration::from_secs(60);

impl Server {
    /// What is wrong with this daemon itself.
    pub(super) fn own_warnings(&self, election: &election::Snapshot, replication: &Snapshot) -> Vec<String> {
        let now = self.now();
        let config = self.config();
        let mut warnings = Vec::new();
        let path = config.path().display();
        match self.file.is_in_force(&config) {
            Ok(true) => {}
            Ok(false) => warnings.push(format!(
                "{path} has changed and is not in force: `fwhactl reload` (with --dry-run it shows the changes)"
            )),
            Err(problem) => warnings.push(format!("{path}: {problem}")),
        }
        let mut addresses = config.groups.iter().flat_map(|group| &group.vips).flat_map(|vip| &vip.addresses);
        if addresses.any(|net| net.addr().is_ipv6()) && !stack_forwards_ipv6() {
            warnings.push(
                "the kernel does not forward IPv6 (net.ipv6.conf.all.forwarding is 0): a neighbour that is not known yet is never \
                 asked for, and nobody is told that a packet is too big; set it to 1"
                    .into(),
            );
        }
        for thread in self.threads(election, replication).iter().filter(|t| t.hangs()) {
            warnings.push(format!(
                "the {} thread has shown no sign of life for {:.1} s: what is said here is old",
                thread.name,
                Duration::from_millis(thread.silent_ms).as_secs_f64()
            ));
        }
        if election.status.node == NodeState::Standby {
            warnings.push(moves::on_standby(self.names.me()));
        }
        for group in election.status.groups.iter().filter(|g| g.moved && g.role == Role::Active) {
            let known = config.groups.iter().find(|c| c.id == group.group);
            if let Some(config) =
                known.filter(|c| c.preempt && c.nodes.first().is_some_and(|n| n.0 != self.me))
            {
                warnings.push(format!(
                    "group {} was moved here by an operator: {} does not take it back until its role changes again",
                    config.name,
                    self.names.node(config.nodes[0].0)
                ));
            }
        }
        for group in &election.status.groups {
            for zone in &group.spared {
                warnings.push(format!(
                    "group {}: zone {} has no carrier, and no other node is known to be better off",
                    self.names.group(group.group),
                    self.names.zone(*zone)
                ));
            }
            for tracker in group.trackers.iter().filter(|t| t.report.state == tracker::State::Down) {
                warnings.push(format!(
                    "tracker {} fails: {}; effect on group {}: {}",
                    tracker.name,
                    tracker.report.failure,
                    self.names.group(group.group),
                    tracker.effect
                ));
            }
        }
        for reach in &election.status.reaches {
            let (zone, me) = (self.names.zone(reach.zone), self.names.me());
            for (peer, path) in &reach.paths {
                let peer = self.names.node(*peer);
                match path {
                    Path::Both => {}
                    Path::Unheard => {
                        warnings.push(format!("one-way in zone {zone}: {peer} does not hear {me}"))
                    }
                    Path::Deaf => warnings.push(format!("one-way in zone {zone}: {me} does not hear {peer}")),
                    Path::Cut => {
                        warnings.push(format!("zone {zone}: {peer} and {me} do not hear each other"))
                    }
                }
            }
            if reach.state == tracker::State::Down {
                let asked = reach.neighbours.0;
                warnings.push(format!("zone {zone}: none of {asked} neighbours answers this node"));
            }
        }
        let active = |g: &&GroupStatus| g.role == Role::Active;
        let here = election.status.groups.iter().filter(active).map(|g| g.group).collect();
        match claims::recent(&self.maps, &self.names, &here, now.as_nanos()) {
            Ok(claimed) => warnings.extend(claimed),
            Err(error) => warnings.push(format!("cannot see who else claims the addresses: {error}")),
        }
        let witnesses = &election.status.witnesses;
        if !witnesses.is_empty() && witnesses.iter().all(|w| w.state == tracker::State::Down) {
            let names: Vec<String> = witnesses.iter().map(|w| w.address.to_string()).collect();
            warnings.push(format!(
                "no witness answers ({}): this node takes no group of a node that it cannot reach",
                names.join(", ")
            ));
        }
        for group in election.status.groups.iter().filter(|g| g.held) {
            warnings.push(format!(
                "group {}: this node would take it, but may be the one that is cut off: no witness answers",
                self.names.group(group.group)
            ));
        }
        for group in &election.status.groups {
            for (name, report) in self.resource_reports(group.group) {
                if let Some(failure) = report.failure {
                    let remedy = match report.state {
                        State::Failed => format!("; `fwhactl resource cleanup {name}` tries it again"),
                        _ => String::new(),
                    };
                    warnings.push(format!("resource {name} is {}: {failure}{remedy}", report.state.as_str()));
                }
            }
        }
        let late = &election.lateness;
        if late.recent(now) {
            warnings.push(format!(
                "the election thread was late by up to {} ms (last {} s ago): this machine is overloaded",
                late.worst.as_millis(),
                now.since(late.last).as_secs()
            ));
        }
        if let Some(stranger) = election.status.stranger.filter(|s| now.since(s.at) < STRANGER_MEMORY) {
            warnings.push(self.stranger(&stranger));
        }
        let Attached { interfaces: attached, problems } = &**self.attached.load();
        warnings.extend(problems.iter().cloned());
        let mut hidden: Vec<&str> = attached
            .iter()
            .filter_map(|a| a.trunk.as_deref())
            .filter(|trunk| takes_tags_off(trunk).unwrap_or(false))
            .collect();
        hidden.sort_unstable();
        hidden.dedup();
        for trunk in hidden {
            warnings.push(format!(
                "interface {trunk} takes VLAN tags off what it receives, and XDP judges it as if it had none: \
                 `ethtool -K {trunk} rxvlan off`"
            ));
        }
        for trunk in attached.iter().filter(|a| a.bare && filters_tags(&a.name).unwrap_or(false)) {
            let name = &trunk.name;
            warnings.push(format!(
                "interface {name} drops VLAN tags that the kernel has no device for, and the zone's may be one: \
                 `ethtool -K {name} rx-vlan-filter off`, or where that is fixed `ip link set {name} promisc on`"
            ));
        }
        if attached.iter().any(|a| a.kind == AttachKind::Xdp) {
            for detour in attached.iter().filter(|a| a.zone.is_some() && !a.xmit) {
                warnings.push(format!(
                    "what comes by XDP leaves by {} through the kernel's stack, for that sends nothing of XDP: \
                     attach = \"tc\" on all zones spares the detour",
                    detour.name
                ));
            }
        }
        if let Ok(policies @ 1..) = ipsec::policies() {
            warnings.push(format!(
                "{policies} IPsec policies: what the programs forward does not meet them, and would leave in the clear"
            ));
        }
        warnings.extend(self.losses(replication));
        warnings.extend(self.troubles.texts());
        warnings
    }

    /// What finds no room, as long as that goes on; the totals are in the counters.
    pub(super) fn losses(&self, replication: &Snapshot) -> Vec<String> {
        let now = self.now();
        let mut warnings = Vec::new();
        let count = |name| replication.counters.iter().find(|(n, _)| *n == name).map_or(0, |(_, n)| *n);
        let (full, failed) = (count("apply_full"), count("apply_failed"));
        if self.rises.lately(now, "peers", full + failed) {
            warnings.push(format!(
                "{full} flows of peers found no room in the flow table so far, {failed} could not be written, some of \
                 them in the last minute"
            ));
        }
        // What cannot be read now is read again soon.
        let refused =
            self.maps.drops().ok().and_then(|drops| drops.get(DropReason::TableFull as usize).copied());
        if let Some(refused) = refused
            && self.rises.lately(now, "table_full", refused)
        {
            let max = self.config().cluster.max_flows;
            warnings.push(format!(
                "{refused} answers to new flows found the flow table full so far, some of them in the last minute: raise \
                 max-flows ({max}), or set [limits]"
            ));
        }
        let lost = self.maps.counters().ok().and_then(|all| all.get(Counter::EventsLost as usize).copied());
        if let Some(lost) = lost
            && self.rises.lately(now, "events_lost", lost)
        {
            warnings.push(format!(
                "{lost} flow events were lost so far, some of them in the last minute, and made up for by comparing tables"
            ));
        }
        warnings
    }

    /// Looks at what [`Self::losses`] tells of from time to time, for as long as the node runs.
    pub(super) async fn watch_losses(self: Arc<Self>) {
        let mut looks = tokio::time::interval(LOOK_INTERVAL);
        loop {
            looks.tick().await;
            self.losses(&self.replication_status.load());
        }
    }

    fn stranger(&self, stranger: &Stranger) -> String {
        let config = self.config();
        let me = config.node(self.me);
        let link = me.and_then(|n| n.sync.get(usize::from(stranger.link))).map_or("?", |s| &s.interface);
        let error = stranger.error;
        match stranger.claims {
            0 => format!("sync interface {link}: datagrams refused: {error}"),
            node if node == self.me => format!(
                "sync interface {link}: another machine says that it is {}, too: check --node there",
                self.names.me()
            ),
            node => {
                format!("sync interface {link}: datagrams refused: node {node} is not in the config file")
            }
        }
    }
}
