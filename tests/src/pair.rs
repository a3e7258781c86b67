//! The two nodes of a lab together, and the words of their `status` that tests look at.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::lab::{Lab, Node, NodeProcess};

/// How long the pair may take to settle, and any program to say what is expected of it. No test waits so long but one that
/// fails: each daemon that starts has the verifier busy for seconds, on a machine with other work several times as long.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The pair's daemons.
pub struct Pair {
    nodes: [NodeProcess; 2],
}

impl Pair {
    /// Starts both nodes.
    ///
    /// # Errors
    ///
    /// When one cannot be started.
    pub fn start(lab: &Lab) -> Result<Pair> {
        Ok(Pair::of(lab.start_node(Node::Fw1)?, lab.start_node(Node::Fw2)?))
    }

    /// The pair of fw1 and fw2, started one by one.
    pub fn of(fw1: NodeProcess, fw2: NodeProcess) -> Pair {
        Pair { nodes: [fw1, fw2] }
    }

    /// Starts both nodes and waits until they have [settled](Self::settle). Returns the Active one as well.
    ///
    /// # Errors
    ///
    /// When one cannot be started or they do not settle.
    pub fn settled(lab: &Lab) -> Result<(Pair, Node)> {
        let mut pair = Pair::start(lab)?;
        let active = pair.settle(lab)?;
        Ok((pair, active))
    }

    /// One of them.
    pub fn node(&self, node: Node) -> &NodeProcess {
        &self.nodes[node as usize]
    }

    /// One of them, to be ended.
    pub fn node_mut(&mut self, node: Node) -> &mut NodeProcess {
        &mut self.nodes[node as usize]
    }

    /// Starts a node again that has ended.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn restart(&mut self, lab: &Lab, node: Node) -> Result<()> {
        self.nodes[node as usize] = lab.start_node(node)?;
        Ok(())
    }

    /// Waits until one node is Active and the other Backup, both agree on which and on the term, and, with replication,
    /// both are in sync. Returns the Active one.
    ///
    /// # Errors
    ///
    /// When a daemon has ended or the pair does not settle.
    pub fn settle(&mut self, lab: &Lab) -> Result<Node> {
        let replication = lab.options().replication;
        lab.wait_for("one node active, the other backup and in sync", PATIENCE, || {
            for node in &mut self.nodes {
                ensure!(node.is_running()?, "the daemon of {} has ended", node.node());
            }
            let status = [self.nodes[0].ctl(&["status"])?, self.nodes[1].ctl(&["status"])?];
            let Some(active) = agreed_active(&status) else { return Ok(None) };
            let in_sync = !replication || status.iter().all(in_sync);
            Ok(in_sync.then_some(active))
        })
    }

    /// Waits until a node has a role.
    ///
    /// # Errors
    ///
    /// When it does not get it in time.
    pub fn wait_for_role(&self, lab: &Lab, node: Node, wanted: &str) -> Result<Value> {
        self.wait_for_status(lab, node, &format!("{node} to be {wanted}"), |status| {
            role(status) == Some(wanted)
        })
    }

    /// Waits until a node's `status` is as wanted, and returns it.
    ///
    /// # Errors
    ///
    /// When it does not become so in time.
    pub fn wait_for_status(
        &self,
        lab: &Lab,
        node: Node,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        lab.wait_for(what, PATIENCE, || {
            let status = self.node(node).ctl(&["status"])?;
            Ok(wanted(&status).then_some(status))
        })
    }

    /// Waits until a counter of a node, by its path in `stats`, has grown beyond `least`, and returns it.
    ///
    /// # Errors
    ///
    /// When it does not in time.
    pub fn wait_for_count(&self, lab: &Lab, node: Node, counter: &str, least: u64) -> Result<u64> {
        lab.wait_for(&format!("{counter} of {node} to be more than {least}"), PATIENCE, || {
            let count = self.node(node).count(counter)?;
            Ok((count > least).then_some(count))
        })
    }

    /// Waits until the Active has sent so many more rounds of advertisements, whatever their interval is then: time for
    /// anything to happen that would.
    ///
    /// # Errors
    ///
    /// When it does not in time.
    pub fn wait_for_adverts(&self, lab: &Lab, active: Node, rounds: u64) -> Result<()> {
        const SENT: &str = "vrrp.vrrp_tx.adverts";
        // One in each of two zones.
        let least = self.node(active).count(SENT)? + 2 * rounds;
        self.wait_for_count(lab, active, SENT, least).map(drop)
    }

    /// Role and term of both nodes: what must not change when nothing is to move.
    ///
    /// # Errors
    ///
    /// When a node does not answer.
    pub fn roles(&self) -> Result<[(String, u64); 2]> {
        let one = |node: Node| -> Result<(String, u64)> {
            let status = self.node(node).ctl(&["status"])?;
            Ok((role(&status).unwrap_or_default().to_owned(), term(&status)))
        };
        Ok([one(Node::Fw1)?, one(Node::Fw2)?])
    }
}

/// The node that both call Active, in the same term, while the other is Backup; from the `status` of fw1 and fw2.
fn agreed_active(status: &[Value; 2]) -> Option<Node> {
    let active = match [role(&status[0])?, role(&status[1])?] {
        ["active", "backup"] => Node::Fw1,
        ["backup", "active"] => Node::Fw2,
        _ => return None,
    };
    let alone = |status: &Value| status.pointer("/groups/0/also_active").is_none();
    let agreed = status.iter().all(|status| active_node(status) == Some(active.name()) && alone(status));
    (agreed && term(&status[0]) == term(&status[1])).then_some(active)
}

/// A node's role in the lab's one group, from its `status`.
pub fn role(status: &Value) -> Option<&str> {
    status.pointer("/groups/0/role")?.as_str()
}

/// Who is Active in the lab's one group, from a node's `status`.
pub fn active_node(status: &Value) -> Option<&str> {
    status.pointer("/groups/0/active")?.as_str()
}

/// The term of the lab's one group, from a node's `status`.
pub fn term(status: &Value) -> u64 {
    status.pointer("/groups/0/term").and_then(Value::as_u64).unwrap_or(0)
}

/// What a node knows of its peer's life, from its `status`.
pub fn peer_state(status: &Value) -> Option<&str> {
    status.pointer("/peers/0/state")?.as_str()
}

/// Whether a node and its peer have proved to each other that they hold the same flows, from its `status`.
pub fn in_sync(status: &Value) -> bool {
    status.pointer("/peers/0/sync/digest_match") == Some(&Value::Bool(true))
        && status.pointer("/peers/0/sync/state").and_then(Value::as_str) == Some("in-sync")
}

/// When an event was, in milliseconds of `CLOCK_MONOTONIC`.
pub fn event_ms(event: &Value) -> f64 {
    event.get("at_mono_ms").and_then(Value::as_f64).unwrap_or(0.0)
}
