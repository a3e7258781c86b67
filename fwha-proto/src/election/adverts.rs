//! The voice of VRRP: what is advertised, what is heard, and what that counts for.
//!
//! Advertisements are not authenticated. They decide where no peer is alive on the channel; beside
//! a living peer they are counted and move nothing.

use std::net::IpAddr;
use std::time::Duration;

use super::Election;
use super::config::Instance;
use super::group::{FAST_ADVERT_CS, Outranked, Unheard};
use super::output::{Event, Output};
use super::peer::Peer;
use super::suspicion::Adverts;
use crate::NodeId;
use crate::heartbeat::{Cause, PeerState, Role, Via};
use crate::time::Time;
use crate::vrrp::hmac::{self, Mode, Refused};
use crate::vrrp::machine::{Want, centiseconds, greater};
use crate::vrrp::packet::{
    self, Advert, Auth, Checksum, Discard, Envelope, PRIORITY_OWNER, PRIORITY_RELEASE, Version,
};

/// Heartbeats in which the channel to a peer opens, and decides instead of an advertisement.
const OPENING_BEATS: u32 = 5;

/// Between two answers to losing advertisements.
const LOSING_ANSWER: Duration = Duration::from_millis(10);

/// Between two advertisements where a Backup hears none: so soon after its cable is whole again this is known.
const UNHEARD: Duration = Duration::from_millis(50);

/// When the addresses are announced after another router advertised them: it may have announced them, too.
const WIN_BACK: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(1)];

/// What version 2 wants to be the same on all routers (RFC 3768, section 7.1; for a password RFC
/// 2338, section 7.1).
fn check_v2(auth: Auth, ours: Auth, same_interval: bool) -> Result<(), Discard> {
    match (auth, ours) {
        (Auth::None, Auth::None) => {}
        (Auth::Password(theirs), Auth::Password(ours)) if theirs == ours => {}
        (Auth::Password(_), Auth::Password(_)) => return Err(Discard::AuthData),
        _ => return Err(Discard::AuthType),
    }
    if same_interval { Ok(()) } else { Err(Discard::OtherInterval) }
}

/// Whether it came the way that is configured: to the group, or from one of these peers to this node.
fn check_addressed(envelope: &Envelope, peers: &[IpAddr]) -> Result<(), Discard> {
    match (envelope.dst.is_multicast(), peers.is_empty()) {
        (true, true) => Ok(()),
        (true, false) => Err(Discard::Multicast),
        (false, _) if peers.contains(&envelope.src) => Ok(()),
        (false, _) => Err(Discard::NotPeer),
    }
}

impl Election {
    /// A packet of IP protocol 112 arrived at the interface of `zone`.
    pub fn vrrp_packet(&mut self, now: Time, zone: u8, envelope: &Envelope, payload: &[u8]) {
        self.advance(now);
        if let Err(discard) = self.take_advert(zone, envelope, payload) {
            self.counters.count("vrrp_discarded", discard.as_str());
        }
        self.judge_due = true;
    }

    pub(super) fn take_advert(
        &mut self,
        zone: u8,
        envelope: &Envelope,
        payload: &[u8],
    ) -> Result<(), Discard> {
        let own = self.config.interfaces.iter().find(|(via, _)| *via == Via::Zone(zone));
        let v6 = envelope.src.is_ipv6();
        let own = own.and_then(|(_, i)| i.source(v6));
        if own == Some(envelope.src) {
            return Err(Discard::Own);
        }
        let (advert, heard) = if payload.first().is_some_and(|b| b >> 4 == 2) {
            let (advert, auth) = Advert::parse_v2(envelope, payload)?;
            (advert, Version::V2 { auth })
        } else {
            let (advert, checksum) = Advert::parse(envelope, payload)?;
            (advert, Version::V3 { checksum })
        };
        let at = self.groups.iter().enumerate().filter(|(_, g)| g.place.is_some()).find_map(|(g, group)| {
            let here = |i: &Instance| (i.zone, i.vrid, i.addresses[0].is_ipv6()) == (zone, advert.vrid, v6);
            Some((g, group.config.instances.iter().position(here)?))
        });
        let (g, i) = at.ok_or(Discard::UnknownVrid)?;
        let group = &self.groups[g];
        check_addressed(envelope, &group.config.instances[i].peers)?;
        match (heard, group.config.version) {
            (Version::V2 { auth }, Version::V2 { auth: ours }) => {
                check_v2(auth, ours, advert.interval_cs == group.config.advert_interval_cs)?;
            }
            (Version::V3 { .. }, Version::V3 { .. }) => {}
            _ => return Err(Discard::Version),
        }
        self.authenticate(g, zone, envelope, &advert, heard, payload)?;
        let group = &self.groups[g];
        self.counters.count("vrrp_rx", "adverts");
        if let (Version::V3 { checksum }, false) = (heard, v6) {
            let kind = match checksum {
                Checksum::Message => "checksum_message",
                Checksum::PseudoHeader => "checksum_pseudo_header",
            };
            self.counters.count("vrrp_rx", kind);
        }
        // Neither makes an advertisement void (RFC 9568, section 7.1).
        if advert.interval_cs != group.config.advert_interval_cs && advert.interval_cs != FAST_ADVERT_CS {
            self.counters.count("vrrp_rx", "other_interval");
        }
        let mine = &group.config.instances[i].addresses;
        if mine.len() != advert.addresses.len() || mine.iter().any(|a| !advert.addresses.contains(a)) {
            self.counters.count("vrrp_rx", "other_addresses");
        }
        // An unknown address may be that of a peer that was never heard.
        let known = |p: &Peer| p.sends_from(zone, envelope.src);
        let sender = self.peers.iter().find(|p| known(p) == Some(true)).map(|p| p.node);
        let foreign = sender.is_none() && self.peers.iter().all(|p| known(p) == Some(false));
        let greater = own.is_some_and(|own| greater(envelope.src, own));
        if let Some(node) = sender {
            self.heard_in(zone, node);
        }
        self.heard_advert((g, i), &advert, greater, sender.or(foreign.then_some(0)));
        Ok(())
    }

    /// Checks the trailer of an advertisement, if the group wants one.
    fn authenticate(
        &mut self,
        g: usize,
        zone: u8,
        envelope: &Envelope,
        advert: &Advert,
        heard: Version,
        payload: &[u8],
    ) -> Result<(), Discard> {
        let wall = self.wall();
        let group = &mut self.groups[g];
        let (message, trailer) = packet::split(envelope, payload);
        let Some(config) = &group.config.hmac else {
            return if trailer.is_none() { Ok(()) } else { Err(Discard::Trailing) };
        };
        let Some(trailer) = trailer else {
            self.counters.count("vrrp_rx", "hmac_missing");
            return if config.mode == Mode::Enforce { Err(Discard::HmacMissing) } else { Ok(()) };
        };
        let bound = hmac::Bound {
            version: if heard.is_v2() { 2 } else { 3 },
            vrid: advert.vrid,
            source: envelope.src,
        };
        let state = group.signed.entry((zone, advert.vrid, envelope.src.is_ipv6())).or_default();
        state.check(config, bound, message, trailer, wall).map_err(|refused| match refused {
            Refused::Malformed => Discard::HmacMalformed,
            Refused::Stale => Discard::HmacStale,
            Refused::UnknownKey => Discard::HmacUnknownKey,
            Refused::BadMac => Discard::HmacBad,
            Refused::Replayed => Discard::HmacReplayed,
        })?;
        self.counters.count("vrrp_rx", "hmac_good");
        Ok(())
    }

    /// What a checked advertisement of a virtual router of ours moves. `sender` is the member that
    /// it seems to come from.
    pub(super) fn heard_advert(
        &mut self,
        at: (usize, usize),
        advert: &Advert,
        greater: bool,
        sender: Option<NodeId>,
    ) {
        let (g, instance) = at;
        let now = self.clock;
        let authority = self.has_authority(g, sender);
        if let Some(peer) = self.peers.iter_mut().find(|p| Some(p.node) == sender) {
            peer.suspicion.sign(now);
        }
        if sender.is_none() {
            let members: Vec<NodeId> = self.groups[g].others().collect();
            let unheard = |p: &&mut Peer| p.last.is_none() && members.contains(&p.node);
            for peer in self.peers.iter_mut().filter(unheard) {
                peer.sign = Some(now);
                peer.suspicion.sign(now);
            }
        }
        let active = self.actives(g).map(|(node, _)| node).next();
        let group = &mut self.groups[g];
        if !group.is_active() && authority && active.is_some() && sender != active && sender.is_some() {
            self.counters.count("vrrp_rx", "ignored");
            return;
        }
        // With peers of our own, the channel decides on preference; VRRP only tells who is there.
        // The owner of the addresses always preempts (RFC 9568, 6.1).
        let owner = group.priority() == PRIORITY_OWNER;
        let preempt = (group.config.preempt || owner) && group.config.members.len() == 1;
        let others = group.config.members.len() > 1;
        match group.machines[instance].advert(now, advert, greater, preempt) {
            Want::Backup if authority => self.counters.count("vrrp_rx", "ignored"),
            Want::Backup => {
                let interval_cs = advert.interval_cs;
                group.outranked.get_or_insert(Outranked { since: now, instance, interval_cs, sender });
            }
            Want::Advertise => {
                group.machines[instance].hasten(now, LOSING_ANSWER);
                if others
                    && !authority
                    && self.groups[g].announce.is_empty()
                    && advert.priority != PRIORITY_RELEASE
                {
                    // Another router answers for the addresses: win the neighbours back.
                    self.groups[g].announce = WIN_BACK.map(|after| now + after).into();
                }
            }
            Want::Active | Want::Nothing => {}
        }
    }

    /// A better advertisement takes the role, unless it comes from a peer: then both are back from a
    /// partition, and the channel, which knows the terms, gets a moment to open and decide.
    pub(super) fn yield_to_vrrp(&mut self, g: usize) {
        let now = self.clock;
        let group = &self.groups[g];
        let Some(outranked) = group.outranked.filter(|_| group.is_active()) else {
            self.groups[g].outranked = None;
            return;
        };
        let Outranked { since, instance, interval_cs, sender } = outranked;
        let opening = self.config.heartbeat_interval * OPENING_BEATS;
        // One that has said goodbye speaks no more: that was the last word of the Active before, which came another way.
        let has_left = sender
            .and_then(|node| self.peer(node))
            .is_some_and(|peer| peer.state() == PeerState::Left && since < peer.suspicion.since() + opening);
        if has_left || self.has_authority(g, sender) {
            self.groups[g].outranked = None;
            self.counters.count("vrrp_rx", "ignored");
        } else if group.config.members.len() == 1 || now >= since + opening {
            self.groups[g].outranked = None;
            self.groups[g].foreign = true;
            self.be_after(g, Role::Backup, Cause::VrrpOutranked, Some((instance, interval_cs)));
        }
    }

    /// Whether the channel is there to decide about a group, so that an advertisement that seems to
    /// come from `sender` moves nothing: another member is alive on it. It knows nothing of a member
    /// whose data plane proves that it lives, but whose heartbeats do not get here; and one that does not
    /// get ours decides by advertisements, so we have to do the same. Of one that was never heard the address is not
    /// known, and what comes from an address that is nobody's may be its own.
    fn has_authority(&self, g: usize, sender: Option<NodeId>) -> bool {
        let one_way = |peer: &Peer| peer.state() == PeerState::SyncLost || (peer.alive() && peer.deaf);
        let others = || self.groups[g].others().filter_map(|node| self.peer(node));
        let from_one_way = match sender {
            Some(node) => self.peer(node).is_some_and(one_way),
            None => others().any(|peer| one_way(peer) && peer.last.is_none()),
        };
        !from_one_way && others().any(Peer::alive)
    }

    /// While a peer that lives cannot hear our heartbeats, advertisements have to be quick.
    pub(super) fn set_cadence(&mut self, g: usize) {
        let group = &self.groups[g];
        let quick = group
            .others()
            .filter_map(|node| self.peer(node))
            .any(|p| p.state() == PeerState::SyncLost || (p.alive() && p.deaf));
        let normal = group.config.advert_interval_cs;
        // Version 2 counts in whole seconds, and all routers agree on them.
        let quick = quick && !group.config.version.is_v2();
        let interval = if quick { normal.min(FAST_ADVERT_CS) } else { normal };
        for i in 0..self.groups[g].machines.len() {
            if self.groups[g].machines[i].set_interval(interval) {
                self.advertise(g, i, None);
            }
        }
    }

    /// When a Backup would take the group because of VRRP's silence.
    pub(super) fn silence_due(&self, g: usize) -> Option<Time> {
        let group = &self.groups[g];
        if group.role != Role::Backup {
            return None;
        }
        let since = group.others().filter_map(|node| {
            let p = self.peer(node)?;
            (p.state() == PeerState::SyncLost && p.last.is_some()).then_some(p.suspicion.since())
        });
        let fast = since.max();
        Some(fast.map_or(group.silent_at(None), |from| group.silent_at(Some(from))))
    }

    /// What VRRP says of `node`: about the groups in which it might be the one that is Active.
    pub(super) fn adverts_of(&self, node: NodeId) -> Adverts {
        let now = self.clock;
        let since = self.peer(node).map(|p| p.suspicion.since());
        let mut said = Adverts::NotExpected;
        for (g, group) in self.groups.iter().enumerate() {
            let might = group.place.is_some()
                && !group.is_active()
                && !group.machines.is_empty()
                && group.others().any(|n| n == node)
                && self.actives(g).next().is_none()
                // Who has no cable hears nobody.
                && self.zones_of(g).any(|zone| !self.is_cut(self.me(), zone));
            if might && now < group.silent_at(since) {
                return Adverts::Heard;
            }
            if might {
                said = Adverts::Silent;
            }
        }
        said
    }

    /// Sends the advertisement of one virtual router, with another priority than its own if given.
    pub(super) fn advertise(&mut self, g: usize, instance: usize, priority: Option<u8>) {
        let (now, wall) = (self.clock, self.wall());
        let group = &mut self.groups[g];
        let (machine, config) = (&mut group.machines[instance], &group.config.instances[instance]);
        machine.advertised(now);
        let own = self.config.interfaces.iter().find(|(via, _)| *via == Via::Zone(config.zone));
        let Some((_, interface)) = own.filter(|(_, i)| i.carrier) else {
            return;
        };
        let v6 = config.addresses.first().is_some_and(|a| a.is_ipv6());
        let Some(source) = interface.source(v6) else {
            self.counters.count("vrrp_tx", "no_address");
            return;
        };
        let advert = Advert {
            vrid: config.vrid,
            priority: priority.unwrap_or(machine.priority()),
            interval_cs: machine.interval_cs(),
            addresses: config.addresses.clone(),
        };
        let multicast = Envelope::multicast(source);
        let mut destinations: Vec<IpAddr> =
            config.peers.iter().filter(|&&peer| peer != source).copied().collect();
        if config.peers.is_empty() {
            destinations.push(multicast.dst);
        }
        let mut trailer = None;
        for to in destinations {
            let envelope = Envelope { dst: to, ..multicast };
            let mut bytes = match group.config.version {
                Version::V2 { auth } => advert.write_v2(auth),
                Version::V3 { checksum } => advert.write(&envelope, checksum),
            };
            if let Some(hmac) = &group.config.hmac {
                let version = if group.config.version.is_v2() { 2 } else { 3 };
                let bound = hmac::Bound { version, vrid: config.vrid, source };
                let state = group.signed.entry((config.zone, config.vrid, v6)).or_default();
                // One for all: it does not cover the destination.
                let trailer = trailer.get_or_insert_with(|| state.sign(hmac, bound, &bytes, wall));
                packet::append(&envelope, &mut bytes, trailer);
            }
            let (group, zone, vrid) = (group.config.group, config.zone, config.vrid);
            self.counters.count("vrrp_tx", "adverts");
            self.out.push_back(Output::Advertise { group, zone, vrid, to, bytes });
        }
    }

    /// Advertisements and repeated announcements that are due.
    pub(super) fn speak_vrrp(&mut self, now: Time) {
        for g in 0..self.groups.len() {
            if !self.groups[g].is_active() {
                continue;
            }
            for i in 0..self.groups[g].machines.len() {
                if self.groups[g].machines[i].due(now) == Want::Advertise {
                    self.advertise(g, i, None);
                }
            }
            let group = &mut self.groups[g];
            let refresh = group.refresh.is_some_and(|at| now >= at);
            if refresh || group.announce.first().is_some_and(|&at| now >= at) {
                group.announce.retain(|&at| now < at);
                group.refresh = group.config.announce.refresh.map(|rhythm| now + rhythm);
                self.out.push_back(Output::Announce { group: group.config.group });
            }
        }
    }

    /// Compares whose advertisements which Backup hears. Where one hears them again, two parts of a network are one
    /// again: neighbours there may have believed another node meanwhile, which gave way by what it heard elsewhere.
    pub(super) fn watch_adverts(&mut self, now: Time) {
        for g in 0..self.groups.len() {
            let group = &self.groups[g];
            if !group.is_active() {
                self.groups[g].unheard.clear();
                continue;
            }
            // Give the Backups the time to miss some.
            let interval = centiseconds(group.config.advert_interval_cs);
            let late = now >= group.since.max(group.reloaded) + interval * 4;
            let id = group.config.group;
            // With another cluster file these may be other virtual routers.
            let same = |node| self.peer(node).is_some_and(|p| !p.config_differs(self.config.config_hash));
            let heard: Vec<_> =
                self.candidates(g).filter(|c| same(c.0)).map(|(node, r)| (node, r.heard)).collect();
            let mut again = false;
            for (node, heard) in heard {
                for i in 0..self.groups[g].machines.len() {
                    let group = &mut self.groups[g];
                    let told = if heard & 1 << i != 0 {
                        let unheard = group.unheard.remove(&(node, i));
                        again |= unheard.is_some_and(|u| now >= u.since + UNHEARD * 3);
                        unheard.is_some_and(|u| u.told).then_some(false)
                    } else {
                        group.machines[i].hasten(now, UNHEARD);
                        let unheard =
                            group.unheard.entry((node, i)).or_insert(Unheard { since: now, told: false });
                        let tell = late && !unheard.told;
                        unheard.told |= tell;
                        tell.then_some(true)
                    };
                    if let Some(lost) = told {
                        let zone = self.groups[g].config.instances[i].zone;
                        self.event(Event::AdvertsUnheard { group: id, zone, by: node, lost });
                    }
                }
            }
            if again {
                self.announce(g);
            }
        }
    }
}
