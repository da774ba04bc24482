//! Pulls in stages: what is told when, and who may write to a slot how long.

use std::ops::Range;

use tokio::task::JoinHandle;

use super::*;
use crate::transfer::{StageEvent, StagedRequest, pull_in_stages};

const BLOCKS: u32 = 4;
/// Neither the owners' planes nor the destination's end where they do.
const STAGES: [Range<u64>; 3] = [0..16, 16..32, 32..64];

struct Pulling {
    task: JoinHandle<Result<PullSummary, Aborted>>,
    events: mpsc::UnboundedReceiver<Vec<StageEvent<u32>>>,
    /// Per stage: blocks of which it has landed.
    landed: Vec<Vec<u32>>,
    ended: Outcomes,
    /// Block and node: who gave something of it.
    from: BTreeSet<(u32, NodeId)>,
}

impl Pulling {
    fn start(world: &Arc<World>) -> Self {
        let (sender, events) = mpsc::unbounded_channel();
        let request = StagedRequest {
            blocks: BLOCKS,
            stages: STAGES.into(),
            timeout: TIMEOUT,
        };
        let config = TransferConfig::default();
        Self {
            task: tokio::spawn(pull_in_stages(world.parts(), config, request, sender)),
            events,
            landed: vec![Vec::new(); STAGES.len()],
            ended: Vec::new(),
            from: BTreeSet::new(),
        }
    }

    /// Of one owner, whose reads beyond the first stage wait; words come with the data or after it.
    fn held_up(in_order: bool) -> (Arc<World>, Self) {
        let world = World::new(1, BLOCKS, false);
        let owner = &world.owners[0];
        owner.in_order.store(in_order, Ordering::Relaxed);
        owner.hold_up_after(1, false);
        let pull = Self::start(&world);
        (world, pull)
    }

    fn add(&mut self, batch: Vec<StageEvent<u32>>) {
        for event in batch {
            match event {
                StageEvent::Landed { block, stage, node } => {
                    self.from.insert((block, node.unwrap()));
                    let ended = self.ended.iter().any(|it| it.block == block);
                    assert!(!ended, "a stage of a block that has ended");
                    self.landed[stage].push(block);
                }
                StageEvent::Ended(outcome) => self.ended.push(outcome),
            }
        }
    }

    /// What there is to hear until a stage has landed of so many blocks.
    async fn until(&mut self, stage: usize, blocks: usize) {
        while self.landed[stage].len() < blocks {
            let batch = self.events.recv().await.unwrap();
            self.add(batch);
        }
    }

    /// To the end; outcomes in order of block.
    async fn end(&mut self) -> (PullSummary, Vec<Outcome>) {
        while let Some(batch) = self.events.recv().await {
            self.add(batch);
        }
        self.ended.sort_by_key(|outcome| outcome.block);
        let blocks: Vec<_> = self.ended.iter().map(|outcome| outcome.block).collect();
        assert_eq!(blocks, (0..BLOCKS).collect::<Vec<_>>());
        let summary = (&mut self.task).await.unwrap().unwrap();
        (summary, kinds(&self.ended))
    }
}

/// What can happen without time passing has happened.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn each_stage_is_told_when_its_bytes_are_there_and_before_later_ones() {
    for in_order in [false, true] {
        let (world, mut pull) = Pulling::held_up(in_order);
        let owner = &world.owners[0];
        for stage in 0..STAGES.len() {
            pull.until(stage, BLOCKS as usize).await;
            settle().await;
            assert!(pull.events.try_recv().is_err() || stage == 2);
            for block in 0..BLOCKS {
                for (number, range) in STAGES.into_iter().enumerate() {
                    assert_eq!(world.holds(block, range), number <= stage);
                }
                assert_eq!(world.state(block) == State::Landed, stage == 2);
            }
            // Later stages were asked for long ago: the wire does not rest.
            assert_eq!(owner.held_up(), 2 - stage);
            owner.resume(1);
        }
        let (summary, outcomes) = pull.end().await;
        assert_eq!(outcomes, vec![Outcome::Pulled; BLOCKS as usize]);
        assert!(pull.ended.iter().all(|it| it.landed == Some(it.block)));
        let all = u64::from(BLOCKS);
        assert_eq!((summary.pulled, summary.bytes), (all, all * BLOCK));
        (0..BLOCKS).for_each(|block| world.assert_delivered(block));
        let located = world.metrics.phases.of(Phase::Locate).count();
        assert_eq!(located, 1, "once for all stages");
    }
}

#[tokio::test(start_paused = true)]
async fn a_block_that_is_overwritten_between_stages_is_told_of_no_more_and_the_others_go_on() {
    for in_order in [false, true] {
        let (world, mut pull) = Pulling::held_up(in_order);
        let owner = &world.owners[0];
        pull.until(0, BLOCKS as usize).await;
        owner.generations.begin_write(1);
        owner.resume(1);
        pull.until(1, BLOCKS as usize - 1).await;
        // It ends when the read that is under way for it, too, has settled.
        settle().await;
        assert_eq!(world.state(1), State::Prepared);
        owner.resume(1);
        let (summary, outcomes) = pull.end().await;
        let expected = [
            Outcome::Pulled,
            Outcome::Stale,
            Outcome::Pulled,
            Outcome::Pulled,
        ];
        assert_eq!(outcomes, expected);
        assert_eq!(
            pull.landed,
            [vec![0, 1, 2, 3], vec![0, 2, 3], vec![0, 2, 3]]
        );
        assert_eq!(world.state(1), State::Free);
        assert_eq!(summary.bytes, 3 * BLOCK);
        for block in [0, 2, 3] {
            world.assert_delivered(block);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn parts_of_a_block_may_come_from_two_owners() {
    let world = World::new(2, BLOCKS, false);
    for owner in &world.owners {
        owner.hold_up_after(1, false);
    }
    let mut pull = Pulling::start(&world);
    pull.until(0, BLOCKS as usize).await;
    world.owners[0].cut();
    world.owners[1].hold_up_after(u32::MAX, false);
    world.owners[1].resume(world.owners[1].held_up());
    let (_, outcomes) = pull.end().await;
    assert_eq!(outcomes, vec![Outcome::Pulled; BLOCKS as usize]);
    (0..BLOCKS).for_each(|block| world.assert_delivered(block));
    assert!(pull.from.len() > BLOCKS as usize, "{:?}", pull.from);
}

#[tokio::test(start_paused = true)]
async fn a_pull_that_is_dropped_between_stages_keeps_its_slots_until_nothing_writes_to_them() {
    let world = World::new(1, BLOCKS, false);
    let owner = &world.owners[0];
    owner.hold_up_after(1, true);
    let mut pull = Pulling::start(&world);
    pull.until(0, BLOCKS as usize).await;
    pull.task.abort();
    tokio::time::sleep(Duration::from_secs(100)).await;
    let held = || (0..BLOCKS).all(|block| world.state(block) == State::Prepared);
    assert!(held());
    // One of two reads into each slot has settled.
    owner.resume(1);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(held() && owner.held_up() == 1);
    owner.resume(1);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!((0..BLOCKS).all(|block| world.state(block) == State::Free));

    // Reads that can be cancelled are, and the slots are free at once.
    let world = World::new(1, BLOCKS, false);
    world.owners[0].hold_up_after(1, false);
    let mut pull = Pulling::start(&world);
    pull.until(0, BLOCKS as usize).await;
    drop(pull.events);
    settle().await;
    assert!((0..BLOCKS).all(|block| world.state(block) == State::Free));
    world.owners[0].resume(2);
    assert!((0..BLOCKS).all(|block| world.is_untouched(block)));
}

#[tokio::test(start_paused = true)]
async fn at_the_deadline_a_block_is_unsettled_while_one_of_its_parts_is() {
    let world = World::new(1, BLOCKS, false);
    let owner = &world.owners[0];
    owner.hold_up_after(2, true);
    let start = Instant::now();
    let mut pull = Pulling::start(&world);
    pull.until(1, BLOCKS as usize).await;
    let (summary, outcomes) = pull.end().await;
    assert!(start.elapsed() <= TIMEOUT + Duration::from_millis(1));
    assert_eq!(
        outcomes,
        vec![Outcome::TimedOut { settled: false }; BLOCKS as usize]
    );
    assert_eq!((summary.pulled, summary.bytes), (0, 0));
    assert_eq!(world.state(0), State::Prepared);
    owner.resume(1);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!((0..BLOCKS).all(|block| world.state(block) == State::Free));
}

#[tokio::test(start_paused = true)]
async fn a_block_without_room_and_one_that_cannot_be_sealed_fail_alone() {
    let world = World::new(1, BLOCKS, false);
    *world.no_room.lock() = Some(0);
    *world.no_seal.lock() = Some(2);
    let (_, outcomes) = Pulling::start(&world).end().await;
    let expected = [
        Outcome::NoSpace,
        Outcome::Pulled,
        Outcome::DestinationFailed,
        Outcome::Pulled,
    ];
    assert_eq!(outcomes, expected);
    let states = (0..BLOCKS).map(|block| world.state(block));
    let free = [State::Free, State::Landed, State::Free, State::Landed];
    assert!(states.eq(free));
}

/// Seeds of the random pulls: a second.
const SEEDS: u64 = 400;

/// Owners overwrite, stand still, are lost and settle late, and callers go away: what was told is there, what landed is right,
/// and a slot is given back once, when nothing writes to it.
#[tokio::test(start_paused = true)]
async fn whatever_happens_between_stages_the_promises_hold() {
    let (mut landed, mut failed) = (0, 0);
    for seed in 0..SEEDS {
        let mut state = seed;
        let mut below = |n: u64| {
            // SplitMix64.
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (z ^ (z >> 31)) % n
        };
        let world = World::new(2, BLOCKS, false);
        for owner in &world.owners {
            owner.in_order.store(below(2) == 0, Ordering::Relaxed);
            owner.hold_up_after(below(4) as u32, below(2) == 0);
        }
        let mut pull = Pulling::start(&world);
        let mut dropped = false;
        for _ in 0..below(20) {
            let owner = &world.owners[below(2) as usize];
            match below(12) {
                0 => owner.overwrite(below(BLOCKS.into()) as u32),
                1 if below(4) == 0 => owner.cut(),
                2 if below(8) == 0 => {
                    pull.task.abort();
                    dropped = true;
                }
                3 => tokio::time::sleep(Duration::from_millis(below(3_000))).await,
                4..8 => owner.resume(below(3) as usize),
                _ => settle().await,
            }
            while let Ok(batch) = pull.events.try_recv() {
                pull.add(batch);
            }
            for (stage, range) in STAGES.into_iter().enumerate() {
                for block in &pull.landed[stage] {
                    let is =
                        world.holds(*block, range.clone()) || world.state(*block) == State::Free;
                    assert!(is, "seed {seed}: stage {stage} of {block}");
                }
            }
        }
        // What is held up settles at last.
        world
            .owners
            .iter()
            .for_each(|it| it.hold_up_after(u32::MAX, false));
        for _ in 0..50 {
            world.owners.iter().for_each(|it| it.resume(usize::MAX));
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        if !dropped {
            let (summary, outcomes) = pull.end().await;
            let right = outcomes.iter().filter(|it| **it == Outcome::Pulled);
            assert_eq!(summary.pulled, right.count() as u64, "seed {seed}");
        }
        for block in 0..BLOCKS {
            match world.state(block) {
                State::Landed => world.assert_delivered(block),
                state => {
                    assert_eq!(state, State::Free, "seed {seed}: block {block}");
                    assert!(world.is_untouched(block), "seed {seed}: block {block}");
                }
            }
            let is_landed = world.state(block) == State::Landed;
            landed += u64::from(is_landed);
            failed += u64::from(!is_landed);
        }
    }
    // A world in which all is well, or nothing, would prove nothing.
    assert!(landed > SEEDS && failed > SEEDS / 4, "{landed} {failed}");
}

/// A missing block does not make a read of one stage go on with the next.
#[tokio::test(start_paused = true)]
async fn reads_end_with_their_stage_whatever_is_missing() {
    let world = World::new(1, BLOCKS, false);
    *world.no_room.lock() = Some(0);
    world.owners[0].hold_up_after(1, false);
    let mut pull = Pulling::start(&world);
    pull.until(0, BLOCKS as usize - 1).await;
    settle().await;
    assert_eq!(world.owners[0].held_up(), 2);
    assert!((1..BLOCKS).all(|block| !world.holds(block, STAGES[1].clone())));
    world.owners[0].resume(2);
    let (_, outcomes) = pull.end().await;
    assert_eq!(outcomes[0], Outcome::NoSpace);
    assert_eq!(outcomes[1..], [Outcome::Pulled; BLOCKS as usize - 1]);
}

#[tokio::test(start_paused = true)]
async fn an_outage_and_a_slot_that_is_not_there_end_as_without_stages() {
    let world = World::new(1, BLOCKS, false);
    world.set_outage(true);
    let (_, outcomes) = Pulling::start(&world).end().await;
    assert_eq!(outcomes, vec![Outcome::LocateFailed; BLOCKS as usize]);
    let world = World::new(1, BLOCKS, false);
    world.set_slot_shift(1);
    let mut pull = Pulling::start(&world);
    let (_, outcomes) = pull.end().await;
    assert_eq!(outcomes[3], Outcome::Stale);
    assert!(
        pull.ended[3].detail.contains("no slot 4"),
        "{:?}",
        pull.ended
    );
}
