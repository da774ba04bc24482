//! The threads that move messages: one set for the whole process, whoever connects how often.

use std::{process, sync::OnceLock};

use kvferry_client::Failure;
use parking_lot::Mutex;
use tokio::runtime::{Builder, Handle, Runtime};

/// Calls and pulls are a few messages at a time: two threads keep one slow one from holding up the rest.
const IO_THREADS: usize = 2;

/// The runtime with the process it belongs to: threads do not survive a fork.
static RUNTIME: OnceLock<Mutex<Option<(u32, Runtime)>>> = OnceLock::new();

/// Where work runs.
pub(crate) fn handle() -> Result<Handle, Failure> {
    let mut runtime = RUNTIME.get_or_init(Mutex::default).lock();
    let me = process::id();
    if let Some((process, runtime)) = &*runtime
        && *process == me
    {
        return Ok(runtime.handle().clone());
    }
    let made = Builder::new_multi_thread()
        .worker_threads(IO_THREADS)
        .thread_name("kvferry-io")
        .enable_all()
        .build()
        .map_err(|error| Failure::system("cannot start threads", error))?;
    let handle = made.handle().clone();
    // The parent's, in a child: its threads are not here, and dropping it would wait for them.
    #[allow(clippy::disallowed_methods)] // no memory of a transfer: threads of another process
    std::mem::forget(runtime.replace((me, made)));
    Ok(handle)
}
