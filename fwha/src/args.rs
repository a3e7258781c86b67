//! The command lines of `fwha` and `fwhactl`.

use std::path::PathBuf;

use clap::{
    Args, Parser, Subcommand, ValueEnum,
    builder::{PossibleValuesParser, RangedU64ValueParser},
};
use fwha_common::{capture::SNAP_LEN, drop::DropReason};

use crate::{api, config};

/// One node of a firewall cluster.
#[derive(Debug, Parser)]
#[command(name = "fwha", version, arg_required_else_help = true)]
pub struct Fwha {
    /// What to do.
    #[command(subcommand)]
    pub verb: FwhaVerb,
}

/// The verbs of `fwha`.
#[derive(Debug, Subcommand)]
pub enum FwhaVerb {
    /// Run this node, in the foreground.
    Run(RunArgs),
    /// Explain every mistake in the config file.
    Check(CheckArgs),
    /// Remove what a daemon that was killed has left: virtual addresses, packet programs, control socket.
    ///
    /// Refuses while a daemon of this node runs.
    Cleanup(CleanupArgs),
}

/// `fwha run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The config file, the same on every node.
    #[arg(long, value_name = "FILE", default_value = config::DEFAULT_PATH)]
    pub config: PathBuf,
    /// The node to be; the one called like this host, if left out.
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    /// Directory of the control socket; one for each daemon on this machine.
    #[arg(long, value_name = "DIR", default_value = "/run/fwha")]
    pub run_dir: PathBuf,
    /// Directory of what must survive a reboot: whether an operator has put the node on standby.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/fwha")]
    pub state_dir: PathBuf,
}

/// `fwha check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The config file.
    #[arg(long, value_name = "FILE", default_value = config::DEFAULT_PATH)]
    pub config: PathBuf,
    /// The node whose interfaces are looked for here; the one called like this host, if left out.
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
}

/// `fwha cleanup`.
#[derive(Debug, Args)]
pub struct CleanupArgs {
    /// The config file.
    #[arg(long, value_name = "FILE", default_value = config::DEFAULT_PATH)]
    pub config: PathBuf,
    /// The node that left it; the one called like this host, if left out.
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    /// Directory of its control socket.
    #[arg(long, value_name = "DIR", default_value = "/run/fwha")]
    pub run_dir: PathBuf,
}

/// Ask a running fwha node, and tell it what to do.
#[derive(Debug, Parser)]
#[command(name = "fwhactl", version, arg_required_else_help = true)]
pub struct Fwhactl {
    /// The node's control socket.
    #[arg(long, global = true, value_name = "PATH", default_value = api::DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// How to print: for people, or one JSON object a line.
    #[arg(short, long, global = true, value_enum, default_value_t)]
    pub output: Output,
    /// What to do.
    #[command(subcommand)]
    pub verb: CtlVerb,
}

/// How `fwhactl` prints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Table,
    /// One object a line, a stable contract.
    Json,
}

/// The verbs of `fwhactl`.
#[derive(Debug, Subcommand)]
pub enum CtlVerb {
    /// Show groups, peers, replication and warnings.
    ///
    /// Exits with 3 when a group has not exactly one active node, or when the daemon hangs: it does not answer, or what it
    /// says is old.
    Status(StatusArgs),
    /// List the flow table.
    Flows(FlowsArgs),
    /// Show counters.
    Stats(StatsArgs),
    /// Show what happened: role changes with their steps, peers, replication.
    Events(EventsArgs),
    /// Show packets that are dropped, as they are dropped, or write them to a pcapng file.
    ///
    /// Goes on until interrupted. What it could not show is counted at the end.
    Capture(CaptureArgs),
    /// Send all flows that this node owns to the peers.
    ///
    /// Exits with 1 when there is a peer to which they cannot be sent.
    Bulk(TransferArgs),
    /// Ask the peers for all flows that they own.
    ///
    /// Exits with 1 when there is a peer that cannot be asked.
    Resync(TransferArgs),
    /// Move a group to another node. Run it on the active node.
    Switchover(SwitchoverArgs),
    /// Say why.
    Explain(ExplainArgs),
    /// Hand all groups over and take no part in elections, over restarts and reboots too; or take part again.
    Standby(StandbyArgs),
    /// Read the cluster file again, and change what changed and nothing else.
    ///
    /// All of it or nothing: a file with a mistake, or with a change that needs a restart, changes nothing.
    /// Exits with 1 then.
    Reload(ReloadArgs),
    /// What runs with the groups (`[[resource]]`).
    Resource(ResourceArgs),
    /// Make a cluster key in a new file.
    Keygen(KeygenArgs),
}

/// `fwhactl status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Show it again every second, until interrupted.
    #[arg(long, short)]
    pub watch: bool,
}

/// `fwhactl flows`.
#[derive(Debug, Args)]
#[command(subcommand_negates_reqs = true, args_conflicts_with_subcommands = true)]
pub struct FlowsArgs {
    /// Only print something about the flows.
    #[command(subcommand)]
    pub verb: Option<FlowsVerb>,
    /// Which flows.
    #[command(flatten)]
    pub filter: FilterArgs,
}

/// The verbs of `fwhactl flows`.
#[derive(Debug, Subcommand)]
pub enum FlowsVerb {
    /// Count the flows.
    Count(FilterArgs),
    /// Show in which flows this node and a peer differ.
    ///
    /// Exits with 0 when there is none, with 1 when there is one, or when a peer cannot be asked or is lost on the way.
    Diff(DiffArgs),
    /// Delete flows, here and on the peers. Run it on the active node.
    ///
    /// Flows that nobody has answered yet are ended, too, and with each up to seven others that share its place, whose
    /// senders begin again.
    Delete(DeleteArgs),
}

/// `fwhactl flows diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// The peer; this node's own flow table and all peers, if left out.
    #[arg(long, value_name = "NAME")]
    pub peer: Option<String>,
    /// Compare flow by flow with peers even where digests agree.
    #[arg(long)]
    pub all: bool,
    /// Compare what the daemon knows with this node's own flow table only.
    ///
    /// What differs is put right.
    #[arg(long, conflicts_with_all = ["peer", "all"])]
    pub local: bool,
}

/// `fwhactl flows delete`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("which").required(true).multiple(true).args(["terms", "origin", "all"]))]
pub struct DeleteArgs {
    /// Which flows.
    #[command(flatten)]
    pub filter: FilterArgs,
    /// All of them.
    #[arg(long, conflicts_with_all = ["terms", "origin"])]
    pub all: bool,
}

/// Which flows.
#[derive(Debug, Args)]
pub struct FilterArgs {
    /// Terms that a flow must match: proto=tcp, src=10.0.0.0/8, dst=…, sport=…, dport=22,
    /// state=established, zone=lan, origin=local.
    #[arg(value_name = "FILTER")]
    pub terms: Vec<String>,
    /// Only flows that began at this node, or that came from a peer.
    #[arg(long, value_parser = ["local", "peer"])]
    pub origin: Option<String>,
}

/// `fwhactl stats`.
#[derive(Debug, Args)]
pub struct StatsArgs {
    /// Only these counters.
    #[arg(value_enum)]
    pub section: Option<StatsSection>,
    /// All metrics in Prometheus' text format; not with `-o json`.
    #[arg(long, conflicts_with = "section")]
    pub prometheus: bool,
}

/// The sections of [`api::Stats`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StatsSection {
    /// Flows and packets of the data plane.
    Flows,
    /// Replication.
    Sync,
    /// Sync links.
    Link,
    /// VRRP.
    Vrrp,
    /// Packets dropped, by reason.
    Drops,
    /// First packets of flows by the rule that decided.
    Rules,
}

/// `fwhactl events`.
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Go on with events as they happen, until interrupted.
    #[arg(long, short)]
    pub follow: bool,
}

/// `fwhactl capture`.
#[derive(Debug, Args)]
pub struct CaptureArgs {
    /// Packets that are dropped; nothing else can be captured.
    #[arg(long, required = true)]
    pub drops: bool,
    /// Only packets that are dropped for these reasons, with commas between them; may be repeated. `fwhactl stats
    /// drops` has them all.
    #[arg(
        long = "reason",
        value_name = "REASON",
        value_delimiter = ',',
        hide_possible_values = true,
        value_parser = PossibleValuesParser::new(DropReason::ALL.iter().map(|reason| reason.as_str())),
    )]
    pub reasons: Vec<String>,
    /// Write a pcapng file, with the reason as each packet's comment; `-` is standard output.
    #[arg(short, long, value_name = "FILE")]
    pub write: Option<PathBuf>,
    /// End after so many packets.
    #[arg(short, long, value_name = "COUNT", value_parser = RangedU64ValueParser::<u64>::new().range(1..))]
    pub count: Option<u64>,
    /// Bytes of each packet, from its Ethernet header on.
    #[arg(
        long = "snaplen",
        value_name = "BYTES",
        default_value_t = SNAP_LEN as u32,
        value_parser = clap::value_parser!(u32).range(1..=SNAP_LEN as i64),
    )]
    pub snap_len: u32,
}

/// `fwhactl bulk` and `fwhactl resync`.
#[derive(Debug, Args)]
pub struct TransferArgs {
    /// The peer; all of them, if left out.
    #[arg(long, value_name = "NAME")]
    pub peer: Option<String>,
    /// Show how far it is and return when it is complete.
    #[arg(long)]
    pub wait: bool,
}

/// `fwhactl switchover`.
#[derive(Debug, Args)]
pub struct SwitchoverArgs {
    /// The group; may be left out if there is only one.
    pub group: Option<String>,
    /// The node to move to; the most preferred one that is ready, if left out.
    #[arg(long, value_name = "NODE")]
    pub to: Option<String>,
    /// Also to a node that is not in sync with this one: connections may then be lost.
    #[arg(long)]
    pub force: bool,
    /// Return only when the group could be moved back without loss: when its new node is in sync with this one.
    #[arg(long)]
    pub wait: bool,
}

/// `fwhactl explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// What to explain.
    #[command(subcommand)]
    pub what: ExplainVerb,
}

/// What `fwhactl explain` explains.
#[derive(Debug, Subcommand)]
pub enum ExplainVerb {
    /// Why this node has its role in each group, and what the others could have.
    Role,
    /// What would become of a packet that comes in at this node, by which rule, and step by step why.
    ///
    /// The packet is not sent. The node's own packet program judges it, with tables of its own: nothing is counted, and no
    /// flow begins.
    Packet(PacketArgs),
}

/// `fwhactl explain packet`.
#[derive(Debug, Args)]
pub struct PacketArgs {
    /// Protocol: tcp, udp, icmp (an echo), sctp and so on, or a number.
    #[arg(value_name = "PROTOCOL")]
    pub proto: String,
    /// Where it comes from: ADDRESS or ADDRESS:PORT, an IPv6 address with a port in brackets. Of an echo the port is its
    /// identifier.
    pub source: String,
    /// Where it goes: as the source, and with its port if the protocol has one.
    pub destination: String,
    /// The interface that it comes in by, or the zone; where answers to its source leave, if left out.
    #[arg(long = "in", value_name = "INTERFACE")]
    pub interface: Option<String>,
    /// Flags of a TCP segment, of fin, syn, rst, psh, ack, urg, with commas between them; what would come next from its
    /// sender, if left out: a SYN, or the next segment of a known connection.
    #[arg(long, value_name = "FLAGS")]
    pub flags: Option<String>,
}

/// `fwhactl standby`.
#[derive(Debug, Args)]
pub struct StandbyArgs {
    /// Stand by, or take part again.
    #[arg(value_enum)]
    pub standby: Switch,
    /// Also if no other node can have this node's groups now (they are then down), or the one that gets them is not in sync with
    /// it (connections may then be lost).
    #[arg(long)]
    pub force: bool,
}

/// `fwhactl reload`.
#[derive(Debug, Args)]
pub struct ReloadArgs {
    /// Only show what would change.
    #[arg(long)]
    pub dry_run: bool,
    /// End connections that the rules do not admit. Without it those that live go on. Each node ends its own: run
    /// it on the active one.
    #[arg(long, conflicts_with = "dry_run")]
    pub revalidate: bool,
}

/// `fwhactl resource`.
#[derive(Debug, Args)]
pub struct ResourceArgs {
    /// What is to be done.
    #[command(subcommand)]
    pub verb: ResourceVerb,
}

/// The verbs of `fwhactl resource`.
#[derive(Debug, Subcommand)]
pub enum ResourceVerb {
    /// Forget the failures of a resource on this node, and try it again where it should run.
    Cleanup {
        /// The resource.
        name: String,
    },
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// On.
    On,
    /// Off.
    Off,
}

/// `fwhactl keygen`.
#[derive(Debug, Args)]
pub struct KeygenArgs {
    /// The key file. Without an option it is made, and must not exist.
    pub file: PathBuf,
    /// Put a new key before the one that is there; copy the file to every node, `systemctl reload fwha` on each.
    #[arg(long)]
    pub rotate: bool,
    /// When all nodes have the new key: take the one before out; copy and reload again.
    #[arg(long, conflicts_with = "rotate")]
    pub finish: bool,
}
