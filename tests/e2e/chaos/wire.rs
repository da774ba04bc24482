//! Wires that are cut, swallow one way, are narrow, lossy and slow.

use std::time::{Duration, Instant};

use kvferry_proto::pb::OutcomeKind;
use tokio::{sync::oneshot, time::sleep};

use super::wired::{BLOCKS, COORDINATOR, OWNER, READER, Wired};
use crate::{
    cluster::{MISSES_SOON, SOON},
    hosts::Hosts,
};

/// Of tests in which who stands still is to be given up.
const QUICKLY: Duration = Duration::from_millis(500);
/// Of tests in which nobody is to be given up but who stands still for good, also on a machine that lets others wait.
const IN_THE_END: Duration = Duration::from_secs(4);

/// What goes to a host takes its time: a mebibyte a second or so, in which something can happen. By either of the kernel's two
/// ways to do that; false where it has none.
fn narrow(hosts: &Hosts, host: usize) -> bool {
    let bucket = ["tbf", "rate", "8mbit", "burst", "64k", "latency", "100ms"];
    hosts.try_shape(host, &bucket) || hosts.shape(host, &["netem", "rate", "8mbit"])
}

fn only(kinds: &[OutcomeKind], allowed: &[OutcomeKind]) {
    for kind in kinds {
        assert!(allowed.contains(kind), "{kind:?} is none of {allowed:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_cut_off_in_mid_pull_ends_the_pull_and_is_used_again() {
    let Some(wired) = Wired::new(IN_THE_END, &[]).await else {
        return;
    };
    if !narrow(&wired.hosts, READER) {
        return;
    }
    let (first, came) = oneshot::channel();
    let cut = async {
        came.await.expect("something comes");
        wired.hosts.cut(OWNER);
    };
    let (ended, ()) = tokio::join!(wired.pull_telling(SOON, first), cut);
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
    let Some(wired) = Wired::new(QUICKLY, &[]).await else {
        return;
    };
    for (from, to) in [(OWNER, READER), (READER, OWNER)] {
        wired.hosts.swallow(from, to);
        let ended = wired.pull(SOON).await;
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
    let Some(wired) = Wired::new(IN_THE_END, &[]).await else {
        return;
    };
    if !narrow(&wired.hosts, READER) {
        return;
    }
    let began = Instant::now();
    let ended = wired.pull(2 * SOON).await;
    assert_eq!(ended.had as u64, BLOCKS, "{:?}", ended.others);
    // 8 Mb/s take 16 s for 16 MiB: it was the wire that was slow, and for longer than the stall bound.
    assert!(began.elapsed() > 2 * IN_THE_END);
    wired.hosts.unshape(READER);
    wired.heals().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lossy_wire_and_a_long_one_break_nothing() {
    // What is lost is sent again, later each time.
    let Some(wired) = Wired::new(4 * IN_THE_END, &[]).await else {
        return;
    };
    for discipline in [["netem", "loss", "5%"], ["netem", "delay", "200ms"]] {
        if !wired.hosts.shape(READER, &discipline) || !wired.hosts.shape(OWNER, &discipline) {
            return;
        }
        let ended = wired.pull(2 * SOON).await;
        only(&ended.others, &[OutcomeKind::Unreachable]);
        assert!(ended.had > 0, "{:?}", ended.others);
        wired.hosts.unshape(READER);
        wired.hosts.unshape(OWNER);
    }
    wired.heals().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_out_of_sight_for_long_is_an_outage_and_no_miss() {
    let Some(wired) = Wired::new(QUICKLY, &MISSES_SOON).await else {
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
    let Some(wired) = Wired::new(QUICKLY, &MISSES_SOON).await else {
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
async fn an_owner_stopped_in_mid_pull_costs_its_stall_bound_and_nobody_waits_for_it_to_the_end() {
    let Some(wired) = Wired::new(IN_THE_END, &[]).await else {
        return;
    };
    if !narrow(&wired.hosts, READER) {
        return;
    }
    let (first, came) = oneshot::channel();
    let stop = async {
        came.await.expect("something comes");
        wired.owner().signal("STOP");
    };
    let timeout = 2 * SOON;
    let (ended, ()) = tokio::join!(wired.pull_telling(timeout, first), stop);
    assert!(!ended.others.is_empty(), "it was stopped in the middle");
    // What is on the wire arrives, then nothing for the stall bound; and no other way leads there. None had to wait until
    // its time was over.
    only(&ended.others, &[OutcomeKind::Unreachable]);
    let ended = wired.pull(timeout).await;
    assert_eq!(ended.had, 0);
    only(&ended.others, &[OutcomeKind::Unreachable]);
    wired.owner().signal("CONT");
    wired.hosts.unshape(READER);
    wired.heals().await;
}
