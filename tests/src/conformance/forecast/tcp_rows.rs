//! The rows of the known differences that are of TCP. A parting belongs to one only if both devices did what the row says of
//! them, for the numbers for which it says so: a segment that is mistreated in another way belongs to none.

use self::Change::{Gone, Nothing, Numbers, To};
use super::Verdict::{self, Drop, Pass};
use super::{Case, Entry, Knowledge, flows, knowledge};
use crate::conformance::conntrack::tcp;
use crate::model::Direction::{self, Original, Reply};
use crate::model::flow::Tracking;
use crate::model::tcp::{Connection, Kind, Segment, Seq};
use crate::model::{Flow, Reason, State};

/// An acknowledgement may lag so far behind, whatever the window.
const LEAST_ACK_WINDOW: u32 = 66_000;

/// What a segment did to what was known of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Nothing,
    /// Numbers only.
    Numbers,
    /// The state, and maybe numbers.
    To(State),
    /// Nothing is known any more.
    Gone,
}

impl Change {
    fn of(before: &Knowledge, after: &Knowledge) -> Self {
        match (before, after) {
            _ if before == after => Self::Nothing,
            (Knowledge::Tcp { state, .. }, Knowledge::Tcp { state: next, .. }) if state == next => {
                Self::Numbers
            }
            (_, Knowledge::Tcp { state, .. }) => Self::To(*state),
            _ => Self::Gone,
        }
    }
}

/// Where a segment lies in the windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lies {
    /// It acknowledges what was not sent, or lies beyond what the receiver lets its sender reach.
    Above,
    /// Beyond that, but by a window at most: how far it reaches is noted.
    Beyond,
    Inside,
    /// Its end, or what it acknowledges, is older than a window.
    Below,
}

impl Lies {
    fn of(segment: &Segment, direction: Direction, connection: &Connection) -> Self {
        let (sender, other) =
            (&connection.sides[direction as usize], &connection.sides[direction.other() as usize]);
        let is_rst = segment.kind == Kind::Rst;
        // A reset that answers a SYN need not have a number of its own, nor an acknowledgement.
        let answers_syn = is_rst && connection.state == State::SynSent && segment.seq == Seq(0);
        let has_number = sender.max_window != 0 && !answers_syn;
        let ack = segment.ack.filter(|ack| !is_rst || *ack != Seq(0));
        let sacks = segment.sacks.iter().filter(|_| other.sack_permitted && !is_rst);
        let most = ack.map(|ack| sacks.fold(ack, |most, edge| most.max(*edge)));
        let oldest_ack = other.end.minus(sender.max_window.max(LEAST_ACK_WINDOW)).minus(1);
        let oldest_end = sender.end.minus(other.max_window).minus(1);
        let beyond = has_number && segment.seq.after(other.edge);
        let below = has_number && other.max_window != 0 && !segment.end.after(oldest_end)
            || most.is_some_and(|most| !most.after(oldest_ack));
        let by_little =
            !below && other.max_window != 0 && segment.end.plus(1).since(other.edge) <= other.max_window;
        if most.is_some_and(|most| most.after(other.end)) || beyond && !by_little {
            Self::Above
        } else if beyond {
            Self::Beyond
        } else if below {
            Self::Below
        } else {
            Self::Inside
        }
    }
}

/// The row that a parting over a segment belongs to, if any.
pub(super) fn row(case: &Case<'_>, segment: &Segment, entry: &tcp::Entry) -> Option<&'static str> {
    let [main, begun] = flows(case.fwha);
    let answers =
        case.direction == Reply && connection(begun).is_some_and(|begun| begun.is_answered_by(segment));
    let beside = main.is_some() && begun.is_some();
    // At fwha it is a segment of the connection that was begun beside another.
    let of_begun = beside && (main.is_some_and(Flow::is_over) || answers);
    let flow = if of_begun { begun } else { main.or(begun) };
    let after = flows(&case.after.fwha);
    let same =
        after.into_iter().flatten().find(|after| flow.is_some_and(|flow| flow.identity == after.identity));
    let before = case.kernel.knowledge();
    let parted = Parted {
        segment,
        direction: case.direction,
        entry,
        connection: connection(flow)?,
        begins: connection(after[1]).is_some_and(|begun| begun.sides[0].end == segment.end),
        beside,
        kernel: (case.verdicts.0, Change::of(&before, &case.after.kernel.knowledge())),
        kernel_moved: matches!(&case.after.kernel, Entry::Tcp(after) if after.ends != entry.ends),
        fwha: (case.verdicts.1, case.reason, Change::of(&knowledge(flow), &knowledge(same))),
    };
    if of_begun && before != knowledge(flow) {
        return (parted.is_of_the_old_one() && parted.is_of_a_syn()).then_some("begun-beside");
    }
    match segment.kind {
        Kind::Rst if !parted.reset_is_compared() => None,
        Kind::Rst => parted.reset(),
        Kind::SynAck => parted.syn_ack(),
        Kind::Ack => parted.acknowledgement(),
        Kind::Syn => parted.syn(),
        Kind::Fin => None,
    }
}

/// The connection of a flow.
fn connection(flow: Option<&Flow>) -> Option<&Connection> {
    match &flow?.tracking {
        Tracking::Tcp(connection) => Some(connection),
        _ => None,
    }
}

/// A parting over a segment.
struct Parted<'a> {
    segment: &'a Segment,
    direction: Direction,
    /// What the kernel knew.
    entry: &'a tcp::Entry,
    /// What fwha judged it by.
    connection: &'a Connection,
    /// Now a connection of this SYN is begun at fwha.
    begins: bool,
    /// Another connection was begun beside the one at fwha.
    beside: bool,
    /// What the kernel did.
    kernel: (Verdict, Change),
    /// It moved numbers.
    kernel_moved: bool,
    /// What fwha did.
    fwha: (Verdict, Option<Reason>, Change),
}

impl Parted<'_> {
    fn lies(&self) -> Lies {
        Lies::of(self.segment, self.direction, self.connection)
    }

    /// The number that the receiver asked for last, which only a reset has that its sender means.
    fn asked(&self) -> Option<Seq> {
        self.connection.sides[self.direction.other() as usize].max_ack
    }

    /// Whether it acknowledges what the kernel noted last; where it acknowledges nothing, the kernel reads 0.
    fn has_noted_ack(&self) -> bool {
        self.segment.ack.map_or(0, |ack| ack.0) == self.entry.notes.end
    }

    /// Whether this is the last that the kernel took notice of.
    fn last_was(&self, kind: Kind, direction: Direction) -> bool {
        self.entry.notes.kind == Some((kind, direction))
    }

    /// Whether fwha does with a reset what it does with any: what lies below the number asked for goes no further, nor what
    /// lies outside; in an established connection it must be exactly that number, or that behind all data.
    fn reset_is_compared(&self) -> bool {
        let (seq, state, lies) = (self.segment.seq, self.connection.state, self.lies());
        let established = state == State::Established;
        let low = self.asked().is_some_and(|asked| asked.after(seq)) && (established || seq != Seq(0));
        let exact = self.asked().is_none_or(|asked| asked == seq)
            || seq == self.connection.sides[self.direction as usize].end;
        match self.fwha {
            (Drop, Some(Reason::TcpReset), Nothing) => low,
            (Drop, Some(Reason::TcpWindow), Nothing) => !low && lies == Lies::Above,
            (Pass, None, To(State::Close) | Gone) => !low && lies == Lies::Inside && (exact || !established),
            (Pass, None, Numbers) => !low && lies == Lies::Beyond,
            (Pass, None, Nothing) => {
                let challenged = established && !exact && lies != Lies::Above;
                let passes = challenged || self.tells_what_was_asked() || state == State::Close;
                !low && (passes || lies == Lies::Below || self.is_noted_already())
            }
            _ => false,
        }
    }

    /// It lies beyond what its sender may reach, but no further than one before it.
    fn is_noted_already(&self) -> bool {
        let sender = &self.connection.sides[self.direction as usize];
        self.lies() == Lies::Beyond && self.segment.end == sender.end
    }

    /// A reset tells the responder, with the number that it asked for, that it has another connection in mind.
    fn tells_what_was_asked(&self) -> bool {
        (self.connection.state, self.direction) == (State::SynSent, Original)
            && self.asked() == Some(self.segment.seq)
    }

    /// A reset, with which fwha does what it does with any.
    fn reset(&self) -> Option<&'static str> {
        use State::{Close, CloseWait, Established, FinWait, LastAck, SynRecv, SynSent, SynSent2, TimeWait};
        let last = self.entry.notes.kind.map(|(kind, _)| kind);
        match (self.entry.state, self.direction) {
            (FinWait | CloseWait | LastAck | TimeWait, _) => {
                (self.kernel == (Pass, To(Close)) && !self.kernel_moved).then_some("closing-reset")
            }
            (Close, _) => None,
            (SynSent, Original) => self.reset_of_the_originator(),
            (SynSent, Reply) => self.reset_of_the_responder(),
            (SynSent2 | SynRecv | Established, _) if last == Some(Kind::Syn) => self.reset_after_syn(),
            (SynSent2, Original) if self.last_was(Kind::Ack, Reply) => self.reset_after_syn(),
            (Established, _) => self.reset_of_an_established_one(),
            _ => None,
        }
    }

    /// A reset of the originator in SYN_SENT.
    fn reset_of_the_originator(&self) -> Option<&'static str> {
        let closed_before = Some("closed-before-it-was-answered");
        let answers_acknowledgement = self.last_was(Kind::Ack, Reply) && self.has_noted_ack();
        let tells = self.tells_what_was_asked();
        match (self.kernel, self.fwha) {
            ((Pass, To(State::Close)), (Pass, _, Gone) | (Drop, Some(Reason::TcpReset), _))
                if self.entry.answered =>
            {
                closed_before
            }
            ((Pass, To(State::Close)), (Drop, Some(Reason::TcpWindow), _)) if answers_acknowledgement => {
                closed_before
            }
            // Only fwha remembers what the responder of an older SYN asked for.
            ((Pass, Gone), (Drop, Some(Reason::TcpReset), _)) => closed_before,
            ((Pass, To(State::Close) | Gone), (Pass, _, Nothing)) if tells => closed_before,
            ((Drop, Nothing), (Pass, _, Nothing)) if tells && self.lies() == Lies::Above => closed_before,
            ((Pass, Nothing), (Drop, Some(Reason::TcpReset), _)) if self.lies() == Lies::Below => {
                closed_before
            }
            ((Pass, Gone), (Pass, _, Gone)) if self.beside => Some("begun-beside"),
            _ => None,
        }
    }

    /// A reset of the responder in SYN_SENT.
    fn reset_of_the_responder(&self) -> Option<&'static str> {
        let syn_end = Seq(self.entry.ends[0].end);
        let first = self.entry.ends[1].window == 0;
        match (self.kernel, self.fwha, self.segment.ack) {
            ((Drop, Numbers), (Drop, _, _), Some(ack)) if first && ack.after(syn_end) => {
                Some("refused-answer")
            }
            ((Pass, Numbers), (Pass, _, Nothing), Some(ack)) if first && syn_end.after(ack) => {
                Some("refused-answer")
            }
            ((Pass, Gone | To(State::Close)), (Drop, _, _), Some(ack)) if first && ack == syn_end.plus(1) => {
                Some("refused-answer")
            }
            ((Pass, To(State::Close)), (Pass, _, Gone), _) if self.entry.answered => {
                Some("closed-before-it-was-answered")
            }
            // Its refusal ends the old one as well, and no entry is left at the kernel.
            ((Pass, Gone), (Pass, _, Gone), _) if self.beside => Some("begun-beside"),
            _ => None,
        }
    }

    /// A reset behind a SYN on the connection; in SYN_SENT2 also one behind an acknowledgement, which it acknowledges.
    fn reset_after_syn(&self) -> Option<&'static str> {
        let challenged = self.entry.state == State::Established && self.lies() != Lies::Below;
        let behind_syn = self.entry.notes.kind.is_some_and(|(kind, _)| kind == Kind::Syn);
        let explained = match (self.kernel, self.fwha) {
            // It acknowledges that segment, so it closes wherever it lies.
            ((Pass, To(State::Close)), _) if self.has_noted_ack() => true,
            ((Pass, To(State::Close)), (Drop, Some(Reason::TcpReset), _)) => behind_syn,
            ((Pass, Nothing), (Drop, Some(Reason::TcpReset), _)) => behind_syn && self.lies() == Lies::Below,
            ((Pass, To(State::Close) | Numbers), (Pass, _, Nothing)) => behind_syn && challenged,
            _ => false,
        };
        explained.then_some("reset-after-syn")
    }

    /// A reset of an established connection, not behind a SYN.
    fn reset_of_an_established_one(&self) -> Option<&'static str> {
        let seq = self.segment.seq;
        let behind_all = seq.0 == self.entry.ends[self.direction as usize].end;
        let behind_last = self.last_was(Kind::Ack, self.direction) && seq.0 == self.entry.notes.end;
        match (self.kernel, self.fwha) {
            ((Pass, Nothing | Numbers), (Pass, _, To(State::Close))) if behind_all && !behind_last => {
                Some("reset-behind-data")
            }
            ((Pass, To(State::Close)), (Pass, _, Nothing)) if behind_last && !behind_all => {
                Some("reset-behind-data")
            }
            ((Pass, Numbers), (Pass, _, Nothing)) if !behind_all && !behind_last => Some("challenged-reset"),
            _ => None,
        }
    }

    fn syn_ack(&self) -> Option<&'static str> {
        let ack = self.segment.ack?;
        let [originator, responder] = self.entry.ends;
        let (syn_end, lies) = (Seq(originator.end), self.lies());
        match (self.entry.state, self.direction, self.kernel, self.fwha) {
            // It answers another SYN.
            (State::SynSent, Reply, (Drop, Numbers), (Drop, Some(Reason::TcpWindow), Nothing)) => {
                (responder.window == 0 && ack.after(syn_end)).then_some("refused-answer")
            }
            (State::SynSent, Reply, (Pass, Numbers), (Pass, None, Nothing)) => {
                (responder.window == 0 && syn_end.after(ack)).then_some("refused-answer")
            }
            (State::SynSent, Reply, ..) => None,
            // One with another number than the first; the kernel begins anew with it, wherever it lies.
            (State::SynRecv, Original, (_, Numbers), fwha) if self.segment.end.after(syn_end) => {
                let compared = match fwha {
                    (Drop, Some(Reason::TcpWindow), Nothing) => lies == Lies::Above,
                    (Pass, None, Nothing) => lies == Lies::Below || self.is_noted_already(),
                    (Pass, None, Numbers) => matches!(lies, Lies::Inside | Lies::Beyond),
                    _ => false,
                };
                let refused = self.kernel.0 == Drop;
                let unsent = ack.after(Seq(responder.end));
                (compared && (!refused || unsent)).then_some("refused-answer")
            }
            // It answers the SYN that the kernel noted, and that was nothing new to fwha.
            (state, Reply, (Pass, change), (Pass, None, Nothing)) => {
                let begins = change == To(State::SynRecv) || state == State::SynRecv && change == Numbers;
                (begins && self.last_was(Kind::Syn, Original) && self.has_noted_ack())
                    .then_some("begun-beside")
            }
            _ => None,
        }
    }

    fn acknowledgement(&self) -> Option<&'static str> {
        let explained = match (self.entry.state, self.direction, self.kernel, self.fwha) {
            // Over the originator's SYN that it ignores the kernel forgets that both ends sent one.
            (State::SynRecv, Reply, (Pass, Nothing | Numbers), (Pass, None, To(State::Established))) => {
                self.connection.met && !self.entry.notes.both_opened
            }
            // The kernel takes it for a challenge to the SYN before it.
            (State::LastAck, Reply, (Pass, Nothing), (Pass, None, To(State::TimeWait))) => {
                self.last_was(Kind::Syn, Original)
            }
            (State::LastAck, Reply, (Pass, Nothing), (Drop, Some(Reason::TcpWindow), Nothing)) => {
                self.last_was(Kind::Syn, Original) && self.lies() == Lies::Above
            }
            _ => false,
        };
        explained.then_some("begun-beside")
    }

    fn syn(&self) -> Option<&'static str> {
        use State::{Close, SynSent, TimeWait};
        let explained = match (self.entry.state, self.direction, self.kernel, self.fwha) {
            // The entry becomes the new connection; at fwha that is begun beside the old one.
            (TimeWait | Close, Original, (Pass, To(SynSent)), (Pass, None, Nothing)) => self.begins,
            (TimeWait, Reply, (Drop, Gone), (Drop, Some(Reason::NoRule), Nothing)) => true,
            _ => false,
        };
        explained.then_some("begun-beside")
    }

    /// Whether the kernel does with it what it does on an entry that is over, or not asked for what answers a SYN on it.
    fn is_of_the_old_one(&self) -> bool {
        use State::{Close, SynSent, TimeWait};
        match (self.segment.kind, self.direction, self.entry.state, self.kernel) {
            (Kind::Syn, Original, TimeWait | Close, kernel) => kernel == (Pass, To(SynSent)),
            (Kind::Syn, Reply, TimeWait, kernel) => kernel == (Drop, Gone),
            (Kind::Syn, Reply, Close, kernel) => kernel == (Drop, Nothing),
            (Kind::SynAck, Reply, _, kernel) => kernel == (Pass, Nothing),
            (Kind::Ack | Kind::Fin, _, TimeWait | Close, kernel) => {
                matches!(kernel, (Pass, Nothing | Numbers) | (Drop, Nothing))
            }
            (Kind::Rst, _, TimeWait, kernel) => kernel == (Pass, To(Close)),
            (Kind::Rst, _, Close, kernel) => kernel == (Pass, Nothing),
            (Kind::Rst, Reply, State::Established, kernel) => matches!(kernel, (Pass | Drop, Nothing)),
            _ => false,
        }
    }

    /// Whether fwha does with it what it does with a segment behind a SYN that was not answered.
    fn is_of_a_syn(&self) -> bool {
        let syn_end = self.connection.sides[0].end;
        let old = syn_end.minus(LEAST_ACK_WINDOW).minus(1);
        match (self.segment.kind, self.direction, self.fwha) {
            (Kind::Rst, ..) => self.reset_is_compared(),
            (Kind::Ack, Reply, fwha) => fwha == (Pass, None, Nothing),
            (Kind::Ack | Kind::Fin, _, fwha) => fwha == (Drop, Some(Reason::TcpState), Nothing),
            (Kind::Syn, Reply, fwha) => fwha == (Pass, None, To(State::SynSent2)),
            (Kind::Syn, Original, (Pass, None, Nothing | Numbers)) => true,
            (Kind::Syn, Original, fwha) => {
                fwha == (Drop, Some(Reason::TcpWindow), Nothing) && self.lies() == Lies::Above
            }
            (Kind::SynAck, Reply, (Drop, Some(Reason::TcpWindow), Nothing)) => {
                self.segment.ack.is_some_and(|ack| ack.after(syn_end))
            }
            (Kind::SynAck, Reply, (Pass, None, To(State::SynRecv))) => {
                self.segment.ack.is_some_and(|ack| !ack.after(syn_end) && ack.after(old))
            }
            (Kind::SynAck, Reply, (Pass, None, Nothing)) => {
                self.segment.ack.is_some_and(|ack| !ack.after(old))
            }
            _ => false,
        }
    }
}
