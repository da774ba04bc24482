//! Every promise, over hundreds of seeds: faults first, then quiet, then everything must be in order.

use std::thread;

use kvferry_simulation::{Options, Stats, run};

/// Seeds of one test run: bounded to fit the five minutes of processor time that it has, unoptimised.
const SEEDS: u64 = 300;
/// As many as there are cores to spare.
const THREADS: u64 = 2;

#[test]
fn every_promise_holds_over_hundreds_of_seeds() {
    let parts: Vec<_> = (0..THREADS)
        .map(|part| {
            thread::spawn(move || {
                let mut sum = Stats::default();
                for seed in (part..SEEDS).step_by(THREADS as usize) {
                    let options = Options::small(seed);
                    let report = run(&options);
                    if let Some(violation) = report.violation {
                        panic!(
                            "{violation}\nrepeat and shrink it: cargo run -p kvferry-simulation -- --seed {seed}"
                        );
                    }
                    sum.add(report.stats);
                }
                sum
            })
        })
        .collect();
    let mut sum = Stats::default();
    for part in parts {
        sum.add(part.join().unwrap());
    }
    println!("{SEEDS} seeds: {sum}");
    // What did not happen was not tested.
    let often = [
        ("reads checked", sum.reads_checked),
        ("pins checked", sum.pins_checked),
        ("stale", sum.stale),
        ("timed out", sum.timed_out),
        ("unsettled", sum.unsettled),
        ("unreachable", sum.unreachable),
        ("gaps", sum.gaps),
        ("resyncs", sum.resyncs),
        ("removals", sum.removals),
        ("superseded", sum.superseded),
        ("fenced heard", sum.fenced_heard),
        ("watches gone on with", sum.watches_resumed),
        ("watches begun anew", sum.watches_anew),
        ("watchers behind", sum.watchers_behind),
        ("messages to watchers", sum.watch_messages),
        ("locations asked for", sum.locations_asked),
        ("surplus copies", sum.surplus),
        ("copies made", sum.copies_made),
        ("suspects that answered", sum.hellos_answered),
        ("sets announced", sum.sets_said),
        ("claims not answered", sum.claims_unanswered),
        ("tensors brought", sum.tensors_checked),
        ("chunks gone on with", sum.chunks_here_before),
    ];
    for (what, count) in often {
        assert!(count >= 50, "{what}: only {count} in {SEEDS} seeds");
    }
    // Few worlds delete namespaces, and each a few: who is there is all that is tried after it.
    assert!(sum.namespaces_deleted >= 30 && sum.watches_deleted >= 10);
}

#[test]
fn a_world_of_a_thousand_nodes_keeps_them_too() {
    let report = run(&Options {
        nodes: 1_000,
        seconds: 1,
        ..Options::small(7)
    });
    assert_eq!(report.violation, None);
}

/// A seed that a longer run met: a pause within a longer one ended it early, to the checks alone; what waited for its end
/// came later.
#[test]
fn a_pause_within_a_longer_one_does_not_end_it() {
    let report = run(&Options::small(499));
    assert_eq!(report.violation, None);
}

/// Another: the last delta of a session was lost, and no other followed it to show the gap; heartbeats do.
#[test]
fn a_lost_last_delta_is_noticed() {
    let report = run(&Options {
        nodes: 7,
        keep: Some([29, 31].into()),
        ..Options::small(622)
    });
    assert_eq!(report.violation, None);
    assert!(report.stats.lost_deltas > 0, "nothing was lost");
    assert_eq!(run(&Options::small(622)).violation, None);
}

/// Another: a renewal arrived twice, and between the two its node published what was claimed; the first one's answer, on its
/// way by then, was taken for a wrong word.
#[test]
fn a_renewal_that_is_late_for_a_publication_is_no_wrong_word() {
    let report = run(&Options::small(803));
    assert_eq!(report.violation, None);
}

/// Another: a namespace was deleted while a router that stood still watched it, and was there again; the changes of both were
/// kept, twice what a coordinator may keep.
#[test]
fn of_a_deleted_namespace_no_changes_are_kept() {
    let report = run(&Options {
        nodes: 7,
        keep: Some([13, 14, 17, 25].into()),
        ..Options::small(2661)
    });
    assert_eq!(report.violation, None);
}

/// Another: a node that has a block in a region that was deleted by force, and is asked to copy it into the one that its
/// engine registered anew, has it.
#[test]
fn what_is_in_a_deleted_region_is_copied_no_second_time() {
    let report = run(&Options::small(586));
    assert_eq!(report.violation, None);
}
