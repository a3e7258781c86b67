//! The states of a TCP connection as a pure function of state, direction and flags.
//!
//! The table is that of net/netfilter/nf_conntrack_proto_tcp.c (van Rooij, "Real Stateful TCP Packet
//! Filtering in IP Filter", 2001), without its SYN_SENT2 (simultaneous open).

use fwha_common::flow::FlowState;

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
    /// The flow moves to this state.
    To(FlowState),
    /// The packet passes and the state stays.
    Stay,
    /// The state does not allow the packet.
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

/// Whether a segment with these flags, seen in `state`, belongs to a successor of the connection:
/// a SYN or SYN+ACK on one that is over. The old element then counts as dead.
#[inline(always)]
pub const fn succeeds(state: u32, flags: u8) -> bool {
    flags & (SYN | RST | FIN) == SYN
        && (state == FlowState::TimeWait as u32 || state == FlowState::Close as u32)
}

const IV: u8 = 0xff; // invalid
const IG: u8 = 0xfe; // ignored: passes, state stays
const SS: u8 = FlowState::SynSent as u8;
const SR: u8 = FlowState::SynRecv as u8;
const ES: u8 = FlowState::Established as u8;
const FW: u8 = FlowState::FinWait as u8;
const CW: u8 = FlowState::CloseWait as u8;
const LA: u8 = FlowState::LastAck as u8;
const TW: u8 = FlowState::TimeWait as u8;
const CL: u8 = FlowState::Close as u8;

/// Rows: SYN, SYN+ACK, FIN, ACK, RST, three unused. Columns: states by number. Powers of two, so
/// that a masked index is a bound that the verifier sees.
static TABLE: [[[u8; 16]; 8]; 2] = [
    // The originator sends.
    [
        //   -  SS  SR  ES  FW  CW  LA  TW  CL
        row([IV, SS, IG, IG, IG, IG, IG, SS, SS]),
        row([IV, IV, SR, IV, IV, IV, IV, IV, IV]),
        row([IV, IV, FW, FW, LA, LA, LA, TW, CL]),
        row([IV, IV, ES, ES, CW, CW, TW, TW, CL]),
        row([IV, CL, CL, CL, CL, CL, CL, CL, CL]),
        row([IV; 9]),
        row([IV; 9]),
        row([IV; 9]),
    ],
    // The responder sends.
    [
        row([IV, IV, IV, IV, IV, IV, IV, SS, IV]),
        row([IV, SR, IG, IG, IG, IG, IG, IG, IG]),
        row([IV, IV, FW, FW, LA, LA, LA, TW, CL]),
        row([IV, IG, SR, ES, CW, CW, TW, TW, CL]),
        row([IV, CL, CL, CL, CL, CL, CL, CL, CL]),
        row([IV; 9]),
        row([IV; 9]),
        row([IV; 9]),
    ],
];

const fn row(states: [u8; 9]) -> [u8; 16] {
    let mut row = [IV; 16];
    let mut i = 0;
    while i < states.len() {
        row[i] = states[i];
        i += 1;
    }
    row
}

/// What a segment with `flags` does to a flow in `state`; `reply` if the responder sent it. The
/// caller has refused flags that are not [`flags_valid`].
#[inline(always)]
pub fn step(state: u32, reply: bool, flags: u8) -> Step {
    let kind = if flags & RST != 0 {
        4
    } else if flags & SYN != 0 {
        if flags & ACK != 0 { 1 } else { 0 }
    } else if flags & FIN != 0 {
        2
    } else {
        3
    };
    let next = TABLE[reply as usize & 1][kind & 7][state as usize & 15];
    if next == IV || state > FlowState::Close as u32 {
        return Step::Invalid;
    }
    if next == IG || next as u32 == state {
        return Step::Stay;
    }
    match FlowState::from_u8(next) {
        Some(next) => Step::To(next),
        None => Step::Invalid,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays a conversation and gives the states it goes through.
    fn play(segments: &[(bool, u8)]) -> Vec<Result<FlowState, ()>> {
        let mut state = FlowState::SynSent;
        segments
            .iter()
            .map(|&(reply, flags)| match step(state as u32, reply, flags) {
                Step::To(next) => {
                    state = next;
                    Ok(next)
                }
                Step::Stay => Ok(state),
                Step::Invalid => Err(()),
            })
            .collect()
    }

    use FlowState::{Close, CloseWait, Established, FinWait, LastAck, SynRecv, SynSent, TimeWait};

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
                assert_eq!(step(state as u32, reply, RST), Step::To(Close));
                assert_eq!(step(state as u32, reply, RST | ACK), Step::To(Close));
            }
        }
    }

    #[test]
    fn nothing_but_an_answer_leads_out_of_syn_sent() {
        assert_eq!(play(&[(false, ACK)]), [Err(())]);
        assert_eq!(play(&[(false, FIN | ACK)]), [Err(())]);
        assert_eq!(play(&[(true, FIN | ACK)]), [Err(())]);
        assert_eq!(play(&[(true, SYN)]), [Err(())], "simultaneous open is not supported");
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
    fn a_syn_on_a_connection_that_is_over_begins_another() {
        assert!(succeeds(TimeWait as u32, SYN));
        assert!(succeeds(Close as u32, SYN | ACK));
        assert!(!succeeds(TimeWait as u32, ACK));
        assert!(!succeeds(Established as u32, SYN));
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
    fn no_state_and_no_flags_lead_out_of_the_table() {
        for state in (0..=u32::from(u8::MAX)).chain([u32::MAX]) {
            for flags in 0..=u8::MAX {
                for reply in [false, true] {
                    if state == 0 || state > Close as u32 {
                        assert_eq!(step(state, reply, flags), Step::Invalid);
                    } else if let Step::To(next) = step(state, reply, flags) {
                        assert!((SynSent as u8..=Close as u8).contains(&(next as u8)));
                    }
                }
            }
        }
    }
}
