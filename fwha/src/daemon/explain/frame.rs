//! The frame of a packet that nobody sent, with what its flow lets come next.

use std::net::IpAddr;

use fwha_common::flow::{Flow, FlowState, Way, octets, proto};
use fwha_common::rule::Tag;

/// TTL and hop limit.
pub(super) const TTL: u8 = 64;
/// The MAC of whoever sends it: local, nobody's.
const SENDER: [u8; 6] = [2, 0, 0, 0, 0, 1];
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
/// The window that it offers, in bytes before scaling.
const WINDOW: u16 = 8192;
/// An SCTP tag where any will do (RFC 9260, 3.3.2).
const TAG: u32 = 1;

/// Flags of TCP by name, in the order of their bits.
const FLAGS: [&str; 6] = ["fin", "syn", "rst", "psh", "ack", "urg"];
const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// Addresses, protocol and ports. An ICMP echo has its identifier as the port of who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tuple {
    pub(super) proto: u8,
    pub(super) src: IpAddr,
    pub(super) dst: IpAddr,
    pub(super) sport: u16,
    pub(super) dport: u16,
}

/// What lies behind the IP header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Content {
    /// Its bytes. Their checksum is left out: the programs do not look at it.
    pub(super) bytes: Vec<u8>,
    /// What it is; empty if there is no more to say than the protocol.
    pub(super) what: String,
}

/// The flags of TCP with these names.
///
/// # Errors
///
/// One that there is not.
pub(super) fn flags(text: &str) -> Result<u8, String> {
    text.split(',').try_fold(0, |flags, name| match FLAGS.iter().position(|known| *known == name) {
        Some(bit) => Ok(flags | 1 << bit),
        None => Err(format!("there is no TCP flag {name:?}: known are {}", FLAGS.join(", "))),
    })
}

/// Whether a segment with these flags begins a connection: SYN, and none of ACK, RST, FIN.
pub(super) const fn begins(flags: u8) -> bool {
    flags & (SYN | ACK | RST | FIN) == SYN
}

fn names(flags: u8) -> String {
    let set = FLAGS.iter().enumerate().filter(|(bit, _)| flags & 1 << bit != 0);
    set.map(|(_, name)| name.to_ascii_uppercase()).collect::<Vec<_>>().join("+")
}

impl Tuple {
    /// What this packet carries: what opens a flow, or, of a known one, what comes next from its side (`true`: from its
    /// responder).
    pub(super) fn content(&self, known: Option<(&Flow, bool)>, tcp_flags: Option<u8>) -> Content {
        let ports = [self.sport, self.dport].map(u16::to_be_bytes).concat();
        let (bytes, what) = match self.proto {
            proto::TCP => return self.tcp(known, tcp_flags),
            proto::SCTP => return self.sctp(known),
            proto::UDP | proto::UDPLITE => ([&ports[..], &[0, 8, 0, 0]].concat(), ""),
            proto::ICMP | proto::ICMPV6 => {
                let reply = known.is_some_and(|(_, reply)| reply);
                let (request, response) = if self.proto == proto::ICMP { (8, 0) } else { (128, 129) };
                let kind = if reply { response } else { request };
                let what = if reply { "echo reply" } else { "echo request" };
                ([&[kind, 0, 0, 0], &(self.sport | self.dport).to_be_bytes()[..], &[0, 1]].concat(), what)
            }
            proto::DCCP => ([&ports[..], &[0; 12]].concat(), ""),
            // Version 0, no key.
            proto::GRE => (vec![0, 0, 8, 0], ""),
            _ => (vec![0; 16], ""),
        };
        Content { bytes, what: what.into() }
    }

    fn tcp(&self, known: Option<(&Flow, bool)>, flags: Option<u8>) -> Content {
        let (mut seq, mut ack, mut next) = (0u32, 0u32, SYN);
        if let Some((flow, reply)) = known {
            let [own, other] = sides(flow, reply);
            (seq, ack, next) = (own.end, other.end, ACK);
            if flow.state() == FlowState::SynSent {
                // The SYN again, or its answer.
                (seq, next) = if reply { (0, SYN | ACK) } else { (own.end.wrapping_sub(1), SYN) };
            }
            // The originator has other numbers of the responder than those that are kept.
            ack = ack.wrapping_sub(if reply { 0 } else { flow.delta });
        }
        let flags = flags.unwrap_or(next);
        if flags & ACK == 0 {
            ack = 0;
        }
        let mut bytes = [self.sport, self.dport].map(u16::to_be_bytes).concat();
        bytes.extend([seq, ack].map(u32::to_be_bytes).concat());
        bytes.extend([5 << 4, flags]);
        bytes.extend([WINDOW, 0, 0].map(u16::to_be_bytes).concat());
        Content { bytes, what: names(flags) }
    }

    fn sctp(&self, known: Option<(&Flow, bool)>) -> Content {
        const INIT: u8 = 1;
        const INIT_ACK: u8 = 2;
        const HEARTBEAT: u8 = 4;
        let opening = known.is_none_or(|(flow, _)| flow.state() == FlowState::CookieWait);
        let reply = known.is_some_and(|(_, reply)| reply);
        // An INIT has no tag, and says which one its sender wants to see.
        let (own, wanted) = match known {
            Some((flow, reply)) => {
                let [own, other] = sides(flow, reply);
                (own.end, if other.end == 0 { TAG } else { other.end })
            }
            None => (0, TAG),
        };
        let (tag, kind, what) = match (opening, reply) {
            (true, false) => (0, INIT, "INIT"),
            (true, true) => (own, INIT_ACK, "INIT ACK"),
            (false, _) => (own, HEARTBEAT, "HEARTBEAT"),
        };
        let mut bytes = [self.sport, self.dport].map(u16::to_be_bytes).concat();
        bytes.extend([tag, 0].map(u32::to_be_bytes).concat());
        // Type, flags, length; initiate tag, window, streams, TSN.
        bytes.extend([kind, 0, 0, 20]);
        bytes.extend([wanted, u32::from(WINDOW), 0x0001_0001, 0].map(u32::to_be_bytes).concat());
        Content { bytes, what: what.into() }
    }

    /// The frame, to this MAC unless it is one for many, with these tags.
    pub(super) fn frame(&self, content: &[u8], to: [u8; 6], tags: [Tag; 2]) -> Vec<u8> {
        let mut frame = [self.group_mac().unwrap_or(to), SENDER].concat();
        for tag in tags.into_iter().filter(|tag| *tag != Tag::NONE) {
            frame.extend(tag.0.to_ne_bytes());
        }
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                frame.extend(IPV4.to_be_bytes());
                let length = 20 + content.len() as u16;
                let mut header = vec![0x45, 0];
                header.extend([length, 0, 0].map(u16::to_be_bytes).concat());
                header.extend([TTL, self.proto, 0, 0]);
                header.extend([src.octets(), dst.octets()].concat());
                // RFC 1071.
                let words = header.chunks_exact(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
                let sum: u32 = words.sum();
                let sum = (sum & 0xffff) + (sum >> 16);
                let sum = !((sum + (sum >> 16)) as u16);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                frame.extend(header);
            }
            (src, dst) => {
                frame.extend(IPV6.to_be_bytes());
                frame.extend([0x60, 0, 0, 0]);
                frame.extend((content.len() as u16).to_be_bytes());
                frame.extend([self.proto, TTL]);
                frame.extend([octets(src), octets(dst)].concat());
            }
        }
        frame.extend(content);
        frame
    }

    /// The MAC of a frame for many: RFC 1112, 6.4; RFC 2464, 7.
    fn group_mac(&self) -> Option<[u8; 6]> {
        match self.dst {
            IpAddr::V4(v4) if v4.is_broadcast() => Some([0xff; 6]),
            IpAddr::V4(v4) if v4.is_multicast() => {
                let [_, b, c, d] = v4.octets();
                Some([1, 0, 0x5e, b & 0x7f, c, d])
            }
            IpAddr::V6(v6) if v6.is_multicast() => {
                let [.., a, b, c, d] = v6.octets();
                Some([0x33, 0x33, a, b, c, d])
            }
            _ => None,
        }
    }

    /// Whether it is for many.
    pub(super) fn for_many(&self) -> bool {
        self.group_mac().is_some()
    }
}

/// The way of a packet of a flow, and the way back.
fn sides(flow: &Flow, reply: bool) -> [&Way; 2] {
    [&flow.ways[usize::from(reply)], &flow.ways[usize::from(!reply)]]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(proto: u8, src: &str, dst: &str) -> Tuple {
        Tuple { proto, src: src.parse().unwrap(), dst: dst.parse().unwrap(), sport: 40_000, dport: 22 }
    }

    #[test]
    fn a_frame_is_what_a_dissector_reads() {
        let mac = [2, 0, 0, 0, 1, 1];
        for (src, dst) in [("192.0.2.1", "198.51.100.7"), ("2001:db8::1", "2001:db8::7")] {
            let tuple = tuple(proto::TCP, src, dst);
            let tag = Tag::new(Tag::CUSTOMER, 100);
            let content = tuple.content(None, None);
            let frame = tuple.frame(&content.bytes, mac, [tag, Tag::NONE]);
            let read = etherparse::SlicedPacket::from_ethernet(&frame).unwrap();
            assert_eq!(read.vlan_ids().iter().map(|id| id.value()).collect::<Vec<_>>(), [100]);
            let Some(etherparse::TransportSlice::Tcp(tcp)) = read.transport else { panic!("TCP") };
            assert_eq!(
                (tcp.source_port(), tcp.destination_port(), tcp.syn(), tcp.ack()),
                (40_000, 22, true, false)
            );
            assert_eq!(content.what, "SYN");
            if let Some(etherparse::NetSlice::Ipv4(ip)) = read.net {
                assert_eq!(ip.header().to_header().calc_header_checksum(), ip.header().header_checksum());
            }
        }
    }

    #[test]
    fn of_a_known_connection_comes_what_its_sender_would_send_next() {
        let tuple = tuple(proto::TCP, "192.0.2.1", "198.51.100.7");
        let mut flow = Flow { word: Flow::word(FlowState::Established, 0, [1, 2]), ..Flow::default() };
        (flow.ways[0].end, flow.ways[1].end, flow.delta) = (1000, 5000, 7);
        let numbers = |reply| {
            let bytes = tuple.content(Some((&flow, reply)), None).bytes;
            let u32 = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
            (u32(4), u32(8), bytes[13])
        };
        assert_eq!(numbers(false), (1000, 4993, ACK));
        assert_eq!(numbers(true), (5000, 1000, ACK));
        let young = Flow { word: Flow::word(FlowState::SynSent, 0, [1, 2]), ..flow };
        assert_eq!(tuple.content(Some((&young, false)), None).what, "SYN");
        assert_eq!(tuple.content(Some((&young, true)), None).what, "SYN+ACK");
        assert_eq!(tuple.content(Some((&flow, true)), Some(flags("rst,ack").unwrap())).what, "RST+ACK");
        assert!(flags("syn,pst").unwrap_err().contains("\"pst\""));
    }
}
