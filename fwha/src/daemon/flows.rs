//! Flows at an operator's word: in which ones this node's replica differs from its kernel's table and from its peers
//! (`GET /v1/flows/diff`), and some deleted
//! (`POST /v1/flows/delete`).

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Json, Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use futures_util::stream;
use fwha_common::flow::{Flow, FlowId, FlowKey};
use fwha_proto::NodeId;
use fwha_proto::replication::{Difference, Failure, Found, Side, SyncState, Unready};
use tokio::sync::{mpsc, oneshot};

use super::replication::{Command, DiffRefused};
use super::server::{CHUNK, Problem, Server, address, ndjson, protocol, push_line};
use super::sweeper::expiry_ns;
use super::transfer::{ANSWER_WAIT, unready};
use crate::api;
use crate::dataplane::maps::{FlowMap, FlowWalk};
use crate::sys::bpf::Write;

/// Findings that share a piece of an answer.
const PIECE: usize = 256;

pub(super) async fn diff(
    State(server): State<Arc<Server>>,
    query: Result<Query<api::DiffQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(query) = query?;
    if query.local && (query.peer.is_some() || query.all) {
        return Err(Problem(StatusCode::BAD_REQUEST, "local goes with neither peer nor all".into()));
    }
    if !server.config().replication.enabled {
        let problem = "replication is off (`[replication] enabled`): there is nothing to compare";
        return Err(Problem(StatusCode::CONFLICT, problem.into()));
    }
    let named = query.peer.as_deref().map(|name| server.peer_named(Some(name))).transpose()?.flatten();
    let config = server.config();
    let peers = config.nodes.iter().map(|n| n.id).filter(|&n| n != server.me && !query.local);
    let others = named.is_none().then_some(Other::Kernel).into_iter();
    let others: Vec<Other> =
        others.chain(peers.filter(|&n| named.is_none_or(|named| named == n)).map(Other::Peer)).collect();
    let only = others.len() == 1;
    let mut comparisons = Vec::new();
    let mut refused = Vec::new();
    for other in others {
        let name = match other {
            Other::Kernel => api::KERNEL,
            Other::Peer(peer) => server.names.node(peer),
        };
        match begin(&server, other, query.all).await? {
            Ok(found) => comparisons.push((name.to_owned(), found)),
            // What was asked for by name cannot be had at all.
            Err(why) if only => return Err(Problem(StatusCode::CONFLICT, why)),
            Err(why) => push_line(
                &mut refused,
                &end(name, api::DiffEnd { error: Some(why), ..api::DiffEnd::default() }),
            ),
        }
    }
    let pieces =
        stream::unfold((server, comparisons, refused), async |(server, mut comparisons, refused)| {
            if !refused.is_empty() {
                return Some((
                    Ok::<_, std::io::Error>(Bytes::from(refused)),
                    (server, comparisons, Vec::new()),
                ));
            }
            let mut lines = Vec::new();
            // One after the other; what is found with others waits in its channel.
            while let Some((other, found)) = comparisons.first_mut() {
                let mut some = Vec::new();
                if found.recv_many(&mut some, PIECE).await == 0 {
                    comparisons.remove(0);
                    continue;
                }
                some.iter().for_each(|found| push_line(&mut lines, &line(&server, other, found)));
                return Some((Ok(Bytes::from(lines)), (server, comparisons, Vec::new())));
            }
            None
        });
    Ok(ndjson(Body::from_stream(pieces)))
}

/// With what the replica is compared.
#[derive(Clone, Copy)]
enum Other {
    /// This node's own flow table.
    Kernel,
    /// The replica of a peer.
    Peer(NodeId),
}

/// Begins a comparison, or says why not.
async fn begin(
    server: &Server,
    other: Other,
    all: bool,
) -> Result<Result<mpsc::UnboundedReceiver<Found>, String>, Problem> {
    let (found, receiver) = mpsc::unbounded_channel();
    let (reply, answer) = oneshot::channel();
    let (name, command) = match other {
        Other::Kernel => ("the kernel's table", Command::DiffKernel { found, reply }),
        Other::Peer(peer) => (server.names.node(peer), Command::Diff { peer, all, found, reply }),
    };
    server.replication.send(command);
    match tokio::time::timeout(ANSWER_WAIT, answer).await {
        Ok(Ok(Ok(()))) => Ok(Ok(receiver)),
        Ok(Ok(Err(DiffRefused::Running))) => Ok(Err(format!("another comparison with {name} is running"))),
        Ok(Ok(Err(DiffRefused::Unready(why)))) => Ok(Err(format!("{name}: {}", unready(state(why))))),
        _ => Err(Problem(StatusCode::SERVICE_UNAVAILABLE, "replication does not answer".into())),
    }
}

const fn state(why: Unready) -> SyncState {
    match why {
        Unready::State(state) => state,
        Unready::OwnsNothing => SyncState::Down,
    }
}

fn line(server: &Server, other: &str, found: &Found) -> api::DiffLine {
    match found {
        Found::Difference(d) => api::DiffLine::Difference(difference(server, other, d)),
        Found::Done(summary) => end(
            other,
            api::DiffEnd {
                buckets: summary.buckets,
                buckets_listed: summary.buckets_listed,
                flows_listed: summary.flows_listed,
                differences: summary.differences,
                in_flight: summary.in_flight,
                untold: summary.untold,
                ..api::DiffEnd::default()
            },
        ),
        Found::Failed(failure) => {
            let name = other;
            let error = match failure {
                Failure::TooOld => {
                    format!("{name} runs a version of fwha that does not know the question: upgrade it")
                }
                Failure::Lost(state) => {
                    format!("{name} was lost on the way (replication is {})", state.as_str())
                }
                Failure::Unreadable => "the flow table cannot be read: see the log".into(),
            };
            end(other, api::DiffEnd { error: Some(error), ..api::DiffEnd::default() })
        }
    }
}

fn end(other: &str, end: api::DiffEnd) -> api::DiffLine {
    api::DiffLine::End(api::DiffEnd { peer: other.to_owned(), ..end })
}

fn difference(server: &Server, other: &str, d: &Difference) -> api::FlowDifference {
    let side = |side: &Side| api::FlowSide {
        identity: format!("{}/{:08x}/{}", server.names.node(side.id.node), side.id.epoch, side.id.number),
        version: format!("{}.{}", Flow::term(side.version), side.version & u64::from(u32::MAX)),
        state: side.state.as_str().to_owned(),
        age_ms: side.age.as_millis() as u64,
    };
    let originator_is_b = d.here.or(d.there).is_some_and(|side| side.originator_is_b);
    let [(src, sport), (dst, dport)] = d.key.ends(originator_is_b);
    api::FlowDifference {
        peer: other.to_owned(),
        kind: d.kind().as_str().to_owned(),
        in_flight: d.in_flight,
        proto: protocol(d.key.proto),
        src: address(src),
        sport,
        dst: address(dst),
        dport,
        bucket: d.bucket,
        here: d.here.as_ref().map(side),
        there: d.there.as_ref().map(side),
    }
}

pub(super) async fn delete(
    State(server): State<Arc<Server>>,
    filter: Result<Json<api::FlowFilter>, JsonRejection>,
) -> Result<Json<api::FlowsDeleted>, Problem> {
    let Json(filter) = filter?;
    server.know_zone(&filter)?;
    let deleted = tokio::task::spawn_blocking(move || server.delete(&filter)).await??;
    Ok(Json(deleted))
}

impl Server {
    /// Deletes the flows that match: those that this node owns, and tells the peers; those of the node itself; and those that
    /// nobody has answered yet.
    fn delete(&self, filter: &api::FlowFilter) -> Result<api::FlowsDeleted, Problem> {
        let result = self.end_flows(|key, flow| filter.matches(&self.flow_row(key, flow, "", 0, 0)))?;
        if result.deleted == 0 && result.not_owned > 0 {
            let (me, count) = (self.names.me(), result.not_owned);
            let problem = format!("{me} does not own these {count} flows: delete them on the active node");
            return Err(Problem(StatusCode::CONFLICT, problem));
        }
        Ok(result)
    }

    /// As [`Self::delete`], of those for which `ends` is true. Those of the node itself stay in their table as ended ones: the
    /// node's end of a connection may live on.
    pub(super) fn end_flows(
        &self,
        ends: impl Fn(&FlowKey, &Flow) -> bool,
    ) -> Result<api::FlowsDeleted, Problem> {
        let mut owned = Vec::new();
        for &group in &self.bucket_group {
            owned.push(self.maps.group(u32::from(group))?.owned(self.clock.now_ns()));
        }
        // First: one that is answered meanwhile is in the main table, and found there.
        let (timeouts, now_ns) = (self.config().timeouts, self.clock.now_ns());
        let lives = |key: &FlowKey, flow: &Flow| expiry_ns(key, flow, 0, &timeouts) > now_ns;
        let deleted = self.maps.forget_embryonic(|key, flow| lives(key, flow) && ends(key, flow))?;
        let mut result = api::FlowsDeleted { deleted, ..api::FlowsDeleted::default() };
        self.matching(self.maps.flows(), &ends, |key, flow| {
            if !owned[usize::from(flow.bucket)] {
                result.not_owned += 1;
                return Ok(None);
            }
            Ok(self.take(key, flow)?.then_some((*key, flow.id())))
        })?
        .chunks(CHUNK)
        .for_each(|gone| {
            result.deleted += gone.len() as u64;
            self.replication.send(Command::Expired(gone.to_vec()));
        });
        let lives_on = |key: &FlowKey, flow: &Flow| !flow.is_ended() && ends(key, flow);
        for table in self.maps.node_tables() {
            let gone = self.matching(table, lives_on, |key, flow| {
                Ok(self.maps.end_node_flow(key, flow)?.then_some((*key, flow.id())))
            })?;
            result.deleted += gone.len() as u64;
        }
        Ok(result)
    }

    /// What `act` makes of the flows of a table for which `matches` is true.
    fn matching(
        &self,
        map: &FlowMap,
        matches: impl Fn(&FlowKey, &Flow) -> bool,
        mut act: impl FnMut(&FlowKey, &Flow) -> std::io::Result<Option<(FlowKey, FlowId)>>,
    ) -> Result<Vec<(FlowKey, FlowId)>, Problem> {
        let mut gone = Vec::new();
        let mut walk = FlowWalk::new(CHUNK);
        while let Some((keys, flows)) = walk.next_chunk(map)? {
            for (key, flow) in keys.iter().zip(flows) {
                if matches(key, flow) {
                    gone.extend(act(key, flow)?);
                }
            }
        }
        Ok(gone)
    }

    /// Takes a flow out of the main table. Whether it was still that one; another one is put back,
    /// unless a packet has begun a third one meanwhile.
    fn take(&self, key: &FlowKey, seen: &Flow) -> std::io::Result<bool> {
        let Some(flow) = self.maps.flows().take(key)? else { return Ok(false) };
        if flow.id() == seen.id() {
            return Ok(true);
        }
        match self.maps.put_flow(key, &flow, Write::New) {
            Err(error) if error.raw_os_error() != Some(libc::EEXIST) => Err(error),
            _ => Ok(false),
        }
    }
}
