//! Which block of a pool makes room for a new one.

mod lru;
mod prefix;

use std::fmt;

use kvferry_proto::Slot;
use serde::Deserialize;

pub use lru::Lru;
pub use prefix::Prefix;

/// An order of the sealed slots of one pool.
///
/// A policy knows slots, not blocks; it is told of every slot that is sealed ([`inserted`]) and of
/// every sealed slot that is given up ([`removed`]), and between the two of uses and pins. Calls that
/// do not fit what came before (a touch of an absent slot, say) change nothing.
///
/// [`victim`] is `Some` exactly when there is an inserted slot that is not pinned. Policies are told
/// of pins, and are not asked to search past them, so that a victim's cost does not depend on how
/// many slots are pinned.
///
/// [`inserted`]: EvictionPolicy::inserted
/// [`removed`]: EvictionPolicy::removed
/// [`victim`]: EvictionPolicy::victim
pub trait EvictionPolicy: fmt::Debug + Send {
    /// A slot was sealed just now. `parent` is the slot of the block before it in its chain, where
    /// that is in the pool.
    fn inserted(&mut self, slot: Slot, parent: Option<Slot>);

    /// The slot's block was used.
    fn touched(&mut self, slot: Slot);

    /// Enough others hold the slot's block: it goes before all others until it is used again. Said of a
    /// pinned one, from when it is unpinned.
    fn surplus(&mut self, slot: Slot);

    /// The slot may not be chosen until it is unpinned.
    fn pinned(&mut self, slot: Slot);

    /// The slot's last pin was released. Counts as a use.
    fn unpinned(&mut self, slot: Slot);

    /// The slot's block is gone.
    fn removed(&mut self, slot: Slot);

    /// The slot to give up next. Stays in the order until it is [`removed`](Self::removed).
    fn victim(&self) -> Option<Slot>;
}

/// Which policy a pool has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EvictionKind {
    /// Leaves of the prefix tree before their parents, the least recently used leaf first.
    #[default]
    Prefix,
    /// The least recently used block first.
    Lru,
}

impl EvictionKind {
    /// As it is written in configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prefix => "prefix",
            Self::Lru => "lru",
        }
    }

    /// A policy of this kind for a pool of `slots` slots.
    #[must_use]
    pub fn policy(self, slots: u32) -> Box<dyn EvictionPolicy> {
        match self {
            Self::Prefix => Box::new(Prefix::new(slots)),
            Self::Lru => Box::new(Lru::new(slots)),
        }
    }
}
