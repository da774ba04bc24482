//! What became of claims, locations and watchers, counted as it happens.

use kvferry_observe::{ByLabel, Counter, Gauge, label};

label! {
    /// How a claim came to its end.
    pub enum ClaimEnd("cause") {
        /// Its block was published, or stored where it was to be.
        Fulfilled = "fulfilled",
        /// Given back.
        Released = "released",
        /// Its lease ran out.
        Expired = "expired",
        /// Its node's incarnation ended.
        NodeGone = "node_gone",
        /// Its namespace was deleted.
        NamespaceDeleted = "namespace_deleted",
    }
}

label! {
    /// Why a block's location was forgotten.
    pub enum LocationEnd("cause") {
        /// Its time was over.
        Ttl = "ttl",
        /// Its namespace had more than its quota.
        Quota = "quota",
        /// There were more than the coordinator's bound.
        Bound = "bound",
        /// Somebody said that it lies there no more.
        Removed = "removed",
        /// Its namespace was deleted.
        NamespaceDeleted = "namespace_deleted",
    }
}

/// Over all namespaces. Parts of it may be some changes apart.
#[derive(Debug, Default)]
pub struct Counts {
    /// Claims that are held.
    pub claims: Gauge,
    /// Claims that were granted.
    pub claims_granted: Counter,
    /// What became of those that are not held any more.
    pub claims_ended: ByLabel<ClaimEnd, Counter>,
    /// Blocks with a location.
    pub locations: Gauge,
    /// Bytes of those blocks.
    pub locations_bytes: Gauge,
    /// Blocks that were given a location and had none.
    pub locations_added: Counter,
    /// What became of those that have none any more.
    pub locations_ended: ByLabel<LocationEnd, Counter>,
    /// Those who watch.
    pub watchers: Gauge,
    /// Namespaces whose changes are kept for those who watch.
    pub watch_logs: Gauge,
    /// Bytes of what is kept.
    pub watch_log_bytes: Gauge,
}
