//! Who holds how many copies: what the planner of replicas looks at, a slice at a time.

use std::ops::ControlFlow;

use kvferry_proto::{BlockHash, NamespaceName, NamespaceSpec, NodeId, PackedHashes};

use super::{Directory, SessionId, index::Copies, node::NodeState, slots::Slot};

/// The regions to look through, and how far that is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Survey {
    /// Handles of regions; slots of the last one before `from` were looked at.
    regions: Vec<u32>,
    from: u32,
}

/// One block, and who holds it.
#[derive(Debug, Clone, Copy)]
pub struct Surveyed<'a> {
    /// Its namespace.
    pub namespace: &'a NamespaceName,
    /// Its hash.
    pub hash: &'a [u8],
    /// Handles of the nodes that hold it, each once; those that are silent for now, too.
    pub holders: &'a [u32],
    /// How many of them are not drained.
    pub staying: usize,
    /// How many of them are neither drained nor silent.
    pub live: usize,
}

/// A node that can be told to copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyTarget {
    /// Its handle, as [`Surveyed::holders`] names it.
    pub handle: u32,
    /// Its name.
    pub node: NodeId,
    /// Its session.
    pub session: SessionId,
    /// Its host.
    pub host_id: String,
    /// It has regions of the namespace.
    pub member: bool,
}

impl Directory {
    /// To look through all blocks of a namespace.
    #[must_use]
    pub fn survey_namespace(&self, name: &NamespaceName) -> Survey {
        let handle = self.catalog.named(name).map(|(handle, _)| handle);
        let regions = handle.map(|handle| self.catalog.regions_of(handle).collect());
        Survey {
            regions: regions.unwrap_or_default(),
            from: 0,
        }
    }

    /// To look through all blocks of a node.
    #[must_use]
    pub fn survey_node(&self, name: &NodeId) -> Survey {
        let node = self.names.get(name).and_then(|node| self.nodes.get(*node));
        let regions = node.into_iter().flat_map(|node| node.accepted());
        Survey {
            regions: regions.map(|(_, handle)| handle).collect(),
            from: 0,
        }
    }

    /// Looks through at most so many slots; false when all were looked at. Regions that went meanwhile
    /// are passed over.
    pub fn survey(
        &self,
        survey: &mut Survey,
        slots: u32,
        mut visit: impl FnMut(Surveyed<'_>),
    ) -> bool {
        let Some(&handle) = survey.regions.last() else {
            return false;
        };
        let region = self.catalog.region(handle).filter(|region| !region.gone);
        let namespace = region.and_then(|region| self.catalog.namespace_of(region));
        let (Some(region), Some(namespace)) = (region, namespace) else {
            survey.regions.pop();
            survey.from = 0;
            return !survey.regions.is_empty();
        };
        let table = region.slots.lock();
        let start = table.skip_empty(survey.from).min(region.slot_count());
        let end = region.slot_count().min(start.saturating_add(slots.max(1)));
        let mut holders = Vec::new();
        for slot in start..end {
            if let Slot::Sealed(place) = table.get(slot) {
                namespace.index.entry(place, |hash, copies| {
                    let (staying, live) = self.holders(copies, &mut holders);
                    visit(Surveyed {
                        namespace: &namespace.spec.name,
                        hash,
                        holders: &holders,
                        staying,
                        live,
                    });
                });
            }
        }
        survey.from = end;
        if end == region.slot_count() {
            survey.regions.pop();
            survey.from = 0;
        }
        !survey.regions.is_empty()
    }

    /// Looks at some blocks of a namespace. Those nobody holds are passed over, and so are all where
    /// the hashes have another length.
    pub fn survey_blocks(
        &self,
        name: &NamespaceName,
        hashes: &[BlockHash],
        mut visit: impl FnMut(Surveyed<'_>),
    ) {
        let Some(namespace) = self.catalog.namespace(name) else {
            return;
        };
        let Ok(packed) = PackedHashes::pack(namespace.spec.hash_len, hashes) else {
            return;
        };
        let (mut holders, mut each) = (Vec::new(), hashes.iter());
        let flow = namespace.index.look_up(packed.as_bytes(), |copies| {
            let (staying, live) = self.holders(copies, &mut holders);
            if let Some(hash) = each.next()
                && !holders.is_empty()
            {
                visit(Surveyed {
                    namespace: name,
                    hash: hash.as_bytes(),
                    holders: &holders,
                    staying,
                    live,
                });
            }
            ControlFlow::<()>::Continue(())
        });
        debug_assert!(flow.is_continue());
    }

    /// Does this node hold the block, as far as is known? Also one that is silent for now.
    #[must_use]
    pub fn is_held_by(&self, node: &NodeId, namespace: &NamespaceName, hash: &BlockHash) -> bool {
        let mut held = false;
        if let Some(handle) = self.names.get(node) {
            let hashes = std::slice::from_ref(hash);
            self.survey_blocks(namespace, hashes, |seen| {
                held = seen.holders.contains(handle);
            });
        }
        held
    }

    /// Distinct holders, and how many of them stay and are live.
    fn holders(&self, copies: Copies<'_>, holders: &mut Vec<u32>) -> (usize, usize) {
        holders.clear();
        let (mut staying, mut live) = (0, 0);
        for held in copies {
            let region = self.catalog.region(held.owner.region);
            let Some(region) = region.filter(|region| !region.gone) else {
                continue;
            };
            let Some(node) = self.nodes.get(region.node) else {
                continue;
            };
            if !holders.contains(&region.node) {
                holders.push(region.node);
                staying += usize::from(!node.draining);
                live += usize::from(node.state() == NodeState::Live);
            }
        }
        (staying, live)
    }

    /// Is there a node of this name, and is it being drained? One that went and came back is not: who goes on as if it were
    /// would count it among those that keep its blocks.
    #[must_use]
    pub fn is_draining(&self, name: &NodeId) -> bool {
        let node = self.names.get(name).and_then(|node| self.nodes.get(*node));
        node.is_some_and(|node| node.draining)
    }

    /// What a namespace is.
    #[must_use]
    pub fn namespace_spec(&self, name: &NamespaceName) -> Option<&NamespaceSpec> {
        let namespace = self.catalog.namespace(name)?;
        Some(&namespace.spec)
    }

    /// The namespace of the region that a survey looks at next.
    #[must_use]
    pub fn surveyed_namespace(&self, survey: &Survey) -> Option<&NamespaceName> {
        let region = self.catalog.region(*survey.regions.last()?)?;
        Some(&self.catalog.namespace_of(region)?.spec.name)
    }

    /// Nodes that can be told to copy blocks of a namespace, by name: live, in session, and not
    /// drained.
    #[must_use]
    pub fn copy_targets(&self, name: &NamespaceName) -> Vec<CopyTarget> {
        let namespace = self.catalog.named(name).map(|(handle, _)| handle);
        let of_namespace = |region: u32| {
            let region = self.catalog.region(region);
            region.is_some_and(|region| Some(region.namespace) == namespace)
        };
        let target = |handle: &u32| {
            let node = self.nodes.get(*handle)?;
            Some(CopyTarget {
                handle: *handle,
                node: node.name.clone(),
                session: node.session.filter(|_| node.state() == NodeState::Live)?,
                host_id: node.addresses.host_id.clone(),
                member: node.accepted().any(|(_, region)| of_namespace(region)),
            })
        };
        self.names.values().filter_map(target).collect()
    }
}
