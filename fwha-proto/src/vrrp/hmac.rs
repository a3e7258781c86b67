//! keepalived's `auth_hmac`: a trailer behind an advertisement that proves who sent it, and when.
//!
//! The format is that of draft-cassen-vrrp-auth-hmac, as keepalived 2.4 has it (its article
//! `vrrp-hmac-authentication`, and the images that its `test/auth_hmac_test.c` pins, which ours do, too).
//!
//! ```text
//!   0  type 1 (HMAC-SHA-256)   1  key, 1 to 255   2  zero (2)
//!   4  seconds (u32)   8  fraction of a second, in 2^-16 (u16)   10  counter (u16)
//!  12  the first 16 bytes of HMAC-SHA-256 over
//!        a pseudo-header: 0  4 or 6 (family)  1  VRRP's version  2  VRID  3  zero  4  source (4 or 16, zeros to 20)
//!        the advertisement, its checksum read as zero, and the trailer, its last 16 bytes read as zero
//! ```
//! Numbers are big-endian. IPv4's checksum covers the advertisement alone, IPv6's the trailer as well. The IP header is
//! not covered, so one signed advertisement goes to all unicast peers.
//!
//! Seconds, fraction and counter are one number that rises with every advertisement and is never far from the clock. A
//! receiver refuses, in this order: what it cannot read; what is older or newer than the window, before any digest is
//! reckoned; a key that it does not have; a wrong digest; and what is not above the highest number of that sender. The
//! highest number moves only when the digest was right. A number that is beyond the window since a clock was set counts
//! no more, neither the sender's own nor a receiver's.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Bytes of the trailer.
pub const TRAILER_LEN: usize = 28;
/// Shortest and longest key, bytes.
pub const KEY_LEN: std::ops::RangeInclusive<usize> = 32..=64;
/// The type of the trailer.
const TYPE: u8 = 1;
const MAC_LEN: usize = 16;
const MAC_AT: usize = TRAILER_LEN - MAC_LEN;
const PSEUDO_LEN: usize = 20;
/// Where the checksum of an advertisement is.
const CHECKSUM: std::ops::Range<usize> = 6..8;
/// Senders of one virtual router that are remembered.
const SENDERS_MAX: usize = 16;

/// A key.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct Key {
    /// Its number, 1 to 255.
    #[zeroize(skip)]
    pub id: u8,
    secret: Vec<u8>,
}

impl Key {
    /// `None` if it is too short or too long, or its number is 0.
    pub fn new(id: u8, secret: &[u8]) -> Option<Self> {
        (id != 0 && KEY_LEN.contains(&secret.len())).then(|| Self { id, secret: secret.to_vec() })
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({})", self.id)
    }
}

/// What is sent, and what is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// No trailer is sent; one that comes is checked. The first step of a roll-out.
    ReceiveOnly,
    /// A trailer is sent; an advertisement without one is accepted.
    Permissive,
    /// An advertisement without a trailer is refused.
    Enforce,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::ReceiveOnly, Self::Permissive, Self::Enforce];

    /// The name in the config file.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ReceiveOnly => "receive-only",
            Self::Permissive => "permissive",
            Self::Enforce => "enforce",
        }
    }
}

/// How a group authenticates its advertisements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Those that are accepted. The first signs.
    pub keys: Vec<Key>,
    /// What is sent and accepted.
    pub mode: Mode,
    /// How far a number may be from the clock, whole seconds.
    pub window: Duration,
}

/// Why a trailer is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Another type, or something where zeros should be.
    Malformed,
    /// Too old or too new.
    Stale,
    /// A key that is not known here.
    UnknownKey,
    /// The digest is wrong.
    BadMac,
    /// Not above what came before.
    Replayed,
}

/// What is bound into the digest beside the message.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    /// VRRP's version.
    pub version: u8,
    /// The virtual router.
    pub vrid: u8,
    /// The sender's address.
    pub source: IpAddr,
}

fn digest(key: &Key, bound: Bound, message: &[u8], head: &[u8]) -> Hmac<Sha256> {
    let mut pseudo = [0; PSEUDO_LEN];
    pseudo[1..3].copy_from_slice(&[bound.version, bound.vrid]);
    match bound.source {
        IpAddr::V4(source) => {
            pseudo[0] = 4;
            pseudo[4..8].copy_from_slice(&source.octets());
        }
        IpAddr::V6(source) => {
            pseudo[0] = 6;
            pseudo[4..].copy_from_slice(&source.octets());
        }
    }
    let (before, after) = message.split_at(CHECKSUM.start.min(message.len()));
    let mut mac = Hmac::<Sha256>::new_from_slice(&key.secret).expect("HMAC takes keys of any length");
    mac.update(&pseudo);
    mac.update(before);
    mac.update(&[0; CHECKSUM.end - CHECKSUM.start]);
    mac.update(after.get(CHECKSUM.end - CHECKSUM.start..).unwrap_or(&[]));
    mac.update(head);
    mac.update(&[0; MAC_LEN]);
    mac
}

/// The trailer of a message.
pub fn sign(key: &Key, bound: Bound, message: &[u8], number: u64) -> [u8; TRAILER_LEN] {
    let mut trailer = [0; TRAILER_LEN];
    trailer[..2].copy_from_slice(&[TYPE, key.id]);
    trailer[4..MAC_AT].copy_from_slice(&number.to_be_bytes());
    let mac = digest(key, bound, message, &trailer[..MAC_AT]).finalize().into_bytes();
    trailer[MAC_AT..].copy_from_slice(&mac[..MAC_LEN]);
    trailer
}

/// Whether `a` comes after `b` (RFC 1982).
const fn after(a: u64, b: u64) -> bool {
    (a.wrapping_sub(b) as i64) > 0
}

/// The number of a moment: 2^-16 seconds since 1970, and a counter of 16 bits behind them.
const fn number_of(wall: Duration) -> u64 {
    let fraction = ((wall.subsec_nanos() as u64) << 16) / 1_000_000_000;
    (wall.as_secs() as u32 as u64) << 32 | fraction << 16
}

/// Whether a number is within the window around a moment.
fn is_fresh(number: u64, wall: Duration, window: Duration) -> bool {
    let distance = ((number >> 32) as u32).wrapping_sub(wall.as_secs() as u32) as i32;
    u64::from(distance.unsigned_abs()) <= window.as_secs()
}

/// What one virtual router remembers.
#[derive(Clone, Debug, Default)]
pub struct State {
    sent: u64,
    highest: BTreeMap<IpAddr, u64>,
}

impl State {
    /// The trailer of a message that is sent now, at this time since 1970.
    pub fn sign(&mut self, config: &Config, bound: Bound, message: &[u8], wall: Duration) -> Vec<u8> {
        let Some(key) = config.keys.first().filter(|_| config.mode != Mode::ReceiveOnly) else {
            return Vec::new();
        };
        let clock = number_of(wall);
        let stranded = self.sent != 0 && !is_fresh(self.sent, wall, config.window);
        self.sent = if stranded || after(clock, self.sent) { clock } else { self.sent.wrapping_add(1) };
        sign(key, bound, message, self.sent).to_vec()
    }

    /// Checks the trailer of a message.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn check(
        &mut self,
        config: &Config,
        bound: Bound,
        message: &[u8],
        trailer: &[u8; TRAILER_LEN],
        wall: Duration,
    ) -> Result<(), Refused> {
        let [kind, id, zero, also_zero, ..] = *trailer;
        if kind != TYPE || (zero, also_zero) != (0, 0) {
            return Err(Refused::Malformed);
        }
        let number = trailer[4..MAC_AT].try_into().map_or(0, u64::from_be_bytes);
        if !is_fresh(number, wall, config.window) {
            return Err(Refused::Stale);
        }
        let key = config.keys.iter().find(|key| key.id == id).ok_or(Refused::UnknownKey)?;
        // In constant time.
        digest(key, bound, message, &trailer[..MAC_AT])
            .verify_truncated_left(&trailer[MAC_AT..])
            .map_err(|_| Refused::BadMac)?;
        let highest = self.highest.get(&bound.source);
        if highest.is_some_and(|&h| is_fresh(h, wall, config.window) && !after(number, h)) {
            return Err(Refused::Replayed);
        }
        if highest.is_none() && self.highest.len() >= SENDERS_MAX {
            // Those who have the key are the nodes of a cluster: so many come only by a change of addresses.
            let oldest = self.highest.iter().min_by_key(|(_, number)| **number).map(|(source, _)| *source);
            oldest.map(|source| self.highest.remove(&source));
        }
        self.highest.insert(bound.source, number);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Images of the draft's appendix, as keepalived's test pins them: key 0x00 to 0x1f, number 1.
    const V4: &str = "3133c80100644402c00002640101000068000000800000001b84bc4e8e43892dc6d98448f8ee2265";
    const V6: &str = "3133c8010064a2e9fe8000000000000000000000000001000101000068000000800000\
                      00c8c56146ebfd66ee10ec4d8186461b78";
    const NUMBER: u64 = 0x6800_0000_8000_0000;
    const WALL: Duration = Duration::from_secs(0x6800_0000);

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex.chars().filter_map(|c| c.to_digit(16)).map(|d| d as u8).collect();
        digits.as_chunks::<2>().0.iter().map(|[high, low]| high << 4 | low).collect()
    }

    fn key() -> Key {
        Key::new(1, &(0..32).collect::<Vec<u8>>()).unwrap()
    }

    fn config() -> Config {
        Config { keys: vec![key()], mode: Mode::Enforce, window: Duration::from_secs(5) }
    }

    fn bound(v6: bool) -> Bound {
        let source = if v6 { "fe80::10" } else { "198.51.100.10" };
        Bound { version: 3, vrid: 51, source: source.parse().unwrap() }
    }

    fn check_at(state: &mut State, packet: &[u8], bound: Bound, wall: Duration) -> Result<(), Refused> {
        let (message, trailer) = packet.split_last_chunk().unwrap();
        state.check(&config(), bound, message, trailer, wall)
    }

    fn check(packet: &[u8], bound: Bound) -> Result<(), Refused> {
        check_at(&mut State::default(), packet, bound, WALL)
    }

    #[test]
    fn the_images_of_the_draft_are_made_and_accepted() {
        for (image, v6) in [(V4, false), (V6, true)] {
            let image = bytes(image);
            let (message, trailer) = image.split_last_chunk::<TRAILER_LEN>().unwrap();
            assert_eq!(sign(&key(), bound(v6), message, NUMBER), *trailer);
            assert_eq!(check(&image, bound(v6)), Ok(()));
        }
    }

    #[test]
    fn one_changed_byte_anywhere_is_refused_for_its_reason_and_the_checksum_alone_is_not_covered() {
        let image = bytes(V6);
        let at = image.len() - TRAILER_LEN;
        for n in 0..image.len() {
            let mut packet = image.clone();
            packet[n] ^= 1;
            let expected = match n {
                6 | 7 => Ok(()),
                _ if n == at || n == at + 2 || n == at + 3 => Err(Refused::Malformed),
                _ if n == at + 1 => Err(Refused::UnknownKey),
                // The seconds' last byte stays in the window.
                _ if (at + 4..at + 7).contains(&n) => Err(Refused::Stale),
                _ => Err(Refused::BadMac),
            };
            assert_eq!(check(&packet, bound(true)), expected, "byte {n}");
        }
        for other in [
            Bound { version: 2, ..bound(true) },
            Bound { vrid: 52, ..bound(true) },
            Bound { source: "fe80::20".parse().unwrap(), ..bound(true) },
        ] {
            assert_eq!(check(&image, other), Err(Refused::BadMac), "{other:?}");
        }
    }

    #[test]
    fn the_window_is_looked_at_before_the_digest_and_its_edges_belong_to_it() {
        let mut forged = bytes(V4);
        *forged.last_mut().unwrap() ^= 1;
        for (wall_s, expected) in
            [(-6, Refused::Stale), (-5, Refused::BadMac), (5, Refused::BadMac), (6, Refused::Stale)]
        {
            let wall = Duration::from_secs((0x6800_0000i64 + wall_s) as u64);
            assert_eq!(
                check_at(&mut State::default(), &forged, bound(false), wall),
                Err(expected),
                "{wall_s}"
            );
        }
    }

    #[test]
    fn what_came_before_is_refused_and_what_is_forged_moves_no_mark() {
        let (mut sender, mut receiver) = (State::default(), State::default());
        let message = bytes(V4)[..12].to_vec();
        let mut send =
            |wall| [message.clone(), sender.sign(&config(), bound(false), &message, wall)].concat();
        let (first, second) = (send(WALL), send(WALL));
        assert_ne!(first, second, "the clock stands still, the number does not");
        let mut forged = second.clone();
        forged[12 + 11] = 0xff;
        assert_eq!(check_at(&mut receiver, &forged, bound(false), WALL), Err(Refused::BadMac));
        assert_eq!(check_at(&mut receiver, &first, bound(false), WALL), Ok(()));
        assert_eq!(check_at(&mut receiver, &second, bound(false), WALL), Ok(()));
        for old in [&first, &second] {
            assert_eq!(check_at(&mut receiver, old, bound(false), WALL), Err(Refused::Replayed));
        }
        // Another receiver has heard nothing yet.
        assert_eq!(check(&second, bound(false)), Ok(()));
    }

    #[test]
    fn a_clock_that_is_set_back_silences_nobody() {
        let (mut sender, mut receiver) = (State::default(), State::default());
        let message = bytes(V4)[..12].to_vec();
        let ahead = WALL + Duration::from_secs(3600);
        for (wall, expected) in [(ahead, Ok(())), (WALL, Ok(())), (WALL, Ok(()))] {
            let trailer = sender.sign(&config(), bound(false), &message, wall);
            let packet = [message.clone(), trailer].concat();
            assert_eq!(check_at(&mut receiver, &packet, bound(false), wall), expected);
            assert_eq!(check_at(&mut receiver, &packet, bound(false), wall), Err(Refused::Replayed));
        }
    }

    #[test]
    fn a_receiver_that_only_receives_signs_nothing() {
        let config = Config { mode: Mode::ReceiveOnly, ..config() };
        assert_eq!(State::default().sign(&config, bound(false), &bytes(V4)[..12], WALL), Vec::<u8>::new());
        assert!(
            Key::new(0, &[0; 32]).is_none()
                && Key::new(1, &[0; 31]).is_none()
                && Key::new(1, &[0; 65]).is_none()
        );
        assert_eq!(format!("{:?}", key()), "Key(1)", "no secret in a log");
    }

    #[test]
    fn numbers_are_ordered_across_the_end_of_the_field() {
        assert!(after(1, u64::MAX) && !after(u64::MAX, 1) && !after(7, 7));
        let end = Duration::from_secs(u64::from(u32::MAX));
        assert!(
            is_fresh(3 << 32, end, Duration::from_secs(5)) && !is_fresh(5 << 32, end, Duration::from_secs(5))
        );
    }
}
