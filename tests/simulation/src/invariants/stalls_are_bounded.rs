//! A source that stands still costs a pull its stall bound and no more: then its reads are cancelled and it is suspect.
//! A pull that need not read from a suspect does not, and one that answers a probe is suspect no more.

use std::time::Duration;

use kvferry_agent::transfer::{SlotRead, SourceKey};

use super::Broken;
use crate::{
    conditions::Conditions,
    promise::Promise,
    world::{Process, World, pull::Pull},
};

/// Looks at the links' counters that a stall may be noticed late by, and one for the timers.
const LATE_TICKS: u32 = 3;

fn failed(detail: String) -> Broken {
    Some((Promise::StallsAreBounded, detail))
}

/// Nothing that a pull waits for has stood still for longer than the bound.
pub(crate) fn waits(
    pull: &Pull,
    conditions: &Conditions,
    awake: Duration,
    now: Duration,
) -> Broken {
    let transfer = &conditions.transfer;
    let most = transfer.stall_bound + LATE_TICKS * transfer.progress_tick;
    if pull.reported {
        return None;
    }
    let waiting = pull
        .flights
        .iter()
        .filter(|(_, flight)| flight.failure.is_none());
    for (op, flight) in waiting {
        let progress = pull.links.get(&flight.source).map(|link| link.progress_at);
        let since = flight.begun.max(progress.unwrap_or_default()).max(awake);
        let still = now.saturating_sub(since);
        if still > most {
            let (id, source) = (pull.id, flight.source);
            return failed(format!(
                "pull {id} waits for {op:?} of {source:?}, which has stood still for {still:?}"
            ));
        }
    }
    None
}

/// Every pull of every process that is awake.
pub(crate) fn all(world: &World) -> Broken {
    world.processes.iter().flatten().find_map(|process| {
        if process.paused_until >= world.now {
            return None;
        }
        let awake = process.local(process.paused_until);
        let now = process.local(world.now);
        let mut pulls = process.pulls.values();
        pulls.find_map(|pull| waits(pull, &world.conditions, awake, now))
    })
}

/// A pull begins to read.
pub(crate) fn reads(pull: &mut Pull, most: usize, source: SourceKey, slots: &[SlotRead]) -> Broken {
    let again = slots.iter().any(|slot| !pull.read_once.insert(slot.block));
    let free = !pull.troubled && !again && !pull.must_suspect && pull.peers.len() <= most;
    let broken = free && pull.suspects.contains(&source);
    broken.then(|| {
        let id = pull.id;
        let detail = format!(
            "pull {id} reads from {source:?}, which is suspect, and others have every block of it"
        );
        (Promise::StallsAreBounded, detail)
    })
}

/// Long after the last fault: whoever lives answers, and is suspect no more.
pub(crate) fn at_end(world: &World, process: &Process) -> Broken {
    let suspect = world
        .processes
        .iter()
        .flatten()
        .find(|other| (process.health).is_suspect(&other.name, other.incarnation))?;
    let (pid, other) = (process.pid, suspect.pid);
    failed(format!("process {pid} still suspects process {other}"))
}
