//! fwha does with every packet what the kernel's own connection tracking does, and the kernel what the scripts say.

use fwha_tests::conformance::report::{Plan, Report};
use fwha_tests::conformance::{device, on_one_cpu, sequences};
use fwha_tests::needs_root;

/// Random conversations; `cargo xtask conformance --seeds N` plays more.
const SEEDS: u64 = 100;

/// Plays this many random conversations besides the sequences; nothing without `nft`.
fn play(seeds: u64) -> Option<Report> {
    if !device::has_nft() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "nft is missing, and CI=true forbids skipping");
        eprintln!("skipped: needs nft (Debian package nftables)");
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
