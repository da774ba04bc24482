//! The heart: an owner that overwrites its slots as fast as it can, and readers that never accept a
//! wrong byte.
//!
//! `KVFERRY_TORTURE_SECONDS` lengthens it; a minute is millions of reads.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use kvferry_agent::{
    region::Region,
    transport::{Link, LocalSpans, ReadRequest},
};
use kvferry_memory::HostMemory;
use kvferry_proto::{Part, RegionId, RemoteSpan};

use crate::world::{PATIENCE, World, insert, local, read_with_words, settled};

const ID: RegionId = RegionId(50);
const BLOCK: u64 = 4096;
const TORTURE_SLOTS: u32 = 256;
/// Slots read at a time.
const BATCH: usize = 16;
const READERS: u64 = 3;
const DEFAULT_SECONDS: u64 = 3;

#[derive(Debug, Default)]
struct Tally {
    /// Blocks whose bytes were fetched.
    reads: u64,
    accepted: u64,
    stale: u64,
    /// Accepted blocks with a wrong byte: must never be.
    wrong: u64,
    /// Blocks that a reader without the second look at the generation would have accepted, and been wrong:
    /// the race is real.
    wrong_unchecked: u64,
}

fn mix(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What a slot holds when it is sealed with a generation.
fn block(slot: u32, generation: u64) -> Vec<u8> {
    let word = mix(u64::from(slot) << 48 ^ generation);
    word.to_le_bytes().repeat(BLOCK as usize / 8)
}

/// Overwrites without pause: the first slots all the time, the last ones now and then.
fn overwrite(region: &Region, stop: &AtomicBool) {
    let mut random = 1;
    while !stop.load(Ordering::Relaxed) {
        random = mix(random);
        // Each eighth of the slots is written a fourth as often as the one before.
        let eighth = (random.trailing_zeros() / 2).min(7);
        let slot = eighth * (TORTURE_SLOTS / 8) + (random >> 32) as u32 % (TORTURE_SLOTS / 8);
        let generation = region.generations.begin_write(slot).unwrap() + 1;
        region
            .memory
            .write_at(u64::from(slot) * BLOCK, &block(slot, generation))
            .unwrap();
        assert_eq!(region.generations.seal(slot), Some(generation));
    }
}

fn words_of(slots: &[u32], memory: &Arc<HostMemory>) -> ReadRequest {
    let spans = slots.iter().map(|slot| RemoteSpan {
        region: ID,
        part: Part::Generations,
        offset: u64::from(*slot) * 8,
        len: 8,
    });
    ReadRequest {
        remote: spans.collect(),
        local: LocalSpans {
            memory: Arc::clone(memory),
            ranges: vec![0..8 * slots.len() as u64],
        },
    }
}

fn load(slots: &[u32], memory: &HostMemory) -> Vec<u64> {
    (0..slots.len() as u64)
        .map(|i| memory.load_word(i * 8).unwrap())
        .collect()
}

async fn read_without_pause(link: Arc<dyn Link>, seed: u64, until: Instant) -> Tally {
    let (words, blocks) = (local(8 * BATCH as u64), local(BLOCK * BATCH as u64));
    let (mut tally, mut random) = (Tally::default(), seed);
    let mut together = false;
    while Instant::now() < until {
        let slots: Vec<u32> = (0..BATCH)
            .map(|_| {
                random = mix(random);
                random as u32 % TORTURE_SLOTS
            })
            .collect();
        settled(link.read(words_of(&slots, &words))).await.unwrap();
        let hinted = load(&slots, &words);
        let spans = slots.iter().map(|slot| RemoteSpan {
            region: ID,
            part: Part::Data,
            offset: u64::from(*slot) * BLOCK,
            len: BLOCK,
        });
        let data = ReadRequest {
            remote: spans.collect(),
            local: LocalSpans {
                memory: Arc::clone(&blocks),
                ranges: vec![0..BLOCK * BATCH as u64],
            },
        };
        // Both ways, where the link has two.
        together = !together;
        if together {
            read_with_words(&link, data, words_of(&slots, &words)).await;
        } else {
            settled(link.read(data)).await.unwrap();
            settled(link.read(words_of(&slots, &words))).await.unwrap();
        }
        let validated = load(&slots, &words);
        for (i, slot) in slots.iter().enumerate() {
            tally.judge(&blocks, i as u64, *slot, hinted[i], validated[i]);
        }
    }
    tally
}

impl Tally {
    fn judge(&mut self, blocks: &HostMemory, at: u64, slot: u32, hinted: u64, validated: u64) {
        self.reads += 1;
        let sealed = hinted.is_multiple_of(2);
        let mut bytes = vec![0; BLOCK as usize];
        blocks.read_at(at * BLOCK, &mut bytes).unwrap();
        let right = bytes == block(slot, hinted);
        if sealed && hinted == validated {
            self.accepted += 1;
            self.wrong += u64::from(!right);
        } else {
            self.stale += 1;
            self.wrong_unchecked += u64::from(sealed && !right);
        }
    }

    fn add(&mut self, other: &Self) {
        self.reads += other.reads;
        self.accepted += other.accepted;
        self.stale += other.stale;
        self.wrong += other.wrong;
        self.wrong_unchecked += other.wrong_unchecked;
    }
}

pub async fn torture(world: impl World) {
    let seconds = std::env::var("KVFERRY_TORTURE_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(DEFAULT_SECONDS);
    let bytes = u64::from(TORTURE_SLOTS) * BLOCK;
    let region = insert(&world.catalog(), ID, world.memory(bytes), TORTURE_SLOTS);
    for slot in 0..TORTURE_SLOTS {
        let generation = region.generations.begin_write(slot).unwrap() + 1;
        region
            .memory
            .write_at(u64::from(slot) * BLOCK, &block(slot, generation))
            .unwrap();
        region.generations.seal(slot).unwrap();
    }
    let stop = Arc::new(AtomicBool::new(false));
    let (owner, stopped) = (Arc::clone(&region), Arc::clone(&stop));
    let writer = std::thread::spawn(move || overwrite(&owner, &stopped));

    let link = world.link().await;
    let mut total = Tally::default();
    let start = Instant::now();
    let length = Duration::from_secs(seconds);
    // On a machine that is busy with other things it goes on until both kinds were seen.
    while start.elapsed() < length
        || (total.accepted == 0 || total.wrong_unchecked == 0) && start.elapsed() < PATIENCE
    {
        let until = Instant::now() + length.min(Duration::from_secs(1));
        let readers: Vec<_> = (0..READERS)
            .map(|i| {
                let seed = mix(total.reads + i);
                tokio::spawn(read_without_pause(Arc::clone(&link), seed, until))
            })
            .collect();
        for reader in readers {
            total.add(&reader.await.unwrap());
        }
    }
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    println!("overwritten while read, {:?}: {total:?}", link.kind());
    assert_eq!(total.wrong, 0, "{total:?}");
    assert!(total.accepted > 0 && total.stale > 0, "{total:?}");
    assert!(
        total.wrong_unchecked > 0,
        "the check was never needed, so this proves nothing: {total:?}"
    );
}
