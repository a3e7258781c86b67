//! `cargo xtask faults`: what traffic meets when something fails. See `fwha_tests::faults`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use fwha_tests::faults::{Case, HELD, LASTS, Outcome, RATE, play};
use fwha_tests::lab::{self, LabOptions};
use fwha_tests::root::is_root;

use crate::cargo::build_bins;

/// Let every fault strike either node with traffic through the pair, and check what comes of it
#[derive(clap::Args)]
pub struct Args {
    /// Only cases whose name contains this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// How often each
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// Time between two heartbeats
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=1000))]
    heartbeat: Option<u64>,
    /// How long a fault lasts
    #[arg(long, value_name = "SECONDS", default_value_t = LASTS.as_secs(), value_parser = clap::value_parser!(u64).range(1..=3600))]
    lasts: u64,
    /// Build as for use, which takes longer; otherwise as for `cargo xtask test`
    #[arg(long)]
    release: bool,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<ExitCode> {
    if !is_root() {
        bail!(
            "faults need root: they strike firewalls in network namespaces; run `sudo -E cargo xtask faults`"
        );
    }
    let options = LabOptions {
        heartbeat: args.heartbeat.map(Duration::from_millis),
        bin_dir: Some(build_bins(&["fwha", "fwha-tests"], args.release)?),
        ..LabOptions::default()
    };
    let wanted = |case: &Case| args.only.as_ref().is_none_or(|text| case.to_string().contains(text.as_str()));
    let cases: Vec<Case> = Case::all().filter(wanted).collect();
    if cases.is_empty() {
        bail!("no case has {:?} in its name", args.only.as_deref().unwrap_or_default());
    }
    println!("Probe of 1 kHz, {HELD} connections held, {RATE} new ones a second.\n");
    println!(
        "{:38} {:>9} {:>6} {:>5} {:>5} {:>6} {:>6} {:>7}  who was active when (ms since the fault)",
        "fault (on the node that is)", "outage ms", "lost", "there", "dupl.", "conn.", "new", "slow"
    );
    let mut failures = 0;
    for case in cases {
        for _ in 0..args.runs {
            failures += u32::from(!one(case, &options, Duration::from_secs(args.lasts)));
            lab::wait_if_terminating();
        }
    }
    println!(
        "\nlost: probes without an answer; there: those of them that did not arrive; dupl.: answers too many;"
    );
    println!("conn.: of those held, lost; new: of the new, failed; slow: of the new, more than 0.5 s.");
    if failures > 0 {
        println!("{failures} failed");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// Plays a case and prints its line; whether all was as it must be.
fn one(case: Case, options: &LabOptions, lasts: Duration) -> bool {
    let outcome = match play(case, options.clone(), lasts) {
        Ok(outcome) => outcome,
        Err(error) => {
            println!("{:38} FAILED: {error:#}", case.to_string());
            return false;
        }
    };
    let Outcome { probe, held, dialled, .. } = &outcome;
    println!(
        "{:38} {:>9.1} {:>6} {:>5} {:>5} {:>6} {:>6} {:>7}  {}",
        case.to_string(),
        probe.outage_ms,
        probe.lost,
        probe.lost_forward,
        probe.duplicates,
        held.lost,
        dialled.failed,
        dialled.slow,
        reigns(&outcome)
    );
    match outcome.check() {
        Ok(()) => true,
        Err(error) => {
            println!("{:38} FAILED: {error:#}", "");
            false
        }
    }
}

/// `fw1 to 15.2, fw2 from 14.9`.
fn reigns(outcome: &Outcome) -> String {
    let one = |reign: &fwha_tests::faults::Reign| {
        let from = if reign.from_ms > 0.0 { format!(" from {:.1}", reign.from_ms) } else { String::new() };
        let until = reign.until_ms.map_or(String::new(), |until| format!(" to {until:.1}"));
        format!("{}{from}{until}", reign.node)
    };
    outcome.reigns.iter().map(one).collect::<Vec<_>>().join(", ")
}
