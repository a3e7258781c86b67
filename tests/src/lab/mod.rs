//! A firewall pair, a client and a server on one machine: every box a network namespace, every cable a veth pair.
//!
//! ```text
//!   client 192.168.100.100                                        server 10.0.0.128
//!        |                                                              |
//!   [ bridge lan ]---- fw1 lan .1 --- fw1 --- wan .1 ----[ bridge inet ]
//!        |                             | sync 172.16.0.1               |
//!        |                      [ bridge sync ]                        |
//!        |                             | sync 172.16.0.2               |
//!        `------------ fw2 lan .2 --- fw2 --- wan .2 ------------------'
//!
//!   VIPs of the group: 192.168.100.12/24 on lan, 10.0.0.12/24 on wan
//! ```
//!
//! The bridges and the far end of every cable are in a fifth namespace, the switch, so a cable can be pulled from
//! outside: the box sees its carrier go. The dedicated link is a cable of two halves; pulling either ends both.
//!
//! Names are `fwha-PID-RANDOM-HOST` and visible in `ip netns list`; files are in `/run/fwha-lab/fwha-PID-RANDOM/`.
//! A lab removes itself when dropped, on panic and on SIGINT, SIGTERM and SIGHUP; one whose creator was killed is
//! removed when the next is made ([`clean_stale`]).

mod config;
mod ledger;
mod node;
mod process;
pub(crate) mod space;
pub(crate) mod wiring;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{HashMap, Map, MapData};
use fwha_common::flow::{Flow, FlowKey};
use fwha_common::settings::name;

pub use self::config::{KEY_FILE, PING6, text as config_text};
pub use self::ledger::{clean_kept, clean_stale, wait_if_terminating};
pub use self::node::NodeProcess;
pub use self::process::{LineProcess, binary};
pub use self::wiring::{CARDS, Cut};

use self::ledger::Entry;

/// The client's address; its default route is [`LAN_VIP`].
pub const CLIENT: &str = "192.168.100.100";
/// The server's address; its route back to the LAN is [`INET_VIP`].
pub const SERVER: &str = "10.0.0.128";
/// The client's IPv6 address, in a lab that has IPv6.
pub const CLIENT6: &str = "fd00:100::100";
/// The server's IPv6 address, in a lab that has IPv6.
pub const SERVER6: &str = "fd00:10::128";
/// The group's address on the LAN.
pub const LAN_VIP: &str = "192.168.100.12";
/// The group's address on the inet side.
pub const INET_VIP: &str = "10.0.0.12";
/// The group's IPv6 address on the LAN, in a lab that has IPv6.
pub const LAN_VIP6: &str = "fd00:100::12";
/// The group's IPv6 address on the inet side, in a lab that has IPv6.
pub const INET_VIP6: &str = "fd00:10::12";
/// The group's link-local address on either side, in a lab that has IPv6.
pub const LINK_LOCAL_VIP: &str = "fe80::12";

/// A box of the lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host {
    /// The box on the LAN that uses the firewall pair as its gateway.
    Client,
    /// The preferred firewall node.
    Fw1,
    /// The other firewall node.
    Fw2,
    /// The box on the inet side.
    Server,
    /// Bridges and far ends of cables.
    Switch,
    /// A third firewall node, in a lab that has a spare; else an empty box.
    Fw3,
}

impl Host {
    /// Every box.
    pub const ALL: [Host; 6] = [Host::Client, Host::Fw1, Host::Fw2, Host::Server, Host::Switch, Host::Fw3];

    /// The last part of the namespace's name.
    pub const fn name(self) -> &'static str {
        match self {
            Host::Client => "client",
            Host::Fw1 => "fw1",
            Host::Fw2 => "fw2",
            Host::Server => "server",
            Host::Switch => "switch",
            Host::Fw3 => "fw3",
        }
    }
}

/// A firewall node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    /// The preferred one.
    Fw1,
    /// The other one.
    Fw2,
    /// The spare, in a lab that has one.
    Fw3,
}

impl Node {
    /// The pair, most preferred first.
    pub const ALL: [Node; 2] = [Node::Fw1, Node::Fw2];

    /// The name in the config file.
    pub const fn name(self) -> &'static str {
        self.host().name()
    }

    /// The other node of the pair; of the spare, the first.
    pub const fn peer(self) -> Node {
        match self {
            Node::Fw1 => Node::Fw2,
            Node::Fw2 | Node::Fw3 => Node::Fw1,
        }
    }

    /// The box it runs on.
    pub const fn host(self) -> Host {
        match self {
            Node::Fw1 => Host::Fw1,
            Node::Fw2 => Host::Fw2,
            Node::Fw3 => Host::Fw3,
        }
    }

    /// Its own address on the LAN, in IPv4 and in IPv6.
    pub const fn lan_addresses(self) -> [&'static str; 2] {
        match self {
            Node::Fw1 => ["192.168.100.1", "fd00:100::1"],
            Node::Fw2 => ["192.168.100.2", "fd00:100::2"],
            Node::Fw3 => ["192.168.100.3", "fd00:100::3"],
        }
    }

    /// Its own address on the inet side, in IPv4 and in IPv6.
    pub const fn wan_addresses(self) -> [&'static str; 2] {
        match self {
            Node::Fw1 => ["10.0.0.1", "fd00:10::1"],
            Node::Fw2 => ["10.0.0.2", "fd00:10::2"],
            Node::Fw3 => ["10.0.0.3", "fd00:10::3"],
        }
    }

    /// The node of that name.
    pub fn by_name(name: &str) -> Option<Node> {
        [Node::Fw1, Node::Fw2, Node::Fw3].into_iter().find(|node| node.name() == name)
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A cable of a firewall node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cable {
    /// To the LAN's switch.
    Lan,
    /// To the inet side's switch.
    Wan,
    /// The dedicated link between the nodes.
    Sync,
    /// All three.
    All,
}

/// How the data plane is attached, as in the config file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Attach {
    /// The node chooses by driver; on veth that is tc.
    #[default]
    Auto,
    /// Native XDP. The hosts then finish checksums themselves: a packet that XDP redirects keeps no promise to do so.
    Xdp,
    /// tc ingress, with segmentation offload on the hosts.
    Tc,
}

impl Attach {
    /// The word in the config file.
    pub const fn name(self) -> &'static str {
        match self {
            Attach::Auto => "auto",
            Attach::Xdp => "xdp",
            Attach::Tc => "tc",
        }
    }
}

/// What may differ from lab to lab.
#[derive(Debug, Clone)]
pub struct LabOptions {
    /// How the data plane is attached.
    pub attach: Attach,
    /// `lease` of the config file, or its default.
    pub lease: Option<Duration>,
    /// Whether flows are replicated.
    pub replication: bool,
    /// `heartbeat-interval` of the config file, or its default.
    pub heartbeat: Option<Duration>,
    /// `max-flows` of the config file.
    pub max_flows: u32,
    /// Whether the boxes have IPv6 addresses: `fd00:100::/64` on the LAN, `fd00:10::/64` on the inet side, ending as those
    /// of IPv4 do, and the group has IPv6 addresses, too. There is no route between client and server: see
    /// [`Lab::route6_through`] and [`Lab::route6_through_group`].
    pub ipv6: bool,
    /// Whether there is a third node, the least preferred one.
    pub spare: bool,
    /// Others like it may run at the same time in this process: no time is judged that they could change.
    pub beside: bool,
    /// Further lines at the end of the config file.
    pub extra_config: String,
    /// Where `fwha`, `fwhactl` and `fwha-traffic` are; see [`binary`] for the default.
    pub bin_dir: Option<PathBuf>,
}

impl Default for LabOptions {
    fn default() -> Self {
        Self {
            attach: Attach::Auto,
            replication: true,
            heartbeat: None,
            max_flows: 65_536,
            lease: None,
            ipv6: false,
            spare: false,
            beside: false,
            extra_config: String::new(),
            bin_dir: None,
        }
    }
}

impl LabOptions {
    /// The default, beside others.
    pub fn beside() -> Self {
        Self { beside: true, ..Self::default() }
    }
}

/// One lab of a process at a time: two would take each other's processor time, and takeovers are about time. Those
/// that mostly wait (`LabOptions::beside`) may be there at the same time.
static TURN: RwLock<()> = RwLock::new(());

/// A lab's turn.
enum Turn {
    Alone { _guard: RwLockWriteGuard<'static, ()> },
    Beside { _guard: RwLockReadGuard<'static, ()> },
}

impl Turn {
    fn wait(beside: bool) -> Self {
        if beside {
            Self::Beside { _guard: TURN.read().unwrap_or_else(PoisonError::into_inner) }
        } else {
            Self::Alone { _guard: TURN.write().unwrap_or_else(PoisonError::into_inner) }
        }
    }
}

/// A running lab. See the module.
pub struct Lab {
    entry: Arc<Entry>,
    options: LabOptions,
    _turn: Turn,
}

impl Lab {
    /// Builds the boxes and the cables; no node is started. Waits while another lab of this process exists, unless both may
    /// be beside others.
    ///
    /// # Errors
    ///
    /// Without root, without `ip` (Debian: iproute2), or when the kernel refuses a namespace or a device.
    pub fn new(options: LabOptions) -> Result<Lab> {
        ensure!(crate::root::is_root(), "the lab needs root: it makes network namespaces");
        let turn = Turn::wait(options.beside);
        ledger::remove_on_termination()?;
        clean_stale()?;
        let entry = ledger::open()?;
        let lab = Lab { entry, options, _turn: turn };
        lab.entry.lay(|| wiring::lay(&lab.entry, &lab.options))?;
        config::write(&lab)?;
        Ok(lab)
    }

    /// `fwha-PID-RANDOM`: what all names of this lab start with.
    pub fn id(&self) -> &str {
        self.entry.id()
    }

    /// Where this lab keeps its files: config, key, run directories, logs.
    pub fn dir(&self) -> &Path {
        self.entry.dir()
    }

    /// The config file that both nodes share.
    pub fn config_path(&self) -> PathBuf {
        self.dir().join("fwha.toml")
    }

    /// A box's namespace as `ip netns` knows it.
    pub fn namespace(&self, host: Host) -> String {
        self.entry.namespace(host)
    }

    /// Whether the nodes have network cards instead of veths, as [`CARDS`] says. Their carrier stays when the switch goes down.
    pub fn has_cards(&self) -> bool {
        std::env::var_os(CARDS).is_some_and(|cards| !cards.is_empty())
    }

    /// What this lab was made with.
    pub fn options(&self) -> &LabOptions {
        &self.options
    }

    /// From now on, data planes are attached in another way: hosts, switch and config file are changed. No node runs.
    ///
    /// # Errors
    ///
    /// When a box refuses, or the file cannot be written.
    pub fn attach_by(&mut self, attach: Attach) -> Result<()> {
        self.options.attach = attach;
        wiring::fit_to(&self.entry, attach, self.options.spare)?;
        config::write_text(self)
    }

    /// From now on, programs are taken from this directory.
    pub fn take_programs_from(&mut self, dir: PathBuf) {
        self.options.bin_dir = Some(dir);
    }

    /// Makes a node's own addresses the way between client and server, instead of the group's.
    ///
    /// # Errors
    ///
    /// When a host refuses.
    pub fn route_through(&self, node: Node) -> Result<()> {
        wiring::route_by(&self.entry, node.lan_addresses()[0], node.wan_addresses()[0])
    }

    /// Makes the group's addresses the way between client and server again.
    ///
    /// # Errors
    ///
    /// When a host refuses.
    pub fn route_through_group(&self) -> Result<()> {
        wiring::route_by(&self.entry, LAN_VIP, INET_VIP)
    }

    /// Starts `fwha run` for a node, with the run directory and log named after it. Wait for what you need with
    /// [`Lab::wait_for`]: the daemon has only just been started.
    ///
    /// # Errors
    ///
    /// When the program is missing or cannot be started.
    pub fn start_node(&self, node: Node) -> Result<NodeProcess> {
        self.start_node_with(node, &self.config_path(), node.name())
    }

    /// As [`Lab::start_node`] with another config file, or with other names for the run directory and log.
    ///
    /// # Errors
    ///
    /// When the program is missing or cannot be started.
    pub fn start_node_with(&self, node: Node, config: &Path, run_name: &str) -> Result<NodeProcess> {
        NodeProcess::start(self, node, config, run_name, Duration::ZERO)
    }

    /// As [`Lab::start_node`], in a time namespace whose `CLOCK_MONOTONIC` is ahead by so much.
    ///
    /// # Errors
    ///
    /// As there, and when the kernel has no time namespaces.
    pub fn start_node_ahead(&self, node: Node, ahead: Duration) -> Result<NodeProcess> {
        NodeProcess::start(self, node, &self.config_path(), node.name(), ahead)
    }

    /// A command that, when spawned with [`Lab::spawn`], starts on a box. Standard input is empty.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        process::command(program)
    }

    /// Starts a command on a box.
    ///
    /// # Errors
    ///
    /// When it cannot be started, or when the lab is being removed.
    pub fn spawn(&self, host: Host, command: &mut Command) -> Result<std::process::Child> {
        self.entry.spawn(host, command)
    }

    /// Runs a program on a box to its end.
    ///
    /// # Errors
    ///
    /// When it cannot be started or ends unsuccessfully; then with what it said.
    pub fn exec(&self, host: Host, argv: &[&str]) -> Result<String> {
        let output = self.try_exec(host, argv)?;
        if !output.status.success() {
            bail!(
                "{} on {}: {}: {}",
                argv.join(" "),
                host.name(),
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs a program on a box to its end, well or not.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn try_exec(&self, host: Host, argv: &[&str]) -> Result<Output> {
        let (program, arguments) = argv.split_first().context("no program named")?;
        let mut command = self.command(program);
        command.args(arguments).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        Ok(self.spawn(host, &mut command)?.wait_with_output()?)
    }

    /// Runs `ip` on a box, with the words of a line.
    ///
    /// # Errors
    ///
    /// As [`Lab::exec`].
    pub fn ip(&self, host: Host, line: &str) -> Result<String> {
        let words: Vec<&str> = ["ip"].into_iter().chain(line.split_whitespace()).collect();
        self.exec(host, &words)
    }

    /// The MAC of a box's interface.
    ///
    /// # Errors
    ///
    /// When `ip` fails, or says none.
    pub fn mac(&self, host: Host, interface: &str) -> Result<String> {
        let shown = self.ip(host, &format!("-brief link show {interface}"))?;
        Ok(shown.split_whitespace().nth(2).context("a MAC")?.to_owned())
    }

    /// A node's MAC on the LAN.
    ///
    /// # Errors
    ///
    /// As [`Lab::mac`].
    pub fn lan_mac(&self, node: Node) -> Result<String> {
        self.mac(node.host(), "lan")
    }

    /// The MAC in the client's neighbour entry of an address.
    ///
    /// # Errors
    ///
    /// When `ip` fails.
    pub fn neighbour_mac(&self, address: &str) -> Result<Option<String>> {
        let shown = self.exec(Host::Client, &["ip", "neighbour", "show", "to", address, "dev", "eth0"])?;
        let mut words = shown.split_whitespace().skip_while(|word| *word != "lladdr");
        Ok(words.nth(1).map(str::to_owned))
    }

    /// Pings until there is an answer: what is sent before the neighbours are told of a move goes astray.
    ///
    /// # Errors
    ///
    /// When there is none for a minute.
    pub fn wait_for_answer(&self, host: Host, of: &str) -> Result<()> {
        self.wait_for(&format!("an answer of {of}"), Duration::from_secs(60), || {
            let answered = self.try_exec(host, &["ping", "-c1", "-W1", of])?.status.success();
            Ok(answered.then_some(()))
        })
    }

    /// Runs `fwha cleanup` on a node to its end, well or not.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn cleanup(&self, node: Node) -> Result<Output> {
        let mut command = self.command(binary("fwha", self.options().bin_dir.as_deref())?);
        command.arg("cleanup").arg("--config").arg(self.config_path());
        command.args(["--node", node.name(), "--run-dir"]).arg(self.dir().join(node.name()));
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        Ok(self.spawn(node.host(), &mut command)?.wait_with_output()?)
    }

    /// Makes a control group (version 2) for a node. It goes with the lab.
    ///
    /// # Errors
    ///
    /// When there are none of version 2, or the kernel refuses.
    pub fn control_group(&self, node: Node) -> Result<PathBuf> {
        self.entry.control_group(node.host())
    }

    /// Starts `fwha-traffic` on a box; every line it prints is one event of type `E`.
    ///
    /// # Errors
    ///
    /// When the program is missing or cannot be started.
    pub fn traffic<E>(&self, host: Host, arguments: &[String]) -> Result<LineProcess<E>>
    where
        E: serde::de::DeserializeOwned + Send + 'static,
    {
        let mut command = self.command(binary("fwha-traffic", self.options.bin_dir.as_deref())?);
        command.args(arguments);
        LineProcess::start(self, host, command)
    }

    /// Runs `work` on a thread of its own inside a box's network namespace: sockets it opens are the box's.
    ///
    /// # Errors
    ///
    /// When the namespace cannot be entered.
    pub fn within<T: Send>(&self, host: Host, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.entry.within(host, work)
    }

    /// Makes a node's own addresses the way between client and server for IPv6.
    ///
    /// # Errors
    ///
    /// When the lab has no IPv6.
    pub fn route6_through(&self, node: Node) -> Result<()> {
        wiring::route6_by(&self.entry, node.lan_addresses()[1], node.wan_addresses()[1])
    }

    /// Makes the group's addresses the way between client and server for IPv6.
    ///
    /// # Errors
    ///
    /// When a host refuses.
    pub fn route6_through_group(&self) -> Result<()> {
        wiring::route6_by(&self.entry, LAN_VIP6, INET_VIP6)
    }

    /// Gives a node's cables to the hosts so many queues, or one as at first. With as many as there are CPUs each CPU polls
    /// what it has sent and no other does, as with a network card that has interrupts of its own for each.
    ///
    /// An XDP program that is there misses the new queues; it must be attached again.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn set_queues(&self, node: Node, queues: usize) -> Result<()> {
        wiring::queue(&self.entry, node, queues)
    }

    /// Pulls a cable: the node's interface loses its carrier. All cables of [`Cable::All`] go in one command.
    ///
    /// # Errors
    ///
    /// When the switch refuses.
    pub fn cut(&self, node: Node, cable: Cable) -> Result<()> {
        self.prepare_cut(node, cable)?.now()
    }

    /// Prepares to pull a cable, so that the cut itself takes no longer than the kernel does.
    ///
    /// # Errors
    ///
    /// When `ip` cannot be started.
    pub fn prepare_cut(&self, node: Node, cable: Cable) -> Result<Cut> {
        wiring::prepare_cut(&self.entry, node, cable)
    }

    /// Plugs a cable in again.
    ///
    /// # Errors
    ///
    /// When the switch refuses.
    pub fn heal(&self, node: Node, cable: Cable) -> Result<()> {
        wiring::plug(&self.entry, node, cable)
    }

    /// Makes cables one-way: no frame of these nodes gets out of them, all that is sent to the nodes arrives. The carriers
    /// stay. Of every other node, and with none of all, the frames get out again.
    ///
    /// # Errors
    ///
    /// When `nft` (Debian package nftables) is not there or refuses.
    pub fn mute(&self, cables: &[(Node, &str)]) -> Result<()> {
        let ports: Vec<String> = cables.iter().map(|(node, cable)| format!("\"{node}-{cable}\"")).collect();
        let mut script = "table netdev mute\ndelete table netdev mute\n".to_owned();
        if !ports.is_empty() {
            let ports = ports.join(", ");
            let hook =
                format!("{{ type filter hook ingress devices = {{ {ports} }} priority 0; policy drop; }}");
            script.push_str(&format!("add table netdev mute\nadd chain netdev mute frames {hook}\n"));
        }
        self.exec(Host::Switch, &["sh", "-ec", &format!("printf '%s' '{script}' | nft -f -")])
            .map(drop)
            .context("one-way cables are made with nft (Debian package nftables)")
    }

    /// Waits until `condition` gives a value, looking again every few milliseconds, for at most `timeout`.
    ///
    /// # Errors
    ///
    /// When the time is up: with `what` was waited for and, if there was one, the last error of the condition.
    pub fn wait_for<T>(
        &self,
        what: &str,
        timeout: Duration,
        mut condition: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let deadline = Instant::now() + timeout;
        loop {
            let result = condition();
            if let Ok(Some(value)) = result {
                return Ok(value);
            }
            if Instant::now() >= deadline {
                let late = format!("waited {timeout:?} in vain: {what}");
                return match result {
                    Err(error) => Err(error.context(late)),
                    Ok(_) => bail!(late),
                };
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The paths of all BPF pins in the lab, relative to `/sys/fs/bpf`.
    ///
    /// # Errors
    ///
    /// When the lab's mount namespace cannot be entered.
    pub fn pins(&self) -> Result<Vec<PathBuf>> {
        self.entry.pins()
    }

    /// The kernel's flow table of a node that runs, as its daemon has pinned it.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn flow_table(&self, node: Node) -> Result<HashMap<MapData, FlowKey, Flow>> {
        let pins = self.pins()?;
        let of_node =
            |pin: &&PathBuf| pin.ends_with(name::FLOWS) && pin.to_string_lossy().contains(node.name());
        let pin = pins.iter().find(of_node).with_context(|| format!("a flow table of {node}"))?;
        let map = self.entry.in_mounts(|| MapData::from_pin(Path::new(space::BPFFS).join(pin)))??;
        Ok(Map::HashMap(map).try_into()?)
    }

    /// Runs `work` on a thread of its own in the nodes' mount namespace, where the pins are.
    ///
    /// # Errors
    ///
    /// When the namespace cannot be entered.
    pub fn in_mounts<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.entry.in_mounts(work)
    }

    /// The last lines of every node's log, for a failure report.
    pub fn log_tails(&self, lines: usize) -> String {
        node::log_tails(self.dir(), lines)
    }

    /// Leaves the lab standing when it is dropped. `clean_kept` removes it.
    ///
    /// # Errors
    ///
    /// When the mark cannot be written.
    pub fn keep(self) -> Result<()> {
        self.entry.mark_kept()
    }

    /// Removes the lab and verifies that nothing of it is left: no process, no namespace, no file. Its mount namespace
    /// and the pins in it go with the last process and descriptor.
    ///
    /// # Errors
    ///
    /// Naming what could not be removed.
    pub fn remove(self) -> Result<()> {
        self.entry.remove()?;
        ledger::check_gone(self.id())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log_tails(30));
        }
        if let Err(error) = self.entry.remove() {
            eprintln!("lab {} could not be removed: {error:#}", self.id());
        }
    }
}
