//! TCP: states and sequence windows (RFC 9293), as the kernel's tracker sees them from the middle.
//!
//! The windows follow Guido van Rooij, "Real Stateful TCP Packet Filtering in IP Filter" (2000), with the bounds of
//! `tcp_in_window` in `net/netfilter/nf_conntrack_proto_tcp.c`. Numbers are modulo 2^32.

use super::flow::{Direction, State};
use super::packet::Read;
use super::verdict::Reason;

/// An acknowledgement may lag so far behind, whatever the window (`MAXACKWINCONST`).
const LEAST_ACK_WINDOW: u32 = 66_000;

/// The largest shift of a window (RFC 7323, 2.3).
const MAX_SCALE: u8 = 14;

/// Once a segment has come again so often, the connection is in doubt (`nf_conntrack_tcp_max_retrans`).
const MAX_REPEATS: u32 = 3;

/// A sequence number.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Seq(pub u32);

impl std::fmt::Debug for Seq {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl Seq {
    /// Whether it is higher: less than half the space further on.
    pub const fn after(self, other: Self) -> bool {
        (other.0.wrapping_sub(self.0) as i32) < 0
    }

    /// The number `n` further on.
    pub const fn plus(self, n: u32) -> Self {
        Self(self.0.wrapping_add(n))
    }

    /// The number `n` before.
    pub const fn minus(self, n: u32) -> Self {
        Self(self.0.wrapping_sub(n))
    }

    /// How far it is from `other` to this one.
    pub const fn since(self, other: Self) -> u32 {
        self.0.wrapping_sub(other.0)
    }

    /// The higher of two.
    pub const fn max(self, other: Self) -> Self {
        if other.after(self) { other } else { self }
    }
}

/// What a segment is, by its flags; the first that fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// RST.
    Rst,
    /// SYN and ACK.
    SynAck,
    /// SYN.
    Syn,
    /// FIN.
    Fin,
    /// ACK.
    Ack,
}

/// A segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// What it is.
    pub kind: Kind,
    /// Its sequence number.
    pub seq: Seq,
    /// One beyond its last: SYN and FIN count, data too.
    pub end: Seq,
    /// The number of the first byte of its header, if that and its SYN or FIN were data.
    pub origin: Seq,
    /// What it acknowledges, if it does.
    pub ack: Option<Seq>,
    /// Its window, as in the header.
    pub window: u32,
    /// Window scale offered.
    pub scale: Option<u8>,
    /// Whether selective acknowledgement is offered.
    pub sack_permitted: bool,
    /// Right edges of its SACK blocks.
    pub sacks: Vec<Seq>,
}

impl Segment {
    /// Reads a segment, or the first fragment of one.
    pub fn parse(bytes: &[u8]) -> Result<Self, Reason> {
        const FIN: u8 = 1;
        const SYN: u8 = 2;
        const RST: u8 = 4;
        const ACK: u8 = 16;
        const URG: u8 = 32;
        let header = bytes.get(..20).ok_or(Reason::Truncated)?;
        let header_length = usize::from(header[12] >> 4) * 4;
        if header_length < 20 {
            return Err(Reason::Malformed);
        }
        let options = bytes.get(20..header_length).ok_or(Reason::Truncated)?;
        // PSH, ECE and CWR go with everything.
        let kind = match header[13] & (FIN | SYN | RST | ACK | URG) {
            f if f == SYN || f == SYN | URG => Kind::Syn,
            f if f == SYN | ACK => Kind::SynAck,
            f if f == RST || f == RST | ACK => Kind::Rst,
            f if f == FIN | ACK || f == FIN | ACK | URG => Kind::Fin,
            f if f == ACK || f == ACK | URG => Kind::Ack,
            _ => return Err(Reason::TcpFlags),
        };
        let word = |at| header.u32(at).expect("twenty bytes");
        let seq = Seq(word(4));
        let flags = u32::from(matches!(kind, Kind::Syn | Kind::SynAck | Kind::Fin));
        let mut segment = Self {
            kind,
            seq,
            end: seq.plus((bytes.len() - header_length) as u32 + flags),
            origin: seq.minus(header_length as u32).plus(flags),
            ack: (header[13] & ACK != 0).then(|| Seq(word(8))),
            window: word(12) & 0xffff,
            scale: None,
            sack_permitted: false,
            sacks: Vec::new(),
        };
        segment.read_options(options);
        Ok(segment)
    }

    /// Reads what it knows, up to the first option that is cut.
    fn read_options(&mut self, mut options: &[u8]) {
        loop {
            let (kind, length) = match *options {
                [] | [0, ..] => return,
                [1, ..] => {
                    options = &options[1..];
                    continue;
                }
                [kind, length, ..] => (kind, usize::from(length)),
                [_] => return,
            };
            if length < 2 || length > options.len() {
                return;
            }
            let (option, rest) = options.split_at(length);
            match (kind, length) {
                (3, 3) => self.scale = Some(option[2].min(MAX_SCALE)),
                (4, 2) => self.sack_permitted = true,
                // One option of SACK is read, the first.
                (5, 10..) if (length - 2) % 8 == 0 && self.sacks.is_empty() => {
                    let blocks = option[2..].chunks(8);
                    self.sacks = blocks.map(|block| Seq(block.u32(4).expect("eight bytes"))).collect();
                }
                _ => {}
            }
            options = rest;
        }
    }
}

/// What is known of one side of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Side {
    /// One beyond the highest number that it sent.
    pub end: Seq,
    /// The highest number that it lets the other side reach: acknowledged, and the window.
    pub edge: Seq,
    /// The largest window that it offered; 0 as long as it was not seen.
    pub max_window: u32,
    /// The highest that it acknowledged.
    pub max_ack: Option<Seq>,
    /// Window scale that it offered.
    pub scale: Option<u8>,
    /// Whether it offered selective acknowledgement.
    pub sack_permitted: bool,
}

impl Side {
    /// A side that was not seen. It lets the other one send what it has sent.
    const fn unseen(other_end: Seq) -> Self {
        let end = Seq(0);
        Self { end, edge: other_end, max_window: 0, max_ack: None, scale: None, sack_permitted: false }
    }

    /// A side as its SYN tells; `edge` stays what it was.
    fn of_syn(segment: &Segment, edge: Seq) -> Self {
        Self {
            end: segment.end,
            edge,
            max_window: segment.window.max(1),
            max_ack: None,
            scale: segment.scale,
            sack_permitted: segment.sack_permitted,
        }
    }

    const fn seen(&self) -> bool {
        self.max_window > 0
    }
}

/// A connection. Sides are by [`Direction`]: index 0 is the originator's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Its state.
    pub state: State,
    /// Both sides.
    pub sides: [Side; 2],
    /// An end has sent its FIN, or the originator a reset that closed it: what comes now was under way.
    pub ended: bool,
    /// Both ends began it.
    pub met: bool,
    /// The last segment that only acknowledges, or carries data, and was inside; none once the other side was heard.
    pub last: Option<Last>,
    /// How often that had come before.
    pub repeats: u32,
    /// It offered no window.
    pub shut: bool,
}

/// By what a segment is known when it comes again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Last {
    direction: Direction,
    seq: Seq,
    end: Seq,
    ack: Option<Seq>,
    window: u32,
}

/// Why a connection is kept no longer than some time, whatever its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// One end says the same again and again.
    Repeats,
    /// What one end sent is not acknowledged.
    Unacknowledged,
    /// One end takes no data.
    Shut,
}

/// What a segment does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It goes on, and nothing changes.
    Unchanged,
    /// It goes on, and the connection is now this.
    Changed(Connection),
    /// It goes on, and all that is taken from it is how far its sender got.
    Noted(Connection),
    /// It is a SYN that may begin the next connection between these ends: the rules decide.
    Begins,
}

/// What the table says.
enum Step {
    To(State),
    Stay,
    Begins,
}

/// The table of states: `None` is invalid.
fn step(state: State, direction: Direction, kind: Kind) -> Option<Step> {
    use Direction::{Original, Reply};
    use State::*;
    use Step::{Begins, Stay, To};
    Some(match (kind, direction, state) {
        (Kind::Rst, ..) => To(Close),

        (Kind::Syn, Original, SynSent) => To(SynSent),
        (Kind::Syn, Original, SynSent2) => To(SynSent2),
        (Kind::Syn, Original, _) => Begins,
        (Kind::Syn, Reply, SynSent | SynSent2) => To(SynSent2),
        (Kind::Syn, Reply, TimeWait | Close) => Begins,
        (Kind::Syn, Reply, _) => return None,

        (Kind::SynAck, Original, SynSent2 | SynRecv) => To(SynRecv),
        (Kind::SynAck, Original, _) => return None,
        (Kind::SynAck, Reply, SynSent | SynSent2) => To(SynRecv),
        (Kind::SynAck, ..) => Stay,

        (Kind::Fin, _, SynSent | SynSent2) => return None,
        (Kind::Fin, _, SynRecv | Established) => To(FinWait),
        (Kind::Fin, _, FinWait | CloseWait | LastAck) => To(LastAck),
        (Kind::Fin, _, other) => To(other),

        (Kind::Ack, Original, SynSent | SynSent2) => return None,
        (Kind::Ack, Reply, SynSent | SynSent2) => Stay,
        (Kind::Ack, Original, SynRecv) => To(Established),
        (Kind::Ack, Reply, SynRecv) => To(SynRecv),
        (Kind::Ack, _, FinWait | CloseWait) => To(CloseWait),
        (Kind::Ack, _, LastAck | TimeWait) => To(TimeWait),
        (Kind::Ack, _, other) => To(other),
    })
}

/// What a RST does.
enum Reset {
    /// It closes, if it is in the window.
    Closes,
    /// It goes on if it is in the window, for its receiver to challenge, and changes nothing.
    IsChallenged,
    /// It goes on, and changes nothing.
    Passes,
}

/// Where a segment is in the windows.
enum Place {
    /// Outside, too far.
    Outside,
    /// It goes on, and nothing changes.
    Old,
    /// Beyond what the other side allowed, by little.
    Beyond,
    /// Inside.
    Inside,
}

/// The numbers by which a segment is placed.
struct Numbers {
    end: Seq,
    ack: Seq,
    /// The highest right edge of its SACK blocks, or `ack`.
    sack: Seq,
}

impl Connection {
    /// The connection that a SYN begins.
    pub fn begin(syn: &Segment) -> Self {
        let originator = Side::of_syn(syn, Seq(0));
        Self {
            state: State::SynSent,
            sides: [originator, Side::unseen(originator.end)],
            ended: false,
            met: false,
            last: None,
            repeats: 0,
            shut: false,
        }
    }

    /// It as it was before anything was heard of the responder.
    pub const fn unanswered(&self) -> Self {
        let [originator, _] = self.sides;
        Self { sides: [originator, Side::unseen(originator.end)], ..*self }
    }

    /// What a segment does. `unchecked` in an inherited flow of which not both directions were seen.
    pub fn judge(&self, direction: Direction, segment: &Segment, unchecked: bool) -> Result<Outcome, Reason> {
        let outcome = self.track(direction, segment, unchecked)?;
        if outcome == Outcome::Unchanged && (self.state, direction) == (State::SynSent, Direction::Reply) {
            // No answer, but the originator may answer it with a reset.
            let mut next = self.clone();
            next.sides[Direction::Reply as usize].max_ack = segment.ack;
            return Ok(Outcome::Noted(next));
        }
        Ok(outcome)
    }

    fn track(&self, direction: Direction, segment: &Segment, unchecked: bool) -> Result<Outcome, Reason> {
        let to = match step(self.state, direction, segment.kind).ok_or(Reason::TcpState)? {
            Step::To(State::SynSent) if segment.end.after(self.sides[direction as usize].end) => {
                let mut next = Self::begin(segment);
                next.sides[1].max_ack = self.sides[1].max_ack;
                return Ok(Outcome::Changed(next));
            }
            Step::To(state) => state,
            Step::Begins if self.is_late(direction, segment) => return Ok(Outcome::Unchanged),
            Step::Begins => return Ok(Outcome::Begins),
            Step::Stay => return Ok(Outcome::Unchanged),
        };
        if segment.kind == Kind::Rst {
            match self.reset(direction, segment)? {
                Reset::Closes => {}
                Reset::Passes => return Ok(Outcome::Unchanged),
                Reset::IsChallenged => {
                    // Whether it is in the window still decides whether it goes on.
                    let goes_on = unchecked || !matches!(self.place(direction, segment).1, Place::Outside);
                    return if goes_on { Ok(Outcome::Unchanged) } else { Err(Reason::TcpWindow) };
                }
            }
        }

        let mut next = self.clone();
        if unchecked {
            next.learn(direction, segment);
            next.note(direction, segment);
            return Ok(Outcome::Changed(next.moved(to, direction, segment.kind)));
        }
        if self.side_begins(direction, segment) {
            let edge = next.sides[direction as usize].edge;
            next.sides[direction as usize] = Side::of_syn(segment, edge);
            next.sides[direction.other() as usize].edge = segment.end;
            if to == State::SynSent2 {
                return Ok(Outcome::Changed(next.moved(to, direction, segment.kind)));
            }
        }
        let (numbers, place) = next.place(direction, segment);
        match place {
            Place::Outside => Err(Reason::TcpWindow),
            Place::Old => Ok(Outcome::Unchanged),
            Place::Beyond => {
                let mut same = self.clone();
                same.sides[direction as usize].end = numbers.end;
                Ok(Outcome::Noted(same))
            }
            Place::Inside => {
                next.advance(direction, segment, &numbers);
                next.note(direction, segment);
                Ok(Outcome::Changed(next.moved(to, direction, segment.kind)))
            }
        }
    }

    /// It in the state that a segment leads to.
    fn moved(self, to: State, direction: Direction, kind: Kind) -> Self {
        let ends = match kind {
            Kind::Fin => true,
            Kind::Rst => direction == Direction::Original,
            _ => false,
        };
        // Either end's acknowledgement completes what both began.
        let completes =
            self.met && (self.state, direction, kind) == (State::SynRecv, Direction::Reply, Kind::Ack);
        Self {
            state: if completes { State::Established } else { to },
            ended: self.ended || ends,
            met: self.met || to == State::SynSent2,
            ..self
        }
    }

    /// Whether the sender's side begins with this segment.
    fn side_begins(&self, direction: Direction, segment: &Segment) -> bool {
        matches!(segment.kind, Kind::Syn | Kind::SynAck) && !self.sides[direction as usize].seen()
    }

    /// What a RST does (RFC 5961, 3); an error if it may not even go on.
    fn reset(&self, direction: Direction, rst: &Segment) -> Result<Reset, Reason> {
        let established = self.state == State::Established;
        let Some(exact) = self.sides[direction.other() as usize].max_ack else {
            return Ok(if self.state == State::Close { Reset::Passes } else { Reset::Closes });
        };
        let sent = self.sides[direction as usize].end;
        Ok(match (self.state, direction) {
            (State::Close, _) => Reset::Passes,
            // The responder had another connection in mind, and is told so (RFC 9293, 3.5.2).
            (State::SynSent, Direction::Original) if rst.seq == exact => Reset::Passes,
            _ if rst.seq == Seq(0) && !established => Reset::Closes,
            _ if exact.after(rst.seq) => return Err(Reason::TcpReset),
            _ if established && rst.seq != exact && rst.seq != sent => Reset::IsChallenged,
            _ => Reset::Closes,
        })
    }

    /// Whether a SYN on a live connection came late: it is behind what its sender sent since, by a window at most.
    fn is_late(&self, direction: Direction, syn: &Segment) -> bool {
        let (sender, other) = (&self.sides[direction as usize], &self.sides[direction.other() as usize]);
        !matches!(self.state, State::TimeWait | State::Close)
            && sender.end.since(syn.end) <= other.max_window.max(LEAST_ACK_WINDOW)
    }

    /// Whether it lives on only for what is still under way.
    pub fn is_over(&self) -> bool {
        self.state == State::TimeWait || self.state == State::Close && self.ended
    }

    fn place(&self, direction: Direction, segment: &Segment) -> (Numbers, Place) {
        let (sender, other) = (&self.sides[direction as usize], &self.sides[direction.other() as usize]);
        let ack = match segment.ack {
            None => other.end,
            Some(Seq(0)) if segment.kind == Kind::Rst => other.end,
            Some(ack) => ack,
        };
        let mut sack = ack;
        if other.sack_permitted && segment.ack.is_some() && segment.kind != Kind::Rst {
            sack = segment.sacks.iter().fold(ack, |sack, &edge| sack.max(edge));
        }
        let answers_syn = self.state == State::SynSent && segment.kind == Kind::Rst && segment.seq == Seq(0);
        let (seq, end) =
            if answers_syn || !sender.seen() { (sender.end, sender.end) } else { (segment.seq, segment.end) };

        let ack_window = sender.max_window.max(LEAST_ACK_WINDOW);
        let upper = !sender.seen() || !seq.after(other.edge);
        let lower = !other.seen() || end.after(sender.end.minus(other.max_window).minus(1));
        let ack_upper = !sack.after(other.end);
        let ack_lower = sack.after(other.end.minus(ack_window).minus(1));
        let place = match (upper, ack_upper, lower && ack_lower) {
            (true, true, true) => Place::Inside,
            (true, true, false) => Place::Old,
            (false, true, true) if other.seen() && end.plus(1).since(other.edge) <= other.max_window => {
                Place::Beyond
            }
            _ => Place::Outside,
        };
        (Numbers { end, ack, sack }, place)
    }

    /// Takes in a segment that is inside.
    fn advance(&mut self, direction: Direction, segment: &Segment, numbers: &Numbers) {
        let Numbers { end, ack, sack } = *numbers;
        let window = self.window(direction, segment);
        let [sender, other] = self.sides_mut(direction);
        sender.max_window = sender.max_window.max(window.wrapping_add(sack.since(ack)));
        sender.end = sender.end.max(end);
        if segment.ack.is_some() {
            sender.max_ack = Some(sender.max_ack.map_or(ack, |max_ack| max_ack.max(ack)));
        }
        if other.seen() {
            if end.after(other.edge) {
                other.max_window = other.max_window.wrapping_add(end.since(other.edge));
            }
            // A window of nothing still lets one byte ask whether it has opened.
            sender.edge = sender.edge.max(sack.plus(window.max(1)));
        }
    }

    /// Notes whether a segment that opens and ends nothing is the last one again.
    fn note(&mut self, direction: Direction, segment: &Segment) {
        if segment.kind != Kind::Ack {
            return;
        }
        let Segment { seq, end, ack, window, .. } = *segment;
        let this = Last { direction, seq, end, ack, window };
        self.repeats = if self.last == Some(this) { self.repeats + 1 } else { 0 };
        self.shut = window == 0;
        self.last = Some(this);
    }

    /// Takes notice that a side was heard.
    pub fn heard(&mut self, direction: Direction) {
        self.last = self.last.filter(|last| last.direction == direction);
    }

    /// Why it is not kept as long as its state says, if it is not.
    pub fn doubt(&self) -> Option<Doubt> {
        let [original, reply] = &self.sides;
        let lacks = |sender: &Side, other: &Side| other.max_ack.is_some_and(|acked| acked != sender.end);
        if self.repeats >= MAX_REPEATS {
            Some(Doubt::Repeats)
        } else if lacks(original, reply) || lacks(reply, original) {
            Some(Doubt::Unacknowledged)
        } else {
            self.shut.then_some(Doubt::Shut)
        }
    }

    /// Takes in a segment of an inherited flow, whatever it says.
    fn learn(&mut self, direction: Direction, segment: &Segment) {
        let window = self.window(direction, segment);
        let [sender, other] = self.sides_mut(direction);
        sender.end = segment.end;
        sender.max_window = window.max(1);
        if let Some(ack) = segment.ack {
            sender.edge = ack.plus(window.max(1));
            sender.max_ack = Some(ack);
            other.end = other.end.max(ack);
        }
    }

    /// The window that a segment offers, in bytes. Scales hold if both sides offered one (RFC 7323, 2.2).
    fn window(&self, direction: Direction, segment: &Segment) -> u32 {
        match (self.sides[direction as usize].scale, self.sides[direction.other() as usize].scale) {
            (Some(scale), Some(_)) if !matches!(segment.kind, Kind::Syn | Kind::SynAck) => {
                segment.window << scale
            }
            _ => segment.window,
        }
    }

    fn sides_mut(&mut self, direction: Direction) -> [&mut Side; 2] {
        let [original, reply] = &mut self.sides;
        match direction {
            Direction::Original => [original, reply],
            Direction::Reply => [reply, original],
        }
    }

    /// Takes in a later fragment of a segment, which reaches so far.
    pub fn carry(&mut self, direction: Direction, end: Seq) {
        let sender = &mut self.sides[direction as usize];
        sender.end = sender.end.max(end);
    }

    /// Whether a segment with this sequence number is under way from a side, so that an error may be about it. `bytes` is what
    /// the side has sent at layer 3: as long as nobody has answered, its SYN carried no more than that (RFC 7413).
    pub fn is_under_way(&self, direction: Direction, seq: Seq, bytes: u64) -> bool {
        let (sender, other) = (&self.sides[direction as usize], &self.sides[direction.other() as usize]);
        let most = if other.seen() { other.max_window } else { bytes as u32 };
        let oldest = sender.end.minus(most).minus(1);
        sender.seen() && !oldest.after(seq) && !seq.after(sender.end)
    }

    /// Whether a segment of the responder answers exactly the SYN.
    pub fn is_answered_by(&self, segment: &Segment) -> bool {
        matches!(segment.kind, Kind::SynAck | Kind::Rst)
            && segment.ack == Some(self.sides[Direction::Original as usize].end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Direction::{Original, Reply};
    use State::*;

    fn segment(kind: Kind, seq: u32, length: u32, ack: Option<u32>, window: u32) -> Segment {
        let flags = u32::from(matches!(kind, Kind::Syn | Kind::SynAck | Kind::Fin));
        Segment {
            kind,
            seq: Seq(seq),
            end: Seq(seq).plus(length + flags),
            origin: Seq(seq).minus(20).plus(flags),
            ack: ack.map(Seq),
            window,
            scale: None,
            sack_permitted: false,
            sacks: Vec::new(),
        }
    }

    fn ack(seq: u32, length: u32, ack: u32, window: u32) -> Segment {
        segment(Kind::Ack, seq, length, Some(ack), window)
    }

    /// A connection with the windows of both sides; the originator is at 1001, the responder at 5001.
    fn established(windows: [u32; 2]) -> Connection {
        let connection = Connection::begin(&segment(Kind::Syn, 1000, 0, None, windows[0]));
        let connection = changed(&connection, Reply, &segment(Kind::SynAck, 5000, 0, Some(1001), windows[1]));
        changed(&connection, Original, &ack(1001, 0, 5001, windows[0]))
    }

    fn changed(connection: &Connection, direction: Direction, segment: &Segment) -> Connection {
        match connection.judge(direction, segment, false) {
            Ok(Outcome::Changed(connection)) => connection,
            other => panic!("{segment:?} in {connection:?}: {other:?}"),
        }
    }

    fn in_state(state: State) -> Connection {
        Connection { state, ..established([8192; 2]) }
    }

    #[test]
    fn numbers_come_round() {
        assert!(Seq(5).after(Seq(u32::MAX)) && !Seq(u32::MAX).after(Seq(5)));
        assert!(!Seq(5).after(Seq(5)));
        assert_eq!(Seq(3).since(Seq(u32::MAX)), 4);
        assert_eq!(Seq(u32::MAX).max(Seq(3)), Seq(3));
    }

    #[test]
    fn flags_that_no_stack_sends() {
        let parse = |flags: u8| {
            let mut header = [0; 20];
            (header[12], header[13]) = (5 << 4, flags);
            Segment::parse(&header).map(|segment| segment.kind)
        };
        let valid: Vec<u8> = (0..=u8::MAX).filter(|&flags| parse(flags).is_ok()).collect();
        // FIN 1, SYN 2, RST 4, ACK 16, URG 32; each with any of PSH 8, ECE 64, CWR 128.
        let expected: Vec<u8> = (0..=u8::MAX)
            .filter(|flags| [0x02, 0x22, 0x12, 0x04, 0x14, 0x11, 0x31, 0x10, 0x30].contains(&(flags & 0x37)))
            .collect();
        assert_eq!(valid, expected);
        assert_eq!(parse(0x14), Ok(Kind::Rst));
        assert_eq!(parse(0x11), Ok(Kind::Fin));
    }

    #[test]
    fn options_are_read_up_to_the_first_that_is_cut() {
        let read = |options: &[u8]| {
            let mut bytes = vec![0; 20];
            bytes[12] = (((20 + options.len()) / 4) << 4) as u8;
            bytes[13] = 2;
            bytes.extend(options);
            Segment::parse(&bytes).unwrap()
        };
        let segment = read(&[2, 4, 5, 180, 1, 3, 3, 7, 4, 2, 0, 0]);
        assert_eq!((segment.scale, segment.sack_permitted), (Some(7), true));
        assert_eq!(read(&[3, 3, 99, 0]).scale, Some(14));
        assert_eq!(read(&[8, 20, 0, 0, 3, 3, 7, 0]).scale, None, "longer than there is");
        assert_eq!(read(&[8, 0, 3, 3, 7, 0, 0, 0]).scale, None, "no length");
        assert_eq!(read(&[0, 3, 3, 7]).scale, None, "behind the end");
        assert_eq!(read(&[1, 1, 1, 3]).scale, None, "no length at all");
        let sack = read(&[1, 1, 5, 18, 0, 0, 0, 1, 0, 0, 0, 9, 0, 0, 0, 2, 0, 0, 0, 5]);
        assert_eq!(sack.sacks, [Seq(9), Seq(5)]);
        assert!(read(&[5, 6, 0, 0, 0, 1, 0, 0]).sacks.is_empty(), "half a block");
    }

    #[test]
    fn from_handshake_to_close() {
        let connection = established([8192, 4096]);
        assert_eq!(connection.state, Established);
        let [original, reply] = connection.sides;
        assert_eq!(
            (original.end, original.edge, original.max_ack),
            (Seq(1001), Seq(5001 + 8192), Some(Seq(5001)))
        );
        assert_eq!((reply.end, reply.edge, reply.max_ack), (Seq(5001), Seq(1001 + 4096), Some(Seq(1001))));
        let connection = changed(&connection, Original, &ack(1001, 100, 5001, 8192));
        assert_eq!(connection.sides[0].end, Seq(1101));
        let connection = changed(&connection, Original, &segment(Kind::Fin, 1101, 0, Some(5001), 8192));
        assert_eq!(connection.state, FinWait);
        let connection = changed(&connection, Reply, &ack(5001, 0, 1102, 4096));
        assert_eq!(connection.state, CloseWait);
        let connection = changed(&connection, Reply, &segment(Kind::Fin, 5001, 0, Some(1102), 4096));
        assert_eq!(connection.state, LastAck);
        assert_eq!(changed(&connection, Original, &ack(1102, 0, 5002, 8192)).state, TimeWait);
    }

    #[test]
    fn a_simultaneous_open() {
        let connection = Connection::begin(&segment(Kind::Syn, 1000, 0, None, 8192));
        let connection = changed(&connection, Reply, &segment(Kind::Syn, 5000, 0, None, 8192));
        assert_eq!(connection.state, SynSent2);
        assert_eq!(connection.judge(Original, &ack(1001, 0, 5001, 8192), false), Err(Reason::TcpState));
        let connection = changed(&connection, Original, &segment(Kind::SynAck, 1000, 0, Some(5001), 8192));
        assert_eq!(connection.state, SynRecv);
        let repeat = segment(Kind::SynAck, 5000, 0, Some(1001), 8192);
        assert_eq!(connection.judge(Reply, &repeat, false), Ok(Outcome::Unchanged));
        assert_eq!(changed(&connection, Reply, &ack(5001, 0, 1001, 8192)).state, Established);
        assert_eq!(changed(&connection, Original, &ack(1001, 0, 5001, 8192)).state, Established);
    }

    #[test]
    fn segments_that_a_state_does_not_allow() {
        let answer = segment(Kind::SynAck, 1000, 0, Some(5001), 8192);
        let fin = segment(Kind::Fin, 1001, 0, Some(5001), 8192);
        for state in [SynSent, Established, FinWait, CloseWait, LastAck, TimeWait, Close] {
            assert_eq!(in_state(state).judge(Original, &answer, false), Err(Reason::TcpState), "{state:?}");
        }
        assert_eq!(changed(&in_state(SynRecv), Original, &answer).state, SynRecv);
        for state in [SynSent, SynSent2] {
            assert_eq!(in_state(state).judge(Original, &fin, false), Err(Reason::TcpState), "{state:?}");
            let ack = ack(1001, 0, 5001, 8192);
            assert_eq!(in_state(state).judge(Original, &ack, false), Err(Reason::TcpState), "{state:?}");
        }
        for state in [SynRecv, Established, FinWait, CloseWait, LastAck, TimeWait, Close] {
            let answer = segment(Kind::SynAck, 5000, 0, Some(1001), 8192);
            assert_eq!(in_state(state).judge(Reply, &answer, false), Ok(Outcome::Unchanged), "{state:?}");
        }
    }

    #[test]
    fn the_four_bounds() {
        let connection = established([1000, 500]);
        let judge = |segment: &Segment| connection.judge(Original, segment, false);
        // I: the responder lets the originator go up to 1501.
        assert!(matches!(judge(&ack(1501, 1, 5001, 1000)), Ok(Outcome::Changed(_))));
        assert_eq!(judge(&ack(1502, 499, 5001, 1000)), Err(Reason::TcpWindow), "500 beyond, by one too many");
        let Ok(Outcome::Noted(beyond)) = judge(&ack(1502, 498, 5001, 1000)) else { panic!("499 beyond") };
        assert_eq!(beyond.sides[0], Side { end: Seq(2000), ..connection.sides[0] });
        assert_eq!(beyond.sides[1], connection.sides[1]);
        assert_eq!(judge(&ack(1502, 1, 5002, 1000)), Err(Reason::TcpWindow), "I and III");
        // II: 500 below 1001, and one.
        assert!(matches!(judge(&ack(500, 1, 5001, 1000)), Ok(Outcome::Changed(_))));
        assert_eq!(judge(&ack(499, 1, 5001, 1000)), Ok(Outcome::Unchanged));
        // III: the responder is at 5001.
        assert_eq!(judge(&ack(1001, 1, 5002, 1000)), Err(Reason::TcpWindow));
        // IV: 66,000 below it.
        let lowest = 5001u32.wrapping_sub(66_000);
        assert!(matches!(judge(&ack(1001, 1, lowest, 1000)), Ok(Outcome::Changed(_))));
        assert_eq!(judge(&ack(1001, 1, lowest.wrapping_sub(1), 1000)), Ok(Outcome::Unchanged));
        // An empty segment is placed like any other.
        assert_eq!(judge(&ack(900_000, 0, 5001, 1000)), Err(Reason::TcpWindow));
    }

    #[test]
    fn windows_grow_by_what_is_seen() {
        let connection = established([1000, 500]);
        // Into the window and 99 beyond it.
        let next = changed(&connection, Original, &ack(1501, 100, 5001, 2000));
        assert_eq!(next.sides[1].max_window, 600);
        assert_eq!((next.sides[0].max_window, next.sides[0].edge), (2000, Seq(7001)));
        let shut = changed(&established([1000, 500]), Original, &ack(1001, 0, 5001, 0));
        assert_eq!((shut.sides[0].max_window, shut.sides[0].edge), (1000, Seq(6001)), "never smaller");
        let shut = changed(&established([1, 1]), Original, &ack(1001, 0, 5001, 0));
        assert_eq!(shut.sides[0].edge, Seq(5002));
    }

    #[test]
    fn scales_and_selective_acknowledgement_are_for_who_offered_them() {
        let open = |scales: [Option<u8>; 2], sack: bool| {
            let scale = scales[0];
            let syn = Segment { scale, sack_permitted: sack, ..segment(Kind::Syn, 1000, 0, None, 1000) };
            let scale = scales[1];
            let answer = Segment { scale, ..segment(Kind::SynAck, 5000, 0, Some(1001), 1000) };
            let connection = changed(&Connection::begin(&syn), Reply, &answer);
            changed(&connection, Original, &ack(1001, 0, 5001, 1000))
        };
        assert_eq!(open([Some(2), Some(0)], false).sides[0].max_window, 4000);
        assert_eq!(open([Some(2), None], false).sides[0].max_window, 1000);
        assert_eq!(open([None, Some(2)], false).sides[0].max_window, 1000);
        for (sack, upper) in [(true, Err(Reason::TcpWindow)), (false, Ok(()))] {
            let sacked = Segment { sacks: vec![Seq(1002)], ..ack(5001, 0, 1001, 1000) };
            let outcome = open([None; 2], sack).judge(Reply, &sacked, false);
            assert_eq!(outcome.map(|_| ()), upper, "the originator has sent up to 1001");
        }
    }

    #[test]
    fn a_syn_again() {
        let syn = |seq| segment(Kind::Syn, seq, 0, None, 8192);
        let connection = Connection::begin(&syn(1000));
        assert_eq!(changed(&connection, Original, &syn(2000)), Connection::begin(&syn(2000)));
        assert_eq!(changed(&connection, Original, &syn(1000)), connection);
        for state in [SynRecv, Established, FinWait, CloseWait, LastAck, TimeWait, Close] {
            assert_eq!(in_state(state).judge(Original, &syn(9000), false), Ok(Outcome::Begins));
            let late = in_state(state).judge(Original, &syn(1000), false);
            let over = matches!(state, TimeWait | Close);
            assert_eq!(late, Ok(if over { Outcome::Begins } else { Outcome::Unchanged }), "{state:?}");
        }
        for state in [SynRecv, Established, FinWait, CloseWait, LastAck] {
            assert_eq!(in_state(state).judge(Reply, &syn(9000), false), Err(Reason::TcpState));
        }
        for state in [TimeWait, Close] {
            assert_eq!(in_state(state).judge(Reply, &syn(9000), false), Ok(Outcome::Begins));
        }
        let answer = |seq, ack| segment(Kind::SynAck, seq, 0, Some(ack), 8192);
        let connection = changed(&connection, Reply, &answer(5000, 1001));
        assert_eq!(connection.judge(Reply, &answer(5000, 1001), false), Ok(Outcome::Unchanged));
        assert_eq!(connection.judge(Reply, &answer(6000, 1001), false), Ok(Outcome::Unchanged));
    }

    #[test]
    fn only_the_exact_reset_closes_what_is_established() {
        // The originator has acknowledged 5001, and the responder has sent 100 bytes more.
        let connection = changed(&established([8192; 2]), Reply, &ack(5001, 100, 1001, 8192));
        let rst = |seq| segment(Kind::Rst, seq, 0, None, 0);
        for exact in [5001, 5101] {
            assert_eq!(changed(&connection, Reply, &rst(exact)).state, Close);
        }
        assert_eq!(connection.judge(Reply, &rst(5000), false), Err(Reason::TcpReset));
        assert_eq!(connection.judge(Reply, &rst(0), false), Err(Reason::TcpReset));
        for near in [5002, 5100, 5102, 5001 + 8192] {
            assert_eq!(connection.judge(Reply, &rst(near), false), Ok(Outcome::Unchanged));
        }
        assert_eq!(connection.judge(Reply, &rst(900_000), false), Err(Reason::TcpWindow));
        let closing = Connection { state: FinWait, ..connection };
        assert_eq!(changed(&closing, Reply, &rst(5050)).state, Close);
    }

    #[test]
    fn a_refused_syn() {
        let connection = Connection::begin(&segment(Kind::Syn, 1000, 0, None, 8192));
        for seq in [0, 77] {
            assert_eq!(changed(&connection, Reply, &segment(Kind::Rst, seq, 0, Some(1001), 0)).state, Close);
        }
        for other in [None, Some(0), Some(1000)] {
            let rst = segment(Kind::Rst, 77, 0, other, 0);
            assert_eq!(changed(&connection, Reply, &rst).state, Close, "{other:?}");
        }
        let unrelated = segment(Kind::Rst, 0, 0, Some(1002), 0);
        assert_eq!(connection.judge(Reply, &unrelated, false), Err(Reason::TcpWindow));
    }

    #[test]
    fn an_inherited_flow_learns_before_it_checks() {
        let connection = established([8192; 2]);
        let Ok(Outcome::Changed(next)) = connection.judge(Original, &ack(700_000, 10, 800_000, 100), true)
        else {
            panic!("unchecked");
        };
        assert_eq!(
            (next.sides[0].end, next.sides[0].edge, next.sides[0].max_ack, next.sides[0].max_window),
            (Seq(700_010), Seq(800_100), Some(Seq(800_000)), 100)
        );
        assert_eq!(next.sides[1].end, Seq(800_000));
        let far = segment(Kind::Rst, 123_456_789, 0, None, 0);
        assert_eq!(connection.judge(Reply, &far, true), Ok(Outcome::Unchanged));
    }

    #[test]
    fn an_error_is_about_what_is_under_way() {
        let syn = Connection::begin(&segment(Kind::Syn, 1000, 0, None, 8192));
        assert!(syn.is_under_way(Original, Seq(1000), 0) && syn.is_under_way(Original, Seq(1001), 0));
        assert!(!syn.is_under_way(Original, Seq(999), 0) && !syn.is_under_way(Original, Seq(1002), 0));
        assert!(syn.is_under_way(Original, Seq(960), 40) && !syn.is_under_way(Original, Seq(959), 40));
        let connection = established([8192, 500]);
        assert!(
            connection.is_under_way(Original, Seq(500), 99)
                && !connection.is_under_way(Original, Seq(499), 99)
        );
        assert!(
            connection.is_under_way(Reply, Seq(5001), 99) && !connection.is_under_way(Reply, Seq(5002), 99)
        );
    }
}
