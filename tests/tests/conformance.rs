//! fwha does with every packet what the kernel's own connection tracking does.

use fwha_tests::conformance::report::{Plan, Report};
use fwha_tests::conformance::{device, on_one_cpu};
use fwha_tests::needs_root;

/// Random conversations; `cargo xtask conformance --seeds N` plays more.
const SEEDS: u64 = 100;

#[test]
#[ignore = "the engine does not track all that the kernel does yet; `cargo xtask conformance` lists what it lacks"]
fn fwha_forwards_what_nf_conntrack_forwards_and_drops_what_it_drops() {
    needs_root!();
    if !device::has_nft() {
        eprintln!("skipped: needs nft (Debian package nftables)");
        return;
    }
    let plan = Plan { seeds: 0..SEEDS, ..Plan::default() };
    let report = on_one_cpu(|| Report::of(&plan, |_| ())).unwrap_or_else(|error| panic!("{error:?}"));
    println!("{report}");
    assert!(report.agrees(), "fwha and the kernel differ, see above");
}
