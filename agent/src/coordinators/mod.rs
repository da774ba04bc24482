//! The agent as a client of its coordinators.

mod claims;
mod client;
#[cfg(feature = "fuzzing")]
pub mod fuzz;
mod located;
mod locations;
mod sources;
mod tickets;

pub use claims::{ClaimedBlocks, Granted};
pub use client::{BadAddress, CoordinatorError, Coordinators, LocateRequest};
pub(crate) use client::{compressed, describe, endpoint};
pub use located::{Located, LocatedCandidate, OwnerRegion};
pub use sources::GotSource;
