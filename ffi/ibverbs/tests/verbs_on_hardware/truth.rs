//! Long READs whose answers are late or lost, and where each word of what arrives came from.

use std::{
    env,
    time::{Duration, Instant},
};

use kvferry_ibverbs::{ConnectOptions, PairOptions};

use crate::rig::{self, at, contents, memory};

const READ: u64 = 256 << 10;
const READS: u64 = 64;

fn number(name: &str, default: u64) -> u64 {
    env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn late_and_lost_answers_bring_each_word_from_its_address() {
    let Some(rig) = rig::rig() else { return };
    let seconds = number("KVFERRY_RDMA_TRUTH_SECONDS", 3);
    let pieces = number("KVFERRY_RDMA_TRUTH_PIECES", 4);
    let depth = number("KVFERRY_RDMA_TRUTH_DEPTH", 32) as u32;
    let connect = ConnectOptions {
        timeout_exponent: number("KVFERRY_RDMA_TRUTH_TIMEOUT", 14) as u8,
        retries: 6,
        ..ConnectOptions::default()
    };
    let options = PairOptions { depth, max_pieces: 4, signal_every: 8 };
    let bytes = READ * READS;
    let source = memory(bytes);
    let words: Vec<u8> = (0..bytes / 8).flat_map(u64::to_le_bytes).collect();
    source.write_at(0, &words).unwrap();
    let target = memory(bytes);
    let (from, to) = (rig.owner.readable(&source), rig.reader.local(&target));
    let (mut rounds, mut broken, mut wrong) = (0, 0, 0);
    let began = Instant::now();
    let mut pair = rig.connect(options, connect);
    while began.elapsed() < Duration::from_secs(seconds) {
        target.write_at(0, &vec![0xee; bytes as usize]).unwrap();
        let mut chain = pair.0.chain();
        for read in 0..READS {
            let start = read * READ;
            let cut = READ / pieces;
            let list = (0..pieces).map(|piece| to.piece(start + piece * cut..start + (piece + 1) * cut).unwrap());
            chain.push(read, at(from.key(), start), list).unwrap();
        }
        let mut done = Vec::new();
        while (done.len() as u64) < READS {
            let _ = pair.0.post(&mut chain);
            if rig.reader.queue.wait(&mut done, Duration::from_secs(10)).unwrap() == 0 || pair.0.is_closed() {
                break;
            }
        }
        for finished in done.iter().filter(|finished| finished.result == Ok(())) {
            let start = finished.token * READ;
            let seen = contents(&target, start, READ);
            let mut runs: Vec<(u64, i64, u64)> = Vec::new();
            for (index, word) in seen.chunks_exact(8).enumerate() {
                let word = u64::from_le_bytes(word.try_into().unwrap());
                let here = start / 8 + index as u64;
                let delta = if word == 0xeeee_eeee_eeee_eeee { i64::MIN } else { (word as i64 - here as i64) * 8 };
                match runs.last_mut() {
                    Some((_, last, count)) if *last == delta => *count += 8,
                    _ => runs.push((index as u64 * 8, delta, 8)),
                }
            }
            if runs.len() != 1 || runs[0].1 != 0 {
                wrong += 1;
                println!("wrong: round {rounds} READ {} (of 256 KiB): at, shift, bytes: {runs:?}", finished.token);
            }
        }
        rounds += 1;
        if pair.0.is_closed() || (done.len() as u64) < READS {
            broken += 1;
            println!("pair closed by {:?} after {} of {READS}", pair.0.closed_by(), done.len());
            drop(chain);
            let (reader, _owner) = std::mem::replace(&mut pair, rig.connect(options, connect));
            assert!(reader.close().settle(Duration::from_secs(5)).unwrap());
            rig.reader.queue.poll(&mut done).unwrap();
        }
    }
    println!("{rounds} rounds, {broken} broken, {wrong} READs wrong");
    assert_eq!(wrong, 0);
}
