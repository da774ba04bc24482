//! Blocks of a pull that are here already.

use std::sync::Arc;

use kvferry_proto::{Generation, pb};
use tokio::time::Instant;
use tracing::error;

use super::{Landing, PullInto, Running, Told, report};
use crate::{
    region::{Held, MemoryFault},
    service::local::LocalApi,
};

/// Blocks copied between two reports: their outcomes should not wait for the last of thousands.
const COPIES_PER_REPORT: usize = 64;

impl Running {
    /// Pins them where they are, or copies them to the slots that were asked for.
    pub(super) async fn settle_here(&self, blocks: Vec<(usize, Held)>) {
        if blocks.is_empty() {
            return;
        }
        match &self.pull.into {
            PullInto::Pool { .. } => self.pin_here(blocks).await,
            PullInto::Slots { .. } => self.copy_here(&blocks).await,
        }
    }

    async fn pin_here(&self, blocks: Vec<(usize, Held)>) {
        let held: Vec<_> = blocks.iter().map(|(_, held)| *held).collect();
        let joined =
            self.api
                .store
                .pin_held(self.api.now(), self.client, self.pin, &held, self.ttl);
        let outcomes = match joined {
            Ok((_, there)) => blocks
                .into_iter()
                .zip(there)
                .map(|((index, held), there)| match there {
                    true => report::local(index, &held),
                    false => report::overwritten(index),
                })
                .collect(),
            Err(error) => {
                let detail = error.to_string();
                let no_pin = |(index, _)| report::no_space(index, &detail);
                blocks.into_iter().map(no_pin).collect()
            }
        };
        self.report.outcomes(Told::of(outcomes)).await;
    }

    async fn copy_here(&self, blocks: &[(usize, Held)]) {
        for batch in blocks.chunks(COPIES_PER_REPORT) {
            let (api, landing) = (self.api.clone(), Arc::clone(&self.landing));
            let (batch, deadline) = (batch.to_vec(), self.deadline);
            let copied = tokio::task::spawn_blocking(move || {
                batch
                    .into_iter()
                    .map(|(index, held)| copy(&api, &landing, index, &held, deadline))
                    .collect()
            });
            if let Ok(outcomes) = copied.await {
                self.report.outcomes(Told::of(outcomes)).await;
            }
        }
    }
}

/// A validated read within one process: the bytes first, then the word.
fn copy(
    api: &LocalApi,
    landing: &Arc<Landing>,
    index: usize,
    from: &Held,
    deadline: Instant,
) -> pb::BlockOutcome {
    if Instant::now() >= deadline {
        landing.give_back_unused(index);
        return report::timed_out(index);
    }
    let (Some(source), Ok(slot)) = (api.store.region(from.region), landing.take(index)) else {
        landing.give_back_unused(index);
        return report::overwritten(index);
    };
    let target = landing.region();
    let copied = source.memory.copy(
        source.geometry.ranges(from.slot),
        &target.memory,
        target.geometry.ranges(slot),
    );
    let word = source.generations.load(from.slot.0).map(Generation);
    if let Err(MemoryFault::NotSettled(error)) = &copied {
        error!(
            "a copy into GPU memory never settles, and only a new agent gives its slot back: {error}"
        );
        landing.never();
        return report::not_settled(index, &error.to_string());
    }
    let failed = match copied {
        Err(error) => Some(report::no_space(index, &error.to_string())),
        Ok(()) if word != Some(from.generation) => Some(report::overwritten(index)),
        Ok(()) => None,
    };
    if let Some(outcome) = failed {
        landing.give_back(index);
        return outcome;
    }
    match landing.seal(index, from.checksum) {
        Ok(held) => report::local(index, &held),
        Err(error) => {
            landing.give_back(index);
            report::no_space(index, error.detail)
        }
    }
}
