//! SCTP (RFC 9260): states and verification tags, as `net/netfilter/nf_conntrack_proto_sctp.c` sees them, and stricter
//! where a tag is not known yet, or agreed on.

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
    /// Takes the cookie, and begins the end at once.
    CookieAckShutdown,
    /// The end.
    ShutdownComplete,
    /// Data, heartbeats and all that changes no state.
    Other,
}

impl Kind {
    /// Whether nothing may be bundled with it (RFC 9260, 6.10).
    const fn is_alone(self) -> bool {
        matches!(self, Self::Init(_) | Self::InitAck(_) | Self::ShutdownComplete)
    }

    /// Whether it comes first (RFC 9260, 5.1).
    const fn is_cookie(self) -> bool {
        matches!(self, Self::CookieEcho | Self::CookieAck)
    }
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
pub struct Packet {
    /// Its verification tag.
    pub tag: u32,
    /// The chunk that says what the packet does.
    pub chunk: Chunk,
}

/// As many chunks of a packet are looked at.
const CHUNKS: usize = 4;

impl Packet {
    /// Reads a packet. In a first fragment the last chunk may go on in the next.
    pub fn parse(bytes: &[u8], first_fragment: bool) -> Result<Self, Reason> {
        bytes.get(..16).ok_or(Reason::Truncated)?;
        let tag = bytes.u32(4).expect("sixteen bytes");
        let mut chunks = Vec::new();
        let mut at = 12;
        while let (Some(kind), Some(flags), Some(length)) =
            (bytes.u8(at), bytes.u8(at + 1), bytes.u16(at + 2))
        {
            let end = at + usize::from(length);
            if length < 4 || end > bytes.len() && !first_fragment {
                return Err(Reason::Malformed);
            }
            let initiates = || match bytes.u32(at + 4) {
                Some(0) => Err(Reason::SctpTag),
                Some(tag) if length >= 20 => Ok(tag),
                _ => Err(Reason::Malformed),
            };
            let is_data = kind == 0;
            let kind = match kind {
                1 => Kind::Init(initiates()?),
                2 => Kind::InitAck(initiates()?),
                6 => Kind::Abort,
                7 => Kind::Shutdown,
                8 => Kind::ShutdownAck,
                9 => Kind::Error,
                10 => Kind::CookieEcho,
                11 => Kind::CookieAck,
                14 => Kind::ShutdownComplete,
                _ => Kind::Other,
            };
            at = end.next_multiple_of(4);
            let is_first = chunks.is_empty();
            if kind.is_alone() && (!is_first || at < bytes.len()) || kind.is_cookie() && !is_first {
                return Err(Reason::SctpState);
            }
            if matches!(kind, Kind::Init(_)) && tag != 0 {
                return Err(Reason::SctpTag);
            }
            chunks.push(Chunk { kind, mirrored: flags & 1 != 0 });
            // Control chunks come before data (RFC 9260, 6.10).
            if is_data || chunks.len() == CHUNKS {
                break;
            }
        }
        Ok(Self { tag, chunk: decisive(&chunks) })
    }
}

/// An ABORT ends it, a cookie is not forgotten over what is bundled with it, and else the last one says what happens.
fn decisive(chunks: &[Chunk]) -> Chunk {
    let find = |wanted: fn(Kind) -> bool| chunks.iter().find(|chunk| wanted(chunk.kind));
    let both = find(|kind| kind == Kind::CookieAck).zip(find(|kind| kind == Kind::Shutdown));
    if both.is_some() && find(|kind| kind == Kind::Abort).is_none() {
        return Chunk { kind: Kind::CookieAckShutdown, mirrored: false };
    }
    find(|kind| kind == Kind::Abort)
        .or_else(|| find(Kind::is_cookie))
        .or_else(|| chunks.iter().rfind(|chunk| chunk.kind != Kind::Other))
        .copied()
        .unwrap_or(Chunk { kind: Kind::Other, mirrored: false })
}

/// An association. Pairs are by [`Direction`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Association {
    /// Its state.
    pub state: State,
    /// The tag that packets of a direction carry, once it is known.
    pub tags: [Option<u32>; 2],
}

/// What a packet does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It goes on, and nothing changes.
    Unchanged,
    /// It goes on, and the association is now this.
    Changed(Association),
    /// It is an INIT that may begin the next association between these ends: the rules decide.
    Begins,
}

impl Association {
    /// The association that an INIT begins.
    pub fn begin(packet: &Packet) -> Result<Self, Reason> {
        let Kind::Init(tag) = packet.chunk.kind else { return Err(Reason::SctpState) };
        Ok(Self { state: State::CookieWait, tags: [None, Some(tag)] })
    }

    /// What a packet does. `answered` once there was a packet of the responder.
    pub fn judge(&self, direction: Direction, packet: &Packet, answered: bool) -> Result<Outcome, Reason> {
        let Chunk { kind, mirrored } = packet.chunk;
        let tag = |direction: Direction| self.tags[direction as usize];
        let carries = match kind {
            Kind::Init(_) if answered => {
                let opens = matches!(self.state, State::CookieWait | State::CookieEchoed);
                return Ok(if opens { Outcome::Unchanged } else { Outcome::Begins });
            }
            Kind::Init(_) => Some(0),
            Kind::Abort | Kind::ShutdownComplete if mirrored => tag(direction.other()),
            _ => tag(direction),
        };
        let mut next = self.clone();
        next.state = step(self.state, direction, kind).ok_or(Reason::SctpState)?;
        if carries != Some(packet.tag) {
            return Err(Reason::SctpTag);
        }
        let theirs = &mut next.tags[direction.other() as usize];
        match kind {
            Kind::InitAck(tag) if theirs.is_some_and(|agreed| agreed != tag) => return Err(Reason::SctpTag),
            Kind::Init(tag) | Kind::InitAck(tag) => *theirs = Some(tag),
            _ => {}
        }
        Ok(Outcome::Changed(next))
    }

    /// Whether a packet of the responder answers its INIT.
    pub fn is_answered_by(&self, packet: &Packet) -> bool {
        matches!(packet.chunk.kind, Kind::InitAck(_))
            && self.tags[Direction::Reply as usize] == Some(packet.tag)
    }
}

/// The table of states: `None` is invalid, and what is not in it changes nothing.
fn step(state: State, direction: Direction, kind: Kind) -> Option<State> {
    use Direction::{Original, Reply};
    use State::*;
    Some(match (kind, direction, state) {
        (Kind::Other, _, CookieWait) | (Kind::InitAck(_), _, Close) => return None,
        (Kind::Abort, ..) => Close,
        (Kind::CookieEcho, _, CookieWait) => CookieEchoed,
        (Kind::CookieAck, _, CookieEchoed) => Established,
        (Kind::Error, Reply, CookieEchoed) => Close,
        (Kind::CookieAckShutdown, Original, CookieEchoed | Established) => ShutdownSent,
        (Kind::CookieAckShutdown, Reply, CookieEchoed | Established) => ShutdownRecd,
        (Kind::Shutdown, Original, Established) => ShutdownSent,
        (Kind::Shutdown, Reply, Established) => ShutdownRecd,
        (Kind::ShutdownAck, _, ShutdownSent | ShutdownRecd) => ShutdownAckSent,
        (Kind::ShutdownComplete, _, ShutdownAckSent) => Close,
        _ => state,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use Direction::{Original, Reply};

    fn packet(tag: u32, kind: Kind) -> Packet {
        Packet { tag, chunk: Chunk { kind, mirrored: false } }
    }

    fn changed(association: &Association, direction: Direction, packet: &Packet) -> Association {
        match association.judge(direction, packet, direction == Reply || association.tags[0].is_some()) {
            Ok(Outcome::Changed(next)) => next,
            other => panic!("{packet:?} in {association:?}: {other:?}"),
        }
    }

    fn established() -> Association {
        let mut association = Association::begin(&packet(0, Kind::Init(11))).unwrap();
        for (direction, tag, kind, state) in [
            (Reply, 11, Kind::InitAck(22), State::CookieWait),
            (Original, 22, Kind::CookieEcho, State::CookieEchoed),
            (Reply, 11, Kind::CookieAck, State::Established),
        ] {
            association = changed(&association, direction, &packet(tag, kind));
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
            association = changed(&association, direction, &packet(tag, kind));
            assert_eq!(association.state, state, "after {kind:?}");
        }
    }

    #[test]
    fn tags_are_checked() {
        let association = established();
        let judge = |direction, packet: &Packet| match association.judge(direction, packet, true) {
            Ok(Outcome::Changed(next)) => Ok(next.state),
            Ok(other) => panic!("{other:?}"),
            Err(reason) => Err(reason),
        };
        assert_eq!(judge(Original, &packet(23, Kind::Other)), Err(Reason::SctpTag));
        assert_eq!(judge(Reply, &packet(22, Kind::Other)), Err(Reason::SctpTag));
        assert_eq!(judge(Original, &packet(11, Kind::Abort)), Err(Reason::SctpTag));
        assert_eq!(judge(Original, &packet(22, Kind::Abort)), Ok(State::Close));
        let mirrored = Packet { tag: 11, chunk: Chunk { kind: Kind::Abort, mirrored: true } };
        assert_eq!(judge(Original, &mirrored), Ok(State::Close));
        assert_eq!(judge(Reply, &packet(11, Kind::InitAck(99))), Err(Reason::SctpTag), "22 is agreed on");
        let unanswered = Association::begin(&packet(0, Kind::Init(11))).unwrap();
        for kind in [Kind::Error, Kind::CookieEcho, Kind::Abort] {
            assert_eq!(
                unanswered.judge(Original, &packet(22, kind), false),
                Err(Reason::SctpTag),
                "not known"
            );
        }
    }

    #[test]
    fn an_init_changes_no_association_that_was_answered() {
        let init = packet(0, Kind::Init(99));
        let mut association = established();
        assert_eq!(association.judge(Reply, &init, true), Ok(Outcome::Begins));
        association.state = State::CookieWait;
        assert_eq!(association.judge(Original, &init, true), Ok(Outcome::Unchanged));
        let unanswered = Association::begin(&packet(0, Kind::Init(11))).unwrap();
        let again = unanswered.judge(Original, &init, false);
        assert_eq!(again, Ok(Outcome::Changed(Association::begin(&init).unwrap())));
    }

    #[test]
    fn only_an_init_begins() {
        assert_eq!(Association::begin(&packet(0, Kind::Other)), Err(Reason::SctpState));
    }

    #[test]
    fn chunks_are_read_and_bundles_checked() {
        let chunk = |kind: u8, length: u16| {
            let mut chunk = vec![kind, 0];
            chunk.extend(length.to_be_bytes());
            chunk.resize(usize::from(length.max(4)).next_multiple_of(4), 1);
            chunk
        };
        let read = |chunks: &[Vec<u8>]| {
            let mut bytes = vec![0; 12];
            bytes.extend(chunks.concat());
            Packet::parse(&bytes, false).map(|packet| packet.chunk.kind)
        };
        assert_eq!(read(&[chunk(0, 17), chunk(0, 16)]), Ok(Kind::Other), "padded to four");
        assert_eq!(read(&[chunk(10, 8), chunk(0, 20)]), Ok(Kind::CookieEcho), "data behind the cookie");
        assert_eq!(read(&[chunk(10, 8), chunk(9, 8)]), Ok(Kind::CookieEcho), "what was odd in the INIT ACK");
        assert_eq!(read(&[chunk(10, 8), chunk(6, 4)]), Ok(Kind::Abort));
        assert_eq!(read(&[chunk(3, 16), chunk(7, 8)]), Ok(Kind::Shutdown));
        assert_eq!(read(&[chunk(0, 16), chunk(7, 8)]), Ok(Kind::Other), "nothing comes behind data");
        for chunks in [vec![chunk(1, 20), chunk(0, 16)], vec![chunk(3, 16), chunk(10, 8)]] {
            assert_eq!(read(&chunks), Err(Reason::SctpState));
        }
        for broken in [vec![chunk(0, 0)], vec![chunk(1, 8)], vec![[1, 0, 0, 20].repeat(2)]] {
            assert_eq!(read(&broken), Err(Reason::Malformed));
        }
        assert_eq!(Packet::parse(&[0; 15], false), Err(Reason::Truncated));
        assert_eq!(read(&[[vec![1, 0, 0, 20], vec![0; 16]].concat()]), Err(Reason::SctpTag), "0 is no tag");
    }
}
