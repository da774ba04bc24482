//! What engines do: publish, pull, overwrite, drop.

use std::sync::Arc;

use kvferry_agent::region::{Chain, Checksums, EvictWhat, Holder, Region, Seal};
use kvferry_proto::Slot;

use super::{Act, Process, World, process::Job};
use crate::{
    history::{content, write_part},
    invariants::buffers_are_owned,
    names::{MODEL, number},
    queue::MS,
};

/// Most blocks one engine writes at a time.
const MOST_BLOCKS: u64 = 4;

impl World {
    /// One thing, and when the next one comes.
    pub(super) fn work(&mut self, process: &mut Process) {
        if self.is_quiet() || process.leaving {
            return;
        }
        let churns = process.churns_until > self.now;
        let pace = match churns {
            true => 4 * MS,
            false => self.conditions.pace,
        };
        let next = process.random.below(2 * pace);
        self.later(process.pid, next, Act::Work);
        self.stats.operations += 1;
        let what = if churns { 0 } else { process.random.below(100) };
        match what {
            0..50 => {
                let count = process.random.within(1, MOST_BLOCKS);
                self.begin_publish(process, count as u32);
            }
            50..92 => self.begin_pull(process),
            92..98 => {
                let tenant = process.tenant();
                let block = number(tenant, process.random.below(self.conditions.hashes));
                let hash = self.conditions.names.hash(block);
                let now = process.local(self.now);
                let what = EvictWhat::Blocks(std::slice::from_ref(&hash));
                let name = &self.conditions.spec(tenant).name;
                // Nothing to evict is as good.
                let _ = process.store.evict(now, name, what);
            }
            _ => {
                // The engine asks for one slot and gives it back.
                let tenant = process.tenant();
                let pool = process.pools[tenant].id;
                let (now, holder) = (process.local(self.now), Holder::Client(process.client));
                if let Ok(slot) = process.store.reserve_one(now, holder, pool) {
                    let _ = process.store.abort(holder, pool, &[slot]);
                }
            }
        }
    }

    /// Takes slots and begins to write.
    pub(super) fn begin_publish(&mut self, process: &mut Process, count: u32) {
        let client = process.client;
        let (now, holder) = (process.local(self.now), Holder::Client(client));
        let tenant = process.tenant();
        let of_engine = process
            .engine
            .clone()
            .filter(|_| tenant == MODEL && process.random.permille(300));
        let (region, slots) = match of_engine {
            Some(region) => {
                let slot = Slot(process.random.below(region.geometry.slots().into()) as u32);
                let mine = process.writers.get(&(region.id, slot)) == Some(&holder);
                let taken = process.store.reserve_slots(now, holder, region.id, &[slot]);
                if mine || taken.is_err() {
                    return;
                }
                (region, vec![slot])
            }
            None => {
                let pool = Arc::clone(&process.pools[tenant]);
                match process.store.reserve_pool(now, holder, pool.id, count) {
                    Ok(slots) => (pool, slots),
                    Err(_) => return,
                }
            }
        };
        let first = process.random.below(self.conditions.hashes);
        let hashes = (first..).map(|hash| number(tenant, hash % self.conditions.hashes));
        let blocks = hashes.take(slots.len()).collect();
        self.begin_job(process, region, slots, blocks);
    }

    /// An engine begins to write these blocks into slots that it has reserved.
    pub(super) fn begin_job(
        &mut self,
        process: &mut Process,
        region: Arc<Region>,
        slots: Vec<Slot>,
        numbers: Vec<u64>,
    ) {
        let client = process.client;
        let len = region.geometry.block_bytes() as usize;
        let (mut blocks, mut pieces) = (Vec::new(), Vec::new());
        for (index, (&slot, number)) in slots.iter().zip(numbers).enumerate() {
            let holder = Holder::Client(client);
            process.writers.insert((region.id, slot), holder);
            blocks.push((number, self.history.new_version()));
            let cut = 1 + process.random.below(len as u64 - 1) as usize;
            pieces.push((index, 0, cut));
            pieces.push((index, cut, len - cut));
        }
        // Pieces are written in any order.
        for at in (1..pieces.len()).rev() {
            pieces.swap(at, process.random.below(at as u64 + 1) as usize);
        }
        let job = process.number();
        process.jobs.insert(
            job,
            Job {
                client,
                region,
                slots,
                blocks,
                pieces,
            },
        );
        self.later(process.pid, 1, Act::Write { job });
    }

    /// One piece; after the last one the blocks are sealed.
    pub(super) fn write(&mut self, process: &mut Process, id: u64) {
        let Some(mut job) = process.jobs.remove(&id) else {
            return;
        };
        let holder = Holder::Client(job.client);
        if let Some((index, from, len)) = job.pieces.pop() {
            let (slot, (hash, version)) = (job.slots[index], job.blocks[index]);
            let broken = buffers_are_owned::check(process, &job.region, slot, holder);
            self.check(broken);
            let bytes = content(hash, version, job.region.geometry.block_bytes() as usize);
            write_part(&job.region, slot, from, &bytes[from..from + len]);
            process.jobs.insert(id, job);
            let wait = process.random.within(1, 2 * MS);
            return self.later(process.pid, wait, Act::Write { job: id });
        }
        for &(hash, version) in &job.blocks {
            self.history.published(hash, version);
        }
        let hashes: Vec<_> = job
            .blocks
            .iter()
            .map(|(hash, _)| self.conditions.names.hash(*hash))
            .collect();
        let seal = Seal {
            holder,
            region: job.region.id,
            slots: &job.slots,
            hashes: &hashes,
            chain: Chain::From(None),
            checksums: Checksums::Compute,
            pin: None,
            private: false,
        };
        // Its region may have been taken out of service meanwhile.
        if process.store.seal(process.local(self.now), &seal).is_ok() {
            for slot in &job.slots {
                process.writers.remove(&(job.region.id, *slot));
            }
            self.stats.published += job.slots.len() as u64;
            let numbers = job
                .blocks
                .iter()
                .map(|(hash, version)| hash ^ (version << 32));
            let numbers: Vec<_> = [4, process.pid as u64].into_iter().chain(numbers).collect();
            self.note(&numbers);
        }
    }
}
