//! The election thread: the sockets, the timer and the lease around [`fwha_proto::election`].
//!
//! It does nothing that can block. A change of role is one map write here; addresses are handed to
//! the [`super::vips`] thread. It runs SCHED_FIFO where that is permitted, so that a busy machine
//! does not look like a dead one.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddrV4};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use arc_swap::ArcSwap;
use fwha_common::group::Group;
use fwha_proto::NodeId;
use fwha_proto::election::{
    CommandError, ConfigError, Election, Event, GroupConfig, GroupId, Output, TrackerConfig,
    explain::Explanation,
    reach::{Path, Survey},
    status::Status,
};
use fwha_proto::heartbeat::{Interface, Role, Via};
use fwha_proto::hook::{Change, Kind};
use fwha_proto::seal::KeyRing;
use fwha_proto::time::Time;
use fwha_proto::tracker::{Report, State};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use tokio::sync::{mpsc, oneshot};

use super::events::{EventLog, step};
use super::limit::Limit;
use super::mailbox::{Letters, Mailbox};
use super::names::Names;
use super::replication::{self, OwnedGroups};
use super::surveyor;
use super::vips::{self, Takeover};
use crate::api::Step;
use crate::dataplane::Maps;
use crate::socket::{EchoSocket, ProbeSocket, Received, Refused, SyncSocket, VrrpSocket};
use crate::sys::clock::{KernelClock, wall_ns};
use crate::sys::sched;

/// Below the kernel's own threads that a packet needs, above everything ordinary.
const PRIORITY: u8 = 20;
/// Packets taken from one socket before the others have their turn, those that are refused among them.
const BURST: usize = 64;
/// Turns after which time goes on whatever still waits: a flood must not stop the clock.
const TURNS: usize = 16;
/// How long a late turn is remembered for `status`.
const LATE_MEMORY: Duration = Duration::from_secs(60);
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
    /// Stand by, or take part again.
    Standby {
        /// Which.
        on: bool,
        /// Also if no other node can have a group of this one.
        force: bool,
        /// Where the answer goes.
        reply: oneshot::Sender<Result<(), CommandError>>,
    },
    /// Explain this node's roles.
    Explain(oneshot::Sender<Vec<Explanation>>),
    /// The config has changed.
    Reload {
        /// Its hash.
        config_hash: u64,
        /// Its groups.
        groups: Vec<GroupConfig>,
        /// The trackers of this node.
        trackers: Vec<TrackerConfig>,
        /// Who is asked before a group of a lost peer is claimed.
        witnesses: Vec<IpAddr>,
        /// Where the answer goes.
        reply: oneshot::Sender<Result<(), ConfigError>>,
    },
    /// Hold these cluster keys from now on.
    Keys(KeyRing),
    /// An interface changed.
    Interface(Via, Interface),
    /// An interface is another one now, or has another MAC: its socket for probes.
    Opened(Via, Option<ProbeSocket>),
    /// The same for a sync link: its socket for heartbeats.
    Heartbeats(u8, SyncSocket),
    /// The same for a zone: its sockets for VRRP.
    Vrrp(u8, Vec<VrrpSocket>),
    /// How far the replica of a peer's flows is.
    SyncStatus {
        /// The peer.
        peer: NodeId,
        /// Complete and proved.
        in_sync: bool,
        /// Changes applied, carried to the peer.
        applied: u64,
    },
    /// There was an owner of a group in this term.
    PastTerm {
        /// The group.
        group: GroupId,
        /// The term.
        term: u32,
    },
    /// A peer told replication that a group is its own, in this term.
    Claimed {
        /// The group.
        group: GroupId,
        /// The term.
        term: u32,
    },
    /// How a tracker stands, by its number.
    Tracker {
        /// The tracker.
        id: u32,
        /// How it stands.
        report: Report,
    },
    /// A round of questions in a zone is over.
    Surveyed {
        /// The zone.
        zone: u8,
        /// What it found.
        survey: Survey,
    },
    /// Hand everything over and end.
    Shutdown,
}

/// The sockets of the election.
pub struct Sockets {
    /// Heartbeats, by sync link.
    pub heartbeats: Vec<SyncSocket>,
    /// Where heartbeats to a peer go, by sync link and node.
    pub peers: BTreeMap<(u8, NodeId), SocketAddrV4>,
    /// VRRP, by zone: for IPv4, and for IPv6 if a virtual router there needs it.
    pub vrrp: BTreeMap<u8, Vec<VrrpSocket>>,
    /// Probes.
    pub probes: BTreeMap<Via, ProbeSocket>,
    /// The interface of each zone, from whose addresses VRRP speaks.
    pub sources: BTreeMap<u8, Interface>,
    /// Who asks witnesses: one for each address family that is needed.
    pub echoes: Vec<EchoSocket>,
}

impl Sockets {
    /// Opens what is needed to ask these witnesses.
    ///
    /// # Errors
    /// The kernel has none to give.
    pub fn open_echoes(&mut self, witnesses: &[IpAddr]) -> io::Result<()> {
        for v6 in [false, true] {
            let wanted = witnesses.iter().any(|w| w.is_ipv6() == v6);
            if wanted && !self.echoes.iter().any(|echo| echo.is_v6() == v6) {
                self.echoes.push(EchoSocket::open(v6)?);
            }
        }
        Ok(())
    }
}

/// What the thread shows of itself.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// When it was made. An old one is the sign of a thread that hangs.
    pub at: Time,
    /// How the election stands.
    pub status: Status,
    /// How well the thread keeps time.
    pub lateness: Lateness,
    /// What the sockets for heartbeats refused.
    pub refused: Refused,
}

impl Snapshot {
    /// A snapshot of the machine alone.
    pub fn of(election: &Election, now: Time) -> Self {
        Self {
            at: now,
            status: election.status(now),
            lateness: Lateness::default(),
            refused: Refused::default(),
        }
    }
}

/// Turns of the thread that came too late: by more than a heartbeat, which the peer notices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lateness {
    /// How many, since the start.
    pub count: u64,
    /// The worst of late.
    pub worst: Duration,
    /// When the last one was.
    pub last: Time,
}

impl Lateness {
    fn note(&mut self, now: Time, due: Time, allowed: Duration) {
        let late = now.since(due);
        if due == Time::ZERO || late <= allowed {
            return;
        }
        if now.since(self.last) > LATE_MEMORY {
            self.worst = Duration::ZERO;
        }
        *self = Self { count: self.count + 1, worst: self.worst.max(late), last: now };
    }

    /// Whether that was a short time ago.
    pub fn recent(&self, now: Time) -> bool {
        self.count > 0 && now.since(self.last) <= LATE_MEMORY
    }
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
    /// Who asks neighbours.
    pub surveyor: mpsc::UnboundedSender<surveyor::Request>,
    /// Who replicates.
    pub replication: Mailbox<replication::Command>,
    /// Groups that this node owns, for the other threads.
    pub owned: Arc<OwnedGroups>,
    /// Where events go.
    pub events: Arc<EventLog>,
    /// Names for texts.
    pub names: Arc<Names>,
    /// Where `status` looks.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// Between heartbeats.
    pub heartbeat_interval: Duration,
    /// What the sockets for heartbeats have refused that others stand in for now.
    pub refused: Refused,
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
        let mut lateness = Lateness::default();
        let mut due = Time::ZERO;
        let mut unwritten = Limit::default();
        loop {
            // All that had arrived by now is read before a timer of now is believed. The time is
            // taken first: what arrives while this thread is held up counts in the next turn.
            let now = self.now();
            lateness.note(now, due, self.heartbeat_interval);
            for _ in 0..TURNS {
                if !self.read_sockets() {
                    break;
                }
            }
            self.read_letters();
            self.election.wall_clock(now, Duration::from_nanos(wall_ns()));
            if self.election.next_timeout() <= now {
                self.election.tick(now);
            }
            let mut told = false;
            let mut steps = Vec::new();
            while let Some(output) = self.election.poll() {
                told |= matches!(output, Output::Event(_));
                if self.execute(now, output, &mut owned, &mut steps, &mut unwritten) {
                    self.show(lateness);
                    // Whoever waited may have given up; that is theirs.
                    let _ = self.done.send(());
                    return;
                }
            }
            if told || now >= snapshot_due {
                self.show(lateness);
                snapshot_due = now + SNAPSHOT_INTERVAL;
            }
            due = self.election.next_timeout();
            self.sleep();
        }
    }

    fn show(&self, lateness: Lateness) {
        let refused =
            self.sockets.heartbeats.iter().map(SyncSocket::refused).fold(self.refused, |sum, one| sum + one);
        let snapshot = Snapshot { lateness, refused, ..Snapshot::of(&self.election, self.now()) };
        self.snapshot.store(Arc::new(snapshot));
    }

    fn sleep(&self) {
        let wait = self.election.next_timeout().since(self.now());
        let fds: Vec<BorrowedFd<'_>> = std::iter::once(self.letters.as_fd())
            .chain(self.sockets.heartbeats.iter().map(AsFd::as_fd))
            .chain(self.sockets.vrrp.values().flatten().map(AsFd::as_fd))
            .chain(self.sockets.probes.values().map(AsFd::as_fd))
            .chain(self.sockets.echoes.iter().map(AsFd::as_fd))
            .collect();
        let mut fds: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
        // An error here (a signal) costs one more turn of the loop, nothing else.
        let _ = ppoll(&mut fds, Some(TimeSpec::from(wait.min(Duration::from_secs(1)))), None);
    }

    /// Whether there may be more.
    fn read_sockets(&mut self) -> bool {
        let mut more = false;
        let mut buffer = [0; BUFFER_LEN];
        let arrived = |waited: Option<Duration>, clock: &KernelClock| {
            Time::from_nanos(clock.now_ns()) - waited.unwrap_or_default()
        };
        for (link, socket) in self.sockets.heartbeats.iter().enumerate() {
            for n in 1..=BURST {
                let accepted = match socket.receive(&mut buffer) {
                    Ok(Received::Accepted(datagram)) => {
                        Some((datagram.payload.len(), arrived(datagram.waited, &self.clock)))
                    }
                    Ok(Received::Refused) => None,
                    Ok(Received::Nothing) => break,
                    Err(error) => {
                        tracing::debug!(link, "heartbeat socket: {error}");
                        break;
                    }
                };
                if let Some((len, at)) = accepted {
                    self.election.heartbeat_datagram(at, link as u8, &mut buffer[..len]);
                }
                more |= n == BURST;
            }
        }
        let vrrp =
            self.sockets.vrrp.iter().flat_map(|(&zone, sockets)| sockets.iter().map(move |s| (zone, s)));
        for (zone, socket) in vrrp {
            for n in 1..=BURST {
                match socket.receive(&mut buffer) {
                    Ok(Received::Accepted(packet)) => {
                        let at = arrived(packet.waited, &self.clock);
                        self.election.vrrp_packet(at, zone, &packet.envelope, packet.message);
                    }
                    Ok(Received::Refused) => {}
                    Ok(Received::Nothing) => break,
                    Err(error) => {
                        tracing::debug!(zone, "VRRP socket: {error}");
                        break;
                    }
                }
                more |= n == BURST;
            }
        }
        for socket in &self.sockets.echoes {
            for n in 1..=BURST {
                match socket.receive() {
                    Ok(Received::Accepted(reply)) => {
                        let at = arrived(reply.waited, &self.clock);
                        self.election.witness_reply(at, reply.source, reply.nonce);
                    }
                    Ok(Received::Refused) => {}
                    Ok(Received::Nothing) => break,
                    Err(error) => {
                        tracing::debug!("echo socket: {error}");
                        break;
                    }
                }
                more |= n == BURST;
            }
        }
        for (&via, socket) in &self.sockets.probes {
            for n in 1..=BURST {
                match socket.receive() {
                    Ok(Received::Accepted(frame)) => {
                        let at = arrived(frame.waited, &self.clock);
                        self.election.probe_reply(at, via, &frame.probe);
                    }
                    Ok(Received::Refused) => {}
                    Ok(Received::Nothing) => break,
                    Err(error) => {
                        tracing::debug!(?via, "probe socket: {error}");
                        break;
                    }
                }
                more |= n == BURST;
            }
        }
        more
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
                Command::Explain(reply) => {
                    let _ = reply.send(self.election.explain(now));
                }
                Command::Standby { on, force, reply } => {
                    let _ = reply.send(self.election.standby(now, on, force));
                }
                Command::Interface(via, interface) => {
                    if let Via::Zone(zone) = via {
                        self.sockets.sources.insert(zone, interface);
                    }
                    self.election.interface(now, via, interface);
                }
                Command::Opened(via, socket) => {
                    self.sockets.probes.remove(&via);
                    self.sockets.probes.extend(socket.map(|socket| (via, socket)));
                }
                Command::Heartbeats(link, socket) => {
                    if let Some(place) = self.sockets.heartbeats.get_mut(usize::from(link)) {
                        self.refused = self.refused + std::mem::replace(place, socket).refused();
                    }
                }
                Command::Vrrp(zone, sockets) => {
                    self.sockets.vrrp.insert(zone, sockets);
                }
                Command::SyncStatus { peer, in_sync, applied } => {
                    self.election.sync_status(now, peer, in_sync, applied);
                }
                Command::Reload { config_hash, groups, trackers, witnesses, reply } => {
                    // Whoever gave up waiting has taken the rest of the change back.
                    if !reply.is_closed() {
                        if let Err(error) = self.sockets.open_echoes(&witnesses) {
                            tracing::error!("cannot open a socket to ask witnesses: {error}");
                        }
                        let done = self.election.reload(now, config_hash, groups, trackers, witnesses);
                        let _ = reply.send(done);
                    }
                }
                Command::Claimed { group, term } => self.election.claimed(now, group, term),
                Command::PastTerm { group, term } => self.election.past_term(now, group, term),
                Command::Tracker { id, report } => self.election.tracker(now, id, report),
                Command::Surveyed { zone, survey } => self.election.surveyed(now, zone, survey),
                Command::Keys(keys) => self.election.set_keys(&keys),
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
        unwritten: &mut Limit,
    ) -> bool {
        let mut done = |name: &str| {
            if !steps.iter().any(|s| s.name == name) {
                steps.push(step(name, decided, self.now()));
            }
        };
        match output {
            Output::Heartbeat { link, peer, bytes } => self.send_heartbeat(link, peer, &bytes),
            Output::Advertise { zone, to, bytes, .. } => {
                self.advertise(zone, to, &bytes);
                done("advert");
            }
            Output::Probe { via, mac, probe, .. } => {
                if let Some(socket) = self.sockets.probes.get(&via) {
                    // A cut cable is what probes are there to find.
                    let _ = socket.send(mac, &probe);
                }
            }
            Output::Survey { zone, ask, own, peers } => {
                // If that thread is gone nothing is found out, and nothing moves.
                let _ = self.surveyor.send(surveyor::Request { zone, ask, own, peers });
            }
            Output::AskWitness { address, nonce } => {
                let mut sockets = self.sockets.echoes.iter();
                if let Some(socket) = sockets.find(|s| s.is_v6() == address.is_ipv6())
                    && let Err(error) = socket.ask(address, nonce)
                {
                    tracing::debug!(%address, "cannot ask a witness: {error}");
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
                // Before the data plane can tell of what it does as the owner.
                self.replication.send(replication::Command::Owned { group, term });
                self.write_group(group, &element, unwritten);
                done("own");
            }
            Output::RenewLease { group, until } => {
                if let Some(element) = owned.get_mut(&group) {
                    element.lease_until_ns = until.as_nanos();
                    self.write_group(group, element, unwritten);
                }
            }
            Output::Disown { group, forward_until } => {
                let before = owned.remove(&group).unwrap_or_default();
                let element = match forward_until {
                    Some(until) => Group { role: Group::LEAVING, lease_until_ns: until.as_nanos(), ..before },
                    None => Group { term: before.term, ..Group::default() },
                };
                self.write_group(group, &element, unwritten);
                self.owned.set(group, false);
                self.replication.send(replication::Command::Disowned { group });
            }
            Output::AddVips { group } => {
                let takeover = Takeover { decided, steps: std::mem::take(steps) };
                self.tell_vips(vips::Command::Add { group, takeover });
            }
            Output::RemoveVips { group } => self.tell_vips(vips::Command::Remove { group }),
            Output::Announce { group } => self.tell_vips(vips::Command::Announce { group }),
            Output::Event(event) => {
                if let Event::Role { group, from, to, term, cause, reason } = &event
                    && from != to
                {
                    let (group, from, to, term, cause) = (*group, *from, *to, *term, *cause);
                    let reason = reason.clone();
                    let change = Change { kind: Kind::Role, group, from, to, term, cause, reason };
                    self.tell_vips(vips::Command::Role(change));
                }
                let split = match &event {
                    Event::SplitBrain { group, cause, .. } => Some((Kind::SplitBrain, *group, cause)),
                    Event::SplitBrainEnd { group, cause, .. } => Some((Kind::SplitBrainEnd, *group, cause)),
                    _ => None,
                };
                if let Some((kind, group, reason)) = split {
                    self.tell_split(kind, group, reason.clone());
                }
                self.record(decided, &event);
            }
            Output::ShutdownComplete => return true,
        }
        false
    }

    /// Tells hooks of a split brain.
    fn tell_split(&self, kind: Kind, group: GroupId, reason: String) {
        let groups = self.election.status(self.now()).groups;
        if let Some(g) = groups.iter().find(|g| g.group == group) {
            let (from, to, term, cause) = (g.role, g.role, g.term, g.cause);
            let change = Change { kind, group, from, to, term, cause, reason };
            self.tell_vips(vips::Command::Split(change));
        }
    }

    fn tell_vips(&self, command: vips::Command) {
        if self.vips.send(command).is_err() {
            tracing::error!("the thread that moves addresses is gone");
        }
    }

    fn write_group(&self, group: GroupId, element: &Group, unwritten: &mut Limit) {
        if let Err(error) = self.maps.write_group(u32::from(group), element)
            && unwritten.pass().is_some()
        {
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

    fn advertise(&self, zone: u8, to: IpAddr, bytes: &[u8]) {
        let v6 = to.is_ipv6();
        let mut sockets = self.sockets.vrrp.get(&zone).into_iter().flatten();
        let source = self.sockets.sources.get(&zone).and_then(|i| i.source(v6));
        let (Some(socket), Some(source)) = (sockets.find(|s| s.is_v6() == v6), source) else {
            return;
        };
        if let Err(error) = socket.send(source, to, bytes) {
            tracing::debug!(zone, "cannot advertise: {error}");
        }
    }

    fn record(&self, at: Time, event: &Event) {
        let names = &self.names;
        let (kind, group, text) = match event {
            Event::Role { group, from, to, term, reason, .. } => {
                let what = match *to {
                    Role::Active if *from == Role::Active => "goes on",
                    Role::Active => "took over",
                    _ => "changed",
                };
                (
                    "role",
                    Some(*group),
                    format!("{} {what}: {from} -> {to} in term {term}: {reason}", names.me()),
                )
            }
            Event::Peer { peer, from, to, reason } => {
                ("peer", None, format!("{}: {from} -> {to}: {reason}", names.node(*peer)))
            }
            Event::SplitBrain { group, peer, overlap, winner, cause } => (
                "split-brain",
                Some(*group),
                format!(
                    "{} is active as well, for {:.3} s so far; {} stays; cause: {cause}",
                    names.node(*peer),
                    overlap.as_secs_f64(),
                    names.node(*winner)
                ),
            ),
            Event::SplitBrainEnd { group, peer, after, lasted, cause } => (
                "split-brain-end",
                Some(*group),
                format!(
                    "over with {}: both were active for {:.3} s, {:.3} s of that since they met; cause: {cause}",
                    names.node(*peer),
                    lasted.as_secs_f64(),
                    after.as_secs_f64()
                ),
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
            Event::Path { zone, peer, path } => {
                let (peer, zone) = (names.node(*peer), names.zone(*zone));
                let text = match path {
                    Path::Both => format!("zone {zone}: {peer} and {} hear each other again", names.me()),
                    Path::Unheard => format!("one-way in zone {zone}: {peer} does not hear {}", names.me()),
                    Path::Deaf => format!("one-way in zone {zone}: {} does not hear {peer}", names.me()),
                    Path::Cut => format!("zone {zone}: {peer} and {} do not hear each other", names.me()),
                };
                ("path", None, text)
            }
            Event::HandoverFailed { group, to, reason } => {
                ("handover-failed", Some(*group), format!("{} {reason}", names.node(*to)))
            }
            Event::Tracker { tracker, to, text } => {
                ("tracker", None, format!("{tracker} is {}: {text}", to.as_str()))
            }
            Event::Tracked { group, tracker, counts: true, effect } => {
                ("tracker", Some(*group), format!("{tracker} {effect}"))
            }
            Event::Tracked { group, tracker, counts: false, effect } => {
                ("tracker", Some(*group), format!("{tracker} does not count any more: {effect}"))
            }
            Event::Witness { witness, to } => {
                let said = if *to == State::Up { "answers" } else { "does not answer" };
                ("witness", None, format!("{witness} {said}"))
            }
            Event::ClaimHeld { group, peers } => (
                "witness",
                Some(*group),
                format!(
                    "{} does not take the group: {} cannot be reached, and no witness answers",
                    names.me(),
                    peers.iter().map(|peer| names.node(*peer)).collect::<Vec<_>>().join(" and ")
                ),
            ),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_counts_as_late_after_a_heartbeat_and_is_forgotten_after_a_minute() {
        let (at, allowed) = (Time::from_millis, Duration::from_millis(10));
        let mut lateness = Lateness::default();
        lateness.note(at(1000), at(990), allowed);
        lateness.note(at(1000), Time::ZERO, allowed);
        assert_eq!(lateness, Lateness::default(), "on time, or asked for at once");
        lateness.note(at(1000), at(900), allowed);
        lateness.note(at(2000), at(1950), allowed);
        assert_eq!((lateness.count, lateness.worst), (2, Duration::from_millis(100)));
        assert!(lateness.recent(at(62_000)) && !lateness.recent(at(62_001)));
        lateness.note(at(90_000), at(89_970), allowed);
        assert_eq!((lateness.count, lateness.worst), (3, Duration::from_millis(30)));
    }
}
