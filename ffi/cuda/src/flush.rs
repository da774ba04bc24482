//! What RDMA devices wrote straight into a GPU's memory, as the GPU sees it.
//!
//! A network card's completion says that its writes were sent to the GPU, and on some machines not that work on the GPU
//! sees them. Before an engine is told that bytes have landed, they are made visible.

use crate::{
    CallError, Context,
    sys::{
        CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TARGET_CURRENT_CTX,
        CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TO_ALL_DEVICES, CU_GPU_DIRECT_RDMA_WRITES_ORDERING_OWNER,
    },
};

/// `CU_FLUSH_GPU_DIRECT_RDMA_WRITES_OPTION_HOST`: the flush may be called from the host.
const OPTION_HOST: u64 = 1;

/// What landed cannot be made visible.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FlushError {
    /// Neither the machine orders such writes nor the driver flushes them: stage through host memory instead.
    #[error(
        "GPU {device} does not order RDMA writes, and its driver has no call that flushes them (since CUDA 11.3); pulls into its memory are staged"
    )]
    Unsupported {
        /// Which.
        device: String,
    },
    /// The driver refuses: the bytes must not be used.
    #[error("cannot flush RDMA writes to the GPU: {0}")]
    Failed(#[from] CallError),
}

impl Context {
    /// Can RDMA devices write to this GPU's memory so that the GPU is sure to see it? Where not, pulls are staged.
    #[must_use]
    pub fn can_flush_rdma_writes(&self) -> bool {
        self.orders_rdma_writes() || self.flush().is_some()
    }

    /// Makes what RDMA devices wrote, and whose completions were seen, visible to work that the GPU begins from now
    /// on (`cuFlushGPUDirectRDMAWrites`, which blocks until they are). Free where the machine orders such writes by itself.
    ///
    /// # Errors
    /// [`FlushError`].
    pub fn flush_rdma_writes(&self) -> Result<(), FlushError> {
        if self.orders_rdma_writes() {
            return Ok(());
        }
        let Some(flush) = self.flush() else {
            return Err(FlushError::Unsupported {
                device: self.device().uuid().to_string(),
            });
        };
        let _current = self.enter()?;
        // SAFETY: takes two enumerators, and a current context.
        let result = unsafe {
            flush(
                CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TARGET_CURRENT_CTX,
                // The consumer is the engine's context, not this one.
                CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TO_ALL_DEVICES,
            )
        };
        Ok(self.check("cuFlushGPUDirectRDMAWrites", result)?)
    }

    /// Are such writes visible without a flush (`CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WRITES_ORDERING`)? The consumer is on
    /// the device that owns the memory, so `CU_GPU_DIRECT_RDMA_WRITES_ORDERING_OWNER` is enough.
    #[must_use]
    pub fn orders_rdma_writes(&self) -> bool {
        self.device().rdma_writes_ordering() >= CU_GPU_DIRECT_RDMA_WRITES_ORDERING_OWNER
    }

    fn flush(&self) -> Option<crate::sys::Flush> {
        let offered = self.device().rdma_flush_options() & OPTION_HOST != 0;
        self.device()
            .library
            .driver
            .cuFlushGPUDirectRDMAWrites
            .filter(|_| offered)
    }
}
