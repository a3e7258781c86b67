//! Own protocols: what the node and its links need to live. They pass to the node before
//! everything else, with a bad ruleset and with none.

use fwha_common::flow::{FlowKey, proto};

use crate::parse::Ip;

/// 224.0.0.18: VRRP (RFC 9568, 5.1.1.2).
const VRRP_GROUP: [u32; 4] = FlowKey::mapped(u32::from_ne_bytes([224, 0, 0, 18]));
/// ff02::12: VRRP (RFC 9568, 5.1.2.2).
const VRRP_GROUP_V6: [u32; 4] = [u32::from_be(0xff02_0000), 0, 0, u32::from_be(0x12)];
/// IGMP (RFC 9776).
const IGMP: u8 = 2;

/// Whether a packet is one of the node's own: VRRP of the link (TTL 255: RFC 9568, 5.1.1.3), to its group or to a
/// unicast peer; IGMP and multicast listener discovery, without which snooping switches stop delivering VRRP; neighbour
/// discovery. Whether a VRRP packet is any good besides is for the daemon to see and to count. The stack may not forward any: the egress guard knows no flow of theirs.
#[inline(always)]
pub fn passes(ip: &Ip, multicast: bool) -> bool {
    // ND in fragments is somebody's trick (RFC 6980).
    if ip.is_fragment() {
        return false;
    }
    match ip.proto {
        proto::VRRP => ip.ttl == 255 && (!multicast || ip.dst == VRRP_GROUP || ip.dst == VRRP_GROUP_V6),
        IGMP => multicast && !ip.v6,
        // Neighbour discovery comes from the link (RFC 4861, 7.1), listener discovery too, and behind a
        // hop-by-hop header with a router alert (RFC 3810, 5; RFC 2710, 3).
        proto::ICMPV6 if ip.v6 => match ip.icmp_type {
            133..=137 => ip.ttl == 255,
            130 | 131 | 132 | 143 => ip.ttl == 1 && ip.slow,
            _ => false,
        },
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        packet::Frame,
        parse::{self, Ip},
    };

    fn icmpv6(hop_limit: u8, hop_by_hop: bool, kind: u8) -> Ip {
        let mut bytes = vec![0x60, 0, 0, 0, 0, 8, if hop_by_hop { 0 } else { 58 }, hop_limit];
        bytes.extend([0; 32]);
        if hop_by_hop {
            bytes[5] += 8;
            bytes.extend([58, 0, 5, 2, 0, 0, 1, 0]);
        }
        bytes.extend([kind, 0, 0, 0, 0, 0, 0, 0]);
        let frame = Frame(bytes);
        let mut ip = Ip::EMPTY;
        parse::ipv6(&frame, 0, &mut ip).unwrap();
        parse::transport(&frame, &mut ip, 0).unwrap();
        ip
    }

    #[test]
    fn neighbour_discovery_passes_only_from_the_link() {
        for kind in 0..=255 {
            assert_eq!(passes(&icmpv6(255, false, kind), true), (133..=137).contains(&kind));
            assert!(!passes(&icmpv6(254, false, kind), true));
        }
    }

    #[test]
    fn listener_discovery_passes() {
        for kind in 0..=255 {
            assert_eq!(passes(&icmpv6(1, true, kind), true), matches!(kind, 130..=132 | 143));
            assert!(!passes(&icmpv6(64, true, kind), true));
            assert!(!passes(&icmpv6(1, false, kind), true), "without a router alert");
        }
    }
}
