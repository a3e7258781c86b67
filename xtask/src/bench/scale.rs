//! `cargo xtask bench scale`: the memory that a flow takes, in the kernel and in the daemons.
//!
//! What flows and rules cost in time as they grow is told by `forward` and `ruleset`.

use std::fs;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use fwha_common::flow::{Flow, FlowKey};
use fwha_tests::lab::Node;

use super::contender::{Contender, Policy, Running, tracked_max};
use super::dataplane::traffic::Kind;
use super::replication::usage::resident;
use super::report::{Figure, Report, Table};
use super::stage::{Options, Stage};

/// Measure the memory that a flow takes, beside nftables and conntrackd
#[derive(clap::Args, Default)]
pub struct Args {
    #[command(flatten)]
    options: Options,
}

impl Args {
    /// The shortest that there is.
    pub fn quick() -> Self {
        Self { options: Options::quick() }
    }
}

/// The kernel's memory moves with what others do: few flows would not show in it.
const FLOWS: u32 = 200_000;
/// How long a daemon may take to make room for what it has heard.
const SETTLE: Duration = Duration::from_secs(1);

/// Runs the suite.
pub fn run(args: &Args) -> Result<ExitCode> {
    let quick = args.options.quick;
    let flows = if quick { 2_000 } else { FLOWS.min(tracked_max().unwrap_or(FLOWS)) };
    let mut contenders = args.options.contenders(&[
        Contender::Nftables,
        Contender::Conntrackd,
        Contender::Xdp,
        Contender::Replicating,
    ])?;
    if quick {
        contenders.retain(|contender| matches!(contender, Contender::Nftables | Contender::Xdp));
    }
    let mut stage = Stage::lay(&args.options, "scale")?;
    let mut table = Table {
        name: "memory",
        title: format!("Bytes of memory for each of {flows} established TCP flows"),
        figures: vec![
            Figure { name: "all", heading: "all", decimals: 0 },
            Figure { name: "kernel", heading: "kernel, each node", decimals: 0 },
            Figure { name: "active", heading: "daemon, active", decimals: 0 },
            Figure { name: "backup", heading: "daemon, backup", decimals: 0 },
        ],
        rivals: vec![Contender::Nftables.name(), Contender::Conntrackd.name()],
        ..Table::default()
    };
    stage.rounds(&contenders, args.options.rounds(), |stage, contender, _| {
        let mut running = stage.start(contender, Policy::default())?;
        let before = (slab()?, daemons(&running)?);
        stage.open(contender, Kind::Tcp4, 0..flows)?;
        match &mut running {
            Running::Pair(pair) => {
                pair.settle(&stage.lab)?;
            }
            _ => std::thread::sleep(SETTLE),
        }
        let kernel = match &running {
            Running::Fwha(node) => table_bytes(node.pid())?,
            Running::Pair(pair) => table_bytes(pair.pid(Node::Fw1))?,
            _ => slab()?.saturating_sub(before.0) as f64 / f64::from(flows),
        };
        let now = daemons(&running)?;
        let [active, backup] =
            [0, 1].map(|node| now[node].saturating_sub(before.1[node]) as f64 / f64::from(flows));
        // conntrackd's other node has flows in the daemon only.
        let nodes = if contender == Contender::Replicating { 2.0 } else { 1.0 };
        table.push(&[], contender.name(), &[kernel * nodes + active + backup, kernel, active, backup]);
        running.stop(&stage.lab)
    })?;
    stage.remove()?;
    let mut report = Report::new("scale");
    report.tables.push(table);
    report.notes.push(
        "Kernel: of fwha, the size of its table by the number of its elements; of connection tracking, what \
         `nf_conntrack` and the nameless slabs have grown. Daemons: what their resident memory has grown."
            .to_owned(),
    );
    args.options.publish(&report)?;
    Ok(ExitCode::SUCCESS)
}

/// Bytes of the kernel's flows and of its nameless small objects, of which each flow has some.
fn slab() -> Result<u64> {
    let info = fs::read_to_string("/proc/slabinfo").context("read /proc/slabinfo")?;
    let mut sum = 0;
    for line in info.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [name, active, _, size, ..] = fields[..] else { continue };
        let nameless =
            name.strip_prefix("kmalloc-").is_some_and(|size| size.starts_with(|c: char| c.is_ascii_digit()));
        if name == "nf_conntrack" || nameless {
            sum += active.parse::<u64>()? * size.parse::<u64>()?;
        }
    }
    Ok(sum)
}

/// Bytes of the daemons on both nodes.
fn daemons(running: &Running) -> Result<[u64; 2]> {
    let pids = match running {
        Running::Conntrackd(pair) => Node::ALL.map(|node| Some(pair.pid(node))),
        Running::Fwha(node) => [Some(node.pid()), None],
        Running::Pair(pair) => Node::ALL.map(|node| Some(pair.pid(node))),
        _ => [None, None],
    };
    let [active, backup] = pids.map(|pid| pid.map_or(Ok(0), resident));
    Ok([active?, backup?])
}

/// Bytes of an element of the daemon's flow table, with its share of all that belongs to the table.
fn table_bytes(pid: u32) -> Result<f64> {
    for file in fs::read_dir(format!("/proc/{pid}/fdinfo")).context("read the daemon's descriptors")? {
        // Others come and go.
        let Ok(info) = fs::read_to_string(file?.path()) else { continue };
        let field = |name: &str| {
            let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            value.trim().parse::<usize>().ok()
        };
        if field("map_type") == Some(BPF_MAP_TYPE_HASH)
            && (field("key_size"), field("value_size"))
                == (Some(size_of::<FlowKey>()), Some(size_of::<Flow>()))
        {
            let (bytes, flows) =
                field("memlock").zip(field("max_entries")).context("size of the flow table")?;
            return Ok(bytes as f64 / flows as f64);
        }
    }
    bail!("the daemon has no flow table")
}

/// Of `linux/bpf.h`.
const BPF_MAP_TYPE_HASH: usize = 1;
