//! Pulls from owners in this process, on paused time.

mod stages;
mod world;

use std::{collections::BTreeSet, sync::atomic::Ordering, time::Duration};

use tokio::{sync::mpsc, time::Instant};
use world::{BLOCK, Mode, State, World};

use super::*;
use crate::transfer::{CopyFailure, Phase};

const TIMEOUT: Duration = Duration::from_secs(10);

fn request(blocks: u32) -> PullRequest {
    PullRequest {
        blocks,
        block_bytes: BLOCK,
        timeout: TIMEOUT,
        must_verify: BTreeSet::new(),
    }
}

type Outcomes = Vec<BlockOutcome<u32>>;

/// Pulls, and gives summary and outcomes in order of block.
async fn pulled(
    world: &Arc<World>,
    config: TransferConfig,
    blocks: u32,
) -> (PullSummary, Outcomes) {
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let summary = pull(world.parts(), config, request(blocks), sender)
        .await
        .unwrap();
    let mut all = Vec::new();
    while let Some(batch) = receiver.recv().await {
        all.extend(batch);
    }
    all.sort_by_key(|outcome| outcome.block);
    let indices: Vec<_> = all.iter().map(|outcome| outcome.block).collect();
    assert_eq!(indices, (0..blocks).collect::<Vec<_>>());
    (summary, all)
}

fn kinds(outcomes: &Outcomes) -> Vec<Outcome> {
    outcomes.iter().map(|outcome| outcome.outcome).collect()
}

#[tokio::test(start_paused = true)]
async fn blocks_arrive_as_they_were_sealed() {
    for (checksums, inline) in [(false, 0), (true, u64::MAX), (true, 0)] {
        let world = World::new(2, 40, checksums);
        let config = TransferConfig {
            stripe_bytes: 1,
            op_blocks: 3,
            verify_inline_bytes: inline,
            ..TransferConfig::default()
        };
        let (summary, outcomes) = pulled(&world, config, 40).await;
        assert_eq!(kinds(&outcomes), vec![Outcome::Pulled; 40]);
        assert_eq!((summary.pulled, summary.bytes), (40, 40 * BLOCK));
        for outcome in &outcomes {
            assert_eq!(outcome.landed, Some(outcome.block));
            assert_eq!(outcome.transport, Some(TransportKind::Sim));
            world.assert_delivered(outcome.block);
        }
        let nodes: BTreeSet<_> = outcomes
            .iter()
            .map(|o| o.node.clone().unwrap().to_string())
            .collect();
        assert_eq!(nodes.len(), 2, "striped over both");
    }
}

/// However fast reads settle, who verifies what they brought does not keep its thread to the end.
#[tokio::test(start_paused = true)]
async fn others_have_their_turn_between_blocks_that_are_verified_in_place() {
    let world = World::new(1, 40, true);
    world.owners[0].bounds.lock().window_bytes = BLOCK;
    let seen = Arc::clone(&world);
    let other = tokio::spawn(async move {
        let landed = || (0..40).filter(|block| seen.state(*block) == State::Landed);
        let (mut before, mut most) = (0, 0);
        while before < 40 {
            tokio::task::yield_now().await;
            let now = landed().count();
            most = most.max(now - before);
            before = now;
        }
        most
    });
    let config = TransferConfig {
        verify_inline_bytes: BLOCK,
        ..TransferConfig::default()
    };
    let (_, outcomes) = pulled(&world, config, 40).await;
    assert_eq!(kinds(&outcomes), vec![Outcome::Pulled; 40]);
    let most = other.await.unwrap();
    assert!(most <= 2, "{most} blocks in one turn");
}

#[tokio::test(start_paused = true)]
async fn small_bounds_of_a_link_only_cut_reads() {
    let world = World::new(1, 4, true);
    world.owners[0].bounds.lock().max_bytes = 24;
    world.owners[0].bounds.lock().max_spans = 1;
    let (_, outcomes) = pulled(&world, TransferConfig::default(), 4).await;
    assert_eq!(kinds(&outcomes), vec![Outcome::Pulled; 4]);
    (0..4).for_each(|block| world.assert_delivered(block));
}

#[tokio::test(start_paused = true)]
async fn words_that_come_with_the_data_are_not_asked_for_and_validate_as_ever() {
    let world = World::new(1, 40, false);
    world.owners[0].in_order.store(true, Ordering::Relaxed);
    world.owners[0].generations.begin_write(7);
    let config = TransferConfig {
        op_blocks: 3,
        ..TransferConfig::default()
    };
    let (_, outcomes) = pulled(&world, config.clone(), 40).await;
    let stale = outcomes.iter().filter(|o| o.outcome == Outcome::Stale);
    assert!(stale.map(|outcome| outcome.block).eq([7]));
    assert_eq!(world.state(7), State::Free);
    assert_eq!(world.owners[0].word_reads.load(Ordering::Relaxed), 0);
    // Where the link has no room for them beside the data they are read after it.
    let world = World::new(1, 4, false);
    world.owners[0].in_order.store(true, Ordering::Relaxed);
    world.owners[0].bounds.lock().max_bytes = BLOCK;
    let (_, outcomes) = pulled(&world, config, 4).await;
    assert_eq!(kinds(&outcomes), vec![Outcome::Pulled; 4]);
    assert!(world.owners[0].word_reads.load(Ordering::Relaxed) > 0);
}

#[tokio::test(start_paused = true)]
async fn an_overwritten_slot_is_stale_and_its_bytes_are_not_delivered() {
    let world = World::new(1, 2, false);
    world.owners[0].generations.begin_write(1);
    let (_, outcomes) = pulled(&world, TransferConfig::default(), 2).await;
    assert_eq!(kinds(&outcomes), [Outcome::Pulled, Outcome::Stale]);
    assert_eq!(world.state(1), State::Free);
}

#[tokio::test(start_paused = true)]
async fn flipped_bytes_are_corrupt() {
    let world = World::new(1, 1, true);
    world.owners[0].memory.write_at(3, &[0xff]).unwrap();
    let (_, outcomes) = pulled(&world, TransferConfig::default(), 1).await;
    assert_eq!(kinds(&outcomes), [Outcome::Corrupt]);
}

#[tokio::test(start_paused = true)]
async fn wrong_bytes_of_a_path_are_read_again_by_another_in_the_same_pull() {
    let world = World::new(1, 4, true);
    world.owners[0].bounds.lock().needs_checksum = true;
    let (_, outcomes) = pulled(&world, TransferConfig::default(), 4).await;
    assert_eq!(kinds(&outcomes), vec![Outcome::Pulled; 4]);
    (0..4).for_each(|block| world.assert_delivered(block));
    assert!(!world.owners[0].bounds.lock().needs_checksum, "distrusted");
}

#[tokio::test(start_paused = true)]
async fn a_stopped_owner_costs_its_stall_bound_and_is_remembered() {
    let world = World::new(2, 4, false);
    world.owners[0].set(Mode::Hang);
    let (summary, outcomes) = pulled(&world, TransferConfig::default(), 4).await;
    assert_eq!(kinds(&outcomes), vec![Outcome::Pulled; 4]);
    assert!(summary.total < Duration::from_millis(2_150), "{summary:?}");
    let (summary, _) = pulled(&world, TransferConfig::default(), 4).await;
    assert!(summary.total < Duration::from_millis(50), "{summary:?}");
}

#[tokio::test(start_paused = true)]
async fn a_lost_link_is_replaced_by_another_owner() {
    let world = World::new(2, 4, false);
    world.owners[0].set(Mode::Lost);
    let (_, outcomes) = pulled(&world, TransferConfig::default(), 4).await;
    assert_eq!(kinds(&outcomes), vec![Outcome::Pulled; 4]);
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_refuses_the_ticket_denies_the_block() {
    for (mode, why) in [
        (Mode::Deny, "signed with a key that it was not told"),
        (Mode::DenyReads, "does not name that namespace"),
        (Mode::DenyBehind, "signed with a key that it was not told"),
    ] {
        let world = World::new(1, 1, false);
        world.owners[0].set(mode);
        let (_, outcomes) = pulled(&world, TransferConfig::default(), 1).await;
        assert_eq!(kinds(&outcomes), [Outcome::Denied]);
        assert!(outcomes[0].detail.contains(why), "{outcomes:?}");
        assert_eq!(world.state(0), State::Free);
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_reachable_is_said_with_the_last_error() {
    let world = World::new(1, 1, false);
    world.owners[0].set(Mode::Refuse);
    let (_, outcomes) = pulled(&world, TransferConfig::default(), 1).await;
    assert_eq!(kinds(&outcomes), [Outcome::Unreachable]);
    assert!(outcomes[0].detail.contains("node-0"), "{outcomes:?}");
    assert_eq!(world.state(0), State::Free);
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_not_a_miss() {
    let world = World::new(1, 1, false);
    world.set_outage(true);
    let start = Instant::now();
    let (_, outcomes) = pulled(&world, TransferConfig::default(), 1).await;
    assert_eq!(kinds(&outcomes), [Outcome::LocateFailed]);
    assert!(start.elapsed() <= TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn the_call_ends_by_its_deadline_and_the_memory_when_the_read_has_settled() {
    let world = World::new(1, 2, false);
    world.owners[0].set(Mode::Stuck);
    let start = Instant::now();
    let (_, outcomes) = pulled(&world, TransferConfig::default(), 2).await;
    assert!(start.elapsed() <= TIMEOUT + Duration::from_millis(1));
    assert_eq!(
        kinds(&outcomes),
        vec![Outcome::TimedOut { settled: false }; 2]
    );
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(world.state(0), State::Prepared);
    world.owners[0].release();
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(world.state(0), State::Free);
    assert_eq!(world.state(1), State::Free);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_pull_is_cancelled_and_cleans_up() {
    let world = World::new(1, 2, false);
    world.owners[0].set(Mode::Hang);
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let future = pull(world.parts(), TransferConfig::default(), request(2), sender);
    let cut = tokio::time::timeout(Duration::from_millis(100), future).await;
    assert!(cut.is_err());
    let mut outcomes = Vec::new();
    while outcomes.is_empty() {
        // It may have said before that it is under way.
        outcomes = receiver.recv().await.unwrap();
    }
    assert_eq!(
        kinds(&outcomes),
        vec![Outcome::Cancelled { settled: true }; 2]
    );
    assert_eq!(world.state(0), State::Free);
}

#[tokio::test(start_paused = true)]
async fn a_pull_that_nobody_listens_to_is_cancelled() {
    let world = World::new(1, 2, false);
    world.owners[0].set(Mode::Hang);
    let (sender, receiver) = mpsc::unbounded_channel();
    drop(receiver);
    let start = Instant::now();
    pull(world.parts(), TransferConfig::default(), request(2), sender)
        .await
        .unwrap();
    assert!(start.elapsed() < Duration::from_millis(100));
    assert_eq!(world.state(0), State::Free);
}

#[tokio::test(start_paused = true)]
async fn a_slot_that_is_not_there_is_a_stale_hint() {
    let world = World::new(1, 2, false);
    world.set_slot_shift(1);
    let (_, outcomes) = pulled(&world, TransferConfig::default(), 2).await;
    assert_eq!(outcomes[1].outcome, Outcome::Stale);
    assert!(outcomes[1].detail.contains("no slot 2"), "{outcomes:?}");
}

#[tokio::test(start_paused = true)]
async fn a_pull_that_takes_long_says_once_that_it_is_under_way() {
    let world = World::new(1, 1, false);
    world.owners[0].set(Mode::Hang);
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let start = Instant::now();
    let config = TransferConfig::default();
    let tick = config.progress_tick;
    let pull = pull(world.parts(), config, request(1), sender);
    let listen = async {
        assert!(receiver.recv().await.unwrap().is_empty());
        assert!(start.elapsed() <= tick + Duration::from_millis(1));
        receiver.recv().await.unwrap()
    };
    let (_, next) = tokio::join!(pull, listen);
    assert_eq!(next.len(), 1);
}

/// Time is observed per phase, and copies that failed on the way are counted though the pull went well.
#[tokio::test(start_paused = true)]
async fn phases_and_failed_copies_are_counted() {
    let striped = TransferConfig {
        stripe_bytes: 1,
        ..TransferConfig::default()
    };
    for checksums in [false, true] {
        let world = World::new(2, 8, checksums);
        let (summary, _) = pulled(&world, striped.clone(), 8).await;
        assert_eq!(summary.pulled, 8);
        let phases = |phase| world.metrics.phases.of(phase).count();
        assert_eq!(phases(Phase::Locate), 1);
        assert_eq!(phases(Phase::Connect), 2, "one link to each owner");
        assert_eq!((phases(Phase::Wire), phases(Phase::Validate)), (2, 2));
        assert_eq!(phases(Phase::Checksum) > 0, checksums);
        let failed = |reason| world.metrics.failed_copies.of(reason).get();
        assert_eq!(failed(CopyFailure::Unreachable), 0);

        world.owners[0].set(Mode::Lost);
        let (summary, _) = pulled(&world, striped.clone(), 8).await;
        assert_eq!(summary.pulled, 8, "the other one has them, too");
        assert!(failed(CopyFailure::Unreachable) > 0);
        assert_eq!(failed(CopyFailure::Stale), 0);

        world.owners[0].set(Mode::Good);
        world.set_slot_shift(1);
        let (summary, _) = pulled(&world, striped.clone(), 8).await;
        assert!(summary.pulled < 8);
        let wrong = failed(CopyFailure::Stale) + failed(CopyFailure::Corrupt);
        assert!(wrong > 0);
    }
}
