//! The regions an agent serves, by id.

use std::sync::Arc;

use dashmap::DashMap;
use kvferry_memory::GenerationTable;
use kvferry_proto::{Geometry, Incarnation, NamespaceSpec, Part, RegionId, RemoteSpan};
use tokio::sync::watch;

use super::Memory;

/// One registered region. Lives as long as anybody reads it, also after it was unregistered.
#[derive(Debug)]
pub struct Region {
    /// Its id in this incarnation.
    pub id: RegionId,
    /// What its blocks belong to.
    pub namespace: Arc<NamespaceSpec>,
    /// Where its slots lie in `memory`; checked to fit.
    pub geometry: Geometry,
    /// The blocks.
    pub memory: Memory,
    /// One word per slot, in host memory.
    pub generations: Arc<GenerationTable>,
    /// The agent's own pool, or a region whose slots the engine chooses.
    pub pool: bool,
}

impl Region {
    /// Is the span inside this region?
    #[must_use]
    pub fn covers(&self, span: &RemoteSpan) -> bool {
        let len = match span.part {
            Part::Data => self.memory.len(),
            Part::Generations => u64::from(self.generations.slots()) * 8,
        };
        span.region == self.id && span.end().is_some_and(|end| end <= len)
    }
}

/// What the data plane serves. Shared by all transports.
#[derive(Debug)]
pub struct RegionCatalog {
    incarnation: Incarnation,
    regions: DashMap<RegionId, Arc<Region>>,
    /// Counts changes.
    changes: watch::Sender<u64>,
}

impl RegionCatalog {
    /// An empty catalogue of one incarnation.
    #[must_use]
    pub fn new(incarnation: Incarnation) -> Self {
        Self {
            incarnation,
            regions: DashMap::new(),
            changes: watch::Sender::new(0),
        }
    }

    /// Whose regions these are: a reader that expects another incarnation must be refused, because
    /// region ids and generations mean something else there.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// The region, while it is registered.
    #[must_use]
    pub fn get(&self, id: RegionId) -> Option<Arc<Region>> {
        self.regions.get(&id).map(|region| Arc::clone(&region))
    }

    /// Serves a region from now on.
    pub fn insert(&self, region: Arc<Region>) {
        self.regions.insert(region.id, region);
        self.changes.send_modify(|count| *count += 1);
    }

    /// Serves it no longer. Reads under way may still end.
    pub fn remove(&self, id: RegionId) -> Option<Arc<Region>> {
        let gone = self.regions.remove(&id).map(|(_, region)| region);
        self.changes.send_modify(|count| *count += 1);
        gone
    }

    /// Tells when regions come or go.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// All regions, in no order.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Region>> {
        self.regions
            .iter()
            .map(|entry| Arc::clone(&entry))
            .collect()
    }
}
