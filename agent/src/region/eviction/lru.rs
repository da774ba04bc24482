//! The least recently used block first.

use kvferry_proto::Slot;

use super::EvictionPolicy;

/// No slot: one more than any pool has.
const NONE: u32 = u32::MAX;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Absent,
    Queued,
    /// Inserted, but in no queue until it is unpinned.
    Pinned,
    /// The same, and surplus.
    PinnedSurplus,
}

#[derive(Debug, Clone, Copy)]
struct Node {
    colder: u32,
    hotter: u32,
    standing: Standing,
}

/// A list threaded through an array indexed by slot: every call is O(1) and none allocates.
#[derive(Debug)]
pub struct Lru {
    nodes: Vec<Node>,
    coldest: u32,
    hottest: u32,
}

impl Lru {
    /// For a pool of `slots` slots, none of them sealed.
    #[must_use]
    pub fn new(slots: u32) -> Self {
        let absent = Node {
            colder: NONE,
            hotter: NONE,
            standing: Standing::Absent,
        };
        Self {
            nodes: vec![absent; slots as usize],
            coldest: NONE,
            hottest: NONE,
        }
    }

    fn standing(&self, slot: u32) -> Option<Standing> {
        self.nodes.get(slot as usize).map(|node| node.standing)
    }

    fn unlink(&mut self, slot: u32) {
        let Node { colder, hotter, .. } = self.nodes[slot as usize];
        match self.nodes.get_mut(colder as usize) {
            Some(node) => node.hotter = hotter,
            None => self.coldest = hotter,
        }
        match self.nodes.get_mut(hotter as usize) {
            Some(node) => node.colder = colder,
            None => self.hottest = colder,
        }
    }

    fn link_hottest(&mut self, slot: u32) {
        let colder = self.hottest;
        self.nodes[slot as usize] = Node {
            colder,
            hotter: NONE,
            standing: Standing::Queued,
        };
        match self.nodes.get_mut(colder as usize) {
            Some(node) => node.hotter = slot,
            None => self.coldest = slot,
        }
        self.hottest = slot;
    }
}

impl Lru {
    fn link_coldest(&mut self, slot: u32) {
        let hotter = self.coldest;
        self.nodes[slot as usize] = Node {
            colder: NONE,
            hotter,
            standing: Standing::Queued,
        };
        match self.nodes.get_mut(hotter as usize) {
            Some(node) => node.colder = slot,
            None => self.hottest = slot,
        }
        self.coldest = slot;
    }
}

impl EvictionPolicy for Lru {
    fn inserted(&mut self, slot: Slot, _parent: Option<Slot>) {
        if self.standing(slot.0) == Some(Standing::Absent) {
            self.link_hottest(slot.0);
        }
    }

    fn touched(&mut self, slot: Slot) {
        if self.standing(slot.0) == Some(Standing::Queued) {
            self.unlink(slot.0);
            self.link_hottest(slot.0);
        }
    }

    fn surplus(&mut self, slot: Slot) {
        match self.standing(slot.0) {
            Some(Standing::Queued) => {
                self.unlink(slot.0);
                self.link_coldest(slot.0);
            }
            Some(Standing::Pinned) => {
                self.nodes[slot.0 as usize].standing = Standing::PinnedSurplus;
            }
            None | Some(Standing::Absent | Standing::PinnedSurplus) => {}
        }
    }

    fn pinned(&mut self, slot: Slot) {
        if self.standing(slot.0) == Some(Standing::Queued) {
            self.unlink(slot.0);
            self.nodes[slot.0 as usize].standing = Standing::Pinned;
        }
    }

    fn unpinned(&mut self, slot: Slot) {
        match self.standing(slot.0) {
            Some(Standing::Pinned) => self.link_hottest(slot.0),
            Some(Standing::PinnedSurplus) => self.link_coldest(slot.0),
            None | Some(Standing::Absent | Standing::Queued) => {}
        }
    }

    fn removed(&mut self, slot: Slot) {
        match self.standing(slot.0) {
            None | Some(Standing::Absent) => return,
            Some(Standing::Queued) => self.unlink(slot.0),
            Some(Standing::Pinned | Standing::PinnedSurplus) => {}
        }
        self.nodes[slot.0 as usize].standing = Standing::Absent;
    }

    fn victim(&self) -> Option<Slot> {
        (self.coldest != NONE).then_some(Slot(self.coldest))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::region::eviction::prefix::tests::{Step, steps};

    /// Slots from the coldest to the hottest, with their pins, and those pinned that are surplus.
    #[derive(Default)]
    struct Naive(Vec<(Slot, bool)>, Vec<Slot>);

    impl Naive {
        fn move_to_end(&mut self, slot: Slot, pinned: bool) {
            self.0.retain(|(other, _)| *other != slot);
            self.0.push((slot, pinned));
        }

        fn apply(&mut self, step: Step) {
            let known = |slot| self.0.iter().find(|(s, _)| *s == slot).map(|(_, p)| *p);
            match step {
                Step::Insert(slot, _) if slot.0 < 8 && known(slot).is_none() => {
                    self.move_to_end(slot, false);
                }
                Step::Surplus(slot) if known(slot) == Some(false) => {
                    self.0.retain(|(other, _)| *other != slot);
                    self.0.insert(0, (slot, false));
                }
                Step::Surplus(slot) if known(slot) == Some(true) => self.1.push(slot),
                Step::Unpin(slot) if known(slot) == Some(true) && self.1.contains(&slot) => {
                    self.1.retain(|other| *other != slot);
                    self.0.retain(|(other, _)| *other != slot);
                    self.0.insert(0, (slot, false));
                }
                Step::Touch(slot) if known(slot) == Some(false) => self.move_to_end(slot, false),
                Step::Pin(slot) if known(slot).is_some() => self.move_to_end(slot, true),
                Step::Unpin(slot) if known(slot) == Some(true) => self.move_to_end(slot, false),
                Step::Remove(slot) => {
                    self.0.retain(|(other, _)| *other != slot);
                    self.1.retain(|other| *other != slot);
                }
                _ => {}
            }
        }

        fn victim(&self) -> Option<Slot> {
            self.0.iter().find(|(_, pinned)| !pinned).map(|(s, _)| *s)
        }
    }

    #[test]
    fn the_coldest_unpinned_slot_goes_first() {
        let mut lru = Lru::new(3);
        assert_eq!(lru.victim(), None);
        (0..3).for_each(|slot| lru.inserted(Slot(slot), None));
        lru.touched(Slot(0));
        assert_eq!(lru.victim(), Some(Slot(1)));
        lru.pinned(Slot(1));
        assert_eq!(lru.victim(), Some(Slot(2)));
        lru.removed(Slot(2));
        assert_eq!(lru.victim(), Some(Slot(0)));
        lru.unpinned(Slot(1));
        lru.removed(Slot(0));
        assert_eq!(lru.victim(), Some(Slot(1)));
        // Slots that are not there change nothing.
        lru.inserted(Slot(3), None);
        lru.removed(Slot(9));
        assert_eq!(lru.victim(), Some(Slot(1)));
    }

    proptest! {
        #[test]
        fn agrees_with_a_naive_list(steps in steps()) {
            let (mut lru, mut naive) = (Lru::new(8), Naive::default());
            for step in steps {
                step.apply(&mut lru);
                naive.apply(step);
                prop_assert_eq!(lru.victim(), naive.victim());
            }
        }
    }
}
