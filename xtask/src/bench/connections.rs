//! `cargo xtask bench connections`: how fast flows begin, with and without a second node that is told of them.
//!
//! How it is measured, and what it means, is told in `docs/performance.md`.

mod flood;
mod http;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use fwha_tests::lab::Node;
use nix::errno::Errno;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use super::contender::{Contender, Policy, Running};
use super::dataplane::traffic::Kind;
use super::figures::Series;
use super::live::{Bare, Sent, Size};
use super::replication::usage::Cpu;
use super::report::{ARRIVED, Figure, Report, Table};
use super::stage::{HANDSHAKE, Options, Stage};

/// Measure how fast flows begin, with and without replication, beside nftables and conntrackd
#[derive(clap::Args, Default)]
pub struct Args {
    #[command(flatten)]
    options: Options,
    /// These parts only
    #[arg(long, value_name = "PART,PART", value_delimiter = ',')]
    part: Vec<Part>,
}

impl Args {
    /// The shortest that there is.
    pub fn quick() -> Self {
        Self { options: Options::quick(), ..Self::default() }
    }
}

/// What there is to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// New flows a second, until both nodes know them
    Rate,
    /// What replication takes of forwarding
    Share,
    /// What a SYN flood leaves of other traffic
    Flood,
    /// Requests over HTTP
    Http,
}

/// Flows before anything is measured.
const WARM_UP: u32 = 1_024;
/// When so long no more flows have reached the other node, no more will.
const SILENCE: Duration = Duration::from_secs(3);
/// Between two questions to the other node, how many have: to answer, and with conntrackd to start the program that asks, takes
/// of the CPUs that the daemons need.
const LOOK: Duration = Duration::from_millis(20);

/// Runs the suite.
pub fn run(args: &Args) -> Result<ExitCode> {
    let mut stage = Stage::lay(&args.options, "connections")?;
    let mut report = Report::new("connections");
    for (part, run) in [
        (Part::Rate, rate as fn(&mut Stage, &Args, &mut Report) -> Result<()>),
        (Part::Share, share),
        (Part::Flood, flood::run),
        (Part::Http, http::run),
    ] {
        if args.part.is_empty() || args.part.contains(&part) {
            run(&mut stage, args, &mut report)?;
        }
    }
    stage.remove()?;
    args.options.publish(&report)?;
    Ok(ExitCode::SUCCESS)
}

/// Flows that are opened flat out, until whoever must know them knows them.
fn rate(stage: &mut Stage, args: &Args, report: &mut Report) -> Result<()> {
    let quick = args.options.quick;
    let flows: u32 = if quick { 2_048 } else { 100_000 };
    let mut contenders = args.options.contenders(&[
        Contender::Nftables,
        Contender::Conntrackd,
        Contender::ConntrackdFew,
        Contender::Iptables,
        Contender::Xdp,
        Contender::Replicating,
    ])?;
    if quick {
        // `share` has fwha without a peer.
        contenders.retain(|contender| *contender != Contender::Xdp);
    }
    let mut table = Table {
        name: "rate",
        title: format!("{flows} TCP connections opened flat out, until all who must know them do"),
        figures: vec![
            Figure { name: "per_s", heading: "new flows a second", decimals: 0 },
            Figure { name: "ns", heading: "ns of the forwarding CPU for each", decimals: 0 },
            Figure { name: "known_percent", heading: "known to the other node, %", decimals: 1 },
            ARRIVED,
        ],
        rivals: vec![
            Contender::Nftables.name(),
            Contender::Conntrackd.name(),
            Contender::ConntrackdFew.name(),
        ],
        ..Table::default()
    };
    stage.rounds(&contenders, args.options.rounds(), |stage, contender, _| {
        let measured = WARM_UP..WARM_UP + flows;
        let base = stage.base(Bare::Sink, |stage| stage.again(|stage| open(stage, measured.clone())))?;
        let mut running = stage.start(contender, Policy::default())?;
        stage.again(|stage| open(stage, 0..WARM_UP))?;
        let mut before = 0;
        if contender.replicates() {
            before = told(stage, &running, WARM_UP.into(), 0)?.0;
        }
        let began = Instant::now();
        let sent = open(stage, measured)?;
        let opened = began.elapsed();
        let sent = stage.enough(sent)?;
        let per_flow = |sent: Sent| sent.ns() * HANDSHAKE as f64;
        let (known, took) = if contender.replicates() {
            let (known, last) = told(stage, &running, before + u64::from(flows), before)?;
            ((known - before) as f64, last.duration_since(began))
        } else {
            (f64::from(flows) * sent.part(), opened)
        };
        let told = if contender.replicates() { known / f64::from(flows) * 1e2 } else { f64::NAN };
        table.push(
            &[],
            contender.name(),
            &[known / took.as_secs_f64(), per_flow(sent) - per_flow(base), told, sent.part() * 1e2],
        );
        running.stop(&stage.lab)
    })?;
    report.tables.push(table);
    report.notes.push(
        "New flows a second: from the first SYN until the last flow is established or, where there is a second node, is \
         known there."
            .to_owned(),
    );
    Ok(())
}

/// Opens connections as fast as it goes.
fn open(stage: &mut Stage, flows: std::ops::Range<u32>) -> Result<Sent> {
    stage.live.open(&stage.lab, Kind::Tcp4, flows, 0..HANDSHAKE)
}

/// Waits until the second node has heard of so many flows, or of no more. Returns how many, and when it was seen last that
/// they became more.
fn told(stage: &Stage, running: &Running, enough: u64, mut known: u64) -> Result<(u64, Instant)> {
    let mut last = Instant::now();
    loop {
        let now = match running {
            Running::Conntrackd(pair) => pair.replicated(&stage.lab)?.1,
            Running::Pair(pair) => pair.replicated()?.1,
            _ => return Ok((0, last)),
        };
        if now > known {
            (known, last) = (now, Instant::now());
        }
        if known >= enough || last.elapsed() >= SILENCE {
            return Ok((known, last));
        }
        std::thread::sleep(LOOK);
    }
}

/// Keeps all threads of a process off a CPU.
fn keep_off(cpu: usize, pid: u32) -> Result<()> {
    let mut others = CpuSet::new();
    for other in (0..std::thread::available_parallelism()?.get()).filter(|other| *other != cpu) {
        others.set(other)?;
    }
    for thread in std::fs::read_dir(format!("/proc/{pid}/task")).context("read the threads of a process")? {
        let thread = thread?.file_name().to_string_lossy().parse().context("the number of a thread")?;
        match sched_setaffinity(Pid::from_raw(thread), &others) {
            // It has ended meanwhile.
            Err(Errno::ESRCH) => {}
            result => result.with_context(|| format!("keep thread {thread} off CPU {cpu}"))?,
        }
    }
    Ok(())
}

/// New flows in a second, in the goal for replication.
const RATE: u32 = 10_000;
/// As many times in a second some flows begin. Before and after any packets the kernel waits for all CPUs, some ms.
const TICKS: u32 = 10;
/// Established flows beside.
const FLOWS: u32 = 1_000;
/// Their packets after some flows have begun, while the other node is told of these.
const BESIDE: u32 = 40_000;
/// What generator and sink take by themselves is measured with the packets of so many ticks at most.
const BASE_TICKS: u32 = 5;

/// Established packets beside new flows, with and without a peer.
fn share(stage: &mut Stage, args: &Args, report: &mut Report) -> Result<()> {
    let contenders = args.options.contenders(&[Contender::Xdp, Contender::Replicating])?;
    let (ticks, beside_each) = if args.options.quick { (2, 4_000) } else { (2 * TICKS, BESIDE) };
    let seconds = f64::from(ticks) / f64::from(TICKS);
    let mut table = Table {
        name: "share",
        title: format!("Forwarding at {RATE} new flows a second, with and without a peer"),
        figures: vec![
            Figure { name: "mpps", heading: "Mpps without generator", decimals: 3 },
            Figure { name: "ns", heading: "ns a packet", decimals: 0 },
            Figure { name: "base_ns", heading: "generator and sink, ns", decimals: 0 },
            Figure { name: "rate", heading: "flows a second", decimals: 0 },
            Figure { name: "new_percent", heading: "of the CPU for new flows, %", decimals: 2 },
            Figure { name: "daemon_percent", heading: "of a CPU for the daemon, %", decimals: 1 },
            ARRIVED,
        ],
        rivals: vec![Contender::Xdp.name()],
        ..Table::default()
    };
    let each = RATE / TICKS;
    stage.rounds(&contenders, args.options.rounds(), |stage, contender, round| {
        // Some flows begin, and packets of the others follow.
        let go = |stage: &mut Stage, tick: u32| -> Result<[Sent; 2]> {
            let first = FLOWS + tick * each;
            let new = open(stage, first..first + each)?;
            let seed = round * ticks + tick;
            let sent = stage.both_ways(Kind::Tcp4, Size::Shortest, FLOWS, beside_each, seed)?;
            Ok([stage.enough(new)?, sent])
        };
        let base = stage.base(Bare::Sink, |stage| {
            let mut base = [Series::default(), Series::default()];
            for tick in 0..ticks.min(BASE_TICKS) {
                base.iter_mut().zip(go(stage, tick)?).for_each(|(series, sent)| series.push(sent.ns()));
            }
            Ok(base.map(|series| series.median()))
        })?;
        let mut running = stage.start(contender, Policy::default())?;
        stage.open(contender, Kind::Tcp4, 0..FLOWS)?;
        let pids = match &running {
            Running::Fwha(node) => vec![node.pid()],
            Running::Pair(pair) => Node::ALL.map(|node| pair.pid(node)).to_vec(),
            _ => return Ok(()),
        };
        for pid in &pids {
            keep_off(stage.live.cpu(), *pid)?;
        }
        let cpu = Cpu::of(pids[0])?;
        let (began, mut new, mut beside) = (Instant::now(), Sent::default(), Sent::default());
        let mut established = Series::default();
        for tick in 0..ticks {
            let [begun, sent] = go(stage, tick)?;
            (new, beside) = (new.and(begun), beside.and(sent));
            established.push(sent.ns());
            std::thread::sleep((Duration::from_secs(1) / TICKS * (tick + 1)).saturating_sub(began.elapsed()));
        }
        let took = began.elapsed().as_secs_f64();
        let daemon = Cpu::of(pids[0])?.since(&cpu).total() as f64 / 1e9 / took;
        let rate = f64::from(each * ticks) / took;
        // As if it had been exactly that many flows in each second.
        let arrived = new.part().min(beside.part());
        let new = (new.ns() - base[0]) / 1e9 * new.packets as f64 / seconds;
        let ns = established.median() - base[1];
        table.push(
            &[],
            contender.name(),
            &[(1.0 - new - daemon) * 1e3 / ns, ns, base[1], rate, new * 1e2, daemon * 1e2, arrived * 1e2],
        );
        running.stop(&stage.lab)
    })?;
    report.tables.push(table);
    report.notes.push(format!(
        "Forwarding at {RATE} new flows a second: what established packets get of a CPU, when {RATE} handshakes and the \
         daemon have had their part of it; all without generator and sink, which are measured at the beginning of each turn. The \
         daemons work on other CPUs than the generator."
    ));
    Ok(())
}
