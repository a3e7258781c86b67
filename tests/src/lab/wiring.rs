//! Lays the lab's boxes and cables with iproute2, and pulls and plugs cables.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::ledger::Entry;
use super::{Attach, CLIENT, CLIENT6, Cable, Host, INET_VIP, LAN_VIP, LabOptions, Node, SERVER, SERVER6};
use crate::sys::{Feature, set_feature, set_queues};

/// Names the variable with network cards that the lab's nodes have instead of veths (`cargo xtask kernels --nic`): MACs, two for
/// each cable of fw1 and fw2 to the hosts, fw1 and its LAN first; the first of two is at the switch.
pub const CARDS: &str = "FWHA_LAB_CARDS";

/// How long network cards are waited for when the lab before is gone.
const RETURN: Duration = Duration::from_secs(60);

/// A cable from the switch to a box.
struct Line {
    bridge: &'static str,
    /// The name at the switch.
    port: &'static str,
    host: Host,
    /// The name at the box.
    interface: &'static str,
    address: &'static str,
    address6: &'static str,
}

const fn line(
    bridge: &'static str,
    port: &'static str,
    host: Host,
    interface: &'static str,
    address: &'static str,
    address6: &'static str,
) -> Line {
    Line { bridge, port, host, interface, address, address6 }
}

const LINES: [Line; 11] = [
    line("lan", "client", Host::Client, "eth0", "192.168.100.100/24", "fd00:100::100/64"),
    line("lan", "fw1-lan", Host::Fw1, "lan", "192.168.100.1/24", "fd00:100::1/64"),
    line("lan", "fw2-lan", Host::Fw2, "lan", "192.168.100.2/24", "fd00:100::2/64"),
    line("inet", "server", Host::Server, "eth0", "10.0.0.128/24", "fd00:10::128/64"),
    line("inet", "fw1-wan", Host::Fw1, "wan", "10.0.0.1/24", "fd00:10::1/64"),
    line("inet", "fw2-wan", Host::Fw2, "wan", "10.0.0.2/24", "fd00:10::2/64"),
    line("sync", "fw1-sync", Host::Fw1, "sync", "172.16.0.1/24", "fd00:172::1/64"),
    line("sync", "fw2-sync", Host::Fw2, "sync", "172.16.0.2/24", "fd00:172::2/64"),
    line("lan", "fw3-lan", Host::Fw3, "lan", "192.168.100.3/24", "fd00:100::3/64"),
    line("inet", "fw3-wan", Host::Fw3, "wan", "10.0.0.3/24", "fd00:10::3/64"),
    line("sync", "fw3-sync", Host::Fw3, "sync", "172.16.0.3/24", "fd00:172::3/64"),
];

/// The cables of a lab with or without a spare.
fn lines(spare: bool) -> impl Iterator<Item = &'static Line> {
    LINES.iter().filter(move |line| spare || line.host != Host::Fw3)
}

/// Makes the namespaces, the bridges, the cables and the addresses.
pub fn lay(lab: &Entry, options: &LabOptions) -> Result<()> {
    let LabOptions { attach, ipv6, spare, .. } = *options;
    for host in Host::ALL {
        ip(&["netns", "add", &lab.namespace(host)], "")?;
        lab.within(host, || quieten(host, ipv6))??;
    }

    let mut switch = String::new();
    for bridge in ["lan", "inet", "sync"] {
        // No spanning tree and no snooping: a cheap switch that floods multicast.
        writeln!(switch, "link add {bridge} type bridge stp_state 0 forward_delay 0 mcast_snooping 0")?;
        writeln!(switch, "link set {bridge} up")?;
    }
    let cards = Cards::of_environment();
    for line @ Line { bridge, port, host, interface, .. } in lines(spare) {
        let namespace = lab.namespace(*host);
        if let Some([here, there]) = cards.of(line) {
            insert(here, &lab.namespace(Host::Switch), port)?;
            insert(there, &namespace, interface)?;
        } else {
            writeln!(switch, "link add {port} type veth peer name {interface} netns {namespace}")?;
        }
        writeln!(switch, "link set {port} master {bridge} up")?;
    }
    batch(lab, Host::Switch, &switch)?;

    for host in [Host::Client, Host::Fw1, Host::Fw2, Host::Server, Host::Fw3] {
        let mut commands = String::from("link set lo up\n");
        for Line { interface, address, address6, .. } in lines(spare).filter(|line| line.host == host) {
            writeln!(commands, "addr add {address} dev {interface}")?;
            if ipv6 {
                // Nobody else has it, so there is nothing to wait for.
                writeln!(commands, "addr add {address6} dev {interface} nodad")?;
            }
            writeln!(commands, "link set {interface} up")?;
        }
        batch(lab, host, &commands)?;
    }
    route_by(lab, LAN_VIP, INET_VIP)?;
    debug_assert!(LINES[0].address.starts_with(CLIENT) && LINES[3].address.starts_with(SERVER));
    debug_assert!(LINES[0].address6.starts_with(CLIENT6) && LINES[3].address6.starts_with(SERVER6));
    fit_to(lab, attach, spare)
}

/// Network cards for the cables of the nodes, by their MACs.
struct Cards(Vec<String>);

impl Cards {
    fn of_environment() -> Self {
        let named = std::env::var(CARDS).unwrap_or_default();
        Self(named.split_whitespace().map(str::to_owned).collect())
    }

    /// Those at the two ends of a cable, if it has some.
    fn of(&self, line: &Line) -> Option<[&str; 2]> {
        let of_nodes = |line: &&Line| matches!(line.host, Host::Fw1 | Host::Fw2) && line.bridge != "sync";
        let place = LINES.iter().filter(of_nodes).position(|other| other.port == line.port)?;
        let [here, there] = self.0.get(2 * place..2 * place + 2)? else { return None };
        Some([here, there])
    }
}

/// Puts a network card into a namespace, under a name. It comes back to this one when that ends, some time after.
fn insert(mac: &str, namespace: &str, name: &str) -> Result<()> {
    let deadline = Instant::now() + RETURN;
    loop {
        let all = fs::read_dir("/sys/class/net").context("list interfaces")?.filter_map(Result::ok);
        let has_mac = |path: &PathBuf| {
            fs::read_to_string(path.join("address")).is_ok_and(|address| address.trim() == mac)
        };
        if let Some(found) = all.map(|entry| entry.path()).find(has_mac) {
            let found = found.file_name().unwrap_or_default().to_string_lossy().into_owned();
            return ip(&["link", "set", &found, "netns", namespace, "name", name], "");
        }
        ensure!(Instant::now() < deadline, "no network card here has the MAC {mac}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Makes the hosts and the switch fit for how the nodes' data planes are attached.
pub fn fit_to(lab: &Entry, attach: Attach, spare: bool) -> Result<()> {
    // Who sends to a node that redirects by XDP must finish checksums itself, for the redirected packet says nothing of
    // an unfinished one: the hosts, and the switch, which leaves them open when it cuts a coalesced packet to pieces.
    let checksums = attach != Attach::Xdp;
    lab.within(Host::Switch, || {
        let cards = Cards::of_environment();
        let nodes = |line: &&Line| matches!(line.host, Host::Fw1 | Host::Fw2 | Host::Fw3);
        for line in lines(spare).filter(nodes).filter(|line| cards.of(line).is_none()) {
            // An XDP program at the other end can redirect into a veth only while this end polls: receive coalescing
            // does.
            set_feature(line.port, Feature::Gro, true)?;
            set_feature(line.port, Feature::TxChecksum, checksums)?;
        }
        std::io::Result::Ok(())
    })?
    .context("set receive coalescing and transmit offload at the switch")?;
    for host in [Host::Client, Host::Server] {
        lab.within(host, || set_feature("eth0", Feature::TxChecksum, checksums))?
            .with_context(|| format!("set transmit offload on {}", host.name()))?;
    }
    Ok(())
}

/// Gives both ends of a node's cables to the hosts so many queues. A CPU sends to the queue of its number.
pub fn queue(lab: &Entry, node: Node, queues: usize) -> Result<()> {
    let line = |line: &&Line| line.host == node.host() && line.bridge != "sync";
    let ends = |line: &Line| [(Host::Switch, line.port), (line.host, line.interface)];
    for (host, interface) in LINES.iter().filter(line).flat_map(ends) {
        lab.within(host, || set_queues(interface, queues as u32))?
            .with_context(|| format!("give {interface} {queues} queues"))?;
        // Of an only queue there is nothing to choose.
        let choose = |queue| {
            let mask = format!("{:x}{}", 1 << (queue % 32), ",00000000".repeat(queue / 32));
            format!("echo {mask} > /sys/class/net/{interface}/queues/tx-{queue}/xps_cpus\n")
        };
        let choices: String = (0..queues).filter(|_| queues > 1).map(choose).collect();
        ip(&["netns", "exec", &lab.namespace(host), "sh", "-e"], &choices)?;
    }
    Ok(())
}

/// Routes from the client to the inet side and from the server to the LAN.
pub fn route_by(lab: &Entry, lan: &str, inet: &str) -> Result<()> {
    batch(lab, Host::Client, &format!("route replace default via {lan}\n"))?;
    batch(lab, Host::Server, &format!("route replace 192.168.100.0/24 via {inet}\n"))
}

/// Routes of IPv6 from the client to the inet side and from the server to the LAN.
pub fn route6_by(lab: &Entry, lan: &str, inet: &str) -> Result<()> {
    batch(lab, Host::Client, &format!("route replace default via {lan}\n"))?;
    batch(lab, Host::Server, &format!("route replace fd00:100::/64 via {inet}\n"))
}

/// A cut about to be made: `ip` runs already and waits for its commands.
pub struct Cut {
    ip: Ip,
    commands: String,
}

impl Cut {
    /// Makes it.
    ///
    /// # Errors
    ///
    /// When the switch refuses.
    pub fn now(self) -> Result<()> {
        self.ip.run(&self.commands)
    }
}

/// Prepares to pull a node's cable at the switch's end.
pub fn prepare_cut(lab: &Entry, node: Node, cable: Cable) -> Result<Cut> {
    let ip = Ip::start(&["-netns", &lab.namespace(Host::Switch), "-batch", "-"])?;
    Ok(Cut { ip, commands: set_ports(node, cable, "down") })
}

/// Plugs a node's cable in again.
pub fn plug(lab: &Entry, node: Node, cable: Cable) -> Result<()> {
    batch(lab, Host::Switch, &set_ports(node, cable, "up"))
}

fn set_ports(node: Node, cable: Cable, state: &str) -> String {
    let mut ports = Vec::new();
    if matches!(cable, Cable::Lan | Cable::All) {
        ports.push(format!("{node}-lan"));
    }
    if matches!(cable, Cable::Wan | Cable::All) {
        ports.push(format!("{node}-wan"));
    }
    if matches!(cable, Cable::Sync | Cable::All) {
        ports.extend(Node::ALL.map(|end| format!("{end}-sync")));
    }
    ports.iter().map(|port| format!("link set {port} {state}\n")).collect()
}

/// The kernel's switches of one box; runs inside it.
fn quieten(host: Host, ipv6: bool) -> Result<()> {
    let forward = if matches!(host, Host::Fw1 | Host::Fw2 | Host::Fw3) { "1" } else { "0" };
    let no_ipv6 = if ipv6 && host != Host::Switch { "0" } else { "1" };
    for (name, value) in [
        ("ipv4/ip_forward", forward),
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
        ("ipv6/conf/all/disable_ipv6", no_ipv6),
        ("ipv6/conf/default/disable_ipv6", no_ipv6),
        ("ipv6/conf/all/forwarding", forward),
    ] {
        let path = format!("/proc/sys/net/{name}");
        match std::fs::write(&path, value) {
            // A kernel without IPv6 is as quiet as can be.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && name.starts_with("ipv6") => {}
            result => result.with_context(|| format!("write {path}"))?,
        }
    }
    Ok(())
}

fn batch(lab: &Entry, host: Host, commands: &str) -> Result<()> {
    ip(&["-netns", &lab.namespace(host), "-batch", "-"], commands)
}

/// Runs `ip` with `input` on its standard input.
pub fn ip(arguments: &[&str], input: &str) -> Result<()> {
    Ip::start(arguments)?.run(input)
}

/// An `ip` that waits for its standard input.
struct Ip {
    child: Child,
    arguments: String,
}

impl Ip {
    fn start(arguments: &[&str]) -> Result<Self> {
        let child = Command::new("ip")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("start `ip` (Debian package iproute2)")?;
        Ok(Self { child, arguments: arguments.join(" ") })
    }

    fn run(mut self, input: &str) -> Result<()> {
        // The batches are far smaller than a pipe's buffer, so this cannot block on a child that does not read.
        self.child.stdin.take().context("standard input of ip")?.write_all(input.as_bytes())?;
        let output = self.child.wait_with_output()?;
        if !output.status.success() {
            bail!("ip {}: {}", self.arguments, String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }
}
