//! The packet's way through the firewall at ingress, the same for XDP and tc.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;
use fwha_common::{
    drop::DropReason,
    flow::{FlowKey, NextHop},
    group::Group,
    rule::{Action, Interface, MAX_RULES, ZONE_NODE},
    settings::{Counter, Settings},
};

use crate::{
    Verdict,
    flow::{self, FlowRef, Found, NewFlow},
    forward, hook, icmp, maps, own,
    packet::{ETH_LEN, Eth, Mac, Packet, RouteKind},
    parse::{self, Ip, Payload, ethertype},
    probe,
    rules::{self, Query},
    tcp, zone,
};

/// Judges a packet that came in.
///
/// # Errors
///
/// The reason to drop it.
#[inline(always)]
pub fn ingress(packet: &mut impl Packet) -> Result<Verdict, DropReason> {
    let eth = Eth::read(packet)?;
    if packet.tagged() {
        return Err(DropReason::UnknownEtherType);
    }
    match eth.ethertype {
        ethertype::IPV4 => ipv4(packet, &eth),
        ethertype::ARP => Ok(Verdict::Pass),
        ethertype::IPV6 if own::ipv6(packet) => Ok(Verdict::Pass),
        ethertype::IPV6 => Err(DropReason::Ipv6),
        ethertype::PROBE => probe::answer(packet, maps::settings()),
        _ if eth.dst.is_link_local() => Ok(Verdict::Pass),
        _ => Err(DropReason::UnknownEtherType),
    }
}

#[inline(always)]
fn ipv4(packet: &mut impl Packet, eth: &Eth) -> Result<Verdict, DropReason> {
    let ip = parse::ipv4(packet, ETH_LEN)?;
    if own::ipv4(&ip, eth.dst.is_group()) {
        return Ok(Verdict::Pass);
    }
    let settings = maps::settings().ok_or(DropReason::NoSettings)?;
    let now = hook::now_ns();
    match ip.payload {
        Payload::Tcp | Payload::Udp | Payload::EchoRequest | Payload::EchoReply => {
            track(packet, settings, eth, &ip, now)
        }
        Payload::IcmpError => icmp::error(packet, settings, eth, &ip, now),
        Payload::IcmpOther => Err(DropReason::Icmp),
        Payload::Other => Err(DropReason::UnsupportedProtocol),
    }
}

#[inline(always)]
fn track(
    packet: &mut impl Packet,
    settings: &Settings,
    eth: &Eth,
    ip: &Ip,
    now: u64,
) -> Result<Verdict, DropReason> {
    let (key, src_is_b) = ip.key();
    let packets = packet.segments();
    let (flow, reply) = match flow::find(&key, ip, now) {
        Found::Main(flow) => {
            let reply = flow.is_reply(src_is_b);
            let group = admit(packet, settings, eth, flow, reply, now)?;
            flow.advance(&key, ip, reply, group, now, packets)?;
            (flow, reply)
        }
        Found::Embryonic(flow) => {
            let reply = flow.is_reply(src_is_b);
            let group = admit(packet, settings, eth, flow, reply, now)?;
            (flow.hatch(&key, ip, reply, group, now, packets)?, reply)
        }
        Found::Node(flow) => {
            flow.follow(ip, flow.is_reply(src_is_b), now, packets);
            return Ok(Verdict::Pass);
        }
        Found::Nothing => match begin(packet, settings, eth, &key, src_is_b, ip, now)? {
            Some(flow) => (flow, false),
            None => return Ok(Verdict::Pass),
        },
    };
    forward::send(packet, settings, flow, reply, ip)
}

/// Whether a packet of a known flow may go on: the flow's bucket is owned here, and the packet came
/// from the zone of its sender.
#[inline(always)]
fn admit(
    packet: &impl Packet,
    settings: &Settings,
    eth: &Eth,
    flow: FlowRef,
    reply: bool,
    now: u64,
) -> Result<&'static Group, DropReason> {
    let group = flow::owner(flow.bucket(), now)?;
    // Packets the other way leave by the interface that these come in by, and its zone was looked
    // at when that way was found: mostly, this spares a lookup.
    // SAFETY: lies in a map element; another CPU may write it: see the module `flow`.
    let back = unsafe { &*flow.hop(!reply) };
    if back.generation == maps::route_generation(settings)
        && back.ifindex == packet.ifindex()
        && Mac::new(back.src_mac) == eth.dst
    {
        return Ok(group);
    }
    zone::check(packet, eth, flow.zone(reply))?;
    Ok(group)
}

/// Judges the first packet of a flow. A flow to the node itself has no place to be forwarded to, and
/// nothing is returned for it; it is subject to no ownership, so that a Backup answers too.
#[inline(always)]
fn begin(
    packet: &mut impl Packet,
    settings: &Settings,
    eth: &Eth,
    key: &FlowKey,
    src_is_b: bool,
    ip: &Ip,
    now: u64,
) -> Result<Option<FlowRef>, DropReason> {
    match ip.payload {
        Payload::Tcp if !tcp::opens(ip.tcp_flags) => return Err(DropReason::NotSyn),
        Payload::EchoReply => return Err(DropReason::Icmp),
        _ => {}
    }
    let from = zone::of(packet, eth)?;
    let mut new = NewFlow {
        originator_is_b: src_is_b,
        bucket: 0,
        zones: [from, ZONE_NODE],
        rule_hash: 0,
        packets: packet.segments(),
        now,
        hop: NextHop::default(),
    };
    // Routers do not forward multicast or broadcast frames (RFC 1812, 5.3.4).
    let local = eth.dst.is_group() || {
        let generation = maps::route_generation(settings);
        maps::add(&maps::COUNTERS, Counter::FibLookups as u32, 1);
        match packet.route(&forward::query(ip), &mut new.hop) {
            RouteKind::Resolved => {
                new.hop.generation = generation;
                false
            }
            RouteKind::Unresolved => false,
            RouteKind::Local => true,
            RouteKind::None => return Err(DropReason::NoRoute),
        }
    };
    if !local {
        new.bucket = key.bucket(&settings.bucket_key);
        flow::owner(new.bucket, now)?;
        match maps::interface(new.hop.ifindex) {
            Some(to) if to.zone != Interface::NO_ZONE => new.zones[1] = to.zone,
            _ => return Err(DropReason::RouteNoZone),
        }
    }
    new.rule_hash = judge(settings, ip, new.zones)?;
    if local {
        new.node(key, ip, settings);
        return Ok(None);
    }
    new.embryonic(key, ip, settings).map(Some)
}

/// The first rule that matches; its name's hash if it admits the flow.
#[inline(always)]
fn judge(settings: &Settings, ip: &Ip, zones: [u8; 2]) -> Result<u32, DropReason> {
    if settings.ruleset_generation == 0 {
        return Err(DropReason::NoRuleset);
    }
    let (key, src_is_b) = ip.key();
    let (src, dst) = if src_is_b { (key.addr_b, key.addr_a) } else { (key.addr_a, key.addr_b) };
    let query = Query {
        src,
        dst,
        port: if ip.payload == Payload::EchoRequest { 0 } else { u16::from_be(ip.dport) },
        proto: ip.proto,
        from: zones[0],
        to: zones[1],
    };
    let mut scan = Scan {
        query,
        base: (settings.ruleset_generation & 1) * MAX_RULES as u32,
        verdict: NO_RULE,
        name_hash: 0,
    };
    let rules = if settings.rules < MAX_RULES as u32 { settings.rules } else { MAX_RULES as u32 };
    // SAFETY: `try_rule` is a callback as `bpf_loop` wants it, and `scan` is what it expects.
    unsafe { bpf_loop(rules, try_rule as *mut c_void, (&raw mut scan).cast(), 0) };
    match scan.verdict {
        ACCEPT => Ok(scan.name_hash),
        NO_RULE => Err(DropReason::NoRule),
        _ => Err(DropReason::Rule),
    }
}

/// A scan through the ruleset under way.
struct Scan {
    query: Query,
    /// Where in `RULES` the ruleset begins.
    base: u32,
    /// An [`Action`], or [`NO_RULE`] as long as none matched.
    verdict: u32,
    /// Of the rule that matched.
    name_hash: u32,
}

const NO_RULE: u32 = u32::MAX;
const ACCEPT: u32 = Action::Accept as u32;

/// One step of the scan; 1 ends it. A callback of `bpf_loop`, which the verifier looks at once; it
/// would follow every turn of a plain loop, for every path that leads to it.
unsafe extern "C" fn try_rule(index: u32, scan: *mut Scan) -> i64 {
    // SAFETY: `judge` passes its own.
    let scan = unsafe { &mut *scan };
    let Some(rule) = maps::RULES.get(scan.base.wrapping_add(index)) else {
        return 1;
    };
    if !rules::matches(rule, &scan.query) {
        return 0;
    }
    maps::add(&maps::RULE_HITS, rule.index, 1);
    scan.verdict = rule.action as u32;
    scan.name_hash = rule.name_hash;
    1
}
