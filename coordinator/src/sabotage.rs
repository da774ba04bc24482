//! Known bugs, put back on purpose: the simulation must catch each of them (`docs/promises.md`).
//!
//! Only the feature `sabotage` can switch one on, and only tests ask for that feature; without it
//! [`is`] is the constant `false`.

/// A bug that can be put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(feature = "sabotage"), allow(dead_code, unreachable_pub))] // nobody sets one
pub enum Bug {
    /// An earlier incarnation is let in again.
    FencingSkipped,
    /// The session of a fenced incarnation goes on being heard.
    FencedSessionKept,
    /// A delta out of order is applied.
    GapIgnored,
    /// What a heartbeat says of the next delta is passed over.
    HeartbeatDeltaIgnored,
    /// What an inventory does not name stays.
    InventoryKeeps,
    /// A resync is not asked for, whatever the epoch.
    AckBeforeInventory,
    /// A silent node is never forgotten.
    SilentNeverPurged,
    /// A lease goes on past its time.
    ClaimsNeverExpire,
    /// What a node claimed stays claimed after its end.
    ClaimsOutliveNodes,
    /// What another lease holds is granted.
    ClaimsGrantedTwice,
    /// Tokens of leases that ended are used again.
    ClaimTokensRepeat,
    /// A claim counts in every namespace that has its hash.
    ClaimsCrossNamespaces,
    /// Who asks is answered from the first namespace there is.
    HashesCrossNamespaces,
    /// What went with its namespace comes back when it is declared again.
    DeletedRegionsReturn,
    /// Watchers are not told of copies that go one by one.
    RemovalsUntold,
    /// Watchers are not told that a node is gone.
    NodeEndsUntold,
    /// A watcher that fell behind is not cut off: it goes on with what is kept.
    WatchGapUntold,
    /// Watchers that wait are not woken by a change.
    WatchersNotWoken,
    /// A location that is put anew keeps its old time.
    LocationsExpireEarly,
    /// A location whose time is over stays.
    LocationsNeverExpire,
    /// More locations are kept than their namespace's quota.
    QuotaIgnored,
    /// A location that was removed is still found.
    LocationRemoveLost,
    /// A block that an order is under way for is ordered once more.
    CopiesOrderedTwice,
    /// Who says that it copied a block is believed, though the directory shows none.
    CopiesBelieved,
    /// The end of a session is not noticed by the machine of sources.
    SourcesOutliveNodes,
    /// A removed worker of a source comes back with its next announcement.
    RemovedWorkersReturn,
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
