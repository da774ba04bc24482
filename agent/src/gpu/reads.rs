//! How reads get into GPUs.

use kvferry_observe::Counter;

/// Reads into the memory of an agent's GPUs, by the way they began.
#[derive(Debug, Default)]
pub struct GpuReads {
    /// An RDMA device writes to the GPU (GPUDirect RDMA).
    pub straight: Counter,
    /// Through pinned host memory.
    pub staged: Counter,
}
