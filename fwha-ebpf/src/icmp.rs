//! ICMP errors: passed on only if the packet inside belongs to a flow, and never a change to it.

use fwha_common::{
    drop::DropReason,
    flow::{Flow, Way},
};

use crate::{
    embryonic,
    flow::{self, FlowRef, Found},
    maps::{self, Room},
    packet::{ETH_LEN, Packet},
    parse::{self, Ip, Payload},
    tcp,
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
/// There is none, the error does not go to the sender of the packet inside, or the segment inside is
/// none that was sent (RFC 5927, 4). `translated` if the SYN proxy has had the error already.
#[inline(always)]
pub fn related(packet: &impl Packet, ip: &Ip, now: u64, translated: bool) -> Result<Related, DropReason> {
    let inner = maps::room().map(Room::inner).ok_or(DropReason::IcmpUnrelated)?;
    parse::embedded(packet, ip, ETH_LEN, inner).map_err(|_| DropReason::IcmpUnrelated)?;
    let tracked = matches!(
        inner.payload,
        Payload::Tcp | Payload::Udp | Payload::Sctp | Payload::Query | Payload::Response | Payload::Other
    );
    if !tracked || inner.src != ip.dst || inner.v6 != ip.v6 {
        return Err(DropReason::IcmpUnrelated);
    }
    let (key, src_is_b) = inner.key();
    match flow::find(&key, src_is_b, inner, now) {
        Found::Main(mut flow) | Found::Embryonic(mut flow) => {
            let mut by_responder = flow.is_reply(src_is_b);
            // Behind the SYN proxy, as the responder's side of the network numbers it.
            let ahead = if by_responder && !translated { flow.delta() } else { 0 };
            if inner.payload == Payload::Tcp && !sent(flow, by_responder, inner.tcp.seq.wrapping_add(ahead)) {
                // It may be about a SYN that has begun another connection beside this one.
                let hash = embryonic::hash(&key);
                flow = flow::begun(&key, hash, inner, now).ok_or(DropReason::IcmpUnrelated)?;
                by_responder = flow.is_reply(src_is_b);
                if !sent(flow, by_responder, inner.tcp.seq) {
                    return Err(DropReason::IcmpUnrelated);
                }
            }
            // The inner packet of an error that goes to the originator was sent by it.
            Ok(Related::Flow(flow, !by_responder))
        }
        Found::Node(_) => Ok(Related::Node),
        Found::Nothing(_) => Err(DropReason::IcmpUnrelated),
    }
}

/// Whether a segment with this number may have been sent, and not been acknowledged long ago.
#[inline(always)]
fn sent(flow: FlowRef, by_responder: bool, seq: u32) -> bool {
    let (own, other) = flow.ways(by_responder);
    // SAFETY: of a flow that was just found; both directions may write it, see the module `flow`.
    let (own, other): (&Way, &Way) = unsafe { (&*own, &*other) };
    let since_ns = flow.owned_since_ns();
    if own.last_seen_ns < since_ns {
        // Another node may have carried it on meanwhile.
        return true;
    }
    if own.flags & other.flags & Way::SEEN == 0 && flow.flags() & Flow::INHERITED != 0 {
        // How much may be under way is what the other side says, which was not heard here yet.
        return true;
    }
    if own.flags & Way::SEEN == 0 {
        return false;
    }
    // A SYN that was not answered may carry data (RFC 7413), which no window allowed.
    let most = if other.flags & Way::SEEN == 0 { own.bytes as u32 } else { other.maxwin };
    let oldest = own.end.wrapping_sub(most).wrapping_sub(1);
    !tcp::before(seq, oldest) && !tcp::before(own.end, seq)
}
