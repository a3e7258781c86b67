//! Frames, as the programs in the kernel read them: held against the model of them and against etherparse.

use std::net::{IpAddr, Ipv6Addr};

use etherparse::{SlicedPacket, TransportSlice};
use fwha_common::drop::DropReason;
use fwha_common::flow::NextHop;
use fwha_common::rule::Tag;
use fwha_tests::model::flow::{End, Tuple};
use fwha_tests::model::packet as model;
use fwha_tests::model::packet::{Content, Query, Transport};
use fwha_tests::model::sctp as model_sctp;
use fwha_tests::model::tcp::Seq;

use crate::input::Input;
use crate::own;
use crate::packet::{Arrival, ETH_LEN, Eth, Packet, RouteKind};
use crate::parse::{self, Ip, Payload, ethertype};
use crate::sctp::Chunk;

/// Bytes of a frame at most.
const LEN_MAX: usize = 4096;

/// A frame as a hook has it.
#[derive(Clone)]
pub(super) struct Frame {
    /// The frame, and bytes behind it that are nobody's.
    bytes: Vec<u8>,
    /// Bytes that can be read directly.
    linear: usize,
    len: usize,
}

impl Frame {
    /// A frame, with `behind` everywhere behind its end.
    pub(super) fn new(frame: &[u8], behind: u8) -> Self {
        let bytes = [frame, &[behind; 2048]].concat();
        Self { bytes, linear: frame.len(), len: frame.len() }
    }

    /// Reads it, as the engine does.
    pub(super) fn read(&self) -> Result<Option<Ip>, DropReason> {
        let mut ip = Ip::EMPTY;
        match Eth::read(self)?.ethertype {
            ethertype::IPV4 => parse::ipv4(self, ETH_LEN, &mut ip)?,
            ethertype::IPV6 => parse::ipv6(self, ETH_LEN, &mut ip)?,
            _ => return Ok(None),
        }
        parse::transport(self, &mut ip, ETH_LEN)?;
        Ok(Some(ip))
    }

    fn embedded(&self, outer: &Ip) -> Result<Ip, DropReason> {
        let mut inner = Ip::EMPTY;
        parse::embedded(self, outer, ETH_LEN, &mut inner).map(|()| inner)
    }
}

impl Packet for Frame {
    fn start(&self) -> usize {
        self.bytes.as_ptr() as usize
    }
    fn end(&self) -> usize {
        self.start() + self.linear
    }
    fn len(&self) -> u32 {
        self.len as u32
    }
    fn ifindex(&self) -> u32 {
        1
    }
    fn segments(&self) -> u32 {
        1
    }
    fn segment_size(&self) -> u32 {
        0
    }
    fn arrival(&mut self) -> &mut Arrival {
        unreachable!("tags are off before a frame is read")
    }
    fn device(&self) -> u32 {
        1
    }
    fn taken_tag(&self) -> Tag {
        Tag::NONE
    }
    fn pop_tag(&mut self) -> bool {
        false
    }
    fn push_tag(&mut self, _: Tag) -> bool {
        false
    }
    fn can_leave_by(&self, _: u32) -> bool {
        true
    }
    fn leave_by(&mut self, _: u32) {}
    fn out(&self) -> u32 {
        0
    }
    fn load(&self, offset: u32, bytes: &mut [u8]) -> bool {
        let there = self.bytes[..self.len].get(offset as usize..offset as usize + bytes.len());
        there.is_some_and(|there| {
            bytes.copy_from_slice(there);
            true
        })
    }
    fn replace(&mut self, _: u32, _: u32, _: u16, _: u16) -> Result<(), DropReason> {
        Err(DropReason::Truncated)
    }
    fn checksum(&mut self, _: u32, _: u16, _: u16) -> Result<(), DropReason> {
        Err(DropReason::Truncated)
    }
    fn resize(&mut self, _: u32) -> bool {
        false
    }
    fn route(&self, _: &Ip, _: bool, _: &mut NextHop) -> RouteKind {
        RouteKind::None
    }
}

/// Makes the checksum of an IPv4 header at byte 14 right, which no search does.
pub(super) fn sum(frame: &mut [u8]) {
    if let Some(header) = frame.get_mut(ETH_LEN..ETH_LEN + 20) {
        header[10..12].fill(0);
        let sum = etherparse::checksum::Sum16BitWords::new().add_slice(header).ones_complement();
        header[10..12].copy_from_slice(&sum.to_ne_bytes());
    }
}

/// Reads a frame.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let (kind, linear) = (input.u8(), input.u8());
    let mut frame = input.0[..input.0.len().min(LEN_MAX)].to_vec();
    // Half of the others, with a type that is known.
    if let (Some(ethertype), 1..) = (frame.get_mut(12..14), kind & 3) {
        let [high, low] = if kind & 2 == 0 { [0x08, 0x00] } else { [0x86, 0xdd] };
        ethertype.copy_from_slice(&[high, low]);
    }
    if kind & 3 == 1 {
        sum(&mut frame);
    }

    let seen = Frame::new(&frame, 0);
    let read = seen.read();
    assert_eq!(Frame::new(&frame, 0xff).read(), read, "what lies behind the frame is none of it");
    let partly = Frame { linear: frame.len().min(linear.into()), ..seen.clone() }.read();
    assert!(
        partly == read || partly == Err(DropReason::Truncated),
        "{partly:?} with a part, {read:?} with all"
    );

    let Ok(ethernet) = Eth::read(&seen) else { return };
    if !matches!(ethernet.ethertype, ethertype::IPV4 | ethertype::IPV6) {
        return;
    }
    match (&read, model::Frame::parse(&frame)) {
        (Ok(Some(ip)), Ok(model)) => {
            assert_eq!(own::passes(ip, ethernet.dst.is_group()), model.is_own_protocol(), "own protocol");
            let Content::Ip(packet) = &model.content else { panic!("no IP packet to the model") };
            same(&seen, ip, packet);
            etherparse_agrees(ip, &frame[ETH_LEN..]);
        }
        // Of two mistakes each may find another first.
        (Err(_), Err(_)) => {}
        (read, model) => panic!("{read:?}, the model {model:?}"),
    }
}

pub(super) fn address(v6: bool, address: [u32; 4]) -> IpAddr {
    let mut octets = [0; 16];
    octets.as_chunks_mut::<4>().0.iter_mut().zip(address).for_each(|(word, n)| *word = n.to_ne_bytes());
    let address = Ipv6Addr::from(octets);
    if v6 { address.into() } else { address.to_ipv4_mapped().expect("IPv4 is mapped").into() }
}

fn tuple(ip: &Ip) -> Tuple {
    let [source, destination] = [ip.src, ip.dst].map(|a| address(ip.v6, a));
    let [sport, dport] = [ip.sport, ip.dport].map(u16::from_be);
    if ip.proto == 47 && (sport, dport) != (0, 0) {
        return Tuple::gre(source, destination, u32::from(sport) << 16 | u32::from(dport));
    }
    Tuple::new(End { address: source, port: sport }, End { address: destination, port: dport }, ip.proto)
}

/// The model read the same.
fn same(frame: &Frame, ip: &Ip, packet: &model::Packet) {
    assert_eq!([packet.source, packet.destination], [ip.src, ip.dst].map(|a| address(ip.v6, a)));
    assert_eq!((packet.hops_left, packet.length), (ip.ttl, ip.len as usize));
    assert_eq!((packet.has_options, packet.protocol), (ip.slow, ip.proto));
    let piece = packet.piece.as_ref().map(|p| (p.offset, p.length.div_ceil(8), p.more));
    let fragment = (usize::from(ip.fragment.offset) * 8, usize::from(ip.fragment.units), ip.fragment.more);
    assert_eq!(piece, ip.is_fragment().then_some(fragment));
    if let Some(piece) = &packet.piece {
        let id = ip.fragment.id;
        assert_eq!(
            piece.identification,
            if ip.v6 { u32::from_be(id) } else { u16::from_be(id as u16).into() }
        );
    }
    match &packet.transport {
        Transport::Tcp(ends, segment) => {
            assert_eq!((ip.payload, *ends), (Payload::Tcp, tuple(ip)));
            let syn_and_fin = u32::from(ip.tcp.flags & 1) + u32::from(ip.tcp.flags >> 1 & 1);
            assert_eq!(segment.seq, Seq(ip.tcp.seq));
            assert_eq!(segment.end, Seq(ip.tcp.seq).plus(ip.len - ip.header_len + syn_and_fin));
            assert_eq!(segment.ack, (ip.tcp.flags & 16 != 0).then_some(Seq(ip.tcp.ack)));
            assert_eq!(segment.window, u32::from(ip.tcp.window));
        }
        Transport::Sctp(ends, packet) => {
            assert_eq!((ip.payload, *ends), (Payload::Sctp, tuple(ip)));
            assert_eq!(packet.tag, u32::from_be(ip.tcp.seq));
            assert_eq!(chunk(ip), (packet.chunk.kind, packet.chunk.mirrored && mirrors(packet.chunk.kind)));
        }
        Transport::Query(ends, query) => {
            let payload = if *query == Query::Request { Payload::Query } else { Payload::Response };
            assert_eq!((ip.payload, *ends), (payload, tuple(ip)));
        }
        Transport::Error(about) => {
            assert_eq!(ip.payload, Payload::IcmpError);
            let inner = frame.embedded(ip).ok().filter(|i| i.payload != Payload::IcmpOther);
            let inner = inner.filter(|i| i.payload != Payload::IcmpError && i.v6 == ip.v6);
            let inner =
                inner.map(|i| (tuple(&i), address(i.v6, i.src), (i.proto == 6).then_some(Seq(i.tcp.seq))));
            assert_eq!(inner, about.as_ref().map(|a| (a.tuple, a.source, a.sequence)), "inside an error");
        }
        Transport::OtherIcmp(kind) => assert_eq!((ip.payload, ip.icmp_type), (Payload::IcmpOther, *kind)),
        Transport::Plain(ends, _) => {
            assert!(matches!(ip.payload, Payload::Udp | Payload::Other), "{:?}", ip.payload);
            assert_eq!(*ends, tuple(ip));
        }
        Transport::Rest => assert_eq!(ip.payload, Payload::LaterFragment),
    }
}

const fn mirrors(kind: model_sctp::Kind) -> bool {
    matches!(kind, model_sctp::Kind::Abort | model_sctp::Kind::ShutdownComplete)
}

/// The chunk that decides, and whether it mirrors its tag.
fn chunk(ip: &Ip) -> (model_sctp::Kind, bool) {
    use model_sctp::Kind;
    match Chunk::from_u8(ip.tcp.flags) {
        Chunk::None => (Kind::Other, false),
        Chunk::Init => (Kind::Init(u32::from_be(ip.tcp.ack)), false),
        Chunk::InitAck => (Kind::InitAck(u32::from_be(ip.tcp.ack)), false),
        Chunk::Abort => (Kind::Abort, false),
        Chunk::AbortReflected => (Kind::Abort, true),
        Chunk::Shutdown => (Kind::Shutdown, false),
        Chunk::ShutdownAck => (Kind::ShutdownAck, false),
        Chunk::ShutdownComplete => (Kind::ShutdownComplete, false),
        Chunk::ShutdownCompleteReflected => (Kind::ShutdownComplete, true),
        Chunk::Error => (Kind::Error, false),
        Chunk::CookieEcho => (Kind::CookieEcho, false),
        Chunk::CookieAck => (Kind::CookieAck, false),
        Chunk::CookieAckShutdown => (Kind::CookieAckShutdown, false),
    }
}

/// etherparse read the same of a whole packet, as far as both go: it looks behind authentication headers, too.
fn etherparse_agrees(ip: &Ip, packet: &[u8]) {
    let icmp_read = ip.icmp_type != 0;
    let Ok(sliced) = SlicedPacket::from_ip(packet) else { return };
    match sliced.transport {
        Some(TransportSlice::Tcp(tcp)) if ip.payload == Payload::Tcp && !ip.is_fragment() => {
            assert_eq!([tcp.source_port(), tcp.destination_port()], [ip.sport, ip.dport].map(u16::from_be));
            assert_eq!((tcp.sequence_number(), tcp.acknowledgment_number()), (ip.tcp.seq, ip.tcp.ack));
            assert_eq!((tcp.window_size(), tcp.slice()[13]), (ip.tcp.window, ip.tcp.flags));
            assert_eq!(tcp.payload().len(), (ip.len - ip.header_len) as usize);
        }
        Some(TransportSlice::Udp(udp)) if ip.payload == Payload::Udp && !ip.is_fragment() => {
            assert_eq!([udp.source_port(), udp.destination_port()], [ip.sport, ip.dport].map(u16::from_be));
        }
        Some(TransportSlice::Icmpv4(icmp)) if icmp_read && !ip.v6 => assert_eq!(icmp.type_u8(), ip.icmp_type),
        Some(TransportSlice::Icmpv6(icmp)) if icmp_read && ip.v6 => assert_eq!(icmp.type_u8(), ip.icmp_type),
        _ => {}
    }
}
