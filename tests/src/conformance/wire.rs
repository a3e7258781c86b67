//! Packets as bytes: what the words of a script become on the wire, and whose addresses they carry.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::script::{ErrorKind, Extension, Fragment, Message, Special, Tcp, TcpOption, Tweak, What};

/// A side of the firewall. New flows may come from the inside only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// The interface `lan`.
    Inside = 0,
    /// The interface `wan`.
    Outside = 1,
}

impl Side {
    /// Both, in the order of their numbers.
    pub const BOTH: [Self; 2] = [Self::Inside, Self::Outside];

    /// The other one.
    pub const fn other(self) -> Self {
        match self {
            Self::Inside => Self::Outside,
            Self::Outside => Self::Inside,
        }
    }

    /// The device's interface on this side.
    pub const fn interface(self) -> &'static str {
        match self {
            Self::Inside => "lan",
            Self::Outside => "wan",
        }
    }

    /// MAC of the device's interface.
    pub const fn device_mac(self) -> [u8; 6] {
        [2, 0, 0, 0, 1 + self as u8, 1]
    }

    /// MAC of the router on this side, behind which all hosts of the scripts are.
    pub const fn router_mac(self) -> [u8; 6] {
        [2, 0, 0, 0, 1 + self as u8, 254]
    }

    /// Address of the device's interface.
    pub const fn device_address(self, family: Family) -> IpAddr {
        near(self, family, 1)
    }

    /// Address of the router.
    pub const fn router_address(self, family: Family) -> IpAddr {
        near(self, family, 254)
    }
}

/// A host on the link between the device and the router of a side.
const fn near(side: Side, family: Family, host: u8) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(192, 168, 1 + side as u8, host)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0xfd00, 1 + side as u16, 0, 0, 0, 0, 0, host as u16)),
    }
}

/// An IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Its name in scripts.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "v4",
            Self::V6 => "v6",
        }
    }
}

/// The networks behind the routers. Inside has two, so that either end of a flow may have the lower address.
pub const NETWORKS: [(Side, &str); 6] = [
    (Side::Inside, "10.1.0.0/16"),
    (Side::Outside, "10.2.0.0/16"),
    (Side::Inside, "10.3.0.0/16"),
    (Side::Inside, "fd01::/16"),
    (Side::Outside, "fd02::/16"),
    (Side::Inside, "fd03::/16"),
];

/// The two ends of one play of a sequence. No other play has the same, so none can disturb another.
#[derive(Clone, Debug)]
pub struct Ends {
    /// IP version.
    pub family: Family,
    addresses: [IpAddr; 2],
    ports: [u16; 2],
    isn: [u32; 2],
    tags: [u32; 2],
    number: u16,
}

impl Ends {
    /// Those with this number.
    pub fn new(family: Family, number: u16, isn: [u32; 2]) -> Self {
        let inside = if number.is_multiple_of(2) { 1 } else { 3 };
        let [hi, lo] = number.to_be_bytes();
        let address = |network: u8| match family {
            Family::V4 => IpAddr::from([10, network, hi, lo]),
            Family::V6 => IpAddr::from([0xfd00 | u16::from(network), 0, 0, 0, 0, 0, 0, number]),
        };
        Self {
            family,
            addresses: [address(inside), address(2)],
            ports: [40_000, 5_000],
            isn,
            tags: [0x1111_0001, 0x2222_0001],
            number,
        }
    }

    /// The address of inside as the kernel's tables write it.
    pub fn inside(&self) -> String {
        match self.addresses[0] {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => address.segments().map(|word| format!("{word:04x}")).join(":"),
        }
    }

    fn special(&self, special: Special, sender: Side) -> IpAddr {
        let pick = |v4: [u8; 4], v6: [u16; 8]| match self.family {
            Family::V4 => IpAddr::from(v4),
            Family::V6 => IpAddr::from(v6),
        };
        match special {
            Special::Zero => pick([0; 4], [0; 8]),
            Special::Loopback => pick([127, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0, 1]),
            Special::Multicast => pick([239, 1, 2, 3], [0xff0e, 0, 0, 0, 0, 0, 0, 0x123]),
            Special::Broadcast => pick([255; 4], [0xff02, 0, 0, 0, 0, 0, 0, 1]),
            Special::Reserved => pick([240, 0, 0, 1], [0xfec0, 0, 0, 0, 0, 0, 0, 1]),
            Special::LinkLocal => pick([169, 254, 0, 9], [0xfe80, 0, 0, 0, 0, 0, 0, 9]),
            Special::Near => sender.device_address(self.family),
            Special::Router => sender.router_address(self.family),
            Special::Own => self.addresses[sender as usize],
            Special::Same => self.addresses[sender.other() as usize],
            Special::Third => match self.addresses[sender as usize] {
                IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() ^ 0x8000).into(),
                IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() ^ 0x8000_0000).into(),
            },
        }
    }
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const DCCP: u8 = 33;
const GRE: u8 = 47;
const ESP: u8 = 50;
const AH: u8 = 51;
const SCTP: u8 = 132;
const UDPLITE: u8 = 136;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const FRAGMENT: u8 = 44;
const NO_NEXT_HEADER: u8 = 59;
/// For experiments (RFC 3692).
const EXPERIMENT: u8 = 253;

/// The frames that a message becomes, ready to be sent by its sender's router.
pub fn frames(message: &Message, ends: &Ends) -> Vec<Vec<u8>> {
    let mut mac = message.from.device_mac();
    let mut pad = 0;
    for tweak in &message.tweaks {
        match tweak {
            Tweak::Mac(other) => mac = *other,
            Tweak::Pad(bytes) => pad = *bytes,
            _ => {}
        }
    }
    let ethertype: [u8; 2] = if ends.family == Family::V4 { [0x08, 0x00] } else { [0x86, 0xdd] };
    packets(message, ends)
        .into_iter()
        .map(|packet| [&mac[..], &message.from.router_mac(), &ethertype, &packet, &vec![0xaa; pad]].concat())
        .collect()
}

/// A numbered packet of a UDP flow that no script uses: what a device makes of the packet before it is known when it has
/// come through.
pub fn marker(from: Side, number: u64) -> Vec<u8> {
    let ends = Ends::new(Family::V4, u16::MAX, [0; 2]);
    let message = Message { from, what: What::Udp(8), tweaks: vec![Tweak::ZeroChecksum] };
    let mut frame = frames(&message, &ends).swap_remove(0);
    let at = frame.len() - 8;
    frame[at..].copy_from_slice(&number.to_be_bytes());
    frame
}

/// The IP packets that a message becomes: one, unless it is sent in fragments.
fn packets(message: &Message, ends: &Ends) -> Vec<Vec<u8>> {
    let mut to = Header::new(message, ends);
    let (proto, payload) = to.carry(message, ends);
    let ranges = message.tweaks.iter().find_map(|tweak| match tweak {
        Tweak::Fragments(fragments) => Some(&fragments[..]),
        _ => None,
    });
    match (ranges, ends.family) {
        (None, Family::V4) => vec![to.v4(proto, &payload, 0)],
        (None, Family::V6) => vec![to.v6(proto, &payload)],
        (Some(ranges), Family::V4) => {
            pieces(ranges, &payload).map(|(field, piece)| to.v4(proto, piece, field)).collect()
        }
        (Some(ranges), Family::V6) => {
            // Everything but hop-by-hop options is fragmented.
            let hop = to.extensions.iter().filter(|e| **e == Extension::HopByHop).copied().collect();
            let inner = to.extensions.iter().filter(|e| **e != Extension::HopByHop).copied().collect();
            let (proto, payload) = to.chain(inner, proto, &payload);
            to.extensions = hop;
            pieces(ranges, &payload)
                .map(|(field, piece)| {
                    // The offset before the flags, not behind them.
                    let field = field.rotate_left(3);
                    to.v6(FRAGMENT, &[&fragment_header(proto, field, to.id), piece].concat())
                })
                .collect()
        }
    }
}

/// Pieces of a payload, each with offset and more-fragments flag as IPv4 writes them.
fn pieces<'a>(ranges: &'a [Fragment], payload: &'a [u8]) -> impl Iterator<Item = (u16, &'a [u8])> + use<'a> {
    ranges.iter().map(|fragment| {
        let from = fragment.from.min(payload.len());
        let to = fragment.len.map_or(payload.len(), |len| (from + len).min(payload.len()));
        let more = (to < payload.len()) != fragment.lies;
        ((fragment.from / 8) as u16 | u16::from(more) << 13, &payload[from..to])
    })
}

/// An IPv6 fragment header; `field` is offset and flags as IPv6 writes them.
fn fragment_header(next: u8, field: u16, id: u16) -> Vec<u8> {
    let mut header = vec![next, 0];
    header.extend(field.to_be_bytes());
    header.extend((0x5a5a_0000 | u32::from(id)).to_be_bytes());
    header
}

/// What goes into the IP header.
struct Header<'a> {
    tweaks: &'a [Tweak],
    src: IpAddr,
    dst: IpAddr,
    ttl: u8,
    tos: u8,
    id: u16,
    flags: u16,
    options: &'a [u8],
    extensions: Vec<Extension>,
}

impl<'a> Header<'a> {
    fn new(message: &'a Message, ends: &Ends) -> Self {
        let from = message.from;
        let mut header = Self {
            tweaks: &message.tweaks,
            src: ends.addresses[from as usize],
            dst: ends.addresses[from.other() as usize],
            ttl: 64,
            tos: 0,
            id: 0x4242 ^ ends.number,
            flags: 0,
            options: &[],
            extensions: Vec::new(),
        };
        for tweak in &message.tweaks {
            match tweak {
                Tweak::Ttl(ttl) => header.ttl = *ttl,
                Tweak::Tos(tos) => header.tos = *tos,
                Tweak::Id(id) => header.id = *id,
                Tweak::DontFragment => header.flags |= 0x4000,
                Tweak::Evil => header.flags |= 0x8000,
                Tweak::IpOption(options) => header.options = options,
                Tweak::Extensions(extensions) => header.extensions.clone_from(extensions),
                Tweak::Source(special) => header.src = ends.special(*special, from),
                Tweak::Destination(special) => header.dst = ends.special(*special, from),
                _ => {}
            }
        }
        header
    }

    /// What the packet carries: its protocol and the bytes, checksum and all.
    fn carry(&self, message: &Message, ends: &Ends) -> (u8, Vec<u8>) {
        let v6 = ends.family == Family::V6;
        let (mut proto, mut bytes, checksum_at) = l4(message, ends);
        if proto == ICMP && v6 {
            proto = ICMPV6;
        }
        if let Some(at) = checksum_at {
            let pseudo = if proto == ICMP { Vec::new() } else { self.pseudo(proto, bytes.len()) };
            let mut sum = internet_checksum(&[&pseudo, &bytes]);
            if sum == 0 && matches!(proto, UDP | UDPLITE) {
                sum = 0xffff;
            }
            bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        if proto == SCTP {
            let sum = crc32c(&bytes);
            bytes[8..12].copy_from_slice(&sum.to_le_bytes());
        }
        for tweak in self.tweaks {
            let at = if proto == SCTP { Some(8) } else { checksum_at };
            match (tweak, at) {
                (Tweak::BadChecksum, Some(at)) => bytes[at] ^= 0x55,
                (Tweak::ZeroChecksum, Some(at)) => bytes[at..at + 2].fill(0),
                _ => {}
            }
        }
        (proto, bytes)
    }

    fn pseudo(&self, proto: u8, len: usize) -> Vec<u8> {
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                [&src.octets()[..], &dst.octets(), &[0, proto], &(len as u16).to_be_bytes()].concat()
            }
            (src, dst) => {
                [octets(src), octets(dst), (len as u32).to_be_bytes().into(), vec![0, 0, 0, proto]].concat()
            }
        }
    }

    /// An IPv4 packet; `fragment` is more-fragments flag and offset.
    fn v4(&self, proto: u8, payload: &[u8], fragment: u16) -> Vec<u8> {
        let header_len = 20 + self.options.len();
        let mut length = (header_len + payload.len()) as u16;
        let (mut first, mut bad) = (0x40 | (header_len / 4) as u8, 0);
        for tweak in self.tweaks {
            match tweak {
                Tweak::Version(version) => first = first & 0x0f | version << 4,
                Tweak::HeaderWords(words) => first = first & 0xf0 | words & 0x0f,
                Tweak::Length(add) => length = length.wrapping_add_signed(*add),
                Tweak::BadIpChecksum => bad = 0x55,
                _ => {}
            }
        }
        let mut packet = vec![first, self.tos];
        packet.extend(length.to_be_bytes());
        packet.extend(self.id.to_be_bytes());
        packet.extend((self.flags | fragment).to_be_bytes());
        packet.extend([self.ttl, proto, 0, 0]);
        packet.extend(octets(self.src));
        packet.extend(octets(self.dst));
        packet.extend(self.options);
        let sum = internet_checksum(&[&packet]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet[10] ^= bad;
        packet.extend(payload);
        self.cut(packet)
    }

    /// An IPv6 packet with the extension headers that are asked for.
    fn v6(&self, proto: u8, payload: &[u8]) -> Vec<u8> {
        let (next, payload) = self.chain(self.extensions.clone(), proto, payload);
        let (mut version, mut length) = (6, payload.len() as u16);
        for tweak in self.tweaks {
            match tweak {
                Tweak::Version(other) => version = *other,
                Tweak::Length(add) => length = length.wrapping_add_signed(*add),
                _ => {}
            }
        }
        let mut packet = vec![version << 4 | self.tos >> 4, self.tos << 4, 0, 0];
        packet.extend(length.to_be_bytes());
        packet.extend([next, self.ttl]);
        packet.extend(octets(self.src));
        packet.extend(octets(self.dst));
        packet.extend(payload);
        self.cut(packet)
    }

    fn cut(&self, mut packet: Vec<u8>) -> Vec<u8> {
        for tweak in self.tweaks {
            if let Tweak::Cut(len) = tweak {
                packet.truncate(*len);
            }
        }
        packet
    }

    /// Extension headers before a payload, and the protocol of the first.
    fn chain(&self, extensions: Vec<Extension>, proto: u8, payload: &[u8]) -> (u8, Vec<u8>) {
        let mut next = proto;
        let mut bytes = payload.to_vec();
        for extension in extensions.into_iter().rev() {
            let (own, header) = self.extension(extension, next);
            bytes = [header, bytes].concat();
            next = own;
        }
        (next, bytes)
    }

    fn extension(&self, extension: Extension, next: u8) -> (u8, Vec<u8>) {
        // PadN fills what is left of the header.
        let options = |len: usize| {
            let mut header = vec![next, (len / 8 - 1) as u8];
            let mut left = len - 2;
            while left > 0 {
                let pad = left.min(257);
                header.extend([1, (pad - 2) as u8]);
                header.extend(vec![0; pad - 2]);
                left -= pad;
            }
            header
        };
        match extension {
            Extension::HopByHop => (0, options(8)),
            Extension::Destination => (60, options(8)),
            Extension::DestinationLong => (60, options(264)),
            Extension::Routing0 => (43, [&[next, 2, 0, 1, 0, 0, 0, 0], &octets(self.dst)[..]].concat()),
            Extension::Routing2 => (43, [&[next, 2, 2, 0, 0, 0, 0, 0], &octets(self.dst)[..]].concat()),
            Extension::Atomic => (FRAGMENT, fragment_header(next, 0, self.id)),
            Extension::Ah => (AH, authentication_header(next)),
            Extension::None => (NO_NEXT_HEADER, Vec::new()),
            Extension::Mobility => (135, vec![next, 0, 0, 0, 0, 0, 0, 0]),
        }
    }
}

/// An AH (RFC 4302) of 24 bytes.
fn authentication_header(next: u8) -> Vec<u8> {
    let mut header = vec![next, 4, 0, 0];
    header.extend(0x0a0b_0c0du32.to_be_bytes());
    header.extend(1u32.to_be_bytes());
    header.extend([0x33; 12]);
    header
}

/// What IP carries, with its checksum still to be filled in at the offset, if it has one.
fn l4(message: &Message, ends: &Ends) -> (u8, Vec<u8>, Option<usize>) {
    let from = message.from;
    let mut ports = [ends.ports[from as usize], ends.ports[from.other() as usize]];
    let mut id = ends.ports[0];
    let mut cut = usize::MAX;
    for tweak in &message.tweaks {
        match tweak {
            Tweak::Flow(flow) => {
                ports[from as usize] = ports[from as usize].wrapping_add(*flow);
                id = id.wrapping_add(*flow);
            }
            Tweak::SourcePort(port) => ports[0] = *port,
            Tweak::DestinationPort(port) => ports[1] = *port,
            Tweak::Quote(len) => cut = *len,
            _ => {}
        }
    }
    let mut bytes: Vec<u8> = ports.iter().flat_map(|port| port.to_be_bytes()).collect();
    match &message.what {
        What::Tcp(tcp) => {
            tcp_header(&mut bytes, tcp, message, ends);
            bytes.extend(payload(tcp.len, tcp.seq));
            (TCP, bytes, Some(16))
        }
        What::Udp(len) | What::UdpLite(len) => {
            let lite = matches!(message.what, What::UdpLite(_));
            let mut length = if lite { 0 } else { 8 + *len as u16 };
            for tweak in &message.tweaks {
                if let Tweak::UdpLength(add) = tweak {
                    length = length.wrapping_add_signed(*add);
                }
            }
            bytes.extend(length.to_be_bytes());
            bytes.extend([0, 0]);
            bytes.extend(payload(*len, 0));
            (if lite { UDPLITE } else { UDP }, bytes, Some(6))
        }
        What::Query { kind, number, len } => {
            let kind = if ends.family == Family::V6 { kind.v6.unwrap_or(kind.v4) } else { kind.v4 };
            let mut bytes = vec![kind, 0, 0, 0];
            bytes.extend(id.to_be_bytes());
            bytes.extend(number.to_be_bytes());
            bytes.extend(payload(*len, 0));
            (ICMP, bytes, Some(2))
        }
        What::Icmp { kind, len } => {
            (ICMP, [&[kind[0], kind[1], 0, 0], &payload(*len, 0)[..]].concat(), Some(2))
        }
        What::Error { kind, info, about } => (ICMP, error(kind, *info, about, ends, cut), Some(2)),
        What::Sctp(chunks) => {
            bytes.extend(sctp(chunks, message, ends));
            (SCTP, bytes, None)
        }
        What::Dccp(kind) => {
            // Header with 48-bit sequence numbers; what follows it depends on the type (RFC 4340, 5.1).
            let acknowledges = !matches!(kind, 0 | 2);
            let code = matches!(kind, 0 | 1 | 7);
            let len = 16 + 8 * usize::from(acknowledges) + 4 * usize::from(code);
            bytes.extend([(len / 4) as u8, 0, 0, 0, kind << 1 | 1, 0, 0, 0, 0, 0, 0, 1]);
            bytes.resize(len, 0);
            bytes.extend(payload(8, 0));
            (DCCP, bytes, Some(6))
        }
        What::Gre(None, len) => (GRE, [&[0, 0, 8, 0], &payload(*len, 0)[..]].concat(), None),
        What::Gre(Some(key), len) => {
            (GRE, [&[0x20, 0, 8, 0], &key.to_be_bytes()[..], &payload(*len, 0)].concat(), None)
        }
        What::GrePptp(call, len) => {
            let [hi, lo] = (*len as u16).to_be_bytes();
            let [call_hi, call_lo] = call.to_be_bytes();
            let header = [0x30, 1, 0x88, 0x0b, hi, lo, call_hi, call_lo, 0, 0, 0, 1];
            (GRE, [&header[..], &payload(*len, 0)].concat(), None)
        }
        What::Esp(len) => {
            let header = [0x0a0b_0c0du32.to_be_bytes(), 1u32.to_be_bytes()].concat();
            (ESP, [header, payload(*len, 0)].concat(), None)
        }
        What::Ah(len) => (AH, [authentication_header(EXPERIMENT), payload(*len, 0)].concat(), None),
        What::Other(proto, len) => (*proto, payload(*len, 0), None),
    }
}

/// The rest of a TCP header behind the ports.
fn tcp_header(bytes: &mut Vec<u8>, tcp: &Tcp, message: &Message, ends: &Ends) {
    let own = ends.isn[message.from as usize];
    let others = ends.isn[message.from.other() as usize];
    let mut options = Vec::new();
    for option in &tcp.options {
        match option {
            TcpOption::Mss(mss) => options.extend([&[2, 4], &mss.to_be_bytes()[..]].concat()),
            TcpOption::WindowScale(shift) => options.extend([3, 3, *shift]),
            TcpOption::SackPermitted => options.extend([4, 2]),
            TcpOption::Sack(blocks) => {
                options.extend([5, 2 + 8 * blocks.len() as u8]);
                for (from, to) in blocks {
                    options.extend(others.wrapping_add(*from).to_be_bytes());
                    options.extend(others.wrapping_add(*to).to_be_bytes());
                }
            }
            TcpOption::Timestamps(value, echo) => {
                options.extend([8, 10]);
                options.extend(value.to_be_bytes());
                options.extend(echo.to_be_bytes());
            }
            TcpOption::Nop => options.push(1),
            TcpOption::End => options.push(0),
            TcpOption::Raw(kind, len) => options.extend([*kind, *len]),
        }
    }
    while options.len() % 4 != 0 {
        options.push(1);
    }
    let (mut words, mut reserved) = (5 + (options.len() / 4) as u8, 0);
    for tweak in &message.tweaks {
        match tweak {
            Tweak::DataOffset(other) => words = *other,
            Tweak::Reserved(bits) => reserved = bits & 0x0f,
            _ => {}
        }
    }
    bytes.extend(own.wrapping_add(tcp.seq).to_be_bytes());
    bytes.extend(tcp.ack.map_or(0, |ack| others.wrapping_add(ack)).to_be_bytes());
    bytes.extend([words << 4 | reserved, tcp.flags]);
    bytes.extend(tcp.window.to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(tcp.urgent.to_be_bytes());
    bytes.extend(options);
}

/// An ICMP error with the packet it is about, as the router saw that: of its payload, `cut` bytes.
fn error(kind: &ErrorKind, info: u32, about: &Message, ends: &Ends, cut: usize) -> Vec<u8> {
    let [kind, code] = if ends.family == Family::V6 { kind.v6 } else { kind.v4 };
    let mut bytes = vec![kind, code, 0, 0];
    bytes.extend(info.to_be_bytes());
    let mut inner = packets(about, ends).swap_remove(0);
    let header = match ends.family {
        Family::V4 => usize::from(inner[0] & 0x0f) * 4,
        Family::V6 => 40,
    };
    // RFC 792 and RFC 4443 (2.4 c) differ in how much is to be sent; 128 bytes are between them.
    inner.truncate(header + cut.min(128));
    bytes.extend(inner);
    bytes
}

/// SCTP behind the ports: tag, checksum still zero, chunks (RFC 9260, 3.3).
fn sctp(chunks: &[u8], message: &Message, ends: &Ends) -> Vec<u8> {
    let (own, others) = (ends.tags[message.from as usize], ends.tags[message.from.other() as usize]);
    let (mut tag, mut init_tag) = (if chunks.contains(&1) { 0 } else { others }, own);
    let mut reflected = 0;
    for tweak in &message.tweaks {
        match tweak {
            Tweak::Tag(other) => tag = *other,
            Tweak::InitTag(other) => init_tag = *other,
            Tweak::Reflected => (tag, reflected) = (own, 1),
            _ => {}
        }
    }
    let mut bytes = tag.to_be_bytes().to_vec();
    bytes.extend([0; 4]);
    for kind in chunks {
        let (flags, body) = match kind {
            0 => (3, [&1u32.to_be_bytes()[..], &[0; 8], &payload(16, 0)].concat()),
            1 | 2 => (
                0,
                [
                    &init_tag.to_be_bytes()[..],
                    &65_536u32.to_be_bytes(),
                    &[0, 1, 0, 1],
                    &1u32.to_be_bytes(),
                    // INIT ACK needs a state cookie.
                    if *kind == 2 { &[0, 7, 0, 8, 1, 2, 3, 4] } else { &[] },
                ]
                .concat(),
            ),
            3 => (0, [&1u32.to_be_bytes()[..], &65_536u32.to_be_bytes(), &[0; 4]].concat()),
            4 | 5 => (0, vec![0, 1, 0, 8, 1, 2, 3, 4]),
            7 => (0, 1u32.to_be_bytes().into()),
            9 => (0, vec![0, 3, 0, 8, 0, 0, 0, 0]),
            10 => (0, vec![1, 2, 3, 4]),
            12 | 13 => (0, 1u32.to_be_bytes().into()),
            6 | 14 => (reflected, Vec::new()),
            _ => (0, Vec::new()),
        };
        bytes.extend([*kind, flags]);
        bytes.extend((4 + body.len() as u16).to_be_bytes());
        bytes.extend(body);
    }
    bytes
}

/// Bytes that tell where they belong.
fn payload(len: usize, from: u32) -> Vec<u8> {
    (0..len as u32).map(|at| from.wrapping_add(at) as u8).collect()
}

/// An address as it stands in a header.
pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().into(),
        IpAddr::V6(address) => address.octets().into(),
    }
}

/// RFC 1071, over parts of even length but for the last.
pub fn internet_checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for chunk in parts.iter().flat_map(|part| part.chunks(2)) {
        sum += u32::from(u16::from_be_bytes([chunk[0], chunk.get(1).copied().unwrap_or(0)]));
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// CRC-32C (RFC 9260, appendix A).
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 0 { 0 } else { 0x82f6_3b78 };
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_their_standards() {
        // RFC 1071, 3: the sum of these words is ddf2.
        assert_eq!(internet_checksum(&[&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]]), !0xddf2);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }
}
