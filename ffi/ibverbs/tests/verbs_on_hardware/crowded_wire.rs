//! A wire that is too slow for what is asked, and drops in bursts: `tests/rdma` makes it so.

use std::{
    mem,
    time::{Duration, Instant},
};

use kvferry_ibverbs::{ConnectOptions, PairOptions};

use crate::rig::{self, at, contents, memory};

const READ: u64 = 256 << 10;
const READS: u64 = 64;
const LASTS: Duration = Duration::from_secs(4);

/// Each 8 bytes of the source are their own number, so that a wrong word says where it is from.
fn numbered(bytes: u64) -> Vec<u8> {
    (0..bytes / 8).flat_map(u64::to_le_bytes).collect()
}

/// The first words that are not where they belong: (offset, where they are from).
fn misplaced(seen: &[u8], start: u64) -> Vec<(u64, u64)> {
    (start..)
        .step_by(8)
        .zip(seen.chunks_exact(8))
        .map(|(at, word)| {
            (
                at,
                u64::from_le_bytes(word.try_into().unwrap()).wrapping_mul(8),
            )
        })
        .filter(|(at, from)| at != from)
        .take(4)
        .collect()
}

#[test]
fn what_is_told_as_read_has_been_read() {
    let Some(rig) = rig::rig() else { return };
    let options = PairOptions {
        depth: 32,
        max_pieces: 4,
        signal_every: 8,
    };
    let bytes = READ * READS;
    let (source, target) = (memory(bytes), memory(bytes));
    source.write_at(0, &numbered(bytes)).unwrap();
    let (from, to) = (rig.owner.readable(&source), rig.reader.local(&target));
    let connect = || rig.connect(options, ConnectOptions::default());
    let mut pair = connect();
    let (began, mut read, mut broken) = (Instant::now(), 0, 0);
    while began.elapsed() < LASTS {
        target.write_at(0, &vec![0xee; bytes as usize]).unwrap();
        let mut chain = pair.0.chain();
        for number in 0..READS {
            let start = number * READ;
            let quarter = |n: u64| start + n * READ / 4..start + (n + 1) * READ / 4;
            let pieces = (0..4).map(|n| to.piece(quarter(n)).unwrap());
            chain.push(number, at(from.key(), start), pieces).unwrap();
        }
        let mut done = Vec::new();
        while (done.len() as u64) < READS && !pair.0.is_closed() {
            // Refused once it is closed, which the loop sees.
            let _ = pair.0.post(&mut chain);
            let waited = rig.reader.queue.wait(&mut done, rig::PATIENCE).unwrap();
            assert!(waited > 0, "{} of {READS} are over", done.len());
        }
        for finished in done.iter().filter(|finished| finished.result == Ok(())) {
            let start = finished.token * READ;
            let wrong = misplaced(&contents(&target, start, READ), start);
            assert!(wrong.is_empty(), "READ {}: {wrong:?}", finished.token);
            read += 1;
        }
        if pair.0.is_closed() {
            broken += 1;
            drop(chain);
            let (reader, _owner) = mem::replace(&mut pair, connect());
            assert!(reader.close().settle(rig::PATIENCE).unwrap());
            rig.reader.queue.poll(&mut done).unwrap();
        }
    }
    println!("{read} READs told as read, {broken} connections broken");
}
