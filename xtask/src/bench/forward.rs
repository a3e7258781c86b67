//! `cargo xtask bench forward`: what it costs to forward a packet of an established flow, by who does it.
//!
//! How it is measured, and what it means, is told in `docs/performance.md`.

use std::collections::BTreeSet;
use std::process::ExitCode;

use anyhow::Result;

use super::contender::{Contender, MAX_FLOWS, Policy, conntrack_max, tracked_max};
use super::dataplane::traffic::Kind;
use super::live::{Bare, Size};
use super::report::{ARRIVED, Figure, Report, Table};
use super::stage::{Options, Stage};

/// Measure what it costs to forward a packet, beside nftables, iptables, and programs without a firewall
#[derive(clap::Args, Default)]
pub struct Args {
    #[command(flatten)]
    options: Options,
    /// Numbers of flows
    #[arg(long, value_name = "N,N", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    flows: Vec<u32>,
}

impl Args {
    /// The shortest that there is.
    pub fn quick() -> Self {
        Self { options: Options::quick(), ..Self::default() }
    }
}

const CONTENDERS: [Contender; 7] = [
    Contender::Fib,
    Contender::Router,
    Contender::Nftables,
    Contender::Conntrackd,
    Contender::Iptables,
    Contender::Xdp,
    Contender::Replicating,
];

/// The number of flows with which other kinds and sizes are measured.
const FEW: u32 = 1_000;

/// Kinds and sizes beside the shortest packets of TCP over IPv4.
const OTHERS: [(Kind, Size); 5] = [
    (Kind::Tcp4, Size::Frame(512)),
    (Kind::Tcp4, Size::Packet(1500)),
    (Kind::Udp4, Size::Shortest),
    (Kind::Udp4, Size::Mix),
    (Kind::Tcp6, Size::Shortest),
];

/// Runs the suite.
pub fn run(args: &Args) -> Result<ExitCode> {
    let quick = args.options.quick;
    let mut numbers = match (args.flows.is_empty(), quick) {
        (false, _) => args.flows.clone(),
        (true, true) => vec![FEW],
        (true, false) => vec![1, FEW, 64_000, 1_000_000],
    };
    numbers.sort_unstable();
    let packets = if quick { 10_000 } else { 200_000 };
    let contenders = args.options.contenders(&CONTENDERS)?;
    let mut growth =
        table("growth", "Established TCP over IPv4, shortest packets, by the number of flows", vec!["flows"]);
    let mut kinds = table("kinds", &format!("Other packets, {FEW} flows"), vec!["packets", "bytes"]);
    // Whoever remembers flows has room for as many, as far as the kernel tracks them: a larger table costs more, also one that
    // few are in.
    let tracked = tracked_max().unwrap_or(u32::MAX);
    let (few, many): (Vec<u32>, Vec<u32>) = numbers.into_iter().partition(|&flows| flows <= tracked);
    let mut notes = Vec::new();
    if !many.is_empty() {
        notes.push(format!(
            "Connection tracking has {tracked} flows at most (nf_conntrack_max), a line of its own, and is not compared with more."
        ));
    }
    let turns = [(few, &OTHERS[..], conntrack_max().unwrap_or(MAX_FLOWS)), (many, &[], MAX_FLOWS)];
    for (numbers, others, room) in turns.into_iter().filter(|(numbers, ..)| !numbers.is_empty()) {
        let mut stage = Stage::lay_for(&args.options, "forward", room)?;
        stage.rounds(&contenders, args.options.rounds(), |stage, contender, round| {
            // Under the number that there is, so that nobody is compared with more flows than he has.
            let most = if contender.is_conntrack() { tracked } else { u32::MAX };
            let numbers: BTreeSet<u32> = numbers.iter().map(|&flows| flows.min(most)).collect();
            let mut bases = Vec::new();
            stage.base(Bare::Sink, |stage| {
                for &flows in &numbers {
                    bases.push(stage.both_ways(Kind::Tcp4, Size::Shortest, flows, packets, round)?.ns());
                }
                for &(kind, size) in others {
                    bases.push(stage.both_ways(kind, size, FEW, packets, round)?.ns());
                }
                Ok(())
            })?;
            let mut bases = bases.into_iter();
            let mut running = stage.start(contender, Policy::default())?;
            let mut measure =
                |stage: &mut Stage, table: &mut Table, keys: &[String], kind, size, flows| -> Result<()> {
                    // The first packets find nothing in the caches.
                    stage.both_ways(kind, size, flows, packets / 10, round)?;
                    let sent = stage.both_ways(kind, size, flows, packets, round)?;
                    let base = bases.next().unwrap_or(f64::NAN);
                    let figures = [sent.ns() - base, sent.part() * 1e3 / sent.ns(), base, sent.part() * 1e2];
                    table.push(keys, contender.name(), &figures);
                    Ok(())
                };
            let mut opened = 0;
            for &flows in &numbers {
                stage.open(contender, Kind::Tcp4, opened..flows)?;
                opened = flows;
                measure(stage, &mut growth, &[flows.to_string()], Kind::Tcp4, Size::Shortest, flows)?;
            }
            if !others.is_empty() {
                stage.open(contender, Kind::Tcp4, opened..opened.max(FEW))?;
                for kind in [Kind::Udp4, Kind::Tcp6] {
                    stage.open(contender, kind, 0..FEW)?;
                }
            }
            for &(kind, size) in others {
                let keys = [kind.name().to_owned(), size.name()];
                measure(stage, &mut kinds, &keys, kind, size, FEW)?;
            }
            running.stop(&stage.lab)
        })?;
        let with: Vec<String> = numbers.iter().map(u32::to_string).collect();
        let room = stage.lab.options().max_flows;
        notes.push(format!("with {} flows fwha has room for {room}", with.join(", ")));
        stage.remove()?;
    }
    let mut report = Report::new("forward");
    report.tables = vec![growth, kinds];
    report.notes = notes;
    report.notes.push(format!(
        "{} rounds of {packets} packets, half of them back. ns a packet: of one CPU, without generator and sink, which are \
         measured at the beginning of each turn. Mpps: what gets through when generator, device and sink share that CPU.",
        args.options.rounds()
    ));
    args.options.publish(&report)?;
    Ok(ExitCode::SUCCESS)
}

fn table(name: &'static str, title: &str, keys: Vec<&'static str>) -> Table {
    let figure = |name, heading, decimals| Figure { name, heading, decimals };
    Table {
        name,
        title: title.to_owned(),
        keys,
        figures: vec![
            figure("ns", "ns a packet", 0),
            figure("mpps", "Mpps with generator", 2),
            figure("base_ns", "generator and sink, ns", 0),
            ARRIVED,
        ],
        rivals: vec![Contender::Fib.name(), Contender::Nftables.name()],
        ..Table::default()
    }
}
