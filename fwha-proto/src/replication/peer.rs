//! One peer: its sealed channel, its session, what is known and counted of it.

use std::collections::VecDeque;
use std::time::Duration;

use fwha_common::BUCKETS;

use super::buckets::Buckets;
use super::core::Core;
use super::diff::{Diff, Failure};
use super::filter::Rate;
use super::inbox::{Inbox, Place};
use super::lag::Lag;
use super::links::{Links, Probe};
use super::outbox::Outbox;
use super::status::{Counters, Event, PeerStatus, SyncState, Unready, Warning};
use super::wire::{Hello, Record, Writer, records};
use super::{Output, PeerOptions};
use crate::NodeId;
use crate::seal::{Channel, KeyRing, OVERHEAD, OpenError, Opened, Purpose};
use crate::time::Time;

/// A channel that is closed, or has not been answered for [`KNOCK_AFTER`], is knocked at this often.
const KNOCK_EVERY: Duration = Duration::from_millis(100);
/// The peer may have begun another life, and the hello that would have told so may be lost.
const KNOCK_AFTER: Duration = Duration::from_millis(300);
/// Hellos that are answered in [`KNOCK_EVERY`]: a flood of replayed ones must not be answered one by one.
const HELLO_REPLIES: u8 = 8;
/// A peer that has not shown the newest key is offered it this often.
const RENEW_EVERY: Duration = Duration::from_secs(1);
/// IPv6 and UDP headers.
const IP_UDP: usize = 48;
/// Smallest MTU: that of IPv6. Every control record fits.
const MTU_MIN: u16 = 1280;

struct Session {
    outbox: Outbox,
    inbox: Inbox,
}

pub(super) struct Peer {
    node: NodeId,
    name: String,
    channel: Channel,
    knock_at: Time,
    /// Hellos answered since then.
    hellos: (Time, u8),
    session: Option<Session>,
    /// Stamp with which the next session begins.
    stamp: u64,
    links: Links,
    rate: Rate,
    state: SyncState,
    state_since: Time,
    warnings: Vec<Warning>,
    refused: Option<OpenError>,
    counters: Counters,
    /// That of earlier sessions, while there is none.
    lag: Lag,
    events: VecDeque<Event>,
    buf: Vec<u8>,
}

impl Peer {
    pub(super) fn new(core: &Core, options: PeerOptions) -> Self {
        let o = &core.options;
        Self {
            node: options.node,
            name: options.name,
            channel: Channel::new(o.keys.clone(), Purpose::Replication, o.identity, options.node),
            knock_at: Time::ZERO,
            hellos: (Time::ZERO, 0),
            session: None,
            stamp: 1,
            links: Links::new(Time::ZERO, o.links),
            rate: Rate::new(o.filter.peer_bytes_per_s),
            state: if o.enabled { SyncState::Down } else { SyncState::Disabled },
            state_since: Time::ZERO,
            warnings: Vec::new(),
            refused: None,
            counters: Counters::default(),
            lag: Lag::default(),
            events: VecDeque::new(),
            buf: Vec::new(),
        }
    }

    pub(super) const fn node(&self) -> NodeId {
        self.node
    }

    /// A slot of an owned bucket has changed.
    pub(super) fn offer(&mut self, core: &mut Core, now: Time, slot: u32) {
        if let Some(session) = &mut self.session {
            let event = session.outbox.offer(core, now, slot, &mut self.counters);
            self.events.extend(event);
        }
    }

    pub(super) fn gain(&mut self, core: &mut Core, now: Time, buckets: Buckets) {
        if let Some(session) = &mut self.session {
            session.outbox.gain(core, now, buckets);
            // What a former owner is asked for does not matter any more.
            session.inbox.wanted = session.inbox.wanted - buckets;
        }
    }

    pub(super) fn doubt(&mut self, buckets: Buckets) {
        if let Some(session) = &mut self.session {
            session.inbox.doubt(buckets);
        }
    }

    pub(super) fn give_up(&mut self, core: &mut Core, buckets: Buckets) {
        if let Some(session) = &mut self.session {
            session.outbox.give_up(core, buckets);
            // What this node made of them as their owner, no other owner has compared.
            session.inbox.doubt(buckets);
        }
    }

    /// Sends all owned buckets as a whole. How many these are.
    pub(super) fn request_bulk(&mut self, core: &Core) -> Result<usize, Unready> {
        let session = self.ready(core)?;
        session.outbox.bulk.want(core, Buckets::ALL);
        if core.owned.is_empty() { Err(Unready::OwnsNothing) } else { Ok(core.owned.len()) }
    }

    /// Asks the peer for all buckets that it owns. How many these are.
    pub(super) fn request_resync(&mut self, core: &Core, now: Time) -> Result<usize, Unready> {
        let session = self.ready(core)?;
        let claims = session.inbox.claims;
        if claims.is_empty() {
            return Err(Unready::OwnsNothing);
        }
        session.inbox.want(now, claims);
        Ok(claims.len())
    }

    /// Begins to compare all flows with those of the peer, one by one.
    pub(super) fn diff(&mut self, core: &Core, now: Time, all: bool) -> Result<(), Unready> {
        self.ready(core)?.outbox.diff.begin(now, all);
        Ok(())
    }

    /// Ends that comparison.
    pub(super) fn diff_stop(&mut self) {
        if let Some(session) = &mut self.session {
            session.outbox.diff.stop();
        }
    }

    /// The session, if the peer answers.
    fn ready(&mut self, core: &Core) -> Result<&mut Session, Unready> {
        let state = self.sync_state(core);
        let answers = !matches!(
            state,
            SyncState::Disabled | SyncState::Down | SyncState::Handshake | SyncState::Silent
        );
        self.session.as_mut().filter(|_| answers).ok_or(Unready::State(state))
    }

    // ---- Receiving ---------------------------------------------------------------------------

    pub(super) fn receive(&mut self, core: &mut Core, now: Time, link: u8, datagram: &mut [u8]) {
        let len = datagram.len() as u64;
        let opened = match self.channel.open(datagram) {
            Ok(opened) => opened,
            Err(error) => {
                self.counters.refused(error);
                self.refused = Some(error);
                return;
            }
        };
        self.counters.datagrams_received += 1;
        self.counters.bytes_received += len;
        self.links.received(link, len);
        match opened {
            Opened::Hello { reply, new_session } => {
                if new_session {
                    self.refused = None;
                    self.links.open(now, link);
                    self.open(core, now);
                }
                if reply && self.may_answer(now) {
                    self.knock(core, Some(link));
                }
            }
            Opened::Data(payload) => {
                self.refused = None;
                if !self.rate.take(now, len) {
                    self.counters.rate_limited += 1;
                    return;
                }
                self.take(core, now, link, payload);
            }
        }
    }

    /// Whether one more hello is answered.
    fn may_answer(&mut self, now: Time) -> bool {
        let (since, answered) = &mut self.hellos;
        if now >= *since + KNOCK_EVERY {
            (*since, *answered) = (now, 0);
        }
        *answered = answered.saturating_add(1);
        *answered <= HELLO_REPLIES
    }

    fn open(&mut self, core: &mut Core, now: Time) {
        self.close(core);
        self.counters.sessions += 1;
        self.warnings.clear();
        let mut outbox = Outbox::new(now, self.node);
        outbox.lag = std::mem::take(&mut self.lag);
        self.session = Some(Session { outbox, inbox: Inbox::new(self.node, self.stamp) });
        let epoch = self.channel.peer_epoch().unwrap_or_default();
        self.events.push_back(Event::SessionOpened { peer: self.node, epoch });
    }

    fn close(&mut self, core: &mut Core) {
        if let Some(mut session) = self.session.take() {
            session.outbox.clear(core);
            session.inbox.close(core);
            session.outbox.diff.fail(Failure::Lost(SyncState::Down));
            found(self.node, core, &mut session.outbox.diff);
            self.lag = std::mem::take(&mut session.outbox.lag);
            self.stamp = session.inbox.end();
        }
    }

    fn take(&mut self, core: &mut Core, now: Time, link: u8, payload: &[u8]) {
        let Some(session) = &mut self.session else { return };
        let Session { outbox, inbox } = session;
        let (counters, events) = (&mut self.counters, &mut self.events);
        // Without the peer's zones its flows mean nothing. What is not acknowledged comes again.
        let introduces = |record| matches!(record, Ok(Record::Hello(_)));
        let numbered = matches!(records(payload, now).next(), Some(Ok(Record::Sequence { .. })));
        if inbox.hello.is_none() && numbered && !records(payload, now).any(introduces) {
            counters.early += 1;
            return;
        }
        let mut place: Option<Place> = None;
        let mut term = None;
        let records: Vec<_> = records(payload, now).collect();
        core.table.expect(records.iter().filter_map(|record| record.as_ref().ok()?.key()));
        for (n, record) in records.into_iter().enumerate() {
            let record = match record {
                Ok(Record::Sequence { seq, floor }) if n == 0 => {
                    if !inbox.arrive(now, seq, floor, counters) {
                        return;
                    }
                    self.links.heard(link);
                    place = Some(Place { seq, floor, term: 0 });
                    continue;
                }
                Ok(Record::Ack { cumulative, bitmap }) => {
                    outbox.acknowledge(core, now, cumulative, bitmap, counters, events);
                    outbox.lose(core, inbox, now, counters);
                    continue;
                }
                Ok(Record::Probe { id, answer }) => {
                    self.links.take(now, link, id, answer);
                    continue;
                }
                Ok(Record::Unknown(_)) => {
                    counters.unknown_record += 1;
                    continue;
                }
                Ok(record) => record,
                Err(_) => {
                    counters.malformed += 1;
                    continue;
                }
            };
            // Everything else wants an answer, so it has a number; and most of it a term.
            let Some(numbered) = place else {
                counters.malformed += 1;
                continue;
            };
            let seq = numbered.seq;
            let owner = term.map(|term| Place { term, ..numbered });
            match (record, owner) {
                (Record::Term(t), _) => term = Some(t),
                (Record::Flow(key, entry), Some(at)) => inbox.take_flow(core, at, &key, entry, counters),
                (Record::Delete(deletion), Some(at)) => inbox.take_delete(core, at, &deletion, counters),
                (Record::End { bucket, start, digest, .. }, Some(at)) => {
                    events.extend(inbox.take_end(core, now, at, bucket, start, digest, counters));
                }
                (Record::Digests(digests), Some(at)) => inbox.take_digests(core, at, digests, counters),
                (Record::Begin { flows, buckets }, _) => {
                    events.extend(inbox.take_begin(now, seq, buckets, flows, counters));
                }
                (Record::Claims(claims), _) => {
                    inbox.take_claims(core, seq, &claims, counters);
                    events.extend(inbox.finish(now, counters));
                }
                (Record::Agreed { seq: compared, buckets }, _) => {
                    outbox.proof.agree(core, seq, compared, buckets);
                }
                (Record::Zones(zones), _) => inbox.zones = Some(map_zones(&core.options.zones, &zones)),
                (Record::ListAsk(ask), _) => outbox.diff.take_ask(core, now, &ask),
                (Record::List(list), _) => {
                    let lag = outbox.oldest_sent().map_or(Duration::ZERO, |since| now.since(since));
                    outbox.diff.take_list(core, now, lag, list);
                }
                (Record::Resync(buckets), _) => outbox.take_resync(core, seq, buckets),
                (Record::Hello(hello), _) => {
                    self.warnings = warnings(core, &self.name, &hello, inbox.zones.as_deref());
                    let peer = self.node;
                    if inbox.hello.is_none() {
                        events.extend(
                            self.warnings.iter().map(|w| Event::Warning { peer, warning: w.clone() }),
                        );
                    }
                    inbox.hello = Some(hello);
                }
                _ => counters.malformed += 1,
            }
        }
        let asked = inbox.settle(core, now, counters);
        if asked > 0 {
            events.push_back(Event::Differs { peer: self.node, buckets: asked });
        }
    }

    // ---- Sending -------------------------------------------------------------------------------

    /// Lets time pass and sends what is due.
    pub(super) fn tick(&mut self, core: &mut Core, now: Time) {
        if self.next_knock() <= now {
            self.knock_at = now + if self.is_answered(now) { RENEW_EVERY } else { KNOCK_EVERY };
            self.knock(core, None);
        }
        if let Some(Session { outbox, inbox }) = &mut self.session {
            if outbox.lose(core, inbox, now, &mut self.counters) {
                self.links.timed_out();
            }
            outbox.check_silence(core, inbox, now);
            inbox.ask_again(now);
            if outbox.silent() {
                outbox.diff.fail(Failure::Lost(SyncState::Silent));
            }
            outbox.diff.tick(now);
            self.probe(core, now);
        }
        while self.transmit(core, now) {}
        self.note_state(core, now);
        core.outputs.extend(self.events.drain(..).map(Output::Event));
        if let Some(session) = &mut self.session {
            found(self.node, core, &mut session.outbox.diff);
        }
    }

    fn transmit(&mut self, core: &mut Core, now: Time) -> bool {
        let Some(Session { outbox, inbox }) = &mut self.session else { return false };
        let limit = usize::from(core.options.mtu.max(MTU_MIN)) - IP_UDP - OVERHEAD;
        let mut w = Writer::new(std::mem::take(&mut self.buf), limit, now);
        let sent = outbox.fill(core, inbox, now, &mut w, &mut self.counters, &mut self.events);
        if sent.is_none() {
            w.truncate(0);
            if inbox.ack_due().is_some_and(|due| due <= now)
                && let Some((cumulative, bitmap)) = inbox.acknowledge()
            {
                w.push(&Record::Ack { cumulative, bitmap: &bitmap });
            }
        }
        let sealed = if w.len() > 0 { self.channel.seal(w.payload()) } else { None };
        self.buf = w.into_buf();
        let numbered = sent.is_some();
        if let Some(sent) = sent {
            outbox.flight.send(now, sent);
        }
        let Some(datagram) = sealed else { return false };
        if !numbered {
            let back = self.links.back(now);
            self.send(core, back, datagram);
            return true;
        }
        let link = self.links.pick(now);
        if !outbox.silent()
            && let Some((from, to)) = self.links.moved(now)
        {
            self.events.push_back(Event::LinkChanged { peer: self.node, from, to });
        }
        self.send(core, link, datagram);
        true
    }

    fn send(&mut self, core: &mut Core, link: u8, datagram: Vec<u8>) {
        self.counters.datagrams_sent += 1;
        self.counters.bytes_sent += datagram.len() as u64;
        self.links.sent(link, datagram.len());
        core.outputs.push_back(Output::Transmit { peer: self.node, link: Some(link), datagram });
    }

    /// Probes of the sync links that are due, and answers to the peer's.
    fn probe(&mut self, core: &mut Core, now: Time) {
        while let Some(Probe { link, id, answer }) = self.links.due(now) {
            let mut w = Writer::new(std::mem::take(&mut self.buf), usize::from(MTU_MIN), now);
            w.push(&Record::Probe { id, answer });
            let sealed = self.channel.seal(w.payload());
            self.buf = w.into_buf();
            if let Some(datagram) = sealed {
                self.send(core, link, datagram);
            }
        }
    }

    /// The core has other options: the peer is told anew what they are.
    pub(super) fn reload(&mut self, core: &Core) {
        self.rate.set(core.options.filter.peer_bytes_per_s);
        let Some(session) = &mut self.session else { return };
        session.outbox.tell_hello();
        if let Some(hello) = &session.inbox.hello {
            self.warnings = warnings(core, &self.name, hello, session.inbox.zones.as_deref());
        }
    }

    pub(super) fn set_keys(&mut self, keys: &KeyRing) {
        self.channel.set_keys(keys);
    }

    /// The interface of a sync link has gained or lost its carrier.
    pub(super) fn carrier(&mut self, link: u8, carrier: bool) {
        self.links.carrier(link, carrier);
    }

    fn knock(&mut self, core: &mut Core, link: Option<u8>) {
        let datagram = self.channel.hello();
        core.outputs.push_back(Output::Transmit { peer: self.node, link, datagram });
    }

    fn is_answered(&self, now: Time) -> bool {
        self.session.as_ref().is_some_and(|s| s.outbox.flight.waiting().is_none_or(|w| now < w + KNOCK_AFTER))
    }

    fn next_knock(&self) -> Time {
        let waiting =
            self.session.as_ref().filter(|_| self.channel.is_open()).map(|s| s.outbox.flight.waiting());
        match waiting {
            None => self.knock_at,
            Some(_) if self.channel.is_renewing() => self.knock_at,
            Some(None) => Time::NEVER,
            Some(Some(since)) => self.knock_at.max(since + KNOCK_AFTER),
        }
    }

    /// When [`Self::tick`] has something to do.
    pub(super) fn next_timeout(&self, core: &Core) -> Time {
        let knock = self.next_knock();
        let Some(Session { outbox, inbox }) = &self.session else { return knock };
        let due = outbox.due(core, inbox).min(outbox.silent_at()).min(inbox.ask_again_at());
        due.min(inbox.ack_due().unwrap_or(Time::NEVER)).min(self.links.next()).min(knock)
    }

    // ---- Status --------------------------------------------------------------------------------

    fn note_state(&mut self, core: &Core, now: Time) {
        let to = self.sync_state(core);
        if to != self.state {
            let from = std::mem::replace(&mut self.state, to);
            self.state_since = now;
            self.events.push_back(Event::State { peer: self.node, from, to });
        }
    }

    pub(super) fn sync_state(&self, core: &Core) -> SyncState {
        if !core.options.enabled {
            return SyncState::Disabled;
        }
        let Some(Session { outbox, inbox }) = &self.session else { return SyncState::Down };
        if inbox.hello.is_none() {
            SyncState::Handshake
        } else if outbox.silent() {
            SyncState::Silent
        } else if outbox.bulk.is_busy() || inbox.in_bulk() {
            SyncState::Bulk
        } else if !(inbox.differing | outbox.proof.asked).is_empty() {
            SyncState::Diverged
        } else if core.disputed.is_empty() && self.digest_match(core) {
            SyncState::InSync
        } else {
            SyncState::Verifying
        }
    }

    /// By bucket, flows that are lost if this node is lost now, were this the only peer; `None` if the peer does not
    /// answer.
    pub(super) fn at_risk(&self, core: &Core) -> Option<[u64; BUCKETS]> {
        let outbox = self.session.as_ref().map(|s| &s.outbox).filter(|o| !o.silent())?;
        Some(outbox.at_risk(core))
    }

    fn digest_match(&self, core: &Core) -> bool {
        self.session.as_ref().is_some_and(|Session { outbox, inbox }| {
            inbox.has_claims()
                && inbox.verified.covers(&inbox.claims)
                && outbox.proof.agreed.covers(&core.owned)
                && core.reconciling.is_empty()
        })
    }

    pub(super) fn status(&self, core: &Core, now: Time) -> PeerStatus<'_> {
        let (outbox, inbox) = self.session.as_ref().map(|s| (&s.outbox, &s.inbox)).unzip();
        PeerStatus {
            peer: self.node,
            state: self.sync_state(core),
            state_for: now.since(self.state_since),
            lag: outbox.and_then(Outbox::oldest).map_or(Duration::ZERO, |since| now.since(since)),
            queued: outbox.map_or(0, Outbox::queue_len),
            unacked: outbox.map_or(0, |o| o.flight.outstanding()),
            digest_match: self.digest_match(core),
            rtt: outbox.and_then(|o| o.flight.rtt()),
            links: self.links.status(now),
            hello: inbox.and_then(|i| i.hello.as_ref()),
            warnings: &self.warnings,
            refused: self.refused,
            renewing: self.channel.is_renewing(),
            sending: outbox.filter(|o| !o.silent()).and_then(|o| o.bulk.progress(core, now)),
            receiving: inbox.and_then(|i| i.progress(now)),
            acknowledged: outbox.map_or(&self.lag, |o| &o.lag),
            counters: &self.counters,
        }
    }
}

/// Tells what a comparison has found.
fn found(peer: NodeId, core: &mut Core, diff: &mut Diff) {
    core.outputs.extend(diff.take_found().map(|found| Output::Diff { peer, found }));
}

/// This node's number of each of a peer's zones, by name.
fn map_zones(ours: &[u32], theirs: &[u32]) -> Vec<Option<u8>> {
    let number = |hash| ours.iter().position(|o| o == hash).map(|n| n as u8 + 1);
    theirs.iter().map(number).collect()
}

fn warnings(core: &Core, name: &str, hello: &Hello, zones: Option<&[Option<u8>]>) -> Vec<Warning> {
    let o = &core.options;
    let mut warnings = Vec::new();
    if hello.config_hash != o.config_hash {
        warnings.push(Warning::ConfigDiffers);
    }
    if hello.rules_hash != o.rules_hash {
        warnings.push(Warning::RulesDiffer);
    }
    if hello.max_flows != o.max_flows as u64 {
        warnings.push(Warning::CapacityDiffers { ours: o.max_flows as u64, theirs: hello.max_flows });
    }
    if usize::from(hello.zones) != o.zones.len() || zones.is_some_and(|z| z.contains(&None)) {
        warnings.push(Warning::ZonesDiffer);
    }
    if hello.name != name {
        warnings.push(Warning::NameDiffers { expected: name.into(), theirs: hello.name.clone() });
    }
    warnings
}
