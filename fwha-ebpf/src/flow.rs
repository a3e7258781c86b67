//! Flows in the maps: finding, creating, promoting, changing them, and telling user space.
//!
//! # What two CPUs may do to one flow at once
//!
//! Both directions of a flow, and with some hardware two packets of one direction, run at the same
//! time, and user space deletes and replaces elements under way.
//!
//! - `state`: compare-and-exchange. Who loses looks again with the state that won.
//! - `version`: compare-and-exchange, always after the change it stands for. The event of a version
//!   is a copy of the flow taken after that version was won. So a change with a lower version was
//!   in the flow before the copy was taken: **the event with the highest version holds them all**,
//!   in whatever order events reach user space. The copy may hold a later change too, which then
//!   is told again under its own version.
//! - `last_seen_ns`, `packets`, `bytes` of a direction: plain writes. Two CPUs in one direction
//!   may lose a count, and a time may be that of the other packet of the same moment.
//! - `hops` of a direction: plain writes, `generation` last. Two CPUs write the result of the same
//!   lookup for the same generation; where a route changed in between, user space raises the
//!   generation once more and the next packet looks again. At worst one frame goes the old way.
//! - An element that user space deletes while a program holds it may be reused for another flow at
//!   once, and take one packet's count. User space deletes what has expired, which by then had no
//!   packet for the whole timeout.
//! - Promotion: deleting the embryonic element is atomic, so one CPU wins and makes the flow.

use aya_ebpf::{bindings::BPF_ANY, helpers::generated::bpf_get_smp_processor_id};
use fwha_common::{
    drop::DropReason,
    flow::{
        FLOW_STATES, Flow, FlowEvent, FlowEventKind, FlowId, FlowKey, FlowState, NextHop, TimeoutClass, proto,
    },
    group::Group,
    settings::{Counter, Settings},
};

use crate::{
    atomic::{compare_exchange_u32, compare_exchange_u64},
    hook, maps,
    parse::{Ip, Payload},
    tcp::{self, Step},
};

/// Attempts at a compare-and-exchange before giving up. Each failure means that another CPU got on.
const ATTEMPTS: u32 = 8;

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
    /// Among the node's own flows.
    Node(FlowRef),
    /// Nowhere.
    Nothing,
}

/// Looks for a live flow in all tables: the main one first, as most packets are of it.
#[inline(always)]
pub fn find(key: &FlowKey, ip: &Ip, now: u64) -> Found {
    if let Some(flow) = maps::FLOWS.get_ptr_mut(key).map(FlowRef)
        && !flow.succeeded_by(ip)
        && flow.alive(ip.proto, maps::group(flow.bucket()).map_or(0, |group| group.since_ns), now)
    {
        return Found::Main(flow);
    }
    if let Some(flow) = maps::EMBRYONIC.get_ptr_mut(key).map(FlowRef)
        && !flow.succeeded_by(ip)
        && flow.alive(ip.proto, 0, now)
    {
        return Found::Embryonic(flow);
    }
    match find_node(key, ip, now) {
        Some(flow) => Found::Node(flow),
        None => Found::Nothing,
    }
}

/// Looks for a live flow of the node itself.
#[inline(always)]
pub fn find_node(key: &FlowKey, ip: &Ip, now: u64) -> Option<FlowRef> {
    maps::NODE_FLOWS.get_ptr_mut(key).map(FlowRef).filter(|flow| flow.alive(ip.proto, 0, now))
}

/// The group of a bucket, if this node owns it now.
#[inline(always)]
pub fn owner(bucket: u8, now: u64) -> Result<&'static Group, DropReason> {
    match maps::group(bucket) {
        Some(group) if group.owned(now) => Ok(group),
        Some(group) if group.role == Group::ACTIVE => Err(DropReason::LeaseExpired),
        _ => Err(DropReason::NotOwner),
    }
}

/// What a packet does to the state of its flow.
///
/// # Errors
///
/// The state does not allow it, or an ICMP echo goes the wrong way.
#[inline(always)]
fn step(flow: FlowRef, ip: &Ip, state: u32, reply: bool, now: u64) -> Result<Step, DropReason> {
    match ip.payload {
        Payload::Tcp => match tcp::step(state, reply, ip.tcp_flags) {
            Step::Invalid => Err(DropReason::TcpState),
            step => Ok(step),
        },
        Payload::Udp => Ok(if state == FlowState::Unreplied as u32 {
            if reply { Step::To(FlowState::Replied) } else { Step::Stay }
        } else if state == FlowState::Replied as u32 && now > flow.created_ns().saturating_add(UDP_STREAM_NS)
        {
            Step::To(FlowState::Assured)
        } else {
            Step::Stay
        }),
        Payload::EchoRequest if !reply => Ok(Step::Stay),
        Payload::EchoReply if reply => {
            Ok(if state == FlowState::Unreplied as u32 { Step::To(FlowState::Replied) } else { Step::Stay })
        }
        _ => Err(DropReason::Icmp),
    }
}

impl FlowRef {
    /// The state, which other CPUs change.
    #[inline(always)]
    fn state(self) -> u32 {
        // SAFETY: `self.0` comes from a map lookup in this run of the program, as in all below;
        // volatile, because others write here.
        unsafe { (&raw const (*self.0).state).read_volatile() }
    }

    /// Whether a packet begins, or answers, another connection than this, which is over.
    #[inline(always)]
    fn succeeded_by(self, ip: &Ip) -> bool {
        ip.payload == Payload::Tcp && tcp::succeeds(self.state(), ip.tcp_flags)
    }

    /// The bucket.
    #[inline(always)]
    pub fn bucket(self) -> u8 {
        // SAFETY: see `state`; never written after the element came to be.
        unsafe { (*self.0).bucket }
    }

    /// The number in its identity.
    #[inline(always)]
    fn number(self) -> u64 {
        // SAFETY: see `bucket`.
        unsafe { (*self.0).id.number }
    }

    /// When it began.
    #[inline(always)]
    fn created_ns(self) -> u64 {
        // SAFETY: see `bucket`.
        unsafe { (*self.0).created_ns }
    }

    /// Zone of the originator (`false`) or the responder (`true`).
    #[inline(always)]
    pub fn zone(self, responder: bool) -> u8 {
        // SAFETY: see `bucket`.
        unsafe { if responder { (*self.0).zones[1] } else { (*self.0).zones[0] } }
    }

    /// Whether a packet whose source is end B of the key goes from responder to originator.
    #[inline(always)]
    pub fn is_reply(self, src_is_b: bool) -> bool {
        // SAFETY: see `bucket`.
        src_is_b != unsafe { (*self.0).originator_is_b() }
    }

    /// The next hop of a direction.
    #[inline(always)]
    pub fn hop(self, reply: bool) -> *mut NextHop {
        // SAFETY: see `state`; the index is 0 or 1.
        unsafe { (&raw mut (*self.0).hops).cast::<NextHop>().add(reply as usize) }
    }

    /// Whether it has not expired.
    #[inline(always)]
    fn alive(self, proto: u8, since_ns: u64, now: u64) -> bool {
        let state = self.state() as usize;
        let Some(timeouts) = maps::TIMEOUTS.get(0) else {
            return false;
        };
        let class = TimeoutClass::of(proto) as usize;
        if state >= FLOW_STATES {
            return false;
        }
        let timeout = timeouts.ns[class][state];
        // SAFETY: see `state`. A time of the other direction that is just being written is either
        // the old or the new one.
        unsafe { (*self.0).expires_ns(since_ns, timeout) > now }
    }

    /// Counts a packet and keeps the flow alive. Only for packets that the state allows: nothing else
    /// may keep a flow from expiring.
    #[inline(always)]
    fn touch(self, reply: bool, now: u64, packets: u32, bytes: u32) {
        // SAFETY: see `state`; races are harmless, see above.
        unsafe { touch(&mut *self.0, reply, now, packets, bytes) }
    }

    /// Moves a flow of the main table on by a packet, and tells user space of a new state.
    ///
    /// # Errors
    ///
    /// As of [`step`]; the flow is as before.
    #[inline(always)]
    pub fn advance(
        self,
        key: &FlowKey,
        ip: &Ip,
        reply: bool,
        group: &Group,
        now: u64,
        packets: u32,
    ) -> Result<(), DropReason> {
        let mut state = self.state();
        let mut stepped = step(self, ip, state, reply, now)?;
        self.touch(reply, now, packets, ip.len);
        for _ in 0..ATTEMPTS {
            let Step::To(next) = stepped else {
                return Ok(());
            };
            // SAFETY: see `state`; 4-byte aligned.
            match unsafe { compare_exchange_u32(&raw mut (*self.0).state, state, next as u32) } {
                Ok(()) => {
                    self.changed(key, group.term);
                    return Ok(());
                }
                Err(found) => state = found,
            }
            stepped = step(self, ip, state, reply, now)?;
        }
        Ok(())
    }

    /// Takes the next version and tells user space.
    #[inline(always)]
    fn changed(self, key: &FlowKey, term: u32) {
        // SAFETY: see `state`; 8-byte aligned.
        let mut version = unsafe { (&raw const (*self.0).version).read_volatile() };
        for _ in 0..ATTEMPTS {
            let next = Flow::next_version(version, term);
            // SAFETY: as above.
            match unsafe { compare_exchange_u64(&raw mut (*self.0).version, version, next) } {
                Ok(()) => {
                    publish(FlowEventKind::Updated, key, self.0, next);
                    return;
                }
                Err(found) => version = found,
            }
        }
        lost(self.bucket());
    }

    /// Moves a node's own flow on. Its stack judges; the state here only chooses the timeout.
    #[inline(always)]
    pub fn follow(self, ip: &Ip, reply: bool, now: u64, packets: u32) {
        let state = self.state();
        let Ok(stepped) = step(self, ip, state, reply, now) else {
            return;
        };
        if let Step::To(next) = stepped {
            // SAFETY: see `state`. Should another CPU be faster, its state stays.
            let _ = unsafe { compare_exchange_u32(&raw mut (*self.0).state, state, next as u32) };
        }
        self.touch(reply, now, packets, ip.len);
    }

    /// Handles a packet of an embryonic flow. An answer promotes it, and the flow's new place is
    /// returned.
    #[inline(always)]
    pub fn hatch(
        self,
        key: &FlowKey,
        ip: &Ip,
        reply: bool,
        group: &Group,
        now: u64,
        packets: u32,
    ) -> Result<Self, DropReason> {
        match step(self, ip, self.state(), reply, now)? {
            Step::To(FlowState::Close) => {
                // Refused or given up. The element stays for this packet's way; with the timeout of
                // a closed flow, and a new SYN takes its place.
                // SAFETY: see `state`. A stale exchange changes nothing.
                let _ = unsafe {
                    compare_exchange_u32(
                        &raw mut (*self.0).state,
                        FlowState::SynSent as u32,
                        FlowState::Close as u32,
                    )
                };
                Ok(self)
            }
            Step::To(state) if reply => self.promote(key, ip, state, group, now, packets),
            _ => {
                self.touch(reply, now, packets, ip.len);
                Ok(self)
            }
        }
    }

    #[inline(always)]
    fn promote(
        self,
        key: &FlowKey,
        ip: &Ip,
        state: FlowState,
        group: &Group,
        now: u64,
        packets: u32,
    ) -> Result<Self, DropReason> {
        let flow = maps::scratch().ok_or(DropReason::TableFull)?;
        // SAFETY: see `state`. Should the element be taken for another flow while it is copied, then
        // it was deleted first, and the removal below fails.
        *flow = unsafe { *self.0 };
        if maps::EMBRYONIC.remove(key).is_err() {
            // Another CPU promoted it a moment ago; or it was evicted, and nothing is known any more.
            return match maps::FLOWS.get_ptr_mut(key).map(Self) {
                Some(promoted) if promoted.number() == flow.id.number => Ok(promoted),
                _ => Err(DropReason::NotSyn),
            };
        }
        flow.state = state as u32;
        flow.version = Flow::next_version(0, group.term);
        touch(flow, true, now, packets, ip.len);
        let flow = &*flow;
        // What lies under this key, if anything, is over or has expired: `find` did not take it.
        maps::FLOWS.insert(key, flow, BPF_ANY as u64).map_err(|_| DropReason::TableFull)?;
        maps::add(&maps::COUNTERS, Counter::FlowsCreated as u32, 1);
        publish(FlowEventKind::Created, key, flow, flow.version);
        maps::FLOWS.get_ptr_mut(key).map(Self).ok_or(DropReason::TableFull)
    }
}

#[inline(always)]
fn touch(flow: &mut Flow, reply: bool, now: u64, packets: u32, bytes: u32) {
    let i = reply as usize & 1;
    flow.last_seen_ns[i] = now;
    flow.packets[i] += packets as u64;
    flow.bytes[i] += bytes as u64;
}

/// What is known of a flow that is about to be created.
pub struct NewFlow {
    /// Whether the originator is end B of the key.
    pub originator_is_b: bool,
    /// The bucket.
    pub bucket: u8,
    /// Zones of originator and responder.
    pub zones: [u8; 2],
    /// Hash of the name of the rule that admits it.
    pub rule_hash: u32,
    /// The packets so far, as segments.
    pub packets: u32,
    /// Now.
    pub now: u64,
    /// Where packets of the originator leave, as far as it is known.
    pub hop: NextHop,
}

impl NewFlow {
    /// The flow as it goes into a map, with its first packet counted.
    #[inline(always)]
    fn build(&self, ip: &Ip, settings: &Settings) -> Option<&'static mut Flow> {
        let flow = maps::scratch()?;
        let exact = hook::exact_ns();
        // SAFETY: takes nothing, returns a number.
        let cpu = unsafe { bpf_get_smp_processor_id() };
        let state = if ip.proto == proto::TCP { FlowState::SynSent } else { FlowState::Unreplied };
        *flow = Flow {
            state: state as u32,
            flags: if self.originator_is_b { Flow::ORIGINATOR_IS_B } else { 0 },
            bucket: self.bucket,
            zones: self.zones,
            hops: [self.hop, NextHop::default()],
            id: FlowId {
                number: exact & !0xff | cpu as u64 & 0xff,
                epoch: settings.epoch,
                node: settings.node,
                zero: [0; 3],
            },
            created_ns: self.now,
            rule_hash: self.rule_hash,
            ruleset_generation: settings.ruleset_generation,
            ..Flow::default()
        };
        touch(flow, false, self.now, self.packets, ip.len);
        Some(flow)
    }

    /// Puts the flow into the embryonic table.
    #[inline(always)]
    pub fn embryonic(&self, key: &FlowKey, ip: &Ip, settings: &Settings) -> Result<FlowRef, DropReason> {
        let flow: &Flow = self.build(ip, settings).ok_or(DropReason::TableFull)?;
        maps::EMBRYONIC.insert(key, flow, BPF_ANY as u64).map_err(|_| DropReason::TableFull)?;
        maps::add(&maps::COUNTERS, Counter::Embryonic as u32, 1);
        maps::EMBRYONIC.get_ptr_mut(key).map(FlowRef).ok_or(DropReason::TableFull)
    }

    /// Puts the flow among the node's own. One that does not begin with a SYN was there before the
    /// programs were, and counts as established.
    #[inline(always)]
    pub fn node(&self, key: &FlowKey, ip: &Ip, settings: &Settings) {
        let Some(flow) = self.build(ip, settings) else {
            return;
        };
        if ip.payload == Payload::Tcp && !tcp::opens(ip.tcp_flags) {
            flow.state = FlowState::Established as u32;
        }
        let flow = &*flow;
        // An LRU table always has room; if memory is short for a moment, the next packet tries again.
        let _ = maps::NODE_FLOWS.insert(key, flow, BPF_ANY as u64);
    }
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
    maps::add(&maps::COUNTERS, Counter::EventsLost as u32, 1);
    maps::add(&maps::EVENT_LOSS, bucket as u32, 1);
}
