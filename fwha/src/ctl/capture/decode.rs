//! What a frame is, in a few words: `192.168.1.7:4000 > 10.0.0.1:22 tcp S`.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use etherparse::{
    EtherType, Icmpv4Type, IpNumber, Ipv6ExtensionSlice, LaxLinkExtSlice, LaxNetSlice, LaxSlicedPacket,
    TcpSlice, TransportSlice,
};

/// Describes a frame as far as it can be read.
pub(super) fn describe(frame: &[u8]) -> String {
    let Ok(packet) = LaxSlicedPacket::from_ethernet(frame) else { return "no Ethernet header".to_owned() };
    let mut text = String::new();
    for tag in packet.vlan_ids() {
        // Writing to memory does not fail; so below.
        let _ = write!(text, "vlan {} ", tag.value());
    }
    text.push_str(&match &packet.net {
        Some(LaxNetSlice::Ipv4(ip)) => {
            let header = ip.header();
            let offset = header.fragments_offset().byte_offset();
            let fragment = ip.is_payload_fragmented().then_some(offset);
            let ends = (header.source_addr().into(), header.destination_addr().into());
            describe_ip(ends, ip.payload_ip_number(), fragment, packet.transport.as_ref())
        }
        Some(LaxNetSlice::Ipv6(ip)) => {
            let header = ip.header();
            // Of others a header may be cut off, and the iterator would read on behind it.
            let mut extensions =
                ip.is_payload_fragmented().then(|| ip.extensions().clone()).into_iter().flatten();
            let fragment = extensions.find_map(|extension| match extension {
                Ipv6ExtensionSlice::Fragment(header) if header.is_fragmenting_payload() => {
                    Some(header.fragment_offset().byte_offset())
                }
                _ => None,
            });
            let ends = (header.source_addr().into(), header.destination_addr().into());
            describe_ip(ends, ip.payload().ip_number, fragment, packet.transport.as_ref())
        }
        Some(LaxNetSlice::Arp(_)) => "arp".to_owned(),
        None => ether_type(&packet).map_or_else(|| "cut off".to_owned(), describe_ether_type),
    });
    text
}

/// The EtherType behind the last tag.
fn ether_type(packet: &LaxSlicedPacket<'_>) -> Option<EtherType> {
    let tagged = packet.link_exts.last().and_then(|ext| match ext {
        LaxLinkExtSlice::Vlan(tag) => Some(tag.ether_type()),
        LaxLinkExtSlice::Macsec(_) => None,
    });
    tagged.or_else(|| Some(packet.ether_payload()?.ether_type))
}

fn describe_ether_type(ether_type: EtherType) -> String {
    match ether_type {
        EtherType::IPV4 => "a broken IPv4 header".to_owned(),
        EtherType::IPV6 => "a broken IPv6 header".to_owned(),
        EtherType(number) => format!("ethertype 0x{number:04x}"),
    }
}

fn describe_ip(
    (from, to): (IpAddr, IpAddr),
    protocol: IpNumber,
    fragment: Option<u16>,
    transport: Option<&TransportSlice<'_>>,
) -> String {
    let ports = |from_port, to_port| {
        format!("{} > {}", SocketAddr::new(from, from_port), SocketAddr::new(to, to_port))
    };
    let fragment = fragment.map_or(String::new(), |offset| format!(" fragment at {offset}"));
    match transport {
        Some(TransportSlice::Tcp(tcp)) => {
            format!("{} tcp {}{fragment}", ports(tcp.source_port(), tcp.destination_port()), flags(tcp))
        }
        Some(TransportSlice::Udp(udp)) => {
            format!("{} udp{fragment}", ports(udp.source_port(), udp.destination_port()))
        }
        Some(TransportSlice::Icmpv4(icmp)) => {
            let message = match icmp.icmp_type() {
                Icmpv4Type::EchoRequest(echo) => format!("echo request {}", echo.id),
                Icmpv4Type::EchoReply(echo) => format!("echo reply {}", echo.id),
                _ => format!("type {} code {}", icmp.type_u8(), icmp.code_u8()),
            };
            format!("{from} > {to} icmp {message}{fragment}")
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            format!("{from} > {to} icmp6 type {} code {}{fragment}", icmp.type_u8(), icmp.code_u8())
        }
        Some(TransportSlice::Igmp(_)) | None => format!("{from} > {to} {}{fragment}", name(protocol)),
    }
}

/// A protocol whose header is not there or says no more.
fn name(protocol: IpNumber) -> String {
    match protocol {
        IpNumber::TCP => "tcp".to_owned(),
        IpNumber::UDP => "udp".to_owned(),
        IpNumber::ICMP => "icmp".to_owned(),
        IpNumber::IPV6_ICMP => "icmp6".to_owned(),
        IpNumber::IGMP => "igmp".to_owned(),
        IpNumber(number) => format!("protocol {number}"),
    }
}

/// TCP flags as packet dumps show them; `.` is ACK.
fn flags(tcp: &TcpSlice<'_>) -> String {
    let flags = [
        ('F', tcp.fin()),
        ('S', tcp.syn()),
        ('R', tcp.rst()),
        ('P', tcp.psh()),
        ('.', tcp.ack()),
        ('U', tcp.urg()),
        ('E', tcp.ece()),
        ('W', tcp.cwr()),
    ];
    let set: String = flags.into_iter().filter(|(_, set)| *set).map(|(letter, _)| letter).collect();
    if set.is_empty() { "none".to_owned() } else { set }
}

#[cfg(test)]
mod tests {
    use etherparse::{Ethernet2Header, IpFragOffset, Ipv4Header, PacketBuilder, SingleVlanHeader, VlanId};

    use super::*;

    const A: [u8; 4] = [192, 168, 1, 7];
    const B: [u8; 4] = [10, 0, 0, 1];

    fn frame(build: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut frame = Vec::new();
        build(&mut frame);
        frame
    }

    fn ethernet(ether_type: EtherType, payload: &[u8]) -> Vec<u8> {
        let header = Ethernet2Header { source: [2; 6], destination: [4; 6], ether_type };
        [&header.to_bytes()[..], payload].concat()
    }

    #[test]
    fn frames_are_named_by_what_they_carry() {
        let builder = || PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4(A, B, 64);
        let six = || PacketBuilder::ethernet2([2; 6], [4; 6]).ipv6([1; 16], [2; 16], 64);
        let syn = frame(|f| builder().tcp(4000, 22, 1, 1).syn().write(f, &[]).unwrap());
        let mut odd = Ipv4Header::new(8, 64, IpNumber(47), A, B).unwrap();
        let gre = ethernet(EtherType::IPV4, &[&odd.to_bytes()[..], &[0; 8]].concat());
        odd.protocol = IpNumber::UDP;
        odd.fragment_offset = IpFragOffset::try_new(185).unwrap();
        let fragment = ethernet(EtherType::IPV4, &[&odd.to_bytes()[..], &[0; 8]].concat());
        // Hop-by-hop options before the fragment header.
        let fragment6 = |offset: u16| {
            let header = |at: u16| [17, 0, (at >> 8) as u8, at as u8 | 1, 0, 0, 0, 7];
            let ends = [&[0x60, 0, 0, 0, 0, 24, 0, 64][..], &[1; 16], &[2; 16]].concat();
            let options = [44, 0, 1, 4, 0, 0, 0, 0];
            ethernet(EtherType::IPV6, &[&ends[..], &options, &header(offset), &[0; 8]].concat())
        };
        let tag = SingleVlanHeader {
            pcp: Default::default(),
            drop_eligible_indicator: false,
            vlan_id: VlanId::try_new(5).unwrap(),
            ether_type: EtherType::IPV4,
        };
        let tagged = ethernet(EtherType::VLAN_TAGGED_FRAME, &[&tag.to_bytes()[..], &syn[14..]].concat());
        let strange = SingleVlanHeader { ether_type: EtherType(0x1234), ..tag };
        let strange = ethernet(EtherType::VLAN_TAGGED_FRAME, &[&strange.to_bytes()[..], &[0; 4]].concat());
        for (frame, text) in [
            (syn.clone(), "192.168.1.7:4000 > 10.0.0.1:22 tcp S"),
            (
                frame(|f| builder().tcp(4000, 22, 1, 1).psh().ack(1).write(f, &[7; 900]).unwrap()),
                "192.168.1.7:4000 > 10.0.0.1:22 tcp P.",
            ),
            (
                frame(|f| builder().tcp(4000, 22, 1, 1).write(f, &[]).unwrap()),
                "192.168.1.7:4000 > 10.0.0.1:22 tcp none",
            ),
            (
                frame(|f| builder().udp(53, 5353).write(f, &[1]).unwrap()),
                "192.168.1.7:53 > 10.0.0.1:5353 udp",
            ),
            (
                frame(|f| builder().icmpv4_echo_request(9, 1).write(f, &[]).unwrap()),
                "192.168.1.7 > 10.0.0.1 icmp echo request 9",
            ),
            (
                frame(|f| builder().icmpv4_raw(3, 1, [0; 4]).write(f, &[0; 28]).unwrap()),
                "192.168.1.7 > 10.0.0.1 icmp type 3 code 1",
            ),
            (gre, "192.168.1.7 > 10.0.0.1 protocol 47"),
            (fragment, "192.168.1.7 > 10.0.0.1 udp fragment at 1480"),
            (
                frame(|f| six().udp(53, 5353).write(f, &[1]).unwrap()),
                "[101:101:101:101:101:101:101:101]:53 > [202:202:202:202:202:202:202:202]:5353 udp",
            ),
            (
                fragment6(0),
                "101:101:101:101:101:101:101:101 > 202:202:202:202:202:202:202:202 udp fragment at 0",
            ),
            (
                fragment6(1448),
                "101:101:101:101:101:101:101:101 > 202:202:202:202:202:202:202:202 udp fragment at 1448",
            ),
            (tagged, "vlan 5 192.168.1.7:4000 > 10.0.0.1:22 tcp S"),
            (strange, "vlan 5 ethertype 0x1234"),
            (ethernet(EtherType(0x88cc), &[0; 10]), "ethertype 0x88cc"),
            (ethernet(EtherType::IPV4, &[0x45]), "a broken IPv4 header"),
            (vec![2; 13], "no Ethernet header"),
        ] {
            assert_eq!(describe(&frame), text);
            // However it is cut off.
            for len in 0..frame.len() {
                describe(&frame[..len]);
            }
        }
        assert_eq!(describe(&syn[..14 + 20]), "192.168.1.7 > 10.0.0.1 tcp");
    }
}
