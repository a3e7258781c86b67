//! What the two models say of a conversation, packet by packet: [`crate::model`] of fwha, [`conntrack`](super::conntrack)
//! of the kernel.
//!
//! As long as both know the same of it (they are *in step*), they must treat a packet alike and know the same of it
//! afterwards. Where they do not, the packet itself is the cause of everything that follows, until they know the same
//! again; and its cause must be one that is meant.

mod tcp_rows;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::compare::{Plain, routed, verdict};
use super::conntrack::{sctp, tcp};
use super::script::{Sequence, Tweak, Verdict, What};
use super::wire::{Ends, Family, NETWORKS, Side, frames};
use crate::model::flow::Tracking;
use crate::model::packet::{Content, Frame, Transport};
use crate::model::sctp::Kind as Chunk;
use crate::model::tcp::Segment;
use crate::model::{
    self, Direction, Environment, Flow, Model, Ownership, Port, Prefix, Reason, Route, Rule, State, Target,
};

/// What a packet will come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forecast {
    /// By the kernel.
    pub kernel: Verdict,
    /// By fwha.
    pub fwha: Verdict,
    /// Why fwha drops it, or a part of it.
    pub reasons: Vec<&'static str>,
    /// Whether both knew the same before.
    pub in_step: bool,
    /// That they part here: what it was, in words, and the cause, if it is one that is meant.
    pub parting: Option<Parting>,
}

/// A packet by which the two come to know different things, or that they treat differently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parting {
    /// In words.
    pub what: String,
    /// The row of the known differences.
    pub cause: Option<&'static str>,
}

/// The forecast of a conversation; none if it holds what the models do not have.
pub fn of(sequence: &Sequence, family: Family, ends: &Ends) -> Option<Vec<Forecast>> {
    let modelled = |tweak: &Tweak| {
        matches!(
            tweak,
            Tweak::Tag(_) | Tweak::InitTag(_) | Tweak::Reflected | Tweak::Id(_) | Tweak::Fragments(_)
        )
    };
    let steps = || sequence.steps.iter().map(|step| &step.message);
    let all = |fits: fn(&What) -> bool| steps().all(|message| fits(&message.what));
    if !steps().all(|message| message.tweaks.iter().all(modelled)) {
        return None;
    }
    let mut oracle = Oracle::new(family);
    if all(|what| matches!(what, What::Tcp(_))) || all(|what| matches!(what, What::Sctp(_))) {
        return steps()
            .map(|message| match &frames(message, ends)[..] {
                [frame] => Some(oracle.whole(message.from, frame)),
                _ => None,
            })
            .collect();
    }
    // Those are cut so that any router can put them together.
    (sequence.is_random() && all(|what| matches!(what, What::Udp(_))))
        .then(|| steps().map(|message| oracle.pieces(message.from, &frames(message, ends))).collect())
}

/// Why fwha drops a piece of a datagram, and nothing is wrong with the rest.
const FRAGMENTS: [Reason; 3] = [Reason::Fragment, Reason::FragmentTiny, Reason::FragmentOverlap];

/// Both models.
struct Oracle {
    kernel: Entry,
    fwha: Model,
    /// What becomes whole at a router, and at fwha.
    plains: [Plain; 2],
    /// Datagrams of which fwha has dropped a piece, for what is wrong with the piece.
    torn: BTreeSet<(Side, u32)>,
    /// Datagrams that the kernel has put together.
    complete: BTreeSet<(Side, u32)>,
}

/// What the kernel knows.
#[derive(Clone, Debug)]
enum Entry {
    Nothing,
    Tcp(tcp::Entry),
    Sctp(sctp::Entry),
}

impl Oracle {
    fn new(family: Family) -> Self {
        Self {
            kernel: Entry::Nothing,
            fwha: Model::new(environment(family)),
            plains: Default::default(),
            torn: BTreeSet::new(),
            complete: BTreeSet::new(),
        }
    }

    /// A packet in one piece.
    fn whole(&mut self, from: Side, frame: &[u8]) -> Forecast {
        let before = (self.kernel.clone(), self.fwha.clone());
        let in_step = self.in_step();
        let (verdicts, reason) = self.judge(from, frame);
        let (kernel, fwha) = verdicts;
        let parts = in_step && (kernel != fwha || !self.in_step());
        let parting = parts.then(|| {
            let packet = Case {
                kernel: &before.0,
                fwha: &before.1,
                after: self,
                direction: direction(from),
                frame,
                verdicts,
                reason,
            };
            Parting { what: packet.what(), cause: packet.cause() }
        });
        let reasons = reason.map(Reason::as_str).into_iter().collect();
        Forecast { kernel, fwha, reasons, in_step, parting }
    }

    /// What the kernel and fwha do with a packet in one piece, and why fwha drops it.
    fn judge(&mut self, from: Side, frame: &[u8]) -> ((Verdict, Verdict), Option<Reason>) {
        let kernel = pass_if(self.kernel.judge(direction(from), frame));
        match self.fwha.judge(from as usize, frame) {
            model::Verdict::Drop(reason) => ((kernel, Verdict::Drop), Some(reason)),
            _ => ((kernel, Verdict::Pass), None),
        }
    }

    /// A datagram's pieces, or a datagram. The kernel puts them together as any router would, for this comparison.
    fn pieces(&mut self, from: Side, frames: &[Vec<u8>]) -> Forecast {
        let datagram = (from, identification(&frames[0]));
        let mut reasons = BTreeSet::new();
        let mut at_fwha = Vec::new();
        for frame in frames {
            match self.fwha.judge(from as usize, frame) {
                model::Verdict::Drop(reason) => {
                    reasons.insert(reason.as_str());
                    if FRAGMENTS.contains(&reason) {
                        self.torn.insert(datagram);
                    }
                }
                _ => at_fwha.push((from.other(), routed(from, frame))),
            }
        }
        let all = frames.iter().map(|frame| (from.other(), routed(from, frame))).collect();
        let [router, fwha] = &mut self.plains;
        let whole = router.take(all);
        let outputs = fwha.take(at_fwha);
        let (kernel, fwha) = (verdict(&whole, &whole), verdict(&outputs, &whole));
        let torn = self.torn.contains(&datagram);
        let parting = (whole != outputs).then(|| {
            let explained = match (kernel, fwha) {
                (Verdict::Pass, Verdict::Drop) => torn,
                // Pieces that come again make it complete, which it is at the kernel.
                (Verdict::Drop, _) => torn && self.complete.contains(&datagram),
                _ => false,
            };
            Parting {
                what: format!(
                    "a datagram of which {} a piece: kernel {}, fwha {}",
                    if torn { "fwha dropped" } else { "nobody dropped" },
                    kernel.as_str(),
                    fwha.as_str()
                ),
                cause: explained.then_some("fragments"),
            }
        });
        if kernel == Verdict::Pass {
            self.complete.insert(datagram);
        }
        Forecast { kernel, fwha, reasons: reasons.into_iter().collect(), in_step: true, parting }
    }

    /// Once a connection is over, its entry may have become the next one at the kernel, and fwha keeps the next one beside it.
    fn in_step(&self) -> bool {
        let kernel = self.kernel.knowledge();
        let [main, begun] = flows(&self.fwha);
        let over = main.is_some_and(Flow::is_over);
        kernel.is(&knowledge(main.or(begun))) || over && begun.is_some() && kernel.is(&knowledge(begun))
    }
}

/// Inside begins whatever there is.
fn direction(from: Side) -> Direction {
    if from == Side::Inside { Direction::Original } else { Direction::Reply }
}

fn pass_if(goes: bool) -> Verdict {
    if goes { Verdict::Pass } else { Verdict::Drop }
}

/// By which a receiver knows the pieces of a datagram.
fn identification(frame: &[u8]) -> u32 {
    let Ok(Frame { content: Content::Ip(packet), .. }) = Frame::parse(frame) else { return 0 };
    packet.piece.map_or(0, |piece| piece.identification)
}

/// The devices' surroundings, as the model of fwha wants them.
fn environment(family: Family) -> Environment {
    let zone = |side: Side| side as u8 + 1;
    let router = |side: Side| side.router_address(family);
    let routes = NETWORKS.iter().map(|(side, network)| {
        let (address, length) = network.split_once('/').expect("a prefix");
        let address: IpAddr = address.parse().expect("an address");
        let length = length.parse().expect("a length");
        let port = *side as usize;
        (
            Prefix::new(address, length),
            Route::Via { port, router: Some(router(*side)), mtu: super::device::INSIDE_MTU.into() },
        )
    });
    Environment {
        ports: Side::BOTH.map(|side| Port { zone: Some(zone(side)), mac: side.device_mac() }).into(),
        own: Side::BOTH.map(|side| side.device_address(family)).into(),
        routes: routes.filter(|(prefix, _)| prefix.address.is_ipv4() == (family == Family::V4)).collect(),
        neighbours: Side::BOTH.map(|side| (side as usize, router(side))).into(),
        rules: Some(vec![Rule {
            from: Some(zone(Side::Inside)),
            to: Some(Target::Zone(zone(Side::Outside))),
            ..Rule::accept_all()
        }]),
        ownership: BTreeMap::new(),
        owned_by_default: Ownership::Owned,
        owned_since_ns: 0,
        max_flows: usize::MAX,
        now_ns: 0,
    }
}

/// What is known of a connection or association, as far as both know such things.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Knowledge {
    Nothing,
    Tcp { state: State, ends: [Option<End>; 2] },
    Sctp { state: sctp::State, tags: [u32; 2] },
}

impl Knowledge {
    /// Whether fwha knows the same. An association that opens is closed to the kernel until there is an INIT ACK.
    fn is(&self, fwha: &Self) -> bool {
        use sctp::State::{Closed, CookieWait};
        match (self, fwha) {
            (Self::Sctp { state: Closed, tags }, Self::Sctp { state: CookieWait, tags: same }) => {
                tags == same
            }
            (kernel, fwha) => kernel == fwha,
        }
    }
}

/// What is known of an end of a TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct End {
    end: u32,
    edge: Option<u32>,
    window: u32,
    acked: Option<u32>,
    shift: u8,
    sack: bool,
}

impl Entry {
    fn judge(&mut self, from: Direction, frame: &[u8]) -> bool {
        let payload = payload(frame);
        if frame[if frame[12] == 0x08 { 23 } else { 20 }] == model::flow::protocol::TCP {
            let Ok(segment) = Segment::parse(payload) else { return false };
            let mut entry = match std::mem::replace(self, Self::Nothing) {
                Self::Tcp(entry) => Some(entry),
                _ => None,
            };
            let goes = tcp::judge(&mut entry, from, &segment, payload[12] >> 4 > 5);
            *self = entry.map_or(Self::Nothing, Self::Tcp);
            goes
        } else {
            let Some(packet) = sctp::Packet::parse(payload) else { return false };
            let mut entry = match std::mem::replace(self, Self::Nothing) {
                Self::Sctp(entry) => Some(entry),
                _ => None,
            };
            let goes = sctp::judge(&mut entry, from, &packet);
            *self = entry.map_or(Self::Nothing, Self::Sctp);
            goes
        }
    }

    fn knowledge(&self) -> Knowledge {
        match self {
            Self::Nothing => Knowledge::Nothing,
            Self::Sctp(entry) => Knowledge::Sctp { state: entry.state, tags: entry.tags },
            Self::Tcp(entry) => {
                let both = entry.ends.iter().all(|end| end.window != 0);
                let end = |end: tcp::End| {
                    (end.window != 0).then_some(End {
                        end: end.end,
                        edge: both.then_some(end.edge),
                        window: end.window,
                        acked: end.acked.filter(|_| both),
                        shift: end.offer.shift,
                        sack: end.offer.sack,
                    })
                };
                Knowledge::Tcp { state: entry.state, ends: entry.ends.map(end) }
            }
        }
    }
}

/// The flow that was answered, and the one that was not.
fn flows(model: &Model) -> [Option<&Flow>; 2] {
    [&model.main, &model.embryonic].map(|table| table.values().next())
}

/// What fwha knows of a flow.
fn knowledge(flow: Option<&Flow>) -> Knowledge {
    let Some(flow) = flow else { return Knowledge::Nothing };
    match &flow.tracking {
        Tracking::Tcp(connection) => {
            let sides = connection.sides;
            let both = sides.iter().all(|side| side.max_window != 0);
            let scaled = sides.iter().all(|side| side.scale.is_some());
            let end = |own: usize| {
                let (side, other) = (sides[own], sides[1 - own]);
                (side.max_window != 0).then_some(End {
                    end: side.end.0,
                    edge: both.then_some(other.edge.0),
                    window: side.max_window,
                    acked: side.max_ack.map(|seq| seq.0).filter(|_| both),
                    shift: side.scale.filter(|_| scaled || !both).unwrap_or(0),
                    sack: side.sack_permitted,
                })
            };
            Knowledge::Tcp { state: connection.state, ends: [end(0), end(1)] }
        }
        Tracking::Sctp(association) => {
            let state = match association.state {
                State::CookieWait => sctp::State::CookieWait,
                State::CookieEchoed => sctp::State::CookieEchoed,
                State::Established => sctp::State::Established,
                State::ShutdownSent => sctp::State::ShutdownSent,
                State::ShutdownRecd => sctp::State::ShutdownRecd,
                State::ShutdownAckSent => sctp::State::ShutdownAckSent,
                _ => sctp::State::Closed,
            };
            Knowledge::Sctp { state, tags: association.tags.map(|tag| tag.unwrap_or(0)) }
        }
        Tracking::Plain(_) => Knowledge::Nothing,
    }
}

/// A packet by which they part.
#[derive(Clone, Copy)]
struct Case<'a> {
    /// What was known before.
    kernel: &'a Entry,
    fwha: &'a Model,
    after: &'a Oracle,
    direction: Direction,
    frame: &'a [u8],
    verdicts: (Verdict, Verdict),
    reason: Option<Reason>,
}

impl Case<'_> {
    fn what(&self) -> String {
        let Self { direction, verdicts: (kernel, fwha), reason, .. } = self;
        let state = match self.kernel.knowledge() {
            Knowledge::Nothing => "nothing".into(),
            Knowledge::Tcp { state, .. } => state.as_str().to_owned(),
            Knowledge::Sctp { state, .. } => format!("{state:?}"),
        };
        let packet = match Frame::parse(self.frame) {
            Ok(Frame { content: Content::Ip(packet), .. }) => match packet.transport {
                Transport::Tcp(_, segment) => format!("{:?}", segment.kind),
                Transport::Sctp(_, packet) => {
                    format!("{:?}", packet.chunk.kind).split('(').next().unwrap_or_default().to_owned()
                }
                _ => "packet".into(),
            },
            Ok(_) => "packet".into(),
            Err(reason) => reason.as_str().into(),
        };
        let reason = reason.map_or(String::new(), |reason| format!(" ({})", reason.as_str()));
        let knowledge = match (
            self.after.kernel.knowledge(),
            knowledge(flows(&self.after.fwha)[0].or(flows(&self.after.fwha)[1])),
        ) {
            (a, b) if a.is(&b) => String::new(),
            (Knowledge::Tcp { state: a, ends: ends_a }, Knowledge::Tcp { state: b, ends: ends_b }) => {
                let numbers = if ends_a == ends_b { "" } else { " numbers" };
                if a == b { numbers.into() } else { format!(" {} {}{numbers}", a.as_str(), b.as_str()) }
            }
            (Knowledge::Sctp { state: a, tags: tags_a }, Knowledge::Sctp { state: b, tags: tags_b }) => {
                format!(" {a:?} {b:?} {}", if tags_a == tags_b { "" } else { "tags" })
            }
            (a, b) => format!(
                " nothing at {}",
                if a == Knowledge::Nothing {
                    "the kernel"
                } else if b == Knowledge::Nothing {
                    "fwha"
                } else {
                    "nobody"
                }
            ),
        };
        format!(
            "{state}: {direction:?} {packet}: kernel {}, fwha {}{reason}; then{knowledge}",
            kernel.as_str(),
            fwha.as_str()
        )
    }

    /// Which of the known differences it is; each is told by what was known before, which was
    /// the same at both, by the packet and its numbers, and by what each made of it.
    fn cause(&self) -> Option<&'static str> {
        let packet = match Frame::parse(self.frame) {
            Ok(Frame { content: Content::Ip(packet), .. }) => packet,
            // It asks for no tag at all.
            Err(Reason::SctpTag) => {
                return (self.verdicts == (Verdict::Pass, Verdict::Drop)).then_some("sctp");
            }
            _ => return None,
        };
        match (&packet.transport, self.kernel) {
            (Transport::Tcp(_, segment), Entry::Tcp(entry)) => tcp_rows::row(self, segment, entry),
            (Transport::Sctp(_, packet), entry) => self.sctp(packet.chunk.kind, entry),
            _ => None,
        }
    }

    fn sctp(&self, chunk: Chunk, entry: &Entry) -> Option<&'static str> {
        let packet = sctp::Packet::parse(payload(self.frame))?;
        // What the kernel drops belongs to no row, and fwha has a reason for all that it drops.
        if self.verdicts != (Verdict::Pass, if self.reason.is_some() { Verdict::Drop } else { Verdict::Pass })
        {
            return None;
        }
        let Entry::Sctp(entry) = entry else {
            // No pickup in mid-stream.
            return (self.reason == Some(Reason::SctpState)).then_some("sctp");
        };
        let [main, begun] = flows(self.fwha);
        let replaced = main.is_some() && begun.is_some();
        // Which belongs to the one begun beside at fwha.
        if replaced && main.is_some_and(Flow::is_over) && !self.kernel.knowledge().is(&knowledge(begun)) {
            let compared = matches!(self.reason, None | Some(Reason::SctpTag | Reason::SctpState));
            return compared.then_some("begun-beside");
        }
        match (chunk, entry.state, self.direction, self.reason) {
            // A tag that nobody knows is none.
            (_, _, _, Some(Reason::SctpTag)) if packet.has_lax_tag() || packet.tag() == 0 => Some("sctp"),
            // Nothing but the handshake before its cookie, and no handshake on what is closed.
            (Chunk::Other, sctp::State::Closed | sctp::State::CookieWait, _, Some(Reason::SctpState))
            | (Chunk::InitAck(_), sctp::State::Closed, _, Some(Reason::SctpState)) => Some("sctp"),
            // An INIT begins another association, which the rules must admit and an answer confirm.
            (Chunk::Init(_), _, Direction::Reply, Some(Reason::NoRule)) => Some("sctp"),
            (Chunk::Init(_), _, Direction::Original, None) => Some("begun-beside"),
            (Chunk::InitAck(_), _, Direction::Reply, None) if replaced => Some("begun-beside"),
            // Both ends may begin at once: nothing is agreed on yet, and either end's cookie counts.
            (Chunk::Init(_), sctp::State::Closed | sctp::State::CookieWait, Direction::Reply, None)
            | (Chunk::CookieEcho, sctp::State::Closed | sctp::State::CookieWait, _, None)
            | (
                Chunk::CookieAck | Chunk::CookieAckShutdown,
                sctp::State::CookieEchoed,
                Direction::Original,
                None,
            ) => Some("sctp"),
            (Chunk::Abort, sctp::State::Closed, _, None) if main.is_none() => {
                Some("closed-before-it-was-answered")
            }
            _ => None,
        }
    }
}

/// What IP carries, behind a header without options.
fn payload(frame: &[u8]) -> &[u8] {
    &frame[if frame[12] == 0x08 { 34 } else { 54 }..]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::random;
    use crate::conformance::script::parse;

    const OPEN: &str = "> S 0:0\n< S. 0:0 ack 1\n> . ack 1\n";

    /// The row of the parting at the last of these lines, were it as `alter` makes it.
    fn row(lines: &str, alter: impl FnOnce(&mut Case<'_>)) -> Option<&'static str> {
        let sequence = parse(&format!("== x v4 isn 1000 5000\n{lines}")).unwrap().remove(0);
        let ends = Ends::new(Family::V4, 1, sequence.isn);
        let mut oracle = Oracle::new(Family::V4);
        let (last, steps) = sequence.steps.split_last().unwrap();
        for step in steps {
            oracle.whole(step.message.from, &frames(&step.message, &ends)[0]);
        }
        let frame = &frames(&last.message, &ends)[0];
        let (kernel, fwha) = (oracle.kernel.clone(), oracle.fwha.clone());
        let (verdicts, reason) = oracle.judge(last.message.from, frame);
        let direction = direction(last.message.from);
        let mut case =
            Case { kernel: &kernel, fwha: &fwha, after: &oracle, direction, frame, verdicts, reason };
        alter(&mut case);
        case.cause()
    }

    /// The row, if fwha did this.
    fn if_fwha(lines: &str, verdict: Verdict, reason: Option<Reason>) -> Option<&'static str> {
        row(lines, |case| (case.verdicts.1, case.reason) = (verdict, reason))
    }

    /// The row, if the same was done with a segment of this number and acknowledgement.
    fn if_numbers(lines: &str, seq: u32, ack: u32) -> Option<&'static str> {
        row(lines, |case| {
            let mut frame = case.frame.to_vec();
            frame[38..42].copy_from_slice(&seq.to_be_bytes());
            frame[42..46].copy_from_slice(&ack.to_be_bytes());
            case.frame = frame.leak();
        })
    }

    #[test]
    fn a_reset_that_is_mistreated_belongs_to_no_row() {
        use Verdict::{Drop, Pass};
        let challenged = format!("{OPEN}> R 100:100");
        assert_eq!(row(&challenged, |_| ()), Some("challenged-reset"));
        assert_eq!(if_fwha(&challenged, Drop, Some(Reason::TcpReset)), None);
        assert_eq!(if_fwha(&challenged, Drop, Some(Reason::TcpWindow)), None);
        assert_eq!(if_fwha(&challenged, Drop, None), None);
        assert_eq!(row(&challenged, |case| case.verdicts.0 = Drop), None);
        // That with the number asked for closes.
        assert_eq!(if_numbers(&challenged, 1001, 0), None);

        let closing = format!("{OPEN}> F. 1:1 ack 1\n> R 0:0");
        assert_eq!(row(&closing, |_| ()), Some("closing-reset"));
        assert_eq!(if_fwha(&closing, Pass, None), None);
        assert_eq!(if_fwha(&closing, Drop, Some(Reason::TcpWindow)), None);
        assert_eq!(if_numbers(&closing, 1001, 0), None);
    }

    #[test]
    fn an_answer_that_is_mistreated_belongs_to_no_row() {
        use Verdict::{Drop, Pass};
        let refused = "> S 0:0\n< S. 0:0 ack 1000";
        assert_eq!(row(refused, |_| ()), Some("refused-answer"));
        assert_eq!(if_fwha(refused, Pass, None), None);
        assert_eq!(if_fwha(refused, Drop, Some(Reason::TcpState)), None);
        assert_eq!(row(refused, |case| case.verdicts.0 = Pass), None);
        // One that acknowledges the SYN is none to refuse.
        assert_eq!(if_numbers(refused, 5000, 1001), None);
    }

    #[test]
    fn a_chunk_that_is_mistreated_belongs_to_no_row() {
        let picked_up = "> sctp heartbeat";
        assert_eq!(row(picked_up, |_| ()), Some("sctp"));
        assert_eq!(if_fwha(picked_up, Verdict::Pass, None), None);
        assert_eq!(row(picked_up, |case| case.verdicts.0 = Verdict::Drop), None);
    }

    /// Played through the models only; the devices are held against them in `tests/conformance.rs`.
    #[test]
    fn every_parting_of_random_conversations_belongs_to_a_row() {
        let mut partings = 0;
        for seed in 0..2000 {
            let sequence = random::conversation(seed).unwrap();
            let family = sequence.families[0];
            let forecasts = of(&sequence, family, &Ends::new(family, 1, sequence.isn)).unwrap();
            for (index, parting) in
                forecasts.iter().enumerate().filter_map(|(i, f)| Some((i, f.parting.as_ref()?)))
            {
                assert!(parting.cause.is_some(), "{}, packet {}: {}", sequence.name, index + 1, parting.what);
                partings += 1;
            }
        }
        assert!(partings > 1000, "only {partings} partings");
    }
}
