//! `cargo xtask sim`: the cluster simulator on many seeds, or one seed step by step. See `fwha_tests::sim`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use fwha_tests::sim::{self, Summary};

/// Simulate clusters under faults, one for each seed
#[derive(clap::Args)]
pub struct Args {
    /// How many seeds
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    seeds: u64,
    /// The first seed; without --seeds the only one
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
    let seeds = match (args.seed, args.seeds) {
        (Some(seed), 10_000) => seed..seed + 1,
        (first, n) => first.unwrap_or(0)..first.unwrap_or(0) + n,
    };
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
