//! The library's own threads are no business of the host's signals.

use std::{mem::MaybeUninit, ptr};

/// Signals that say what this very thread did, and the profiler's, which is to see all threads.
const KEPT: [libc::c_int; 8] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGSYS,
    libc::SIGABRT,
    libc::SIGPROF,
];

/// For a thread that begins: the host's handlers run on the host's threads, and a peer that hangs up while it is written
/// to is an error here and not SIGPIPE, which would end a host that does not ignore it. Threads that this one starts
/// inherit it.
pub(crate) fn take_no_signals() {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `set` is filled by sigfillset before it is used; the signals are valid, so that nothing here fails; the
    // mask is the calling thread's own.
    unsafe {
        libc::sigfillset(set.as_mut_ptr());
        for signal in KEPT {
            libc::sigdelset(set.as_mut_ptr(), signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), ptr::null_mut());
    }
}
