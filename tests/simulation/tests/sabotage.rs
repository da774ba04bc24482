//! The simulation is itself tested: each known bug is put back and must be caught, by the promise it
//! breaks, within its number of seeds. Bugs in the crates themselves need the feature:
//! `cargo test -p kvferry-simulation --features sabotage`.

use kvferry_simulation::{
    Options, run,
    sabotage::{self, Sabotage},
    shrink,
};

fn caught(bug: Sabotage) -> bool {
    (0..bug.within_seeds).any(|seed| {
        let options = Options {
            sabotage: Some(bug),
            ..Options::small(seed)
        };
        let Some(violation) = run(&options).violation else {
            return false;
        };
        let (name, promise) = (bug.name, violation.promise);
        assert!(
            bug.breaks.is_empty() || bug.breaks.contains(&promise),
            "{name} (seed {seed}) breaks {violation}"
        );
        true
    })
}

#[test]
fn every_known_bug_is_caught() {
    for bug in sabotage::all() {
        assert!(
            caught(bug),
            "{} was not caught in {} seeds",
            bug.name,
            bug.within_seeds
        );
    }
}

#[test]
fn a_failing_schedule_is_cut_down() {
    let bug = Sabotage::named("expectation-ignored").unwrap();
    let failing = (0..bug.within_seeds).find_map(|seed| {
        let options = Options {
            sabotage: Some(bug),
            ..Options::small(seed)
        };
        let report = run(&options);
        report.violation.is_some().then_some((options, report))
    });
    let (options, report) = failing.unwrap();
    let (left, smallest) = shrink(&options, &report);
    assert!(
        left.len() <= 3,
        "{left:?} of {} faults are left",
        report.faults
    );
    let promise = |violation: &Option<kvferry_simulation::Violation>| {
        violation.as_ref().map(|violation| violation.promise)
    };
    assert_eq!(promise(&smallest.violation), promise(&report.violation));
}
