//! `cargo xtask bench throughput`: how much TCP goes from the client to the server of the lab, by who is between them.
//!
//! How it is measured, and what it means, is told in `docs/performance.md`.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use fwha_tests::lab::{Host, Lab, LabOptions, SERVER};
use fwha_tests::pair::PATIENCE;
use fwha_tests::root::is_root;
use serde_json::Value;

use super::contender::{Contender, Policy};
use super::report::{Figure, Report, Table};
use crate::cargo::{build_bins, spinner};

/// Measure how much TCP gets through, beside nftables and a router without a firewall
#[derive(clap::Args, Default)]
pub struct Args {
    /// Few and short runs, to see that all of it works; the figures mean nothing
    #[arg(long)]
    quick: bool,
    /// How often each contender has its turn
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: Option<u32>,
    /// Seconds of each run
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=3_600))]
    seconds: Option<u32>,
    /// Numbers of connections at a time
    #[arg(long, value_name = "N,N", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=128))]
    streams: Vec<u32>,
    /// Only who has one of these in its name
    #[arg(long, value_name = "TEXT,TEXT", value_delimiter = ',')]
    only: Vec<String>,
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

/// How much is done.
struct Plan {
    rounds: u32,
    seconds: u32,
    /// Whether the first second, in which windows grow, is left out.
    warm: bool,
    streams: Vec<u32>,
}

const CONTENDERS: [Contender; 4] = [Contender::Router, Contender::Nftables, Contender::Tc, Contender::Xdp];

/// What iperf3 says when it listens.
const LISTENING: &str = "Server listening";

/// Runs the suite.
pub fn run(args: &Args) -> Result<ExitCode> {
    if !is_root() {
        bail!(
            "the bench needs root: it makes network namespaces; run `sudo -E cargo xtask bench throughput`"
        );
    }
    if !is_there("iperf3") {
        println!("throughput: not measured without iperf3 (Debian package iperf3)");
        return Ok(ExitCode::SUCCESS);
    }
    let plan = Plan {
        rounds: args.rounds.unwrap_or(if args.quick { 1 } else { 7 }),
        seconds: args.seconds.unwrap_or(if args.quick { 1 } else { 4 }),
        warm: !args.quick,
        streams: if args.streams.is_empty() { vec![1, 8] } else { args.streams.clone() },
    };
    let mut contenders = Contender::present(&CONTENDERS);
    contenders.retain(|contender| {
        args.only.is_empty() || args.only.iter().any(|text| contender.name().contains(text.as_str()))
    });
    ensure!(!contenders.is_empty(), "nobody who can be measured is called {}", args.only.join(" or "));
    // The daemon of a debug build takes time from the hosts, too.
    let bin_dir = build_bins(&["fwha"], !args.quick)?;
    let spinner = spinner("laying the lab");
    let mut lab =
        Lab::new(LabOptions { bin_dir: Some(bin_dir), ..LabOptions::default() }).context("lay the lab")?;
    let mut table = Table {
        name: "throughput",
        title: format!("TCP through the lab, {} rounds of {} s", plan.rounds, plan.seconds),
        keys: vec!["streams"],
        figures: vec![Figure { name: "gbits_per_s", heading: "Gbit/s", decimals: 2 }],
        rivals: vec![Contender::Nftables.name(), Contender::Router.name()],
        ..Table::default()
    };
    for round in 0..plan.rounds {
        let mut order = contenders.clone();
        if round % 2 == 1 {
            order.reverse();
        }
        for contender in order {
            spinner.set_message(format!("round {} of {}: {}", round + 1, plan.rounds, contender.name()));
            let mut running =
                contender.start(&mut lab, Policy::default()).with_context(|| contender.name())?;
            for &streams in &plan.streams {
                spinner.tick();
                let gbits =
                    iperf3(&lab, streams, plan.seconds, plan.warm, &[]).with_context(|| contender.name())?;
                table.push(&[streams.to_string()], contender.name(), &[gbits]);
            }
            running.stop(&lab)?;
        }
    }
    lab.remove()?;
    spinner.finish_and_clear();
    let mut report = Report::new("throughput");
    report.tables.push(table);
    report.publish(args.json.as_deref(), args.plot.as_deref())?;
    if args.quick {
        println!("\nQuick: everything works, but the figures are those of runs that are too short.");
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether there is a program of this name.
pub fn is_there(program: &str) -> bool {
    Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

/// One run: Gbit/s of payload that arrive at the server. Programs are started by `through`, if that is one. With `warm`, a
/// second in which windows grow is not counted.
///
/// # Errors
///
/// When iperf3 fails.
pub fn iperf3(lab: &Lab, streams: u32, seconds: u32, warm: bool, through: &[&str]) -> Result<f64> {
    // It ends with its first client.
    let argv = [through, &["iperf3", "--server", "--one-off", "--forceflush"]].concat();
    let mut command = lab.command(argv[0]);
    command.args(&argv[1..]).stdout(Stdio::piped());
    let mut server = lab.spawn(Host::Server, &mut command)?;
    let mut said = BufReader::new(server.stdout.take().context("standard output of iperf3")?).lines();
    let listens = said.any(|line| line.is_ok_and(|line| line.contains(LISTENING)));
    ensure!(listens, "iperf3 does not listen on the server");
    // The rest of what it says must go somewhere.
    let rest = std::thread::spawn(move || said.for_each(drop));

    let timeout = (Duration::from_secs(seconds.into()) + PATIENCE).as_secs().to_string();
    let (streams, seconds) = (streams.to_string(), seconds.to_string());
    let client = ["iperf3", "--client", SERVER, "--json", "--parallel", &streams, "--time", &seconds];
    let mut argv = [&["timeout", &timeout], through, &client].concat();
    if warm {
        argv.extend(["--omit", "1"]);
    }
    let result = lab.exec(Host::Client, &argv);
    if result.is_err() {
        server.kill()?;
    }
    server.wait()?;
    let _ = rest.join();
    let report: Value = serde_json::from_str(&result?).context("JSON of iperf3")?;
    let bits = report.pointer("/end/sum_received/bits_per_second").and_then(Value::as_f64);
    Ok(bits.context("iperf3 does not say how much arrived")? / 1e9)
}
