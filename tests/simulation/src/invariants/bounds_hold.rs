//! Logs, queues, tables and bytes in flight stay within their bounds, whatever others do.

use kvferry_proto::pb::agent_message::Message;

use super::Broken;
use crate::{
    conditions::Conditions,
    promise::Promise,
    report::Stats,
    world::{Up, World, pull::Pull},
};

/// Deltas a change log keeps, as its own bound says.
const DELTAS_KEPT: u64 = 256;
/// Deltas a session sends without acknowledgement, as its own bound says.
const DELTAS_UNACKNOWLEDGED: usize = 64;
/// Heartbeats that may wait: a stream is given up after 4 intervals.
const HEARTBEATS: usize = 6;

/// What waits on a session's stream.
pub(crate) fn session_queue<'a>(waiting: impl Iterator<Item = &'a Up>) -> Broken {
    let (mut deltas, mut heartbeats) = (0, 0);
    for message in waiting {
        match message {
            Up::Said(Message::Delta(_)) => deltas += 1,
            Up::Said(Message::Heartbeat(_)) => heartbeats += 1,
            _ => {}
        }
    }
    let over = deltas > DELTAS_UNACKNOWLEDGED || heartbeats > HEARTBEATS;
    over.then(|| {
        let detail = format!("{deltas} deltas and {heartbeats} heartbeats wait on one stream");
        (Promise::BoundsHold, detail)
    })
}

/// Inventories that were asked for because of a gap: streams keep their order, so each is of a delta that was lost, and
/// neither a heartbeat nor a later delta asks a second time for the same.
pub(crate) fn resyncs(stats: &Stats) -> Broken {
    let (gaps, lost) = (stats.gaps, stats.lost_deltas);
    (gaps > lost).then(|| {
        let detail = format!("{gaps} gaps were seen, and {lost} deltas lost");
        (Promise::BoundsHold, detail)
    })
}

/// What a pull has under way.
pub(crate) fn pull(pull: &Pull, conditions: &Conditions) -> Broken {
    let bytes: u64 = pull.flights.values().map(|flight| flight.bytes).sum();
    let most = conditions
        .transfer
        .inflight_bytes
        .max(conditions.spec(pull.namespace).layout.block_bytes());
    (bytes > most).then(|| {
        let detail = format!(
            "pull {} has {bytes} bytes in flight, of at most {most}",
            pull.id
        );
        (Promise::BoundsHold, detail)
    })
}

/// Logs of all agents, and nodes of all coordinators.
pub(crate) fn tables(world: &World) -> Broken {
    for process in world.processes.iter().flatten() {
        let (oldest, next) = process.log.bounds();
        if next - oldest > DELTAS_KEPT {
            let (pid, kept) = (process.pid, next - oldest);
            let detail = format!("the log of process {pid} keeps {kept} deltas");
            return Some((Promise::BoundsHold, detail));
        }
    }
    for coordinator in &world.coordinators {
        let Some(directory) = &coordinator.directory else {
            continue;
        };
        let (kept, most) = (
            directory.counts().watch_log_bytes.get(),
            // For each namespace that is watched.
            (world.wishes.watch_log_bytes * world.conditions.namespaces().len()) as u64,
        );
        if kept > most {
            let detail = format!("a coordinator keeps {kept} bytes of changes, of at most {most}");
            return Some((Promise::BoundsHold, detail));
        }
        let nodes = directory.nodes(std::time::Duration::ZERO).count();
        if nodes > world.nodes.len() {
            let detail = format!("a coordinator knows {nodes} nodes of {}", world.nodes.len());
            return Some((Promise::BoundsHold, detail));
        }
    }
    None
}
