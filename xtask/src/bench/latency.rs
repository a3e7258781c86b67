//! `cargo xtask bench latency`: how long a packet is under way through the node while it has half of what it can do.
//!
//! How it is measured, and what it means, is told in `docs/performance.md`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;

use super::contender::{Contender, Policy};
use super::dataplane::traffic::{Kind, Place};
use super::live::{Pace, Size};
use super::report::{ARRIVED, Figure, Report, Table};
use super::stage::{Options, Stage};

/// Measure how long a packet is under way at half load, beside nftables and a program without a firewall
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

const CONTENDERS: [Contender; 7] = [
    Contender::Fib,
    Contender::Router,
    Contender::Nftables,
    Contender::Conntrackd,
    Contender::Iptables,
    Contender::Xdp,
    Contender::Replicating,
];

/// Flows that the packets belong to.
const FLOWS: u32 = 1_000;
/// Packets that the generator makes at a time.
const BURST: u32 = 16;
/// Of what can be done, so much is.
const LOAD: f64 = 0.5;

/// Runs the suite.
pub fn run(args: &Args) -> Result<ExitCode> {
    let quick = args.options.quick;
    let packets = if quick { 8_000 } else { 400_000 };
    let mut contenders = args.options.contenders(&CONTENDERS)?;
    if quick {
        // `forward` has the pairs.
        contenders.retain(|contender| !contender.replicates());
    }
    let mut stage = Stage::lay(&args.options, "latency")?;
    let figure = |name, heading, decimals| Figure { name, heading, decimals };
    let mut table = Table {
        name: "delay",
        title: format!("UDP over IPv4, {FLOWS} flows, bursts of {BURST} packets at half of what each can do"),
        figures: vec![
            figure("p50_us", "median, µs", 1),
            figure("p99_us", "99 %, µs", 1),
            figure("p999_us", "99.9 %, µs", 1),
            figure("kpps", "packets a second, thousands", 0),
            ARRIVED,
        ],
        rivals: vec![Contender::Fib.name(), Contender::Nftables.name()],
        ..Table::default()
    };
    stage.rounds(&contenders, args.options.rounds(), |stage, contender, round| {
        let mut running = stage.start(contender, Policy::default())?;
        stage.open(contender, Kind::Udp4, 0..FLOWS)?;
        let traffic = Kind::Udp4.both_ways()[0];
        let place = |packets| Place::Random { flows: FLOWS, packets, seed: round };
        // Room for a stamp.
        let size = Size::Frame(64);
        let all = Pace { burst: BURST, every: Duration::ZERO };
        let full = stage.again(|Stage { lab, live, .. }| {
            Ok(live.pace(lab, &traffic, size, &place(packets / 4), all)?.0)
        })?;
        // What it can do is what arrives.
        let ns = full.ns() / full.part();
        let every = Duration::from_secs_f64(ns * f64::from(BURST) / LOAD / 1e9);
        let pace = Pace { burst: BURST, every };
        let (sent, delays) = stage.live.pace(&stage.lab, &traffic, size, &place(packets), pace)?;
        stage.enough(sent)?;
        table.push(
            &[],
            contender.name(),
            &[
                delays.quantile(0.5),
                delays.quantile(0.99),
                delays.quantile(0.999),
                f64::from(BURST) / every.as_secs_f64() / 1e3,
                sent.part() * 1e2,
            ],
        );
        running.stop(&stage.lab)
    })?;
    stage.remove()?;
    let mut report = Report::new("latency");
    report.tables.push(table);
    report.notes.push(format!(
        "{} rounds of {packets} packets. From the stamp that the generator writes to the sink, both on one CPU: all but the \
         first of a burst wait for those before them.",
        args.options.rounds()
    ));
    args.options.publish(&report)?;
    Ok(ExitCode::SUCCESS)
}
