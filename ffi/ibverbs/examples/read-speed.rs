//! How fast this layer is, to be put beside `ib_read_bw` in the same guest: `tests/rdma/run speed/`.
//!
//! read-speed [BYTES]: READs of 64 KiB, of 1 MiB, or of so many bytes only.

#![allow(clippy::unwrap_used)] // a tool: what goes wrong ends it

#[path = "../tests/verbs_on_hardware/rig.rs"]
#[allow(dead_code, clippy::panic)] // tests use the rest of it
mod rig;

use std::time::{Duration, Instant};

use kvferry_ibverbs::{ConnectOptions, PairOptions};

use rig::{Rig, at, contents, memory, pattern, patterned};

/// As perftest has it.
const DEPTH: u32 = 128;

/// Prints `figure SIZE MIB_PER_S WAY`.
fn measure(rig: &Rig, bytes: u64, blocks: u64, event_driven: bool) {
    let options = PairOptions {
        depth: DEPTH,
        max_pieces: 1,
        signal_every: 8,
    };
    let (reader, _owner) = rig.connect(options, ConnectOptions::default());
    let (source, target) = (patterned(bytes * blocks, 7), memory(bytes * blocks));
    let (from, to) = (rig.owner.readable(&source), rig.reader.local(&target));
    let run = |rounds: u64| {
        let mut chain = reader.chain();
        for read in 0..rounds * blocks {
            let start = read % blocks * bytes;
            let piece = to.piece(start..start + bytes).unwrap();
            chain.push(read, at(from.key(), start), [piece]).unwrap();
        }
        let (mut done, mut over) = (Vec::new(), 0);
        let start = Instant::now();
        while over < rounds * blocks {
            reader.post(&mut chain).unwrap();
            if event_driven {
                rig.reader.queue.wait(&mut done, rig::PATIENCE).unwrap();
            } else {
                rig.reader.queue.poll(&mut done).unwrap();
            }
            assert!(done.iter().all(|finished| finished.result == Ok(())));
            over += done.len() as u64;
            done.clear();
            assert!(start.elapsed() < Duration::from_secs(60));
        }
        start.elapsed()
    };
    run(1); // first touch
    let rounds = 3;
    let spent = run(rounds);
    assert!(contents(&target, 0, bytes * blocks) == pattern(0, bytes * blocks, 7));
    let mib = (bytes * blocks * rounds) as f64 / f64::from(1 << 20);
    let way = if event_driven { "waiting" } else { "polling" };
    println!("figure {bytes} {:.1} {way}", mib / spent.as_secs_f64());
}

fn main() {
    let Some(rig) = rig::rig() else { return };
    // One size at a time, so that a reference can be measured right beside it.
    let only = std::env::args().nth(1);
    for (bytes, blocks) in [(64 << 10, 384), (1 << 20, 24)] {
        if only.as_ref().is_some_and(|only| *only != bytes.to_string()) {
            continue;
        }
        for event_driven in [false, true] {
            measure(&rig, bytes, blocks, event_driven);
        }
    }
}
