//! Bulk transfers that an operator asks for: `POST /v1/bulk` and `POST /v1/resync`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::rejection::JsonRejection;
use axum::extract::{Json, State};
use axum::http::StatusCode;
use axum::response::Response;
use futures_util::stream;
use fwha_proto::NodeId;
use fwha_proto::replication::{BulkProgress, SyncState, Unready};
use fwha_proto::time::Time;
use tokio::sync::{mpsc, oneshot};

use super::replication::{Command, Direction, PeerSnapshot};
use super::server::{Problem, Server, ndjson, push_line};
use crate::api;

/// How long the replication thread may take for an answer.
pub(super) const ANSWER_WAIT: Duration = Duration::from_secs(5);
/// Between two lines of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
/// Lines that wait for a slow client.
const LINES: usize = 16;

type Request = Result<Json<api::TransferRequest>, JsonRejection>;

pub(super) async fn bulk(State(server): State<Arc<Server>>, request: Request) -> Result<Response, Problem> {
    transfer(server, request?.0, Direction::Sending).await
}

pub(super) async fn resync(State(server): State<Arc<Server>>, request: Request) -> Result<Response, Problem> {
    transfer(server, request?.0, Direction::Receiving).await
}

async fn transfer(
    server: Arc<Server>,
    request: api::TransferRequest,
    direction: Direction,
) -> Result<Response, Problem> {
    let peer = server.peer_named(request.peer.as_deref())?;
    let since = server.now();
    let (reply, answer) = oneshot::channel();
    server.replication.send(Command::Transfer { direction, peer, reply });
    let requested = match tokio::time::timeout(ANSWER_WAIT, answer).await {
        Ok(Ok(requested)) => requested,
        _ => return Err(Problem(StatusCode::SERVICE_UNAVAILABLE, "replication does not answer".into())),
    };
    let (lines, receiver) = mpsc::channel::<Bytes>(LINES);
    let mut first = Vec::new();
    let mut watched = BTreeMap::new();
    let snapshot = server.replication_status.load_full();
    for (node, result) in requested {
        let name = server.names.node(node).to_owned();
        let line = match (result, snapshot.peers.get(&node)) {
            (Ok(buckets), Some(peer)) => {
                let idle = BulkProgress { buckets_left: buckets, ..BulkProgress::default() };
                let watch = Watch { direction, since, session: peer.session(), asked: buckets > 0 };
                watched.insert(node, watch);
                running(name, direction, peer.bulk.get(&direction).unwrap_or(&idle))
            }
            (Ok(_), None) => continue,
            (Err(why), _) => failed(name, direction, refusal(&server, node, direction, why)),
        };
        push_line(&mut first, &line);
    }
    if request.wait {
        tokio::spawn(watch(server, watched, lines));
    }
    let rest = stream::unfold((Some(Bytes::from(first)), receiver), async |(first, mut receiver)| {
        let line = match first {
            Some(first) => first,
            None => receiver.recv().await?,
        };
        Some((Ok::<_, std::io::Error>(line), (None, receiver)))
    });
    Ok(ndjson(Body::from_stream(rest)))
}

/// A transfer under way.
struct Watch {
    direction: Direction,
    /// When it was asked for.
    since: Time,
    /// In which session.
    session: u64,
    /// Whether there was anything to transfer.
    asked: bool,
}

impl Watch {
    /// What is to be said of it now.
    fn line(&self, name: &str, peer: &PeerSnapshot) -> api::Transfer {
        let broken = peer.session() != self.session || !answers(peer.state);
        match peer.bulk.get(&self.direction) {
            _ if broken => {
                let why = format!("{name} was lost on the way (replication is {})", peer.state.as_str());
                failed(name.to_owned(), self.direction, why)
            }
            Some(progress) => running(name.to_owned(), self.direction, progress),
            None => self.done(name, peer),
        }
    }

    fn done(&self, name: &str, peer: &PeerSnapshot) -> api::Transfer {
        let finished = peer.finished.get(&self.direction).filter(|f| f.at >= self.since);
        if finished.is_none() && self.asked {
            let why = "cut short: who was to send it does not own all of it any more".to_owned();
            return failed(name.to_owned(), self.direction, why);
        }
        let (flows, took) = finished.map_or((0, Duration::ZERO), |f| (f.flows, f.took));
        api::Transfer {
            peer: name.to_owned(),
            state: api::TransferState::Done,
            bulk: api::BulkStatus {
                direction: self.direction.into(),
                flows_done: flows,
                flows_total: flows,
                elapsed_ms: took.as_millis() as u64,
                ..api::BulkStatus::default()
            },
            swept: finished.filter(|_| self.direction == Direction::Receiving).map(|f| f.swept),
            error: None,
        }
    }
}

/// Tells how far transfers are until none is left, or nobody knows any more.
async fn watch(server: Arc<Server>, mut watched: BTreeMap<NodeId, Watch>, lines: mpsc::Sender<Bytes>) {
    let mut ticks = tokio::time::interval(PROGRESS_INTERVAL);
    while !watched.is_empty() {
        ticks.tick().await;
        let snapshot = server.replication_status.load_full();
        let hangs = server.replication_thread(&snapshot).hangs();
        let mut text = Vec::new();
        watched.retain(|node, watch| {
            let Some(peer) = snapshot.peers.get(node) else { return false };
            let name = server.names.node(*node);
            let line = if hangs {
                let why = format!("how far it is with {name} is not known: the replication thread hangs");
                failed(name.to_owned(), watch.direction, why)
            } else {
                watch.line(name, peer)
            };
            push_line(&mut text, &line);
            line.state == api::TransferState::Running
        });
        if lines.send(text.into()).await.is_err() {
            // A client that hung up need not know.
            return;
        }
    }
}

fn answers(state: SyncState) -> bool {
    state > SyncState::Silent
}

fn running(peer: String, direction: Direction, progress: &BulkProgress) -> api::Transfer {
    api::Transfer { peer, bulk: bulk_status(direction, progress), ..api::Transfer::default() }
}

fn failed(peer: String, direction: Direction, error: String) -> api::Transfer {
    let bulk = api::BulkStatus { direction: direction.into(), ..api::BulkStatus::default() };
    api::Transfer { peer, state: api::TransferState::Failed, bulk, swept: None, error: Some(error) }
}

fn refusal(server: &Server, node: NodeId, direction: Direction, why: Unready) -> String {
    let (me, peer) = (server.names.me(), server.names.node(node));
    match why {
        Unready::State(state) => format!("{peer}: {}", unready(state)),
        Unready::OwnsNothing => match direction {
            Direction::Sending => format!("{me} owns no flows, so it has none to send: ask the active node"),
            Direction::Receiving => format!("{peer} owns no flows, so it has none to send"),
        },
    }
}

/// Why a peer in this state cannot be asked for anything.
pub(super) const fn unready(state: SyncState) -> &'static str {
    match state {
        SyncState::Disabled => "replication is off (replication.enabled = false)",
        SyncState::Down => "no session with it (see `fwhactl status`)",
        SyncState::Handshake => "it has not introduced itself yet: try again",
        _ => "it does not answer",
    }
}

/// How far a bulk transfer is.
pub(super) fn bulk_status(direction: Direction, progress: &BulkProgress) -> api::BulkStatus {
    api::BulkStatus {
        direction: direction.into(),
        flows_done: progress.flows_done,
        flows_total: progress.flows_total,
        buckets_left: progress.buckets_left as u64,
        elapsed_ms: progress.elapsed.as_millis() as u64,
        remaining_ms: progress.remaining().map(|left| left.as_millis() as u64),
    }
}

impl From<Direction> for api::Direction {
    fn from(direction: Direction) -> Self {
        match direction {
            Direction::Sending => Self::Sending,
            Direction::Receiving => Self::Receiving,
        }
    }
}
