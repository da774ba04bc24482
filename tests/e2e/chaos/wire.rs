//! Wires that are cut, swallow one way, are narrow, lossy and slow.

use std::time::{Duration, Instant};

use kvferry_proto::pb::OutcomeKind;
use tokio::time::sleep;

use super::wired::{BLOCKS, COORDINATOR, OWNER, READER, Wired};
use crate::hosts::Hosts;

/// What goes to a host takes its time: 16 MiB a second or so, in which something can happen. By either of the kernel's two
/// ways to do that; false where it has none.
fn narrow(hosts: &Hosts, host: usize) -> bool {
    let bucket = ["tbf", "rate", "100mbit", "burst", "64k", "latency", "100ms"];
    hosts.try_shape(host, &bucket) || hosts.shape(host, &["netem", "rate", "100mbit"])
}

fn only(kinds: &[OutcomeKind], allowed: &[OutcomeKind]) {
    for kind in kinds {
        assert!(allowed.contains(kind), "{kind:?} is none of {allowed:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_cut_off_in_mid_pull_ends_the_pull_and_is_used_again() {
    let Some(wired) = Wired::new().await else {
        return;
    };
    if !narrow(&wired.hosts, READER) {
        return;
    }
    let cut = async {
        sleep(Duration::from_millis(400)).await;
        wired.hosts.cut(OWNER);
    };
    let timeout = Duration::from_secs(4);
    let (ended, ()) = tokio::join!(wired.pull(timeout), cut);
    assert!(!ended.others.is_empty(), "it was cut in the middle");
    only(
        &ended.others,
        &[OutcomeKind::Unreachable, OutcomeKind::TimedOut],
    );
    wired.hosts.mend(OWNER);
    wired.hosts.unshape(READER);
    wired.heals().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_one_way_is_lost_nothing_hangs() {
    let Some(wired) = Wired::new().await else {
        return;
    };
    for (from, to) in [(OWNER, READER), (READER, OWNER)] {
        wired.hosts.swallow(from, to);
        let ended = wired.pull(Duration::from_secs(3)).await;
        assert_eq!(ended.had, 0);
        only(
            &ended.others,
            &[OutcomeKind::Unreachable, OutcomeKind::TimedOut],
        );
        wired.hosts.deliver(from, to);
    }
    wired.heals().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_narrow_wire_slows_a_pull_and_breaks_nothing() {
    let Some(wired) = Wired::new().await else {
        return;
    };
    if !narrow(&wired.hosts, READER) {
        return;
    }
    let began = Instant::now();
    let ended = wired.pull(Duration::from_secs(30)).await;
    assert_eq!(ended.had as u64, BLOCKS, "{:?}", ended.others);
    // 100 Mb/s take 1.3 s for 16 MiB: it was the wire that was slow, and for longer than the stall bound.
    assert!(began.elapsed() > Duration::from_millis(900));
    wired.hosts.unshape(READER);
    wired.heals().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lossy_wire_and_a_long_one_break_nothing() {
    let Some(wired) = Wired::new().await else {
        return;
    };
    for discipline in [["netem", "loss", "5%"], ["netem", "delay", "200ms"]] {
        if !wired.hosts.shape(READER, &discipline) || !wired.hosts.shape(OWNER, &discipline) {
            return;
        }
        let ended = wired.pull(Duration::from_secs(60)).await;
        only(&ended.others, &[OutcomeKind::Unreachable]);
        assert!(ended.had > 0, "{:?}", ended.others);
        wired.hosts.unshape(READER);
        wired.hosts.unshape(OWNER);
    }
    wired.heals().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_out_of_sight_for_long_is_an_outage_and_no_miss() {
    let Some(wired) = Wired::new().await else {
        return;
    };
    wired.hosts.cut(COORDINATOR);
    // Longer than it takes a coordinator to forget its nodes (4 s here).
    for _ in 0..3 {
        let ended = wired.pull(Duration::from_secs(2)).await;
        only(
            &ended.others,
            &[OutcomeKind::LocateFailed, OutcomeKind::TimedOut],
        );
        assert_eq!(ended.others.len() as u64, BLOCKS);
        sleep(Duration::from_millis(500)).await;
    }
    wired.hosts.mend(COORDINATOR);
    wired.heals().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_that_is_stopped_for_long_comes_back_to_the_truth() {
    let Some(wired) = Wired::new().await else {
        return;
    };
    wired.coordinator().signal("STOP");
    let ended = wired.pull(Duration::from_secs(2)).await;
    only(
        &ended.others,
        &[OutcomeKind::LocateFailed, OutcomeKind::TimedOut],
    );
    sleep(Duration::from_secs(3)).await;
    wired.coordinator().signal("CONT");
    wired.heals().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_stopped_in_mid_pull_costs_its_stall_bound_and_the_next_pull_less() {
    let Some(wired) = Wired::new().await else {
        return;
    };
    if !narrow(&wired.hosts, READER) {
        return;
    }
    let stop = async {
        sleep(Duration::from_millis(400)).await;
        wired.owner().signal("STOP");
    };
    let timeout = Duration::from_secs(20);
    let began = Instant::now();
    let (ended, ()) = tokio::join!(wired.pull(timeout), stop);
    let first = began.elapsed();
    assert!(!ended.others.is_empty(), "it was stopped in the middle");
    only(&ended.others, &[OutcomeKind::Unreachable]);
    // What is on the wire arrives, then 500 ms without progress, and what it takes to see that no other way leads there.
    assert!(first < Duration::from_secs(8), "the first took {first:?}");
    let began = Instant::now();
    let ended = wired.pull(timeout).await;
    let next = began.elapsed();
    assert_eq!(ended.had, 0);
    only(
        &ended.others,
        &[OutcomeKind::Unreachable, OutcomeKind::Missing],
    );
    // It is known to be suspect: nobody waits for it again.
    assert!(
        next < Duration::from_millis(500),
        "the next took {next:?}, the first {first:?}"
    );
    wired.owner().signal("CONT");
    wired.hosts.unshape(READER);
    wired.heals().await;
}
