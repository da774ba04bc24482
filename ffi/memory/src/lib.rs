//! Memory that others read while it changes, and the only `unsafe` that touches it.
//!
//! Bytes in a [`HostMemory`] are never seen as `&[u8]`: engines, peers and the kernel write to them at
//! any time, so a reference would promise what nobody keeps. They are moved by copies and by the
//! kernel's scatter/gather calls, and whether what was moved is *right* is decided afterwards, by
//! the generation words ([`GenerationTable`]).
//!
//! Beside it there is memory of this process alone, for large tables: [`Array`], [`prefetch`].

mod array;
mod chunks;
mod copy;
mod error;
mod generations;
mod host;
mod io;
mod prefetch;
mod word;

pub use array::Array;
pub use copy::{copy_ranges, fold_ranges};
pub use error::{AccessError, MemoryError};
pub use generations::{GenerationTable, GenerationView};
pub use host::{HostMemory, HugePages};
pub use io::{MAX_PIECES, Piece, PieceMut, discard, receive, send, set_receive_low_water};
pub use prefetch::prefetch;
