//! SCTP: states by direction, and tags that are proved with some chunks and learnt from others.

use crate::model::Direction::{self, Original, Reply};

/// A chunk's type (RFC 9260, 3.2).
mod kind {
    pub const DATA: u8 = 0;
    pub const INIT: u8 = 1;
    pub const INIT_ACK: u8 = 2;
    pub const HEARTBEAT: u8 = 4;
    pub const HEARTBEAT_ACK: u8 = 5;
    pub const ABORT: u8 = 6;
    pub const SHUTDOWN: u8 = 7;
    pub const SHUTDOWN_ACK: u8 = 8;
    pub const ERROR: u8 = 9;
    pub const COOKIE_ECHO: u8 = 10;
    pub const COOKIE_ACK: u8 = 11;
    pub const SHUTDOWN_COMPLETE: u8 = 14;
}

/// The state of an association's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the kernel's names")]
pub enum State {
    Closed,
    CookieWait,
    CookieEchoed,
    Established,
    ShutdownSent,
    ShutdownRecd,
    ShutdownAckSent,
    HeartbeatSent,
}

use State::*;

/// A chunk.
#[derive(Clone, Copy, Debug)]
struct Chunk {
    kind: u8,
    /// The T bit.
    mirrored: bool,
    /// Of INIT and INIT ACK: the tag that it asks for.
    initiate: u32,
}

/// A packet.
#[derive(Clone, Debug)]
pub struct Packet {
    tag: u32,
    chunks: Vec<Chunk>,
}

impl Packet {
    /// Reads what IP carries, as far as it can be read.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let (tag, mut at, mut chunks) = (word(4)?, 12, Vec::new());
        while let Some(head) = word(at) {
            let [kind, flags, ..] = head.to_be_bytes();
            let initiate = word(at + 4).unwrap_or(0);
            chunks.push(Chunk { kind, mirrored: flags & 1 != 0, initiate });
            match head & 0xffff {
                0 => return None,
                len => at += (len as usize).next_multiple_of(4),
            }
        }
        Some(Self { tag, chunks })
    }

    fn has(&self, kind: u8) -> bool {
        self.chunks.iter().any(|chunk| chunk.kind == kind)
    }

    /// Its tag.
    pub fn tag(&self) -> u32 {
        self.tag
    }

    /// Whether it has a chunk of a kind whose tag is not proved, or whose wrong tag may be a new one.
    pub fn has_lax_tag(&self) -> bool {
        [kind::SHUTDOWN_ACK, kind::HEARTBEAT, kind::HEARTBEAT_ACK].into_iter().any(|kind| self.has(kind))
    }

    /// Whether its chunks may be in one packet.
    fn is_sane(&self) -> bool {
        use kind::{COOKIE_ACK, COOKIE_ECHO, INIT, INIT_ACK, SHUTDOWN_COMPLETE};
        let first = self.chunks.first().map(|chunk| chunk.kind);
        let alone = matches!(first, Some(INIT | INIT_ACK | SHUTDOWN_COMPLETE));
        let behind = |chunk: &Chunk| {
            matches!(chunk.kind, COOKIE_ACK | COOKIE_ECHO | INIT | INIT_ACK | SHUTDOWN_COMPLETE)
        };
        first.is_some() && !(alone && self.chunks.len() > 1) && !self.chunks.iter().skip(1).any(behind)
    }
}

/// An association's entry. Pairs are by [`Direction`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its state.
    pub state: State,
    /// The tags that packets of a direction carry; 0 as long as it is not known.
    pub tags: [u32; 2],
    /// Who sent a heartbeat with a wrong tag that was not answered.
    heartbeat_failed: Option<Direction>,
    /// Who sent an INIT since the last COOKIE ACK.
    began: [bool; 2],
}

/// Judges a packet between two ends that may have an entry. Returns whether it goes on.
pub fn judge(entry: &mut Option<Entry>, from: Direction, packet: &Packet) -> bool {
    if !packet.is_sane() {
        return false;
    }
    match entry {
        Some(known) => known.judge(Some(known.state), from, packet),
        None => {
            let Some(mut begun) = Entry::begin(packet) else { return false };
            // No rule admits what begins outside.
            let goes = from == Original && begun.judge(None, from, packet);
            if goes {
                *entry = Some(begun);
            }
            goes
        }
    }
}

impl Entry {
    fn begin(packet: &Packet) -> Option<Self> {
        if [kind::ABORT, kind::SHUTDOWN_COMPLETE, kind::COOKIE_ACK].into_iter().any(|kind| packet.has(kind)) {
            return None;
        }
        let mut entry = Self { state: Closed, tags: [0; 2], heartbeat_failed: None, began: [false; 2] };
        for chunk in &packet.chunks {
            match chunk.kind {
                kind::INIT if packet.tag != 0 => return None,
                kind::INIT => {
                    entry.tags[Reply as usize] = chunk.initiate;
                    entry.began[Original as usize] = true;
                }
                kind::HEARTBEAT | kind::HEARTBEAT_ACK => entry.tags[Original as usize] = packet.tag,
                kind::INIT_ACK | kind::SHUTDOWN | kind::SHUTDOWN_ACK | kind::ERROR | kind::COOKIE_ECHO => {
                    entry.tags[Reply as usize] = packet.tag
                }
                _ => return None,
            }
        }
        Some(entry)
    }

    /// `state` is none of an entry that begins.
    fn judge(&mut self, mut state: Option<State>, from: Direction, packet: &Packet) -> bool {
        use kind::{
            ABORT, COOKIE_ACK, COOKIE_ECHO, DATA, HEARTBEAT, HEARTBEAT_ACK, INIT, INIT_ACK, SHUTDOWN_ACK,
            SHUTDOWN_COMPLETE,
        };
        const SPECIAL: [u8; 7] =
            [INIT, SHUTDOWN_COMPLETE, COOKIE_ECHO, ABORT, SHUTDOWN_ACK, HEARTBEAT, HEARTBEAT_ACK];
        let (own, other) = (from as usize, from.other() as usize);
        if !SPECIAL.iter().any(|kind| packet.has(*kind)) && packet.tag != self.tags[own] {
            return false;
        }
        let mut ignored = false;
        for chunk in &packet.chunks {
            let right = packet.tag == self.tags[own];
            match chunk.kind {
                INIT if packet.tag != 0 => return false,
                ABORT | SHUTDOWN_COMPLETE
                    if packet.tag != self.tags[if chunk.mirrored { other } else { own }] =>
                {
                    return false;
                }
                COOKIE_ECHO if !right => return false,
                HEARTBEAT | HEARTBEAT_ACK if self.tags[own] == 0 => self.tags[own] = packet.tag,
                HEARTBEAT | HEARTBEAT_ACK if right => self.heartbeat_failed = None,
                HEARTBEAT | HEARTBEAT_ACK if packet.has(DATA) || ignored => return false,
                HEARTBEAT => {
                    self.heartbeat_failed = Some(from);
                    ignored = true;
                    continue;
                }
                HEARTBEAT_ACK => {
                    if self.heartbeat_failed != Some(from.other()) {
                        return false;
                    }
                    self.heartbeat_failed = None;
                    self.tags[own] = packet.tag;
                    self.tags[other] = 0;
                }
                _ => {}
            }
            let Some(next) = step(state, from, chunk.kind) else { return false };
            match chunk.kind {
                // One that asks for what it has is an old one that comes again.
                INIT if self.tags[other] != chunk.initiate => {
                    self.began[other] &= !self.began[own];
                    self.began[own] = true;
                }
                // The tag that was agreed on stays, unless the other end has asked for an association; where both have,
                // they agree already.
                INIT_ACK
                    if self.tags[other] != chunk.initiate
                        && (self.began[other] && self.began[own]
                            || !self.began[other] && self.tags[other] != 0) =>
                {
                    return false;
                }
                COOKIE_ACK => self.began = [false; 2],
                _ => {}
            }
            if matches!(chunk.kind, INIT | INIT_ACK) {
                self.tags[other] = chunk.initiate;
            }
            self.state = next;
            state = Some(next);
        }
        true
    }
}

/// The state after a chunk; none if it is invalid.
fn step(state: Option<State>, from: Direction, chunk: u8) -> Option<State> {
    use kind::{
        ABORT, COOKIE_ACK, COOKIE_ECHO, ERROR, HEARTBEAT, HEARTBEAT_ACK, INIT, INIT_ACK, SHUTDOWN,
        SHUTDOWN_ACK, SHUTDOWN_COMPLETE,
    };
    let tracked = matches!(chunk, 1..=2 | 4..=11 | 14);
    let Some(state) = state else {
        return match (from, chunk) {
            (Original, SHUTDOWN_ACK) => Some(ShutdownAckSent),
            (Original, HEARTBEAT) => Some(HeartbeatSent),
            (Original, _) if tracked => Some(Closed),
            _ => None,
        };
    };
    Some(match (chunk, from, state) {
        _ if !tracked => state,
        (HEARTBEAT, Reply, HeartbeatSent) => HeartbeatSent,
        (HEARTBEAT_ACK, Reply, HeartbeatSent) => Established,
        (_, Reply, HeartbeatSent) => return None,
        (ABORT, ..) => Closed,
        (INIT, Original, HeartbeatSent) => CookieWait,
        (INIT, Original, ShutdownSent | ShutdownRecd) => Closed,
        (INIT_ACK, Reply, Closed) => CookieWait,
        (SHUTDOWN, Original, Established) => ShutdownSent,
        (SHUTDOWN, Reply, Established) => ShutdownRecd,
        (SHUTDOWN_ACK, _, ShutdownSent | ShutdownRecd | HeartbeatSent) => ShutdownAckSent,
        (ERROR, Reply, CookieEchoed) => Closed,
        (COOKIE_ECHO, Original, CookieWait) => CookieEchoed,
        (COOKIE_ACK, Reply, CookieEchoed) => Established,
        (SHUTDOWN_COMPLETE, _, ShutdownAckSent) => Closed,
        (HEARTBEAT | HEARTBEAT_ACK, Original, HeartbeatSent) => HeartbeatSent,
        (_, Original, HeartbeatSent) => Closed,
        _ => state,
    })
}
