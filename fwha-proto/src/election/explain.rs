//! Why this node has the role that it has: the judgement of `decide` in words.
//!
//! It reads the same state by the same functions and changes nothing.

use std::cmp::Reverse;

use super::Election;
use super::config::GroupId;
use super::decide::{Standing, standing};
use super::reach::Path;
use super::status::TrackerStatus;
use crate::NodeId;
use crate::heartbeat::{PeerState, Role};
use crate::time::Time;

/// A role, explained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The group.
    pub group: GroupId,
    /// This node's role.
    pub role: Role,
    /// How it came to it.
    pub reason: String,
    /// What holds it there now, a sentence each.
    pub because: Vec<String>,
    /// The group's nodes, most preferred first.
    pub members: Vec<Member>,
    /// The trackers that matter for it, in the order of the config.
    pub trackers: Vec<TrackerStatus>,
}

/// What a node could be for a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The node.
    pub node: NodeId,
    /// Its priority.
    pub priority: u8,
    /// Whether it is Active, could be, or what keeps it.
    pub standing: String,
}

impl Election {
    /// Explains this node's role in every group.
    pub fn explain(&self, now: Time) -> Vec<Explanation> {
        (0..self.groups.len())
            .map(|g| {
                let group = &self.groups[g];
                Explanation {
                    group: group.config.group,
                    role: group.role,
                    reason: group.reason.clone(),
                    because: self.because(g, now),
                    members: group
                        .config
                        .members
                        .iter()
                        .map(|&(node, priority)| self.member(g, node, priority))
                        .collect(),
                    trackers: self.trackers(g, now),
                }
            })
            .collect()
    }

    fn member(&self, g: usize, node: NodeId, priority: u8) -> Member {
        let group = &self.groups[g];
        let standing = match self.peer(node).map(|peer| standing(peer, group.config.group, self.clock)) {
            None if group.is_active() => "active: this node".into(),
            None => match self.forbidden(g) {
                Some((_, cause)) => {
                    format!("cannot be active: {}", group.fault().unwrap_or_else(|| cause.to_string()))
                }
                None => "could be active: this node".into(),
            },
            Some(Standing::Active(record)) => format!("active in term {}", record.term),
            Some(Standing::Candidate(record)) if record.warm => "could be active, with the flows".into(),
            Some(Standing::Candidate(_)) => "could be active, without the flows".into(),
            Some(Standing::Out) => format!("cannot be active: {}", self.state_text(g, node)),
            Some(Standing::Pending) => format!("may be active still: {}", self.state_text(g, node)),
            Some(Standing::Unheard(_)) => format!("not heard: {}", self.state_text(g, node)),
        };
        // What its trackers have left of it, as it last said.
        let priority = match self.peer(node) {
            None => group.priority(),
            Some(peer) => peer.group(group.config.group).map_or(priority, |record| record.priority),
        };
        Member { node, priority, standing }
    }

    fn because(&self, g: usize, now: Time) -> Vec<String> {
        let group = &self.groups[g];
        let name = |node| self.config.node_name(node);
        let mut because = Vec::new();
        if group.place.is_none() {
            return vec!["this node is not a member of the group".into()];
        }
        if let Some((_, cause)) = self.forbidden(g) {
            because.push(format!(
                "it must not be active: {}",
                group.fault().unwrap_or_else(|| cause.to_string())
            ));
            if group.is_active() && group.handover.is_none() {
                because.push("it gives the group up".into());
            }
        }
        for zone in self.spared_zones(g) {
            because.push(format!(
                "{} has no carrier, which counts for nothing: no other node is known to be better off",
                self.zone_name(zone)
            ));
        }
        if let Some(text) = group.tracked.lowered_by() {
            because.push(format!("its priority is lowered to {}: {text}", group.priority()));
        }
        if group.is_active() {
            match (group.handover, self.best_candidate(g)) {
                (Some(handover), _) => {
                    because.push(format!("it is handing the group over to {}", name(handover.to)))
                }
                (None, Some(heir)) => because.push(format!("if it is lost, {} takes over", name(heir))),
                (None, None) => because.push("if it is lost, no node is known that could take over".into()),
            }
            if group.moved {
                because.push("an operator moved the group here: no node preempts it".into());
            }
            if let Some(refusal) = &group.refusal {
                let ago_s = now.since(refusal.at).as_secs();
                because.push(format!(
                    "it was offered to {}, which {} ({ago_s} s ago)",
                    name(refusal.by),
                    refusal.reason
                ));
            }
        } else if self.forbidden(g).is_none() {
            self.why_not_active(g, now, &mut because);
        }
        self.explain_witnesses(g, &mut because);
        self.explain_reach(g, &mut because);
        because
    }

    /// How this node is placed in the zones of a group, where that is in question.
    fn explain_reach(&self, g: usize, because: &mut Vec<String>) {
        let zones = |zone: u8| self.groups[g].config.instances.iter().any(|i| i.zone == zone);
        for reach in self.reach_status().into_iter().filter(|r| zones(r.zone)) {
            let name = self.zone_name(reach.zone);
            let (asked, answered) = reach.neighbours;
            because.push(format!("{name}: {answered} of {asked} neighbours answer this node"));
            for (peer, path) in reach.paths {
                let peer = self.config.node_name(peer);
                match path {
                    Path::Both => {}
                    Path::Unheard => {
                        because.push(format!("one-way in {name}: {peer} does not hear this node there"))
                    }
                    Path::Deaf => {
                        because.push(format!("one-way in {name}: this node does not hear {peer} there"))
                    }
                    Path::Cut => {
                        because.push(format!("{name}: this node and {peer} do not hear each other there"))
                    }
                }
            }
        }
    }

    /// What the witnesses mean for a group.
    fn explain_witnesses(&self, g: usize, because: &mut Vec<String>) {
        let group = &self.groups[g];
        let names = |nodes: &mut dyn Iterator<Item = NodeId>| {
            nodes.map(|node| self.config.node_name(node)).collect::<Vec<_>>().join(" and ")
        };
        if group.held.is_some_and(|held| held.back.is_some()) {
            let lost = names(&mut self.unreached(g));
            because.push(format!("a witness answers again: {lost} is given a moment to be heard, too"));
        } else if group.held.is_some() {
            let lost = names(&mut self.unreached(g));
            because.push(format!(
                "{lost} cannot be reached, and no witness answers: this node may be the one that is cut off"
            ));
        } else if self.witnesses.none_up() && group.is_active() {
            because.push("no witness answers: it keeps the group, but would not take it like this".into());
        } else if self.witnesses.none_up() {
            let others = names(&mut group.others());
            because.push(format!(
                "no witness answers: it does not take the group if {others} cannot be reached"
            ));
        }
    }

    /// Why a node that may be Active is not.
    fn why_not_active(&self, g: usize, now: Time, because: &mut Vec<String>) {
        let group = &self.groups[g];
        let name = |node| self.config.node_name(node);
        if let Some((active, record)) = self.actives(g).next() {
            because.push(format!("{} is active in term {}", name(active), record.term));
            let mine = (group.priority(), Reverse(group.order(self.me())));
            let preferred = mine > (record.priority, Reverse(group.order(active)));
            because.push(match group.preempt_since {
                Some(since) => {
                    let ready = self.peer(active).is_some_and(|p| p.in_sync);
                    let wait = if ready {
                        group.config.preempt_delay
                    } else {
                        self.config.preempt_wait.max(group.config.preempt_delay)
                    };
                    let left_s = (since + wait).since(now).as_secs_f64();
                    let sync = if ready { "" } else { ", sooner when it is in sync" };
                    format!("this node is preferred, and takes the group in {left_s:.1} s{sync}")
                }
                None if !preferred => format!("{} is preferred", name(active)),
                None if !group.config.preempt => "this node is preferred, but `preempt` is off".into(),
                None if self.untried(g) => {
                    "this node is preferred, but not all of its trackers have been heard".into()
                }
                None if self.peer(active).is_some_and(|p| p.config_differs(self.config.config_hash)) => {
                    format!("this node is preferred, but {} has another cluster file", name(active))
                }
                None if let Some(zone) = self.unconnected(g, active) => format!(
                    "this node is preferred, but hears no advert of {} in {}: its frames may not get there",
                    name(active),
                    self.zone_name(zone)
                ),
                None if group.moved_to.is_some() => {
                    format!("this node is preferred, but an operator moved the group to {}", name(active))
                }
                None => {
                    "this node is preferred, but another candidate more so, or the group is on its way".into()
                }
            });
            return;
        }
        if let Some((active, term)) = self.told_actives(g).next() {
            because.push(format!("{} is active in term {term}: another node hears it", name(active)));
            return;
        }
        because.push("no node is known to be active".into());
        for node in group.others() {
            let Some(peer) = self.peer(node) else { continue };
            match standing(peer, group.config.group, self.clock) {
                Standing::Pending => because.push(format!(
                    "{} may own the group still ({}): its probes or the end of its lease will tell",
                    name(node),
                    peer.state()
                )),
                Standing::Unheard(_) => because.push(format!(
                    "nothing authentic is heard of {} ({}): the silence of adverts has to show that nobody is active",
                    name(node),
                    peer.state()
                )),
                Standing::Candidate(_) if peer.state() == PeerState::Alive => {
                    because.push(format!("{} could take it as well: the better one does", name(node)));
                }
                _ => {}
            }
        }
    }
}
