//! Known bugs, put back on purpose: the simulation must catch each of them (`docs/promises.md`).
//!
//! Only the feature `sabotage` can switch one on, and only tests ask for that feature; without it
//! [`is`] is the constant `false`.

/// A bug that can be put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(feature = "sabotage"), allow(dead_code, unreachable_pub))] // nobody sets one
pub enum Bug {
    /// A pull does not look at the generation.
    GenerationUnchecked,
    /// A slot is given out for writing while its generation is still even.
    GenerationNotBumped,
    /// A destination is given back at the deadline, settled or not.
    FreedBeforeSettled,
    /// A destination that is not used is never given back.
    NeverAbandoned,
    /// A pull goes on past its deadline.
    DeadlineMissed,
    /// A block's outcome is given again at the deadline.
    OutcomeTwice,
    /// A session does not send the inventory that was asked for.
    ResyncDropped,
    /// A delta leaves removals out.
    RemoveLost,
    /// The change log keeps everything.
    LogUnbounded,
    /// A session sends deltas without waiting for acknowledgements.
    WindowIgnored,
    /// A session takes what it has sent for acknowledged.
    AcknowledgedTooMuch,
    /// Pinned blocks are evicted like others.
    PinsIgnored,
    /// A pull waits for a source that stands still.
    StallsIgnored,
    /// A pull does not look at who is suspect.
    SuspectsTrusted,
    /// A suspect that answers stays suspect.
    SuspectsNeverCleared,
    /// A slot that holds another block is taken for one that holds the block asked for.
    HeldByAnyName,
}

#[cfg(feature = "sabotage")]
thread_local! {
    static BUG: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Puts a bug back, or takes it out again, for this thread.
#[cfg(feature = "sabotage")]
pub fn set(bug: Option<Bug>) {
    BUG.set(bug);
}

/// Was this bug put back?
#[cfg(feature = "sabotage")]
pub(crate) fn is(bug: Bug) -> bool {
    BUG.get() == Some(bug)
}

/// Never.
#[cfg(not(feature = "sabotage"))]
pub(crate) const fn is(_: Bug) -> bool {
    false
}
