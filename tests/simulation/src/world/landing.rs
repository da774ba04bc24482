//! Where a pull's blocks go, and what is said of them at the end.

use std::sync::Arc;

use kvferry_agent::{
    region::{Chain, Checksums, Seal},
    transfer::{BlockIndex, Destination, Event as PullEvent, Outcome},
};
use kvferry_proto::Checksum;

use super::{
    Act, Process, World,
    pull::{Pull, Target},
};
use crate::{invariants::bytes_are_published, queue::SECOND};

impl World {
    pub(super) fn prepare(
        &mut self,
        process: &mut Process,
        pull: &mut Pull,
        block: BlockIndex,
    ) -> PullEvent {
        let now = process.local(self.now);
        let slot = match &pull.target {
            Target::Pool(region) if pull.copies_for.is_some() => {
                let spare = process.store.reserve_spare(now, pull.holder, region.id);
                spare.ok()
            }
            Target::Pool(region) => process.store.reserve_one(now, pull.holder, region.id).ok(),
            Target::Slots(_, slots) => slots.get(block as usize).copied(),
        };
        let Some(slot) = slot else {
            return PullEvent::NoSpace { block };
        };
        let region = Arc::clone(pull.region());
        process.writers.insert((region.id, slot), pull.holder);
        let destination = Destination {
            memory: region.memory.clone(),
            ranges: region.geometry.ranges(slot).collect(),
        };
        pull.destinations.insert(block, (slot, destination));
        PullEvent::Prepared { block }
    }

    /// Seals; then the oracle looks at the bytes.
    pub(super) fn land(
        &mut self,
        process: &mut Process,
        pull: &mut Pull,
        block: BlockIndex,
        checksum: Option<Checksum>,
    ) -> bool {
        let Some((slot, _)) = pull.destinations.get(&block) else {
            return false;
        };
        let (slot, region) = (*slot, Arc::clone(pull.region()));
        let number = pull.hashes[block as usize];
        let hash = self.conditions.names.hash(number);
        let given = [checksum];
        let compute = checksum.is_none() && region.namespace.checksum.covers(hash.as_bytes());
        let seal = Seal {
            holder: pull.holder,
            region: region.id,
            slots: &[slot],
            hashes: &[hash],
            chain: Chain::Unknown,
            checksums: match compute {
                true => Checksums::Compute,
                false => Checksums::Given(&given),
            },
            pin: pull.pin,
            private: false,
        };
        let sealed = process.store.seal(process.local(self.now), &seal);
        let Ok([outcome]) = sealed.as_deref() else {
            return false;
        };
        pull.destinations.remove(&block);
        process.writers.remove(&(region.id, slot));
        if outcome.pinned {
            pull.pinned.push((number, outcome.held));
        }
        self.stats.reads_checked += 1;
        let broken = bytes_are_published::landed(&self.history, process, number, &outcome.held);
        self.check(broken);
        true
    }

    pub(super) fn report(&mut self, process: &mut Process, pull: &Pull) {
        let mut numbers = vec![5, process.pid as u64, pull.id];
        for (outcome, hash) in pull.outcomes.iter().zip(&pull.hashes) {
            let Some(outcome) = outcome else { continue };
            self.stats.outcome(*outcome);
            numbers.push(hash << 8 | outcome.kind() as u64);
        }
        self.note(&numbers);
        if let Target::Slots(region, slots) = &pull.target {
            // Slots that nothing was written to are given back before the engine hears of it.
            let pulled = |outcome: &Option<Outcome>| *outcome == Some(Outcome::Pulled);
            for (block, slot) in slots.iter().enumerate() {
                let used = pull.destinations.contains_key(&(block as u32));
                if !used && !pull.outcomes.get(block).is_some_and(pulled) {
                    // Where it was abandoned it is given back already.
                    if process
                        .store
                        .abort(pull.holder, region.id, &[*slot])
                        .is_ok()
                    {
                        process.writers.remove(&(region.id, *slot));
                    }
                }
            }
        }
        if let Some(pin) = pull.pin {
            let wait = process.random.below(4 * SECOND);
            let act = Act::Release {
                client: process.client,
                pin,
                blocks: pull.pinned.clone(),
            };
            self.later(process.pid, wait, act);
        }
    }
}
