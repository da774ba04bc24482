//! What memory gives at most: random cache lines in a second, by a loop that does nothing else.

use std::{hint::black_box, time::Duration};

use kvferry_memory::{Array, prefetch};

use crate::{cpu_time::cpu_time, workload::mix};

/// A cache line.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
struct Line([u64; 8]);

/// Lines asked for before the first is read: what the index has on its way at a time.
const AHEAD: usize = 80;
/// Lines between two looks at the clock.
const BATCH: usize = 65_536;

/// Memory on huge pages, for one thread to read.
#[derive(Debug)]
pub struct RandomLines(Array<Line>);

impl RandomLines {
    /// So many bytes of it.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self(Array::new(Line([1; 8]), (bytes / size_of::<Line>()).max(1)))
    }

    /// Reads random lines for some time: lines in a second of the thread's CPU time. Which lines is
    /// known beforehand and no line says where the next one is, so this is what a core can have of this
    /// memory, whatever it does with it.
    #[must_use]
    pub fn read(&self, seed: u64, time: Duration) -> f64 {
        let (mut random, mut count, mut spent) = (mix(seed + 1), 0, Duration::ZERO);
        while spent < time {
            let numbers: Vec<usize> = (0..BATCH)
                .map(|_| {
                    random = mix(random.wrapping_add(0x9e37_79b9_7f4a_7c15));
                    ((u128::from(random) * self.0.len() as u128) >> 64) as usize
                })
                .collect();
            let start = cpu_time();
            let ahead = numbers.iter().skip(AHEAD).chain([&0; AHEAD]);
            let mut sum = 0;
            for (number, ahead) in numbers.iter().zip(ahead) {
                prefetch(&self.0[*ahead]);
                sum ^= self.0[*number].0[0];
            }
            black_box(sum);
            spent += cpu_time().saturating_sub(start);
            count += BATCH;
        }
        count as f64 / spent.as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_and_says_how_fast() {
        let lines = RandomLines::new(1 << 20);
        assert!(lines.read(1, Duration::from_millis(1)) > 0.0);
    }
}
