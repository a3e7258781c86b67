//! The VRRPv3 advertisement on the wire (RFC 9568, section 5).
//!
//! ```text
//!   0  version 3 | type 1    1  VRID    2  priority    3  number of addresses
//!   4  reserved (4 bits) and maximum advertise interval in centiseconds (12 bits)
//!   6  checksum              8  addresses, 4 or 16 bytes each; all numbers big-endian
//! ```
//!
//! For IPv4, RFC 9568 sums the message alone; implementations of RFC 5798 (keepalived and FRR by
//! default) put a pseudo-header before it. Either is accepted and the difference is counted.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The IP protocol number.
pub const PROTOCOL: u8 = 112;
/// TTL or hop limit that every advertisement carries (sections 5.1.1.3, 5.1.2.3).
pub const TTL: u8 = 255;
/// Where IPv4 advertisements go.
pub const GROUP_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 18);
/// Where IPv6 advertisements go.
pub const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x12);
/// The longest advertise interval, centiseconds.
pub const INTERVAL_CS_MAX: u16 = 4095;
/// The priority that says "I give up the role".
pub const PRIORITY_RELEASE: u8 = 0;
/// The priority of a router that owns the virtual addresses as its own.
pub const PRIORITY_OWNER: u8 = 255;
/// Addresses in one advertisement.
pub const ADDRESSES_MAX: usize = 255;

const HEADER_LEN: usize = 8;
const VERSION_AND_TYPE: u8 = 3 << 4 | 1;

/// The IP header's part of a packet that the rules of VRRP speak of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Source: the sender's primary address on the interface.
    pub src: IpAddr,
    /// Destination.
    pub dst: IpAddr,
    /// TTL or hop limit, as received.
    pub ttl: u8,
}

impl Envelope {
    /// That of an advertisement sent from `src`.
    pub const fn multicast(src: IpAddr) -> Self {
        let dst = match src {
            IpAddr::V4(_) => IpAddr::V4(GROUP_V4),
            IpAddr::V6(_) => IpAddr::V6(GROUP_V6),
        };
        Self { src, dst, ttl: TTL }
    }
}

/// What the checksum of an IPv4 advertisement covers. IPv6 always has the pseudo-header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// The message alone: RFC 9568.
    #[default]
    Message,
    /// Pseudo-header and message: the reading of RFC 5798.
    PseudoHeader,
}

/// An advertisement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advert {
    /// The virtual router, 1 to 255.
    pub vrid: u8,
    /// 0 releases, 1 to 254, 255 is the owner.
    pub priority: u8,
    /// Maximum advertise interval, centiseconds, 1 to [`INTERVAL_CS_MAX`].
    pub interval_cs: u16,
    /// The virtual addresses, all of one family, at most [`ADDRESSES_MAX`].
    pub addresses: Vec<IpAddr>,
}

/// Why a received packet was discarded (RFC 9568, section 7.1, with errata 8299 to 8301).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Discard {
    /// It may have crossed a router.
    #[error("TTL is not 255")]
    Ttl,
    /// Not version 3.
    #[error("version is not 3")]
    Version,
    /// Not an advertisement.
    #[error("type is not 1 (advertisement)")]
    Type,
    /// Ends before its header or its addresses do.
    #[error("truncated")]
    Truncated,
    /// Goes on behind its last address.
    #[error("bytes behind the last address")]
    Trailing,
    /// Right under neither reading.
    #[error("wrong checksum")]
    Checksum,
    /// No virtual router of this number and family on this interface.
    #[error("virtual router not configured here")]
    UnknownVrid,
    /// Carries no address.
    #[error("no addresses")]
    NoAddresses,
    /// Would have us wait for nothing.
    #[error("advertise interval is zero")]
    ZeroInterval,
    /// IPv6: the first address must be link-local.
    #[error("first address is not link-local")]
    NotLinkLocal,
    /// Our own packet came back.
    #[error("sent by this node")]
    Own,
}

impl Discard {
    /// Number of reasons.
    pub const COUNT: usize = 11;

    /// All reasons.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Ttl,
        Self::Version,
        Self::Type,
        Self::Truncated,
        Self::Trailing,
        Self::Checksum,
        Self::UnknownVrid,
        Self::NoAddresses,
        Self::ZeroInterval,
        Self::NotLinkLocal,
        Self::Own,
    ];

    /// The name under which it is counted.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ttl => "ttl",
            Self::Version => "version",
            Self::Type => "type",
            Self::Truncated => "truncated",
            Self::Trailing => "trailing",
            Self::Checksum => "checksum",
            Self::UnknownVrid => "unknown_vrid",
            Self::NoAddresses => "no_addresses",
            Self::ZeroInterval => "zero_interval",
            Self::NotLinkLocal => "not_link_local",
            Self::Own => "own",
        }
    }
}

impl Advert {
    /// Reads the payload of an IP packet of protocol 112. Also says which reading of the checksum
    /// held. Whether the virtual router is known here is the caller's to check.
    ///
    /// # Errors
    /// The reason for which the packet must be discarded.
    pub fn parse(envelope: &Envelope, payload: &[u8]) -> Result<(Self, Checksum), Discard> {
        if envelope.ttl != TTL {
            return Err(Discard::Ttl);
        }
        let first = payload.first().ok_or(Discard::Truncated)?;
        if first >> 4 != 3 {
            return Err(Discard::Version);
        }
        if first & 0xf != 1 {
            return Err(Discard::Type);
        }
        let header = payload.first_chunk::<HEADER_LEN>().ok_or(Discard::Truncated)?;
        let count = usize::from(header[3]);
        let address_len = if envelope.src.is_ipv4() { 4 } else { 16 };
        let body = &payload[HEADER_LEN..];
        if body.len() < count * address_len {
            return Err(Discard::Truncated);
        }
        if body.len() > count * address_len {
            return Err(Discard::Trailing);
        }
        let checksum = Self::verify(envelope, payload).ok_or(Discard::Checksum)?;
        if header[1] == 0 {
            return Err(Discard::UnknownVrid);
        }
        if count == 0 {
            return Err(Discard::NoAddresses);
        }
        let interval_cs = u16::from_be_bytes([header[4], header[5]]) & 0xfff;
        if interval_cs == 0 {
            return Err(Discard::ZeroInterval);
        }
        let addresses: Vec<IpAddr> = if address_len == 4 {
            body.as_chunks::<4>().0.iter().map(|a| IpAddr::from(*a)).collect()
        } else {
            body.as_chunks::<16>().0.iter().map(|a| IpAddr::from(*a)).collect()
        };
        if let IpAddr::V6(first) = addresses[0]
            && !first.is_unicast_link_local()
        {
            return Err(Discard::NotLinkLocal);
        }
        Ok((Self { vrid: header[1], priority: header[2], interval_cs, addresses }, checksum))
    }

    /// The payload of the IP packet that `envelope` describes. The interval is held within its
    /// range, and addresses above [`ADDRESSES_MAX`] are left out.
    pub fn write(&self, envelope: &Envelope, checksum: Checksum) -> Vec<u8> {
        let count = self.addresses.len().min(ADDRESSES_MAX);
        let interval = self.interval_cs.clamp(1, INTERVAL_CS_MAX).to_be_bytes();
        let mut bytes =
            vec![VERSION_AND_TYPE, self.vrid, self.priority, count as u8, interval[0], interval[1], 0, 0];
        for address in &self.addresses[..count] {
            match address {
                IpAddr::V4(a) => bytes.extend_from_slice(&a.octets()),
                IpAddr::V6(a) => bytes.extend_from_slice(&a.octets()),
            }
        }
        let pseudo = checksum == Checksum::PseudoHeader || envelope.src.is_ipv6();
        let start = if pseudo { pseudo_header_sum(envelope, bytes.len()) } else { 0 };
        let sum = !fold(start + sum(&bytes));
        bytes[6..8].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    fn verify(envelope: &Envelope, payload: &[u8]) -> Option<Checksum> {
        let message = sum(payload);
        if envelope.src.is_ipv4() && fold(message) == 0xffff {
            return Some(Checksum::Message);
        }
        (fold(message + pseudo_header_sum(envelope, payload.len())) == 0xffff)
            .then_some(Checksum::PseudoHeader)
    }
}

/// Sum of big-endian 16-bit words, carries not yet folded in. At most 4 KiB of input.
fn sum(bytes: &[u8]) -> u32 {
    let (words, rest) = bytes.as_chunks::<2>();
    let tail = rest.first().map_or(0, |&b| u32::from(b) << 8);
    words.iter().map(|&w| u32::from(u16::from_be_bytes(w))).sum::<u32>() + tail
}

/// RFC 1071's one's complement sum.
fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// RFC 793's pseudo-header for IPv4, RFC 8200's (section 8.1) for IPv6.
fn pseudo_header_sum(envelope: &Envelope, len: usize) -> u32 {
    let address = |a: IpAddr| match a {
        IpAddr::V4(a) => sum(&a.octets()),
        IpAddr::V6(a) => sum(&a.octets()),
    };
    address(envelope.src) + address(envelope.dst) + u32::from(PROTOCOL) + len as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SRC: Envelope = Envelope::multicast(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)));
    const SRC6: Envelope = Envelope::multicast(IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)));

    fn advert() -> Advert {
        let addresses = vec![Ipv4Addr::new(10, 0, 0, 12).into(), Ipv4Addr::new(10, 0, 0, 13).into()];
        Advert { vrid: 61, priority: 150, interval_cs: 100, addresses }
    }

    /// Changes a good packet and mends its checksum, so that only the change is judged.
    fn changed(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut bytes = advert().write(&SRC, Checksum::Message);
        change(&mut bytes);
        if bytes.len() >= 8 {
            bytes[6..8].fill(0);
            let sum = !fold(sum(&bytes));
            bytes[6..8].copy_from_slice(&sum.to_be_bytes());
        }
        bytes
    }

    #[test]
    fn tx_an_advert_has_these_bytes() {
        let bytes = advert().write(&SRC, Checksum::Message);
        // The checksums were worked out by hand from RFC 1071.
        assert_eq!(bytes, [0x31, 61, 150, 2, 0, 100, 0x24, 0x43, 10, 0, 0, 12, 10, 0, 0, 13]);
        let bytes = advert().write(&SRC, Checksum::PseudoHeader);
        assert_eq!(bytes[6..8], [0x39, 0xaf]);
    }

    #[test]
    fn tx_interval_is_kept_within_12_bits_and_above_zero() {
        for (given, sent) in [(0, 1), (1, 1), (4095, 4095), (4096, 4095), (u16::MAX, 4095)] {
            let bytes = Advert { interval_cs: given, ..advert() }.write(&SRC, Checksum::Message);
            assert_eq!(Advert::parse(&SRC, &bytes).unwrap().0.interval_cs, sent);
        }
    }

    #[test]
    fn rx_both_checksum_readings_are_accepted_and_told_apart() {
        for kind in [Checksum::Message, Checksum::PseudoHeader] {
            let bytes = advert().write(&SRC, kind);
            assert_eq!(Advert::parse(&SRC, &bytes), Ok((advert(), kind)));
        }
    }

    #[test]
    fn rx_ipv6_has_the_pseudo_header_and_a_link_local_first_address() {
        let mut advert = advert();
        advert.addresses = vec!["fe80::c".parse().unwrap(), "2001:db8::c".parse().unwrap()];
        let bytes = advert.write(&SRC6, Checksum::Message);
        assert_eq!(Advert::parse(&SRC6, &bytes), Ok((advert.clone(), Checksum::PseudoHeader)));
        advert.addresses.swap(0, 1);
        let bytes = advert.write(&SRC6, Checksum::Message);
        assert_eq!(Advert::parse(&SRC6, &bytes), Err(Discard::NotLinkLocal));
    }

    #[test]
    fn rx_each_fault_is_discarded_under_its_name() {
        let parse = |bytes: Vec<u8>| Advert::parse(&SRC, &bytes).unwrap_err();
        for ttl in [0, 1, 64, 254] {
            let envelope = Envelope { ttl, ..SRC };
            assert_eq!(Advert::parse(&envelope, &changed(|_| ())), Err(Discard::Ttl));
        }
        assert_eq!(parse(changed(|b| b[0] = 0x21)), Discard::Version);
        assert_eq!(parse(changed(|b| b[0] = 0x41)), Discard::Version);
        assert_eq!(parse(changed(|b| b[0] = 0x32)), Discard::Type);
        assert_eq!(parse(vec![]), Discard::Truncated);
        assert_eq!(parse(changed(|b| b.truncate(7))), Discard::Truncated);
        assert_eq!(parse(changed(|b| b.truncate(15))), Discard::Truncated);
        assert_eq!(parse(changed(|b| b[3] = 3)), Discard::Truncated);
        assert_eq!(parse(changed(|b| b.push(0))), Discard::Trailing);
        assert_eq!(parse(changed(|b| b[1] = 0)), Discard::UnknownVrid);
        assert_eq!(parse(changed(|b| (b[3], _) = (0, b.truncate(8)))), Discard::NoAddresses);
        assert_eq!(parse(changed(|b| b[4..6].fill(0))), Discard::ZeroInterval);
        let mut bytes = advert().write(&SRC, Checksum::Message);
        bytes[2] += 1;
        assert_eq!(parse(bytes), Discard::Checksum);
        let elsewhere = Envelope { src: Ipv4Addr::new(10, 0, 0, 2).into(), ..SRC };
        let bytes = advert().write(&SRC, Checksum::PseudoHeader);
        assert_eq!(Advert::parse(&elsewhere, &bytes), Err(Discard::Checksum));
    }

    #[test]
    fn rx_reserved_bits_are_ignored() {
        let bytes = changed(|b| b[4] |= 0xf0);
        assert_eq!(Advert::parse(&SRC, &bytes).map(|(a, _)| a), Ok(advert()));
    }

    #[test]
    fn names_are_distinct() {
        let names: std::collections::BTreeSet<_> = Discard::ALL.iter().map(|d| d.as_str()).collect();
        assert_eq!(names.len(), Discard::COUNT);
        assert!(Discard::ALL.iter().enumerate().all(|(i, d)| *d as usize == i));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(vrid in 1u8.., priority: u8, interval_cs in 1u16..=4095, addresses in prop::collection::vec(any::<[u8; 4]>(), 1..=255), pseudo: bool) {
            let addresses = addresses.into_iter().map(IpAddr::from).collect();
            let advert = Advert { vrid, priority, interval_cs, addresses };
            let kind = if pseudo { Checksum::PseudoHeader } else { Checksum::Message };
            let bytes = advert.write(&SRC, kind);
            prop_assert_eq!(Advert::parse(&SRC, &bytes).map(|(a, _)| a), Ok(advert));
        }

        #[test]
        fn no_bytes_make_the_parser_panic(ttl: bool, v6: bool, head: bool, mut bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            if let (true, Some(b)) = (head, bytes.first_mut()) {
                *b = VERSION_AND_TYPE;
            }
            let envelope = Envelope { ttl: if ttl { 255 } else { 1 }, ..if v6 { SRC6 } else { SRC } };
            if let Ok((advert, _)) = Advert::parse(&envelope, &bytes) {
                prop_assert!(advert.interval_cs > 0 && !advert.addresses.is_empty());
            }
        }
    }
}
