//! VRRP packets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fwha_proto::vrrp::packet::{Advert, Checksum, Discard, Envelope, TTL};

use crate::input::Input;

/// A sender, by family.
pub(super) fn sender(v6: bool, host: u8) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, host.into()).into()
    } else {
        Ipv4Addr::new(10, 1, 0, host).into()
    }
}

/// Makes the checksum of a packet right, as a sender would that has no pseudo-header in it; with it, for IPv6. No search
/// finds a right one.
pub(super) fn sum(envelope: &Envelope, packet: &mut [u8]) {
    if packet.len() < 8 {
        return;
    }
    packet[6..8].fill(0);
    let mut sum = etherparse::checksum::Sum16BitWords::new().add_slice(packet);
    if let (IpAddr::V6(src), IpAddr::V6(dst)) = (envelope.src, envelope.dst) {
        let len = (packet.len() as u32).to_be_bytes();
        sum = sum.add_16bytes(src.octets()).add_16bytes(dst.octets()).add_4bytes(len).add_2bytes([0, 112]);
    }
    packet[6..8].copy_from_slice(&sum.ones_complement().to_ne_bytes());
}

/// Reads a packet, with a right checksum or what it has for one.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let kind = input.u8();
    let envelope = Envelope {
        ttl: if kind & 4 == 0 { TTL } else { kind },
        ..Envelope::multicast(sender(kind & 1 != 0, 1))
    };
    let mut packet = input.0.to_vec();
    if kind & 2 != 0 {
        sum(&envelope, &mut packet);
        assert_ne!(Advert::parse(&envelope, &packet), Err(Discard::Checksum), "it is right");
    }
    if let Ok((advert, auth)) = Advert::parse_v2(&envelope, &packet) {
        let written = advert.write_v2(auth);
        assert_eq!(Advert::parse_v2(&envelope, &written), Ok((advert, auth)));
        assert_eq!(written.len(), packet.len());
    }
    let Ok((advert, checksum)) = Advert::parse(&envelope, &packet) else { return };
    let written = advert.write(&envelope, checksum);
    assert_eq!(Advert::parse(&envelope, &written), Ok((advert, checksum)));
    // Reserved bits are not read, and a sum has two zeros.
    if packet[4] >> 4 == 0 && !matches!(packet[6..8], [0, 0] | [0xff, 0xff]) {
        assert_eq!(written, packet);
    }
    assert!(envelope.src.is_ipv4() || checksum == Checksum::PseudoHeader);
}
