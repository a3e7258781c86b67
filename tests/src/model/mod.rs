//! The data plane, once more, as plainly as it can be said: what the programs in the kernel promise, packet by packet.
//! The property test in `tests/tests/dataplane/model.rs` holds the programs against it.
//!
//! It is written from the rules in `docs/packet-path.md`, from the RFCs and from the behaviour of the kernel's tracker
//! (`net/netfilter/nf_conntrack_proto_{tcp,udp,sctp}.c` of Linux 6.x), never from the programs. It spares no time and
//! no memory: owned values, ordered maps, and nothing is touched before the verdict is known.
//!
//! * [`packet`]: what a frame says.
//! * [`environment`]: what the node knows of its ports, routes, rules and ownership.
//! * [`flow`]: keys, states, timeouts.
//! * [`tcp`], [`sctp`]: their state machines, as pure functions.
//! * [`icmp`]: what an error says about another packet.
//! * [`fragment`]: what is remembered of a datagram in pieces.
//! * [`verdict`]: the ways out.
//!
//! # Where the rules leave a choice
//!
//! Each of these was decided here; whoever decides otherwise changes both sides.
//!
//! *Packets.* No checksum is verified but that of the IPv4 header. A
//! frame that is shorter than its packet is `truncated`; a packet whose headers do not fit into its own length is
//! `malformed`. VRRP, IGMP, ND and MLD in fragments are nothing special. VRRP over IPv6 is to `ff02::12`. In the chain of IPv6, mobility, HIP and Shim6
//! are `extension_header`, as is a second fragment header; a fragment header with neither offset nor more to come is
//! no fragment (RFC 6946). ICMP in IPv6 and ICMPv6 in IPv4 are like any other. A GRE key fills the ports as its two halves,
//! that of the lower address first; version 1 has none. Echo and timestamp with the same identifier are one flow.
//!
//! *Fragments.* The first begins its datagram anew, whatever was remembered: identifications come round. The
//! protocol is left out of what a fragment of IPv6 is remembered by (RFC 8200, 4.5). A range is measured in bytes, and
//! counts as covered if one byte of it is; it is remembered even if the fragment then does not go on. Memory lasts
//! 30 s. Of an error of ICMP only the first can go on: it has no flow. A later fragment without a living flow is `fragment`;
//! of an embryonic flow, nothing of the responder is counted.
//! Where a datagram ends is not looked at, nor what the header of UDP says of its length. One of a length that none but the last may have, or beyond 64 KiB, is `malformed`.
//!
//! *New flows.* In order: the kind of packet, `other_station`, `martian`, `land`, the route, ownership, the rules,
//! `spoofed`. A packet in a group frame is for the node. An address without any route is judged as if it were the node's,
//! since only the stack can say so. The exception for DHCP is one of broadcast frames. Link-local sources of IPv6 are right on any port, but `martian` beyond the node
//! (RFC 4291, 2.5.6). Ports of a rule are compared for TCP, UDP and SCTP. SCTP that begins with anything but INIT is
//! `sctp_state`.
//!
//! *Known flows.* Any protocol but ICMP has streams. In order: `no_zone`, ownership, `other_station`, `wrong_zone`, the protocol. A packet that
//! goes on and changes nothing is not counted and renews nothing. Of the node's own flows nothing is tracked but that
//! they are there: their packets go to the stack, whatever station the frame is for. A dropped packet changes nothing,
//! but that an answer which finds the main table full takes back what was heard of the responder before.
//!
//! *The next flow.* A SYN or INIT on a flow may begin another of the same key, beside it and in the embryonic table, from
//! where a later one replaces it. What answers it (SYN+ACK or RST+ACK with its number, INIT ACK with its tag) is its
//! own; if the old flow is over (time-wait; `close` after a FIN, or after a RST of the originator; SCTP: `close`), so is
//! every packet, and every error of ICMP. An answer puts it in the place of the old flow. A RST that refuses it
//! closes the old one, too: who refuses a SYN has no other connection between these ends.
//!
//! *TCP.* An unseen
//! side bounds nothing (the kernel's `td_maxwin == 0`). A SYN in `syn-sent` with a higher end begins anew. The state
//! table is the kernel's: the responder's SYN+ACK where none is due, also a newer one in `syn-recv`, and its ACK of a
//! SYN are forwarded and change nothing; a SYN in `syn-sent2` by either side is a repeat. After a simultaneous open
//! either end's ACK establishes, after any other the originator's. Beyond the window by no more
//! than `maxwin` bytes: end + 1 - edge, as the kernel counts. A RST of either end in `syn-sent` closes, as in the kernel,
//! if it acknowledges nothing beyond the SYN; but not the originator's with the number that a segment of the responder
//! asked for which was no answer (RFC 9293, 3.5.2). RST from 0 is spared the comparison with
//! what was acknowledged in all states but `established`. RST in `established` without the exact number changes nothing at
//! all; else a second one would hit the end that the first one raised. SACK blocks of a RST are not looked at. A SYN on a
//! live connection that lies behind what its sender has sent since, by a window at most, came late and changes nothing;
//! any other asks for the next flow, and is not counted into the old one.
//!
//! *ICMP errors.* At least eight bytes of the embedded transport header are needed. With a flow and an embryonic one of
//! the same key, the error is about the former if it may be, else about the latter. A side that was not seen has nothing under way.
//!
//! *SCTP.* After the first INIT the state is `cookie-wait`; the kernel says CLOSED until INIT ACK. HEARTBEAT and its answer carry the right tag, like DATA; the kernel's repair of tags by heartbeats is left
//! out. Chunks in a bundle that must be alone or first are `sctp_state`. Of a packet up to four chunks are looked at, and none
//! behind DATA: an ABORT decides, else a cookie, else the last. A tag that is not known yet is none that a packet may
//! carry. The tag that an INIT ACK asks for stays what it is; an INIT that comes again before any answer may ask for
//! another. An INIT while the association opens is forwarded and changes nothing (RFC 9260, 5.2.1). ABORT of an embryonic
//! flow takes it away; any other packet of the responder answers it.
//!
//! # What is not modelled
//!
//! Probes, super-packets, VLANs, how long flows of the node itself live, the egress guard, eviction from the tables that evict, the rewriting of frames.

pub mod environment;
pub mod flow;
pub mod fragment;
pub mod icmp;
pub mod packet;
pub mod sctp;
pub mod tcp;
pub mod verdict;

mod engine;
#[cfg(test)]
mod stories;

pub use engine::{Model, Table};
pub use environment::{Environment, Ownership, Port, Prefix, Route, Rule, Target, Zone};
pub use flow::{Direction, End, Flow, Key, State};
pub use verdict::{Reason, Verdict};
