//! `cargo xtask conformance`: fwha against the kernel's nf_conntrack. See `fwha_tests::conformance`.

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use fwha_tests::conformance::report::{Plan, Report};
use fwha_tests::conformance::{Play, Rig, device, on_one_cpu, sequences};
use fwha_tests::root::is_root;

/// Compare fwha with the kernel's nf_conntrack, packet by packet
#[derive(clap::Args)]
pub struct Args {
    /// How many random conversations are played besides the sequences
    #[arg(long, value_name = "N", default_value_t = 300)]
    seeds: u64,
    /// Only the random conversation of this seed, packet by packet
    #[arg(long, value_name = "S", conflicts_with_all = ["seeds", "only", "record"])]
    seed: Option<u64>,
    /// Only the sequences with this in their name, packet by packet
    #[arg(long, value_name = "NAME", conflicts_with_all = ["seeds", "record"])]
    only: Option<String>,
    /// Write what this kernel does into the sequences, and compare nothing
    #[arg(long)]
    record: bool,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<ExitCode> {
    if !is_root() {
        bail!(
            "the comparison needs root: it makes network namespaces and loads BPF programs; run `sudo -E cargo xtask conformance`"
        );
    }
    ensure!(device::has_nft(), "nft is missing: install the package nftables");
    if args.record {
        return on_one_cpu(record);
    }
    let plan = match (args.seed, &args.only) {
        (Some(seed), _) => Plan { sequences: None, seeds: seed..seed + 1, look: true },
        (None, Some(name)) => Plan { sequences: Some(name.clone()), seeds: 0..0, look: true },
        (None, None) => Plan { sequences: Some(String::new()), seeds: 0..args.seeds, look: false },
    };
    let report = on_one_cpu(|| {
        Report::of(&plan, |play| {
            if plan.look {
                print(play)
            }
        })
    })?;
    println!("{report}");
    // Another kernel may well do something else than is written; that is no fault of fwha's.
    let as_scripted = report.as_scripted() || !sequences::recorded_here();
    Ok(if report.agrees() && as_scripted { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(play: &Play<'_>) {
    let [inside, outside] = play.sequence.isn;
    println!("== {} {} isn {inside} {outside}", play.sequence.name, play.family.as_str());
    play.lines().iter().for_each(|line| println!("{line}"));
    println!();
}

/// Has the scripts say what the kernel does.
fn record() -> Result<ExitCode> {
    let mut rig = Rig::new()?;
    for file in sequences::FILES {
        let sequences = file.sequences()?;
        let mut plays = Vec::new();
        for sequence in &sequences {
            for family in &sequence.families {
                plays.push(rig.play(sequence, *family, false)?);
            }
        }
        let path = file.path();
        std::fs::write(&path, file.recorded(&plays)).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}
