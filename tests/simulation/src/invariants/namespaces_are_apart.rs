//! A hash that is known in one namespace is not answered for another: whoever asks is sent to regions of the namespace
//! that it asked about, and for blocks that were published there.

use kvferry_proto::{NamespaceName, RegionId, pb};

use super::Broken;
use crate::{
    promise::Promise,
    world::{Process, World},
};

fn failed(detail: String) -> Broken {
    Some((Promise::NamespacesAreApart, detail))
}

/// A coordinator answers who holds blocks.
pub(crate) fn answered(
    world: &World,
    namespace: &str,
    hashes: &pb::PackedHashes,
    answer: &pb::LocateResponse,
) -> Broken {
    let names = &world.conditions.names;
    let name = NamespaceName::new(namespace).ok()?;
    let asked = names.namespace(&name)?;
    let spec = names.spec(asked);
    let hash_len = (hashes.hash_len as usize).max(1);
    let each = hashes.hashes.chunks_exact(hash_len);
    for (hash, count) in each.zip(&answer.candidate_counts) {
        let number = names.number(asked, hash);
        if *count > 0 && !number.is_some_and(|number| world.history.knows(number)) {
            return failed(format!(
                "{name} is said to have {number:?}, which nobody published there"
            ));
        }
    }
    for owner in &answer.owners {
        let of = |process: &&Process| {
            process.name.as_str() == owner.node && process.incarnation.get() == owner.incarnation
        };
        let mut living = world.processes.iter().flatten().map(|process| &**process);
        let process = living.find(of);
        // Where it is gone by now, nobody is sent anywhere.
        let region = process.and_then(|process| process.store.region(RegionId(owner.region)));
        if let Some(region) = region.filter(|region| *region.namespace != *spec) {
            return failed(format!(
                "{name} is answered with region {} of {}, which is of {}",
                region.id, owner.node, region.namespace.name
            ));
        }
    }
    None
}
