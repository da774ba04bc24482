//! Wake-ups: a descriptor that becomes readable when a completion arrives.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    ptr::{NonNull, null_mut},
    sync::Arc,
};

use kvferry_rdma_sys::ibv_comp_channel;

use crate::{Context, context::set_nonblocking};

/// No completion channel could be made.
#[derive(Debug, thiserror::Error)]
#[error("{device}: cannot create a completion channel: {source}")]
pub struct ChannelError {
    /// The device.
    pub device: String,
    /// What the driver said.
    pub source: io::Error,
}

/// Most events taken in one go: as many as completion queues one waiter could reasonably have.
const EVENTS_AT_ONCE: u32 = 64;

/// Tells when armed completion queues have something. Have one waiter for each channel.
#[derive(Debug)]
pub struct CompletionChannel {
    raw: NonNull<ibv_comp_channel>,
    context: Arc<Context>,
}

// SAFETY: libibverbs' calls on a channel may come from any thread; its descriptor never changes.
unsafe impl Send for CompletionChannel {}
// SAFETY: as above.
unsafe impl Sync for CompletionChannel {}

impl CompletionChannel {
    /// Makes one, whose descriptor does not block.
    ///
    /// # Errors
    /// [`ChannelError`].
    pub fn new(context: &Arc<Context>) -> Result<Arc<Self>, ChannelError> {
        let failed = |source| ChannelError {
            device: context.name().into(),
            source,
        };
        // SAFETY: the context is open.
        let raw = unsafe { context.verbs.ibv_create_comp_channel(context.raw()) };
        let raw = NonNull::new(raw).ok_or_else(|| failed(io::Error::last_os_error()))?;
        let this = Self {
            raw,
            context: Arc::clone(context),
        };
        set_nonblocking(this.as_fd()).map_err(failed)?;
        Ok(Arc::new(this))
    }

    /// Takes and acknowledges what was signalled, without waiting. Call it when the descriptor became
    /// readable; then arm the queues again, and poll them once more. Gives how many events there were.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn take_events(&self) -> io::Result<u32> {
        let mut taken = 0;
        while taken < EVENTS_AT_ONCE {
            let (mut queue, mut data) = (null_mut(), null_mut());
            // SAFETY: the channel is alive, the pointers are valid for the writes.
            let result = unsafe {
                self.context.verbs.ibv_get_cq_event(
                    self.raw.as_ptr(),
                    &raw mut queue,
                    &raw mut data,
                )
            };
            if result != 0 {
                let error = io::Error::last_os_error();
                return match error.kind() {
                    io::ErrorKind::WouldBlock => Ok(taken),
                    io::ErrorKind::Interrupted => continue,
                    _ => Err(error),
                };
            }
            // SAFETY: the queue of an event cannot be destroyed before the event is acknowledged
            // (ibv_destroy_cq(3) waits for it), which is done here, once.
            unsafe { self.context.verbs.ibv_ack_cq_events(queue, 1) };
            taken += 1;
        }
        Ok(taken)
    }

    pub(crate) fn raw(&self) -> *mut ibv_comp_channel {
        self.raw.as_ptr()
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.context
    }
}

impl AsFd for CompletionChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the channel, and the field is never written to.
        unsafe { BorrowedFd::borrow_raw((*self.raw.as_ptr()).fd) }
    }
}

impl AsRawFd for CompletionChannel {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl Drop for CompletionChannel {
    fn drop(&mut self) {
        // SAFETY: every queue on the channel held an `Arc` of it, so none is left.
        let result = unsafe {
            self.context
                .verbs
                .ibv_destroy_comp_channel(self.raw.as_ptr())
        };
        if result != 0 {
            crate::leak::keep_for_ever(Arc::clone(&self.context));
        }
    }
}
