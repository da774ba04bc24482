//! Where the bytes of a read are to be in the end, and when they are there.

use std::ops::Range;

use kvferry_cuda::{CopyError, StagingError};
use tokio::runtime::Handle;
use tracing::error;

use crate::{
    gpu::keep_for_ever,
    transport::{Completion, GpuSpans, LocalSpans, ReadError},
};

/// The memory that a read was asked to write to.
pub(super) enum Landing {
    /// Of the host.
    Host(LocalSpans),
    /// Of a GPU, which devices write to.
    Gpu(OnGpu),
}

/// Memory of a GPU.
pub(super) struct OnGpu {
    pub(super) spans: GpuSpans,
    /// Where the GPU is waited for.
    pub(super) runtime: Handle,
}

impl Landing {
    pub(super) fn ranges(&self) -> &[Range<u64>] {
        match self {
            Self::Host(spans) => &spans.ranges,
            Self::Gpu(gpu) => &gpu.spans.ranges,
        }
    }
}

impl OnGpu {
    /// No device has anything of the read any more. A completion says that its bytes were sent to the GPU, and on some
    /// machines (`CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WRITES_ORDERING`) not that they are there: then the read settles after
    /// `cuFlushGPUDirectRDMAWrites`, which the thread of the completions must not wait for. Where that fails nobody knows
    /// whether something still writes, and it never settles.
    pub(super) fn settle(&self, completion: Completion, result: Result<(), ReadError>) {
        let memory = self.spans.memory.clone();
        let context = memory.gpu().context();
        if context.orders_rdma_writes() {
            let lost = context.lost_by().cloned();
            return completion.settle(result.and_then(|()| match lost {
                Some(why) => Err(StagingError::Copy(CopyError::GpuLost(why)).into()),
                None => Ok(()),
            }));
        }
        self.runtime.spawn_blocking(move || {
            let context = memory.gpu().context();
            match context.flush_rdma_writes() {
                Ok(()) => completion.settle(result),
                Err(why) => {
                    error!(
                        device = %context.device().uuid(),
                        "a read into GPU memory never settles, and only a new agent gives its slots back: {why}"
                    );
                    keep_for_ever((completion, memory));
                }
            }
        });
    }
}
