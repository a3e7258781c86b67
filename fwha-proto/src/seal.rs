//! The sealed datagram: how two nodes of a cluster know each other and what keeps others out.
//!
//! Every datagram between nodes, heartbeat or replication, is sealed with ChaCha20-Poly1305
//! (RFC 8439) under keys derived from the cluster key with HKDF-SHA256 (RFC 5869).
//!
//! ```text
//!   0  magic "FW"      2  format = 1     3  kind: 1 hello, 2 data
//!   4  cluster (u32)   8  sender  9  receiver  10  purpose  11  zero
//!  12  key id (u32)   16  sender's boot epoch (u64)
//!  24  counter (u64)  32  ciphertext ...  tag (16)
//! ```
//! Numbers are little-endian. Bytes 0 to 32 are authenticated, not encrypted. The nonce is four
//! zero bytes and the counter. Cluster and key id are not secret; they let a node say what is wrong
//! ("another cluster", "another key") when it cannot open a datagram.
//!
//! **Handshake.** A boot epoch is a random number drawn when a daemon starts. A data key depends on
//! the epochs of both ends, so nothing that was recorded in an earlier life of either opens in
//! this one. To learn the peer's epoch, each end sends *hello* with a challenge, sealed under a key
//! of its own epoch alone; the other sends the challenge back. Only an answer to the challenge that
//! is outstanding now is believed, so a recorded hello of an earlier epoch changes nothing. The
//! session in force stays until the new epoch is proved.
//!
//! **A new cluster key.** While it is brought to the nodes, each accepts the one before, too
//! ([`KeyRing`]), and seals for a peer with the newest key that the peer has shown to hold: it begins
//! with the key of the handshake, offers the newest in a hello from time to time, and goes over to it
//! with the first authentic datagram that comes under it. Session, epochs and counters stay.
//!
//! ```text
//!  A                                   B
//!  |-- hello(challenge a, echo 0) ---->|
//!  |<-- hello(challenge b, echo a) ----|   A opens the channel
//!  |-- hello(challenge a', echo b) --->|   B opens the channel
//! ```

use std::fmt;

use chacha20poly1305::Key;
use hkdf::Hkdf;
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::NodeId;
use crate::cipher::{Cipher, TAG_LEN};

/// Bytes before the ciphertext.
pub const HEADER_LEN: usize = 32;
/// Bytes that sealing adds to a payload.
pub const OVERHEAD: usize = HEADER_LEN + TAG_LEN;

const MAGIC: [u8; 2] = *b"FW";
const FORMAT: u8 = 1;
const HELLO_LEN: usize = 24;
/// Datagrams this far behind the newest are refused as possible replays.
const REPLAY_WINDOW: u64 = 1024;

/// Lowest version of the payloads that this code understands.
pub const WIRE_VERSION_MIN: u8 = 1;
/// Highest version of the payloads that this code speaks.
pub const WIRE_VERSION_MAX: u8 = 1;

/// The secret that all nodes of a cluster share. Wiped when dropped, never printed.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct ClusterKey {
    bytes: [u8; 32],
    #[cfg(feature = "simulation")]
    simulated: bool,
}

impl ClusterKey {
    /// The key made of these bytes.
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self {
            bytes,
            #[cfg(feature = "simulation")]
            simulated: false,
        }
    }

    /// A key that encrypts nothing, and refuses what another key refuses: for a simulated cluster, and for nothing else.
    #[cfg(feature = "simulation")]
    pub const fn simulated(bytes: [u8; 32]) -> Self {
        Self { bytes, simulated: true }
    }

    /// A public name of this key: equal for equal keys, and tells nothing else about them.
    pub fn id(&self) -> u32 {
        let mut out = [0; 4];
        self.expand(&[b"key id"], &mut out);
        u32::from_le_bytes(out)
    }

    /// A SipHash key for `label`, as the data plane uses them for buckets and probes.
    pub fn siphash_key(&self, label: &str) -> [u64; 2] {
        let mut out = [0; 16];
        self.expand(&[b"siphash", label.as_bytes()], &mut out);
        let (low, high) = out.split_at(8);
        let word = |b: &[u8]| u64::from_le_bytes(b.try_into().expect("half of 16 bytes"));
        [word(low), word(high)]
    }

    fn cipher(&self, info: &[&[u8]]) -> Cipher {
        let mut key = Key::default();
        self.expand(info, &mut key);
        let cipher = Cipher::new(&key);
        #[cfg(feature = "simulation")]
        let cipher = if self.simulated { Cipher::tagging(&key) } else { cipher };
        key.zeroize();
        cipher
    }

    fn expand(&self, info: &[&[u8]], out: &mut [u8]) {
        Hkdf::<Sha256>::new(Some(b"fwha 1"), &self.bytes)
            .expand_multi_info(info, out)
            .expect("far less than 255 hashes of output");
    }
}

/// The secrets of a cluster: the key that datagrams are sealed with; while it is being replaced, the
/// one before; and the seed of keyed hashes, which outlives both: buckets and digests must be the same
/// on nodes that hold different keys for a while.
#[derive(Clone)]
pub struct KeyRing {
    /// Newest first; one or two.
    keys: Vec<ClusterKey>,
    seed: ClusterKey,
}

impl KeyRing {
    /// A ring of `key`, which replaces `previous`. Without `seed`, `key` is the seed.
    pub fn new(key: ClusterKey, previous: Option<ClusterKey>, seed: Option<ClusterKey>) -> Self {
        let seed = seed.unwrap_or_else(|| key.clone());
        Self { keys: [Some(key), previous].into_iter().flatten().collect(), seed }
    }

    /// [`ClusterKey::id`] of the newest key.
    pub fn id(&self) -> u32 {
        self.keys[0].id()
    }

    /// Whether an older key is accepted, too.
    pub fn is_rotating(&self) -> bool {
        self.keys.len() > 1
    }

    /// Whether hashes are the same with both rings.
    pub fn same_seed(&self, other: &Self) -> bool {
        self.seed.id() == other.seed.id()
    }

    /// A SipHash key for `label`, as the data plane uses them for buckets and probes.
    pub fn siphash_key(&self, label: &str) -> [u64; 2] {
        self.seed.siphash_key(label)
    }
}

impl From<ClusterKey> for KeyRing {
    fn from(key: ClusterKey) -> Self {
        Self::new(key, None, None)
    }
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.keys).finish()
    }
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterKey(id {:08x})", self.id())
    }
}

/// The number of a cluster on the wire, from its name.
pub fn cluster_id(name: &str) -> u32 {
    let hash = Sha256::new().chain_update(b"fwha cluster\0").chain_update(name).finalize();
    u32::from_le_bytes([hash[0], hash[1], hash[2], hash[3]])
}

/// What a channel carries. Each purpose has keys and counters of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Purpose {
    /// Election: small, frequent, never behind anything.
    Heartbeat = 1,
    /// Flow state.
    Replication = 2,
}

/// This node, as its peers know it.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// [`cluster_id`] of the cluster's name.
    pub cluster: u32,
    /// This node.
    pub node: NodeId,
    /// Random, never 0, drawn when the daemon started.
    pub epoch: u64,
}

/// Why a datagram was not opened. Each is counted by name; none changes any state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Not one of ours: too short, or another magic or format.
    #[error("not a datagram of this protocol")]
    Garbage,
    /// A peer of another cluster.
    #[error("from another cluster (id {theirs:08x})")]
    OtherCluster {
        /// The id that it carries.
        theirs: u32,
    },
    /// A peer with another cluster key.
    #[error("sealed with another cluster key (id {theirs:08x})")]
    OtherKey {
        /// The key id that it carries.
        theirs: u32,
    },
    /// Sender, receiver or purpose is not that of this channel.
    #[error("not for this node and channel")]
    Misdirected,
    /// Data of an epoch that has not proved itself (yet, or any more).
    #[error("of an unproved epoch")]
    UnknownEpoch,
    /// The tag is wrong: altered, forged, or sealed for an earlier life of this node.
    #[error("does not verify")]
    Forged,
    /// Seen before, or too old to tell.
    #[error("replayed")]
    Replayed,
    /// A hello from a node whose payload versions do not overlap ours.
    #[error("speaks versions {min} to {max}")]
    Version {
        /// Its lowest.
        min: u8,
        /// Its highest.
        max: u8,
    },
}

impl OpenError {
    /// The name under which it is counted.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Garbage => "garbage",
            Self::OtherCluster { .. } => "other_cluster",
            Self::OtherKey { .. } => "other_key",
            Self::Misdirected => "misdirected",
            Self::UnknownEpoch => "unknown_epoch",
            Self::Forged => "forged",
            Self::Replayed => "replayed",
            Self::Version { .. } => "version",
        }
    }
}

/// The clear part of a datagram, not yet authenticated: good for finding the channel, no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Cluster id.
    pub cluster: u32,
    /// Node that says it sent this.
    pub sender: NodeId,
    /// Node that it is for.
    pub receiver: NodeId,
    /// [`Purpose`] as a number.
    pub purpose: u8,
    /// Id of the key.
    pub key_id: u32,
    /// Boot epoch of the sender.
    pub epoch: u64,
    kind: u8,
    counter: u64,
}

impl Header {
    /// Reads the clear part.
    ///
    /// # Errors
    /// [`OpenError::Garbage`].
    pub fn parse(datagram: &[u8]) -> Result<Self, OpenError> {
        let Some(h) = datagram.first_chunk::<HEADER_LEN>() else {
            return Err(OpenError::Garbage);
        };
        if datagram.len() < OVERHEAD || h[..2] != MAGIC || h[2] != FORMAT || h[11] != 0 {
            return Err(OpenError::Garbage);
        }
        let u32_at = |i: usize| u32::from_le_bytes([h[i], h[i + 1], h[i + 2], h[i + 3]]);
        let u64_at = |i: usize| u64::from(u32_at(i)) | u64::from(u32_at(i + 4)) << 32;
        Ok(Self {
            kind: h[3],
            cluster: u32_at(4),
            sender: h[8],
            receiver: h[9],
            purpose: h[10],
            key_id: u32_at(12),
            epoch: u64_at(16),
            counter: u64_at(24),
        })
    }

    fn write(&self) -> [u8; HEADER_LEN] {
        let mut h = [0; HEADER_LEN];
        h[..2].copy_from_slice(&MAGIC);
        h[2] = FORMAT;
        h[3] = self.kind;
        h[4..8].copy_from_slice(&self.cluster.to_le_bytes());
        h[8] = self.sender;
        h[9] = self.receiver;
        h[10] = self.purpose;
        h[12..16].copy_from_slice(&self.key_id.to_le_bytes());
        h[16..24].copy_from_slice(&self.epoch.to_le_bytes());
        h[24..].copy_from_slice(&self.counter.to_le_bytes());
        h
    }
}

const KIND_HELLO: u8 = 1;
const KIND_DATA: u8 = 2;

/// What an authentic datagram was.
#[derive(Debug, PartialEq, Eq)]
pub enum Opened<'a> {
    /// A payload of the session.
    Data(&'a [u8]),
    /// Part of a handshake.
    Hello {
        /// The peer waits for an answer: send [`Channel::hello`] now.
        reply: bool,
        /// The channel opened with this, to an epoch of the peer that is new to it. Whatever was
        /// known of the peer's session is void.
        new_session: bool,
    },
}

/// One end of a sealed channel to one peer for one purpose.
///
/// Send [`Self::hello`] at intervals while [`Self::is_open`] is false, and whenever
/// [`Opened::Hello`] asks for it; then [`Self::seal`] and [`Self::open`].
pub struct Channel {
    /// Newest first.
    keys: Vec<Held>,
    /// The key of the next hello, by its place in `keys`.
    hello_with: usize,
    me: Identity,
    peer: NodeId,
    purpose: Purpose,
    /// Counts all datagrams sent; never reused under any key.
    counter: u64,
    /// Number of the challenge that is outstanding.
    challenges: u64,
    challenge: u64,
    /// The challenge of the peer's last hello, to be sent back.
    echo: u64,
    /// The last hello came from an epoch that is not (yet) proved.
    stranger: bool,
    session: Option<Session>,
}

/// A cluster key and what of it does not change with the session.
struct Held {
    id: u32,
    key: ClusterKey,
    hello: Cipher,
}

struct Session {
    peer_epoch: u64,
    version: u8,
    /// For each key that is held: for sending, for receiving.
    ciphers: Vec<[Cipher; 2]>,
    /// The newest key that the peer has shown to hold.
    key: usize,
    window: ReplayWindow,
}

impl Channel {
    /// A closed channel from `me` to `peer`.
    pub fn new(keys: impl Into<KeyRing>, purpose: Purpose, me: Identity, peer: NodeId) -> Self {
        let mut channel = Self {
            keys: held(&keys.into(), purpose, me, peer),
            hello_with: 0,
            me,
            peer,
            purpose,
            counter: 0,
            challenges: 0,
            challenge: 0,
            echo: 0,
            stranger: false,
            session: None,
        };
        channel.new_challenge();
        channel
    }

    /// Holds these keys from now on. A session goes on under the key that it uses if that is among
    /// them.
    pub fn set_keys(&mut self, keys: &KeyRing) {
        let used = self.session.as_ref().map(|s| self.keys[s.key].id);
        self.keys = held(keys, self.purpose, self.me, self.peer);
        self.hello_with = 0;
        if let Some(mut session) = self.session.take() {
            session.ciphers = self.ciphers(session.peer_epoch);
            session.key = self.keys.iter().position(|k| Some(k.id) == used).unwrap_or(0);
            self.session = Some(session);
        }
    }

    /// Whether the peer has not shown the newest key yet: send [`Self::hello`] from time to time.
    pub fn is_renewing(&self) -> bool {
        self.session.as_ref().is_some_and(|s| s.key > 0)
    }

    /// [`ClusterKey::id`] of the key that payloads are sealed with, once open.
    pub fn key_id(&self) -> Option<u32> {
        self.session.as_ref().map(|s| self.keys[s.key].id)
    }

    /// The peer.
    pub const fn peer(&self) -> NodeId {
        self.peer
    }

    /// Whether payloads can be sealed.
    pub const fn is_open(&self) -> bool {
        self.session.is_some()
    }

    /// The peer's boot epoch, once proved.
    pub fn peer_epoch(&self) -> Option<u64> {
        self.session.as_ref().map(|s| s.peer_epoch)
    }

    /// The payload version that both ends speak, once open.
    pub fn wire_version(&self) -> Option<u8> {
        self.session.as_ref().map(|s| s.version)
    }

    /// A hello datagram to send now.
    pub fn hello(&mut self) -> Vec<u8> {
        let mut plain = [0; HELLO_LEN];
        plain[..8].copy_from_slice(&self.challenge.to_le_bytes());
        plain[8..16].copy_from_slice(&self.echo.to_le_bytes());
        plain[16] = u8::from(self.session.is_none() || self.stranger);
        plain[17] = WIRE_VERSION_MIN;
        plain[18] = WIRE_VERSION_MAX;
        self.counter += 1;
        // An answer goes under the key of the question; else they take turns, for the peer may know
        // but one of them.
        let with = self.hello_with;
        self.hello_with = if self.is_open() { 0 } else { (with + 1) % self.keys.len() };
        let header = self.header(KIND_HELLO, with);
        encrypt(&self.keys[with].hello, &header, &plain)
    }

    /// Seals `payload` for the peer, or says `None` while the channel is closed.
    pub fn seal(&mut self, payload: &[u8]) -> Option<Vec<u8>> {
        let key = self.session.as_ref()?.key;
        self.counter += 1;
        let header = self.header(KIND_DATA, key);
        let [tx, _] = &self.session.as_ref()?.ciphers[key];
        Some(encrypt(tx, &header, payload))
    }

    /// Opens a datagram in place.
    ///
    /// # Errors
    /// See [`OpenError`]; nothing has changed then.
    pub fn open<'a>(&mut self, datagram: &'a mut [u8]) -> Result<Opened<'a>, OpenError> {
        let header = Header::parse(datagram)?;
        if header.cluster != self.me.cluster {
            return Err(OpenError::OtherCluster { theirs: header.cluster });
        }
        let Some(key) = self.keys.iter().position(|k| k.id == header.key_id) else {
            return Err(OpenError::OtherKey { theirs: header.key_id });
        };
        if (header.sender, header.receiver, header.purpose) != (self.peer, self.me.node, self.purpose as u8) {
            return Err(OpenError::Misdirected);
        }
        match header.kind {
            KIND_HELLO => self.open_hello(&header, key, datagram),
            KIND_DATA => self.open_data(&header, key, datagram),
            _ => Err(OpenError::Garbage),
        }
    }

    fn open_data<'a>(
        &mut self,
        header: &Header,
        key: usize,
        datagram: &'a mut [u8],
    ) -> Result<Opened<'a>, OpenError> {
        let session = self.session.as_mut().ok_or(OpenError::UnknownEpoch)?;
        if header.epoch != session.peer_epoch {
            return Err(OpenError::UnknownEpoch);
        }
        // Cheap before dear: a flood of replays must not cost a decryption each.
        if !session.window.is_fresh(header.counter) {
            return Err(OpenError::Replayed);
        }
        let [_, rx] = &session.ciphers[key];
        let payload = decrypt(rx, header.counter, datagram)?;
        session.window.mark(header.counter);
        session.key = session.key.min(key);
        Ok(Opened::Data(payload))
    }

    fn open_hello(
        &mut self,
        header: &Header,
        with: usize,
        datagram: &mut [u8],
    ) -> Result<Opened<'static>, OpenError> {
        let key = self.keys[with].key.cipher(&[
            b"hello",
            &header.cluster.to_le_bytes(),
            &[header.purpose, header.sender, header.receiver],
            &header.epoch.to_le_bytes(),
        ]);
        let plain = decrypt(&key, header.counter, datagram)?;
        let Some(plain) = plain.first_chunk::<HELLO_LEN>() else {
            return Err(OpenError::Garbage);
        };
        let u64_at = |i: usize| u64::from_le_bytes(plain[i..i + 8].try_into().expect("8 bytes"));
        let (challenge, echo) = (u64_at(0), u64_at(8));
        let (wants_reply, min, max) = (plain[16] != 0, plain[17], plain[18]);
        if header.epoch == 0 || min > WIRE_VERSION_MAX || max < WIRE_VERSION_MIN {
            return Err(OpenError::Version { min, max });
        }
        self.echo = challenge;
        let mut new_session = false;
        if echo == self.challenge {
            self.new_challenge();
            if self.peer_epoch() != Some(header.epoch) {
                self.session = Some(Session {
                    peer_epoch: header.epoch,
                    version: max.min(WIRE_VERSION_MAX),
                    ciphers: self.ciphers(header.epoch),
                    key: with,
                    window: ReplayWindow::default(),
                });
                new_session = true;
            }
        }
        if let Some(session) = self.session.as_mut().filter(|s| s.peer_epoch == header.epoch) {
            session.key = session.key.min(with);
        }
        self.hello_with = with;
        // The peer needs our echo if it says so; we need its echo if it is a stranger.
        self.stranger = self.peer_epoch() != Some(header.epoch);
        Ok(Opened::Hello { reply: wants_reply || self.stranger, new_session })
    }

    fn ciphers(&self, peer_epoch: u64) -> Vec<[Cipher; 2]> {
        let direction = |key: &ClusterKey, from: NodeId, from_epoch: u64, to: NodeId, to_epoch: u64| {
            key.cipher(&[
                b"data",
                &self.me.cluster.to_le_bytes(),
                &[self.purpose as u8, from, to],
                &from_epoch.to_le_bytes(),
                &to_epoch.to_le_bytes(),
            ])
        };
        let (me, peer) = (self.me.node, self.peer);
        let of = |held: &Held| {
            let (there, back) =
                ((me, self.me.epoch, peer, peer_epoch), (peer, peer_epoch, me, self.me.epoch));
            [there, back].map(|(a, b, c, d)| direction(&held.key, a, b, c, d))
        };
        self.keys.iter().map(of).collect()
    }

    fn header(&self, kind: u8, key: usize) -> Header {
        Header {
            kind,
            cluster: self.me.cluster,
            sender: self.me.node,
            receiver: self.peer,
            purpose: self.purpose as u8,
            key_id: self.keys[key].id,
            epoch: self.me.epoch,
            counter: self.counter,
        }
    }

    /// Draws the next challenge: not to be foreseen without the cluster key, never 0, and never
    /// the same twice in the life of an epoch.
    fn new_challenge(&mut self) {
        loop {
            self.challenges += 1;
            let mut out = [0; 8];
            self.keys[0].key.expand(
                &[
                    b"challenge",
                    &[self.purpose as u8, self.me.node, self.peer],
                    &self.me.epoch.to_le_bytes(),
                    &self.challenges.to_le_bytes(),
                ],
                &mut out,
            );
            self.challenge = u64::from_le_bytes(out);
            if self.challenge != 0 {
                return;
            }
        }
    }
}

fn held(ring: &KeyRing, purpose: Purpose, me: Identity, peer: NodeId) -> Vec<Held> {
    let hello = |key: &ClusterKey| {
        key.cipher(&[
            b"hello",
            &me.cluster.to_le_bytes(),
            &[purpose as u8, me.node, peer],
            &me.epoch.to_le_bytes(),
        ])
    };
    ring.keys.iter().map(|key| Held { id: key.id(), hello: hello(key), key: key.clone() }).collect()
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel")
            .field("peer", &self.peer)
            .field("purpose", &self.purpose)
            .field("peer_epoch", &self.peer_epoch())
            .finish_non_exhaustive()
    }
}

fn encrypt(cipher: &Cipher, header: &Header, payload: &[u8]) -> Vec<u8> {
    let header_bytes = header.write();
    let mut datagram = Vec::with_capacity(OVERHEAD + payload.len());
    datagram.extend_from_slice(&header_bytes);
    datagram.extend_from_slice(payload);
    let tag = cipher.seal(header.counter, &header_bytes, &mut datagram[HEADER_LEN..]);
    datagram.extend_from_slice(&tag);
    datagram
}

fn decrypt<'a>(cipher: &Cipher, counter: u64, datagram: &'a mut [u8]) -> Result<&'a [u8], OpenError> {
    let (header, rest) = datagram.split_at_mut(HEADER_LEN);
    let (body, tag) = rest.split_last_chunk_mut::<TAG_LEN>().ok_or(OpenError::Garbage)?;
    if !cipher.open(counter, header, body, *tag) {
        return Err(OpenError::Forged);
    }
    Ok(body)
}

/// Which of the last [`REPLAY_WINDOW`] counters were seen (RFC 6479's ring of words).
#[derive(Default)]
struct ReplayWindow {
    highest: u64,
    seen: [u64; Self::WORDS],
}

impl ReplayWindow {
    /// One word more than the window, so that the word being refilled is outside of it.
    const WORDS: usize = REPLAY_WINDOW as usize / 64 + 1;

    const fn slot(counter: u64) -> (usize, u64) {
        ((counter / 64) as usize % Self::WORDS, 1 << (counter % 64))
    }

    fn is_fresh(&self, counter: u64) -> bool {
        if counter > self.highest {
            return true;
        }
        let (word, bit) = Self::slot(counter);
        self.highest - counter < REPLAY_WINDOW && self.seen[word] & bit == 0
    }

    fn mark(&mut self, counter: u64) {
        if counter > self.highest {
            let words = (counter / 64 - self.highest / 64).min(Self::WORDS as u64);
            for i in 1..=words {
                self.seen[((self.highest / 64 + i) as usize) % Self::WORDS] = 0;
            }
            self.highest = counter;
        }
        let (word, bit) = Self::slot(counter);
        self.seen[word] |= bit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 32] = [7; 32];

    fn end(key: [u8; 32], node: NodeId, peer: NodeId, epoch: u64) -> Channel {
        let me = Identity { cluster: cluster_id("edge"), node, epoch };
        Channel::new(ClusterKey::new(key), Purpose::Heartbeat, me, peer)
    }

    fn pair() -> (Channel, Channel) {
        (end(KEY, 1, 2, 0x1111), end(KEY, 2, 1, 0x2222))
    }

    /// Carries hellos between the ends until neither has more to say.
    fn shake(a: &mut Channel, b: &mut Channel) -> (bool, bool) {
        let (mut new_a, mut new_b) = (false, false);
        let mut to_b = vec![a.hello()];
        let mut to_a = vec![];
        for _ in 0..8 {
            for mut d in to_b.drain(..) {
                if let Opened::Hello { reply, new_session } = b.open(&mut d).unwrap() {
                    new_b |= new_session;
                    to_a.extend(reply.then(|| b.hello()));
                }
            }
            for mut d in to_a.drain(..) {
                if let Opened::Hello { reply, new_session } = a.open(&mut d).unwrap() {
                    new_a |= new_session;
                    to_b.extend(reply.then(|| a.hello()));
                }
            }
        }
        assert!(to_a.is_empty() && to_b.is_empty(), "the handshake must come to an end");
        (new_a, new_b)
    }

    #[test]
    fn one_hello_opens_both_ends_and_payloads_arrive() {
        let (mut a, mut b) = pair();
        assert_eq!(a.seal(b"early"), None);
        assert_eq!(shake(&mut a, &mut b), (true, true));
        let mut d = a.seal(b"payload").unwrap();
        assert_eq!(b.open(&mut d), Ok(Opened::Data(b"payload")));
        let mut d = b.seal(b"").unwrap();
        assert_eq!(a.open(&mut d), Ok(Opened::Data(b"")));
        assert_eq!(shake(&mut b, &mut a), (false, false), "the session goes on");
    }

    #[test]
    fn a_restarted_peer_gets_a_new_session_and_its_old_datagrams_are_void() {
        let (mut a, mut b) = pair();
        shake(&mut a, &mut b);
        let mut old = b.seal(b"old").unwrap();
        let mut b = end(KEY, 2, 1, 0x3333);
        assert_eq!(shake(&mut b, &mut a), (true, true));
        assert_eq!(a.peer_epoch(), Some(0x3333));
        assert_eq!(a.open(&mut old), Err(OpenError::UnknownEpoch));
    }

    #[test]
    fn a_recorded_hello_of_an_earlier_life_moves_nothing() {
        let (mut a, mut b) = pair();
        // Record everything that the first life of B says while it opens the channel.
        let mut d = a.hello();
        b.open(&mut d).unwrap();
        let recorded = b.hello();
        a.open(&mut recorded.clone()).unwrap();
        assert_eq!(a.peer_epoch(), Some(0x2222));
        let mut b = end(KEY, 2, 1, 0x3333);
        shake(&mut b, &mut a);
        assert_eq!(a.peer_epoch(), Some(0x3333));
        assert_eq!(a.open(&mut recorded.clone()), Ok(Opened::Hello { reply: true, new_session: false }));
        assert_eq!(a.peer_epoch(), Some(0x3333));
        let mut d = b.seal(b"still").unwrap();
        assert_eq!(a.open(&mut d), Ok(Opened::Data(b"still")));
    }

    #[test]
    fn a_new_key_is_taken_by_one_node_after_the_other_within_the_session() {
        let (old, new) = (ClusterKey::new(KEY), ClusterKey::new([8; 32]));
        let both = KeyRing::new(new.clone(), Some(old.clone()), Some(old.clone()));
        let (mut a, mut b) = pair();
        shake(&mut a, &mut b);
        let talk = |a: &mut Channel, b: &mut Channel| {
            let mut d = a.seal(b"there").unwrap();
            assert_eq!(b.open(&mut d), Ok(Opened::Data(b"there")));
            let mut d = b.seal(b"back").unwrap();
            assert_eq!(a.open(&mut d), Ok(Opened::Data(b"back")));
        };
        a.set_keys(&both);
        assert!(a.is_renewing());
        assert_eq!(b.open(&mut a.hello()), Err(OpenError::OtherKey { theirs: new.id() }), "offers it");
        talk(&mut a, &mut b);
        assert_eq!((a.key_id(), b.key_id()), (Some(old.id()), Some(old.id())), "but does not depend on it");
        b.set_keys(&both);
        assert_eq!(shake(&mut a, &mut b), (false, false), "the session goes on");
        talk(&mut a, &mut b);
        assert_eq!((a.key_id(), b.key_id()), (Some(new.id()), Some(new.id())));
        assert!(!a.is_renewing() && !b.is_renewing());
        a.set_keys(&KeyRing::new(new, None, Some(old.clone())));
        talk(&mut a, &mut b);

        // One that starts with both meets one that has but the old one.
        let me = Identity { cluster: cluster_id("edge"), node: 1, epoch: 0x4444 };
        let mut a = Channel::new(both, Purpose::Heartbeat, me, 2);
        let mut b = end(KEY, 2, 1, 0x5555);
        assert!(b.open(&mut a.hello()).is_err());
        assert_eq!(shake(&mut a, &mut b), (true, true));
        talk(&mut a, &mut b);
    }

    /// A hello of a node that speaks these versions.
    fn hello_of_versions(from: &mut Channel, min: u8, max: u8) -> Vec<u8> {
        let mut plain = [0; HELLO_LEN];
        plain[..8].copy_from_slice(&from.challenge.to_le_bytes());
        plain[8..16].copy_from_slice(&from.echo.to_le_bytes());
        (plain[16], plain[17], plain[18]) = (1, min, max);
        from.counter += 1;
        encrypt(&from.keys[0].hello, &from.header(KIND_HELLO, 0), &plain)
    }

    #[test]
    fn nodes_speak_the_highest_version_that_both_know() {
        let newer = WIRE_VERSION_MAX + 1;
        for (min, max, expected) in [
            (WIRE_VERSION_MAX, newer, Ok(WIRE_VERSION_MAX)),
            (WIRE_VERSION_MIN, WIRE_VERSION_MIN, Ok(WIRE_VERSION_MIN)),
            (newer, newer, Err(OpenError::Version { min: newer, max: newer })),
            (0, WIRE_VERSION_MIN - 1, Err(OpenError::Version { min: 0, max: WIRE_VERSION_MIN - 1 })),
        ] {
            let (mut a, mut b) = pair();
            // B hears A's challenge, and answers as a node of another release would.
            b.open(&mut a.hello()).unwrap();
            let opened = a.open(&mut hello_of_versions(&mut b, min, max)).map(|_| a.wire_version().unwrap());
            assert_eq!(opened, expected, "{min} to {max}");
        }
    }

    #[test]
    fn replays_are_refused_reordering_is_not() {
        let (mut a, mut b) = pair();
        shake(&mut a, &mut b);
        let sent: Vec<_> = (0..2000u32).map(|i| a.seal(&i.to_le_bytes()).unwrap()).collect();
        for d in sent[1..1500].iter().rev().step_by(2).take(400) {
            assert!(b.open(&mut d.clone()).is_ok());
            assert_eq!(b.open(&mut d.clone()), Err(OpenError::Replayed));
        }
        assert!(b.open(&mut sent[1999].clone()).is_ok());
        assert_eq!(b.open(&mut sent[900].clone()), Err(OpenError::Replayed), "too old to tell");
        assert!(b.open(&mut sent[1998].clone()).is_ok());
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        let (mut a, mut b) = pair();
        shake(&mut a, &mut b);
        let sealed = a.seal(b"payload").unwrap();
        for byte in 0..sealed.len() {
            for bit in 0..8 {
                let mut d = sealed.clone();
                d[byte] ^= 1 << bit;
                assert!(b.open(&mut d).is_err(), "byte {byte} bit {bit}");
            }
        }
        for len in 0..sealed.len() {
            assert!(b.open(&mut sealed[..len].to_vec()).is_err());
        }
        assert!(b.open(&mut sealed.clone()).is_ok(), "and the true one still opens");
    }

    #[test]
    fn strangers_are_named() {
        let (mut a, mut b) = pair();
        shake(&mut a, &mut b);
        let mut other_key = end([8; 32], 1, 2, 5);
        let theirs = ClusterKey::new([8; 32]).id();
        assert_eq!(b.open(&mut other_key.hello()), Err(OpenError::OtherKey { theirs }));
        let me = Identity { cluster: cluster_id("other"), node: 1, epoch: 5 };
        let mut other = Channel::new(ClusterKey::new(KEY), Purpose::Heartbeat, me, 2);
        let theirs = cluster_id("other");
        assert_eq!(b.open(&mut other.hello()), Err(OpenError::OtherCluster { theirs }));
        let mut third = end(KEY, 3, 2, 5);
        assert_eq!(b.open(&mut third.hello()), Err(OpenError::Misdirected));
        let me = Identity { cluster: cluster_id("edge"), node: 1, epoch: 5 };
        let mut repl = Channel::new(ClusterKey::new(KEY), Purpose::Replication, me, 2);
        assert_eq!(b.open(&mut repl.hello()), Err(OpenError::Misdirected));
        assert_eq!(b.open(&mut b"GET / HTTP/1.1\r\n".repeat(9)), Err(OpenError::Garbage));
    }

    #[test]
    fn the_key_is_never_printed() {
        let text = format!("{:?}", ClusterKey::new([0xab; 32]));
        assert!(!text.to_lowercase().contains("abab"), "{text}");
    }

    #[test]
    fn a_hello_has_these_bytes() {
        // Pins the format: magic, cluster, ids, key id, epoch, counter, and the cipher itself.
        let golden = end(KEY, 1, 2, 0x1111).hello();
        let hex: String = golden.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, include_str!("../golden/hello.hex").trim());
    }
}
