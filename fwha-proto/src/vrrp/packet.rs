//! The VRRP advertisement on the wire: version 3 (RFC 9568, section 5), and version 2 (RFC 3768,
//! section 5), which is for IPv4 alone.
//!
//! ```text
//!   0  version 3 | type 1    1  VRID    2  priority    3  number of addresses
//!   4  reserved (4 bits) and maximum advertise interval in centiseconds (12 bits)
//!   6  checksum              8  addresses, 4 or 16 bytes each; all numbers big-endian
//! ```
//!
//! For IPv4, RFC 9568 sums the message alone; implementations of RFC 5798 (keepalived and FRR by
//! default) put a pseudo-header before it. Either is accepted and the difference is counted.
//!
//! ```text
//!   0  version 2 | type 1    1  VRID    2  priority    3  number of addresses
//!   4  authentication type   5  advertise interval, seconds            6  checksum
//!   8  addresses, 4 bytes each, and behind them 8 bytes of authentication data
//! ```
//! The password of authentication type 1 (RFC 2338, section 5.3.6) is readable by everybody on the
//! link. It keeps neighbours apart that were set up differently, nobody else.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::hmac::TRAILER_LEN;

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
/// The longest advertise interval of version 2, seconds.
pub const V2_INTERVAL_S_MAX: u8 = 255;
/// Bytes of a password of version 2, shorter ones with zeros behind them.
pub const PASSWORD_LEN: usize = 8;
/// The priority that says "I give up the role".
pub const PRIORITY_RELEASE: u8 = 0;
/// The priority of a router that owns the virtual addresses as its own.
pub const PRIORITY_OWNER: u8 = 255;
/// Addresses in one advertisement.
pub const ADDRESSES_MAX: usize = 255;

const HEADER_LEN: usize = 8;
const VERSION_AND_TYPE: u8 = 3 << 4 | 1;
const V2_AND_TYPE: u8 = 2 << 4 | 1;

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
    /// That of an advertisement sent from `src` to the group.
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

/// Which VRRP a virtual router speaks, and what is its own to choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// RFC 3768.
    V2 {
        /// What its authentication data must be.
        auth: Auth,
    },
    /// RFC 9568.
    V3 {
        /// What is sent. Either is accepted.
        checksum: Checksum,
    },
}

impl Default for Version {
    fn default() -> Self {
        Self::V3 { checksum: Checksum::default() }
    }
}

impl Version {
    /// Whether it is version 2.
    pub const fn is_v2(self) -> bool {
        matches!(self, Self::V2 { .. })
    }

    /// Whether advertisements can be sent at this interval, in centiseconds.
    pub const fn allows_interval(self, interval_cs: u16) -> bool {
        match self {
            Self::V2 { .. } => {
                interval_cs > 0
                    && interval_cs.is_multiple_of(100)
                    && interval_cs / 100 <= V2_INTERVAL_S_MAX as u16
            }
            Self::V3 { .. } => interval_cs > 0 && interval_cs <= INTERVAL_CS_MAX,
        }
    }
}

/// Authentication of version 2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Auth {
    /// Type 0: none. Its data are not read.
    #[default]
    None,
    /// Type 1: a password in plain text.
    Password([u8; PASSWORD_LEN]),
}

/// An advertisement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advert {
    /// The virtual router, 1 to 255.
    pub vrid: u8,
    /// 0 releases, 1 to 254, 255 is the owner.
    pub priority: u8,
    /// Maximum advertise interval, centiseconds, 1 to [`INTERVAL_CS_MAX`]; whole seconds in version 2,
    /// at most [`V2_INTERVAL_S_MAX`].
    pub interval_cs: u16,
    /// The virtual addresses, all of one family, at most [`ADDRESSES_MAX`].
    pub addresses: Vec<IpAddr>,
}

/// Why a received packet was discarded (RFC 9568, section 7.1, with errata 8299 to 8301; RFC 3768,
/// section 7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Discard {
    /// It may have crossed a router.
    #[error("TTL is not 255")]
    Ttl,
    /// Not the version that is spoken here.
    #[error("another version")]
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
    /// Unicast is configured here, and this went to the group.
    #[error("multicast, unicast is configured here")]
    Multicast,
    /// It was sent to this node alone, and not by a unicast peer.
    #[error("unicast, but not from a peer")]
    NotPeer,
    /// Version 2: another authentication type than ours.
    #[error("another authentication type")]
    AuthType,
    /// Version 2: another password than ours.
    #[error("another password")]
    AuthData,
    /// Version 2: another advertise interval than ours.
    #[error("another advertise interval")]
    OtherInterval,
    /// It carries no trailer, and must.
    #[error("not signed")]
    HmacMissing,
    /// The trailer is none that is known.
    #[error("malformed trailer")]
    HmacMalformed,
    /// Signed too long ago, or in the future.
    #[error("signed outside of the window: compare the clocks")]
    HmacStale,
    /// Signed with a key that is not known here.
    #[error("signed with an unknown key")]
    HmacUnknownKey,
    /// The digest is wrong.
    #[error("signed with another key, or changed")]
    HmacBad,
    /// It was here before.
    #[error("replayed")]
    HmacReplayed,
}

impl Discard {
    /// Number of reasons.
    pub const COUNT: usize = 22;

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
        Self::Multicast,
        Self::NotPeer,
        Self::AuthType,
        Self::AuthData,
        Self::OtherInterval,
        Self::HmacMissing,
        Self::HmacMalformed,
        Self::HmacStale,
        Self::HmacUnknownKey,
        Self::HmacBad,
        Self::HmacReplayed,
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
            Self::Multicast => "multicast",
            Self::NotPeer => "not_peer",
            Self::AuthType => "auth_type",
            Self::AuthData => "auth_data",
            Self::OtherInterval => "other_interval",
            Self::HmacMissing => "hmac_missing",
            Self::HmacMalformed => "hmac_malformed",
            Self::HmacStale => "hmac_stale",
            Self::HmacUnknownKey => "hmac_unknown_key",
            Self::HmacBad => "hmac_bad",
            Self::HmacReplayed => "hmac_replayed",
        }
    }
}

impl Advert {
    /// Reads the payload of an IP packet of protocol 112, version 3. Also says which reading of the checksum
    /// held. Whether the virtual router is known here is the caller's to check.
    ///
    /// # Errors
    /// The reason for which the packet must be discarded.
    pub fn parse(envelope: &Envelope, payload: &[u8]) -> Result<(Self, Checksum), Discard> {
        let header = Self::header(envelope, payload, 3)?;
        let count = usize::from(header[3]);
        let address_len = if envelope.src.is_ipv4() { 4 } else { 16 };
        let (message, _) = split(envelope, payload);
        let body = &message[HEADER_LEN..];
        if body.len() < count * address_len {
            return Err(Discard::Truncated);
        }
        if body.len() > count * address_len {
            return Err(Discard::Trailing);
        }
        // A trailer belongs to what IPv6 sums, and not to what IPv4 does.
        let summed = if envelope.src.is_ipv4() { message } else { payload };
        let checksum = Self::verify(envelope, summed).ok_or(Discard::Checksum)?;
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

    /// As [`Self::parse`], for version 2. Also returns the authentication; whether it is the right one
    /// is the caller's to check.
    ///
    /// # Errors
    /// The reason for which the packet must be discarded.
    pub fn parse_v2(envelope: &Envelope, payload: &[u8]) -> Result<(Self, Auth), Discard> {
        let header = Self::header(envelope, payload, 2)?;
        if envelope.src.is_ipv6() {
            return Err(Discard::Version);
        }
        let (payload, _) = split(envelope, payload);
        let len = HEADER_LEN + usize::from(header[3]) * 4 + PASSWORD_LEN;
        if payload.len() != len {
            return Err(if payload.len() < len { Discard::Truncated } else { Discard::Trailing });
        }
        if fold(sum(payload)) != 0xffff {
            return Err(Discard::Checksum);
        }
        let [_, vrid, priority, count, auth_type, interval_s, ..] = *header;
        if vrid == 0 {
            return Err(Discard::UnknownVrid);
        }
        let (addresses, auth_data) = payload[HEADER_LEN..].as_chunks::<4>().0.split_at(count.into());
        let auth = match (auth_type, auth_data) {
            (0, _) => Auth::None,
            (1, [a, b]) => Auth::Password([a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]]),
            _ => return Err(Discard::AuthType),
        };
        if addresses.is_empty() {
            return Err(Discard::NoAddresses);
        }
        if interval_s == 0 {
            return Err(Discard::ZeroInterval);
        }
        let addresses = addresses.iter().map(|a| IpAddr::from(*a)).collect();
        Ok((Self { vrid, priority, interval_cs: u16::from(interval_s) * 100, addresses }, auth))
    }

    /// The payload of an IPv4 packet in version 2. The interval is held within its range and goes up
    /// to whole seconds, and addresses that are not of IPv4, or above [`ADDRESSES_MAX`], are left out.
    pub fn write_v2(&self, auth: Auth) -> Vec<u8> {
        let v4 = self.addresses.iter().filter_map(|a| match a {
            IpAddr::V4(a) => Some(a.octets()),
            IpAddr::V6(_) => None,
        });
        let addresses: Vec<_> = v4.take(ADDRESSES_MAX).collect();
        let interval_s = self.interval_cs.div_ceil(100).clamp(1, V2_INTERVAL_S_MAX.into()) as u8;
        let (auth_type, auth_data) = match auth {
            Auth::None => (0, [0; PASSWORD_LEN]),
            Auth::Password(password) => (1, password),
        };
        let count = addresses.len() as u8;
        let mut bytes = vec![V2_AND_TYPE, self.vrid, self.priority, count, auth_type, interval_s, 0, 0];
        bytes.extend(addresses.iter().flatten());
        bytes.extend(auth_data);
        let sum = !fold(sum(&bytes));
        bytes[6..8].copy_from_slice(&sum.to_be_bytes());
        bytes
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

    /// What both versions check first, and in this order.
    fn header<'a>(
        envelope: &Envelope,
        payload: &'a [u8],
        version: u8,
    ) -> Result<&'a [u8; HEADER_LEN], Discard> {
        if envelope.ttl != TTL {
            return Err(Discard::Ttl);
        }
        let first = payload.first().ok_or(Discard::Truncated)?;
        if first >> 4 != version {
            return Err(Discard::Version);
        }
        if first & 0xf != 1 {
            return Err(Discard::Type);
        }
        payload.first_chunk().ok_or(Discard::Truncated)
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

/// What follows the addresses (and in version 2 the authentication data) of an advertisement, if it is as long as a
/// trailer: see [`super::hmac`]. Whether it is to be there is for others to say.
pub fn split<'a>(envelope: &Envelope, payload: &'a [u8]) -> (&'a [u8], Option<&'a [u8; TRAILER_LEN]>) {
    let &[version, _, _, count, ..] = payload else { return (payload, None) };
    let address_len = if envelope.src.is_ipv4() { 4 } else { 16 };
    let auth_len = if version >> 4 == 2 { PASSWORD_LEN } else { 0 };
    let len = HEADER_LEN + usize::from(count) * address_len + auth_len;
    match payload.split_last_chunk() {
        Some((message, trailer)) if message.len() == len => (message, Some(trailer)),
        _ => (payload, None),
    }
}

/// Puts the trailer behind an advertisement that was written for `envelope`.
pub fn append(envelope: &Envelope, message: &mut Vec<u8>, trailer: &[u8]) {
    message.extend_from_slice(trailer);
    if envelope.src.is_ipv6() && !trailer.is_empty() {
        message[6..8].fill(0);
        let sum = !fold(pseudo_header_sum(envelope, message.len()) + sum(message));
        message[6..8].copy_from_slice(&sum.to_be_bytes());
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

    const PASSWORD: Auth = Auth::Password(*b"sesame\0\0");

    /// RFC 3768, 5.1; RFC 2338, 5.3.6.
    #[test]
    fn v2_tx_an_advert_has_these_bytes() {
        let head = |auth_type, sum: [u8; 2]| [0x21, 61, 150, 2, auth_type, 1, sum[0], sum[1]];
        let addresses = [10, 0, 0, 12, 10, 0, 0, 13];
        // 213d + 9602 + 0001 + 0a00 + 000c + 0a00 + 000d = cb59, inverted.
        let expected = [&head(0, [0x34, 0xa6])[..], &addresses, &[0; 8]].concat();
        assert_eq!(advert().write_v2(Auth::None), expected);
        // The password is summed, too: cb59 + 0100 + 7365 + 7361 + 6d65 = 22084, folded, inverted.
        let expected = [&head(1, [0xdf, 0x79])[..], &addresses, b"sesame\0\0"].concat();
        assert_eq!(advert().write_v2(PASSWORD), expected);
    }

    /// RFC 3768, 5.3.7: 8 bits, seconds.
    #[test]
    fn v2_tx_interval_is_whole_seconds() {
        for (given, sent) in
            [(0, 100), (1, 100), (100, 100), (101, 200), (25_500, 25_500), (u16::MAX, 25_500)]
        {
            let bytes = Advert { interval_cs: given, ..advert() }.write_v2(Auth::None);
            assert_eq!(Advert::parse_v2(&SRC, &bytes).unwrap().0.interval_cs, sent);
        }
        let v2 = Version::V2 { auth: Auth::None };
        let allowed: Vec<u16> = (0..=u16::MAX).filter(|&cs| v2.allows_interval(cs)).collect();
        assert_eq!((allowed.len(), allowed[0], allowed[254]), (255, 100, 25_500));
        let allowed = (0..=u16::MAX).filter(|&cs| Version::default().allows_interval(cs));
        assert!(allowed.eq(1..=4095));
    }

    /// RFC 3768, 7.1, with what RFC 9568 makes of the same faults.
    #[test]
    fn v2_rx_each_fault_is_discarded_under_its_name() {
        type Change = fn(&mut Vec<u8>);
        let parse = |envelope: &Envelope, change: Change| {
            let mut bytes = advert().write_v2(PASSWORD);
            change(&mut bytes);
            if bytes.len() >= 8 {
                bytes[6..8].fill(0);
                let sum = !fold(sum(&bytes));
                bytes[6..8].copy_from_slice(&sum.to_be_bytes());
            }
            Advert::parse_v2(envelope, &bytes)
        };
        assert_eq!(parse(&SRC, |_| ()), Ok((advert(), PASSWORD)));
        assert_eq!(parse(&Envelope { ttl: 254, ..SRC }, |_| ()), Err(Discard::Ttl));
        assert_eq!(parse(&SRC6, |_| ()), Err(Discard::Version));
        let rows: [(Change, Discard); 11] = [
            (|b| b[0] = 0x31, Discard::Version),
            (|b| b[0] = 0x22, Discard::Type),
            (|b| b.clear(), Discard::Truncated),
            (|b| b.truncate(7), Discard::Truncated),
            (|b| b.truncate(16), Discard::Truncated),
            (|b| b.push(0), Discard::Trailing),
            (|b| b[1] = 0, Discard::UnknownVrid),
            (|b| b[4] = 2, Discard::AuthType),
            (|b| (b[3], _) = (0, b.truncate(16)), Discard::NoAddresses),
            (|b| b[5] = 0, Discard::ZeroInterval),
            (|b| (b[3], _) = (1, b.push(0)), Discard::Trailing),
        ];
        for (n, (change, discard)) in rows.into_iter().enumerate() {
            assert_eq!(parse(&SRC, change), Err(discard), "row {n}");
        }
        let mut bytes = advert().write_v2(Auth::None);
        bytes[2] += 1;
        assert_eq!(Advert::parse_v2(&SRC, &bytes), Err(Discard::Checksum));
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
        fn v2_what_is_written_is_read(vrid in 1u8.., priority: u8, interval_s in 1u16..=255, addresses in prop::collection::vec(any::<[u8; 4]>(), 1..=255), password: Option<[u8; 8]>) {
            let addresses = addresses.into_iter().map(IpAddr::from).collect();
            let advert = Advert { vrid, priority, interval_cs: interval_s * 100, addresses };
            let auth = password.map_or(Auth::None, Auth::Password);
            prop_assert_eq!(Advert::parse_v2(&SRC, &advert.write_v2(auth)), Ok((advert, auth)));
        }

        #[test]
        fn v2_no_bytes_make_the_parser_panic(head: bool, mut bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            if let (true, Some(b)) = (head, bytes.first_mut()) {
                *b = V2_AND_TYPE;
            }
            if let Ok((advert, _)) = Advert::parse_v2(&SRC, &bytes) {
                prop_assert!(advert.interval_cs > 0 && !advert.addresses.is_empty());
            }
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
