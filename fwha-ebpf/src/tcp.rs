//! TCP: states as a pure function of state, direction and flags, and the windows of a connection.
//!
//! Both are those of van Rooij, "Real Stateful TCP Packet Filtering in IP Filter" (2001), as
//! net/netfilter/nf_conntrack_proto_tcp.c has them.

use fwha_common::{
    drop::DropReason,
    flow::{FlowState, Way},
};

use crate::{
    atomic::compare_exchange_u32,
    packet::{bounded, unaligned},
    parse::Tcp,
};

/// TCP flag: no more data from the sender.
pub const FIN: u8 = 0x01;
/// TCP flag: synchronise sequence numbers.
pub const SYN: u8 = 0x02;
/// TCP flag: reset.
pub const RST: u8 = 0x04;
#[cfg(test)]
/// TCP flag: push.
pub const PSH: u8 = 0x08;
/// TCP flag: the acknowledgement number counts.
pub const ACK: u8 = 0x10;
/// TCP flag: the urgent pointer counts.
pub const URG: u8 = 0x20;

/// What a packet does to its flow's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The flow moves to this state, if the segment lies in the window.
    To(FlowState),
    /// The state stays. The segment must lie in the window.
    Stay,
    /// The segment passes, whatever its numbers, and changes nothing: our view may be the wrong one,
    /// and its receiver will tell.
    Ignore,
    /// The segment asks for another connection between the same ends.
    Begin,
    /// The state does not allow the segment.
    Invalid,
}

/// Whether some TCP stack sends this combination of flags. PSH, ECE and CWR may come with any.
#[inline(always)]
pub const fn flags_valid(flags: u8) -> bool {
    matches!(
        flags & (FIN | SYN | RST | ACK | URG),
        SYN | 0x22 /* SYN URG */ | 0x12 /* SYN ACK */ | RST | 0x14 /* RST ACK */ | 0x11 /* FIN ACK */
            | 0x31 /* FIN ACK URG */ | ACK | 0x30 /* ACK URG */
    )
}

/// Whether this segment asks for a new connection.
#[inline(always)]
pub const fn opens(flags: u8) -> bool {
    flags & (SYN | ACK | RST | FIN) == SYN
}

/// Whether this segment may answer a SYN: SYN+ACK or RST+ACK.
#[inline(always)]
pub const fn answers_syn(flags: u8) -> bool {
    flags & ACK != 0 && flags & (SYN | RST) != 0
}

const IV: u8 = 0xff; // invalid
const IG: u8 = 0xfe; // ignored: passes, state stays
const BG: u8 = 0xfd; // begins another connection
const SS: u8 = FlowState::SynSent as u8;
const SR: u8 = FlowState::SynRecv as u8;
const ES: u8 = FlowState::Established as u8;
const FW: u8 = FlowState::FinWait as u8;
const CW: u8 = FlowState::CloseWait as u8;
const LA: u8 = FlowState::LastAck as u8;
const TW: u8 = FlowState::TimeWait as u8;
const CL: u8 = FlowState::Close as u8;
const S2: u8 = FlowState::SynSent2 as u8;

/// Rows: SYN, SYN+ACK, FIN, ACK, RST, three unused. Columns: states by number. Powers of two, so
/// that a masked index is a bound that the verifier sees.
///
/// Where the kernel lets a SYN of the originator pass and takes notes, another connection is begun
/// beside the one that is there, and replaces it if it is answered.
static TABLE: [[[u8; 32]; 8]; 2] = [
    // The originator sends.
    [
        //   -  SS  SR  ES  FW  CW  LA  TW  CL  S2
        row([IV, SS, BG, BG, BG, BG, BG, BG, BG, S2]),
        row([IV, IV, SR, IV, IV, IV, IV, IV, IV, SR]),
        row([IV, IV, FW, FW, LA, LA, LA, TW, CL, IV]),
        row([IV, IV, ES, ES, CW, CW, TW, TW, CL, IV]),
        row([IV, CL, CL, CL, CL, CL, CL, CL, CL, CL]),
        row([IV; 10]),
        row([IV; 10]),
        row([IV; 10]),
    ],
    // The responder sends.
    [
        row([IV, S2, IV, IV, IV, IV, IV, BG, BG, S2]),
        row([IV, SR, IG, IG, IG, IG, IG, IG, IG, SR]),
        row([IV, IV, FW, FW, LA, LA, LA, TW, CL, IV]),
        row_met([IV, IG, SR, ES, CW, CW, TW, TW, CL, IG], ES),
        row([IV, CL, CL, CL, CL, CL, CL, CL, CL, CL]),
        row([IV; 10]),
        row([IV; 10]),
        row([IV; 10]),
    ],
];

/// A row, twice: the second half is for connections that both ends began.
const fn row(states: [u8; 10]) -> [u8; 32] {
    row_met(states, states[SR as usize])
}

/// A row in which a connection that both ends began goes from syn-recv to `met`.
const fn row_met(states: [u8; 10], met: u8) -> [u8; 32] {
    let mut row = [IV; 32];
    let mut i = 0;
    while i < 9 {
        row[i] = states[i];
        row[i + 16] = states[i];
        i += 1;
    }
    row[S2 as usize] = states[9];
    row[S2 as usize + 16] = states[9];
    row[SR as usize + 16] = met;
    row
}

/// What a segment with `flags` does to a flow in `state`; `reply` if the responder sent it, `back`
/// the flags of its way. The caller has refused flags that are not [`flags_valid`].
#[inline(always)]
pub fn step(state: u8, back: u8, reply: bool, flags: u8) -> Step {
    let kind = if flags & RST != 0 {
        4
    } else if flags & SYN != 0 {
        if flags & ACK != 0 { 1 } else { 0 }
    } else if flags & FIN != 0 {
        2
    } else {
        3
    };
    // No branch: the verifier would follow each half for itself.
    let half = (back & Way::MET) / (Way::MET / 16);
    let next = TABLE[reply as usize & 1][kind & 7][(state & 15 | half) as usize & 31];
    match next {
        _ if state > S2 => Step::Invalid,
        IV => Step::Invalid,
        IG => Step::Ignore,
        BG => Step::Begin,
        next if next == state => Step::Stay,
        next => match FlowState::from_u8(next) {
            Some(next) => Step::To(next),
            None => Step::Invalid,
        },
    }
}

/// What a reset does to a connection in `state`. `own` is the way that it goes, `other` the way back.
/// `reply` if the responder sent it. A blind attacker must hit one number of 2^32; a reset that merely lies in the window passes, for its
/// receiver to challenge (RFC 5961, 3.2), and closes nothing.
///
/// # Errors
///
/// It lies below what was acknowledged.
#[inline(always)]
pub fn reset(state: u8, reply: bool, seq: u32, own: &Way, other: &Way) -> Result<Step, DropReason> {
    let established = state == ES;
    if state == SS && !reply && other.flags & Way::ACKED != 0 && seq == other.maxack {
        // The responder had another connection in mind, and is told so (RFC 9293, 3.5.2).
        return Ok(Step::Ignore);
    }
    if state == CL {
        return Ok(Step::Ignore);
    }
    let close = Step::To(FlowState::Close);
    if other.flags & Way::ACKED == 0 || seq == 0 && !established {
        return Ok(close);
    }
    if before(seq, other.maxack) {
        return Err(DropReason::TcpReset);
    }
    Ok(if !established || seq == other.maxack || seq == own.end { close } else { Step::Stay })
}

/// Whether a SYN on a live connection, `end` the number behind it, is the one that began it, come late: it
/// lies behind what its sender sent since, and not further than a window.
#[inline(always)]
pub fn late_syn(end: u32, own: &Way, other: &Way) -> bool {
    let window = if other.maxwin > ACK_WINDOW { other.maxwin } else { ACK_WINDOW };
    own.end.wrapping_sub(end) <= window
}

/// What the options of a segment say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Of a SYN: [`Way::SCALE`] and [`Way::SACK`].
    pub flags: u8,
    /// Of a SYN: the window's shift, 14 at most (RFC 7323, 2.3).
    pub scale: u8,
    /// Where the value of the MSS option is, from the start of the TCP header; 0 if there is none.
    pub mss_at: u8,
    /// Whether there are SACK blocks.
    pub sacked: bool,
    /// The highest of the acknowledgement and the right edges of the SACK blocks, if there are any.
    pub sack: u32,
}

impl Options {
    /// Reads the word at `at` (from the start of the TCP header) of the options of a SYN, laid out as stacks do: each
    /// word begins with an option, or one that does nothing. How many bytes further the next one lies; 0 if
    /// this is another layout, for [`Scan`] to read from the start.
    ///
    /// ```text
    ///  02 04 MSS MSS   01 03 03 scale   01 01 04 02   04 02 08 0a + 8 bytes   01 01 08 0a + 8 bytes   04 02 00 00
    /// ```
    #[inline(always)]
    pub fn word(&mut self, at: u32, word: u32) -> u32 {
        if word >> 16 == 0x0204 {
            self.mss_at = (at + 2) as u8;
            return 4;
        }
        if word >> 8 == 0x01_03_03 {
            self.set_scale(word as u8);
            return 4;
        }
        match word {
            0x0101_080a => return 12,
            0x0101_0402 | 0x0402_080a | 0x0402_0000 => self.flags |= Way::SACK,
            _ => return 0,
        }
        match word {
            0x0101_0402 => 4,
            0x0402_080a => 12,
            // The end.
            _ => OPTIONS_LEN as u32,
        }
    }

    #[inline(always)]
    fn set_scale(&mut self, scale: u8) {
        self.scale = if scale > 14 { 14 } else { scale };
        self.flags |= Way::SCALE;
    }
}

/// The longest options, rounded up to a power of two.
pub const OPTIONS_LEN: usize = 64;

/// Options under way of being read, one at each [`Scan::step`].
pub struct Scan {
    /// Their bytes, and four more, so that a word may be read at each.
    pub bytes: [u8; OPTIONS_LEN + 4],
    /// How many there are, 40 at most.
    pub len: u32,
    /// How many have been read.
    pub at: u32,
    /// Where SACK blocks begin.
    pub blocks_at: u32,
    /// How many there are.
    pub blocks: u32,
    /// What was found.
    pub found: Options,
}

impl Scan {
    #[inline(always)]
    fn u8(&self, at: u32) -> u8 {
        self.bytes[at as usize & (OPTIONS_LEN - 1)]
    }

    #[inline(always)]
    fn u32(&self, at: u32) -> u32 {
        let at = bounded::<{ OPTIONS_LEN as u32 - 1 }>(at);
        // SAFETY: a word lies there, see `bytes`.
        u32::from_be(unsafe { unaligned(self.bytes.as_ptr().add(at)) })
    }

    /// Reads an option; whether there may be another. What does not fit ends it, as in the kernel.
    ///
    /// ```text
    ///  0 end  1 nothing  2 MSS, 4 bytes  3 window scale, 3  4 SACK permitted, 2
    ///  5 SACK blocks, 2 + 8 n: left edge, right edge
    /// ```
    #[inline(always)]
    pub fn step(&mut self) -> bool {
        let at = self.at;
        if at >= self.len {
            return false;
        }
        let kind = self.u8(at);
        if kind <= 1 {
            self.at = at + 1;
            return kind == 1;
        }
        let len = self.u8(at + 1) as u32;
        if len < 2 || at + 1 >= self.len || at + len > self.len {
            return false;
        }
        match (kind, len) {
            (2, 4) => self.found.mss_at = (20 + at + 2) as u8,
            (3, 3) => self.found.set_scale(self.u8(at + 2)),
            (4, 2) => self.found.flags |= Way::SACK,
            // Only the first is read, as in the kernel.
            (5, 10 | 18 | 26 | 34) if self.blocks == 0 => {
                self.blocks_at = at + 2;
                self.blocks = len >> 3;
            }
            _ => {}
        }
        self.at = at + len;
        true
    }

    /// Looks through the SACK blocks, once the options have been read, for what lies above `ack`.
    #[inline(always)]
    pub fn finish(&mut self, ack: u32) -> Options {
        self.found.sack = ack;
        let mut block = 0;
        while block < 4 {
            if block < self.blocks {
                let right = self.u32(self.blocks_at + 4 + 8 * block);
                if before(self.found.sack, right) {
                    self.found.sack = right;
                }
                self.found.sacked = true;
            }
            block += 1;
        }
        self.found
    }
}

/// Whether sequence number `a` comes before `b` (RFC 9293, 3.4).
#[inline(always)]
pub const fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

/// Whether two sequence numbers are no further apart than a window, or [`ACK_WINDOW`] if that is larger.
#[inline(always)]
const fn near(a: u32, b: u32, window: u32) -> bool {
    let most = if window > ACK_WINDOW { window } else { ACK_WINDOW };
    a.wrapping_sub(b) <= most || b.wrapping_sub(a) <= most
}

/// Moves the end of what was sent on to `to`, if it is behind. Two packets of one direction may do so at the same
/// time, on two CPUs: the further end stays, or the answer to it would be taken for one to what was never sent.
///
/// # Safety
///
/// `end` is aligned and points into a flow that is in a map, or that nobody else has.
#[inline(always)]
pub unsafe fn raise(end: *mut u32, to: u32) {
    // SAFETY: promised by the caller; volatile, because others write here.
    let mut there = unsafe { end.read_volatile() };
    // Who gets in between has moved it further. After so many it is where others have it.
    for _ in 0..4 {
        if !before(there, to) {
            return;
        }
        // SAFETY: promised by the caller.
        match unsafe { compare_exchange_u32(end, there, to) } {
            Ok(()) => return,
            Err(found) => there = found,
        }
    }
}

/// How far behind what was sent an acknowledgement may lie, at least (`MAXACKWINCONST` of the kernel).
const ACK_WINDOW: u32 = 66_000;

/// How a segment lies in the windows of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// In them, which moved.
    In,
    /// Old, or slightly beyond: it passes and changes no state.
    Ignore,
    /// Outside.
    Out,
}

/// Notes what a SYN of the way `own` says; `end` is the sequence number behind it. It grants nothing
/// yet, so nothing beyond it may be sent.
#[inline(always)]
pub fn init(own: &mut Way, other: &mut Way, segment: &Tcp, end: u32, options: &Options) {
    own.end = end;
    other.edge = end;
    own.maxwin = if segment.window == 0 { 1 } else { segment.window as u32 };
    own.scale = options.scale;
    own.flags = options.flags | Way::SEEN;
}

/// Holds a segment of the way `own` against the windows, and moves them. `other` is the way back, `len`
/// the length of what the segment carries, `inherited` whether the flow came from a peer. A segment that
/// only passes (`quiet`: a reset that closes nothing) moves nothing: the next one would be right.
///
/// The way back is written where a SYN begins it, and where this side's packets show that the other
/// granted or sent more than was seen here.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "inlined once")]
pub fn window(
    state: u8,
    own: &mut Way,
    other: &mut Way,
    segment: &Tcp,
    len: u32,
    options: &Options,
    inherited: bool,
    quiet: bool,
) -> Window {
    let syn = segment.flags & SYN != 0;
    let rst = segment.flags & RST != 0;
    let mut seq = segment.seq;
    let mut end =
        seq.wrapping_add(len).wrapping_add(syn as u32).wrapping_add((segment.flags & FIN != 0) as u32);
    let first = own.flags & Way::SEEN == 0;
    // A SYN that comes again may have another number, a higher one (RFC 9293, 3.4.3).
    if syn && (first || state == SS && before(own.end, end)) {
        init(own, other, segment, end, options);
        if segment.flags & ACK == 0 {
            // Of the responder: a simultaneous open. Of the originator it means nothing.
            own.flags |= Way::MET;
            return Window::In;
        }
    }
    let shift = if syn || own.flags & other.flags & Way::SCALE == 0 { 0 } else { own.scale & Way::SHIFT };
    let win = (segment.window as u32) << shift;
    let mut ack = segment.ack;
    let mut sack = if options.sacked && other.flags & Way::SACK != 0 { options.sack } else { ack };
    if segment.flags & ACK == 0 || rst && ack == 0 {
        // Some stacks set ACK in resets without a number.
        ack = other.end;
        sack = ack;
    }
    if first && !syn {
        own.end = end;
        own.maxwin = if win == 0 { 1 } else { win };
        own.flags |= Way::SEEN;
        if inherited {
            own.edge = sack.wrapping_add(win);
        } else {
            // A reset, or a challenge, before the SYN of this side.
            other.edge = end.wrapping_add(own.maxwin);
        }
    }
    if inherited && first && !(near(sack, other.end, own.maxwin) && near(seq, other.edge, other.maxwin)) {
        // The other side said what this one, heard for the first time, knows nothing of: one of the two is not who it seems to
        // be. The windows are not checked before two that agree were heard.
        other.flags &= !(Way::SEEN | Way::ACKED);
    }
    let unsure = first || other.flags & Way::SEEN == 0;
    if inherited && unsure {
        if other.flags & Way::SEEN == 0 || before(other.end, sack) {
            other.end = sack;
        }
        if other.flags & Way::SEEN == 0 {
            other.edge = end.wrapping_add(own.maxwin);
        }
    }
    if rst && seq == 0 && state == SS {
        // The answer to a SYN.
        seq = own.end;
        end = own.end;
    }
    let slack = if own.maxwin > ACK_WINDOW { own.maxwin } else { ACK_WINDOW };
    // What was inherited may have been sent through the peer: no acknowledgement goes beyond the edge
    // that its own side granted.
    let acked_limit = if inherited && before(other.end, own.edge) { own.edge } else { other.end };
    // The four bounds of van Rooij, as distances that are negative beyond them. I: not beyond what the
    // other side granted. II: not older than its window. III: not of what was not sent. IV: not too old.
    let beyond = other.edge.wrapping_sub(seq);
    let old = if other.maxwin == 0 { 0 } else { end.wrapping_sub(own.end.wrapping_sub(other.maxwin)) };
    let ahead = acked_limit.wrapping_sub(sack);
    let late = sack.wrapping_sub(other.end.wrapping_sub(slack));
    if ((beyond | old | ahead | late) as i32) < 0 && !(inherited && unsure) {
        if (ahead as i32) < 0 {
            return Window::Out;
        }
        if (beyond as i32) < 0 {
            let excess = end.wrapping_sub(other.edge).wrapping_add(1);
            if ((old | late) as i32) < 0 || excess > other.maxwin {
                return Window::Out;
            }
            // Some stacks send a little more than they may. Should it be acknowledged, so be it.
            if !quiet {
                own.end = end;
            }
        }
        return Window::Ignore;
    }
    if quiet {
        return Window::Ignore;
    }
    let granted = win.wrapping_add(sack.wrapping_sub(ack));
    if own.maxwin < granted {
        own.maxwin = granted;
    }
    // SAFETY: of the flow that the caller holds.
    unsafe {
        raise(&raw mut own.end, end);
        raise(&raw mut other.end, sack);
    }
    if segment.flags & ACK != 0 {
        if own.flags & Way::ACKED == 0 {
            own.maxack = ack;
            own.flags |= Way::ACKED;
        }
        // Should it stay behind, nothing makes up for it in a connection that is idle then.
        // SAFETY: as above.
        unsafe { raise(&raw mut own.maxack, ack) };
    }
    if other.maxwin != 0 && before(other.edge, end) {
        other.maxwin = other.maxwin.wrapping_add(end.wrapping_sub(other.edge));
    }
    let edge = sack.wrapping_add(win);
    if before(own.edge.wrapping_sub(1), edge) {
        own.edge = if win == 0 { edge.wrapping_add(1) } else { edge };
    }
    if segment.flags & (SYN | FIN | RST) == 0 {
        note(own, other, segment, len);
    }
    Window::In
}

/// Notes whether a segment without SYN, FIN and RST is the last one over again, and whether it offers no window: that
/// shortens the timeout. It is the same if number, length, acknowledgement and window are, and if nothing came of it
/// from the other side. A hash of all that is kept; one of 65,536 others has the same.
#[inline(always)]
fn note(own: &mut Way, other: &mut Way, segment: &Tcp, len: u32) {
    // Odd numbers without a pattern: the fractions of the golden ratio and of the square root of 3.
    let numbers = (segment.seq as u64 | (segment.ack as u64) << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let rest = (len as u64 | (segment.window as u64) << 32 | other.packets << 48)
        .wrapping_mul(0xbb67_ae85_84ca_a73b);
    let mark = (numbers ^ rest) >> 48;
    let again = (own.last_seen_ns & Way::MARK == mark) as u8;
    let seen = own.last_seen_ns & !Way::MARK | mark;
    // SAFETY: a field of `own`. All eight bytes are written, which LLVM would narrow to two: they are read again soon, and
    // a read of more than was just written waits until that is in the cache.
    unsafe { (&raw mut own.last_seen_ns).write_volatile(seen) };
    let repeats = own.scale & Way::REPEATS;
    let one_more = if repeats == Way::REPEATS { repeats } else { repeats + Way::REPEAT };
    let shut = (segment.window == 0) as u8 * Way::SHUT;
    own.scale = own.scale & Way::SHIFT | (one_more * again) | shut;
    if other.scale & !Way::SHIFT != 0 {
        other.scale &= Way::SHIFT;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Barrier,
        atomic::{AtomicU32, Ordering},
    };

    use super::*;

    /// Plays a conversation and gives the states it goes through.
    fn play(segments: &[(bool, u8)]) -> Vec<Result<FlowState, ()>> {
        let mut state = FlowState::SynSent;
        segments
            .iter()
            .map(|&(reply, flags)| match step(state as u8, 0, reply, flags) {
                Step::To(next) => {
                    state = next;
                    Ok(next)
                }
                Step::Stay | Step::Ignore | Step::Begin => Ok(state),
                Step::Invalid => Err(()),
            })
            .collect()
    }

    use FlowState::{Close, CloseWait, Established, FinWait, LastAck, SynRecv, SynSent, SynSent2, TimeWait};

    #[test]
    fn handshake_data_and_close_by_the_originator() {
        assert_eq!(
            play(&[
                (false, SYN),
                (true, SYN | ACK),
                (false, ACK),
                (false, PSH | ACK),
                (true, ACK),
                (false, FIN | ACK),
                (true, ACK),
                (true, FIN | ACK),
                (false, ACK),
            ]),
            [SynSent, SynRecv, Established, Established, Established, FinWait, CloseWait, LastAck, TimeWait]
                .map(Ok)
        );
    }

    #[test]
    fn a_reset_closes_from_every_state() {
        for state in [SynSent, SynRecv, Established, FinWait, CloseWait, LastAck, TimeWait] {
            for reply in [false, true] {
                assert_eq!(step(state as u8, 0, reply, RST), Step::To(Close));
                assert_eq!(step(state as u8, 0, reply, RST | ACK), Step::To(Close));
            }
        }
    }

    #[test]
    fn nothing_but_an_answer_leads_out_of_syn_sent() {
        assert_eq!(play(&[(false, ACK)]), [Err(())]);
        assert_eq!(play(&[(false, FIN | ACK)]), [Err(())]);
        assert_eq!(play(&[(true, FIN | ACK)]), [Err(())]);
        assert_eq!(play(&[(true, ACK)]), [Ok(SynSent)], "a challenge ACK passes");
    }

    #[test]
    fn a_retransmitted_syn_or_syn_ack_changes_nothing() {
        assert_eq!(
            play(&[(true, SYN | ACK), (false, SYN), (true, SYN | ACK), (false, ACK), (true, SYN | ACK)]),
            [SynRecv, SynRecv, SynRecv, Established, Established].map(Ok)
        );
    }

    #[test]
    fn both_sides_may_open_at_once() {
        assert_eq!(
            play(&[(true, SYN), (false, SYN | ACK), (true, SYN | ACK), (false, ACK)]),
            [SynSent2, SynRecv, SynRecv, Established].map(Ok)
        );
    }

    #[test]
    fn a_syn_past_the_handshake_begins_another_connection() {
        for state in [SynRecv, Established, FinWait, CloseWait, LastAck, TimeWait, Close] {
            assert_eq!(step(state as u8, 0, false, SYN), Step::Begin);
            let over = matches!(state, TimeWait | Close);
            assert_eq!(step(state as u8, 0, true, SYN), if over { Step::Begin } else { Step::Invalid });
        }
    }

    #[test]
    fn flags_that_no_stack_sends() {
        let valid: Vec<u8> = (0..0x40u8).filter(|&f| f & PSH == 0 && flags_valid(f)).collect();
        assert_eq!(
            valid,
            [SYN, RST, ACK, FIN | ACK, SYN | ACK, RST | ACK, SYN | URG, ACK | URG, FIN | ACK | URG]
        );
        assert!(flags_valid(SYN | ACK | 0x40) && flags_valid(SYN | 0xc0), "ECN");
    }

    #[test]
    fn either_end_completes_a_simultaneous_open() {
        for (back, reply, next) in [
            (0, true, Step::Stay),
            (Way::MET, true, Step::To(Established)),
            (Way::MET, false, Step::To(Established)),
        ] {
            assert_eq!(step(SynRecv as u8, back, reply, ACK), next);
        }
        assert_eq!(step(SynRecv as u8, Way::MET, true, SYN | ACK), Step::Ignore);
        assert_eq!(step(Established as u8, Way::MET, true, ACK), Step::Stay);
    }

    #[test]
    fn no_state_and_no_flags_lead_out_of_the_table() {
        for state in 0..=u8::MAX {
            for flags in 0..=u8::MAX {
                for (back, reply) in [(0, false), (0, true), (u8::MAX, false), (u8::MAX, true)] {
                    if !matches!(FlowState::from_u8(state), Some(SynSent2))
                        && !(SynSent as u8..=Close as u8).contains(&state)
                    {
                        assert_eq!(step(state, back, reply, flags), Step::Invalid);
                    } else if let Step::To(next) = step(state, back, reply, flags) {
                        assert!(next == SynSent2 || (SynSent as u8..=Close as u8).contains(&(next as u8)));
                    }
                }
            }
        }
    }

    /// A connection under test: the window check of the segments of both sides.
    struct Connection {
        ways: [Way; 2],
        state: FlowState,
        inherited: bool,
    }

    impl Connection {
        /// After a handshake: initial numbers 1000 and 5000, windows of 10,000 and 20,000 bytes.
        fn open(scales: [Option<u8>; 2]) -> Self {
            let mut ways = [Way::default(); 2];
            let option = |scale: Option<u8>| Options {
                flags: Way::SACK | if scale.is_some() { Way::SCALE } else { 0 },
                scale: scale.unwrap_or_default(),
                ..Options::default()
            };
            let syn = Tcp { seq: 999, window: 10_000, flags: SYN, ..Tcp::default() };
            let [there, back] = &mut ways;
            init(there, back, &syn, 1000, &option(scales[0]));
            let mut connection = Self { ways, state: SynSent, inherited: false };
            let syn_ack = Tcp { seq: 4999, ack: 1000, window: 20_000, flags: SYN | ACK, ..Tcp::default() };
            assert_eq!(connection.judge(true, syn_ack, 0, option(scales[1])), Window::In);
            connection.state = Established;
            let shift = if scales.iter().all(Option::is_some) { scales[0].unwrap_or_default() } else { 0 };
            assert_eq!(connection.send(false, 1000, 0, 5000, 10_000 >> shift), Window::In);
            connection
        }

        fn judge(&mut self, reply: bool, segment: Tcp, len: u32, options: Options) -> Window {
            let [there, back] = &mut self.ways;
            let (own, other) = if reply { (back, there) } else { (there, back) };
            window(self.state as u8, own, other, &segment, len, &options, self.inherited, false)
        }

        /// A segment with ACK.
        fn send(&mut self, reply: bool, seq: u32, len: u32, ack: u32, window: u16) -> Window {
            let segment = Tcp { seq, ack, window, flags: ACK, ..Tcp::default() };
            self.judge(reply, segment, len, Options::default())
        }
    }

    #[test]
    fn data_up_to_the_edge_and_not_beyond() {
        let mut c = Connection::open([None, None]);
        assert_eq!(c.send(false, 1000, 1000, 5000, 10_000), Window::In);
        assert_eq!(c.send(false, 20_000, 1000, 5000, 10_000), Window::In, "the responder granted 20,000");
        assert_eq!(c.send(false, 41_001, 1000, 5000, 10_000), Window::Out);
        assert_eq!(c.send(true, 5000, 10_000, 1000, 20_000), Window::In);
        assert_eq!(c.send(true, 15_001, 10_000, 1000, 20_000), Window::Out);
    }

    #[test]
    fn a_segment_slightly_beyond_the_edge_passes_and_may_be_acknowledged() {
        let mut c = Connection::open([None, None]);
        assert_eq!(c.send(false, 21_001, 100, 5000, 10_000), Window::Ignore);
        assert_eq!(c.send(true, 5000, 0, 21_101, 20_000), Window::In);
    }

    #[test]
    fn acknowledgements_of_what_was_not_sent_are_refused() {
        let mut c = Connection::open([None, None]);
        assert_eq!(c.send(true, 5000, 0, 1001, 20_000), Window::Out);
        assert_eq!(c.send(false, 1000, 1, 5000, 10_000), Window::In);
        assert_eq!(c.send(true, 5000, 0, 1001, 20_000), Window::In);
        assert_eq!(c.send(true, 5000, 0, 1001u32.wrapping_sub(66_001), 20_000), Window::Ignore, "very old");
    }

    #[test]
    fn what_was_acknowledged_long_ago_changes_nothing() {
        let mut c = Connection::open([None, None]);
        for i in 0..10 {
            assert_eq!(c.send(false, 1000 + i * 10_000, 10_000, 5000, 10_000), Window::In);
            assert_eq!(c.send(true, 5000, 0, 11_000 + i * 10_000, 20_000), Window::In);
        }
        assert_eq!(c.send(false, 999, 0, 5000, 10_000), Window::Ignore);
        assert_eq!(c.send(false, 100_999, 0, 5000, 10_000), Window::In, "a keepalive probe");
        assert_eq!(c.send(false, 1_000_000, 0, 5000, 10_000), Window::Out, "an empty segment from nowhere");
    }

    #[test]
    fn windows_are_scaled_when_both_sides_offered_it() {
        let mut c = Connection::open([Some(7), Some(7)]);
        assert_eq!(c.send(true, 5000, 0, 1000, 20_000), Window::In);
        assert_eq!(c.send(false, 1000 + 19_999 * 128, 128, 5000, 10_000), Window::In);
        let mut c = Connection::open([Some(7), None]);
        assert_eq!(c.send(true, 5000, 0, 1000, 20_000), Window::In);
        assert_eq!(c.send(false, 1000 + 19_999 * 128, 128, 5000, 10_000), Window::Out);
    }

    #[test]
    fn an_inherited_flow_believes_each_side_until_both_were_seen() {
        let mut c = Connection::open([Some(7), Some(7)]);
        for way in &mut c.ways {
            *way = Way { scale: way.scale, flags: way.flags & Way::REPLICATED, ..Way::default() };
        }
        c.inherited = true;
        // Far from where the connection was when it was replicated.
        assert_eq!(c.send(false, 7_000_000, 1000, 9_000_000, 100), Window::In);
        // More was acknowledged than passed here.
        assert_eq!(c.send(true, 9_000_000, 1000, 7_020_000, 200), Window::In);
        assert_eq!(c.send(false, 7_020_000, 1000, 9_001_000, 100), Window::In);
        // From now on it is as strict as any other.
        assert_eq!(c.send(false, 7_020_000 + 2_000_000, 1000, 9_001_000, 100), Window::Out);
        assert_eq!(c.send(true, 9_001_000, 0, 7_021_000 + 200 * 128 + 1, 200), Window::Out);
        assert_eq!(c.send(true, 9_001_000, 0, 7_021_000, 200), Window::In);
    }

    #[test]
    fn resets_must_hit_the_next_number() {
        let c = Connection::open([None, None]);
        let [there, back] = &c.ways;
        let judge = |state: FlowState, seq| reset(state as u8, true, seq, back, there);
        assert_eq!(judge(Established, 5000), Ok(Step::To(Close)));
        assert_eq!(judge(Established, 5001), Ok(Step::Stay), "for the receiver to challenge");
        assert_eq!(judge(Established, 4999), Err(DropReason::TcpReset));
        assert_eq!(judge(Established, 0), Err(DropReason::TcpReset));
        assert_eq!(judge(SynRecv, 0), Ok(Step::To(Close)));
    }

    fn options(bytes: &[u8]) -> Options {
        options_with(bytes, 0)
    }

    fn options_with(bytes: &[u8], ack: u32) -> Options {
        let mut scan = Scan {
            bytes: [0; OPTIONS_LEN + 4],
            len: bytes.len() as u32,
            at: 0,
            blocks_at: 0,
            blocks: 0,
            found: Options::default(),
        };
        scan.bytes[..bytes.len()].copy_from_slice(bytes);
        let steps = (0..=40).take_while(|_| scan.step()).count();
        assert!(steps <= 40);
        scan.finish(ack)
    }

    #[test]
    fn options_word_by_word_say_the_same() {
        let by_words = |bytes: &[u8]| {
            let mut found = Options::default();
            let mut at = 0;
            while at < bytes.len() {
                let word = u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
                match found.word(20 + at as u32, word) {
                    0 => return None,
                    step => at += step as usize,
                }
            }
            Some(found)
        };
        let linux = [2, 4, 5, 0xb4, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7];
        let windows = [2, 4, 5, 0xb4, 1, 3, 3, 8, 1, 1, 4, 2];
        let apple = [2, 4, 5, 0xb4, 1, 3, 3, 6, 1, 1, 8, 10, 3, 3, 3, 3, 0, 0, 0, 0, 4, 2, 0, 0];
        for usual in [&linux[..], &windows, &apple, &[1, 3, 3, 255], &[2, 4, 1, 2, 4, 2, 0, 0, 2, 4, 9, 9]] {
            assert_eq!(by_words(usual), Some(options(usual)), "{usual:?}");
        }
        // Whatever is there: the same, or no answer.
        let kinds = [0, 1, 2, 3, 4, 8, 10, 5];
        let mut answered = 0;
        for n in 0..kinds.len().pow(4) {
            let byte = |i: u32| kinds[n / kinds.len().pow(i) % kinds.len()];
            let word = [byte(0), byte(1), byte(2), byte(3)];
            for bytes in [word.to_vec(), [&windows[..4], &word].concat(), [&word, &windows[4..]].concat()] {
                if let Some(found) = by_words(&bytes) {
                    assert_eq!(found, options(&bytes), "{bytes:?}");
                    answered += 1;
                }
            }
        }
        assert!(answered > 10);
    }

    #[test]
    fn options_of_a_syn() {
        let found = options(&[2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 15]);
        assert_eq!((found.flags, found.scale, found.mss_at), (Way::SCALE | Way::SACK, 14, 22));
    }

    #[test]
    fn the_highest_sack_block_counts_also_when_numbers_wrap() {
        let mut bytes = vec![1, 1, 5, 26];
        for (left, right) in [(10u32, 20u32), (u32::MAX - 9, u32::MAX), (30, 40)] {
            bytes.extend(left.to_be_bytes());
            bytes.extend(right.to_be_bytes());
        }
        let found = options_with(&bytes, u32::MAX - 20);
        assert_eq!((found.sacked, found.sack), (true, 40));
        assert_eq!(options_with(&bytes, 50).sack, 50, "an acknowledgement above them");
        // Half the space and more below the last block: only step by step is it higher.
        assert_eq!(options_with(&bytes, 35u32.wrapping_sub(1 << 31)).sack, 40);
    }

    #[test]
    fn of_two_cpus_that_move_an_end_on_the_further_one_stays() {
        const MOVES: u32 = 4_000_000;
        // Past the end of the numbers.
        let begin = u32::MAX - MOVES;
        let end = AtomicU32::new(begin);
        let both = Barrier::new(2);
        std::thread::scope(|scope| {
            for cpu in 0..2 {
                let (end, both) = (&end, &both);
                scope.spawn(move || {
                    both.wait();
                    for moved in (cpu..2 * MOVES).step_by(2) {
                        let to = begin.wrapping_add(moved);
                        // SAFETY: an atomic is aligned and may be shared.
                        unsafe { raise(end.as_ptr(), to) };
                        let there = end.load(Ordering::Relaxed);
                        assert!(!before(there, to), "{there} is behind {to}");
                    }
                });
            }
        });
        assert_eq!(end.into_inner(), begin.wrapping_add(2 * MOVES - 1));
    }

    #[test]
    fn of_several_lists_of_sack_blocks_the_first_counts() {
        let list = |right: u8| [1, 1, 5, 10, 0, 0, 0, 0, 0, 0, 0, right];
        assert_eq!(options(&[list(40), list(20)].concat()).sack, 40);
        assert_eq!(options(&[list(20), list(40)].concat()).sack, 20);
    }

    #[test]
    fn options_that_do_not_fit_end_the_list() {
        for bytes in [&[5][..], &[5, 10, 0], &[3, 0, 7], &[3, 1, 7], &[0, 3, 3, 7], &[2, 40]] {
            assert_eq!(options(bytes), Options::default(), "{bytes:?}");
        }
        for kind in 0..=255u8 {
            for len in 0..=255u8 {
                let _ = options(&[[kind, len].as_slice(), &[len; 38]].concat());
            }
        }
    }
}
