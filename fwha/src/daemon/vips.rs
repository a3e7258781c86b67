//! The thread that moves addresses: virtual addresses onto interfaces and off them, and the
//! gratuitous ARP or unsolicited neighbour advertisements that tell the neighbours.
//!
//! It is a thread of its own because netlink may wait for a lock that any program on the machine
//! holds, and heartbeats must not wait with it. What it is told is a goal; it holds interfaces to
//! that goal, also when somebody else removes an address.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use arc_swap::ArcSwap;
use fwha_proto::election::GroupId;
use fwha_proto::heartbeat::Role;
use fwha_proto::hook::Change;
use fwha_proto::time::Time;
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;

use super::announcements::Announcements;
use super::claims::Defence;
use super::election::Snapshot;
use super::events::{EventLog, step};
use super::hooks::Hooks;
use super::limit::Limits;
use super::names::Names;
use super::readdress::{Arrived, Leaving};
use super::resources::Resources;
use super::troubles::{Complaint, Troubles};
use crate::api::Step;
use crate::dataplane::Maps;
use crate::netlink::{Address, Addresses, Garp, NetlinkError, Routes, Routing};
use crate::sys::clock::KernelClock;
use crate::sys::sched;

/// One below the election.
const PRIORITY: u8 = 19;
/// How often what is there is compared with what should be, whatever was told, and its lifetime
/// renewed.
const REPAIR_INTERVAL: Duration = Duration::from_secs(1);
/// How often all routes are listed while some are in the way or left over. That takes long where there are many, and who is to add
/// addresses waits.
const RELIST_INTERVAL: Duration = Duration::from_secs(60);
/// By how much the lifetime of an address exceeds the lease: netlink may wait that long for a lock.
const LIFETIME_SLACK: Duration = Duration::from_secs(3);

/// How far a takeover is when the addresses' turn comes.
pub struct Takeover {
    /// When the election decided.
    pub decided: Time,
    /// What has been done since.
    pub steps: Vec<Step>,
}

/// What the other threads want.
pub enum Command {
    /// The group's addresses belong here.
    Add {
        /// The group.
        group: GroupId,
        /// For the timeline.
        takeover: Takeover,
    },
    /// They do not.
    Remove {
        /// The group.
        group: GroupId,
    },
    /// Tell the neighbours.
    Announce {
        /// The group.
        group: GroupId,
    },
    /// The role in a group changed: hooks are told once the addresses are where they belong.
    Role(Change),
    /// There was a split brain, or it is over: hooks are told.
    Split(Change),
    /// An address went, by whomever.
    Check,
    /// An interface has another index or MAC.
    Replaced {
        /// The index that it had.
        before: u32,
        /// The index that it has.
        now: u32,
        /// A socket on it.
        garp: Garp,
    },
    /// The config has changed.
    Reload {
        /// The addresses of each group.
        groups: BTreeMap<GroupId, Vec<Address>>,
        /// Their routes and rules.
        routes: BTreeMap<GroupId, Vec<Routing>>,
        /// Between two addresses of an announcement.
        intervals: BTreeMap<GroupId, Duration>,
        /// Groups whose addresses have another MAC now.
        announce: BTreeSet<GroupId>,
        /// Who else wants to know.
        hooks: Hooks,
        /// Told when the interfaces have what they should have.
        done: oneshot::Sender<()>,
    },
    /// Remove everything and end; answered when that is done.
    Stop(oneshot::Sender<()>),
}

type Complaints = Limits<Complaint>;

/// What the thread works with.
pub struct Thread {
    /// The addresses of each group.
    pub groups: BTreeMap<GroupId, Vec<Address>>,
    /// The routes and rules of each group.
    pub routes: BTreeMap<GroupId, Vec<Routing>>,
    /// What is said to the neighbours.
    pub announcements: Announcements,
    /// Groups whose addresses may stay from the run before: it ended inside its lease.
    pub keep: BTreeSet<GroupId>,
    /// How long the data plane owns what it owns without this process.
    pub lease: Duration,
    /// What others want.
    pub commands: mpsc::UnboundedReceiver<Command>,
    /// The clock of the data plane.
    pub clock: KernelClock,
    /// How the election stands.
    pub election: Arc<ArcSwap<Snapshot>>,
    /// Addresses that stay until another node has them.
    pub leaving: Vec<Leaving>,
    /// Addresses that another node may have still.
    pub arrived: Arrived,
    /// Where events go.
    pub events: Arc<EventLog>,
    /// Names for texts.
    pub names: Arc<Names>,
    /// Who else wants to know.
    pub hooks: Hooks,
    /// What runs where the addresses are.
    pub resources: Resources,
    /// The data plane.
    pub maps: Arc<Maps>,
    /// Against others that claim the addresses.
    pub defence: Defence,
    /// What cannot be done, for `status`.
    pub troubles: Arc<Troubles>,
}

impl Thread {
    /// Starts it.
    ///
    /// # Errors
    /// The system has no thread or no netlink socket to give.
    pub fn spawn(self) -> Result<std::thread::JoinHandle<()>> {
        let (ready, started) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("fwha-vips".into())
            .spawn(move || {
                if let Err(denied) = sched::run_realtime(PRIORITY) {
                    tracing::debug!("addresses move without real-time priority: {denied}");
                }
                let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                    Ok(runtime) => runtime,
                    Err(error) => return drop(ready.send(Err(error.into()))),
                };
                runtime.block_on(async {
                    match Addresses::new().and_then(|addresses| Ok((addresses, Routes::new()?))) {
                        Ok((addresses, routes)) => {
                            // Whoever spawns waits for it.
                            let _ = ready.send(Ok(()));
                            self.run(addresses, routes).await;
                        }
                        Err(error) => drop(ready.send(Err(error.into()))),
                    }
                });
            })
            .context("cannot start the thread that moves addresses")?;
        let started: Result<()> = started.recv().context("the thread that moves addresses ended")?;
        started.context("cannot move addresses")?;
        Ok(thread)
    }

    async fn run(mut self, addresses: Addresses, routes: Routes) {
        let mut here: BTreeSet<GroupId> = std::mem::take(&mut self.keep);
        let mut takeovers: BTreeMap<GroupId, Takeover> = BTreeMap::new();
        let mut untold: BTreeMap<GroupId, Change> = BTreeMap::new();
        let mut complaints = Complaints::default();
        let mut listed = Instant::now();
        let mut fresh: Option<(Instant, Vec<(GroupId, Address)>)> = None;
        self.remove_strays(&addresses, &here, &mut complaints).await;
        self.repair_routes(&routes, &here, &mut complaints).await;
        let mut repair = tokio::time::interval(REPAIR_INTERVAL);
        repair.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let command = tokio::select! {
                command = self.commands.recv() => command,
                _ = repair.tick() => Some(Command::Check),
                () = self.announcements.next() => continue,
            };
            match command {
                Some(Command::Add { group, mut takeover }) => {
                    here.insert(group);
                    self.leaving.retain(|leaving| leaving.to != group);
                    let added = addresses.add(self.of(group), self.lifetime()).await;
                    if let Err(error) = self.note_vips(group, added) {
                        self.tell("vip-error", group, error);
                    }
                    takeover.steps.push(self.step("vips", takeover.decided));
                    if !self.routes_of(group).is_empty() {
                        self.add_routes(&routes, self.routes_of(group), &mut complaints).await;
                        takeover.steps.push(self.step("routes", takeover.decided));
                    }
                    takeovers.insert(group, takeover);
                }
                Some(Command::Remove { group }) => {
                    // They begin to stop, and nobody waits for that.
                    self.resources.tell(group, false);
                    here.remove(&group);
                    takeovers.remove(&group);
                    self.troubles.over(Complaint::Vip(group));
                    if let Err(error) = routes.remove(self.routes_of(group)).await {
                        let error = error.to_string();
                        self.troubles.failed(Complaint::RouteLeftovers, error.clone());
                        self.tell("route-error", group, error);
                    }
                    self.announcements.forget(group);
                    let mut gone = self.of(group).to_vec();
                    gone.extend(self.leaving.extract_if(.., |l| l.from == group).map(|l| l.address));
                    if let Err(error) = addresses.remove(&gone).await {
                        // It is tried again with the next repair.
                        let error = error.to_string();
                        self.troubles.failed(Complaint::Leftovers, error.clone());
                        self.tell("vip-error", group, error);
                    }
                }
                Some(Command::Split(change)) => self.hooks.tell(&change),
                Some(Command::Role(change)) => {
                    untold.remove(&change.group);
                    if change.to == Role::Active {
                        untold.insert(change.group, change);
                    } else {
                        self.hooks.tell(&change);
                    }
                }
                Some(Command::Announce { group }) if here.contains(&group) => {
                    self.announce(group);
                    if let Some(change) = untold.remove(&group) {
                        self.resources.tell(group, true);
                        self.hooks.tell(&change);
                        if !self.routes_of(group).is_empty() {
                            // What was there before may be another's.
                            self.repair_routes(&routes, &here, &mut complaints).await;
                        }
                    }
                    if let Some(mut takeover) = takeovers.remove(&group) {
                        takeover.steps.push(self.step("announce", takeover.decided));
                        let text = format!("{} has the addresses", self.names.me());
                        let name = self.names.group(group);
                        self.events.record(takeover.decided, "takeover", Some(name), text, takeover.steps);
                    }
                }
                Some(Command::Announce { .. }) => {}
                Some(Command::Reload { groups, routes: of_groups, intervals, announce, hooks, done }) => {
                    self.announcements.set_intervals(intervals);
                    let added = self.reload(&addresses, &here, groups, &announce).await;
                    if self.routes != of_groups {
                        self.routes = of_groups;
                        self.repair_routes(&routes, &here, &mut complaints).await;
                    }
                    fresh = Some((Instant::now(), added));
                    self.hooks = hooks;
                    // Whoever waited may have given up.
                    let _ = done.send(());
                }
                Some(Command::Check) => {
                    self.readdress(&addresses, &here).await;
                    self.repair(&addresses, &here, &mut complaints).await;
                    self.defend(&here, &mut complaints);
                    let wanted = self.routes_here(&here);
                    self.add_routes(&routes, &wanted, &mut complaints).await;
                    let wrong = [Complaint::RouteLeftovers, Complaint::RouteInTheWay];
                    if wrong.iter().any(|what| self.troubles.has(*what))
                        && listed.elapsed() >= RELIST_INTERVAL
                    {
                        listed = Instant::now();
                        self.repair_routes(&routes, &here, &mut complaints).await;
                    }
                    // Once more: a switch port may have blocked the first time.
                    if fresh.as_ref().is_some_and(|(at, _)| at.elapsed() >= REPAIR_INTERVAL)
                        && let Some((_, addresses)) = fresh.take()
                    {
                        let still = |(group, a): &(GroupId, Address)| {
                            here.contains(group) && self.of(*group).contains(a)
                        };
                        let still: Vec<_> = addresses.into_iter().filter(still).collect();
                        self.announcements.announce(still);
                    }
                }
                Some(Command::Replaced { before, now, garp }) => {
                    self.announcements.replace(before, now, garp);
                    let leaving = self.leaving.iter_mut().map(|l| &mut l.address);
                    let all = self.groups.values_mut().flatten().chain(leaving);
                    for address in all.filter(|a| a.ifindex == before) {
                        address.ifindex = now;
                    }
                    for routing in self.routes.values_mut().flatten() {
                        if let Routing::Route(route) = routing
                            && route.ifindex == before
                        {
                            route.ifindex = now;
                        }
                    }
                    self.repair(&addresses, &here, &mut complaints).await;
                    self.repair_routes(&routes, &here, &mut complaints).await;
                    // Those that were there already have another MAC now.
                    here.iter().for_each(|&group| self.announce(group));
                }
                Some(Command::Stop(done)) => {
                    self.leaving.clear();
                    self.repair_routes(&routes, &BTreeSet::new(), &mut complaints).await;
                    self.remove_strays(&addresses, &BTreeSet::new(), &mut complaints).await;
                    // Whoever waited may have given up; the addresses are gone all the same.
                    let _ = done.send(());
                    return;
                }
                None => return,
            }
        }
    }

    fn of(&self, group: GroupId) -> &[Address] {
        self.groups.get(&group).map_or(&[], Vec::as_slice)
    }

    fn routes_of(&self, group: GroupId) -> &[Routing] {
        self.routes.get(&group).map_or(&[], Vec::as_slice)
    }

    fn lifetime(&self) -> Duration {
        self.lease + LIFETIME_SLACK
    }

    fn step(&self, name: &str, decided: Time) -> Step {
        step(name, decided, Time::from_nanos(self.clock.now_ns()))
    }

    fn tell(&self, kind: &str, group: GroupId, text: String) {
        let now = Time::from_nanos(self.clock.now_ns());
        self.events.record(now, kind, Some(self.names.group(group)), text, Vec::new());
    }

    /// Tells the neighbours of all addresses of a group.
    fn announce(&mut self, group: GroupId) {
        let addresses: Vec<_> = self.of(group).iter().map(|&a| (group, a)).collect();
        self.announcements.announce(addresses);
    }

    /// Tells the neighbours again of addresses that somebody else has claimed.
    fn defend(&mut self, here: &BTreeSet<GroupId>, complaints: &mut Complaints) {
        let now_ns = self.clock.now_ns();
        match self.defence.turn(&self.maps, &self.names, here, &self.groups, now_ns) {
            Ok(claimed) => {
                for (group, claimed, text) in claimed {
                    self.tell("vip-claimed", group, format!("{text}; the neighbours are told again"));
                    self.announcements.announce(claimed.into_iter().map(|address| (group, address)));
                }
            }
            Err(error) => {
                if let Some(held) = complaints.pass(Complaint::Claims) {
                    tracing::warn!(held, "cannot see who else claims the addresses: {error}");
                }
            }
        }
    }

    /// Lets go what another node has now, and announces what another may have still.
    async fn readdress(&mut self, addresses: &Addresses, here: &BTreeSet<GroupId>) {
        let (now, election) = (Instant::now(), self.election.load_full());
        let gone: Vec<Leaving> = self.leaving.extract_if(.., |l| l.may_go(now, &election)).collect();
        let bare: Vec<Address> = gone.iter().map(|l| l.address).collect();
        if let Err(error) = addresses.remove(&bare).await {
            // What failed goes with the next repair.
            tracing::warn!("cannot remove addresses that another node has: {error}");
        }
        for Leaving { from, to, address, .. } in gone {
            let to = self.names.group(to);
            self.tell("vip-moved", from, format!("{} is where {to} is active", address.address));
        }
        let mut again = self.arrived.to_announce(now, &election);
        again.retain(|(group, address)| here.contains(group) && self.of(*group).contains(address));
        self.announcements.announce(again);
    }

    /// The groups have other addresses: those that are nowhere any more go, then those that are new come;
    /// all others stay as they are, and so do those of a group elsewhere until they are there. Returns those
    /// that the neighbours are told of: the new ones, and all of the groups in `announce`.
    async fn reload(
        &mut self,
        addresses: &Addresses,
        here: &BTreeSet<GroupId>,
        groups: BTreeMap<GroupId, Vec<Address>>,
        announce: &BTreeSet<GroupId>,
    ) -> Vec<(GroupId, Address)> {
        let all = |this: &Self| -> Vec<(GroupId, Address)> {
            here.iter().flat_map(|&g| this.of(g).iter().map(move |&a| (g, a))).collect()
        };
        let mut before = all(self);
        let old = std::mem::replace(&mut self.groups, groups);
        let now = all(self);
        let without = |list: &[(GroupId, Address)], other: &[(GroupId, Address)]| -> Vec<_> {
            list.iter().filter(|(_, a)| !other.iter().any(|(_, b)| a == b)).copied().collect()
        };
        // One that was about to leave and stays now is new to the neighbours: another node may have announced it.
        let fresh = without(&now, &before);
        before.extend(std::mem::take(&mut self.leaving).into_iter().map(|l| (l.from, l.address)));
        let mut gone = without(&before, &now);
        let of = |groups: &BTreeMap<GroupId, Vec<Address>>, address: &Address| {
            groups.iter().find(|(_, list)| list.contains(address)).map(|(&group, _)| group)
        };
        for (from, address) in &gone {
            if let Some(to) = of(&self.groups, address) {
                let text = format!(
                    "{} stays until the node that is active in {} has the same cluster file",
                    address.address,
                    self.names.group(to)
                );
                self.tell("vip-moves", *from, text);
                self.leaving.push(Leaving::new(*from, to, *address));
            }
        }
        let came = fresh.iter().filter(|(_, address)| of(&old, address).is_some()).copied().collect();
        self.arrived.note(came);
        let stay: Vec<Address> = self.leaving.iter().map(|l| l.address).collect();
        gone.iter().for_each(|&(group, address)| self.announcements.forget_address(group, &address));
        let bare = |list: &[(GroupId, Address)]| -> Vec<Address> { list.iter().map(|&(_, a)| a).collect() };
        gone.retain(|(_, address)| !stay.contains(address));
        let removed = addresses.remove(&bare(&gone)).await;
        let changed = [removed, addresses.add(&bare(&fresh), self.lifetime()).await];
        for error in changed.into_iter().filter_map(Result::err) {
            // What failed is tried again with every repair.
            let now = Time::from_nanos(self.clock.now_ns());
            self.events.record(now, "vip-error", None, format!("{error}"), Vec::new());
        }
        let told = now.into_iter().filter(|entry| announce.contains(&entry.0) || fresh.contains(entry));
        let told: Vec<_> = told.collect();
        self.announcements.announce(told.iter().copied());
        told
    }

    /// Removes marked addresses of groups that are not here: what a killed daemon left.
    async fn remove_strays(
        &self,
        addresses: &Addresses,
        here: &BTreeSet<GroupId>,
        complaints: &mut Complaints,
    ) {
        let interfaces: Vec<u32> = self.announcements.interfaces().collect();
        let mut keep: Vec<Address> = here.iter().flat_map(|g| self.of(*g)).copied().collect();
        keep.extend(self.leaving.iter().map(|l| l.address));
        match addresses.remove_leftovers(&interfaces, &keep).await {
            Ok(removed) => {
                self.troubles.over(Complaint::Leftovers);
                if !removed.is_empty() {
                    tracing::info!("removed {} virtual addresses that do not belong here now", removed.len());
                }
            }
            Err(error) => {
                let text = format!("cannot remove addresses that do not belong here: {error}");
                self.troubles.failed(Complaint::Leftovers, text);
                if let Some(held) = complaints.pass(Complaint::Leftovers) {
                    tracing::warn!(held, "cannot remove leftover addresses: {error}");
                }
            }
        }
    }

    fn routes_here(&self, here: &BTreeSet<GroupId>) -> Vec<Routing> {
        here.iter().flat_map(|g| self.routes_of(*g)).copied().collect()
    }

    /// Adds what is missing of these. The kernel knows what is there; to list it takes long where a routing
    /// daemon has filled the table.
    async fn add_routes(&self, routes: &Routes, wanted: &[Routing], complaints: &mut Complaints) {
        match routes.add(wanted).await {
            Ok(_) => self.troubles.over(Complaint::Route),
            Err(error) => self.complain_of_route(Complaint::Route, error.to_string(), complaints),
        }
    }

    /// Makes the routes and rules that are there those that should be.
    async fn repair_routes(&self, routes: &Routes, here: &BTreeSet<GroupId>, complaints: &mut Complaints) {
        let interfaces: Vec<u32> = self.announcements.interfaces().collect();
        let wanted = self.routes_here(here);
        let repaired = async {
            let present = routes.list(&interfaces).await?;
            let without = |list: &[Routing], other: &[Routing]| -> Vec<Routing> {
                list.iter().filter(|routing| !other.contains(routing)).copied().collect()
            };
            let removed = routes.remove(&without(&present, &wanted)).await;
            Ok::<_, NetlinkError>((removed, routes.add(&without(&wanted, &present)).await))
        };
        let (removed, added) = match repaired.await {
            Ok(done) => done,
            Err(error) => (Err(error), Ok(Vec::new())),
        };
        match removed {
            Ok(()) => self.troubles.over(Complaint::RouteLeftovers),
            Err(error) => self.complain_of_route(Complaint::RouteLeftovers, error.to_string(), complaints),
        }
        match added {
            Ok(foreign) if foreign.is_empty() => self.troubles.over(Complaint::RouteInTheWay),
            Ok(foreign) => {
                let all: Vec<String> = foreign.iter().map(ToString::to_string).collect();
                let text = format!("another is in the way of {}", all.join(", "));
                self.complain_of_route(Complaint::RouteInTheWay, text, complaints);
            }
            Err(error) => self.complain_of_route(Complaint::Route, error.to_string(), complaints),
        }
    }

    fn complain_of_route(&self, complaint: Complaint, text: String, complaints: &mut Complaints) {
        self.troubles.failed(complaint, format!("routes: {text}"));
        if complaints.pass(complaint).is_some() {
            let now = Time::from_nanos(self.clock.now_ns());
            self.events.record(now, "route-error", None, text, Vec::new());
        }
    }

    /// Takes note of whether the addresses of a group could be added; if not, says why.
    fn note_vips(&self, group: GroupId, added: Result<(), NetlinkError>) -> Result<(), String> {
        let done = added.map_err(|error| error.to_string());
        match &done {
            Ok(()) => self.troubles.over(Complaint::Vip(group)),
            Err(error) => {
                let text = format!("group {}: {error}", self.names.group(group));
                self.troubles.failed(Complaint::Vip(group), text);
            }
        }
        done
    }

    /// Makes what is there what should be, and renews its lifetime.
    async fn repair(&mut self, addresses: &Addresses, here: &BTreeSet<GroupId>, complaints: &mut Complaints) {
        self.remove_strays(addresses, here, complaints).await;
        if here.is_empty() {
            self.troubles.over(Complaint::List);
            self.troubles.over(Complaint::Leaving);
            return;
        }
        let interfaces: Vec<u32> = self.announcements.interfaces().collect();
        let present = match addresses.list(&interfaces).await {
            Ok(present) => present,
            Err(error) => {
                self.troubles.failed(Complaint::List, format!("cannot list addresses: {error}"));
                if let Some(held) = complaints.pass(Complaint::List) {
                    tracing::warn!(held, "cannot list addresses: {error}");
                }
                return;
            }
        };
        self.troubles.over(Complaint::List);
        let stay: Vec<Address> = self.leaving.iter().map(|l| l.address).collect();
        match addresses.add(&stay, self.lifetime()).await {
            Ok(()) => self.troubles.over(Complaint::Leaving),
            Err(error) => {
                let text = format!("cannot keep addresses until another node has them: {error}");
                if let Some(held) = complaints.pass(Complaint::Leaving) {
                    tracing::warn!(held, "{text}");
                }
                self.troubles.failed(Complaint::Leaving, text);
            }
        }
        for &group in here {
            let missing = self.of(group).iter().filter(|a| !present.contains(a)).count();
            let added = addresses.add(self.of(group), self.lifetime()).await;
            match self.note_vips(group, added) {
                Ok(()) if missing > 0 => {
                    let text = format!("{missing} of its addresses were missing and were added again");
                    self.tell("vip-repair", group, text);
                    self.announce(group);
                }
                Ok(()) => {}
                Err(error) => {
                    if complaints.pass(Complaint::Vip(group)).is_some() {
                        self.tell("vip-error", group, error);
                    }
                }
            }
        }
    }
}
