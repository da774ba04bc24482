//! Some time after the last fault every directory equals what the living hold, and nothing is leaked.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use kvferry_proto::RegionId;

use super::{
    Broken, bytes_are_published, claims_are_exclusive, copies_come, deleted_is_gone,
    published_is_found::{number_of, places},
    sources_are_true, stalls_are_bounded, watchers_agree,
};
use crate::{
    promise::Promise,
    world::{Process, World},
};

/// The last look.
pub(crate) fn check(world: &mut World) {
    let mut broken = bytes_are_published::audit(world);
    broken = broken.or_else(|| claims_are_exclusive::all_ended(world));
    for coordinator in 0..world.coordinators.len() {
        broken = broken.or_else(|| directory(world, coordinator));
    }
    broken = broken.or_else(|| watchers_agree::at_end(world));
    broken = broken.or_else(|| deleted_is_gone::probe(world));
    broken = broken.or_else(|| copies_come::at_end(world));
    broken = broken.or_else(|| sources_are_true::at_end(world));
    let now = world.now;
    for process in world.processes.iter().flatten() {
        broken = broken.or_else(|| leaks(process, process.local(now)));
        broken = broken.or_else(|| stalls_are_bounded::at_end(world, process));
    }
    world.check(broken);
}

fn failed(detail: String) -> Broken {
    Some((Promise::Converges, detail))
}

/// The one that speaks for each node: of two that live, the later.
pub(super) fn speakers(world: &World) -> BTreeMap<usize, &Process> {
    let mut speakers: BTreeMap<usize, &Process> = BTreeMap::new();
    for process in world.processes.iter().flatten() {
        let known = speakers.entry(process.node).or_insert(process);
        if process.incarnation > known.incarnation {
            *known = process;
        }
    }
    speakers
}

fn directory(world: &World, at: usize) -> Broken {
    let Some(directory) = &world.coordinators[at].directory else {
        return failed(format!("coordinator {at} is down"));
    };
    let speakers = speakers(world);
    if speakers.len() != world.nodes.len() {
        return failed(format!(
            "{} of {} nodes live",
            speakers.len(),
            world.nodes.len()
        ));
    }
    let mut truth: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for process in speakers.values() {
        let Ok(info) = directory.node(Duration::ZERO, &process.name) else {
            return failed(format!("coordinator {at} does not know {}", process.name));
        };
        let held = process.mirror.held.lock();
        let stays = |region: RegionId| !world.is_deleted(at, process, region);
        let holds = held.keys().filter(|place| stays(place.0)).count();
        if info.incarnation != process.incarnation || info.blocks != holds as u64 {
            let (name, blocks) = (&process.name, info.blocks);
            return failed(format!(
                "coordinator {at} knows {blocks} blocks of {name} incarnation {}, which holds \
                 {holds} as incarnation {}",
                info.incarnation, process.incarnation
            ));
        }
        for (&(region, slot), said) in held.iter().filter(|(place, _)| stays(place.0)) {
            truth
                .entry(number_of(world, process, region, said))
                .or_default()
                .insert((
                    process.name.clone(),
                    process.incarnation,
                    region,
                    slot,
                    said.generation.0,
                ));
        }
    }
    let known = directory.nodes(Duration::ZERO).count();
    if known != speakers.len() {
        return failed(format!(
            "coordinator {at} knows {known} nodes, {} live",
            speakers.len()
        ));
    }
    for number in world.history.hashes() {
        let (found, all) = places(world, directory, number);
        let found: BTreeSet<_> = found.into_iter().collect();
        let held = truth.remove(&Some(number)).unwrap_or_default();
        if found != held && (all || !found.is_subset(&held)) {
            return failed(format!(
                "coordinator {at} says that block {number} is at {found:?}; it is at {held:?}"
            ));
        }
    }
    None
}

fn leaks(process: &Process, now: Duration) -> Broken {
    process.store.tick(now);
    let (pid, stats) = (process.pid, process.store.stats());
    let quarantined: u32 = stats.regions.iter().map(|region| region.quarantined).sum();
    if stats.reservations > 0 || stats.pins > 0 || quarantined > 0 {
        let (reservations, pins) = (stats.reservations, stats.pins);
        return failed(format!(
            "process {pid} still has {reservations} reservations, {pins} pins and {quarantined} \
             slots in quarantine"
        ));
    }
    if !process.pulls.is_empty() || !process.jobs.is_empty() || !process.writers.is_empty() {
        let (pulls, jobs) = (process.pulls.len(), process.jobs.len());
        return failed(format!(
            "process {pid} still has {pulls} pulls, {jobs} writers and {} slots being written",
            process.writers.len()
        ));
    }
    let answers = process.sessions.iter().map(|session| session.answers.len());
    let answers: usize = answers.sum();
    if !process.orders.is_empty() || answers > 0 {
        let orders = &process.orders;
        return failed(format!(
            "process {pid} still has orders to copy ({orders:?}) and {answers} answers to them"
        ));
    }
    None
}
