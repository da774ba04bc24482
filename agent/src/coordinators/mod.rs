//! The agent as a client of its coordinators.

mod client;
mod located;
mod sources;

pub use client::{BadAddress, CoordinatorError, Coordinators, LocateRequest};
pub(crate) use client::{describe, endpoint};
pub use located::{Located, LocatedCandidate, OwnerRegion};
pub use sources::GotSource;
