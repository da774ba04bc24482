//! Reads that succeed, and every byte of them.

use std::{sync::Arc, thread, time::Duration};

use kvferry_ibverbs::{ConnectOptions, PairOptions, RegionCache, RegisterOptions};
use rustix::time::{ClockId, clock_gettime};

use crate::rig::{self, at, contents, memory, pattern, patterned};

const BLOCK: u64 = 16 << 10;

/// Local pieces of a READ: uneven, so that nothing fits by chance.
const CUTS: [u64; 4] = [0, 8, 4104, BLOCK];

#[test]
fn chains_with_scatter_lists_bring_every_byte() {
    let Some(rig) = rig::rig() else { return };
    let blocks = 96;
    // Far fewer places than READs, and a signal for every fifth: the window must be kept.
    let options = PairOptions {
        depth: 24,
        max_pieces: 4,
        signal_every: 5,
    };
    let (reader, owner) = rig.connect(options, ConnectOptions::default());
    let source = patterned(blocks * BLOCK, 1);
    let target = memory(blocks * BLOCK);
    let (from, to) = (rig.owner.readable(&source), rig.reader.local(&target));
    let mut chain = reader.chain();
    let remote_of = |block: u64| (block * 37 + 11) % blocks;
    for block in 0..blocks {
        let pieces = CUTS.windows(2).map(|cut| {
            let start = block * BLOCK;
            to.piece(start + cut[0]..start + cut[1]).unwrap()
        });
        let remote = at(from.key(), remote_of(block) * BLOCK);
        chain.push(block, remote, pieces).unwrap();
    }
    let mut done = Vec::new();
    let mut most = 0;
    while !chain.is_empty() || reader.in_flight() > 0 {
        reader.post(&mut chain).unwrap();
        most = most.max(reader.in_flight());
        let waited = rig.reader.queue.wait(&mut done, rig::PATIENCE).unwrap();
        assert!(waited > 0, "{} of {blocks} are over", done.len());
    }
    assert!(most <= 24);
    let tokens: Vec<u64> = done.iter().map(|finished| finished.token).collect();
    assert_eq!(tokens, (0..blocks).collect::<Vec<_>>());
    assert!(done.iter().all(|finished| finished.result == Ok(())));
    for block in 0..blocks {
        let seen = contents(&target, block * BLOCK, BLOCK);
        assert!(
            seen == pattern(remote_of(block) * BLOCK, BLOCK, 1),
            "block {block}"
        );
    }
    assert!(!owner.is_closed() && !reader.is_closed());
}

#[test]
fn many_pairs_read_both_ways_at_once() {
    let Some(rig) = rig::rig() else { return };
    let (pairs, reads, bytes) = (8u64, 16u64, 8192u64);
    let area = pairs * reads * bytes;
    let sources = [patterned(area, 2), patterned(area, 3)];
    let targets = [memory(area), memory(area)];
    let sides = [&rig.reader, &rig.owner];
    let connections: Vec<_> = (0..pairs).map(|_| rig.connected()).collect();
    thread::scope(|scope| {
        for way in 0..2 {
            let (side, other) = (sides[way], sides[1 - way]);
            let (source, target) = (&sources[1 - way], &targets[way]);
            let connections = &connections;
            scope.spawn(move || {
                let (from, to) = (other.readable(source), side.local(target));
                for (number, connection) in (0..).zip(connections) {
                    let pair = if way == 0 {
                        &connection.0
                    } else {
                        &connection.1
                    };
                    let mut chain = pair.chain();
                    for read in 0..reads {
                        let start = (number * reads + read) * bytes;
                        let piece = to.piece(start..start + bytes).unwrap();
                        chain.push(start, at(from.key(), start), [piece]).unwrap();
                    }
                    assert_eq!(pair.post(&mut chain).unwrap() as u64, reads);
                }
                let done = side.collect((pairs * reads) as usize);
                assert!(done.iter().all(|finished| finished.result == Ok(())));
                let seed = if way == 0 { 3 } else { 2 };
                assert!(contents(target, 0, area) == pattern(0, area, seed));
            });
        }
    });
}

#[test]
fn a_region_cut_to_a_range_is_read_from_its_first_byte() {
    let Some(rig) = rig::rig() else { return };
    let (reader, _owner) = rig.connected();
    let (source, target) = (patterned(65_536, 4), memory(65_536));
    let cache = RegionCache::new(
        &rig.owner.domain,
        2,
        RegisterOptions {
            relaxed_ordering: true,
        },
    );
    let from = cache.readable(&source, 4104..12_296).unwrap();
    assert_eq!(from.key().len, 8192);
    assert!(Arc::ptr_eq(
        &from,
        &cache.readable(&source, 4104..12_296).unwrap()
    ));
    assert!(!Arc::ptr_eq(
        &from,
        &cache.readable(&source, 4104..12_288).unwrap()
    ));
    let to = rig.reader.local(&target);
    assert!(to.piece(0..65_537).is_none() && to.piece(8..8).is_none());
    let mut chain = reader.chain();
    let piece = to.piece(1000..1000 + 8192).unwrap();
    chain.push(1, at(from.key(), 0), [piece]).unwrap();
    reader.post(&mut chain).unwrap();
    assert_eq!(rig.reader.collect(1)[0].result, Ok(()));
    assert!(contents(&target, 1000, 8192) == pattern(4104, 8192, 4));
    assert!(contents(&target, 0, 1000).iter().all(|byte| *byte == 0));
    cache.forget(&source);
    assert!(cache.is_empty());
}

#[test]
fn an_idle_waiter_uses_no_processor_and_wakes_up() {
    let Some(rig) = rig::rig() else { return };
    let (reader, _owner) = rig.connected();
    let (source, target) = (patterned(4096, 5), memory(4096));
    let (from, to) = (rig.owner.readable(&source), rig.reader.local(&target));
    let queue = &rig.reader.queue;
    let idle = Duration::from_secs(2);
    thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            let used = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap();
            let before = used();
            let mut done = Vec::new();
            assert_eq!(queue.wait(&mut done, idle).unwrap(), 0);
            let idle_use = used() - before;
            assert_eq!(queue.wait(&mut done, rig::PATIENCE).unwrap(), 1);
            assert_eq!((done[0].token, done[0].result), (9, Ok(())));
            idle_use
        });
        thread::sleep(idle + Duration::from_millis(500));
        let mut chain = reader.chain();
        let piece = to.piece(0..4096).unwrap();
        chain.push(9, at(from.key(), 0), [piece]).unwrap();
        reader.post(&mut chain).unwrap();
        let idle_use = waiter.join().unwrap();
        println!("idle for {idle:?}: {idle_use:?} of processor time");
        // Who looks all the time uses all of it. Under emulation what others take of the machine counts as this thread's.
        assert!(idle_use < idle / 4, "{idle_use:?}");
    });
}
