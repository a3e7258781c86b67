//! This node's interfaces as the election knows them, and the sockets on them.
//!
//! A socket belongs to an interface's index, not to its name: when an interface is replaced by
//! another of its name (a VLAN or a bond set up anew, a card plugged in again) all its sockets are
//! dead for ever, without an error. Then they are opened anew, and handed to the threads. A sync link that has no
//! interface or no address at the start gets its sockets in the same way, when both are there.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};

use anyhow::{Context, Result, anyhow, bail};
use fwha_common::group::{VirtualMac, VirtualMacKey};
use fwha_proto::NodeId;
use fwha_proto::heartbeat::{Interface, Via};
use ipnet::IpNet;

use crate::config::{Config, GroupId, Node, SyncLink, vlan};
use crate::netlink::{Address, Addresses, Garp, Link, Macs, OwnAddresses, Route, Routing, Rule};
use crate::socket::{ProbeSocket, SyncSocket, VrrpSocket};

/// The longest IP packet that replication makes, whatever the sync links would carry: the peer's
/// end may carry less.
const MTU: u32 = 1500;
/// The least MTU that replication can do with (that of IPv6).
const MTU_MIN: u32 = 1280;

/// An interface of this node by which the election speaks: a sync link, or the first of a zone.
#[derive(Clone, Debug)]
pub struct Port {
    /// What the election calls it.
    pub via: Via,
    /// Its name.
    pub name: String,
    /// What it is now; `None` while there is no interface of this name.
    pub link: Option<Link>,
    /// Whether it has its programs. A zone without them counts as one without carrier.
    pub filtered: bool,
    /// The addresses by which this node speaks there.
    pub own: OwnAddresses,
    /// Whether a virtual router there is one for IPv6.
    pub v6: bool,
    /// Index and MAC that the sockets were opened with.
    pub opened: (u32, [u8; 6]),
    /// Whether it was gone since: sockets are dead also if it comes back as what it was (from another network namespace).
    /// Those of a sync link may not have been there yet.
    pub gone: bool,
    /// Why its sockets could not be opened, for `status`.
    pub problem: Option<String>,
}

impl Port {
    /// What the election is told.
    pub fn interface(&self) -> Interface {
        let mac = self.link.as_ref().and_then(|l| l.mac).unwrap_or_default();
        Interface {
            mac,
            address: self.own.primary,
            link_local: if self.v6 { self.own.link_local } else { Ipv6Addr::UNSPECIFIED },
            carrier: self.filtered && self.link.as_ref().is_some_and(Link::running),
        }
    }

    /// Whether datagrams of replication can leave by it.
    pub fn carries(&self) -> bool {
        self.interface().carrier && !self.gone
    }

    /// Index and MAC now.
    pub fn identity(&self) -> Option<(u32, [u8; 6])> {
        self.link.as_ref().map(|l| (l.index, l.mac.unwrap_or_default()))
    }
}

/// Finds the node's ports in the system.
///
/// # Errors
/// An interface of a zone is missing; the kernel refuses to list addresses.
pub async fn look(config: &Config, node: &Node, links: &[Link]) -> Result<Vec<Port>> {
    let addresses = Addresses::new()?;
    let sync = node.sync.iter().enumerate().map(|(n, s)| (Via::Sync(n as u8), s.interface.as_str()));
    let places: Vec<(Via, vlan::Place)> = config
        .zones
        .iter()
        .filter_map(|zone| {
            let name = zone.interfaces.get(&node.id)?.first()?;
            Some((Via::Zone(zone.id), vlan::place(name, |n| links.iter().any(|l| l.name == n))?))
        })
        .collect();
    let zones = places.iter().map(|(via, place)| (*via, place.interface.as_str()));
    let mut ports = Vec::new();
    for (via, name) in sync.chain(zones) {
        let link = links.iter().find(|l| l.name == name);
        if link.is_none() && matches!(via, Via::Sync(_)) {
            ports.push(Port {
                via,
                name: name.to_owned(),
                link: None,
                filtered: true,
                own: OwnAddresses { primary: Ipv4Addr::UNSPECIFIED, link_local: Ipv6Addr::UNSPECIFIED },
                v6: false,
                opened: (0, [0; 6]),
                gone: true,
                problem: None,
            });
            continue;
        }
        let link = link.with_context(|| format!("there is no interface {name}"))?.clone();
        if matches!(via, Via::Sync(_))
            && let Some(problem) = small_mtu(name, link.mtu)
        {
            bail!(problem);
        }
        let own = addresses.own(link.index).await?;
        let [v4, v6] = [false, true].map(|v6| speaks_vrrp(config, via, v6));
        if v4 && own.primary.is_unspecified() {
            tracing::warn!("interface {name} has no address of its own: VRRP needs one to speak from");
        }
        if v6 && own.link_local.is_unspecified() {
            tracing::warn!(
                "interface {name} has no link-local address of its own yet: VRRP needs one to speak from"
            );
        }
        if v6 {
            for net in unreached(config, via, &addresses.others(link.index).await?) {
                tracing::warn!(
                    "interface {name} has no address of its own in the network of {net}: an IPv6 VIP brings no \
                     route, so without one that you add, its hosts are not reached"
                );
            }
        }
        ports.push(Port {
            via,
            name: name.to_owned(),
            opened: (link.index, link.mac.unwrap_or_default()),
            gone: false,
            problem: None,
            link: Some(link),
            filtered: true,
            own,
            v6,
        });
    }
    Ok(ports)
}

/// Whether a virtual router of this family is on an interface.
pub fn speaks_vrrp(config: &Config, via: Via, v6: bool) -> bool {
    let mut vips = config.groups.iter().flat_map(|group| &group.vips);
    vips.any(|vip| via == Via::Zone(vip.zone) && vip.is_v6() == v6)
}

/// The IPv6 VIPs on an interface in whose network the node has no address of its own.
fn unreached(config: &Config, via: Via, others: &[Address]) -> Vec<IpNet> {
    let vips = config.groups.iter().flat_map(|group| &group.vips);
    let here = vips.filter(|vip| via == Via::Zone(vip.zone) && vip.is_v6());
    let reached = |vip: &IpNet| {
        let mut nets = others.iter().filter_map(|a| IpNet::new(a.address, a.prefix_len).ok());
        nets.any(|net| net.contains(&vip.addr()))
    };
    here.flat_map(|vip| &vip.addresses).filter(|vip| !reached(vip)).copied().collect()
}

/// What is wrong with the MTU of a sync interface, if it is too small.
pub fn small_mtu(name: &str, mtu: u32) -> Option<String> {
    (mtu < MTU_MIN).then(|| {
        format!(
            "sync interface {name} has an MTU of {mtu}, and replication needs {MTU_MIN}: `ip link set {name} mtu {MTU}`"
        )
    })
}

/// The MTU that datagrams of replication must fit into.
pub fn sync_mtu(ports: &[Port]) -> u16 {
    let links = ports.iter().filter(|p| matches!(p.via, Via::Sync(_))).filter_map(|p| p.link.as_ref());
    links.map(|l| l.mtu).fold(MTU, u32::min) as u16
}

/// The sockets of one sync link.
#[derive(Debug)]
pub struct SyncSockets {
    /// For heartbeats.
    pub heartbeats: SyncSocket,
    /// For replication.
    pub replication: SyncSocket,
}

impl SyncSockets {
    /// Opens both.
    ///
    /// # Errors
    /// Those of [`SyncSocket::open`], with what to do about them.
    pub fn open(config: &Config, link: &SyncLink) -> Result<Self> {
        let open = |port| sync_socket(link, port);
        Ok(Self {
            heartbeats: open(config.sync.heartbeat_port())?,
            replication: open(config.sync.replication_port())?,
        })
    }
}

/// The interface of a sync link or its address is not there.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Absent(String);

/// What is said of a sync link whose interface lacks its address.
pub fn no_address(link: &SyncLink) -> String {
    let SyncLink { interface, address } = link;
    format!(
        "interface {interface} does not have this node's sync address {address}: add it \
         (`ip address add {address}/24 dev {interface}`), or correct `sync` in the config file"
    )
}

fn sync_socket(link: &SyncLink, port: u16) -> Result<SyncSocket> {
    let SyncLink { interface, address } = link;
    let local = SocketAddrV4::new(*address, port);
    SyncSocket::open(interface, local).map_err(|error| match error.raw_os_error() {
        Some(libc::EADDRNOTAVAIL) => Absent(no_address(link)).into(),
        Some(libc::ENODEV) => Absent(format!("there is no interface {interface}")).into(),
        Some(libc::EADDRINUSE) => anyhow!(
            "another program, perhaps another fwha daemon for this node, uses UDP port {port} of {address}: end \
             it, or choose another `port` in [sync] on all nodes"
        ),
        _ => anyhow::Error::new(error)
            .context(format!("cannot use UDP {local} on sync interface {interface}")),
    })
}

/// Opens the sockets of all sync links. A link that has no interface or no address yet does not keep the node from its
/// work: its port notes that it waits for them.
///
/// # Errors
/// See [`SyncSockets::open`].
pub fn sync_sockets(config: &Config, node: &Node, ports: &mut [Port]) -> Result<Vec<SyncSockets>> {
    let mut opened = Vec::new();
    for (n, link) in node.sync.iter().enumerate() {
        let sockets = match SyncSockets::open(config, link) {
            Err(error) if error.is::<Absent>() => {
                if let Some(port) = ports.iter_mut().find(|p| p.via == Via::Sync(n as u8)) {
                    port.gone = true;
                    port.problem = Some(error.to_string());
                }
                SyncSockets { heartbeats: SyncSocket::absent()?, replication: SyncSocket::absent()? }
            }
            sockets => sockets?,
        };
        opened.push(sockets);
    }
    Ok(opened)
}

/// Where the peers listen, by sync link and node. Link n of one node is wired to link n of another.
pub fn peer_addresses(config: &Config, node: &Node, port: u16) -> BTreeMap<(u8, NodeId), SocketAddrV4> {
    let peers = config.nodes.iter().filter(|n| n.id != node.id);
    peers
        .flat_map(|peer| {
            let links = peer.sync.iter().enumerate();
            links.map(move |(n, link)| ((n as u8, peer.id), SocketAddrV4::new(link.address, port)))
        })
        .collect()
}

/// Opens the socket for probes; `None` on an interface without a MAC.
///
/// # Errors
/// Those of [`ProbeSocket::open`].
pub fn probe_socket(link: &Link) -> Result<Option<ProbeSocket>> {
    let socket = link.mac.map(|mac| ProbeSocket::open(link.index, mac)).transpose();
    socket.with_context(|| format!("cannot probe on {}", link.name))
}

/// Opens the sockets for VRRP: one for IPv4, and one for IPv6 where a virtual router is one for that.
///
/// # Errors
/// Those of [`VrrpSocket::open`].
pub fn vrrp_sockets(link: &Link, v6: bool) -> Result<Vec<VrrpSocket>> {
    let families = [false, true].into_iter().filter(|&family| v6 || !family);
    let opened = families.map(|family| VrrpSocket::open(&link.name, link.index, family));
    opened.collect::<Result<_, _>>().with_context(|| format!("cannot speak VRRP on {}", link.name))
}

/// Opens the socket for announcements.
///
/// # Errors
/// Those of [`Garp::open`].
pub fn garp(link: &Link) -> Result<Garp> {
    Garp::open(link.index, link.mac.unwrap_or_default())
        .with_context(|| format!("cannot announce on {}", link.name))
}

/// The sockets for announcements, by interface.
///
/// # Errors
/// See [`garp`].
pub fn garps(ports: &[Port]) -> Result<BTreeMap<u32, Garp>> {
    let zones = ports.iter().filter(|p| matches!(p.via, Via::Zone(_)));
    zones.filter_map(|p| p.link.as_ref()).map(|link| Ok((link.index, garp(link)?))).collect()
}

/// The virtual routers that have a MAC of their own, on the interfaces where they belong.
pub fn virtual_macs(config: &Config, ports: &[Port]) -> Vec<(VirtualMacKey, VirtualMac)> {
    let link = |zone| ports.iter().find(|p| p.via == Via::Zone(zone))?.link.as_ref();
    let groups = config.groups.iter().filter(|group| group.virtual_mac);
    let vips = groups.flat_map(|group| group.vips.iter().map(move |vip| (group.id, vip)));
    vips.filter_map(|(group, vip)| {
        let link = link(vip.zone)?;
        let own = link.mac?;
        let key = VirtualMacKey::new(link.index, vip.vrid, vip.is_v6());
        Some((key, VirtualMac { own, group, zone: vip.zone }))
    })
    .collect()
}

/// Has the interfaces take frames to these virtual MACs.
///
/// # Errors
/// Those of [`Macs::open`].
pub fn take_macs(virtual_macs: &[(VirtualMacKey, VirtualMac)]) -> Result<Vec<Macs>> {
    let mut by_interface: BTreeMap<u32, Vec<[u8; 6]>> = BTreeMap::new();
    for (key, _) in virtual_macs {
        by_interface.entry(key.device).or_default().push(key.mac());
    }
    let opened = by_interface.into_iter().map(|(ifindex, macs)| Macs::open(ifindex, macs));
    opened.collect::<Result<_, _>>().context("an interface does not take frames to a virtual MAC")
}

/// The virtual addresses of each group, on the interfaces where they belong.
pub fn group_addresses(config: &Config, ports: &[Port]) -> BTreeMap<GroupId, Vec<Address>> {
    // An interface that is gone for a while keeps its place.
    let ifindex = |zone| ports.iter().find(|p| p.via == Via::Zone(zone)).map(|p| p.opened.0);
    let of = |group: &crate::config::Group| {
        let vips = group.vips.iter().filter_map(|vip| Some((ifindex(vip.zone)?, vip)));
        vips.flat_map(|(ifindex, vip)| {
            let addresses = vip.addresses.iter();
            addresses.map(move |a| Address { ifindex, address: a.addr(), prefix_len: a.prefix_len() })
        })
        .collect()
    };
    config.groups.iter().map(|group| (group.id, of(group))).collect()
}

/// The rules of each group, and its routes through the interfaces of their zones.
pub fn group_routes(config: &Config, ports: &[Port]) -> BTreeMap<GroupId, Vec<Routing>> {
    let ifindex = |zone| ports.iter().find(|p| p.via == Via::Zone(zone)).map(|p| p.opened.0);
    let net = |net: &IpNet| (net.addr(), net.prefix_len());
    let of = |group: &crate::config::Group| {
        let routes = group.routes.iter();
        let routes = routes.filter_map(|r| {
            Some(Routing::Route(Route::new(ifindex(r.zone)?, net(&r.to), r.via, r.table, r.metric)))
        });
        let rules = group.routing_rules.iter().map(|r| {
            let (from, to) = (r.from.as_ref().map(net), r.to.as_ref().map(net));
            Routing::Rule(Rule { from, to, table: r.table, priority: r.priority })
        });
        routes.chain(rules).collect()
    };
    config.groups.iter().map(|group| (group.id, of(group))).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use fwha_proto::seal::ClusterKey;

    use super::*;
    use crate::config::Source;

    #[test]
    fn an_ipv6_vip_is_reached_by_way_of_an_own_address_in_its_network() {
        let text = r#"
            cluster = { name = "test", key-file = "key", max-flows = 1000 }
            node = [{ name = "fw1" }]
            zone = [{ name = "lan", interfaces = ["lan"] }]
            group = [{ name = "gateway", nodes = ["fw1"], vips = [
                { zone = "lan", vrid = 1, addresses = ["10.0.0.1/24", "fe80::c/64", "fd00::c/64", "fd01::c/128"] },
            ] }]
        "#;
        let key = |_: &Path| Ok(ClusterKey::new([7; 32]).into());
        let config = Config::parse(Source::new("fwha.toml", text), key).unwrap_or_else(|e| panic!("{e}"));
        let own =
            |address: &str, prefix_len| Address { ifindex: 1, address: address.parse().unwrap(), prefix_len };
        let unreached = |own: &[Address]| -> Vec<String> {
            super::unreached(&config, Via::Zone(1), own).iter().map(ToString::to_string).collect()
        };
        let link_local = own("fe80::1", 64);
        assert_eq!(unreached(&[link_local]), ["fd00::c/64", "fd01::c/128"]);
        assert_eq!(unreached(&[link_local, own("fd00::1", 64), own("10.0.0.2", 8)]), ["fd01::c/128"]);
        assert_eq!(unreached(&[link_local, own("fd00::1", 15)]), [""; 0]);
        assert_eq!(super::unreached(&config, Via::Zone(2), &[]), []);
    }
}
