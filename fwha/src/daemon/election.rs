//! The election thread: the sockets, the timer and the lease around [`fwha_proto::election`].
//!
//! It does nothing that can block. A change of role is one map write here; addresses are handed to
//! the [`super::vips`] thread. It runs SCHED_FIFO where that is permitted, so that a busy machine
//! does not look like a dead one.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use arc_swap::ArcSwap;
use fwha_common::group::Group;
use fwha_proto::NodeId;
use fwha_proto::election::{CommandError, Election, Event, GroupId, Output, status::Status};
use fwha_proto::heartbeat::{Interface, Role, Via};
use fwha_proto::time::Time;
use fwha_proto::vrrp::packet::Envelope;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use tokio::sync::{mpsc, oneshot};

use super::events::{EventLog, step};
use super::mailbox::{Letters, Mailbox};
use super::names::Names;
use super::replication::{self, OwnedGroups};
use super::vips::{self, Takeover};
use crate::api::Step;
use crate::dataplane::Maps;
use crate::socket::{ProbeSocket, SyncSocket, VrrpSocket};
use crate::sys::clock::KernelClock;
use crate::sys::sched;

/// Below the kernel's own threads that a packet needs, above everything ordinary.
const PRIORITY: u8 = 20;
/// Packets taken from one socket before the others have their turn.
const BURST: usize = 64;
/// Between two snapshots for `status`.
const SNAPSHOT_INTERVAL: Duration = Duration::from_millis(50);
/// The longest packet that any of the sockets may carry.
const BUFFER_LEN: usize = 2048;

/// What other threads tell this one.
pub enum Command {
    /// Hand a group over; the answer is the node that it is offered to.
    Switchover {
        /// The group.
        group: GroupId,
        /// To whom; the best other node if `None`.
        to: Option<NodeId>,
        /// Where the answer goes.
        reply: oneshot::Sender<Result<NodeId, CommandError>>,
    },
    /// An interface changed.
    Interface(Via, Interface),
    /// How far the replica of a peer's flows is.
    SyncStatus {
        /// The peer.
        peer: NodeId,
        /// Complete and proved.
        in_sync: bool,
        /// Changes applied, carried to the peer.
        applied: u64,
    },
    /// Hand everything over and end.
    Shutdown,
}

/// The sockets of the election.
pub struct Sockets {
    /// Heartbeats, by sync link.
    pub heartbeats: Vec<Arc<SyncSocket>>,
    /// Where heartbeats to a peer go, by sync link and node.
    pub peers: BTreeMap<(u8, NodeId), SocketAddrV4>,
    /// VRRP, by zone.
    pub vrrp: BTreeMap<u8, VrrpSocket>,
    /// Probes.
    pub probes: BTreeMap<Via, ProbeSocket>,
    /// The primary address in each zone, from which VRRP speaks.
    pub sources: BTreeMap<u8, Ipv4Addr>,
}

/// Everything that the thread works with.
pub struct Thread {
    /// The machine.
    pub election: Election,
    /// Its sockets.
    pub sockets: Sockets,
    /// What others tell it.
    pub letters: Letters<Command>,
    /// The data plane.
    pub maps: Arc<Maps>,
    /// The clock of the data plane.
    pub clock: KernelClock,
    /// Who moves addresses.
    pub vips: mpsc::UnboundedSender<vips::Command>,
    /// Who replicates.
    pub replication: Mailbox<replication::Command>,
    /// Groups that this node owns, for the other threads.
    pub owned: Arc<OwnedGroups>,
    /// Where events go.
    pub events: Arc<EventLog>,
    /// Names for texts.
    pub names: Arc<Names>,
    /// Where `status` looks.
    pub snapshot: Arc<ArcSwap<Status>>,
    /// Told when everything has been handed over.
    pub done: oneshot::Sender<()>,
}

impl Thread {
    /// Starts it.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn spawn(self) -> Result<std::thread::JoinHandle<()>> {
        std::thread::Builder::new()
            .name("fwha-election".into())
            .spawn(move || {
                if let Err(denied) = sched::run_realtime(PRIORITY) {
                    tracing::warn!("the election runs without real-time priority: {denied}");
                }
                self.run();
            })
            .context("cannot start the election thread")
    }

    fn now(&self) -> Time {
        Time::from_nanos(self.clock.now_ns())
    }

    fn run(mut self) {
        let mut owned = BTreeMap::new();
        let mut snapshot_due = Time::ZERO;
        loop {
            // All that had arrived by now is read before a timer of now is believed. The time is
            // taken first: what arrives while this thread is held up counts in the next turn.
            let now = self.now();
            self.read_sockets();
            self.read_letters();
            if self.election.next_timeout() <= now {
                self.election.tick(now);
            }
            let mut told = false;
            let mut steps = Vec::new();
            while let Some(output) = self.election.poll() {
                told |= matches!(output, Output::Event(_));
                if self.execute(now, output, &mut owned, &mut steps) {
                    self.snapshot.store(Arc::new(self.election.status(self.now())));
                    // Whoever waited may have given up; that is theirs.
                    let _ = self.done.send(());
                    return;
                }
            }
            if told || now >= snapshot_due {
                self.snapshot.store(Arc::new(self.election.status(now)));
                snapshot_due = now + SNAPSHOT_INTERVAL;
            }
            self.sleep();
        }
    }

    fn sleep(&self) {
        let wait = self.election.next_timeout().since(self.now());
        let fds: Vec<BorrowedFd<'_>> = std::iter::once(self.letters.as_fd())
            .chain(self.sockets.heartbeats.iter().map(|socket| socket.as_fd()))
            .chain(self.sockets.vrrp.values().map(AsFd::as_fd))
            .chain(self.sockets.probes.values().map(AsFd::as_fd))
            .collect();
        let mut fds: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
        // An error here (a signal) costs one more turn of the loop, nothing else.
        let _ = ppoll(&mut fds, Some(TimeSpec::from(wait.min(Duration::from_secs(1)))), None);
    }

    fn read_sockets(&mut self) {
        let mut buffer = [0; BUFFER_LEN];
        let arrived = |waited: Option<Duration>, clock: &KernelClock| {
            Time::from_nanos(clock.now_ns()) - waited.unwrap_or_default()
        };
        for (link, socket) in self.sockets.heartbeats.iter().enumerate() {
            for _ in 0..BURST {
                let (len, at) = match socket.receive(&mut buffer) {
                    Ok(Some(datagram)) => (datagram.payload.len(), arrived(datagram.waited, &self.clock)),
                    Ok(None) => break,
                    Err(error) => {
                        tracing::debug!(link, "heartbeat socket: {error}");
                        break;
                    }
                };
                self.election.heartbeat_datagram(at, link as u8, &mut buffer[..len]);
            }
        }
        for (&zone, socket) in &self.sockets.vrrp {
            for _ in 0..BURST {
                match socket.receive(&mut buffer) {
                    Ok(Some(packet)) => {
                        let envelope = Envelope {
                            src: IpAddr::V4(packet.source),
                            dst: IpAddr::V4(packet.destination),
                            ttl: packet.ttl,
                        };
                        let at = arrived(packet.waited, &self.clock);
                        self.election.vrrp_packet(at, zone, &envelope, packet.message);
                    }
                    Ok(None) => break,
                    Err(error) => {
                        tracing::debug!(zone, "VRRP socket: {error}");
                        break;
                    }
                }
            }
        }
        for (&via, socket) in &self.sockets.probes {
            for _ in 0..BURST {
                match socket.receive() {
                    Ok(Some(frame)) => {
                        let at = arrived(frame.waited, &self.clock);
                        self.election.probe_reply(at, via, &frame.probe);
                    }
                    Ok(None) => break,
                    Err(error) => {
                        tracing::debug!(?via, "probe socket: {error}");
                        break;
                    }
                }
            }
        }
    }

    fn read_letters(&mut self) {
        self.letters.acknowledge();
        while let Some(command) = self.letters.take() {
            let now = self.now();
            match command {
                Command::Switchover { group, to, reply } => {
                    // Nobody waiting for the answer any more changes nothing.
                    let _ = reply.send(self.election.switchover(now, group, to));
                }
                Command::Interface(via, interface) => {
                    if let Via::Zone(zone) = via {
                        self.sockets.sources.insert(zone, interface.address);
                    }
                    self.election.interface(now, via, interface);
                }
                Command::SyncStatus { peer, in_sync, applied } => {
                    self.election.sync_status(now, peer, in_sync, applied);
                }
                Command::Shutdown => self.election.shutdown(now),
            }
        }
    }

    /// Does what the election says. Whether that was the last of it.
    fn execute(
        &self,
        decided: Time,
        output: Output,
        owned: &mut BTreeMap<GroupId, Group>,
        steps: &mut Vec<Step>,
    ) -> bool {
        let mut done = |name: &str| {
            if !steps.iter().any(|s| s.name == name) {
                steps.push(step(name, decided, self.now()));
            }
        };
        match output {
            Output::Heartbeat { link, peer, bytes } => self.send_heartbeat(link, peer, &bytes),
            Output::Advertise { zone, bytes, .. } => {
                self.advertise(zone, &bytes);
                done("advert");
            }
            Output::Probe { via, mac, probe, .. } => {
                if let Some(socket) = self.sockets.probes.get(&via) {
                    // A cut cable is what probes are there to find.
                    let _ = socket.send(mac, &probe);
                }
            }
            Output::Own { group, term, since, until } => {
                let element = Group {
                    lease_until_ns: until.as_nanos(),
                    since_ns: since.as_nanos(),
                    role: Group::ACTIVE,
                    term,
                };
                owned.insert(group, element);
                self.owned.set(group, true);
                self.write_group(group, &element);
                done("own");
                self.replication.send(replication::Command::Owned { group, term });
            }
            Output::RenewLease { group, until } => {
                if let Some(element) = owned.get_mut(&group) {
                    element.lease_until_ns = until.as_nanos();
                    self.write_group(group, element);
                }
            }
            Output::Disown { group } => {
                let term = owned.remove(&group).map_or(0, |g| g.term);
                self.write_group(group, &Group { term, ..Group::default() });
                self.owned.set(group, false);
                self.replication.send(replication::Command::Disowned { group });
            }
            Output::AddVips { group } => {
                let takeover = Takeover { decided, steps: std::mem::take(steps) };
                self.tell_vips(vips::Command::Add { group, takeover });
            }
            Output::RemoveVips { group } => self.tell_vips(vips::Command::Remove { group }),
            Output::Announce { group } => self.tell_vips(vips::Command::Announce { group }),
            Output::Event(event) => self.record(decided, &event),
            Output::ShutdownComplete => return true,
        }
        false
    }

    fn tell_vips(&self, command: vips::Command) {
        if self.vips.send(command).is_err() {
            tracing::error!("the thread that moves addresses is gone");
        }
    }

    fn write_group(&self, group: GroupId, element: &Group) {
        if let Err(error) = self.maps.write_group(u32::from(group), element) {
            // The data plane fences itself when the lease ends; the peer takes over then.
            tracing::error!("cannot write the ownership of group {group}: {error}");
        }
    }

    fn send_heartbeat(&self, link: u8, peer: NodeId, bytes: &[u8]) {
        let socket = self.sockets.heartbeats.get(usize::from(link));
        let to = self.sockets.peers.get(&(link, peer));
        if let (Some(socket), Some(to)) = (socket, to)
            && let Err(error) = socket.send(*to, bytes)
            && error.kind() != io::ErrorKind::NetworkUnreachable
        {
            tracing::debug!(link, "cannot send a heartbeat: {error}");
        }
    }

    fn advertise(&self, zone: u8, bytes: &[u8]) {
        let (Some(socket), Some(source)) = (self.sockets.vrrp.get(&zone), self.sockets.sources.get(&zone))
        else {
            return;
        };
        if let Err(error) = socket.send(*source, bytes) {
            tracing::debug!(zone, "cannot advertise: {error}");
        }
    }

    fn record(&self, at: Time, event: &Event) {
        let names = &self.names;
        let (kind, group, text) = match event {
            Event::Role { group, from, to, term, reason, .. } => {
                let what = if *to == Role::Active { "took over" } else { "changed" };
                (
                    "role",
                    Some(*group),
                    format!("{} {what}: {from} -> {to} in term {term}: {reason}", names.me()),
                )
            }
            Event::Peer { peer, from, to, reason } => {
                ("peer", None, format!("{}: {from} -> {to}: {reason}", names.node(*peer)))
            }
            Event::SplitBrain { group, peer, overlap, winner } => (
                "split-brain",
                Some(*group),
                format!(
                    "{} is active as well, for {:.3} s so far; {} stays",
                    names.node(*peer),
                    overlap.as_secs_f64(),
                    names.node(*winner)
                ),
            ),
            Event::SplitBrainEnd { group, peer, after } => (
                "split-brain-end",
                Some(*group),
                format!("over after {:.3} s with {}", after.as_secs_f64(), names.node(*peer)),
            ),
            Event::OneWay { peer, lost: true } => {
                ("one-way", None, format!("{} does not hear our heartbeats", names.node(*peer)))
            }
            Event::OneWay { peer, lost: false } => {
                ("one-way", None, format!("{} hears our heartbeats again", names.node(*peer)))
            }
            Event::AdvertsUnheard { group, zone, by, lost } => (
                "adverts",
                Some(*group),
                format!(
                    "{} {} our adverts in zone {}",
                    names.node(*by),
                    if *lost { "does not hear" } else { "hears again" },
                    names.zone(*zone)
                ),
            ),
            Event::HandoverFailed { group, to } => {
                ("handover-failed", Some(*group), format!("{} did not take it in time", names.node(*to)))
            }
            Event::ConfigDiffers { peer, theirs } => (
                "config-differs",
                None,
                format!("{} runs with another cluster file (hash {theirs:016x})", names.node(*peer)),
            ),
            Event::Refused { link, sender, reason } => (
                "refused",
                None,
                format!("datagrams on sync link {link} from {}: {reason}", names.node(*sender)),
            ),
        };
        self.events.record(at, kind, group.map(|g| names.group(g)), text, Vec::new());
    }
}
