//! ICMP (RFC 792, RFC 4443): which messages are queries, and what an error says about another packet (RFC 5927).

use std::net::IpAddr;

use super::flow::{End, Tuple, protocol};
use super::packet::{Chain, Query, Read, gre_key};
use super::tcp::Seq;

/// What kind of message a type is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Echo or timestamp request.
    Request,
    /// Echo or timestamp reply.
    Reply,
    /// An error about another packet.
    Error,
    /// Anything else, redirects among them.
    Other,
}

impl Kind {
    /// Of a type of ICMP or ICMPv6.
    pub const fn of(protocol: u8, kind: u8) -> Self {
        match (protocol, kind) {
            (protocol::ICMP, 8 | 13) | (protocol::ICMPV6, 128) => Self::Request,
            (protocol::ICMP, 0 | 14) | (protocol::ICMPV6, 129) => Self::Reply,
            (protocol::ICMP, 3 | 11 | 12) | (protocol::ICMPV6, 1..=4) => Self::Error,
            _ => Self::Other,
        }
    }
}

/// The packet that an error is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// Its ends.
    pub tuple: Tuple,
    /// Who sent it, and so gets the error.
    pub source: IpAddr,
    /// Its sequence number, if it is TCP.
    pub sequence: Option<Seq>,
}

impl About {
    /// Reads the beginning of a packet, as an error of `protocol` (ICMP or ICMPv6) carries it.
    pub fn parse(protocol: u8, bytes: &[u8]) -> Option<Self> {
        let (source, destination, protocol, transport) =
            if protocol == protocol::ICMP { Self::ipv4(bytes)? } else { Self::ipv6(bytes)? };
        // RFC 792 asks for these eight, and no protocol here says who it is in less.
        transport.get(..8)?;
        let tuple = |source_port, destination_port| {
            let source = End { address: source, port: source_port };
            let destination = End { address: destination, port: destination_port };
            Tuple::new(source, destination, protocol)
        };
        let tuple = match (protocol, source) {
            (protocol::TCP | protocol::UDP | protocol::UDP_LITE | protocol::DCCP | protocol::SCTP, _) => {
                tuple(transport.u16(0)?, transport.u16(2)?)
            }
            (protocol::ICMP, IpAddr::V4(_)) | (protocol::ICMPV6, IpAddr::V6(_)) => {
                match Kind::of(protocol, transport[0]) {
                    Kind::Request => tuple(transport.u16(4)?, 0),
                    Kind::Reply => tuple(0, transport.u16(4)?),
                    Kind::Error | Kind::Other => return None,
                }
            }
            (protocol::GRE, _) => match gre_key(transport)? {
                Some(key) => Tuple::gre(source, destination, key),
                None => tuple(0, 0),
            },
            _ => tuple(0, 0),
        };
        let sequence = (protocol == protocol::TCP).then(|| transport.u32(4).map(Seq)).flatten();
        Some(Self { tuple, source, sequence })
    }

    fn ipv4(bytes: &[u8]) -> Option<(IpAddr, IpAddr, u8, &[u8])> {
        let header = bytes.get(..20)?;
        let header_length = usize::from(header[0] & 0xf) * 4;
        let offset = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
        if header[0] >> 4 != 4 || header_length < 20 || offset > 0 {
            return None;
        }
        let address = |at| <[u8; 4]>::try_from(&header[at..at + 4]).expect("four bytes").into();
        Some((address(12), address(16), header[9], bytes.get(header_length..)?))
    }

    fn ipv6(bytes: &[u8]) -> Option<(IpAddr, IpAddr, u8, &[u8])> {
        let header = bytes.get(..40)?;
        if header[0] >> 4 != 6 {
            return None;
        }
        let chain = Chain::walk(header[6], &bytes[40..]).ok()?;
        if chain.piece.is_some_and(|piece| piece.offset > 0) {
            return None;
        }
        let address = |at| <[u8; 16]>::try_from(&header[at..at + 16]).expect("sixteen bytes").into();
        Some((address(8), address(24), chain.protocol, &bytes[40 + chain.length..]))
    }
}

/// What a packet of an ICMP query may do in its flow: only the originator asks.
pub fn fits(query: Query, from_originator: bool) -> bool {
    (query == Query::Request) == from_originator
}
