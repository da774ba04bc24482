//! Copies that are wanted come, and not one more: nothing is ordered that is there or under way, and long after the last
//! fault no block lacks a copy that some node has room for; who did not copy a block is not told to again at once. A drain
//! that is said to be done leaves nothing behind.

use std::{collections::BTreeSet, time::Duration};

use kvferry_agent::region::RegionStats;
use kvferry_coordinator::{
    directory::{Directory, NodeState},
    replication::{Cause, DrainState, Order},
};
use kvferry_proto::{BlockHash, NodeId};

use super::{Broken, published_is_found::places};
use crate::{
    names::{MODEL, WEIGHTS, namespace_of, number},
    promise::Promise,
    world::{UnderWay, World},
};

/// How long a node that did not copy a block is not told to again.
const NOT_AGAIN_WITHIN: Duration = Duration::from_secs(30);

fn failed(detail: String) -> Broken {
    Some((Promise::CopiesCome, detail))
}

/// A coordinator orders copies.
pub(crate) fn ordered(world: &World, coordinator: usize, order: &Order, cause: &Cause) -> Broken {
    let here = &world.coordinators[coordinator];
    let directory = here.directory.as_ref()?;
    let told = &order.node;
    if state(directory, told) != Some(NodeState::Live) {
        return failed(format!("{told} is to copy, and is not live"));
    }
    let namespace = world.conditions.names.namespace(&order.namespace)?;
    for hash in &order.hashes {
        let twice = here.copying.under_way.values();
        let mut twice = twice.filter(|other| other.namespace == order.namespace);
        if twice.any(|order| order.hashes.contains(hash)) {
            return failed(format!(
                "{hash} is ordered from {told}, and under way already"
            ));
        }
        let tried = (told.clone(), order.namespace.clone(), *hash);
        let until = here.copying.not_made.get(&tried);
        if until.is_some_and(|until| here.local(world.now) < *until) {
            return failed(format!(
                "{told} is to copy {hash} again, which it just did not"
            ));
        }
        let Some(number) = world.conditions.names.number(namespace, hash.as_bytes()) else {
            return failed(format!("{hash} is ordered, which is no block"));
        };
        let (holders, all) = holders(world, directory, number);
        if holders.contains(told) {
            return failed(format!("{told} is to copy {hash}, which it has"));
        }
        let stay = holders
            .iter()
            .filter(|node| state(directory, node) == Some(NodeState::Live));
        let (stay, wanted) = (stay.count(), wanted(world, number));
        let lacks = match cause {
            Cause::Wanted => stay < wanted,
            Cause::Drain(_) => stay == 0,
        };
        if all && !lacks {
            return failed(format!(
                "{hash} is ordered from {told}: {holders:?} have it, {wanted} should"
            ));
        }
    }
    None
}

/// A node tried to copy blocks. Those that it says failed, and those that readers are not sent to it for all the same, it is
/// not told to copy again for a while: orders for what cannot be copied are bounded.
pub(crate) fn answered(world: &mut World, coordinator: usize, order: &UnderWay, failed: &[u32]) {
    let here = &world.coordinators[coordinator];
    let Some(directory) = &here.directory else {
        return;
    };
    // Readers are not sent to one that is silent, whatever it has.
    let speaks = state(directory, &order.node) != Some(NodeState::Hidden);
    let until = here.local(world.now) + NOT_AGAIN_WITHIN;
    let names = &world.conditions.names;
    let namespace = names.namespace(&order.namespace);
    let shown = |hash: &BlockHash| {
        let number = namespace.and_then(|namespace| names.number(namespace, hash.as_bytes()));
        number.is_none_or(|number| {
            let (holders, all) = holders(world, directory, number);
            !all || holders.contains(&order.node)
        })
    };
    let blocks = (0..).zip(&order.hashes);
    let not_made = blocks.filter(|(index, hash)| failed.contains(index) || speaks && !shown(hash));
    let not_made: Vec<_> = not_made
        .map(|(_, hash)| (order.node.clone(), order.namespace.clone(), *hash))
        .collect();
    let copying = &mut world.coordinators[coordinator].copying;
    copying
        .not_made
        .extend(not_made.into_iter().map(|tried| (tried, until)));
}

/// Long after the last fault.
pub(crate) fn at_end(world: &World) -> Broken {
    if !world.wishes.copies() {
        return None;
    }
    (0..world.coordinators.len()).find_map(|at| at_one(world, at))
}

fn at_one(world: &World, at: usize) -> Broken {
    let here = &world.coordinators[at];
    let directory = here.directory.as_ref()?;
    let local = Duration::from_micros(world.now);
    let mut left = BTreeSet::new();
    for number in world.history.hashes() {
        let (holders, all) = holders(world, directory, number);
        if holders.is_empty() || !all {
            continue;
        }
        let stay = holders
            .iter()
            .filter(|node| state(directory, node) == Some(NodeState::Live));
        let (stay, wanted) = (stay.count(), wanted(world, number));
        let goes = holders.len() > stay && stay == 0;
        if goes {
            left.extend(holders.iter().cloned());
        }
        if (stay < wanted || goes)
            && let Some(free) = room(world, at, number, &holders)
        {
            return failed(format!(
                "block {number} is on {holders:?} only, {wanted} nodes should have it, and {free} has room: coordinator \
                 {at} says {:?}",
                here.copying
                    .wants
                    .status(&world.conditions.spec_of(number).name)
            ));
        }
    }
    world.operators.drains.iter().find_map(|node| {
        let name = &world.nodes[*node].name;
        let drain = here.copying.wants.drain_status(local, name)?;
        let moved = drain.state == DrainState::Moved && left.contains(name);
        moved.then_some((
            Promise::CopiesCome,
            format!("coordinator {at} says that {name} is drained; only it holds some blocks"),
        ))
    })
}

fn wanted(world: &World, block: u64) -> usize {
    let hot = world.operators.hot.as_ref();
    let hot = hot.filter(|(hot, _)| hot.iter().any(|hash| number(MODEL, *hash) == block));
    let each = match namespace_of(block) {
        WEIGHTS => 0,
        _ => world.wishes.min_copies,
    };
    each.max(hot.map_or(0, |(_, copies)| *copies)) as usize
}

/// Nodes that readers are sent to for a block, and whether those are all.
fn holders(world: &World, directory: &Directory, number: u64) -> (BTreeSet<NodeId>, bool) {
    let (places, all) = places(world, directory, number);
    (places.into_iter().map(|place| place.0).collect(), all)
}

fn state(directory: &Directory, node: &NodeId) -> Option<NodeState> {
    let info = directory.node(Duration::ZERO, node).ok()?;
    Some(info.state)
}

/// Somebody with a free slot who could have the block and has it not.
fn room(world: &World, at: usize, number: u64, holders: &BTreeSet<NodeId>) -> Option<NodeId> {
    let directory = world.coordinators[at].directory.as_ref()?;
    let mut living = world.processes.iter().flatten();
    let able = living.find(|process| {
        let info = directory.node(Duration::ZERO, &process.name);
        let speaks = info.is_ok_and(|info| {
            info.incarnation == process.incarnation && info.state == NodeState::Live
        });
        let Some(pool) = process.pools.get(namespace_of(number)) else {
            return false;
        };
        let stats = process.store.stats();
        let mut regions = stats.regions.iter();
        // What it holds in a region that was deleted there it has, and copies no second time; nobody is sent to it.
        let name = &world.conditions.spec_of(number).name;
        let hash = world.conditions.names.hash(number);
        let has = process.store.find(name, &hash);
        let has = has.is_some_and(|held| world.is_deleted(at, process, held.region));
        // One that was deleted there takes blocks, and nobody finds them.
        let free = |r: &RegionStats| r.region.id == pool.id && r.free > 0;
        let free = !world.is_deleted(at, process, pool.id) && regions.any(free);
        speaks && !has && !holders.contains(&process.name) && free
    });
    able.map(|process| process.name.clone())
}
