//! Blocks that are there.

use super::*;

#[test]
fn a_block_travels_from_locate_to_its_outcome() {
    let mut bench = Bench::new(1);
    assert_eq!(
        bench.connected(vec![vec![at(A, 0)]], &[A]),
        [read(1, A, &[0])]
    );
    assert_eq!(bench.on([done(1)]), [generations(2, A, &[0])]);
    assert_eq!(bench.on([words(2, &[2])]), [land(0)]);
    assert!(!bench.engine.is_finished());
    assert_eq!(
        bench.on([Event::Landed { block: 0 }]),
        [finish(0, Outcome::Pulled, Some(A))]
    );
    assert!(bench.engine.is_finished() && bench.engine.is_drained());
    assert_eq!(bench.engine.poll_timeout(), None);
}

#[test]
fn nothing_to_pull_is_done_at_once() {
    let mut bench = Bench::new(0);
    assert_eq!(bench.commands(), []);
    assert!(bench.engine.is_finished() && bench.engine.is_drained());
}

#[test]
fn a_known_checksum_is_compared_before_the_block_lands() {
    let mut bench = Bench::new(1);
    let checksum = summed(A, 0).checksum;
    bench.connected(vec![vec![summed(A, 0)]], &[A]);
    bench.on([done(1)]);
    assert_eq!(
        bench.on([words(2, &[2])]),
        [Command::Verify {
            block: 0,
            checksum: checksum.unwrap()
        }]
    );
    assert_eq!(
        bench.on([Event::Verified { block: 0, ok: true }]),
        [Command::Land { block: 0, checksum }]
    );
}

#[test]
fn generations_wait_for_their_data_and_are_read_together() {
    let config = TransferConfig {
        op_bytes: 64 * KIB,
        ..TransferConfig::default()
    };
    let mut bench = Bench::with(4, config, 64 * KIB);
    let candidates = (0..4).map(|n| vec![at(A, n)]).collect();
    assert_eq!(
        bench.connected(candidates, &[A]),
        [
            read(1, A, &[0]),
            read(2, A, &[1]),
            read(3, A, &[2]),
            read(4, A, &[3])
        ]
    );
    assert_eq!(bench.on([done(2)]), [generations(5, A, &[1])]);
    // While that is under way the others gather.
    assert_eq!(bench.on([done(1)]), []);
    assert_eq!(bench.on([done(4)]), []);
    assert_eq!(
        bench.on([words(5, &[2])]),
        [land(1), generations(6, A, &[0, 3])]
    );
    // What arrived at the same time is asked for at the same time.
    assert_eq!(bench.on([words(6, &[2, 2]), done(3)]).len(), 3);
}

#[test]
fn reads_are_cut_to_size_and_the_window_is_kept() {
    let config = TransferConfig {
        op_bytes: 128 * KIB,
        ..TransferConfig::default()
    };
    let mut bench = Bench::with(6, config, 64 * KIB);
    let candidates = (0..6).map(|n| vec![at(A, n)]).collect();
    bench.prepared(candidates);
    let narrow = Capabilities {
        window_bytes: 192 * KIB,
        ..link()
    };
    // A quarter of the window is less than a block: one block a read, three in flight.
    assert_eq!(
        bench.on([Event::Connected {
            source: A,
            capabilities: narrow
        }]),
        [read(1, A, &[0]), read(2, A, &[1]), read(3, A, &[2])]
    );
    assert_eq!(
        bench.on([done(1)]),
        [generations(4, A, &[0]), read(5, A, &[3])]
    );
}

#[test]
fn a_block_larger_than_every_window_is_still_read() {
    let mut bench = Bench::with(2, TransferConfig::default(), 512 << 20);
    let candidates = (0..2).map(|n| vec![at(A, n)]).collect();
    assert_eq!(bench.connected(candidates, &[A]), [read(1, A, &[0])]);
    assert_eq!(
        bench.on([done(1)]),
        [generations(2, A, &[0]), read(3, A, &[1])]
    );
}

#[test]
fn one_read_keeps_to_the_links_spans_and_to_one_region() {
    let mut bench = Bench::new(4);
    let mut other = at(A, 3);
    other.region = RegionId(2);
    let wide = |n| Candidate {
        spans: 400,
        ..at(A, n)
    };
    bench.prepared(vec![
        vec![wide(0)],
        vec![wide(1)],
        vec![wide(2)],
        vec![other],
    ]);
    let commands = bench.on([connected(A)]);
    assert_eq!(commands[..2], [read(1, A, &[0, 1]), read(2, A, &[2])]);
    assert!(matches!(&commands[2], Command::Read { slots, .. } if slots[0].region == RegionId(2)));
}
