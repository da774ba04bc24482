//! Memory that others may read: regions and who may write which slot of them when.

mod catalog;
mod change;

pub use catalog::{Region, RegionCatalog};
pub use change::{Change, ChangeSink};
