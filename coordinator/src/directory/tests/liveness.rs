//! Who speaks for a node, and for how long it is believed.

use super::*;

#[test]
fn a_new_incarnation_voids_the_old_at_once() {
    let mut directory = directory();
    join(&mut directory, 1, "a", &[(0, 7, 2)]);
    assert_eq!(
        directory.handle(at(5), hello_from(2, "a", 2, 0, 1, 1)),
        [
            closed(
                1,
                CloseCause::Fenced {
                    node: node("a"),
                    incarnation: incarnation(1),
                    by: incarnation(2),
                }
            ),
            removed("a", 1, RemovalCause::Fenced),
            welcome(2, 1, true),
        ]
    );
    assert_eq!(find(&directory, &[7]), [[""; 0]]);
    // Late messages of the old one, its end included.
    assert_eq!(
        directory.handle(at(6), change_delta(1, 2, &[], &[(1, 8, 2)])),
        []
    );
    assert_eq!(
        directory.handle(
            at(6),
            Event::Goodbye {
                session: SessionId(1)
            }
        ),
        []
    );
    assert_eq!(
        directory.handle(
            at(6),
            Event::SessionEnded {
                session: SessionId(1)
            }
        ),
        []
    );
    let info = directory.node(at(6), &node("a")).unwrap();
    assert_eq!(info.incarnation, incarnation(2));
    assert_eq!(info.blocks, 0);
}

#[test]
fn an_older_incarnation_waits_until_the_newer_is_purged() {
    let mut directory = directory();
    directory.handle(at(0), hello(1, "a", 5));
    let refused = |session| {
        closed(
            session,
            CloseCause::OldIncarnation {
                node: node("a"),
                known: incarnation(5),
                got: incarnation(4),
            },
        )
    };
    assert_eq!(directory.handle(at(1), hello(2, "a", 4)), [refused(2)]);
    assert_eq!(
        directory.handle(PURGE, Event::Tick),
        [
            closed(
                1,
                CloseCause::Silent {
                    node: node("a"),
                    silent_ms: 30_000,
                }
            ),
            removed("a", 5, RemovalCause::Silent)
        ]
    );
    assert_eq!(
        directory.handle(PURGE, hello(3, "a", 4)),
        [welcome(3, 1, false)]
    );
}

#[test]
fn a_reconnect_replaces_the_stream_and_keeps_the_state() {
    let mut directory = directory();
    join(&mut directory, 1, "a", &[(0, 7, 2)]);
    assert_eq!(
        directory.handle(at(5), hello_from(2, "a", 1, EPOCH, 1, 5)),
        [
            closed(
                1,
                CloseCause::Replaced {
                    node: node("a"),
                    incarnation: incarnation(1),
                }
            ),
            welcome(2, 2, false),
        ]
    );
    assert_eq!(
        directory.handle(at(6), change_delta(1, 2, &[0], &[])),
        [],
        "the replaced stream changes nothing"
    );
    assert_eq!(find(&directory, &[7]), [["a/0@2"]]);
    assert_eq!(
        directory.handle(at(6), change_delta(2, 2, &[0], &[])),
        [ack(2, 2)]
    );
}

#[test]
fn what_cannot_be_met_by_deltas_is_resynced() {
    // (epoch, oldest, next) against an expected delta of 2.
    let cases = [
        (EPOCH, 1, 2, false),
        (EPOCH, 2, 9, false),
        (EPOCH, 3, 9, true),
        (EPOCH, 1, 1, true),
        (EPOCH + 1, 1, 2, true),
        (0, 1, 2, true),
    ];
    for (epoch, oldest, next, resync) in cases {
        let mut directory = directory();
        join(&mut directory, 1, "a", &[(0, 7, 2)]);
        directory.handle(
            at(1),
            Event::SessionEnded {
                session: SessionId(1),
            },
        );
        assert_eq!(
            directory.handle(at(2), hello_from(2, "a", 1, epoch, oldest, next)),
            [welcome(2, 2, resync)],
            "{epoch} {oldest} {next}"
        );
        assert_eq!(find(&directory, &[7]), [["a/0@2"]], "kept as a hint");
    }
}

#[test]
fn silence_hides_then_purges_and_a_word_shows_again() {
    let mut directory = directory();
    join(&mut directory, 1, "a", &[(0, 7, 2)]);
    let hidden = Effect::NodeHidden { node: node("a") };
    let beat = |number| Event::Heartbeat {
        session: SessionId(1),
        number,
        next_delta: Some(2),
    };
    assert_eq!(directory.handle(at(2_999), Event::Tick), []);
    assert_eq!(directory.handle(at(3_000), Event::Tick), [hidden]);
    assert_eq!(directory.handle(at(3_100), Event::Tick), []);
    assert_eq!(find(&directory, &[7]), [[""; 0]]);
    let info = directory.node(at(3_100), &node("a")).unwrap();
    assert_eq!((info.state, info.blocks), (NodeState::Hidden, 1));
    assert_eq!(info.silent, at(3_100));
    assert_eq!(
        directory.handle(at(4_000), beat(9)),
        [
            Effect::NodeShown { node: node("a") },
            Effect::HeartbeatAck {
                session: SessionId(1),
                number: 9
            }
        ]
    );
    assert_eq!(find(&directory, &[7]), [["a/0@2"]]);
    directory.handle(at(4_000) + PURGE, Event::Tick);
    assert_empty(&directory);
}

#[test]
fn a_broken_stream_hides_nothing_by_itself() {
    let mut directory = directory();
    join(&mut directory, 1, "a", &[(0, 7, 2)]);
    let ended = Event::SessionEnded {
        session: SessionId(1),
    };
    assert_eq!(directory.handle(at(100), ended), []);
    assert_eq!(directory.handle(at(2_000), Event::Tick), []);
    assert_eq!(find(&directory, &[7]), [["a/0@2"]]);
    directory.handle(at(3_000), Event::Tick);
    assert_eq!(find(&directory, &[7]), [[""; 0]]);
    assert_eq!(
        directory.handle(at(5_000), hello_from(2, "a", 1, EPOCH, 1, 2)),
        [Effect::NodeShown { node: node("a") }, welcome(2, 2, false)]
    );
    assert_eq!(find(&directory, &[7]), [["a/0@2"]]);
    directory.handle(
        at(5_100),
        Event::SessionEnded {
            session: SessionId(2),
        },
    );
    assert_eq!(
        directory.handle(at(5_000) + PURGE, Event::Tick),
        [removed("a", 1, RemovalCause::Silent)]
    );
    assert_empty(&directory);
}

#[test]
fn goodbye_removes_at_once() {
    let mut directory = directory();
    join(&mut directory, 1, "a", &[(0, 7, 2), (3, 9, 4)]);
    assert_eq!(
        directory.handle(
            at(1),
            Event::Goodbye {
                session: SessionId(1)
            }
        ),
        [
            closed(1, CloseCause::Goodbye),
            removed("a", 1, RemovalCause::Goodbye)
        ]
    );
    assert_empty(&directory);
}

#[test]
fn a_second_hello_ends_the_session_and_keeps_the_node() {
    let mut directory = directory();
    join(&mut directory, 1, "a", &[(0, 7, 2)]);
    assert_eq!(
        directory.handle(at(1), hello(1, "b", 1)),
        [closed(1, ProtocolError::SecondHello)]
    );
    assert_eq!(find(&directory, &[7]), [["a/0@2"]]);
}

#[test]
fn the_bound_of_nodes_refuses_new_ones_only() {
    let bounds = Bounds {
        nodes: 1,
        ..Bounds::default()
    };
    let mut directory = directory_of(bounds);
    join(&mut directory, 1, "a", &[(0, 7, 2)]);
    assert_eq!(
        directory.handle(at(1), hello(2, "b", 1)),
        [closed(2, BoundReached::nodes(&bounds))]
    );
    // A new incarnation takes the old one's place.
    assert_eq!(
        directory.handle(at(1), hello(3, "a", 2)).last(),
        Some(&welcome(3, 1, false))
    );
}

/// What goes on copying because of a drain asks this: to go on as if it were drained would count a node that came back
/// among those that keep its blocks.
#[test]
fn a_node_that_went_and_came_back_is_drained_no_more() {
    let mut directory = directory();
    join(&mut directory, 1, "a", &[(0, 7, 2)]);
    directory.drain_node(&node("a"), true).unwrap();
    assert!(directory.is_draining(&node("a")));
    let session = SessionId(1);
    directory.handle(at(5), Event::Goodbye { session });
    assert!(!directory.is_draining(&node("a")), "it is gone");
    directory.handle(at(6), hello_from(2, "a", 2, 0, 1, 1));
    assert!(!directory.is_draining(&node("a")));
}
