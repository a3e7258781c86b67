//! Asks the neighbours in a zone when the election wants to know how this node is placed there
//! ([`fwha_proto::election::reach`]).
//!
//! Whom to ask is known from peace: when frames are lost, the kernel forgets its neighbours one by one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use futures_util::future::join_all;
use fwha_proto::NodeId;
use fwha_proto::election::reach::{LISTEN, Survey};
use fwha_proto::heartbeat::MAX_NEIGHBOURS;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::election::Command;
use super::mailbox::Mailbox;
use super::reach::{self, Asker};
use super::trackers::{Links, zone_interface};
use crate::config::{Config, Node};
use crate::netlink::{Addresses, neighbours};

/// Between two looks at the kernel's neighbours.
const LOOK: Duration = Duration::from_secs(10);

/// The same while none is known in a zone: after a start there are soon some.
const FIRST_LOOK: Duration = Duration::from_secs(1);

/// A round of questions.
pub struct Request {
    /// The zone.
    pub zone: u8,
    /// Whom peers propose.
    pub ask: Vec<Ipv4Addr>,
    /// Who is no neighbour: addresses of the cluster.
    pub own: Vec<Ipv4Addr>,
    /// The nodes that may be heard, and their MACs.
    pub peers: Vec<(NodeId, [u8; 6])>,
}

/// Who asks.
pub struct Surveyor {
    zones: BTreeMap<u8, String>,
    links: watch::Receiver<Links>,
    election: Mailbox<Command>,
    /// By zone: those that were there at the last look at which any was, the likeliest to answer first.
    known: BTreeMap<u8, Vec<Ipv4Addr>>,
}

impl Surveyor {
    /// For the first interface of each zone.
    pub fn new(
        config: &Config,
        node: &Node,
        links: watch::Receiver<Links>,
        election: Mailbox<Command>,
    ) -> Self {
        let zones = config.zones.iter();
        let zones = zones.filter_map(|z| Some((z.id, zone_interface(z, node, &links.borrow())?)));
        let zones = zones.collect();
        Self { zones, links, election, known: BTreeMap::new() }
    }

    /// Takes requests, all zones at once and of each zone the latest, until nobody can send any.
    pub async fn run(mut self, mut requests: mpsc::UnboundedReceiver<Request>) {
        let mut next_look = Instant::now();
        loop {
            tokio::select! {
                request = requests.recv() => match request {
                    Some(request) => {
                        let mut latest = BTreeMap::from([(request.zone, request)]);
                        while let Ok(request) = requests.try_recv() {
                            latest.insert(request.zone, request);
                        }
                        let mut rounds = Vec::new();
                        for request in latest.into_values() {
                            let neighbours = self.neighbours(&request).await;
                            rounds.push((request, neighbours));
                        }
                        let rounds = rounds.into_iter();
                        join_all(rounds.map(|(request, neighbours)| self.survey(request, neighbours))).await;
                    }
                    None => return,
                },
                () = tokio::time::sleep_until(next_look) => {
                    self.look().await;
                    let is_known = |zone| self.known.get(zone).is_some_and(|known| !known.is_empty());
                    let all_known = self.zones.keys().all(is_known);
                    next_look = Instant::now() + if all_known { LOOK } else { FIRST_LOOK };
                }
            }
        }
    }

    fn ifindex(&self, zone: u8) -> Option<u32> {
        let name = self.zones.get(&zone)?;
        self.links.borrow().values().find(|link| link.name == *name).map(|link| link.index)
    }

    async fn look(&mut self) {
        for zone in self.zones.keys().copied().collect::<Vec<_>>() {
            let found = self.found(zone).await;
            if !found.is_empty() {
                self.known.insert(zone, found);
            }
        }
    }

    /// The neighbours in a zone that the kernel knows.
    async fn found(&self, zone: u8) -> Vec<Ipv4Addr> {
        let Some(ifindex) = self.ifindex(zone) else { return Vec::new() };
        match neighbours(ifindex).await {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!(zone, "{error}");
                Vec::new()
            }
        }
    }

    /// Whom to ask, the likeliest to answer first.
    async fn neighbours(&mut self, request: &Request) -> Vec<Ipv4Addr> {
        let &Request { zone, ref own, .. } = request;
        // The last look may have been before there were any, and the kernel does not forget one that does not answer before
        // some seconds have passed.
        let mut found = self.found(zone).await;
        let known = self.known.entry(zone).or_default();
        known.retain(|address| !found.contains(address));
        found.append(known);
        *known = found;
        known.iter().copied().filter(|a| !own.contains(a)).take(MAX_NEIGHBOURS).collect()
    }

    async fn survey(&self, request: Request, neighbours: Vec<Ipv4Addr>) {
        let Request { zone, ask, peers, .. } = request;
        let asked: BTreeSet<Ipv4Addr> = neighbours.iter().chain(&ask).copied().collect();
        let asked: Vec<Ipv4Addr> = asked.into_iter().collect();
        let macs: Vec<[u8; 6]> = peers.iter().map(|(_, mac)| *mac).collect();
        let (answered, heard) = match self.ask(zone, &asked, &macs).await {
            Ok(found) => found,
            // It reaches nobody by an interface that does not work.
            Err(error) => {
                tracing::debug!(zone, "cannot ask neighbours: {error:#}");
                Default::default()
            }
        };
        let heard = peers.iter().filter(|(_, mac)| heard.contains(mac)).map(|(node, _)| *node).collect();
        let survey = Survey { neighbours, asked: asked.len(), answered: answered.len(), heard };
        self.election.send(Command::Surveyed { zone, survey });
    }

    async fn ask(
        &self,
        zone: u8,
        targets: &[Ipv4Addr],
        macs: &[[u8; 6]],
    ) -> anyhow::Result<(BTreeSet<Ipv4Addr>, BTreeSet<[u8; 6]>)> {
        let ifindex = self.ifindex(zone).ok_or_else(|| anyhow::anyhow!("the interface is gone"))?;
        let mac = self.links.borrow().get(&ifindex).and_then(|link| link.mac);
        let mac = mac.ok_or_else(|| anyhow::anyhow!("the interface has no MAC"))?;
        let own = Addresses::new()?.own(ifindex).await?;
        let asker = Asker { ifindex, mac, address: own.primary, link_local: own.link_local };
        Ok(reach::survey(asker, targets, macs, LISTEN).await?)
    }
}
