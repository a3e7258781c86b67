//! tc egress on zone interfaces: tracks what the node itself sends, so that answers are let in, and
//! guards against forwarding that no flow covers. If the ingress program is missing somewhere, the
//! machine must not become an open router.

use fwha_common::{
    drop::DropReason,
    rule::{InterfaceKey, ZONE_NODE},
    settings::Settings,
};

use crate::{
    flow::{self, Found, NewFlow},
    fragment,
    hook::{self, Tc},
    icmp::{self, Related},
    maps::{self, Room},
    packet::{ETH_LEN, Eth, Packet},
    parse::{self, Ip, Payload, ethertype},
    tcp::Options,
    vip, vlan,
};

/// The mark that tells the egress program of a packet that the ingress program judged and sends on
/// itself. Secret, so that nobody else in the machine can set it.
#[inline(always)]
pub fn mark(settings: Option<&Settings>) -> u32 {
    match settings {
        // Never 0, which is no mark.
        Some(settings) => (settings.probe_key[0] ^ settings.bucket_key[1]) as u32 | 1,
        None => 0,
    }
}

/// Judges a packet that is about to leave.
///
/// # Errors
///
/// [`DropReason::Unfiltered`]: it was not made here, and no flow covers it. Those of [`vip::leaves`].
#[inline(always)]
pub fn egress(packet: &mut Tc) -> Result<(), DropReason> {
    let settings = maps::settings();
    if packet.mark() != 0 && packet.mark() == mark(settings) {
        packet.set_mark(0);
        return Ok(());
    }
    if vlan::tagged(packet) {
        // The ingress program put the tag on, or a VLAN device, which has a guard of its own if it is in a zone.
        return Ok(());
    }
    let local = packet.entered_by() == 0;
    if local {
        vip::arp_leaves(packet)?;
    }
    let covered = match (settings, maps::room().map(Room::ip)) {
        (Some(settings), Some(ip)) => match read(packet, ip) {
            Ok(ip) if local => {
                vip::leaves(packet, ip)?;
                own(packet, settings, ip);
                true
            }
            Ok(ip) => covered(packet, settings, ip),
            Err(_) => false,
        },
        _ => false,
    };
    if !covered && !local {
        return Err(DropReason::Unfiltered);
    }
    vlan::dress_bare(packet);
    Ok(())
}

#[inline(always)]
fn read(packet: &Tc, ip: &'static mut Ip) -> Result<&'static mut Ip, DropReason> {
    match Eth::read(packet)?.ethertype {
        ethertype::IPV4 => parse::ipv4(packet, ETH_LEN, ip)?,
        ethertype::IPV6 => parse::ipv6(packet, ETH_LEN, ip)?,
        _ => return Err(DropReason::UnknownEtherType),
    }
    let ip = maps::opaque(ip);
    parse::transport(packet, ip, ETH_LEN)?;
    Ok(maps::opaque(ip))
}

/// Remembers a flow that the node itself began, or keeps alive one that began elsewhere.
#[inline(always)]
fn own(packet: &Tc, settings: &Settings, ip: &Ip) {
    if matches!(ip.payload, Payload::IcmpError | Payload::IcmpOther | Payload::LaterFragment) {
        return;
    }
    let now = hook::now_ns();
    let (key, src_is_b) = ip.key();
    if let Some(flow) = flow::find_node(&key, ip, now) {
        flow.follow(&key, ip, flow.is_reply(src_is_b), now, packet.segments(), true);
        return;
    }
    // An ICMP response answers a query that was let in, and is never the beginning. What an operator has ended goes on only if
    // it is begun anew.
    if ip.payload != Payload::Response && (ip.opens() || !flow::node_ended(&key)) {
        let interface = maps::interface(InterfaceKey::untagged(packet.ifindex()));
        let Some(draft) = flow::draft() else {
            return;
        };
        NewFlow {
            originator_is_b: src_is_b,
            bucket: 0,
            zones: [ZONE_NODE, interface.map_or(ZONE_NODE, |interface| interface.zone)],
            rule_hash: 0,
            mss: 0,
            packets: packet.segments(),
            now,
        }
        .complete(draft, ip, settings, &Options::default());
        flow::insert_node(draft, &key, ip);
    }
}

/// Whether a flow covers a packet that the stack forwards. Only what ingress has judged and passed
/// to the stack can come here rightly, so this repeats no more than that there is a flow, and that
/// it is owned.
#[inline(always)]
fn covered(packet: &Tc, settings: &Settings, ip: &mut Ip) -> bool {
    let now = hook::now_ns();
    if ip.payload == Payload::LaterFragment && fragment::resume(ip, now).is_err() {
        return false;
    }
    // By how much a number is less than its sender's, who is behind the SYN proxy.
    let mut delta = 0;
    let bucket = match ip.payload {
        Payload::IcmpError => match icmp::related(packet, ip, now, true) {
            Ok(Related::Flow(flow, _)) => flow.bucket(),
            _ => return false,
        },
        Payload::IcmpOther => return false,
        _ => {
            let (key, src_is_b) = ip.key();
            match flow::find(&key, src_is_b, ip, now) {
                Found::Main(flow) | Found::Embryonic(flow) => {
                    delta = if flow.is_reply(src_is_b) { flow.delta() } else { 0 };
                    flow.bucket()
                }
                Found::Nothing(hash) => match flow::refused(&key, hash, ip, now) {
                    Some(flow) => flow.bucket(),
                    None => return false,
                },
                Found::Node(_) => return false,
            }
        }
    };
    if flow::owner(settings, bucket, now).is_err() {
        return false;
    }
    if ip.first_fragment() {
        // The stack makes fragments of what is too long for the route; those that follow need it. So do those that have yet to
        // come in, whose numbers are the sender's.
        ip.tcp.seq = ip.tcp.seq.wrapping_add(delta);
        fragment::remember(ip, now);
    }
    true
}
