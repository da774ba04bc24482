//! Bytes delivered are, whole, bytes that somebody published under that hash.

use kvferry_agent::region::Held;

use super::Broken;
use crate::{
    history::{History, bytes_of},
    promise::Promise,
    world::{Process, World},
};

/// A pull has landed a block.
pub(crate) fn landed(history: &History, process: &Process, hash: u64, held: &Held) -> Broken {
    let region = process.store.region(held.region)?;
    let wrong = history.check(hash, &bytes_of(&region, held.slot)).err()?;
    let (pid, slot) = (process.pid, held.slot);
    let detail = format!("process {pid} was delivered block {hash} in slot {slot}: {wrong}");
    Some((Promise::BytesArePublished, detail))
}

/// Everything that is sealed anywhere is what it is said to be, also what nobody pulls.
pub(crate) fn audit(world: &World) -> Broken {
    for process in world.processes.iter().flatten() {
        let held = process.mirror.held.lock();
        for (&(region, slot), said) in held.iter() {
            let Some(region) = process.store.region(region) else {
                continue;
            };
            let mut number = [0; 8];
            number.copy_from_slice(said.hash.as_bytes());
            let hash = u64::from_be_bytes(number);
            if let Err(wrong) = world.history.check(hash, &bytes_of(&region, slot)) {
                let pid = process.pid;
                let detail = format!("process {pid} holds block {hash} in slot {slot}: {wrong}");
                return Some((Promise::BytesArePublished, detail));
            }
        }
    }
    None
}
