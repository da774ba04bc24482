//! The pieces of work. Each sets up, then does the same some times over, and checks what came of it.

use std::{collections::BTreeSet, hint::black_box, sync::Arc, time::Duration};

use kvferry_agent::{
    coordinators::Located,
    region::{
        Chain, Checksums, ClientId, Holder, PoolOptions, RegionCatalog, Seal, Store, StoreLimits,
        eviction::EvictionKind,
    },
    session::{ChangeLog, LogEntry},
    transfer::{
        Candidate, Candidates, Command, Event as PullEvent, PullEngine, PullRequest, SourceHint,
        SourceKey, TransferConfig,
    },
    transport::Capabilities,
};
use kvferry_coordinator::{
    answer_locate,
    directory::{Bounds, Directory, DirectoryConfig, Event, SessionId},
    parse,
};
use kvferry_memory::HugePages;
use kvferry_proto::{
    BlockHash, Checksum, Generation, Incarnation, Layout, NamespaceSpec, RegionId, Slot,
    chain::{DEFAULT_SEED, Sha256CborChain},
    pb,
};
use prost::Message;

use super::InstructionsError;
use crate::workload::{HASH_LEN, NAMESPACE, pack, put_hash, region, spec};

/// Blocks of a question, of a delta, of a pull.
const BLOCKS: u32 = 1_000;
/// Blocks there are in the directory, a thousand questions' worth on each of a few nodes.
const NODES: u64 = 8;
/// Slots of each node.
const SLOTS: u32 = 4 * BLOCKS;
/// Tokens of a block of a chain of hashes.
const CHAIN_TOKENS: u32 = 16;
/// Bytes that are summed.
const SUMMED: usize = 1 << 20;

/// A piece of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Work {
    /// The directory answers a question of 1,000 blocks.
    Locate,
    /// As `locate`, of blocks with two copies each, which are put in order.
    Copies,
    /// The directory takes in a delta that replaces 1,000 blocks.
    Apply,
    /// A delta of 1,000 blocks is encoded, decoded and parsed.
    Delta,
    /// An answer for 1,000 blocks is encoded, decoded and parsed.
    Answer,
    /// A pull engine brings 1,000 blocks from two owners.
    Pull,
    /// A store makes room for a chain of 1,000 blocks, seals it, and says so in a delta.
    Seal,
    /// The checksum of a MiB.
    Checksum,
    /// The hashes of a prompt of 1,000 blocks of 16 tokens, as vLLM makes them.
    Chain,
}

impl Work {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Locate,
        Self::Copies,
        Self::Apply,
        Self::Delta,
        Self::Answer,
        Self::Pull,
        Self::Seal,
        Self::Checksum,
        Self::Chain,
    ];

    /// As on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Locate => "locate",
            Self::Copies => "copies",
            Self::Apply => "apply",
            Self::Delta => "delta",
            Self::Answer => "answer",
            Self::Pull => "pull",
            Self::Seal => "seal",
            Self::Checksum => "checksum",
            Self::Chain => "chain",
        }
    }

    /// What one repetition has several of.
    #[must_use]
    pub fn unit(self) -> &'static str {
        match self {
            Self::Checksum => "KiB",
            _ => "block",
        }
    }

    /// How many.
    #[must_use]
    pub fn units(self) -> u64 {
        match self {
            Self::Checksum => SUMMED as u64 >> 10,
            _ => BLOCKS.into(),
        }
    }

    /// Does it.
    ///
    /// # Errors
    /// [`InstructionsError`].
    pub fn run(self, times: u32) -> Result<(), InstructionsError> {
        match self {
            Self::Locate => locate(times),
            Self::Copies => copies(times),
            Self::Apply => apply(times),
            Self::Delta => delta(times),
            Self::Answer => answer(times),
            Self::Pull => pull(times),
            Self::Seal => seal(times),
            Self::Checksum => checksum(times),
            Self::Chain => chain(times),
        }
    }
}

/// Between its beginning and its end instructions are counted ([`super::count`] knows its name), and
/// nowhere else: what comes before depends on the seeds of hash tables.
#[inline(never)]
fn measured<R>(work: impl FnOnce() -> R) -> R {
    black_box(work())
}

/// Replaces the blocks in slots from `slot` on by those numbered from `first` on.
fn change(seq: u64, slot: u32, first: u64) -> pb::Delta {
    let slots: Vec<u32> = (slot..slot + BLOCKS).collect();
    let sealed = pb::SealedSlots {
        hashes: Some(pb::PackedHashes {
            hash_len: HASH_LEN as u32,
            hashes: pack((0..BLOCKS as usize).map(|n| first + n as u64)),
        }),
        slots: slots.clone(),
        generations: vec![2 * seq; BLOCKS as usize],
        checksums: Vec::new(),
    };
    let change = pb::RegionChange {
        region: 1,
        removed_slots: if seq > u64::from(SLOTS / BLOCKS) {
            slots
        } else {
            Vec::new()
        },
        added: Some(sealed),
    };
    pb::Delta {
        seq,
        changes: vec![change],
        ..pb::Delta::default()
    }
}

fn wrong(what: &'static str) -> InstructionsError {
    InstructionsError::Wrong(what)
}

/// Nodes whose slots are all full; block `node * SLOTS + slot` is in each slot, of the first node of each
/// `copies` that hold the same.
fn directory(copies: u64) -> Result<Directory, InstructionsError> {
    let mut directory = Directory::new(DirectoryConfig {
        epoch: 1,
        hide_after: Duration::MAX,
        purge_after: Duration::MAX,
        bounds: Bounds::default(),
    });
    for node in 0..NODES {
        let session = SessionId(node);
        let hello = pb::Hello {
            node: format!("node{node}"),
            incarnation: 1,
            addresses: Some(pb::NodeAddresses::default()),
            oldest_delta: 1,
            next_delta: 1,
            ..pb::Hello::default()
        };
        let hello = parse::hello(hello).map_err(|_| wrong("a hello"))?;
        directory.handle(Duration::ZERO, Event::Hello { session, hello });
        let inventory = pb::Inventory {
            seq: 0,
            first: true,
            last: true,
            regions: vec![region(SLOTS)],
            sealed: Vec::new(),
        };
        let part = parse::inventory(inventory).map_err(|_| wrong("an inventory"))?;
        directory.handle(Duration::ZERO, Event::Inventory { session, part });
        for seq in 1..=u64::from(SLOTS / BLOCKS) {
            let slot = (seq as u32 - 1) * BLOCKS;
            let first = node / copies * copies;
            let delta = change(seq, slot, first * u64::from(SLOTS) + u64::from(slot));
            let delta = parse::delta(delta).map_err(|_| wrong("a delta"))?;
            directory.handle(Duration::ZERO, Event::Delta { session, delta });
        }
    }
    Ok(directory)
}

fn question(first: u64) -> pb::LocateRequest {
    pb::LocateRequest {
        namespace: NAMESPACE.into(),
        hashes: Some(pb::PackedHashes {
            hash_len: HASH_LEN as u32,
            hashes: pack((0..BLOCKS as usize).map(|n| first + n as u64)),
        }),
        ..pb::LocateRequest::default()
    }
}

fn locate(times: u32) -> Result<(), InstructionsError> {
    let directory = directory(1)?;
    for time in 0..times {
        let first = u64::from(time) * 7_001 % (NODES * u64::from(SLOTS) - u64::from(BLOCKS));
        let question = question(first);
        let answer = measured(|| answer_locate(&directory, question));
        if answer.map_err(|_| wrong("a locate"))?.slots.len() != BLOCKS as usize {
            return Err(wrong("a locate"));
        }
    }
    Ok(())
}

fn copies(times: u32) -> Result<(), InstructionsError> {
    let directory = directory(2)?;
    for time in 0..times {
        let question = question(u64::from(time) * 1_777 % u64::from(SLOTS - BLOCKS));
        let answer = measured(|| answer_locate(&directory, question));
        if answer.map_err(|_| wrong("a locate"))?.slots.len() != 2 * BLOCKS as usize {
            return Err(wrong("a locate"));
        }
    }
    Ok(())
}

fn apply(times: u32) -> Result<(), InstructionsError> {
    let mut directory = directory(1)?;
    let full = SLOTS / BLOCKS;
    for time in 0..times {
        let seq = u64::from(full + time) + 1;
        let slot = time % full * BLOCKS;
        let fresh = (1 << 40) + u64::from(time) * u64::from(BLOCKS);
        let delta = parse::delta(change(seq, slot, fresh)).map_err(|_| wrong("a delta"))?;
        let session = SessionId(0);
        let event = Event::Delta { session, delta };
        let effects = measured(|| directory.handle(Duration::ZERO, event));
        if effects.len() != 1 {
            return Err(wrong("a delta"));
        }
    }
    Ok(())
}

fn delta(times: u32) -> Result<(), InstructionsError> {
    for time in 0..times {
        let delta = change(u64::from(time) + 1, 0, u64::from(time) << 20);
        let parsed = measured(|| {
            let bytes = delta.encode_to_vec();
            let message = pb::Delta::decode(bytes.as_slice()).ok()?;
            parse::delta(message).ok()
        });
        if parsed.ok_or(wrong("a delta"))?.changes.len() != 1 {
            return Err(wrong("a delta"));
        }
    }
    Ok(())
}

fn answer(times: u32) -> Result<(), InstructionsError> {
    let answer = answer_locate(&directory(1)?, question(100)).map_err(|_| wrong("a locate"))?;
    let block_bytes = spec().layout.map_or(0, |layout| layout.plane_bytes);
    for _ in 0..times {
        let located = measured(|| {
            let bytes = answer.encode_to_vec();
            let message = pb::LocateResponse::decode(bytes.as_slice()).ok()?;
            Located::parse(message, BLOCKS as usize, block_bytes).ok()
        });
        if located.ok_or(wrong("an answer"))?.len() != BLOCKS as usize {
            return Err(wrong("an answer"));
        }
    }
    Ok(())
}

/// Everything succeeds at once: what is left is the engine's own work.
fn pull(times: u32) -> Result<(), InstructionsError> {
    const LINK: Capabilities = Capabilities {
        max_spans: 16_384,
        max_bytes: 256 << 20,
        window_bytes: 32 << 20,
        distance: 1,
        needs_checksum: false,
        span_bytes: 0,
    };
    let once = || {
        let now = Duration::ZERO;
        let request = PullRequest {
            blocks: BLOCKS,
            block_bytes: 1 << 16,
            timeout: Duration::from_secs(10),
            must_verify: BTreeSet::new(),
        };
        let mut engine = PullEngine::new(TransferConfig::default(), request, now);
        let mut pulled = 0;
        while let Some(command) = engine.poll_command() {
            let event = match command {
                Command::Locate { op, blocks } => {
                    let candidate = |block: u32, source| Candidate {
                        source: SourceKey(source),
                        region: RegionId(1),
                        slot: Slot(block),
                        generation: Generation(2),
                        checksum: None,
                        spans: 1,
                    };
                    let both = |block: &u32| {
                        Candidates::from_slice(&[candidate(*block, 0), candidate(*block, 1)])
                    };
                    PullEvent::Located {
                        op,
                        hints: [0, 1]
                            .map(|source| SourceHint {
                                source: SourceKey(source),
                                suspect: false,
                                distance: 1,
                            })
                            .into(),
                        candidates: blocks.iter().map(both).collect(),
                    }
                }
                Command::Prepare { blocks } => {
                    for block in blocks {
                        engine.handle(now, PullEvent::Prepared { block });
                    }
                    continue;
                }
                Command::Connect { source } => PullEvent::Connected {
                    source,
                    capabilities: LINK,
                },
                Command::Read { op, .. } => PullEvent::ReadDone { op },
                Command::ReadGenerations { op, slots, .. } => PullEvent::GenerationsDone {
                    op,
                    words: vec![2; slots.len()],
                },
                Command::Land { block, .. } => PullEvent::Landed { block },
                Command::Finish { outcome, .. } => {
                    pulled += u32::from(outcome == kvferry_agent::transfer::Outcome::Pulled);
                    continue;
                }
                _ => return Err(wrong("a pull")),
            };
            engine.handle(now, event);
        }
        match engine.is_drained() && pulled == BLOCKS {
            true => Ok(()),
            false => Err(wrong("a pull")),
        }
    };
    (0..times).try_for_each(|_| measured(once))
}

fn seal(times: u32) -> Result<(), InstructionsError> {
    let small = pb::NamespaceSpec {
        layout: Some((&Layout::new("bf16", 16, 1, 64).map_err(|_| wrong("a layout"))?).into()),
        ..spec()
    };
    let small = NamespaceSpec::try_from(small)?;
    let log = Arc::new(ChangeLog::new());
    let incarnation = Incarnation::new(1).map_err(kvferry_proto::InvalidMessage::from)?;
    let catalog = Arc::new(RegionCatalog::new(incarnation));
    let store = Store::new(catalog, Arc::clone(&log) as _, StoreLimits::default());
    let options = PoolOptions {
        bytes: u64::from(BLOCKS) * 64,
        hugepages: HugePages::Off,
        eviction: EvictionKind::Prefix,
    };
    let pool = store.add_pool(small, options)?.id;
    let holder = Holder::Client(ClientId(1));
    // The first time the pool is empty; from then on every block takes another's place.
    for time in 0..=u64::from(times) {
        let hashes = (0..u64::from(BLOCKS)).map(|n| hash(time << 20 | n));
        let hashes: Vec<BlockHash> = hashes.collect::<Result<_, _>>()?;
        let none = vec![None; hashes.len()];
        let seal = || {
            let slots = store
                .reserve_pool(Duration::ZERO, holder, pool, BLOCKS)
                .ok()?;
            let sealed = Seal {
                holder,
                region: pool,
                slots: &slots,
                hashes: &hashes,
                chain: Chain::From(None),
                checksums: Checksums::Given(&none),
                pin: None,
                private: false,
            };
            store.seal(Duration::ZERO, &sealed).ok()?;
            let (_, next) = log.bounds();
            match log.read(next) {
                LogEntry::Delta(delta) => Some(delta.to_message(next)),
                LogEntry::UpToDate | LogEntry::Forgotten => None,
            }
        };
        let said = match time {
            0 => seal(),
            _ => measured(seal),
        };
        said.ok_or(wrong("a seal"))?;
    }
    Ok(())
}

fn hash(number: u64) -> Result<BlockHash, InstructionsError> {
    let mut bytes = Vec::with_capacity(HASH_LEN);
    put_hash(number, &mut bytes);
    Ok(BlockHash::new(&bytes).map_err(kvferry_proto::InvalidMessage::from)?)
}

fn checksum(times: u32) -> Result<(), InstructionsError> {
    let bytes: Vec<u8> = (0..SUMMED as u32).map(|n| (n * 31) as u8).collect();
    let first = Checksum::of_bytes(&bytes);
    for _ in 0..times {
        if measured(|| Checksum::of_bytes(black_box(&bytes))) != first {
            return Err(wrong("a checksum"));
        }
    }
    Ok(())
}

fn chain(times: u32) -> Result<(), InstructionsError> {
    let tokens: Vec<u32> = (0..BLOCKS * CHAIN_TOKENS)
        .map(|n| n.wrapping_mul(2_654_435_761) % 128_000)
        .collect();
    let hashes = || {
        let mut chain = Sha256CborChain::new(DEFAULT_SEED);
        let blocks = tokens.chunks(CHAIN_TOKENS as usize);
        blocks.map(|block| chain.next(block)).last()
    };
    let first = hashes();
    for _ in 0..times {
        if measured(hashes) != first || first.is_none() {
            return Err(wrong("a chain"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_of_work_comes_to_what_it_should() {
        for work in Work::ALL {
            // Once round all slots and a little more.
            work.run(6)
                .unwrap_or_else(|error| panic!("{}: {error}", work.name()));
        }
    }
}
