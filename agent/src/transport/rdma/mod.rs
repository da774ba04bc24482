//! RDMA: readers fetch bytes with one-sided READs; the owner's processor takes no part.
//!
//! An owner runs an [`RdmaOwner`], which registers its regions (remote READ only) and connects readers'
//! queue pairs through the Peer service; a reader has an [`RdmaTransport`]. Both share the [`Devices`] that
//! were opened at the start.
//!
//! ```text
//! read -> cut into READs -> queue -> lanes (queue pairs) -> device -> completion thread -> settled
//!            cut.rs          lanes.rs: which lane, which NIC            poller.rs     |
//!                                 ^------------- failed: another lane, ---------------'
//!                                                none left: the link is lost
//! ```
//!
//! A READ that fails is done again on another lane; lanes that end are connected again by the link's keeper. Without
//! any lane left the link is lost, and the caller's next link is over whatever still leads there.

mod behind;
mod challenges;
mod config;
mod connect;
mod cut;
mod device;
mod devices;
mod events;
mod fault;
#[cfg(feature = "fuzzing")]
pub mod fuzz;
mod gpu;
mod keeper;
mod landing;
mod lane;
mod lanes;
mod left;
mod link;
mod memory;
mod numa;
mod op;
mod owner;
mod owner_client;
mod poller;
mod prepare;
mod published;
mod transport;
mod ways;
mod wire;

pub use config::{QPS_PER_PEER, RdmaConfig};
pub use device::DeviceError;
pub use devices::{Devices, NoRdma};
pub use link::RdmaLink;
pub(crate) use owner::LetInError;
pub use owner::RdmaOwner;
pub(crate) use published::PublishError;
pub use transport::RdmaTransport;
