//! Power failures to the millisecond. Pulling the cables of a node takes some 30 ms, in which it is half dead; dropping at the
//! switch what it sends takes effect on all of them at one moment.

use std::io::Write as _;
use std::process::{Child, Stdio};

use anyhow::{Context as _, Result, ensure};
use fwha_tests::lab::{Cable, Cut, Host, Lab, Node};
use fwha_tests::traffic::mono_ms;

const TABLE: [&str; 2] = ["netdev", "blackout"];

/// A blackout that is about to be: the programs that make it run already, and wait for their commands.
pub struct Blackout {
    nft: Child,
    ruleset: String,
    sync: Option<Cut>,
}

impl Blackout {
    /// Prepares it for a node; `carrier` says whether its peer sees the dedicated link go, as it does on a cable between
    /// the two, and does not behind a switch.
    ///
    /// # Errors
    ///
    /// When a program cannot be started.
    pub fn prepare(lab: &Lab, node: Node, carrier: bool) -> Result<Self> {
        let mut command = lab.command("nft");
        command.args(["--file", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
        let ports = format!("{node}-lan, {node}-wan, {node}-sync");
        let ruleset = format!(
            "table {} {{
                chain silence {{
                    type filter hook ingress devices = {{ {ports} }} priority 0; policy drop;
                }}
            }}\n",
            TABLE.join(" ")
        );
        Ok(Self {
            nft: lab.spawn(Host::Switch, &mut command)?,
            ruleset,
            sync: carrier.then(|| lab.prepare_cut(node, Cable::Sync)).transpose()?,
        })
    }

    /// Nobody hears the node any more, and it is killed. Returns when, in ms of `CLOCK_MONOTONIC`.
    ///
    /// # Errors
    ///
    /// When the switch refuses, or the node cannot be killed.
    pub fn strike(mut self, kill: impl FnOnce() -> Result<()>) -> Result<f64> {
        let mut commands = self.nft.stdin.take().context("standard input of nft")?;
        let at_mono_ms = mono_ms();
        commands.write_all(self.ruleset.as_bytes())?;
        drop(commands);
        let output = self.nft.wait_with_output()?;
        kill()?;
        self.sync.map_or(Ok(()), Cut::now)?;
        ensure!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(at_mono_ms)
    }
}

/// Ends the blackout.
///
/// # Errors
///
/// When the switch refuses.
pub fn end(lab: &Lab, node: Node) -> Result<()> {
    lab.exec(Host::Switch, &[&["nft", "delete", "table"], &TABLE[..]].concat())?;
    lab.heal(node, Cable::Sync)
}
