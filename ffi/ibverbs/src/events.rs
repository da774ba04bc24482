//! What a device tells unasked.

use std::io;

use kvferry_rdma_sys::{ibv_async_event, ibv_event_type as raw};

use crate::Context;

/// Something happened to a device, a port or a queue pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AsyncEvent {
    /// The port can carry traffic (again).
    PortActive {
        /// From 1.
        port: u8,
    },
    /// The port's link went down: use another path.
    PortError {
        /// From 1.
        port: u8,
    },
    /// The port's addresses changed: look at them again before the next connection.
    AddressChange {
        /// From 1.
        port: u8,
    },
    /// The device failed; every queue pair on it is dead.
    DeviceFatal,
    /// A queue pair failed in a way that no work request tells.
    QueuePairFatal {
        /// Which.
        qp_num: u32,
    },
    /// A peer asked something invalid of a queue pair; it is in the error state now.
    QueuePairRequest {
        /// Which.
        qp_num: u32,
    },
    /// A peer asked a queue pair for memory it has no right to; it is in the error state now.
    QueuePairAccess {
        /// Which.
        qp_num: u32,
    },
    /// A completion queue overflowed or broke; every queue pair on it is dead.
    CompletionQueueError,
    /// Something that needs no answer here.
    Other(u32),
}

/// Takes the next event off the context's (non-blocking) descriptor.
pub(crate) fn next(context: &Context) -> io::Result<Option<AsyncEvent>> {
    let mut event = ibv_async_event::default();
    // SAFETY: the context is open and `event` is valid for the write.
    if unsafe {
        context
            .verbs
            .ibv_get_async_event(context.raw(), &raw mut event)
    } != 0
    {
        let error = io::Error::last_os_error();
        return match error.kind() {
            io::ErrorKind::WouldBlock => Ok(None),
            _ => Err(error),
        };
    }
    // SAFETY: the event was filled by the library and not acknowledged yet.
    let seen = unsafe { read(&event) };
    // SAFETY: the event came from ibv_get_async_event and is acknowledged once. What it points to is
    // not looked at afterwards: it may be destroyed from here on.
    unsafe { context.verbs.ibv_ack_async_event(&raw mut event) };
    Ok(Some(seen))
}

/// # Safety
/// The event came from the library and was not acknowledged: what it points to cannot be destroyed yet.
unsafe fn read(event: &ibv_async_event) -> AsyncEvent {
    // SAFETY: all readings of the union begin at its start; for a port event it is the number.
    let port = || u8::try_from(unsafe { event.element.port_num }).unwrap_or(0);
    // SAFETY: for an event of a queue pair the union is its pointer, and it is alive.
    let qp_num = || unsafe { (*event.element.qp).qp_num };
    match event.event_type {
        raw::IBV_EVENT_PORT_ACTIVE => AsyncEvent::PortActive { port: port() },
        raw::IBV_EVENT_PORT_ERR => AsyncEvent::PortError { port: port() },
        raw::IBV_EVENT_GID_CHANGE
        | raw::IBV_EVENT_LID_CHANGE
        | raw::IBV_EVENT_PKEY_CHANGE
        | raw::IBV_EVENT_CLIENT_REREGISTER => AsyncEvent::AddressChange { port: port() },
        raw::IBV_EVENT_DEVICE_FATAL => AsyncEvent::DeviceFatal,
        raw::IBV_EVENT_QP_FATAL => AsyncEvent::QueuePairFatal { qp_num: qp_num() },
        raw::IBV_EVENT_QP_REQ_ERR => AsyncEvent::QueuePairRequest { qp_num: qp_num() },
        raw::IBV_EVENT_QP_ACCESS_ERR => AsyncEvent::QueuePairAccess { qp_num: qp_num() },
        raw::IBV_EVENT_CQ_ERR => AsyncEvent::CompletionQueueError,
        other => AsyncEvent::Other(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvferry_rdma_sys::ibv_qp;

    #[test]
    fn events_are_told_apart() {
        let mut event = ibv_async_event::default();
        event.element.port_num = 2;
        event.event_type = raw::IBV_EVENT_PORT_ERR;
        // SAFETY: the event is a port's, with the number set.
        assert_eq!(unsafe { read(&event) }, AsyncEvent::PortError { port: 2 });
        let mut qp = ibv_qp {
            qp_num: 77,
            ..Default::default()
        };
        event.element.qp = &raw mut qp;
        event.event_type = raw::IBV_EVENT_QP_FATAL;
        // SAFETY: the event is a queue pair's, and the queue pair is alive.
        let seen = unsafe { read(&event) };
        assert_eq!(seen, AsyncEvent::QueuePairFatal { qp_num: 77 });
        event.event_type = raw::IBV_EVENT_SQ_DRAINED;
        // SAFETY: as above.
        assert_eq!(unsafe { read(&event) }, AsyncEvent::Other(5));
    }
}
