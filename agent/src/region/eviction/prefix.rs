//! Leaves of the prefix tree before their parents.

use std::{cmp::Reverse, collections::BTreeSet};

use kvferry_proto::Slot;

use super::EvictionPolicy;

/// A node's identity: its slot and when it was inserted, so that a link to a block that is gone
/// does not point to the next block in its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Link {
    slot: u32,
    inserted: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Node {
    present: bool,
    pinned: bool,
    /// Said of it while it was pinned.
    surplus: bool,
    inserted: u64,
    used: u64,
    parent: Option<Link>,
    /// How many present nodes have this one as their parent.
    children: u32,
    /// Ancestors there were when it was inserted.
    depth: u32,
}

/// A block without its ancestors is of no use to a prefix lookup, so leaves go before their
/// parents, and among leaves the least recently used goes first. A pinned leaf is no victim, and
/// shields its ancestors for as long as there is another leaf that is none.
///
/// When every leaf is pinned, refusing would let one pin hold a whole pool; then the deepest
/// unpinned block goes, which keeps the longest prefix. Every call is O(log n) of the sealed slots.
///
/// A block whose parent is not in the pool when it is sealed is a root.
#[derive(Debug)]
pub struct Prefix {
    nodes: Vec<Node>,
    /// Unpinned nodes without children, coldest first.
    leaves: BTreeSet<(u64, u32)>,
    /// Unpinned nodes with children, deepest first, then coldest.
    inner: BTreeSet<(Reverse<u32>, u64, u32)>,
    /// Counts insertions and uses.
    clock: u64,
}

impl Prefix {
    /// For a pool of `slots` slots, none of them sealed.
    #[must_use]
    pub fn new(slots: u32) -> Self {
        Self {
            nodes: vec![Node::default(); slots as usize],
            leaves: BTreeSet::new(),
            inner: BTreeSet::new(),
            clock: 0,
        }
    }

    /// Changes a present node and moves it to where it then belongs.
    fn update(&mut self, slot: u32, change: impl FnOnce(&mut Node)) {
        let Some(node) = self.nodes.get_mut(slot as usize) else {
            return;
        };
        let before = *node;
        change(node);
        let after = *node;
        if before.present && !before.pinned {
            if before.children == 0 {
                self.leaves.remove(&(before.used, slot));
            } else {
                self.inner
                    .remove(&(Reverse(before.depth), before.used, slot));
            }
        }
        if after.present && !after.pinned {
            if after.children == 0 {
                self.leaves.insert((after.used, slot));
            } else {
                self.inner.insert((Reverse(after.depth), after.used, slot));
            }
        }
    }

    fn present(&self, slot: u32) -> Option<&Node> {
        self.nodes.get(slot as usize).filter(|node| node.present)
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

impl EvictionPolicy for Prefix {
    fn inserted(&mut self, slot: Slot, parent: Option<Slot>) {
        if self.present(slot.0).is_some() || slot.0 as usize >= self.nodes.len() {
            return;
        }
        let now = self.tick();
        let parent = parent.and_then(|parent| Some((parent.0, self.present(parent.0)?)));
        let depth = parent.map_or(0, |(_, node)| node.depth.saturating_add(1));
        let parent = parent.map(|(slot, node)| Link {
            slot,
            inserted: node.inserted,
        });
        self.update(slot.0, |node| {
            *node = Node {
                present: true,
                pinned: false,
                surplus: false,
                inserted: now,
                used: now,
                parent,
                children: 0,
                depth,
            };
        });
        if let Some(parent) = parent {
            self.update(parent.slot, |node| node.children += 1);
        }
    }

    fn touched(&mut self, slot: Slot) {
        if self.present(slot.0).is_some() {
            let now = self.tick();
            self.update(slot.0, |node| node.used = now);
        }
    }

    fn surplus(&mut self, slot: Slot) {
        self.update(slot.0, |node| {
            node.used = 0;
            node.surplus = node.pinned;
        });
    }

    fn pinned(&mut self, slot: Slot) {
        if self.present(slot.0).is_some() {
            self.update(slot.0, |node| node.pinned = true);
        }
    }

    fn unpinned(&mut self, slot: Slot) {
        if self.present(slot.0).is_some_and(|node| node.pinned) {
            let now = self.tick();
            self.update(slot.0, |node| {
                node.pinned = false;
                node.used = if node.surplus { 0 } else { now };
                node.surplus = false;
            });
        }
    }

    fn removed(&mut self, slot: Slot) {
        let Some(&Node { parent, .. }) = self.present(slot.0) else {
            return;
        };
        self.update(slot.0, |node| *node = Node::default());
        if let Some(link) = parent
            && self
                .present(link.slot)
                .is_some_and(|node| node.inserted == link.inserted)
        {
            self.update(link.slot, |node| node.children -= 1);
        }
    }

    fn victim(&self) -> Option<Slot> {
        let leaf = self.leaves.first().map(|(_, slot)| *slot);
        leaf.or_else(|| self.inner.first().map(|(_, _, slot)| *slot))
            .map(Slot)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A call of a policy.
    #[derive(Debug, Clone, Copy)]
    pub(in super::super) enum Step {
        Insert(Slot, Option<Slot>),
        Touch(Slot),
        Surplus(Slot),
        Pin(Slot),
        Unpin(Slot),
        Remove(Slot),
        Evict,
    }

    impl Step {
        pub(in super::super) fn apply(self, policy: &mut dyn EvictionPolicy) {
            match self {
                Self::Insert(slot, parent) => policy.inserted(slot, parent),
                Self::Touch(slot) => policy.touched(slot),
                Self::Surplus(slot) => policy.surplus(slot),
                Self::Pin(slot) => policy.pinned(slot),
                Self::Unpin(slot) => policy.unpinned(slot),
                Self::Remove(slot) => policy.removed(slot),
                Self::Evict => {}
            }
        }
    }

    /// Calls of a policy for eight slots; some do not fit what came before.
    pub(in super::super) fn steps() -> impl Strategy<Value = Vec<Step>> {
        let slot = || (0u32..9).prop_map(Slot);
        let step = prop_oneof![
            4 => (slot(), prop::option::weighted(0.8, slot())).prop_map(|(s, p)| Step::Insert(s, p)),
            2 => slot().prop_map(Step::Touch),
            1 => slot().prop_map(Step::Surplus),
            2 => slot().prop_map(Step::Pin),
            1 => slot().prop_map(Step::Unpin),
            1 => slot().prop_map(Step::Remove),
            2 => Just(Step::Evict),
        ];
        prop::collection::vec(step, 0..80)
    }

    #[derive(Debug, Clone)]
    struct Block {
        slot: Slot,
        id: usize,
        parent: Option<usize>,
        depth: u32,
        used: usize,
        pinned: bool,
        surplus: bool,
    }

    /// A list of blocks, searched from end to end.
    #[derive(Default)]
    struct Naive {
        blocks: Vec<Block>,
        now: usize,
    }

    impl Naive {
        fn apply(&mut self, step: Step) {
            self.now += 1;
            let now = self.now;
            let find = |slot| self.blocks.iter().position(|block| block.slot == slot);
            match step {
                Step::Insert(slot, parent) if find(slot).is_none() && slot.0 < 8 => {
                    let parent = parent.and_then(find).map(|at| &self.blocks[at]);
                    let depth = parent.map_or(0, |block| block.depth + 1);
                    let parent = parent.map(|block| block.id);
                    self.blocks.push(Block {
                        slot,
                        id: now,
                        parent,
                        depth,
                        used: now,
                        pinned: false,
                        surplus: false,
                    });
                }
                Step::Touch(slot) => {
                    if let Some(at) = find(slot) {
                        self.blocks[at].used = now;
                    }
                }
                Step::Surplus(slot) => {
                    if let Some(at) = find(slot) {
                        self.blocks[at].used = 0;
                        self.blocks[at].surplus = self.blocks[at].pinned;
                    }
                }
                Step::Pin(slot) => {
                    if let Some(at) = find(slot) {
                        self.blocks[at].pinned = true;
                    }
                }
                Step::Unpin(slot) => {
                    if let Some(at) = find(slot).filter(|at| self.blocks[*at].pinned) {
                        let surplus = std::mem::take(&mut self.blocks[at].surplus);
                        self.blocks[at].pinned = false;
                        self.blocks[at].used = if surplus { 0 } else { now };
                    }
                }
                Step::Remove(slot) => self.blocks.retain(|block| block.slot != slot),
                Step::Insert(..) | Step::Evict => {}
            }
        }

        fn is_leaf(&self, block: &Block) -> bool {
            !self
                .blocks
                .iter()
                .any(|other| other.parent == Some(block.id))
        }

        fn victim(&self) -> Option<Slot> {
            let unpinned = || self.blocks.iter().filter(|block| !block.pinned);
            unpinned()
                .filter(|block| self.is_leaf(block))
                .min_by_key(|block| (block.used, block.slot))
                .or_else(|| {
                    unpinned().min_by_key(|block| (Reverse(block.depth), block.used, block.slot))
                })
                .map(|block| block.slot)
        }
    }

    #[test]
    fn a_chain_is_given_up_from_its_end() {
        let mut policy = Prefix::new(8);
        for slot in 0..4 {
            policy.inserted(Slot(slot), slot.checked_sub(1).map(Slot));
        }
        // The root is the coldest of all, and goes last all the same.
        for expected in [3, 2, 1, 0] {
            let victim = policy.victim().unwrap();
            assert_eq!(victim, Slot(expected));
            policy.removed(victim);
        }
        assert_eq!(policy.victim(), None);
    }

    #[test]
    fn a_pinned_leaf_shields_its_ancestors_while_there_is_another_leaf() {
        let mut policy = Prefix::new(8);
        policy.inserted(Slot(0), None);
        policy.inserted(Slot(1), Some(Slot(0)));
        policy.inserted(Slot(2), Some(Slot(1)));
        policy.inserted(Slot(7), None);
        policy.pinned(Slot(2));
        assert_eq!(policy.victim(), Some(Slot(7)));
        policy.removed(Slot(7));
        // Nothing but the shielded ones: the deepest goes.
        assert_eq!(policy.victim(), Some(Slot(1)));
        policy.removed(Slot(1));
        assert_eq!(policy.victim(), Some(Slot(0)));
        policy.removed(Slot(0));
        assert_eq!(policy.victim(), None);
    }

    #[test]
    fn a_reused_slot_is_not_its_old_blocks_childrens_parent() {
        let mut policy = Prefix::new(4);
        policy.inserted(Slot(0), None);
        policy.inserted(Slot(1), Some(Slot(0)));
        policy.removed(Slot(0));
        policy.inserted(Slot(0), None);
        policy.touched(Slot(1));
        assert_eq!(policy.victim(), Some(Slot(0)));
        policy.removed(Slot(1));
        assert_eq!(policy.victim(), Some(Slot(0)));
    }

    proptest! {
        #[test]
        fn agrees_with_a_naive_list(steps in steps()) {
            let (mut policy, mut naive) = (Prefix::new(8), Naive::default());
            for step in steps {
                let step = match (step, policy.victim()) {
                    (Step::Evict, Some(victim)) => Step::Remove(victim),
                    (step, _) => step,
                };
                step.apply(&mut policy);
                naive.apply(step);
                prop_assert_eq!(policy.victim(), naive.victim());
            }
        }
    }
}
