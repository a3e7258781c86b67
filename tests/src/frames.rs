//! Frames for tests of the data plane: built field by field, so that each may be wrong, and random ones.

use std::net::IpAddr;

use crate::model::flow::protocol;
use crate::model::packet::{Mac, ether_type, extension};

/// Lays an Ethernet header before a payload.
pub fn ethernet(destination: Mac, source: Mac, ether_type: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [destination, source].concat();
    frame.extend(ether_type.to_be_bytes());
    frame.extend(payload);
    frame
}

/// An IP header, of the family of its addresses, and what lies before it.
#[derive(Clone, Debug)]
pub struct Ip {
    /// MACs of the frame: destination and source.
    pub macs: (Mac, Mac),
    /// Source address.
    pub source: IpAddr,
    /// Destination address, of the same family.
    pub destination: IpAddr,
    /// TTL, or hop limit.
    pub hops_left: u8,
    /// Options of IPv4, padded to a multiple of four bytes.
    pub options: Vec<u8>,
    /// Extension headers of IPv6: number and content behind the first two bytes, of 6 + 8n bytes.
    pub extensions: Vec<(u8, Vec<u8>)>,
    /// As a piece of a datagram: its identification, offset in units of eight bytes, and whether more follow.
    pub piece: Option<(u32, u16, bool)>,
}

impl Ip {
    /// A plain header.
    pub fn new(macs: (Mac, Mac), source: impl Into<IpAddr>, destination: impl Into<IpAddr>) -> Self {
        Self {
            macs,
            source: source.into(),
            destination: destination.into(),
            hops_left: 64,
            options: Vec::new(),
            extensions: Vec::new(),
            piece: None,
        }
    }

    /// The frame that carries `payload`, whose checksum is already in it.
    pub fn frame(&self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let header_length = 20 + self.options.len();
                let (identification, offset, more) = self.piece.unwrap_or((0, 0, false));
                let mut header = vec![0x40 | (header_length / 4) as u8, 0];
                header.extend(((header_length + payload.len()) as u16).to_be_bytes());
                header.extend((identification as u16).to_be_bytes());
                header.extend((offset | u16::from(more) << 13).to_be_bytes());
                header.extend([self.hops_left, protocol, 0, 0]);
                header.extend(source.octets());
                header.extend(destination.octets());
                header.extend(&self.options);
                let sum = checksum(&[&header]);
                header[10..12].copy_from_slice(&sum);
                header.extend(payload);
                ethernet(self.macs.0, self.macs.1, ether_type::IPV4, &header)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut extensions = self.extensions.clone();
                if let Some((identification, offset, more)) = self.piece {
                    let mut content = (offset << 3 | u16::from(more)).to_be_bytes().to_vec();
                    content.extend(identification.to_be_bytes());
                    extensions.push((extension::FRAGMENT, content));
                }
                let numbers: Vec<u8> =
                    extensions.iter().map(|(number, _)| *number).chain([protocol]).collect();
                let mut body = Vec::new();
                for ((_, content), next) in extensions.iter().zip(&numbers[1..]) {
                    body.extend([*next, (content.len() / 8) as u8]);
                    body.extend(content);
                }
                body.extend(payload);
                let mut header = vec![0x60, 0, 0, 0];
                header.extend((body.len() as u16).to_be_bytes());
                header.extend([numbers[0], self.hops_left]);
                header.extend(source.octets());
                header.extend(destination.octets());
                header.extend(body);
                ethernet(self.macs.0, self.macs.1, ether_type::IPV6, &header)
            }
            _ => panic!("addresses of two families"),
        }
    }

    /// A whole transport packet with its checksum, which lies at `checksum_at`.
    fn summed(&self, protocol: u8, mut packet: Vec<u8>, checksum_at: usize) -> Vec<u8> {
        packet[checksum_at..checksum_at + 2].fill(0);
        let sum = if protocol == protocol::ICMP {
            checksum(&[&packet])
        } else {
            let addresses = [self.source, self.destination].map(|address| match address {
                IpAddr::V4(address) => address.octets().to_vec(),
                IpAddr::V6(address) => address.octets().to_vec(),
            });
            let length = (packet.len() as u32).to_be_bytes();
            checksum(&[&addresses[0], &addresses[1], &length, &[0, 0, 0, protocol], &packet])
        };
        packet[checksum_at..checksum_at + 2].copy_from_slice(&sum);
        packet
    }

    /// A UDP datagram, without its frame.
    pub fn udp(&self, source: u16, destination: u16, data: &[u8]) -> Vec<u8> {
        let mut packet = [source, destination, 8 + data.len() as u16, 0].map(u16::to_be_bytes).concat();
        packet.extend(data);
        self.summed(protocol::UDP, packet, 6)
    }

    /// A TCP segment, without its frame.
    pub fn tcp(&self, segment: &Tcp) -> Vec<u8> {
        let mut options = segment.options.clone();
        options.resize(options.len().next_multiple_of(4), 0);
        let mut packet = [segment.ports.0, segment.ports.1].map(u16::to_be_bytes).concat();
        packet.extend(segment.seq.to_be_bytes());
        packet.extend(segment.ack.to_be_bytes());
        packet.extend([(((20 + options.len()) / 4) << 4) as u8, segment.flags]);
        packet.extend([segment.window, 0, 0].map(u16::to_be_bytes).concat());
        packet.extend(options);
        packet.extend(vec![0x5a; segment.length]);
        self.summed(protocol::TCP, packet, 16)
    }

    /// An ICMP message of this family, without its frame: type, code, and what lies behind the checksum.
    pub fn icmp(&self, kind: u8, code: u8, rest: &[u8]) -> Vec<u8> {
        let mut packet = vec![kind, code, 0, 0];
        packet.extend(rest);
        self.summed(self.icmp_protocol(), packet, 2)
    }

    /// An ICMP query, or its answer.
    pub fn query(&self, kind: u8, identifier: u16) -> Vec<u8> {
        let mut rest = [identifier, 1].map(u16::to_be_bytes).concat();
        rest.extend([0; 12]);
        self.icmp(kind, 0, &rest)
    }

    /// An ICMP error about the packet in an Ethernet frame, of which it carries `length` bytes.
    pub fn error(&self, kind: u8, about: &[u8], length: usize) -> Vec<u8> {
        let about = &about[14.min(about.len())..];
        self.icmp(kind, 0, &[&[0; 4], &about[..length.min(about.len())]].concat())
    }

    /// ICMP as this family has it.
    pub fn icmp_protocol(&self) -> u8 {
        if self.source.is_ipv4() { protocol::ICMP } else { protocol::ICMPV6 }
    }
}

/// Flags of TCP.
pub mod flag {
    /// FIN.
    pub const FIN: u8 = 1;
    /// SYN.
    pub const SYN: u8 = 2;
    /// RST.
    pub const RST: u8 = 4;
    /// PSH.
    pub const PSH: u8 = 8;
    /// ACK.
    pub const ACK: u8 = 16;
    /// URG.
    pub const URG: u8 = 32;
}

/// The fields of a TCP segment.
#[derive(Clone, Debug, Default)]
pub struct Tcp {
    /// Source and destination.
    pub ports: (u16, u16),
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// See [`flag`].
    pub flags: u8,
    /// Window, as in the header.
    pub window: u16,
    /// Options; padded with zeros.
    pub options: Vec<u8>,
    /// Bytes of data.
    pub length: usize,
}

/// A chunk of SCTP: padded, and its length counted.
pub fn sctp_chunk(kind: u8, flags: u8, value: &[u8]) -> Vec<u8> {
    let mut chunk = vec![kind, flags];
    chunk.extend((4 + value.len() as u16).to_be_bytes());
    chunk.extend(value);
    chunk.resize(chunk.len().next_multiple_of(4), 0);
    chunk
}

/// An SCTP packet, without its frame. Its checksum is left out: no firewall looks at it.
pub fn sctp(ports: (u16, u16), tag: u32, chunks: &[Vec<u8>]) -> Vec<u8> {
    let mut packet = [ports.0, ports.1].map(u16::to_be_bytes).concat();
    packet.extend(tag.to_be_bytes());
    packet.extend([0; 4]);
    packet.extend(chunks.concat());
    packet
}

/// GRE version 0 without a payload, with or without a key.
pub fn gre(key: Option<u32>) -> Vec<u8> {
    match key {
        Some(key) => [[0x20, 0, 8, 0], key.to_be_bytes()].concat(),
        None => vec![0, 0, 8, 0],
    }
}

/// The Internet checksum (RFC 1071) of some pieces of even length, the last of any.
fn checksum(pieces: &[&[u8]]) -> [u8; 2] {
    let words = pieces.iter().flat_map(|piece| piece.chunks(2));
    let mut sum: u32 = words.map(|word| u32::from(word[0]) << 8 | word.get(1).map_or(0, |&b| b.into())).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// Numbers that a seed repeats (SplitMix64).
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.number() % n as u64) as usize
    }

    /// Whether a thing happens that does once in `n` times.
    pub fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// One of several.
    pub fn one_of<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

/// Changes a frame here and there: cut, longer, a byte, mostly a bit. Never below `shortest` bytes.
pub fn mutate(frame: &mut Vec<u8>, random: &mut Random, changes: usize, shortest: usize) {
    for _ in 0..changes {
        let at = random.below(frame.len());
        match random.below(8) {
            0 => frame.truncate(at.max(shortest)),
            1 => frame.extend(vec![random.number() as u8; random.below(40)]),
            2 => frame[at] = random.number() as u8,
            _ => frame[at] ^= 1 << random.below(8),
        }
    }
    if frame.len() < shortest {
        frame.resize(shortest, 0);
    }
}

/// An end of random conversations: how frames from it look, and from where they come.
#[derive(Clone, Debug)]
pub struct Host {
    /// MACs of its frames: destination and source.
    pub macs: (Mac, Mac),
    /// Its addresses, of either family.
    pub addresses: Vec<IpAddr>,
}

/// A random frame from one of two hosts to the other, and which one sent it. Few values for every field, so that
/// frames meet in flows; mostly sound, so that they get far.
pub fn random_frame(random: &mut Random, hosts: &[Host; 2]) -> (usize, Vec<u8>) {
    let from = random.below(2);
    let source = random.one_of(&hosts[from].addresses);
    let same_family: Vec<IpAddr> =
        hosts[1 - from].addresses.iter().copied().filter(|to| to.is_ipv4() == source.is_ipv4()).collect();
    let destination = if same_family.is_empty() { source } else { random.one_of(&same_family) };
    let mut ip = Ip::new(hosts[from].macs, source, destination);
    ip.hops_left = random.one_of(&[64, 64, 64, 255, 2, 1, 0]);
    if random.once_in(8) {
        ip.options = vec![1; 4 * random.below(3)];
    }
    if random.once_in(8) {
        ip.piece = Some((random.below(2) as u32, random.one_of(&[0, 0, 1, 2, 3, 185]), !random.once_in(3)));
    }
    if source.is_ipv6() && random.once_in(4) {
        let numbers = [
            extension::HOP_BY_HOP,
            extension::DESTINATION,
            extension::DESTINATION,
            extension::ROUTING,
            extension::REFUSED[0],
        ];
        for _ in 0..random.below(8) {
            // For a routing header the third byte is its type; for options this is one padding of four bytes.
            ip.extensions.push((random.one_of(&numbers), vec![1, 4, 0, 0, 0, 0]));
        }
    }
    let ports = (random.one_of(&[40_000, 40_001]), random.one_of(&[22, 53]));
    let ports = if from == 0 { ports } else { (ports.1, ports.0) };
    let (protocol, payload) = random_payload(random, &ip, ports, true);
    let mut frame = ip.frame(protocol, &payload);
    if random.once_in(4) {
        let changes = 1 + random.below(3);
        mutate(&mut frame, random, changes, 15);
    }
    (from, frame)
}

fn random_payload(random: &mut Random, ip: &Ip, ports: (u16, u16), may_nest: bool) -> (u8, Vec<u8>) {
    use flag::{ACK, FIN, PSH, RST, SYN, URG};
    match random.below(12) {
        0..5 => {
            let usual = [SYN, SYN | ACK, ACK, ACK, ACK | PSH, FIN | ACK, RST, RST | ACK];
            let number =
                |random: &mut Random| random.one_of(&[999u32, 1000, 1001, 1002, 2000, 70_000, u32::MAX]);
            let segment = Tcp {
                ports,
                seq: number(random),
                ack: number(random),
                flags: if random.once_in(12) { random.number() as u8 } else { random.one_of(&usual) },
                window: random.one_of(&[0, 1, 1000, 8192, 65_535]),
                options: random
                    .one_of::<&[u8]>(&[
                        &[],
                        &[],
                        &[3, 3, 7, 4, 2],
                        &[4, 2],
                        &[2, 4, 5, 180, 1, 3, 3, 99],
                        &[5, 10, 0, 0, 3, 0xe8, 0, 0, 3, 0xf0],
                        &[254, 40, 1],
                        &[URG, 0],
                    ])
                    .to_vec(),
                length: random.one_of(&[0, 0, 1, 8, 100, 1360]),
            };
            (protocol::TCP, ip.tcp(&segment))
        }
        5 | 6 => {
            (protocol::UDP, ip.udp(ports.0, ports.1, &vec![0x5a; random.one_of(&[0, 1, 16, 1372, 1373])]))
        }
        7 => {
            let kinds: &[u8] =
                if ip.source.is_ipv4() { &[8, 0, 13, 14, 5, 17] } else { &[128, 129, 133, 135, 137] };
            (ip.icmp_protocol(), ip.query(random.one_of(kinds), random.one_of(&[1, 2])))
        }
        8 if may_nest => {
            let about = Ip { source: ip.destination, destination: ip.source, piece: None, ..ip.clone() };
            let (protocol, payload) = random_payload(random, &about, (ports.1, ports.0), false);
            let about = about.frame(protocol, &payload);
            let kinds: &[u8] = if ip.source.is_ipv4() { &[3, 11, 12, 4] } else { &[1, 2, 3, 4] };
            let error = ip.error(random.one_of(kinds), &about, random.one_of(&[20, 27, 28, 48, 128, 1232]));
            (ip.icmp_protocol(), error)
        }
        8 | 9 => {
            let tag = random.one_of(&[0, 11, 22]);
            let init = [&random.one_of(&[11u32, 22]).to_be_bytes()[..], &[0; 12]].concat();
            let count = random.one_of(&[1, 1, 1, 2]);
            let chunks: Vec<Vec<u8>> = (0..count)
                .map(|_| match random.one_of(&[0u8, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 14]) {
                    kind @ (1 | 2) => sctp_chunk(kind, 0, &init),
                    kind => sctp_chunk(kind, random.below(2) as u8, &[0; 4]),
                })
                .collect();
            (protocol::SCTP, sctp(ports, tag, &chunks))
        }
        10 => (protocol::GRE, gre(random.one_of(&[None, Some(1), Some(0x0001_0002)]))),
        _ => (random.one_of(&[2, 4, 50, 51, 59, 89, 112]), vec![0; random.one_of(&[0, 4, 24])]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::packet::{Content, Frame, Transport};

    #[test]
    fn what_is_built_is_what_is_read() {
        for (source, destination) in [("10.0.0.1", "10.0.0.2"), ("2001:db8::1", "2001:db8::2")] {
            let mut ip = Ip::new(
                ([2; 6], [4; 6]),
                source.parse::<IpAddr>().unwrap(),
                destination.parse::<IpAddr>().unwrap(),
            );
            ip.extensions =
                vec![(0, vec![1, 4, 0, 0, 0, 0]), (60, vec![1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])];
            ip.piece = Some((7, 0, true));
            let tcp = Tcp {
                ports: (1, 2),
                seq: 3,
                ack: 4,
                flags: flag::ACK,
                window: 5,
                options: vec![4, 2],
                length: 8,
            };
            let frame = ip.frame(6, &ip.tcp(&tcp));
            let Content::Ip(packet) = Frame::parse(&frame).unwrap().content else { panic!("IP") };
            assert_eq!(
                (packet.source, packet.destination, packet.hops_left),
                (ip.source, ip.destination, 64)
            );
            assert_eq!(packet.length, frame.len() - 14);
            let piece = packet.piece.unwrap();
            assert_eq!((piece.identification, piece.offset, piece.length, piece.more), (7, 0, 32, true));
            let Transport::Tcp(tuple, segment) = packet.transport else { panic!("TCP") };
            assert_eq!((tuple.key.low.port, tuple.key.high.port), (1, 2));
            assert_eq!((segment.seq.0, segment.end.0, segment.sack_permitted), (3, 11, true));
            assert_eq!((segment.ack.map(|ack| ack.0), segment.window), (Some(4), 5));
        }
    }

    #[test]
    fn checksums_add_up() {
        let ip = Ip::new(([2; 6], [4; 6]), [10, 0, 0, 1], [10, 0, 0, 2]);
        let datagram = ip.udp(1, 2, &[1, 2, 3]);
        let mut sum = vec![10, 0, 0, 1, 10, 0, 0, 2, 0, 0, 0, 11, 0, 0, 0, 17];
        sum.extend(&datagram);
        assert_eq!(checksum(&[&sum]), [0, 0]);
        assert_eq!(checksum(&[&ip.frame(17, &datagram)[14..34]]), [0, 0]);
    }
}
