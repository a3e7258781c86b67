//! The packet's way through the firewall at ingress, the same for XDP and tc.

use fwha_common::{
    drop::DropReason,
    flow::{FlowKey, NextHop},
    group::Group,
    rule::{Interface, ZONE_NODE},
    settings::{Counter, Settings},
};

use crate::{
    Outcome, Verdict, embryonic,
    flow::{self, FlowRef, Found, NewFlow},
    forward, fragment, hook,
    icmp::{self, Related},
    limit,
    maps::{self, Room},
    own,
    packet::{ETH_LEN, Eth, Mac, Packet, RouteKind},
    parse::{self, Ip, Payload, ethertype},
    probe, rules,
    synproxy::{self, Early},
    tcp::Options,
    vip, vlan, zone,
};

/// Judges a packet that came in.
#[inline(always)]
pub fn ingress<P: Packet>(packet: &mut P, room: Room) -> Outcome {
    let settings = maps::SETTINGS.get(0);
    if maps::vlans(settings) || vlan::tagged(packet) {
        let outcome = vlan::arrive(packet);
        if outcome.0 != Outcome::JUDGE {
            return outcome;
        }
    }
    enter(packet, room, settings).into()
}

#[inline(always)]
fn enter(
    packet: &mut impl Packet,
    room: Room,
    settings: Option<&'static Settings>,
) -> Result<Verdict, DropReason> {
    let mut eth = Eth::read(packet)?;
    if eth.dst.is_virtual() {
        vip::receive(packet, &mut eth)?;
    }
    let ip = room.ip();
    match eth.ethertype {
        ethertype::IPV4 => parse::ipv4(packet, ETH_LEN, ip)?,
        ethertype::IPV6 => parse::ipv6(packet, ETH_LEN, ip)?,
        ethertype::ARP => return vip::arp(packet, ip),
        ethertype::PROBE => return probe::answer(packet, maps::settings()),
        _ if eth.dst.is_link_local() => return Ok(Verdict::Pass),
        _ => return Err(DropReason::UnknownEtherType),
    }
    let ip = maps::opaque(ip);
    parse::transport(packet, ip, ETH_LEN)?;
    let ip = maps::opaque(ip);
    let to_group = eth.dst.is_group();
    if own::passes(ip, to_group) {
        return vip::nd(packet, ip);
    }
    // A connection has two ends (RFC 1122, 4.2.3.10): no stack takes TCP from such a frame.
    if to_group && ip.payload == Payload::Tcp {
        return Err(DropReason::OtherStation);
    }
    let settings = maps::written(settings).ok_or(DropReason::NoSettings)?;
    let now = hook::tick(room.clock());
    if ip.payload == Payload::LaterFragment {
        let datagram = fragment::resume(ip, now)?;
        fragment::cover(datagram, ip)?;
    }
    let verdict = match ip.payload {
        Payload::IcmpError => icmp_error(packet, settings, &eth, ip, now),
        Payload::IcmpOther => Err(DropReason::Icmp),
        _ => track(packet, room, settings, &eth, ip, now),
    }?;
    if ip.first_fragment() {
        fragment::remember(ip, now);
    }
    Ok(verdict)
}

/// Judges an ICMP error.
#[inline(always)]
fn icmp_error(
    packet: &mut impl Packet,
    settings: &Settings,
    eth: &Eth,
    ip: &Ip,
    now: u64,
) -> Result<Verdict, DropReason> {
    match icmp::related(packet, ip, now, false)? {
        Related::Node => vip::accept(packet, ip).map(|()| Verdict::Pass),
        Related::Flow(flow, to_originator) => {
            // It travels as replies to the inner packet do, so it comes from the other end's zone. Its
            // source may be any router on the way.
            flow::owner(settings, flow.bucket(), now)?;
            let interface = zone::of(packet, settings, eth)?;
            if interface.zone != flow.zone(to_originator) {
                return Err(DropReason::WrongZone);
            }
            if eth.dst.is_group() {
                return Err(DropReason::OtherStation);
            }
            let verdict = forward::send(packet, settings, flow, to_originator, ip, &Options::default())?;
            if to_originator || flow.delta() == 0 {
                return Ok(verdict);
            }
            synproxy::change_error(flow, ip, verdict)
        }
    }
}

#[inline(always)]
fn track(
    packet: &mut impl Packet,
    room: Room,
    settings: &Settings,
    eth: &Eth,
    ip: &mut Ip,
    now: u64,
) -> Result<Verdict, DropReason> {
    let key = room.key();
    let src_is_b = key.set(&ip.src, &ip.dst, ip.sport, ip.dport, ip.proto, ip.v6);
    let key = &*maps::opaque(key);
    let mut hash = None;
    let (flow, young) = match flow::find(key, src_is_b, ip, now) {
        Found::Main(flow) => (Some(flow), false),
        Found::Embryonic(flow) => (Some(flow), true),
        Found::Node(flow) => {
            let reply = flow.is_reply(src_is_b);
            if eth.dst.is_group()
                || zone::ends_on_link(ip)
                || forward::ends_here(packet, settings, ip, flow.ways(reply).0)
            {
                vip::accept(packet, ip)?;
                flow.follow(key, ip, reply, now, packet.segments(), false);
                return Ok(Verdict::Pass);
            }
            (None, false)
        }
        Found::Nothing(found) => {
            hash = Some(found);
            (None, false)
        }
    };
    let mut opening = false;
    let known = match flow {
        Some(flow) => {
            let reply = flow.is_reply(src_is_b);
            let group = admit(packet, settings, eth, ip, flow, reply, now)?;
            let options = options::of(packet, room, ip);
            // Windows are in the responder's own numbers.
            let ahead = if reply || synproxy::resets_without_number(ip) { 0 } else { flow.delta() };
            ip.tcp.ack = ip.tcp.ack.wrapping_add(ahead);
            let early = if young && flow.delta() != 0 { synproxy::early(ip, reply)? } else { Early::Judge };
            let known = match early {
                Early::Judge => flow.advance(room, key, ip, young, reply, group, now, packet, options)?,
                Early::Open => {
                    flow.touch(reply, now, packet.segments(), ip.len);
                    opening = true;
                    Some(flow)
                }
                Early::Begin => None,
            };
            ip.tcp.ack = ip.tcp.ack.wrapping_sub(ahead);
            known.map(|flow| (flow, reply))
        }
        None => None,
    };
    let (flow, reply) = match known {
        Some(known) => known,
        None => {
            let hash = hash.unwrap_or_else(|| embryonic::hash(key));
            match begin(packet, room, settings, eth, key, hash, src_is_b, ip, now, flow.is_some() && !young)?
            {
                Begun::Flow(flow) => {
                    opening = true;
                    (flow, false)
                }
                Begun::Done(verdict) => return Ok(verdict),
            }
        }
    };
    let options = &*maps::opaque(room.options());
    let verdict = forward::send(packet, settings, flow, reply, ip, options)?;
    if flow.delta() == 0 {
        return Ok(verdict);
    }
    synproxy::change(packet, flow, reply, ip, opening, verdict)
}

/// Whether a packet of a known flow may go on: the flow's bucket is owned here, and the packet came
/// by the interface that answers to it would leave by, or where routes are not looked at, from the zone
/// of its sender.
#[inline(always)]
fn admit(
    packet: &impl Packet,
    settings: &Settings,
    eth: &Eth,
    ip: &Ip,
    flow: FlowRef,
    reply: bool,
    now: u64,
) -> Result<&'static Group, DropReason> {
    let group = flow::owner(settings, flow.bucket(), now)?;
    let (_, back) = flow.ways(reply);
    // SAFETY: lies in a map element; another CPU may write it: see the module `flow`.
    let known = unsafe { &*back };
    // Mostly the way back is known, which spares the lookup of the interface.
    if known.generation == maps::route_generation(settings)
        && NextHop::ifindex(known.out) == packet.device()
        && Mac::new(known.src_mac) == eth.dst
    {
        return Ok(group);
    }
    let interface = zone::of(packet, settings, eth)?;
    if interface.zone != flow.zone(reply) {
        return Err(DropReason::WrongZone);
    }
    if eth.dst.is_group() {
        return Err(DropReason::OtherStation);
    }
    if interface.flags & Interface::LOOSE == 0 {
        // The source is held against the routes: the way back must leave by the interface that the packet came by
        // (RFC 3704, 2.2).
        let hop = forward::reverse_path(packet, settings, ip, interface)?;
        if hop.generation != 0 {
            // SAFETY: as above.
            unsafe { forward::keep(back, hop) };
        }
    }
    Ok(group)
}

/// What the first packet of a flow came to.
enum Begun {
    /// The flow that it began, which forwards it.
    Flow(FlowRef),
    /// This.
    Done(Verdict),
}

/// Judges the first packet of a flow: one that opens it, or one that acknowledges the cookie for the SYN that
/// did. `beside` if there is a connection of its key, which may live on: that is for its ends to find out, and
/// the SYN proxy keeps out of it. A flow to the node itself has no place to be forwarded to; it is subject to no
/// ownership, so that a Backup answers too.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "inlined once")]
fn begin(
    packet: &mut impl Packet,
    room: Room,
    settings: &Settings,
    eth: &Eth,
    key: &FlowKey,
    hash: u64,
    src_is_b: bool,
    ip: &mut Ip,
    now: u64,
    beside: bool,
) -> Result<Begun, DropReason> {
    let acknowledges = settings.flags & Settings::SYN_PROXY != 0
        && ip.payload == Payload::Tcp
        && synproxy::may_acknowledge(ip.tcp.flags);
    if !ip.opens() && !acknowledges {
        return Err(match ip.payload {
            Payload::Tcp => DropReason::NotSyn,
            Payload::Sctp => DropReason::SctpState,
            Payload::LaterFragment => DropReason::Fragment,
            _ => DropReason::Icmp,
        });
    }
    let interface = zone::of(packet, settings, eth)?;
    let multicast = eth.dst.is_group();
    zone::source(ip, multicast)?;
    let mut client_mss = 0;
    if acknowledges {
        // First, because it costs less than the rest, and anybody can send it.
        client_mss = synproxy::acknowledged(ip);
        if client_mss == 0 {
            return Err(DropReason::SynCookie);
        }
    }
    let mut zones = [interface.zone, ZONE_NODE];
    // Routers do not forward multicast or broadcast frames (RFC 1812, 5.3.4).
    let mut local = multicast || zone::ends_on_link(ip);
    // By a plain route the zone there is known, and the rules decide before the next hop is looked up.
    let mut plain = 0;
    if !local {
        plain = forward::plain_way_there(settings, ip);
        if plain != 0 {
            match maps::interface_there(plain, settings) {
                Some(there) if there.zone != Interface::NO_ZONE => zones[1] = there.zone,
                _ => plain = 0,
            }
        }
        if plain == 0 {
            match forward::route(packet, settings, ip, 0)? {
                (RouteKind::Local, ..) => {
                    vip::accept(packet, ip)?;
                    if ip.opens_tcp()
                        && let Some(flow) = flow::find_node(key, ip, now)
                    {
                        flow.follow(key, ip, flow.is_reply(src_is_b), now, packet.segments(), false);
                        return Ok(Begun::Done(Verdict::Pass));
                    }
                    local = true;
                }
                (_, zone, _) => zones[1] = zone,
            }
        }
    }
    let mut bucket = 0;
    if !local {
        bucket = maps::bucket(zones, hash);
        flow::owner(settings, bucket, now)?;
    }
    let judged = rules::judge(settings, ip, zones);
    // What is dropped without a word is so wherever it comes from.
    if let Err(reason) = judged
        && reason != DropReason::Reject
    {
        return Err(reason);
    }
    if plain != 0 {
        match forward::route(packet, settings, ip, plain)? {
            (RouteKind::Resolved | RouteKind::Unresolved, zone, _) if zone == zones[1] => {}
            // Routes have changed since they were listed; the next packet finds them listed anew.
            _ => return Err(DropReason::NoRoute),
        }
    }
    let draft = flow::draft().ok_or(DropReason::TableFull)?;
    if !local {
        let hop = &*maps::opaque(room.hop());
        // SAFETY: the draft is a map element, which nobody else has.
        unsafe { forward::keep(&raw mut draft.ways[0], hop) };
    }
    // A host that has no address yet, or only one of its link, has no way back but the link. Where the interface is
    // all that counts, plain routes say so, and the whole way is looked up when there is an answer.
    let whole_way = local || judged.is_ok_and(|admitted| admitted.mss != 0 || admitted.syn_proxy());
    if interface.flags & Interface::LOOSE == 0
        && !(local && link_local(ip))
        && (whole_way || !forward::passes_plain_reverse_path(packet, settings, ip))
    {
        let hop = forward::reverse_path(packet, settings, ip, interface)?;
        // SAFETY: as above.
        unsafe { forward::keep(&raw mut draft.ways[1], hop) };
    }
    let admitted = judged?;
    let proxied = admitted.syn_proxy() && !local && !beside && ip.payload == Payload::Tcp;
    if acknowledges && !proxied {
        return Err(DropReason::NotSyn);
    }
    if !local && ip.ttl <= 1 {
        // It ends here; the stack says so.
        return Ok(Begun::Done(Verdict::Pass));
    }
    let options = options::of(packet, room, ip);
    let mut mss = admitted.mss;
    if proxied {
        let [way, back] = &draft.ways;
        if !acknowledges {
            return synproxy::answer(ip, mss, way.mtu, back.mtu).map(Begun::Done);
        }
        let limit = if mss == 0 { 0 } else { forward::mss_limit(mss, way.mtu, back.mtu, ip.v6) };
        mss = if limit != 0 && limit < client_mss as u16 { limit } else { client_mss as u16 };
        draft.delta = synproxy::stand_for_syn(ip)?;
    }
    limit::open(ip, now)?;
    let new = NewFlow {
        originator_is_b: src_is_b,
        bucket,
        zones,
        rule_hash: admitted.name_hash,
        mss,
        packets: packet.segments(),
        now,
    };
    new.complete(draft, ip, settings, options);
    if local {
        flow::insert_guest(draft, key);
        return Ok(Begun::Done(Verdict::Pass));
    }
    if proxied {
        maps::count(Counter::SynProxied, 1);
    }
    flow::insert_embryonic(draft, key, hash).map(Begun::Flow)
}

/// Whether a source is of its link only: 0.0.0.0, 169.254.0.0/16, fe80::/10.
#[inline(always)]
fn link_local(ip: &Ip) -> bool {
    if ip.v6 {
        u32::from_be(ip.src[0]) >> 22 == 0xfe80 >> 6
    } else {
        ip.src[3] == 0 || u32::from_be(ip.src[3]) >> 16 == 0xa9fe
    }
}

/// Reading TCP options: not in [`tcp`], which knows nothing of the kernel.
mod options {
    use core::ffi::c_void;

    use aya_ebpf::helpers::generated::bpf_loop;

    use crate::{
        maps::{self, Room},
        packet::{ETH_LEN, Packet, bounded, window},
        parse::{Ip, Payload},
        tcp::{ACK, OPTIONS_LEN, Options, RST, SYN},
    };

    /// NOP, NOP, timestamp of 10 bytes.
    const TIMESTAMP: u32 = u32::from_ne_bytes([1, 1, 8, 10]);

    /// Words of options that a SYN of a usual stack begins with an option, timestamps' own not counted.
    const WORDS: u32 = 4;

    /// The options of a packet, as far as they count: of a SYN, or of a segment that may have SACK blocks.
    #[inline(always)]
    pub fn of<P: Packet>(packet: &P, room: Room, ip: &Ip) -> &'static Options {
        let found = room.options();
        *found = Options::default();
        if ip.payload == Payload::Tcp && ip.tcp.header_len > 20 && !has_timestamp_only(packet, ip) {
            read(packet, ip, found);
        }
        maps::opaque(found)
    }

    /// Whether it is a segment whose options are what nearly all segments of an established connection have.
    #[inline(always)]
    fn has_timestamp_only<P: Packet>(packet: &P, ip: &Ip) -> bool {
        ip.tcp.header_len == 32
            && ip.tcp.flags & (SYN | ACK | RST) == ACK
            && window::<4>(packet, bounded::<0xfff>(ETH_LEN as u32 + ip.l4 + 20))
                .is_ok_and(|first| first.u32::<0>() == TIMESTAMP)
    }

    /// Not inlined: known flows and new ones come here.
    #[inline(never)]
    fn read<P: Packet>(packet: &P, ip: &Ip, found: &mut Options) {
        let at = ETH_LEN as u32 + ip.l4 + 20;
        let len = ip.tcp.header_len as u32 - 20;
        if ip.tcp.flags & SYN != 0 {
            if read_words(packet, at, len, found) {
                return;
            }
        } else if ip.tcp.flags & (ACK | RST) != ACK {
            return;
        }
        scan(packet, at, len, ip.tcp.ack, found);
    }

    /// Reads the options of a SYN word by word; `false` if they are not laid out like that.
    #[inline(always)]
    fn read_words<P: Packet>(packet: &P, at: u32, len: u32, found: &mut Options) -> bool {
        let Some(scan) = maps::room().map(Room::scan) else {
            return false;
        };
        // Kept there, where the verifier forgets it: it need not follow each layout.
        scan.at = 0;
        for _ in 0..WORDS {
            // SAFETY: a reference; volatile, so that it is read from there.
            let done = unsafe { (&raw const scan.at).read_volatile() };
            let Ok(word) = window::<4>(packet, bounded::<0xfff>(at + done)) else {
                break;
            };
            let step = found.word(20 + done, u32::from_be(word.u32::<0>()));
            if step == 0 {
                break;
            }
            // SAFETY: as above.
            unsafe { (&raw mut scan.at).write_volatile(done + step) };
            if done + step >= len {
                return true;
            }
        }
        *found = Options::default();
        false
    }

    #[inline(always)]
    fn scan<P: Packet>(packet: &P, at: u32, len: u32, ack: u32, found: &mut Options) {
        let Some(scan) = maps::room().map(Room::scan) else {
            return;
        };
        if len == 0 {
            return;
        }
        // The helper wants to see both bounds of the length, and Linux 6.12 does not learn the lower one from the test above.
        let len = bounded::<{ OPTIONS_LEN as u32 - 1 }>(len - 1) + 1;
        let Some(bytes) = scan.bytes.get_mut(..len) else {
            return;
        };
        if !packet.load(at, bytes) {
            return;
        }
        scan.len = len as u32;
        scan.at = 0;
        scan.blocks = 0;
        scan.found = Options::default();
        // SAFETY: `step` is a callback as `bpf_loop` wants it.
        unsafe { bpf_loop(40, step as *mut c_void, core::ptr::null_mut(), 0) };
        *found = maps::opaque(scan).finish(ack);
    }

    /// One option; 1 ends it.
    unsafe extern "C" fn step(_: u32, _: *mut c_void) -> i64 {
        match maps::room().map(Room::scan) {
            Some(scan) => !scan.step() as i64,
            None => 1,
        }
    }
}
