//! A mark in a stream: everything before it is done, or not yet.

use std::{ptr, sync::Arc};

use crate::{
    CallError, Context, Status,
    sys::{CU_EVENT_DISABLE_TIMING, CUevent, CUstream},
};

/// An event that was recorded once.
pub(crate) struct Event {
    raw: CUevent,
    context: Arc<Context>,
}

// SAFETY: the driver's calls on events may come from any thread; the pointer is only handed to the driver.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// One that is not recorded yet. The context is current.
    pub(crate) fn new(context: &Arc<Context>) -> Result<Self, CallError> {
        let mut raw: CUevent = ptr::null_mut();
        // SAFETY: the pointer is valid for the write of one pointer.
        let result = unsafe {
            (context.device().library.driver.cuEventCreate)(&raw mut raw, CU_EVENT_DISABLE_TIMING)
        };
        context.check("cuEventCreate", result)?;
        Ok(Self {
            raw,
            context: Arc::clone(context),
        })
    }

    /// Puts the mark after all that was started on the stream so far. The context is current; the stream is alive.
    pub(crate) fn record(&self, stream: CUstream) -> Result<(), CallError> {
        // SAFETY: event and stream are alive and of one context: the only caller is the stream itself.
        let result =
            unsafe { (self.context.device().library.driver.cuEventRecord)(self.raw, stream) };
        self.context.check("cuEventRecord", result)
    }

    /// Is everything before the mark done?
    pub(crate) fn is_done(&self) -> Result<bool, CallError> {
        let _current = self.context.enter()?;
        // SAFETY: the event is alive.
        let result = unsafe { (self.context.device().library.driver.cuEventQuery)(self.raw) };
        match self.context.check("cuEventQuery", result) {
            Ok(()) => Ok(true),
            Err(error) if error.status == Status::NotReady => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let Ok(_current) = self.context.enter() else {
            return;
        };
        // SAFETY: created by this value, destroyed once; the driver keeps it until the mark is passed.
        unsafe { (self.context.device().library.driver.cuEventDestroy_v2)(self.raw) };
    }
}
