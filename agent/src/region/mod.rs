//! Memory that others may read: regions and who may write which slot of them when.

mod catalog;

pub use catalog::{Region, RegionCatalog};
