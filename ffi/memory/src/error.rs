//! What can be wrong with memory.

use std::{io, path::PathBuf};

/// Memory could not be made or imported.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Zero bytes were asked for.
    #[error("memory of zero bytes")]
    Empty,
    /// More bytes than this machine can address.
    #[error("{bytes} bytes cannot be addressed on this machine")]
    TooLarge {
        /// As asked for.
        bytes: u64,
    },
    /// The kernel has no such memory to give.
    #[error("cannot allocate {bytes} bytes of {what}: {source}; {advice}")]
    Allocate {
        /// As asked for.
        bytes: u64,
        /// What kind of memory.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
        /// What to do.
        advice: &'static str,
    },
    /// A path that cannot be opened for reading and writing.
    #[error("cannot open {}: {source}; it must be a file this user may read and write", path.display())]
    Open {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A descriptor that is no file.
    #[error("the descriptor is no regular file or memfd, so it cannot be mapped")]
    NotAFile,
    /// The mapping failed.
    #[error("cannot map {bytes} bytes: {source}")]
    Map {
        /// How many.
        bytes: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// A descriptor that could not be inspected, sealed or duplicated.
    #[error("{what}: {source}")]
    Descriptor {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A copy into or out of memory failed.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// Beyond the end of the memory.
    #[error("bytes {offset}+{len} are outside memory of {memory} bytes")]
    OutOfRange {
        /// First byte.
        offset: u64,
        /// How many.
        len: u64,
        /// Bytes there are.
        memory: u64,
    },
    /// A write to memory mapped for reading.
    #[error("the memory is mapped read-only")]
    ReadOnly,
    /// Source and destination have different lengths.
    #[error("source and destination have different lengths")]
    LengthMismatch,
    /// The file behind the memory was cut or is gone: its owner broke the contract.
    #[error("the file behind the memory was truncated or fails: {0}")]
    Gone(io::Error),
}
