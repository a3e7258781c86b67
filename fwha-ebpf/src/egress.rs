//! tc egress on zone interfaces: tracks what the node itself sends, so that answers are let in, and
//! guards against forwarding that no flow covers. If the ingress program is missing somewhere, the
//! machine must not become an open router.

use fwha_common::{drop::DropReason, flow::NextHop, rule::ZONE_NODE, settings::Settings};

use crate::{
    flow::{self, Found, NewFlow},
    hook::{self, Tc},
    icmp::{self, Related},
    maps,
    packet::{ETH_LEN, Eth, Packet},
    parse::{self, Ip, Payload, ethertype},
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
/// Only [`DropReason::Unfiltered`]: it was not made here, and no flow covers it.
#[inline(always)]
pub fn egress(packet: &Tc) -> Result<(), DropReason> {
    let settings = maps::settings();
    if packet.mark() != 0 && packet.mark() == mark(settings) {
        packet.set_mark(0);
        return Ok(());
    }
    let local = packet.entered_by() == 0;
    match (settings, ipv4(packet)) {
        (Some(settings), Ok(ip)) if local => {
            own(packet, settings, &ip);
            Ok(())
        }
        (Some(_), Ok(ip)) if covered(packet, &ip) => Ok(()),
        _ if local => Ok(()),
        _ => Err(DropReason::Unfiltered),
    }
}

#[inline(always)]
fn ipv4(packet: &Tc) -> Result<Ip, DropReason> {
    let eth = Eth::read(packet)?;
    if eth.ethertype != ethertype::IPV4 || packet.tagged() {
        return Err(DropReason::UnknownEtherType);
    }
    parse::ipv4(packet, ETH_LEN)
}

/// Remembers a flow that the node itself began, or keeps alive one that began elsewhere.
#[inline(always)]
fn own(packet: &Tc, settings: &Settings, ip: &Ip) {
    match ip.payload {
        Payload::Tcp | Payload::Udp | Payload::EchoRequest | Payload::EchoReply => {}
        _ => return,
    }
    let now = hook::now_ns();
    let (key, src_is_b) = ip.key();
    if let Some(flow) = flow::find_node(&key, ip, now) {
        flow.follow(ip, flow.is_reply(src_is_b), now, packet.segments());
        return;
    }
    // An echo reply answers a request that was let in, and is never the beginning.
    if ip.payload != Payload::EchoReply {
        let to = maps::interface(packet.ifindex()).map_or(ZONE_NODE, |interface| interface.zone);
        NewFlow {
            originator_is_b: src_is_b,
            bucket: 0,
            zones: [ZONE_NODE, to],
            rule_hash: 0,
            packets: packet.segments(),
            now,
            hop: NextHop::default(),
        }
        .node(&key, ip, settings);
    }
}

/// Whether a flow covers a packet that the stack forwards. Only what ingress has judged and passed
/// to the stack can come here rightly, so this repeats no more than that there is a flow, and that
/// it is owned.
#[inline(always)]
fn covered(packet: &Tc, ip: &Ip) -> bool {
    let now = hook::now_ns();
    let bucket = match ip.payload {
        Payload::Tcp | Payload::Udp | Payload::EchoRequest | Payload::EchoReply => {
            match flow::find(&ip.key().0, ip, now) {
                Found::Main(flow) | Found::Embryonic(flow) => flow.bucket(),
                Found::Node(_) | Found::Nothing => return false,
            }
        }
        Payload::IcmpError => match icmp::related(packet, ip, now) {
            Ok(Related::Flow(flow, _)) => flow.bucket(),
            _ => return false,
        },
        Payload::IcmpOther | Payload::Other => return false,
    };
    flow::owner(bucket, now).is_ok()
}
