//! What a frame says: Ethernet, IPv4 (RFC 791) and IPv6 (RFC 8200) down to the transport header.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::flow::{End, Tuple, protocol};
use super::icmp;
use super::sctp;
use super::tcp::Segment;
use super::verdict::Reason;

/// A MAC address.
pub type Mac = [u8; 6];

/// The EtherTypes that mean something here.
pub mod ether_type {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
}

/// The extension headers of IPv6 that are walked over.
pub mod extension {
    /// Hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// Routing.
    pub const ROUTING: u8 = 43;
    /// Fragment.
    pub const FRAGMENT: u8 = 44;
    /// Destination options.
    pub const DESTINATION: u8 = 60;
    /// Mobility, HIP and Shim6, which no router has to do with.
    pub const REFUSED: [u8; 3] = [135, 139, 140];
    /// As many are walked over.
    pub const MOST: usize = 6;
    /// Each has as many bytes at most.
    pub const MOST_BYTES: usize = 256;
}

/// A frame, as far as it had to be read.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Where it goes.
    pub destination: Mac,
    /// What is in it.
    pub content: Content,
}

/// What is in a frame.
#[derive(Clone, Debug)]
pub enum Content {
    /// ARP.
    Arp,
    /// An IP packet.
    Ip(Box<Packet>),
    /// Anything else.
    Other,
}

/// An IP packet.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// TTL, or hop limit.
    pub hops_left: u8,
    /// Length in bytes, with all headers.
    pub length: usize,
    /// Whether a router must look at more than the header: options of IPv4, hop-by-hop options of IPv6.
    pub has_options: bool,
    /// The extension headers of IPv6, in order.
    pub extensions: Vec<u8>,
    /// Which piece of a datagram it is, if it is one.
    pub piece: Option<Piece>,
    /// Protocol of the transport header.
    pub protocol: u8,
    /// The transport header and all behind it.
    pub transport: Transport,
}

/// A piece of a datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Identification of the datagram.
    pub identification: u32,
    /// Protocol by which an IPv4 datagram is known; those of IPv6 are by their identification alone.
    pub protocol: Option<u8>,
    /// Where it begins, in bytes.
    pub offset: usize,
    /// Bytes of it.
    pub length: usize,
    /// Whether more follow.
    pub more: bool,
}

/// What a packet carries.
#[derive(Clone, Debug)]
pub enum Transport {
    /// TCP.
    Tcp(Tuple, Segment),
    /// SCTP.
    Sctp(Tuple, sctp::Packet),
    /// An ICMP query that has an identifier, or its answer.
    Query(Tuple, Query),
    /// An ICMP error about another packet, if enough of that can be read.
    Error(Option<icmp::About>),
    /// Another ICMP message of this type.
    OtherIcmp(u8),
    /// UDP, or a protocol without a state to look at. With the destination port, if it has ports.
    Plain(Tuple, Option<u16>),
    /// A later piece of a datagram: no header.
    Rest,
}

/// A query or an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Query {
    /// Echo or timestamp request.
    Request,
    /// Echo or timestamp reply.
    Reply,
}

/// Big-endian numbers out of a slice, as far as it reaches.
pub(super) trait Read {
    fn u8(&self, at: usize) -> Option<u8>;
    fn u16(&self, at: usize) -> Option<u16>;
    fn u32(&self, at: usize) -> Option<u32>;
}

impl Read for [u8] {
    fn u8(&self, at: usize) -> Option<u8> {
        self.get(at).copied()
    }

    fn u16(&self, at: usize) -> Option<u16> {
        Some(u16::from_be_bytes(self.get(at..at + 2)?.try_into().ok()?))
    }

    fn u32(&self, at: usize) -> Option<u32> {
        Some(u32::from_be_bytes(self.get(at..at + 4)?.try_into().ok()?))
    }
}

/// Whether a MAC is that of a group, broadcast included.
pub fn is_group(mac: Mac) -> bool {
    mac[0] & 1 != 0
}

/// Whether a MAC never leaves a link: 01:80:c2:00:00:00 to 0f (IEEE 802.1Q, table 8-1).
fn is_link_constrained(mac: Mac) -> bool {
    mac[..5] == [0x01, 0x80, 0xc2, 0, 0] && mac[5] < 0x10
}

/// Whether an address is the limited broadcast.
pub fn is_broadcast(address: IpAddr) -> bool {
    address == IpAddr::V4(Ipv4Addr::BROADCAST)
}

/// Whether an address of IPv6 is good on its link only.
pub fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// Whether no host may send from `address` (RFC 1122, 3.2.1.3; RFC 4291, 2.5 and 2.7).
pub fn is_martian(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            address.octets()[0] == 0
                || address.is_loopback()
                || address.is_multicast()
                || address.octets()[0] >= 240
        }
        IpAddr::V6(address) => {
            address.is_unspecified()
                || address.is_loopback()
                || address.is_multicast()
                || address.to_ipv4_mapped().is_some()
        }
    }
}

impl Frame {
    /// Reads a frame.
    pub fn parse(frame: &[u8]) -> Result<Self, Reason> {
        let destination = frame.get(..6).ok_or(Reason::Truncated)?.try_into().expect("six bytes");
        let ether_type = frame.u16(12).ok_or(Reason::Truncated)?;
        let content = match ether_type {
            ether_type::ARP => Content::Arp,
            ether_type::IPV4 => Content::Ip(Box::new(Packet::ipv4(&frame[14..])?)),
            ether_type::IPV6 => Content::Ip(Box::new(Packet::ipv6(&frame[14..])?)),
            _ if is_link_constrained(destination) => Content::Other,
            _ => return Err(Reason::UnknownEtherType),
        };
        Ok(Self { destination, content })
    }

    /// Whether it is of the protocols that a node and its links need to live.
    pub fn is_own_protocol(&self) -> bool {
        let packet = match &self.content {
            Content::Arp | Content::Other => return true,
            Content::Ip(packet) if packet.piece.is_none() => packet,
            Content::Ip(_) => return false,
        };
        match (packet.protocol, &packet.transport) {
            (protocol::VRRP, _) => {
                packet.hops_left == 255
                    && (!is_group(self.destination)
                        || packet.destination == IpAddr::V4(Ipv4Addr::new(224, 0, 0, 18))
                        || packet.destination == IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x12)))
            }
            (protocol::IGMP, _) => packet.source.is_ipv4() && is_group(self.destination),
            // Neighbour discovery, RFC 4861.
            (protocol::ICMPV6, Transport::OtherIcmp(133..=137)) => packet.hops_left == 255,
            // Multicast listener discovery, RFC 2710 and RFC 3810.
            (protocol::ICMPV6, Transport::OtherIcmp(130..=132 | 143)) => {
                packet.hops_left == 1 && packet.extensions == [extension::HOP_BY_HOP]
            }
            _ => false,
        }
    }
}

impl Packet {
    fn ipv4(bytes: &[u8]) -> Result<Self, Reason> {
        let header = bytes.get(..20).ok_or(Reason::Truncated)?;
        let header_length = usize::from(header[0] & 0xf) * 4;
        let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if header[0] >> 4 != 4 || header_length < 20 || length < header_length {
            return Err(Reason::Malformed);
        }
        let bytes = bytes.get(..length).ok_or(Reason::Truncated)?;
        // RFC 1812, 5.2.2: no router forwards a header whose checksum is wrong. With options it is the stack that sees.
        let words = bytes[..header_length].chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
        if header_length == 20 && words.sum::<u32>() % 0xffff != 0 {
            return Err(Reason::Malformed);
        }
        let address = |at| IpAddr::from(<[u8; 4]>::try_from(&header[at..at + 4]).expect("four bytes"));
        let fragment = u16::from_be_bytes([header[6], header[7]]);
        let (offset, more) = (usize::from(fragment & 0x1fff) * 8, fragment & 0x2000 != 0);
        let piece = (offset > 0 || more).then(|| Piece {
            identification: u16::from_be_bytes([header[4], header[5]]).into(),
            protocol: Some(header[9]),
            offset,
            length: length - header_length,
            more,
        });
        let mut packet = Self {
            source: address(12),
            destination: address(16),
            hops_left: header[8],
            length,
            has_options: header_length > 20,
            extensions: Vec::new(),
            piece,
            protocol: header[9],
            transport: Transport::Rest,
        };
        packet.read_transport(&bytes[header_length..])?;
        Ok(packet)
    }

    fn ipv6(bytes: &[u8]) -> Result<Self, Reason> {
        let header = bytes.get(..40).ok_or(Reason::Truncated)?;
        if header[0] >> 4 != 6 {
            return Err(Reason::Malformed);
        }
        let length = 40 + usize::from(u16::from_be_bytes([header[4], header[5]]));
        let bytes = bytes.get(..length).ok_or(Reason::Truncated)?;
        let address = |at| IpAddr::from(<[u8; 16]>::try_from(&header[at..at + 16]).expect("sixteen bytes"));
        let chain = Chain::walk(header[6], &bytes[40..])?;
        let mut packet = Self {
            source: address(8),
            destination: address(24),
            hops_left: header[7],
            length,
            has_options: chain.extensions.contains(&extension::HOP_BY_HOP),
            extensions: chain.extensions,
            piece: chain.piece,
            protocol: chain.protocol,
            transport: Transport::Rest,
        };
        packet.read_transport(&bytes[40 + chain.length..])?;
        Ok(packet)
    }

    /// Reads the transport header, unless it is in another piece.
    fn read_transport(&mut self, bytes: &[u8]) -> Result<(), Reason> {
        match &self.piece {
            // RFC 791 and RFC 8200, 4.5: something, all but the last in units of eight bytes, and 64 KiB in all.
            Some(piece)
                if piece.length == 0
                    || piece.more && !piece.length.is_multiple_of(8)
                    || piece.offset + piece.length > 0xffff =>
            {
                return Err(Reason::Malformed);
            }
            // A second piece that would begin inside the TCP header (RFC 3128).
            Some(piece) if piece.offset == 8 && self.protocol == protocol::TCP => {
                return Err(Reason::FragmentTiny);
            }
            Some(piece) if piece.offset > 0 => return Ok(()),
            _ => {}
        }
        match self.transport(bytes) {
            Ok(transport) => self.transport = transport,
            Err(Reason::Truncated) if self.piece.is_some() => return Err(Reason::FragmentTiny),
            // The frame holds all that the packet says it has; so it is the packet that is wrong.
            Err(Reason::Truncated) => return Err(Reason::Malformed),
            Err(reason) => return Err(reason),
        }
        Ok(())
    }

    fn transport(&self, bytes: &[u8]) -> Result<Transport, Reason> {
        let short = Reason::Truncated;
        let tuple = |source, destination| {
            let source = End { address: self.source, port: source };
            let destination = End { address: self.destination, port: destination };
            Tuple::new(source, destination, self.protocol)
        };
        let ports = || Some(tuple(bytes.u16(0)?, bytes.u16(2)?));
        match (self.protocol, self.source) {
            (protocol::TCP, _) => {
                let tuple = ports().ok_or(short)?;
                Ok(Transport::Tcp(tuple, Segment::parse(bytes)?))
            }
            (protocol::UDP, _) => {
                let length = usize::from(bytes.get(..8).ok_or(short)?.u16(4).expect("eight bytes"));
                if self.piece.is_none() && !(8..=bytes.len()).contains(&length) {
                    return Err(Reason::Malformed);
                }
                Ok(Transport::Plain(ports().ok_or(short)?, bytes.u16(2)))
            }
            // RFC 3828, 3.1 and RFC 4340, 5.1; of either only the ports are looked at.
            (protocol::UDP_LITE | protocol::DCCP, _) => {
                bytes.get(..if self.protocol == protocol::DCCP { 12 } else { 8 }).ok_or(short)?;
                Ok(Transport::Plain(ports().ok_or(short)?, bytes.u16(2)))
            }
            (protocol::SCTP, _) => {
                let packet = sctp::Packet::parse(bytes, self.piece.is_some())?;
                Ok(Transport::Sctp(ports().ok_or(short)?, packet))
            }
            (protocol::ICMP, IpAddr::V4(_)) | (protocol::ICMPV6, IpAddr::V6(_)) => {
                bytes.get(..8).ok_or(short)?;
                let query = |query| {
                    let id = bytes.u16(4).expect("eight bytes");
                    Transport::Query(if query == Query::Request { tuple(id, 0) } else { tuple(0, id) }, query)
                };
                Ok(match icmp::Kind::of(self.protocol, bytes[0]) {
                    icmp::Kind::Request => query(Query::Request),
                    icmp::Kind::Reply => query(Query::Reply),
                    icmp::Kind::Error => Transport::Error(icmp::About::parse(self.protocol, &bytes[8..])),
                    icmp::Kind::Other => Transport::OtherIcmp(bytes[0]),
                })
            }
            (protocol::GRE, _) => Ok(match gre_key(bytes).ok_or(short)? {
                Some(key) => Transport::Plain(Tuple::gre(self.source, self.destination, key), None),
                None => Transport::Plain(tuple(0, 0), None),
            }),
            _ => Ok(Transport::Plain(tuple(0, 0), None)),
        }
    }
}

/// The key of GRE version 0 (RFC 2890), if it has one; `None` if the header is cut.
pub(super) fn gre_key(bytes: &[u8]) -> Option<Option<u32>> {
    let (checksum, key) = (0x8000, 0x2000);
    let flags = bytes.u16(0)?;
    bytes.get(..4)?;
    if flags & 7 != 0 || flags & key == 0 {
        return Some(None);
    }
    Some(Some(bytes.u32(if flags & checksum == 0 { 4 } else { 8 })?))
}

/// The headers between that of IPv6 and the transport's.
pub(super) struct Chain {
    pub extensions: Vec<u8>,
    pub piece: Option<Piece>,
    pub protocol: u8,
    /// Bytes of them.
    pub length: usize,
}

impl Chain {
    /// Walks over the headers at the beginning of `bytes`, the first of which is a `next`.
    pub fn walk(mut next: u8, bytes: &[u8]) -> Result<Self, Reason> {
        let mut chain = Self { extensions: Vec::new(), piece: None, protocol: next, length: 0 };
        loop {
            let in_order = match next {
                extension::HOP_BY_HOP => chain.extensions.is_empty(),
                extension::FRAGMENT => !chain.extensions.contains(&extension::FRAGMENT),
                extension::ROUTING | extension::DESTINATION => true,
                other if extension::REFUSED.contains(&other) => false,
                protocol => {
                    chain.protocol = protocol;
                    return Ok(chain);
                }
            };
            if !in_order || chain.extensions.len() == extension::MOST {
                return Err(Reason::ExtensionHeader);
            }
            let header = bytes.get(chain.length..chain.length + 8).ok_or(Reason::Malformed)?;
            let length = if next == extension::FRAGMENT { 8 } else { (usize::from(header[1]) + 1) * 8 };
            bytes.get(chain.length..chain.length + length).ok_or(Reason::Malformed)?;
            if next == extension::ROUTING && header[2] == 0 || length > extension::MOST_BYTES {
                return Err(Reason::ExtensionHeader);
            }
            chain.extensions.push(next);
            chain.length += length;
            chain.protocol = header[0];
            if next == extension::FRAGMENT {
                let field = u16::from_be_bytes([header[2], header[3]]);
                let (offset, more) = (usize::from(field & !7), field & 1 != 0);
                if offset > 0 || more {
                    chain.piece = Some(Piece {
                        identification: header.u32(4).expect("eight bytes"),
                        protocol: None,
                        offset,
                        length: bytes.len() - chain.length,
                        more,
                    });
                }
                if offset > 0 {
                    return Ok(chain);
                }
            }
            next = header[0];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(first: u8, headers: &[&[u8]]) -> Result<Chain, Reason> {
        Chain::walk(first, &headers.concat())
    }

    #[test]
    fn a_chain_is_walked_to_its_protocol() {
        let options = [6, 0, 1, 4, 0, 0, 0, 0];
        let fragment = [60, 0, 0, 9, 0, 0, 0, 7];
        let found = chain(44, &[&fragment, &options]).unwrap();
        assert_eq!(
            (found.protocol, found.length, found.extensions),
            (60, 8, vec![44]),
            "offset 8: it ends there"
        );
        let first = [60, 0, 0, 1, 0, 0, 0, 7];
        let found = chain(44, &[&first, &options]).unwrap();
        assert_eq!((found.protocol, found.length), (6, 16));
        let piece = found.piece.unwrap();
        assert_eq!((piece.identification, piece.protocol, piece.offset, piece.length), (7, None, 0, 8));
        let atomic = [6, 0, 0, 0, 0, 0, 0, 7];
        assert!(chain(44, &[&atomic]).unwrap().piece.is_none());
        for protocol in [6, 17, 50, 51, 58, 59] {
            assert_eq!(chain(protocol, &[]).unwrap().protocol, protocol);
        }
    }

    #[test]
    fn a_chain_that_no_router_should_meet() {
        let refused = |first, headers: &[&[u8]]| chain(first, headers).err();
        let to = |next: u8| [next, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(refused(0, &[&to(0), &to(6)]), Some(Reason::ExtensionHeader), "a second hop-by-hop");
        assert_eq!(refused(60, &[&to(0), &to(6)]), Some(Reason::ExtensionHeader), "hop-by-hop later");
        assert_eq!(refused(43, &[&to(6)]), Some(Reason::ExtensionHeader), "routing type 0");
        assert_eq!(refused(43, &[&[6, 0, 4, 0, 0, 0, 0, 0]]), None, "segment routing");
        assert_eq!(refused(135, &[&to(6)]), Some(Reason::ExtensionHeader));
        assert_eq!(refused(60, &[&[6, 1, 0, 0, 0, 0, 0, 0]]), Some(Reason::Malformed));
        assert_eq!(refused(60, &[&to(60)[..7]]), Some(Reason::Malformed));
        let mut headers = vec![to(60); 5];
        headers.push(to(6));
        assert_eq!(Chain::walk(60, &headers.concat()).ok().map(|chain| chain.protocol), Some(6), "six");
        headers.insert(0, to(60));
        assert_eq!(Chain::walk(60, &headers.concat()).err(), Some(Reason::ExtensionHeader), "seven");
    }

    #[test]
    fn the_key_of_gre_is_found_behind_what_is_optional() {
        assert_eq!(gre_key(&[0x20, 0, 8, 0, 1, 2, 3, 4]), Some(Some(0x0102_0304)));
        assert_eq!(gre_key(&[0xa0, 0, 8, 0, 9, 9, 0, 0, 1, 2, 3, 4]), Some(Some(0x0102_0304)));
        assert_eq!(gre_key(&[0x20, 1, 8, 0, 1, 2, 3, 4]), Some(None), "version 1");
        assert_eq!(gre_key(&[0, 0, 8, 0]), Some(None));
        assert_eq!(gre_key(&[0x20, 0, 8, 0, 1, 2, 3]), None);
    }

    #[test]
    fn addresses_that_send_nothing() {
        for martian in ["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "240.0.0.1", "::", "::1", "ff02::1"] {
            assert!(is_martian(martian.parse().unwrap()), "{martian}");
        }
        assert!(is_martian("::ffff:10.0.0.1".parse().unwrap()));
        for host in ["1.0.0.1", "10.0.0.1", "223.255.255.255", "2001:db8::1", "fe80::1"] {
            assert!(!is_martian(host.parse().unwrap()), "{host}");
        }
    }
}
