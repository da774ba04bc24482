//! What is asked for, and how far it is.

use std::{collections::BTreeMap, time::Duration};

use kvferry_proto::{BlockHash, NamespaceName, NodeId};

use super::{Cause, Outcome};

/// Most copies that can be asked for: as many as a look-up names.
pub const MAX_COPIES: u32 = 16;
/// How long hot blocks are wanted where it is not said, and nodes drained.
pub const DEFAULT_HOT: Duration = Duration::from_secs(3_600);
/// See [`DEFAULT_HOT`].
pub const DEFAULT_DRAIN: Duration = Duration::from_secs(600);
/// The longest for both.
pub const MAX_TIME: Duration = Duration::from_secs(86_400);
/// Hot blocks of all namespaces: a thousand long prompts, looked up in some milliseconds a round.
const MAX_HOT: usize = 65_536;

/// Over the bound of hot blocks. Nothing was taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the bound of {MAX_HOT} blocks that copies are wanted of is reached: take some back, or wait for \
     them to expire"
)]
pub struct TooManyHot;

/// How far a namespace's copies are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CopiesStatus {
    /// What every block should have; 0 where nothing is asked for.
    pub min_copies: u32,
    /// Blocks asked for one by one.
    pub hot: u64,
    /// Blocks that lacked copies in the last round.
    pub lacking: u64,
    /// Blocks looked at in it.
    pub surveyed: u64,
    /// Rounds since it was asked for.
    pub rounds: u64,
    /// Copies made.
    pub copied: u64,
    /// Copies that failed, and are tried elsewhere.
    pub failed: u64,
}

/// How far a drain is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainStatus {
    /// In a word.
    pub state: DrainState,
    /// Blocks that only it held in the last round.
    pub left: u64,
    /// Rounds since it began.
    pub rounds: u64,
    /// Copies made because of it.
    pub copied: u64,
    /// Until copying ends.
    pub deadline: Duration,
}

/// How far a drain is, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainState {
    /// Blocks are left, or were not looked at yet.
    Moving,
    /// Other nodes hold all of them.
    Moved,
    /// The deadline passed, and blocks are left.
    Expired,
}

/// What is asked for in all, and how far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sums {
    /// Namespaces with a wish.
    pub namespaces: u64,
    /// Blocks asked for one by one.
    pub hot: u64,
    /// Blocks that lacked copies in their last round.
    pub lacking: u64,
    /// Drains by how far they are.
    pub drains: [(DrainState, u64); 3],
    /// Blocks that only nodes being drained held in their last round.
    pub drains_left: u64,
}

#[derive(Debug, Default)]
struct Wanted {
    status: CopiesStatus,
    hot: BTreeMap<BlockHash, Hot>,
    /// Of the round under way.
    round: Counts,
}

#[derive(Debug, Clone, Copy)]
struct Hot {
    copies: u32,
    until: Duration,
}

#[derive(Debug)]
struct Drain {
    until: Duration,
    left: u64,
    rounds: u64,
    copied: u64,
    round: Counts,
}

impl Drain {
    fn state(&self, now: Duration) -> DrainState {
        match (self.rounds > 0 && self.left == 0, now < self.until) {
            (true, _) => DrainState::Moved,
            (false, true) => DrainState::Moving,
            (false, false) => DrainState::Expired,
        }
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    lacking: u64,
    surveyed: u64,
}

/// Everything that is asked for.
#[derive(Debug, Default)]
pub struct Wants {
    namespaces: BTreeMap<NamespaceName, Wanted>,
    drains: BTreeMap<NodeId, Drain>,
}

impl Wants {
    /// Nothing is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.namespaces.is_empty() && self.drains.is_empty()
    }

    /// Every block of a namespace should have so many copies; one is no wish.
    pub fn set_copies(&mut self, name: &NamespaceName, copies: u32) {
        let wanted = self.namespaces.entry(name.clone()).or_default();
        wanted.status.min_copies = match copies.min(MAX_COPIES) {
            0 | 1 => 0,
            copies => copies,
        };
        (wanted.status.rounds, wanted.round) = (0, Counts::default());
        self.forget_empty();
    }

    /// These blocks should have so many copies until then; with none, whatever others have.
    ///
    /// # Errors
    /// [`TooManyHot`].
    pub fn want(
        &mut self,
        name: &NamespaceName,
        hashes: &[BlockHash],
        copies: u32,
        until: Duration,
    ) -> Result<(), TooManyHot> {
        let others = self.namespaces.values().map(|wanted| wanted.hot.len());
        if copies > 0 && others.sum::<usize>() + hashes.len() > MAX_HOT {
            return Err(TooManyHot);
        }
        let wanted = self.namespaces.entry(name.clone()).or_default();
        for hash in hashes {
            let copies = copies.min(MAX_COPIES);
            match copies {
                0 => wanted.hot.remove(hash),
                copies => wanted.hot.insert(*hash, Hot { copies, until }),
            };
        }
        (wanted.status.rounds, wanted.round) = (0, Counts::default());
        self.forget_empty();
        Ok(())
    }

    /// A node is to go: blocks that only it holds are copied until then.
    pub fn drain(&mut self, node: &NodeId, until: Duration) {
        let drain = Drain {
            until,
            left: 0,
            rounds: 0,
            copied: 0,
            round: Counts::default(),
        };
        self.drains.insert(node.clone(), drain);
    }

    /// It stays.
    pub fn undo_drain(&mut self, node: &NodeId) {
        self.drains.remove(node);
    }

    /// Time passed. Drains of nodes that the directory does not drain are forgotten: they went, whether or not they have come
    /// back since.
    pub fn tick(&mut self, now: Duration, is_draining: impl Fn(&NodeId) -> bool) {
        self.drains.retain(|node, _| is_draining(node));
        for wanted in self.namespaces.values_mut() {
            wanted.hot.retain(|_, hot| now < hot.until);
        }
        self.forget_empty();
    }

    fn forget_empty(&mut self) {
        self.namespaces
            .retain(|_, wanted| wanted.status.min_copies > 0 || !wanted.hot.is_empty());
    }

    /// How far a namespace's copies are.
    #[must_use]
    pub fn status(&self, name: &NamespaceName) -> CopiesStatus {
        let wanted = self.namespaces.get(name);
        wanted.map_or_else(CopiesStatus::default, |wanted| CopiesStatus {
            hot: wanted.hot.len() as u64,
            ..wanted.status
        })
    }

    /// How far a drain is; None where there is none.
    #[must_use]
    pub fn drain_status(&self, now: Duration, node: &NodeId) -> Option<DrainStatus> {
        let drain = self.drains.get(node)?;
        Some(DrainStatus {
            state: drain.state(now),
            left: drain.left,
            rounds: drain.rounds,
            copied: drain.copied,
            deadline: drain.until.saturating_sub(now),
        })
    }

    /// What is asked for in all. Takes as long as [`tick`](Self::tick), beside which it is called.
    #[must_use]
    pub fn sums(&self, now: Duration) -> Sums {
        use DrainState::{Expired, Moved, Moving};
        let wanted = || self.namespaces.values();
        let count = |state| {
            let of_it = self.drains.values().filter(|d| d.state(now) == state);
            (state, of_it.count() as u64)
        };
        Sums {
            namespaces: self.namespaces.len() as u64,
            hot: wanted().map(|wanted| wanted.hot.len() as u64).sum(),
            lacking: wanted().map(|wanted| wanted.status.lacking).sum(),
            drains: [Moving, Moved, Expired].map(count),
            drains_left: self.drains.values().map(|drain| drain.left).sum(),
        }
    }

    /// Copies were made, or were not.
    pub fn note(&mut self, outcome: &Outcome) {
        let (copied, failed) = (outcome.copied as u64, outcome.failed as u64);
        match &outcome.cause {
            Cause::Wanted => {
                if let Some(wanted) = self.namespaces.get_mut(&outcome.namespace) {
                    wanted.status.copied += copied;
                    wanted.status.failed += failed;
                }
            }
            Cause::Drain(node) => {
                if let Some(drain) = self.drains.get_mut(node) {
                    drain.copied += copied;
                }
            }
        }
    }

    // ---- for the rounds

    /// Namespaces with a wish, and whether it is for all of their blocks.
    pub(super) fn namespaces(&self) -> impl Iterator<Item = (&NamespaceName, bool)> {
        let each = self.namespaces.iter();
        each.map(|(name, wanted)| (name, wanted.status.min_copies > 0))
    }

    /// Nodes whose blocks are to be copied.
    pub(super) fn draining(&self, now: Duration) -> impl Iterator<Item = &NodeId> {
        let drains = self.drains.iter();
        drains
            .filter(move |(_, drain)| now < drain.until)
            .map(|(node, _)| node)
    }

    /// Copies a block should have.
    pub(super) fn copies_of(&self, name: &NamespaceName, hash: &[u8]) -> u32 {
        self.namespaces.get(name).map_or(0, |wanted| {
            let hot = wanted.hot.get(hash).map_or(0, |hot| hot.copies);
            hot.max(wanted.status.min_copies)
        })
    }

    pub(super) fn hot(&self, name: &NamespaceName) -> Vec<BlockHash> {
        let hot = self.namespaces.get(name).map(|wanted| &wanted.hot);
        hot.into_iter()
            .flat_map(|hot| hot.keys().copied())
            .collect()
    }

    /// So many blocks were looked at, and so many lacked copies.
    pub(super) fn count(
        &mut self,
        cause: &Cause,
        name: &NamespaceName,
        surveyed: u64,
        lacking: u64,
    ) {
        let counts = match cause {
            Cause::Wanted => self.namespaces.get_mut(name).map(|w| &mut w.round),
            Cause::Drain(node) => self.drains.get_mut(node).map(|d| &mut d.round),
        };
        if let Some(counts) = counts {
            counts.surveyed += surveyed;
            counts.lacking += lacking;
        }
    }

    pub(super) fn namespace_round_ends(&mut self, name: &NamespaceName) {
        if let Some(wanted) = self.namespaces.get_mut(name) {
            let round = std::mem::take(&mut wanted.round);
            wanted.status.lacking = round.lacking;
            wanted.status.surveyed = round.surveyed;
            wanted.status.rounds += 1;
        }
    }

    pub(super) fn drain_round_ends(&mut self, node: &NodeId) {
        if let Some(drain) = self.drains.get_mut(node) {
            drain.left = std::mem::take(&mut drain.round).lacking;
            drain.rounds += 1;
        }
    }
}
