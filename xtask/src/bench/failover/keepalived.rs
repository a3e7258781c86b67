//! keepalived and conntrackd as an expert sets them up: VRRPv3, both sides move together, and when they do conntrackd's
//! flows go to the kernel, as its manual has it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use fwha_tests::lab::{INET_VIP, LAN_VIP, Lab, Node};
use fwha_tests::pair::PATIENCE;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::blackout::{self, Blackout};
use crate::bench::contender::tracked_max;
use crate::bench::replication::LOAD_RATE;
use crate::bench::replication::conntrackd::{self, Conntrackd, States};
use crate::bench::replication::pair::LONG;
use crate::bench::replication::traffic::{OPENING, Wire};

/// The packages of the programs that are not there.
pub fn missing() -> Vec<&'static str> {
    conntrackd::missing(&[&[("keepalived", "keepalived")], &conntrackd::NEEDS[..]].concat())
}

/// The pair.
pub struct Keepalived {
    advert: Duration,
    flows: u64,
    conntrackd: Conntrackd,
    nodes: [Daemon; 2],
}

/// A keepalived.
struct Daemon {
    process: Child,
    files: Files,
}

/// Where a node's keepalived has its files.
struct Files {
    config: PathBuf,
    script: PathBuf,
    log: PathBuf,
    pid: PathBuf,
    vrrp_pid: PathBuf,
}

impl Keepalived {
    /// Starts both nodes, of which fw1 is Master at first, and opens so many connections through it, or as many as the
    /// kernel tracks. Returns how many as well.
    ///
    /// # Errors
    ///
    /// When a program fails, or the connections do not come to be.
    pub fn start(lab: &Lab, advert: Duration, flows: u32) -> Result<(Self, u32)> {
        let conntrackd = Conntrackd::start(lab, States::All)?;
        let flows = flows.min(tracked_max()?);
        let fw1 = Daemon::start(lab, &conntrackd, Node::Fw1, advert)?;
        lab.wait_for("fw1 to have the addresses", PATIENCE, || Ok(has(lab, Node::Fw1)?.then_some(())))?;
        let nodes = [fw1, Daemon::start(lab, &conntrackd, Node::Fw2, advert)?];
        let mut pair = Self { advert, flows: 0, conntrackd, nodes };
        pair.settle(lab)?;
        Wire::through(lab, Node::Fw1)?.play(0..flows, LOAD_RATE, &OPENING)?;
        // The kernel may drop a packet when there are many.
        pair.flows = u64::from(flows) * 99 / 100;
        Ok((pair, flows))
    }

    /// Waits until one node has the addresses alone, and the other has its flows. Returns the one.
    ///
    /// # Errors
    ///
    /// When it does not come to that.
    pub fn settle(&mut self, lab: &Lab) -> Result<Node> {
        let mut before = None;
        lab.wait_for("one node to have the addresses, the other its flows", LONG, || {
            let active = match [has(lab, Node::Fw1)?, has(lab, Node::Fw2)?] {
                [true, false] => Node::Fw1,
                [false, true] => Node::Fw2,
                _ => return Ok(None),
            };
            let now = (active, self.conntrackd.known(lab, active)?);
            let (own, there) = now.1;
            let settled = own >= self.flows && there >= own * 99 / 100 && before == Some(now);
            before = Some(now);
            if !settled {
                std::thread::sleep(self.advert.max(Duration::from_millis(50)));
            }
            Ok(settled.then_some(active))
        })
    }

    /// A power failure. Returns when, in ms of `CLOCK_MONOTONIC`.
    ///
    /// # Errors
    ///
    /// When something cannot be killed or cut off.
    pub fn lose(&mut self, lab: &Lab, node: Node) -> Result<f64> {
        let daemon = &mut self.nodes[node as usize];
        let vrrp = daemon.vrrp()?;
        let at_mono_ms = Blackout::prepare(lab, node, false)?.strike(|| {
            kill(vrrp, Signal::SIGKILL).context("kill keepalived's process for VRRP")?;
            daemon.process.kill()?;
            self.conntrackd.send_kill(node)
        })?;
        daemon.process.wait()?;
        Ok(at_mono_ms)
    }

    /// Brings the node back, with nothing left of what it had.
    ///
    /// # Errors
    ///
    /// When it cannot be.
    pub fn bring_back(&mut self, lab: &Lab, node: Node) -> Result<()> {
        for (interface, vip) in SIDES {
            lab.exec(node.host(), &["ip", "address", "del", &format!("{vip}/24"), "dev", interface])?;
        }
        blackout::end(lab, node)?;
        self.conntrackd.restart(lab, node)?;
        self.nodes[node as usize] = Daemon::start(lab, &self.conntrackd, node, self.advert)?;
        Ok(())
    }

    /// Ends both nodes.
    ///
    /// # Errors
    ///
    /// When one fails.
    pub fn stop(&mut self, lab: &Lab) -> Result<()> {
        for daemon in &mut self.nodes {
            kill(Pid::from_raw(daemon.process.id().cast_signed()), Signal::SIGTERM)?;
            ensure!(daemon.process.wait()?.success(), "keepalived failed: {}", daemon.said()?);
        }
        self.conntrackd.stop(lab)
    }
}

impl Daemon {
    fn start(lab: &Lab, conntrackd: &Conntrackd, node: Node, advert: Duration) -> Result<Self> {
        let file = |kind: &str| lab.dir().join(format!("keepalived-{node}.{kind}"));
        let files = Files {
            config: file("conf"),
            script: file("sh"),
            log: file("log"),
            pid: file("pid"),
            vrrp_pid: file("vrrp.pid"),
        };
        fs::write(&files.script, script(conntrackd.config(node))).context("write keepalived's script")?;
        fs::write(&files.config, config(node, advert, &files.script)).context("write keepalived's config")?;
        for stale in [&files.log, &files.pid, &files.vrrp_pid] {
            // Of one that was killed, if there was one.
            let _ = fs::remove_file(stale);
        }
        let log = File::create(&files.log)?;
        let mut command = lab.command("keepalived");
        command.args(["--dont-fork", "--log-console", "--log-detail", "--no-syslog", "--vrrp", "--use-file"]);
        command.arg(&files.config).arg("--pid").arg(&files.pid).arg("--vrrp_pid").arg(&files.vrrp_pid);
        command.stdout(log.try_clone()?).stderr(log);
        let daemon = Self { process: lab.spawn(node.host(), &mut command)?, files };
        lab.wait_for("keepalived to begin", PATIENCE, || {
            Ok(daemon.said()?.contains("Entering BACKUP STATE").then_some(()))
        })
        .with_context(|| daemon.said().unwrap_or_default())?;
        Ok(daemon)
    }

    fn said(&self) -> Result<String> {
        fs::read_to_string(&self.files.log).context("keepalived's log")
    }

    /// The process that speaks VRRP.
    fn vrrp(&self) -> Result<Pid> {
        let pid = fs::read_to_string(&self.files.vrrp_pid).context("keepalived's process for VRRP")?;
        Ok(Pid::from_raw(pid.trim().parse().context("the number of a process")?))
    }
}

/// The virtual address on either side.
const SIDES: [(&str, &str); 2] = [("lan", LAN_VIP), ("wan", INET_VIP)];

/// Whether a node has the virtual addresses of both sides.
fn has(lab: &Lab, node: Node) -> Result<bool> {
    let shown = lab.exec(node.host(), &["ip", "-oneline", "address", "show"])?;
    Ok(SIDES.iter().all(|(_, vip)| shown.contains(&format!(" {vip}/"))))
}

/// What conntrackd is told when a node becomes Master or Backup.
fn script(conntrackd: &Path) -> String {
    let tell = |what| format!("conntrackd -C {} {what}", conntrackd.display());
    format!(
        "case $1 in\nprimary)\n{}\n{}\n{}\n{}\n;;\nbackup)\n{}\n{}\n;;\nfault)\n{}\n;;\nesac\n",
        // What the other had is put into the kernel, both caches are emptied, the own one is read from the kernel, and
        // sent to the other.
        tell("-c"),
        tell("-f"),
        tell("-R"),
        tell("-B"),
        // Flows of the kernel that nobody uses go soon, and the other is asked for all.
        tell("-t"),
        tell("-n"),
        tell("-t"),
    )
}

/// The process for VRRP is scheduled as that of fwha for the election is.
///
/// Priorities are as high as they can be, for 255 is that of who owns the address: beside three adverts a Backup waits for
/// (256 - priority) / 256 of one more (RFC 9568, `Skew_Time`), which would be half an advert with those of many examples.
fn config(node: Node, advert: Duration, script: &Path) -> String {
    let (priority, advert, script) = (254 - node as u32, advert.as_secs_f64(), script.display());
    let mut text = format!(
        "global_defs {{
    router_id {node}
    script_user root
    vrrp_version 3
    vrrp_rt_priority 50
    vrrp_no_swap
}}
vrrp_sync_group gateway {{
    group {{
        lan
        wan
    }}
    notify_master \"/bin/sh {script} primary\"
    notify_backup \"/bin/sh {script} backup\"
    notify_fault \"/bin/sh {script} fault\"
}}
"
    );
    for ((interface, vip), vrid) in SIDES.iter().zip(61..) {
        text += &format!(
            "vrrp_instance {interface} {{
    state BACKUP
    nopreempt
    interface {interface}
    virtual_router_id {vrid}
    priority {priority}
    advert_int {advert}
    virtual_ipaddress {{
        {vip}/24
    }}
}}
"
        );
    }
    text
}
