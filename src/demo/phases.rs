//! The demo's phases: publish, pull, and pull while the owner dies.

use std::{
    future::Future,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
    thread::available_parallelism,
    time::{Duration, Instant},
};

use kvferry_proto::{BlockHash, pb};
use sha2::{Digest, Sha256};
use tokio::{
    sync::oneshot,
    task::{JoinError, JoinSet, spawn_blocking},
};

use super::{
    engine::{Engine, EngineError, Pulled},
    report::Phase,
    workload::{BLOCK_BYTES, Workload, WorkloadError},
};
use crate::{cluster::ClusterError, commands::get::outcome_word, progress};

/// Blocks sealed in one call.
const SEAL_BLOCKS: usize = 64;
/// Pull calls a phase is cut into, so that there is something to take percentiles of.
const PULL_CALLS: usize = 32;
/// Pull calls at a time.
const IN_FLIGHT: usize = 4;
/// Pull calls of the phase in which the owner dies; it does so in the middle one.
const KILL_CALLS: usize = 8;
/// By when every block has an outcome.
const PULL_TIMEOUT_MS: u32 = 30_000;
/// Threads that compare digests.
const MAX_CHECKERS: usize = 8;

/// What went wrong, and with which block.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PhaseError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Workload(#[from] WorkloadError),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error("a thread of the demo ended: {0}")]
    Thread(#[from] JoinError),
    #[error("WRONG BYTES: block {block} on {node} differs from the input")]
    Mismatch { node: String, block: usize },
    #[error("block {block} did not come to {node}: {outcome} ({detail})")]
    NotPulled {
        node: String,
        block: usize,
        outcome: &'static str,
        detail: String,
    },
    #[error("block {block} came to {node} over {got:?}; it should have come over {want}")]
    Path {
        node: String,
        block: usize,
        want: &'static str,
        got: String,
    },
    #[error("the pull was over before its owner was gone: use more --bytes")]
    TooFast,
}

/// The engine on `owner` writes its blocks and seals them.
pub(super) async fn publish(
    owner: &mut Engine,
    workload: &Arc<Workload>,
) -> Result<Phase, PhaseError> {
    let bytes = workload.blocks() as u64 * BLOCK_BYTES;
    let bar = progress::bytes(bytes, "publish");
    let began = Instant::now();
    for range in batches(workload.all(), SEAL_BLOCKS) {
        let slots = slots(range.clone());
        owner.reserve(&slots).await?;
        let (memory, source) = (Arc::clone(&owner.memory), Arc::clone(workload));
        let blocks = range.clone();
        spawn_blocking(move || {
            let mut block = vec![0; BLOCK_BYTES as usize];
            for index in blocks {
                source.read_block(index, &mut block)?;
                memory.write(index as u32, &block)?;
            }
            Ok::<_, PhaseError>(())
        })
        .await??;
        let hashes = &workload.hashes()[range.clone()];
        owner.seal(&slots, hashes, parent(workload, &range)).await?;
        bar.inc(range.len() as u64 * BLOCK_BYTES);
    }
    bar.finish_and_clear();
    Ok(Phase {
        name: format!("publish on {}", owner.node),
        blocks: workload.blocks(),
        bytes,
        took: began.elapsed(),
        paths: [("written and sealed".to_owned(), workload.blocks())].into(),
        ..Phase::default()
    })
}

/// The engine on `reader` pulls every block, over `transport` and no other way.
pub(super) async fn pull(
    reader: &Engine,
    workload: &Arc<Workload>,
    transport: &'static str,
) -> Result<Phase, PhaseError> {
    let bar = progress::bytes(workload.blocks() as u64 * BLOCK_BYTES, "pull");
    let mut phase = Phase {
        name: format!("pull on {}", reader.node),
        ..Phase::default()
    };
    let mut calls = JoinSet::new();
    let mut waiting = batches(workload.all(), workload.blocks().div_ceil(PULL_CALLS));
    let began = Instant::now();
    loop {
        while calls.len() < IN_FLIGHT
            && let Some(range) = waiting.next()
        {
            let (bar, slots) = (bar.clone(), slots(range.clone()));
            let landed = move |blocks| bar.inc(blocks as u64 * BLOCK_BYTES);
            calls.spawn(pull_range(
                reader.clone(),
                Arc::clone(workload),
                range,
                slots,
                landed,
            ));
        }
        let Some(call) = calls.join_next().await else {
            break;
        };
        let (range, pulled) = call??;
        for (block, outcome) in range.zip(&pulled.outcomes) {
            must_be_pulled(reader, block, outcome)?;
            if outcome.transport != transport {
                return Err(PhaseError::Path {
                    node: reader.node.clone(),
                    block,
                    want: transport,
                    got: outcome.transport.clone(),
                });
            }
        }
        count(&mut phase, &pulled);
    }
    phase.took = began.elapsed();
    bar.finish_and_clear();
    let landed = workload.all().map(|block| (block, block as u32));
    verify(reader, workload, landed.collect()).await?;
    Ok(phase)
}

/// `reader` pulls everything anew while the first owner is killed; `replica` holds half of it.
pub(super) async fn pull_while_the_owner_dies(
    reader: &mut Engine,
    replica: &mut Engine,
    workload: &Arc<Workload>,
    kill: impl Future<Output = Result<(), ClusterError>>,
) -> Result<Phase, PhaseError> {
    let has_replica = |block: usize| block.is_multiple_of(2);
    let dropped = workload.all().filter(|block| !has_replica(*block));
    let dropped: Vec<BlockHash> = dropped.map(|block| workload.hashes()[block]).collect();
    replica.evict(&dropped).await?;
    reader.evict(&[]).await?;
    wipe(reader, workload.blocks()).await?;

    let began = Instant::now();
    let (calls, gone) = pull_and_kill(reader, workload, kill).await?;
    let mut phase = Phase {
        name: format!("kill owner, pull on {}", reader.node),
        took: began.elapsed(),
        ..Phase::default()
    };
    if !calls.iter().any(|(_, pulled)| pulled.ended > gone) {
        return Err(PhaseError::TooFast);
    }
    let mut landed = Vec::new();
    for (range, pulled) in &calls {
        for (block, outcome) in range.clone().zip(&pulled.outcomes) {
            match outcome.kind() {
                pb::OutcomeKind::Pulled => landed.push((block, moved_slot(workload, block))),
                // Its only owner is dead: said clearly, that is right.
                pb::OutcomeKind::Missing
                | pb::OutcomeKind::Unreachable
                | pb::OutcomeKind::TimedOut
                    if !has_replica(block) => {}
                _ => must_be_pulled(reader, block, outcome)?,
            }
        }
        count(&mut phase, pulled);
    }
    verify(reader, workload, landed).await?;
    Ok(phase)
}

type Call = (Range<usize>, Pulled);

/// Two calls at a time; the kill comes with the middle one's first block, and the calls after the
/// next one wait until it is done. Gives the calls, and when the owner was gone.
async fn pull_and_kill(
    reader: &Engine,
    workload: &Arc<Workload>,
    kill: impl Future<Output = Result<(), ClusterError>>,
) -> Result<(Vec<Call>, Instant), PhaseError> {
    let ranges: Vec<_> = batches(workload.all(), workload.blocks().div_ceil(KILL_CALLS)).collect();
    let middle = ranges.len() / 2;
    let (begun, first_block) = oneshot::channel();
    let begun = Arc::new(Mutex::new(Some(begun)));
    let start = |number: usize| {
        let range = ranges.get(number).cloned()?;
        let begun = (number == middle).then(|| Arc::clone(&begun));
        let landed = move |_| {
            let sender = begun.as_ref().and_then(|begun| {
                let mut begun = begun.lock().unwrap_or_else(PoisonError::into_inner);
                begun.take()
            });
            if let Some(sender) = sender {
                // Whoever waits for it has failed already where it does not listen.
                let _ = sender.send(());
            }
        };
        let slots = range.clone().map(|block| moved_slot(workload, block));
        let slots = slots.collect();
        Some(pull_range(
            reader.clone(),
            Arc::clone(workload),
            range,
            slots,
            landed,
        ))
    };
    let before = async {
        let mut done = Vec::new();
        let mut calls = JoinSet::new();
        for number in 0..=middle + 1 {
            if calls.len() == 2
                && let Some(call) = calls.join_next().await
            {
                done.push(call??);
            }
            if let Some(call) = start(number) {
                calls.spawn(call);
            }
        }
        while let Some(call) = calls.join_next().await {
            done.push(call??);
        }
        Ok::<_, PhaseError>(done)
    };
    let killed = async {
        // An error: the calls have failed, and say so themselves.
        let _ = first_block.await;
        kill.await?;
        Ok::<_, PhaseError>(Instant::now())
    };
    let (mut done, gone) = tokio::try_join!(before, killed)?;
    for number in middle + 2..ranges.len() {
        if let Some(call) = start(number) {
            done.push(call.await?);
        }
    }
    Ok((done, gone))
}

async fn pull_range(
    mut reader: Engine,
    workload: Arc<Workload>,
    range: Range<usize>,
    slots: Vec<u32>,
    landed: impl FnMut(usize),
) -> Result<Call, PhaseError> {
    let hashes = &workload.hashes()[range.clone()];
    let parent = parent(&workload, &range);
    let pulled = reader
        .pull(hashes, slots, parent, PULL_TIMEOUT_MS, landed)
        .await?;
    Ok((range, pulled))
}

/// Leaves nothing in the memory that a pull could be credited with.
async fn wipe(engine: &mut Engine, blocks: usize) -> Result<(), PhaseError> {
    for range in batches(0..blocks, SEAL_BLOCKS) {
        let slots = slots(range);
        engine.reserve(&slots).await?;
        let (memory, wiped) = (Arc::clone(&engine.memory), slots.clone());
        spawn_blocking(move || {
            let zeros = vec![0; BLOCK_BYTES as usize];
            wiped
                .iter()
                .try_for_each(|slot| memory.write(*slot, &zeros))
        })
        .await??;
        engine.abort(&slots).await?;
    }
    Ok(())
}

/// Reads blocks back from where they landed, and compares their SHA-256 with the input's.
async fn verify(
    engine: &Engine,
    workload: &Arc<Workload>,
    landed: Vec<(usize, u32)>,
) -> Result<(), PhaseError> {
    let checkers = available_parallelism().map_or(1, |cores| cores.get().min(MAX_CHECKERS));
    let share = landed.len().div_ceil(checkers).max(1);
    let mut running = JoinSet::new();
    for part in landed.chunks(share).map(<[_]>::to_vec) {
        let (memory, workload) = (Arc::clone(&engine.memory), Arc::clone(workload));
        let node = engine.node.clone();
        running.spawn_blocking(move || {
            let mut bytes = vec![0; BLOCK_BYTES as usize];
            for (block, slot) in part {
                memory.read(slot, &mut bytes)?;
                let found: [u8; 32] = Sha256::digest(&bytes).into();
                if found != workload.digest(block)? {
                    return Err(PhaseError::Mismatch { node, block });
                }
            }
            Ok(())
        });
    }
    while let Some(checked) = running.join_next().await {
        checked??;
    }
    Ok(())
}

fn must_be_pulled(
    reader: &Engine,
    block: usize,
    outcome: &pb::BlockOutcome,
) -> Result<(), PhaseError> {
    match outcome.kind() {
        pb::OutcomeKind::Pulled => Ok(()),
        kind => Err(PhaseError::NotPulled {
            node: reader.node.clone(),
            block,
            outcome: outcome_word(kind),
            detail: outcome.detail.clone(),
        }),
    }
}

fn count(phase: &mut Phase, pulled: &Pulled) {
    phase.locate_us.push(pulled.summary.locate_us);
    phase.pull_us.push(pulled.summary.total_us);
    for outcome in &pulled.outcomes {
        let path = match outcome.kind() {
            pb::OutcomeKind::Pulled => {
                phase.blocks += 1;
                phase.bytes += BLOCK_BYTES;
                format!("{} from {}", outcome.transport, outcome.source_node)
            }
            kind => outcome_word(kind).to_owned(),
        };
        *phase.paths.entry(path).or_default() += 1;
    }
}

fn batches(range: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    let size = size.max(1);
    let end = range.end;
    range
        .step_by(size)
        .map(move |start| start..end.min(start + size))
}

/// Block i lies in slot i, in every engine.
fn slots(range: Range<usize>) -> Vec<u32> {
    range.map(|block| block as u32).collect()
}

/// Another slot than the block lay in before.
fn moved_slot(workload: &Workload, block: usize) -> u32 {
    let blocks = workload.blocks();
    ((block + blocks / 2) % blocks) as u32
}

fn parent(workload: &Workload, range: &Range<usize>) -> Option<BlockHash> {
    range
        .start
        .checked_sub(1)
        .map(|before| workload.hashes()[before])
}

/// By when the demo gives a pull up, for its help text.
pub(super) const fn pull_timeout() -> Duration {
    Duration::from_millis(PULL_TIMEOUT_MS as u64)
}
