//! Follows the network: routes and neighbours for the data plane; carriers, addresses and new
//! interfaces for the threads that use them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use arc_swap::ArcSwap;
use fwha_proto::heartbeat::Via;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::election;
use super::mailbox::Mailbox;
use super::ports::{self, Port, SyncSockets};
use super::replication;
use super::vips;
use crate::config::{Config, Node};
use crate::dataplane::{AttachedInterface, Dataplane, DataplaneError, Maps, ZoneInterface};
use crate::netlink::{Addresses, Link, Macs, Monitor, NetworkEvent, OwnAddresses};

/// How often programs are put onto an interface that did not take them.
const RETRY: Duration = Duration::from_secs(2);

/// Where programs are attached, and what is wrong with interfaces.
#[derive(Debug, Default)]
pub struct Attached {
    /// The interfaces that have theirs.
    pub interfaces: Vec<AttachedInterface>,
    /// Why others have no programs, or no sockets.
    pub problems: Vec<String>,
}

impl Attached {
    /// As it is now; replication sends datagrams of up to `mtu` bytes.
    pub fn of(dataplane: &Dataplane, ports: &[Port], mtu: u16) -> Self {
        // Of one that is not there, the data plane tells.
        let there = || ports.iter().filter_map(|port| Some((port, port.link.as_ref()?)));
        let sockets = there().filter_map(|(port, _)| port.problem.clone());
        let small = |(port, link): &(&Port, &Link)| matches!(port.via, Via::Sync(_)) && link.mtu < mtu.into();
        let small = there().filter(small).map(|(_, Link { name, mtu: its, .. })| {
            format!("sync interface {name} has an MTU of {its}: replication sends {mtu} bytes until fwha is restarted")
        });
        let problems = dataplane.problems().iter().map(ToString::to_string);
        let problems = problems.chain(sockets).chain(small).collect();
        Self { interfaces: dataplane.attached().to_vec(), problems }
    }
}

/// What following the network takes.
pub struct Network {
    /// The config in force.
    pub config: Arc<Config>,
    /// This node.
    pub node: Node,
    /// Its interfaces.
    pub ports: Vec<Port>,
    /// Bytes of the longest datagram on a sync link, as the links were at the start.
    pub mtu: u16,
    /// The election.
    pub election: Mailbox<election::Command>,
    /// Replication.
    pub replication: Mailbox<replication::Command>,
    /// Who moves addresses.
    pub vips: mpsc::UnboundedSender<vips::Command>,
    /// Has interfaces take frames to virtual MACs.
    pub macs: Vec<Macs>,
    /// Where programs are attached, for `status`.
    pub attached: Arc<ArcSwap<Attached>>,
    /// When programs are put again where they could not be.
    pub retry: Option<Instant>,
}

impl Network {
    /// Handles changes, in the order of [`Monitor::next`].
    pub async fn handle(&mut self, dataplane: &mut Dataplane, events: Vec<NetworkEvent>) {
        // What is lost is told at once: all that follows asks the kernel, and waits for whoever changes its networks
        // (`rtnl_mutex`), as who takes an interface away does.
        let mut concerned = false;
        for event in &events {
            if let NetworkEvent::LinkChanged(link) | NetworkEvent::LinkRemoved(link) = event {
                concerned |= dataplane.concerns(link);
                self.lose(link, matches!(event, NetworkEvent::LinkRemoved(_)));
            }
        }
        // The programs before what is there: it must be guarded already.
        if concerned {
            self.reconcile(dataplane);
        }
        let routes_only = events.iter().all(|event| matches!(event, NetworkEvent::RouteChanged));
        let (mut addressed, mut removed) = (BTreeSet::new(), false);
        for event in events {
            match event {
                NetworkEvent::RouteChanged => {
                    if let Err(error) = dataplane.maps().next_route_generation() {
                        tracing::error!("cached next hops may be out of date: {error}");
                    }
                }
                NetworkEvent::LinkChanged(link) => self.link_changed(dataplane, &link).await,
                // The plain routes have to do with it, too.
                NetworkEvent::NeighbourMoved => {}
                NetworkEvent::LinkRemoved(_) => {}
                NetworkEvent::AddressAdded(address) => _ = addressed.insert(address.ifindex),
                NetworkEvent::AddressRemoved(address) => {
                    removed = true;
                    addressed.insert(address.ifindex);
                }
                NetworkEvent::EventsLost => {
                    removed = true;
                    addressed.extend(self.ports.iter().filter_map(|p| p.link.as_ref().map(|l| l.index)));
                }
            }
        }
        // Once for all of them: a group of thousands of addresses may just have left.
        if removed {
            self.check_addresses();
        }
        for ifindex in addressed {
            self.address_changed(ifindex).await;
        }
        // Routes may change by the thousand.
        if !routes_only {
            self.note_problems(dataplane);
        }
    }

    fn check_addresses(&self) {
        // The thread ends before this one does only when all is over.
        let _ = self.vips.send(vips::Command::Check);
    }

    /// Programs and interfaces are brought together whichever interface it is: a zone has more than
    /// the one that the election knows.
    pub fn reconcile(&mut self, dataplane: &mut Dataplane) {
        dataplane.reconcile();
        self.note(dataplane);
    }

    /// Takes note of what is wrong with interfaces now.
    fn note_problems(&self, dataplane: &Dataplane) {
        let now = Arc::new(Attached::of(dataplane, &self.ports, self.mtu));
        let before = self.attached.swap(Arc::clone(&now));
        for problem in now.problems.iter().filter(|p| !before.problems.contains(p)) {
            tracing::error!("{problem}");
        }
    }

    /// Takes note of where programs are now, and of what is in their way.
    fn note(&mut self, dataplane: &Dataplane) {
        self.note_problems(dataplane);
        let now = self.attached.load_full();
        // One that is missing tells when it comes.
        let tried = |error: &DataplaneError| !matches!(error, DataplaneError::NoInterface(_));
        self.retry = dataplane.problems().iter().any(tried).then(|| Instant::now() + RETRY);
        for n in 0..self.ports.len() {
            let port = &mut self.ports[n];
            let filtered = now.interfaces.iter().any(|a| a.name == port.name);
            // A sync link passes everything anyway.
            if matches!(port.via, Via::Zone(_))
                && std::mem::replace(&mut port.filtered, filtered) != filtered
                && port.link.is_some()
            {
                self.tell(n);
            }
        }
    }

    /// Waits until it is time to [`Self::reconcile`] again. The future may be dropped.
    pub async fn due(&self) {
        match self.retry {
            Some(at) => sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    /// Tells what an interface cannot do any more.
    fn lose(&mut self, link: &Link, removed: bool) {
        // It may have been called otherwise until now.
        let renamed =
            |p: &Port| p.name != link.name && p.link.as_ref().is_some_and(|l| l.index == link.index);
        if removed || self.ports.iter().any(renamed) {
            self.forget(link);
        }
        if !removed
            && !link.running()
            && let Some(n) = self.ports.iter().position(|p| p.name == link.name)
        {
            self.ports[n].link = Some(link.clone());
            self.tell(n);
        }
    }

    async fn link_changed(&mut self, dataplane: &Dataplane, link: &Link) {
        let Some(n) = self.ports.iter().position(|p| p.name == link.name) else { return };
        self.ports[n].link = Some(link.clone());
        self.ports[n].own = own_addresses(link.index).await.unwrap_or(self.ports[n].own);
        if matches!(self.ports[n].via, Via::Zone(_))
            && let Err(error) = self.set_virtual_macs(&dataplane.maps(), &Arc::clone(&self.config))
        {
            tracing::error!("{error:#}");
        }
        self.tell(n);
        self.open(n);
    }

    /// Makes the virtual MACs of a config those that this node knows.
    ///
    /// # Errors
    /// An interface or the data plane refuses.
    pub fn set_virtual_macs(&mut self, maps: &Maps, config: &Config) -> Result<()> {
        let virtual_macs = ports::virtual_macs(config, &self.ports);
        // Those before are there until the new ones are.
        self.macs = ports::take_macs(&virtual_macs)?;
        Ok(maps.set_virtual_macs(&virtual_macs)?)
    }

    /// No port is this interface any more.
    fn forget(&mut self, link: &Link) {
        for n in 0..self.ports.len() {
            if self.ports[n].link.as_ref().is_some_and(|l| l.index == link.index) {
                self.ports[n].link = None;
                self.ports[n].gone = true;
                self.tell(n);
            }
        }
    }

    async fn address_changed(&mut self, ifindex: u32) {
        let here = |p: &Port| p.link.as_ref().is_some_and(|l| l.index == ifindex);
        let Some(n) = self.ports.iter().position(here) else { return };
        let Some(own) = own_addresses(ifindex).await else { return };
        if self.ports[n].own != own {
            self.ports[n].own = own;
            self.tell(n);
        }
        // An interface may have waited for its sync address.
        self.open(n);
    }

    /// Makes ready for the virtual routers of another config: sockets for IPv6 where there were none.
    ///
    /// # Errors
    /// A socket cannot be had; nothing has changed then.
    pub fn reload(&mut self, config: &Config) -> Result<()> {
        let mut opened = Vec::new();
        for (n, port) in self.ports.iter().enumerate() {
            if let Via::Zone(zone) = port.via
                && !port.v6
                && ports::speaks_vrrp(config, port.via, true)
            {
                let sockets = port.link.as_ref().map(|link| ports::vrrp_sockets(link, true)).transpose()?;
                opened.push((n, zone, sockets));
            }
        }
        for (n, zone, sockets) in opened {
            self.ports[n].v6 = true;
            match sockets {
                Some(sockets) => {
                    self.election.send(election::Command::Vrrp(zone, sockets));
                    self.tell(n);
                }
                // There is no interface now. Whatever comes is opened anew.
                None => self.ports[n].gone = true,
            }
        }
        Ok(())
    }

    /// Zones have other interfaces in another config.
    ///
    /// # Errors
    /// Those of [`Dataplane::set_interfaces`].
    pub fn set_interfaces(
        &mut self,
        dataplane: &mut Dataplane,
        interfaces: Vec<ZoneInterface>,
    ) -> Result<()> {
        let done = dataplane.set_interfaces(interfaces);
        self.note(dataplane);
        Ok(done?)
    }

    fn tell(&self, n: usize) {
        let port = &self.ports[n];
        self.tell_replication(port);
        self.election.send(election::Command::Interface(port.via, port.interface()));
    }

    fn tell_replication(&self, port: &Port) {
        if let Via::Sync(link) = port.via {
            self.replication.send(replication::Command::Carrier(link, port.carries()));
        }
    }

    /// Tells replication by which sync links it can begin.
    pub fn tell_links(&self) {
        self.ports.iter().for_each(|port| self.tell_replication(port));
    }

    /// Opens the sockets of a port anew if it is another interface now, or has another MAC.
    fn open(&mut self, n: usize) {
        let port = &self.ports[n];
        let (Some(link), Some(identity)) = (&port.link, port.identity()) else { return };
        if identity == port.opened && !port.gone {
            return;
        }
        let opened = match port.via {
            Via::Sync(number) => self.open_sync(number, link, port.gone || identity.0 != port.opened.0),
            Via::Zone(zone) => self.open_zone(zone, link, port.v6, port.opened.0),
        };
        match opened {
            Ok(()) => {
                let why = if port.opened.0 == 0 || port.problem.is_some() {
                    "is ready now: opened it"
                } else {
                    "was replaced or has another MAC: opened it anew"
                };
                tracing::info!("interface {} {why}", link.name);
                let port = &mut self.ports[n];
                (port.opened, port.gone, port.problem) = (identity, false, None);
                self.tell_replication(&self.ports[n]);
            }
            // Its next change brings another attempt.
            Err(error) => self.ports[n].problem = Some(format!("{error:#}")),
        }
    }

    fn open_sync(&self, number: u8, link: &Link, replaced: bool) -> Result<()> {
        let Some(config) = self.node.sync.get(usize::from(number)) else { return Ok(()) };
        let probes = ports::probe_socket(link)?;
        self.election.send(election::Command::Opened(Via::Sync(number), probes));
        // The others belong to the interface, whatever its MAC is, and their address is taken while they are open.
        if !replaced {
            return Ok(());
        }
        let SyncSockets { heartbeats, replication } = SyncSockets::open(&self.config, config)?;
        self.election.send(election::Command::Heartbeats(number, heartbeats));
        self.replication.send(replication::Command::Opened(number, replication));
        Ok(())
    }

    fn open_zone(&self, zone: u8, link: &Link, v6: bool, before: u32) -> Result<()> {
        let (vrrp, garp) = (ports::vrrp_sockets(link, v6)?, ports::garp(link)?);
        let probes = ports::probe_socket(link)?;
        self.election.send(election::Command::Opened(Via::Zone(zone), probes));
        self.election.send(election::Command::Vrrp(zone, vrrp));
        // See `check_addresses`.
        let _ = self.vips.send(vips::Command::Replaced { before, now: link.index, garp });
        Ok(())
    }

    /// Waits for the next changes.
    pub async fn next(monitor: &mut Monitor) -> Vec<NetworkEvent> {
        match monitor.next().await {
            Ok(events) => events,
            Err(error) => {
                tracing::error!("cannot follow the network: {error}");
                // The next call opens a new connection; not in a tight loop.
                tokio::time::sleep(Duration::from_millis(200)).await;
                Vec::new()
            }
        }
    }
}

/// The addresses by which this node speaks on an interface; `None` if they cannot be known now.
async fn own_addresses(ifindex: u32) -> Option<OwnAddresses> {
    let found = match Addresses::new() {
        Ok(addresses) => addresses.own(ifindex).await,
        Err(error) => Err(error),
    };
    found.inspect_err(|error| tracing::warn!("cannot look up addresses: {error}")).ok()
}
