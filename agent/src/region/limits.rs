//! The store's bounds, each with its reason.

use std::time::Duration;

/// How long a pin lasts when its maker does not say: longer than any healthy pull.
pub const DEFAULT_PIN_TTL: Duration = Duration::from_secs(30);

/// Longest life of a pin. A forgotten pin takes a slot out of use for this long at most.
pub const MAX_PIN_TTL: Duration = Duration::from_secs(600);

/// Most copies of one block in an agent's regions: engines seal a block once per concurrent request
/// that computed it, a few hundred at most. Removing a copy costs time linear in their number.
pub const MAX_COPIES_PER_BLOCK: usize = 4096;

/// Blocks looked up, or slots looked at, under one hold of the lock where nothing needs them to be
/// seen at one moment: about 100 microseconds.
pub(super) const BATCH_PER_LOCK: usize = 1024;

/// How much one store may hold.
///
/// Blocks need no bound of their own: a slot holds at most one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreLimits {
    /// Most regions: a region costs mappings and descriptors here and at every reader.
    pub regions: usize,
    /// Most slots of all regions together: a slot costs about 200 bytes of tables when sealed.
    pub slots: u64,
    /// Most namespaces: every one is announced to every coordinator.
    pub namespaces: usize,
    /// Most pins of one client: it can put many blocks in one pin.
    pub pins_per_client: usize,
    /// Most blocks in all pins of one client, a block counting once per pin: bounds the pin table.
    pub pinned_blocks_per_client: usize,
}

impl Default for StoreLimits {
    fn default() -> Self {
        Self {
            // An engine has one region per device and one pool beside them.
            regions: 256,
            // 64 TiB of 2 MiB blocks; about 6 GiB of tables when all are sealed.
            slots: 1 << 25,
            namespaces: 64,
            // A request in flight pins once.
            pins_per_client: 4096,
            // 16 requests of the largest size.
            pinned_blocks_per_client: 1 << 20,
        }
    }
}
