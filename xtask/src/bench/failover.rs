//! `cargo xtask bench failover`: for how long users are cut off when the Active dies, beside keepalived with conntrackd.
//!
//! How it is measured, and what it means, is told in `docs/performance.md`.

mod blackout;
mod cluster;
mod keepalived;
mod report;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use fwha_tests::lab::{self, Lab, LabOptions};
use fwha_tests::root::is_root;
use fwha_tests::traffic::{Connections, Probe};
use indicatif::ProgressBar;

use self::cluster::Cluster;
use self::report::{Row, Sample};
use super::replication::{LOAD_RATE, TIMEOUTS, traffic};
use crate::bench::plot;
use crate::bench::report::machine;
use crate::cargo::{build_bins, spinner};

/// Measure for how long users are cut off when the Active dies, beside keepalived with conntrackd
#[derive(clap::Args, Default)]
pub struct Args {
    /// One takeover each of a debug build with short waits, to see that all of it works; the figures mean nothing
    #[arg(long)]
    quick: bool,
    /// With 500,000 flows too
    #[arg(long)]
    full: bool,
    /// Takeovers of each contender
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    runs: Option<u32>,
    /// Numbers of flows that the Backup has from the Active
    #[arg(long, value_name = "N,N", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=4_000_000))]
    flows: Vec<u32>,
    /// Only contenders whose name contains this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Programs of `fwha` and of the tests that are built already are here
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// Write the figures to a file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw a picture into a directory
    #[arg(long, value_name = "DIR")]
    plot: Option<PathBuf>,
}

impl Args {
    /// The shortest that there is.
    pub fn quick() -> Self {
        Self { quick: true, ..Self::default() }
    }
}

/// Numbers of flows.
const FEW: u32 = 1_000;
const MANY: u32 = 500_000;
/// Takeovers of a kind in a row, before the next pair has its turn.
const TURN: u32 = 5;
/// Connections that are held through a takeover, and new ones a second meanwhile.
const HELD: u32 = 200;
const RATE: u32 = 100;

/// What happens to the Active node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// Nothing is heard of it any more.
    Power,
    /// The same, and the other node sees that the sync link has no carrier.
    PowerCarrier,
    /// The same, with the sync link cut some time before.
    PowerWithoutSync,
    /// Nothing; the role is moved by hand.
    Switchover,
    /// Its daemon is killed, and started at once.
    Restart,
}

/// Who is measured, in what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contender {
    /// fwha as it is.
    Fwha,
    /// The sync link is a cable between the two: its carrier goes with the node.
    FwhaCarrier,
    /// Heartbeats every 3 ms.
    FwhaFast,
    /// The sync link is cut before.
    FwhaWithoutSync,
    /// Adverts once a second, which is the default.
    Keepalived,
    /// Adverts every 100 ms.
    KeepalivedFast,
    /// Adverts every 10 ms, on the networks of the users.
    KeepalivedFastest,
    /// fwha, moved by hand.
    Switchover,
    /// fwha, its daemon restarted.
    Restart,
}

impl Contender {
    /// Those of one pair side by side.
    const ALL: [Self; 9] = [
        Self::Fwha,
        Self::FwhaCarrier,
        Self::FwhaWithoutSync,
        Self::Switchover,
        Self::Restart,
        Self::FwhaFast,
        Self::KeepalivedFastest,
        Self::KeepalivedFast,
        Self::Keepalived,
    ];

    /// Every kind of fault, every kind of pair; one interval of keepalived's.
    const QUICK: &[Self] = &[
        Self::Fwha,
        Self::FwhaCarrier,
        Self::FwhaWithoutSync,
        Self::Switchover,
        Self::Restart,
        Self::FwhaFast,
        Self::KeepalivedFastest,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Fwha => "fwha",
            Self::FwhaCarrier => "fwha, sync cable direct",
            Self::FwhaFast => "fwha, 3 ms heartbeats",
            Self::FwhaWithoutSync => "fwha, sync link cut before",
            Self::Keepalived => "keepalived, 1 s adverts",
            Self::KeepalivedFast => "keepalived, 100 ms adverts",
            Self::KeepalivedFastest => "keepalived, 10 ms adverts",
            Self::Switchover => "fwha, moved by hand",
            Self::Restart => "fwha, daemon restarted",
        }
    }

    const fn fault(self) -> Fault {
        match self {
            Self::FwhaCarrier => Fault::PowerCarrier,
            Self::FwhaWithoutSync => Fault::PowerWithoutSync,
            Self::Switchover => Fault::Switchover,
            Self::Restart => Fault::Restart,
            _ => Fault::Power,
        }
    }

    /// Time between two heartbeats of fwha, if not the default.
    fn heartbeat(self) -> Option<Duration> {
        (self == Self::FwhaFast).then_some(Duration::from_millis(3))
    }

    /// Time between two adverts of keepalived; none is fwha.
    const fn advert(self) -> Option<Duration> {
        match self {
            Self::Keepalived => Some(Duration::from_secs(1)),
            Self::KeepalivedFast => Some(Duration::from_millis(100)),
            Self::KeepalivedFastest => Some(Duration::from_millis(10)),
            _ => None,
        }
    }

    /// Whether one pair can be struck by both.
    fn shares_pair_with(self, other: Self) -> bool {
        (self.advert(), self.heartbeat()) == (other.advert(), other.heartbeat())
    }
}

/// How much is done.
struct Plan {
    bin_dir: PathBuf,
    runs: u32,
    flows: Vec<u32>,
    contenders: Vec<Contender>,
    /// How long all is quiet before the blow, and how long it is watched after the first answer.
    quiet: Duration,
}

/// Runs the suite.
pub fn run(args: &Args) -> Result<ExitCode> {
    if !is_root() {
        bail!(
            "the bench needs root: it strikes firewalls in network namespaces; run `sudo -E cargo xtask bench failover`"
        );
    }
    let missing = keepalived::missing();
    if missing.contains(&"nftables") {
        bail!("the bench needs nft (Debian package nftables): power fails by it");
    }
    if !missing.is_empty() {
        println!("keepalived with conntrackd: not measured without {} (Debian packages)", missing.join(", "));
    }
    let wanted = |contender: &Contender| {
        (missing.is_empty() || contender.advert().is_none())
            && args.only.as_ref().is_none_or(|text| contender.name().contains(text.as_str()))
    };
    let all = if args.quick { Contender::QUICK } else { &Contender::ALL };
    let contenders: Vec<Contender> = all.iter().copied().filter(wanted).collect();
    if contenders.is_empty() {
        bail!("no contender has {:?} in its name", args.only.as_deref().unwrap_or_default());
    }
    let plan = Plan {
        bin_dir: match &args.bin_dir {
            Some(dir) => dir.clone(),
            None => build_bins(&["fwha", "fwha-tests"], !args.quick)?,
        },
        runs: args.runs.unwrap_or(if args.quick { 1 } else { 20 }),
        flows: match (args.flows.is_empty(), args.full) {
            (false, _) => args.flows.clone(),
            (_, true) => vec![FEW, MANY],
            _ => vec![FEW],
        },
        contenders,
        quiet: Duration::from_millis(if args.quick { 200 } else { 1_000 }),
    };
    let mut rows: Vec<Row> = Vec::new();
    for &flows in &plan.flows {
        rows.extend(plan.contenders.iter().map(|&contender| Row::new(contender, flows)));
    }
    if !args.quick {
        let all: Duration = pairs(&mut rows).into_iter().map(|rows| estimate(rows, plan.runs)).sum();
        println!("This takes about {} minutes.\n", all.as_secs().div_ceil(60));
    }

    let began = Instant::now();
    let spinner = spinner("laying the lab");
    let mut failures = 0;
    for turn in 0..plan.runs.div_ceil(TURN) {
        let runs = TURN.min(plan.runs - turn * TURN);
        let mut pairs = pairs(&mut rows);
        // Every other time in the opposite order.
        if turn % 2 == 1 {
            pairs.reverse();
        }
        for rows in pairs {
            if let Err(error) = take_turn(&plan, rows, runs, &spinner) {
                failures += 1;
                spinner.suspend(|| eprintln!("FAILED: {error:#}"));
            }
            lab::wait_if_terminating();
        }
        // Who ends it early has the figures up to then.
        if let Some(path) = &args.json {
            let json = report::json(&rows, &machine());
            fs::write(path, format!("{json:#}\n")).with_context(|| format!("write {}", path.display()))?;
        }
    }
    spinner.finish_and_clear();
    if let Some(dir) = &args.plot {
        plot::draw(dir, "failover", &[report::table(&rows)])?;
    }
    print!("failover\n{}\n\n{}", machine(), report::text(&rows));
    println!("\nIt took {} s, at a load of {}.", began.elapsed().as_secs(), load()?);
    if args.quick {
        println!(
            "Quick: all that was run works, but the figures are those of a debug build and of runs that are too short."
        );
    }
    if failures > 0 {
        println!("{failures} turns failed");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// The rows that one pair can fill in one turn.
fn pairs(rows: &mut [Row]) -> Vec<&mut [Row]> {
    rows.chunk_by_mut(|a, b| a.flows == b.flows && a.contender.shares_pair_with(b.contender)).collect()
}

/// About how long the turns of a pair last, on a machine of two CPUs.
fn estimate(rows: &[Row], runs: u32) -> Duration {
    let Some(&Row { contender, flows, .. }) = rows.first() else { return Duration::ZERO };
    let silence = contender.advert().unwrap_or_default() * 4;
    // conntrackd needs so much longer than fwha to read, send and write a flow.
    let (start, tell) = match contender.advert() {
        None => (Duration::from_secs(9), Duration::from_micros(4) * flows),
        Some(_) => (Duration::from_secs(2) + silence, Duration::from_micros(25) * flows),
    };
    let load = Duration::from_secs(1) * flows / LOAD_RATE;
    // TCP has doubled its waits when the silence ends, and the node that is back waits as long again.
    let takeover = Duration::from_millis(2_700) + silence * 3 + tell;
    (start + load + tell) * runs.div_ceil(TURN) + takeover * runs * rows.len() as u32
}

/// A pair's turn, in a lab of its own.
fn take_turn(plan: &Plan, rows: &mut [Row], runs: u32, spinner: &ProgressBar) -> Result<()> {
    let Some(&Row { contender, flows, .. }) = rows.first() else { return Ok(()) };
    let options = LabOptions {
        bin_dir: Some(plan.bin_dir.clone()),
        heartbeat: contender.heartbeat(),
        max_flows: flows + flows / 4 + 65_536,
        extra_config: TIMEOUTS.to_owned(),
        ..LabOptions::default()
    };
    let lab = Lab::new(options).context("lay the lab")?;
    let played = play(&lab, plan, rows, runs, spinner);
    if played.is_err() {
        spinner.suspend(|| eprint!("{}", lab.log_tails(20)));
    }
    lab.remove()?;
    played
}

fn play(lab: &Lab, plan: &Plan, rows: &mut [Row], runs: u32, spinner: &ProgressBar) -> Result<()> {
    let Some(&Row { contender, flows, .. }) = rows.first() else { return Ok(()) };
    traffic::lay_routes(lab)?;
    spinner.set_message(format!("{}: {flows} flows come to be", contender.name()));
    let (mut cluster, present) = Cluster::start(lab, contender, flows).with_context(|| contender.name())?;
    for row in rows {
        let name = row.contender.name();
        row.present = present;
        for _ in 0..runs {
            let run = row.samples.len() + 1;
            spinner.set_message(format!("{name}, {present} flows: takeover {run} of {}", plan.runs));
            let sample = measure(lab, plan, &mut cluster, row.contender.fault());
            row.samples.push(sample.with_context(|| format!("{name}, takeover {run}"))?);
        }
    }
    cluster.stop(lab)
}

/// One blow, and what the users see of it.
fn measure(lab: &Lab, plan: &Plan, cluster: &mut Cluster, fault: Fault) -> Result<Sample> {
    let active = cluster.settle(lab)?;
    let mut probe = Probe::start(lab)?;
    let connections = Connections::start(lab, HELD, RATE)?;
    if fault == Fault::PowerWithoutSync {
        // What the users have is known to both by then.
        sleep(plan.quiet);
        cluster.prepare(lab, active, fault)?;
    }
    probe.wait_for_more_answers()?;
    sleep(plan.quiet);

    let struck_at_ms = cluster.strike(lab, active, fault)?;
    probe.wait_for_more_answers()?;
    sleep(plan.quiet);

    let (held, dialled) = connections.end()?;
    let probe = probe.end()?;
    let steps = match fault {
        Fault::Restart => Vec::new(),
        Fault::Switchover => cluster.steps(active.peer(), struck_at_ms, struck_at_ms)?,
        // From what the users lose first.
        _ => cluster.steps(active.peer(), struck_at_ms, probe.outage_at_mono_ms)?,
    };
    cluster.mend(lab, active, fault)?;
    Ok(Sample { probe, held, dialled, steps })
}

/// How many processes wanted a CPU in the last one, five and fifteen minutes.
fn load() -> Result<String> {
    let text = fs::read_to_string("/proc/loadavg").context("read the load")?;
    Ok(text.split(' ').take(3).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_set_up_once_for_all_that_strikes_it() {
        let mut rows: Vec<Row> = [FEW, MANY]
            .into_iter()
            .flat_map(|flows| Contender::ALL.map(|contender| Row::new(contender, flows)))
            .collect();
        let pairs = pairs(&mut rows);
        let of = |rows: &[Row]| (rows[0].flows, rows[0].contender.advert(), rows[0].contender.heartbeat());
        for (nth, rows) in pairs.iter().enumerate() {
            assert!(rows.iter().all(|row| of(std::slice::from_ref(row)) == of(rows)));
            assert!(pairs[nth + 1..].iter().all(|later| of(later) != of(rows)), "{:?} twice", of(rows));
        }
        assert!(pairs.iter().any(|rows| rows.len() > 1));
    }

    #[test]
    fn more_flows_and_rarer_adverts_take_longer() {
        let time = |contender, flows| estimate(&[Row::new(contender, flows)], 20);
        assert!(time(Contender::Fwha, MANY) > time(Contender::Fwha, FEW));
        assert!(time(Contender::Keepalived, FEW) > time(Contender::KeepalivedFast, FEW));
    }
}
