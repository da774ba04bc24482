//! A device's primary context, and making it current.

use std::{
    fmt,
    marker::PhantomData,
    ptr,
    sync::{Arc, OnceLock},
};

use crate::{
    CallError, Device, Status,
    sys::{CUcontext, CUresult},
};

/// A context cannot be opened.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ContextError {
    /// The GPU's memory is full: use it without this GPU, or make room and try again.
    #[error("no room for a context on GPU {device}: {source}")]
    OutOfMemory {
        /// Which.
        device: String,
        /// What the driver said.
        source: CallError,
    },
    /// Another process has it for itself.
    #[error("GPU {device} is not to be shared: {source}")]
    Unavailable {
        /// Which.
        device: String,
        /// What the driver said.
        source: CallError,
    },
    /// Anything else.
    #[error("cannot open GPU {device}: {source}")]
    Failed {
        /// Which.
        device: String,
        /// What the driver said.
        source: CallError,
    },
}

/// A retained primary context. Released when the last that was made from it is dropped.
pub struct Context {
    raw: CUcontext,
    device: Device,
    lost: OnceLock<CallError>,
}

// SAFETY: a context may be made current on any thread, and on several at once; the pointer is only handed to the driver.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    pub(crate) fn retain(device: &Device) -> Result<Arc<Self>, ContextError> {
        let mut raw: CUcontext = ptr::null_mut();
        // SAFETY: the pointer is valid for the write of one pointer, and the device is one the driver gave.
        let result =
            unsafe { (device.library.driver.cuDevicePrimaryCtxRetain)(&raw mut raw, device.raw) };
        device
            .library
            .check("cuDevicePrimaryCtxRetain", result)
            .map_err(|source| {
                let device = format!("{} ({})", device.uuid(), device.name());
                match source.status {
                    Status::OutOfMemory => ContextError::OutOfMemory { device, source },
                    Status::DeviceUnavailable => ContextError::Unavailable { device, source },
                    _ => ContextError::Failed { device, source },
                }
            })?;
        Ok(Arc::new(Self {
            raw,
            device: device.clone(),
            lost: OnceLock::new(),
        }))
    }

    /// The device it is on.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Did the GPU fail? Then nothing works any more on this device in this process, and only a new process helps.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.lost_by().is_some()
    }

    /// The first failure of the GPU, where there was one.
    #[must_use]
    pub fn lost_by(&self) -> Option<&CallError> {
        self.lost.get()
    }

    /// Makes it current on this thread until the guard is dropped.
    pub(crate) fn enter(&self) -> Result<Current<'_>, CallError> {
        // SAFETY: the context is retained as long as `self` lives.
        let result = unsafe { (self.device.library.driver.cuCtxPushCurrent_v2)(self.raw) };
        self.check("cuCtxPushCurrent", result)?;
        Ok(Current {
            context: self,
            _on_this_thread: PhantomData,
        })
    }

    /// A call's answer; remembers where it means that the context is of no use any more.
    pub(crate) fn check(&self, call: &'static str, result: CUresult) -> Result<(), CallError> {
        self.device
            .library
            .check(call, result)
            .inspect_err(|error| {
                if error.status.is_sticky() {
                    let _ = self.lost.set(error.clone()); // the first one stays
                }
            })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once by this value, and released once. All that was made from it held an `Arc` of it.
        unsafe { (self.device.library.driver.cuDevicePrimaryCtxRelease_v2)(self.device.raw) };
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("device", &self.device.uuid())
            .field("lost", &self.is_lost())
            .finish_non_exhaustive()
    }
}

/// The context is current on this thread. Dropped where it was made, in the reverse order.
pub(crate) struct Current<'a> {
    context: &'a Context,
    /// Not Send: current is a matter of the thread.
    _on_this_thread: PhantomData<*const ()>,
}

impl Drop for Current<'_> {
    fn drop(&mut self) {
        let mut popped: CUcontext = ptr::null_mut();
        // SAFETY: takes off what `enter` put on this thread's stack, and writes one pointer.
        unsafe { (self.context.device.library.driver.cuCtxPopCurrent_v2)(&raw mut popped) };
    }
}
