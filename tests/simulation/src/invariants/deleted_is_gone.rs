//! Of a namespace that was deleted by force nothing is found any more: no copy, no location, no claim; and what was declared
//! by then does not come back, whatever its agent sends again.

use std::time::Duration;

use super::{Broken, published_is_found::places};
use crate::{names::namespace_of, promise::Promise, world::World};

fn failed(detail: String) -> Broken {
    Some((Promise::DeletedIsGone, detail))
}

/// It was deleted just now.
pub(crate) fn at_once(world: &World, coordinator: usize, namespace: usize) -> Broken {
    let directory = world.coordinators[coordinator].directory.as_ref()?;
    let spec = world.conditions.spec(namespace);
    let name = &spec.name;
    if directory.namespace(name).is_ok() {
        return failed(format!("{name} is still there"));
    }
    if directory.list_claims(Duration::ZERO, Some(name)).is_ok() {
        return failed(format!("claims are listed for {name}"));
    }
    let numbers = world
        .history
        .hashes()
        .filter(|n| namespace_of(*n) == namespace);
    let numbers: Vec<u64> = numbers.collect();
    let packed = world.conditions.names.pack(namespace, &numbers);
    if directory.find_locations(name, &packed).is_ok() {
        return failed(format!("locations of {name} are still answered"));
    }
    let mut found = numbers
        .iter()
        .filter(|n| !places(world, directory, **n).0.is_empty());
    found
        .next()
        .and_then(|number| failed(format!("block {number} of {name} is still found")))
}

/// What was deleted and what is found, at every coordinator.
pub(crate) fn probe(world: &World) -> Broken {
    for (at, here) in world.coordinators.iter().enumerate() {
        let Some(directory) = here.directory.as_ref().filter(|_| !here.deleted.is_empty()) else {
            continue;
        };
        for node in directory.nodes(Duration::ZERO) {
            for held in &node.regions {
                let key = (node.node.clone(), node.incarnation, held.region);
                if here.deleted.contains(&key) {
                    return failed(format!(
                        "coordinator {at} has region {} of {} again, which was deleted with {}",
                        held.region, node.node, held.namespace
                    ));
                }
            }
        }
        for number in world.history.hashes() {
            let (places, _) = places(world, directory, number);
            let back = places.into_iter().find(|place| {
                let key = (place.0.clone(), place.1, place.2);
                here.deleted.contains(&key)
            });
            if let Some(place) = back {
                return failed(format!(
                    "coordinator {at} says that block {number} is at {place:?}, which was deleted"
                ));
            }
        }
    }
    None
}
