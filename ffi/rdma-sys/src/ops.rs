//! The verbs that are inline functions in the header: calls through the context's table.

use std::{ffi::c_int, io};

use crate::{errno, ibv_cq, ibv_qp, ibv_send_wr, ibv_wc};

fn no_such_operation() -> io::Error {
    io::ErrorKind::Unsupported.into()
}

/// `ibv_post_send`: hands a linked list of work requests to the device. On an error `bad` points to the first
/// request that was not taken.
///
/// # Safety
/// `qp` is a living queue pair; `first` and what it links to are valid for the call, and the memory
/// their lists name stays registered and alive until their completions were polled.
///
/// # Errors
/// What the provider said.
pub unsafe fn post_send(
    qp: *mut ibv_qp,
    first: *mut ibv_send_wr,
    bad: &mut *mut ibv_send_wr,
) -> io::Result<()> {
    // SAFETY: a living queue pair points to its living context, whose table the provider filled.
    let call = unsafe { (*(*qp).context).ops.post_send }.ok_or_else(no_such_operation)?;
    // SAFETY: the caller's promises are those of the verb.
    errno(unsafe { call(qp, first, bad) }).map_or(Ok(()), Err)
}

/// `ibv_poll_cq`: takes completions. Gives how many of `into`, from the front, were filled.
///
/// # Safety
/// `cq` is a living completion queue.
///
/// # Errors
/// What the provider said.
pub unsafe fn poll_cq(cq: *mut ibv_cq, into: &mut [ibv_wc]) -> io::Result<usize> {
    // SAFETY: a living completion queue points to its living context.
    let call = unsafe { (*(*cq).context).ops.poll_cq }.ok_or_else(no_such_operation)?;
    let room = c_int::try_from(into.len()).unwrap_or(c_int::MAX);
    // SAFETY: `into` has room for `room` completions.
    let taken = unsafe { call(cq, room, into.as_mut_ptr()) };
    usize::try_from(taken).map_err(|_| errno(taken).unwrap_or_else(no_such_operation))
}

/// `ibv_req_notify_cq`: asks for one event when the next completion arrives.
///
/// # Safety
/// `cq` is a living completion queue.
///
/// # Errors
/// What the provider said.
pub unsafe fn req_notify_cq(cq: *mut ibv_cq) -> io::Result<()> {
    // SAFETY: a living completion queue points to its living context.
    let call = unsafe { (*(*cq).context).ops.req_notify_cq }.ok_or_else(no_such_operation)?;
    // SAFETY: as above; 0 asks for any completion, not only solicited ones.
    errno(unsafe { call(cq, 0) }).map_or(Ok(()), Err)
}
