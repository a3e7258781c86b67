//! What a few ends say to each other through the firewall: mostly as they should, with one thing wrong now and then.
//!
//! A step says what is done, not which bytes are sent: those follow from what was said before, so a script that is
//! shortened still makes sense. What is wrong with a segment is chosen by the bounds that the model keeps, so that
//! each is met from both sides.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use fwha_tests::frames::{Ip, Tcp, flag, gre, sctp, sctp_chunk};
use fwha_tests::model::flow::{SECOND_NS, Tracking, Tuple, protocol};
use fwha_tests::model::packet::{Content, Frame, Mac, Query, Transport, ether_type};
use fwha_tests::model::tcp::{Seq, Side};
use fwha_tests::model::{Direction, End, Model, Ownership, Verdict};
use proptest::collection::vec;
use proptest::option::weighted;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::TestCaseError;

use crate::rig::{CLIENT_MAC, LAN_MAC, SERVER_MAC, WAN_MAC};

/// Ports of the firewall, as indices into `Environment::ports`.
const LAN: usize = 0;
const WAN: usize = 1;
const SYNC: usize = 2;

/// Who says a thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Client = 0,
    Server = 1,
}

use Who::{Client, Server};

impl Who {
    const fn other(self) -> Self {
        match self {
            Client => Server,
            Server => Client,
        }
    }

    const fn port(self) -> usize {
        match self {
            Client => LAN,
            Server => WAN,
        }
    }

    /// Destination and source.
    const fn macs(self) -> (Mac, Mac) {
        match self {
            Client => (LAN_MAC, CLIENT_MAC),
            Server => (WAN_MAC, SERVER_MAC),
        }
    }

    fn address(self, family: Family) -> IpAddr {
        match (self, family) {
            (Client, Family::V4) => Ipv4Addr::new(192, 168, 100, 100).into(),
            (Server, Family::V4) => Ipv4Addr::new(10, 0, 0, 128).into(),
            (Client, Family::V6) => Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x100).into(),
            (Server, Family::V6) => Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x128).into(),
        }
    }
}

/// Which IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

/// What an end of a TCP connection says.
#[derive(Clone, Copy, Debug)]
pub enum Say {
    /// What comes next: the handshake, then so many bytes.
    Next(u16),
    /// SYN, once more or, with this much added to the last number, of another connection.
    Syn(Option<i32>),
    SynAck,
    Ack,
    Fin,
    Rst,
    RstAck,
    /// RST as who knows of no connection sends it, from 0.
    RstZero,
}

/// A number that the model keeps of a flow, by which a segment is judged.
#[derive(Clone, Copy, Debug)]
pub enum Mark {
    /// The sender's highest number.
    End,
    /// As far as the other side lets it go.
    Edge,
    /// And as far beyond as is excused.
    Beyond,
    /// The oldest that is not yet old.
    Oldest,
    /// What the other side acknowledged.
    Acknowledged,
    Zero,
}

/// What is wrong, or odd.
#[derive(Clone, Debug)]
pub enum Twist {
    /// The sequence number is so far from a mark.
    Seq(Mark, i32),
    /// The end is: the segment is moved so that it ends there.
    Ends(Mark, i32),
    /// The acknowledgement is so far from the other side's mark.
    Ack(Mark, i32),
    /// The acknowledgement is the lowest that is taken, and so far from it.
    LowestAck(i32),
    /// A SACK block reaches so far from what the other side has sent.
    Sack(i32),
    Flags(u8),
    Window(u16),
    Options(Vec<u8>),
    Hops(u8),
    IpOptions,
    Extensions(Vec<u8>),
    /// The frame is for another station.
    Station(Mac),
    /// Cut into pieces after so many units of eight bytes, each; one of them in this place comes twice or not at all.
    Pieces {
        after: u16,
        last_first: bool,
        twice: Option<usize>,
        never: Option<usize>,
        every_other: bool,
    },
    /// Cut off at the end.
    Cut(usize),
}

impl Twist {
    /// Whether it leaves numbers and flags alone.
    const fn is_of_packet(&self) -> bool {
        use Twist::{Cut, Extensions, Hops, IpOptions, Options, Pieces, Station, Window};
        matches!(
            self,
            Hops(_)
                | IpOptions
                | Extensions(_)
                | Station(_)
                | Pieces { .. }
                | Cut(_)
                | Window(_)
                | Options(_)
        )
    }
}

/// How a tag of SCTP is chosen.
#[derive(Clone, Copy, Debug)]
pub enum Tag {
    Right,
    Mirrored,
    Zero,
    Wrong,
}

/// A first packet from or to somewhere else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stranger {
    Spoofed,
    Martian,
    Land,
    AsksForAddress,
    Outcast,
    ToNode(u16),
    ToGroup,
    Nowhere,
    NoRoute,
    NoZone,
    FromNoZone,
    Unresolved,
    UnknownEtherType,
    Malformed,
    Arp,
    Vrrp,
}

/// A step.
#[derive(Clone, Debug)]
pub enum Step {
    Tcp {
        family: Family,
        connection: u16,
        who: Who,
        say: Say,
        window: u16,
        twists: Vec<Twist>,
        lost: bool,
    },
    Udp {
        family: Family,
        who: Who,
        length: usize,
        twists: Vec<Twist>,
    },
    Query {
        family: Family,
        who: Who,
        query: Query,
        timestamp: bool,
    },
    /// Chunks by their numbers. `fresh`: an INIT with another tag than ever.
    Sctp {
        who: Who,
        chunks: Vec<u8>,
        tag: Tag,
        fresh: bool,
    },
    /// What comes next in an association, from its beginning to its end.
    NextSctp,
    Gre {
        who: Who,
        key: Option<u32>,
    },
    Other {
        who: Who,
        protocol: u8,
    },
    Stranger(Stranger),
    /// So many clients that were not there before ask, and are answered.
    Crowd(u16),
    /// An ICMP error about the packet so many before, with so much of it, by the node that it was on the way to.
    /// If it is a segment, its number may be so far from a mark.
    Error {
        back: usize,
        kind: u8,
        length: usize,
        to_sender: bool,
        seq: Option<(Mark, i32)>,
    },
    /// The frame so many before, again.
    Again {
        back: usize,
    },
    /// The frame so many before, by the port where it would have left.
    Elsewhere {
        back: usize,
    },
    Wait {
        ms: u64,
    },
    /// For the step that follows.
    Own(Ownership),
}

/// One end of a TCP connection.
#[derive(Clone, Debug)]
struct Speaker {
    first: u32,
    next: u32,
    /// What it has heard, up to which number.
    heard: Option<u32>,
    /// It has sent its SYN,
    opened: bool,
    /// heard that acknowledged,
    established: bool,
    /// and sent its FIN.
    finished: bool,
}

/// What happened so far.
struct Stage {
    connections: Vec<((Family, u16), [Speaker; 2])>,
    /// The speaker of the last segment, as it is once that has gone on.
    said: Option<Speaker>,
    /// How many came in [`Step::Crowd`]s.
    crowd: u16,
    /// How far the association of [`Step::NextSctp`] is.
    association: usize,
    /// Frames that were sent, and the ports they came in by.
    sent: Vec<(usize, Vec<u8>)>,
}

/// What a step does.
enum Act {
    /// Sends these frames, each by a port.
    Send(Vec<(usize, Vec<u8>)>),
    /// Lets time pass.
    Wait(u64),
    /// Sets the ownership of all flows, until something is sent.
    Own(Ownership),
}

/// Who a script is played to.
pub trait Audience {
    /// The model in it.
    fn model(&self) -> &Model;
    /// Makes all flows older, which is as good as waiting.
    fn wait(&mut self, ns: u64);
    /// Sets the ownership of all flows.
    fn own(&mut self, ownership: Ownership);
    /// Has a frame come in.
    fn send(&mut self, port: usize, frame: &[u8]) -> Result<Verdict, TestCaseError>;
}

/// Plays a script.
pub fn play(steps: &[Step], to: &mut impl Audience) -> Result<(), TestCaseError> {
    let mut stage = Stage::new();
    for (i, step) in steps.iter().enumerate() {
        match stage.act(step, to.model()) {
            Act::Wait(ms) => to.wait(ms * SECOND_NS / 1000),
            Act::Own(ownership) => to.own(ownership),
            Act::Send(frames) => {
                let mut verdicts = Vec::new();
                for (port, frame) in frames {
                    let verdict = to.send(port, &frame);
                    verdicts.push(
                        verdict
                            .map_err(|error| TestCaseError::fail(format!("step {i}, {step:?}: {error}")))?,
                    );
                }
                stage.hear(step, &verdicts);
                to.own(Ownership::Owned);
            }
        }
    }
    Ok(())
}

const SERVER_TCP: u16 = 22;
const CLIENT_UDP: u16 = 40_100;
const SERVER_UDP: u16 = 53;
const SCTP: (u16, u16) = (40_200, 36_412);
/// Tags that the client and the server want to see.
const TAGS: [u32; 2] = [11, 22];
const QUERY: u16 = 7;
/// The first port of those in a crowd.
const CROWD: u16 = 42_000;

/// An association from its beginning to its end: INIT, INIT ACK, COOKIE ECHO, COOKIE ACK, DATA, SHUTDOWN, SHUTDOWN
/// ACK, SHUTDOWN COMPLETE.
const ASSOCIATION: [(Who, u8, Tag); 8] = [
    (Client, 1, Tag::Zero),
    (Server, 2, Tag::Right),
    (Client, 10, Tag::Right),
    (Server, 11, Tag::Right),
    (Client, 0, Tag::Right),
    (Client, 7, Tag::Right),
    (Server, 8, Tag::Right),
    (Client, 14, Tag::Right),
];
const SHUTDOWN: usize = 5;

impl Stage {
    fn new() -> Self {
        Self { connections: Vec::new(), said: None, crowd: 0, association: 0, sent: Vec::new() }
    }

    /// What a step does. `model` knows what was judged so far.
    fn act(&mut self, step: &Step, model: &Model) -> Act {
        let frames = match step {
            Step::Wait { ms } => return Act::Wait(*ms),
            Step::Own(ownership) => return Act::Own(*ownership),
            Step::Tcp { .. } => self.tcp(step, model),
            Step::Udp { family, who, length, twists } => {
                let mut ip = ip(*family, *who);
                let ports = directed(*who, (CLIENT_UDP, SERVER_UDP));
                let payload = ip.udp(ports.0, ports.1, &vec![0x5a; *length]);
                twist_ip(&mut ip, twists);
                laid(&ip, *who, protocol::UDP, &payload, twists)
            }
            Step::Query { family, who, query, timestamp } => {
                let ip = ip(*family, *who);
                let kind = match (family, query, timestamp) {
                    (Family::V4, Query::Request, false) => 8,
                    (Family::V4, Query::Reply, false) => 0,
                    (Family::V4, Query::Request, true) => 13,
                    (Family::V4, Query::Reply, true) => 14,
                    (Family::V6, Query::Request, _) => 128,
                    (Family::V6, Query::Reply, _) => 129,
                };
                vec![(who.port(), ip.frame(ip.icmp_protocol(), &ip.query(kind, QUERY)))]
            }
            Step::Sctp { who, chunks, tag, fresh } => vec![sctp_packet(*who, chunks, *tag, *fresh)],
            Step::NextSctp => {
                let (round, at) =
                    (self.association / ASSOCIATION.len(), self.association % ASSOCIATION.len());
                let (who, chunk, tag) = ASSOCIATION[at];
                self.association += 1;
                // The one and the other shut down in turn.
                let turned = at >= SHUTDOWN && round % 2 == 1;
                vec![sctp_packet(if turned { who.other() } else { who }, &[chunk], tag, false)]
            }
            Step::Gre { who, key } => {
                vec![(who.port(), ip(Family::V4, *who).frame(protocol::GRE, &gre(*key)))]
            }
            Step::Other { who, protocol } => {
                vec![(who.port(), ip(Family::V4, *who).frame(*protocol, &[0; 24]))]
            }
            Step::Crowd(count) => {
                let ports = CROWD + self.crowd..CROWD + self.crowd + count;
                self.crowd += count;
                let datagram = |who: Who, port| {
                    let (ip, ports) = (ip(Family::V4, who), directed(who, (port, SERVER_UDP)));
                    (who.port(), ip.frame(protocol::UDP, &ip.udp(ports.0, ports.1, b"me too")))
                };
                ports.flat_map(|port| [datagram(Client, port), datagram(Server, port)]).collect()
            }
            Step::Stranger(stranger) => vec![self::stranger(*stranger)],
            Step::Error { back, kind, length, to_sender, seq } => {
                self.error(*back, *kind, *length, *to_sender, *seq, model)
            }
            Step::Again { back } => self.back(*back).into_iter().collect(),
            Step::Elsewhere { back } => {
                let other = |(port, mut frame): (usize, Vec<u8>)| {
                    let who = if port == LAN { Server } else { Client };
                    frame[..6].copy_from_slice(&who.macs().0);
                    (who.port(), frame)
                };
                self.back(*back).map(other).into_iter().collect()
            }
        };
        self.sent.extend(frames.iter().cloned());
        Act::Send(frames)
    }

    fn back(&self, back: usize) -> Option<(usize, Vec<u8>)> {
        self.sent.iter().rev().nth(back).cloned()
    }

    /// Lets both ends know what a step said, if all of it went on.
    fn hear(&mut self, step: &Step, verdicts: &[Verdict]) {
        let said = self.said.take();
        let Step::Tcp { family, connection, who, say, lost, .. } = step else { return };
        if verdicts.is_empty() || verdicts.iter().any(|verdict| matches!(verdict, Verdict::Drop(_))) {
            return;
        }
        if let Some(said) = said {
            let speakers = self.speakers(*family, *connection);
            if !lost && said.opened {
                let other = &mut speakers[who.other() as usize];
                other.heard = Some(said.next);
                other.established |= other.opened && !matches!(say, Say::Syn(_));
            }
            speakers[*who as usize] = said;
        }
    }

    fn speakers(&mut self, family: Family, connection: u16) -> &mut [Speaker; 2] {
        let name = (family, connection);
        let at = self.connections.iter().position(|(other, _)| *other == name).unwrap_or_else(|| {
            let speaker = |first| Speaker {
                first,
                next: first,
                heard: None,
                opened: false,
                established: false,
                finished: false,
            };
            // The numbers of one client come round soon.
            let first = if connection == 0 { u32::MAX - 300 } else { 9_000_000 };
            self.connections.push((name, [speaker(first), speaker(5_000_000)]));
            self.connections.len() - 1
        });
        &mut self.connections[at].1
    }

    fn tcp(&mut self, step: &Step, model: &Model) -> Vec<(usize, Vec<u8>)> {
        let Step::Tcp { family, connection, who, say, window, twists, .. } = step else {
            unreachable!("TCP")
        };
        let mut speaker = self.speakers(*family, *connection)[*who as usize].clone();
        let polite = matches!(say, Say::Next(_) | Say::Fin);
        let say = match (who, speaker.opened, speaker.heard) {
            _ if !polite || speaker.established => *say,
            (Client, false, _) | (Client, true, None) => Say::Syn(None),
            (Server, _, None) => return Vec::new(),
            (_, false, Some(_)) | (Server, true, Some(_)) => Say::SynAck,
            (Client, true, Some(_)) => Say::Ack,
        };
        // Nothing comes behind a FIN.
        let say = if polite && speaker.finished { Say::Ack } else { say };
        let syn_options: &[u8] = match (connection, who) {
            (0, _) => &[3, 3, 2, 4, 2],
            (_, Client) => &[3, 3, 1],
            (_, Server) => &[],
        };
        let mut segment = Tcp {
            ports: directed(*who, (40_000 + connection, SERVER_TCP)),
            ack: speaker.heard.unwrap_or(0),
            window: *window,
            ..Tcp::default()
        };
        if let Say::Syn(Some(further)) = say {
            speaker.first = speaker.first.wrapping_add_signed(further);
            (speaker.heard, speaker.established, speaker.finished) = (None, false, false);
            segment.ack = 0;
        }
        segment.seq = match say {
            Say::Syn(_) | Say::SynAck => speaker.first,
            Say::RstZero => 0,
            _ => speaker.next,
        };
        (segment.flags, segment.length) = match say {
            Say::Next(length) => (flag::ACK | flag::PSH, length.into()),
            Say::Syn(_) => (flag::SYN, 0),
            Say::SynAck => (flag::SYN | flag::ACK, 0),
            Say::Ack => (flag::ACK, 0),
            Say::Fin => (flag::FIN | flag::ACK, 0),
            Say::Rst => (flag::RST, 0),
            Say::RstAck | Say::RstZero => (flag::RST | flag::ACK, 0),
        };
        match say {
            Say::Syn(_) | Say::SynAck => {
                segment.options = syn_options.to_vec();
                speaker.opened = true;
                if speaker.next == speaker.first || matches!(say, Say::Syn(Some(_))) {
                    speaker.next = speaker.first.wrapping_add(1);
                }
            }
            Say::Fin => {
                speaker.finished = true;
                speaker.next = speaker.next.wrapping_add(1);
            }
            _ => speaker.next = speaker.next.wrapping_add(segment.length as u32),
        }
        let mut ip = ip(*family, *who);
        let end = |address, port| End { address, port };
        let (source, destination) = (end(ip.source, segment.ports.0), end(ip.destination, segment.ports.1));
        let (sender, other) = sides(model, &Tuple::new(source, destination, protocol::TCP));
        for twist in twists {
            twist_segment(&mut segment, twist, &sender, &other);
        }
        // What has other numbers or flags was said by somebody else.
        self.said = twists.iter().all(Twist::is_of_packet).then_some(speaker);
        let payload = ip.tcp(&segment);
        twist_ip(&mut ip, twists);
        laid(&ip, *who, protocol::TCP, &payload, twists)
    }

    fn error(
        &self,
        back: usize,
        kind: u8,
        length: usize,
        to_sender: bool,
        seq: Option<(Mark, i32)>,
        model: &Model,
    ) -> Vec<(usize, Vec<u8>)> {
        let Some((port, mut about)) = self.back(back) else { return Vec::new() };
        if let (Some((at, off)), Ok(frame)) = (seq, Frame::parse(&about))
            && let Content::Ip(packet) = frame.content
            && let Transport::Tcp(tuple, segment) = packet.transport
            && let Some(field) = about.windows(4).position(|bytes| bytes == segment.seq.0.to_be_bytes())
        {
            let (sender, other) = sides(model, &tuple);
            let seq = mark(at, &sender, &other).wrapping_add_signed(off);
            about[field..field + 4].copy_from_slice(&seq.to_be_bytes());
        }
        let family = match about.get(12..14) {
            Some([0x08, 0x00]) if about.len() >= 34 => Family::V4,
            Some([0x86, 0xdd]) if about.len() >= 54 => Family::V6,
            _ => return Vec::new(),
        };
        // The error comes from the far side.
        let who = if port == LAN { Server } else { Client };
        let to = if to_sender { who.other() } else { who };
        let mut ip = ip(family, who);
        ip.destination = to.address(family);
        let kind = match (family, kind) {
            (Family::V4, 0) => 3,
            (Family::V4, 1) => 11,
            (Family::V4, 2) => 12,
            (Family::V4, _) => 5,
            (Family::V6, kind) => kind + 1,
        };
        vec![(who.port(), ip.frame(ip.icmp_protocol(), &ip.error(kind, &about, length)))]
    }
}

fn ip(family: Family, who: Who) -> Ip {
    Ip::new(who.macs(), who.address(family), who.other().address(family))
}

fn directed(who: Who, (client, server): (u16, u16)) -> (u16, u16) {
    match who {
        Client => (client, server),
        Server => (server, client),
    }
}

/// What the model knows of sender and receiver of a segment.
fn sides(model: &Model, tuple: &Tuple) -> (Side, Side) {
    let flow = model.main.get(&tuple.key).or_else(|| model.embryonic.get(&tuple.key));
    match flow.map(|flow| (&flow.tracking, flow.direction(tuple))) {
        Some((Tracking::Tcp(connection), Direction::Original)) => (connection.sides[0], connection.sides[1]),
        Some((Tracking::Tcp(connection), Direction::Reply)) => (connection.sides[1], connection.sides[0]),
        _ => {
            let nothing = Side {
                end: Seq(0),
                edge: Seq(0),
                max_window: 0,
                max_ack: None,
                scale: None,
                sack_permitted: false,
            };
            (nothing, nothing)
        }
    }
}

fn mark(mark: Mark, sender: &Side, other: &Side) -> u32 {
    match mark {
        Mark::End => sender.end.0,
        Mark::Edge => other.edge.0,
        Mark::Beyond => other.edge.0.wrapping_add(other.max_window),
        Mark::Oldest => sender.end.0.wrapping_sub(other.max_window),
        Mark::Acknowledged => other.max_ack.unwrap_or(Seq(0)).0,
        Mark::Zero => 0,
    }
}

fn twist_segment(segment: &mut Tcp, twist: &Twist, sender: &Side, other: &Side) {
    match *twist {
        Twist::Seq(at, off) => segment.seq = mark(at, sender, other).wrapping_add_signed(off),
        Twist::Ends(at, off) => {
            let length = segment.length as u32 + u32::from(segment.flags & (flag::SYN | flag::FIN) != 0);
            segment.seq = mark(at, sender, other).wrapping_add_signed(off).wrapping_sub(length);
        }
        Twist::Ack(at, off) => segment.ack = mark(at, other, sender).wrapping_add_signed(off),
        Twist::LowestAck(off) => {
            let lowest = other.end.0.wrapping_sub(sender.max_window.max(66_000));
            segment.ack = lowest.wrapping_add_signed(off);
        }
        Twist::Sack(off) => {
            let right = other.end.0.wrapping_add_signed(off);
            segment.options = vec![1, 1, 5, 10];
            segment.options.extend(right.wrapping_sub(10).to_be_bytes());
            segment.options.extend(right.to_be_bytes());
        }
        Twist::Flags(flags) => segment.flags = flags,
        Twist::Window(window) => segment.window = window,
        Twist::Options(ref options) => segment.options = options.clone(),
        _ => {}
    }
}

fn twist_ip(ip: &mut Ip, twists: &[Twist]) {
    for twist in twists {
        match twist {
            Twist::Hops(hops) => ip.hops_left = *hops,
            Twist::IpOptions => ip.options = vec![1, 1, 1, 0],
            Twist::Extensions(numbers) => {
                ip.extensions = numbers.iter().map(|&number| (number, vec![1, 4, 0, 0, 0, 0])).collect();
            }
            Twist::Station(mac) => ip.macs.0 = *mac,
            _ => {}
        }
    }
}

fn sctp_packet(who: Who, chunks: &[u8], tag: Tag, fresh: bool) -> (usize, Vec<u8>) {
    let tag = match tag {
        Tag::Right => TAGS[who.other() as usize],
        Tag::Mirrored => TAGS[who as usize],
        Tag::Zero => 0,
        Tag::Wrong => 33,
    };
    let own = TAGS[who as usize] + if fresh { 100 } else { 0 };
    let init = [&own.to_be_bytes()[..], &[0; 12]].concat();
    let mirrored = u8::from(tag == TAGS[who as usize]);
    let chunk = |&kind: &u8| sctp_chunk(kind, mirrored, if matches!(kind, 1 | 2) { &init } else { &[0; 4] });
    let packet = sctp(directed(who, SCTP), tag, &chunks.iter().map(chunk).collect::<Vec<_>>());
    (who.port(), ip(Family::V4, who).frame(protocol::SCTP, &packet))
}

/// The frames of a packet: one, or its pieces.
fn laid(ip: &Ip, who: Who, protocol: u8, payload: &[u8], twists: &[Twist]) -> Vec<(usize, Vec<u8>)> {
    let mut frames = vec![ip.frame(protocol, payload)];
    for twist in twists {
        match twist {
            Twist::Pieces { after, last_first, twice, never, every_other } => {
                let size = usize::from(*after) * 8;
                let count = payload.chunks(size).count();
                let pieces = payload.chunks(size).enumerate().map(|(i, piece)| {
                    let offset = (i * size / 8) as u16;
                    // Pieces of one size are of one datagram.
                    let number = u32::from(*after % 8);
                    let piece_of = Ip { piece: Some((number, offset, i + 1 < count)), ..ip.clone() };
                    piece_of.frame(protocol, piece)
                });
                frames = pieces.step_by(if *every_other { 2 } else { 1 }).take(12).collect();
                if let Some(frame) = twice.and_then(|i| frames.get(i)).cloned() {
                    frames.push(frame);
                }
                if let Some(i) = never.filter(|&i| i < frames.len()) {
                    frames.remove(i);
                }
                if *last_first && !frames.is_empty() {
                    frames.rotate_right(1);
                }
            }
            Twist::Cut(bytes) => {
                for frame in &mut frames {
                    // What a test run takes at least.
                    frame.truncate(frame.len().saturating_sub(*bytes).max(54.min(frame.len())));
                }
            }
            _ => {}
        }
    }
    frames.into_iter().map(|frame| (who.port(), frame)).collect()
}

fn stranger(stranger: Stranger) -> (usize, Vec<u8>) {
    let v4 = |a, b, c, d| IpAddr::from([a, b, c, d]);
    let (client, server) = (Client.address(Family::V4), Server.address(Family::V4));
    let udp = |source, destination, ports: (u16, u16)| {
        let ip = Ip::new(Client.macs(), source, destination);
        ip.frame(protocol::UDP, &ip.udp(ports.0, ports.1, b"who?"))
    };
    let ports = (50_000, SERVER_UDP);
    match stranger {
        Stranger::Spoofed => (LAN, udp(v4(10, 0, 0, 77), server, ports)),
        Stranger::Martian => (LAN, udp(v4(127, 0, 0, 1), server, ports)),
        Stranger::Land => (LAN, udp(client, client, (9, 9))),
        Stranger::AsksForAddress => {
            let mut ip = Ip::new(([0xff; 6], CLIENT_MAC), v4(0, 0, 0, 0), v4(255, 255, 255, 255));
            ip.hops_left = 128;
            (LAN, ip.frame(protocol::UDP, &ip.udp(68, 67, b"discover")))
        }
        Stranger::Outcast => (LAN, udp(v4(192, 168, 100, 101), server, ports)),
        Stranger::ToNode(port) => {
            let ip = Ip::new(Client.macs(), client, v4(192, 168, 100, 1));
            let syn = Tcp { ports: (50_000, port), flags: flag::SYN, window: 8192, ..Tcp::default() };
            (LAN, ip.frame(protocol::TCP, &ip.tcp(&syn)))
        }
        Stranger::ToGroup => {
            let ip = Ip::new(([1, 0, 0x5e, 0, 0, 0xfb], CLIENT_MAC), client, v4(224, 0, 0, 251));
            (LAN, ip.frame(protocol::UDP, &ip.udp(5353, 5353, b"mdns")))
        }
        Stranger::Nowhere => (LAN, udp(client, v4(198, 51, 100, 1), ports)),
        Stranger::NoRoute => (LAN, udp(client, v4(8, 8, 8, 8), ports)),
        Stranger::NoZone => (LAN, udp(client, v4(192, 0, 2, 1), ports)),
        Stranger::FromNoZone => (SYNC, udp(client, server, ports)),
        Stranger::Unresolved => (LAN, udp(client, v4(203, 0, 113, 1), ports)),
        Stranger::UnknownEtherType | Stranger::Arp => {
            let ether_type: u16 = if stranger == Stranger::Arp { ether_type::ARP } else { 0x8847 };
            let mut frame = udp(client, server, ports);
            frame[12..14].copy_from_slice(&ether_type.to_be_bytes());
            (LAN, frame)
        }
        Stranger::Malformed => {
            let mut frame = udp(client, server, ports);
            // A header of four words.
            frame[14] = 0x44;
            (LAN, frame)
        }
        Stranger::Vrrp => {
            let mut ip = Ip::new(([1, 0, 0x5e, 0, 0, 18], CLIENT_MAC), client, v4(224, 0, 0, 18));
            ip.hops_left = 255;
            (LAN, ip.frame(protocol::VRRP, &[0x31, 61, 100, 1, 0, 100, 0, 0, 10, 0, 0, 12]))
        }
    }
}

/// Scripts of so many steps.
pub fn scripts(length: RangeInclusive<usize>) -> BoxedStrategy<Vec<Step>> {
    let family = || select(vec![Family::V4, Family::V4, Family::V6]);
    let who = || select(vec![Client, Server]);
    let twists = |of: BoxedStrategy<Twist>| prop_oneof![4 => Just(Vec::new()), 1 => vec(of, 1..=2)];
    let say = prop_oneof![
        12 => select(vec![1, 100, 1000, 1360]).prop_map(Say::Next),
        1 => weighted(0.7, select(vec![100_000, -100_000, 1, -1, i32::MAX])).prop_map(Say::Syn),
        1 => Just(Say::SynAck),
        3 => Just(Say::Ack),
        2 => Just(Say::Fin),
        1 => Just(Say::Rst),
        1 => select(vec![Say::RstAck, Say::RstZero]),
    ];
    let window = || select(vec![0, 1, 500, 8192, 8192, 8192, 65_535]);
    let lost = prop::bool::weighted(0.1);
    let tcp = (family(), select(vec![0, 0, 1]), who(), say, window(), twists(segment_twist()), lost)
        .prop_map(|(family, connection, who, say, window, twists, lost)| Step::Tcp {
            family,
            connection,
            who,
            say,
            window,
            twists,
            lost,
        });
    let udp = (family(), who(), select(vec![0, 1, 100, 1372, 1373]), twists(packet_twist()))
        .prop_map(|(family, who, length, twists)| Step::Udp { family, who, length, twists });
    let query = (family(), who(), select(vec![Query::Request, Query::Reply]), any::<bool>())
        .prop_map(|(family, who, query, timestamp)| Step::Query { family, who, query, timestamp });
    let error = (
        0..6usize,
        0..4u8,
        select(vec![28, 48, 68, 88, 19, 27, 47]),
        prop::bool::weighted(0.9),
        weighted(0.4, (select(vec![Mark::End, Mark::Oldest]), -2..=2i32)),
    )
        .prop_map(|(back, kind, length, to_sender, seq)| Step::Error {
            back,
            kind,
            length,
            to_sender,
            seq,
        });
    // A little more than each timeout; not even sums of them are so near to one that a tick of the clock decides.
    let wait =
        select(vec![1_013, 3_037, 11_071, 31_153, 61_331, 121_607, 303_097]).prop_map(|ms| Step::Wait { ms });
    let own = select(vec![Ownership::NotOwned, Ownership::Lapsed]).prop_map(Step::Own);
    let crowd = (1..6u16).prop_map(Step::Crowd);
    let elsewhere = (0..3usize).prop_map(|back| Step::Elsewhere { back });
    let sctp = (
        who(),
        prop_oneof![
            8 => select(vec![0u8, 1, 1, 2, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10, 11, 11, 14]).prop_map(|kind| vec![kind]),
            1 => vec(select(vec![0u8, 1, 3, 6, 7, 9, 10, 11, 14]), 2..=3),
        ],
        select(vec![Tag::Right, Tag::Right, Tag::Right, Tag::Right, Tag::Mirrored, Tag::Zero, Tag::Zero, Tag::Wrong]),
        prop::bool::weighted(0.2),
    )
        .prop_map(|(who, chunks, tag, fresh)| Step::Sctp { who, chunks, tag, fresh });
    let gre =
        (who(), select(vec![None, Some(1), Some(0x0001_0002)])).prop_map(|(who, key)| Step::Gre { who, key });
    let other = (who(), select(vec![2u8, 4, 50, 51, 59, 58]))
        .prop_map(|(who, protocol)| Step::Other { who, protocol });
    let strangers = select(vec![
        Stranger::Spoofed,
        Stranger::Martian,
        Stranger::Land,
        Stranger::AsksForAddress,
        Stranger::Outcast,
        Stranger::ToNode(22),
        Stranger::ToNode(23),
        Stranger::ToGroup,
        Stranger::Nowhere,
        Stranger::NoRoute,
        Stranger::NoZone,
        Stranger::FromNoZone,
        Stranger::Unresolved,
        Stranger::UnknownEtherType,
        Stranger::Malformed,
        Stranger::Arp,
        Stranger::Vrrp,
    ])
    .prop_map(Step::Stranger);
    let again = (0..12usize).prop_map(|back| Step::Again { back });
    let step = prop_oneof![
        60 => tcp,
        4 => udp,
        2 => query,
        5 => error,
        5 => sctp,
        8 => Just(Step::NextSctp),
        1 => gre,
        1 => other,
        2 => strangers,
        3 => again,
        1 => elsewhere,
        2 => wait,
        1 => own,
        1 => crowd,
    ];
    vec(step, length).boxed()
}

fn packet_twist() -> BoxedStrategy<Twist> {
    let pieces = (
        // A few large ones, or many so small that the first may be too short.
        select(vec![1, 2, 3, 4, 5, 60, 60]),
        prop::bool::weighted(0.2),
        weighted(0.3, 0..3usize),
        weighted(0.2, 0..3usize),
        prop::bool::weighted(0.2),
    )
        .prop_map(|(after, last_first, twice, never, every_other)| Twist::Pieces {
            after,
            last_first,
            twice,
            never,
            every_other,
        });
    prop_oneof![
        2 => select(vec![0, 1, 2]).prop_map(Twist::Hops),
        1 => Just(Twist::IpOptions),
        2 => vec(select(vec![0, 60, 60, 60, 43, 135]), 1..=7).prop_map(Twist::Extensions),
        2 => select(vec![vec![0], vec![60], vec![0, 60], vec![60; 6], vec![60; 7]]).prop_map(Twist::Extensions),
        1 => select(vec![[2, 9, 9, 9, 9, 9], [0xff; 6]]).prop_map(Twist::Station),
        5 => pieces,
        1 => (1..60usize).prop_map(Twist::Cut),
    ]
    .boxed()
}

fn segment_twist() -> BoxedStrategy<Twist> {
    let mark =
        || select(vec![Mark::End, Mark::Edge, Mark::Beyond, Mark::Oldest, Mark::Acknowledged, Mark::Zero]);
    let off = || prop_oneof![6 => -2..=2i32, 1 => select(vec![-70_000, 70_000, i32::MIN, 600])];
    let options = vec![
        vec![3, 3, 14, 4, 2],
        vec![3, 3, 15, 1],
        vec![4, 2],
        vec![2, 4, 5, 180],
        vec![],
        vec![0, 3, 3, 7],
        vec![8, 40, 3, 3],
        vec![3, 0, 4, 2],
        vec![1; 40],
    ];
    prop_oneof![
        4 => (mark(), off()).prop_map(|(mark, off)| Twist::Seq(mark, off)),
        4 => (mark(), off()).prop_map(|(mark, off)| Twist::Ends(mark, off)),
        4 => (mark(), off()).prop_map(|(mark, off)| Twist::Ack(mark, off)),
        1 => off().prop_map(Twist::LowestAck),
        2 => off().prop_map(Twist::Sack),
        2 => any::<u8>().prop_map(Twist::Flags),
        2 => select(vec![0, 1, u16::MAX]).prop_map(Twist::Window),
        2 => select(options).prop_map(Twist::Options),
        3 => packet_twist(),
    ]
    .boxed()
}
