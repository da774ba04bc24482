//! The machine by itself: exact answers, and a model.

#[cfg(test)]
mod bounds;
#[cfg(test)]
mod lifecycle;
pub(crate) mod model;
#[cfg(test)]
mod queries;

use std::time::Duration;

use kvferry_proto::{
    ChunkRun, ChunkRuns, Incarnation, Labels, NamespaceName, NodeId, RegionId, SourceId,
    SourceIdentity, SourceName, Tensor, TensorTable, pb,
};

use super::*;
use crate::directory::Presence;

const SECOND: Duration = Duration::from_secs(1);

fn at(seconds: u64) -> Duration {
    SECOND * seconds as u32
}

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn incarnation(number: u64) -> Incarnation {
    Incarnation::new(number).unwrap()
}

fn there(number: u64) -> Option<Presence> {
    Some(Presence {
        incarnation: incarnation(number),
        attached: true,
    })
}

fn silent(number: u64) -> Option<Presence> {
    there(number).map(|there| Presence {
        attached: false,
        ..there
    })
}

fn identity(name: &str, world_size: u32) -> SourceIdentity {
    SourceIdentity::new(
        NamespaceName::new("weights").unwrap(),
        SourceName::new(name).unwrap(),
        "main",
        world_size,
        Labels::default(),
        &[],
    )
    .unwrap()
}

/// `count` tensors of 8 bytes in chunks of 16.
fn table(count: u64) -> TensorTable {
    let tensor = |n: u64| pb::TensorDescriptor {
        name: format!("t{n}"),
        dtype: "F32".into(),
        shape: vec![2],
        offset: 8 * n,
        bytes: 8,
    };
    let tensors = (0..count).map(|n| Tensor::try_from(tensor(n)).unwrap());
    TensorTable::new(16, count.div_ceil(2) as u32, tensors.collect()).unwrap()
}

fn runs(slots: u32) -> ChunkRuns {
    ChunkRuns::new([ChunkRun {
        region: RegionId(1),
        first_slot: 0,
        slots,
    }])
    .unwrap()
}

fn announced(
    id: SourceId,
    rank: u32,
    publication: u64,
    table: &TensorTable,
    said: Said,
) -> Announced {
    Announced {
        source: id,
        rank,
        publication,
        digest: table.digest(),
        said,
        runs: runs(table.chunks()),
    }
}

/// A machine, and agents that number what they say.
struct World {
    sources: Sources,
    number: u64,
}

impl World {
    fn new() -> Self {
        Self::with(Bounds::default())
    }

    fn with(bounds: Bounds) -> Self {
        Self {
            sources: Sources::new(bounds),
            number: 0,
        }
    }

    fn who(&mut self, name: &str, lifetime: u64) -> Announcer {
        self.number += 1;
        Announcer {
            node: node(name),
            incarnation: incarnation(lifetime),
            number: self.number,
        }
    }

    /// Rank of a source of `ranks` ranks, in full, by lifetime 1 of a node.
    fn publish(
        &mut self,
        now: Duration,
        name: &str,
        of: (&str, u32),
        rank: u32,
        said: Said,
    ) -> Result<Published, PublishError> {
        let identity = identity(of.0, of.1);
        let table = table(4);
        let worker = announced(identity.id(), rank, 1, &table, said);
        let who = self.who(name, 1);
        self.sources
            .publish(now, &who, there(1), identity, worker, table)
    }

    fn announce(
        &mut self,
        now: Duration,
        name: &str,
        workers: Vec<Announced>,
    ) -> Result<Announcement, AnnounceError> {
        let who = self.who(name, 1);
        self.sources.announce(now, &who, there(1), workers)
    }

    fn changes(&mut self) -> Vec<(u32, String, WorkerState)> {
        let changes = self.sources.take_changes().into_iter();
        changes
            .map(|c| (c.rank, c.node.to_string(), c.state))
            .collect()
    }

    fn states(&self, now: Duration, id: SourceId) -> Vec<WorkerState> {
        let (_, workers) = self.sources.status(now, id).unwrap();
        workers.into_iter().map(|worker| worker.state).collect()
    }
}
