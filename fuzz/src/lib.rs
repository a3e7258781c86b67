//! Fuzz targets for everything that reads bytes from outside.
//!
//! A target is a function of bytes that panics if something is wrong with what the product makes of them.
//! `cargo xtask fuzz` searches for such bytes, led by coverage; what it found worth keeping lies in `corpus/TARGET`,
//! and the test `corpora` plays it again on every `cargo xtask test`.
//!
//! | target | reads | and holds that |
//! |---|---|---|
//! | [`records`](targets::records) | the records of replication | what is read is written and read the same |
//! | [`heartbeat`](targets::heartbeat) | heartbeats | likewise |
//! | [`vrrp`](targets::vrrp) | VRRP packets, IPv4 and IPv6 | likewise |
//! | [`envelope`](targets::envelope) | sealed datagrams | nothing opens but what was sealed for it, once |
//! | [`replication`](targets::replication) | what a peer seals, and the data plane's events | replica and kernel map stay equal |
//! | [`election`](targets::election) | what peers and strangers send, and an operator's wishes | who owns, owns in order |
//! | [`packet`](targets::packet) | frames, as the programs in the kernel do | the model and etherparse read the same |
//! | [`tcp`](targets::tcp) | segments of a connection | the model judges the same |
//! | [`config`](targets::config) | the config file | every mistake can be shown; nothing depends on chance |
//! | [`query`](targets::query) | queries to the control socket | what is read is written and read the same |
//! | [`frame`](targets::frame) | frames that `fwhactl capture` shows | none is too strange |

pub mod input;
mod sealing;
pub mod targets;

// The programs in the kernel, as far as they run here. They speak of each other as modules of their crate's root.
#[path = "../../fwha-ebpf/src/atomic.rs"]
mod atomic;
#[path = "../../fwha-ebpf/src/own.rs"]
mod own;
#[path = "../../fwha-ebpf/src/packet.rs"]
#[expect(dead_code, reason = "writing to packets is left to the programs")]
mod packet;
#[path = "../../fwha-ebpf/src/parse.rs"]
#[expect(dead_code, reason = "as above")]
mod parse;
#[path = "../../fwha-ebpf/src/sctp.rs"]
#[cfg_attr(not(test), expect(dead_code, reason = "as above; its unit tests use all of it"))]
mod sctp;
#[path = "../../fwha-ebpf/src/tcp.rs"]
#[expect(dead_code, reason = "as above")]
mod tcp;

// Private to `fwhactl`.
#[path = "../../fwha/src/ctl/capture/decode.rs"]
mod decode;

/// A target.
pub struct Target {
    /// Its name, that of its corpus, too.
    pub name: &'static str,
    /// Panics if something is wrong with what the product makes of these bytes.
    pub run: fn(&[u8]),
}

impl Target {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self { name: "records", run: targets::records::run },
        Self { name: "heartbeat", run: targets::heartbeat::run },
        Self { name: "vrrp", run: targets::vrrp::run },
        Self { name: "envelope", run: targets::envelope::run },
        Self { name: "replication", run: targets::replication::run },
        Self { name: "election", run: targets::election::run },
        Self { name: "packet", run: targets::packet::run },
        Self { name: "tcp", run: targets::tcp::run },
        Self { name: "config", run: targets::config::run },
        Self { name: "query", run: targets::query::run },
        Self { name: "frame", run: targets::frame::run },
    ];

    /// The target of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        Self::ALL.iter().find(|target| target.name == name)
    }
}
