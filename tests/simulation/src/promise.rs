//! What must hold whatever happens, and the report of what did not.

use std::fmt;

use crate::queue::Micros;

/// A promise of kvferry's. Each has a file in `invariants/`, named for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Promise {
    /// Bytes delivered are the bytes published under that hash.
    BytesArePublished,
    /// A pull ends by its deadline with one outcome per block.
    PullsEnd,
    /// Nothing is written to a buffer after its operation has settled.
    BuffersAreOwned,
    /// A fenced incarnation changes nothing.
    FencedIsVoid,
    /// A block whose publication was acknowledged is found.
    PublishedIsFound,
    /// Tables, queues and bytes in flight stay within their bounds.
    BoundsHold,
    /// After the last fault the directory equals what live agents hold, and nothing is leaked.
    Converges,
    /// A pinned block stays as it is.
    PinnedStays,
    /// A claim is never held by two, and one that has ended by nobody.
    ClaimsAreExclusive,
    /// What a watcher made of what it was told is what the directory says.
    WatchersAgree,
    /// A hash known in one namespace is not answered for another.
    NamespacesAreApart,
    /// What was deleted by force is not found again.
    DeletedIsGone,
    /// A location is found until it is removed, evicted or over, and not after that.
    LocationsStay,
    /// Copies that are wanted come, and not one more.
    CopiesCome,
    /// What is said of a published set of tensors is so.
    SourcesAreTrue,
    /// A source that stands still costs a pull its stall bound and no more.
    StallsAreBounded,
    /// An agent that keeps to the protocol is never refused for breaking it.
    HonestIsHeard,
}

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub promise: Promise,
    /// When.
    pub at: Micros,
    /// How.
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (s, us) = (self.at / 1_000_000, self.at % 1_000_000);
        write!(f, "{:?} at {s}.{us:06} s: {}", self.promise, self.detail)
    }
}
