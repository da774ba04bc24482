//! Owners that do not have it, do not answer, or lie.

use super::*;
use crate::transfer::{ConnectFailure, ReadFailure};

#[test]
fn a_block_without_candidates_is_missing_and_reserves_nothing() {
    let mut bench = Bench::new(2);
    bench.commands();
    assert_eq!(
        bench.on([located(0, vec![vec![], vec![at(A, 1)]])]),
        [
            finish(0, Outcome::Missing, None),
            Command::Prepare { blocks: vec![1] }
        ]
    );
}

#[test]
fn an_outage_is_never_a_miss() {
    let mut bench = Bench::new(1);
    bench.commands();
    let failed = |op, retryable| Event::LocateFailed {
        op: OpId(op),
        retryable,
    };
    let ask = |op| Command::Locate {
        op: OpId(op),
        blocks: vec![0],
    };
    assert_eq!(bench.on([failed(0, true)]), []);
    assert_eq!(bench.timeout(ms(10)), [ask(1)]);
    assert_eq!(bench.on([failed(1, true)]), []);
    // Twice as long each time.
    assert_eq!(bench.timeout(ms(30)), [ask(2)]);
    assert_eq!(
        bench.on([failed(2, false)]),
        [finish(0, Outcome::LocateFailed, None)]
    );
}

#[test]
fn an_outage_until_the_deadline_is_an_outage() {
    let mut bench = Bench::new(1);
    bench.commands();
    bench.on([Event::LocateFailed {
        op: OpId(0),
        retryable: true,
    }]);
    bench.timeout(ms(10));
    // The second question is never answered.
    assert_eq!(
        bench.timeout(ms(9_950)),
        [finish(0, Outcome::LocateFailed, None)]
    );
    assert!(bench.engine.is_drained());
}

#[test]
fn blocks_beyond_a_short_answer_are_asked_for_again() {
    let mut bench = Bench::new(2);
    bench.commands();
    assert_eq!(
        bench.on([located(0, vec![vec![]])]),
        [finish(0, Outcome::Missing, None)]
    );
    assert_eq!(
        bench.timeout(ms(10)),
        [Command::Locate {
            op: OpId(1),
            blocks: vec![1]
        }]
    );
}

#[test]
fn no_space_is_said_as_such() {
    let mut bench = Bench::new(1);
    bench.commands();
    bench.on([located(0, vec![vec![at(A, 0)]])]);
    assert_eq!(
        bench.on([Event::NoSpace { block: 0 }]),
        [finish(0, Outcome::NoSpace, None)]
    );
}

#[test]
fn a_stale_block_goes_to_its_next_candidate() {
    for word in [3, 4, 1, 0] {
        let mut bench = Bench::new(1);
        bench.connected(vec![vec![at(A, 0), at(B, 0)]], &[A]);
        bench.on([done(1)]);
        assert_eq!(
            bench.on([words(2, &[word])]),
            [Command::Connect { source: B }]
        );
        assert_eq!(bench.on([connected(B)]), [read(3, B, &[0])]);
        bench.on([done(3)]);
        bench.on([words(4, &[2])]);
        assert_eq!(
            bench.on([Event::Landed { block: 0 }]),
            [finish(0, Outcome::Pulled, Some(B))]
        );
    }
}

#[test]
fn a_block_stale_everywhere_is_located_again_and_the_same_hint_is_not_read_again() {
    let mut bench = Bench::new(1);
    bench.connected(vec![vec![at(A, 0)]], &[A]);
    bench.on([done(1)]);
    assert_eq!(bench.on([words(2, &[4])]), []);
    assert_eq!(
        bench.timeout(ms(20)),
        [Command::Locate {
            op: OpId(3),
            blocks: vec![0]
        }]
    );
    assert_eq!(bench.on([located(3, vec![vec![at(A, 0)]])]), []);
    bench.timeout(ms(40));
    // The third answer knows better; the destination is still there.
    let newer = Candidate {
        generation: Generation(4),
        ..at(A, 0)
    };
    assert_eq!(
        bench.on([located(4, vec![vec![newer]])]),
        [read(5, A, &[0])]
    );
    bench.on([done(5)]);
    // Enough is enough.
    assert_eq!(
        bench.on([words(6, &[6])]),
        [
            Command::Abandon { block: 0 },
            finish(0, Outcome::Stale, Some(A))
        ]
    );
    assert!(bench.engine.is_drained());
}

#[test]
fn a_hint_that_is_odd_or_lacks_the_checksum_asked_for_is_not_read() {
    let mut bench = Bench::new(2);
    bench.engine.must_verify = [1].into();
    bench.commands();
    let odd = Candidate {
        generation: Generation(3),
        ..at(A, 0)
    };
    assert_eq!(bench.on([located(0, vec![vec![odd], vec![at(A, 1)]])]), []);
    bench.engine.config.relocates = 1;
    bench.timeout(ms(20));
    assert_eq!(
        bench.on([located(1, vec![vec![odd], vec![at(A, 1)]])]),
        [
            finish(0, Outcome::Stale, Some(A)),
            finish(1, Outcome::Stale, Some(A))
        ]
    );
}

#[test]
fn a_region_that_is_gone_is_a_stale_hint_for_all_of_it() {
    let config = TransferConfig {
        op_blocks: 1,
        inflight_bytes: 0,
        ..TransferConfig::default()
    };
    let mut bench = Bench::with(3, config, 64 * KIB);
    bench.connected(
        vec![
            vec![at(A, 0), at(B, 0)],
            vec![at(A, 1), at(B, 1)],
            vec![at(A, 2)],
        ],
        &[A],
    );
    // Block 2 has nobody else and waits for another locate; the link to A is not to blame.
    assert_eq!(
        bench.on([failed(1, ReadFailure::RegionGone)]),
        [Command::Connect { source: B }]
    );
    assert_eq!(bench.engine.waiting.len(), 0);
    assert_eq!(bench.state(2), Some(State::Locating));
    assert!(!bench.engine.sources[&A].troubled);
}

impl Bench {
    fn state(&self, block: u32) -> Option<State> {
        self.engine.state(block)
    }
}

#[test]
fn a_refused_span_is_found_by_trying_one_by_one() {
    let mut bench = Bench::new(2);
    bench.connected(vec![vec![at(A, 0)], vec![at(A, 1), at(B, 1)]], &[A]);
    assert_eq!(
        bench.on([failed(1, ReadFailure::SpanRefused)]),
        [read(2, A, &[0]), read(3, A, &[1])]
    );
    assert_eq!(
        bench.on([done(2), failed(3, ReadFailure::SpanRefused)]),
        [generations(4, A, &[0]), Command::Connect { source: B }]
    );
}

#[test]
fn what_there_is_no_way_to_is_no_stale_block_and_the_others_of_its_owner_are_read() {
    let mut bench = Bench::new(2);
    bench.connected(vec![vec![at(A, 0)], vec![at(A, 1)]], &[A]);
    assert_eq!(
        bench.on([failed(1, ReadFailure::NoPath)]),
        [read(2, A, &[0]), read(3, A, &[1])]
    );
    assert_eq!(
        bench.on([done(2), failed(3, ReadFailure::NoPath)]),
        [generations(4, A, &[0])]
    );
    assert_eq!(bench.engine.failed[Failure::Unreachable as usize], 1);
    assert_eq!(bench.engine.failed[Failure::Stale as usize], 0);
}

#[test]
fn a_lost_link_sends_its_blocks_to_other_owners() {
    let mut bench = Bench::new(1);
    bench.connected(vec![vec![at(A, 0), at(B, 0)]], &[A]);
    assert_eq!(
        bench.on([failed(1, ReadFailure::LinkLost)]),
        [Command::Connect { source: B }]
    );
}

#[test]
fn a_lost_link_is_opened_once_more_where_nobody_else_has_the_block() {
    let mut bench = Bench::new(1);
    bench.connected(vec![vec![at(A, 0)]], &[A]);
    assert_eq!(bench.on([failed(1, ReadFailure::LinkLost)]), []);
    bench.timeout(ms(20));
    assert_eq!(
        bench.on([located(2, vec![vec![at(A, 0)]])]),
        [Command::Connect { source: A }]
    );
    assert_eq!(bench.on([connected(A)]), [read(3, A, &[0])]);
    assert_eq!(bench.on([failed(3, ReadFailure::LinkLost)]), []);
    bench.timeout(ms(40));
    assert_eq!(
        bench.on([located(4, vec![vec![at(A, 0)]])]),
        [
            Command::Abandon { block: 0 },
            finish(0, Outcome::Unreachable, Some(A))
        ]
    );
}

#[test]
fn an_owner_that_lets_us_not_in_is_said_to_deny_the_block_whatever_others_answered() {
    let mut bench = Bench::new(1);
    bench.engine.config.relocates = 0;
    bench.connected(vec![vec![at(A, 0), at(B, 0)]], &[A]);
    bench.on([done(1)]);
    assert_eq!(
        bench.on([words(2, &[4])]),
        [Command::Connect { source: B }],
        "stale at A"
    );
    let denied = Event::ConnectFailed {
        source: B,
        failure: ConnectFailure::Denied,
    };
    // And it answered: no suspect.
    assert_eq!(
        bench.on([denied]),
        [
            Command::Abandon { block: 0 },
            finish(0, Outcome::Denied, Some(B))
        ]
    );
    let failed = bench.engine.take_failed();
    assert!(failed.contains(&(Failure::Denied, 1)), "{failed:?}");
}

#[test]
fn a_ticket_refused_in_mid_read_is_denied_when_another_one_is_too() {
    let refused_once = || {
        let mut bench = Bench::new(1);
        bench.connected(vec![vec![at(A, 0)]], &[A]);
        assert_eq!(bench.on([failed(1, ReadFailure::Denied)]), []);
        bench.timeout(ms(20));
        assert_eq!(
            bench.on([located(2, vec![vec![at(A, 0)]])]),
            [Command::Connect { source: A }]
        );
        assert_eq!(bench.on([connected(A)]), [read(3, A, &[0])]);
        bench
    };
    let mut bench = refused_once();
    assert_eq!(bench.on([failed(3, ReadFailure::Denied)]), []);
    bench.timeout(ms(40));
    assert_eq!(
        bench.on([located(4, vec![vec![at(A, 0)]])]),
        [
            Command::Abandon { block: 0 },
            finish(0, Outcome::Denied, Some(A))
        ]
    );
    // Let in with the second ticket: what is found then is what is said.
    let mut bench = refused_once();
    bench.engine.config.relocates = 0;
    bench.on([done(3)]);
    assert_eq!(
        bench.on([words(4, &[4])]),
        [
            Command::Abandon { block: 0 },
            finish(0, Outcome::Stale, Some(A))
        ]
    );
}

#[test]
fn a_refused_ticket_is_the_reason_also_of_reads_that_ended_before_it() {
    let mut bench = Bench::new(2);
    bench.engine.config.connects = 1;
    bench.engine.config.relocates = 1;
    let elsewhere = Candidate {
        region: RegionId(2),
        ..at(A, 1)
    };
    let both = || vec![vec![at(A, 0)], vec![elsewhere]];
    bench.connected(both(), &[A]);
    bench.on([
        failed(1, ReadFailure::LinkLost),
        failed(2, ReadFailure::Denied),
    ]);
    bench.timeout(ms(20));
    let finished = bench.on([located(3, both())]);
    for block in 0..2 {
        let expected = finish(block, Outcome::Denied, Some(A));
        assert!(finished.contains(&expected), "{finished:?}");
    }
}

#[test]
fn a_restarted_owner_makes_its_hints_stale() {
    let mut bench = Bench::new(1);
    bench.prepared(vec![vec![at(A, 0)]]);
    let refused = |failure| Event::ConnectFailed { source: A, failure };
    assert_eq!(bench.on([refused(ConnectFailure::WrongIncarnation)]), []);
    bench.engine.config.relocates = 1;
    bench.timeout(ms(20));
    assert_eq!(
        bench.on([located(1, vec![vec![]])]),
        [
            Command::Abandon { block: 0 },
            finish(0, Outcome::Stale, Some(A))
        ]
    );
}

#[test]
fn an_owner_that_cannot_be_reached_is_remembered() {
    let mut bench = Bench::new(1);
    bench.prepared(vec![vec![at(A, 0), at(B, 0)]]);
    assert_eq!(
        bench.on([Event::ConnectFailed {
            source: A,
            failure: ConnectFailure::Unreachable
        }]),
        [
            Command::Suspect { source: A },
            Command::Connect { source: B }
        ]
    );
}

#[test]
fn corrupt_bytes_are_tried_elsewhere_and_then_said_to_be_corrupt() {
    let mut bench = Bench::new(1);
    bench.engine.config.relocates = 0;
    bench.connected(vec![vec![summed(A, 0), summed(B, 0)]], &[A]);
    bench.on([done(1)]);
    bench.on([words(2, &[2])]);
    let wrong = Event::Verified {
        block: 0,
        ok: false,
    };
    assert_eq!(bench.on([wrong.clone()]), [Command::Connect { source: B }]);
    bench.on([connected(B)]);
    bench.on([done(3)]);
    // Stale at the second owner; the corrupt bytes are the more telling.
    assert_eq!(
        bench.on([words(4, &[4])]),
        [
            Command::Abandon { block: 0 },
            finish(0, Outcome::Corrupt, Some(B))
        ]
    );
    assert_eq!(bench.on([wrong]), []);
}

fn connected_unvouched(source: SourceKey) -> Event {
    Event::Connected {
        source,
        capabilities: Capabilities {
            needs_checksum: true,
            ..link()
        },
    }
}

#[test]
fn over_a_path_that_does_not_vouch_only_blocks_with_a_checksum_are_read() {
    let mut bench = Bench::new(2);
    bench.prepared(vec![vec![at(A, 0), at(B, 0)], vec![summed(A, 1)]]);
    assert_eq!(
        bench.on([connected_unvouched(A)]),
        [Command::Connect { source: B }, read(1, A, &[1])]
    );
    assert_eq!(bench.on([connected(B)]), [read(2, B, &[0])]);
}

#[test]
fn nobody_reads_a_block_without_a_checksum_over_a_path_that_does_not_vouch() {
    let mut bench = Bench::new(1);
    bench.engine.config.relocates = 0;
    bench.prepared(vec![vec![at(A, 0)]]);
    assert_eq!(
        bench.on([connected_unvouched(A)]),
        [
            Command::Abandon { block: 0 },
            finish(0, Outcome::Unreachable, Some(A))
        ]
    );
}

#[test]
fn wrong_bytes_over_a_path_that_does_not_vouch_are_read_another_way_in_the_same_pull() {
    let mut bench = Bench::new(1);
    bench.prepared(vec![vec![summed(A, 0)]]);
    bench.on([connected_unvouched(A)]);
    bench.on([done(1)]);
    bench.on([words(2, &[2])]);
    let verified = |ok| Event::Verified { block: 0, ok };
    assert_eq!(
        bench.on([verified(false)]),
        [Command::Distrust { source: A }]
    );
    bench.timeout(ms(20));
    // The same owner, by another link.
    assert_eq!(
        bench.on([located(3, vec![vec![summed(A, 0)]])]),
        [Command::Connect { source: A }]
    );
    assert_eq!(bench.on([connected(A)]), [read(4, A, &[0])]);
    bench.on([done(4)]);
    bench.on([words(5, &[2])]);
    let checksum = summed(A, 0).checksum;
    assert_eq!(
        bench.on([verified(true)]),
        [Command::Land { block: 0, checksum }]
    );
}

#[test]
fn wrong_bytes_over_a_path_that_vouches_are_the_owners() {
    let mut bench = Bench::new(1);
    bench.engine.config.relocates = 0;
    bench.connected(vec![vec![summed(A, 0)]], &[A]);
    bench.on([done(1)]);
    bench.on([words(2, &[2])]);
    assert_eq!(
        bench.on([Event::Verified {
            block: 0,
            ok: false
        }]),
        [
            Command::Abandon { block: 0 },
            finish(0, Outcome::Corrupt, Some(A))
        ]
    );
}

#[test]
fn a_destination_that_fails_is_given_back() {
    let mut bench = Bench::new(1);
    bench.connected(vec![vec![at(A, 0), at(B, 0)]], &[A]);
    assert_eq!(
        bench.on([failed(1, ReadFailure::Local)]),
        [
            Command::Abandon { block: 0 },
            finish(0, Outcome::DestinationFailed, None)
        ]
    );
    let mut bench = Bench::new(1);
    bench.connected(vec![vec![at(A, 0)]], &[A]);
    bench.on([done(1)]);
    bench.on([words(2, &[2])]);
    assert_eq!(
        bench.on([Event::LandFailed { block: 0 }]),
        [
            Command::Abandon { block: 0 },
            finish(0, Outcome::DestinationFailed, None)
        ]
    );
}

#[test]
fn late_duplicate_and_foreign_events_change_nothing() {
    let mut bench = Bench::new(1);
    bench.connected(vec![vec![at(A, 0)]], &[A]);
    let nonsense = || {
        [
            done(77),
            words(1, &[2]),
            failed(77, ReadFailure::LinkLost),
            located(0, vec![vec![at(B, 0)]]),
            connected(A),
            connected(SourceKey(u32::MAX)),
            Event::Prepared { block: 0 },
            Event::NoSpace { block: u32::MAX },
            Event::Verified { block: 0, ok: true },
            Event::Landed { block: 0 },
            Event::LandFailed { block: 9 },
        ]
    };
    assert_eq!(bench.on(nonsense()), []);
    assert_eq!(bench.on([done(1)]), [generations(2, A, &[0])]);
    assert_eq!(bench.on([done(1), done(2)]), []);
    assert_eq!(bench.on(nonsense()), []);
    // Fewer words than slots: what has none is not validated.
    assert_eq!(bench.on([words(2, &[])]), []);
    assert_eq!(bench.state(0), Some(State::Locating));
}
