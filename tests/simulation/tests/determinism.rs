//! One seed, one run.

use std::collections::BTreeSet;

use kvferry_simulation::{Options, run};

#[test]
fn a_seed_repeats_itself_to_the_last_event() {
    for seed in 0..8 {
        let options = Options::small(seed);
        assert_eq!(run(&options), run(&options), "seed {seed}");
    }
}

#[test]
fn another_seed_is_another_run() {
    let digests: BTreeSet<_> = (0..12)
        .map(|seed| run(&Options::small(seed)).digest)
        .collect();
    assert_eq!(digests.len(), 12);
}

#[test]
fn a_run_does_not_depend_on_the_runs_before_it_or_on_its_thread() {
    let alone = run(&Options::small(3));
    let other = std::thread::spawn(|| run(&Options::small(3)));
    assert_eq!(other.join().unwrap(), alone);
}
