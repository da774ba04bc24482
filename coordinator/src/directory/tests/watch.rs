//! What watchers are told, exactly.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use super::*;

/// Everything there is to be told now.
pub(super) fn told(watcher: &mut Watcher) -> Result<Vec<Change>, WatchEnd> {
    let mut all = Vec::new();
    let mut cx = Context::from_waker(Waker::noop());
    loop {
        match watcher.poll_changes(&mut cx, 1) {
            Poll::Ready(Ok(changes)) => all.extend(changes.iter().map(|c| (**c).clone())),
            Poll::Ready(Err(end)) => return Err(end),
            Poll::Pending => return Ok(all),
        }
    }
}

/// Of what was there, all.
fn scanned(directory: &Directory, watcher: &mut Watcher) -> Vec<Change> {
    let mut all = Vec::new();
    while let Some(scanned) = directory.scan(watcher, 3).unwrap() {
        all.extend(scanned.changes.iter().map(|c| (**c).clone()));
        if !scanned.rows.is_empty() {
            all.push(Change::Rows(scanned.rows));
        }
    }
    all
}

fn watch(directory: &mut Directory) -> Watcher {
    directory.watch(&namespace("t/m"), None).unwrap()
}

/// A watcher that was told what is there.
fn synced(directory: &mut Directory) -> Watcher {
    let mut watcher = watch(directory);
    scanned(directory, &mut watcher);
    watcher
}

fn again(directory: &mut Directory, seq: u64) -> Result<Watcher, WatchError> {
    directory.watch(&namespace("t/m"), Some((EPOCH, seq)))
}

use CopyChange::{Added, Moved, Removed};

/// (what, slot, generation, hash) in the only region.
fn rows(region: u32, rows: &[(CopyChange, u32, u64, u64)]) -> Change {
    let hash = |row: &(CopyChange, u32, u64, u64)| row.3.to_be_bytes();
    Change::Rows(Rows {
        changes: rows.iter().map(|r| r.0).collect(),
        regions: rows.iter().map(|_| region).collect(),
        slots: rows.iter().map(|r| r.1).collect(),
        generations: rows.iter().map(|r| r.2).collect(),
        hashes: rows.iter().flat_map(hash).collect(),
    })
}

fn told_node(number: u32, name: &str, lifetime: u64, state: NodeState) -> Change {
    Change::Node(WatchedNode {
        number,
        node: node(name),
        incarnation: incarnation(lifetime),
        state,
        addresses: Arc::default(),
        labels: Labels::default(),
    })
}

fn told_region(number: u32, node: u32, region: u32) -> Change {
    Change::Region(WatchedRegion {
        number,
        node,
        region: RegionId(region),
        slots: 16,
    })
}

#[test]
fn a_start_tells_all_there_is() {
    let mut directory = directory();
    join(&mut directory, 1, "a", &[(0, 10, 2), (9, 11, 4)]);
    join(&mut directory, 2, "b", &[(3, 10, 2)]);
    let mut watcher = watch(&mut directory);
    assert_eq!(
        scanned(&directory, &mut watcher),
        [
            told_node(0, "a", 1, NodeState::Live),
            told_node(1, "b", 1, NodeState::Live),
            told_region(0, 0, 1),
            told_region(1, 1, 1),
            rows(0, &[(Added, 0, 2, 10)]),
            rows(0, &[(Added, 9, 4, 11)]),
            rows(1, &[(Added, 3, 2, 10)]),
        ]
    );
    assert_eq!(told(&mut watcher), Ok(Vec::new()));
}

#[test]
fn copies_that_come_go_and_are_sealed_anew_are_told() {
    let mut directory = directory();
    join(&mut directory, 1, "a", &[(0, 10, 2), (1, 11, 2)]);
    let mut watcher = synced(&mut directory);
    directory.handle(at(1), change_delta(1, 2, &[0], &[(5, 10, 2)]));
    directory.handle(at(1), change_delta(1, 3, &[], &[(1, 11, 4)]));
    directory.handle(at(1), change_delta(1, 4, &[], &[(5, 12, 4)]));
    // Nothing new: neither an empty slot emptied nor the same said again.
    directory.handle(at(1), change_delta(1, 5, &[7], &[(5, 12, 4)]));
    assert_eq!(
        told(&mut watcher).unwrap(),
        [
            rows(0, &[(Removed, 0, 0, 10)]),
            rows(0, &[(Added, 5, 2, 10)]),
            rows(0, &[(Moved, 1, 4, 11)]),
            rows(0, &[(Removed, 5, 0, 10), (Added, 5, 4, 12)]),
        ]
    );
}

#[test]
fn what_happens_to_a_node_is_one_change() {
    let mut directory = directory();
    let many: Vec<_> = (0..16).map(|n| (n, u64::from(n), 2)).collect();
    join(&mut directory, 1, "a", &many);
    let mut watcher = synced(&mut directory);
    directory.handle(HIDE, Event::Tick);
    directory.handle(
        HIDE,
        Event::Heartbeat {
            session: SessionId(1),
            number: 1,
            next_delta: None,
        },
    );
    directory.drain_node(&node("a"), true).unwrap();
    directory.handle(HIDE, hello(2, "a", 2));
    assert_eq!(
        told(&mut watcher).unwrap(),
        [
            told_node(0, "a", 1, NodeState::Hidden),
            told_node(0, "a", 1, NodeState::Live),
            told_node(0, "a", 1, NodeState::Draining),
            Change::NodeGone(0),
            told_node(0, "a", 2, NodeState::Draining),
        ]
    );
}

#[test]
fn a_region_that_goes_is_one_change() {
    let mut directory = directory();
    join(&mut directory, 1, "a", &[(0, 10, 2), (1, 11, 2)]);
    let mut watcher = synced(&mut directory);
    let second = Delta {
        seq: 2,
        regions_removed: vec![RegionId(1)],
        regions_added: vec![declaration(2, "t/m", 16)],
        ..Delta::default()
    };
    directory.handle(at(1), delta(1, second));
    assert_eq!(
        told(&mut watcher).unwrap(),
        [Change::RegionGone(0), told_region(1, 0, 2)]
    );
}

#[test]
fn a_watcher_goes_on_where_it_was() {
    let mut directory = directory();
    join(&mut directory, 1, "a", &[(0, 10, 2)]);
    let watcher = synced(&mut directory);
    let seq = watcher.seq();
    drop(watcher);
    directory.handle(at(1), change_delta(1, 2, &[0], &[]));
    directory.handle(at(1), change_delta(1, 3, &[], &[(1, 11, 2)]));
    let mut watcher = again(&mut directory, seq).unwrap();
    assert!(!watcher.scans());
    let all = [
        rows(0, &[(Removed, 0, 0, 10)]),
        rows(0, &[(Added, 1, 2, 11)]),
    ];
    assert_eq!(told(&mut watcher).unwrap(), all);
    let mut later = again(&mut directory, seq + 1).unwrap();
    assert_eq!(told(&mut later).unwrap(), all[1..]);
    let ahead = again(&mut directory, seq + 3).unwrap_err();
    assert_eq!(ahead, WatchError::TooOld { seq: seq + 3 });
}

#[test]
fn another_lifetime_is_not_gone_on_with() {
    let mut directory = directory();
    join(&mut directory, 1, "a", &[]);
    let error = directory.watch(&namespace("t/m"), Some((EPOCH + 1, 1)));
    let (asked, now) = (EPOCH + 1, EPOCH);
    assert_eq!(error.unwrap_err(), WatchError::Restarted { asked, now });
    let error = directory.watch(&namespace("t/n"), None).unwrap_err();
    assert!(matches!(error, WatchError::NamespaceUnknown(_)));
}

#[test]
fn a_watcher_that_falls_behind_is_told_so() {
    let mut directory = directory();
    join(&mut directory, 1, "a", &[]);
    let mut slow = synced(&mut directory);
    let seq = slow.seq();
    let log = directory.catalog.namespace(&namespace("t/m")).unwrap();
    log.log.as_ref().unwrap().shorten(2_000);
    for n in 0..20 {
        directory.handle(at(1), change_delta(1, 2 + n, &[], &[(n as u32 % 16, n, 2)]));
    }
    assert_eq!(told(&mut slow), Err(WatchEnd::TooSlow));
    let error = again(&mut directory, seq).unwrap_err();
    assert_eq!(error, WatchError::TooOld { seq });
    // What is kept is the newest, and bounded.
    let kept = told(&mut again(&mut directory, seq + 19).unwrap()).unwrap();
    assert_eq!(kept, [rows(0, &[(Removed, 3, 0, 3), (Added, 3, 2, 19)])]);
}

#[test]
fn a_log_outlasts_its_watchers_for_a_while_and_its_numbers_for_ever() {
    let mut directory = directory();
    join(&mut directory, 1, "a", &[]);
    assert!(!directory.tick_is_due(at(1)), "nobody ever watched");
    let seq = synced(&mut directory).seq();
    let alive = |directory: &mut Directory, ms: u64| {
        let session = SessionId(1);
        let beat = Event::Heartbeat {
            session,
            number: 1,
            next_delta: None,
        };
        directory.handle(at(ms), beat);
        if directory.tick_is_due(at(ms)) {
            directory.handle(at(ms), Event::Tick);
        }
    };
    alive(&mut directory, 1);
    alive(&mut directory, 60_000);
    drop(again(&mut directory, seq).unwrap());
    alive(&mut directory, 60_001);
    alive(&mut directory, 120_002);
    assert_eq!(
        again(&mut directory, seq).unwrap_err(),
        WatchError::TooOld { seq }
    );
    // A new log has other numbers: what happened between the two is not passed over.
    let watcher = synced(&mut directory);
    assert!(watcher.seq() > seq);
    assert_eq!(
        again(&mut directory, seq).unwrap_err(),
        WatchError::TooOld { seq }
    );
}

#[test]
fn a_deleted_namespace_ends_its_watchers() {
    let mut directory = directory();
    join(&mut directory, 1, "a", &[(0, 10, 2)]);
    let mut watcher = synced(&mut directory);
    let mut starting = watch(&mut directory);
    let seq = watcher.seq();
    directory.handle(at(1), change_delta(1, 2, &[0], &[]));
    directory.delete_namespace(&namespace("t/m"), true).unwrap();
    assert_eq!(
        told(&mut watcher),
        Err(WatchEnd::Deleted),
        "and nothing of what was left to say"
    );
    assert!(directory.scan(&mut starting, 4).is_ok());
    assert_eq!(
        directory.scan(&mut starting, 4).unwrap_err(),
        WatchEnd::Deleted
    );
    directory.create_namespace(&spec("t/m")).unwrap();
    assert_eq!(
        again(&mut directory, seq).unwrap_err(),
        WatchError::TooOld { seq }
    );
}

#[test]
fn watchers_and_watched_namespaces_are_bounded() {
    let mut directory = directory();
    let name = |n: usize| format!("t/{n}");
    let mut watchers = Vec::new();
    for n in 0..40 {
        directory.create_namespace(&spec(&name(n))).unwrap();
    }
    let mut begin = |n: usize| {
        let watcher = directory.watch(&namespace(&name(n)), None);
        watcher.map(|watcher| watchers.push(watcher))
    };
    let logs = (0..40).take_while(|n| begin(*n).is_ok()).count();
    assert_eq!(logs, 32);
    assert!(matches!(begin(33), Err(WatchError::Bound(_))));
    let more = (0..80).take_while(|_| begin(0).is_ok()).count();
    assert_eq!(more, 63);
}

#[test]
fn watchers_and_what_is_kept_for_them_are_counted() {
    let mut directory = directory();
    join(&mut directory, 1, "a", &[]);
    let counts = directory.counts();
    let kept = || {
        let logs = counts.watch_logs.get();
        (counts.watchers.get(), logs, counts.watch_log_bytes.get())
    };
    assert_eq!(kept(), (0, 0, 0));
    let (one, other) = (synced(&mut directory), watch(&mut directory));
    directory.handle(at(1), change_delta(1, 2, &[], &[(5, 10, 2)]));
    let (watchers, logs, bytes) = kept();
    assert_eq!((watchers, logs), (2, 1));
    assert!(bytes > 0);
    drop(one);
    assert_eq!(kept(), (1, 1, bytes), "changes are kept for a while");
    directory.delete_namespace(&namespace("t/m"), true).unwrap();
    drop(directory.reap());
    assert_eq!(kept(), (1, 1, 0), "one who reads nothing keeps no changes");
    drop(other);
    assert_eq!(kept(), (0, 0, 0));
}

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn watchers_that_come_and_go_leave_nothing_behind_where_nothing_changes() {
    let mut directory = directory();
    join(&mut directory, 1, "a", &[(0, 10, 2)]);
    let wait = |watcher: &mut Watcher, woken: &Arc<Woken>| {
        let waker = Waker::from(Arc::clone(woken));
        let polled = watcher.poll_changes(&mut Context::from_waker(&waker), 1);
        assert!(polled.is_pending());
    };
    let (mut stays, waits) = (synced(&mut directory), Arc::<Woken>::default());
    wait(&mut stays, &waits);
    let gone: Vec<_> = (0..50)
        .map(|_| {
            let (mut watcher, woken) = (synced(&mut directory), Arc::<Woken>::default());
            wait(&mut watcher, &woken);
            // What a task does that was woken for nothing.
            if waits.0.swap(false, Ordering::Relaxed) {
                wait(&mut stays, &waits);
            }
            woken
        })
        .collect();
    let kept = gone.iter().filter(|woken| Arc::strong_count(woken) > 1);
    assert!(kept.count() <= 4, "wakers of watchers that left are kept");
    join(&mut directory, 2, "b", &[]);
    assert!(waits.0.load(Ordering::Relaxed));
}
