//! Several owners at once.

use super::*;

/// One block a read, one read at a time per source.
fn narrow(source: SourceKey, distance: u8) -> Event {
    Event::Connected {
        source,
        capabilities: Capabilities {
            window_bytes: 64 * KIB,
            distance,
            ..link()
        },
    }
}

fn both(blocks: u32) -> Vec<Vec<Candidate>> {
    (0..blocks).map(|n| vec![at(A, n), at(B, n)]).collect()
}

fn striped(stripe_bytes: u64) -> TransferConfig {
    TransferConfig {
        stripe_bytes,
        ..TransferConfig::default()
    }
}

#[test]
fn blocks_are_spread_in_stripes_over_equal_owners() {
    let mut bench = Bench::with(8, striped(128 * KIB), 64 * KIB);
    assert_eq!(
        bench.connected(both(8), &[A, B]),
        [read(1, A, &[0, 1, 4, 5]), read(2, B, &[2, 3, 6, 7])]
    );
}

#[test]
fn nearer_and_trusted_owners_come_first() {
    for (hint, first) in [((true, 0), A), ((false, 2), A), ((false, 0), B)] {
        let mut bench = Bench::with(4, striped(64 * KIB), 64 * KIB);
        bench.commands();
        let hints = [(A, (false, 1)), (B, hint)]
            .map(|(source, (suspect, distance))| SourceHint {
                source,
                suspect,
                distance,
            })
            .to_vec();
        bench.on([Event::Located {
            op: OpId(0),
            hints,
            candidates: both(4).into_iter().map(Into::into).collect(),
        }]);
        assert_eq!(
            bench.on((0..4).map(|block| Event::Prepared { block })),
            [Command::Connect { source: first }]
        );
    }
}

#[test]
fn an_idle_source_takes_what_another_has_not_begun() {
    let mut bench = Bench::with(4, striped(64 * KIB), 64 * KIB);
    bench.prepared(both(4));
    // B answers first and takes everything that A cannot begin.
    assert_eq!(bench.on([narrow(B, 1)]), [read(1, B, &[1])]);
    assert_eq!(
        bench.on([done(1)]),
        [generations(2, B, &[1]), read(3, B, &[3])]
    );
    assert_eq!(bench.on([done(3)]), [read(4, B, &[0])]);
    assert_eq!(bench.on([narrow(A, 1)]), [read(5, A, &[2])]);
    assert_eq!(bench.on([done(4)]), []);
}

#[test]
fn a_farther_source_does_not_relieve_a_nearer_one() {
    let mut bench = Bench::with(4, striped(64 * KIB), 64 * KIB);
    bench.prepared(both(4));
    assert_eq!(
        bench.on([narrow(A, 0), narrow(B, 1)]),
        [read(1, A, &[0]), read(2, B, &[1])]
    );
    bench.on([done(2)]);
    // Block 3 was its own; 2 stays with the nearer.
    assert_eq!(bench.on([done(4)]), []);
    assert!(bench.engine.sources[&A].queue.iter().eq([2]));
}

#[test]
fn only_so_many_sources_are_used_at_once() {
    let config = TransferConfig {
        max_sources: 1,
        ..striped(1)
    };
    let mut bench = Bench::with(2, config, 64 * KIB);
    bench.prepared(vec![vec![at(A, 0)], vec![at(B, 1)]]);
    bench.on([connected(A)]);
    bench.on([done(1)]);
    // The place is free when the last answer of A is there.
    assert_eq!(
        bench.on([words(2, &[2])]),
        [land(0), Command::Connect { source: B }]
    );
}

#[test]
fn all_sources_together_keep_to_the_pulls_bound() {
    let config = TransferConfig {
        inflight_bytes: 128 * KIB,
        op_blocks: 1,
        ..striped(64 * KIB)
    };
    let mut bench = Bench::with(4, config, 64 * KIB);
    assert_eq!(
        bench.connected(both(4), &[A, B]),
        [read(1, A, &[0]), read(2, B, &[1])]
    );
    assert_eq!(
        bench.on([done(1)]),
        [generations(3, A, &[0]), read(4, A, &[2])]
    );
}
