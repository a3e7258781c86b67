//! Own protocols: what the node and its links need to live. They pass to the node before
//! everything else, with a bad ruleset and with none.

use fwha_common::flow::proto;

use crate::{
    packet::{ETH_LEN, Packet, Window, window},
    parse::Ip,
};

/// 224.0.0.18, in network byte order: VRRP (RFC 9568, 5.1.1.2).
const VRRP_GROUP: u32 = u32::from_ne_bytes([224, 0, 0, 18]);
/// IGMP (RFC 9776).
const IGMP: u8 = 2;

/// Whether an IPv4 packet is one of the node's own: VRRP, to its group or to a unicast peer, and
/// IGMP, without which snooping switches stop delivering VRRP. Whether the VRRP packet is any good
/// (TTL 255, checksum) is for the daemon to see and to count. The stack may not forward either: the
/// egress guard knows no flow of theirs.
#[inline(always)]
pub fn ipv4(ip: &Ip, multicast: bool) -> bool {
    match ip.proto {
        proto::VRRP => !multicast || ip.dst == VRRP_GROUP,
        IGMP => multicast,
        _ => false,
    }
}

/// Whether an IPv6 packet is neighbour discovery (RFC 4861, types 133 to 137, hop limit 255) or
/// multicast listener discovery (RFC 3810 and 2710, hop limit 1, behind a hop-by-hop header).
#[inline(always)]
pub fn ipv6(packet: &impl Packet) -> bool {
    // 0 version, class, flow  4 payload length  6 next header  7 hop limit  8 source  24 destination
    let Ok(ip) = window::<40>(packet, ETH_LEN) else {
        return false;
    };
    let after = ETH_LEN + 40;
    match (ip.u8::<6>(), ip.u8::<7>()) {
        (proto::ICMPV6, 255) => match window::<4>(packet, after) {
            Ok(icmp) => matches!(icmp.u8::<0>(), 133..=137),
            Err(_) => false,
        },
        (0, 1) => {
            // 0 next header  1 length beyond eight bytes  2 options  8 the ICMPv6 message
            let Ok(hops): Result<Window<12>, _> = window(packet, after) else {
                return false;
            };
            hops.u8::<0>() == proto::ICMPV6
                && hops.u8::<1>() == 0
                && matches!(hops.u8::<8>(), 130 | 131 | 132 | 143)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Frame;

    fn icmpv6(hop_limit: u8, hop_by_hop: bool, kind: u8) -> Frame {
        let mut bytes = vec![0; 14];
        bytes.extend([0x60, 0, 0, 0, 0, 24, if hop_by_hop { 0 } else { 58 }, hop_limit]);
        bytes.extend([0; 32]);
        if hop_by_hop {
            bytes.extend([58, 0, 5, 2, 0, 0, 1, 0]);
        }
        bytes.extend([kind, 0, 0, 0, 0, 0, 0, 0]);
        Frame(bytes)
    }

    #[test]
    fn neighbour_discovery_passes_only_from_the_link() {
        for kind in 0..=255 {
            assert_eq!(ipv6(&icmpv6(255, false, kind)), (133..=137).contains(&kind));
            assert!(!ipv6(&icmpv6(254, false, kind)));
        }
    }

    #[test]
    fn listener_discovery_passes() {
        for kind in 0..=255 {
            assert_eq!(ipv6(&icmpv6(1, true, kind)), matches!(kind, 130..=132 | 143));
            assert!(!ipv6(&icmpv6(64, true, kind)));
        }
        let cut = icmpv6(1, true, 143);
        assert!(!ipv6(&Frame(cut.0[..cut.0.len() - 8].to_vec())));
    }
}
