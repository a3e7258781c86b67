//! TCP: one entry between two ends, that takes notes about what it did not understand.

use crate::model::Direction::{self, Original, Reply};
use crate::model::State::{self, *};
use crate::model::tcp::{Kind, Segment, Seq};

/// An acknowledgement may lag so far behind, whatever the window.
const LEAST_ACK_WINDOW: u32 = 66_000;

/// What is known of an end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// One beyond the highest number that it sent.
    pub end: u32,
    /// One beyond the highest number that it may send.
    pub edge: u32,
    /// The largest window that it offered; 0 as long as it was not seen.
    pub window: u32,
    /// The highest that it acknowledged.
    pub acked: Option<u32>,
    /// What it offered.
    pub offer: Offer,
    /// It sent the first FIN.
    pub closed_first: bool,
}

/// What a SYN's options offer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// The window's shift, if it counts.
    pub shift: u8,
    /// Whether a shift was offered.
    pub scaled: bool,
    /// Whether selective acknowledgement was offered.
    pub sack: bool,
}

impl Offer {
    /// Of a segment. One without any option leaves what was there.
    fn or_of(self, segment: &Segment, has_options: bool) -> Self {
        if !has_options {
            return self;
        }
        Self {
            shift: segment.scale.unwrap_or(0),
            scaled: segment.scale.is_some(),
            sack: segment.sack_permitted,
        }
    }
}

/// What the entry remembers of a segment that came before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    /// The last that was taken in or ignored, and who sent it.
    pub kind: Option<(Kind, Direction)>,
    /// The number behind the last that acknowledged something or was ignored.
    pub end: u32,
    /// What it, or a challenge, acknowledged.
    ack: u32,
    /// Its window.
    window: u32,
    /// The offer of the originator's SYN that was ignored.
    offer: Offer,
    /// That SYN came in LAST_ACK, so an acknowledgement may be a challenge.
    challenge: bool,
    /// Both ends sent a SYN.
    pub both_opened: bool,
}

/// A connection's entry. Pairs are by [`Direction`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its state.
    pub state: State,
    /// Both ends.
    pub ends: [End; 2],
    /// What it remembers.
    pub notes: Notes,
    /// A packet of the responder was let through.
    pub answered: bool,
    /// It was once established.
    assured: bool,
}

/// What the table says.
enum Step {
    To(State),
    Ignore,
    Reopen,
    Invalid,
}

/// Where a segment lies.
enum Place {
    Inside,
    Passes,
    Outside,
}

/// How a reset is taken.
enum Reset {
    /// It closes, wherever it lies.
    Closes,
    /// It leads there, if it lies in the window.
    Leads(State),
    Invalid,
}

/// Judges a segment between two ends that may have an entry. Returns whether it goes on.
pub fn judge(entry: &mut Option<Entry>, from: Direction, segment: &Segment, has_options: bool) -> bool {
    if let Some(known) = entry {
        match known.judge(from, segment, has_options) {
            Judged::Invalid => return false,
            Judged::Valid => {
                known.answered |= from == Reply;
                return true;
            }
            Judged::Deleted => {
                *entry = None;
                return true;
            }
            Judged::Again => *entry = None,
        }
    }
    if segment.kind != Kind::Syn || from == Reply {
        return false;
    }
    *entry = Some(Entry::begin(segment, has_options));
    true
}

enum Judged {
    Valid,
    Invalid,
    /// It goes on, and the entry is gone.
    Deleted,
    /// The entry is gone, and what becomes of the segment is open.
    Again,
}

impl Entry {
    fn begin(syn: &Segment, has_options: bool) -> Self {
        let window = syn.window.max(1);
        let originator = End {
            end: syn.end.0,
            edge: syn.end.0,
            window,
            offer: Offer::default().or_of(syn, has_options),
            ..End::default()
        };
        let responder = End { edge: window, ..End::default() };
        let notes = Notes { kind: Some((Kind::Syn, Original)), ..Notes::default() };
        Self { state: SynSent, ends: [originator, responder], notes, answered: false, assured: false }
    }

    fn judge(&mut self, from: Direction, segment: &Segment, has_options: bool) -> Judged {
        let before = self.state;
        let to = match step(before, from, segment.kind) {
            Step::Invalid => return Judged::Invalid,
            Step::Reopen => {
                let aborted = self.notes.kind == Some((Kind::Rst, from));
                if aborted || self.ends.iter().any(|end| end.closed_first) {
                    return Judged::Again;
                }
                self.note(from, segment, has_options);
                return Judged::Valid;
            }
            Step::Ignore => {
                let answers = segment.kind == Kind::SynAck
                    && self.notes.kind == Some((Kind::Syn, from.other()))
                    && raw_ack(segment) == self.notes.end;
                if !answers {
                    self.note(from, segment, has_options);
                    return Judged::Valid;
                }
                self.believe_the_syn(from);
                SynRecv
            }
            Step::To(to) => to,
        };
        let mut to = to;
        match (to, segment.kind) {
            (TimeWait, Kind::Ack)
                if before == LastAck
                    && self.notes.kind == Some((Kind::Syn, from.other()))
                    && self.notes.challenge =>
            {
                self.notes.challenge = false;
                return Judged::Valid;
            }
            (SynSent2, _) => self.notes.both_opened = true,
            (SynRecv, Kind::Ack) if from == Reply && self.notes.both_opened => to = Established,
            _ => {}
        }
        let mut checked = true;
        if segment.kind == Kind::Rst {
            match self.reset(from, segment) {
                Reset::Closes => checked = false,
                Reset::Leads(state) => to = state,
                Reset::Invalid => return Judged::Invalid,
            }
        }
        if checked {
            match self.place(from, segment, has_options) {
                Place::Inside => {}
                Place::Passes => return Judged::Valid,
                Place::Outside => {
                    self.note_of_the_end(from, segment.kind);
                    return Judged::Invalid;
                }
            }
        }
        self.notes.kind = Some((segment.kind, from));
        self.ends[from as usize].closed_first |= before != FinWait && to == FinWait;
        self.state = to;
        if !self.answered && segment.kind == Kind::Rst {
            return Judged::Deleted;
        }
        self.assured |= self.answered && matches!(before, SynRecv | Established) && to == Established;
        Judged::Valid
    }

    fn note(&mut self, from: Direction, segment: &Segment, has_options: bool) {
        let notes = &mut self.notes;
        notes.kind = Some((segment.kind, from));
        (notes.end, notes.window) = (segment.end.0, segment.window);
        if (segment.kind, from) == (Kind::Syn, Original) {
            notes.offer = Offer::default().or_of(segment, has_options);
            notes.both_opened = false;
            notes.challenge = self.state == LastAck;
        }
        if self.state == SynSent && (segment.kind, from) == (Kind::Ack, Reply) {
            notes.ack = raw_ack(segment);
        }
    }

    /// Of a FIN or RST that was refused, once the connection was established.
    fn note_of_the_end(&mut self, from: Direction, kind: Kind) {
        let closes = |kind| matches!(kind, Kind::Fin | Kind::Rst);
        let answers = self.notes.kind.is_some_and(|(last, sender)| sender != from && closes(last));
        if self.assured && closes(kind) && !answers {
            self.notes.kind = Some((kind, from));
        }
    }

    /// The SYN that was ignored is answered: the entry becomes what it asked for.
    fn believe_the_syn(&mut self, answerer: Direction) {
        let Notes { end, window, offer, .. } = self.notes;
        self.notes.challenge = false;
        let asker = &mut self.ends[answerer.other() as usize];
        *asker = End { end, edge: end, window: window.max(1), offer, ..End::default() };
        self.ends[answerer as usize] = End::default();
    }

    fn reset(&self, from: Direction, rst: &Segment) -> Reset {
        if matches!(self.state, FinWait | CloseWait | LastAck | TimeWait | Close) {
            return Reset::Closes;
        }
        let (last, notes) = (self.notes.kind, &self.notes);
        let established = self.state == Established && self.assured;
        let mut to = Close;
        let after_syn = last.is_some_and(|(kind, _)| kind == Kind::Syn);
        if let Some(exact) = self.ends[from.other() as usize].acked
            && !after_syn
        {
            if rst.seq == Seq(0) && !established {
                return Reset::Leads(Close);
            }
            if Seq(exact).after(rst.seq) {
                return Reset::Invalid;
            }
            let behind_data = last == Some((Kind::Ack, from)) && rst.seq.0 == notes.end;
            if !established || rst.seq.0 == exact || behind_data {
                return Reset::Leads(Close);
            }
            to = self.state;
        }
        let refuses = match last {
            Some((_, sender)) if sender == from => false,
            Some((Kind::Syn, _)) => self.answered,
            Some((Kind::Ack, _)) => !self.assured,
            _ => false,
        };
        let of_challenge =
            self.state == SynSent && last == Some((Kind::Ack, Reply)) && rst.seq.0 == notes.ack;
        if refuses && raw_ack(rst) == notes.end || of_challenge {
            return Reset::Closes;
        }
        Reset::Leads(to)
    }

    /// Holds a segment against the windows and moves them.
    fn place(&mut self, from: Direction, segment: &Segment, has_options: bool) -> Place {
        let is_syn = matches!(segment.kind, Kind::Syn | Kind::SynAck);
        let is_rst = segment.kind == Kind::Rst;
        let (mut seq, mut end) = (segment.seq, segment.end);
        let state = self.state;
        let [own, other] = match from {
            Original => {
                let [own, other] = &mut self.ends;
                [own, other]
            }
            Reply => {
                let [other, own] = &mut self.ends;
                [own, other]
            }
        };
        let first = own.window == 0;
        let again = is_syn && !first && end.after(Seq(own.end)) && matches!(state, SynSent | SynRecv);
        if is_syn && (first || again) {
            own.end = end.0;
            own.edge = end.0;
            own.window = segment.window.max(1);
            own.offer = own.offer.or_of(segment, has_options);
            if has_options {
                // With the offer before it, all else that was noted of this end is forgotten.
                own.acked = None;
                own.closed_first = false;
            }
            if from == Reply && !(own.offer.scaled && other.offer.scaled) {
                own.offer.shift = 0;
                other.offer.shift = 0;
            }
            if segment.kind == Kind::Syn && (first || from == Reply) {
                return Place::Inside;
            }
        } else if first {
            own.end = end.0;
            own.window = (segment.window << own.offer.shift).max(1);
            own.edge = own.end.wrapping_add(own.window);
            if raw_ack(segment) == other.end.wrapping_add(1) {
                // An answer to a keepalive.
                other.end = other.end.wrapping_add(1);
            }
        }
        let mut ack = segment.ack.unwrap_or(Seq(other.end));
        if is_rst && ack == Seq(0) {
            ack = Seq(other.end);
        }
        let mut sack = ack;
        if other.offer.sack && segment.ack.is_some_and(|ack| !is_rst || ack != Seq(0)) {
            sack = segment.sacks.iter().fold(ack, |sack, &edge| sack.max(edge));
        }
        if is_rst && seq == Seq(0) && state == SynSent {
            seq = Seq(own.end);
            end = seq;
        }
        let ack_window = own.window.max(LEAST_ACK_WINDOW);
        let recent = other.window == 0 || end.after(Seq(own.end).minus(other.window).minus(1));
        let sent = !sack.after(Seq(other.end));
        let fresh = sack.after(Seq(other.end).minus(ack_window).minus(1));
        if seq.after(Seq(own.edge)) {
            let excess = end.plus(1).since(Seq(own.edge));
            if other.window == 0 || !recent || !fresh || !sent || excess > other.window {
                return Place::Outside;
            }
            own.end = end.0;
            return Place::Passes;
        }
        if !sent {
            return Place::Outside;
        }
        if !recent || !fresh {
            return Place::Passes;
        }
        let window = if is_syn { segment.window } else { segment.window << own.offer.shift };
        own.window = own.window.max(window.wrapping_add(sack.since(ack)));
        own.end = Seq(own.end).max(end).0;
        if segment.ack.is_some() {
            own.acked = Some(own.acked.map_or(ack.0, |acked| Seq(acked).max(ack).0));
        }
        if other.window != 0 && end.after(Seq(own.edge)) {
            other.window = other.window.wrapping_add(end.since(Seq(own.edge)));
        }
        let edge = sack.plus(window);
        if edge.after(Seq(other.edge).minus(1)) {
            other.edge = if window == 0 { edge.plus(1).0 } else { edge.0 };
        }
        if segment.kind == Kind::Ack {
            let notes = &mut self.notes;
            (notes.end, notes.ack, notes.window) = (end.0, ack.0, segment.window);
        }
        Place::Inside
    }
}

/// The field in the header, whether it counts or not.
fn raw_ack(segment: &Segment) -> u32 {
    segment.ack.map_or(0, |ack| ack.0)
}

/// What the state says to a segment.
fn step(state: State, from: Direction, kind: Kind) -> Step {
    use Step::{Ignore, Invalid, Reopen, To};
    match (kind, from, state) {
        (Kind::Rst, ..) => To(Close),

        (Kind::Syn, Original, SynSent | SynSent2) => To(state),
        (Kind::Syn, Original, TimeWait | Close) | (Kind::Syn, Reply, TimeWait) => Reopen,
        (Kind::Syn, Original, _) => Ignore,
        (Kind::Syn, Reply, SynSent | SynSent2) => To(SynSent2),
        (Kind::Syn, Reply, _) => Invalid,

        (Kind::SynAck, Original, SynSent2 | SynRecv) => To(SynRecv),
        (Kind::SynAck, Original, _) => Invalid,
        (Kind::SynAck, Reply, SynSent | SynSent2) => To(SynRecv),
        (Kind::SynAck, Reply, _) => Ignore,

        (Kind::Fin, _, SynSent | SynSent2) => Invalid,
        (Kind::Fin, _, SynRecv | Established) => To(FinWait),
        (Kind::Fin, _, FinWait | CloseWait) => To(LastAck),
        (Kind::Fin, ..) => To(state),

        (Kind::Ack, Original, SynSent | SynSent2) => Invalid,
        (Kind::Ack, Reply, SynSent | SynSent2) => Ignore,
        (Kind::Ack, Original, SynRecv) => To(Established),
        (Kind::Ack, _, FinWait) => To(CloseWait),
        (Kind::Ack, _, LastAck) => To(TimeWait),
        (Kind::Ack, ..) => To(state),
    }
}
