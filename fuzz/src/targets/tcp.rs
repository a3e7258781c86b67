//! Segments of one connection: what the programs in the kernel make of them, held against the model.
//!
//! The pieces are those of the programs: parser, options, states, windows, resets. How they follow each other is told
//! here once more, as in `FlowRef::judge` and `FlowRef::advance`, which work on maps.

use fwha_common::drop::DropReason;
use fwha_common::flow::{FlowState, Way};
use fwha_tests::model::Direction;
use fwha_tests::model::tcp::{Connection, Outcome, Segment, Side};

use super::packet::{Frame, sum};
use crate::input::Input;
use crate::parse::Ip;
use crate::tcp::{self, OPTIONS_LEN, Options, Scan, Step};

/// A connection, as the programs have it.
#[derive(Clone, Debug)]
struct Flow {
    state: FlowState,
    ways: [Way; 2],
    /// Not answered yet.
    young: bool,
}

impl Flow {
    fn begin(ip: &Ip, options: &Options) -> Self {
        let mut ways = [Way::default(); 2];
        let [own, other] = &mut ways;
        tcp::init(own, other, &ip.tcp, ip.tcp.seq.wrapping_add(len(ip)).wrapping_add(1), options);
        Self { state: FlowState::SynSent, ways, young: true }
    }

    fn judge(&mut self, ip: &Ip, reply: bool, options: &Options) -> Result<Step, DropReason> {
        let state = self.state as u8;
        let mut stepped = match tcp::step(state, self.ways[1].flags, reply, ip.tcp.flags) {
            Step::Invalid => return Err(DropReason::TcpState),
            step => step,
        };
        let [original, back] = &mut self.ways;
        let (own, other) = if reply { (back, original) } else { (original, back) };
        let rst = ip.tcp.flags & tcp::RST != 0;
        if rst {
            stepped = tcp::reset(state, reply, ip.tcp.seq, own, other)?;
        }
        if stepped == Step::Begin {
            let end = ip.tcp.seq.wrapping_add(len(ip)).wrapping_add(1);
            let late = state < FlowState::TimeWait as u8 && tcp::late_syn(end, own, other);
            return Ok(if late { Step::Ignore } else { stepped });
        }
        if stepped == Step::Ignore {
            return Ok(stepped);
        }
        let quiet = rst && stepped == Step::Stay;
        match tcp::window(state, own, other, &ip.tcp, len(ip), options, false, quiet) {
            tcp::Window::In => {
                if ip.tcp.flags & tcp::FIN != 0 || rst && matches!(stepped, Step::To(_)) && !reply {
                    own.flags |= Way::ENDED;
                }
                Ok(stepped)
            }
            tcp::Window::Ignore => Ok(Step::Ignore),
            tcp::Window::Out => Err(DropReason::TcpWindow),
        }
    }

    fn advance(&mut self, ip: &Ip, reply: bool, options: &Options) -> Result<Step, DropReason> {
        if !(self.young && reply) {
            let stepped = self.judge(ip, reply, options)?;
            if let Step::To(state) = stepped {
                self.state = state;
            }
            return Ok(stepped);
        }
        // An answer is judged on a copy, which becomes the flow.
        let mut copy = self.clone();
        let stepped = copy.judge(ip, reply, options)?;
        match stepped {
            Step::To(FlowState::Close) => self.state = FlowState::Close,
            Step::To(state) => *self = Self { state, young: false, ..copy },
            Step::Ignore => {
                self.ways[1].flags |= Way::ACKED;
                self.ways[1].maxack = ip.tcp.ack;
            }
            _ => {}
        }
        Ok(stepped)
    }
}

/// Length of what a segment carries.
const fn len(ip: &Ip) -> u32 {
    ip.len - ip.header_len
}

/// Plays what the bytes say.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let mut flow: Option<(Flow, Connection)> = None;
    while !input.is_empty() {
        let reply = flow.is_some() && input.bool();
        let bytes = segment(&mut input, flow.as_ref().map(|(flow, _)| &flow.ways), reply);
        let (read, model) = (read(&bytes), Segment::parse(&bytes));
        let ((ip, options), segment) = match (read, model) {
            (Ok(read), Ok(segment)) => (read, segment),
            (Err(_), Err(_)) => continue,
            (read, model) => panic!("{read:?}, the model {model:?}"),
        };
        let Some((ours, theirs)) = &mut flow else {
            if tcp::opens(ip.tcp.flags) {
                flow = Some((Flow::begin(&ip, &options), Connection::begin(&segment)));
            }
            continue;
        };
        let young = ours.young;
        let stepped = ours.advance(&ip, reply, &options);
        let direction = if reply { Direction::Reply } else { Direction::Original };
        let outcome = theirs.judge(direction, &segment, false);
        let said = format!("{stepped:?}, the model {outcome:?}, after {ip:?}");
        match (stepped, outcome) {
            (Ok(Step::Begin), Ok(Outcome::Begins)) | (Ok(Step::Ignore), Ok(Outcome::Unchanged)) => {}
            (Ok(Step::Ignore), Ok(Outcome::Noted(connection))) => *theirs = connection,
            (Ok(Step::To(_) | Step::Stay), Ok(Outcome::Changed(connection))) => *theirs = connection,
            (Err(ours), Err(theirs)) if ours.as_str() == theirs.as_str() => {}
            _ => panic!("{said}"),
        }
        assert_eq!(ours.state.as_str(), theirs.state.as_str(), "{said}");
        if young && reply && ours.state == FlowState::Close {
            // Refused: it is gone, whatever its windows are.
            return;
        }
        assert_eq!(seen(&ours.ways), known(&theirs.sides), "{said}");
        let ended = ours.ways.iter().any(|way| way.flags & Way::ENDED != 0);
        assert_eq!(ended, theirs.ended, "{said}");
    }
}

/// What is known of a side: the highest acknowledgement; if a packet of it was seen, end, window, scale and SACK; and if
/// one of the other side was seen, too, the edge. It bounds nothing before.
type Known = (Option<u32>, Option<(u32, u32, Option<u8>, bool)>, Option<u32>);

fn seen(ways: &[Way; 2]) -> [Known; 2] {
    let both = ways[0].flags & ways[1].flags & Way::SEEN != 0;
    ways.map(|way| {
        let scale = (way.flags & Way::SCALE != 0).then_some(way.scale & Way::SHIFT);
        let seen = (way.end, way.maxwin, scale, way.flags & Way::SACK != 0);
        let acked = (way.flags & Way::ACKED != 0).then_some(way.maxack);
        (acked, (way.flags & Way::SEEN != 0).then_some(seen), both.then_some(way.edge))
    })
}

fn known(sides: &[Side; 2]) -> [Known; 2] {
    let both = sides.iter().all(|side| side.max_window > 0);
    sides.map(|side| {
        let seen = (side.end.0, side.max_window, side.scale, side.sack_permitted);
        (side.max_ack.map(|ack| ack.0), (side.max_window > 0).then_some(seen), both.then_some(side.edge.0))
    })
}

/// A segment: header, options, and some data. Its numbers are mostly near those that count.
fn segment(input: &mut Input<'_>, ways: Option<&[Way; 2]>, reply: bool) -> Vec<u8> {
    let mut number = || {
        let base = input.u8();
        let near = input.u16() as i16;
        let near = i32::from(near) << if base & 0x80 == 0 { 0 } else { 4 };
        let base = match (ways, base & 7) {
            (Some(ways), n @ 0..6) => {
                let way = &ways[usize::from(reply) ^ usize::from(n & 1)];
                [way.end, way.edge, way.maxack][usize::from(n >> 1)]
            }
            (_, 6) => 0,
            _ => input.u32(),
        };
        base.wrapping_add_signed(near)
    };
    let (seq, ack) = (number(), number());
    let (flags, window, len) = (input.u8(), input.u16(), usize::from(input.u8()) * 5);
    let mut options = input.piece().to_vec();
    options.truncate(40);
    options.resize(options.len().next_multiple_of(4), 0);
    let mut bytes = vec![0x12, 0x34, 0, 80];
    bytes.extend(seq.to_be_bytes());
    bytes.extend(ack.to_be_bytes());
    bytes.extend([(5 + options.len() as u8 / 4) << 4, flags]);
    bytes.extend(window.to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(options);
    bytes.resize(bytes.len() + len, 0);
    bytes
}

/// Reads a segment as the programs do.
fn read(segment: &[u8]) -> Result<(Ip, Options), DropReason> {
    let mut frame = vec![0; 12];
    frame.extend([0x08, 0, 0x45, 0]);
    frame.extend((20 + segment.len() as u16).to_be_bytes());
    frame.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    sum(&mut frame);
    frame.extend(segment);
    let ip = Frame::new(&frame, 0).read()?.expect("IPv4");
    let bytes = &segment[20..ip.tcp.header_len.into()];
    // As `engine::options::read`: of a SYN, or of one that may have SACK blocks.
    if ip.tcp.flags & tcp::SYN == 0 && ip.tcp.flags & (tcp::ACK | tcp::RST) != tcp::ACK {
        return Ok((ip, Options::default()));
    }
    let mut scan = Scan {
        bytes: [0; OPTIONS_LEN + 4],
        len: bytes.len() as u32,
        at: 0,
        blocks_at: 0,
        blocks: 0,
        found: Options::default(),
    };
    scan.bytes[..bytes.len()].copy_from_slice(bytes);
    (0..=40).take_while(|_| scan.step()).count();
    let options = scan.finish(ip.tcp.ack);
    Ok((ip, options))
}
