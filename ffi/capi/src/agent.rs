//! A handle: open and close.

use std::{ffi::c_char, path::PathBuf, time::Duration};

use tokio::runtime::{Builder, Runtime};

use kvferry_client::{Cause, Connection, Failure};

use crate::{
    boundary::{self, Growing, guard},
    kvf_error, kvf_status,
    pull::Pulls,
};

/// Longest wait that a call may be given.
pub const KVF_MAX_TIMEOUT_MS: u32 = 600_000;
/// Waits that are not said.
const DEFAULT_TIMEOUT_MS: u32 = 5_000;
/// Calls and pulls are a few messages at a time: two threads keep one slow one from holding up the rest.
const IO_THREADS: usize = 2;

/// A wait as it was given.
pub(crate) fn timeout(ms: u32, default_ms: u32, what: &str) -> Result<Duration, Failure> {
    match ms {
        0 => Ok(Duration::from_millis(default_ms.into())),
        1..=KVF_MAX_TIMEOUT_MS => Ok(Duration::from_millis(ms.into())),
        _ => Err(Failure::invalid(format!(
            "{what} is {ms}; at most {KVF_MAX_TIMEOUT_MS} is allowed"
        ))),
    }
}

/// How to reach an agent. All bits zero but `size` and `socket` is a good choice.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct kvf_options {
    /// sizeof(kvf_options).
    pub size: usize,
    /// The agent's unix socket (`kvferry agent --socket`).
    pub socket: *const c_char,
    /// Its descriptor socket; NULL means the socket's path with ".fds" at its end.
    pub descriptor_socket: *const c_char,
    /// How long kvf_open tries; 0 means 5,000; at most KVF_MAX_TIMEOUT_MS.
    pub connect_timeout_ms: u32,
    /// Deadline of calls that have none of their own; 0 means 5,000; at most KVF_MAX_TIMEOUT_MS.
    pub call_timeout_ms: u32,
}

// SAFETY: repr(C), begins with its size, pointers and integers only.
unsafe impl Growing for kvf_options {
    const FIRST_SIZE: usize = size_of::<Self>();
}

/// A connection to one agent. Reservations, pins and (unless kept) regions belong to it and end with it. It
/// has threads of its own; it does not survive fork(): open another one in the child.
pub struct kvf_agent {
    connection: Connection,
    pulls: Pulls,
    runtime: Runtime,
}

// What the header promises: any thread, at any time.
const _: () = {
    const fn any_thread<T: Send + Sync>() {}
    any_thread::<kvf_agent>();
    any_thread::<crate::kvf_pull>();
};

impl kvf_agent {
    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    pub(crate) fn pulls(&self) -> &Pulls {
        &self.pulls
    }
}

/// # Safety
/// `agent` is NULL or a handle that is not closed during `'a`.
pub(crate) unsafe fn handle<'a>(agent: *const kvf_agent) -> Result<&'a kvf_agent, Failure> {
    // SAFETY: the caller's promise.
    unsafe { boundary::reference(agent, "the agent") }
}

/// Connects to an agent and asks it who it is. Tries until connect_timeout_ms, so that an engine may start
/// before its agent. `*agent` is then the caller's, to be given to kvf_close.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_open(
    options: *const kvf_options,
    agent: *mut *mut kvf_agent,
    error: *mut kvf_error,
) -> kvf_status {
    // SAFETY: what the header demands of the caller is what these demand.
    unsafe {
        guard(error, || {
            let place = boundary::out(agent, "the place for the handle")?;
            let options = boundary::sized(options, "kvf_options")?;
            let socket = PathBuf::from(boundary::text(options.socket, "the socket's path")?);
            let descriptors = match options.descriptor_socket.is_null() {
                true => None,
                false => {
                    Some(boundary::text(options.descriptor_socket, "descriptor_socket")?.into())
                }
            };
            let connect = timeout(
                options.connect_timeout_ms,
                DEFAULT_TIMEOUT_MS,
                "connect_timeout_ms",
            )?;
            let call = timeout(
                options.call_timeout_ms,
                DEFAULT_TIMEOUT_MS,
                "call_timeout_ms",
            )?;
            let runtime = Builder::new_multi_thread()
                .worker_threads(IO_THREADS)
                .thread_name("kvferry-io")
                .enable_all()
                .build()
                .map_err(|error| Failure::system("cannot start threads", error))?;
            // A runtime is never dropped here: that may block, and must not in a host's own runtime.
            match connect_and_prepare(&runtime, socket, descriptors, connect, call) {
                Ok((connection, pulls)) => {
                    place.set(Box::into_raw(Box::new(kvf_agent {
                        connection,
                        pulls,
                        runtime,
                    })));
                    Ok(())
                }
                Err(failure) => {
                    runtime.shutdown_background();
                    Err(failure)
                }
            }
        })
    }
}

fn connect_and_prepare(
    runtime: &Runtime,
    socket: PathBuf,
    descriptors: Option<PathBuf>,
    connect: Duration,
    call: Duration,
) -> Result<(Connection, Pulls), Failure> {
    let handle = runtime.handle().clone();
    let connection = Connection::open(handle, &socket, descriptors, connect, call)?;
    let pulls = Pulls::start().map_err(|error| Failure::system("cannot start a thread", error))?;
    Ok((connection, pulls))
}

/// Ends the connection: gives up every pull that is under way, waits for a callback that is running, and
/// frees the handle. Pulls are still to be freed, before or after. NULL is nothing to close. Within 3
/// seconds, and as long as callbacks take. KVF_WRONG_THREAD from a callback: the handle stays.
///
/// # Safety
/// The rules at the top; the last call with this handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_close(agent: *mut kvf_agent, error: *mut kvf_error) -> kvf_status {
    // SAFETY: what the header demands of the caller is what these demand.
    unsafe {
        guard(error, || {
            if agent.is_null() {
                return Ok(());
            }
            if handle(agent)?.pulls.is_this_thread() {
                return Err(Failure::new(
                    Cause::WrongThread,
                    "kvf_close waits for callbacks: call it from another thread",
                ));
            }
            // The handle came from Box::into_raw, and this is the last call with it.
            let agent = *Box::from_raw(agent);
            drop(agent.connection);
            agent.pulls.close(agent.runtime);
            Ok(())
        })
    }
}
