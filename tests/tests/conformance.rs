//! fwha does with every packet what the kernel's own connection tracking does, and the kernel what the scripts say.

use fwha_tests::conformance::report::{Plan, Report};
use fwha_tests::conformance::wire::Side;
use fwha_tests::conformance::{Rig, on_one_cpu, sequences};
use fwha_tests::needs_root;
use fwha_tests::root::{is_missing, skip_for_kernel};

/// Random conversations; `cargo xtask conformance --seeds N` plays more.
const SEEDS: u64 = 100;

/// At least so many packets of all, in percent, must be foreseen by both models, and so many of these come while both sides
/// know the same: else little is compared, and what is known to be different hides the rest.
const LEAST_PERCENT: usize = 80;

/// What lays the kernel's ruleset.
const NFT: &str = "/usr/sbin/nft";

/// Plays this many random conversations besides the sequences; nothing without `nft`.
fn play(seeds: u64) -> Option<Report> {
    if is_missing(NFT, "nftables") {
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
        let (foreseen, in_step) = (report.foreseen_percent(), report.in_step_percent());
        assert!(foreseen >= LEAST_PERCENT, "only {foreseen} % of all packets were foreseen");
        assert!(in_step >= LEAST_PERCENT, "only {in_step} % of these came while both sides knew the same");
    }
}

#[test]
fn the_kernel_does_what_the_scripts_say() {
    needs_root!();
    if !sequences::recorded_here() {
        skip_for_kernel(&format!("what the scripts say, which is what Linux {} does", sequences::RECORDED));
        return;
    }
    if let Some(report) = play(0) {
        assert!(report.as_scripted(), "the kernel does something else, see above");
    }
}

/// The kernel's clock has begun to run when it is read; a busy machine takes its time.
const LATE_S: u64 = 5;

/// So many timeouts at least are compared: after each packet from the first answer on, at both hooks.
const LEAST_TIMEOUTS: usize = 150;

#[test]
fn a_connection_is_kept_as_long_as_the_kernel_keeps_it() {
    needs_root!();
    if is_missing(NFT, "nftables") {
        return;
    }
    let compared = on_one_cpu(|| {
        let mut rig = Rig::new()?;
        let (mut compared, mut differences) = (0, Vec::new());
        for sequence in sequences::all()?.iter().filter(|sequence| sequence.name.starts_with("timeout_")) {
            let family = sequence.families[0];
            let play = rig.play(sequence, family, true)?;
            // What nobody answered yet is in another table of fwha's.
            let answer = sequence.steps.iter().position(|step| step.message.from == Side::Outside);
            let answered = sequence.steps.iter().zip(&play.answers).skip(answer.unwrap_or(usize::MAX));
            for (step, [kernel, fwha @ ..]) in answered {
                for (hook, answer) in ["xdp", "tc"].into_iter().zip(fwha) {
                    compared += 1;
                    let kept = match (answer.timeout_s, kernel.timeout_s) {
                        (Some(fwha), Some(kernel)) => kernel <= fwha && fwha <= kernel + LATE_S,
                        _ => false,
                    };
                    if !kept {
                        differences.push(format!(
                            "{}: {}: kernel {kernel}, {hook} {answer}",
                            sequence.name, step.text
                        ));
                    }
                }
            }
        }
        Ok((compared, differences))
    });
    let (compared, differences) = compared.unwrap_or_else(|error| panic!("{error:?}"));
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    assert!(compared >= LEAST_TIMEOUTS, "only {compared} timeouts were compared");
}
