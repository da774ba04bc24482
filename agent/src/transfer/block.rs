//! Where one block of a pull stands.

use smallvec::SmallVec;

use super::{
    command::{OpId, SourceKey},
    event::Candidate,
    outcome::{Failure, Outcome},
};

/// What happens to the block now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Waits to be asked for, or for the answer.
    Locating,
    /// Waits for its destination.
    Preparing,
    /// Waits for a source with a place for it.
    Waiting,
    /// In the queue of its current candidate's source.
    Queued,
    /// Its data is being read.
    Reading(OpId),
    /// Its data has arrived; its generation is to be read.
    Unchecked,
    /// Its generation is being read.
    Checking(OpId),
    /// Its checksum is being computed.
    Verifying,
    /// It is being sealed.
    Landing,
    /// Nothing is left to be done.
    Done,
}

impl State {
    /// True where something outside the engine may touch the destination.
    pub(super) fn is_outside(self) -> bool {
        matches!(
            self,
            Self::Preparing
                | Self::Reading(_)
                | Self::Checking(_)
                | Self::Verifying
                | Self::Landing
        )
    }
}

/// A candidate, and whether it is still one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chance {
    pub(super) candidate: Candidate,
    pub(super) spent: bool,
}

/// One block.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) state: State,
    pub(super) chances: SmallVec<[Chance; 1]>,
    /// The one being tried; an index into `chances`.
    pub(super) current: usize,
    /// Hints that were found stale: a generation never comes back, so neither do they.
    pub(super) stale: Vec<Candidate>,
    /// The most telling one so far.
    pub(super) failure: Option<Failure>,
    pub(super) last_source: Option<SourceKey>,
    /// It holds a destination.
    pub(super) destination: bool,
    /// Its outcome was given.
    pub(super) finished: bool,
    /// The caller has no use for it any more; it ends as soon as nothing touches its destination.
    pub(super) unwanted: bool,
    /// Must be read in an operation of its own, to see whose span is refused.
    pub(super) alone: bool,
    pub(super) relocates: u32,
}

impl Block {
    pub(super) fn new() -> Self {
        Self {
            state: State::Locating,
            chances: SmallVec::new(),
            current: 0,
            stale: Vec::new(),
            failure: None,
            last_source: None,
            destination: false,
            finished: false,
            unwanted: false,
            alone: false,
            relocates: 0,
        }
    }

    /// The candidate being tried.
    pub(super) fn candidate(&self) -> Option<Candidate> {
        self.chances
            .get(self.current)
            .map(|chance| chance.candidate)
    }

    /// The candidates that are left, with their places.
    pub(super) fn left(&self) -> impl Iterator<Item = (usize, Candidate)> + '_ {
        self.chances
            .iter()
            .enumerate()
            .filter(|(_, chance)| !chance.spent)
            .map(|(place, chance)| (place, chance.candidate))
    }

    /// The candidate at this place did not give the block.
    pub(super) fn spend(&mut self, place: usize, failure: Failure) {
        if let Some(chance) = self.chances.get_mut(place) {
            chance.spent = true;
            self.last_source = Some(chance.candidate.source);
            if failure == Failure::Stale {
                self.stale.push(chance.candidate);
            }
        }
        self.failure = self.failure.max(Some(failure));
    }

    /// What to say when nothing is left to be tried.
    pub(super) fn verdict(&self) -> Outcome {
        self.failure.map_or(Outcome::Missing, Outcome::from)
    }
}
