//! `cargo xtask conformance`: fwha against the kernel's nf_conntrack. See `fwha_tests::conformance`.

use std::process::ExitCode;

use anyhow::{Result, bail, ensure};
use fwha_tests::conformance::{Play, Rig, device, on_one_cpu, sequences};
use fwha_tests::root::is_root;

/// Compare fwha with the kernel's nf_conntrack, packet by packet
#[derive(clap::Args)]
pub struct Args {
    /// Only sequences with this in their name
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Show what happens to every packet
    #[arg(long)]
    trace: bool,
    /// Write into the sequences what this kernel does, and compare nothing
    #[arg(long)]
    record: bool,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<ExitCode> {
    if !is_root() {
        bail!("the comparison needs root: it makes network namespaces and loads BPF programs; run `sudo -E cargo xtask conformance`");
    }
    ensure!(device::has_nft(), "nft is missing: install the package nftables");
    on_one_cpu(|| if args.record { record() } else { compare(args) })
}

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
        std::fs::write(file.path(), file.recorded(&plays))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn compare(args: &Args) -> Result<ExitCode> {
    let mut rig = Rig::new()?;
    let mut differences = Vec::new();
    let mut packets = 0;
    for sequence in &sequences::all()? {
        if args.only.as_ref().is_some_and(|only| !sequence.name.contains(only)) { continue; }
        for family in &sequence.families {
            let play = rig.play(sequence, *family, args.trace)?;
            packets += play.answers.len();
            if args.trace { trace(&play); }
            differences.extend(play.differences());
        }
    }
    for difference in &differences { println!("{difference}"); }
    println!("{packets} packets, {} differences", differences.len());
    Ok(ExitCode::SUCCESS)
}

/// Prints a conversation with what the kernel did, and fwha where it did something else.
fn trace(play: &Play<'_>) {
    println!("== {} {}", play.sequence.name, play.family.as_str());
    let differences = play.differences();
    for (index, (step, answers)) in play.sequence.steps.iter().zip(&play.answers).enumerate() {
        println!("{:60} {}", step.text, answers[0]);
        for difference in differences.iter().filter(|d| d.packet == index + 1) {
            println!("{:>60} {}", difference.hooks.join(" "), difference.fwha);
        }
    }
}
