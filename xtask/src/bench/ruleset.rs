//! `cargo xtask bench ruleset`: what it costs to drop a packet that no rule admits, by who does it and after how many rules.
//!
//! How it is measured, and what it means, is told in `docs/performance.md`.

use std::process::ExitCode;

use anyhow::{Result, ensure};

use super::contender::{Contender, MAX_FLOWS, Policy, conntrack_max};
use super::dataplane::traffic::{DENIED, Place};
use super::live::{Bare, Sent, Size};
use super::report::{ARRIVED, Figure, Report, Table};
use super::stage::{Options, Stage};

/// Measure what it costs to drop a packet that no rule admits, beside nftables and iptables
#[derive(clap::Args, Default)]
pub struct Args {
    #[command(flatten)]
    options: Options,
    /// Numbers of rules
    #[arg(long, value_name = "N,N", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rules: Vec<u32>,
}

impl Args {
    /// The shortest that there is.
    pub fn quick() -> Self {
        Self { options: Options::quick(), ..Self::default() }
    }
}

const CONTENDERS: [Contender; 5] =
    [Contender::Nftables, Contender::NftablesSet, Contender::Iptables, Contender::Tc, Contender::Xdp];

/// Of so many flows are the denied packets.
const FLOWS: u32 = 64_000;

/// Runs the suite.
pub fn run(args: &Args) -> Result<ExitCode> {
    let quick = args.options.quick;
    let numbers = match (args.rules.is_empty(), quick) {
        (false, _) => args.rules.clone(),
        (true, true) => vec![10],
        (true, false) => vec![10, 100, 1_000, 10_000],
    };
    let packets = if quick { 10_000 } else { 100_000 };
    let contenders = args.options.contenders(&CONTENDERS)?;
    // Whoever remembers flows has room for as many: a larger table costs more, also one that nobody is in.
    let max_flows = conntrack_max().unwrap_or(MAX_FLOWS);
    let mut stage = Stage::lay_for(&args.options, "ruleset", max_flows)?;
    let figure = |name, heading, decimals| Figure { name, heading, decimals };
    let mut table = Table {
        name: "denied",
        title: "TCP SYN from outside that no rule admits, by the number of rules that were asked before"
            .to_owned(),
        keys: vec!["rules"],
        figures: vec![
            figure("ns", "ns a dropped packet", 0),
            figure("mpps", "Mpps with generator", 2),
            figure("base_ns", "generator, ns", 0),
            ARRIVED,
        ],
        rivals: vec![Contender::Nftables.name(), Contender::NftablesSet.name(), Contender::Iptables.name()],
        ..Table::default()
    };
    let mut report = Report::new("ruleset");
    stage.rounds(&contenders, args.options.rounds(), |stage, contender, round| {
        let place = Place::Random { flows: FLOWS, packets, seed: round };
        let once = |stage: &mut Stage| -> Result<Sent> {
            let before = stage.live.received(&stage.lab)?;
            let sent = stage.live.send(&stage.lab, &DENIED, Size::Shortest, &place)?;
            ensure!(sent.arrived == 0, "{} denied packets got through", sent.arrived);
            // The node is where they are to arrive; it receives some others, too.
            let arrived = stage.live.received(&stage.lab)? - before;
            let arrived = arrived.min(sent.packets);
            Ok(Sent { arrived, at_home: arrived, ..sent })
        };
        let send = |stage: &mut Stage| stage.again(once);
        for &rules in &numbers {
            let base = stage.base(Bare::Drop, send)?.ns();
            let mut running = stage.start(contender, Policy { ports: rules })?;
            send(stage)?;
            let sent = send(stage)?;
            ensure!(sent.ns() > base, "the packets do not reach the node");
            let figures = [sent.ns() - base, 1e3 / sent.ns(), base, sent.part() * 1e2];
            table.push(&[rules.to_string()], contender.name(), &figures);
            running.stop(&stage.lab)?;
        }
        Ok(())
    })?;
    let room = stage.lab.options().max_flows;
    stage.remove()?;
    report.tables.push(table);
    report.notes.push(format!(
        "{} rounds of {packets} packets of {FLOWS} flows, room for {room}. ns: of one CPU, beyond a program that drops \
         without a look.",
        args.options.rounds()
    ));
    args.options.publish(&report)?;
    Ok(ExitCode::SUCCESS)
}
