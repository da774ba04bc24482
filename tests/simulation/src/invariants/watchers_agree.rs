//! What a watcher made of what it was told is exactly what the directory says: the same nodes, and the same copies in
//! the same slots. What it was not told, it was told that it was not.

use std::collections::{BTreeMap, BTreeSet};

use kvferry_coordinator::directory::{Directory, NodeState};
use kvferry_proto::pb;

use super::{Broken, published_is_found::places};
use crate::{
    names::namespace_of,
    promise::Promise,
    world::{View, WINDOW, World},
};

/// Where a copy is: node, its incarnation, region, slot, generation.
type Place<'a> = (&'a str, u64, u32, u32, u64);

fn failed(detail: String) -> Broken {
    Some((Promise::WatchersAgree, detail))
}

/// A router after the other, a probe each: one whose coordinator has told it all there is, once it has read what is on
/// its way.
pub(crate) fn probe(world: &World) -> Broken {
    let routers = world.routers.len().max(1) as u64;
    check(world, (world.stats.probes % routers) as usize)
}

fn check(world: &World, at: usize) -> Broken {
    let router = &world.routers[at];
    let here = &world.coordinators[router.coordinator];
    let directory = here.directory.as_ref()?;
    let stream = router.stream.as_ref()?;
    if stream.pipe.len() > WINDOW + 1 {
        let waiting = stream.pipe.len();
        let detail = format!("{waiting} messages wait for router {at}");
        return Some((Promise::BoundsHold, detail));
    }
    let all_told = stream.waits && stream.made.is_empty() && stream.watcher.is_some();
    if !all_told || stream.lifetime != here.epoch {
        return None;
    }
    let mut view = router.view.clone();
    for message in stream.pipe.iter().filter_map(|(_, told)| told.as_ref()) {
        if let Err(wrong) = view.apply(message) {
            return failed(format!("router {at} is to be told: {wrong}"));
        }
    }
    compare(world, at, &view, directory)
}

/// Long after the last fault every router follows its coordinator, and has what it has.
pub(crate) fn at_end(world: &World) -> Broken {
    for (at, router) in world.routers.iter().enumerate() {
        let here = &world.coordinators[router.coordinator];
        let watched = &world.conditions.spec(router.namespace).name;
        let gone = (here.directory.as_ref()).is_some_and(|d| d.namespace(watched).is_err());
        if gone {
            // It was deleted, or nobody ever declared it.
            continue;
        }
        let follows = router.stream.as_ref().is_some_and(|stream| {
            stream.lifetime == here.epoch && stream.waits && stream.pipe.is_empty()
        });
        if !follows || !router.view.synced {
            return failed(format!("router {at} does not follow its coordinator"));
        }
    }
    (0..world.routers.len()).find_map(|at| check(world, at))
}

fn compare(world: &World, at: usize, view: &View, directory: &Directory) -> Broken {
    let router = &world.routers[at];
    if !view.synced {
        return failed(format!("router {at} was told all, and is not in sync"));
    }
    let state = |state| match state {
        NodeState::Live => pb::NodeState::Live,
        NodeState::Hidden => pb::NodeState::Hidden,
        NodeState::Draining => pb::NodeState::Draining,
    };
    let infos: Vec<_> = directory.nodes(std::time::Duration::ZERO).collect();
    let known = infos.iter().map(|info| {
        let (node, incarnation) = (info.node.to_string(), info.incarnation.get());
        (node, incarnation, state(info.state) as i32)
    });
    let known: BTreeSet<_> = known.collect();
    let seen = view.nodes.values();
    let seen = seen.map(|node| (node.node.clone(), node.incarnation, node.state));
    let seen: BTreeSet<_> = seen.collect();
    if seen != known || seen.len() != view.nodes.len() {
        return failed(format!(
            "router {at} knows the nodes {seen:?}, not {known:?}"
        ));
    }
    let mut blocks: BTreeMap<&str, u64> = BTreeMap::new();
    let mut offered: BTreeMap<&[u8], BTreeSet<Place<'_>>> = BTreeMap::new();
    for ((region, slot), (hash, generation)) in &view.copies {
        let of = view.regions.get(region);
        let Some((node, id)) = of.and_then(|(node, id)| Some((view.nodes.get(node)?, id))) else {
            return failed(format!("router {at} has a copy on no node"));
        };
        *blocks.entry(&node.node).or_default() += 1;
        if node.state != pb::NodeState::Hidden as i32 {
            let place = (
                node.node.as_str(),
                node.incarnation,
                *id,
                *slot,
                *generation,
            );
            offered.entry(hash).or_default().insert(place);
        }
    }
    for info in &infos {
        let (name, seen) = (info.node.as_str(), blocks.get(info.node.as_str()));
        let watched = &world.conditions.spec(router.namespace).name;
        let of_it = info
            .regions
            .iter()
            .filter(|held| held.namespace == *watched);
        let known: u64 = of_it.map(|held| u64::from(held.sealed)).sum();
        if seen.copied().unwrap_or(0) != known {
            let detail = format!("router {at} has {seen:?} copies of {name}, not {known}");
            return failed(detail);
        }
    }
    let watched = |number: &u64| namespace_of(*number) == router.namespace;
    for number in world.history.hashes().filter(watched) {
        let hash = world.conditions.names.hash(number);
        let seen = offered.remove(hash.as_bytes()).unwrap_or_default();
        let (places, all) = places(world, directory, number);
        let known = places
            .iter()
            .map(|(node, incarnation, region, slot, generation)| {
                let region = region.0;
                (
                    node.as_str(),
                    incarnation.get(),
                    region,
                    slot.0,
                    *generation,
                )
            });
        let known: BTreeSet<_> = known.collect();
        if seen != known && (all || !known.is_subset(&seen)) {
            let detail = format!("router {at} has block {number} at {seen:?}, not {known:?}");
            return failed(detail);
        }
    }
    None
}
