//! The control API's planned moves, switchover and standby; and why a role is what it is.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Json, State};
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use fwha_proto::NodeId;
use fwha_proto::election::{CommandError, GroupId};
use fwha_proto::heartbeat::{NodeState, Role};
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior};

use super::election::{Command, Snapshot};
use super::resources::Released;
use super::server::{Problem, Server};
use crate::api;

/// How long a move may take before the client is told that it did not happen.
const MOVE_WAIT: Duration = Duration::from_secs(5);
/// How long replication may take to show how it stands after a move: twenty times what it does.
const SHOW_WAIT: Duration = Duration::from_secs(1);
/// How long the taker may take to be in sync before a move is refused: just after another move it is not yet.
const IN_SYNC_WAIT: Duration = Duration::from_secs(2);
/// Between two looks at the election while a group moves.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);
/// What ends a standby.
pub(super) const STANDBY_REMEDY: &str =
    "it takes no group, even if no other node can, until `fwhactl standby off`";

type Shared = State<Arc<Server>>;

/// What is said of a node on standby.
pub(super) fn on_standby(name: &str) -> String {
    format!("{name} is on standby: {STANDBY_REMEDY}")
}

/// Puts what an operator must not forget on every answer.
pub(super) async fn warn(State(server): Shared, mut response: Response) -> Response {
    if server.election_status.load().status.node == NodeState::Standby
        && let Ok(text) = HeaderValue::from_str(&on_standby(server.names.me()))
    {
        response.headers_mut().insert(api::WARNING_HEADER, text);
    }
    response
}

pub(super) async fn switchover(
    State(server): Shared,
    request: Result<Json<api::SwitchoverRequest>, JsonRejection>,
) -> Result<Json<api::SwitchoverReply>, Problem> {
    let Json(request) = request?;
    let id = server.group_named(request.group.as_deref())?;
    let to = request.to.as_deref().map(|name| server.node_named(name)).transpose()?;
    if !request.force {
        server.check_in_sync(|group| group == id, to).await?;
    }
    let (began, asked) = (Instant::now(), server.now());
    let released = server.release(|group| group == id, to).await;
    let to = server.command(|reply| Command::Switchover { group: id, to, reply }).await?;
    let name = server.names.node(to);
    let outcome = server.watch(began, |election| {
        let group = election.status.groups.iter().find(|g| g.group == id)?;
        let refusal = group.refusal.as_ref().filter(|refusal| refusal.at >= asked);
        match refusal {
            _ if group.role != Role::Active && group.active.contains(&to) => Some(Ok(())),
            Some(refusal) => Some(Err(format!("{name} {}", refusal.reason))),
            None => None,
        }
    });
    match outcome.await {
        Some(Ok(())) => {
            let took_ms = began.elapsed().as_secs_f64() * 1e3;
            released.moved();
            server.see_replication().await;
            Ok(Json(api::SwitchoverReply {
                group: server.names.group(id).to_owned(),
                from: server.names.me().to_owned(),
                to: name.to_owned(),
                took_ms,
            }))
        }
        Some(Err(reason)) => Err(server.not_moved(id, &reason)),
        None => Err(server.not_moved(id, &format!("{name} is not seen to have it"))),
    }
}

pub(super) async fn standby(
    State(server): Shared,
    request: Result<Json<api::StandbyRequest>, JsonRejection>,
) -> Result<Json<api::StandbyReply>, Problem> {
    let Json(api::StandbyRequest { on, force }) = request?;
    let unkept = |error: anyhow::Error| {
        let undone =
            if on { ": standby holds until the daemon ends only" } else { ": the node stays on standby" };
        Problem(StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}{undone}"))
    };
    if on && !force {
        server.check_in_sync(|_| true, None).await?;
    }
    let began = Instant::now();
    let before = server.election_status.load_full();
    if !on {
        server.state.set_standby(false).map_err(unkept)?;
    }
    let released = server.release(|_| on, None).await;
    server.command(|reply| Command::Standby { on, force, reply }).await?;
    if on {
        server.state.set_standby(true).map_err(unkept)?;
    }
    if (before.status.node == NodeState::Standby) != on {
        let text =
            format!("{}: standby {}, an operator said so", server.names.me(), if on { "on" } else { "off" });
        server.events.record(server.now(), "standby", None, text, Vec::new());
    }
    let wanted = if on { NodeState::Standby } else { NodeState::Running };
    let settled = server.watch(began, |election| {
        let had = before.status.groups.iter().filter(|g| g.role == Role::Active).map(|g| g.group);
        let away =
            |id: GroupId| election.status.groups.iter().any(|g| g.group == id && g.role != Role::Active);
        (election.status.node == wanted && (!on || had.clone().all(away))).then_some(())
    });
    if settled.await.is_none() {
        let late = "standby is in force, but a group is still here: see `fwhactl status`";
        return Err(Problem(StatusCode::SERVICE_UNAVAILABLE, late.into()));
    }
    released.moved();
    let after = server.election_status.load();
    let moved = |group: &fwha_proto::election::status::GroupStatus| {
        let was = before.status.groups.iter().any(|g| g.group == group.group && g.role == Role::Active);
        (was && group.role != Role::Active).then(|| api::MovedGroup {
            group: server.names.group(group.group).to_owned(),
            to: group.active.first().map(|node| server.names.node(*node).to_owned()),
        })
    };
    Ok(Json(api::StandbyReply {
        node: server.names.me().to_owned(),
        on,
        moved: after.status.groups.iter().filter_map(moved).collect(),
        took_ms: began.elapsed().as_secs_f64() * 1e3,
    }))
}

pub(super) async fn explain_role(State(server): Shared) -> Result<Json<Vec<api::RoleExplanation>>, Problem> {
    let (reply, answer) = oneshot::channel();
    server.election.send(Command::Explain(reply));
    let answer = tokio::time::timeout(MOVE_WAIT, answer).await.ok().and_then(Result::ok);
    let silent = || Problem(StatusCode::SERVICE_UNAVAILABLE, "the election does not answer".into());
    let explained = answer.ok_or_else(silent)?.into_iter().map(|explained| api::RoleExplanation {
        group: server.names.group(explained.group).to_owned(),
        node: server.names.me().to_owned(),
        role: explained.role.as_str().to_owned(),
        reason: explained.reason,
        because: explained.because,
        members: explained
            .members
            .into_iter()
            .map(|member| api::MemberStanding {
                node: server.names.node(member.node).to_owned(),
                priority: member.priority,
                standing: member.standing,
            })
            .collect(),
        trackers: explained.trackers.iter().map(|t| server.tracker_status(t)).collect(),
    });
    Ok(Json(explained.collect()))
}

impl Server {
    /// Stops what runs with those of the groups that can move from here: to a node, or to any.
    async fn release(&self, moves: impl Fn(GroupId) -> bool, to: Option<NodeId>) -> Released {
        let election = self.election_status.load_full();
        self.resources.release(takers(&election, moves, to).map(|(group, _)| group)).await
    }

    /// Waits until connections survive that the groups move from here: to a node, or to the best.
    ///
    /// # Errors
    /// When a taker does not come to say that its tables and those of this node agree.
    async fn check_in_sync(
        &self,
        moves: impl Fn(GroupId) -> bool,
        to: Option<NodeId>,
    ) -> Result<(), Problem> {
        if !self.config().replication.enabled {
            return Ok(());
        }
        let began = Instant::now();
        let mut looks = tokio::time::interval(LOOK_INTERVAL);
        loop {
            looks.tick().await;
            let election = self.election_status.load_full();
            let in_sync =
                |node: NodeId| election.status.peers.iter().any(|peer| peer.node == node && peer.in_sync);
            let Some((group, taker)) = takers(&election, &moves, to).find(|(_, taker)| !in_sync(*taker))
            else {
                return Ok(());
            };
            if began.elapsed() >= IN_SYNC_WAIT {
                let reason = format!(
                    "{} is not in sync with {}, whose connections may be lost (see `fwhactl status`; `--force` does it all \
                     the same)",
                    self.names.node(taker),
                    self.names.me()
                );
                return Err(self.not_moved(group, &reason));
            }
        }
    }

    /// Gives the election a command and waits for its answer.
    async fn command<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, CommandError>>) -> Command,
    ) -> Result<T, Problem> {
        let (reply, answer) = oneshot::channel();
        self.election.send(command(reply));
        let unavailable = |text: &str| Problem(StatusCode::SERVICE_UNAVAILABLE, text.into());
        let answer = tokio::time::timeout(MOVE_WAIT, answer).await;
        let answer = answer.map_err(|_| unavailable("the election does not answer"))?;
        let answer = answer.map_err(|_| unavailable("the daemon is shutting down"))?;
        answer.map_err(|error| {
            let remedy = match error {
                CommandError::LastEligible { .. } => "; `--force` does it all the same",
                _ => "",
            };
            Problem(StatusCode::CONFLICT, format!("{error}{remedy}"))
        })
    }

    /// Looks at the election until it has come to something; `None` if it does not within [`MOVE_WAIT`].
    async fn watch<T>(&self, began: Instant, outcome: impl Fn(&Snapshot) -> Option<T>) -> Option<T> {
        let mut looks = tokio::time::interval(LOOK_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while began.elapsed() < MOVE_WAIT {
            looks.tick().await;
            if let Some(outcome) = outcome(&self.election_status.load()) {
                return Some(outcome);
            }
        }
        None
    }

    /// Waits until replication has shown how it stands now, so that what a client sees next is not of before the move.
    async fn see_replication(&self) {
        let moved = self.now();
        let shown = async {
            while self.replication_status.load().at < moved {
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
        };
        // If it shows nothing, `status` says that the thread hangs.
        let _ = tokio::time::timeout(SHOW_WAIT, shown).await;
    }

    /// Why a group did not move, and where it is.
    fn not_moved(&self, id: GroupId, reason: &str) -> Problem {
        let election = self.election_status.load();
        let group = election.status.groups.iter().find(|g| g.group == id);
        let (role, why) = group.map_or((Role::Init, ""), |g| (g.role, g.reason.as_str()));
        let (name, me) = (self.names.group(id), self.names.me());
        let here = if role == Role::Active {
            format!("it stays with {me}")
        } else {
            format!("{me} is {role} ({why})")
        };
        Problem(StatusCode::CONFLICT, format!("group {name} was not moved: {reason}; {here}"))
    }
}

/// Those of the groups that are here and can move: to a node, or to the best.
fn takers(
    election: &Snapshot,
    moves: impl Fn(GroupId) -> bool,
    to: Option<NodeId>,
) -> impl Iterator<Item = (GroupId, NodeId)> {
    let here = election.status.groups.iter().filter(move |g| g.role == Role::Active && moves(g.group));
    here.filter_map(move |group| {
        let taker = group.candidates.iter().find(|node| to.is_none_or(|to| **node == to))?;
        Some((group.group, *taker))
    })
}
