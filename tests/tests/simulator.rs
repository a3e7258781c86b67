//! The cluster simulator: thousands of clusters under faults, in virtual time. See `fwha_tests::sim`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use fwha_tests::sim;

/// Seeds of the ordinary tests; `cargo xtask sim` runs more.
const SEEDS: u64 = 10_000;

/// Seeds that once failed, by what was wrong.
const ONCE_FAILED: &[(u64, &str)] = &[
    (166, "a bucket was asked for while its END was on its way, and was not sent again for 5 s"),
    (2419, "a peer's word, read late, brought a flow back into the kernel that its sweeper had just deleted"),
    (
        29205,
        "a flow that found the kernel's table full was told again during a comparison, and counted as there",
    ),
    (14557, "the same"),
];

/// Runs seeds on all processors.
fn all_survive(seeds: impl Iterator<Item = u64>) {
    let seeds: Vec<u64> = seeds.collect();
    let next = AtomicU64::new(0);
    let failures: Vec<_> = thread::scope(|scope| {
        let work = || {
            let mut failures = Vec::new();
            while let Some(&seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                failures.extend(sim::run(seed, None, false).err());
            }
            failures
        };
        let threads: Vec<_> =
            (0..thread::available_parallelism().map_or(1, usize::from)).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|t| t.join().expect("no panic")).collect()
    });
    if let Some(first) = failures.iter().min_by_key(|f| f.seed) {
        panic!("{} of {} runs failed; {first}", failures.len(), seeds.len());
    }
}

#[test]
fn clusters_survive_every_storm() {
    all_survive(0..SEEDS);
}

#[test]
fn what_once_failed_does_not_fail_again() {
    all_survive(ONCE_FAILED.iter().map(|f| f.0));
}

#[test]
fn a_seed_gives_the_same_run_each_time() {
    for seed in 0..100 {
        let runs = [sim::run(seed, None, false), sim::run(seed, None, false)];
        let [first, second] = runs.map(|run| run.map_err(|failure| failure.to_string()).expect("a good run"));
        assert_eq!(first.fingerprint, second.fingerprint, "seed {seed}");
        assert_eq!(first.datagrams, second.datagrams, "seed {seed}");
    }
}

#[test]
fn nodes_that_say_in_sync_are_really_compared() {
    let proofs: u64 = (0..20).map(|seed| sim::run(seed, Some(2), false).map_or(0, |s| s.proofs)).sum();
    assert!(proofs > 1000, "{proofs}");
}
