//! `cargo xtask bench throughput`: how much TCP goes from the client to the server of the lab, by who is between them.
//!
//! How it is measured, and what it means, is told in `docs/performance.md`.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use fwha_tests::lab::{Attach, Host, Lab, LabOptions, Node, NodeProcess, SERVER};
use fwha_tests::pair::{PATIENCE, role};
use fwha_tests::root::is_root;
use indicatif::ProgressBar;
use serde_json::{Value, json};

use crate::bench::figures::Series;
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
    /// Write the figures to a file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
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

/// Who forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contender {
    /// The kernel, which knows no firewall: as much as there can be.
    Router,
    /// The kernel with connection tracking and [`RULESET`].
    Nftables,
    /// fwha at tc ingress.
    Tc,
    /// fwha at XDP.
    Xdp,
}

impl Contender {
    const ALL: [Self; 4] = [Self::Router, Self::Nftables, Self::Tc, Self::Xdp];

    fn name(self) -> &'static str {
        match self {
            Self::Router => "kernel, no firewall",
            Self::Nftables => "kernel, nftables",
            Self::Tc => "fwha, tc",
            Self::Xdp => "fwha, XDP",
        }
    }
}

/// The same policy as the lab's config file, as it is best written: what is known is let through by the first rule.
const RULESET: &str = "table inet filter {
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        ct state invalid drop
        iifname lan oifname wan accept
    }
}
";

/// How long a daemon may take to load its programs and become Active on a busy machine.
const START: Duration = Duration::from_secs(120);

/// Lines of the daemon's log that a failure shows.
const LOG_LINES: usize = 10;

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
    let mut contenders = Contender::ALL.to_vec();
    if !is_there("nft") {
        println!("{}: not measured without nft (Debian package nftables)", Contender::Nftables.name());
        contenders.retain(|contender| *contender != Contender::Nftables);
    }
    let bin_dir = build_bins(&["fwha"], false)?;
    let spinner = spinner("laying the lab");
    // A second node would get copies of all flows, and take its share of the processors for that.
    let options = LabOptions { bin_dir: Some(bin_dir), replication: false, ..LabOptions::default() };
    let mut lab = Lab::new(options).context("lay the lab")?;
    let mut rows = Vec::new();
    for &contender in &contenders {
        for &streams in &plan.streams {
            rows.push(Row { contender, streams, gbits: Series::default() });
        }
    }
    for round in 0..plan.rounds {
        let mut order = contenders.clone();
        if round % 2 == 1 {
            order.reverse();
        }
        for contender in order {
            spinner.set_message(format!("round {} of {}: {}", round + 1, plan.rounds, contender.name()));
            let turn = rows.iter_mut().filter(|row| row.contender == contender);
            measure(&mut lab, &plan, contender, turn.collect(), &spinner)
                .with_context(|| contender.name())?;
        }
    }
    lab.remove()?;
    spinner.finish_and_clear();
    print(&plan, &rows);
    if let Some(path) = &args.json {
        fs::write(path, format!("{:#}\n", to_json(&plan, &rows)))
            .with_context(|| format!("write {}", path.display()))?;
    }
    if args.quick {
        println!("\nQuick: everything works, but the figures are those of runs that are too short.");
    }
    Ok(ExitCode::SUCCESS)
}

/// What one contender lets through.
struct Row {
    contender: Contender,
    streams: u32,
    /// Gbit/s of payload, one figure for each round.
    gbits: Series,
}

/// Whether there is a program of this name.
fn is_there(program: &str) -> bool {
    Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

/// One turn of a contender: all numbers of connections.
fn measure(
    lab: &mut Lab,
    plan: &Plan,
    contender: Contender,
    rows: Vec<&mut Row>,
    spinner: &ProgressBar,
) -> Result<()> {
    let mut firewall = set_up(lab, contender)?;
    for row in rows {
        spinner.tick();
        row.gbits.push(iperf3(lab, plan, row.streams)?);
    }
    match &mut firewall {
        Some(node) => ensure!(node.term(PATIENCE)?.success(), "the daemon failed: {}", node.log()?),
        None if contender == Contender::Nftables => {
            lab.exec(Host::Fw2, &["nft", "flush", "ruleset"])?;
        }
        None => {}
    }
    Ok(())
}

/// Puts a contender between the hosts.
fn set_up(lab: &mut Lab, contender: Contender) -> Result<Option<NodeProcess>> {
    let attach = match contender {
        Contender::Xdp => Attach::Xdp,
        _ => Attach::Tc,
    };
    lab.attach_by(attach)?;
    match contender {
        Contender::Router | Contender::Nftables => {
            lab.route_through(Node::Fw2)?;
            if contender == Contender::Nftables {
                let file = lab.dir().join("ruleset.nft");
                fs::write(&file, RULESET).with_context(|| format!("write {}", file.display()))?;
                lab.exec(Host::Fw2, &["nft", "--file", &file.to_string_lossy()])?;
            }
            Ok(None)
        }
        Contender::Tc | Contender::Xdp => {
            lab.route_through_group()?;
            let node = lab.start_node(Node::Fw1)?;
            lab.wait_for("fw1 to be active", START, || {
                Ok((role(&node.ctl(&["status"])?) == Some("active")).then_some(()))
            })
            .with_context(|| lab.log_tails(LOG_LINES))?;
            Ok(Some(node))
        }
    }
}

/// One run: Gbit/s of payload that arrive at the server.
fn iperf3(lab: &Lab, plan: &Plan, streams: u32) -> Result<f64> {
    // It ends with its first client.
    let mut command = lab.command("iperf3");
    command.args(["--server", "--one-off", "--forceflush"]).stdout(Stdio::piped());
    let mut server = lab.spawn(Host::Server, &mut command)?;
    let mut said = BufReader::new(server.stdout.take().context("standard output of iperf3")?).lines();
    let listens = said.any(|line| line.is_ok_and(|line| line.contains(LISTENING)));
    ensure!(listens, "iperf3 does not listen on the server");
    // The rest of what it says must go somewhere.
    let rest = std::thread::spawn(move || said.for_each(drop));

    let (streams, seconds) = (streams.to_string(), plan.seconds.to_string());
    let mut argv = vec!["iperf3", "--client", SERVER, "--json", "--parallel", &streams, "--time", &seconds];
    if plan.warm {
        argv.extend(["--omit", "1"]);
    }
    let timeout = (Duration::from_secs(plan.seconds.into()) + PATIENCE).as_secs().to_string();
    let result = lab.exec(Host::Client, &[&["timeout", &timeout], &argv[..]].concat());
    if result.is_err() {
        server.kill()?;
    }
    server.wait()?;
    let _ = rest.join();
    let report: Value = serde_json::from_str(&result?).context("JSON of iperf3")?;
    let bits = report.pointer("/end/sum_received/bits_per_second").and_then(Value::as_f64);
    Ok(bits.context("iperf3 does not say how much arrived")? / 1e9)
}

/// The row of a contender with as many connections.
fn row(rows: &[Row], contender: Contender, streams: u32) -> Option<&Row> {
    rows.iter().find(|row| (row.contender, row.streams) == (contender, streams))
}

/// Round by round, what part of another contender's throughput this is.
fn over(rows: &[Row], row_: &Row, other: Contender) -> Option<Series> {
    row(rows, other, row_.streams).map(|other| row_.gbits.over(&other.gbits))
}

fn print(plan: &Plan, rows: &[Row]) {
    println!(
        "TCP through the lab, {} rounds of {} s; Gbit/s; median (quartiles)\n",
        plan.rounds, plan.seconds
    );
    println!(
        "{:<8} {:<20} {:>20} {:>20} {:>20}",
        "streams", "between the hosts", "Gbit/s", "of nftables", "of no firewall"
    );
    for &streams in &plan.streams {
        for row in rows.iter().filter(|row| row.streams == streams) {
            let of = |other| over(rows, row, other).map(|series| series.spread(2)).unwrap_or_default();
            println!(
                "{streams:<8} {:<20} {:>20} {:>20} {:>20}",
                row.contender.name(),
                row.gbits.spread(2),
                of(Contender::Nftables),
                of(Contender::Router)
            );
        }
    }
}

fn to_json(plan: &Plan, rows: &[Row]) -> Value {
    let rows = rows.iter().map(|row| {
        json!({
            "contender": row.contender.name(), "streams": row.streams, "gbits_per_s": row.gbits.json(),
            "of_nftables": over(rows, row, Contender::Nftables).map(|series| series.json()),
            "of_router": over(rows, row, Contender::Router).map(|series| series.json()),
        })
    });
    json!({ "rounds": plan.rounds, "seconds": plan.seconds, "rows": rows.collect::<Vec<_>>() })
}
