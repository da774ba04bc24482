//! One point: its blocks, its engines, and the rounds in which pulls and yardsticks take turns.

use std::{collections::BTreeMap, time::Duration};

use kvferry_proto::{BlockHash, ChecksumPolicy, HashLen, Layout, NamespaceName, NamespaceSpec, pb};

use super::{
    TransferError,
    engine::{AgentAt, Engine},
    point::{Point, Transport},
    process,
    result::PointResult,
    rounds::Round,
    yardstick::{Kind, Task, Yardstick},
};

/// Bytes of a block hash: as many as engines use.
const HASH_BYTES: usize = 32;
/// Share of the machine that others may take before a round is not counted, while there are others.
const QUIET: f64 = 0.08;
/// Rounds that are tried for every one that is asked for, where others take too much.
const PATIENCE: u32 = 3;
/// Between the extremes of a yardstick, as a share of its median: more is no machine to measure on.
const STEADY: f64 = 0.5;

/// How long and how often.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Rounds that count.
    pub rounds: u32,
    /// Of each side in each round.
    pub slice: Duration,
    /// How long a point may wait, in all, for others to leave the machine alone.
    pub patience: Duration,
}

/// The processes a point is measured with.
#[derive(Debug)]
pub struct Fleet {
    /// Has the blocks.
    pub owner: AgentAt,
    /// Pull them.
    pub readers: Vec<AgentAt>,
    /// Their coordinator's process.
    pub coordinator: u32,
}

/// A place for each of `count` things, so that neighbours are not neighbours there.
pub(super) fn permuted(index: u64, count: u64) -> u64 {
    // A prime beyond any number of blocks: coprime with every count.
    index.wrapping_mul(1_000_003) % count.max(1)
}

/// The yardsticks of a point, the headline first.
#[must_use]
pub fn yardsticks(point: &Point, slice: Duration, read_bw: bool) -> Vec<Task> {
    let task = |kind, lanes| Task {
        kind,
        block_bytes: point.block_bytes(),
        pieces: 1,
        batch: point.batch,
        lanes,
        millis: slice.as_millis() as u64,
    };
    match point.transport {
        // The card by itself, and what people have without one.
        Transport::Rdma => {
            let card = read_bw.then(|| task(Kind::ReadBw, 1)).into_iter();
            card.chain([task(Kind::Sockets, 1), task(Kind::Sockets, 4)])
                .collect()
        }
        // By TLS too: what it costs shows in how much less of the same is reached.
        Transport::Tcp | Transport::TcpTls if point.batch < 4 => vec![task(Kind::Sockets, 1)],
        Transport::Tcp | Transport::TcpTls => {
            let mut tasks = vec![task(Kind::Sockets, 1), task(Kind::Sockets, 4)];
            // The same blocks in as many pieces: what gathering and scattering them costs sockets.
            if point.planes > 1 {
                tasks.push(Task {
                    pieces: point.planes,
                    ..task(Kind::Sockets, 1)
                });
            }
            // The whole batch as one piece: what sockets give where nobody asks for blocks.
            tasks.push(Task {
                block_bytes: point.batch_bytes().min(YARDSTICK_BYTES),
                batch: 1,
                ..task(Kind::Sockets, 1)
            });
            tasks
        }
        Transport::Shm => vec![task(Kind::Memcpy, 1), task(Kind::Memcpy, 2)],
    }
}

/// Memory of each yardstick process: more than any cache.
pub const YARDSTICK_BYTES: u64 = 256 << 20;

/// Measures a point. `number` tells its blocks from those of other points; `tick` is called after
/// every round.
///
/// # Errors
/// [`TransferError`]: also where a single byte is wrong.
pub async fn measure(
    point: &Point,
    number: usize,
    fleet: &Fleet,
    yardstick: &mut Yardstick,
    effort: Effort,
    mut tick: impl FnMut(),
) -> Result<PointResult, TransferError> {
    let mut run = Run::start(point, number, fleet).await?;
    run.warm_up().await?;
    let tasks = yardsticks(point, effort.slice, yardstick.has_read_bw());
    for task in &tasks {
        let warm = Task {
            millis: task.millis / 4,
            ..task.clone()
        };
        yardstick.measure(&warm).await?;
    }
    let (mut rounds, mut quiet) = (Vec::new(), 0);
    let most = effort.rounds * PATIENCE;
    let mut patience = effort.patience;
    while quiet < effort.rounds && (rounds.len() as u32) < most {
        patience = process::wait_for_quiet(QUIET, patience).await;
        let round = Round::run(&mut run, yardstick, &tasks, effort.slice, rounds.len()).await?;
        if round.others <= QUIET {
            quiet += 1;
            tick();
        }
        rounds.push(round);
    }
    run.stop().await?;
    let noisy = quiet < effort.rounds;
    if noisy {
        // The quietest of them.
        rounds.sort_by(|a, b| a.others.total_cmp(&b.others));
        rounds.truncate(effort.rounds as usize);
        (quiet..effort.rounds).for_each(|_| tick());
    } else {
        rounds.retain(|round| round.others <= QUIET);
    }
    let mut result = super::rounds::summary(point, &tasks, &rounds);
    if noisy {
        result.noise = format!("others took {:.0} % of the machine", 100.0 * result.others);
    } else if result
        .headline()
        .is_some_and(|yardstick| yardstick.gb_per_s.relative() > STEADY)
    {
        result.noise = "the yardstick itself was unsteady".to_owned();
    }
    Ok(result)
}

/// How fast pulls between agents that run already are, without a yardstick beside them, in bytes per second.
/// Everything that landed is compared. `number` as in [`measure`].
///
/// # Errors
/// As [`measure`].
pub async fn speed(
    point: &Point,
    number: usize,
    fleet: &Fleet,
    slice: Duration,
) -> Result<f64, TransferError> {
    let mut run = Run::start(point, number, fleet).await?;
    run.warm_up().await?;
    let (bytes, took) = super::rounds::bytes_of(&mut run, slice).await?;
    run.compare()?;
    run.stop().await?;
    Ok(bytes as f64 / took.as_secs_f64())
}

/// A point's blocks and engines.
pub(super) struct Run {
    pub(super) point: Point,
    pub(super) owner: Engine,
    pub(super) readers: Vec<Reader>,
    pub(super) coordinator: u32,
    /// Of all blocks, set after set.
    hashes: Vec<BlockHash>,
    /// As calls have them, a set each.
    pub(super) packed: Vec<pb::PackedHashes>,
}

/// An engine that pulls.
pub(super) struct Reader {
    pub(super) engine: Engine,
    /// Calls so far.
    pub(super) calls: u64,
    /// Which set lies in which of its groups of slots, since bytes were last compared.
    pub(super) landed: BTreeMap<u32, u32>,
}

impl Run {
    async fn start(point: &Point, number: usize, fleet: &Fleet) -> Result<Self, TransferError> {
        let spec = NamespaceSpec {
            name: NamespaceName::new(&format!("bench/{number}"))
                .map_err(kvferry_proto::InvalidMessage::from)?,
            layout: Layout::new("bf16", 16, point.planes, point.plane_bytes)
                .map_err(|error| TransferError::Point(error.to_string()))?,
            hash_len: HashLen::new(HASH_BYTES)?,
            checksum: match point.checksum {
                true => ChecksumPolicy::Always,
                false => ChecksumPolicy::Off,
            },
        };
        let blocks = point.sets() * point.batch;
        let mut owner = Engine::start(&fleet.owner, &spec, point, blocks).await?;
        let hashes = (0..blocks)
            .map(|block| hash(number as u64, u64::from(block)))
            .collect::<Result<Vec<_>, _>>()?;
        tokio::task::block_in_place(|| fill(&owner, point, blocks))?;
        if !point.publish {
            owner.publish(&owner_slots(blocks), &hashes).await?;
        }
        let mut readers = Vec::new();
        for at in fleet.readers.iter().take(point.readers as usize) {
            let slots = point.reader_sets() * point.batch;
            readers.push(Reader {
                engine: Engine::start(at, &spec, point, slots).await?,
                calls: 0,
                landed: BTreeMap::new(),
            });
        }
        let packed = hashes
            .chunks(point.batch as usize)
            .map(|set| owner.pack(set))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            point: point.clone(),
            owner,
            readers,
            coordinator: fleet.coordinator,
            hashes,
            packed,
        })
    }

    /// Every set once, so that pages, links and connections are there.
    async fn warm_up(&mut self) -> Result<(), TransferError> {
        let sets = self
            .point
            .sets()
            .min(WARM_SETS)
            .max(self.point.reader_sets());
        for _ in 0..sets {
            super::rounds::one_call_each(self).await?;
        }
        self.compare().map(drop)
    }

    /// Publishes everything anew, as after a prefill.
    pub(super) async fn publish_all(&mut self) -> Result<(), TransferError> {
        let slots = owner_slots(self.hashes.len() as u32);
        self.owner.publish(&slots, &self.hashes).await
    }

    /// Compares what landed since the last time, byte by byte; gives the bytes.
    pub(super) fn compare(&mut self) -> Result<u64, TransferError> {
        let (batch, bytes) = (self.point.batch, self.point.block_bytes() as usize);
        let blocks = u64::from(self.point.sets() * batch);
        let (mut here, mut there) = (vec![0; bytes], vec![0; bytes]);
        let mut compared = 0;
        for reader in &mut self.readers {
            for (group, set) in std::mem::take(&mut reader.landed) {
                for place in 0..batch {
                    let block = u64::from(set * batch + place);
                    self.owner
                        .read(permuted(block, blocks) as u32, &mut there)?;
                    reader.engine.read(group * batch + place, &mut here)?;
                    if here != there {
                        let node = reader.engine.at.node.clone();
                        return Err(TransferError::WrongBytes { block, node });
                    }
                    compared += bytes as u64;
                }
            }
        }
        Ok(compared)
    }

    async fn stop(self) -> Result<(), TransferError> {
        for reader in self.readers {
            reader.engine.stop().await?;
        }
        self.owner.stop().await
    }
}

/// Most calls of a warm-up: a connection and its window are warm long before.
const WARM_SETS: u32 = 4096;

fn owner_slots(blocks: u32) -> Vec<u32> {
    let place = |block| permuted(u64::from(block), u64::from(blocks)) as u32;
    (0..blocks).map(place).collect()
}

/// Different bytes in every block.
fn fill(owner: &Engine, point: &Point, blocks: u32) -> Result<(), TransferError> {
    let mut block = vec![0; point.block_bytes() as usize];
    for slot in 0..blocks {
        let mut state = u64::from(slot).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for word in block.chunks_exact_mut(8) {
            word.copy_from_slice(&next(&mut state).to_le_bytes());
        }
        owner.write(slot, &block)?;
    }
    Ok(())
}

fn hash(point: u64, block: u64) -> Result<BlockHash, TransferError> {
    let mut state = point.wrapping_mul(0x51_7c_c1_b7_27_22_0a_95) ^ block;
    let mut bytes = [0; HASH_BYTES];
    for word in bytes.chunks_exact_mut(8) {
        word.copy_from_slice(&next(&mut state).to_le_bytes());
    }
    Ok(BlockHash::new(&bytes)?)
}

/// SplitMix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut word = *state;
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_has_a_place_of_its_own() {
        for point in super::super::point::usual() {
            let blocks = point.sets() * point.batch;
            let mut slots = owner_slots(blocks);
            slots.sort_unstable();
            assert!(slots.into_iter().eq(0..blocks), "{}", point.name());
        }
    }

    #[test]
    fn hashes_differ() {
        assert_ne!(hash(1, 0).unwrap(), hash(1, 1).unwrap());
        assert_ne!(hash(1, 0).unwrap(), hash(2, 0).unwrap());
    }
}
