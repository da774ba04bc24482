//! Reads straight into a GPU's memory.

use std::{fmt, ops::Range, sync::Arc};

use kvferry_proto::RemoteSpan;

use super::{BoxFuture, PendingRead};
use crate::gpu::GpuMemory;

/// GPU memory to read into: ranges of one mapping, in order.
#[derive(Debug, Clone)]
pub struct GpuSpans {
    /// Kept alive by the read until it settles.
    pub memory: Arc<GpuMemory>,
    /// Byte ranges of it.
    pub ranges: Vec<Range<u64>>,
}

/// One read into a GPU, checked: equal lengths, within the link's bounds, local ranges inside their memory.
#[derive(Debug, Clone)]
pub struct GpuRequest {
    /// What to fetch, in order.
    pub remote: Vec<RemoteSpan>,
    /// Where to put it, in order.
    pub local: GpuSpans,
}

/// What a link makes of a read into a GPU.
pub enum GpuRead {
    /// It is under way, with no host memory between.
    Straight(PendingRead),
    /// Nothing has begun: ask again when this is over.
    Later(BoxFuture<'static, ()>),
    /// Nothing has begun, and the link does not reach that memory: read into host memory, and copy.
    Staged,
}

impl fmt::Debug for GpuRead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Straight(_) => "Straight",
            Self::Later(_) => "Later",
            Self::Staged => "Staged",
        })
    }
}
