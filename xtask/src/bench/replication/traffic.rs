//! TCP conversations of clients and servers behind the lab's two hosts, packet by packet: no sockets, no retransmission.
//!
//! The next step of a conversation goes out some milliseconds after the one before, from the other host's cable: in order,
//! as long as no packet takes longer through the firewall.

use std::collections::HashMap;
use std::ops::Range;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use fwha_tests::lab::{CLIENT, Host, Lab, Node, SERVER};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, SockaddrLike as _, bind, send, setsockopt, socket,
    sockopt,
};

/// Networks of the clients, behind the lab's client, and of the servers: 16 bits each.
const CLIENTS: u32 = 0xac14_0000;
const SERVERS: u32 = 0xac15_0000;
const SERVER_PORT: u16 = 443;
const CLIENT_PORTS: u32 = 1024;

/// The schedule's grain.
const TICK: Duration = Duration::from_millis(1);
/// Ticks between two steps of a conversation.
const GAP: u32 = 20;
/// A generator that was kept waiting for longer does not make up for it.
const LATE_MAX: Duration = Duration::from_millis(5);

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// A packet in a conversation.
#[derive(Clone, Copy)]
pub struct Step {
    flags: u8,
    reply: bool,
    /// What its sender has sent of the sequence space, and has heard of the other's.
    sent: u32,
    heard: u32,
}

const fn step(flags: u8, reply: bool, sent: u32, heard: u32) -> Step {
    Step { flags, reply, sent, heard }
}

/// How a connection begins.
pub const OPENING: [Step; 3] = [step(SYN, false, 0, 0), step(SYN | ACK, true, 0, 1), step(ACK, false, 1, 1)];
/// How it ends.
pub const CLOSING: [Step; 3] =
    [step(FIN | ACK, false, 1, 1), step(FIN | ACK, true, 1, 2), step(ACK, false, 2, 2)];

/// A whole connection.
pub fn conversation() -> Vec<Step> {
    [OPENING, CLOSING].concat()
}

/// How long a conversation lasts, from its first step to its last, in good order.
pub fn lasts(steps: &[Step]) -> Duration {
    TICK * GAP * (steps.len() as u32 - 1)
}

/// The cables of client and server, through one of the nodes.
pub struct Wire {
    client: Side,
    server: Side,
}

struct Side {
    socket: OwnedFd,
    header: [u8; 14],
}

impl Wire {
    /// Conversations through `node` from now on.
    pub fn through(lab: &Lab, node: Node) -> Result<Self> {
        let side = |host, interface: &str| -> Result<Side> {
            let own = link(lab, host, "eth0")?;
            let mut header = [0; 14];
            header[..6].copy_from_slice(&mac(lab, node.host(), interface)?);
            header[6..12].copy_from_slice(&own.addr().unwrap_or_default());
            header[12..].copy_from_slice(&[8, 0]);
            Ok(Side { socket: lab.within(host, || open(&own))??, header })
        };
        Ok(Self { client: side(Host::Client, "lan")?, server: side(Host::Server, "wan")? })
    }

    /// Plays the steps of these conversations, so many of them begun a second, and returns how long it took.
    ///
    /// # Errors
    ///
    /// When a cable takes no packet.
    pub fn play(&self, flows: Range<u32>, per_second: u32, steps: &[Step]) -> Result<Duration> {
        let began = Instant::now();
        self.play_while(flows, per_second, steps, || true)?;
        Ok(began.elapsed())
    }

    /// The same, but begins no more of them once they are not to `go_on`. Returns the number of the first that was not begun.
    ///
    /// # Errors
    ///
    /// When a cable takes no packet.
    pub fn play_while(
        &self,
        flows: Range<u32>,
        per_second: u32,
        steps: &[Step],
        go_on: impl Fn() -> bool,
    ) -> Result<u32> {
        let mut due = Instant::now();
        let (mut tick, ticks_a_second) = (0u32, 1_000_000_000 / TICK.as_nanos() as u32);
        // What has begun by the end of a tick.
        let mut count = flows.end - flows.start;
        let begun = |tick: Option<u32>, count: u32| {
            tick.map_or(0, |tick| {
                let begun = (u64::from(tick) + 1) * u64::from(per_second) / u64::from(ticks_a_second);
                begun.min(count.into()) as u32
            })
        };
        loop {
            if !go_on() {
                count = begun(tick.checked_sub(1), count);
            }
            for (step, place) in steps.iter().zip(0..) {
                let at = tick.checked_sub(GAP * place);
                let Some(at) = at else { break };
                for flow in begun(at.checked_sub(1), count)..begun(Some(at), count) {
                    self.send(flows.start + flow, *step)?;
                }
            }
            let last = tick.checked_sub(GAP * (steps.len() as u32 - 1));
            if begun(last, count) == count {
                return Ok(flows.start + count);
            }
            tick += 1;
            due = (due + TICK).max(Instant::now() - LATE_MAX);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    }

    fn send(&self, flow: u32, step: Step) -> Result<()> {
        let side = if step.reply { &self.server } else { &self.client };
        let mut frame = [0; 54];
        frame[..14].copy_from_slice(&side.header);
        write_ip(&mut frame[14..], flow, step);
        loop {
            match send(side.socket.as_raw_fd(), &frame, MsgFlags::empty()) {
                // The cable is busy: its packets are on their way.
                Err(Errno::ENOBUFS) => std::thread::yield_now(),
                result => return result.map(drop).context("send a packet"),
            }
        }
    }
}

/// The MAC address of an interface.
pub fn mac(lab: &Lab, host: Host, interface: &str) -> Result<[u8; 6]> {
    link(lab, host, interface)?.addr().with_context(|| format!("no MAC address on {interface}"))
}

/// Makes the networks of clients and servers known to both nodes.
pub fn lay_routes(lab: &Lab) -> Result<()> {
    for node in Node::ALL {
        for (network, via, dev) in [
            ("172.20.0.0/16", CLIENT, "lan"),
            ("172.21.0.0/16", SERVER, "wan"),
            // Those of the generator of `bench dataplane`.
            ("10.1.0.0/16", CLIENT, "lan"),
            ("10.2.0.0/24", SERVER, "wan"),
        ] {
            lab.exec(node.host(), &["ip", "route", "replace", network, "via", via, "dev", dev])?;
        }
    }
    Ok(())
}

/// An interface, as a socket is bound to it.
fn link(lab: &Lab, host: Host, interface: &str) -> Result<LinkAddr> {
    let links: HashMap<String, LinkAddr> = lab.within(host, || {
        nix::ifaddrs::getifaddrs().map(|addresses| {
            let links = addresses.filter_map(|a| Some((a.interface_name, *a.address?.as_link_addr()?)));
            links.collect()
        })
    })??;
    links.get(interface).copied().with_context(|| format!("no interface {interface} on {}", host.name()))
}

/// A socket that sends frames, and receives none.
fn open(link: &LinkAddr) -> Result<OwnedFd> {
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
    ensure!(link.family() == Some(AddressFamily::Packet), "no link");
    setsockopt(&socket, sockopt::SndBuf, &(4 << 20))?;
    bind(socket.as_raw_fd(), link)?;
    Ok(socket)
}

/// Writes the headers of IPv4 and TCP.
fn write_ip(packet: &mut [u8], flow: u32, step: Step) {
    let client = (CLIENTS + (flow & 0xffff), (CLIENT_PORTS + (flow >> 16)) as u16);
    let server = (SERVERS + (flow.wrapping_mul(0x9e37_79b1) >> 24), SERVER_PORT);
    let (from, to) = if step.reply { (server, client) } else { (client, server) };
    let initial = |reply: bool| flow.wrapping_mul(if reply { 0x85eb_ca6b } else { 0xc2b2_ae35 });
    let heard = if step.flags & ACK == 0 { 0 } else { initial(!step.reply).wrapping_add(step.heard) };
    let (ip, tcp) = packet.split_at_mut(20);
    ip.copy_from_slice(&[0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    ip[12..16].copy_from_slice(&from.0.to_be_bytes());
    ip[16..20].copy_from_slice(&to.0.to_be_bytes());
    let checksum = checksum(sum(ip));
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    tcp[0..2].copy_from_slice(&from.1.to_be_bytes());
    tcp[2..4].copy_from_slice(&to.1.to_be_bytes());
    tcp[4..8].copy_from_slice(&initial(step.reply).wrapping_add(step.sent).to_be_bytes());
    tcp[8..12].copy_from_slice(&heard.to_be_bytes());
    tcp[12..20].copy_from_slice(&[0x50, step.flags, 0xff, 0xff, 0, 0, 0, 0]);
    let pseudo = sum(&ip[12..20]) + 6 + 20;
    let checksum = self::checksum(pseudo + sum(tcp));
    tcp[16..18].copy_from_slice(&checksum.to_be_bytes());
}

/// What the 16-bit words add up to.
fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks_exact(2).map(|b| u32::from(u16::from_be_bytes([b[0], b[1]]))).sum()
}

/// The internet checksum (RFC 1071) of that.
fn checksum(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_add_up_and_sequence_numbers_go_on() {
        let word = |packet: &[u8], at: usize| u32::from_be_bytes(packet[at..at + 4].try_into().unwrap());
        let mut next = [None, None];
        for step in conversation() {
            let mut packet = [0; 40];
            write_ip(&mut packet, 1_234_567, step);
            assert_eq!(checksum(sum(&packet[..20])), 0);
            assert_eq!(checksum(sum(&packet[12..20]) + 6 + 20 + sum(&packet[20..])), 0);
            let (seq, ack) = (word(&packet, 24), word(&packet, 28));
            let [own, other] = if step.reply { [1, 0] } else { [0, 1] };
            assert_eq!(seq, next[own].unwrap_or(seq));
            assert_eq!(ack, next[other].unwrap_or(0), "all that the other has sent");
            next[own] = Some(seq.wrapping_add(u32::from(step.flags & (SYN | FIN) != 0)));
        }
    }
}
