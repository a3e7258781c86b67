//! The pair of nodes under fwha, and what this suite asks it.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use fwha_tests::lab::{Lab, Node};
use fwha_tests::pair::{PATIENCE, Pair, role};
use serde_json::Value;

use super::LOAD_RATE;
use super::traffic::{OPENING, Wire};

/// How long a big table may take to get across.
pub const LONG: Duration = Duration::from_secs(120);

/// How often connections are tried.
const ATTEMPTS: u32 = 3;

/// Two nodes, of which fw1 is Active at first.
pub struct Fwha {
    pair: Pair,
}

impl Fwha {
    /// Starts both nodes, with tables that are empty.
    ///
    /// # Errors
    ///
    /// When they do not settle.
    pub fn start(lab: &Lab) -> Result<Self> {
        let fw1 = lab.start_node(Node::Fw1)?;
        lab.wait_for("fw1 to be active", PATIENCE, || {
            Ok((role(&fw1.ctl(&["status"])?) == Some("active")).then_some(()))
        })?;
        let mut pair = Pair::of(fw1, lab.start_node(Node::Fw2)?);
        ensure!(pair.settle(lab)? == Node::Fw1, "fw1 is not active any more");
        Ok(Self { pair })
    }

    /// Its process on a node.
    pub fn pid(&self, node: Node) -> u32 {
        self.pair.node(node).pid()
    }

    /// Flows that fw2 has now from fw1, and that it ever had.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub fn replicated(&self) -> Result<(u64, u64)> {
        Ok((self.flows(Node::Fw2)?, self.count(Node::Fw2, "created_received")?))
    }

    /// Flows in the kernel's main table of a node.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub fn flows(&self, node: Node) -> Result<u64> {
        let status = self.status(node)?;
        let count = |name: &str| status.pointer(&format!("/flows/{name}")).and_then(Value::as_u64);
        count("local").zip(count("peer")).map(|(local, peer)| local + peer).context("flows in status")
    }

    /// What a node says of itself.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub fn status(&self, node: Node) -> Result<Value> {
        self.pair.node(node).ctl(&["status"])
    }

    /// A counter of replication with the peer.
    ///
    /// # Errors
    ///
    /// When the node does not answer.
    pub fn count(&self, node: Node, counter: &str) -> Result<u64> {
        self.pair.node(node).count(&format!("sync.peers.{}.{counter}", node.peer()))
    }

    /// Any counter of a node, by its path in `fwhactl stats`.
    ///
    /// # Errors
    ///
    /// When the node does not answer.
    pub fn stat(&self, node: Node, counter: &str) -> Result<u64> {
        self.pair.node(node).count(counter)
    }

    /// The pair itself.
    pub fn pair(&mut self) -> &mut Pair {
        &mut self.pair
    }

    /// Opens so many connections through fw1 and waits until both nodes have proved that they hold them.
    ///
    /// # Errors
    ///
    /// When they do not, or some connections did not come to be.
    pub fn load(&mut self, lab: &Lab, flows: u32) -> Result<()> {
        let wire = Wire::through(lab, Node::Fw1)?;
        wire.play(0..flows, LOAD_RATE, &OPENING)?;
        // A packet that the machine has dropped is sent again, as a client would.
        for _ in 0..ATTEMPTS {
            self.settle(lab)?;
            if self.flows(Node::Fw2)? >= u64::from(flows) {
                return Ok(());
            }
            wire.play(0..flows, LOAD_RATE, &OPENING)?;
        }
        bail!("{} of {flows} flows on fw2", self.flows(Node::Fw2)?);
    }

    /// Waits until both nodes have proved that they hold the same flows, and returns the Active one.
    ///
    /// # Errors
    ///
    /// When they do not.
    pub fn settle(&mut self, lab: &Lab) -> Result<Node> {
        let pair = &mut self.pair;
        lab.wait_for("both nodes to be in sync", LONG, || pair.settle(lab).map(Some))
    }

    /// Ends both nodes.
    ///
    /// # Errors
    ///
    /// When one fails.
    pub fn stop(&mut self) -> Result<()> {
        for node in [Node::Fw2, Node::Fw1] {
            let node = self.pair.node_mut(node);
            ensure!(node.term(PATIENCE)?.success(), "the daemon failed: {}", node.log()?);
        }
        Ok(())
    }
}
