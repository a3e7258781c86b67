//! The packets of the tests.

use etherparse::{EtherType, Ethernet2Header, IpFragOffset, Ipv4Header, Ipv4HeaderSlice, PacketBuilder};
use fwha_common::flow::{FlowKey, proto};

use crate::rig::{CLIENT_MAC, LAN_MAC, SERVER_MAC, WAN_MAC};

/// An end of a conversation.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// MACs in frames from here: source and destination.
    pub macs: ([u8; 6], [u8; 6]),
    pub address: [u8; 4],
    pub port: u16,
}

pub const CLIENT: End = End { macs: (CLIENT_MAC, LAN_MAC), address: [192, 168, 100, 100], port: 40_000 };
pub const SERVER: End = End { macs: (SERVER_MAC, WAN_MAC), address: [10, 0, 0, 128], port: 22 };
/// The node itself, on the client's side.
pub const NODE: End = End { macs: (LAN_MAC, CLIENT_MAC), address: [192, 168, 100, 1], port: 22 };

/// The key of a conversation.
pub fn key(a: End, b: End, proto: u8) -> FlowKey {
    let address = |a: [u8; 4]| u32::from_ne_bytes(a);
    FlowKey::v4(address(a.address), address(b.address), a.port.to_be(), b.port.to_be(), proto).0
}

/// The key of an echo that `from` asks for.
pub fn echo_key(from: End, to: End, id: u16) -> FlowKey {
    key(End { port: id, ..from }, End { port: 0, ..to }, proto::ICMP)
}

/// A TCP segment with flags as in a packet dump: `S`, `S.`, `.`, `P.`, `F.`, `R`, `R.`. Both ends begin
/// with sequence number 1000; all else is the first byte behind it, and acknowledges the other's SYN.
pub fn tcp(from: End, to: End, flags: &str) -> Vec<u8> {
    let mut builder = PacketBuilder::ethernet2(from.macs.0, from.macs.1)
        .ipv4(from.address, to.address, 64)
        .tcp(from.port, to.port, if flags.contains('S') { 1000 } else { 1001 }, 8192);
    for flag in flags.chars() {
        builder = match flag {
            'S' => builder.syn(),
            '.' => builder.ack(1001),
            'P' => builder.psh(),
            'F' => builder.fin(),
            'R' => builder.rst(),
            'U' => builder.urg(1),
            other => panic!("flag {other}"),
        };
    }
    write(builder, if flags.contains('P') { b"data" } else { b"" })
}

/// A UDP datagram.
pub fn udp(from: End, to: End, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(from.macs.0, from.macs.1)
        .ipv4(from.address, to.address, 64)
        .udp(from.port, to.port);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).expect("a datagram");
    frame
}

/// An ICMP echo request or reply.
pub fn echo(from: End, to: End, reply: bool, id: u16) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(from.macs.0, from.macs.1).ipv4(from.address, to.address, 64);
    let builder = if reply { builder.icmpv4_echo_reply(id, 1) } else { builder.icmpv4_echo_request(id, 1) };
    let mut frame = Vec::new();
    builder.write(&mut frame, b"ping").expect("an echo");
    frame
}

/// An ICMP message of `kind` that carries the beginning of `about`, an Ethernet frame.
pub fn icmp_error(from: End, to: End, kind: u8, about: &[u8]) -> Vec<u8> {
    let mut payload = vec![kind, 1, 0, 0, 0, 0, 0, 0];
    payload.extend(&about[14..14 + 28]);
    ip(from, to, proto::ICMP, &payload)
}

/// An IPv4 packet of any protocol.
pub fn ip(from: End, to: End, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = Ipv4Header::new(payload.len() as u16, 64, protocol.into(), from.address, to.address)
        .expect("a header");
    header.header_checksum = header.calc_header_checksum();
    let mut frame = ethernet(from.macs.1, from.macs.0, EtherType::IPV4.0, &[]);
    header.write(&mut frame).expect("a header");
    frame.extend(payload);
    frame
}

/// An Ethernet frame.
pub fn ethernet(destination: [u8; 6], source: [u8; 6], ether_type: u16, payload: &[u8]) -> Vec<u8> {
    let header = Ethernet2Header { source, destination, ether_type: EtherType(ether_type) };
    let mut frame = Vec::new();
    header.write(&mut frame).expect("a header");
    frame.extend(payload);
    frame
}

fn write(builder: etherparse::PacketBuilderStep<etherparse::TcpHeader>, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).expect("a segment");
    frame
}

/// Changes the IPv4 header of a frame and mends its checksum.
pub fn edit_ip(frame: &[u8], edit: impl FnOnce(&mut Ipv4Header)) -> Vec<u8> {
    let (mut header, payload) = Ipv4Header::from_slice(&frame[14..]).expect("IPv4");
    edit(&mut header);
    header.header_checksum = header.calc_header_checksum();
    let mut edited = frame[..14].to_vec();
    header.write(&mut edited).expect("a header");
    edited.extend(payload);
    edited
}

/// The packet as a fragment.
pub fn fragment(frame: &[u8], offset: u16, more: bool) -> Vec<u8> {
    edit_ip(frame, |header| {
        header.fragment_offset = IpFragOffset::try_new(offset).expect("an offset");
        header.more_fragments = more;
    })
}

/// Asserts that `sent` is `frame` one hop further, with these MACs.
pub fn assert_hop(frame: &[u8], sent: &[u8], source: [u8; 6], destination: [u8; 6]) {
    let mut expected = edit_ip(frame, |header| header.time_to_live -= 1);
    expected[..6].copy_from_slice(&destination);
    expected[6..12].copy_from_slice(&source);
    assert_eq!(sent, expected);
    let header = Ipv4HeaderSlice::from_slice(&sent[14..]).expect("IPv4");
    assert_eq!(header.header_checksum(), header.to_header().calc_header_checksum());
}
