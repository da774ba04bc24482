//! Memory that others may read: regions and who may write which slot of them when.
//!
//! The [`Store`] decides; the [`RegionCatalog`] is what the data plane serves from; the generation
//! words are what readers validate against. A slot's life:
//!
//! ```text
//!            reserve                    seal
//!   Free ---------------> Reserved ---------------> Sealed
//!    ^ ^   (odd already)   |   |      (odd -> even)   |
//!    | +------- abort -----+   | quarantine           | evict, reserve, policy
//!    |                         v                      | (even -> odd, then Removed)
//!    +------ unquarantine -- Quarantined              |
//!    +------------------------------------------------+
//! ```
//!
//! The generation is even in `Sealed` and odd everywhere else, at every moment a reader can look.

mod catalog;
mod change;
mod chunks;
mod error;
mod evict;
pub mod eviction;
mod limits;
mod memory;
mod namespace_table;
mod pin;
mod pins;
mod register;
mod reserve;
mod seal;
mod slots;
mod state;
mod store;
mod surplus;
mod words;

#[cfg(any(test, feature = "fuzzing"))]
// In a test, or in a fuzzer that is one.
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::wildcard_imports
)]
#[cfg_attr(not(test), allow(dead_code, unused_imports))]
mod fixture;
#[cfg(any(test, feature = "fuzzing"))]
// In a test, or in a fuzzer that is one.
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::wildcard_imports
)]
#[cfg_attr(not(test), allow(dead_code, unused_imports))]
mod model;
#[cfg(test)]
mod tests;

#[cfg(feature = "fuzzing")]
pub(crate) use model::fuzz;

pub use catalog::{Region, RegionCatalog};
pub use change::{Change, ChangeSink};
pub use error::{
    AbortError, EvictError, PinError, RegisterError, ReleaseError, ReservePoolError,
    ReserveSlotsError, SealError, UnquarantineError, UnregisterError,
};
pub use evict::{EvictWhat, Evicted};
pub use limits::{DEFAULT_PIN_TTL, MAX_COPIES_PER_BLOCK, MAX_PIN_TTL, StoreLimits};
pub use memory::{Memory, MemoryFault};
pub use register::PoolOptions;
pub use reserve::Released;
pub use seal::{Chain, Checksums, Seal, SealOutcome};
pub use store::{Inventory, InventoryBlock, InventoryRegion, RegionStats, Store, StoreStats};
pub use words::{ClientId, Held, Holder, PinId};
