//! SCTP (RFC 9260): states and verification tags, as `net/netfilter/nf_conntrack_proto_sctp.c` sees them.

use super::flow::{Direction, State};
use super::packet::Read;
use super::verdict::Reason;

/// A kind of chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Opens; with the tag that the other side must use.
    Init(u32),
    /// Answers an INIT; with the tag that the other side must use.
    InitAck(u32),
    /// Ends at once.
    Abort,
    /// Begins the end.
    Shutdown,
    /// Answers a SHUTDOWN.
    ShutdownAck,
    /// Tells an error.
    Error,
    /// Brings the cookie back.
    CookieEcho,
    /// Takes the cookie.
    CookieAck,
    /// The end.
    ShutdownComplete,
    /// Data, heartbeats and all that changes no state.
    Other,
}

/// A chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// What it is.
    pub kind: Kind,
    /// The T bit: the tag is the receiver's own, mirrored (RFC 9260, 8.5.1).
    pub mirrored: bool,
}

/// The packet behind its ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunks {
    /// Its verification tag.
    pub tag: u32,
    /// Its chunks.
    pub chunks: Vec<Chunk>,
}

impl Chunks {
    /// Reads a packet. In a first fragment the last chunk may go on in the next.
    pub fn parse(bytes: &[u8], first_fragment: bool) -> Result<Self, Reason> {
        bytes.get(..12).ok_or(Reason::Truncated)?;
        let tag = bytes.u32(4).expect("twelve bytes");
        let mut chunks: Vec<Chunk> = Vec::new();
        let mut at = 12;
        while let (Some(kind), Some(flags), Some(length)) =
            (bytes.u8(at), bytes.u8(at + 1), bytes.u16(at + 2))
        {
            // INIT, INIT ACK and SHUTDOWN COMPLETE are alone, COOKIE ECHO and COOKIE ACK first (RFC 9260, 6.10).
            let behind_one_that_is_alone = chunks.first().is_some_and(|chunk| {
                matches!(chunk.kind, Kind::Init(_) | Kind::InitAck(_) | Kind::ShutdownComplete)
            });
            if behind_one_that_is_alone || !chunks.is_empty() && [1, 2, 10, 11, 14].contains(&kind) {
                return Err(Reason::SctpState);
            }
            let whole = first_fragment || bytes.get(at..at + usize::from(length)).is_some();
            if length < 4 || !whole {
                return Err(Reason::Malformed);
            }
            let init = || {
                let whole = first_fragment || bytes.get(at + 4..at + 20).is_some();
                bytes.u32(at + 4).filter(|_| whole).ok_or(Reason::Malformed)
            };
            let kind = match kind {
                1 => Kind::Init(init()?),
                2 => Kind::InitAck(init()?),
                6 => Kind::Abort,
                7 => Kind::Shutdown,
                8 => Kind::ShutdownAck,
                9 => Kind::Error,
                10 => Kind::CookieEcho,
                11 => Kind::CookieAck,
                14 => Kind::ShutdownComplete,
                _ => Kind::Other,
            };
            chunks.push(Chunk { kind, mirrored: flags & 1 != 0 });
            at += usize::from(length).next_multiple_of(4);
        }
        if chunks.is_empty() {
            return Err(Reason::SctpState);
        }
        Ok(Self { tag, chunks })
    }
}

/// An association. Pairs are by [`Direction`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Association {
    /// Its state.
    pub state: State,
    /// The tag that packets of a direction carry, once it is known.
    pub tags: [Option<u32>; 2],
    /// Which side's INIT was the last, if no cookie was acknowledged since.
    pub initiated: [bool; 2],
}

impl Association {
    /// The association that an INIT begins.
    pub fn begin(packet: &Chunks) -> Result<Self, Reason> {
        let [Chunk { kind: Kind::Init(tag), .. }] = packet.chunks[..] else {
            return Err(Reason::SctpState);
        };
        if packet.tag != 0 {
            return Err(Reason::SctpTag);
        }
        Ok(Self { state: State::CookieWait, tags: [None, Some(tag)], initiated: [true, false] })
    }

    /// The association after a packet.
    pub fn judge(&self, direction: Direction, packet: &Chunks) -> Result<Self, Reason> {
        let mut next = self.clone();
        let own_tag = |tags: [Option<u32>; 2], direction| tags[direction as usize] == Some(packet.tag);
        let special = |chunk: &Chunk| {
            use Kind::*;
            matches!(chunk.kind, Init(_) | ShutdownComplete | CookieEcho | Abort | ShutdownAck)
        };
        if !packet.chunks.iter().any(special) && !own_tag(self.tags, direction) {
            return Err(Reason::SctpTag);
        }
        for chunk in &packet.chunks {
            let (mine, theirs) = (direction as usize, direction.other() as usize);
            let tag_fits = match chunk.kind {
                Kind::Init(_) => packet.tag == 0,
                Kind::Abort | Kind::ShutdownComplete if chunk.mirrored => {
                    own_tag(next.tags, direction.other())
                }
                Kind::Abort | Kind::ShutdownComplete | Kind::CookieEcho => own_tag(next.tags, direction),
                _ => true,
            };
            if !tag_fits {
                return Err(Reason::SctpTag);
            }
            match chunk.kind {
                Kind::Init(tag) => {
                    if next.initiated == [true, true] {
                        next.initiated[theirs] = false;
                    }
                    next.initiated[mine] = true;
                    next.tags[theirs] = Some(tag);
                }
                Kind::InitAck(tag) => {
                    let known = next.tags[theirs];
                    let contradicts = known != Some(tag);
                    if !next.initiated[theirs] && known.is_some() && contradicts {
                        return Err(Reason::SctpTag);
                    }
                    if next.initiated == [true, true] && contradicts {
                        return Err(Reason::SctpTag);
                    }
                    next.tags[theirs] = Some(tag);
                }
                Kind::CookieAck => next.initiated = [false, false],
                _ => {}
            }
            next.state = step(next.state, direction, chunk.kind);
        }
        Ok(next)
    }
}

/// The table of states: what is not in it changes nothing.
fn step(state: State, direction: Direction, kind: Kind) -> State {
    use Direction::{Original, Reply};
    use State::*;
    match (kind, direction, state) {
        (Kind::Abort, ..) => Close,
        (Kind::Init(_), Original, ShutdownSent | ShutdownRecd) => Close,
        (Kind::InitAck(_), Reply, Close) => CookieWait,
        (Kind::CookieEcho, _, CookieWait) => CookieEchoed,
        (Kind::CookieAck, _, CookieEchoed) => Established,
        (Kind::Error, Reply, CookieEchoed) => Close,
        (Kind::Shutdown, Original, Established) => ShutdownSent,
        (Kind::Shutdown, Reply, Established) => ShutdownRecd,
        (Kind::ShutdownAck, _, ShutdownSent | ShutdownRecd) => ShutdownAckSent,
        (Kind::ShutdownComplete, _, ShutdownAckSent) => Close,
        _ => state,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Direction::{Original, Reply};

    fn packet(tag: u32, kinds: &[Kind]) -> Chunks {
        let chunks = kinds.iter().map(|&kind| Chunk { kind, mirrored: false }).collect();
        Chunks { tag, chunks }
    }

    fn established() -> Association {
        let mut association = Association::begin(&packet(0, &[Kind::Init(11)])).unwrap();
        for (direction, tag, kind, state) in [
            (Reply, 11, Kind::InitAck(22), State::CookieWait),
            (Original, 22, Kind::CookieEcho, State::CookieEchoed),
            (Reply, 11, Kind::CookieAck, State::Established),
        ] {
            association = association.judge(direction, &packet(tag, &[kind])).unwrap();
            assert_eq!(association.state, state, "after {kind:?}");
        }
        association
    }

    #[test]
    fn an_association_opens_and_shuts_down() {
        let mut association = established();
        for (direction, tag, kind, state) in [
            (Original, 22, Kind::Other, State::Established),
            (Original, 22, Kind::Shutdown, State::ShutdownSent),
            (Reply, 11, Kind::ShutdownAck, State::ShutdownAckSent),
            (Original, 22, Kind::ShutdownComplete, State::Close),
        ] {
            association = association.judge(direction, &packet(tag, &[kind])).unwrap();
            assert_eq!(association.state, state, "after {kind:?}");
        }
    }

    #[test]
    fn tags_are_checked() {
        let association = established();
        let judge = |direction, packet: &Chunks| association.judge(direction, packet).map(|next| next.state);
        assert_eq!(judge(Original, &packet(23, &[Kind::Other])), Err(Reason::SctpTag));
        assert_eq!(judge(Reply, &packet(22, &[Kind::Other])), Err(Reason::SctpTag));
        assert_eq!(judge(Original, &packet(11, &[Kind::Abort])), Err(Reason::SctpTag));
        assert_eq!(judge(Original, &packet(22, &[Kind::Abort])), Ok(State::Close));
        let mirrored = Chunks { tag: 11, chunks: vec![Chunk { kind: Kind::Abort, mirrored: true }] };
        assert_eq!(judge(Original, &mirrored), Ok(State::Close));
        assert_eq!(judge(Original, &packet(22, &[Kind::Init(33)])), Err(Reason::SctpTag));
        assert_eq!(judge(Reply, &packet(11, &[Kind::InitAck(99)])), Err(Reason::SctpTag), "22 is agreed on");
    }

    #[test]
    fn only_an_init_begins() {
        assert_eq!(Association::begin(&packet(0, &[Kind::Other])), Err(Reason::SctpState));
        assert_eq!(Association::begin(&packet(5, &[Kind::Init(1)])), Err(Reason::SctpTag));
    }

    #[test]
    fn chunks_are_read_and_bundles_checked() {
        let chunk = |kind: u8, length: u16| {
            let mut chunk = vec![kind, 0];
            chunk.extend(length.to_be_bytes());
            chunk.resize(usize::from(length.max(4)).next_multiple_of(4), 0);
            chunk
        };
        let read = |chunks: &[Vec<u8>]| {
            let mut bytes = vec![0; 12];
            bytes.extend(chunks.concat());
            Chunks::parse(&bytes, false).map(|packet| packet.chunks.len())
        };
        assert_eq!(read(&[chunk(0, 17), chunk(0, 16)]), Ok(2), "padded to four");
        assert_eq!(read(&[chunk(10, 8), chunk(0, 20)]), Ok(2), "data behind the cookie");
        let bundled = [vec![], vec![chunk(1, 20), chunk(0, 16)], vec![chunk(0, 16), chunk(10, 8)]];
        for chunks in bundled {
            assert_eq!(read(&chunks), Err(Reason::SctpState));
        }
        for broken in [vec![chunk(0, 0)], vec![chunk(1, 8)]] {
            assert_eq!(read(&broken), Err(Reason::Malformed));
        }
        assert_eq!(Chunks::parse(&[0; 11], false), Err(Reason::Truncated));
    }
}
