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
//! | [`table`] | flows of peers on their way into the kernel |
//! | [`vips`] | addresses and gratuitous ARP |
//! | [`troubles`] | what it cannot do |
//! | [`readdress`] | addresses on their way from one group to another |
//! | [`announcements`] | gratuitous ARP in its turn |
//! | `claims` | virtual addresses that somebody else says he has |
//! | [`hooks`] | programs that are run when a role changes |
//! | [`resources`] | services that run where a group is Active |
//! | [`trackers`], [`reach`] | what `[[tracker]]` watches; asking others whether they are there |
//! | [`surveyor`] | neighbours in a zone, asked for the election |
//! | [`program`] | runs of programs, for hooks, resources and trackers |
//! | [`sweeper`] | expired flows, lost events |
//! | [`neighbours`] | whom the programs send to, for the kernel |
//! | [`config_file`] | whether the config file is what is in force |
//! | [`network`] | routes, carriers, addresses, interfaces as they change |
//! | `plain` | plain routes, for the programs |
//! | [`ports`] | this node's interfaces and the sockets on them |
//! | [`state`] | what survives a reboot |
//! | [`server`], `flows`, `moves`, `explain`, `transfer`, `warnings` | control API |
//! | [`rises`] | what should not happen and lately did |
//! | [`reload`] | another config file under way |
//! | `metrics` | the same for Prometheus |
//! | [`events`] | event log |
//! | `capture` | captures of dropped packets |
//! | [`lock`] | run directory: one daemon for one node |
//! | [`log`] | log that nobody waits for |
//! | [`mailbox`], [`names`], [`limit`] | small things that the others share |

pub mod announcements;
mod capture;
mod claims;
pub mod config_file;
pub mod election;
pub mod events;
mod explain;
mod flows;
pub mod hooks;
mod kernel_diff;
pub mod limit;
pub mod lock;
pub mod log;
pub mod mailbox;
mod metrics;
mod moves;
pub mod names;
pub mod neighbours;
pub mod network;
mod plain;
pub mod ports;
pub mod program;
pub mod reach;
pub mod readdress;
pub mod reload;
pub mod replication;
pub mod resources;
pub mod rises;
pub mod server;
pub mod state;
pub mod surveyor;
pub mod sweeper;
pub mod table;
pub mod trackers;
mod transfer;
pub mod troubles;
pub mod vips;
mod warnings;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, mpsc as std_mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use arc_swap::{ArcSwap, ArcSwapOption};
use fwha_common::BUCKETS;
use fwha_common::group::Group;
use fwha_common::rule::name_hash;
use fwha_proto::election::{self as proto_election, Election};
use fwha_proto::heartbeat::{Role, Via};
use fwha_proto::replication::{self as proto_replication, Replication};
use fwha_proto::seal::{Identity, KeyRing};
use fwha_proto::time::Time;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use self::announcements::Announcements;
use self::config_file::ConfigFile;
use self::events::EventLog;
use self::hooks::Hooks;
use self::lock::RunDir;
use self::log::Log;
use self::mailbox::Mailbox;
use self::names::Names;
use self::network::{Attached, Network};
use self::ports::Port;
use self::reload::Reading;
use self::replication::OwnedGroups;
use self::resources::Resources;
use self::rises::Rises;
use self::state::State;
use self::trackers::Trackers;
use self::troubles::Troubles;
use crate::config::{self, Config, GroupId, Node};
use crate::dataplane::maps::route_generation_after;
use crate::dataplane::{self, Dataplane, Maps, ZoneInterface};
use crate::netlink::{Link, Monitor, NetworkEvent};
use crate::policy::Policy;
use crate::socket::{Refused, SyncSocket};
use crate::sys::clock::KernelClock;
use crate::sys::{random, sched};

/// How long an offered group may wait for its taker.
const HANDOVER_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a preferred node may wait for its replica before it preempts without.
const PREEMPT_WAIT: Duration = Duration::from_secs(10);
/// How long a clean end may take before the node goes all the same.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(3);
/// How long hooks may take at a clean end for what they were told last.
const HOOKS_WAIT: Duration = Duration::from_secs(5);
/// How long resources may take to stop at a clean end, after the groups have moved.
const RESOURCES_WAIT: Duration = Duration::from_secs(1);
/// What the names of worker threads begin with.
const WORKER: &str = "fwha-";

/// What the command line of `fwha run` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunOptions {
    /// The config file.
    pub config: PathBuf,
    /// The node to be; the host's name decides if there is none.
    pub node: Option<String>,
    /// Where the control socket is made.
    pub run_dir: PathBuf,
    /// Where the node keeps what must survive a reboot, see [`state`].
    pub state_dir: PathBuf,
}

/// Runs the node that `options` name until it is told to stop (SIGTERM or SIGINT), and then leaves
/// nothing behind: groups are handed over, addresses, programs and pins removed.
///
/// # Errors
/// Whatever keeps it from starting, or from leaving cleanly.
pub fn run(options: RunOptions) -> Result<()> {
    let log = init_log()?;
    let ended = run_as(options);
    log.flush();
    ended
}

fn run_as(options: RunOptions) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("fwha run needs root: it loads BPF programs and moves addresses");
    }
    let config = Arc::new(Config::load(&options.config)?);
    let hostname = nix::unistd::gethostname().context("cannot read the host's name")?;
    let node = config.node_for(options.node.as_deref(), &hostname.to_string_lossy())?.clone();
    let run_dir = RunDir::take(&options.run_dir)?;
    let state = State::of(&options.state_dir, &config.cluster.name, &node.name);
    abort_with_workers();
    for denied in sched::raise_limits() {
        // Kernels since 5.11 do not hold maps against these limits.
        tracing::debug!("{denied}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(run_node(&config, &node, &run_dir, state));
    run_dir.clean();
    // What waits for a file system that hangs ends with the process.
    runtime.shutdown_background();
    ended
}

fn init_log() -> Result<Log> {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("FWHA_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_target(false).with_ansi(colours);
    let out = Log::start(std::io::stderr())?;
    let writer = out.clone();
    // Only the first daemon of a process can set it, and there is but one.
    let _ = log.with_writer(move || writer.clone()).try_init();
    Ok(out)
}

/// A worker thread that panics takes the process with it. Without any one of them the node would
/// look alive and do half of its work; without the process, the lease ends, or a service manager
/// starts it anew within the lease. A panic in the control API ends that request only.
fn abort_with_workers() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        if std::thread::current().name().is_some_and(|name| name.starts_with(WORKER)) {
            std::process::abort();
        }
    }));
}

async fn run_node(config: &Arc<Config>, node: &Node, run_dir: &RunDir, state: State) -> Result<()> {
    // From here on a signal is an orderly end.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // By default this would end the process as a crash does.
    let mut hangup = signal(SignalKind::hangup())?;
    let listener = run_dir.bind_socket()?;
    let standby = state.standby()?;
    if standby {
        tracing::warn!("{} is on standby: {}", node.name, moves::STANDBY_REMEDY);
    }
    let (mut monitor, links) = Monitor::start().await?;
    config.check_interfaces(node.id, |name| links.iter().any(|l| l.name == name))?;
    resources::check(config, node.id)?;

    // What is likely to be wrong in a system is found before anything in it is changed.
    let mut ports = ports::look(config, node, &links).await?;
    let sync = ports::sync_sockets(config, node, &mut ports)?;
    let (heartbeats, replication) = sync.into_iter().map(|s| (s.heartbeats, s.replication)).unzip();
    let found = Found { ports, heartbeats, replication, links };
    let (mut dataplane, flow_events) = Dataplane::open(dataplane_options(config, node, &found.links))?;
    let kept = Kept { state, standby };
    let mut running = match Running::start(config, node, found, kept, &dataplane, flow_events, listener) {
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

    let mut plain = plain::PlainRoutes::new();
    // Whoever wants the file read, while it is read. The next one waits.
    let mut reading: Option<Reading> = None;
    loop {
        tokio::select! {
            events = Network::next(&mut monitor) => {
                events.iter().for_each(|event| running.trackers.follow(event));
                if events.contains(&NetworkEvent::NeighbourMoved) {
                    plain.neighbour_moved(&dataplane.maps());
                }
                if events.iter().any(|event| *event != NetworkEvent::NeighbourMoved) {
                    running.network.handle(&mut dataplane, events).await;
                    plain.changed();
                }
            }
            () = running.network.due() => running.network.reconcile(&mut dataplane),
            () = plain.due() => plain.tell(&dataplane.maps()).await,
            _ = hangup.recv(), if reading.is_none() => {
                reading = Some(Reading::begin(&running.config.load(), None));
            }
            Some(request) = running.requests.recv(), if reading.is_none() => {
                reading = Some(Reading::begin(&running.config.load(), Some(request)));
            }
            read = Reading::end(&mut reading) => {
                let request = reading.take().and_then(|reading| reading.request);
                let dry_run = request.as_ref().is_some_and(|request| request.dry_run);
                let outcome = running.reload(&mut dataplane, read, dry_run).await;
                match (request, outcome) {
                    // A client that hung up needs no answer.
                    (Some(request), outcome) => drop(request.reply.send(outcome)),
                    (None, Ok(outcome)) if outcome.changes.is_empty() => {
                        tracing::info!("reload: nothing changed");
                    }
                    // An event tells.
                    (None, Ok(_) | Err(_)) => {}
                }
                plain.changed();
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

/// The interfaces of zones on this node.
fn zone_interfaces(config: &Config, node: &Node, links: &[Link]) -> Vec<ZoneInterface> {
    let interfaces = config.zones.iter().flat_map(|zone| {
        let names = zone.interfaces.get(&node.id).into_iter().flatten();
        let places =
            names.filter_map(|name| config::vlan::place(name, |n| links.iter().any(|l| l.name == n)));
        places.map(|place| ZoneInterface {
            name: place.interface,
            tags: place.tags,
            zone: zone.id,
            attach: match zone.attach {
                config::Attach::Auto => dataplane::Attach::Auto,
                config::Attach::Xdp => dataplane::Attach::Xdp,
                config::Attach::Tc => dataplane::Attach::Tc,
            },
            anti_spoofing: zone.anti_spoofing,
            virtual_macs: config.has_virtual_macs(zone.id),
        })
    });
    interfaces.collect()
}

fn dataplane_options(config: &Config, node: &Node, links: &[Link]) -> dataplane::Options {
    dataplane::Options {
        pin_dir: dataplane::pin_dir(&config.cluster.name, &node.name),
        numbering: config.numbering(),
        max_flows: config.cluster.max_flows,
        max_embryonic: fwha_common::embryonic::CAPACITY.min(config.cluster.max_flows),
        interfaces: zone_interfaces(config, node, links),
        sync_interfaces: node.sync.iter().map(|s| s.interface.clone()).collect(),
    }
}

/// All threads and tasks of the daemon.
struct Running {
    /// The config in force.
    config: Arc<ArcSwap<Config>>,
    /// Who wants it read again.
    requests: mpsc::UnboundedReceiver<reload::Request>,
    maps: Arc<Maps>,
    clock: KernelClock,
    names: Arc<Names>,
    events: Arc<EventLog>,
    hooks: Hooks,
    resources: Resources,
    network: Network,
    election: Mailbox<election::Command>,
    election_done: oneshot::Receiver<()>,
    replication: Mailbox<replication::Command>,
    vips: mpsc::UnboundedSender<vips::Command>,
    sweeper_stop: std_mpsc::Sender<()>,
    servers: Vec<tokio::task::JoinHandle<()>>,
    hook_tasks: JoinSet<()>,
    resource_tasks: JoinSet<()>,
    trackers: Trackers,
    threads: Vec<JoinHandle<()>>,
}

/// What was found in the system and opened before anything in it was changed.
struct Found {
    links: Vec<Link>,
    ports: Vec<Port>,
    heartbeats: Vec<SyncSocket>,
    replication: Vec<SyncSocket>,
}

/// What an earlier run has left for this one.
struct Kept {
    state: State,
    standby: bool,
}

impl Running {
    fn start(
        config: &Arc<Config>,
        node: &Node,
        found: Found,
        kept: Kept,
        dataplane: &Dataplane,
        flow_events: dataplane::Events,
        listener: UnixListener,
    ) -> Result<Self> {
        let clock = KernelClock::new()?;
        let now = Time::from_nanos(clock.now_ns());
        let keys = config.keys.clone();
        let identity =
            Identity { cluster: config.cluster.id, node: node.id, epoch: random::random_u64()?.max(1) };
        let maps = dataplane.maps();
        let bucket_group = config.bucket_groups();
        let options = election_config(config, &found.ports, identity, &keys, &maps, now)?;
        let machine = Election::new(now, proto_election::Config { standby: kept.standby, ..options })?;
        let resumed = settle_ownership(config, &maps, &machine, now)?;
        set_up_dataplane(config, &maps, &keys, identity, &bucket_group)?;
        let virtual_macs = ports::virtual_macs(config, &found.ports);
        let macs = ports::take_macs(&virtual_macs)?;
        maps.set_virtual_macs(&virtual_macs)?;
        // Counted before the table is first read: what is lost later shows.
        let lost = maps.event_loss()?;
        let names = Arc::new(Names::new(config, node.id));
        let events = Arc::new(EventLog::default());
        let owned = Arc::new(OwnedGroups::default());
        resumed.keys().for_each(|&group| owned.set(group, true));
        let (election_mailbox, election_letters) = mailbox::mailbox()?;
        let (replication_mailbox, replication_letters) = mailbox::mailbox()?;
        let (vips_sender, vips_commands) = mpsc::unbounded_channel();
        let mut threads = Vec::new();

        let (hooks, hook_tasks) = Hooks::start(config, clock, &events, &names);
        let here = |group: GroupId| resumed.contains_key(&group);
        let (resources, resource_tasks) =
            Resources::start(config, node.id, here, clock, &events, &names, &election_mailbox);
        let election_status = Arc::new(ArcSwap::from_pointee(election::Snapshot::of(&machine, now)));
        let troubles = Arc::new(Troubles::default());
        let vips = vips::Thread {
            groups: ports::group_addresses(config, &found.ports),
            routes: ports::group_routes(config, &found.ports),
            announcements: Announcements::new(ports::garps(&found.ports)?, announcements::intervals(config)),
            keep: resumed.keys().copied().collect(),
            election: Arc::clone(&election_status),
            leaving: Vec::new(),
            arrived: readdress::Arrived::default(),
            lease: config.cluster.lease,
            commands: vips_commands,
            clock,
            events: Arc::clone(&events),
            names: Arc::clone(&names),
            hooks: hooks.clone(),
            resources: resources.clone(),
            maps: Arc::clone(&maps),
            defence: claims::Defence::default(),
            troubles: Arc::clone(&troubles),
        };

        let replication_options =
            replication_options(config, node, identity, &keys, ports::sync_mtu(&found.ports));
        let snapshot = replication::Snapshot { at: now, ..replication::Snapshot::default() };
        let replication_status = Arc::new(ArcSwap::from_pointee(snapshot));
        let replication = replication::Thread {
            replication: Replication::new(replication_options),
            sockets: found.replication,
            peers: ports::peer_addresses(config, node, config.sync.replication_port()),
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
            unsent: 0,
            refused: Refused::default(),
            adopted: dataplane.adopted(),
            resumed,
            finished: BTreeMap::new(),
            diffs: BTreeMap::new(),
        };

        let (done, election_done) = oneshot::channel();
        let (surveyor, surveys) = mpsc::unbounded_channel();
        let election = election::Thread {
            election: machine,
            sockets: election_sockets(config, node, found.heartbeats, &found.ports)?,
            letters: election_letters,
            maps: Arc::clone(&maps),
            clock,
            vips: vips_sender.clone(),
            surveyor,
            replication: replication_mailbox.clone(),
            owned: Arc::clone(&owned),
            events: Arc::clone(&events),
            names: Arc::clone(&names),
            snapshot: Arc::clone(&election_status),
            heartbeat_interval: config.cluster.heartbeat_interval,
            refused: Refused::default(),
            done,
        };

        let (sweeper_stop, stop) = std_mpsc::channel();
        let (neighbours, in_use) = neighbours::channel();
        let sweeper = sweeper::Thread {
            maps: Arc::clone(&maps),
            clock,
            bucket_group,
            owned,
            replication: replication_mailbox.clone(),
            neighbours,
            lost,
            stop,
        };

        let attached = Attached::of(dataplane, &found.ports, ports::sync_mtu(&found.ports));
        attached.problems.iter().for_each(|problem| tracing::error!("{problem}"));
        let attached = Arc::new(ArcSwap::from_pointee(attached));
        let current = Arc::new(ArcSwap::new(Arc::clone(config)));
        let (reload, requests) = mpsc::unbounded_channel();
        let server = server::Server {
            config: Arc::clone(&current),
            reload,
            file: ConfigFile::default(),
            me: node.id,
            state: kept.state,
            names: Arc::clone(&names),
            maps: Arc::clone(&maps),
            dry_run: dataplane.dry_run(),
            clock,
            started: now,
            bucket_group,
            events: Arc::clone(&events),
            election: election_mailbox.clone(),
            election_status,
            replication: replication_mailbox.clone(),
            replication_status,
            attached: Arc::clone(&attached),
            resources: resources.clone(),
            troubles,
            rises: Rises::default(),
            no_metrics: ArcSwapOption::empty(),
        };
        let server = Arc::new(server);
        let mut servers = vec![tokio::spawn(Arc::clone(&server).watch_losses())];
        if let Some(address) = config.metrics.listen {
            servers.push(tokio::spawn(metrics::listen(address, Arc::clone(&server))));
        }
        servers.push(tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, server::routes(server)).await {
                tracing::error!("the control API is gone: {error}");
            }
        }));
        // It ends with the sweeper.
        tokio::spawn(neighbours::run(in_use));
        // Nothing below can fail but for want of threads; nothing above has touched the network.
        threads.push(vips.spawn()?);
        threads.push(replication.spawn()?);
        threads.push(sweeper.spawn()?);
        threads.push(election.spawn()?);
        let (trackers, thread) =
            Trackers::start(config, node, &found.links, clock, &election_mailbox, surveys)?;
        threads.push(thread);
        let network = Network {
            config: Arc::clone(config),
            node: node.clone(),
            mtu: ports::sync_mtu(&found.ports),
            ports: found.ports,
            election: election_mailbox.clone(),
            replication: replication_mailbox.clone(),
            vips: vips_sender.clone(),
            macs,
            attached,
            retry: None,
        };
        network.tell_links();
        Ok(Self {
            config: current,
            requests,
            maps,
            clock,
            names,
            events,
            hooks,
            resources,
            network,
            election: election_mailbox,
            election_done,
            replication: replication_mailbox,
            vips: vips_sender,
            sweeper_stop,
            servers,
            hook_tasks,
            resource_tasks,
            trackers,
            threads,
        })
    }

    /// Hands over, then ends everything.
    async fn stop(self) {
        // What follows the groups goes first, as with every move that is planned.
        let groups = self.config.load().groups.iter().map(|g| g.id).collect::<Vec<_>>();
        self.resources.release(groups).await.moved();
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
        // That thread had the last of what there is to tell.
        drop(self.hooks);
        if tokio::time::timeout(HOOKS_WAIT, self.hook_tasks.join_all()).await.is_err() {
            tracing::error!("a hook did not end in time and was killed");
        }
        self.resources.end();
        if tokio::time::timeout(RESOURCES_WAIT, self.resource_tasks.join_all()).await.is_err() {
            tracing::error!("a resource did not stop in time and may run still");
        }
        self.replication.send(replication::Command::Stop);
        drop(self.sweeper_stop);
        drop(self.trackers);
        self.servers.iter().for_each(tokio::task::JoinHandle::abort);
        // One that hangs ends with the process.
        let deadline = tokio::time::Instant::now() + SHUTDOWN_WAIT;
        while self.threads.iter().any(|t| !t.is_finished()) && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        for thread in self.threads.iter().filter(|t| !t.is_finished()) {
            tracing::error!("thread {} does not end", thread.thread().name().unwrap_or("?"));
        }
    }
}

/// Decides about what an earlier run owns still. Of groups that the election resumes the lease is
/// renewed here and now: what is left of it may be less than the start takes. The others are given
/// up. Returns those resumed, with their terms.
fn settle_ownership(
    config: &Config,
    maps: &Maps,
    machine: &Election,
    now: Time,
) -> Result<BTreeMap<GroupId, u32>> {
    let mut resumed = BTreeMap::new();
    for group in machine.status(now).groups {
        let element = maps.group(u32::from(group.group))?;
        let element = if group.role == Role::Active {
            resumed.insert(group.group, element.term);
            Group { lease_until_ns: (now + config.cluster.lease).as_nanos(), ..element }
        } else {
            Group { term: element.term, ..Group::default() }
        };
        maps.write_group(u32::from(group.group), &element)?;
    }
    Ok(resumed)
}

/// Tells the data plane its settings, rules and timeouts.
fn set_up_dataplane(
    config: &Config,
    maps: &Maps,
    keys: &KeyRing,
    identity: Identity,
    bucket_group: &[GroupId; BUCKETS],
) -> Result<()> {
    maps.set_zone_buckets(&config.zone_buckets())?;
    maps.set_vips(&config.vips(identity.node))?;
    maps.set_timeouts(&config.timeouts)?;
    maps.set_limits(&config.limits)?;
    maps.update_settings(|s| {
        s.bucket_group = *bucket_group;
        s.bucket_key = keys.siphash_key("bucket");
        s.probe_key = keys.siphash_key("probe");
        s.cluster = identity.cluster;
        s.epoch = identity.epoch as u32;
        s.node = identity.node;
        s.route_generation = route_generation_after(s.route_generation);
    })?;
    maps.load_rules(&config.dataplane_rules())?;
    Ok(())
}

fn election_config(
    config: &Config,
    ports: &[Port],
    identity: Identity,
    keys: &KeyRing,
    maps: &Maps,
    now: Time,
) -> Result<proto_election::Config> {
    let mut groups = Vec::new();
    for group in &config.groups {
        let element = maps.group(u32::from(group.id))?;
        let start = proto_election::Start {
            term: element.term,
            owned_since: element.owned(now.as_nanos()).then(|| Time::from_nanos(element.since_ns)),
        };
        groups.push(group.election(start));
    }
    Ok(proto_election::Config {
        identity,
        keys: keys.clone(),
        probe_key: keys.siphash_key("probe"),
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
        interfaces: ports.iter().map(|p| (p.via, p.interface())).collect(),
        groups,
        trackers: election_trackers(config, identity.node),
        witnesses: config.cluster.witness.clone(),
        standby: false,
    })
}

/// What the election makes of a resource's failure: it counts where another node could do better.
fn resource_tracker(resource: &config::Resource, config: &Config) -> Option<proto_election::TrackerConfig> {
    let (id, name) = resource.tracker()?;
    Some(proto_election::TrackerConfig {
        id,
        name,
        groups: vec![resource.group],
        effect: proto_election::Effect::Fault,
        shared: Some(config.cluster.heartbeat_interval * 3),
    })
}

fn election_trackers(config: &Config, node: config::NodeId) -> Vec<proto_election::TrackerConfig> {
    let one = |t: &config::Tracker| proto_election::TrackerConfig {
        id: t.id(),
        name: t.name.clone(),
        groups: t.groups.clone(),
        effect: t.effect(),
        shared: t.grace(config.cluster.heartbeat_interval),
    };
    let resources = config.resources_of(node).filter_map(|r| resource_tracker(r, config));
    config.trackers.iter().filter(|t| t.runs_on(node)).map(one).chain(resources).collect()
}

/// What of replication may change under way.
fn replication_settings(config: &Config) -> proto_replication::Settings {
    proto_replication::Settings {
        config_hash: config.hash,
        rules_hash: config.rules_hash,
        bulk_bytes_per_s: config.replication.bulk_bytes_per_second,
        filter: proto_replication::Filter {
            policy: Policy::of(config).map(|policy| Arc::new(policy) as _),
            min_age: config.replication.min_age,
            peer_flows_max: config.replication.peer_flows.map_or(usize::MAX, |n| n as usize),
            peer_bytes_per_s: config.replication.peer_bytes_per_second,
        },
    }
}

fn replication_options(
    config: &Config,
    node: &Node,
    identity: Identity,
    keys: &KeyRing,
    mtu: u16,
) -> proto_replication::Options {
    let peers = config.nodes.iter().filter(|n| n.id != node.id);
    let owner = config.bucket_groups();
    let groups = config.groups.iter().map(|group| proto_replication::GroupOptions {
        buckets: (0..=u8::MAX).filter(|&b| owner[usize::from(b)] == group.id).collect(),
        members: group.nodes.iter().map(|&(node, _)| node).collect(),
    });
    let proto_replication::Settings { config_hash, rules_hash, bulk_bytes_per_s, filter } =
        replication_settings(config);
    proto_replication::Options {
        peers: peers.map(|n| proto_replication::PeerOptions { node: n.id, name: n.name.clone() }).collect(),
        groups: groups.collect(),
        config_hash,
        rules_hash,
        zones: config.zones.iter().map(|z| name_hash(&z.name)).collect(),
        max_flows: config.cluster.max_flows as usize,
        enabled: config.replication.enabled,
        links: node.sync.len() as u8,
        mtu,
        bulk_bytes_per_s,
        filter,
        // The thread gathers what happens itself.
        flush_after: Duration::ZERO,
        ..proto_replication::Options::new(identity, keys.clone(), &node.name)
    }
}

fn election_sockets(
    config: &Config,
    node: &Node,
    heartbeats: Vec<SyncSocket>,
    ports: &[Port],
) -> Result<election::Sockets> {
    let mut sockets = election::Sockets {
        heartbeats,
        peers: ports::peer_addresses(config, node, config.sync.heartbeat_port()),
        vrrp: BTreeMap::new(),
        probes: BTreeMap::new(),
        sources: BTreeMap::new(),
        echoes: Vec::new(),
    };
    sockets.open_echoes(&config.cluster.witness).context("cannot open a socket to ask witnesses")?;
    for port in ports {
        let Some(link) = &port.link else { continue };
        sockets.probes.extend(ports::probe_socket(link)?.map(|socket| (port.via, socket)));
        if let Via::Zone(zone) = port.via {
            sockets.vrrp.insert(zone, ports::vrrp_sockets(link, port.v6)?);
            sockets.sources.insert(zone, port.interface());
        }
    }
    Ok(sockets)
}
