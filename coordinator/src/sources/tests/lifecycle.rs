//! Initialising, ready, stale, gone: what leads where, and who hears of it.

use super::*;
use crate::sources::{GoneCause as Gone, StaleCause as Stale, WorkerState as State};

const M: (&str, u32) = ("m", 1);

fn id() -> SourceId {
    identity("m", 1).id()
}

fn ready(world: &mut World, name: &str) {
    world.publish(at(0), name, M, 0, Said::Ready).unwrap();
    world.changes();
}

fn change(name: &str, state: State) -> Vec<(u32, String, State)> {
    vec![(0, name.to_owned(), state)]
}

#[test]
fn a_worker_is_initialising_until_it_says_ready() {
    let mut world = World::new();
    world.publish(at(0), "a", M, 0, Said::Initialising).unwrap();
    assert_eq!(world.changes(), change("a", State::Initialising));
    // The light announcement is enough now.
    let worker = announced(id(), 0, 1, &table(4), Said::Ready);
    let answer = world.announce(at(1), "a", vec![worker.clone()]).unwrap();
    assert_eq!(answer, Announcement::default());
    assert_eq!(world.changes(), change("a", State::Ready));
    // Said again, nothing is new.
    world.announce(at(2), "a", vec![worker]).unwrap();
    assert_eq!(world.changes(), []);
    let (_, workers) = world.sources.status(at(3), id()).unwrap();
    assert_eq!(workers[0].in_state, at(2));
}

#[test]
fn what_is_not_known_is_asked_for_and_a_second_replica_needs_no_tensors() {
    let mut world = World::new();
    let worker = announced(id(), 0, 1, &table(4), Said::Ready);
    let answer = world.announce(at(0), "a", vec![worker.clone()]).unwrap();
    assert_eq!(answer.unknown, [0]);
    ready(&mut world, "a");
    let answer = world.announce(at(1), "b", vec![worker]).unwrap();
    assert_eq!(answer.unknown, [0; 0]);
    assert_eq!(world.states(at(1), id()), [State::Ready; 2]);
    // Another set of tensors is another matter.
    let other = announced(id(), 0, 1, &table(6), Said::Ready);
    let answer = world.announce(at(1), "c", vec![other]).unwrap();
    assert_eq!(answer.unknown, [0]);
}

#[test]
fn a_silent_session_makes_stale_and_its_return_ready() {
    let mut world = World::new();
    ready(&mut world, "a");
    world.sources.observe(at(1), &node("a"), silent(1));
    assert_eq!(world.changes(), change("a", State::Stale(Stale::Session)));
    world.sources.observe(at(2), &node("a"), there(1));
    assert_eq!(world.changes(), change("a", State::Ready));
}

#[test]
fn a_node_that_goes_takes_its_workers_and_they_are_forgotten_later() {
    let mut world = World::new();
    ready(&mut world, "a");
    ready(&mut world, "b");
    world.sources.observe(at(1), &node("a"), None);
    assert_eq!(world.changes(), change("a", State::Gone(Gone::Node)));
    assert_eq!(world.sources.speakers().collect::<Vec<_>>(), [&node("b")]);
    world.sources.tick(at(60));
    assert_eq!(world.states(at(60), id()).len(), 2);
    world.sources.tick(at(61));
    assert_eq!(world.states(at(61), id()), [State::Ready]);
    world.sources.observe(at(61), &node("b"), None);
    world.sources.tick(at(121));
    assert!(world.sources.status(at(121), id()).is_err());
    assert_eq!(world.sources.table_bytes, 0);
}

#[test]
fn a_later_incarnation_voids_the_earlier_one() {
    let mut world = World::new();
    ready(&mut world, "a");
    world.sources.observe(at(1), &node("a"), there(2));
    assert_eq!(world.changes(), change("a", State::Gone(Gone::Fenced)));
    // A late word of the earlier one is refused, and the later one begins anew.
    let worker = announced(id(), 0, 1, &table(4), Said::Ready);
    let who = world.who("a", 1);
    let late = world
        .sources
        .announce(at(1), &who, there(2), vec![worker.clone()]);
    assert!(matches!(late, Err(AnnounceError::NoSession { .. })));
    let who = Announcer {
        number: 1,
        ..world.who("a", 2)
    };
    let answer = world.sources.announce(at(1), &who, there(2), vec![worker]);
    assert_eq!(
        answer.unwrap().unknown,
        [0],
        "the tensors went with the last worker"
    );
}

#[test]
fn what_a_node_names_no_more_is_withdrawn() {
    let mut world = World::new();
    ready(&mut world, "a");
    world.announce(at(1), "a", Vec::new()).unwrap();
    assert_eq!(world.changes(), change("a", State::Gone(Gone::Withdrawn)));
}

#[test]
fn a_late_announcement_changes_nothing() {
    let mut world = World::new();
    let early = world.who("a", 1);
    ready(&mut world, "a");
    let late = world.sources.announce(at(1), &early, there(1), Vec::new());
    assert_eq!(late, Err(AnnounceError::Late { known: 2, got: 1 }));
    assert_eq!(world.states(at(1), id()), [State::Ready]);
}

#[test]
fn only_a_session_may_speak() {
    let mut world = World::new();
    for presence in [None, silent(1), there(2)] {
        let who = world.who("a", 1);
        let refused = world.sources.announce(at(0), &who, presence, Vec::new());
        assert!(matches!(refused, Err(AnnounceError::NoSession { .. })));
    }
    assert_eq!(world.sources.speakers().count(), 0);
}

#[test]
fn memory_that_is_written_to_is_stale() {
    let mut world = World::new();
    ready(&mut world, "a");
    let worker = |said| announced(id(), 0, 1, &table(4), said);
    world
        .announce(at(1), "a", vec![worker(Said::Rewritten)])
        .unwrap();
    assert_eq!(world.changes(), change("a", State::Stale(Stale::Rewritten)));
    world
        .announce(at(2), "a", vec![worker(Said::Ready)])
        .unwrap();
    assert_eq!(world.changes(), change("a", State::Ready));
}

#[test]
fn two_readers_make_a_worker_stale_for_a_while() {
    let mut world = World::new();
    ready(&mut world, "a");
    let report = Report {
        source: id(),
        rank: 0,
        node: node("a"),
        incarnation: incarnation(1),
        kind: ReportKind::Unreachable,
    };
    let mut say = |now, reader: &str| {
        let report = std::slice::from_ref(&report);
        world.sources.report(now, &node(reader), report)
    };
    assert_eq!(say(at(0), "a"), 0, "its own word does not count");
    assert_eq!(say(at(0), "r"), 1);
    assert_eq!(say(at(5), "r"), 1, "one reader is one reader");
    assert_eq!(world.changes(), []);
    let again = std::slice::from_ref(&report);
    world.sources.report(at(10), &node("s"), again);
    assert_eq!(world.changes(), change("a", State::Stale(Stale::Readers)));
    world.sources.tick(at(34));
    assert_eq!(world.changes(), []);
    world.sources.tick(at(35));
    assert_eq!(world.changes(), change("a", State::Ready));
    // Another lifetime of it is not this one.
    let other = Report {
        incarnation: incarnation(9),
        ..report
    };
    assert_eq!(world.sources.report(at(36), &node("r"), &[other]), 0);
}

#[test]
fn readers_remembered_are_bounded() {
    let mut world = World::new();
    ready(&mut world, "a");
    let report = |reader: u32| {
        let report = Report {
            source: id(),
            rank: 0,
            node: node("a"),
            incarnation: incarnation(1),
            kind: ReportKind::Stale,
        };
        (node(&format!("r{reader}")), report)
    };
    for reader in 0..100 {
        let (reader, report) = report(reader);
        assert_eq!(world.sources.report(at(1), &reader, &[report]), 1);
    }
    let (_, workers) = world.sources.status(at(1), id()).unwrap();
    assert_eq!(workers[0].reporters, super::super::bounds::MAX_REPORTERS);
}

#[test]
fn what_was_removed_stays_removed_until_it_is_published_anew() {
    let mut world = World::new();
    ready(&mut world, "a");
    ready(&mut world, "b");
    assert_eq!(world.sources.remove(at(1), id(), Some(&node("a"))), Ok(1));
    assert_eq!(world.changes(), change("a", State::Gone(Gone::Removed)));
    let worker = |publication| announced(id(), 0, publication, &table(4), Said::Ready);
    let answer = world.announce(at(2), "a", vec![worker(1)]).unwrap();
    assert_eq!(answer.removed, [0]);
    // However long its agent takes to hear of it.
    world.sources.tick(at(500));
    let answer = world.announce(at(500), "a", vec![worker(1)]).unwrap();
    assert_eq!(answer.removed, [0]);
    let published = world.publish(at(500), "a", M, 0, Said::Ready).unwrap();
    assert_eq!(published, Published::Removed);
    // A later publication is another one.
    let answer = world.announce(at(501), "a", vec![worker(2)]).unwrap();
    assert_eq!(answer, Announcement::default());
    assert_eq!(world.states(at(501), id()), [State::Ready; 2]);
    assert_eq!(world.sources.remove(at(502), id(), None), Ok(2));
    assert_eq!(world.sources.remove(at(502), id(), None), Ok(0));
    assert!(
        world
            .sources
            .remove(at(502), identity("x", 1).id(), None)
            .is_err()
    );
}
