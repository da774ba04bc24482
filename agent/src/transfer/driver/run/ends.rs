//! The last steps of blocks whose bytes are here: compared with their checksums, and sealed.

use std::{sync::Arc, time::Instant};

use kvferry_observe::traced;

use super::{Answer, Asked, Run};
use crate::transfer::{
    driver::{Connect, Landing, Locate},
    event::Event,
    metrics::Phase,
    plan::Destination,
};

/// Blocks whose checksums are computed in one go on a blocking thread: some milliseconds' worth.
const VERIFY_JOB_BYTES: u64 = 16 << 20;

impl<L: Locate, C: Connect, D: Landing> Run<L, C, D> {
    /// In place where the bytes are few; else on blocking threads.
    pub(super) fn verify(&mut self) {
        let jobs = std::mem::take(&mut self.to_verify);
        let bytes = self.block_bytes.saturating_mul(jobs.len() as u64);
        let per_job = usize::try_from(VERIFY_JOB_BYTES / self.block_bytes.max(1)).unwrap_or(1);
        for job in jobs.chunks(per_job.max(1)) {
            let blocks: Vec<_> = job
                .iter()
                .filter_map(|&(block, checksum)| {
                    let to = self.blocks.get(block as usize)?.destination.as_ref()?;
                    Some((block, checksum, to.clone()))
                })
                .collect();
            // A GPU is waited for.
            let at_hand = |(.., to): &(_, _, Destination)| to.memory.host().is_some();
            let inline = bytes <= self.config.verify_inline_bytes && blocks.iter().all(at_hand);
            let landing = Arc::clone(&self.parts.landing);
            let names = blocks.iter().map(|(block, ..)| *block).collect();
            let span = traced!("checksum", blocks = job.len());
            let metrics = Arc::clone(&self.parts.metrics);
            let work = move || {
                let _checking = span.entered();
                let began = Instant::now();
                let verdicts = blocks.into_iter().map(|(block, checksum, destination)| {
                    (block, landing.verify(block, &destination, checksum))
                });
                let verdicts = verdicts.collect::<Vec<_>>();
                metrics.phases.of(Phase::Checksum).observe(began.elapsed());
                verdicts
            };
            if inline {
                let verified = self.block_bytes.saturating_mul(job.len() as u64);
                self.verified = self.verified.saturating_add(verified);
                for (block, ok) in work() {
                    self.tell(Event::Verified { block, ok });
                }
            } else {
                let task = self.tasks.spawn_blocking(|| Answer::Verified(work()));
                self.asked.insert(task.id(), Asked::Verify(names));
            }
        }
    }

    /// All that have come together: the store is locked once for them.
    pub(super) fn land(&mut self) {
        let blocks = std::mem::take(&mut self.to_land);
        if blocks.is_empty() {
            return;
        }
        let landed = self.parts.landing.land_many(&blocks);
        for ((block, _), landed) in blocks.into_iter().zip(landed) {
            let event = match landed {
                Ok(landed) => {
                    if let Some(book) = self.blocks.get_mut(block as usize) {
                        (book.destination, book.landed) = (None, Some(landed));
                    }
                    Event::Landed { block }
                }
                Err(error) => {
                    self.report.not_landed(block, error);
                    Event::LandFailed { block }
                }
            };
            self.tell(event);
        }
    }
}
