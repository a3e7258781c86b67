//! The kernel's connection tracking with conntrackd beside it, as an expert sets it up: FTFW over UDP, buffers that lose
//! nothing, nothing told of its own traffic.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};
use fwha_tests::lab::{Lab, Node};
use fwha_tests::pair::PATIENCE;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::TIMEOUTS;

/// The same policy as the lab's config file. conntrackd's own datagrams are tracked, as any: a chain that leaves them out costs
/// each packet that is forwarded something, too. Nobody is told of them, by their addresses.
const RULESET: &str = "table inet filter {
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        ct state invalid drop
        iifname lan oifname wan accept
    }
}
";

/// How long the kernel remembers a connection that has ended, in seconds: its setting, and what that is by itself, as with fwha.
const TIME_WAIT: &str = "nf_conntrack_tcp_timeout_time_wait";
const TIME_WAIT_DEFAULT: &str = "120";

/// What it needs, and the names of Debian's packages.
pub const NEEDS: [(&str, &str); 3] =
    [("conntrackd", "conntrackd"), ("conntrack", "conntrack"), ("nft", "nftables")];

/// The packages of the programs that are not there.
pub fn missing(needs: &[(&str, &'static str)]) -> Vec<&'static str> {
    let mut missing = needs.to_vec();
    missing.retain(|(program, _)| {
        let mut command = Command::new(program);
        command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err()
    });
    missing.into_iter().map(|(_, package)| package).collect()
}

/// Which states of a TCP connection are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum States {
    /// All, as is the default.
    All,
    /// Those that are worth it, as its manual has it; the handshake and most of the end are left out.
    Few,
}

/// A pair of nodes with conntrackd, of which fw1 forwards at first.
pub struct Conntrackd {
    nodes: [Daemon; 2],
    states: States,
}

struct Daemon {
    node: Node,
    process: Child,
    config: PathBuf,
}

impl Conntrackd {
    /// Starts it on both nodes, with tables that are empty.
    ///
    /// # Errors
    ///
    /// When a program fails.
    pub fn start(lab: &Lab, states: States) -> Result<Self> {
        let ruleset = lab.dir().join("ruleset.nft");
        fs::write(&ruleset, RULESET).with_context(|| format!("write {}", ruleset.display()))?;
        for node in Node::ALL {
            // The rules first: they load the kernel's connection tracking, if need be.
            lab.exec(node.host(), &["nft", "--file", &ruleset.to_string_lossy()])?;
            // fwha takes no connection in the middle either.
            set(lab, node, "nf_conntrack_tcp_loose", "0")?;
            if lab.options().extra_config.contains(TIMEOUTS) {
                set(lab, node, TIME_WAIT, "1")?;
            }
        }
        let [fw1, fw2] = Node::ALL.map(|node| Daemon::start(lab, node, states));
        let daemons = Self { nodes: [fw1?, fw2?], states };
        for daemon in &daemons.nodes {
            lab.wait_for("conntrackd to answer", PATIENCE, || daemon.ask(lab, &["-s"]).map(Some))?;
        }
        Ok(daemons)
    }

    /// Its process on a node.
    pub fn pid(&self, node: Node) -> u32 {
        self.nodes[node as usize].process.id()
    }

    /// The config file of a node.
    pub fn config(&self, node: Node) -> &Path {
        &self.nodes[node as usize].config
    }

    /// Kills it on a node (SIGKILL), and does not wait for its end; [`Conntrackd::restart`] does.
    ///
    /// # Errors
    ///
    /// When it cannot be signalled.
    pub fn send_kill(&self, node: Node) -> Result<()> {
        let pid = Pid::from_raw(self.pid(node).cast_signed());
        kill(pid, Signal::SIGKILL).with_context(|| format!("kill conntrackd of {node}"))
    }

    /// Starts it again on a node where it was killed, with an empty table.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub fn restart(&mut self, lab: &Lab, node: Node) -> Result<()> {
        self.nodes[node as usize].process.wait()?;
        self.flush(lab, node)?;
        // It takes its files for those of one that runs.
        for kind in ["lock", "ctl"] {
            let file = lab.dir().join(format!("conntrackd-{node}.{kind}"));
            fs::remove_file(&file).or_else(|error| match error.kind() {
                ErrorKind::NotFound => Ok(()),
                _ => Err(error).with_context(|| format!("remove {}", file.display())),
            })?;
        }
        self.nodes[node as usize] = Daemon::start(lab, node, self.states)?;
        let daemon = &self.nodes[node as usize];
        lab.wait_for("conntrackd to answer", PATIENCE, || daemon.ask(lab, &["-s"]).map(Some))?;
        Ok(())
    }

    /// Flows that a node has itself now, and those that the other has from it.
    ///
    /// # Errors
    ///
    /// When one does not answer.
    pub fn known(&self, lab: &Lab, node: Node) -> Result<(u64, u64)> {
        let own = self.nodes[node as usize].cache(lab, "cache internal:")?.0;
        Ok((own, self.nodes[node.peer() as usize].cache(lab, "cache external:")?.0))
    }

    /// Flows that fw2 has now from fw1, and that it ever had.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub fn replicated(&self, lab: &Lab) -> Result<(u64, u64)> {
        self.nodes[1].cache(lab, "cache external:")
    }

    /// Flows that fw1 has now.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub fn flows(&self, lab: &Lab) -> Result<u64> {
        self.nodes[0].cache(lab, "cache internal:").map(|(now, _)| now)
    }

    /// Puts what fw2 has from fw1 into its kernel's table, as a takeover does.
    ///
    /// # Errors
    ///
    /// When it refuses.
    pub fn commit(&self, lab: &Lab) -> Result<()> {
        self.nodes[1].ask(lab, &["-c"]).map(drop)
    }

    /// Empties the kernel's table of a node.
    ///
    /// # Errors
    ///
    /// When it refuses.
    pub fn flush(&self, lab: &Lab, node: Node) -> Result<()> {
        lab.exec(node.host(), &["conntrack", "-F"]).map(drop)
    }

    /// Flows in the kernel's table of a node.
    ///
    /// # Errors
    ///
    /// When the kernel does not say.
    pub fn tracked(&self, lab: &Lab, node: Node) -> Result<u64> {
        lab.exec(node.host(), &["conntrack", "-C"])?.trim().parse().context("conntrack -C")
    }

    /// Ends it, and takes the rules away.
    ///
    /// # Errors
    ///
    /// When a program fails.
    pub fn stop(&mut self, lab: &Lab) -> Result<()> {
        for daemon in &mut self.nodes {
            kill(Pid::from_raw(daemon.process.id().cast_signed()), Signal::SIGTERM)?;
            daemon.process.wait()?;
            lab.exec(daemon.node.host(), &["nft", "flush", "ruleset"])?;
            lab.exec(daemon.node.host(), &["conntrack", "-F"])?;
            set(lab, daemon.node, TIME_WAIT, TIME_WAIT_DEFAULT)?;
        }
        Ok(())
    }
}

/// A setting of a node's connection tracking.
fn set(lab: &Lab, node: Node, name: &str, value: &str) -> Result<()> {
    lab.within(node.host(), || fs::write(format!("/proc/sys/net/netfilter/{name}"), value))?
        .with_context(|| format!("set {name}"))
}

impl Daemon {
    fn start(lab: &Lab, node: Node, states: States) -> Result<Self> {
        let name = format!("conntrackd-{node}");
        let config = lab.dir().join(format!("{name}.conf"));
        fs::write(&config, text(lab, node, states)).with_context(|| format!("write {}", config.display()))?;
        let log = File::create(lab.dir().join(format!("{name}.log")))?;
        let mut command = lab.command("conntrackd");
        command.arg("-C").arg(&config).stdout(log.try_clone()?).stderr(log);
        Ok(Self { node, process: lab.spawn(node.host(), &mut command)?, config })
    }

    /// Flows that are in a cache now, and that ever were.
    fn cache(&self, lab: &Lab, name: &str) -> Result<(u64, u64)> {
        let said = self.ask(lab, &["-s"])?;
        let cache = said.split(name).nth(1).with_context(|| format!("no {name}"))?;
        let count = |name: &str| {
            let line = cache.lines().find_map(|line| line.trim().strip_prefix(name))?;
            line.split_whitespace().next()?.parse().ok()
        };
        let all = count("current active connections:").zip(count("connections created:"));
        all.with_context(|| format!("not what conntrackd says: {said}"))
    }

    fn ask(&self, lab: &Lab, question: &[&str]) -> Result<String> {
        lab.exec(
            self.node.host(),
            &[&["conntrackd", "-C", &self.config.to_string_lossy()], question].concat(),
        )
    }
}

fn text(lab: &Lab, node: Node, states: States) -> String {
    let states = match states {
        States::All => "",
        States::Few => {
            "\n        State Accept {\n            ESTABLISHED CLOSED TIME_WAIT CLOSE_WAIT for TCP\n        }"
        }
    };
    let dir = lab.dir().display();
    let (own, peer) = (node as usize + 1, node.peer() as usize + 1);
    format!(
        "Sync {{
    Mode FTFW {{
        ResendQueueSize 131072
        ACKWindowSize 300
        DisableExternalCache Off
    }}
    UDP {{
        IPv4_address 172.16.0.{own}
        IPv4_Destination_Address 172.16.0.{peer}
        Port 3780
        Interface sync
        SndSocketBuffer 4194304
        RcvSocketBuffer 4194304
        Checksum on
    }}
}}
General {{
    HashSize 131072
    HashLimit 1048576
    LogFile {dir}/conntrackd-{node}.log
    Syslog off
    Systemd off
    LockFile {dir}/conntrackd-{node}.lock
    UNIX {{
        Path {dir}/conntrackd-{node}.ctl
    }}
    NetlinkBufferSize 16777216
    NetlinkBufferSizeMaxGrowth 134217728
    NetlinkEventsReliable No
    Filter From Kernelspace {{
        Protocol Accept {{
            TCP
        }}
        Address Ignore {{
            IPv4_address 127.0.0.1
            IPv4_address 172.16.0.1
            IPv4_address 172.16.0.2
        }}{states}
    }}
}}
"
    )
}
