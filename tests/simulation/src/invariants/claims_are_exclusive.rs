//! A claim is never held by two, and one that has ended is held by nobody.

use std::time::Duration;

use super::{Broken, published_is_found::places};
use crate::{
    names::namespace_of,
    promise::Promise,
    world::{World, claims::Grant},
};
use kvferry_coordinator::directory::{ClaimOutcome, ClaimPurpose, Claimed};

fn failed(detail: String) -> Broken {
    Some((Promise::ClaimsAreExclusive, detail))
}

/// What a coordinator answered just now to one that claimed these.
pub(crate) fn check(
    world: &World,
    coordinator: usize,
    local: Duration,
    purpose: ClaimPurpose,
    numbers: &[u64],
    claimed: &Claimed,
) -> Broken {
    let stored = answers_stored(world, coordinator, purpose, numbers, claimed);
    if stored.is_some() {
        return stored;
    }
    for (number, outcome) in numbers.iter().zip(&claimed.outcomes) {
        let mut held = holders(world, coordinator, local, purpose, *number);
        let broken = match outcome {
            ClaimOutcome::Stored => None,
            // What may have been fulfilled may be granted anew.
            ClaimOutcome::Granted => held
                .find(|grant| !grant.maybe_fulfilled.contains(number))
                .and_then(|grant| {
                    let other = grant.pid;
                    failed(format!("block {number} is granted twice, also to {other}"))
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
                        "block {number} is said to be {holder:?}'s, whose claim has ended"
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
    numbers: &[u64],
    claimed: &Claimed,
) -> Broken {
    let directory = world.coordinators[coordinator].directory.as_ref()?;
    let namespace = namespace_of(*numbers.first()?);
    let name = &world.conditions.spec(namespace).name;
    let packed = world.conditions.names.pack(namespace, numbers);
    let located = directory.find_locations(name, &packed).ok()?;
    for ((number, row), outcome) in numbers.iter().zip(&located.rows).zip(&claimed.outcomes) {
        let offered =
            purpose == ClaimPurpose::Produce && !places(world, directory, *number).0.is_empty();
        let (stored, said) = (offered || row.is_some(), *outcome == ClaimOutcome::Stored);
        if stored != said {
            return failed(format!(
                "block {number} is answered as {outcome:?} to one who would {purpose:?}: offered {offered}, \
                 located {}",
                row.is_some()
            ));
        }
    }
    None
}

/// Grants of this coordinator's lifetime that have not ended.
fn holders(
    world: &World,
    coordinator: usize,
    local: Duration,
    purpose: ClaimPurpose,
    number: u64,
) -> impl Iterator<Item = &Grant> {
    let here = &world.coordinators[coordinator];
    let holds = move |grant: &&Grant| {
        (grant.coordinator, grant.epoch) == (coordinator, here.epoch)
            && grant.purpose == purpose
            && grant.expires > local
            && grant.numbers.contains(&number)
    };
    let lives = move |grant: &&Grant| {
        let name = world.name_of(grant.pid);
        let node = name.zip(here.directory.as_ref());
        let known = node.and_then(|(name, directory)| directory.node(local, name).ok());
        known.is_some_and(|node| world.incarnation(grant.pid) == Some(node.incarnation))
    };
    world.claims.granted.iter().filter(holds).filter(lives)
}

/// A claimant believes something more of its lease: not longer than its coordinator does, and nobody else believes it too.
pub(crate) fn believed(world: &World, grant: &Grant) -> Broken {
    let here = &world.coordinators[grant.coordinator];
    let until = grant.believed_until.map(|until| here.local(until))?;
    if until > grant.expires {
        let (pid, numbers) = (grant.pid, &grant.numbers);
        return failed(format!(
            "process {pid} takes blocks {numbers:?} for its own until {until:?}; they are until {:?}",
            grant.expires
        ));
    }
    let other = |other: &&Grant| {
        let same = (other.coordinator, other.epoch, other.purpose)
            == (grant.coordinator, grant.epoch, grant.purpose);
        same && other.token != grant.token && other.is_believed(world.now)
    };
    world.claims.granted.iter().filter(other).find_map(|other| {
        let both = grant.numbers.intersection(&other.numbers);
        let mut both = both.filter(|number| {
            let done = [grant, other].map(|grant| grant.maybe_fulfilled.contains(*number));
            done == [false, false]
        });
        let number = both.next()?;
        let (one, another) = (grant.pid, other.pid);
        failed(format!(
            "processes {one} and {another} both take block {number} for their own"
        ))
    })
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
