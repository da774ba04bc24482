//! What every transport must do.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use kvferry_agent::transport::{ConnectError, LocalSpans, PeerTarget, ReadError, ReadRequest};
use kvferry_memory::{AccessError, HostMemory};
use kvferry_proto::{Incarnation, Part, RegionId, RemoteSpan};

use crate::world::{
    PATIENCE, REGION, REGION_BYTES, SLOTS, World, add_memory, check_alive, contents, data,
    eventually, insert, local, pattern, read, read_with_words, settled, whole, words,
};

/// Ranges of `len` bytes with gaps between them.
fn planes(count: u64, len: u64, stride: u64) -> Vec<Range<u64>> {
    (0..count).map(|i| i * stride..i * stride + len).collect()
}

async fn gather(world: &impl World, remote: &[Range<u64>], into: &[Range<u64>]) {
    let link = world.link().await;
    let end = into.iter().map(|range| range.end).max().unwrap();
    let memory = local(end + 100);
    memory
        .write_at(0, &vec![0xEE; memory.len() as usize])
        .unwrap();
    let spans = remote.iter().cloned().map(data).collect();
    let target = LocalSpans {
        memory: Arc::clone(&memory),
        ranges: into.to_vec(),
    };
    read(&link, spans, target).await.unwrap();
    let expected: Vec<u8> = remote.iter().cloned().flat_map(pattern).collect();
    let mut at = 0;
    let mut touched = vec![false; memory.len() as usize];
    for range in into {
        let len = (range.end - range.start) as usize;
        assert_eq!(contents(&memory, range.clone()), expected[at..at + len]);
        at += len;
        touched[range.start as usize..range.end as usize].fill(true);
    }
    let all = contents(&memory, 0..memory.len());
    let strays = all
        .iter()
        .zip(&touched)
        .filter(|(byte, touched)| !**touched && **byte != 0xEE);
    assert_eq!(
        strays.count(),
        0,
        "bytes outside the local spans were written"
    );
}

pub async fn differently_cut(world: impl World) {
    let one = [100..100 + 64 * 4096];
    let many = planes(64, 4096, 10_000);
    gather(&world, &one, &many).await;
    gather(&world, &many, &one).await;
    gather(&world, &planes(64, 4096, 9000), &planes(128, 2048, 3000)).await;
    // Single bytes, and more pieces than one system call takes.
    gather(&world, &planes(3000, 1, 7), &planes(3000, 1, 3)).await;
    gather(
        &world,
        &planes(3000, 100, 1000),
        &planes(1, 300_000, 300_000),
    )
    .await;
    // Neighbours and empty spans.
    gather(
        &world,
        &[0..10, 10..20, 20..20, 500..505],
        &[0..3, 3..3, 3..20, 30..35],
    )
    .await;
}

#[allow(clippy::single_range_in_vec_init)]
pub async fn large(world: impl World) {
    let bytes = 64 << 20;
    let id = RegionId(8);
    add_memory(&world.catalog(), id, world.memory(bytes), 32);
    let link = world.link().await;
    let memory = local(bytes);
    let span = RemoteSpan {
        region: id,
        ..data(0..bytes)
    };
    let before = link.received_bytes();
    read(&link, vec![span], whole(&memory)).await.unwrap();
    assert_eq!(link.received_bytes() - before, bytes);
    let step = 4 << 20;
    for at in (0..bytes).step_by(step) {
        let range = at..at + step as u64;
        assert!(
            contents(&memory, range.clone()) == pattern(range),
            "near byte {at}"
        );
    }
}

pub async fn concurrent(world: impl World) {
    let link = world.link().await;
    let mut reads = Vec::new();
    for i in 0..400u64 {
        // From a few bytes to a quarter of a mebibyte, all over the region.
        let len = 1 + (i * 7919) % if i % 10 == 0 { 262_144 } else { 5000 };
        let start = (i * 104_729) % (REGION_BYTES - len);
        let memory = local(len);
        let pending = link.read(ReadRequest {
            remote: vec![data(start..start + len)],
            local: whole(&memory),
        });
        reads.push((start..start + len, memory, pending));
    }
    for (range, memory, pending) in reads {
        settled(pending).await.unwrap();
        assert_eq!(contents(&memory, 0..memory.len()), pattern(range));
    }
}

pub async fn out_of_range(world: impl World) {
    let link = world.link().await;
    let table = u64::from(SLOTS);
    let bad = [
        data(REGION_BYTES - 4..REGION_BYTES + 4),
        data(1 << 40..(1 << 40) + 8),
        words(table - 1..table + 1),
        RemoteSpan {
            offset: 4,
            len: 8,
            ..words(0..1)
        },
    ];
    for span in bad {
        let memory = local(span.len + 10);
        let target = LocalSpans {
            memory: Arc::clone(&memory),
            ranges: vec![0..10, 10..10 + span.len],
        };
        let result = read(&link, vec![data(0..10), span], target).await;
        assert!(
            matches!(result, Err(ReadError::SpanRefused { .. })),
            "{span:?}: {result:?}"
        );
        check_alive(&link).await;
    }
}

/// Data and words in one read: differently cut, over the bounds, and beside a span that is refused.
pub async fn words_with_data(world: impl World) {
    let link = world.link().await;
    let request = |remote: Vec<RemoteSpan>, memory: &Arc<HostMemory>, ranges| ReadRequest {
        remote,
        local: LocalSpans {
            memory: Arc::clone(memory),
            ranges,
        },
    };
    let (bytes, table) = (local(10_000), local(80));
    let spans = || vec![data(5..4005), data(9000..9100)];
    let ranges = || vec![0..100, 200..4200];
    let wanted = || request(vec![words(3..5), words(9..10)], &table, vec![56..72, 8..16]);
    read_with_words(&link, request(spans(), &bytes, ranges()), wanted()).await;
    let expected: Vec<u8> = [pattern(5..4005), pattern(9000..9100)].concat();
    assert_eq!(contents(&bytes, 0..100), expected[..100]);
    assert_eq!(contents(&bytes, 200..4200), expected[100..]);
    for at in [8, 56, 64] {
        // Never sealed.
        assert_eq!(table.load_word(at).unwrap(), 1);
    }
    if !link.reads_in_order() {
        return;
    }
    let slots = u64::from(SLOTS);
    let refused = request(vec![words(slots..slots + 1)], &table, vec![0..8]);
    let read = link.read_with_words(request(spans(), &bytes, ranges()), refused);
    let result = settled(read).await;
    assert!(
        matches!(result, Err(ReadError::SpanRefused { .. })),
        "{result:?}"
    );
    let short = request(vec![words(0..2)], &table, vec![0..8]);
    let read = link.read_with_words(request(spans(), &bytes, ranges()), short);
    let result = settled(read).await;
    assert!(matches!(result, Err(ReadError::Invalid(_))), "{result:?}");
    check_alive(&link).await;
}

pub async fn region_gone(world: impl World) {
    let link = world.link().await;
    let gone = RegionId(99);
    add_memory(&world.catalog(), gone, world.memory(4096), 1);
    world.catalog().remove(gone);
    for spans in [vec![(gone, 8)], vec![(REGION, 100), (gone, 8)]] {
        let bytes = spans.iter().map(|(_, len)| len).sum();
        let remote = spans
            .iter()
            .map(|(region, len)| RemoteSpan {
                region: *region,
                ..data(0..*len)
            })
            .collect();
        let result = read(&link, remote, whole(&local(bytes))).await;
        assert!(
            matches!(result, Err(ReadError::RegionGone { region: 99, .. })),
            "{result:?}"
        );
        check_alive(&link).await;
    }
}

pub async fn invalid(world: impl World) {
    let link = world.link().await;
    let memory = local(100);
    let spans = |ranges: Vec<Range<u64>>| LocalSpans {
        memory: Arc::clone(&memory),
        ranges,
    };
    let bounds = link.capabilities();
    #[allow(clippy::single_range_in_vec_init)]
    let bad = [
        (vec![], spans(vec![])),
        (vec![data(5..5)], spans(vec![5..5])),
        (vec![data(0..10)], spans(vec![0..9])),
        (vec![data(0..10)], spans(vec![0..11])),
        (vec![data(0..200)], spans(vec![0..200])),
        (
            vec![data(0..100); bounds.max_spans + 1],
            spans(vec![0..100; bounds.max_spans + 1]),
        ),
        (
            vec![data(0..u64::MAX), data(0..u64::MAX)],
            spans(vec![0..100]),
        ),
    ];
    for (remote, target) in bad {
        let result = read(&link, remote, target).await;
        assert!(matches!(result, Err(ReadError::Invalid(_))), "{result:?}");
    }
    check_alive(&link).await;
}

pub async fn read_only(world: impl World) {
    let link = world.link().await;
    let view = HostMemory::view(local(100).read_only_descriptor().unwrap()).unwrap();
    let result = read(&link, vec![data(0..100)], whole(&Arc::new(view))).await;
    assert!(
        matches!(result, Err(ReadError::Local(AccessError::ReadOnly))),
        "{result:?}"
    );
    check_alive(&link).await;
}

/// An engine that cuts the file of its own memory harms itself only: no signal, no other read.
pub async fn cut_local(world: impl World) {
    let link = world.link().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let memory = Arc::new(HostMemory::import_path(file.path()).unwrap());
    read(&link, vec![data(0..1 << 20)], whole(&memory))
        .await
        .unwrap();
    assert!(contents(&memory, 0..1 << 20) == pattern(0..1 << 20));
    file.as_file().set_len(300_000).unwrap();
    match read(&link, vec![data(0..1 << 20)], whole(&memory)).await {
        Err(ReadError::Local(_)) => {}
        // Where the bytes go through the file, it grows back and holds them.
        Ok(()) => assert!(contents(&memory, 0..1 << 20) == pattern(0..1 << 20)),
        Err(other) => panic!("{other}"),
    }
    check_alive(&link).await;
}

pub async fn wrong_incarnation(world: impl World) {
    let right = world.peer();
    let wrong = PeerTarget {
        incarnation: Incarnation::new(right.incarnation.get() - 1).unwrap(),
        ..right.clone()
    };
    match world.connect(&wrong).await {
        Err(ConnectError::WrongIncarnation {
            expected, found, ..
        }) => assert_eq!((expected, found), (wrong.incarnation, right.incarnation)),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("an old incarnation was served"),
    }
    check_alive(&world.link().await).await;
}

pub async fn dropped(world: impl World) {
    let link = world.link().await;
    for _ in 0..50 {
        drop(link.read(ReadRequest {
            remote: vec![data(0..1 << 20)],
            local: whole(&local(1 << 20)),
        }));
        check_alive(&link).await;
    }
}

pub async fn owner_gone(world: impl World) {
    let link = world.link().await;
    check_alive(&link).await;
    assert!(!link.is_lost());
    world.kill();
    eventually("lost", || link.is_lost()).await;
    let result = read(&link, vec![data(0..8)], whole(&local(8))).await;
    assert!(
        matches!(result, Err(ReadError::LinkLost { .. })),
        "{result:?}"
    );
    assert!(matches!(
        world.connect(&world.peer()).await,
        Err(ConnectError::Unreachable { .. })
    ));
}

const WORD_BLOCK: u64 = 1024;

/// A generation with a check, since words of data may be torn.
fn encode_word(generation: u64) -> u64 {
    generation << 24 | (generation.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40)
}

fn decode_word(word: u64) -> Option<u64> {
    let generation = word >> 24;
    (encode_word(generation) == word).then_some(generation)
}

/// A writer that stores the generation it will seal all over the slot, without pause.
fn write_generations(world: &impl World, id: RegionId) -> Writer {
    let region = insert(&world.catalog(), id, world.memory(WORD_BLOCK), 1);
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let thread = std::thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            let generation = region.generations.begin_write(0).unwrap() + 1;
            let bytes = encode_word(generation)
                .to_le_bytes()
                .repeat(WORD_BLOCK as usize / 8);
            region.memory.write_at(0, &bytes).unwrap();
            region.generations.seal(0).unwrap();
        }
        region.generations.load(0).unwrap()
    });
    Writer {
        stop,
        thread: Some(thread),
    }
}

struct Writer {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<u64>>,
}

impl Writer {
    fn end(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// How long racing tests race.
const RACE: Duration = Duration::from_secs(1);

pub async fn generations_newer(world: impl World) {
    let id = RegionId(20);
    let writer = write_generations(&world, id);
    let link = world.link().await;
    let (block, word) = (local(WORD_BLOCK), local(8));
    let start = Instant::now();
    let mut seen = 0u64;
    while start.elapsed() < RACE || seen < 10 {
        assert!(start.elapsed() < PATIENCE);
        let span = |part, len| RemoteSpan {
            region: id,
            part,
            offset: 0,
            len,
        };
        let request = |span, local| ReadRequest {
            remote: vec![span],
            local: whole(local),
        };
        let data = request(span(Part::Data, WORD_BLOCK), &block);
        let validating = request(span(Part::Generations, 8), &word);
        if seen.is_multiple_of(2) {
            read_with_words(&link, data, validating).await;
        } else {
            settled(link.read(data)).await.unwrap();
            settled(link.read(validating)).await.unwrap();
        }
        let bytes = contents(&block, 0..WORD_BLOCK);
        let newest = bytes
            .chunks_exact(8)
            .filter_map(|chunk| decode_word(u64::from_le_bytes(chunk.try_into().unwrap())))
            .max();
        let newest = newest.unwrap_or(0);
        let generation = word.load_word(0).unwrap();
        // Before the first byte of a generation is stored, the word is made odd: one less.
        assert!(
            generation + 1 >= newest,
            "data of {newest}, word {generation}"
        );
        seen += 1;
    }
    writer.end();
}

/// Words are read by several spans of one read while the owner stores them: never backwards, never
/// beyond what the owner stored.
pub async fn generations_whole(world: impl World) {
    let id = RegionId(21);
    let writer = write_generations(&world, id);
    let link = world.link().await;
    let memory = local(8 * 100);
    let span = RemoteSpan {
        region: id,
        part: Part::Generations,
        offset: 0,
        len: 8,
    };
    let (start, mut last, mut rounds) = (Instant::now(), 0, 0);
    while start.elapsed() < RACE || rounds < 10 {
        assert!(start.elapsed() < PATIENCE);
        read(&link, vec![span; 100], whole(&memory)).await.unwrap();
        for i in 0..100 {
            let word = memory.load_word(i * 8).unwrap();
            assert!(word >= last, "{word} after {last}");
            last = word;
        }
        rounds += 1;
    }
    assert!(last <= writer.end());
}
