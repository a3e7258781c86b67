//! The config file read again: `fwhactl reload` (`POST /v1/reload`), SIGHUP.
//!
//! All of it or nothing. A file with mistakes, or with a change that a running daemon cannot take over,
//! changes nothing. Whatever is the same is not touched.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Json, State};
use axum::http::StatusCode;
use fwha_common::rule::ZONE_NODE;
use fwha_proto::time::Time;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, timeout, timeout_at};

use super::server::{Problem, Server};
use super::{Running, announcements, election, ports, replication, vips};
use crate::api;
use crate::config::{Config, ConfigErrors, Group, NodeId, Zone, diff};
use crate::dataplane::{Dataplane, DataplaneError, Maps};
use crate::netlink::{Link, links::links};
use crate::policy;

/// How long reading the file may take.
const READ_WAIT: Duration = Duration::from_secs(3);
/// How long a thread may take to do its part.
const MOVE_WAIT: Duration = Duration::from_secs(3);
/// Changes that an event names; of more it gives the number.
const NAMED_MAX: usize = 8;

/// Asks the main thread.
pub struct Request {
    /// Only say what would change.
    pub dry_run: bool,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Result<Outcome, Refused>>,
}

/// The way to the main thread, which takes one request after the other.
pub type Requests = mpsc::UnboundedSender<Request>;

/// What is different in the file, and what became of it.
pub struct Outcome {
    /// The differences.
    pub changes: Vec<diff::Change>,
    /// Warnings about the file that the one before did not have.
    pub warnings: Vec<String>,
    /// Whether the file is in force.
    pub applied: bool,
}

/// Why the file cannot be put in force.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// It is wrong.
    #[error("{0}")]
    Mistakes(#[from] ConfigErrors),
    /// The system does not go along.
    #[error("nothing was changed: {0:#}")]
    Failed(#[from] anyhow::Error),
}

/// The file while it is read, by a thread of its own: on a file system that hangs, all else goes on.
pub(super) struct Reading {
    /// Who asked for it; nobody if that was a signal.
    pub request: Option<Request>,
    file: JoinHandle<Result<Config, ConfigErrors>>,
    path: PathBuf,
    deadline: Instant,
}

impl Reading {
    /// Begins to read the file again that a config is from.
    pub fn begin(config: &Config, request: Option<Request>) -> Self {
        let path = config.path().to_owned();
        let read = {
            let path = path.clone();
            move || Config::load(&path)
        };
        Self { request, file: spawn_blocking(read), path, deadline: Instant::now() + READ_WAIT }
    }

    /// Waits until it is read, for ever if nothing is. The future may be dropped.
    ///
    /// # Errors
    /// It is wrong, or cannot be read in time.
    pub async fn end(reading: &mut Option<Self>) -> Result<Config, Refused> {
        let Some(Self { file, path, deadline, .. }) = reading else { return std::future::pending().await };
        let read = timeout_at(*deadline, file).await;
        let read = read.with_context(|| format!("{} cannot be read in time", path.display()))?;
        Ok(read.map_err(anyhow::Error::from)??)
    }
}

impl Running {
    /// Changes what is other in the config file that was read.
    ///
    /// # Errors
    /// See [`Refused`]; nothing has changed then.
    pub(super) async fn reload(
        &mut self,
        dataplane: &mut Dataplane,
        read: Result<Config, Refused>,
        dry_run: bool,
    ) -> Result<Outcome, Refused> {
        let outcome = match read {
            Ok(new) => self.try_reload(dataplane, Arc::new(new), dry_run).await,
            Err(refused) => Err(refused),
        };
        if dry_run {
            return outcome;
        }
        let text = match &outcome {
            Ok(Outcome { changes, .. }) if changes.is_empty() => return outcome,
            Ok(Outcome { changes, warnings, applied: true }) => {
                warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
                summary(changes.iter())
            }
            Ok(Outcome { changes, .. }) => {
                let restarts = changes.iter().filter(|change| change.restart);
                format!("nothing was changed: a restart is needed for {}", summary(restarts))
            }
            Err(Refused::Mistakes(errors)) => {
                errors.headlines().for_each(|line| tracing::error!("{line}"));
                format!("nothing was changed: mistakes in {}", self.config.load().path().display())
            }
            Err(Refused::Failed(error)) => format!("nothing was changed: {error:#}"),
        };
        self.events.record(self.now(), "reload", None, text, Vec::new());
        outcome
    }

    async fn try_reload(
        &mut self,
        dataplane: &mut Dataplane,
        new: Arc<Config>,
        dry_run: bool,
    ) -> Result<Outcome, Refused> {
        let old = self.config.load_full();
        let me = self.network.node.id;
        let changes = diff::diff(&old, &new, me);
        let warnings = new.warnings.iter().filter(|warning| !old.warnings.contains(warning));
        let warnings = warnings.cloned().collect();
        let other_macs = |zone: &Zone| old.has_virtual_macs(zone.id) != new.has_virtual_macs(zone.id);
        let interfaces = old.zones != new.zones || new.zones.iter().any(other_macs);
        let links = if interfaces { links().map_err(anyhow::Error::from)? } else { Vec::new() };
        if interfaces {
            new.check_interfaces(me, |name| links.iter().any(|l| l.name == name))?;
        }
        let applied = !dry_run && !changes.iter().any(|change| change.restart);
        if applied && !changes.is_empty() {
            if interfaces {
                self.set_interfaces(dataplane, &new, &links)?;
            }
            if let Err(error) = self.apply(&old, &new).await {
                if interfaces {
                    self.set_interfaces(dataplane, &old, &links)?;
                }
                return Err(error.into());
            }
        }
        if applied {
            self.network.config = Arc::clone(&new);
            self.config.store(new);
        }
        Ok(Outcome { changes, warnings, applied })
    }

    fn set_interfaces(
        &mut self,
        dataplane: &mut Dataplane,
        config: &Config,
        links: &[Link],
    ) -> anyhow::Result<()> {
        let interfaces = super::zone_interfaces(config, &self.network.node, links);
        self.network.set_interfaces(dataplane, interfaces)
    }

    /// What can fail comes first, then the kernel, then the threads.
    async fn apply(&mut self, old: &Config, new: &Config) -> anyhow::Result<()> {
        self.network.reload(new)?;
        if let Err(error) = self.load(old, new) {
            self.load(new, old)?;
            return Err(error);
        }
        if let Err(error) = self.tell_election(new).await {
            self.load(new, old)?;
            return Err(error);
        }
        if (old.keys.id(), old.keys.is_rotating()) != (new.keys.id(), new.keys.is_rotating()) {
            self.election.send(election::Command::Keys(new.keys.clone()));
            self.replication.send(replication::Command::Keys(new.keys.clone()));
        }
        let (settings, chosen) = (super::replication_settings(new), !policy::same_choice(old, new));
        self.replication.send(replication::Command::Reload { settings, chosen });
        let (names, tasks) = (Arc::clone(&self.names), &mut self.hook_tasks);
        self.hooks = self.hooks.renew(new, self.clock, &self.events, &names, tasks);
        self.trackers.set(new);
        let groups = ports::group_addresses(new, &self.network.ports);
        let routes = ports::group_routes(new, &self.network.ports);
        let intervals = announcements::intervals(new);
        let other_mac = |group: &&Group| {
            old.groups.iter().any(|o| o.name == group.name && o.virtual_mac != group.virtual_mac)
        };
        let announce = new.groups.iter().filter(other_mac).map(|group| group.id).collect();
        let (done, moved) = oneshot::channel();
        // The thread ends before this one does only when all is over.
        let hooks = self.hooks.clone();
        let _ = self.vips.send(vips::Command::Reload { groups, routes, intervals, announce, hooks, done });
        if timeout(MOVE_WAIT, moved).await.is_err() {
            tracing::warn!("addresses have not been added or removed yet");
        }
        Ok(())
    }

    /// Tells the kernel what is different in `new`.
    fn load(&mut self, old: &Config, new: &Config) -> anyhow::Result<()> {
        if old.groups != new.groups {
            self.network.set_virtual_macs(&self.maps, new)?;
        }
        Ok(load(&self.maps, self.network.node.id, old, new)?)
    }

    async fn tell_election(&self, new: &Config) -> anyhow::Result<()> {
        let (reply, answer) = oneshot::channel();
        let groups = new.groups.iter().map(|g| g.election(Default::default())).collect();
        let trackers = super::election_trackers(new, self.network.node.id);
        let witnesses = new.cluster.witness.clone();
        let config_hash = new.hash;
        self.election.send(election::Command::Reload { config_hash, groups, trackers, witnesses, reply });
        let answer = timeout(MOVE_WAIT, answer).await.context("the election does not answer")?;
        Ok(answer??)
    }

    fn now(&self) -> Time {
        Time::from_nanos(self.clock.now_ns())
    }
}

/// Tells the data plane of node `me` what is different in `new`.
fn load(maps: &Maps, me: NodeId, old: &Config, new: &Config) -> Result<(), DataplaneError> {
    if old.timeouts != new.timeouts {
        maps.set_timeouts(&new.timeouts)?;
    }
    if old.limits != new.limits {
        maps.set_limits(&new.limits)?;
    }
    if old.groups != new.groups {
        maps.set_zone_buckets(&new.zone_buckets())?;
        maps.set_vips(&new.vips(me))?;
    }
    if old.rules != new.rules {
        maps.load_rules(&new.dataplane_rules())?;
    }
    Ok(())
}

fn summary<'a>(changes: impl Iterator<Item = &'a diff::Change>) -> String {
    let texts: Vec<&str> = changes.map(|change| change.text.as_str()).collect();
    let more = texts.len().saturating_sub(NAMED_MAX);
    let named = texts[..texts.len() - more].join("; ");
    if more == 0 { named } else { format!("{named}; and {more} more") }
}

pub(super) async fn reload(
    State(server): State<Arc<Server>>,
    request: Result<Json<api::ReloadRequest>, JsonRejection>,
) -> Result<Json<api::ReloadReply>, Problem> {
    let Json(api::ReloadRequest { dry_run, revalidate }) = request?;
    let began = Instant::now();
    let (reply, answer) = oneshot::channel();
    let gone = || Problem(StatusCode::SERVICE_UNAVAILABLE, "the daemon is shutting down".into());
    server.reload.send(Request { dry_run, reply }).map_err(|_| gone())?;
    let Outcome { changes, warnings, applied } =
        answer.await.map_err(|_| gone())?.map_err(|refused| match refused {
            Refused::Mistakes(errors) => {
                let found = match errors.mistakes().len() {
                    1 => "1 mistake".into(),
                    count => format!("{count} mistakes"),
                };
                let text = format!("{errors}\n{found} found: nothing was changed");
                Problem(StatusCode::UNPROCESSABLE_ENTITY, text)
            }
            Refused::Failed(_) => Problem(StatusCode::INTERNAL_SERVER_ERROR, refused.to_string()),
        })?;
    let mut flows_ended = None;
    if applied && revalidate {
        let server = Arc::clone(&server);
        flows_ended = Some(tokio::task::spawn_blocking(move || server.revalidate()).await??);
    }
    let changes = changes.into_iter().map(|c| api::ConfigChange { text: c.text, restart: c.restart });
    Ok(Json(api::ReloadReply {
        node: server.names.me().to_owned(),
        applied,
        changes: changes.collect(),
        warnings,
        config_hash: format!("{:016x}", server.config().hash),
        flows_ended,
        took_ms: began.elapsed().as_secs_f64() * 1e3,
    }))
}

impl Server {
    /// Ends the flows that the rules do not admit, of those that this node owns, and those of the node itself
    /// that others began. How many these were.
    fn revalidate(&self) -> Result<u64, Problem> {
        let rules = Arc::clone(&self.config().ruleset);
        let ended = self.end_flows(|key, flow| {
            let own = flow.zones()[0] == ZONE_NODE;
            !own && !policy::admits(&rules, key, flow)
        })?;
        if ended.deleted > 0 {
            let text = format!("{} flows ended that the rules do not admit", ended.deleted);
            self.events.record(self.now(), "revalidate", None, text, Vec::new());
        }
        Ok(ended.deleted)
    }
}
