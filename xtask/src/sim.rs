//! `cargo xtask sim`: the cluster simulator on many seeds, or one seed step by step. See `fwha_tests::sim`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use fwha_tests::sim::{self, Summary};

/// Seeds, if nobody says how many.
const SEEDS: u64 = 10_000;

/// Simulate clusters under faults, one for each seed
#[derive(clap::Args)]
pub struct Args {
    /// How many seeds; 10,000, or the one that is named
    #[arg(long, value_name = "N")]
    seeds: Option<u64>,
    /// The first seed
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Print every step: time, node, what
    #[arg(long)]
    trace: bool,
    /// Nodes of each cluster; drawn from the seed if not said
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u8).range(2..=8))]
    nodes: Option<u8>,
    /// Go on after a failure, and count
    #[arg(long)]
    keep_going: bool,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<ExitCode> {
    let began = Instant::now();
    let first = args.seed.unwrap_or(0);
    let seeds = first..first + args.seeds.unwrap_or(if args.seed.is_some() { 1 } else { SEEDS });
    let (mut total, mut failures, mut slowest) = (Summary::default(), 0, (Duration::ZERO, 0));
    for seed in seeds.clone() {
        match sim::run(seed, args.nodes, args.trace) {
            Ok(summary) => {
                total.proofs += summary.proofs;
                total.datagrams += summary.datagrams;
                slowest = slowest.max((summary.healed_after, seed));
            }
            Err(failure) => {
                failures += 1;
                eprintln!("{failure}\n");
                if !args.keep_going {
                    return Ok(ExitCode::FAILURE);
                }
            }
        }
    }
    println!(
        "{} runs in {:?}, {failures} failed; {} datagrams; {} times two nodes said in-sync and were compared; \
         healed within {:?} (seed {})",
        seeds.end - seeds.start,
        began.elapsed(),
        total.datagrams,
        total.proofs,
        slowest.0,
        slowest.1
    );
    Ok(if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
