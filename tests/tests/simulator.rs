//! The cluster simulator: thousands of clusters under faults, in virtual time. See `fwha_tests::sim`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use fwha_tests::sim::{self, Planted, Roles, Wish};

/// Seeds of the ordinary tests; `cargo xtask sim` runs more.
const SEEDS: u64 = 10_000;
/// The same where nodes elect who owns what: each takes several times as long, most of it for heartbeats.
const ELECTED_SEEDS: u64 = 10_000;

/// Within so many seeds each planted bug is found.
const PLANTED_SEEDS: u64 = 40;

/// Seeds that once failed, by what was wrong.
const ONCE_FAILED: &[(u64, &str)] = &[
    (166, "a bucket was asked for while its END was on its way, and was not sent again for 5 s"),
    (2419, "a peer's word, read late, brought a flow back into the kernel that its sweeper had just deleted"),
    (
        29205,
        "a flow that found the kernel's table full was told again during a comparison, and counted as there",
    ),
    (14557, "the same"),
    (3008, "what a node wrote as the owner again was taken for the last of its earlier ownership"),
    (
        7187,
        "a flow that began within a millisecond of an inherited one of its key that had just ended was not learned",
    ),
];

/// The same where nodes elect who owns what.
const ONCE_FAILED_ELECTED: &[(u64, &str)] = &[
    (
        1934,
        "a Backup back from a fault reckoned with a quick Active, which had begun anew and did not know that it was not heard",
    ),
    (51, "a node started alone in term 1, and its peer, which knew term 2, never took its flows"),
    (103, "a daemon restarted, forgot the terms and took over in a lower one than that of its flows"),
    (61, "all were started anew: one knew a higher term from its flows, and never took those of the owner"),
    (36, "a former owner's late word in a higher term ended the ownership of the one that was active"),
    (5527, "the word of who took a group over by hand did not get back, and both stayed active"),
    (9148, "one that hung while a silent peer came back took over at once: it had not asked since"),
    (
        1622,
        "the deletion of a flow took the next one of its key with it, which the former owner's data plane had begun since",
    ),
    (2755, "one that hung, its sync link lost, took over when it woke up: it had not asked since"),
    (
        6345,
        "two Actives that heard the third node but not each other raised their terms in turn, a hundred times a second",
    ),
    (
        6554,
        "a flow ended, and the former owner's late word, read before that was, brought it back into the kernel",
    ),
    (7022, "a node took over from one that it could not reach, and that the third one heard"),
    (
        35150,
        "three nodes: one that was restarted ignored the adverts of an Active that it had never heard by heartbeat",
    ),
    (
        13111,
        "a term that replication knew and the election did not: the flows of the owner in a lower one were refused",
    ),
    (
        7979,
        "a connection that a former owner saw begin again within 2 ms of the one before, which had ended, was lost",
    ),
    (
        20673,
        "a claim in a higher term ended an ownership in replication, and the election, which never heard of it, stayed Active",
    ),
    (31259, "the same, and the claimer gave up at once"),
    (
        13515,
        "an Active that hung, its sync link lost, was replaced for the silence of its adverts while its data plane answered",
    ),
    (
        17610,
        "a former owner saw a connection begin within 2 ms of one that its successor saw begin and end: no client that knows the new owner does that",
    ),
    (20173, "the same"),
    (26881, "the same"),
    (1538, "the same"),
    (
        9286,
        "an Active that hung claimed its groups when it woke up, before it had asked one that it held for dead since before",
    ),
    (
        2173,
        "a successor whose replication slept deleted a flow that its data plane had gone on with, at the former owner's word",
    ),
];

/// Runs seeds on all processors.
fn all_survive(roles: Roles, seeds: impl Iterator<Item = u64>) {
    let seeds: Vec<u64> = seeds.collect();
    let next = AtomicU64::new(0);
    let failures: Vec<_> = thread::scope(|scope| {
        let work = || {
            let mut failures = Vec::new();
            while let Some(&seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                failures.extend(sim::run(seed, roles, Wish::default()).err());
            }
            failures
        };
        let threads: Vec<_> =
            (0..thread::available_parallelism().map_or(1, usize::from)).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|t| t.join().expect("no panic")).collect()
    });
    if let Some(first) = failures.iter().min_by_key(|f| f.seed) {
        let all: Vec<_> = failures.iter().map(|f| (f.seed, f.what.lines().next())).collect();
        panic!("{} of {} runs failed: {all:?}; {first}", failures.len(), seeds.len());
    }
}

#[test]
fn clusters_survive_every_storm() {
    all_survive(Roles::Told, 0..SEEDS);
}

#[test]
fn clusters_that_elect_their_owners_survive_every_storm() {
    all_survive(Roles::Elected, 0..ELECTED_SEEDS);
}

/// Who finds nothing proves nothing.
#[test]
fn bugs_that_are_planted_are_found() {
    for planted in [
        Planted::AddressesFirst,
        Planted::TermsForgotten,
        Planted::AnswersIgnored,
        Planted::AddressesForgotten,
        Planted::AnnouncementsForgotten,
        Planted::StaleWritten,
        Planted::DeletesForgotten,
        Planted::LossesIgnored,
    ] {
        let (found, roles) = planted.found_by();
        let wish = Wish { planted: Some(planted), ..Wish::default() };
        let run = |seed| sim::run(seed, roles, wish);
        let failures: Vec<_> = (0..PLANTED_SEEDS).filter_map(|seed| run(seed).err()).collect();
        let named = failures.iter().filter(|failure| failure.what.contains(found)).count();
        println!("{planted:?}: {named} of {PLANTED_SEEDS} seeds, {} failed", failures.len());
        assert!(named > 0, "{planted:?} in {} runs: {failures:?}", failures.len());
    }
}

#[test]
fn what_once_failed_does_not_fail_again() {
    all_survive(Roles::Told, ONCE_FAILED.iter().map(|f| f.0));
    all_survive(Roles::Elected, ONCE_FAILED_ELECTED.iter().map(|f| f.0));
}

#[test]
fn a_seed_gives_the_same_run_each_time() {
    let seeds = (0..100).map(|seed| (seed, Roles::Told)).chain((0..20).map(|seed| (seed, Roles::Elected)));
    for (seed, roles) in seeds {
        let runs = [sim::run(seed, roles, Wish::default()), sim::run(seed, roles, Wish::default())];
        let [first, second] = runs.map(|run| run.map_err(|failure| failure.to_string()).expect("a good run"));
        assert_eq!(first.fingerprint, second.fingerprint, "seed {seed}");
        assert_eq!(first.datagrams, second.datagrams, "seed {seed}");
    }
}

#[test]
fn nodes_that_say_in_sync_are_really_compared() {
    let wish = || Wish { nodes: Some(2), ..Wish::default() };
    let run = |seed| sim::run(seed, Roles::Told, wish()).unwrap_or_else(|failure| panic!("{failure}"));
    let proofs: u64 = (0..20).map(|seed| run(seed).proofs).sum();
    assert!(proofs > 1000, "{proofs}");
}

#[test]
fn elected_nodes_take_over_with_flows_that_were_in_sync_and_with_those_of_the_last_moment() {
    let (mut takeovers, mut inherited, mut stragglers) = (0, 0, 0);
    for seed in 0..40 {
        let summary =
            sim::run(seed, Roles::Elected, Wish::default()).unwrap_or_else(|failure| panic!("{failure}"));
        takeovers += summary.takeovers;
        inherited += summary.inherited;
        stragglers += summary.stragglers;
    }
    assert!(takeovers > 100 && inherited > 300 && stragglers > 30, "{takeovers} {inherited} {stragglers}");
}
