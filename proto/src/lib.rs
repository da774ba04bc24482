//! The words coordinator and agent share: the gRPC API, and the types its messages are parsed into.
//!
//! Nothing here does IO or reads a clock. A message is parsed once, at the edge, into a type that
//! cannot be wrong ([`BlockHash`], [`Layout`], [`Geometry`], ...); the rest of the house takes those.

pub mod chain;
mod checksum;
mod claims;
mod error;
mod geometry;
mod hash;
mod ids;
mod layout;
mod location;
mod namespace;
mod node;
mod source;
mod span;
mod tensors;

/// The generated messages, clients and servers of `kvferry.v1`.
#[allow(missing_docs, clippy::all, unused_qualifications, unreachable_pub)]
pub mod pb {
    tonic::include_proto!("kvferry.v1");

    /// The encoded descriptor set, for the reflection service.
    pub const FILE_DESCRIPTOR_SET: &[u8] =
        include_bytes!(concat!(env!("OUT_DIR"), "/kvferry_descriptor.bin"));
}

pub use checksum::{Checksum, ChecksumPolicy, Summing};
pub use error::{InvalidMessage, Reason, reason_of, refusal};
pub use geometry::{Geometry, GeometryError, MAX_PLANES, MAX_SLOTS, Plane};
pub use hash::{BlockHash, HashError, HashLen, PackedHashes};
pub use ids::{Generation, IdError, Incarnation, Labels, NamespaceName, NodeId, RegionId, Slot};
pub use layout::{Fingerprint, Layout, LayoutError, MAX_BLOCK_BYTES};
pub use location::{Location, MAX_LOCATION_BYTES};
pub use namespace::NamespaceSpec;
pub use node::NodeAddresses;
pub use source::{SourceError, SourceId, SourceIdentity, SourceName};
pub use span::{Part, RemoteSpan};
pub use tensors::{
    ChunkRun, ChunkRuns, Chunks, MAX_RUNS, MAX_TENSORS, TableDigest, Tensor, TensorError,
    TensorTable,
};

/// Most hashes one request may carry: 64 Ki hashes of 64 bytes are 4 MiB, one gRPC message.
pub const MAX_HASHES_PER_REQUEST: usize = 65_536;

/// Largest gRPC message either side accepts. Inventories and deltas are cut to fit.
pub const MAX_MESSAGE_BYTES: usize = 8 << 20;
