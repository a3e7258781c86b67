//! What a SYN flood leaves of other people's TCP: goodput beside the quiet one, and connections that were lost.

use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use fwha_tests::traffic::Connections;

use super::super::dataplane::traffic::{NEW, Place};
use super::super::live::Size;
use super::super::throughput::{iperf3, is_there};
use super::{Args, Contender, Figure, Policy, Report, Stage, Table};

/// Connections that are held meanwhile, each of which says a word now and then.
const HELD: u32 = 100;
/// Connections that are opened in a second meanwhile, and before it, while all is quiet.
const DIALLED: u32 = 20;
/// Streams whose goodput is measured.
const STREAMS: u32 = 4;
/// SYNs that tell how many can be sent.
const SYNS: u32 = 100_000;
/// The streams begin in this time, in seconds.
const BEGIN_S: u32 = 2;

/// Measures it.
pub fn run(stage: &mut Stage, args: &Args, report: &mut Report) -> Result<()> {
    if !is_there("iperf3") {
        println!("flood: not measured without iperf3 (Debian)");
        return Ok(());
    }
    let seconds = if args.options.quick { 1 } else { 5 };
    let mut contenders =
        args.options.contenders(&[Contender::Nftables, Contender::Xdp, Contender::Replicating])?;
    if args.options.quick {
        contenders.retain(|contender| *contender == Contender::Xdp);
    }
    let cpus = thread::available_parallelism()?.get();
    let mut table = Table {
        name: "flood",
        title: format!("{STREAMS} TCP streams and {HELD} connections under a flood of SYNs from one CPU"),
        figures: vec![
            Figure { name: "goodput_percent", heading: "goodput, % of quiet", decimals: 0 },
            Figure { name: "quiet_gbits_per_s", heading: "quiet, Gbit/s", decimals: 2 },
            Figure { name: "flood_mpps", heading: "flood, Mpps that arrived", decimals: 2 },
            Figure { name: "flood_arrived_percent", heading: "of it arrived, %", decimals: 0 },
            Figure { name: "box_percent", heading: "flood, % of the box", decimals: 0 },
            Figure { name: "at_home_percent", heading: "of it on its CPU, %", decimals: 0 },
            Figure { name: "lost", heading: "connections lost", decimals: 0 },
            Figure { name: "new_failed", heading: "new ones that failed", decimals: 0 },
        ],
        rivals: vec![Contender::Nftables.name()],
        ..Table::default()
    };
    // All CPUs but that of the flood.
    let others = (0..cpus).filter(|cpu| *cpu != stage.live.cpu()).map(|cpu| cpu.to_string());
    let others = others.collect::<Vec<_>>().join(",");
    let pinned = ["taskset", "--cpu-list", others.as_str()];
    // With one queue for all, whoever sends to it first polls the flood and the streams.
    stage.set_queues(cpus)?;
    stage.rounds(&contenders, args.options.rounds(), |stage, contender, round| {
        let mut running = stage.start(contender, Policy::default())?;
        let Stage { lab, live, .. } = stage;
        let held = Connections::start(lab, HELD, DIALLED)?;
        let quiet = iperf3(lab, STREAMS, seconds, !args.options.quick, &pinned)?;
        let syns = |packets| Place::Random { flows: 0, packets, seed: round };
        let ns = live.send(lab, &NEW, Size::Shortest, &syns(SYNS))?.ns();
        // In one go: between two the kernel waits for others. Long enough for the streams and their begin.
        let packets = (f64::from(seconds + BEGIN_S) * 1e9 / ns) as u32;
        let (goodput, sent, took) = thread::scope(|scope| -> Result<_> {
            let streams = scope.spawn(|| iperf3(lab, STREAMS, seconds, !args.options.quick, &pinned));
            let began = Instant::now();
            let sent = live.send(lab, &NEW, Size::Shortest, &syns(packets))?;
            let took = began.elapsed().as_secs_f64();
            ensure!(
                args.options.quick || streams.is_finished(),
                "the streams outlasted the flood, of {took:.1} s"
            );
            Ok((streams.join().ok().context("the streams panicked")??, sent, took))
        })?;
        let (held, dialled) = held.end()?;
        let at_home = sent.at_home as f64 / sent.arrived as f64;
        ensure!(
            args.options.quick || at_home > 0.9,
            "of the flood only {:.0} % stayed on its CPU",
            at_home * 1e2
        );
        let figures = [
            goodput / quiet * 1e2,
            quiet,
            sent.arrived as f64 / took / 1e6,
            sent.part() * 1e2,
            sent.busy.as_secs_f64() / took / cpus as f64 * 1e2,
            at_home * 1e2,
            held.lost as f64,
            dialled.failed as f64,
        ];
        table.push(&[], contender.name(), &figures);
        running.stop(&stage.lab)
    })?;
    stage.set_queues(1)?;
    report.tables.push(table);
    report.notes.push(
        "Flood: new flows that the rules admit, flat out on one CPU, and handled there; the streams have all others, with \
         and without it."
            .to_owned(),
    );
    Ok(())
}
