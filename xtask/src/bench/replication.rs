//! `cargo xtask bench replication`: what it costs to keep a second node informed, beside conntrackd.
//!
//! How it is measured, and what it means, is told in `docs/performance.md`.

mod bulk;
mod churn;
pub mod conntrackd;
mod cost;
mod lag;
pub mod pair;
mod takeover;
pub mod traffic;
pub mod usage;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use fwha_tests::lab::{Lab, LabOptions};
use fwha_tests::root::is_root;
use serde_json::{Map, Value};

use super::{plot, report};
use crate::cargo::{build_bins, spinner};

/// Measure what it costs to keep a second node informed, beside conntrackd
#[derive(clap::Args, Default)]
pub struct Args {
    /// Few and short runs of a debug build, to see that all of it works; the figures mean nothing
    #[arg(long)]
    quick: bool,
    /// These parts only
    #[arg(long, value_name = "PART,PART", value_delimiter = ',')]
    only: Vec<Part>,
    /// How often each contender has its turn
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: Option<u32>,
    /// Connections begun in a second, where their cost is measured
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: Option<u32>,
    /// Connections begun in a second by the generator in the kernel
    #[arg(long, value_name = "N,N", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1_000..=1_000_000))]
    churn_rates: Vec<u32>,
    /// Seconds of each run
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: Option<u32>,
    /// Programs of `fwha` that are built already are here
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// Another build's programs are here, and are a contender too, in `cost` and `churn`
    #[arg(long, value_name = "DIR")]
    other: Option<PathBuf>,
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

/// What there is to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// CPU and bytes for each flow
    Cost,
    /// More connections than packets can be had for
    Churn,
    /// Takeovers with few and with many flows
    Takeover,
    /// A big table to a fresh peer
    Bulk,
}

impl Part {
    const ALL: [Self; 4] = [Self::Cost, Self::Churn, Self::Takeover, Self::Bulk];
}

/// Connections begun in a second where there only must be many.
pub const LOAD_RATE: u32 = 25_000;

/// How much is done.
struct Plan {
    /// Where the programs are, and those of another build.
    bin_dir: PathBuf,
    other: Option<PathBuf>,
    rounds: u32,
    rate: u32,
    seconds: u32,
    /// Connections begun in a second that are tried, for how many seconds, how often.
    churn_rates: Vec<u32>,
    churn_seconds: u32,
    churns: u32,
    /// Numbers of flows with which takeovers are measured, and how many takeovers.
    takeover_flows: Vec<u32>,
    takeovers: u32,
    /// Flows of a bulk, how many bulks, and changes in a second meanwhile.
    bulk_flows: u32,
    bulks: u32,
    live_rate: u32,
    /// Whether there is conntrackd to compare with.
    rival: bool,
}

/// Runs the suite.
pub fn run(args: &Args) -> Result<ExitCode> {
    if !is_root() {
        bail!(
            "the bench needs root: it makes network namespaces; run `sudo -E cargo xtask bench replication`"
        );
    }
    let missing = conntrackd::missing(&conntrackd::NEEDS);
    if !missing.is_empty() {
        println!("conntrackd: not measured without {} (Debian packages)", missing.join(", "));
    }
    let bin_dir = match &args.bin_dir {
        Some(dir) => dir.clone(),
        None => build_bins(&["fwha"], !args.quick)?,
    };
    let plan = Plan {
        bin_dir: bin_dir.clone(),
        other: args.other.clone(),
        rounds: args.rounds.unwrap_or(if args.quick { 1 } else { 5 }),
        rate: args.rate.unwrap_or(if args.quick { 1_000 } else { 10_000 }),
        seconds: args.seconds.unwrap_or(if args.quick { 1 } else { 5 }),
        churn_rates: match (args.churn_rates.is_empty(), args.quick) {
            (false, _) => args.churn_rates.clone(),
            (_, true) => vec![5_000],
            _ => vec![50_000, 200_000],
        },
        churn_seconds: if args.quick { 1 } else { 10 },
        churns: args.rounds.unwrap_or(if args.quick { 1 } else { 5 }),
        takeover_flows: if args.quick { vec![2_000] } else { vec![1_000, 1_000_000] },
        takeovers: args.rounds.unwrap_or(if args.quick { 1 } else { 10 }).max(if args.quick {
            1
        } else {
            10
        }),
        bulk_flows: if args.quick { 2_000 } else { 1_000_000 },
        bulks: args.rounds.unwrap_or(if args.quick { 1 } else { 5 }),
        live_rate: if args.quick { 600 } else { 10_000 },
        rival: missing.is_empty(),
    };
    let spinner = spinner("laying the lab");
    let options = LabOptions {
        bin_dir: Some(bin_dir),
        max_flows: if args.quick { 65_536 } else { 1_200_000 },
        extra_config: TIMEOUTS.to_owned(),
        ..LabOptions::default()
    };
    let mut lab = Lab::new(options).context("lay the lab")?;
    traffic::lay_routes(&lab)?;
    let mut figures = Map::new();
    let mut texts = Vec::new();
    let mut pictures = Vec::new();
    for part in Part::ALL {
        if !args.only.is_empty() && !args.only.contains(&part) {
            continue;
        }
        let (name, (text, json)) = match part {
            Part::Cost => ("cost", cost::run(&mut lab, &plan, &spinner, &mut pictures)?),
            Part::Churn => ("churn", churn::run(&mut lab, &plan, &spinner)?),
            Part::Takeover => ("takeover", takeover::run(&lab, &plan, &spinner)?),
            Part::Bulk => ("bulk", bulk::run(&lab, &plan, &spinner)?),
        };
        texts.push(text);
        figures.insert(name.to_owned(), json);
    }
    lab.remove()?;
    spinner.finish_and_clear();
    let machine = report::machine();
    println!("replication\n{machine}\n\n{}", texts.join("\n"));
    figures.insert("machine".to_owned(), machine.into());
    if let Some(path) = &args.json {
        fs::write(path, format!("{:#}\n", Value::Object(figures)))
            .with_context(|| format!("write {}", path.display()))?;
    }
    if let Some(dir) = &args.plot {
        plot::draw(dir, "replication", &pictures)?;
    }
    if args.quick {
        println!("\nQuick: all that was run works, but the figures are those of runs that are too short.");
    }
    Ok(ExitCode::SUCCESS)
}

/// A connection that has ended is forgotten while it is still measured.
pub const TIMEOUTS: &str = "
[timeouts]
tcp-time-wait = \"1s\"
tcp-close = \"1s\"
";
