//! The main job as one scenario: traffic through the pair, the Active node lost in the middle, and what became of it.
//!
//! A file is copied over one TCP connection while a UDP probe runs at 1 kHz. At half of the file every cable of the
//! Active node is pulled and its daemon killed. With replication the copy must finish intact; without it the survivor
//! does not know the connection, picks nothing up in mid-stream, and the copy must die. Both are checked.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::lab::{Cable, Host, Lab, LineProcess, Node, NodeProcess, SERVER};
use crate::traffic::{CopyEvent, CopyReport, ProbeEvent, ProbeReport, mono_ms};

/// How long the pair may take to settle, and any program to say what is expected of it.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest copy there may be.
const COPY_MAX: Duration = Duration::from_secs(600);
const COPY_PORT: u16 = 8080;
const PROBE_PORT: u16 = 8081;

/// What is copied, and how.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Bytes.
    pub size: u64,
    /// Bytes a second.
    pub rate: u64,
    /// The file's contents follow from it.
    pub seed: u64,
    /// How long a connection may stand still before it counts as dead.
    pub patience: Duration,
}

impl Default for Plan {
    fn default() -> Self {
        Self { size: 256 << 20, rate: 64 << 20, seed: 1, patience: Duration::from_secs(10) }
    }
}

/// What is told while the scenario runs.
#[derive(Debug, Clone, Copy)]
pub enum Progress {
    /// The daemons were started.
    Started,
    /// One node is Active, the other knows its flows.
    Settled(Node),
    /// Bytes the client has.
    Copied(u64),
    /// The Active node was cut off and killed.
    Lost(Node),
}

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
        Ok(Pair { nodes: [lab.start_node(Node::Fw1)?, lab.start_node(Node::Fw2)?] })
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

    /// Waits until one node is Active and the other Backup, both agree on which, and, with replication, both are in
    /// sync. Returns the Active one.
    ///
    /// # Errors
    ///
    /// When a daemon has ended or the pair does not settle.
    pub fn settle(&mut self, lab: &Lab) -> Result<Node> {
        let replication = lab.options().replication;
        lab.wait_for("one node active, the other backup and in sync", PATIENCE, || {
            let mut active = None;
            for node in &mut self.nodes {
                ensure!(node.is_running()?, "the daemon of {} has ended", node.node());
            }
            let status = [self.nodes[0].ctl(&["status"])?, self.nodes[1].ctl(&["status"])?];
            for (node, status) in Node::ALL.iter().zip(&status) {
                match role(status) {
                    Some("active") if active.is_none() => active = Some(*node),
                    Some("backup") => {}
                    _ => return Ok(None),
                }
            }
            let Some(active) = active else { return Ok(None) };
            let agreed = status.iter().all(|status| active_node(status) == Some(active.name()));
            let in_sync = !replication || status.iter().all(in_sync);
            Ok((agreed && in_sync).then_some(active))
        })
    }
}

/// A node's role in the lab's one group, from its `status`.
pub fn role(status: &Value) -> Option<&str> {
    status.pointer("/groups/0/role")?.as_str()
}

/// Who is Active in the lab's one group, from a node's `status`.
pub fn active_node(status: &Value) -> Option<&str> {
    status.pointer("/groups/0/active")?.as_str()
}

/// Whether a node and its peer have proved to each other that they hold the same flows, from its `status`.
pub fn in_sync(status: &Value) -> bool {
    status.pointer("/peers/0/sync/digest_match") == Some(&Value::Bool(true))
        && status.pointer("/peers/0/sync/state").and_then(Value::as_str) == Some("in-sync")
}

/// What became of the traffic.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Who was Active and was lost.
    pub lost: Node,
    /// When its cables were pulled, in milliseconds of `CLOCK_MONOTONIC`.
    pub lost_at_mono_ms: f64,
    /// The copy as the client saw it.
    pub received: CopyReport,
    /// The copy as the server saw it.
    pub sent: CopyReport,
    /// The probe.
    pub probe: ProbeReport,
    /// The survivor's `status` at the end.
    pub status: Value,
    /// The survivor's events since the loss.
    pub events: Vec<Value>,
    /// The survivor's drops at the end: packets of TCP connections that it does not know.
    pub not_syn: u64,
}

impl Outcome {
    /// The node that was left.
    pub fn survivor(&self) -> Node {
        self.lost.peer()
    }

    /// Checks that the survivor took over and the copy finished intact.
    ///
    /// # Errors
    ///
    /// Naming what was not so.
    pub fn check_survived(&self) -> Result<()> {
        self.check_taken_over()?;
        for (end, report) in [("client", &self.received), ("server", &self.sent)] {
            if let Some(error) = &report.error {
                anyhow::bail!("the copy died at the {end}: {error}");
            }
        }
        let (received, sent) = (&self.received, &self.sent);
        ensure!(
            received.bytes == received.expected && received.bytes == sent.bytes,
            "the client has {} of {} bytes",
            received.bytes,
            sent.bytes
        );
        ensure!(received.sha256 == sent.sha256, "the client's file differs from the server's");
        ensure!(
            received.ended_at_mono_ms > self.lost_at_mono_ms,
            "the copy had ended before the active node was lost"
        );
        Ok(())
    }

    /// Checks that the survivor took over but the copy died, because the survivor refused packets of a connection it
    /// does not know.
    ///
    /// # Errors
    ///
    /// Naming what was not so.
    pub fn check_died(&self) -> Result<()> {
        self.check_taken_over()?;
        ensure!(
            self.received.error.is_some() && self.received.bytes < self.received.expected,
            "the copy survived, although the survivor cannot know the connection"
        );
        ensure!(self.not_syn > 0, "{} has not counted a drop as not_syn", self.survivor());
        Ok(())
    }

    fn check_taken_over(&self) -> Result<()> {
        ensure!(role(&self.status) == Some("active"), "{} is not active: {}", self.survivor(), self.status);
        ensure!(self.probe.answered > 0, "the probe had no answer at all");
        Ok(())
    }
}

/// Runs the scenario with a settled or just started pair, and tells of its progress.
///
/// # Errors
///
/// When the pair does not settle or a program does not do its part. That the copy died is an outcome, not an error.
pub fn run(lab: &Lab, pair: &mut Pair, plan: Plan, mut tell: impl FnMut(Progress)) -> Result<Outcome> {
    tell(Progress::Started);
    let lost = pair.settle(lab)?;
    tell(Progress::Settled(lost));

    let mut traffic = Traffic::start(lab, plan)?;
    traffic.copy_until(plan.size / 2, &mut tell)?;
    let lost_at_mono_ms = mono_ms();
    lab.cut(lost, Cable::All)?;
    pair.node_mut(lost).kill()?;
    tell(Progress::Lost(lost));

    let (received, sent, probe) = traffic.end(&mut tell)?;
    let survivor = pair.node(lost.peer());
    let events = survivor.ctl_lines(&["events"]).context("ask the survivor for its events")?;
    let events = events.into_iter().filter(|event| event_ms(event) >= lost_at_mono_ms.floor()).collect();
    let not_syn = drops(survivor, "not_syn")?;
    Ok(Outcome {
        lost,
        lost_at_mono_ms,
        received,
        sent,
        probe,
        status: survivor.ctl(&["status"])?,
        events,
        not_syn,
    })
}

/// When an event was, in milliseconds of `CLOCK_MONOTONIC`.
pub fn event_ms(event: &Value) -> f64 {
    event.get("at_mono_ms").and_then(Value::as_f64).unwrap_or(0.0)
}

/// A node's counter of packets dropped for a reason; 0 when it has none of that name.
///
/// # Errors
///
/// When the node does not answer.
pub fn drops(node: &NodeProcess, reason: &str) -> Result<u64> {
    let stats = node.ctl(&["stats", "drops"])?;
    Ok(stats.pointer(&format!("/drops/{reason}")).and_then(Value::as_u64).unwrap_or(0))
}

/// The copy and the probe while they run.
struct Traffic {
    sender: LineProcess<CopyEvent>,
    receiver: LineProcess<CopyEvent>,
    probe: LineProcess<ProbeEvent>,
    /// Ended when dropped.
    _echo: LineProcess<ProbeEvent>,
}

impl Traffic {
    fn start(lab: &Lab, plan: Plan) -> Result<Self> {
        let words = |line: String| -> Vec<String> { line.split(' ').map(str::to_owned).collect() };
        let Plan { size, rate, seed, .. } = plan;
        let patience = plan.patience.as_millis();

        let mut echo: LineProcess<ProbeEvent> =
            lab.traffic(Host::Server, &words(format!("echo --listen 0.0.0.0:{PROBE_PORT}")))?;
        echo.wait_for("the echo to listen", PATIENCE, |event| {
            matches!(event, ProbeEvent::Listening).then_some(())
        })?;
        let mut probe: LineProcess<ProbeEvent> = lab
            .traffic(Host::Client, &words(format!("probe --connect {SERVER}:{PROBE_PORT} --count 700000")))?;
        probe.wait_for("answers to the probe", PATIENCE, |event| {
            matches!(event, ProbeEvent::Progress { answered: 1.., .. }).then_some(())
        })?;

        let serve = format!(
            "serve-file --listen 0.0.0.0:{COPY_PORT} --size {size} --rate {rate} --seed {seed} --patience-ms {patience}"
        );
        let mut sender: LineProcess<CopyEvent> = lab.traffic(Host::Server, &words(serve))?;
        sender.wait_for("the server to listen", PATIENCE, |event| {
            matches!(event, CopyEvent::Listening).then_some(())
        })?;
        let fetch = format!("fetch --connect {SERVER}:{COPY_PORT} --patience-ms {patience}");
        let receiver = lab.traffic(Host::Client, &words(fetch))?;
        Ok(Self { sender, receiver, probe, _echo: echo })
    }

    fn copy_until(&mut self, half: u64, tell: &mut impl FnMut(Progress)) -> Result<()> {
        self.receiver.wait_for("half of the file", COPY_MAX, |event| match event {
            CopyEvent::Progress { bytes, .. } => {
                tell(Progress::Copied(bytes));
                (bytes >= half).then_some(Ok(()))
            }
            CopyEvent::Ended(report) => {
                Some(Err(anyhow::anyhow!("the copy ended before its half: {report:?}")))
            }
            _ => None,
        })?
    }

    fn end(mut self, tell: &mut impl FnMut(Progress)) -> Result<(CopyReport, CopyReport, ProbeReport)> {
        let received = self.receiver.wait_for("the end of the copy", COPY_MAX, |event| match event {
            CopyEvent::Progress { bytes, .. } => {
                tell(Progress::Copied(bytes));
                None
            }
            CopyEvent::Ended(report) => Some(report),
            _ => None,
        })?;
        let sent = self.sender.wait_for("the server's end of the copy", PATIENCE, |event| match event {
            CopyEvent::Ended(report) => Some(report),
            _ => None,
        })?;
        self.probe.finish();
        let probe = self.probe.wait_for("the probe's report", PATIENCE, |event| match event {
            ProbeEvent::Ended(report) => Some(report),
            _ => None,
        })?;
        Ok((received, sent, probe))
    }
}
