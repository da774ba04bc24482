//! What was done, by kind.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

/// Kinds of what is done to a coordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Kind {
    /// Blocks announced in deltas.
    Published,
    /// Blocks taken back in deltas.
    Evicted,
    /// Regions taken back, with another one in their place.
    RegionReplaced,
    /// Sessions that a node opened.
    Joined,
    /// Full inventories.
    Inventory,
    /// Deltas left out, so that an inventory is asked for.
    Gap,
    /// Sessions cut, and opened anew at once.
    Blinked,
    /// Nodes silent for so long that they are hidden.
    Hidden,
    /// Nodes silent for so long that they are forgotten.
    Purged,
    /// Nodes that said goodbye.
    Goodbye,
    /// Agents that were restarted.
    Restarted,
    /// Agents whose next lifetime came while the last one's session was open.
    Fenced,
    /// Nodes that came back under a name that never was.
    Renamed,
    /// Blocks a claim was granted for.
    Claimed,
    /// Of those: published.
    Fulfilled,
    /// Of those: released.
    Released,
    /// Leases renewed, and then left to expire.
    Renewed,
    /// Leases left to expire.
    Abandoned,
    /// Blocks put at a location.
    Located,
    /// Blocks taken from their location.
    Unlocated,
    /// Watches begun with all there is.
    Watched,
    /// Watches gone on with.
    WatchResumed,
    /// Watchers that read nothing.
    WatchStalled,
    /// Watches the coordinator ended, with a reason.
    WatchCut,
    /// Blocks wished copies of.
    Wished,
    /// Orders of copies answered.
    Ordered,
    /// Nodes drained for a while.
    Drained,
    /// Namespaces that came and went.
    Namespace,
    /// Blocks asked for.
    Asked,
    /// Calls refused for a reason that churn brings with it.
    Refused,
    /// Sessions ended because this process was not let speak for seconds: by others on the machine.
    Starved,
}

/// Names as they are printed, in the order of [`Kind`].
const NAMES: [&str; 31] = [
    "published",
    "evicted",
    "region_replaced",
    "joined",
    "inventory",
    "gap",
    "blinked",
    "hidden",
    "purged",
    "goodbye",
    "restarted",
    "fenced",
    "renamed",
    "claimed",
    "fulfilled",
    "released",
    "renewed",
    "abandoned",
    "located",
    "unlocated",
    "watched",
    "watch_resumed",
    "watch_stalled",
    "watch_cut",
    "wished",
    "ordered",
    "drained",
    "namespace",
    "asked",
    "refused",
    "starved",
];

/// How often each was done, by name.
pub type Done = BTreeMap<&'static str, u64>;

/// Counters that all actors share.
#[derive(Debug, Default)]
pub(super) struct Counts([AtomicU64; NAMES.len()]);

impl Counts {
    pub(super) fn add(&self, kind: Kind, more: u64) {
        if let Some(count) = self.0.get(kind as usize) {
            count.fetch_add(more, Ordering::Relaxed);
        }
    }

    pub(super) fn done(&self) -> Done {
        let counts = self.0.iter().map(|count| count.load(Ordering::Relaxed));
        NAMES.into_iter().zip(counts).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_name() {
        let counts = Counts::default();
        counts.add(Kind::Published, 1);
        counts.add(Kind::Drained, 2);
        counts.add(Kind::Refused, 3);
        let done = counts.done();
        assert_eq!(done.len(), NAMES.len(), "none twice");
        assert_eq!(
            (done["published"], done["drained"], done["refused"]),
            (1, 2, 3)
        );
    }
}
