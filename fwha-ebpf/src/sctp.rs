//! SCTP: what the chunks of a packet do to an association (RFC 9260), as strictly as
//! net/netfilter/nf_conntrack_proto_sctp.c: verification tags by direction, and its states.

use fwha_common::{drop::DropReason, flow::FlowState};

use crate::{
    packet::{Packet, Window, bounded, window},
    parse::Ip,
};

/// The chunk of a packet that decides. A packet has one such chunk in front, or none.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunk {
    /// DATA, SACK and others that change nothing.
    None = 0,
    /// INIT, alone in its packet.
    Init = 1,
    /// INIT ACK, alone in its packet.
    InitAck = 2,
    /// ABORT with the receiver's tag.
    Abort = 3,
    /// ABORT with the T bit: it carries the sender's tag (RFC 9260, 8.5.1).
    AbortReflected = 4,
    /// SHUTDOWN.
    Shutdown = 5,
    /// SHUTDOWN ACK.
    ShutdownAck = 6,
    /// SHUTDOWN COMPLETE, alone in its packet.
    ShutdownComplete = 7,
    /// SHUTDOWN COMPLETE with the T bit.
    ShutdownCompleteReflected = 8,
    /// ERROR.
    Error = 9,
    /// COOKIE ECHO.
    CookieEcho = 10,
    /// COOKIE ACK.
    CookieAck = 11,
    /// COOKIE ACK, and SHUTDOWN behind it.
    CookieAckShutdown = 12,
}

/// The chunk by its type (RFC 9260, 3.2); those with a T bit as without it. A table, because to the
/// verifier a value from a table may be any, and it looks at what follows once.
static CHUNKS_BY_TYPE: [u8; 16] = {
    let mut table = [Chunk::None as u8; 16];
    table[1] = Chunk::Init as u8;
    table[2] = Chunk::InitAck as u8;
    table[6] = Chunk::Abort as u8;
    table[7] = Chunk::Shutdown as u8;
    table[8] = Chunk::ShutdownAck as u8;
    table[9] = Chunk::Error as u8;
    table[10] = Chunk::CookieEcho as u8;
    table[11] = Chunk::CookieAck as u8;
    table[14] = Chunk::ShutdownComplete as u8;
    table
};

impl Chunk {
    /// The number of a chunk, by type and flags. The first flag of ABORT and SHUTDOWN COMPLETE is T; what
    /// it is of others is not looked at.
    #[inline(always)]
    fn number(kind: u8, flags: u8) -> u8 {
        let chunk = if kind < 16 { CHUNKS_BY_TYPE[kind as usize & 15] } else { Self::None as u8 };
        let reflects = chunk == Self::Abort as u8 || chunk == Self::ShutdownComplete as u8;
        chunk + (reflects && flags & 1 != 0) as u8
    }

    /// The chunk with this number; [`Self::None`] for numbers of none.
    #[inline(always)]
    pub const fn from_u8(n: u8) -> Self {
        match n {
            1 => Self::Init,
            2 => Self::InitAck,
            3 => Self::Abort,
            4 => Self::AbortReflected,
            5 => Self::Shutdown,
            6 => Self::ShutdownAck,
            7 => Self::ShutdownComplete,
            8 => Self::ShutdownCompleteReflected,
            9 => Self::Error,
            10 => Self::CookieEcho,
            11 => Self::CookieAck,
            12 => Self::CookieAckShutdown,
            _ => Self::None,
        }
    }
}

/// Whether nothing may be bundled with it (RFC 9260, 6.10).
#[inline(always)]
const fn alone(chunk: u8) -> bool {
    chunk == Chunk::Init as u8
        || chunk == Chunk::InitAck as u8
        || chunk == Chunk::ShutdownComplete as u8
        || chunk == Chunk::ShutdownCompleteReflected as u8
}

/// Whether it must be the first in its packet (RFC 9260, 5.1).
#[inline(always)]
const fn cookie(chunk: u8) -> bool {
    chunk == Chunk::CookieEcho as u8 || chunk == Chunk::CookieAck as u8
}

/// Whether it ends an association.
#[inline(always)]
const fn aborts(chunk: u8) -> bool {
    chunk == Chunk::Abort as u8 || chunk == Chunk::AbortReflected as u8
}

/// Chunks looked at, at most. Control chunks come before DATA (RFC 9260, 6.10).
const CHUNKS: u32 = 4;
/// Nothing behind this offset is looked at: a bound for the verifier.
const OFFSET_MAX: u32 = 0x4000;
/// The chunk type DATA.
const DATA: u8 = 0;

/// Reads the common header at `at` and the chunks behind it, `room` bytes in all, into `ip`.
///
/// ```text
///  0 source port  2 destination port  4 verification tag  8 checksum
///  chunk: 0 type  1 flags  2 length (padded to 4)  4 INIT, INIT ACK: initiate tag
/// ```
///
/// # Errors
///
/// Truncated; chunks that do not go together, or do not fit; an INIT with a verification tag.
#[inline(always)]
pub fn read(packet: &impl Packet, ip: &mut Ip, at: usize, room: u32) -> Result<(), DropReason> {
    let header: Window<12> = window(packet, at)?;
    ip.sport = header.u16::<0>();
    ip.dport = header.u16::<2>();
    ip.tcp.seq = header.u32::<4>();
    ip.header_len += 12;
    let mut offset = 12u32;
    let mut decides = Chunk::None as u8;
    let mut i = 0;
    while i < CHUNKS && offset + 4 <= room && offset < OFFSET_MAX {
        let head: Window<4> = window(packet, at + bounded::<{ OFFSET_MAX - 1 }>(offset))?;
        let kind = head.u8::<0>();
        let len = u16::from_be(head.u16::<2>()) as u32;
        if len < 4 || offset + len > room && !ip.is_fragment() {
            return Err(DropReason::Malformed);
        }
        let chunk = Chunk::number(kind, head.u8::<1>());
        let padded = (len + 3) & !3;
        if alone(chunk) && (i != 0 || offset + padded < room) || cookie(chunk) && i != 0 {
            return Err(DropReason::SctpState);
        }
        if i == 0 && (chunk == Chunk::Init as u8 || chunk == Chunk::InitAck as u8) {
            // type, flags, length, initiate tag, a_rwnd, streams out, streams in, initial TSN
            // A first fragment may end before the tag, and the frame behind it is padding.
            if room < 20 {
                return Err(DropReason::Malformed);
            }
            let init: Window<8> = window(packet, at + 12)?;
            ip.tcp.ack = init.u32::<4>();
            // RFC 9260, 3.3.2, 3.3.3, 8.5.1: never 0, and an INIT comes without a tag.
            if len < 20 || ip.tcp.ack == 0 || chunk == Chunk::Init as u8 && ip.tcp.seq != 0 {
                return Err(DropReason::SctpTag);
            }
        }
        // An ABORT ends it, whatever came before. A cookie is not forgotten over what is bundled with it, such as
        // the ERROR about parameters of the INIT ACK (RFC 9260, 3.2.2). Otherwise the last one decides.
        if chunk != Chunk::None as u8 && !aborts(decides) && (aborts(chunk) || !cookie(decides)) {
            decides = chunk;
        }
        if chunk == Chunk::Shutdown as u8 && decides == Chunk::CookieAck as u8 {
            decides = Chunk::CookieAckShutdown as u8;
        }
        if kind == DATA {
            break;
        }
        offset += padded;
        i += 1;
    }
    ip.tcp.flags = decides;
    Ok(())
}

/// Whether a packet with `tag` may go the way whose tag is `own`; `other` is that of the way back. A tag
/// that is not known yet is 0, which none is: before the INIT ACK there is nothing but INITs to send.
#[inline(always)]
pub const fn tag_valid(chunk: Chunk, tag: u32, own: u32, other: u32) -> bool {
    match chunk {
        Chunk::Init => tag == 0,
        Chunk::AbortReflected | Chunk::ShutdownCompleteReflected => tag == other && other != 0,
        _ => tag == own && own != 0,
    }
}

/// The state after a chunk, of an association in `state`; `reply` if the responder sent it.
///
/// # Errors
///
/// The state does not allow it.
#[inline(always)]
pub fn step(state: FlowState, reply: bool, chunk: Chunk) -> Result<FlowState, DropReason> {
    use FlowState::{
        Close, CookieEchoed, CookieWait, Established, ShutdownAckSent, ShutdownRecd, ShutdownSent,
    };
    Ok(match (chunk, state) {
        (Chunk::Abort | Chunk::AbortReflected, _) => Close,
        (Chunk::None, CookieWait) | (Chunk::InitAck, Close) => return Err(DropReason::SctpState),
        (Chunk::CookieEcho, CookieWait) => CookieEchoed,
        (Chunk::CookieAck, CookieEchoed) => Established,
        (Chunk::Error, CookieEchoed) if reply => Close,
        (Chunk::CookieAckShutdown, CookieEchoed)
        | (Chunk::Shutdown | Chunk::CookieAckShutdown, Established) => {
            if reply {
                ShutdownRecd
            } else {
                ShutdownSent
            }
        }
        (Chunk::ShutdownAck, ShutdownSent | ShutdownRecd) => ShutdownAckSent,
        (Chunk::ShutdownComplete | Chunk::ShutdownCompleteReflected, ShutdownAckSent) => Close,
        (_, state) => state,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use FlowState::{
        Close, CookieEchoed, CookieWait, Established, ShutdownAckSent, ShutdownRecd, ShutdownSent,
    };

    #[test]
    fn an_association_from_init_to_shutdown_complete() {
        let mut state = CookieWait;
        for (reply, chunk, next) in [
            (true, Chunk::InitAck, CookieWait),
            (false, Chunk::CookieEcho, CookieEchoed),
            (true, Chunk::CookieAck, Established),
            (false, Chunk::None, Established),
            (true, Chunk::Shutdown, ShutdownRecd),
            (false, Chunk::ShutdownAck, ShutdownAckSent),
            (true, Chunk::ShutdownComplete, Close),
        ] {
            state = step(state, reply, chunk).unwrap();
            assert_eq!(state, next, "{chunk:?}");
        }
        assert_eq!(step(Established, false, Chunk::Shutdown), Ok(ShutdownSent));
        assert_eq!(step(CookieEchoed, true, Chunk::CookieAckShutdown), Ok(ShutdownRecd));
        assert_eq!(step(CookieEchoed, true, Chunk::Error), Ok(Close), "a stale cookie");
        assert_eq!(step(Established, true, Chunk::Error), Ok(Established));
    }

    #[test]
    fn no_data_before_the_cookie() {
        assert_eq!(step(CookieWait, false, Chunk::None), Err(DropReason::SctpState));
        assert_eq!(step(CookieWait, true, Chunk::None), Err(DropReason::SctpState));
    }

    #[test]
    fn tags_by_direction() {
        assert!(tag_valid(Chunk::Init, 0, 0, 7));
        assert!(!tag_valid(Chunk::Init, 7, 7, 7));
        assert!(tag_valid(Chunk::None, 5, 5, 7) && !tag_valid(Chunk::None, 7, 5, 7));
        assert!(tag_valid(Chunk::Abort, 5, 5, 7) && !tag_valid(Chunk::Abort, 7, 5, 7));
        assert!(tag_valid(Chunk::AbortReflected, 7, 5, 7) && !tag_valid(Chunk::AbortReflected, 5, 5, 7));
        assert!(!tag_valid(Chunk::None, 9, 0, 7) && !tag_valid(Chunk::None, 0, 0, 7), "not known yet");
    }
}
