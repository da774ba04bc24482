//! A namespace in the directory.

use std::{collections::BTreeSet, sync::Arc};

use kvferry_proto::{NamespaceName, NamespaceSpec};
use parking_lot::Mutex;

use super::{
    BoundReached, NamespacePolicy, index::Index, location_table::LocationTable, totals::Totals,
    watch::Log,
};

/// What it is, and who owns its blocks.
#[derive(Debug)]
pub(super) struct Namespace {
    pub(super) spec: NamespaceSpec,
    pub(super) index: Index,
    /// Handles of the regions that are part of it; not those that went.
    pub(super) regions: BTreeSet<u32>,
    /// Of those regions.
    pub(super) slots: u64,
    /// What changes, while somebody watches and a little longer.
    pub(super) log: Option<Arc<Log>>,
    pub(super) policy: NamespacePolicy,
    /// Its lock is taken last of all, and no two of them at a time.
    pub(super) locations: Mutex<LocationTable>,
}

impl Namespace {
    /// Its blocks are counted in `totals`.
    pub(super) fn new(spec: NamespaceSpec, totals: &Arc<Totals>) -> Self {
        Self {
            index: Index::counted(spec.hash_len, spec.layout.block_bytes(), totals),
            spec,
            regions: BTreeSet::new(),
            slots: 0,
            log: None,
            policy: NamespacePolicy::default(),
            locations: Mutex::default(),
        }
    }

    /// May so many more slots be declared?
    pub(super) fn check_slots(&self, more: u32) -> Result<(), BoundReached> {
        let most = self.policy.most_slots(self.spec.layout.block_bytes());
        match self.slots + u64::from(more) > most {
            true => Err(BoundReached::slots_of_namespace(most)),
            false => Ok(()),
        }
    }

    /// `owners` are the sealed slots of its regions.
    pub(super) fn info(&self, owners: u64) -> NamespaceInfo {
        NamespaceInfo {
            spec: self.spec.clone(),
            blocks: self.index.len() as u64,
            owners,
            bytes: owners * self.spec.layout.block_bytes(),
            regions: self.regions.len() as u32,
        }
    }
}

/// A namespace, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceInfo {
    /// What it is.
    pub spec: NamespaceSpec,
    /// Distinct blocks with an owner, hidden nodes' included, and those of nodes that went until
    /// they are swept out of the index.
    pub blocks: u64,
    /// Copies of blocks over all nodes.
    pub owners: u64,
    /// Bytes of those copies.
    pub bytes: u64,
    /// Regions that are part of it.
    pub regions: u32,
}

/// Why a namespace was not created.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CreateNamespaceError {
    /// It is there with another spec. Use another name.
    #[error("{0}")]
    Mismatch(String),
    /// No room. Delete some first.
    #[error(transparent)]
    Bound(#[from] BoundReached),
}

/// There is no such namespace. Create it, or wait for an agent to declare a region of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "there is no namespace {name}; it is created by `CreateNamespace` or by the first region declared in it"
)]
pub struct NamespaceUnknown {
    /// The name asked for.
    pub name: NamespaceName,
}

/// Why a namespace was not deleted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeleteNamespaceError {
    /// There is none of that name.
    #[error(transparent)]
    Unknown(#[from] NamespaceUnknown),
    /// Nodes hold regions of it. Remove those first, or force it.
    #[error("namespace {name} has {regions} regions; remove them first, or delete it by force")]
    InUse {
        /// Its name.
        name: NamespaceName,
        /// How many regions.
        regions: u32,
    },
}
