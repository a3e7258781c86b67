//! The thread that moves addresses: virtual addresses onto interfaces and off them, and the
//! gratuitous ARP that tells the neighbours.
//!
//! It is a thread of its own because netlink may wait for a lock that any program on the machine
//! holds, and heartbeats must not wait with it. What it is told is a goal; it holds interfaces to
//! that goal, also when somebody else removes an address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use fwha_proto::election::GroupId;
use fwha_proto::time::Time;
use tokio::sync::{mpsc, oneshot};

use super::events::{EventLog, step};
use super::names::Names;
use crate::api::Step;
use crate::netlink::{Address, Addresses, Garp};
use crate::sys::clock::KernelClock;
use crate::sys::sched;

/// One below the election.
const PRIORITY: u8 = 19;
/// How often what is there is compared with what should be, whatever was told.
const REPAIR_INTERVAL: Duration = Duration::from_secs(5);

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
    /// An address went, by whomever.
    Check,
    /// Remove everything and end; answered when that is done.
    Stop(oneshot::Sender<()>),
}

/// What the thread works with.
pub struct Thread {
    /// The addresses of each group.
    pub groups: BTreeMap<GroupId, Vec<Address>>,
    /// A socket for announcements on each interface.
    pub garps: BTreeMap<u32, Garp>,
    /// Groups whose addresses may stay from the run before: it ended inside its lease.
    pub keep: BTreeSet<GroupId>,
    /// What others want.
    pub commands: mpsc::UnboundedReceiver<Command>,
    /// The clock of the data plane.
    pub clock: KernelClock,
    /// Where events go.
    pub events: Arc<EventLog>,
    /// Names for texts.
    pub names: Arc<Names>,
}

impl Thread {
    /// Starts it.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn spawn(self) -> Result<std::thread::JoinHandle<()>> {
        std::thread::Builder::new()
            .name("fwha-vips".into())
            .spawn(move || {
                if let Err(denied) = sched::run_realtime(PRIORITY) {
                    tracing::debug!("addresses move without real-time priority: {denied}");
                }
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                match runtime {
                    Ok(runtime) => runtime.block_on(self.run()),
                    Err(error) => tracing::error!("cannot move addresses: {error}"),
                }
            })
            .context("cannot start the thread that moves addresses")
    }

    async fn run(mut self) {
        let addresses = match Addresses::new() {
            Ok(addresses) => addresses,
            Err(error) => return tracing::error!("cannot move addresses: {error}"),
        };
        let mut here: BTreeSet<GroupId> = std::mem::take(&mut self.keep);
        let mut takeovers: BTreeMap<GroupId, Takeover> = BTreeMap::new();
        self.remove_strays(&addresses, &here).await;
        let mut repair = tokio::time::interval(REPAIR_INTERVAL);
        loop {
            let command = tokio::select! {
                command = self.commands.recv() => command,
                _ = repair.tick() => Some(Command::Check),
            };
            match command {
                Some(Command::Add { group, mut takeover }) => {
                    here.insert(group);
                    if let Err(error) = addresses.add(self.of(group)).await {
                        self.tell("vip-error", group, format!("{error}"));
                    }
                    takeover.steps.push(self.step("vips", takeover.decided));
                    takeovers.insert(group, takeover);
                }
                Some(Command::Remove { group }) => {
                    here.remove(&group);
                    takeovers.remove(&group);
                    if let Err(error) = addresses.remove(self.of(group)).await {
                        self.tell("vip-error", group, format!("{error}"));
                    }
                }
                Some(Command::Announce { group }) if here.contains(&group) => {
                    self.announce(group);
                    if let Some(mut takeover) = takeovers.remove(&group) {
                        takeover.steps.push(self.step("announce", takeover.decided));
                        let text = format!("{} has the addresses", self.names.me());
                        let name = self.names.group(group);
                        self.events.record(takeover.decided, "takeover", Some(name), text, takeover.steps);
                    }
                }
                Some(Command::Announce { .. }) => {}
                Some(Command::Check) => self.repair(&addresses, &here).await,
                Some(Command::Stop(done)) => {
                    self.remove_strays(&addresses, &BTreeSet::new()).await;
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

    fn step(&self, name: &str, decided: Time) -> Step {
        step(name, decided, Time::from_nanos(self.clock.now_ns()))
    }

    fn tell(&self, kind: &str, group: GroupId, text: String) {
        let now = Time::from_nanos(self.clock.now_ns());
        self.events.record(now, kind, Some(self.names.group(group)), text, Vec::new());
    }

    fn announce(&self, group: GroupId) {
        for (ifindex, garp) in &self.garps {
            let vips: Vec<Ipv4Addr> =
                self.of(group).iter().filter(|a| a.ifindex == *ifindex).map(|a| a.address).collect();
            if let Err(error) = garp.announce(vips) {
                tracing::warn!(ifindex, "cannot announce addresses: {error}");
            }
        }
    }

    /// Removes marked addresses of groups that are not here: what a killed daemon left.
    async fn remove_strays(&self, addresses: &Addresses, here: &BTreeSet<GroupId>) {
        let interfaces: Vec<u32> = self.garps.keys().copied().collect();
        let keep: Vec<Address> = here.iter().flat_map(|g| self.of(*g)).copied().collect();
        match addresses.remove_leftovers(&interfaces, &keep).await {
            Ok(removed) if !removed.is_empty() => {
                tracing::info!("removed {} virtual addresses that do not belong here now", removed.len());
            }
            Ok(_) => {}
            Err(error) => tracing::warn!("cannot remove leftover addresses: {error}"),
        }
    }

    /// Makes what is there what should be.
    async fn repair(&self, addresses: &Addresses, here: &BTreeSet<GroupId>) {
        self.remove_strays(addresses, here).await;
        for &group in here {
            let interfaces: Vec<u32> = self.garps.keys().copied().collect();
            let present = match addresses.list(&interfaces).await {
                Ok(present) => present,
                Err(error) => return tracing::warn!("cannot list addresses: {error}"),
            };
            let missing: Vec<Address> =
                self.of(group).iter().filter(|a| !present.contains(a)).copied().collect();
            if missing.is_empty() {
                continue;
            }
            let text = format!("{} of its addresses were missing and were added again", missing.len());
            self.tell("vip-repair", group, text);
            if let Err(error) = addresses.add(&missing).await {
                self.tell("vip-error", group, format!("{error}"));
            }
            self.announce(group);
        }
    }
}
