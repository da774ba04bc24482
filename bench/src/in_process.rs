//! The directory without a wire.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use kvferry_coordinator::directory::{
    Answer, Bounds, Delta, Directory, DirectoryConfig, Event, Hello, LocateMode, LocateQuery,
    OwnerRow, RegionChange, SealedSlots, SessionId,
};
use kvferry_proto::{
    HashLen, Incarnation, InvalidMessage, Labels, NamespaceName, NodeAddresses, NodeId,
    PackedHashes, RegionId,
};

use crate::{
    BenchError,
    cpu_time::cpu_time,
    random_lines::RandomLines,
    stats::Rounds,
    workload::{self, HASH_LEN, Workload, mix, pack, put_hash},
};

/// Hashes of one look-up.
const BATCH: usize = 32_768;
/// Blocks of one delta.
const DELTA: usize = 4_096;

/// Memory the yardstick reads at most: beyond it only the translation caches could tell.
const YARDSTICK_BYTES: u64 = 4 << 30;

/// Figures of one directory.
#[derive(Debug)]
pub struct Figures {
    /// Random look-ups in a second of one core's time.
    pub lookups: Rounds,
    /// The yardstick: random cache lines in a second of one core's time, round by round in turn with
    /// the look-ups, from as much memory as the directory takes, 4 GiB at most.
    pub random_lines: Rounds,
    /// How long it takes to mark a node gone, and how many blocks it held: nobody is sent to it after.
    pub marked_gone: (Duration, u64),
    /// Blocks taken in in a second of one core's time.
    pub inserts: f64,
    /// The process' growth per block.
    pub bytes_per_block: f64,
}

/// Fills a directory and looks random blocks up, on one thread.
///
/// # Errors
/// [`BenchError`] where the directory answers wrongly.
pub fn run(workload: Workload, rounds: usize, time: Duration) -> Result<Figures, BenchError> {
    let before = crate::memory::resident_bytes();
    let mut directory = Directory::new(DirectoryConfig {
        epoch: 1,
        hide_after: Duration::from_secs(600),
        purge_after: Duration::from_secs(6_000),
        bounds: Bounds {
            slots: u64::MAX,
            ..Bounds::default()
        },
    });
    let start = cpu_time();
    for node in 0..workload.nodes {
        fill(&mut directory, workload, node)?;
    }
    let filled = cpu_time().saturating_sub(start);
    let inserts = workload.blocks as f64 / filled.as_secs_f64();
    let grown = crate::memory::resident_bytes().saturating_sub(before);
    let yardstick = RandomLines::new(grown.min(YARDSTICK_BYTES) as usize);
    let (mut lookups, mut random_lines) = (Rounds::default(), Rounds::default());
    for round in 0..rounds as u64 {
        random_lines.push(yardstick.read(round, time));
        lookups.push(look_up(&directory, workload, round, time)?);
    }
    let marked_gone = go(&mut directory, workload)?;
    Ok(Figures {
        marked_gone,
        lookups,
        random_lines,
        inserts,
        bytes_per_block: grown as f64 / workload.blocks as f64,
    })
}

fn fill(directory: &mut Directory, workload: Workload, node: u64) -> Result<(), BenchError> {
    let session = SessionId(node);
    let declaration = workload::region(workload.slots());
    let invalid = |error: &dyn std::error::Error| BenchError::Wrong(error.to_string());
    let hello = Hello {
        node: NodeId::new(&format!("node{node}")).map_err(|e| invalid(&e))?,
        incarnation: Incarnation::new(1).map_err(|e| invalid(&e))?,
        addresses: NodeAddresses::default(),
        labels: Labels::default(),
        coordinator_epoch: 1,
        oldest_delta: 1,
        next_delta: 1,
    };
    directory.handle(Duration::ZERO, Event::Hello { session, hello });
    let mut delta = Delta {
        seq: 1,
        regions_added: vec![kvferry_coordinator::directory::RegionDeclaration {
            region: RegionId(1),
            namespace: declaration
                .namespace
                .ok_or(InvalidMessage::Missing("namespace"))?
                .try_into()?,
            geometry: declaration
                .geometry
                .ok_or(InvalidMessage::Missing("geometry"))?
                .try_into()?,
            denied: None,
        }],
        ..Delta::default()
    };
    let hash_len = HashLen::new(HASH_LEN).map_err(|e| invalid(&e))?;
    let mut blocks = workload.blocks_of(node).peekable();
    let mut slot = 0;
    while blocks.peek().is_some() {
        let numbers: Vec<u64> = blocks.by_ref().take(DELTA).collect();
        let count = numbers.len() as u32;
        let hashes = PackedHashes::new(hash_len, pack(numbers.into_iter()));
        delta.changes = vec![RegionChange {
            region: RegionId(1),
            removed_slots: Vec::new(),
            added: SealedSlots {
                hashes: Some(hashes.map_err(|e| invalid(&e))?),
                slots: (slot..slot + count).collect(),
                generations: vec![2; count as usize],
                checksums: Vec::new(),
            },
        }];
        slot += count;
        let seq = delta.seq;
        let next = Delta {
            seq: seq + 1,
            ..Delta::default()
        };
        let delta = std::mem::replace(&mut delta, next);
        directory.handle(Duration::ZERO, Event::Delta { session, delta });
    }
    Ok(())
}

/// The first node says goodbye: only what must be done before others may look up again.
fn go(directory: &mut Directory, workload: Workload) -> Result<(Duration, u64), BenchError> {
    let start = Instant::now();
    let session = SessionId(0);
    directory.begin(Duration::ZERO, Event::Goodbye { session });
    let marked = start.elapsed();
    let blocks = workload.blocks_of(0);
    let first: Vec<u64> = workload.blocks_of(0).take(1).collect();
    let found = locate(directory, pack(first.into_iter()), &mut Columns::default())?;
    if found != 0 {
        return Err(BenchError::Wrong("a node that went is offered".into()));
    }
    Ok((marked, blocks.count() as u64))
}

/// Look-ups in a second; making the random hashes is not counted.
fn look_up(
    directory: &Directory,
    workload: Workload,
    seed: u64,
    time: Duration,
) -> Result<f64, BenchError> {
    let (mut random, mut found, mut spent) = (mix(seed + 1), 0, Duration::ZERO);
    let mut columns = Columns::default();
    while spent < time {
        let mut bytes = BytesMut::with_capacity(BATCH * HASH_LEN);
        for _ in 0..BATCH {
            random = mix(random.wrapping_add(0x9e37_79b9_7f4a_7c15));
            put_hash(random % workload.blocks, &mut bytes);
        }
        let hashes = bytes.freeze();
        let start = cpu_time();
        let located = locate(directory, hashes, &mut columns);
        spent += cpu_time().saturating_sub(start);
        let located = located?;
        found += located;
        if located != BATCH {
            let text = format!("{located} of {BATCH} blocks found");
            return Err(BenchError::Wrong(text));
        }
    }
    Ok(found as f64 / spent.as_secs_f64())
}

/// An answer whose memory is used again, as a server's is that has answered before.
#[derive(Debug, Default)]
struct Columns {
    counts: Vec<u32>,
    rows: Vec<u32>,
    slots: Vec<u32>,
    generations: Vec<u64>,
}

impl Columns {
    fn clear(&mut self) {
        self.counts.clear();
        self.rows.clear();
        self.slots.clear();
        self.generations.clear();
    }
}

impl Answer for Columns {
    fn owner(&mut self, _: OwnerRow<'_>) {}
    fn candidate(&mut self, row: u32, slot: u32, generation: u64, _: u64) {
        self.rows.push(row);
        self.slots.push(slot);
        self.generations.push(generation);
    }
    fn block(&mut self, candidates: u32) {
        self.counts.push(candidates);
    }
    fn location(&mut self, _: &str) {}
    fn located(&mut self, _: u32) {}
}

/// How many candidates there are of some blocks, at most one each.
fn locate(
    directory: &Directory,
    hashes: Bytes,
    columns: &mut Columns,
) -> Result<usize, BenchError> {
    let namespace = NamespaceName::new(workload::NAMESPACE).map_err(InvalidMessage::from)?;
    let hash_len = HashLen::new(HASH_LEN).map_err(InvalidMessage::from)?;
    let hashes = PackedHashes::new(hash_len, hashes).map_err(InvalidMessage::from)?;
    let query = LocateQuery {
        namespace: &namespace,
        hashes: &hashes,
        mode: LocateMode::Set,
        max_candidates: 1,
        host_id: "",
        prefer: &Labels::default(),
        exclude: None,
        draw: 0,
        locations: false,
    };
    columns.clear();
    let located = directory.locate_into(&query, columns);
    located.map_err(|error| BenchError::Wrong(error.to_string()))?;
    Ok(columns.slots.len())
}
