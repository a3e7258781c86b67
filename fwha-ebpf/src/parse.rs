//! From the bytes of an IPv4 packet to what the engine judges: addresses, ports, flags, lengths.

use fwha_common::{
    drop::DropReason,
    flow::{FlowKey, proto},
};

use crate::packet::{Packet, Window, window};

/// EtherTypes that the engine knows, in network byte order as they stand in the header.
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800u16.to_be();
    /// ARP.
    pub const ARP: u16 = 0x0806u16.to_be();
    /// IPv6.
    pub const IPV6: u16 = 0x86ddu16.to_be();
    /// Probes of this cluster.
    pub const PROBE: u16 = fwha_common::probe::ETHERTYPE.to_be();
}

/// What an IPv4 packet carries, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Payload {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// An ICMP echo request.
    EchoRequest,
    /// An ICMP echo reply.
    EchoReply,
    /// An ICMP error about another packet.
    IcmpError,
    /// Another ICMP message.
    IcmpOther,
    /// Another protocol.
    Other,
}

/// An IPv4 packet. Addresses and ports are in network byte order, lengths in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip {
    /// Source address.
    pub src: u32,
    /// Destination address.
    pub dst: u32,
    /// Source port; the identifier of an ICMP echo.
    pub sport: u16,
    /// Destination port; the identifier of an ICMP echo.
    pub dport: u16,
    /// What it carries.
    pub payload: Payload,
    /// Length of the whole packet; of a super-packet, the whole of it.
    pub len: u32,
    /// Length of IP and L4 headers: what each segment of a super-packet carries besides its data.
    pub header_len: u32,
    /// IP protocol.
    pub proto: u8,
    /// Flags of TCP, else 0.
    pub tcp_flags: u8,
    /// Time to live.
    pub ttl: u8,
    /// Type of service.
    pub tos: u8,
    /// Whether the IP header has options.
    pub options: bool,
}

impl Ip {
    /// The key of the flow, and whether the packet's source is its end B.
    #[inline(always)]
    pub fn key(&self) -> (FlowKey, bool) {
        FlowKey::v4(self.src, self.dst, self.sport, self.dport, self.proto)
    }
}

/// More fragments follow, or this one does not begin at 0 (RFC 791, flags and fragment offset).
const FRAGMENT: u16 = 0x3fff;
/// This fragment does not begin at 0.
const LATER_FRAGMENT: u16 = 0x1fff;

/// Reads the IPv4 header at `offset`, up to what it carries.
///
/// ```text
///  0 version, length in words  1 TOS  2 total length  4 id  6 flags, fragment offset
///  8 TTL  9 protocol  10 checksum  12 source  16 destination  20 options
/// ```
#[inline(always)]
fn header(packet: &impl Packet, offset: usize, fragments: u16) -> Result<Ip, DropReason> {
    let header: Window<20> = window(packet, offset)?;
    let header_len = ((header.u8::<0>() & 0x0f) as u32) << 2;
    if header.u8::<0>() >> 4 != 4 || header_len < 20 {
        return Err(DropReason::Malformed);
    }
    if u16::from_be(header.u16::<6>()) & fragments != 0 {
        return Err(DropReason::Fragment);
    }
    Ok(Ip {
        src: header.u32::<12>(),
        dst: header.u32::<16>(),
        sport: 0,
        dport: 0,
        payload: Payload::Other,
        len: u16::from_be(header.u16::<2>()) as u32,
        header_len,
        proto: header.u8::<9>(),
        tcp_flags: 0,
        ttl: header.u8::<8>(),
        tos: header.u8::<1>(),
        options: header_len != 20,
    })
}

/// The IPv4 packet at `offset`. For TCP, UDP and ICMP the L4 header is looked into as well.
///
/// # Errors
///
/// Truncated, malformed, a fragment, or TCP flags that no stack sends.
#[inline(always)]
pub fn ipv4(packet: &impl Packet, offset: usize) -> Result<Ip, DropReason> {
    let mut ip = header(packet, offset, FRAGMENT)?;
    let room = packet.len().wrapping_sub(offset as u32);
    if ip.len == 0 && packet.segment_size() != 0 {
        // A super-packet of more than 64 KiB has no room to say so (BIG TCP).
        ip.len = room;
    }
    if ip.len < ip.header_len {
        return Err(DropReason::Malformed);
    }
    if ip.len > room {
        return Err(DropReason::Truncated);
    }
    let at = offset + ip.header_len as usize;
    let room = ip.len - ip.header_len;
    match ip.proto {
        proto::TCP => {
            // 0 source port  2 destination port  4 sequence  8 acknowledgement
            // 12 length in words (high 4 bits)  13 flags  14 window  16 checksum  18 urgent
            let tcp: Window<20> = window(packet, at)?;
            let tcp_len = ((tcp.u8::<12>() >> 4) as u32) << 2;
            if tcp_len < 20 || tcp_len > room {
                return Err(DropReason::Malformed);
            }
            if !crate::tcp::flags_valid(tcp.u8::<13>()) {
                return Err(DropReason::TcpFlags);
            }
            ip.payload = Payload::Tcp;
            ip.sport = tcp.u16::<0>();
            ip.dport = tcp.u16::<2>();
            ip.tcp_flags = tcp.u8::<13>();
            ip.header_len += tcp_len;
        }
        proto::UDP => {
            // 0 source port  2 destination port  4 length  6 checksum
            let udp: Window<8> = window(packet, at)?;
            let udp_len = u16::from_be(udp.u16::<4>()) as u32;
            if udp_len < 8 || udp_len > room {
                return Err(DropReason::Malformed);
            }
            ip.payload = Payload::Udp;
            ip.sport = udp.u16::<0>();
            ip.dport = udp.u16::<2>();
            ip.header_len += 8;
        }
        proto::ICMP => {
            // 0 type  1 code  2 checksum  4 identifier  6 sequence
            let icmp: Window<8> = window(packet, at)?;
            if room < 8 {
                return Err(DropReason::Malformed);
            }
            ip.payload = icmp_payload(icmp.u8::<0>());
            ip.header_len += 8;
            if matches!(ip.payload, Payload::EchoRequest | Payload::EchoReply) {
                ip.sport = icmp.u16::<4>();
                ip.dport = ip.sport;
            }
        }
        _ => {}
    }
    Ok(ip)
}

/// The packet inside an ICMP error: what was sent, seen from its sender. Of its L4 header only the
/// first eight bytes are sure to be there (RFC 792), so only ports or identifier are read.
///
/// # Errors
///
/// Truncated, malformed, or a later fragment.
#[inline(always)]
pub fn embedded(packet: &impl Packet, outer: &Ip, offset: usize) -> Result<Ip, DropReason> {
    // `header_len` counts the error's own ICMP header; at most 68. The mask shows it to the verifier.
    let at = offset + (outer.header_len & 0x7f) as usize;
    let mut ip = header(packet, at, LATER_FRAGMENT)?;
    if outer.len < outer.header_len + ip.header_len + 8 {
        return Err(DropReason::Malformed);
    }
    let l4: Window<8> = window(packet, at + ip.header_len as usize)?;
    match ip.proto {
        proto::TCP | proto::UDP => {
            ip.payload = if ip.proto == proto::TCP { Payload::Tcp } else { Payload::Udp };
            ip.sport = l4.u16::<0>();
            ip.dport = l4.u16::<2>();
        }
        proto::ICMP => {
            ip.payload = icmp_payload(l4.u8::<0>());
            ip.sport = l4.u16::<4>();
            ip.dport = ip.sport;
        }
        _ => {}
    }
    Ok(ip)
}

/// What an ICMP type stands for. Redirects change routes and are nobody's business behind a
/// firewall; source quench is obsolete (RFC 6633).
#[inline(always)]
const fn icmp_payload(kind: u8) -> Payload {
    match kind {
        8 => Payload::EchoRequest,
        0 => Payload::EchoReply,
        3 | 11 | 12 => Payload::IcmpError,
        _ => Payload::IcmpOther,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Frame;

    /// An IPv4 packet of `proto` with `options` words of options and this payload.
    fn packet(proto: u8, options: u8, payload: &[u8]) -> Frame {
        let len = 20 + 4 * options as usize + payload.len();
        let mut bytes = vec![0x45 + options, 0];
        bytes.extend((len as u16).to_be_bytes());
        bytes.extend([0, 1, 0x40, 0, 64, proto, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        bytes.extend(vec![1; 4 * options as usize]);
        bytes.extend(payload);
        Frame(bytes)
    }

    const TCP: [u8; 20] = [0x12, 0x34, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0, 0, 0, 0, 0, 0];
    const UDP: [u8; 8] = [0x12, 0x34, 0, 53, 0, 8, 0, 0];

    #[test]
    fn ports_are_found_behind_options() {
        for options in [0, 1, 10] {
            let ip = ipv4(&packet(proto::TCP, options, &TCP), 0).unwrap();
            assert_eq!((ip.sport, ip.dport), (0x1234u16.to_be(), 80u16.to_be()));
            assert_eq!(ip.tcp_flags, crate::tcp::SYN);
            assert_eq!(ip.options, options != 0);
            assert_eq!(ip.header_len, ip.len);
        }
    }

    #[test]
    fn every_truncation_is_refused() {
        for (proto, payload) in [(proto::TCP, &TCP[..]), (proto::UDP, &UDP[..]), (proto::ICMP, &[8; 8][..])] {
            let whole = packet(proto, 2, payload);
            assert!(ipv4(&whole, 0).is_ok());
            for len in 0..whole.0.len() {
                assert_eq!(ipv4(&Frame(whole.0[..len].to_vec()), 0), Err(DropReason::Truncated), "{len}");
            }
        }
    }

    #[test]
    fn padding_behind_the_packet_is_not_part_of_it() {
        let mut padded = packet(proto::UDP, 0, &UDP);
        padded.0.extend([0; 18]);
        assert_eq!(ipv4(&padded, 0).unwrap().len, 28);
    }

    #[test]
    fn contradictions_are_malformed() {
        let spoil = |proto, payload: &[u8], at: usize, value: u8| {
            let mut packet = packet(proto, 0, payload);
            packet.0[at] = value;
            ipv4(&packet, 0)
        };
        let malformed = Err(DropReason::Malformed);
        assert_eq!(spoil(proto::TCP, &TCP, 0, 0x65), malformed, "version");
        assert_eq!(spoil(proto::TCP, &TCP, 0, 0x44), malformed, "header length");
        assert_eq!(spoil(proto::TCP, &TCP, 3, 19), malformed, "total length");
        assert_eq!(spoil(proto::TCP, &TCP, 32, 0x40), malformed, "data offset too small");
        assert_eq!(spoil(proto::TCP, &TCP, 32, 0x60), malformed, "data offset too large");
        assert_eq!(spoil(proto::UDP, &UDP, 25, 7), malformed, "UDP length too small");
        assert_eq!(spoil(proto::UDP, &UDP, 25, 9), malformed, "UDP length too large");
        assert_eq!(spoil(proto::TCP, &TCP, 33, 0), Err(DropReason::TcpFlags));
    }

    #[test]
    fn all_fragments_are_told() {
        for (hi, lo) in [(0x20, 0), (0, 1), (0x1f, 0xff)] {
            let mut packet = packet(proto::UDP, 0, &UDP);
            packet.0[6] = hi;
            packet.0[7] = lo;
            assert_eq!(ipv4(&packet, 0), Err(DropReason::Fragment));
        }
    }

    #[test]
    fn an_icmp_error_gives_up_the_packet_inside_it() {
        let mut payload = vec![3, 1, 0, 0, 0, 0, 0, 0];
        payload.extend(&packet(proto::TCP, 1, &TCP).0[..32]);
        let error = packet(proto::ICMP, 2, &payload);
        let outer = ipv4(&error, 0).unwrap();
        assert_eq!(outer.payload, Payload::IcmpError);
        let inner = embedded(&error, &outer, 0).unwrap();
        assert_eq!((inner.payload, inner.dport), (Payload::Tcp, 80u16.to_be()));
        for len in 0..error.0.len() {
            assert!(embedded(&Frame(error.0[..len].to_vec()), &outer, 0).is_err(), "{len}");
        }
    }
}
