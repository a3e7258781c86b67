//! `cargo xtask sim`: the cluster simulator on many seeds, or one seed step by step. See `fwha_tests::sim`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use fwha_tests::sim::{self, Roles, Summary, Wish};

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
    /// Only with roles that the storm tells, or that the nodes elect
    #[arg(long, value_name = "told|elected", value_parser = roles)]
    roles: Option<Roles>,
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

fn roles(text: &str) -> Result<Roles, String> {
    let all = [Roles::Told, Roles::Elected];
    all.into_iter().find(|roles| roles.as_str() == text).ok_or_else(|| "told or elected".into())
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<ExitCode> {
    for roles in [Roles::Told, Roles::Elected] {
        if args.roles.is_none_or(|wanted| wanted == roles) && !run_with(args, roles) {
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs all seeds; whether all went well.
fn run_with(args: &Args, roles: Roles) -> bool {
    let began = Instant::now();
    let first = args.seed.unwrap_or(0);
    let seeds = first..first + args.seeds.unwrap_or(if args.seed.is_some() { 1 } else { SEEDS });
    let (mut total, mut failures, mut slowest) = (Summary::default(), 0, (Duration::ZERO, 0));
    for seed in seeds.clone() {
        match sim::run(seed, roles, Wish { nodes: args.nodes, traced: args.trace, ..Wish::default() }) {
            Ok(summary) => {
                total.proofs += summary.proofs;
                total.stragglers += summary.stragglers;
                total.takeovers += summary.takeovers;
                total.inherited += summary.inherited;
                total.datagrams += summary.datagrams;
                slowest = slowest.max((summary.healed_after, seed));
            }
            Err(failure) => {
                failures += 1;
                eprintln!("{failure}\n");
                if !args.keep_going {
                    return false;
                }
            }
        }
    }
    println!(
        "roles {}: {} runs in {:?}, {failures} failed; {} datagrams of replication; {} times two nodes said in-sync and \
         were compared; {} takeovers by election with {} flows that were in sync; {} flows taken from the owner before; \
         healed within {:?} (seed {})",
        roles.as_str(),
        seeds.end - seeds.start,
        began.elapsed(),
        total.datagrams,
        total.proofs,
        total.takeovers,
        total.inherited,
        total.stragglers,
        slowest.0,
        slowest.1
    );
    failures == 0
}
