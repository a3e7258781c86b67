//! Flows in the maps: finding, creating, promoting, changing them, and telling user space.
//!
//! # What two CPUs may do to one flow at once
//!
//! Both directions of a flow, and with some hardware two packets of one direction, run at the same
//! time, and user space deletes and replaces elements under way.
//!
//! - `word` (state): compare-and-exchange. Who loses looks again with the state that won.
//! - `version`: compare-and-exchange, always after the change it stands for. The event of a version
//!   is a copy of the flow taken after that version was won. So a change with a lower version was
//!   in the flow before the copy was taken: **the event with the highest version holds them all**,
//!   in whatever order events reach user space. The copy may hold a later change too, which then
//!   is told again under its own version.
//! - `last_seen_ns`, `packets`, `bytes` of a way: plain writes by its own packets. Two CPUs in one
//!   direction may lose a count, and a time may be that of the other packet of the same moment.
//! - The next hop of a way: plain writes by both directions, `generation` last. Two CPUs write the
//!   result of the same lookup for the same generation; where a route changed in between, user space
//!   raises the generation once more and the next packet looks again. At worst one frame goes the old
//!   way.
//! - `end` of a way (TCP): compare-and-exchange, which only moves it forward. Two CPUs in one direction are
//!   common where NICs are virtual: a sender's process and the acknowledgements that it gets both send.
//!   Without it the one that read first and wrote last undoes the other's move, and the answer to
//!   that one acknowledges what was never sent.
//! - `edge`, `maxwin`, `maxack`, `scale`, `flags` of a way (TCP): written by its own packets,
//!   read by the other direction. Each is an aligned word, so a reader sees an old or a new one, and
//!   they only move forward. A reader that sees an old `end` or `edge` judges as if the packet that
//!   moves it came a moment later: on two CPUs there is no other order. Two CPUs in one direction
//!   may undo each other's move; the next packet of that direction makes up for it, and what lies up to a
//!   window beyond an edge passes. The other direction writes them at the
//!   handshake, where one packet is under way at a time, when the flow is inherited, and `maxwin` when
//!   it sent beyond the edge: lost, one more packet passes without moving the windows.
//! - What is above the shift in `scale` (TCP): written by its own packets, and cleared by the other direction. At worst one
//!   repetition is counted too many or too few.
//! - `end` of a way (SCTP: its tag): written at the handshake only.
//! - An element that user space deletes while a program holds it may be reused for another flow at
//!   once, and take one packet's count. User space deletes what has expired, which by then had no
//!   packet for the whole timeout.
//! - Promotion: claiming the embryonic flow is atomic, so one CPU wins and makes the flow.
//! - The rest is written once, before the element is in the map.

use aya_ebpf::{bindings::BPF_ANY, helpers::generated::bpf_get_smp_processor_id};
use fwha_common::{
    drop::DropReason,
    embryonic::PLACES,
    flow::{Flow, FlowEvent, FlowEventKind, FlowKey, FlowState, Way, proto},
    group::Group,
    rule::ZONE_NODE,
    settings::{Counter, Settings, Timeouts},
};

use crate::{
    atomic::{compare_exchange_u32, compare_exchange_u64},
    bloom, embryonic, hook, limit,
    maps::{self, Room},
    packet::Packet,
    parse::{Ip, Payload},
    sctp::{self, Chunk},
    tcp::{self, Options, Step},
};

/// Attempts at a compare-and-exchange before giving up. Each failure means that another CPU got on.
const ATTEMPTS: u32 = 8;

/// Attempts at a state, each of which another CPU can only undo by changing it itself: there are two
/// directions.
const SETTLE_ATTEMPTS: u32 = 3;

/// A UDP flow that still has packets this long after its first is a stream (as in
/// net/netfilter/nf_conntrack_proto_udp.c).
const UDP_STREAM_NS: u64 = 2_000_000_000;

/// A flow in one of the maps.
#[derive(Clone, Copy)]
pub struct FlowRef(*mut Flow);

/// Where a packet's flow was found.
pub enum Found {
    /// In the main table.
    Main(FlowRef),
    /// In the embryonic table.
    Embryonic(FlowRef),
    /// Among the node's own flows: not for a SYN, which only [`find_node`] says.
    Node(FlowRef),
    /// Nowhere. The hash of its key.
    Nothing(u64),
}

/// Looks for a live flow in all tables: the main one first, as most packets are of it; among the node's own not for a
/// SYN, as most SYNs are forwarded, and its route says which are not. Beside a connection
/// of the main table another may have been begun by a SYN: it has the packets that answer this SYN, and
/// all packets if the old one is over.
#[inline(always)]
pub fn find(key: &FlowKey, src_is_b: bool, ip: &Ip, now: u64) -> Found {
    // A SYN is mostly in none of them.
    let begins = ip.opens_tcp();
    let mut hash = 0;
    let mut main = None;
    let mut asked = true;
    if begins {
        hash = embryonic::hash(key);
        asked = bloom::may_hold(hash);
    }
    if asked {
        main = maps::FLOWS.get_ptr_mut(key);
    }
    let main =
        main.map(FlowRef).filter(|flow| flow.fresh(now) || flow.alive(ip.proto, flow.owned_since_ns(), now));
    if let Some(flow) = main {
        let over = flow.over(ip);
        let answers = match ip.payload {
            Payload::Tcp => tcp::answers_syn(ip.tcp.flags),
            Payload::Sctp => ip.tcp.flags == Chunk::InitAck as u8,
            _ => false,
        };
        if (over || answers)
            && let Some(young) = embryonic::find(key, embryonic::hash(key)).map(FlowRef)
            && young.alive(ip.proto, 0, now)
            && young.unanswered()
            && (over || young.is_reply(src_is_b) && young.is_answered_by(ip))
        {
            return Found::Embryonic(young);
        }
        return Found::Main(flow);
    }
    if !begins {
        hash = embryonic::hash(key);
    }
    if let Some(flow) = begun(key, hash, ip, now) {
        return Found::Embryonic(flow);
    }
    if !begins && let Some(flow) = find_node(key, ip, now) {
        return Found::Node(flow);
    }
    Found::Nothing(hash)
}

/// Looks for a live flow without an answer. One that was refused or given up before it was answered is gone.
#[inline(always)]
pub fn begun(key: &FlowKey, hash: u64, ip: &Ip, now: u64) -> Option<FlowRef> {
    unanswered_of(key, hash, ip, now).filter(|flow| !flow.is_closed())
}

/// The same of one that was refused a moment ago, of which the refusal may still be on its way through the stack.
#[inline(always)]
pub fn refused(key: &FlowKey, hash: u64, ip: &Ip, now: u64) -> Option<FlowRef> {
    unanswered_of(key, hash, ip, now).filter(|flow| flow.is_closed())
}

#[inline(always)]
fn unanswered_of(key: &FlowKey, hash: u64, ip: &Ip, now: u64) -> Option<FlowRef> {
    embryonic::find(key, hash).map(FlowRef).filter(|flow| flow.alive(ip.proto, 0, now))
}

/// Looks for a live flow of the node itself, which no operator has ended.
#[inline(always)]
pub fn find_node(key: &FlowKey, ip: &Ip, now: u64) -> Option<FlowRef> {
    of_node(key).filter(|flow| !flow.is_ended() && flow.alive(ip.proto, 0, now))
}

/// Whether a flow of the node itself is one that an operator has ended, however long ago: as long as its element is there, and
/// a lookup keeps that from eviction.
#[inline(always)]
pub fn node_ended(key: &FlowKey) -> bool {
    of_node(key).is_some_and(FlowRef::is_ended)
}

#[inline(always)]
fn of_node(key: &FlowKey) -> Option<FlowRef> {
    let flow = maps::NODE_FLOWS.get_ptr_mut(key);
    flow.or_else(|| maps::NODE_GUESTS.get_ptr_mut(key)).map(FlowRef)
}

/// The group of a bucket, if this node forwards for it now: it owns it, or has just handed it over.
#[inline(always)]
pub fn owner(settings: &Settings, bucket: u8, now: u64) -> Result<&'static Group, DropReason> {
    match maps::group(settings, bucket) {
        Some(group) if group.forwards(now) => Ok(group),
        Some(group) if group.role == Group::ACTIVE => Err(DropReason::LeaseExpired),
        _ => Err(DropReason::NotOwner),
    }
}

/// What a packet does to the state of its flow, by its kind alone.
///
/// # Errors
///
/// The state does not allow it, or an ICMP query goes the wrong way.
#[inline(always)]
fn step(flow: FlowRef, ip: &Ip, state: u8, reply: bool, now: u64) -> Result<Step, DropReason> {
    match ip.payload {
        Payload::Tcp => match tcp::step(state, flow.back_flags(), reply, ip.tcp.flags) {
            Step::Invalid => Err(DropReason::TcpState),
            step => Ok(step),
        },
        Payload::Sctp if ip.tcp.flags == Chunk::Init as u8 && !flow.unanswered() => {
            // Both ends may begin at once; each says the same again (RFC 9260, 5.2.1). Otherwise it is a restart
            // (5.2.2), or another association between the same ports.
            let opening = state == FlowState::CookieWait as u8 || state == FlowState::CookieEchoed as u8;
            Ok(if opening { Step::Ignore } else { Step::Begin })
        }
        Payload::Sctp => {
            let state = FlowState::from_u8(state).ok_or(DropReason::SctpState)?;
            match sctp::step(state, reply, Chunk::from_u8(ip.tcp.flags))? {
                next if next as u8 == state as u8 => Ok(Step::Stay),
                next => Ok(Step::To(next)),
            }
        }
        Payload::Query if reply => Err(DropReason::Icmp),
        Payload::Response if !reply => Err(DropReason::Icmp),
        Payload::LaterFragment => Ok(Step::Stay),
        // UDP and the rest.
        _ => Ok(if state == FlowState::Unreplied as u8 {
            if reply { Step::To(FlowState::Replied) } else { Step::Stay }
        } else if state == FlowState::Replied as u8
            && matches!(ip.payload, Payload::Udp | Payload::Other)
            && now > flow.created_ns().saturating_add(UDP_STREAM_NS)
        {
            Step::To(FlowState::Assured)
        } else {
            Step::Stay
        }),
    }
}

impl FlowRef {
    /// State, flags and zones; other CPUs change the state.
    #[inline(always)]
    fn word(self) -> u32 {
        // SAFETY: `self.0` comes from a map lookup in this run of the program, as in all below;
        // volatile, because others write here.
        unsafe { (&raw const (*self.0).word).read_volatile() }
    }

    /// The flags.
    #[inline(always)]
    pub fn flags(self) -> u8 {
        (self.word() >> 8) as u8
    }

    /// The bucket.
    #[inline(always)]
    pub fn bucket(self) -> u8 {
        // SAFETY: see `word`; never written after the element came to be.
        unsafe { (*self.0).bucket }
    }

    /// What SYNs are clamped to, as [`Flow::mss`].
    #[inline(always)]
    pub fn mss(self) -> u16 {
        // SAFETY: see `bucket`.
        unsafe { (*self.0).mss }
    }

    /// As [`Flow::delta`].
    #[inline(always)]
    pub fn delta(self) -> u32 {
        // SAFETY: see `bucket`.
        unsafe { (*self.0).delta }
    }

    /// The number in its identity.
    #[inline(always)]
    fn number(self) -> u64 {
        // SAFETY: see `bucket`.
        unsafe { (*self.0).number }
    }

    /// When it began.
    #[inline(always)]
    fn created_ns(self) -> u64 {
        // SAFETY: see `bucket`.
        unsafe { (*self.0).created_ns() }
    }

    /// Zone of the originator (`false`) or the responder (`true`).
    #[inline(always)]
    pub fn zone(self, responder: bool) -> u8 {
        (self.word() >> if responder { 24 } else { 16 }) as u8
    }

    /// Whether a packet whose source is end B of the key goes from responder to originator.
    #[inline(always)]
    pub fn is_reply(self, src_is_b: bool) -> bool {
        src_is_b != (self.flags() & Flow::ORIGINATOR_IS_B != 0)
    }

    /// The way of a direction, and the way back.
    #[inline(always)]
    pub fn ways(self, reply: bool) -> (*mut Way, *mut Way) {
        // SAFETY: see `word`; the indices are 0 and 1.
        unsafe {
            let ways = (&raw mut (*self.0).ways).cast::<Way>();
            (ways.add(reply as usize), ways.add(!reply as usize))
        }
    }

    /// Whether a packet of it was seen within the shortest of all timeouts, so that it is alive.
    #[inline(always)]
    fn fresh(self, now: u64) -> bool {
        // SAFETY: see `word`. A time of the other direction that is just being written is either
        // the old or the new one.
        now < unsafe { (*self.0).last_seen_ns() }.saturating_add(Timeouts::LEAST_NS)
    }

    /// When this node came to own it, or to say so.
    #[inline(always)]
    pub fn owned_since_ns(self) -> u64 {
        let group = maps::settings().and_then(|settings| maps::group(settings, self.bucket()));
        group.map_or(0, |group| group.since_ns)
    }

    /// Whether it has not expired.
    #[inline(always)]
    fn alive(self, proto: u8, since_ns: u64, now: u64) -> bool {
        // SAFETY: see `fresh`.
        let flow = unsafe { &*self.0 };
        let timeout = maps::TIMEOUTS.get(0).and_then(|timeouts| timeouts.of(proto, flow, since_ns));
        timeout.is_some_and(|timeout| flow.expires_ns(since_ns, timeout) > now)
    }

    #[inline(always)]
    fn is_ended(self) -> bool {
        self.flags() & Flow::ENDED != 0
    }

    #[inline(always)]
    fn is_closed(self) -> bool {
        Flow::state_of(self.word()) == FlowState::Close as u8
    }

    /// Whether it is a connection that lives on only for what is still under way.
    #[inline(always)]
    fn over(self, ip: &Ip) -> bool {
        let state = Flow::state_of(self.word());
        // SAFETY: see `word`.
        let ended = unsafe { (*self.0).ways[0].flags | (*self.0).ways[1].flags } & Way::ENDED != 0;
        state == FlowState::TimeWait as u8
            || state == FlowState::Close as u8 && (ended || ip.proto == proto::SCTP)
    }

    /// The flags of the responder's way.
    #[inline(always)]
    fn back_flags(self) -> u8 {
        // SAFETY: see `word`.
        unsafe { (*self.0).ways[1].flags }
    }

    /// Whether it is a SYN or INIT without an answer.
    #[inline(always)]
    fn unanswered(self) -> bool {
        let state = Flow::state_of(self.word());
        // SAFETY: see `word`.
        let answer_ns = unsafe { (*self.0).ways[1].last_seen_ns };
        answer_ns == 0 && (state == FlowState::SynSent as u8 || state == FlowState::CookieWait as u8)
    }

    /// Whether a packet acknowledges what this SYN sent, or has the tag that this INIT asks for.
    #[inline(always)]
    fn is_answered_by(self, ip: &Ip) -> bool {
        // SAFETY: see `word`.
        let ways = unsafe { &(*self.0).ways };
        if ip.payload == Payload::Tcp { ways[0].end == ip.tcp.ack } else { ways[1].end == ip.tcp.seq }
    }

    /// Counts a packet and keeps the flow alive. Only for packets that the state allows: nothing else
    /// may keep a flow from expiring.
    #[inline(always)]
    pub fn touch(self, reply: bool, now: u64, packets: u32, bytes: u32) {
        // SAFETY: see `word`; races are harmless, see above.
        unsafe { touch(&mut *self.ways(reply).0, now, packets, bytes) }
    }

    /// Forgets the windows of a way that was last seen before this node came to own the flow, at `since_ns`:
    /// another node may have carried it on meanwhile, and what only moves windows is not told to peers. The
    /// flow is as one of a peer then, whoever began it.
    #[inline(always)]
    fn forget_before(self, since_ns: u64) {
        // SAFETY: see `word`; what races do is said above.
        let flow = unsafe { &mut *self.0 };
        if flow.heard_since(since_ns) {
            return;
        }
        for way in &mut flow.ways {
            if way.last_seen_ns < since_ns {
                way.flags &= !(Way::SEEN | Way::ACKED);
            }
        }
        for _ in 0..ATTEMPTS {
            let word = self.word();
            // SAFETY: as above.
            if unsafe { compare_exchange_u32(&raw mut (*self.0).word, word, Flow::inherited(word)) }.is_ok() {
                return;
            }
        }
    }

    /// Holds a packet against the flow, of which `word` says the state, and moves what it moves but for the state.
    /// If its `group` was handed over a moment ago, what goes through the next owner moves the windows there, so what is
    /// outside of them here may be right.
    ///
    /// # Errors
    ///
    /// It does not belong there.
    #[inline(always)]
    fn judge(
        self,
        word: u32,
        ip: &Ip,
        reply: bool,
        group: &Group,
        now: u64,
        options: &Options,
    ) -> Result<Step, DropReason> {
        let state = Flow::state_of(word);
        let mut stepped = step(self, ip, state, reply, now)?;
        let (own, other) = self.ways(reply);
        // SAFETY: see `word`; what races do is said above.
        let (own, other) = unsafe { (&mut *own, &mut *other) };
        match ip.payload {
            Payload::Tcp => {
                let inherited = self.flags() & Flow::INHERITED != 0;
                if ip.tcp.flags & tcp::RST != 0 {
                    if inherited && own.flags & other.flags & Way::SEEN == 0 {
                        // What would be right is not known yet; its receiver knows.
                        return Ok(Step::Ignore);
                    }
                    stepped = tcp::reset(state, reply, ip.tcp.seq, own, other)?;
                }
                if matches!(stepped, Step::Begin) {
                    let end = ip.tcp.seq.wrapping_add(ip.len.wrapping_sub(ip.header_len)).wrapping_add(1);
                    return Ok(if state < FlowState::TimeWait as u8 && tcp::late_syn(end, own, other) {
                        Step::Ignore
                    } else {
                        stepped
                    });
                }
                if matches!(stepped, Step::Ignore) {
                    return Ok(stepped);
                }
                let len = ip.len.wrapping_sub(ip.header_len);
                let quiet = ip.tcp.flags & tcp::RST != 0 && matches!(stepped, Step::Stay);
                match tcp::window(state, own, other, &ip.tcp, len, options, inherited, quiet) {
                    tcp::Window::Ignore => return Ok(Step::Ignore),
                    tcp::Window::Out if group.role != Group::LEAVING => return Err(DropReason::TcpWindow),
                    _ => {}
                }
                let resets = ip.tcp.flags & tcp::RST != 0 && matches!(stepped, Step::To(_));
                if ip.tcp.flags & tcp::FIN != 0 || resets && !reply {
                    own.flags |= Way::ENDED;
                }
                Ok(stepped)
            }
            Payload::Sctp => {
                let chunk = Chunk::from_u8(ip.tcp.flags);
                if !sctp::tag_valid(chunk, ip.tcp.seq, own.end, other.end) {
                    return Err(DropReason::SctpTag);
                }
                if matches!(stepped, Step::Begin | Step::Ignore) {
                    // Anybody can send an INIT: the tags of this association stay what they are.
                    return Ok(stepped);
                }
                if matches!(chunk, Chunk::Init | Chunk::InitAck) {
                    // What the other side is to answer with. An INIT comes again with another tag if it likes; an
                    // INIT ACK that was heard stays said.
                    if matches!(chunk, Chunk::InitAck) && other.end != 0 && other.end != ip.tcp.ack {
                        return Err(DropReason::SctpTag);
                    }
                    other.end = ip.tcp.ack;
                }
                Ok(stepped)
            }
            Payload::LaterFragment if ip.proto == proto::TCP => {
                // `seq` is the number behind it.
                if own.flags & Way::SEEN != 0 {
                    // SAFETY: see `word`.
                    unsafe { tcp::raise(&raw mut own.end, ip.tcp.seq) };
                }
                Ok(stepped)
            }
            _ => Ok(stepped),
        }
    }

    /// Moves a flow on by a packet, and tells user space of a new state. An embryonic one (`young`) that is
    /// answered is promoted. Returns where the flow now is; nothing for a packet that asks for another
    /// connection.
    ///
    /// # Errors
    ///
    /// As of [`Self::judge`]; the main table is full, or the originator has as many flows there as it may.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "inlined once")]
    pub fn advance(
        self,
        room: Room,
        key: &FlowKey,
        ip: &Ip,
        young: bool,
        reply: bool,
        group: &Group,
        now: u64,
        packet: &impl Packet,
        options: &Options,
    ) -> Result<Option<Self>, DropReason> {
        let answered = young && reply;
        let judged = if answered {
            let copy = room.flow();
            // An answer is judged on a copy, which nobody else writes, and which becomes the flow.
            // SAFETY: see `word`. Should the element be taken for another flow while it is copied, then
            // it was deleted first, and the claim below fails.
            *copy = unsafe { *self.0 };
            Self(copy)
        } else {
            if !young && ip.payload == Payload::Tcp {
                self.forget_before(group.since_ns);
            }
            self
        };
        *room.word() = judged.word();
        let stepped = judged.judge(*maps::opaque(room.word()), ip, reply, group, now, options)?;
        match stepped {
            Step::Begin => return Ok(None),
            Step::Ignore => {
                if answered {
                    // No answer, but a sign of life, which the originator may answer with a reset.
                    // SAFETY: see `word`.
                    let way = unsafe { &mut *self.ways(true).0 };
                    way.flags |= Way::ACKED;
                    way.maxack = ip.tcp.ack;
                }
                return Ok(Some(self));
            }
            _ => {}
        }
        if !answered {
            self.touch(reply, now, packet.segments(), ip.len);
            if let Step::To(next) = stepped {
                if young {
                    self.set_state(next);
                } else {
                    self.settle(key, ip, *maps::opaque(room.word()), next, reply, group, now);
                }
            }
            return Ok(Some(self));
        }
        match stepped {
            Step::To(FlowState::Close) => {
                // Refused. The element stays for this packet's way, with the timeout of a closed flow. A
                // connection that it was begun beside is gone, too: who refuses a SYN has none.
                self.set_state(FlowState::Close);
                if ip.payload == Payload::Tcp
                    && let Some(old) = maps::FLOWS.get_ptr_mut(key).map(Self)
                {
                    old.change(key, old.word(), FlowState::Close, group.term);
                }
                Ok(Some(self))
            }
            Step::To(state) => self.promote(judged, key, ip, state, group, now, packet.segments()).map(Some),
            _ if ip.payload == Payload::Sctp => {
                self.promote(judged, key, ip, FlowState::CookieWait, group, now, packet.segments()).map(Some)
            }
            _ => Ok(Some(self)),
        }
    }

    /// Moves a flow of the main table from the state that `word` says to the one that a packet leads to, or to where it
    /// leads from the state that another CPU has given it since.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "inlined once")]
    fn settle(
        self,
        key: &FlowKey,
        ip: &Ip,
        word: u32,
        next: FlowState,
        reply: bool,
        group: &Group,
        now: u64,
    ) {
        let (mut word, mut next) = (word, next);
        for _ in 0..SETTLE_ATTEMPTS {
            if self.change(key, word, next, group.term) {
                return;
            }
            word = self.word();
            // What closes does so from every state.
            if next as u8 != FlowState::Close as u8 {
                match step(self, ip, Flow::state_of(word), reply, now) {
                    Ok(Step::To(again)) => next = again,
                    _ => return,
                }
            }
        }
    }

    /// Changes the state from the one that `word` says, takes the next version and tells user space; `false` if another
    /// CPU has changed it.
    #[inline(always)]
    fn change(self, key: &FlowKey, word: u32, next: FlowState, term: u32) -> bool {
        // SAFETY: see `word`; 4-byte aligned.
        if unsafe { compare_exchange_u32(&raw mut (*self.0).word, word, Flow::with_state(word, next)) }
            .is_err()
        {
            return false;
        }
        // SAFETY: see `word`; 8-byte aligned.
        let mut version = unsafe { (&raw const (*self.0).version).read_volatile() };
        for _ in 0..ATTEMPTS {
            let next = Flow::next_version(version, term);
            // SAFETY: as above.
            match unsafe { compare_exchange_u64(&raw mut (*self.0).version, version, next) } {
                Ok(()) => {
                    publish(FlowEventKind::Updated, key, self.0, next);
                    return true;
                }
                Err(found) => version = found,
            }
        }
        lost(self.bucket());
        true
    }

    /// Moves a node's own flow on. Its stack judges; the state here only chooses the timeout. That a flow ends, or begins anew
    /// before it is over, is the node's to say, by what it has `sent` itself: what comes may be forged, and nothing here holds
    /// its numbers against a window.
    #[inline(always)]
    pub fn follow(self, key: &FlowKey, ip: &Ip, reply: bool, now: u64, packets: u32, sent: bool) {
        let state = Flow::state_of(self.word());
        let Ok(stepped) = step(self, ip, state, reply, now) else {
            return;
        };
        let over = state == FlowState::TimeWait as u8 || state == FlowState::Close as u8;
        match stepped {
            Step::To(next) if sent || !next.ends() => self.set_state(next),
            Step::Begin if sent || over => self.set_state(FlowState::SynSent),
            _ => {}
        }
        self.touch(reply, now, packets, ip.len);
        // SAFETY: see `word`.
        let flow = unsafe { &mut *self.0 };
        if sent && reply && ip.payload == Payload::Tcp && ip.tcp.flags & tcp::SYN != 0 {
            flow.ways[1].end = ip.tcp.seq.wrapping_add(1);
        }
        // Only who has heard what the node's stack began with can acknowledge it; data may have gone with it (RFC 7413).
        let answers = ip.payload != Payload::Tcp || ip.tcp.ack.wrapping_sub(flow.ways[1].end) < 1 << 16;
        if matches!(stepped, Step::To(FlowState::Established)) && self.zone(true) == ZONE_NODE && answers {
            // A handshake is over, so somebody is there.
            let _ = maps::NODE_FLOWS.insert(key, flow, BPF_ANY as u64);
            let _ = maps::NODE_GUESTS.remove(key);
        }
    }

    /// Changes the state of a flow that is not replicated. Should another CPU be faster, its state stays.
    #[inline(always)]
    fn set_state(self, next: FlowState) {
        let word = self.word();
        // SAFETY: see `word`; 4-byte aligned.
        let _ = unsafe { compare_exchange_u32(&raw mut (*self.0).word, word, Flow::with_state(word, next)) };
    }

    #[inline(always)]
    fn promote(
        self,
        copy: Self,
        key: &FlowKey,
        ip: &Ip,
        state: FlowState,
        group: &Group,
        now: u64,
        packets: u32,
    ) -> Result<Self, DropReason> {
        // SAFETY: the scratch room, which nobody else has.
        let flow = unsafe { &mut *copy.0 };
        // It stays as it is, for an answer that comes when its originator has fewer.
        let source = limit::promote(ip)?;
        let hash = embryonic::hash(key);
        let place = embryonic::claim(key, hash);
        if place == PLACES {
            // Another CPU promoted it a moment ago; or it was evicted, and nothing is known any more.
            return match maps::FLOWS.get_ptr_mut(key).map(Self) {
                Some(promoted) if promoted.number() == flow.number => Ok(promoted),
                _ => Err(DropReason::NotSyn),
            };
        }
        if flow.delta != 0 {
            // Behind the SYN proxy: the responder began with this number, and not with -1.
            flow.delta = flow.delta.wrapping_add(ip.tcp.seq).wrapping_add(1);
        }
        flow.word = Flow::with_state(flow.word, state);
        flow.version = Flow::next_version(0, group.term);
        touch(&mut flow.ways[1], now, packets, ip.len);
        // What lies under this key, if anything, is over, has expired, or is replaced by this one: its
        // responder answered a new SYN.
        let tcp = key.proto == proto::TCP;
        if tcp {
            bloom::mark(hash);
        }
        let full = maps::FLOWS.insert(key, &*flow, BPF_ANY as u64).is_err();
        if tcp {
            bloom::mark(hash);
        }
        if full {
            // It stays as it was, for an answer that comes when there is room.
            embryonic::settle(hash, place, true);
            return Err(DropReason::TableFull);
        }
        embryonic::settle(hash, place, false);
        let flow = &*flow;
        maps::count(Counter::FlowsCreated, 1);
        limit::promoted(source);
        publish(FlowEventKind::Created, key, flow, flow.version);
        maps::FLOWS.get_ptr_mut(key).map(Self).ok_or(DropReason::TableFull)
    }
}

#[inline(always)]
fn touch(way: &mut Way, now: u64, packets: u32, bytes: u32) {
    way.last_seen_ns = now & !Way::MARK | way.last_seen_ns & Way::MARK;
    way.packets += packets as u64;
    way.bytes += bytes as u64;
}

/// A flow that is about to be created: all zero, but for the next hops that the caller writes.
#[inline(always)]
pub fn draft() -> Option<&'static mut Flow> {
    let flow = maps::room().map(Room::flow)?;
    *flow = Flow::default();
    Some(flow)
}

/// What is known of a flow that is about to be created, besides its next hops.
pub struct NewFlow {
    /// Whether the originator is end B of the key.
    pub originator_is_b: bool,
    /// The bucket.
    pub bucket: u8,
    /// Zones of originator and responder.
    pub zones: [u8; 2],
    /// Hash of the name of the rule that admits it.
    pub rule_hash: u32,
    /// As [`Flow::mss`].
    pub mss: u16,
    /// The packets so far, as segments.
    pub packets: u32,
    /// Now.
    pub now: u64,
}

impl NewFlow {
    /// Completes a draft, with its first packet counted.
    #[inline(always)]
    pub fn complete(&self, draft: &mut Flow, ip: &Ip, settings: &Settings, options: &Options) {
        let state = match ip.proto {
            proto::TCP => FlowState::SynSent,
            proto::SCTP => FlowState::CookieWait,
            _ => FlowState::Unreplied,
        };
        let flags = if self.originator_is_b { Flow::ORIGINATOR_IS_B } else { 0 };
        draft.word = Flow::word(state, flags, self.zones);
        draft.rule_hash = self.rule_hash;
        draft.number = hook::unique_ns();
        draft.epoch = settings.epoch;
        draft.node = settings.node;
        draft.bucket = self.bucket;
        draft.mss = self.mss;
        draft.set_created_ns(self.now);
        let [way, back] = &mut draft.ways;
        match ip.payload {
            Payload::Tcp => {
                let len = ip.len.wrapping_sub(ip.header_len).wrapping_add(1);
                tcp::init(way, back, &ip.tcp, ip.tcp.seq.wrapping_add(len), options);
            }
            Payload::Sctp => back.end = ip.tcp.ack,
            _ => {}
        }
        touch(way, self.now, self.packets, ip.len);
    }
}

/// Puts a flow into the embryonic table. What is returned is the draft, which this packet may go on with:
/// the element is only looked up when the next one comes.
///
/// # Errors
///
/// Other CPUs are in the way all the time.
#[inline(always)]
pub fn insert_embryonic(flow: &'static mut Flow, key: &FlowKey, hash: u64) -> Result<FlowRef, DropReason> {
    if !embryonic::insert(key, hash, flow) {
        return Err(DropReason::EmbryonicBusy);
    }
    maps::count(Counter::Embryonic, 1);
    Ok(FlowRef(flow))
}

/// Puts a flow that the node begins among its own. One that does not begin with a SYN was there before the programs
/// were, and counts as established; but what answers a SYN was begun by a guest, who was pushed out meanwhile.
#[inline(always)]
pub fn insert_node(flow: &mut Flow, key: &FlowKey, ip: &Ip) {
    if ip.payload == Payload::Tcp && !ip.opens_tcp() {
        flow.word = Flow::with_state(flow.word, FlowState::Established);
        if tcp::answers_syn(ip.tcp.flags) {
            return insert_guest(flow, key);
        }
    }
    // An LRU table always has room; if memory is short for a moment, the next packet tries again.
    let _ = maps::NODE_FLOWS.insert(key, &*flow, BPF_ANY as u64);
    let _ = maps::NODE_GUESTS.remove(key);
}

/// Puts a flow that somebody else begins to the node among its guests. One that is over may lie among its own.
#[inline(always)]
pub fn insert_guest(flow: &Flow, key: &FlowKey) {
    let _ = maps::NODE_GUESTS.insert(key, flow, BPF_ANY as u64);
    let _ = maps::NODE_FLOWS.remove(key);
}

/// Writes an event: the flow as it is, under `version`.
#[inline(always)]
fn publish(kind: FlowEventKind, key: &FlowKey, flow: *const Flow, version: u64) {
    match maps::EVENTS.reserve(0) {
        Some(mut entry) => {
            let event: *mut FlowEvent = entry.as_mut_ptr();
            // SAFETY: `event` points to room for one event, `flow` to a map element or a local.
            unsafe {
                (*event).kind = kind as u32;
                (*event).cpu = bpf_get_smp_processor_id();
                (*event).key = *key;
                (*event).flow = *flow;
                (*event).flow.version = version;
            }
            entry.submit(0);
        }
        // SAFETY: as above.
        None => lost(unsafe { (*flow).bucket }),
    }
}

/// Notes that user space does not know of a change in this bucket.
#[inline(always)]
fn lost(bucket: u8) {
    maps::count(Counter::EventsLost, 1);
    maps::add(&maps::EVENT_LOSS, bucket as u32, 1);
}
