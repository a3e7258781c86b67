//! The cluster simulator: thousands of clusters under faults, in virtual time. See `fwha_tests::sim`.

use std::time::Duration;

use fwha_tests::sim;

#[test]
fn clusters_survive_every_storm() {
    let mut worst = Duration::ZERO;
    let mut failures = 0;
    let t = std::time::Instant::now();
    let (mut proofs, mut datagrams) = (0, 0);
    for seed in 0..10_000 {
        match sim::run(seed, None, false) {
            Ok(s) => {
                worst = worst.max(s.healed_after);
                proofs += s.proofs;
                datagrams += s.datagrams;
            }
            Err(f) => {
                failures += 1;
                if failures < 6 {
                    println!("{f}\n");
                }
            }
        }
    }
    println!("{failures} failures, worst {worst:?}, proofs {proofs}, datagrams {datagrams}, {:?}", t.elapsed());
    assert_eq!(failures, 0);
}
