//! Conversations made up from a seed. Most are of TCP: two model endpoints, a network that loses, repeats and reorders on
//! both sides of the firewall, and now and then a segment that neither endpoint would send.
//!
//! The endpoints do not see what the devices do: they take every segment for forwarded, so that one seed is one script.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};

use super::script::{Sequence, parse};
use super::wire::Side;

/// SplitMix64 (Steele, Lea, Flood, 2014): every seed gives another conversation.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// A segment, in the numbers of scripts.
#[derive(Clone, Debug, Default)]
struct Segment {
    flags: &'static str,
    seq: u32,
    len: u32,
    ack: Option<u32>,
    window: u16,
    scale: Option<u8>,
    sack_permitted: bool,
    sack: Vec<(u32, u32)>,
}

impl Segment {
    fn has(&self, flag: char) -> bool {
        self.flags.contains(flag)
    }

    fn end(&self) -> u32 {
        let flags = u32::from(self.has('S')) + u32::from(self.has('F'));
        self.seq.wrapping_add(self.len).wrapping_add(flags)
    }

    /// Its line.
    fn line(&self, from: Side) -> String {
        let sign = if from == Side::Inside { '>' } else { '<' };
        let number = |number: u32| number as i32;
        let (seq, end) = (number(self.seq), number(self.seq.wrapping_add(self.len)));
        let mut line = format!("{sign} {} {seq}:{end}", self.flags);
        if let Some(ack) = self.ack {
            let _ = write!(line, " ack {}", number(ack));
        }
        let _ = write!(line, " win {}", self.window);
        let mut options: Vec<String> = Vec::new();
        if self.has('S') {
            options.push("mss 1460".into());
            options.extend(self.scale.map(|scale| format!("wscale {scale}")));
            options.extend(self.sack_permitted.then(|| "sackOK".into()));
        }
        if !self.sack.is_empty() {
            let blocks = self.sack.iter().map(|(from, to)| format!(" {}:{}", number(*from), number(*to)));
            options.push(format!("nop,nop,sack{}", blocks.collect::<String>()));
        }
        if !options.is_empty() {
            let _ = write!(line, " <{}>", options.join(","));
        }
        line
    }
}

/// Where an endpoint is in its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Closed,
    SynSent,
    SynReceived,
    Open,
}

/// A model endpoint.
#[derive(Clone, Debug)]
struct Endpoint {
    stage: Stage,
    /// Oldest that is not acknowledged, next to be sent.
    unacknowledged: u32,
    next: u32,
    /// Next that is expected.
    expected: u32,
    /// Room for the other's data, and the other's room.
    window: u32,
    others_window: u32,
    /// What is offered, and whether both offered.
    scale: Option<u8>,
    scaled: bool,
    sack: bool,
    fin_sent: bool,
    fin_received: bool,
    /// Data beyond what is expected.
    early: Vec<(u32, u32)>,
}

/// Events of one conversation, at most.
const EVENTS: usize = 160;
/// Its packets, at most.
const PACKETS: usize = 70;

/// The conversation of a seed: TCP mostly, else an SCTP association or datagrams in fragments.
///
/// # Errors
///
/// None, unless the generator writes what the language does not have.
pub fn conversation(seed: u64) -> Result<Sequence> {
    let mut random = Random(seed);
    let family = random.pick(&["v4", "v6"]);
    let isn = |random: &mut Random| {
        let near_the_end = u32::MAX - random.below(5000) as u32;
        let anywhere = random.next() as u32;
        random.pick(&[near_the_end, anywhere, anywhere])
    };
    let (inside, outside) = (isn(&mut random), isn(&mut random));
    let lines = match random.below(10) {
        0 => fragments(&mut random),
        1 => association(&mut random),
        _ => tcp(random),
    };
    let text = format!("== {}{seed} {family} isn {inside} {outside}\n{}", Sequence::RANDOM, lines.join("\n"));
    parse(&text)?.pop().context("a conversation")
}

/// A TCP conversation.
fn tcp(random: Random) -> Vec<String> {
    let mut model = Model::new(random);
    for _ in 0..EVENTS {
        if model.lines.len() == PACKETS {
            break;
        }
        model.event();
    }
    model.lines
}

/// Datagrams of one flow, cut anywhere; their fragments come in any order, some twice, some never.
fn fragments(random: &mut Random) -> Vec<String> {
    let mut lines = vec!["> udp 1".to_owned()];
    let mut waiting: Vec<String> = Vec::new();
    for id in 1..=4 + random.below(6) {
        let sign = random.pick(&[">", ">", "<"]);
        let len = random.pick(&[16, 40, 200, 1000, 2000, 3000]);
        let mut from = 0;
        while from < len + 8 {
            // A few of about the same size, and tiny ones.
            let most = if random.percent(15) { 1 } else { len / 16 + 1 };
            let size = (8 * (1 + random.below(most))).min(1400);
            let until = if from + size < len + 8 { size.to_string() } else { String::new() };
            let line = format!("{sign} udp {len} {{id {id},frag {from}+{until}}}");
            match random.below(20) {
                0 => {}
                1 => waiting.extend([line.clone(), line]),
                _ => waiting.push(line),
            }
            from += size;
        }
        // At times all at once, at times between those of others.
        while waiting.len() > random.pick(&[0, 3, 12]) {
            let at = if random.percent(60) { 0 } else { random.below(waiting.len()) };
            lines.push(waiting.remove(at));
        }
    }
    lines.extend(waiting);
    lines.truncate(PACKETS);
    lines
}

/// An SCTP association in which chunks come at the wrong time, from the wrong side, or with a wrong tag.
fn association(random: &mut Random) -> Vec<String> {
    const COURSE: [&str; 13] = [
        "> sctp init",
        "< sctp init-ack",
        "> sctp cookie-echo",
        "< sctp cookie-ack",
        "> sctp data",
        "< sctp sack",
        "< sctp data",
        "> sctp sack",
        "> sctp heartbeat",
        "< sctp heartbeat-ack",
        "> sctp shutdown",
        "< sctp shutdown-ack",
        "> sctp shutdown-complete",
    ];
    const CHUNKS: [&str; 17] = [
        "init",
        "init-ack",
        "cookie-echo",
        "cookie-echo+data",
        "cookie-ack",
        "cookie-ack+shutdown",
        "data",
        "sack",
        "data+sack",
        "heartbeat",
        "heartbeat-ack",
        "error",
        "abort",
        "shutdown",
        "shutdown-ack",
        "shutdown-complete",
        "ecne",
    ];
    const ODDITIES: [&str; 6] = ["", "", "", " {vtag 4711}", " {vtag 0}", " {reflect}"];
    let mut lines = Vec::new();
    for _ in 0..1 + random.below(2) {
        for line in COURSE {
            while random.percent(25) {
                let (sign, chunk, oddity) =
                    (random.pick(&["<", ">"]), random.pick(&CHUNKS), random.pick(&ODDITIES));
                lines.push(format!("{sign} sctp {chunk}{oddity}"));
            }
            if !random.percent(8) {
                lines.push(line.to_owned());
            }
        }
    }
    lines
}

struct Model {
    random: Random,
    ends: [Endpoint; 2],
    /// On their way to the firewall, by sender.
    before: [Vec<Segment>; 2],
    /// On their way from the firewall, by sender.
    after: [Vec<Segment>; 2],
    lines: Vec<String>,
    /// No reset, and no connection begins where another was: what is known to be different needs one of these, so that a
    /// calm conversation is compared in earnest to its end.
    calm: bool,
    /// How wild this conversation is: chance of a stray segment, and of an accident on the way, in percent.
    strays: usize,
    accidents: usize,
}

impl Model {
    fn new(mut random: Random) -> Self {
        let mut end = |_| Endpoint {
            stage: Stage::Closed,
            unacknowledged: 0,
            next: 0,
            expected: 0,
            window: random.pick(&[1, 500, 1000, 5000, 29_200, 65_535, 65_535, 300_000]),
            others_window: 0,
            scale: random.pick(&[None, Some(0), Some(1), Some(4), Some(7), Some(7), Some(14)]),
            scaled: false,
            sack: random.percent(60),
            fin_sent: false,
            fin_received: false,
            early: Vec::new(),
        };
        let ends = [0, 1].map(&mut end);
        let calm = random.percent(50);
        let (strays, accidents) = (random.pick(&[0, 2, 5, 15]), random.pick(&[0, 5, 25]));
        Self {
            random,
            ends,
            before: Default::default(),
            after: Default::default(),
            lines: Vec::new(),
            calm,
            strays,
            accidents,
        }
    }

    fn event(&mut self) {
        let from = self.random.pick(&Side::BOTH);
        // Before anything has begun, every stray is the same.
        if self.random.percent(if self.lines.is_empty() { 1 } else { self.strays }) {
            return self.stray(from);
        }
        match self.random.below(10) {
            0..=3 => {
                if let Some(segment) = take(&mut self.random, &mut self.before[from as usize], self.accidents)
                {
                    self.lines.push(segment.line(from));
                    self.after[from as usize].push(segment);
                }
            }
            4..=6 => {
                if let Some(segment) = take(&mut self.random, &mut self.after[from as usize], self.accidents)
                {
                    self.receive(from.other(), &segment);
                }
            }
            _ => self.act(from),
        }
    }

    /// An endpoint does something of its own accord.
    fn act(&mut self, side: Side) {
        let begun = self.ends.iter().any(|end| end.next != 0);
        let random = &mut self.random;
        let end = &mut self.ends[side as usize];
        match end.stage {
            Stage::Closed if self.calm && begun => {}
            Stage::Closed => {
                // Mostly the client begins; the other end only at the same time.
                if side == Side::Inside || random.percent(3) {
                    // A new connection begins above the last one's numbers, or somewhere else.
                    let above = end.next.wrapping_add(random.below(100_000) as u32);
                    end.begin(if random.percent(85) { above } else { random.next() as u32 });
                    end.stage = Stage::SynSent;
                    self.send(side, "S", 0);
                }
            }
            Stage::SynSent if random.percent(30) => self.again(side, "S"),
            Stage::SynReceived if random.percent(30) => self.again(side, "S."),
            Stage::SynSent | Stage::SynReceived => {}
            Stage::Open => match random.below(100) {
                0..=54 if !end.fin_sent => {
                    let room = end.unacknowledged.wrapping_add(end.others_window).wrapping_sub(end.next);
                    // A window that is full or was taken back.
                    let room = if room > 1 << 30 { 0 } else { room };
                    let wanted = random.pick(&[1, 10, 536, 1300, 1300]);
                    let len = if random.percent(4) { wanted } else { wanted.min(room) };
                    if len > 0 {
                        self.send(side, "P.", len);
                    }
                }
                55..=64 => {
                    // A window update, or a repeated acknowledgement.
                    if random.percent(50) {
                        end.window = random.pick(&[0, 1, 100, 1000, 10_000, 65_535, 200_000]);
                    }
                    self.send(side, ".", 0);
                }
                65..=76 => self.again(side, "."),
                77..=80 => {
                    // Keepalive.
                    let segment = self.segment(side, ".", 0);
                    let seq = segment.seq.wrapping_sub(1);
                    self.before[side as usize].push(Segment { seq, ..segment });
                }
                81..=83 => self.send(side, ".", 1),
                84..=93 if !end.fin_sent => {
                    self.ends[side as usize].fin_sent = true;
                    self.send(side, "F.", 0);
                }
                94..=95 if !self.calm => {
                    let flags = random.pick(&["R", "R."]);
                    self.send(side, flags, 0);
                    self.ends[side as usize].stage = Stage::Closed;
                }
                _ => {}
            },
        }
    }

    /// A segment as this endpoint would send it now.
    fn segment(&self, side: Side, flags: &'static str, len: u32) -> Segment {
        let end = &self.ends[side as usize];
        let syn = flags.contains('S');
        let shift = if end.scaled && !syn { end.scale.unwrap_or(0) } else { 0 };
        let others_syn_known = flags != "S";
        let other = &self.ends[side.other() as usize];
        Segment {
            flags,
            seq: end.next,
            len,
            ack: flags.contains('.').then_some(end.expected),
            window: (end.window >> shift.min(14)).min(65_535) as u16,
            scale: if others_syn_known && syn { end.scale.filter(|_| end.scaled) } else { end.scale },
            sack_permitted: syn && end.sack,
            sack: if end.sack && other.sack && flags == "." { end.early.clone() } else { Vec::new() },
        }
    }

    fn send(&mut self, side: Side, flags: &'static str, len: u32) {
        let segment = self.segment(side, flags, len);
        self.ends[side as usize].next = segment.end();
        self.before[side as usize].push(segment);
    }

    /// Sends again from the oldest that is not acknowledged.
    fn again(&mut self, side: Side, flags: &'static str) {
        let end = &self.ends[side as usize];
        let outstanding = end.next.wrapping_sub(end.unacknowledged);
        let syn = flags.contains('S');
        if outstanding == 0 || outstanding > 1 << 30 {
            return;
        }
        let data = outstanding - u32::from(end.fin_sent && !syn);
        let flags = if !syn && end.fin_sent && data <= 1300 { "F." } else { flags };
        let seq = end.unacknowledged;
        let segment = self.segment(side, flags, if syn { 0 } else { data.min(1300) });
        self.before[side as usize].push(Segment { seq, ..segment });
    }

    /// A segment arrives.
    fn receive(&mut self, side: Side, segment: &Segment) {
        let end = &mut self.ends[side as usize];
        let ack = segment.ack.unwrap_or(0);
        if segment.has('R') {
            if segment.seq == end.expected || end.stage == Stage::SynSent && ack == end.next {
                end.stage = Stage::Closed;
            }
            return;
        }
        match (end.stage, segment.flags) {
            (Stage::Closed, "S") => {
                let start = end.next.wrapping_add(self.random.below(50_000) as u32);
                end.begin(start);
                end.answer(segment);
                self.send(side, "S.", 0);
            }
            (Stage::Closed | Stage::SynSent, _) if self.calm && !segment.has('S') => {}
            (Stage::Closed, _) if self.calm && end.next != 0 => {}
            (Stage::Closed, _) => {
                let reset = Segment { flags: "R", seq: ack, ..Segment::default() };
                self.before[side as usize].push(reset);
            }
            (Stage::SynSent, "S.") if ack == end.next => {
                end.answer(segment);
                end.stage = Stage::Open;
                end.unacknowledged = ack;
                self.send(side, ".", 0);
            }
            (Stage::SynSent, "S") => {
                end.answer(segment);
                let seq = end.unacknowledged;
                let answer = self.segment(side, "S.", 0);
                self.before[side as usize].push(Segment { seq, ..answer });
            }
            (Stage::SynSent, "S.") if self.calm => {}
            (Stage::SynSent, _) if segment.ack.is_some() => {
                let reset = Segment { flags: "R", seq: ack, ..Segment::default() };
                self.before[side as usize].push(reset);
            }
            (Stage::SynSent, _) => {}
            // A challenge (RFC 5961, 4.2), or an acknowledgement that was lost.
            (_, "S" | "S.") => {
                if segment.flags == "S." && end.stage == Stage::SynReceived && ack == end.next {
                    end.stage = Stage::Open;
                    end.unacknowledged = ack;
                }
                self.send(side, ".", 0);
            }
            _ => self.data(side, segment),
        }
    }

    /// A segment of an open connection arrives.
    fn data(&mut self, side: Side, segment: &Segment) {
        let end = &mut self.ends[side as usize];
        let Some(ack) = segment.ack else { return };
        let acknowledged = ack.wrapping_sub(end.unacknowledged);
        if acknowledged <= end.next.wrapping_sub(end.unacknowledged) {
            end.unacknowledged = ack;
            let shift = if end.scaled { self.ends[side.other() as usize].scale.unwrap_or(0) } else { 0 };
            let end = &mut self.ends[side as usize];
            end.others_window = u32::from(segment.window) << shift.min(14);
            if end.stage == Stage::SynReceived && ack == end.next {
                end.stage = Stage::Open;
            }
        }
        let end = &mut self.ends[side as usize];
        if segment.end() == segment.seq {
            return;
        }
        let (from, to) = (segment.seq, segment.end());
        if from.wrapping_sub(end.expected) as i32 <= 0 {
            if to.wrapping_sub(end.expected) as i32 > 0 {
                end.expected = to;
                end.fin_received |= segment.has('F');
            }
            while let Some(at) =
                end.early.iter().position(|(from, _)| from.wrapping_sub(end.expected) as i32 <= 0)
            {
                let (_, to) = end.early.remove(at);
                if to.wrapping_sub(end.expected) as i32 > 0 {
                    end.expected = to;
                }
            }
        } else if !segment.has('F') && end.early.len() < 3 {
            end.early.push((from, to));
        }
        if end.fin_received && end.fin_sent && end.unacknowledged == end.next {
            end.stage = Stage::Closed;
        }
        if self.random.percent(80) {
            self.send(side, ".", 0);
        }
    }

    /// What neither endpoint would send: at the edges of what is plausible, or anywhere.
    fn stray(&mut self, from: Side) {
        let random = &mut self.random;
        let (own, other) = (&self.ends[from as usize], &self.ends[from.other() as usize]);
        let shift = if own.scaled { other.scale.unwrap_or(0) } else { 0 };
        let delta = |random: &mut Random| {
            random.pick(&[
                0,
                0,
                0,
                1,
                -1,
                2,
                1000,
                -1000,
                65_535,
                -66_000,
                -66_001,
                1 << 20,
                -(1 << 20),
                i32::MAX,
            ])
        };
        let seq = random.pick(&[
            own.unacknowledged,
            own.next,
            other.expected,
            other.expected.wrapping_add(other.window),
            other.expected.wrapping_sub(own.others_window),
            other.expected.wrapping_add(2 * other.window),
            own.next.wrapping_sub(other.window),
            own.unacknowledged.wrapping_add(u32::from(u16::MAX) << shift.min(14)),
        ]);
        let ack = random.pick(&[
            other.next,
            other.next,
            other.unacknowledged,
            own.expected,
            own.expected,
            other.next.wrapping_sub(own.window),
        ]);
        let calm = [".", ".", ".", "P.", "P.", "F.", "SF", "-", "FP.U", "F", "P", ".U"];
        let wild = [
            ".", ".", "P.", "F.", "R", "R", "R.", "S", "S", "S.", "S.", "SF", "-", "FP.U", "SR", "F", "P",
            ".U", "SEW",
        ];
        let flags = if self.calm { random.pick(&calm) } else { random.pick(&wild) };
        let (seq_delta, ack_delta) = (delta(random), delta(random));
        let segment = Segment {
            flags,
            seq: seq.wrapping_add_signed(seq_delta),
            len: random.pick(&[0, 0, 0, 1, 10, 1300]),
            ack: flags.contains('.').then_some(ack.wrapping_add_signed(ack_delta)),
            window: random.pick(&[0, 1, 100, 1000, 65_535]),
            scale: random.pick(&[None, Some(0), Some(3), Some(14)]),
            sack_permitted: random.percent(50),
            sack: Vec::new(),
        };
        self.lines.push(segment.line(from));
        if random.percent(70) {
            self.after[from as usize].push(segment);
        }
    }
}

impl Endpoint {
    /// A new connection with this initial sequence number.
    fn begin(&mut self, initial: u32) {
        self.unacknowledged = initial;
        self.next = initial;
        self.scaled = false;
        self.fin_sent = false;
        self.fin_received = false;
        self.early.clear();
    }

    /// Takes over what the other's SYN says.
    fn answer(&mut self, syn: &Segment) {
        self.stage = Stage::SynReceived;
        self.expected = syn.seq.wrapping_add(1);
        self.scaled = self.scale.is_some() && syn.scale.is_some();
        self.others_window = syn.window.into();
    }
}

/// The next segment of a queue; now and then another than the first, or one that comes again, or none because it is lost.
fn take(random: &mut Random, queue: &mut Vec<Segment>, accidents: usize) -> Option<Segment> {
    if queue.is_empty() {
        return None;
    }
    if !random.percent(accidents) {
        return Some(queue.remove(0));
    }
    let at = random.below(queue.len());
    match random.below(3) {
        0 => {
            queue.remove(at);
            None
        }
        1 => Some(queue[at].clone()),
        _ => Some(queue.remove(at)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_conversation() {
        let mut opened = 0;
        for seed in 0..200 {
            let conversation = conversation(seed).unwrap();
            assert_eq!(conversation, super::conversation(seed).unwrap());
            opened += usize::from(conversation.steps.iter().any(|step| step.text.starts_with("< S. ")));
        }
        assert!(opened > 120, "only {opened} of 200 get an answer to their SYN");
    }
}
