//! `fwha run`: the daemon of one node.
//!
//! ```text
//!              heartbeats, VRRP, probes           flows          flow events
//!                        |                          |                 |
//!   +--------------------v-----+   in-sync   +------v-----------------v---+
//!   | election thread, FIFO    |<------------| replication thread         |
//!   | fwha_proto::election     |------------>| fwha_proto::replication    |
//!   +---+------------------+---+  ownership  +------^-----------------+---+
//!       | lease, ownership | VIPs, ARP              | expired         | flows
//!       v                  v                        |                 v
//!   data plane        vips thread                sweeper          data plane
//! ```
//! The main thread runs the control API, follows the network, and waits for signals.
//!
//! | module | holds |
//! |---|---|
//! | [`election`] | election thread |
//! | [`replication`] | replication thread |
//! | [`vips`] | addresses and gratuitous ARP |
//! | [`sweeper`] | expired flows, lost events |
//! | [`network`] | routes, carriers, addresses as they change |
//! | [`server`] | control API |
//! | [`events`] | event log |
//! | [`lock`] | run directory: one daemon for one node |
//! | [`mailbox`], [`names`] | small things that the others share |

pub mod election;
pub mod events;
pub mod lock;
pub mod mailbox;
pub mod names;
pub mod network;
pub mod replication;
pub mod server;
pub mod sweeper;
pub mod vips;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::{Arc, mpsc as std_mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use arc_swap::ArcSwap;
use fwha_common::BUCKETS;
use fwha_common::rule::name_hash;
use fwha_proto::election::{self as proto_election, Election};
use fwha_proto::heartbeat::{Interface, Via};
use fwha_proto::replication::{self as proto_replication, Replication};
use fwha_proto::seal::{ClusterKey, Identity};
use fwha_proto::time::Time;
use fwha_proto::vrrp::packet::Checksum;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use self::events::EventLog;
use self::lock::RunDir;
use self::mailbox::Mailbox;
use self::names::Names;
use self::network::{Interfaces, Network};
use self::replication::OwnedGroups;
use crate::config::{self, Config, GroupId, Node};
use crate::dataplane::{self, Dataplane, Maps, ZoneInterface};
use crate::netlink::{Address, Addresses, Garp, Link, Monitor};
use crate::socket::{ProbeSocket, SyncSocket, VrrpSocket};
use crate::sys::clock::KernelClock;
use crate::sys::{random, sched};

/// Embryonic flows at most: what a flood of SYNs can fill.
const MAX_EMBRYONIC: u32 = 65_536;
/// How long an offered group may wait for its taker.
const HANDOVER_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a preferred node may wait for its replica before it preempts without.
const PREEMPT_WAIT: Duration = Duration::from_secs(10);
/// How long a clean end may take before the node goes all the same.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(3);

/// What the command line of `fwha run` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunOptions {
    /// The config file.
    pub config: PathBuf,
    /// The node to be; the host's name decides if there is none.
    pub node: Option<String>,
    /// Where the control socket is made.
    pub run_dir: PathBuf,
}

/// Runs the node that `options` name until it is told to stop (SIGTERM or SIGINT), and then leaves
/// nothing behind: groups are handed over, addresses, programs and pins removed.
///
/// # Errors
/// Whatever keeps it from starting, or from leaving cleanly.
pub fn run(options: RunOptions) -> Result<()> {
    init_log();
    end_on_panic();
    if !nix::unistd::geteuid().is_root() {
        bail!("fwha run needs root: it loads BPF programs and moves addresses");
    }
    let config = Arc::new(Config::load(&options.config)?);
    let hostname = nix::unistd::gethostname().context("cannot read the host's name")?;
    let node = config.node_for(options.node.as_deref(), &hostname.to_string_lossy())?.clone();
    let run_dir = RunDir::take(&options.run_dir)?;
    for denied in sched::raise_limits() {
        // Kernels since 5.11 do not hold maps against these limits.
        tracing::debug!("{denied}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(run_node(&config, &node, &run_dir));
    run_dir.clean();
    ended
}

/// A daemon that has lost a thread must not look alive: it ends, its data plane keeps the lease for a
/// moment, and the service manager starts it anew within it, or the peer takes over.
fn end_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}

fn init_log() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("FWHA_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_target(false).with_ansi(colours);
    // Only the first daemon of a process can set it, and there is but one.
    let _ = log.with_writer(std::io::stderr).try_init();
}

async fn run_node(config: &Arc<Config>, node: &Node, run_dir: &RunDir) -> Result<()> {
    // From here on a signal is an orderly end.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let listener = run_dir.bind_socket()?;
    let (mut monitor, links) = Monitor::start().await?;
    config.check_interfaces(node.id, |name| links.iter().any(|l| l.name == name))?;

    let (mut dataplane, flow_events) = Dataplane::open(dataplane_options(config, node))?;
    let running = match Running::start(config, node, &links, &dataplane, flow_events, listener).await {
        Ok(running) => running,
        Err(error) => {
            if !dataplane.adopted() {
                dataplane.close()?;
            }
            return Err(error);
        }
    };
    if let Err(error) = sched::lock_memory() {
        tracing::warn!("memory is not locked: {error}");
    }
    tracing::info!("{} of cluster {} runs", node.name, config.cluster.name);
    // Without a service manager there is nobody to tell.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);

    loop {
        tokio::select! {
            event = Network::next(&mut monitor) => {
                if let Some(event) = event {
                    running.network.handle(&mut dataplane, event);
                }
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    tracing::info!("{} leaves", node.name);
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    running.stop().await;
    dataplane.close().context("cannot remove the data plane")
}

fn dataplane_options(config: &Config, node: &Node) -> dataplane::Options {
    let interfaces = config.zones.iter().flat_map(|zone| {
        let names = zone.interfaces.get(&node.id).into_iter().flatten();
        names.map(|name| ZoneInterface {
            name: name.clone(),
            zone: zone.id,
            attach: match zone.attach {
                config::Attach::Auto => dataplane::Attach::Auto,
                config::Attach::Xdp => dataplane::Attach::Xdp,
                config::Attach::Tc => dataplane::Attach::Tc,
            },
        })
    });
    dataplane::Options {
        pin_dir: dataplane::pin_dir(&config.cluster.name, &node.name),
        max_flows: config.cluster.max_flows,
        max_embryonic: MAX_EMBRYONIC.min(config.cluster.max_flows),
        interfaces: interfaces.collect(),
        sync_interfaces: node.sync.iter().map(|s| s.interface.clone()).collect(),
    }
}

/// All threads and tasks of the daemon.
struct Running {
    network: Network,
    election: Mailbox<election::Command>,
    election_done: oneshot::Receiver<()>,
    replication: Mailbox<replication::Command>,
    vips: mpsc::UnboundedSender<vips::Command>,
    sweeper_stop: std_mpsc::Sender<()>,
    server: tokio::task::JoinHandle<()>,
    threads: Vec<JoinHandle<()>>,
}

/// A node's interfaces, found in the system.
struct Found {
    interfaces: Vec<(Via, Interface)>,
    names: Interfaces,
    links: BTreeMap<Via, Link>,
}

impl Found {
    /// Looks up the node's sync interfaces and the first interface of each zone.
    async fn look(config: &Config, node: &Node, links: &[Link]) -> Result<Self> {
        let addresses = Addresses::new()?;
        let sync = node.sync.iter().enumerate().map(|(n, s)| (Via::Sync(n as u8), s.interface.as_str()));
        let zones = config
            .zones
            .iter()
            .filter_map(|zone| Some((Via::Zone(zone.id), zone.interfaces.get(&node.id)?.first()?.as_str())));
        let mut found = Self { interfaces: Vec::new(), names: Interfaces::new(), links: BTreeMap::new() };
        for (via, name) in sync.chain(zones) {
            let link = links.iter().find(|l| l.name == name);
            let link = link.with_context(|| format!("there is no interface {name}"))?;
            let address = addresses.primary(link.index).await?.unwrap_or(Ipv4Addr::UNSPECIFIED);
            let mac = link.mac.unwrap_or_default();
            found.interfaces.push((via, Interface { mac, address, carrier: link.running() }));
            found.names.insert(name.to_owned(), (via, address));
            found.links.insert(via, link.clone());
        }
        Ok(found)
    }
}

impl Running {
    async fn start(
        config: &Arc<Config>,
        node: &Node,
        links: &[Link],
        dataplane: &Dataplane,
        flow_events: dataplane::Events,
        listener: UnixListener,
    ) -> Result<Self> {
        let clock = KernelClock::new()?;
        let now = Time::from_nanos(clock.now_ns());
        let key = config.key.clone();
        let identity =
            Identity { cluster: config.cluster.id, node: node.id, epoch: random::random_u64()?.max(1) };
        let maps = dataplane.maps();
        // One group has all buckets; several groups will share them.
        let bucket_group: [GroupId; BUCKETS] = [0; BUCKETS];
        let owned_since = set_up_dataplane(config, &maps, &key, identity, &bucket_group, now)?;
        let found = Found::look(config, node, links).await?;
        let names = Arc::new(Names::new(config, node.id));
        let events = Arc::new(EventLog::default());
        let owned = Arc::new(OwnedGroups::default());
        let (election_mailbox, election_letters) = mailbox::mailbox()?;
        let (replication_mailbox, replication_letters) = mailbox::mailbox()?;
        let (vips_sender, vips_commands) = mpsc::unbounded_channel();
        let mut threads = Vec::new();

        let vips = vips::Thread {
            groups: config.groups.iter().map(|g| (g.id, group_addresses(g, &found))).collect(),
            garps: garps(&found)?,
            keep: owned_since.keys().copied().collect::<BTreeSet<GroupId>>(),
            commands: vips_commands,
            clock,
            events: Arc::clone(&events),
            names: Arc::clone(&names),
        };

        let replication_sockets = sync_sockets(node, config.sync.replication_port())?;
        let replication_options = replication_options(config, node, identity, &key);
        let replication_status = Arc::default();
        let replication = replication::Thread {
            replication: Replication::new(replication_options),
            sockets: replication_sockets.clone(),
            peers: peer_addresses(config, node, config.sync.replication_port()),
            flow_events,
            letters: replication_letters,
            election: election_mailbox.clone(),
            maps: Arc::clone(&maps),
            bucket_group,
            owned: Arc::clone(&owned),
            clock,
            events: Arc::clone(&events),
            names: Arc::clone(&names),
            snapshot: Arc::clone(&replication_status),
            adopted: dataplane.adopted(),
        };

        let machine =
            Election::new(now, election_config(config, &found, identity, &key, &maps, &owned_since)?)?;
        let election_status = Arc::new(ArcSwap::from_pointee(machine.status(now)));
        let (done, election_done) = oneshot::channel();
        let sockets = election_sockets(config, node, &found)?;
        let heartbeat_sockets = sockets.heartbeats.clone();
        let election = election::Thread {
            election: machine,
            sockets,
            letters: election_letters,
            maps: Arc::clone(&maps),
            clock,
            vips: vips_sender.clone(),
            replication: replication_mailbox.clone(),
            owned: Arc::clone(&owned),
            events: Arc::clone(&events),
            names: Arc::clone(&names),
            snapshot: Arc::clone(&election_status),
            done,
        };

        let (sweeper_stop, stop) = std_mpsc::channel();
        let sweeper = sweeper::Thread {
            maps: Arc::clone(&maps),
            clock,
            bucket_group,
            owned,
            replication: replication_mailbox.clone(),
            stop,
        };

        let attached = Arc::new(ArcSwap::from_pointee(dataplane.attached().to_vec()));
        let server = server::Server {
            config: Arc::clone(config),
            me: node.id,
            names,
            rules: config.rules.iter().map(|r| (name_hash(&r.name), r.name.clone())).collect(),
            maps,
            clock,
            started: now,
            bucket_group,
            events,
            election: election_mailbox.clone(),
            election_status,
            replication_status,
            heartbeat_sockets,
            replication_sockets,
            attached: Arc::clone(&attached),
        };
        let server = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, server::routes(server)).await {
                tracing::error!("the control API is gone: {error}");
            }
        });
        // Nothing below can fail but for want of threads; nothing above has touched the network.
        threads.push(vips.spawn()?);
        threads.push(replication.spawn()?);
        threads.push(sweeper.spawn()?);
        threads.push(election.spawn()?);
        Ok(Self {
            network: Network {
                interfaces: found.names,
                election: election_mailbox.clone(),
                vips: vips_sender.clone(),
                attached,
            },
            election: election_mailbox,
            election_done,
            replication: replication_mailbox,
            vips: vips_sender,
            sweeper_stop,
            server,
            threads,
        })
    }

    /// Hands over, then ends everything.
    async fn stop(self) {
        self.election.send(election::Command::Shutdown);
        if tokio::time::timeout(SHUTDOWN_WAIT, self.election_done).await.is_err() {
            tracing::warn!("no peer took over in time");
        }
        let (done, vips_gone) = oneshot::channel();
        // If that thread is gone there is nobody to wait for.
        let _ = self.vips.send(vips::Command::Stop(done));
        if tokio::time::timeout(SHUTDOWN_WAIT, vips_gone).await.is_err() {
            tracing::error!("addresses may have been left on interfaces");
        }
        self.replication.send(replication::Command::Stop);
        drop(self.sweeper_stop);
        self.server.abort();
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a thread panicked");
            }
        }
    }
}

/// Tells the data plane its settings, rules and timeouts. Returns the groups that it owns still,
/// from a run that ended inside its lease, and since when.
fn set_up_dataplane(
    config: &Config,
    maps: &Maps,
    key: &ClusterKey,
    identity: Identity,
    bucket_group: &[GroupId; BUCKETS],
    now: Time,
) -> Result<BTreeMap<GroupId, Time>> {
    let mut owned = BTreeMap::new();
    for group in &config.groups {
        let element = maps.group(u32::from(group.id))?;
        if element.owned(now.as_nanos()) {
            owned.insert(group.id, Time::from_nanos(element.since_ns));
        }
    }
    maps.set_bucket_groups(&bucket_group.map(u32::from))?;
    maps.set_timeouts(&config.timeouts)?;
    maps.update_settings(|s| {
        s.bucket_key = key.siphash_key("bucket");
        s.probe_key = key.siphash_key("probe");
        s.cluster = identity.cluster;
        s.epoch = identity.epoch as u32;
        s.node = identity.node;
        s.route_generation = s.route_generation.wrapping_add(1).max(1);
    })?;
    maps.load_rules(&config.compiled_rules())?;
    Ok(owned)
}

fn election_config(
    config: &Config,
    found: &Found,
    identity: Identity,
    key: &ClusterKey,
    maps: &Maps,
    owned_since: &BTreeMap<GroupId, Time>,
) -> Result<proto_election::Config> {
    let mut groups = Vec::new();
    for group in &config.groups {
        let start = proto_election::Start {
            term: maps.group(u32::from(group.id))?.term,
            owned_since: owned_since.get(&group.id).copied(),
        };
        groups.push(proto_election::GroupConfig {
            group: group.id,
            name: group.name.clone(),
            members: group.nodes.clone(),
            preempt: group.preempt,
            advert_interval_cs: (group.advert_interval.as_millis() / 10) as u16,
            checksum: Checksum::default(),
            instances: group
                .vips
                .iter()
                .map(|v| proto_election::Instance {
                    zone: v.zone,
                    vrid: v.vrid,
                    addresses: v.addresses.iter().map(|a| IpAddr::V4(a.addr())).collect(),
                })
                .collect(),
            start,
        });
    }
    Ok(proto_election::Config {
        identity,
        key: key.clone(),
        probe_key: key.siphash_key("probe"),
        config_hash: config.hash,
        heartbeat_interval: config.cluster.heartbeat_interval,
        lease: config.cluster.lease,
        handover_timeout: HANDOVER_TIMEOUT,
        preempt_wait: PREEMPT_WAIT,
        nodes: config
            .nodes
            .iter()
            .map(|n| proto_election::NodeConfig { node: n.id, name: n.name.clone() })
            .collect(),
        zones: config.zones.iter().map(|z| (z.id, z.name.clone())).collect(),
        interfaces: found.interfaces.clone(),
        groups,
        standby: false,
    })
}

fn replication_options(
    config: &Config,
    node: &Node,
    identity: Identity,
    key: &ClusterKey,
) -> proto_replication::Options {
    let peers = config.nodes.iter().filter(|n| n.id != node.id);
    proto_replication::Options {
        peers: peers.map(|n| proto_replication::PeerOptions { node: n.id, name: n.name.clone() }).collect(),
        config_hash: config.hash,
        rules_hash: config.rules_hash,
        zones: config.zones.len() as u8,
        max_flows: config.cluster.max_flows as usize,
        enabled: config.replication.enabled,
        ..proto_replication::Options::new(identity, key.clone(), &node.name)
    }
}

fn sync_sockets(node: &Node, port: u16) -> Result<Vec<Arc<SyncSocket>>> {
    let open = |link: &config::SyncLink| {
        let local = SocketAddrV4::new(link.address, port);
        SyncSocket::open(&link.interface, local)
            .map(Arc::new)
            .with_context(|| format!("cannot use {local} on sync interface {}", link.interface))
    };
    node.sync.iter().map(open).collect()
}

/// Where the peers listen, by sync link and node. Link n of one node is wired to link n of another.
fn peer_addresses(config: &Config, node: &Node, port: u16) -> BTreeMap<(u8, u8), SocketAddrV4> {
    let peers = config.nodes.iter().filter(|n| n.id != node.id);
    peers
        .flat_map(|peer| {
            let links = peer.sync.iter().enumerate();
            links.map(move |(n, link)| ((n as u8, peer.id), SocketAddrV4::new(link.address, port)))
        })
        .collect()
}

fn election_sockets(config: &Config, node: &Node, found: &Found) -> Result<election::Sockets> {
    let port = config.sync.heartbeat_port();
    let mut sockets = election::Sockets {
        heartbeats: sync_sockets(node, port)?,
        peers: peer_addresses(config, node, port),
        vrrp: BTreeMap::new(),
        probes: BTreeMap::new(),
        sources: BTreeMap::new(),
    };
    for (&via, link) in &found.links {
        let name = &link.name;
        if let Some(mac) = link.mac {
            let probe = ProbeSocket::open(link.index, mac);
            sockets.probes.insert(via, probe.with_context(|| format!("cannot probe on {name}"))?);
        }
        if let Via::Zone(zone) = via {
            let vrrp = VrrpSocket::open(name, link.index);
            sockets.vrrp.insert(zone, vrrp.with_context(|| format!("cannot speak VRRP on {name}"))?);
        }
    }
    let addresses = found.interfaces.iter().filter_map(|(via, interface)| match via {
        Via::Zone(zone) => Some((*zone, interface.address)),
        Via::Sync(_) => None,
    });
    sockets.sources.extend(addresses);
    Ok(sockets)
}

fn group_addresses(group: &config::Group, found: &Found) -> Vec<Address> {
    let vips = group.vips.iter().filter_map(|vip| Some((found.links.get(&Via::Zone(vip.zone))?.index, vip)));
    vips.flat_map(|(ifindex, vip)| {
        let addresses = vip.addresses.iter();
        addresses.map(move |a| Address { ifindex, address: a.addr(), prefix_len: a.prefix_len() })
    })
    .collect()
}

fn garps(found: &Found) -> Result<BTreeMap<u32, Garp>> {
    let zones = found.links.iter().filter(|(via, _)| matches!(via, Via::Zone(_)));
    zones
        .map(|(_, link)| {
            let garp = Garp::open(link.index, link.mac.unwrap_or_default());
            Ok((link.index, garp.with_context(|| format!("cannot announce on {}", link.name))?))
        })
        .collect()
}
