//! What a daemon writes to its kernel, held against what it may.

use super::*;

impl World {
    /// In whose name the sender of a datagram could tell a node to change this flow.
    fn authority(
        &mut self,
        id: NodeId,
        origin: Option<(NodeId, Claims)>,
        flow: FlowId,
        bucket: u8,
    ) -> Option<Reign> {
        let Some((from, claims)) = origin else {
            self.violate(format!("fw{id} changes {} out of nowhere", name(flow)));
            return None;
        };
        let g = usize::from(group_of(bucket));
        let Some(term) = claims[g] else {
            self.violate(format!("fw{id} believes fw{from} about {}, which it did not own", name(flow)));
            return None;
        };
        let own = self.node(id).daemon.as_ref().and_then(|d| d.told[g]);
        if let Some(own) = own.filter(|&own| own >= term) {
            self.violate(format!(
                "fw{id} owns {} in term {own} and lets fw{from} change it in term {term}",
                name(flow)
            ));
            return None;
        }
        let heard = &mut self.ledgers[usize::from(id) - 1].heard[usize::from(bucket)];
        let before = *heard;
        if before.term > term {
            self.violate(format!(
                "fw{id} has heard term {} and believes term {term} about {}",
                before.term,
                name(flow)
            ));
            return None;
        }
        if (before.term, before.node) != (term, from) {
            *heard = Reign { term, node: from, turn: before.turn + 1 };
        }
        Some(*heard)
    }

    pub(super) fn put(&mut self, id: NodeId, origin: Option<(NodeId, Claims)>, key: &FlowKey, flow: Flow) {
        let (n, flow_id, version) = (number_of(key), flow.id(), flow.version);
        if let Some((from, claims)) = origin
            && let Some(own) =
                self.node(id).daemon.as_ref().and_then(|d| d.told[usize::from(group_of(flow.bucket))])
            && claims[usize::from(group_of(flow.bucket))].is_none_or(|term| term <= own)
        {
            return self.take_straggler(id, own, from, key, flow);
        }
        let Some(reign) = self.authority(id, origin, flow_id, flow.bucket) else { return };
        let Reign { term, node: from, .. } = reign;
        self.trace(Some(id), || {
            format!("writes {} version {version:x}, from fw{from} in term {term}", named(n, flow_id))
        });
        self.mark([self.now.as_nanos(), id.into(), n.into(), version]);
        let ledger = &mut self.ledgers[usize::from(id) - 1];
        let before = ledger.written.insert(flow_id, (reign, version));
        let back = before.filter(|&(r, v)| r == reign && v > version);
        let risen =
            ledger.buried.get(&flow_id).is_some_and(|&(t, owner)| t > term || (t, owner) == (term, from));
        if let Some((_, newer)) = back {
            self.violate(format!("fw{id} goes back from {newer:x} to {version:x} of {}", named(n, flow_id)));
        }
        if risen {
            self.violate(format!("fw{id} resurrects {}, which its owner deleted", named(n, flow_id)));
        }
        // A rival of that owner, in the same term, may have it still. It is not gone here from now on; and if that owner
        // itself takes it back, it may tell of it.
        self.ledgers[usize::from(id) - 1].buried.remove(&flow_id);
        if self.buried.get(&flow_id).is_some_and(|&(_, owner)| owner == id) {
            self.buried.remove(&flow_id);
        }
        self.write(id, n, flow);
    }

    /// An owner (since `own`) takes what its predecessor tells: soon after the change of ownership, of the
    /// predecessor's own term, and nothing that is older than what it knows.
    fn take_straggler(&mut self, id: NodeId, own: u32, from: NodeId, key: &FlowKey, flow: Flow) {
        let (n, flow_id, term) = (number_of(key), flow.id(), Flow::term(flow.version));
        let group = group_of(flow.bucket);
        let g = usize::from(group);
        let name = format!("fw{id}, owner in term {own}, takes {} of fw{from}", named(n, flow_id));
        self.trace(Some(id), || format!("{name}: version {:x}", flow.version));
        self.mark([self.now.as_nanos(), id.into(), n.into(), flow.version]);
        let since = self.node(id).daemon.as_ref().map_or(Time::ZERO, |d| d.told_at[g]);
        let known = self.ledgers[usize::from(id) - 1].written.get(&flow_id).copied();
        // What it told as the owner, it may have had from owners before it.
        if !(term..own).any(|term| self.reigned.contains(&(group, term, from))) {
            self.violate(format!("{name}, which did not own it since term {term}"));
        } else if self.now > since + STRAGGLERS_FOR {
            self.violate(format!("{name}, {:?} after it got the bucket", self.now.since(since)));
        } else if known.is_some_and(|(_, version)| version > flow.version) {
            self.violate(format!("{name}, and knows it in a later version"));
        } else if self.buried.get(&flow_id) == Some(&(own, id)) {
            self.violate(format!("{name}, which it has deleted"));
        }
        let reign = Reign { term: own, node: id, turn: 0 };
        self.ledgers[usize::from(id) - 1].written.insert(flow_id, (reign, flow.version));
        self.stragglers += 1;
        // What it takes the place of has ended, as if its own data plane had seen the new one begin.
        let other =
            self.node(id).kernel.get(n).is_some_and(|there| there.id() != flow_id && !stays(there, &flow));
        if other {
            self.ended(group, n, id);
        }
        self.write(id, n, flow);
    }

    /// An owner's data plane has seen packets of which the daemon has not heard yet: what those made of a flow stays.
    fn write(&mut self, id: NodeId, n: Number, flow: Flow) {
        let node = self.node(id);
        let owned = node.kernel.owned[usize::from(group_of(flow.bucket))].is_some();
        let there = node.kernel.get(n).filter(|there| owned && stays(there, &flow)).copied();
        node.write(n, flow);
        let now = node.kernel.get(n).map(|now| (now.id(), now.version));
        if let Some(there) = there.filter(|there| Some((there.id(), there.version)) != now) {
            let (before, version) = (named(n, there.id()), there.version);
            self.violate(format!(
                "the data plane of fw{id} loses version {version:x} of {before} to {now:x?}"
            ));
        }
    }

    pub(super) fn delete(
        &mut self,
        id: NodeId,
        origin: Option<(NodeId, Claims)>,
        key: &FlowKey,
        flow: FlowId,
        version: u64,
    ) {
        let n = number_of(key);
        if origin.is_none() && self.buried.contains_key(&flow) {
            // Its own deletion, once more.
            let now = self.now;
            self.node(id).delete(now, key, flow, version);
            return;
        }
        let Some(Reign { term, node: from, .. }) = self.authority(id, origin, flow, bucket_of(n)) else {
            return;
        };
        self.trace(Some(id), || format!("deletes {}, from fw{from} in term {term}", named(n, flow)));
        self.mark([self.now.as_nanos(), id.into(), n.into(), u64::MAX]);
        if self.buried.get(&flow) == Some(&(term, from)) {
            self.ledgers[usize::from(id) - 1].buried.insert(flow, (term, from));
        }
        let now = self.now;
        let node = self.node(id);
        let settled = node.settled() && node.kernel.owned[usize::from(group_of(bucket_of(n)))].is_none();
        if !node.delete(now, key, flow, version) && settled {
            self.violate(format!("fw{id} deletes {}, which it does not have", named(n, flow)));
        }
    }
}
