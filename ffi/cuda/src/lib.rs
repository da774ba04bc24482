//! GPU memory through libcuda, which is looked for when the program runs: [`Library::load`] answers with an error
//! where it is missing, and building needs no CUDA.
//!
//! - Children own an `Arc` of what they were made from ([`Library`] -> [`Device`] -> [`Context`] -> [`GpuMemory`],
//!   [`PinnedMemory`], [`Stream`]), so nothing is torn down before what was made from it.
//! - [`GpuMemory`] is memory of this process or an engine's, opened from the [`IpcHandle`] it sent. It is never
//!   dereferenced: bytes get in and out by copies.
//! - A copy that was started ([`PendingCopy`]) owns both sides until the GPU is done with them. Dropping it hands them
//!   to the stream, which frees them when they are no longer used. What a GPU does not give back is never freed
//!   ([`lost_bytes`]).
//! - [`Staging`] is a bounded ring of pinned buffers through which strided ranges of GPU memory are copied out and in,
//!   while the consumer transfers what was copied before.
//! - Contexts are current per thread: every call makes its own current and puts back what was there.
//!
//! No call waits for ever: those that wait take a deadline. Bytes of GPU memory change under a reader's hands like
//! those of [`HostMemory`](kvferry_memory::HostMemory): whether what was copied is right is decided by the generation words, which lie in host memory.
//!
//! An engine's blocks, out of its GPU:
//!
//! ```no_run
//! use std::time::{Duration, Instant};
//!
//! use kvferry_cuda::{GpuMemory, IpcHandle, Library, Staging, StagingOptions};
//!
//! # fn serve(uuid: &str, handle: &[u8], offset: u64, len: u64) -> Result<(), Box<dyn std::error::Error>> {
//! let device = Library::load()?.device_by_uuid(uuid.parse()?)?;
//! let context = device.context()?;
//! let memory = GpuMemory::import(&context, &IpcHandle::try_from(handle)?, offset, len)?;
//! let staging = Staging::new(&context, StagingOptions::default())?;
//!
//! let deadline = Instant::now() + Duration::from_secs(1);
//! let mut planes = staging.read(&memory, vec![0..4096, 1 << 20..(1 << 20) + 4096])?;
//! while let Some(chunk) = planes.next(deadline)? {
//!     // Host memory like any other: send `chunk.range()` of `chunk.memory()`.
//! }
//! # Ok(())
//! # }
//! ```
//!
//! CUDA does not survive `fork`: a process that forks must exec at once.

mod context;
mod copy;
mod device;
mod dmabuf;
mod event;
mod flush;
mod inbound;
mod ipc;
mod library;
mod memory;
mod outbound;
mod pending;
mod pinned;
mod plan;
mod ring;
mod staging;
mod status;
mod stream;
mod sys;
mod uuid;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use context::{Context, ContextError};
pub use copy::{CopyError, MAX_ROWS, Rows};
pub use device::{Device, peer_memory_loaded};
pub use dmabuf::{DmaBufError, DmaBufExport};
pub use flush::FlushError;
pub use inbound::{Fill, Inbound};
pub use ipc::{ExportError, IPC_HANDLE_BYTES, ImportError, InvalidHandle, IpcHandle};
pub use library::{DeviceError, DriverVersion, LIBRARY, Library, LoadError, MAX_DEVICES};
pub use memory::{AllocateError, GpuMemory};
pub use outbound::{Chunk, Outbound};
pub use pending::{PendingCopy, lost_bytes};
pub use pinned::{PinError, PinnedMemory, PinnedRange};
pub use plan::{MAX_RANGES, plan_rows};
pub use staging::{
    MAX_BUFFER_BYTES, MAX_BUFFERS, MIN_BUFFER_BYTES, Staging, StagingError, StagingOptions,
};
pub use status::{CallError, Status};
pub use stream::{Stream, StreamError};
pub use uuid::{DeviceUuid, InvalidUuid};

/// A panic elsewhere does not make what the lock guards wrong: every change under it is complete.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_can_be_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<Library>();
        shared::<Device>();
        shared::<Context>();
        shared::<GpuMemory>();
        shared::<PinnedMemory>();
        shared::<Stream>();
        shared::<Staging>();
        fn sent<T: Send>() {}
        sent::<PendingCopy>();
        sent::<Outbound>();
        sent::<Inbound>();
    }
}
