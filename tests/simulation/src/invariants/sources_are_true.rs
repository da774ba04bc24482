//! What a coordinator says of a published set is what its agent said last, as long as that agent is there: a set whose
//! node is gone is gone, one whose node has no session is stale, and one that an operator removed stays removed.

use std::{collections::BTreeMap, time::Duration};

use kvferry_coordinator::sources::{Said, StaleCause, WorkerState};

use super::{Broken, converges::speakers};
use crate::{promise::Promise, world::World};

fn failed(detail: String) -> Broken {
    Some((Promise::SourcesAreTrue, detail))
}

/// A coordinator has just looked which nodes are there.
pub(crate) fn after_tick(world: &World, coordinator: usize) -> Broken {
    let here = &world.coordinators[coordinator];
    let directory = here.directory.as_ref()?;
    let book = &world.sets.books[coordinator];
    let mut left: BTreeMap<_, _> = book.workers.iter().collect();
    for source in world.sets.ids() {
        // Nobody ever published it here, or it is forgotten.
        let Ok((_, workers)) = here.sources.status(Duration::ZERO, source) else {
            continue;
        };
        for worker in workers {
            if matches!(worker.state, WorkerState::Gone(_)) {
                continue;
            }
            let node = &worker.node;
            let Some(taken) = left.remove(&(node.clone(), source)) else {
                return failed(format!(
                    "coordinator {coordinator} lists {source} on {node} as {:?}, which is gone or was removed",
                    worker.state
                ));
            };
            let attached = directory.presence(node).is_some_and(|there| there.attached);
            let state = match (attached, taken.said) {
                (false, _) => WorkerState::Stale(StaleCause::Session),
                (true, Said::Rewritten) => WorkerState::Stale(StaleCause::Rewritten),
                (true, Said::Initialising) => WorkerState::Initialising,
                (true, Said::Ready) => WorkerState::Ready,
            };
            if (worker.state, worker.incarnation) != (state, taken.incarnation) {
                return failed(format!(
                    "coordinator {coordinator} lists {source} on {node} as {:?}, not as {state:?}",
                    worker.state
                ));
            }
        }
    }
    left.keys().next().and_then(|(node, source)| {
        failed(format!(
            "coordinator {coordinator} has lost {source} of {node}, which it took in"
        ))
    })
}

/// Long after the last fault every coordinator has what living agents publish; of two that live under one name, the later.
/// (The earlier one, if it was never welcomed, goes on asking to be let in.)
pub(crate) fn at_end(world: &World) -> Broken {
    for (at, book) in world.sets.books.iter().enumerate() {
        if let Some(broken) = after_tick(world, at) {
            return Some(broken);
        }
        let mut published = BTreeMap::new();
        for process in speakers(world).values() {
            for (kind, set) in &process.sets {
                let key = (process.name.clone(), world.sets.id(*kind));
                published.insert(key, (process.incarnation, set.publication, set.said));
            }
        }
        let taken = book.workers.iter().map(|(key, worker)| {
            let what = (worker.incarnation, worker.publication, worker.said);
            (key.clone(), what)
        });
        let taken: BTreeMap<_, _> = taken.collect();
        if taken != published {
            return failed(format!(
                "coordinator {at} has {taken:?}; published is {published:?}"
            ));
        }
    }
    None
}
