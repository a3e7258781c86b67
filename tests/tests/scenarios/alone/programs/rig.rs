//! A settled pair with IPv6 and the rules that the scenarios need, and programs that run in it, bounded in time.

use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::process::{Child, Output, Stdio};
use std::thread;

use anyhow::{Context as _, Result, ensure};
use fwha_tests::lab::{Attach, CLIENT, CLIENT6, Host, Lab, LabOptions, Node, SERVER, SERVER6};
use fwha_tests::pair::Pair;
use fwha_tests::scenario::in_lab;
use serde_json::Value;
use tempfile::TempDir;

use super::servers;

/// The port that the rules reject, TCP and UDP alike.
pub const REJECTED: u16 = 81;
/// The port whose connections have their MSS clamped.
pub const CLAMPED: u16 = 82;

/// The ports whose connections the SYN proxy opens: of HTTP, of a sink, of a server that speaks first, and of
/// none.
pub const PROXIED: [u16; 4] = [8084, 8085, 8086, 8087];

/// Before the lab's own rules. IPv6 goes by its own rule, so that its hits tell of it.
const RULES: &str = r#"[[rule]]
name = "refused"
from = "lan"
to = "inet"
services = ["tcp/81", "udp/81"]
action = "reject"

[[rule]]
name = "clamped"
from = "lan"
to = "inet"
services = ["tcp/82"]
mss = "pmtu"
action = "accept"

[[rule]]
name = "proxied"
from = "lan"
to = "inet"
services = ["tcp/8084-8087"]
syn-proxy = true
action = "accept"

[[rule]]
name = "lan-out-6"
from = "lan"
to = "inet"
source = ["fd00:100::/64"]
destination = ["fd00:10::/64"]
action = "accept"

[[rule]]
name = "admin-6"
from = "lan"
to = "node"
source = ["fd00:100::/64"]
services = ["tcp/22", "icmpv6"]
action = "accept"

"#;

/// How long any one program may run, in seconds.
const PROGRAM_MAX: &str = "15";

/// A family's ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The option by which most programs know it.
    pub const fn option(self) -> &'static str {
        ["-4", "-6"][self as usize]
    }

    pub const fn client(self) -> &'static str {
        [CLIENT, CLIENT6][self as usize]
    }

    pub const fn server(self) -> &'static str {
        [SERVER, SERVER6][self as usize]
    }
}

/// A program that runs until it is dropped.
pub struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The lab, its pair, and who was Active.
pub struct Rig<'a> {
    pub lab: &'a Lab,
    pub pair: &'a Pair,
    pub active: Node,
    /// For files of the programs.
    pub dir: TempDir,
}

/// Something that programs do, with or through a settled pair.
pub struct Scenario {
    pub name: &'static str,
    /// The programs that it needs, each with its Debian package.
    pub programs: &'static [(&'static str, &'static str)],
    pub play: fn(&Rig<'_>) -> Result<()>,
}

/// Plays scenarios one after another with the pair's data plane attached this way, and fails when one has failed.
pub fn play(attach: Attach, scenarios: &[Scenario]) {
    in_lab(LabOptions { attach, ipv6: true, ..LabOptions::default() }, |lab| {
        let path = lab.config_path();
        let config = fs::read_to_string(&path)?.replacen("[[rule]]", &format!("{RULES}[[rule]]"), 1);
        fs::write(&path, config)?;
        let (mut pair, active) = Pair::settled(lab)?;
        lab.route6_through(active)?;
        servers::dns(lab, Host::Server)?;
        let rig = Rig { lab, pair: &pair, active, dir: tempfile::tempdir()? };
        let mut failed = Vec::new();
        for Scenario { name, programs, play } in scenarios {
            if let Some(needs) = missing(programs) {
                skipped(&format!("{name}: {needs}"));
                if std::env::var("CI").as_deref() == Ok("true") {
                    failed.push(format!("{name}: {needs}, and CI=true forbids skipping it"));
                }
            } else if let Err(error) = play(&rig) {
                failed.push(format!("{name}: {error:#}"));
            }
        }
        ensure!(failed.is_empty(), "{}", failed.join("\n"));
        drop(rig);
        ensure!(pair.settle(lab)? == active, "{active} is not active any more");
        Ok(())
    });
}

/// The first of the programs that is not installed.
fn missing(programs: &[(&str, &str)]) -> Option<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<_> = std::env::split_paths(&path).collect();
    places.push("/usr/sbin".into());
    let absent = programs.iter().find(|(program, _)| !places.iter().any(|dir| dir.join(program).is_file()));
    absent.map(|(program, package)| format!("needs {program} (Debian package {package})"))
}

/// Says that something is not tested, and why.
fn skipped(why: &str) {
    let test = thread::current().name().unwrap_or("test").to_owned();
    // A direct write: the harness captures `eprintln!` of tests that pass.
    let _ = writeln!(std::io::stderr(), "{test}: skipped: {why}");
}

impl Rig<'_> {
    /// Runs a program to its end, well or not, but not for ever.
    pub fn try_run(&self, host: Host, argv: &[&str]) -> Result<Output> {
        self.lab.try_exec(host, &[&["timeout", "--kill-after=1", PROGRAM_MAX], argv].concat())
    }

    /// Runs a program to its good end, and returns what it printed.
    pub fn run(&self, host: Host, argv: &[&str]) -> Result<String> {
        let output = self.try_run(host, argv)?;
        let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "{}: {}\n{out}{error}", argv.join(" "), output.status);
        Ok(out.into_owned())
    }

    /// Starts a program that serves.
    pub fn serve(&self, host: Host, argv: &[&str]) -> Result<Running> {
        let (program, arguments) = argv.split_first().context("no program named")?;
        let mut command = self.lab.command(program);
        command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Running(self.lab.spawn(host, &mut command)?))
    }

    /// Waits until something listens at a port of a box.
    pub fn wait_for_listener(&self, host: Host, port: u16) -> Result<()> {
        let filter = format!("sport = :{port}");
        self.lab.wait_for(&format!("a listener at port {port}"), fwha_tests::pair::PATIENCE, || {
            Ok((!self.run(host, &["ss", "-Hltn", &filter])?.is_empty()).then_some(()))
        })
    }

    /// The drops of both nodes by reason. The Backup drops what the switch floods to it, so only the Active's say
    /// anything of traffic through the cluster.
    fn drops(&self) -> Result<Value> {
        Ok(self.pair.node(self.active).ctl(&["stats"])?["drops"].take())
    }

    /// Does something that must not make the Active drop a packet, whatever the reason.
    pub fn without_drops<T>(&self, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.without_drops_but("", what, work)
    }

    /// As [`Self::without_drops`], but for this reason.
    pub fn without_drops_but<T>(
        &self,
        allowed: &str,
        what: &str,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let before = self.drops()?;
        let done = work().with_context(|| what.to_owned());
        let after = self.drops()?;
        let count = |drops: &Value, reason: &str| drops[reason].as_u64().unwrap_or(0);
        let risen: Vec<String> = (after.as_object().context("drops by reason")?.keys())
            .filter(|reason| *reason != allowed && count(&after, reason) > count(&before, reason))
            .map(|reason| format!("{reason} by {}", count(&after, reason) - count(&before, reason)))
            .collect();
        let done = done.with_context(|| format!("drops risen meanwhile: {risen:?}"))?;
        ensure!(risen.is_empty(), "{what}: drops have risen: {}", risen.join(", "));
        Ok(done)
    }

    /// The flows that a node lists with this address and destination port.
    pub fn flows(&self, node: Node, address: &str, port: u16) -> Result<Vec<Value>> {
        let address: IpAddr = address.parse()?;
        let mut flows = self.pair.node(node).ctl_lines(&["flows"])?;
        flows.retain(|flow| {
            flow["dport"] == port
                && (flow["src"] == address.to_string() || flow["dst"] == address.to_string())
        });
        Ok(flows)
    }
}
