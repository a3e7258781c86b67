//! ICMP errors: passed on only if the packet inside belongs to a flow, and never a change to it.

use fwha_common::{drop::DropReason, settings::Settings};

use crate::{
    Verdict,
    flow::{self, FlowRef, Found},
    forward,
    packet::{ETH_LEN, Eth, Packet},
    parse::{self, Ip, Payload},
    zone,
};

/// What an ICMP error is about.
pub enum Related {
    /// A flow through this node; the error goes to its originator (`true`) or responder (`false`).
    Flow(FlowRef, bool),
    /// A flow of the node itself.
    Node,
}

/// Finds the flow that the packet inside an ICMP error belongs to.
///
/// # Errors
///
/// There is none, or the error does not go to the sender of the packet inside (RFC 5927).
#[inline(always)]
pub fn related(packet: &impl Packet, ip: &Ip, now: u64) -> Result<Related, DropReason> {
    let inner = parse::embedded(packet, ip, ETH_LEN).map_err(|_| DropReason::IcmpUnrelated)?;
    let tracked =
        matches!(inner.payload, Payload::Tcp | Payload::Udp | Payload::EchoRequest | Payload::EchoReply);
    if !tracked || inner.src != ip.dst {
        return Err(DropReason::IcmpUnrelated);
    }
    let (key, src_is_b) = inner.key();
    match flow::find(&key, &inner, now) {
        // The inner packet of an error that goes to the originator was sent by it.
        Found::Main(flow) | Found::Embryonic(flow) => Ok(Related::Flow(flow, !flow.is_reply(src_is_b))),
        Found::Node(_) => Ok(Related::Node),
        Found::Nothing => Err(DropReason::IcmpUnrelated),
    }
}

/// Judges an ICMP error at ingress.
///
/// # Errors
///
/// Unrelated, not owned here, or it came from the wrong side.
#[inline(always)]
pub fn error(
    packet: &mut impl Packet,
    settings: &Settings,
    eth: &Eth,
    ip: &Ip,
    now: u64,
) -> Result<Verdict, DropReason> {
    match related(packet, ip, now)? {
        Related::Node => Ok(Verdict::Pass),
        Related::Flow(flow, to_originator) => {
            flow::owner(flow.bucket(), now)?;
            // It travels as replies to the inner packet do, so it comes from the other end's zone.
            zone::check(packet, eth, flow.zone(to_originator))?;
            forward::send(packet, settings, flow, to_originator, ip)
        }
    }
}
