//! Trackers: the checks of `[[tracker]]`, on a thread of their own.
//!
//! Each tracker is a task: it checks once an interval, one check at a time, and tells the election
//! what came of it ([`fwha_proto::tracker`] makes a verdict of the checks). The thread has a runtime of
//! its own, so no request to the control API makes a check late.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use fwha_proto::time::Time;
use fwha_proto::tracker::Tracker;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, MissedTickBehavior};

use super::election::Command;
use super::mailbox::Mailbox;
use super::program::{Run, Runner};
use super::reach::{self, Asker};
use super::surveyor::{self, Surveyor};
use crate::config::{self, Config, Node, Watch, Zone, vlan};
use crate::netlink::{Addresses, Link, NetworkEvent};
use crate::sys::clock::KernelClock;

/// Of a file's first line, what is shown.
const LINE_MAX: usize = 80;

/// This node's interfaces, by index.
pub(super) type Links = BTreeMap<u32, Link>;

/// The way to the trackers. They end when it is dropped.
pub struct Trackers {
    node: Node,
    links: watch::Sender<Links>,
    jobs: watch::Sender<Vec<Job>>,
}

/// The interface by which this node asks in a zone: the first one, or that on which the first has its VLAN.
pub(super) fn zone_interface(zone: &Zone, node: &Node, links: &Links) -> Option<String> {
    let name = zone.interfaces.get(&node.id)?.first()?;
    let place = vlan::place(name, |n| links.values().any(|link| link.name == n));
    Some(place.map_or_else(|| name.clone(), |place| place.interface))
}

/// What one tracker is to do.
#[derive(Clone, PartialEq, Eq)]
struct Job {
    tracker: config::Tracker,
    /// Where ARP is asked.
    zone_interface: String,
    cluster: String,
    node: String,
}

impl Job {
    /// Those of this node.
    fn all(config: &Config, node: &Node, links: &Links) -> Vec<Self> {
        let first =
            |zone| config.zone(zone).and_then(|zone| zone_interface(zone, node, links)).unwrap_or_default();
        let job = |tracker: &config::Tracker| Self {
            zone_interface: match tracker.watch {
                Watch::Arp(_, zone) => first(zone),
                _ => String::new(),
            },
            tracker: tracker.clone(),
            cluster: config.cluster.name.clone(),
            node: node.name.clone(),
        };
        config.trackers.iter().filter(|t| t.runs_on(node.id)).map(job).collect()
    }

    /// Whether the checks are the same. What a failure does is for the election to know.
    fn checks_as(&self, other: &Self) -> bool {
        let bare = |job: &Self| Self {
            tracker: config::Tracker {
                groups: Vec::new(),
                nodes: Vec::new(),
                lowers: None,
                shared: false,
                ..job.tracker.clone()
            },
            ..job.clone()
        };
        bare(self) == bare(other)
    }
}

impl Trackers {
    /// Starts those that run on `node`, and who asks neighbours for the election, on a thread of their own, which is
    /// returned.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn start(
        config: &Config,
        node: &Node,
        links: &[Link],
        clock: KernelClock,
        election: &Mailbox<Command>,
        surveys: mpsc::UnboundedReceiver<surveyor::Request>,
    ) -> Result<(Self, JoinHandle<()>)> {
        let by_index = links.iter().map(|link| (link.index, link.clone())).collect();
        let (links, watched) = watch::channel(by_index);
        let (jobs, mut wanted) = watch::channel(Job::all(config, node, &watched.borrow()));
        let election = election.clone();
        let surveyor = Surveyor::new(config, node, watched.clone(), election.clone());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("fwha-trackers".into()).spawn(move || {
            runtime.block_on(async {
                tokio::spawn(surveyor.run(surveys));
                let mut running: BTreeMap<u32, (Job, AbortHandle)> = BTreeMap::new();
                loop {
                    let jobs = wanted.borrow_and_update().clone();
                    running.retain(|_, (job, task)| {
                        let stays = jobs.iter().any(|wanted| wanted.checks_as(job));
                        if !stays {
                            task.abort();
                        }
                        stays
                    });
                    for job in jobs {
                        running.entry(job.tracker.id()).or_insert_with(|| {
                            let (links, election) = (watched.clone(), election.clone());
                            let runner = Runner::default();
                            let task = Task { job: job.clone(), links, clock, election, runner, look: None };
                            (job, tokio::spawn(task.run()).abort_handle())
                        });
                    }
                    // Until the sender is dropped.
                    if wanted.changed().await.is_err() {
                        break;
                    }
                }
            });
            // A look at a file that hangs is not waited for.
            runtime.shutdown_background();
        });
        let thread = thread.context("cannot start the trackers' thread")?;
        Ok((Self { node: node.clone(), links, jobs }, thread))
    }

    /// The config has changed. Trackers that check as before go on as if nothing had been.
    pub fn set(&self, config: &Config) {
        self.jobs.send_replace(Job::all(config, &self.node, &self.links.borrow()));
    }

    /// Tells those that watch interfaces.
    pub fn follow(&self, event: &NetworkEvent) {
        match event {
            NetworkEvent::LinkChanged(link) => {
                self.links.send_modify(|links| drop(links.insert(link.index, link.clone())));
            }
            NetworkEvent::LinkRemoved(link) => {
                self.links.send_modify(|links| drop(links.remove(&link.index)))
            }
            _ => {}
        }
    }
}

/// One tracker.
struct Task {
    job: Job,
    links: watch::Receiver<Links>,
    clock: KernelClock,
    election: Mailbox<Command>,
    runner: Runner,
    /// A look at a file that is under way.
    look: Option<tokio::task::JoinHandle<Option<String>>>,
}

/// What a check found: good or bad, and in words.
type Finding = std::result::Result<String, String>;

impl Task {
    async fn run(mut self) {
        let mut machine = Tracker::new(self.now(), self.job.tracker.settings());
        let mut ticks = tokio::time::interval(self.job.tracker.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let watches_link = matches!(self.job.tracker.watch, Watch::Interface(_));
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                // If the sender is gone this task ends in a moment.
                _ = self.links.changed(), if watches_link => {}
            }
            let (good, text) = match self.check().await {
                Ok(text) => (true, text),
                Err(text) => (false, text),
            };
            machine.check(self.now(), good, text);
            self.election
                .send(Command::Tracker { id: self.job.tracker.id(), report: machine.report().clone() });
        }
    }

    fn now(&self) -> Time {
        Time::from_nanos(self.clock.now_ns())
    }

    async fn check(&mut self) -> Finding {
        match self.job.tracker.watch.clone() {
            Watch::Interface(name) => match self.link(&name) {
                Some(link) if link.running() => Ok(format!("{name} has a carrier")),
                Some(_) => Err(format!("{name} has no carrier")),
                None => Err(format!("there is no interface {name}")),
            },
            Watch::Arp(target, _) => match self.asker(target).await {
                Ok(asker) => self.answered(target, reach::neighbour(asker, target)).await,
                Err(problem) => Err(problem),
            },
            Watch::Ping(target) => self.answered(target, reach::ping(target)).await,
            Watch::Tcp(target) => self.answered(target, reach::connect(target)).await,
            Watch::Command(command) => self.command(&command).await,
            Watch::File(path) => self.file(path).await,
        }
    }

    fn link(&mut self, name: &str) -> Option<Link> {
        self.links.borrow_and_update().values().find(|link| link.name == name).cloned()
    }

    async fn asker(&mut self, target: IpAddr) -> std::result::Result<Asker, String> {
        let name = self.job.zone_interface.clone();
        let link = self.link(&name).ok_or_else(|| format!("there is no interface {name}"))?;
        let mac = link.mac.ok_or_else(|| format!("{name} has no MAC"))?;
        let own = async { Addresses::new()?.own(link.index).await }.await;
        let own = own.map_err(|error| format!("the addresses of {name} are not known: {error}"))?;
        if target.is_ipv6() && own.link_local.is_unspecified() {
            return Err(format!("{name} has no link-local address to ask from"));
        }
        Ok(Asker { ifindex: link.index, mac, address: own.primary, link_local: own.link_local })
    }

    async fn answered(
        &self,
        target: impl std::fmt::Display,
        question: impl Future<Output = std::io::Result<()>>,
    ) -> Finding {
        let began = Instant::now();
        match tokio::time::timeout(self.job.tracker.timeout, question).await {
            Ok(Ok(())) => Ok(format!("{target} answers after {:.1} ms", began.elapsed().as_secs_f64() * 1e3)),
            Ok(Err(error)) => Err(format!("{target}: {error}")),
            Err(_) => {
                Err(format!("no answer from {target} within {} ms", self.job.tracker.timeout.as_millis()))
            }
        }
    }

    async fn command(&self, command: &[String]) -> Finding {
        let variables = [
            ("FWHA_TRACKER", self.job.tracker.name.as_str()),
            ("FWHA_CLUSTER", &self.job.cluster),
            ("FWHA_NODE", &self.job.node),
        ];
        let run = Run { command, variables: &variables, input: None, timeout: self.job.tracker.timeout };
        let program = &command[0];
        match self.runner.run(run).await {
            Ok(Some(status)) if status.success() => Ok(format!("{program}: {status}")),
            Ok(Some(status)) => Err(format!("{program}: {status}")),
            Ok(None) => {
                Err(format!("{program} was killed after {} ms", self.job.tracker.timeout.as_millis()))
            }
            Err(error) => Err(format!("{program} cannot be run: {error}")),
        }
    }

    /// The file system may hang, so a thread looks, and there is one at a time.
    async fn file(&mut self, path: PathBuf) -> Finding {
        let shown = path.display().to_string();
        let look = self.look.get_or_insert_with(|| tokio::task::spawn_blocking(move || first_line(&path)));
        let Ok(found) = tokio::time::timeout(self.job.tracker.timeout, &mut *look).await else {
            return Err(format!(
                "{shown} cannot be looked at within {} ms",
                self.job.tracker.timeout.as_millis()
            ));
        };
        self.look = None;
        match found.unwrap_or_default() {
            None => Ok(format!("{shown} is not there")),
            Some(line) if line.is_empty() => Err(format!("{shown} is there")),
            Some(line) => Err(format!("{shown} is there: {line}")),
        }
    }
}

/// The first line of a file, shortened; empty if it cannot be read, `None` if there is no file.
fn first_line(path: &Path) -> Option<String> {
    let found = std::fs::metadata(path).ok()?;
    let mut bytes = Vec::new();
    if found.is_file() {
        let file = std::fs::File::open(path);
        // One that is gone or unreadable since is there all the same.
        let _ = file.and_then(|file| file.take(LINE_MAX as u64).read_to_end(&mut bytes));
    }
    let text = String::from_utf8_lossy(&bytes);
    let line = text.lines().next().unwrap_or_default().trim();
    Some(line.chars().filter(|c| !c.is_control()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::good_config;

    #[test]
    fn who_asks_in_a_vlan_without_a_device_asks_by_what_has_its_tag() {
        let mut config = good_config();
        let node = config.nodes[0].clone();
        config.zones[0].interfaces.insert(node.id, vec!["eth0.100".into()]);
        let link = |index, name: &str| Link {
            index,
            name: name.into(),
            ethernet: true,
            mac: None,
            mtu: 1500,
            up: true,
            carrier: true,
            xdp_program: None,
            vlan: None,
        };
        let asks = |links: &[(u32, &str)]| {
            let links = links.iter().map(|&(index, name)| (index, link(index, name))).collect();
            zone_interface(&config.zones[0], &node, &links)
        };
        assert_eq!(asks(&[(2, "eth0")]).as_deref(), Some("eth0"));
        assert_eq!(asks(&[(2, "eth0"), (3, "eth0.100")]).as_deref(), Some("eth0.100"));
        assert_eq!(asks(&[]).as_deref(), Some("eth0.100"), "to be named as missing");
    }
}
