//! From the bytes of a packet to what the engine judges: addresses, ports, flags, lengths; IPv4 and IPv6
//! alike.

use fwha_common::{
    drop::DropReason,
    flow::{FlowKey, proto},
};

use crate::{
    packet::{Packet, Window, bounded, window},
    sctp,
};

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

/// What a packet carries, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Payload {
    /// TCP.
    Tcp,
    /// UDP, and UDP-Lite.
    Udp,
    /// SCTP.
    Sctp,
    /// An ICMP query: echo or timestamp request.
    Query,
    /// The answer to an ICMP query.
    Response,
    /// An ICMP error about another packet.
    IcmpError,
    /// Another ICMP message.
    IcmpOther,
    /// A fragment that is not the first of its datagram: no L4 header.
    LaterFragment,
    /// Another protocol, tracked by its addresses and what it has for ports.
    Other,
}

/// What a TCP header says. Numbers in host byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tcp {
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Window, not scaled.
    pub window: u16,
    /// Flags.
    pub flags: u8,
    /// Length of the header, in bytes.
    pub header_len: u8,
}

/// Where a fragment belongs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fragment {
    /// Identification, network byte order.
    pub id: u32,
    /// Where its payload begins in that of the datagram, in units of 8 bytes.
    pub offset: u16,
    /// Length of its payload in units of 8 bytes, rounded up; 0 for a whole datagram.
    pub units: u16,
    /// Whether others follow.
    pub more: bool,
}

/// An IP packet. Addresses and ports are in network byte order, lengths in bytes.
///
/// Readers fill one that is there: one that is returned is copied, and the stack has 512 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip {
    /// Source address, as in a flow key.
    pub src: [u32; 4],
    /// Destination address, as in a flow key.
    pub dst: [u32; 4],
    /// Source port, or what the flow key has in its place.
    pub sport: u16,
    /// Destination port, or what the flow key has in its place.
    pub dport: u16,
    /// What it carries.
    pub payload: Payload,
    /// Length of the whole packet; of a super-packet, the whole of it.
    pub len: u32,
    /// Length of the IP header with its options or extension headers: where L4 begins.
    pub l4: u32,
    /// Length of IP and L4 headers: what each segment of a super-packet carries besides its data.
    pub header_len: u32,
    /// The TCP header. SCTP: `seq` is the verification tag, `ack` the tag that an INIT carries, `flags`
    /// the chunk, see [`sctp::Chunk`].
    pub tcp: Tcp,
    /// As a fragment.
    pub fragment: Fragment,
    /// L4 protocol.
    pub proto: u8,
    /// Type of an ICMP message.
    pub icmp_type: u8,
    /// Time to live; hop limit.
    pub ttl: u8,
    /// Type of service; traffic class.
    pub tos: u8,
    /// Whether it is IPv6.
    pub v6: bool,
    /// Whether the IP header has options, or a hop-by-hop header: forwarded by the stack, if at all.
    pub slow: bool,
}

impl Ip {
    /// To be filled.
    pub const EMPTY: Self = Self {
        src: [0; 4],
        dst: [0; 4],
        sport: 0,
        dport: 0,
        payload: Payload::Other,
        len: 0,
        l4: 0,
        header_len: 0,
        tcp: Tcp { seq: 0, ack: 0, window: 0, flags: 0, header_len: 0 },
        fragment: Fragment { id: 0, offset: 0, units: 0, more: false },
        proto: 0,
        icmp_type: 0,
        ttl: 0,
        tos: 0,
        v6: false,
        slow: false,
    };

    /// The key of the flow, and whether the packet's source is its end B.
    #[inline(always)]
    pub fn key(&self) -> (FlowKey, bool) {
        FlowKey::of(&self.src, &self.dst, self.sport, self.dport, self.proto, self.v6)
    }

    /// Whether it is the first fragment of several.
    #[inline(always)]
    pub const fn first_fragment(&self) -> bool {
        self.fragment.offset == 0 && self.fragment.more
    }

    /// Whether it is a fragment at all.
    #[inline(always)]
    pub const fn is_fragment(&self) -> bool {
        self.fragment.offset != 0 || self.fragment.more
    }

    /// Whether it is a SYN.
    #[inline(always)]
    pub fn opens_tcp(&self) -> bool {
        self.payload == Payload::Tcp && crate::tcp::opens(self.tcp.flags)
    }

    /// Whether it may be the first packet of a flow, whatever the rules say.
    #[inline(always)]
    pub fn opens(&self) -> bool {
        match self.payload {
            Payload::Tcp => self.opens_tcp(),
            Payload::Sctp => self.tcp.flags == sctp::Chunk::Init as u8,
            Payload::Udp | Payload::Query | Payload::Other => true,
            _ => false,
        }
    }
}

/// Notes that a packet is a fragment: `payload` bytes of its datagram from `offset`, in bytes.
#[inline(always)]
fn fragment(ip: &mut Ip, id: u32, offset: u32, more: bool, payload: u32) -> Result<(), DropReason> {
    // The length of all but the last is a multiple of 8 (RFC 791, 3.2; RFC 8200, 4.5). None ends behind
    // the longest packet.
    if payload == 0 || more && payload & 7 != 0 || offset + payload > 0xffff {
        return Err(DropReason::Malformed);
    }
    // TCP's flags begin at byte 13 (RFC 3128).
    if offset == 8 && ip.proto == proto::TCP {
        return Err(DropReason::FragmentTiny);
    }
    ip.fragment = Fragment { id, offset: (offset >> 3) as u16, units: ((payload + 7) >> 3) as u16, more };
    if offset != 0 {
        ip.payload = Payload::LaterFragment;
    }
    Ok(())
}

/// Whether the checksum of an IPv4 header without options holds (RFC 1071).
#[inline(always)]
fn checksum_holds(header: Window<20>) -> bool {
    let sum = header.u32::<0>() as u64
        + header.u32::<4>() as u64
        + header.u32::<8>() as u64
        + header.u32::<12>() as u64
        + header.u32::<16>() as u64;
    // The sum has 35 bits, so what is left is less than three times 0xffff, and not 0, as the version is not: it folds to
    // 0xffff if it is once or twice that.
    let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    sum == 0xffff || sum == 2 * 0xffff
}

/// Reads the IPv4 header at `offset`. A `whole` packet must have a right checksum; one that an ICMP error
/// quotes was changed on its way.
///
/// ```text
///  0 version, length in words  1 TOS  2 total length  4 id  6 flags, fragment offset
///  8 TTL  9 protocol  10 checksum  12 source  16 destination  20 options
/// ```
///
/// # Errors
///
/// Truncated, malformed.
#[inline(always)]
fn ipv4_header(
    packet: &impl Packet,
    offset: usize,
    whole: bool,
    ip: &mut Ip,
) -> Result<Window<20>, DropReason> {
    let header: Window<20> = window(packet, offset)?;
    let l4 = ((header.u8::<0>() & 0x0f) as u32) << 2;
    if header.u8::<0>() >> 4 != 4 || l4 < 20 {
        return Err(DropReason::Malformed);
    }
    if whole && l4 == 20 && !checksum_holds(header) {
        // Routers look (RFC 1812, 5.2.2). With options it goes to the stack, which looks, too.
        return Err(DropReason::Malformed);
    }
    *ip = Ip {
        src: FlowKey::mapped(header.u32::<12>()),
        dst: FlowKey::mapped(header.u32::<16>()),
        len: u16::from_be(header.u16::<2>()) as u32,
        l4,
        header_len: l4,
        proto: header.u8::<9>(),
        ttl: header.u8::<8>(),
        tos: header.u8::<1>(),
        slow: l4 != 20,
        ..Ip::EMPTY
    };
    Ok(header)
}

/// Reads the IPv4 packet at `offset`, without its L4 header.
///
/// # Errors
///
/// Truncated, malformed, or a fragment that would overwrite TCP's flags.
#[inline(always)]
pub fn ipv4(packet: &impl Packet, offset: usize, ip: &mut Ip) -> Result<(), DropReason> {
    let header = ipv4_header(packet, offset, true, ip)?;
    let room = packet.len().wrapping_sub(offset as u32);
    if ip.len == 0 && packet.segment_size() != 0 {
        // A super-packet of more than 64 KiB has no room to say so (BIG TCP).
        ip.len = room;
    }
    if ip.len < ip.l4 {
        return Err(DropReason::Malformed);
    }
    if ip.len > room {
        return Err(DropReason::Truncated);
    }
    // Bit 13 more fragments follow, bits 0 to 12 offset in units of 8 (RFC 791, 3.1).
    let flags = u16::from_be(header.u16::<6>()) as u32;
    if flags & 0x3fff != 0 {
        let payload = ip.len - ip.l4;
        fragment(ip, header.u16::<4>() as u32, (flags & 0x1fff) << 3, flags & 0x2000 != 0, payload)?;
    }
    Ok(())
}

/// Extension headers looked at, at most.
const EXTENSION_HEADERS: u32 = 6;
/// The longest of them, in units of 8 bytes beyond the first.
const EXTENSION_UNITS: u8 = 31;

/// IPv6 extension headers that are walked through (RFC 8200, 4).
mod extension {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const DESTINATION: u8 = 60;
    pub const MOBILITY: u8 = 135;
    pub const HIP: u8 = 139;
    pub const SHIM6: u8 = 140;
}

/// Reads the IPv6 header at `offset` and walks to the L4 header. In a `whole` packet the extension
/// headers are held against the rules of RFC 8200 and 7112; in one that an ICMP error quotes, they
/// are only walked over.
///
/// ```text
///  0 version, class, flow label  4 payload length  6 next header  7 hop limit  8 source  24 destination
///  extension header: 0 next header  1 length beyond 8, in units of 8  2 routing type
///  fragment header: 0 next header  2 offset in units of 8 (high 13 bits), more follow (bit 0)  4 id
/// ```
#[inline(always)]
fn ipv6_header(packet: &impl Packet, offset: usize, whole: bool, ip: &mut Ip) -> Result<(), DropReason> {
    let header: Window<40> = window(packet, offset)?;
    if header.u8::<0>() >> 4 != 6 {
        return Err(DropReason::Malformed);
    }
    let words = u16::from_be(header.u16::<0>());
    *ip = Ip {
        src: [header.u32::<8>(), header.u32::<12>(), header.u32::<16>(), header.u32::<20>()],
        dst: [header.u32::<24>(), header.u32::<28>(), header.u32::<32>(), header.u32::<36>()],
        len: 40 + u16::from_be(header.u16::<4>()) as u32,
        l4: 40,
        header_len: 40,
        proto: header.u8::<6>(),
        ttl: header.u8::<7>(),
        tos: (words >> 4) as u8,
        v6: true,
        ..Ip::EMPTY
    };
    if whole {
        let room = packet.len().wrapping_sub(offset as u32);
        if ip.len == 40 && packet.segment_size() != 0 {
            ip.len = room;
        }
        if ip.len > room {
            return Err(DropReason::Truncated);
        }
    }
    // Kept apart from `ip`, which lies where the verifier forgets bounds.
    let mut next = ip.proto;
    let mut l4 = 40;
    let mut fragment_header = false;
    let mut i = 0;
    while i < EXTENSION_HEADERS {
        let first = i == 0;
        i += 1;
        let known = next == extension::ROUTING
            || next == extension::DESTINATION
            || next == extension::FRAGMENT
            || next == extension::HOP_BY_HOP && first;
        if !known {
            break;
        }
        let here: Window<8> = window(packet, offset + l4)?;
        let (kind, units) = (next, here.u8::<1>());
        next = here.u8::<0>();
        if kind != extension::FRAGMENT {
            // Type 0 of routing is deprecated for what it lets attackers do (RFC 5095).
            if units > EXTENSION_UNITS || whole && kind == extension::ROUTING && here.u8::<2>() == 0 {
                return Err(DropReason::ExtensionHeader);
            }
            ip.slow |= kind == extension::HOP_BY_HOP;
            l4 += 8 + 8 * units as usize;
            continue;
        }
        l4 += 8;
        let at = u16::from_be(here.u16::<2>()) as u32;
        if whole {
            // At most one (RFC 8200, 4.1), also of those that say nothing.
            if fragment_header || ip.len < l4 as u32 {
                return Err(DropReason::ExtensionHeader);
            }
            // An "atomic" fragment is a whole datagram (RFC 6946).
            if at & 0xfff9 != 0 {
                let payload = ip.len - l4 as u32;
                ip.proto = next;
                fragment(ip, here.u32::<4>(), at & 0xfff8, at & 1 != 0, payload)?;
            }
            fragment_header = true;
        }
        if at & 0xfff8 != 0 {
            // What follows is from the middle of the datagram.
            ip.payload = Payload::LaterFragment;
            break;
        }
    }
    ip.proto = next;
    ip.l4 = l4 as u32;
    ip.header_len = ip.l4;
    if ip.payload as u32 == Payload::LaterFragment as u32 {
        return Ok(());
    }
    match next {
        extension::HOP_BY_HOP
        | extension::ROUTING
        | extension::FRAGMENT
        | extension::DESTINATION
        | extension::MOBILITY
        | extension::HIP
        | extension::SHIM6 => return Err(DropReason::ExtensionHeader),
        _ => {}
    }
    if whole && ip.len < ip.l4 {
        // In a first fragment the chain must be complete (RFC 7112).
        return Err(if ip.is_fragment() { DropReason::FragmentTiny } else { DropReason::Malformed });
    }
    Ok(())
}

/// Reads the IPv6 packet at `offset`, without its L4 header.
///
/// # Errors
///
/// Truncated, malformed, bad extension headers, or a fragment that would overwrite TCP's flags.
#[inline(always)]
pub fn ipv6(packet: &impl Packet, offset: usize, ip: &mut Ip) -> Result<(), DropReason> {
    ipv6_header(packet, offset, true, ip)
}

/// Where IP and extension headers end at most, from the start of IPv6: a bound for the verifier.
const L4_MASK: u32 = 0x7ff;

/// Reads the L4 header of a packet whose IP header is at `offset`.
///
/// # Errors
///
/// Truncated, malformed, TCP flags that no stack sends, SCTP chunks that do not go together.
#[inline(always)]
pub fn transport(packet: &impl Packet, ip: &mut Ip, offset: usize) -> Result<(), DropReason> {
    if ip.payload == Payload::LaterFragment {
        return Ok(());
    }
    let at = offset + bounded::<L4_MASK>(ip.l4);
    let room = ip.len - ip.l4;
    // What the header needs and does not have.
    let short = if ip.first_fragment() { DropReason::FragmentTiny } else { DropReason::Malformed };
    match ip.proto {
        proto::TCP => {
            // 0 source port  2 destination port  4 sequence  8 acknowledgement
            // 12 length in words (high 4 bits)  13 flags  14 window  16 checksum  18 urgent
            if room < 20 && ip.is_fragment() {
                return Err(short);
            }
            let tcp: Window<20> = window(packet, at)?;
            let tcp_len = ((tcp.u8::<12>() >> 4) as u32) << 2;
            if tcp_len < 20 {
                return Err(DropReason::Malformed);
            }
            if tcp_len > room {
                return Err(short);
            }
            let flags = tcp.u8::<13>();
            if !crate::tcp::flags_valid(flags) {
                return Err(DropReason::TcpFlags);
            }
            ip.payload = Payload::Tcp;
            ip.sport = tcp.u16::<0>();
            ip.dport = tcp.u16::<2>();
            ip.tcp = Tcp {
                seq: u32::from_be(tcp.u32::<4>()),
                ack: u32::from_be(tcp.u32::<8>()),
                window: u16::from_be(tcp.u16::<14>()),
                flags,
                header_len: tcp_len as u8,
            };
            ip.header_len += tcp_len;
        }
        proto::UDP | proto::UDPLITE => {
            // 0 source port  2 destination port  4 length (UDP-Lite: coverage)  6 checksum
            if room < 8 && ip.is_fragment() {
                return Err(short);
            }
            let udp: Window<8> = window(packet, at)?;
            let udp_len = u16::from_be(udp.u16::<4>()) as u32;
            // Of a fragment, and of a super-packet of more than 64 KiB, it says nothing.
            let unbounded = ip.is_fragment() || udp_len == 0 && packet.segment_size() != 0;
            if room < 8 || ip.proto == proto::UDP && !unbounded && (udp_len < 8 || udp_len > room) {
                return Err(DropReason::Malformed);
            }
            ip.payload = Payload::Udp;
            ip.sport = udp.u16::<0>();
            ip.dport = udp.u16::<2>();
            ip.header_len += 8;
        }
        proto::ICMP if !ip.v6 => icmp(packet, ip, at, room, short)?,
        proto::ICMPV6 if ip.v6 => icmp(packet, ip, at, room, short)?,
        proto::SCTP => {
            if room < 16 {
                return Err(short);
            }
            sctp::read(packet, ip, at, room)?;
            ip.payload = Payload::Sctp;
        }
        proto::DCCP => {
            // 0 source port  2 destination port  4 data offset …: at least 12 bytes (RFC 4340, 5.1)
            if room < 12 {
                return Err(short);
            }
            let dccp: Window<12> = window(packet, at)?;
            ip.sport = dccp.u16::<0>();
            ip.dport = dccp.u16::<2>();
        }
        proto::GRE => {
            // 0 flags: 0x80 checksum, 0x20 key  1 version (low 3 bits)  2 protocol
            // 4 checksum and reserved, if there  then the key, if there (RFC 2890)
            if room < 4 {
                return Err(short);
            }
            let gre: Window<4> = window(packet, at)?;
            let (flags, version) = (gre.u8::<0>(), gre.u8::<1>() & 7);
            if version == 0 && flags & 0x20 != 0 {
                let behind = if flags & 0x80 != 0 { 8 } else { 4 };
                if room < behind as u32 + 4 {
                    return Err(short);
                }
                let key: Window<4> = window(packet, at + behind)?;
                ip.sport = key.u16::<0>();
                ip.dport = key.u16::<2>();
            }
        }
        _ => {}
    }
    Ok(())
}

#[inline(always)]
fn icmp(
    packet: &impl Packet,
    ip: &mut Ip,
    at: usize,
    room: u32,
    short: DropReason,
) -> Result<(), DropReason> {
    // 0 type  1 code  2 checksum  4 identifier  6 sequence
    if room < 8 && ip.is_fragment() {
        return Err(short);
    }
    let icmp: Window<8> = window(packet, at)?;
    if room < 8 {
        return Err(DropReason::Malformed);
    }
    ip.icmp_type = icmp.u8::<0>();
    ip.payload = icmp_payload(ip.v6, ip.icmp_type);
    ip.header_len += 8;
    identify(ip, icmp.u16::<4>());
    Ok(())
}

/// The identifier of a query stands as the port of who asks, so that a question back is another conversation although it may
/// have the same one: some systems always ask with the same.
#[inline(always)]
const fn identify(ip: &mut Ip, identifier: u16) {
    match ip.payload {
        Payload::Query => ip.sport = identifier,
        Payload::Response => ip.dport = identifier,
        _ => {}
    }
}

/// Reads the packet inside an ICMP error: what was sent, seen from its sender. Of its L4 header only the
/// first eight bytes are sure to be there (RFC 792), so only ports, identifier and TCP's sequence number
/// are read.
///
/// # Errors
///
/// Truncated, malformed, or a later fragment.
#[inline(always)]
pub fn embedded(packet: &impl Packet, outer: &Ip, offset: usize, ip: &mut Ip) -> Result<(), DropReason> {
    // `header_len` counts the error's own ICMP header.
    let at = offset + bounded::<L4_MASK>(outer.header_len);
    if outer.v6 {
        ipv6_header(packet, at, false, ip)?;
        if ip.payload == Payload::LaterFragment {
            return Err(DropReason::Fragment);
        }
    } else {
        let header = ipv4_header(packet, at, false, ip)?;
        if u16::from_be(header.u16::<6>()) & 0x1fff != 0 {
            return Err(DropReason::Fragment);
        }
    }
    if outer.len < outer.header_len + ip.l4 + 8 {
        return Err(DropReason::Malformed);
    }
    let l4: Window<8> = window(packet, at + bounded::<L4_MASK>(ip.l4))?;
    match ip.proto {
        proto::TCP | proto::UDP | proto::UDPLITE | proto::SCTP | proto::DCCP => {
            ip.payload = match ip.proto {
                proto::TCP => Payload::Tcp,
                proto::SCTP => Payload::Sctp,
                proto::DCCP => Payload::Other,
                _ => Payload::Udp,
            };
            ip.sport = l4.u16::<0>();
            ip.dport = l4.u16::<2>();
            ip.tcp.seq = u32::from_be(l4.u32::<4>());
        }
        proto::ICMP | proto::ICMPV6 if (ip.proto == proto::ICMPV6) == ip.v6 => {
            ip.payload = icmp_payload(ip.v6, l4.u8::<0>());
            identify(ip, l4.u16::<4>());
        }
        proto::GRE if l4.u8::<0>() & 0x20 != 0 && l4.u8::<1>() & 7 == 0 => {
            // Behind a checksum the key is not among the eight bytes that are sure to be there.
            let behind = if l4.u8::<0>() & 0x80 != 0 { 8 } else { 4 };
            if outer.len < outer.header_len + ip.l4 + behind as u32 + 4 {
                return Err(DropReason::Malformed);
            }
            let key: Window<4> = window(packet, at + bounded::<L4_MASK>(ip.l4) + behind)?;
            ip.sport = key.u16::<0>();
            ip.dport = key.u16::<2>();
        }
        _ => {}
    }
    Ok(())
}

/// What an ICMP type stands for. Redirects change routes and are nobody's business behind a
/// firewall; source quench, information and address mask are obsolete (RFC 6633, 6918).
#[inline(always)]
const fn icmp_payload(v6: bool, kind: u8) -> Payload {
    match (v6, kind) {
        // Echo, timestamp.
        (false, 8 | 13) | (true, 128) => Payload::Query,
        (false, 0 | 14) | (true, 129) => Payload::Response,
        // Unreachable, time exceeded, parameter problem; in IPv6 also too big (RFC 4443).
        (false, 3 | 11 | 12) | (true, 1..=4) => Payload::IcmpError,
        _ => Payload::IcmpOther,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Frame;

    const TCP: [u8; 20] = [0x12, 0x34, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0, 0, 0, 0, 0, 0];
    const UDP: [u8; 8] = [0x12, 0x34, 0, 53, 0, 8, 0, 0];

    /// An IPv4 packet of `proto` with `options` words of options and this payload.
    fn v4(proto: u8, options: u8, payload: &[u8]) -> Vec<u8> {
        let len = 20 + 4 * options as usize + payload.len();
        let mut bytes = vec![0x45 + options, 0];
        bytes.extend((len as u16).to_be_bytes());
        bytes.extend([0, 1, 0x40, 0, 64, proto, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        bytes.extend(vec![1; 4 * options as usize]);
        bytes.extend(payload);
        seal(bytes)
    }

    /// Writes the header checksum.
    fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
        bytes[10..12].fill(0);
        let words = bytes[..20].chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
        let sum: u32 = words.sum();
        let sum = (sum & 0xffff) + (sum >> 16);
        bytes[10..12].copy_from_slice(&(!((sum + (sum >> 16)) as u16)).to_be_bytes());
        bytes
    }

    /// An IPv6 packet whose first next header is `next`.
    fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x60, 0, 0, 0, 0, payload.len() as u8, next, 64];
        bytes.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        bytes.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        bytes.extend(payload);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Ip, DropReason> {
        let frame = Frame(bytes.to_vec());
        let mut ip = Ip::EMPTY;
        match bytes.first().map(|first| first >> 4) {
            Some(6) => ipv6(&frame, 0, &mut ip)?,
            _ => ipv4(&frame, 0, &mut ip)?,
        }
        transport(&frame, &mut ip, 0)?;
        Ok(ip)
    }

    #[test]
    fn ports_are_found_behind_options() {
        for options in [0, 1, 10] {
            let ip = read(&v4(proto::TCP, options, &TCP)).unwrap();
            assert_eq!((ip.sport, ip.dport), (0x1234u16.to_be(), 80u16.to_be()));
            assert_eq!((ip.tcp.flags, ip.tcp.seq), (crate::tcp::SYN, 1));
            assert_eq!(ip.slow, options != 0);
            assert_eq!(ip.header_len, ip.len);
        }
    }

    #[test]
    fn every_truncation_is_refused() {
        for whole in [
            v4(proto::TCP, 2, &TCP),
            v4(proto::UDP, 2, &UDP),
            v4(proto::ICMP, 2, &[8; 8]),
            v6(proto::TCP, &TCP),
            v6(0, &[[proto::UDP, 0, 1, 4, 0, 0, 0, 0], UDP].concat()),
        ] {
            assert!(read(&whole).is_ok());
            for len in 1..whole.len() {
                assert_eq!(read(&whole[..len]), Err(DropReason::Truncated), "{len}");
            }
        }
    }

    #[test]
    fn padding_behind_the_packet_is_not_part_of_it() {
        let mut padded = v4(proto::UDP, 0, &UDP);
        padded.extend([0; 18]);
        assert_eq!(read(&padded).unwrap().len, 28);
        let mut padded = v6(proto::UDP, &UDP);
        padded.extend([0; 6]);
        assert_eq!(read(&padded).unwrap().len, 48);
    }

    #[test]
    fn contradictions_are_malformed() {
        let spoil = |proto, payload: &[u8], at: usize, value: u8| {
            let mut packet = v4(proto, 0, payload);
            packet[at] = value;
            let packet = if at < 20 { seal(packet) } else { packet };
            let mut ip = Ip::EMPTY;
            let frame = Frame(packet);
            ipv4(&frame, 0, &mut ip)?;
            transport(&frame, &mut ip, 0)
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
        let mut wrong = v4(proto::UDP, 0, &UDP);
        wrong[10] ^= 1;
        assert_eq!(read(&wrong), Err(DropReason::Malformed), "header checksum");
    }

    #[test]
    fn a_header_checksum_holds_or_not_for_every_identification() {
        let packet = v4(proto::UDP, 0, &UDP);
        for id in 0..=u16::MAX {
            let mut other = packet.clone();
            other[4..6].copy_from_slice(&id.to_be_bytes());
            let whole = seal(other.clone());
            assert!(read(&whole).is_ok(), "{id}");
            // As it was summed for another identification.
            other[10..12].copy_from_slice(&whole[10..12]);
            other[5] ^= 1;
            assert_eq!(read(&other), Err(DropReason::Malformed), "{id}");
        }
    }

    #[test]
    fn fragments_say_where_they_belong() {
        let fragment = |offset: u16, more: bool, proto: u8, payload: &[u8]| {
            let mut packet = v4(proto, 0, payload);
            packet[6..8].copy_from_slice(&(offset | if more { 0x2000 } else { 0 }).to_be_bytes());
            read(&seal(packet))
        };
        let first = fragment(0, true, proto::UDP, &UDP).unwrap();
        assert!(first.first_fragment() && first.payload == Payload::Udp);
        let later = fragment(3, false, proto::UDP, &[0; 13]).unwrap();
        assert_eq!(later.payload, Payload::LaterFragment);
        assert_eq!((later.fragment.offset, later.fragment.units), (3, 2));
        assert_eq!(fragment(3, true, proto::UDP, &[0; 13]), Err(DropReason::Malformed), "not of 8 bytes");
        assert_eq!(fragment(0x1fff, false, proto::UDP, &[0; 13]), Err(DropReason::Malformed), "too long");
        assert_eq!(fragment(0, true, proto::TCP, &TCP[..16]), Err(DropReason::FragmentTiny));
        assert_eq!(fragment(1, false, proto::TCP, &TCP), Err(DropReason::FragmentTiny), "over the flags");
    }

    #[test]
    fn extension_headers_are_walked_within_bounds() {
        let chain = |kinds: &[u8]| {
            let mut payload = Vec::new();
            for i in 0..kinds.len() {
                let next = kinds.get(i + 1).copied().unwrap_or(proto::UDP);
                payload.extend([next, 0, 1, 4, 0, 0, 0, 0]);
            }
            payload.extend(UDP);
            read(&v6(kinds.first().copied().unwrap_or(proto::UDP), &payload))
        };
        let ip = chain(&[0, 43, 60]).unwrap();
        assert!(ip.slow && ip.l4 == 64 && ip.dport == 53u16.to_be());
        assert!(!chain(&[60]).unwrap().slow);
        assert!(chain(&[60; 6]).is_ok());
        for bad in [&[60; 7][..], &[60, 0], &[0, 0], &[135], &[139]] {
            assert_eq!(chain(bad), Err(DropReason::ExtensionHeader), "{bad:?}");
        }
        let routing_0 = [&[proto::UDP, 0, 0, 0, 0, 0, 0, 0][..], &UDP].concat();
        assert_eq!(read(&v6(43, &routing_0)), Err(DropReason::ExtensionHeader));
        let atomic = [&[proto::UDP, 0, 0, 0, 0, 0, 0, 9][..], &UDP].concat();
        assert!(!read(&v6(44, &atomic)).unwrap().is_fragment());
        let twice = [&[44, 0, 0, 0, 0, 0, 0, 9][..], &atomic].concat();
        assert_eq!(read(&v6(44, &twice)), Err(DropReason::ExtensionHeader));
        let later = [&[proto::UDP, 0, 0, 9, 0, 0, 0, 9][..], &UDP].concat();
        assert_eq!(read(&v6(44, &later)).unwrap().payload, Payload::LaterFragment);
    }

    #[test]
    fn an_icmp_error_gives_up_the_packet_inside_it() {
        let about = [v4(proto::TCP, 1, &TCP), v6(proto::TCP, &TCP)];
        let kinds = [[3, 1], [1, 4]];
        for (about, kind) in about.iter().zip(kinds) {
            let cut = about.len() - 12;
            let payload = [&kind[..], &[0; 6], &about[..cut]].concat();
            let v6_error = about[0] >> 4 == 6;
            let error = if v6_error { v6(proto::ICMPV6, &payload) } else { v4(proto::ICMP, 2, &payload) };
            let outer = read(&error).unwrap();
            assert_eq!(outer.payload, Payload::IcmpError);
            let mut inner = Ip::EMPTY;
            embedded(&Frame(error.clone()), &outer, 0, &mut inner).unwrap();
            assert_eq!((inner.payload, inner.dport, inner.tcp.seq), (Payload::Tcp, 80u16.to_be(), 1));
            for len in 0..error.len() {
                assert!(embedded(&Frame(error[..len].to_vec()), &outer, 0, &mut inner).is_err(), "{len}");
            }
        }
    }

    #[test]
    fn an_init_that_a_fragment_cuts_is_not_read_out_of_padding() {
        let init = [&[0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 20][..], &[0, 0, 0, 7]].concat();
        let first = |payload: &[u8]| {
            let mut packet = v6(44, &[&[proto::SCTP, 0, 0, 1, 0, 0, 0, 9][..], payload].concat());
            packet.extend([0xff; 32]);
            read(&packet)
        };
        assert_eq!(first(&init[..16]), Err(DropReason::Malformed));
        assert_eq!(first(&[&init[..], &[0; 4]].concat()).map(|ip| ip.tcp.ack), Ok(7u32.to_be()));
    }

    #[test]
    fn an_error_about_gre_has_the_key_of_the_flow_or_is_about_none() {
        let key = |gre: &[u8]| {
            let error =
                v4(proto::ICMP, 0, &[[3, 4, 0, 0, 0, 0, 0, 0].as_slice(), &v4(proto::GRE, 0, gre)].concat());
            let (outer, mut inner) = (read(&error).unwrap(), Ip::EMPTY);
            embedded(&Frame(error), &outer, 0, &mut inner).map(|()| (inner.sport, inner.dport))
        };
        let (first, second) = (0x0102u16.to_be(), 0x0304u16.to_be());
        assert_eq!(key(&[0x20, 0, 8, 0, 1, 2, 3, 4]), Ok((first, second)));
        assert_eq!(key(&[0xa0, 0, 8, 0, 9, 9, 0, 0, 1, 2, 3, 4]), Ok((first, second)));
        assert_eq!(key(&[0xa0, 0, 8, 0, 9, 9, 0, 0]), Err(DropReason::Malformed), "cut before the key");
        assert_eq!(key(&[0x80, 0, 8, 0, 9, 9, 0, 0]), Ok((0, 0)), "none");
    }

    #[test]
    fn gre_keys_and_queries_take_the_place_of_ports() {
        let gre = read(&v4(proto::GRE, 0, &[0x20, 0, 8, 0, 1, 2, 3, 4])).unwrap();
        assert_eq!((gre.sport, gre.dport), (0x0102u16.to_be(), 0x0304u16.to_be()));
        let behind_checksum = read(&v4(proto::GRE, 0, &[0xa0, 0, 8, 0, 9, 9, 0, 0, 1, 2, 3, 4])).unwrap();
        assert_eq!(behind_checksum.sport, gre.sport);
        assert_eq!(read(&v4(proto::GRE, 0, &[0, 1, 8, 0])).unwrap().sport, 0, "PPTP's");
        let echo = read(&v6(proto::ICMPV6, &[128, 0, 0, 0, 7, 7, 0, 1])).unwrap();
        assert_eq!((echo.payload, echo.sport, echo.dport), (Payload::Query, 0x0707, 0));
        assert_eq!(read(&v4(proto::ICMPV6, 0, &[128; 8])).unwrap().payload, Payload::Other);
    }
}
