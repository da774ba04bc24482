//! Random transfers, given up, failed and late, against a model that knows no copies.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use kvferry_cuda::{Chunk, Fill, GpuMemory, Inbound, Outbound, StagingError};

use crate::{
    common::{read, small_ring, soon},
    fake::Fake,
};

const SEEDS: u64 = 4;
const STEPS: usize = 300;
const BYTES: u64 = 200_000;
/// Transfers are each of a lane of their own, so that the model knows what a read sees.
const LANES: u64 = 4;

struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// What a lane does now.
enum Lane {
    Idle,
    Reading(Outbound, Vec<u8>),
    Writing {
        transfer: Inbound,
        fills: Vec<(Fill, Vec<u8>)>,
        at: u64,
    },
}

fn span(lane: u64) -> std::ops::Range<u64> {
    lane * BYTES / LANES..(lane + 1) * BYTES / LANES
}

fn bytes_of(chunk: &Chunk) -> Vec<u8> {
    let range = chunk.range();
    let mut bytes = vec![0; (range.end - range.start) as usize];
    chunk.memory().read_at(range.start, &mut bytes).unwrap();
    bytes
}

#[test]
fn no_byte_is_wrong_and_no_buffer_is_lost() {
    for seed in 1..=SEEDS {
        let fake = Fake::new();
        run(&fake, seed);
        fake.is_clean();
    }
}

fn run(fake: &Fake, seed: u64) {
    let mut pick = Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let context = fake.world.context();
    let buffers = 2 + pick.below(6) as u32;
    let staging = small_ring(&context, buffers, 1 + pick.below(u64::from(buffers)) as u32);
    let gpu = GpuMemory::allocate(&context, BYTES).unwrap();
    let mut model = read(&staging, &gpu, vec![0..BYTES]);
    let mut lanes: Vec<Lane> = (0..LANES).map(|_| Lane::Idle).collect();
    for step in 0..STEPS {
        fake.set("delay_us", pick.below(60) as i64);
        if pick.below(12) == 0 {
            let which = [
                "cuMemcpyDtoHAsync_v2",
                "cuMemcpyHtoDAsync_v2",
                "cuMemcpy2DAsync_v2",
                "cuEventCreate",
            ];
            fake.fail(which[pick.below(4) as usize], 999, pick.below(3) as i64, 1);
        }
        let number = pick.below(LANES);
        let range = span(number);
        let lane = &mut lanes[number as usize];
        let deadline = if pick.below(4) == 0 {
            Instant::now()
        } else {
            Instant::now() + Duration::from_millis(20)
        };
        *lane = match std::mem::replace(lane, Lane::Idle) {
            Lane::Idle if pick.below(2) == 0 => {
                Lane::Reading(staging.read(&gpu, vec![range]).unwrap(), Vec::new())
            }
            Lane::Idle => Lane::Writing {
                transfer: staging.write(&gpu, vec![range]).unwrap(),
                fills: Vec::new(),
                at: 0,
            },
            // Given up in the middle.
            Lane::Reading(..) if pick.below(10) == 0 => Lane::Idle,
            Lane::Reading(mut transfer, mut seen) => match transfer.next(deadline) {
                Ok(Some(chunk)) => {
                    seen.extend(bytes_of(&chunk));
                    let start = range.start as usize;
                    assert!(
                        seen == model[start..start + seen.len()],
                        "seed {seed}, step {step}"
                    );
                    Lane::Reading(transfer, seen)
                }
                Ok(None) => {
                    assert_eq!(
                        seen.len() as u64,
                        range.end - range.start,
                        "seed {seed}, step {step}"
                    );
                    Lane::Idle
                }
                Err(StagingError::NoBuffer { .. }) => Lane::Reading(transfer, seen),
                Err(_) => Lane::Idle,
            },
            Lane::Writing { transfer, .. } if pick.below(15) == 0 => {
                settled(fake, transfer, &gpu, number, &mut model)
            }
            Lane::Writing {
                mut transfer,
                mut fills,
                mut at,
            } => {
                let more = if pick.below(2) == 0 {
                    transfer.next_buffer(deadline)
                } else {
                    Ok(None)
                };
                match more {
                    Ok(Some(fill)) => {
                        let len = fill.range().end - fill.range().start;
                        let bytes: Vec<u8> = (0..len).map(|_| pick.below(256) as u8).collect();
                        fill.memory().write_at(fill.range().start, &bytes).unwrap();
                        let start = (range.start + at) as usize;
                        model[start..start + bytes.len()].copy_from_slice(&bytes);
                        at += len;
                        fills.push((fill, bytes));
                        Lane::Writing {
                            transfer,
                            fills,
                            at,
                        }
                    }
                    Ok(None) if fills.is_empty() && at == range.end - range.start => {
                        transfer.finish(soon()).unwrap();
                        Lane::Idle
                    }
                    Ok(None) if fills.is_empty() => Lane::Writing {
                        transfer,
                        fills,
                        at,
                    },
                    Ok(None) => {
                        let (fill, _) = fills.swap_remove(pick.below(fills.len() as u64) as usize);
                        match transfer.submit(fill) {
                            Ok(()) => Lane::Writing {
                                transfer,
                                fills,
                                at,
                            },
                            Err(_) => settled(fake, transfer, &gpu, number, &mut model),
                        }
                    }
                    Err(StagingError::NoBuffer { .. }) => Lane::Writing {
                        transfer,
                        fills,
                        at,
                    },
                    Err(_) => settled(fake, transfer, &gpu, number, &mut model),
                }
            }
        };
    }
    for (number, lane) in (0..).zip(lanes) {
        if let Lane::Writing { transfer, .. } = lane {
            settled(fake, transfer, &gpu, number, &mut model);
        }
    }
    calm(fake);
    assert!(read(&staging, &gpu, vec![0..BYTES]) == model, "seed {seed}");
    assert_eq!(staging.free_buffers(), buffers as usize, "seed {seed}");
}

/// No failure is waiting any more.
fn calm(fake: &Fake) {
    for function in [
        "cuMemcpyDtoHAsync_v2",
        "cuMemcpyHtoDAsync_v2",
        "cuMemcpy2DAsync_v2",
        "cuEventCreate",
    ] {
        fake.fail(function, 0, 0, 0);
    }
}

/// Gives a transfer up; from then on the lane holds what it holds.
fn settled(
    fake: &Fake,
    mut transfer: Inbound,
    gpu: &Arc<GpuMemory>,
    lane: u64,
    model: &mut [u8],
) -> Lane {
    transfer.settle(soon()).unwrap();
    drop(transfer);
    calm(fake);
    // A ring of its own: the one of the test may be in use by other lanes.
    let range = span(lane);
    let now = read(&small_ring(gpu.context(), 2, 1), gpu, vec![range.clone()]);
    model[range.start as usize..range.end as usize].copy_from_slice(&now);
    Lane::Idle
}
