//! `cargo xtask bench scale`: the memory that a flow takes, in the kernel and in the daemons.
//!
//! What flows and rules cost in time as they grow is told by `forward` and `ruleset`.

use std::collections::BTreeSet;
use std::fs;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use fwha_common::flow::{Flow, FlowKey};
use fwha_tests::lab::Node;

use super::contender::{Contender, Policy, Running, conntrack_setting, tracked_max};
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
    let contenders = args.options.contenders(&[
        Contender::Nftables,
        Contender::Conntrackd,
        Contender::Xdp,
        Contender::Replicating,
    ])?;
    let mut stage = Stage::lay(&args.options, "scale")?;
    let mut table = Table {
        name: "memory",
        title: format!("Bytes of memory for each of {flows} established TCP flows"),
        figures: vec![
            Figure { name: "all", heading: "all", decimals: 0 },
            Figure { name: "kernel", heading: "kernel, each node", decimals: 0 },
            Figure { name: "active", heading: "daemon, active", decimals: 0 },
            Figure { name: "backup", heading: "daemon, backup", decimals: 0 },
            Figure { name: "table_mib", heading: "table, without a flow, MiB", decimals: 0 },
            Figure { name: "fixed_mib", heading: "fixed, MiB", decimals: 0 },
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
        let maps = match &running {
            Running::Fwha(node) => Some(Maps::of(node.pid())?),
            Running::Pair(pair) => Some(Maps::of(pair.pid(Node::Fw1))?),
            _ => None,
        };
        let (kernel, table_bytes, fixed) = match maps {
            Some(maps) => (maps.flow, maps.table, maps.others),
            None => (
                slab()?.saturating_sub(before.0) as f64 / f64::from(flows),
                0,
                u64::from(conntrack_setting("nf_conntrack_buckets")?) * BUCKET_BYTES,
            ),
        };
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let now = daemons(&running)?;
        let [active, backup] =
            [0, 1].map(|node| now[node].saturating_sub(before.1[node]) as f64 / f64::from(flows));
        // conntrackd's other node has flows in the daemon only.
        let nodes = if contender == Contender::Replicating { 2.0 } else { 1.0 };
        let figures =
            [kernel * nodes + active + backup, kernel, active, backup, mib(table_bytes), mib(fixed)];
        table.push(&[], contender.name(), &figures);
        running.stop(&stage.lab)
    })?;
    stage.remove()?;
    let mut report = Report::new("scale");
    report.tables.push(table);
    report.notes.push(
        "Kernel: of fwha, the size of its table by the number of its elements; of connection tracking, what \
         `nf_conntrack` and the nameless slabs have grown. Daemons: what their resident memory has grown. In the kernel of each \
         node, whatever flows there are: fwha's whole table (max-flows), and fixed, its other maps; of connection tracking the \
         buckets, which all namespaces share."
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

/// What a daemon's maps take of the kernel's memory, in bytes, flows or not.
struct Maps {
    /// An element of the flow table, with its share of all that belongs to the table.
    flow: f64,
    /// The flow table: all elements are there from the beginning.
    table: u64,
    /// All other maps: sets of embryonic flows, filters, fingerprints, ring buffers, rules.
    others: u64,
}

impl Maps {
    /// Of the daemon with this process number, by what it has open.
    fn of(pid: u32) -> Result<Self> {
        let (mut seen, mut all, mut flows) = (BTreeSet::new(), 0, None);
        for file in fs::read_dir(format!("/proc/{pid}/fdinfo")).context("read the daemon's descriptors")? {
            // Others come and go.
            let Ok(info) = fs::read_to_string(file?.path()) else { continue };
            let field = |name: &str| {
                let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
                value.trim().parse::<u64>().ok()
            };
            let Some((id, bytes)) = field("map_id").zip(field("memlock")) else { continue };
            if !seen.insert(id) {
                continue;
            }
            all += bytes;
            let sizes = [field("key_size"), field("value_size")];
            if field("map_type") == Some(BPF_MAP_TYPE_HASH)
                && sizes == [size_of::<FlowKey>(), size_of::<Flow>()].map(|size| Some(size as u64))
            {
                flows = Some((bytes, field("max_entries").context("size of the flow table")?));
            }
        }
        let (table, elements) = flows.context("the daemon has no flow table")?;
        Ok(Self { flow: table as f64 / elements as f64, table, others: all - table })
    }
}

/// Of `linux/bpf.h`.
const BPF_MAP_TYPE_HASH: u64 = 1;
/// Of a bucket of the kernel's connection tracking, a pointer.
const BUCKET_BYTES: u64 = 8;
