//! Who forwards on the lab's first node: fwha, what people use instead, and the limits.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use fwha_tests::lab::{Attach, Host, Lab, LabOptions, Node, NodeProcess, config_text};
use fwha_tests::pair::{PATIENCE, role};

use super::live::Bare;
use super::replication::conntrackd::{self, Conntrackd, States};
use super::replication::pair::Fwha;

/// Who forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    /// An XDP program that asks the kernel's routing table: as fast as forwarding can be; no firewall.
    Fib,
    /// The kernel, which knows no firewall.
    Router,
    /// The kernel with connection tracking and nftables.
    Nftables,
    /// The same; what the rules admit by port is in a set.
    NftablesSet,
    /// As [`Contender::Nftables`], and conntrackd tells another node, of every state.
    Conntrackd,
    /// The same, and it is told of those states only that are worth it.
    ConntrackdFew,
    /// The kernel with connection tracking and iptables.
    Iptables,
    /// fwha at tc ingress, without a peer.
    Tc,
    /// fwha at XDP, without a peer.
    Xdp,
    /// fwha at XDP, replicating to another node.
    Replicating,
}

/// The most flows that the lab's nodes of fwha hold.
pub const MAX_FLOWS: u32 = 1_200_000;

/// How long a daemon may take to load its programs and become Active on a busy machine.
const START: Duration = Duration::from_secs(120);

/// Lines of the daemon's log that a failure shows.
const LOG_LINES: usize = 10;

/// The first port that [`Policy::ports`] admits.
const FIRST_PORT: u32 = 10_000;

/// What is let through: what is known, new flows from the LAN to the inet side, and from there to some ports.
#[derive(Clone, Copy, Debug, Default)]
pub struct Policy {
    /// Ports of the LAN that may be reached from the inet side, each by a rule of its own.
    pub ports: u32,
}

impl Policy {
    fn ports(self) -> impl Iterator<Item = u32> {
        FIRST_PORT..FIRST_PORT + self.ports
    }

    /// As it is best written with nftables: what is known is let through by the first rule.
    fn nftables(self, set: bool) -> String {
        let mut rules = String::new();
        if set && self.ports > 0 {
            let ports: Vec<String> = self.ports().map(|port| port.to_string()).collect();
            let _ = writeln!(rules, "iifname wan oifname lan tcp dport {{ {} }} accept", ports.join(", "));
        } else {
            for port in self.ports() {
                let _ = writeln!(rules, "iifname wan oifname lan tcp dport {port} accept");
            }
        }
        format!(
            "table inet filter {{
    chain forward {{
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        ct state invalid drop
        iifname lan oifname wan accept
        {rules}
    }}
}}
"
        )
    }

    fn iptables(self) -> String {
        let mut rules = String::new();
        for port in self.ports() {
            let _ = writeln!(rules, "-A FORWARD -i wan -o lan -p tcp --dport {port} -j ACCEPT");
        }
        format!(
            "*filter
:FORWARD DROP [0:0]
-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-A FORWARD -m conntrack --ctstate INVALID -j DROP
-A FORWARD -i lan -o wan -j ACCEPT
{rules}COMMIT
"
        )
    }

    fn fwha(self) -> String {
        let mut rules = String::new();
        for port in self.ports() {
            let _ = write!(
                rules,
                "\n[[rule]]\nname = \"port-{port}\"\nfrom = \"inet\"\nto = \"lan\"\nservices = [\"tcp/{port}\"]\naction = \"accept\"\n"
            );
        }
        rules
    }
}

/// What undoes [`Policy::iptables`].
const IPTABLES_NONE: &str = "*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n";

impl Contender {
    /// Its name in a table.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fib => "bare XDP FIB forward",
            Self::Router => "kernel, no firewall",
            Self::Nftables => "kernel, nftables",
            Self::NftablesSet => "kernel, nftables, set",
            Self::Conntrackd => "kernel, nftables, conntrackd",
            Self::ConntrackdFew => "kernel, nftables, conntrackd, few states",
            Self::Iptables => "kernel, iptables",
            Self::Tc => "fwha, tc",
            Self::Xdp => "fwha, XDP",
            Self::Replicating => "fwha, XDP, replicating",
        }
    }

    /// What it needs beside the kernel, and the names of Debian's packages.
    fn needs(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Nftables | Self::NftablesSet => &[("nft", "nftables"), ("conntrack", "conntrack")],
            Self::Conntrackd | Self::ConntrackdFew => &conntrackd::NEEDS,
            Self::Iptables => &[("iptables-restore", "iptables"), ("conntrack", "conntrack")],
            _ => &[],
        }
    }

    /// Those of `all` that can be measured here; the others are named.
    pub fn present(all: &[Self]) -> Vec<Self> {
        let mut present = all.to_vec();
        present.retain(|contender| {
            let missing = conntrackd::missing(contender.needs());
            if !missing.is_empty() {
                println!("{}: not measured without {} (Debian)", contender.name(), missing.join(", "));
            }
            missing.is_empty()
        });
        present
    }

    /// Whether another node is told of its flows.
    pub const fn replicates(self) -> bool {
        matches!(self, Self::Conntrackd | Self::ConntrackdFew | Self::Replicating)
    }

    /// Whether the kernel tracks its flows, of which there are `nf_conntrack_max` at most.
    pub const fn is_conntrack(self) -> bool {
        matches!(
            self,
            Self::Nftables | Self::NftablesSet | Self::Conntrackd | Self::ConntrackdFew | Self::Iptables
        )
    }

    /// Whether it is fwha.
    pub const fn is_fwha(self) -> bool {
        matches!(self, Self::Tc | Self::Xdp | Self::Replicating)
    }

    /// The program that it needs on the node's interfaces, so that live frames reach it.
    pub const fn bare(self) -> Option<Bare> {
        match self {
            Self::Fib => Some(Bare::Router),
            Self::Xdp | Self::Replicating => None,
            _ => Some(Bare::Pass),
        }
    }

    fn attach(self) -> Attach {
        match self {
            Self::Fib | Self::Xdp | Self::Replicating => Attach::Xdp,
            _ => Attach::Tc,
        }
    }

    /// Puts it on the lab's first node, and makes that the way between the hosts.
    ///
    /// # Errors
    ///
    /// When it does not begin to work.
    pub fn start(self, lab: &mut Lab, policy: Policy) -> Result<Running> {
        lab.attach_by(self.attach())?;
        if self.is_fwha() {
            lab.route_through_group()?;
        } else {
            lab.route_through(Node::Fw1)?;
        }
        let file = |name: &str, text: String| -> Result<PathBuf> {
            let file = lab.dir().join(name);
            fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
            Ok(file)
        };
        Ok(match self {
            Self::Fib | Self::Router => Running::Nothing,
            Self::Nftables | Self::NftablesSet => {
                let rules = file("ruleset.nft", policy.nftables(self == Self::NftablesSet))?;
                lab.exec(Host::Fw1, &["nft", "--file", &rules.to_string_lossy()])?;
                tune(lab)?;
                Running::Nftables
            }
            Self::Iptables => {
                let rules = file("ruleset.iptables", policy.iptables())?;
                for program in ["iptables-restore", "ip6tables-restore"] {
                    lab.exec(Host::Fw1, &[program, &rules.to_string_lossy()])?;
                }
                tune(lab)?;
                Running::Iptables
            }
            Self::Conntrackd | Self::ConntrackdFew => {
                let few = self == Self::ConntrackdFew;
                let pair = Conntrackd::start(lab, if few { States::Few } else { States::All })?;
                tune(lab)?;
                Running::Conntrackd(Box::new(pair))
            }
            Self::Tc | Self::Xdp => {
                let extra_config = format!("{}{}", lab.options().extra_config, policy.fwha());
                let options = LabOptions { replication: false, extra_config, ..lab.options().clone() };
                let config = file("alone.toml", config_text(&options))?;
                let node = lab.start_node_with(Node::Fw1, &config, Node::Fw1.name())?;
                lab.wait_for("fw1 to be active", START, || {
                    Ok((role(&node.ctl(&["status"])?) == Some("active")).then_some(()))
                })
                .with_context(|| lab.log_tails(LOG_LINES))?;
                Running::Fwha(Box::new(node))
            }
            Self::Replicating => {
                Running::Pair(Box::new(Fwha::start(lab).with_context(|| lab.log_tails(LOG_LINES))?))
            }
        })
    }
}

/// The kernel's connection tracking as strict as fwha's, and without the checksums that a network card would have verified.
fn tune(lab: &Lab) -> Result<()> {
    for (name, value) in [("nf_conntrack_tcp_loose", "0"), ("nf_conntrack_checksum", "0")] {
        lab.within(Host::Fw1, || fs::write(format!("/proc/sys/net/netfilter/{name}"), value))?
            .with_context(|| format!("set {name}"))?;
    }
    Ok(())
}

/// A contender at work.
pub enum Running {
    /// The kernel alone.
    Nothing,
    /// The kernel with rules of nftables.
    Nftables,
    /// The kernel with rules of iptables.
    Iptables,
    /// The kernel with rules of nftables, and conntrackd on both nodes.
    Conntrackd(Box<Conntrackd>),
    /// fwha on one node.
    Fwha(Box<NodeProcess>),
    /// fwha on both nodes.
    Pair(Box<Fwha>),
}

impl Running {
    /// Ends it. Nothing is left of rules and flows.
    ///
    /// # Errors
    ///
    /// When a program fails.
    pub fn stop(&mut self, lab: &Lab) -> Result<()> {
        match self {
            Self::Nothing => return Ok(()),
            Self::Nftables => {
                lab.exec(Host::Fw1, &["nft", "flush", "ruleset"])?;
            }
            Self::Iptables => {
                let file = lab.dir().join("none.iptables");
                fs::write(&file, IPTABLES_NONE).with_context(|| format!("write {}", file.display()))?;
                for program in ["iptables-restore", "ip6tables-restore"] {
                    lab.exec(Host::Fw1, &[program, &file.to_string_lossy()])?;
                }
                // The chains of the variant by nf_tables are hooked in until their tables are gone. Those of the legacy one stay as
                // long as the namespace.
                if conntrackd::missing(&[("nft", "nftables")]).is_empty() {
                    lab.exec(Host::Fw1, &["nft", "flush", "ruleset"])?;
                }
            }
            Self::Conntrackd(pair) => return pair.stop(lab),
            Self::Fwha(node) => {
                ensure!(node.term(PATIENCE)?.success(), "the daemon failed: {}", node.log()?);
                return Ok(());
            }
            Self::Pair(pair) => return pair.stop(),
        }
        lab.exec(Host::Fw1, &["conntrack", "-F"]).map(drop)
    }
}

/// The most flows that the kernel tracks, with some room for others than those of the bench.
///
/// # Errors
///
/// When the kernel has no connection tracking.
pub fn tracked_max() -> Result<u32> {
    let max = conntrack_max()?;
    Ok(max - max / 8)
}

/// The most flows that the kernel tracks. Connection tracking that is a module is loaded, as the first rule would do it.
///
/// # Errors
///
/// When the kernel has no connection tracking.
pub fn conntrack_max() -> Result<u32> {
    conntrack_setting("nf_conntrack_max")
}

/// A number among the kernel's settings of connection tracking.
///
/// # Errors
///
/// As [`conntrack_max`].
pub fn conntrack_setting(name: &str) -> Result<u32> {
    let file = format!("/proc/sys/net/netfilter/{name}");
    if !Path::new(&file).exists() {
        // Without modules there is nothing to load; what is missing then is said below.
        let _ = Command::new("modprobe").arg("nf_conntrack").stderr(Stdio::null()).status();
    }
    Ok(fs::read_to_string(&file).with_context(|| format!("read {file}"))?.trim().parse()?)
}
