//! The directory without a wire.

use std::time::Duration;

use bytes::BytesMut;
use kvferry_coordinator::directory::{
    Bounds, Delta, Directory, DirectoryConfig, Event, Hello, LocateMode, LocateQuery, RegionChange,
    SealedSlots, SessionId,
};
use kvferry_proto::{HashLen, Incarnation, Labels, NodeAddresses, NodeId, PackedHashes, RegionId};

use crate::{
    BenchError,
    stats::Rounds,
    workload::{self, HASH_LEN, Workload, mix, pack, put_hash},
};

/// Hashes of one look-up.
const BATCH: usize = 32_768;
/// Blocks of one delta.
const DELTA: usize = 4_096;

/// Figures of one directory.
#[derive(Debug)]
pub struct Figures {
    /// Random look-ups in a second of one core's time.
    pub lookups: Rounds,
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
    let mut lookups = Rounds::default();
    for round in 0..rounds {
        lookups.push(look_up(&directory, workload, round as u64, time)?);
    }
    Ok(Figures {
        lookups,
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
                .ok_or(kvferry_proto::InvalidMessage::Missing("namespace"))?
                .try_into()?,
            geometry: declaration
                .geometry
                .ok_or(kvferry_proto::InvalidMessage::Missing("geometry"))?
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

/// Time this thread had on a core: on a machine that others use, too, the time that passes says
/// more of them than of us. Zero where the system doesn't say.
fn cpu_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = text.split_whitespace().next().and_then(|n| n.parse().ok());
    Duration::from_nanos(nanos.unwrap_or(0))
}

/// Look-ups in a second; making the random hashes is not counted.
fn look_up(
    directory: &Directory,
    workload: Workload,
    seed: u64,
    time: Duration,
) -> Result<f64, BenchError> {
    let namespace = workload::spec().name;
    let namespace = kvferry_proto::NamespaceName::new(&namespace)
        .map_err(kvferry_proto::InvalidMessage::from)?;
    let hash_len = HashLen::new(HASH_LEN).map_err(kvferry_proto::InvalidMessage::from)?;
    let (mut random, mut found, mut spent) = (mix(seed + 1), 0, Duration::ZERO);
    while spent < time {
        let mut bytes = BytesMut::with_capacity(BATCH * HASH_LEN);
        for _ in 0..BATCH {
            random = mix(random.wrapping_add(0x9e37_79b9_7f4a_7c15));
            put_hash(random % workload.blocks, &mut bytes);
        }
        let hashes = PackedHashes::new(hash_len, bytes.freeze())
            .map_err(kvferry_proto::InvalidMessage::from)?;
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
        let start = cpu_time();
        let located = directory.locate(&query);
        spent += cpu_time().saturating_sub(start);
        let located = located.map_err(|error| BenchError::Wrong(error.to_string()))?;
        found += located.slots.len();
        if located.slots.len() != BATCH {
            let text = format!("{} of {BATCH} blocks found", located.slots.len());
            return Err(BenchError::Wrong(text));
        }
    }
    Ok(found as f64 / spent.as_secs_f64())
}
