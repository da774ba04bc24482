//! Single blocks that nobody wants any more.

use super::*;
use crate::transfer::ReadFailure;

const GONE: Outcome = Outcome::Cancelled { settled: true };

fn give_up(block: u32) -> Event {
    Event::GiveUp { block }
}

#[test]
fn before_it_was_located_and_while_it_is() {
    let mut bench = Bench::new(3);
    bench.commands();
    assert_eq!(bench.on([give_up(1)]), [finish(1, GONE, None)]);
    // The answer comes for all three.
    let answer = located(0, (0..3).map(|block| vec![at(A, block)]).collect());
    assert_eq!(
        bench.on([answer]),
        [Command::Prepare { blocks: vec![0, 2] }]
    );
    // What is being prepared has a destination soon.
    assert_eq!(bench.on([give_up(0)]), []);
    assert_eq!(
        bench.on([Event::Prepared { block: 0 }]),
        [Command::Abandon { block: 0 }, finish(0, GONE, None)]
    );
    // Twice, and what is not there: nothing.
    assert_eq!(bench.on([give_up(0), give_up(7)]), []);
}

#[test]
fn an_outage_asks_for_it_no_more() {
    let mut bench = Bench::new(2);
    bench.commands();
    bench.on([give_up(0)]);
    bench.on([Event::LocateFailed {
        op: OpId(0),
        retryable: true,
    }]);
    let ask = Command::Locate {
        op: OpId(1),
        blocks: vec![1],
    };
    assert_eq!(bench.timeout(ms(10)), [ask]);
    assert_eq!(bench.on([give_up(1)]), [finish(1, GONE, None)]);
    bench.on([located(1, vec![vec![at(A, 1)]])]);
    assert!(bench.engine.is_drained());
}

#[test]
fn in_a_queue_at_once_and_while_it_is_read_when_that_has_settled() {
    let config = TransferConfig {
        op_blocks: 2,
        inflight_bytes: 2 * 64 * KIB,
        ..TransferConfig::default()
    };
    let mut bench = Bench::with(4, config, 64 * KIB);
    let candidates = (0..4).map(|block| vec![at(A, block)]).collect();
    assert_eq!(bench.connected(candidates, &[A]), [read(1, A, &[0, 1])]);
    // Block 2 waits in the queue; block 0 is being read together with block 1, whose read goes on.
    assert_eq!(
        bench.on([give_up(2), give_up(0)]),
        [Command::Abandon { block: 2 }, finish(2, GONE, None)]
    );
    assert_eq!(
        bench.on([done(1)]),
        [
            Command::Abandon { block: 0 },
            finish(0, GONE, None),
            generations(2, A, &[1]),
            read(3, A, &[3])
        ]
    );
    // While its word is read, and when a read fails in which it is not alone.
    assert_eq!(bench.on([give_up(1)]), []);
    assert_eq!(
        bench.on([words(2, &[2])]),
        [Command::Abandon { block: 1 }, finish(1, GONE, None)]
    );
    bench.on([give_up(3)]);
    let gone = bench.on([failed(3, ReadFailure::SpanRefused)]);
    assert!(gone.contains(&finish(3, GONE, Some(A))), "{gone:?}");
    assert!(bench.engine.is_drained());
}

#[test]
fn one_of_a_refused_read_is_not_read_again() {
    let mut bench = Bench::new(2);
    let candidates = (0..2).map(|block| vec![at(A, block)]).collect();
    assert_eq!(bench.connected(candidates, &[A]), [read(1, A, &[0, 1])]);
    bench.on([give_up(0)]);
    assert_eq!(
        bench.on([failed(1, ReadFailure::SpanRefused)]),
        [
            Command::Abandon { block: 0 },
            finish(0, GONE, None),
            read(2, A, &[1])
        ]
    );
}
