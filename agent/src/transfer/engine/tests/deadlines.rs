//! Stalls, the deadline, and callers that give up.

use super::*;
use crate::transfer::ReadFailure;

fn cancel(op: u64) -> Command {
    Command::Cancel { op: OpId(op) }
}

#[test]
fn a_source_that_stands_still_is_left_when_its_reads_have_settled() {
    let mut bench = Bench::new(1);
    bench.connected(vec![vec![at(A, 0), at(B, 0)]], &[A]);
    assert_eq!(
        bench.timeout(ms(2_000)),
        [Command::Suspect { source: A }, cancel(1)]
    );
    // Not before: the destination is still the old read's.
    bench.now += ms(5);
    assert_eq!(
        bench.on([failed(1, ReadFailure::Cancelled)]),
        [Command::Connect { source: B }]
    );
}

#[test]
fn queued_blocks_leave_a_stalled_source_at_once() {
    let config = TransferConfig {
        op_blocks: 1,
        inflight_bytes: 0,
        stripe_bytes: u64::MAX,
        ..TransferConfig::default()
    };
    let mut bench = Bench::with(2, config, 64 * KIB);
    bench.connected(
        vec![vec![at(A, 0), at(B, 0)], vec![at(A, 1), at(B, 1)]],
        &[A],
    );
    assert_eq!(
        bench.timeout(ms(2_000)),
        [
            Command::Suspect { source: A },
            cancel(1),
            Command::Connect { source: B }
        ]
    );
}

#[test]
fn bytes_that_arrive_are_progress() {
    let mut bench = Bench::new(1);
    bench.connected(vec![vec![at(A, 0)]], &[A]);
    let progress = |received_bytes| Event::Progress {
        source: A,
        received_bytes,
    };
    bench.now += ms(1_500);
    assert_eq!(bench.on([progress(1)]), []);
    assert_eq!(bench.engine.poll_timeout(), Some(bench.now + ms(2_000)));
    bench.now += ms(1_000);
    // The same count is none.
    assert_eq!(bench.on([progress(1)]), []);
    assert_eq!(bench.engine.poll_timeout(), Some(bench.now + ms(1_000)));
}

#[test]
fn a_connect_that_takes_too_long_is_not_waited_for_but_still_of_use() {
    let mut bench = Bench::new(1);
    bench.prepared(vec![vec![at(A, 0)]]);
    assert_eq!(bench.timeout(ms(2_000)), [Command::Suspect { source: A }]);
    bench.timeout(ms(2_020));
    assert_eq!(bench.on([located(1, vec![vec![at(A, 0)]])]), []);
    assert_eq!(bench.on([connected(A)]), [read(2, A, &[0])]);
}

#[test]
fn before_the_deadline_reads_are_cancelled_and_blocks_end_as_they_settle() {
    let mut bench = Bench::new(3);
    bench.engine.config.op_blocks = 1;
    bench.engine.config.stall_bound = ms(60_000);
    bench.connected(vec![vec![at(A, 0)], vec![at(A, 1)], vec![at(A, 2)]], &[A]);
    assert_eq!(bench.timeout(ms(9_950)), [cancel(1), cancel(2), cancel(3)]);
    // Its data came all the same; there is no time for its generation.
    assert_eq!(
        bench.on([done(1)]),
        [
            Command::Abandon { block: 0 },
            finish(0, Outcome::TimedOut { settled: true }, None)
        ]
    );
    assert_eq!(
        bench.on([failed(3, ReadFailure::Cancelled)]),
        [
            Command::Abandon { block: 2 },
            finish(2, Outcome::TimedOut { settled: true }, Some(A))
        ]
    );
    assert_eq!(
        bench.timeout(ms(10_000)),
        [finish(1, Outcome::TimedOut { settled: false }, None)]
    );
    // The destination outlives the call.
    assert!(bench.engine.is_finished() && !bench.engine.is_drained());
    assert_eq!(bench.engine.poll_timeout(), None);
    bench.now += ms(60_000);
    assert_eq!(bench.on([done(2)]), [Command::Abandon { block: 1 }]);
    assert!(bench.engine.is_drained());
}

#[test]
fn blocks_that_are_validated_by_then_may_still_land() {
    let mut bench = Bench::new(1);
    bench.engine.config.stall_bound = ms(60_000);
    bench.connected(vec![vec![at(A, 0)]], &[A]);
    bench.on([done(1)]);
    assert_eq!(bench.timeout(ms(9_950)), [cancel(2)]);
    assert_eq!(bench.on([words(2, &[2])]), [land(0)]);
    assert_eq!(
        bench.on([Event::Landed { block: 0 }]),
        [finish(0, Outcome::Pulled, Some(A))]
    );
}

#[test]
fn what_is_validated_after_the_deadline_is_given_back() {
    let mut bench = Bench::new(1);
    bench.engine.config.stall_bound = ms(60_000);
    bench.connected(vec![vec![at(A, 0)]], &[A]);
    bench.on([done(1)]);
    bench.timeout(ms(9_950));
    bench.timeout(ms(10_000));
    assert_eq!(bench.on([words(2, &[2])]), [Command::Abandon { block: 0 }]);
}

#[test]
fn an_event_that_comes_late_finds_the_deadline_passed() {
    let mut bench = Bench::new(1);
    bench.connected(vec![vec![at(A, 0)]], &[A]);
    bench.now += ms(20_000);
    assert_eq!(
        bench.on([done(1)]),
        [
            cancel(1),
            finish(0, Outcome::TimedOut { settled: false }, None),
            Command::Abandon { block: 0 },
        ]
    );
    assert!(bench.engine.is_drained());
}

#[test]
fn short_timeouts_keep_a_tenth_to_settle() {
    let config = TransferConfig::default();
    assert_eq!(config.margin(ms(100)), ms(10));
    assert_eq!(config.margin(ms(10_000)), ms(50));
}

#[test]
fn a_caller_that_gives_up_gets_its_outcomes_as_reads_settle() {
    let config = TransferConfig {
        op_blocks: 1,
        inflight_bytes: 0,
        ..TransferConfig::default()
    };
    let mut bench = Bench::with(2, config, 64 * KIB);
    bench.connected(vec![vec![at(A, 0)], vec![at(A, 1)]], &[A]);
    assert_eq!(
        bench.on([Event::Cancel]),
        [
            cancel(1),
            Command::Abandon { block: 1 },
            finish(1, Outcome::Cancelled { settled: true }, None)
        ]
    );
    assert_eq!(bench.on([Event::Cancel]), []);
    // It waits as long as it would at a deadline.
    assert_eq!(
        bench.timeout(ms(50)),
        [finish(0, Outcome::Cancelled { settled: false }, None)]
    );
    assert_eq!(
        bench.on([failed(1, ReadFailure::Cancelled)]),
        [Command::Abandon { block: 0 }]
    );
    assert!(bench.engine.is_drained());
}

#[test]
fn a_destination_that_comes_after_the_end_is_given_back() {
    let mut bench = Bench::new(1);
    bench.commands();
    bench.on([located(0, vec![vec![at(A, 0)]])]);
    bench.on([Event::Cancel]);
    assert_eq!(
        bench.on([Event::Prepared { block: 0 }]),
        [
            Command::Abandon { block: 0 },
            finish(0, Outcome::Cancelled { settled: true }, None)
        ]
    );
}
