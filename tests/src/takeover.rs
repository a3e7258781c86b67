//! The main job as one scenario: traffic through the pair, the Active node lost in the middle, and what became of it.
//!
//! A file is copied over one TCP connection while a UDP probe runs at 1 kHz. At half of the file the Active node's
//! daemon is killed and every cable of it pulled. With replication the copy must finish intact; without it the survivor
//! does not know the connection, picks nothing up in mid-stream, and the copy must die. Both are checked.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::lab::{Cable, Lab, Node};
use crate::pair::{Pair, event_ms, role};
use crate::traffic::{Copy, CopyReport, Plan, Probe, ProbeReport, mono_ms};

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

/// What became of the traffic.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Who was Active and was lost.
    pub lost: Node,
    /// When that was, in milliseconds of `CLOCK_MONOTONIC`.
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
        ensure!(
            self.probe.answered_at_mono_ms > self.lost_at_mono_ms,
            "no probe was answered that was sent after the active node was lost: {:?}",
            self.probe
        );
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

    let probe = Probe::start(lab)?;
    let mut copy = Copy::start(lab, plan)?;
    copy.wait_for_bytes(plan.size / 2, |bytes| tell(Progress::Copied(bytes)))?;
    let lost_at_mono_ms = lose(lab, pair, lost)?;
    tell(Progress::Lost(lost));

    let (received, sent) = copy.end(|bytes| tell(Progress::Copied(bytes)))?;
    let probe = probe.end()?;
    let survivor = pair.node(lost.peer());
    let events = survivor.ctl_lines(&["events"]).context("ask the survivor for its events")?;
    let events = events.into_iter().filter(|event| event_ms(event) >= lost_at_mono_ms.floor()).collect();
    let not_syn = survivor.count("drops.not_syn")?;
    let status = survivor.ctl(&["status"])?;
    Ok(Outcome { lost, lost_at_mono_ms, received, sent, probe, status, events, not_syn })
}

/// Kills a node's daemon and cuts all its cables, as a power failure would: the daemon first, so that it has no time to
/// tell anybody that its cables went. Returns when, in milliseconds of `CLOCK_MONOTONIC`.
///
/// # Errors
///
/// When it cannot be killed or a cable cannot be cut.
pub fn lose(lab: &Lab, pair: &mut Pair, node: Node) -> Result<f64> {
    let cut = lab.prepare_cut(node, Cable::All)?;
    let at_mono_ms = mono_ms();
    pair.node(node).send_kill()?;
    cut.now()?;
    pair.node_mut(node).kill()?;
    Ok(at_mono_ms)
}
