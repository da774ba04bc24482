//! GPU memory as the agent uses it: devices that are opened once, and memory with the ways in and out of it.
//!
//! Host code never follows a GPU's address, and sockets and mapped memory cannot either: bytes go through rings of
//! pinned host memory ([`kvferry_cuda::Staging`]), copied ahead of whoever sends them and behind whoever
//! receives them. Three rings a GPU, so that none waits for another:
//!
//! | ring | who takes buffers of it | what gives them back |
//! | --- | --- | --- |
//! | `serve` | responses to readers | the reader takes the bytes, or loses its connection |
//! | `land` | reads into the GPU | the owner sends the bytes, or the read is cancelled |
//! | `local` | checksums and copies within the agent | the copy itself |
//!
//! With one ring for both directions two agents that read from each other could each wait for the other's buffers.

mod devices;
mod lost;
mod memory;
mod reads;
#[cfg(test)]
mod tests;
mod ticker;

pub use devices::{GpuError, Gpus, IpcSource};
pub use memory::{Gpu, GpuMemory, NotSettled, StagedBytes, StagedWay};
pub use reads::GpuReads;
pub use ticker::Ticker;

pub(crate) use lost::keep_for_ever;
pub(crate) use memory::Cursor;
