//! One of the cases of `cargo xtask faults`, so that it stays right; the others take minutes.

use fwha_tests::faults::{Case, Fault, LASTS, play};
use fwha_tests::lab::LabOptions;

#[test]
fn a_daemon_that_is_killed_and_started_again_loses_nothing_of_users_traffic() {
    if fwha_tests::root::needed() {
        return;
    }
    let outcome = play(Case { fault: Fault::Restart, active: true }, LabOptions::default(), LASTS);
    let outcome = outcome.unwrap_or_else(|error| panic!("{error:?}"));
    outcome.check().unwrap_or_else(|error| panic!("{error:?}: {outcome:?}"));
    assert_eq!(outcome.probe.duplicates, 0);
    assert!(outcome.dialled.dialled > 500, "{:?}", outcome.dialled);
}
