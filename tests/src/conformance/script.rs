//! The language of sequences, after packetdrill's: one packet a line, numbers relative to where each side began.
//!
//! ```text
//! == name [v4|v6] [isn INSIDE OUTSIDE]
//! # why
//! > S 0:0 win 65535 <mss 1460,sackOK,wscale 7>
//! < S. 0:0 ack 1 win 65535 <mss 1460>
//! > . ack 1
//! > P. 1:101 ack 1 {ttl 1} : icmp
//! ```
//!
//! `>` is sent by the inside (lan) to the outside (wan), `<` the other way. A line ends with what the kernel does:
//! nothing when it forwards the packet as any router does, `: drop`, `: icmp` when it answers with an ICMP error, `: other`;
//! two such words are for IPv4 and IPv6, where they differ. A sequence is played with IPv4 and with IPv6 unless it names one
//! of them. `& NAME` stands for all packets of an earlier sequence.
//!
//! | packet | written as |
//! |---|---|
//! | TCP | `FLAGS [SEQ:END] [ack N] [win N] [urg N] [<OPTIONS>]`: F S R P . U E W, or `-` for none; without SEQ:END it goes on where its sender is; win 65535 |
//! | UDP, UDP-Lite, ESP, AH | `udp LENGTH` and so on: bytes of payload |
//! | ICMP query | `echo N [LENGTH]`, `echo-reply N`, `timestamp N`, … |
//! | ICMP error | `KIND [INFO] about PACKET`: the packet is written with its own `>` or `<`; INFO is an MTU, gateway or pointer |
//! | any ICMP message | `icmp TYPE/CODE LENGTH` |
//! | SCTP | `sctp CHUNK+CHUNK…` |
//! | DCCP | `dccp TYPE` |
//! | GRE | `gre LENGTH`, `gre-key KEY LENGTH`, `gre-pptp CALL LENGTH` |
//! | other | `proto NUMBER LENGTH` |
//!
//! What a sane sender would not do stands in braces, see [`Tweak`].

use std::str::FromStr;

use anyhow::{Context as _, Result, bail, ensure};

use super::wire::{Family, Side};

/// TCP's flags in the order of their bits, from FIN.
const FLAGS: &[u8; 8] = b"FSRP.UEW";
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// A conversation to be played.
#[derive(Clone, Debug, PartialEq)]
pub struct Sequence {
    /// Its name, by which it can be asked for.
    pub name: String,
    /// Families it is played with.
    pub families: Vec<Family>,
    /// Where the sequence numbers of inside and outside begin.
    pub isn: [u32; 2],
    /// The packets, in this order.
    pub steps: Vec<Step>,
}

impl Sequence {
    /// How the names of those that are made up begin, before their seed.
    pub const RANDOM: &str = "seed-";

    /// Whether it was made up.
    pub fn is_random(&self) -> bool {
        self.name.starts_with(Self::RANDOM)
    }
}

/// A line.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// As it was written, without what the kernel does.
    pub text: String,
    /// What the kernel does with IPv4 and IPv6, as the script says.
    pub expected: [Verdict; 2],
    /// Number of the line; `None` in a copy from another sequence.
    pub line: Option<usize>,
    /// The packet.
    pub message: Message,
}

/// What became of a packet, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    /// Forwarded as any router does: lower TTL, new MACs.
    Pass,
    /// Nothing came out.
    Drop,
    /// The device sent an ICMP error to the sender, and nothing else.
    Icmp,
    /// Anything else.
    Other,
}

impl Verdict {
    const ALL: [Self; 4] = [Self::Pass, Self::Drop, Self::Icmp, Self::Other];

    /// Its word in a script.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Drop => "drop",
            Self::Icmp => "icmp",
            Self::Other => "other",
        }
    }
}

/// A packet: who sends what, and what is odd about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// The sender.
    pub from: Side,
    /// What it sends.
    pub what: What,
    /// What is odd about it.
    pub tweaks: Vec<Tweak>,
}

/// What a packet carries. Lengths are of the payload, in bytes.
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// TCP.
    Tcp(Tcp),
    /// UDP.
    Udp(usize),
    /// UDP-Lite, whole coverage.
    UdpLite(usize),
    /// An ICMP query or its reply.
    Query {
        /// Which.
        kind: &'static Query,
        /// Sequence number.
        number: u16,
        /// Length.
        len: usize,
    },
    /// An ICMP error.
    Error {
        /// Which.
        kind: &'static ErrorKind,
        /// MTU, gateway or pointer.
        info: u32,
        /// The packet it is about, as its sender sent it.
        about: Box<Message>,
    },
    /// An ICMP message by number.
    Icmp {
        /// Type and code.
        kind: [u8; 2],
        /// Bytes behind the first four.
        len: usize,
    },
    /// SCTP chunks, by their place in [`SCTP_CHUNKS`].
    Sctp(Vec<u8>),
    /// A DCCP packet, by its place in [`DCCP_TYPES`].
    Dccp(u8),
    /// GRE of version 0, with a key.
    Gre(Option<u32>, usize),
    /// GRE of version 1: PPTP's, with a call.
    GrePptp(u16, usize),
    /// ESP.
    Esp(usize),
    /// AH over an unknown protocol.
    Ah(usize),
    /// Another protocol.
    Other(u8, usize),
}

/// A TCP segment. Sequence numbers are relative to the ISN of the side that counts them.
#[derive(Clone, Debug, PartialEq)]
pub struct Tcp {
    /// Flags as in the header.
    pub flags: u8,
    /// Sequence number.
    pub seq: u32,
    /// Length.
    pub len: usize,
    /// Acknowledgement number, absolute zero if none.
    pub ack: Option<u32>,
    /// Window as in the header.
    pub window: u16,
    /// Urgent pointer.
    pub urgent: u16,
    /// Options.
    pub options: Vec<TcpOption>,
}

impl Tcp {
    /// The sequence number behind it.
    fn end(&self) -> u32 {
        let flags = u32::from(self.flags & SYN != 0) + u32::from(self.flags & FIN != 0);
        self.seq.wrapping_add(self.len as u32).wrapping_add(flags)
    }
}

/// A TCP option.
#[derive(Clone, Debug, PartialEq)]
pub enum TcpOption {
    /// `mss N`
    Mss(u16),
    /// `wscale N`
    WindowScale(u8),
    /// `sackOK`
    SackPermitted,
    /// `sack A:B A:B`
    Sack(Vec<(u32, u32)>),
    /// `TS value echo`
    Timestamps(u32, u32),
    /// `nop`
    Nop,
    /// `eol`
    End,
    /// `kind K LENGTH`: an option whose length field says LENGTH, with no data behind it.
    Raw(u8, u8),
}

/// An ICMP query.
#[derive(Debug, PartialEq)]
pub struct Query {
    name: &'static str,
    /// Type for IPv4.
    pub v4: u8,
    /// Type for IPv6.
    pub v6: Option<u8>,
}

const fn query(name: &'static str, v4: u8, v6: Option<u8>) -> Query {
    Query { name, v4, v6 }
}

const QUERIES: [Query; 8] = [
    query("echo", 8, Some(128)),
    query("echo-reply", 0, Some(129)),
    query("timestamp", 13, None),
    query("timestamp-reply", 14, None),
    query("information", 15, None),
    query("information-reply", 16, None),
    query("mask", 17, None),
    query("mask-reply", 18, None),
];

/// An ICMP error. Types and codes that IPv6 has not are sent with those of IPv4 and make no sense there.
#[derive(Debug, PartialEq)]
pub struct ErrorKind {
    name: &'static str,
    /// Type and code for IPv4.
    pub v4: [u8; 2],
    /// Type and code for IPv6.
    pub v6: [u8; 2],
}

const fn error(name: &'static str, v4: [u8; 2], v6: [u8; 2]) -> ErrorKind {
    ErrorKind { name, v4, v6 }
}

const ERRORS: [ErrorKind; 11] = [
    error("unreach-net", [3, 0], [1, 0]),
    error("unreach-host", [3, 1], [1, 3]),
    error("unreach-proto", [3, 2], [4, 1]),
    error("unreach-port", [3, 3], [1, 4]),
    error("too-big", [3, 4], [2, 0]),
    error("admin", [3, 13], [1, 1]),
    error("time-exceeded", [11, 0], [3, 0]),
    error("reassembly-exceeded", [11, 1], [3, 1]),
    error("parameter-problem", [12, 0], [4, 0]),
    error("source-quench", [4, 0], [4, 2]),
    error("redirect", [5, 1], [137, 0]),
];

/// Names of SCTP chunks in the order of their types.
pub const SCTP_CHUNKS: [&str; 15] = [
    "data",
    "init",
    "init-ack",
    "sack",
    "heartbeat",
    "heartbeat-ack",
    "abort",
    "shutdown",
    "shutdown-ack",
    "error",
    "cookie-echo",
    "cookie-ack",
    "ecne",
    "cwr",
    "shutdown-complete",
];

/// Names of DCCP packets in the order of their types.
pub const DCCP_TYPES: [&str; 10] =
    ["request", "response", "data", "ack", "data-ack", "close-req", "close", "reset", "sync", "sync-ack"];

/// An oddity of a packet, in braces and separated by commas.
#[derive(Clone, Debug, PartialEq)]
pub enum Tweak {
    /// `ttl N`: TTL or hop limit.
    Ttl(u8),
    /// `tos N`: type of service or traffic class.
    Tos(u8),
    /// `id N`: identification of IPv4 and of fragments.
    Id(u16),
    /// `df`: don't fragment.
    DontFragment,
    /// `evil`: the reserved bit of the IPv4 flags.
    Evil,
    /// `version N`: of IP.
    Version(u8),
    /// `ihl N`: header length of IPv4, in words.
    HeaderWords(u8),
    /// `iplen ±N`: added to the length in the IP header.
    Length(i16),
    /// `ipcsum bad`
    BadIpChecksum,
    /// `opt NAME`: an option of IPv4.
    IpOption(&'static [u8]),
    /// `ext HEADER…`: extension headers of IPv6.
    Extensions(Vec<Extension>),
    /// `src NAME`: another source.
    Source(Special),
    /// `dst NAME`: another destination.
    Destination(Special),
    /// `mac NAME`: another destination in the Ethernet header.
    Mac([u8; 6]),
    /// `frag FROM+LENGTH …`: sent in these pieces; without LENGTH to the end. `!` behind turns the more-fragments flag round.
    Fragments(Vec<Fragment>),
    /// `cut N`: only the first N bytes of the IP packet are sent.
    Cut(usize),
    /// `pad N`: N bytes follow the IP packet in its frame.
    Pad(usize),
    /// `csum bad`: of what IP carries.
    BadChecksum,
    /// `csum zero`
    ZeroChecksum,
    /// `sport N`
    SourcePort(u16),
    /// `dport N`
    DestinationPort(u16),
    /// `flow N`: added to inside's port, and to the identifier of queries: another flow of the same ends.
    Flow(u16),
    /// `udplen ±N`: added to the length in the UDP header.
    UdpLength(i16),
    /// `doff N`: length of the TCP header, in words.
    DataOffset(u8),
    /// `reserved N`: the reserved bits of TCP.
    Reserved(u8),
    /// `quote N`: an ICMP error has only so many bytes of what the inner packet carries.
    Quote(usize),
    /// `vtag N`: another verification tag of SCTP.
    Tag(u32),
    /// `reflect`: SCTP's T bit, with the sender's own tag.
    Reflected,
    /// `inittag N`: another initiate tag in INIT and INIT ACK.
    InitTag(u32),
}

/// An extension header of IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    /// `hop`: hop-by-hop options, 8 bytes.
    HopByHop,
    /// `dst`: destination options, 8 bytes.
    Destination,
    /// `dst-long`: destination options, 264 bytes.
    DestinationLong,
    /// `route0`: routing header of type 0 with one segment left.
    Routing0,
    /// `route2`: routing header of type 2 with no segment left.
    Routing2,
    /// `frag`: a fragment header of a packet in one piece (RFC 6946).
    Atomic,
    /// `ah`: an authentication header.
    Ah,
    /// `none`: no next header, whatever follows.
    None,
    /// `mobility`: a mobility header, which is not passed over.
    Mobility,
}

/// An address that no packet on the way should have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// `zero`: unspecified.
    Zero,
    /// `loopback`
    Loopback,
    /// `multicast`
    Multicast,
    /// `broadcast`: for IPv6, all nodes.
    Broadcast,
    /// `reserved`: 240.0.0.1; for IPv6, a site-local address.
    Reserved,
    /// `link-local`
    LinkLocal,
    /// `near`: the device's own address on the sender's side.
    Near,
    /// `same`: the other end's address.
    Same,
    /// `own`: the sender's address.
    Own,
    /// `third`: another host on the sender's side.
    Third,
    /// `router`: another host on the path of the sender.
    Router,
}

/// A fragment: from, length, and whether its more-fragments flag is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// First byte, of what the IP packet carries.
    pub from: usize,
    /// Bytes, to the end if none.
    pub len: Option<usize>,
    /// Whether the more-fragments flag says the opposite of what is so.
    pub lies: bool,
}

/// Reads the sequences of a file.
///
/// # Errors
///
/// A line that is not of the language; the message has its number.
pub fn parse(text: &str) -> Result<Vec<Sequence>> {
    let mut sequences: Vec<Sequence> = Vec::new();
    let mut next = [0; 2];
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        read(line, index, &mut sequences, &mut next)
            .with_context(|| format!("line {}: {line}", index + 1))?;
    }
    Ok(sequences)
}

fn read(line: &str, index: usize, sequences: &mut Vec<Sequence>, next: &mut [u32; 2]) -> Result<()> {
    if let Some(title) = line.strip_prefix("==") {
        *next = [0; 2];
        sequences.push(title_line(title)?);
        return Ok(());
    }
    let (last, earlier) = sequences.split_last_mut().context("a packet before the first sequence")?;
    match line.strip_prefix('&') {
        None => last.steps.push(Step { line: Some(index), ..step(line, next)? }),
        Some(name) => {
            let copied = earlier.iter().find(|sequence| sequence.name == name.trim());
            for copied in &copied.context("no such sequence before this one")?.steps {
                // Read again, for where each side then is.
                last.steps.push(Step { expected: copied.expected, ..step(&copied.text, next)? });
            }
        }
    }
    Ok(())
}

fn title_line(title: &str) -> Result<Sequence> {
    let mut words = Words::new(title);
    let mut sequence = Sequence {
        name: words.next()?.into(),
        families: vec![Family::V4, Family::V6],
        isn: [0x1000_0000, 0x2000_0000],
        steps: Vec::new(),
    };
    while let Some(word) = words.optional() {
        match word {
            "v4" => sequence.families = vec![Family::V4],
            "v6" => sequence.families = vec![Family::V6],
            "isn" => sequence.isn = [words.number()?, words.number()?],
            _ => bail!("no such word in a title: {word}"),
        }
    }
    Ok(sequence)
}

/// Reads a packet. `next` is where each side is.
fn step(line: &str, next: &mut [u32; 2]) -> Result<Step> {
    let (text, verdicts) = line.rsplit_once(" : ").unwrap_or((line, "pass"));
    let verdicts: Vec<Verdict> = verdicts
        .split_whitespace()
        .map(|word| Verdict::ALL.into_iter().find(|verdict| verdict.as_str() == word))
        .collect::<Option<_>>()
        .with_context(|| format!("no such verdict: {verdicts}"))?;
    let expected = match verdicts[..] {
        [both] => [both; 2],
        [v4, v6] => [v4, v6],
        _ => bail!("one verdict, or two"),
    };
    let text = text.trim_end();
    let mut message = message(text, next)?;
    if let What::Tcp(tcp) = &mut message.what {
        let next = &mut next[message.from as usize];
        // Behind what was sent so far; but a SYN may be anywhere.
        let gap = tcp.flags & SYN == 0 && tcp.seq.wrapping_sub(*next) as i32 > 0;
        if !gap && tcp.end().wrapping_sub(*next) as i32 > 0 {
            *next = tcp.end();
        }
    }
    Ok(Step { text: text.into(), expected, line: None, message })
}

fn message(text: &str, next: &[u32; 2]) -> Result<Message> {
    // What an ICMP error is about comes last and has braces of its own.
    let (text, inner) = match text.split_once(" about ") {
        None => (text, None),
        Some((text, inner)) => (text, Some(Box::new(message(inner, next)?))),
    };
    let (text, tweaks) = match text.split_once('{') {
        None => (text, Vec::new()),
        Some((text, tweaks)) => {
            let tweaks = tweaks.trim_end().strip_suffix('}').context("a brace that does not close")?;
            (text, tweaks.split(',').map(tweak).collect::<Result<_>>()?)
        }
    };
    let (text, options) = match text.get(1..).and_then(|rest| rest.split_once('<')) {
        None => (text, Vec::new()),
        Some((_, options)) => {
            let start = text.len() - options.len() - 1;
            let options = options.trim_end().strip_suffix('>').context("options that do not end")?;
            (&text[..start], options.split(',').map(tcp_option).collect::<Result<_>>()?)
        }
    };
    let mut words = Words::new(text);
    let from = match words.next()? {
        ">" => Side::Inside,
        "<" => Side::Outside,
        other => bail!("neither > nor <: {other}"),
    };
    let word = words.next()?;
    let what = if word.bytes().all(|byte| FLAGS.contains(&byte)) || word == "-" {
        What::Tcp(tcp(word, &mut words, options, next[from as usize])?)
    } else if let Some(kind) = QUERIES.iter().find(|query| query.name == word) {
        What::Query { kind, number: words.number()?, len: words.optional_number(32)? }
    } else if let Some(kind) = ERRORS.iter().find(|error| error.name == word) {
        What::Error { kind, info: words.optional_number(0)?, about: inner.context("an error about nothing")? }
    } else {
        other(word, &mut words)?
    };
    ensure!(words.optional().is_none(), "words too many");
    Ok(Message { from, what, tweaks })
}

fn tcp(flags: &str, words: &mut Words<'_>, options: Vec<TcpOption>, next: u32) -> Result<Tcp> {
    let mut tcp = Tcp {
        flags: flags
            .bytes()
            .filter_map(|byte| FLAGS.iter().position(|flag| *flag == byte))
            .fold(0, |flags, bit| flags | 1 << bit),
        seq: next,
        len: 0,
        ack: None,
        window: u16::MAX,
        urgent: 0,
        options,
    };
    while let Some(word) = words.optional() {
        match word {
            "ack" => tcp.ack = Some(words.relative()?),
            "win" => tcp.window = words.number()?,
            "urg" => tcp.urgent = words.number()?,
            range => {
                let (seq, end) = range.split_once(':').with_context(|| format!("no such word: {range}"))?;
                tcp.seq = relative(seq)?;
                tcp.len = relative(end)?.wrapping_sub(tcp.seq) as usize;
                ensure!(tcp.len <= 65_000, "a segment of {} bytes", tcp.len);
            }
        }
    }
    ensure!(tcp.ack.is_none() || tcp.flags & ACK != 0, "an acknowledgement without its flag");
    if tcp.flags & ACK != 0 && tcp.ack.is_none() {
        tcp.ack = Some(0);
    }
    Ok(tcp)
}

fn tcp_option(text: &str) -> Result<TcpOption> {
    let mut words = Words::new(text);
    Ok(match words.next()? {
        "mss" => TcpOption::Mss(words.number()?),
        "wscale" => TcpOption::WindowScale(words.number()?),
        "sackOK" => TcpOption::SackPermitted,
        "nop" => TcpOption::Nop,
        "eol" => TcpOption::End,
        "TS" => TcpOption::Timestamps(words.number()?, words.number()?),
        "kind" => TcpOption::Raw(words.number()?, words.number()?),
        "sack" => {
            let mut blocks = Vec::new();
            while let Some(word) = words.optional() {
                let (from, to) = word.split_once(':').context("a SACK block is FROM:TO")?;
                blocks.push((relative(from)?, relative(to)?));
            }
            TcpOption::Sack(blocks)
        }
        other => bail!("no such TCP option: {other}"),
    })
}

fn other(word: &str, words: &mut Words<'_>) -> Result<What> {
    Ok(match word {
        "udp" => What::Udp(words.number()?),
        "udplite" => What::UdpLite(words.number()?),
        "esp" => What::Esp(words.number()?),
        "ah" => What::Ah(words.number()?),
        "gre" => What::Gre(None, words.number()?),
        "gre-key" => What::Gre(Some(words.number()?), words.number()?),
        "gre-pptp" => What::GrePptp(words.number()?, words.number()?),
        "proto" => What::Other(words.number()?, words.number()?),
        "dccp" => What::Dccp(place(&DCCP_TYPES, words.next()?)?),
        "sctp" => What::Sctp(
            words.next()?.split('+').map(|chunk| place(&SCTP_CHUNKS, chunk)).collect::<Result<_>>()?,
        ),
        "icmp" => {
            let (kind, code) = words.next()?.split_once('/').context("ICMP needs TYPE/CODE")?;
            What::Icmp { kind: [kind.parse()?, code.parse()?], len: words.number()? }
        }
        _ => bail!("no such packet: {word}"),
    })
}

fn place(names: &[&str], name: &str) -> Result<u8> {
    let place = names.iter().position(|known| *known == name);
    Ok(place.with_context(|| format!("no such name: {name}"))? as u8)
}

fn tweak(text: &str) -> Result<Tweak> {
    let mut words = Words::new(text);
    let tweak = match words.next()? {
        "ttl" => Tweak::Ttl(words.number()?),
        "tos" => Tweak::Tos(words.number()?),
        "id" => Tweak::Id(words.number()?),
        "df" => Tweak::DontFragment,
        "evil" => Tweak::Evil,
        "version" => Tweak::Version(words.number()?),
        "ihl" => Tweak::HeaderWords(words.number()?),
        "iplen" => Tweak::Length(words.number()?),
        "ipcsum" => words.only("bad", Tweak::BadIpChecksum)?,
        "opt" => Tweak::IpOption(ip_option(words.next()?)?),
        "ext" => Tweak::Extensions(words.rest(extension)?),
        "src" => Tweak::Source(special(words.next()?)?),
        "dst" => Tweak::Destination(special(words.next()?)?),
        "mac" => Tweak::Mac(match words.next()? {
            "other" => [2, 0, 0, 0, 9, 9],
            "broadcast" => [0xff; 6],
            "multicast" => [1, 0, 0x5e, 0, 0, 5],
            other => bail!("no such MAC: {other}"),
        }),
        "frag" => Tweak::Fragments(words.rest(fragment)?),
        "cut" => Tweak::Cut(words.number()?),
        "pad" => Tweak::Pad(words.number()?),
        "csum" => match words.next()? {
            "bad" => Tweak::BadChecksum,
            "zero" => Tweak::ZeroChecksum,
            other => bail!("no such checksum: {other}"),
        },
        "sport" => Tweak::SourcePort(words.number()?),
        "dport" => Tweak::DestinationPort(words.number()?),
        "flow" => Tweak::Flow(words.number()?),
        "udplen" => Tweak::UdpLength(words.number()?),
        "doff" => Tweak::DataOffset(words.number()?),
        "reserved" => Tweak::Reserved(words.number()?),
        "quote" => Tweak::Quote(words.number()?),
        "vtag" => Tweak::Tag(words.number()?),
        "reflect" => Tweak::Reflected,
        "inittag" => Tweak::InitTag(words.number()?),
        other => bail!("no such oddity: {other}"),
    };
    ensure!(words.optional().is_none(), "words too many in braces");
    Ok(tweak)
}

/// Options of IPv4 (RFC 791), padded to whole words.
fn ip_option(name: &str) -> Result<&'static [u8]> {
    Ok(match name {
        "nop" => &[1, 1, 1, 0],
        "rr" => &[7, 7, 4, 0, 0, 0, 0, 0],
        // Full, so that no router writes its time into it: it counts up how many could not.
        "ts" => &[68, 8, 9, 0, 0, 0, 0, 0],
        "lsrr" => &[131, 7, 4, 10, 2, 0, 9, 0],
        "ssrr" => &[137, 7, 4, 10, 2, 0, 9, 0],
        "ra" => &[148, 4, 0, 0],
        "unknown" => &[30, 4, 1, 2],
        // The length leads out of the header.
        "bad" => &[7, 40, 4, 0],
        "full" => &[1; 40],
        other => bail!("no such IP option: {other}"),
    })
}

fn extension(name: &str) -> Result<Extension> {
    Ok(match name {
        "hop" => Extension::HopByHop,
        "dst" => Extension::Destination,
        "dst-long" => Extension::DestinationLong,
        "route0" => Extension::Routing0,
        "route2" => Extension::Routing2,
        "frag" => Extension::Atomic,
        "ah" => Extension::Ah,
        "none" => Extension::None,
        "mobility" => Extension::Mobility,
        other => bail!("no such extension header: {other}"),
    })
}

fn special(name: &str) -> Result<Special> {
    Ok(match name {
        "zero" => Special::Zero,
        "loopback" => Special::Loopback,
        "multicast" => Special::Multicast,
        "broadcast" => Special::Broadcast,
        "reserved" => Special::Reserved,
        "link-local" => Special::LinkLocal,
        "near" => Special::Near,
        "same" => Special::Same,
        "own" => Special::Own,
        "third" => Special::Third,
        "router" => Special::Router,
        other => bail!("no such address: {other}"),
    })
}

fn fragment(text: &str) -> Result<Fragment> {
    let (text, lies) = text.strip_suffix('!').map_or((text, false), |text| (text, true));
    let (from, len) = text.split_once('+').context("a fragment is FROM+LENGTH")?;
    let len = if len.is_empty() { None } else { Some(len.parse()?) };
    Ok(Fragment { from: from.parse()?, len, lies })
}

/// A number relative to an ISN; it may be negative, and it wraps.
fn relative(text: &str) -> Result<u32> {
    let number: i64 = text.parse().with_context(|| format!("no number: {text}"))?;
    Ok(number as u32)
}

/// The words of a line.
struct Words<'a>(std::str::SplitWhitespace<'a>);

impl<'a> Words<'a> {
    fn new(text: &'a str) -> Self {
        Self(text.split_whitespace())
    }

    fn optional(&mut self) -> Option<&'a str> {
        self.0.next()
    }

    fn next(&mut self) -> Result<&'a str> {
        self.optional().context("the line ends too early")
    }

    fn number<T: FromStr>(&mut self) -> Result<T> {
        let word = self.next()?;
        word.parse().ok().with_context(|| format!("no number, or too large: {word}"))
    }

    fn optional_number<T: FromStr>(&mut self, default: T) -> Result<T> {
        if self.0.clone().next().is_some() { self.number() } else { Ok(default) }
    }

    fn relative(&mut self) -> Result<u32> {
        relative(self.next()?)
    }

    fn only(&mut self, word: &str, tweak: Tweak) -> Result<Tweak> {
        let found = self.next()?;
        ensure!(found == word, "{word} was expected: {found}");
        Ok(tweak)
    }

    fn rest<T>(&mut self, read: impl Fn(&str) -> Result<T>) -> Result<Vec<T>> {
        self.0.by_ref().map(read).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_goes_on_where_its_sender_is() {
        let text =
            "== x\n> S 0:0 <mss 1460,wscale 7>\n> . ack 1\n> P. 1:101 ack 1\n> F. ack 1\n> . ack 2 : drop";
        let sequence = parse(text).unwrap().remove(0);
        let seqs: Vec<u32> = sequence
            .steps
            .iter()
            .map(|step| match &step.message.what {
                What::Tcp(tcp) => tcp.seq,
                _ => unreachable!(),
            })
            .collect();
        assert_eq!(seqs, [0, 1, 1, 101, 102]);
        assert_eq!(sequence.steps[4].expected, [Verdict::Drop; 2]);
        assert_eq!(sequence.steps[4].text, "> . ack 2");
    }

    #[test]
    fn what_is_no_packet_is_refused_with_its_line() {
        for text in
            ["> S 0", "> . ack", "- S", "> S <mss>", "> S {ttl}", "> udp 1 2", "> too-big 3", "> . : no"]
        {
            let error = parse(&format!("== x\n{text}")).unwrap_err();
            assert!(error.to_string().starts_with("line 2"), "{text}: {error}");
        }
    }
}
