//! What must be whenever something has changed, and what keeps the cluster from being whole.

use super::*;

impl World {
    pub(super) fn check(&mut self) {
        if !self.touched.iter().any(|&t| t) {
            return;
        }
        let touched = std::mem::replace(&mut self.touched, vec![false; self.nodes.len()]);
        if self.differed.is_some_and(|before| self.differences() > before) {
            return self.violate("a bucket differs for nothing but what the network does");
        }
        for (i, &touched_here) in touched.iter().enumerate() {
            if let Err(why) = self.check_memory(i, touched_here) {
                return self.violate(why);
            }
            match self.check_proofs(i, &touched) {
                Ok(proved) => {
                    self.proofs += proved.len() as u64;
                    for (group, peer) in proved.into_iter().filter(|_| self.shape.elected) {
                        let kernel = &self.nodes[i].kernel;
                        let promised = self.promised[usize::from(group)].entry(peer).or_default();
                        if promised.sums != *kernel.sums() {
                            let flows = kernel.from(0).filter(|(_, f)| group_of(f.bucket) == group);
                            promised.flows = flows.map(|(n, f)| (n, f.id())).collect();
                            promised.sums = *kernel.sums();
                        }
                    }
                }
                Err(why) => return self.violate(why),
            }
        }
    }

    /// How often a node has found that a bucket differs.
    pub fn differences(&self) -> u64 {
        let daemons = self.nodes.iter().filter_map(|n| Some((n, n.daemon.as_ref()?)));
        daemons
            .flat_map(|(n, d)| d.replication.status(n.clock(self.now)))
            .map(|s| s.counters.digest_differs)
            .sum()
    }

    fn check_memory(&self, i: usize, touched: bool) -> Result<(), String> {
        let Some(daemon) = self.nodes[i].daemon.as_ref().filter(|_| touched) else { return Ok(()) };
        let (replication, shape) = (&daemon.replication, &self.shape);
        let tombstones_max = (shape.max_flows / TOMBSTONES_SHARE).max(TOMBSTONES_MIN) + shape.max_flows;
        if replication.len() > shape.max_flows {
            return Err(format!("fw{} holds {} flows", i + 1, replication.len()));
        }
        if replication.tombstones() > tombstones_max {
            return Err(format!("fw{} holds {} tombstones", i + 1, replication.tombstones()));
        }
        for s in replication.status(self.now + self.nodes[i].offset) {
            if s.queued > shape.queue_max || s.unacked > UNACKED_MAX {
                return Err(format!("fw{} has queued {}, unacknowledged {}", i + 1, s.queued, s.unacked));
            }
        }
        Ok(())
    }

    /// Where both ends say in-sync and nothing is on its way, what the owner has is there.
    fn check_proofs(&self, i: usize, touched: &[bool]) -> Result<Vec<(Group, NodeId)>, String> {
        let owner = &self.nodes[i];
        let mut proofs = Vec::new();
        let Some(daemon) = &owner.daemon else { return Ok(proofs) };
        for group in 0..GROUPS as Group {
            if self.owner(group).is_none_or(|o| o.id != owner.id) || !owner.settled() {
                continue;
            }
            let proves = |peer: &Node| {
                let in_sync = |node: &Node, with| {
                    node.daemon.as_ref().and_then(|d| d.sync_state(with)) == Some(SyncState::InSync)
                };
                peer.id != owner.id
                    && (touched[i] || touched[usize::from(peer.id) - 1])
                    && in_sync(owner, peer.id)
                    && in_sync(peer, owner.id)
                    && peer.settled()
                    && peer.kernel.owned[usize::from(group)].is_none()
            };
            if !self.nodes.iter().any(proves) {
                continue;
            }
            for s in daemon.replication.status(owner.clock(self.now)).filter(quiet) {
                let peer = &self.nodes[usize::from(s.peer) - 1];
                if !proves(peer) {
                    continue;
                }
                proofs.push((group, s.peer));
                if let Some(difference) = self.difference(owner, peer, group) {
                    return Err(format!(
                        "fw{} and fw{} call themselves in-sync, but {difference}",
                        owner.id, peer.id
                    ));
                }
            }
        }
        Ok(proofs)
    }

    /// The first flow of a group in which two kernels differ.
    fn difference(&self, owner: &Node, peer: &Node, group: Group) -> Option<String> {
        let buckets = buckets_of(group);
        let differs = |b: u8| owner.kernel.sums()[usize::from(b)] != peer.kernel.sums()[usize::from(b)];
        let bucket = buckets.iter().find(|&b| differs(b))?;
        let of = |node: &Node| -> BTreeMap<Number, (FlowId, u64)> {
            let flows = node.kernel.from(0).filter(|(_, f)| f.bucket == bucket);
            flows.map(|(n, f)| (n, (f.id(), f.version))).collect()
        };
        let (ours, theirs) = (of(owner), of(peer));
        let n = ours.keys().chain(theirs.keys()).find(|n| ours.get(n) != theirs.get(n))?;
        let say = |node: &Node, flows: &BTreeMap<Number, (FlowId, u64)>| {
            let flow = flows.get(n).map(|&(id, version)| format!("{} version {version:x}", name(id)));
            format!("fw{} has {}", node.id, flow.unwrap_or_else(|| "nothing".into()))
        };
        Some(format!("of key {n} {} and {}", say(owner, &ours), say(peer, &theirs)))
    }

    /// What keeps the cluster from being whole: all nodes up and in sync with each other, kernels and
    /// digests equal, nothing queued, no tombstone left. `None` if nothing does.
    pub fn unrest(&self) -> Option<String> {
        let everybody = self.nodes.iter().map(|n| n.daemon.as_ref().map(|d| (n, d)));
        let Some(everybody) = everybody.collect::<Option<Vec<_>>>() else {
            return Some("a node is down".into());
        };
        for (node, daemon) in &everybody {
            let unfinished = daemon.replication.status(node.clock(self.now)).find(|s| !quiet(s));
            if let Some(s) = unfinished {
                return Some(format!("fw{} is {} with fw{}", node.id, s.state.as_str(), s.peer));
            }
            if daemon.replication.tombstones() > 0 {
                return Some(format!("fw{} keeps {} tombstones", node.id, daemon.replication.tombstones()));
            }
            if !node.settled() {
                return Some(format!("fw{} compares its tables", node.id));
            }
        }
        for group in 0..GROUPS as Group {
            let Some(owner) = self.owner(group) else { return Some(format!("group {group} has no owner")) };
            if let Some(misplaced) = self.misplaced(group) {
                return Some(misplaced);
            }
            for (node, daemon) in &everybody {
                if let Some(difference) = self.difference(owner, node, group) {
                    return Some(difference);
                }
                let digest = |b: u8| owner.daemon.as_ref().map(|d| d.replication.digest(b));
                if let Some(b) =
                    buckets_of(group).iter().find(|&b| digest(b) != Some(daemon.replication.digest(b)))
                {
                    return Some(format!("bucket {b} of fw{} in the replica", node.id));
                }
            }
        }
        None
    }
}

fn quiet(s: &PeerStatus<'_>) -> bool {
    s.state == SyncState::InSync && s.queued == 0 && s.unacked == 0
}
