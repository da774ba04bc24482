//! A claim is never held by two, and one that has ended is held by nobody.

use std::time::Duration;

use kvferry_coordinator::directory::{ClaimOutcome, ClaimPurpose, Claimed};
use kvferry_proto::{BlockHash, PackedHashes};

use super::{Broken, published_is_found::places};
use crate::{
    promise::Promise,
    world::{World, claims::Grant},
};

fn failed(detail: String) -> Broken {
    Some((Promise::ClaimsAreExclusive, detail))
}

/// What a coordinator answered just now to one that claimed these.
pub(crate) fn check(
    world: &World,
    coordinator: usize,
    local: Duration,
    purpose: ClaimPurpose,
    hashes: &[BlockHash],
    claimed: &Claimed,
) -> Broken {
    let stored = answers_stored(world, coordinator, purpose, hashes, claimed);
    if stored.is_some() {
        return stored;
    }
    for (hash, outcome) in hashes.iter().zip(&claimed.outcomes) {
        let mut held = holders(world, coordinator, local, purpose, hash);
        let broken = match outcome {
            ClaimOutcome::Stored => None,
            // What may have been fulfilled may be granted anew.
            ClaimOutcome::Granted => held
                .find(|grant| !grant.maybe_fulfilled.contains(hash))
                .and_then(|grant| {
                    failed(format!("{hash} is granted twice, also to {}", grant.pid))
                }),
            ClaimOutcome::Claimed(row) => {
                let holder = claimed
                    .holders
                    .get(*row as usize)
                    .map(|holder| &holder.node);
                let known = held.any(|grant| world.name_of(grant.pid) == holder);
                if known {
                    None
                } else {
                    failed(format!(
                        "{hash} is said to be {holder:?}'s, whose claim has ended"
                    ))
                }
            }
        };
        if broken.is_some() {
            return broken;
        }
    }
    None
}

/// "Stored" is said of what readers are offered (to produce it), and of what has a location; and of nothing else.
fn answers_stored(
    world: &World,
    coordinator: usize,
    purpose: ClaimPurpose,
    hashes: &[BlockHash],
    claimed: &Claimed,
) -> Broken {
    let directory = world.coordinators[coordinator].directory.as_ref()?;
    let spec = &world.conditions.spec;
    let packed = PackedHashes::pack(spec.hash_len, hashes).ok()?;
    let located = directory.find_locations(&spec.name, &packed).ok()?;
    for ((hash, row), outcome) in hashes.iter().zip(&located.rows).zip(&claimed.outcomes) {
        let offered =
            purpose == ClaimPurpose::Produce && !places(world, directory, *hash).0.is_empty();
        let (stored, said) = (offered || row.is_some(), *outcome == ClaimOutcome::Stored);
        if stored != said {
            return failed(format!(
                "{hash} is answered as {outcome:?} to one who would {purpose:?}: offered {offered}, \
                 located {}",
                row.is_some()
            ));
        }
    }
    None
}

/// Grants of this coordinator's lifetime that have not ended.
fn holders<'a>(
    world: &'a World,
    coordinator: usize,
    local: Duration,
    purpose: ClaimPurpose,
    hash: &'a BlockHash,
) -> impl Iterator<Item = &'a Grant> {
    let here = &world.coordinators[coordinator];
    let holds = move |grant: &&Grant| {
        (grant.coordinator, grant.epoch) == (coordinator, here.epoch)
            && grant.purpose == purpose
            && grant.expires > local
            && grant.hashes.contains(hash)
    };
    let lives = move |grant: &&Grant| {
        let name = world.name_of(grant.pid);
        let node = name.zip(here.directory.as_ref());
        let known = node.and_then(|(name, directory)| directory.node(local, name).ok());
        known.is_some_and(|node| world.incarnation(grant.pid) == Some(node.incarnation))
    };
    world.claims.granted.iter().filter(holds).filter(lives)
}

/// Nobody claims any more, and every lease has run out.
pub(crate) fn all_ended(world: &World) -> Broken {
    for (at, coordinator) in world.coordinators.iter().enumerate() {
        let held = coordinator
            .directory
            .as_ref()
            .map_or(0, |d| d.claims_held());
        if held > 0 {
            return failed(format!("coordinator {at} still has {held} claims"));
        }
    }
    None
}
