//! The control API: HTTP on the run directory's socket, which only root may open. The contract is
//! [`crate::api`].

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Json, Query, State};
use axum::http::{StatusCode, header};
use axum::middleware::map_response_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::stream;
use fwha_common::BUCKETS;
use fwha_common::drop::DropReason;
use fwha_common::flow::{Flow, FlowKey, proto};
use fwha_common::rule::name_hash;
use fwha_common::settings::Counter;
use fwha_proto::NodeId;
use fwha_proto::election::GroupId;
use fwha_proto::election::reach::{Path, ReachStatus};
use fwha_proto::election::status::TrackerStatus;
use fwha_proto::election::witness::WitnessStatus;
use fwha_proto::heartbeat::{NodeState, PeerState, Role};
use fwha_proto::replication::{SyncState, Warning};
use fwha_proto::resource::Report;
use fwha_proto::seal::OpenError;
use fwha_proto::time::Time;
use serde::Serialize;
use tokio::sync::{broadcast, mpsc};

use super::capture;
use super::config_file::ConfigFile;
use super::election;
use super::events::{self, EventLog};
use super::explain;
use super::flows;
use super::mailbox::Mailbox;
use super::metrics;
use super::moves;
use super::names::Names;
use super::network::Attached;
use super::reload;
use super::replication::{self, PeerSnapshot, Snapshot};
use super::resources::Resources;
use super::rises::Rises;
use super::state::State as Kept;
use super::sweeper::expiry_ns;
use super::transfer;
use super::troubles::Troubles;
use crate::api::{self, ApiError, path};
use crate::config::Config;
use crate::dataplane::maps::FlowWalk;
use crate::dataplane::{AttachKind, AttachedInterface, DataplaneError, DryRun, Maps};
use crate::socket::Refused;
use crate::sys::clock::KernelClock;

/// Flows looked at between two pieces of an answer.
pub(super) const CHUNK: usize = 1024;
/// Pieces of an answer that wait for a slow client.
const PIECES: usize = 4;
/// Flows of more than these are not counted one by one for `status`: with a million that takes a second of a CPU. What
/// replication keeps count of is told then, which is some milliseconds old.
const WALKED_MAX: usize = 65_536;

/// The tables that hold flows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Table {
    /// Answered flows through this node: the ones that are replicated, aged and taken over.
    Main,
    /// Not answered yet.
    Embryonic,
    /// Flows of the node itself, which belong to no group.
    Node,
}

/// What the API shows, and whom it asks.
pub struct Server {
    /// The config in force.
    pub config: Arc<ArcSwap<Config>>,
    /// Who reads it again.
    pub reload: reload::Requests,
    /// This node.
    pub me: NodeId,
    /// What survives a reboot.
    pub state: Kept,
    /// Names for numbers.
    pub names: Arc<Names>,
    /// The data plane.
    pub maps: Arc<Maps>,
    /// Judges packets that nobody sent, as it does.
    pub dry_run: DryRun,
    /// Its clock.
    pub clock: KernelClock,
    /// When the daemon started.
    pub started: Time,
    /// The group of each bucket.
    pub bucket_group: [GroupId; BUCKETS],
    /// The event log.
    pub events: Arc<EventLog>,
    /// The election.
    pub election: Mailbox<election::Command>,
    /// How the election stands.
    pub election_status: Arc<ArcSwap<election::Snapshot>>,
    /// The replication thread.
    pub replication: Mailbox<replication::Command>,
    /// How replication stands.
    pub replication_status: Arc<ArcSwap<Snapshot>>,
    /// A look at the config file.
    pub file: ConfigFile,
    /// Where programs are attached.
    pub attached: Arc<ArcSwap<Attached>>,
    /// What follows the groups.
    pub resources: Resources,
    /// What cannot be done with addresses and routes.
    pub troubles: Arc<Troubles>,
    /// When totals of what should not happen rose.
    pub rises: Rises,
    /// Why there are no metrics on the port of `[metrics]`.
    pub no_metrics: ArcSwapOption<String>,
}

/// An answer that is not the one asked for.
pub(super) struct Problem(pub(super) StatusCode, pub(super) String);

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        (self.0, Json(ApiError { error: self.1 })).into_response()
    }
}

impl From<DataplaneError> for Problem {
    fn from(error: DataplaneError) -> Self {
        let status = match error {
            DataplaneError::CaptureRuns => StatusCode::CONFLICT,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(status, error.to_string())
    }
}

impl From<std::io::Error> for Problem {
    fn from(error: std::io::Error) -> Self {
        Self(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot read the data plane's tables: {error}"))
    }
}

impl From<tokio::task::JoinError> for Problem {
    fn from(error: tokio::task::JoinError) -> Self {
        Self(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self(StatusCode::BAD_REQUEST, rejection.body_text())
    }
}

impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Self {
        Self(StatusCode::BAD_REQUEST, rejection.body_text())
    }
}

/// The routes of the API.
pub fn routes(server: Arc<Server>) -> Router {
    Router::new()
        .route(path::STATUS, get(status))
        .route(path::FLOWS, get(list_flows))
        .route(path::STATS, get(stats))
        .route(path::EVENTS, get(event_stream))
        .route(path::SWITCHOVER, post(moves::switchover))
        .route(path::EXPLAIN_ROLE, get(moves::explain_role))
        .route(path::EXPLAIN_PACKET, get(explain::packet))
        .route(path::STANDBY, post(moves::standby))
        .route(path::RESOURCE_CLEANUP, post(resource_cleanup))
        .route(path::RELOAD, post(reload::reload))
        .route(path::CAPTURE, get(capture::capture))
        .route(path::FLOWS_DIFF, get(flows::diff))
        .route(path::FLOWS_DELETE, post(flows::delete))
        .route(path::METRICS, get(metrics::metrics))
        .route(path::BULK, post(transfer::bulk))
        .route(path::RESYNC, post(transfer::resync))
        .fallback(async || Problem(StatusCode::NOT_FOUND, "there is no such path".into()))
        .layer(map_response_with_state(Arc::clone(&server), moves::warn))
        .with_state(server)
}

type Shared = State<Arc<Server>>;

async fn status(State(server): Shared) -> Result<Json<api::Status>, Problem> {
    // It walks a table and reads files.
    let status = tokio::task::spawn_blocking(move || Ok::<_, Problem>(server.status(server.flow_counts()?)));
    Ok(Json(status.await??))
}

async fn resource_cleanup(
    State(server): Shared,
    request: Result<Json<api::ResourceRequest>, JsonRejection>,
) -> Result<Json<api::ResourceReply>, Problem> {
    let Json(api::ResourceRequest { name }) = request?;
    let config = server.config();
    let Some(resource) = config.resources.iter().find(|r| r.name == name) else {
        let known: Vec<&str> = config.resources.iter().map(|r| r.name.as_str()).collect();
        let known =
            if known.is_empty() { "there is none".into() } else { format!("known are {}", known.join(", ")) };
        return Err(Problem(StatusCode::NOT_FOUND, format!("there is no resource {name:?}: {known}")));
    };
    server.resources.clear(resource);
    Ok(Json(api::ResourceReply { node: server.names.me().to_owned(), name }))
}

async fn stats(State(server): Shared) -> Result<Json<api::Stats>, Problem> {
    Ok(Json(server.stats()?))
}

async fn list_flows(
    State(server): Shared,
    filter: Result<Query<api::FlowFilter>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(filter) = filter?;
    server.know_zone(&filter)?;
    let (sender, receiver) = mpsc::channel::<std::io::Result<Bytes>>(PIECES);
    tokio::task::spawn_blocking(move || {
        for table in [Table::Main, Table::Embryonic, Table::Node] {
            if let Err(error) = server.write_flows(table, &filter, &sender) {
                // A client that hung up needs no error.
                let _ = sender.blocking_send(Err(error));
                return;
            }
        }
    });
    let pieces = stream::unfold(receiver, async |mut r| r.recv().await.map(|piece| (piece, r)));
    Ok(ndjson(Body::from_stream(pieces)))
}

async fn event_stream(
    State(server): Shared,
    query: Result<Query<api::EventsQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(query) = query?;
    let (history, receiver) = server.events.follow();
    let mut lines = Vec::new();
    for event in &history {
        push_line(&mut lines, event.as_ref());
    }
    let lines = Bytes::from(lines);
    if !query.follow {
        return Ok(ndjson(Body::from(lines)));
    }
    let rest = stream::unfold((Some(lines), receiver), async |(first, mut receiver)| {
        if let Some(first) = first {
            return Some((Ok::<_, std::io::Error>(first), (None, receiver)));
        }
        let event = match receiver.recv().await {
            Ok(event) => event,
            Err(broadcast::error::RecvError::Lagged(missed)) => events::missed(missed).into(),
            Err(broadcast::error::RecvError::Closed) => return None,
        };
        let mut line = Vec::new();
        push_line(&mut line, event.as_ref());
        Some((Ok(Bytes::from(line)), (None, receiver)))
    });
    Ok(ndjson(Body::from_stream(rest)))
}

pub(super) fn ndjson(body: Body) -> Response {
    ([(header::CONTENT_TYPE, api::NDJSON)], body).into_response()
}

pub(super) fn push_line(lines: &mut Vec<u8>, object: &impl Serialize) {
    // Writing to memory does not fail, and neither do these types.
    let _ = serde_json::to_writer(&mut *lines, object);
    lines.push(b'\n');
}

impl Server {
    pub(super) fn now(&self) -> Time {
        Time::from_nanos(self.clock.now_ns())
    }

    /// The config in force.
    pub(super) fn config(&self) -> Arc<Config> {
        self.config.load_full()
    }

    pub(super) fn ms_since(&self, at: Time) -> u64 {
        self.now().since(at).as_millis() as u64
    }

    pub(super) fn node_named(&self, name: &str) -> Result<NodeId, Problem> {
        let config = self.config();
        config.node_named(name).map(|n| n.id).ok_or_else(|| {
            let known: Vec<&str> = config.nodes.iter().map(|n| n.name.as_str()).collect();
            let known = known.join(", ");
            Problem(StatusCode::NOT_FOUND, format!("there is no node {name:?}: known are {known}"))
        })
    }

    /// Refuses a filter by a zone that there is not, which no flow would match: it was misspelt.
    pub(super) fn know_zone(&self, filter: &api::FlowFilter) -> Result<(), Problem> {
        let config = self.config();
        let mut known: Vec<&str> = config.zones.iter().map(|zone| zone.name.as_str()).collect();
        known.push(self.names.zone(0));
        match &filter.zone {
            Some(zone) if !known.contains(&zone.as_str()) => {
                let problem = format!("there is no zone {zone:?}: known are {}", known.join(", "));
                Err(Problem(StatusCode::BAD_REQUEST, problem))
            }
            _ => Ok(()),
        }
    }

    /// The peer of this name; all of them if there is none.
    pub(super) fn peer_named(&self, name: Option<&str>) -> Result<Option<NodeId>, Problem> {
        let node = name.map(|name| self.node_named(name)).transpose()?;
        if node == Some(self.me) || self.config().nodes.len() < 2 {
            let problem = match name {
                Some(name) => format!("{name} is this node itself: name a peer"),
                None => "this node has no peer".into(),
            };
            return Err(Problem(StatusCode::BAD_REQUEST, problem));
        }
        Ok(node)
    }

    pub(super) fn group_named(&self, name: Option<&str>) -> Result<GroupId, Problem> {
        let config = self.config();
        let groups = &config.groups;
        let known = || groups.iter().map(|g| g.name.as_str()).collect::<Vec<_>>().join(", ");
        match name {
            Some(name) => groups.iter().find(|g| g.name == name).map(|g| g.id).ok_or_else(|| {
                Problem(StatusCode::NOT_FOUND, format!("there is no group {name:?}: known are {}", known()))
            }),
            None if groups.len() == 1 => Ok(groups[0].id),
            None => Err(Problem(StatusCode::BAD_REQUEST, format!("name one of the groups: {}", known()))),
        }
    }

    pub(super) fn flow_counts(&self) -> Result<api::FlowCounts, Problem> {
        let replication = self.replication_status.load();
        let [local, peer] = match replication.census.filter(|kept| kept.iter().sum::<usize>() > WALKED_MAX) {
            Some(kept) => kept,
            None => self.walk_flows()?,
        };
        let mut counts = api::FlowCounts {
            local: local as u64,
            peer: peer as u64,
            embryonic: self.maps.embryonic_count()? as u64,
            max: u64::from(self.maps.flows().max_entries()),
            at_risk: replication.at_risk,
        };
        // Without replication there is no replica that could tell.
        let active = || self.election_status.load().status.groups.iter().any(|g| g.role == Role::Active);
        if !self.config().replication.enabled && active() {
            counts.at_risk = counts.local + counts.peer;
        }
        Ok(counts)
    }

    /// Counts the flows in the main table: those that began here, and all others.
    fn walk_flows(&self) -> Result<[usize; 2], Problem> {
        let mut counts = [0; 2];
        let mut walk = FlowWalk::new(CHUNK);
        while let Some((_, flows)) = walk.next_chunk(self.maps.flows())? {
            let local = flows.iter().filter(|f| f.node == self.me).count();
            counts[0] += local;
            counts[1] += flows.len() - local;
        }
        Ok(counts)
    }

    pub(super) fn status(&self, flows: api::FlowCounts) -> api::Status {
        let snapshot = self.election_status.load();
        let election = &snapshot.status;
        let replication = self.replication_status.load();
        let config = self.config();
        let mut warnings = config.warnings.clone();
        warnings.extend(self.no_metrics.load().as_deref().cloned());
        warnings.extend(self.own_warnings(&snapshot, &replication));
        let groups = election.groups.iter().map(|g| self.group_status(g)).collect::<Vec<_>>();
        warnings.extend(groups.iter().filter_map(api::GroupStatus::trouble));
        let mut peers = Vec::new();
        for peer in &election.peers {
            let name = self.names.node(peer.node);
            let standby = peer.node_state == Some(NodeState::Standby);
            if peer.state != PeerState::Alive {
                warnings.push(format!("{name} is {}", peer.state));
            } else if standby {
                warnings.push(moves::on_standby(name));
            }
            let sync = replication.peers.get(&peer.node);
            let refused = refused(peer.refused, sync.and_then(|s| s.refused));
            let mut reasons: Vec<String> = refused.iter().map(|r| r.text.clone()).collect();
            if peer.deaf {
                reasons.push("does not hear our heartbeats".into());
            }
            // Replication says it with the remedy.
            let told = sync.is_some_and(|sync| sync.warnings.contains(&Warning::ConfigDiffers));
            if peer.other_config.is_some() && !told {
                reasons.push("runs with another cluster file".into());
            }
            warnings.extend(reasons.iter().map(|r| format!("{name}: {r}")));
            if let Some(sync) = sync {
                let known = config.replication.enabled && sync.state != SyncState::InSync;
                if known && peer.state == PeerState::Alive {
                    warnings.push(format!("{name}: replication is {}, not in-sync", sync.state.as_str()));
                }
                if sync.renewing {
                    warnings.push(format!(
                        "{name} does not have the new cluster key yet: copy the key file there and `systemctl reload fwha`"
                    ));
                }
                warnings.extend(sync.warnings.iter().map(|w| format!("{name}: {w}")));
            }
            peers.push(api::PeerStatus {
                name: name.to_owned(),
                state: peer.state.as_str().to_owned(),
                since_ms: (peer.since != Time::ZERO).then(|| self.ms_since(peer.since)),
                standby,
                in_sync: peer.in_sync,
                reason: reasons.join("; "),
                refused,
                links: peer.links.iter().map(|l| self.link_status(l, sync)).collect(),
                sync: sync.map(|sync| self.sync_status(sync)).unwrap_or_default(),
            });
        }
        let used = flows.local + flows.peer;
        if used >= flows.max {
            warnings.push("the flow table is full: new flows are refused; raise max-flows".into());
        } else if used >= flows.max / 10 * 9 {
            warnings
                .push(format!("the flow table is nearly full ({used} of {}): raise max-flows", flows.max));
        }
        api::Status {
            node: self.names.me().to_owned(),
            cluster: config.cluster.name.clone(),
            config_hash: format!("{:016x}", config.hash),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: self.ms_since(self.started),
            standby: election.node == NodeState::Standby,
            groups,
            peers,
            witnesses: election.witnesses.iter().map(|w| self.witness_status(w)).collect(),
            reaches: election.reaches.iter().map(|r| self.reach_status(r)).collect(),
            interfaces: self
                .attached
                .load()
                .interfaces
                .iter()
                .filter_map(|a| self.interface_status(a))
                .collect(),
            flows,
            threads: self.threads(&snapshot, &replication).into(),
            warnings,
        }
    }

    /// The threads on whose word all of this is, and how old that is.
    pub(super) fn threads(
        &self,
        election: &election::Snapshot,
        replication: &Snapshot,
    ) -> [api::ThreadStatus; 2] {
        [self.thread("election", election.at), self.replication_thread(replication)]
    }

    /// The one that replicates.
    pub(super) fn replication_thread(&self, replication: &Snapshot) -> api::ThreadStatus {
        self.thread("replication", replication.at)
    }

    fn thread(&self, name: &str, shown: Time) -> api::ThreadStatus {
        api::ThreadStatus { name: name.to_owned(), silent_ms: self.ms_since(shown) }
    }

    fn group_status(&self, group: &fwha_proto::election::status::GroupStatus) -> api::GroupStatus {
        let config = self.config();
        let config = config.groups.iter().find(|g| g.id == group.group);
        let mut active = group.active.iter().map(|n| self.names.node(*n).to_owned());
        api::GroupStatus {
            name: self.names.group(group.group).to_owned(),
            role: match group.role {
                Role::Init => api::Role::Init,
                Role::Backup => api::Role::Backup,
                Role::Active => api::Role::Active,
                Role::Fault => api::Role::Fault,
                Role::Standby => api::Role::Standby,
            },
            active: active.next(),
            also_active: active.collect(),
            term: group.term,
            since_ms: self.ms_since(group.since),
            reason: group.reason.clone(),
            vips: config
                .into_iter()
                .flat_map(|g| &g.vips)
                .flat_map(|v| &v.addresses)
                .map(ToString::to_string)
                .collect(),
            priority: group.priority,
            trackers: group.trackers.iter().map(|t| self.tracker_status(t)).collect(),
            resources: self.resource_reports(group.group).map(|(n, r)| self.resource_status(n, r)).collect(),
        }
    }

    /// How the resources of a group stand, in their order.
    pub(super) fn resource_reports(&self, group: GroupId) -> impl Iterator<Item = (String, Report)> {
        let config = self.config();
        let of = move |n: usize| {
            let resource = &config.resources[n];
            (resource.group == group).then(|| resource.name.clone())
        };
        let count = self.config().resources.len();
        (0..count).filter_map(of).filter_map(|name| Some((name.clone(), self.resources.report(&name)?)))
    }

    fn resource_status(&self, name: String, report: Report) -> api::ResourceStatus {
        api::ResourceStatus {
            name,
            state: report.state.as_str().to_owned(),
            since_ms: self.ms_since(report.since),
            result: report.result,
            failure: report.failure,
            restarts: report.restarts,
            failures: report.failures,
        }
    }

    pub(super) fn tracker_status(&self, tracker: &TrackerStatus) -> api::TrackerStatus {
        api::TrackerStatus {
            name: tracker.name.clone(),
            state: tracker.report.state.as_str().to_owned(),
            since_ms: self.ms_since(tracker.report.since),
            result: tracker.report.text.clone(),
            counts: tracker.counts,
            effect: tracker.effect.clone(),
            good: tracker.report.good,
            bad: tracker.report.bad,
        }
    }

    fn reach_status(&self, reach: &ReachStatus) -> api::ReachStatus {
        let path =
            |(node, path): &(NodeId, Path)| (self.names.node(*node).to_owned(), path.as_str().to_owned());
        api::ReachStatus {
            zone: self.names.zone(reach.zone).to_owned(),
            state: reach.state.as_str().to_owned(),
            since_ms: self.ms_since(reach.since),
            asked: reach.neighbours.0 as u64,
            answered: reach.neighbours.1 as u64,
            paths: reach.paths.iter().map(path).collect(),
        }
    }

    fn witness_status(&self, witness: &WitnessStatus) -> api::WitnessStatus {
        api::WitnessStatus {
            address: witness.address.to_string(),
            state: witness.state.as_str().to_owned(),
            since_ms: self.ms_since(witness.since),
            rtt_us: witness.rtt.map(|rtt| rtt.as_micros() as u64),
            requests: witness.requests,
            answers: witness.answers,
        }
    }

    fn link_status(
        &self,
        link: &fwha_proto::election::status::LinkStatus,
        sync: Option<&PeerSnapshot>,
    ) -> api::LinkStatus {
        let probed = sync.and_then(|s| s.links.iter().find(|l| l.link == link.link));
        api::LinkStatus {
            interface: self.names.link(link.link).to_owned(),
            state: if link.up { "up" } else { "silent" }.to_owned(),
            rtt_us: link.rtt.map(|rtt| rtt.as_micros() as u64),
            replication: probed.map(|l| l.state.as_str().to_owned()).unwrap_or_default(),
            loss_per_mille: probed.and_then(|l| l.loss_per_mille),
            used: probed.is_some_and(|l| l.used),
        }
    }

    fn sync_status(&self, sync: &PeerSnapshot) -> api::SyncStatus {
        let bulk = sync.bulk.iter().next();
        api::SyncStatus {
            state: sync.state.as_str().to_owned(),
            // A state that has never changed is as old as the daemon.
            since_ms: (sync.state_for.as_millis() as u64).min(self.ms_since(self.started)),
            lag_ms: sync.lag.as_millis() as u64,
            unacked: (sync.queued + sync.in_flight) as u64,
            digest_match: sync.digest_match,
            bulk: bulk.map(|(direction, progress)| transfer::bulk_status(*direction, progress)),
        }
    }

    fn interface_status(&self, attached: &AttachedInterface) -> Option<api::ZoneInterfaceStatus> {
        Some(api::ZoneInterfaceStatus {
            interface: attached.name.clone(),
            zone: self.names.zone(attached.zone?).to_owned(),
            attach: match attached.kind {
                AttachKind::Xdp => api::Attachment::Xdp,
                AttachKind::Tc => api::Attachment::Tc,
            },
            reason: attached.reason.clone(),
        })
    }

    /// Counters of replication with a peer, and what is true of it now.
    fn peer_stats(&self, peer: &PeerSnapshot) -> api::Stat {
        let us = |time: Duration| time.as_micros() as u64;
        let recent = peer.acknowledged.recent(self.now());
        let lags = [("lag_p50_us", 500), ("lag_p99_us", 990), ("lag_max_us", 1000)];
        let lags = lags.into_iter().filter_map(|(name, share)| Some((name, us(recent.per_mille(share)?))));
        let present =
            [("queued", peer.queued as u64), ("in_flight", peer.in_flight as u64), ("lag_us", us(peer.lag))];
        peer.counters.iter().copied().chain(lags).chain(present).collect()
    }

    fn stats(&self) -> Result<api::Stats, Problem> {
        let snapshot = self.election_status.load();
        let election = &snapshot.status;
        let replication = self.replication_status.load();
        let counts = |names: &mut dyn Iterator<Item = &'static str>, values: Vec<u64>| -> api::StatSection {
            names.zip(values).map(|(name, value)| (name.to_owned(), value.into())).collect()
        };
        let mut sync: api::StatSection =
            replication.counters.iter().map(|(name, n)| ((*name).to_owned(), (*n).into())).collect();
        let peers = replication.peers.iter();
        let peers = peers.map(|(n, p)| (self.names.node(*n), self.peer_stats(p)));
        sync.insert("peers".into(), peers.collect());
        sync.insert("flows".into(), (replication.flows as u64).into());
        sync.insert("flows_at_risk".into(), replication.at_risk.into());
        let mut link = api::StatSection::new();
        let mut vrrp = api::StatSection::new();
        let mut families: BTreeMap<&str, Vec<(&str, u64)>> = BTreeMap::new();
        for (family, name, count) in election_counters(&snapshot) {
            families.entry(family).or_default().push((name, count));
        }
        for (family, counters) in families {
            let section = if family.starts_with("vrrp") { &mut vrrp } else { &mut link };
            section.insert(family.to_owned(), counters.into_iter().collect());
        }
        for peer in &election.peers {
            let received = peer.links.iter().map(|l| (self.names.link(l.link), l.received));
            link.insert(format!("received_from_{}", self.names.node(peer.node)), received.collect());
        }
        for (peer, sync) in &replication.peers {
            let links = sync.links.iter().map(|l| {
                let rtt = l.rtt.map(|rtt| ("rtt_us", rtt.as_micros() as u64));
                let loss = l.loss_per_mille.map(|loss| ("loss_per_mille", u64::from(loss)));
                let numbers = l.counters.iter().chain(rtt).chain(loss).chain([("used", u64::from(l.used))]);
                (self.names.link(l.link), numbers.collect::<api::Stat>())
            });
            link.insert(format!("replication_{}", self.names.node(*peer)), links.collect());
        }
        link.insert(
            "thread".into(),
            [("late", snapshot.lateness.count), ("worst_us", snapshot.lateness.worst.as_micros() as u64)]
                .into_iter()
                .collect(),
        );
        let rules = self.rule_hits()?;
        Ok(api::Stats {
            flows: counts(&mut Counter::ALL.iter().map(|c| c.as_str()), self.maps.counters()?),
            sync,
            link,
            vrrp,
            drops: counts(&mut DropReason::ALL.iter().map(|r| r.as_str()), self.maps.drops()?),
            rules: rules.into_iter().map(|(name, hits)| (name, hits.into())).collect(),
        })
    }

    /// Hits of the rules in force, by name.
    pub(super) fn rule_hits(&self) -> Result<Vec<(String, u64)>, Problem> {
        let hits = self.maps.rule_hits()?;
        let config = self.config();
        let of = |name: &str| hits.get(&name_hash(name)).copied().unwrap_or(0);
        Ok(config.rules.iter().map(|rule| (rule.name.clone(), of(&rule.name))).collect())
    }

    /// Writes the flows of one table that match, a line each.
    fn write_flows(
        &self,
        table: Table,
        filter: &api::FlowFilter,
        to: &mpsc::Sender<std::io::Result<Bytes>>,
    ) -> std::io::Result<()> {
        let timeouts = self.maps.timeouts().map_err(std::io::Error::other)?;
        let snapshot = self.election_status.load();
        let owner = |group: GroupId| {
            let group = snapshot.status.groups.iter().find(|g| g.group == group);
            group.and_then(|g| g.active.first()).map_or("", |n| self.names.node(*n))
        };
        // Only flows that can be inherited are aged from the takeover on.
        let mut since_ns = [0; BUCKETS];
        if table == Table::Main {
            for (bucket, since) in since_ns.iter_mut().enumerate() {
                let group =
                    self.maps.group(u32::from(self.bucket_group[bucket])).map_err(std::io::Error::other)?;
                *since = group.since_ns;
            }
        }
        // Whether the client still listens.
        let write = |flows: &mut dyn Iterator<Item = (&FlowKey, &Flow)>| {
            let now_ns = self.clock.now_ns();
            let mut lines = Vec::new();
            for (key, flow) in flows.filter(|(_, flow)| !flow.is_ended()) {
                let bucket = usize::from(flow.bucket);
                let ends_ns = expiry_ns(key, flow, since_ns[bucket], &timeouts);
                let owner = match table {
                    Table::Node => self.names.me(),
                    _ => owner(self.bucket_group[bucket]),
                };
                let row = self.flow_row(key, flow, owner, now_ns, ends_ns);
                if filter.matches(&row) {
                    push_line(&mut lines, &row);
                }
            }
            lines.is_empty() || to.blocking_send(Ok(Bytes::from(lines))).is_ok()
        };
        let flow_maps = match table {
            Table::Main => std::slice::from_ref(self.maps.flows()),
            Table::Node => self.maps.node_tables(),
            Table::Embryonic => {
                return self.maps.each_embryonic(CHUNK, write);
            }
        };
        for flow_map in flow_maps {
            let mut walk = FlowWalk::new(CHUNK);
            while let Some((keys, flows)) = walk.next_chunk(flow_map)? {
                if !write(&mut keys.iter().zip(flows)) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    pub(super) fn flow_row(
        &self,
        key: &FlowKey,
        flow: &Flow,
        owner: &str,
        now_ns: u64,
        ends_ns: u64,
    ) -> api::FlowRow {
        let [(src, sport), (dst, dport)] = key.ends(flow.originator_is_b());
        let ms = |ns: u64| ns / 1_000_000;
        api::FlowRow {
            proto: protocol(key.proto),
            src: address(src),
            sport,
            dst: address(dst),
            dport,
            state: flow.state().as_str().to_owned(),
            zone_in: self.names.zone(flow.zones()[0]).to_owned(),
            zone_out: self.names.zone(flow.zones()[1]).to_owned(),
            owner: owner.to_owned(),
            origin: if flow.node == self.me { api::Origin::Local } else { api::Origin::Peer },
            age_ms: ms(now_ns.saturating_sub(flow.created_ns())),
            idle_ms: ms(now_ns.saturating_sub(flow.last_seen_ns())),
            timeout_ms: ms(ends_ns.saturating_sub(now_ns)),
            packets: flow.packets(),
            bytes: flow.bytes(),
            rule: self.config.load().rule_name(flow.rule_hash).unwrap_or_default().to_owned(),
            syn_proxied: flow.delta != 0,
        }
    }
}

/// What the election counts, by family and name, with what sockets refused before anybody looked inside.
pub(super) fn election_counters(
    snapshot: &election::Snapshot,
) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
    let Refused { ttl, length } = snapshot.refused;
    let refused = [("ttl", ttl), ("length", length)].map(|(name, count)| ("heartbeat_refused", name, count));
    snapshot.status.counters.iter().chain(refused)
}

/// Why datagrams of a peer are refused, if they are: its heartbeats, and its replication.
fn refused(heartbeats: Option<OpenError>, replication: Option<OpenError>) -> Vec<api::RefusedStatus> {
    let channels = [("heartbeats", heartbeats), ("replication", replication)];
    let refused = channels.into_iter().filter_map(|(channel, error)| Some((channel, error?)));
    refused
        .map(|(channel, error)| {
            let remedy = match error {
                OpenError::OtherCluster { .. } => ": compare cluster.name",
                OpenError::OtherKey { .. } => ": compare the key files",
                OpenError::Misdirected => ": compare the nodes in the config files",
                OpenError::Version { .. } => ": upgrade the older node",
                _ => "",
            };
            api::RefusedStatus {
                channel: channel.to_owned(),
                reason: error.as_str().to_owned(),
                text: format!("{channel} refused: {error}{remedy}"),
            }
        })
        .collect()
}

/// The name of a protocol, or its number.
pub(super) fn protocol(number: u8) -> String {
    proto::name(number).map_or_else(|| number.to_string(), str::to_owned)
}

pub(super) fn address(bytes: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(bytes).to_canonical()
}
