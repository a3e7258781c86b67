//! Follows the network: routes and neighbours for the data plane, carriers for the election,
//! addresses for the [`super::vips`] thread.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use fwha_proto::heartbeat::{Interface, Via};
use tokio::sync::mpsc;

use super::election;
use super::mailbox::Mailbox;
use super::vips;
use crate::dataplane::{AttachedInterface, Dataplane};
use crate::netlink::{Link, Monitor, NetworkEvent};

/// This node's interfaces that the election knows, by name.
pub type Interfaces = BTreeMap<String, (Via, Ipv4Addr)>;

/// What following the network takes.
pub struct Network {
    /// The interfaces, with the address by which the node speaks there.
    pub interfaces: Interfaces,
    /// The election.
    pub election: Mailbox<election::Command>,
    /// Who moves addresses.
    pub vips: mpsc::UnboundedSender<vips::Command>,
    /// Where programs are attached, for `status`.
    pub attached: Arc<ArcSwap<Vec<AttachedInterface>>>,
}

impl Network {
    /// Handles one change.
    pub fn handle(&self, dataplane: &mut Dataplane, event: NetworkEvent) {
        match event {
            NetworkEvent::RouteChanged => {
                if let Err(error) = dataplane.maps().next_route_generation() {
                    tracing::error!("cached next hops may be out of date: {error}");
                }
            }
            NetworkEvent::LinkChanged(link) => self.link(dataplane, &link, link.running()),
            NetworkEvent::LinkRemoved(link) => self.link(dataplane, &link, false),
            NetworkEvent::AddressRemoved(_) => self.check_addresses(),
            NetworkEvent::EventsLost => self.check_addresses(),
        }
    }

    fn check_addresses(&self) {
        // The thread ends before this one does only when all is over.
        let _ = self.vips.send(vips::Command::Check);
    }

    fn link(&self, dataplane: &mut Dataplane, link: &Link, carrier: bool) {
        let Some(&(via, address)) = self.interfaces.get(&link.name) else { return };
        let mac = link.mac.unwrap_or_default();
        self.election.send(election::Command::Interface(via, Interface { mac, address, carrier }));
        match dataplane.reconcile() {
            Ok(_) => self.attached.store(Arc::new(dataplane.attached().to_vec())),
            Err(error) => tracing::error!("{error}"),
        }
    }

    /// Waits for the next change.
    pub async fn next(monitor: &mut Monitor) -> Option<NetworkEvent> {
        match monitor.next().await {
            Ok(event) => Some(event),
            Err(error) => {
                tracing::error!("cannot follow the network: {error}");
                // The next call opens a new connection; not in a tight loop.
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                None
            }
        }
    }
}
