//! The GPUs of this process, each opened when an engine first hands over memory of it.

use std::{
    collections::{HashMap, HashSet},
    fmt, io,
    sync::{Arc, Weak},
};

use kvferry_cuda::{
    ContextError, DeviceError, DeviceUuid, ImportError, IpcHandle, Library, LoadError, StagingError,
};
use parking_lot::Mutex;

use super::{Gpu, GpuMemory, GpuReads, StagedBytes};

/// An engine's memory, as it names it.
#[derive(Debug, Clone)]
pub struct IpcSource {
    /// Which GPU: ordinals of two processes need not agree.
    pub device: DeviceUuid,
    /// What `cuIpcGetMemHandle` gave for the allocation.
    pub handle: IpcHandle,
    /// Where the span begins, in bytes from the beginning of the allocation.
    pub offset: u64,
    /// Bytes of it.
    pub len: u64,
}

/// An engine's GPU memory is not taken in. Each variant is another next move for the engine or its operator.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    /// There is no libcuda, or no GPU behind it: install the driver, or register host memory.
    #[error("this agent has no GPU: {0}")]
    NoLibrary(#[from] LoadError),
    /// The agent does not see the engine's GPU: give it to the agent's container.
    #[error(transparent)]
    NoDevice(#[from] DeviceError),
    /// The GPU is there and cannot be used: make room on it, or change its compute mode.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// The GPU failed before: only a new agent process can use it again.
    #[error("GPU {device} is lost to this agent since an earlier failure: restart the agent")]
    Lost {
        /// Which.
        device: DeviceUuid,
    },
    /// The span is not within the engine's allocation: register another one.
    #[error(
        "{0}; offset and length count from the beginning of the allocation that the handle is of"
    )]
    OutOfRange(ImportError),
    /// The handle does not open: hand over a new one.
    #[error(
        "{0}; send a new handle of memory from cuMemAlloc or cudaMalloc, and keep it allocated"
    )]
    HandleRefused(ImportError),
    /// There is no host memory to stage through.
    #[error("no host memory to stage the GPU's through: {0}")]
    Staging(#[from] StagingError),
    /// The kernel gives no thread to wait for copies with.
    #[error("no thread to wait for the GPU with: {0}; raise the limit of processes")]
    Thread(io::Error),
}

impl From<ImportError> for GpuError {
    fn from(error: ImportError) -> Self {
        match error {
            ImportError::NoRange { .. } | ImportError::OutOfRange { .. } => Self::OutOfRange(error),
            _ => Self::HandleRefused(error),
        }
    }
}

type Load = dyn Fn() -> Result<Library, LoadError> + Send + Sync;

/// Opens GPUs by their identity. A GPU is let go of, with its context and its staging memory, when the last memory of
/// it is.
pub struct Gpus {
    load: Box<Load>,
    opened: Mutex<HashMap<DeviceUuid, Weak<Gpu>>>,
    /// As few as the machine has.
    lost: Mutex<HashSet<DeviceUuid>>,
    reads: Arc<GpuReads>,
    staged: Arc<StagedBytes>,
}

impl Default for Gpus {
    /// Those of the system's libcuda, which is looked for with the first engine that asks.
    fn default() -> Self {
        Self::with(Library::load)
    }
}

impl Gpus {
    /// Those of another libcuda.
    #[must_use]
    pub fn with(load: impl Fn() -> Result<Library, LoadError> + Send + Sync + 'static) -> Self {
        Self {
            load: Box::new(load),
            opened: Mutex::default(),
            lost: Mutex::default(),
            reads: Arc::default(),
            staged: Arc::default(),
        }
    }

    /// Opens an engine's memory. Takes a second where its GPU was not open yet: for threads that may block.
    ///
    /// # Errors
    /// [`GpuError`].
    pub fn import(&self, source: &IpcSource) -> Result<Arc<GpuMemory>, GpuError> {
        let gpu = self.open(source.device)?;
        let memory = kvferry_cuda::GpuMemory::import(
            gpu.context(),
            &source.handle,
            source.offset,
            source.len,
        )?;
        Ok(GpuMemory::new(&gpu, memory))
    }

    /// The GPU of that identity, open.
    ///
    /// # Errors
    /// [`GpuError`] but for what is said of handles.
    pub fn open(&self, device: DeviceUuid) -> Result<Arc<Gpu>, GpuError> {
        if self.lost.lock().contains(&device) {
            return Err(GpuError::Lost { device });
        }
        // Held while a GPU is opened: of two engines at once, one opens it.
        let mut opened = self.opened.lock();
        let known = opened.get(&device).and_then(Weak::upgrade);
        let gpu = match known {
            Some(gpu) => gpu,
            None => {
                let context = (self.load)()?.device_by_uuid(device)?.context()?;
                let gpu = Gpu::counted(&context, &self.reads, Arc::clone(&self.staged))?;
                opened.retain(|_, gpu| gpu.strong_count() > 0);
                opened.insert(device, Arc::downgrade(&gpu));
                gpu
            }
        };
        if gpu.context().is_lost() {
            self.lose(device);
            return Err(GpuError::Lost { device });
        }
        Ok(gpu)
    }

    /// How reads get into them.
    #[must_use]
    pub fn reads(&self) -> &GpuReads {
        &self.reads
    }

    /// Bytes staged so far, over all GPUs, those that were let go of included.
    #[must_use]
    pub fn staged(&self) -> &StagedBytes {
        &self.staged
    }

    /// A GPU failed: it is not opened again, since the reference says of such failures that the process must end.
    pub fn lose(&self, device: DeviceUuid) {
        self.lost.lock().insert(device);
    }
}

impl fmt::Debug for Gpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gpus")
            .field("opened", &self.opened.lock().len())
            .finish_non_exhaustive()
    }
}
