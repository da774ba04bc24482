//! Protection domains: what of a device's objects may be used together.

use std::{io, ptr::NonNull, sync::Arc};

use kvferry_rdma_sys::ibv_pd;

use crate::Context;

/// No protection domain could be made.
#[derive(Debug, thiserror::Error)]
#[error("{device}: cannot allocate a protection domain: {source}")]
pub struct DomainError {
    /// The device.
    pub device: String,
    /// What the driver said.
    pub source: io::Error,
}

/// Memory regions and queue pairs of one domain work together, and only those.
#[derive(Debug)]
pub struct ProtectionDomain {
    raw: NonNull<ibv_pd>,
    context: Arc<Context>,
}

// SAFETY: libibverbs' calls on a domain may come from any thread; the struct is never looked into.
unsafe impl Send for ProtectionDomain {}
// SAFETY: as above.
unsafe impl Sync for ProtectionDomain {}

impl ProtectionDomain {
    /// Makes one.
    ///
    /// # Errors
    /// [`DomainError`].
    pub fn new(context: &Arc<Context>) -> Result<Arc<Self>, DomainError> {
        // SAFETY: the context is open.
        let raw = unsafe { context.verbs.ibv_alloc_pd(context.raw()) };
        let raw = NonNull::new(raw).ok_or_else(|| DomainError {
            device: context.name().into(),
            source: io::Error::last_os_error(),
        })?;
        Ok(Arc::new(Self {
            raw,
            context: Arc::clone(context),
        }))
    }

    /// Its device.
    #[must_use]
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    pub(crate) fn raw(&self) -> *mut ibv_pd {
        self.raw.as_ptr()
    }
}

impl Drop for ProtectionDomain {
    fn drop(&mut self) {
        // SAFETY: every region and queue pair of the domain held an `Arc` of it, so none is left.
        let result = unsafe { self.context.verbs.ibv_dealloc_pd(self.raw.as_ptr()) };
        if result != 0 {
            // Something of it lives on in the driver: so must the device.
            crate::leak::keep_for_ever(Arc::clone(&self.context));
        }
    }
}
