//! fwha does with every packet what the kernel's own connection tracking does, and the kernel what the scripts say.

use fwha_tests::conformance::report::{Plan, Report};
use fwha_tests::conformance::{Answer, Rig, device, on_one_cpu, sequences};
use fwha_tests::needs_root;

/// Random conversations; `cargo xtask conformance --seeds N` plays more.
const SEEDS: u64 = 100;

/// Whether there is an `nft`; CI has one.
fn has_nft() -> bool {
    let there = device::has_nft();
    if !there {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "nft is missing, and CI=true forbids skipping");
        eprintln!("skipped: needs nft (Debian package nftables)");
    }
    there
}

/// Plays this many random conversations besides the sequences; nothing without `nft`.
fn play(seeds: u64) -> Option<Report> {
    if !has_nft() {
        return None;
    }
    let plan = Plan { sequences: Some(String::new()), seeds: 0..seeds, look: false };
    let report = on_one_cpu(|| Report::of(&plan, |_| ())).unwrap_or_else(|error| panic!("{error:?}"));
    println!("{report}");
    Some(report)
}

#[test]
fn fwha_forwards_what_nf_conntrack_forwards_and_drops_what_it_drops() {
    needs_root!();
    if let Some(report) = play(SEEDS) {
        assert!(report.agrees(), "fwha and the kernel differ, see above");
    }
}

#[test]
fn the_kernel_does_what_the_scripts_say() {
    needs_root!();
    if !sequences::recorded_here() {
        eprintln!("skipped: the scripts say what Linux {} does", sequences::RECORDED);
        return;
    }
    if let Some(report) = play(0) {
        assert!(report.as_scripted(), "the kernel does something else, see above");
    }
}

/// The kernel's clock has begun to run when it is read; a busy machine takes its time.
const LATE_S: u64 = 5;

#[test]
fn a_connection_is_kept_as_long_as_the_kernel_keeps_it() {
    needs_root!();
    if !has_nft() {
        return;
    }
    let differences = on_one_cpu(|| {
        let mut rig = Rig::new()?;
        let mut differences = Vec::new();
        for sequence in sequences::all()?.iter().filter(|sequence| sequence.name.starts_with("timeout_")) {
            let family = sequence.families[0];
            let play = rig.play(sequence, family, true)?;
            for (step, [kernel, fwha @ ..]) in sequence.steps.iter().zip(&play.answers) {
                let kept = |answer: &Answer| match (answer.timeout_s, kernel.timeout_s) {
                    // Not answered yet.
                    (None, _) => true,
                    (Some(fwha), Some(kernel)) => kernel <= fwha && fwha <= kernel + LATE_S,
                    (Some(_), None) => false,
                };
                if !fwha.iter().all(kept) {
                    let [xdp, tc] = fwha;
                    differences.push(format!(
                        "{}: {}: kernel {kernel}, xdp {xdp}, tc {tc}",
                        sequence.name, step.text
                    ));
                }
            }
        }
        Ok(differences)
    });
    let differences = differences.unwrap_or_else(|error| panic!("{error:?}"));
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
