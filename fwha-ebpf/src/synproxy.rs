//! The SYN proxy: a SYN is answered from here, with a cookie for a sequence number (RFC 4987, 3.6) and
//! without a trace; the acknowledgement that proves the cookie begins the flow, and only then does the
//! server hear of it. The cookies are the kernel's own: the same helpers make and check them, with the secret
//! of this boot.
//!
//! ```text
//!  client                      firewall                              server
//!    | SYN n ------------------->|                                     |
//!    |<- SYN ACK cookie, n+1, win 0                                    |
//!    | ACK n+1, cookie+1 ------->| is now SYN n -------------------->  |   embryonic
//!    |                           |<------------------ SYN ACK s, n+1   |   `delta` = s - cookie
//!    |<- ACK cookie, n+1, win, 1 octet                                 |   syn-recv
//!    | ACK n+1, cookie+1 ------->| ACK n+1, s+1 -------------------->  |   established
//! ```
//!
//! One packet that comes in is one that goes out, at XDP as at tc. So the server's SYN ACK becomes an old
//! octet (as of a keep-alive, RFC 9293, 3.8.4): it opens the window, and its receiver has to acknowledge, which
//! completes the handshake with the server. Should a client not take the window from it, its probe of the zero
//! window gets another.
//!
//! Should the client's acknowledgement get lost, what it sends next is a probe of the zero window: its data, or, as Linux
//! does it (`tcp_xmit_probe_skb` in net/ipv4/tcp_output.c), nothing, with the number before, n. That stands for the SYN as
//! well. The kernel's cookie is a sum of a hash, the SYN's number and the class of the MSS, and would not tell number n and
//! one class from n - 1 and the next: so the helpers are given n times a constant ([`SPREAD`]).
//!
//! The engine says what is to be done to the packet ([`Task`]); it is done behind it.

use aya_ebpf::helpers::generated::{
    bpf_tcp_raw_check_syncookie_ipv4, bpf_tcp_raw_check_syncookie_ipv6, bpf_tcp_raw_gen_syncookie_ipv4,
    bpf_tcp_raw_gen_syncookie_ipv6,
};
use fwha_common::{
    drop::DropReason,
    flow::{Flow, proto},
};

use crate::{
    Outcome, Verdict,
    flow::FlowRef,
    forward,
    maps::{self, Room},
    packet::{ETH_LEN, Packet, Window, window},
    parse::{Ip, Payload},
    reject::{self, Sum, V4, V6},
    tcp::{ACK, FIN, RST, SYN},
};

/// What is to be done to a packet.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A SYN: turn it into its answer, with a cookie.
    Answer,
    /// Turn it into the SYN to the server.
    Open,
    /// The server's SYN ACK: turn it into an old octet.
    Octet,
    /// Add to a number in it.
    Translate,
    /// Take its acknowledgement away.
    Unacknowledge,
}

/// What is to be done to the packet that was parsed last.
pub struct Task {
    kind: Kind,
    /// Of what it is turned into.
    seq: u32,
    /// The same.
    ack: u32,
    /// The maximum segment size that it says, if it is a SYN.
    mss: u16,
    /// Whether it is longer than its route takes, and has gone to the stack for that.
    too_long: bool,
    /// What is added.
    delta: u32,
    /// To the number at this offset of the frame; where TCP begins, if an acknowledgement goes,
    at: u32,
    /// which the checksum at this one covers.
    checksum_at: u32,
    headers: Headers,
}

/// IP and TCP header as the helpers read them: addresses; ports, numbers, the MSS option.
#[repr(C)]
struct Headers {
    ip: [u32; V6 / 4],
    tcp: [u32; 6],
}

/// Odd, so that each number has its own, and large, so that numbers close together do not lie together: the golden ratio
/// of 2^32.
const SPREAD: u32 = 0x9e37_79b1;

impl Headers {
    #[inline(always)]
    fn fill(&mut self, ip: &Ip, ack: u32, mss: u16) {
        if ip.v6 {
            let mut i = 0;
            while i < 4 {
                self.ip[2 + i] = ip.src[i];
                self.ip[6 + i] = ip.dst[i];
                i += 1;
            }
        } else {
            self.ip[3] = ip.src[3];
            self.ip[4] = ip.dst[3];
        }
        self.tcp[0] = ip.sport as u32 | (ip.dport as u32) << 16;
        self.tcp[2] = ack.to_be();
        self.tcp[3] = u32::to_be(6 << 28);
        self.tcp[4] = 0;
        self.tcp[5] = mss_option(mss);
    }

    /// The number of the SYN, or of the segment behind it, with the SYN's spread.
    #[inline(always)]
    fn number(&mut self, isn: u32, behind: bool) {
        self.tcp[1] = isn.wrapping_mul(SPREAD).wrapping_add(behind as u32).to_be();
    }

    /// The cookie for a SYN, and above it the MSS that it stands for; negative if there is none.
    #[inline(always)]
    fn make(&mut self, v6: bool) -> i64 {
        let tcp = (&raw mut self.tcp).cast();
        // SAFETY: both headers are there, and the kernel only reads them.
        unsafe {
            if v6 {
                bpf_tcp_raw_gen_syncookie_ipv6((&raw mut self.ip).cast(), tcp, 24)
            } else {
                bpf_tcp_raw_gen_syncookie_ipv4((&raw mut self.ip).cast(), tcp, 24)
            }
        }
    }

    /// Whether the acknowledgement is of a cookie of at most two minutes ago.
    #[inline(always)]
    fn valid(&mut self, v6: bool) -> bool {
        let tcp = (&raw mut self.tcp).cast();
        // SAFETY: as above.
        let result = unsafe {
            if v6 {
                bpf_tcp_raw_check_syncookie_ipv6((&raw mut self.ip).cast(), tcp)
            } else {
                bpf_tcp_raw_check_syncookie_ipv4((&raw mut self.ip).cast(), tcp)
            }
        };
        result == 0
    }
}

/// The option that says an MSS (RFC 9293, 3.2).
#[inline(always)]
const fn mss_option(mss: u16) -> u32 {
    u32::to_be(0x0204_0000 | mss as u32)
}

/// Whether a segment may acknowledge a cookie.
#[inline(always)]
pub const fn may_acknowledge(flags: u8) -> bool {
    flags & (ACK | SYN | RST | FIN) == ACK
}

/// MSSs that a cookie can stand for, at most.
const MSS_CLASSES: u32 = 4;

/// The MSS that a client said in the SYN whose cookie a segment acknowledges, rounded down; 0 if it is no
/// valid one. The SYN's number is kept for [`stand_for_syn`].
#[inline(never)]
pub fn acknowledged(ip: &Ip) -> u32 {
    let Some(task) = maps::room().map(Room::task) else {
        return 0;
    };
    let v6 = ip.v6;
    task.ack = ip.tcp.ack.wrapping_sub(1);
    task.seq = ip.tcp.seq.wrapping_sub(1);
    task.headers.fill(ip, ip.tcp.ack, 0);
    task.headers.number(task.seq, true);
    if !task.headers.valid(v6) {
        task.seq = ip.tcp.seq;
        task.headers.number(task.seq, true);
        if ip.len - ip.header_len > 1 || !task.headers.valid(v6) {
            return 0;
        }
    }
    // The helper does not say for which MSS the cookie is: the one for which it would be made. If it was made
    // just before the kernel's minute ended there is none, and it is the smallest.
    task.headers.number(task.seq, false);
    let mut class = u32::MAX;
    let mut i = 0;
    while i < MSS_CLASSES {
        task.headers.tcp[5] = mss_option(class.wrapping_sub(1) as u16);
        let made = task.headers.make(v6);
        if made < 0 {
            return 0;
        }
        class = (made >> 32) as u32;
        if made as u32 == task.ack {
            break;
        }
        i += 1;
    }
    class
}

/// What a host announces that announces nothing (RFC 9293, 3.7.1).
const fn mss_default(v6: bool) -> u16 {
    if v6 { 1220 } else { 536 }
}

/// Plans the answer to a SYN. `limit` is what the rule clamps to, the MTUs are those of both ways.
#[inline(always)]
pub fn answer(ip: &Ip, limit: u16, mtu: u16, mtu_back: u16) -> Result<Verdict, DropReason> {
    let task = maps::room().map(Room::task).ok_or(DropReason::SynCookie)?;
    // What the server would announce is not known: what fits the routes.
    let limit = if limit == 0 { Flow::MSS_PMTU } else { limit };
    let mss = match forward::mss_limit(limit, mtu, mtu_back, ip.v6) {
        0 if ip.v6 => 1440,
        0 => 1460,
        mss => mss,
    };
    task.kind = Kind::Answer;
    task.mss = mss;
    // Data that came with it is not taken.
    task.ack = ip.tcp.seq.wrapping_add(1);
    Ok(Verdict::SynAnswer)
}

/// Whether a segment is a reset that says it acknowledges something, and does not: some stacks send such
/// (`tcp_in_window` in the kernel's nf_conntrack_proto_tcp.c). There is nothing to translate.
#[inline(always)]
pub fn resets_without_number(ip: &Ip) -> bool {
    ip.payload == Payload::Tcp && ip.tcp.flags & RST != 0 && ip.tcp.ack == 0
}

/// What becomes of a packet of a flow behind the proxy whose server has not answered yet.
pub enum Early {
    /// It is judged as any.
    Judge,
    /// It stands for the SYN to the server, which may have been lost.
    Open,
    /// It is of another connection.
    Begin,
}

/// Looks at a packet of a flow whose server has not answered yet. What it acknowledges is in the server's numbers.
///
/// # Errors
///
/// It cannot be.
#[inline(always)]
pub fn early(ip: &Ip, reply: bool) -> Result<Early, DropReason> {
    let flags = ip.tcp.flags;
    if ip.payload != Payload::Tcp || flags & RST != 0 {
        return Ok(Early::Judge);
    }
    match (reply, flags & SYN != 0, flags & ACK != 0) {
        (true, true, true) => Ok(Early::Judge),
        (true, true, false) => Err(DropReason::TcpState),
        // The server has another connection in mind, and is told so (RFC 9293, 3.5.2).
        (true, false, _) => Err(DropReason::Reject),
        (false, false, true) if ip.tcp.ack == 0 => Ok(Early::Open),
        (false, ..) => Ok(Early::Begin),
    }
}

/// Makes an acknowledgement of a cookie the SYN that it stands for, without what it carries. Returns the flow's
/// [`Flow::delta`].
///
/// # Errors
///
/// This one cookie of 2^32 would have none.
#[inline(always)]
pub fn stand_for_syn(ip: &mut Ip) -> Result<u32, DropReason> {
    let task = maps::room().map(Room::task).ok_or(DropReason::SynCookie)?;
    let delta = ip.tcp.ack.wrapping_neg();
    if delta == 0 {
        return Err(DropReason::SynCookie);
    }
    ip.tcp.seq = task.seq;
    ip.tcp.ack = 0;
    ip.tcp.flags = SYN;
    ip.len = ip.header_len;
    Ok(delta)
}

/// Plans what is to be done to a packet of a flow behind the proxy that is sent on (`verdict`). `opening` if
/// it stands for the client's SYN.
#[inline(always)]
pub fn change(
    packet: &impl Packet,
    flow: FlowRef,
    reply: bool,
    ip: &Ip,
    opening: bool,
    verdict: Verdict,
) -> Result<Verdict, DropReason> {
    let forwarded = verdict == Verdict::Forward;
    if !forwarded && ip.ttl <= 1 {
        // The stack answers it, and has to quote what its sender sent.
        return Ok(verdict);
    }
    let task = maps::room().map(Room::task).ok_or(DropReason::SynCookie)?;
    let (way, _) = flow.ways(reply);
    let delta = flow.delta();
    // SAFETY: `way` lies in a map element. Others may write it: see the module `flow`.
    let (end, mtu) = unsafe { ((*way).end, (*way).mtu) };
    task.mss = 0;
    task.too_long = !forwarded && forward::too_long(ip, packet.segment_size(), mtu);
    task.checksum_at = ETH_LEN as u32 + ip.l4 + 16;
    if opening {
        task.kind = Kind::Open;
        task.seq = end.wrapping_sub(1);
        task.ack = 0;
        task.mss = flow.mss();
    } else if reply && ip.tcp.flags & SYN != 0 {
        task.kind = Kind::Octet;
        task.seq = ip.tcp.seq.wrapping_sub(delta);
        task.ack = ip.tcp.ack;
    } else {
        if ip.payload != Payload::Tcp || !reply && (ip.tcp.flags & ACK == 0 || resets_without_number(ip)) {
            return Ok(verdict);
        }
        task.at = ETH_LEN as u32 + ip.l4;
        if !reply && ip.tcp.flags & RST != 0 && ip.tcp.ack.wrapping_add(delta) == 0 {
            // The server has said nothing that it could acknowledge, and would take it for another connection's
            // (RFC 9293, 3.10.7.4; `tcp_check_req` in net/ipv4/tcp_minisocks.c).
            task.kind = Kind::Unacknowledge;
        } else {
            task.kind = Kind::Translate;
            task.at += if reply { 4 } else { 8 };
            task.delta = if reply { delta.wrapping_neg() } else { delta };
        }
    }
    Ok(if forwarded { Verdict::ProxyForward } else { Verdict::ProxyPass })
}

/// Plans what is to be done to an ICMP error about a packet of the server: the number in it is what the client's
/// side of the network saw. (One about a packet of the client has the client's number, and what it acknowledges
/// is not sure to be there, nor looked at.)
#[inline(always)]
pub fn change_error(flow: FlowRef, ip: &Ip, verdict: Verdict) -> Result<Verdict, DropReason> {
    let task = maps::room().map(Room::task).ok_or(DropReason::SynCookie)?;
    let inner = maps::room().map(Room::inner).ok_or(DropReason::SynCookie)?;
    task.kind = Kind::Translate;
    task.too_long = false;
    task.at = ETH_LEN as u32 + ip.header_len + inner.l4 + 4;
    task.checksum_at = ETH_LEN as u32 + ip.l4 + 2;
    task.delta = flow.delta();
    Ok(if verdict == Verdict::Forward { Verdict::ProxyForward } else { Verdict::ProxyPass })
}

/// Does what the engine said is to be done to a packet.
#[inline(always)]
pub fn finish<P: Packet>(packet: &mut P, outcome: Outcome) -> Outcome {
    match outcome.0 {
        Outcome::SYN_ANSWER | Outcome::PROXY_FORWARD | Outcome::PROXY_PASS => {
            if !carry_out(packet) {
                return Outcome(DropReason::SynCookie as u32);
            }
            match outcome.0 {
                Outcome::PROXY_FORWARD => Outcome(Outcome::FORWARD),
                Outcome::PROXY_PASS => Outcome(Outcome::PASS),
                _ => outcome,
            }
        }
        _ => outcome,
    }
}

#[inline(never)]
fn carry_out<P: Packet>(packet: &mut P) -> bool {
    let (Some(ip), Some(task)) = (maps::room().map(Room::ip), maps::room().map(Room::task)) else {
        return false;
    };
    let done = match task.kind {
        Kind::Translate => translate(packet, ip, task),
        Kind::Unacknowledge => unacknowledge(packet, task),
        Kind::Answer => {
            let mss = announced(packet, ip);
            task.headers.fill(ip, 0, mss);
            task.headers.number(ip.tcp.seq, false);
            let cookie = task.headers.make(ip.v6);
            if cookie < 0 {
                return false;
            }
            task.seq = cookie as u32;
            write(packet, ip, task)
        }
        _ => write(packet, ip, task),
    };
    done.is_some()
}

/// The MSS that a SYN announces.
#[inline(always)]
fn announced(packet: &impl Packet, ip: &Ip) -> u16 {
    let mut mss = [0; 2];
    match maps::room().map(Room::options) {
        Some(options) if options.mss_at != 0 => {
            let at = ETH_LEN as u32 + ip.l4 + options.mss_at as u32;
            if packet.load(at, &mut mss) { u16::from_be_bytes(mss) } else { mss_default(ip.v6) }
        }
        _ => mss_default(ip.v6),
    }
}

#[inline(always)]
fn write(packet: &mut impl Packet, ip: &Ip, task: &Task) -> Option<()> {
    if ip.v6 { segment::<V6>(packet, ip, task) } else { segment::<V4>(packet, ip, task) }
}

/// Turns the packet into a segment without any option but the MSS.
#[inline(always)]
fn segment<const L3: usize>(packet: &mut impl Packet, ip: &Ip, task: &Task) -> Option<()> {
    let back = task.kind == Kind::Answer;
    let len = if task.mss != 0 { 24 } else { 21 };
    reject::headers::<L3>(packet, ip, proto::TCP, len, back)?;
    let tcp: Window<20> = window(packet, ETH_LEN + L3).ok()?;
    let (sport, dport) = if back { (ip.dport, ip.sport) } else { (ip.sport, ip.dport) };
    let (flags, granted) = match task.kind {
        // The window opens when the server has answered.
        Kind::Answer => (SYN | ACK, 0),
        Kind::Open => (SYN, ip.tcp.window),
        _ => (ACK, ip.tcp.window),
    };
    tcp.set_u16::<0>(sport);
    tcp.set_u16::<2>(dport);
    tcp.set_u32::<4>(task.seq.to_be());
    tcp.set_u32::<8>(task.ack.to_be());
    tcp.set_u8::<12>(if task.mss != 0 { 6 << 4 } else { 5 << 4 });
    tcp.set_u8::<13>(flags);
    tcp.set_u16::<14>(granted.to_be());
    tcp.set_u32::<16>(0);
    let mut sum =
        Sum::ZERO.word(tcp.u32::<0>()).word(tcp.u32::<4>()).word(tcp.u32::<8>()).word(tcp.u32::<12>());
    if task.mss != 0 {
        let option: Window<4> = window(packet, ETH_LEN + L3 + 20).ok()?;
        option.set_u32::<0>(mss_option(task.mss));
        sum = sum.word(mss_option(task.mss));
    } else {
        let octet: Window<1> = window(packet, ETH_LEN + L3 + 20).ok()?;
        octet.set_u8::<0>(0);
    }
    let pseudo = Sum::pseudo(ip, proto::TCP, len).fold();
    packet.checksum((ETH_LEN + L3 + 16) as u32, pseudo, sum.fold()).ok()
}

/// Takes the acknowledgement of a reset away.
#[inline(always)]
fn unacknowledge(packet: &mut impl Packet, task: &Task) -> Option<()> {
    let at = task.at + 12;
    let mut old = [0; 2];
    if !packet.load(at, &mut old) {
        return None;
    }
    let old = u16::from_be_bytes(old);
    packet.replace(at, task.checksum_at, old.to_be(), (old & !(ACK as u16)).to_be()).ok()
}

/// Adds to a number.
#[inline(always)]
fn translate(packet: &mut impl Packet, ip: &Ip, task: &Task) -> Option<()> {
    if task.too_long {
        if ip.v6 {
            return Some(());
        }
        // Do not fragment: the stack answers it, and has to quote what its sender sent.
        let header: Window<20> = window(packet, ETH_LEN).ok()?;
        if header.u16::<6>() & u16::to_be(0x4000) != 0 {
            return Some(());
        }
    }
    let mut old = [0; 4];
    if !packet.load(task.at, &mut old) {
        return None;
    }
    let old = u32::from_be_bytes(old);
    let new = old.wrapping_add(task.delta);
    let half = |n: u32| (n as u16).to_be();
    packet.replace(task.at, task.checksum_at, half(old >> 16), half(new >> 16)).ok()?;
    packet.replace(task.at + 2, task.checksum_at, half(old), half(new)).ok()
}
