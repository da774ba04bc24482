//! Bytes delivered are, whole, bytes that somebody published under that hash.

use kvferry_agent::region::{Held, Region};
use kvferry_proto::TensorTable;

use super::Broken;
use crate::{
    history::{History, bytes_of},
    promise::Promise,
    world::{Process, World, tensors::TensorRun},
};

/// A pull has landed a block.
pub(crate) fn landed(history: &History, process: &Process, hash: u64, held: &Held) -> Broken {
    let region = process.store.region(held.region)?;
    let wrong = history.check(hash, &bytes_of(&region, held.slot)).err()?;
    let (pid, slot) = (process.pid, held.slot);
    let detail = format!("process {pid} was delivered block {hash} in slot {slot}: {wrong}");
    Some((Promise::BytesArePublished, detail))
}

/// A tensor is said to be here: each of its chunks is one that was published, and its bytes lie where they are said to.
pub(crate) fn tensor(
    history: &History,
    region: &Region,
    run: &TensorRun,
    table: &TensorTable,
    number: impl Fn(u32) -> u64,
    wanted: usize,
) -> Broken {
    let (plan, failed) = (&run.plan, |detail| {
        Some((Promise::BytesArePublished, detail))
    });
    let tensor = plan.tensor(wanted)?;
    let (name, chunk_bytes) = (tensor.name(), table.chunk_bytes());
    let mut want = Vec::new();
    for (place, chunk) in plan.places_of(wanted).zip(table.chunks_of(tensor)) {
        let bytes = bytes_of(region, plan.slot(place, run.first_slot));
        if let Err(wrong) = history.check(number(chunk), &bytes) {
            return failed(format!("tensor {name} is here, but chunk {chunk}: {wrong}"));
        }
        let begin = u64::from(chunk) * chunk_bytes;
        let within = |at: u64| at.saturating_sub(begin).min(chunk_bytes) as usize;
        let end = tensor.offset() + tensor.bytes();
        want.extend_from_slice(&bytes[within(tensor.offset())..within(end)]);
    }
    let mut found = vec![0; tensor.bytes() as usize];
    let at = u64::from(run.first_slot) * chunk_bytes + plan.offset(wanted);
    let read = region.memory.read_at(at, &mut found);
    if read.is_err() || found != want {
        return failed(format!(
            "tensor {name} is not at byte {at}, where it is said to be"
        ));
    }
    None
}

/// Everything that is sealed anywhere is what it is said to be, also what nobody pulls.
pub(crate) fn audit(world: &World) -> Broken {
    for process in world.processes.iter().flatten() {
        let held = process.mirror.held.lock();
        for (&(region, slot), said) in held.iter() {
            let Some(region) = process.store.region(region) else {
                continue;
            };
            let names = &world.conditions.names;
            let namespace = names.namespace(&region.namespace.name);
            let number = namespace.and_then(|at| names.number(at, said.hash.as_bytes()));
            let pid = process.pid;
            let Some(hash) = number else {
                let detail = format!("process {pid} holds {}, which is no block", said.hash);
                return Some((Promise::BytesArePublished, detail));
            };
            if let Err(wrong) = world.history.check(hash, &bytes_of(&region, slot)) {
                let detail = format!("process {pid} holds block {hash} in slot {slot}: {wrong}");
                return Some((Promise::BytesArePublished, detail));
            }
        }
    }
    None
}
