//! A block whose publication a coordinator acknowledged is found there until it is removed, or its
//! owner or what the coordinator knows is gone; and no agent believes in an acknowledgement that was
//! not given.

use std::time::Duration;

use kvferry_coordinator::directory::{Directory, LocateMode, LocateQuery, NodeState};
use kvferry_proto::{Incarnation, Labels, NodeId, RegionId, Slot};

use super::Broken;
use crate::{
    names::namespace_of,
    promise::Promise,
    world::{Process, World, process::Said},
};

/// Everybody's blocks at every coordinator.
pub(crate) fn check(world: &World) -> Broken {
    // In a large world a few at a time: the next probe takes others.
    let step = 1 + world.processes.len() / 64;
    let offset = (world.stats.probes as usize) % step;
    let some = world.processes.iter().skip(offset).step_by(step);
    for process in some.flatten() {
        for coordinator in 0..world.coordinators.len() {
            let broken = check_one(world, process, coordinator);
            if broken.is_some() {
                return broken;
            }
        }
    }
    None
}

/// What an agent takes for acknowledged was acknowledged by that lifetime of the coordinator, which has
/// not forgotten the node since.
pub(crate) fn belief(world: &World, process: &Process, at: usize) -> Broken {
    let coordinator = &world.coordinators[at];
    let session = &process.sessions[at];
    let in_step = session.machine.is_live() && session.epoch == coordinator.epoch;
    let node = coordinator
        .directory
        .as_ref()?
        .node(Duration::ZERO, &process.name)
        .ok()?;
    if !in_step || session.stream.is_none() || node.incarnation != process.incarnation {
        return None;
    }
    let given = coordinator
        .acknowledged
        .get(&process.pid)
        .copied()
        .unwrap_or(0);
    let (pid, believed) = (process.pid, session.machine.acknowledged());
    (believed > given).then(|| {
        let detail = format!("process {pid} takes {believed} for acknowledged, it is {given}");
        (Promise::PublishedIsFound, detail)
    })
}

fn check_one(world: &World, process: &Process, at: usize) -> Broken {
    let coordinator = &world.coordinators[at];
    let directory = coordinator.directory.as_ref()?;
    let acknowledged = coordinator.acknowledged.get(&process.pid).copied();
    let info = directory.node(Duration::ZERO, &process.name).ok()?;
    if info.incarnation != process.incarnation {
        return None;
    }
    if info.state == NodeState::Hidden {
        return None;
    }
    let acknowledged = acknowledged?;
    let held = process.mirror.held.lock();
    for (&(region, slot), said) in held.iter().filter(|(_, said)| said.seq <= acknowledged) {
        let place = (
            process.name.clone(),
            process.incarnation,
            region,
            slot,
            said.generation.0,
        );
        if world.is_deleted(at, process, region) {
            continue;
        }
        // Its region may be on its way out.
        let Some(number) = number_of(world, process, region, said) else {
            continue;
        };
        let (places, all) = places(world, directory, number);
        if all && !places.contains(&place) {
            let (pid, seq) = (process.pid, said.seq);
            let detail = format!(
                "coordinator {at} acknowledged delta {acknowledged} of process {pid}, and does not \
                 know slot {slot} of region {region}, which delta {seq} sealed"
            );
            return Some((Promise::PublishedIsFound, detail));
        }
    }
    None
}

/// The block that a slot was said to hold.
pub(super) fn number_of(
    world: &World,
    process: &Process,
    region: RegionId,
    said: &Said,
) -> Option<u64> {
    let names = &world.conditions.names;
    let namespace = names.namespace(&process.store.region(region)?.namespace.name)?;
    names.number(namespace, said.hash.as_bytes())
}

/// Where a block is.
pub(super) type Place = (NodeId, Incarnation, RegionId, Slot, u64);

/// Where a coordinator says that a block is, and whether that is all it knows.
pub(super) fn places(world: &World, directory: &Directory, number: u64) -> (Vec<Place>, bool) {
    const MOST: usize = kvferry_coordinator::directory::MAX_CANDIDATES;
    let namespace = namespace_of(number);
    let located = directory.locate(&LocateQuery {
        namespace: &world.conditions.spec(namespace).name,
        hashes: &world.conditions.names.pack(namespace, &[number]),
        mode: LocateMode::Set,
        max_candidates: MOST,
        host_id: "",
        prefer: &Labels::default(),
        exclude: None,
        draw: 0,
        locations: false,
    });
    // Nobody has declared the namespace: nobody holds anything.
    let Ok(located) = located else {
        return (Vec::new(), true);
    };
    let rows = located
        .owner_index
        .iter()
        .zip(&located.slots)
        .zip(&located.generations);
    let places: Vec<_> = rows
        .filter_map(|((row, slot), generation)| {
            let owner = located.owners.get(*row as usize)?;
            Some((
                owner.node.clone(),
                owner.incarnation,
                owner.region,
                Slot(*slot),
                *generation,
            ))
        })
        .collect();
    let all = places.len() < MOST;
    (places, all)
}
