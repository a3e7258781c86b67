//! Who stands between client and server, and what is done to it.

use anyhow::{Context as _, Result};
use fwha_tests::lab::{Cable, Lab, Node};
use fwha_tests::pair::{event_ms, peer_state};
use fwha_tests::traffic::mono_ms;
use serde_json::Value;

use super::blackout::{self, Blackout};
use super::keepalived::Keepalived;
use super::{Contender, Fault};
use crate::bench::replication::pair::Fwha;

/// A pair of nodes.
pub enum Cluster {
    Fwha(Fwha),
    Keepalived(Box<Keepalived>),
}

impl Cluster {
    /// Starts it, with so many flows through it, or as many as it can have. Returns how many as well.
    ///
    /// # Errors
    ///
    /// When a node fails, or the flows do not come to be.
    pub fn start(lab: &Lab, contender: Contender, flows: u32) -> Result<(Self, u32)> {
        if let Some(advert) = contender.advert() {
            let (keepalived, flows) = Keepalived::start(lab, advert, flows)?;
            return Ok((Self::Keepalived(Box::new(keepalived)), flows));
        }
        let mut fwha = Fwha::start(lab)?;
        fwha.load(lab, flows)?;
        Ok((Self::Fwha(fwha), flows))
    }

    /// Waits until one node has the role, and the other the flows. Returns the one.
    ///
    /// # Errors
    ///
    /// When it does not come to that.
    pub fn settle(&mut self, lab: &Lab) -> Result<Node> {
        match self {
            Self::Fwha(fwha) => fwha.settle(lab),
            Self::Keepalived(keepalived) => keepalived.settle(lab),
        }
    }

    /// What has gone wrong before, with traffic through the pair already.
    ///
    /// # Errors
    ///
    /// When it cannot be brought about.
    pub fn prepare(&mut self, lab: &Lab, active: Node, fault: Fault) -> Result<()> {
        if let (Self::Fwha(fwha), Fault::PowerWithoutSync) = (self, fault) {
            lab.cut(active, Cable::Sync)?;
            for node in Node::ALL {
                fwha.pair().wait_for_status(lab, node, "the sync link to be given up", |status| {
                    peer_state(status) == Some("sync-lost")
                })?;
            }
        }
        Ok(())
    }

    /// Strikes the Active node. Returns when, in ms of `CLOCK_MONOTONIC`.
    ///
    /// # Errors
    ///
    /// When that cannot be done.
    pub fn strike(&mut self, lab: &Lab, active: Node, fault: Fault) -> Result<f64> {
        let pair = match self {
            Self::Fwha(fwha) => fwha.pair(),
            Self::Keepalived(keepalived) => return keepalived.lose(lab, active),
        };
        let at_mono_ms = mono_ms();
        match fault {
            Fault::Power | Fault::PowerCarrier | Fault::PowerWithoutSync => {
                let blackout = Blackout::prepare(lab, active, fault == Fault::PowerCarrier)?;
                let at_mono_ms = blackout.strike(|| pair.node(active).send_kill())?;
                pair.node_mut(active).kill()?;
                return Ok(at_mono_ms);
            }
            Fault::Switchover => drop(pair.node(active).ctl_lines(&["switchover", "--wait"])?),
            Fault::Restart => {
                pair.node_mut(active).kill()?;
                pair.restart(lab, active)?;
            }
        }
        Ok(at_mono_ms)
    }

    /// Brings back what was struck.
    ///
    /// # Errors
    ///
    /// When that cannot be done.
    pub fn mend(&mut self, lab: &Lab, struck: Node, fault: Fault) -> Result<()> {
        match (self, fault) {
            (Self::Keepalived(keepalived), _) => keepalived.bring_back(lab, struck),
            (Self::Fwha(fwha), Fault::Power | Fault::PowerCarrier | Fault::PowerWithoutSync) => {
                blackout::end(lab, struck)?;
                fwha.pair().restart(lab, struck)
            }
            (Self::Fwha(_), Fault::Switchover | Fault::Restart) => Ok(()),
        }
    }

    /// The successor's account of its takeover, which came after `struck_at_ms`: ms from `since_ms` to the decision, and its
    /// steps from there.
    ///
    /// # Errors
    ///
    /// When it does not answer, or has none.
    pub fn steps(&mut self, successor: Node, struck_at_ms: f64, since_ms: f64) -> Result<Vec<(String, f64)>> {
        let Self::Fwha(fwha) = self else { return Ok(Vec::new()) };
        let events = fwha.pair().node(successor).ctl_lines(&["events"])?;
        let takeover =
            events.iter().rfind(|event| event["kind"] == "takeover" && event_ms(event) >= struck_at_ms);
        let takeover = takeover.with_context(|| format!("{successor} did not take over"))?;
        let step = |step: &Value| Some((step["name"].as_str()?.to_owned(), step["ms"].as_f64()?));
        let decided = ("decided".to_owned(), event_ms(takeover) - since_ms);
        Ok([decided]
            .into_iter()
            .chain(takeover["steps"].as_array().into_iter().flatten().filter_map(step))
            .collect())
    }

    /// Ends both nodes.
    ///
    /// # Errors
    ///
    /// When one fails.
    pub fn stop(&mut self, lab: &Lab) -> Result<()> {
        match self {
            Self::Fwha(fwha) => {
                // The node that died has just been started again, and a signal would end it before it knows what that means.
                fwha.settle(lab)?;
                fwha.stop()
            }
            Self::Keepalived(keepalived) => keepalived.stop(lab),
        }
    }
}
