//! A handle: open and close.

use std::{
    cell::Cell,
    ffi::c_char,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::runtime::{Builder, Runtime};

use kvferry_client::{Cause, Connection, Embedded, Failure};

use crate::{
    boundary::{self, Growing, guard},
    kvf_error, kvf_status,
    pull::Pulls,
    threads::take_no_signals,
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

/// A connection to one agent, and the agent itself where kvf_embed started it. Reservations, pins and (unless kept) regions belong to it and end with it. It
/// has threads of its own; it does not survive fork(): open another one in the child.
pub struct kvf_agent {
    connection: Connection,
    pulls: Pulls,
    runtime: Runtime,
    embedded: Option<Embedded>,
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

    /// The agent, where it is in this process by way of this handle.
    pub(crate) fn embedded(&self) -> Option<&Embedded> {
        self.embedded.as_ref()
    }
}

thread_local! {
    /// This thread carries an embedded agent: a call that waits for the agent would wait for itself.
    static OURS: Cell<bool> = const { Cell::new(false) };
}

/// For a thread of an embedded agent that begins.
pub(crate) fn this_is_the_librarys() {
    OURS.set(true);
}

/// # Safety
/// `agent` is NULL or a handle that is not closed during `'a`.
pub(crate) unsafe fn handle<'a>(agent: *const kvf_agent) -> Result<&'a kvf_agent, Failure> {
    if OURS.get() {
        return Err(Failure::new(
            Cause::WrongThread,
            "a log callback must not call the library: hand it on to another thread",
        ));
    }
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
            let connect_for = timeout(
                options.connect_timeout_ms,
                DEFAULT_TIMEOUT_MS,
                "connect_timeout_ms",
            )?;
            let call = timeout(
                options.call_timeout_ms,
                DEFAULT_TIMEOUT_MS,
                "call_timeout_ms",
            )?;
            place.set(connect(&socket, descriptors, connect_for, call)?);
            Ok(())
        })
    }
}

/// A handle on a connection with threads of its own.
fn connect(
    socket: &Path,
    descriptors: Option<PathBuf>,
    connect: Duration,
    call: Duration,
) -> Result<*mut kvf_agent, Failure> {
    let runtime = Builder::new_multi_thread()
        .worker_threads(IO_THREADS)
        .thread_name("kvferry-io")
        .on_thread_start(take_no_signals)
        .enable_all()
        .build()
        .map_err(|error| Failure::system("cannot start threads", error))?;
    let handle = runtime.handle().clone();
    let prepared = Connection::open(handle, socket, descriptors, connect, call).and_then(|it| {
        let pulls = Pulls::start();
        let pulls = pulls.map_err(|error| Failure::system("cannot start a thread", error))?;
        Ok((it, pulls))
    });
    match prepared {
        Ok((connection, pulls)) => Ok(Box::into_raw(Box::new(kvf_agent {
            connection,
            pulls,
            runtime,
            embedded: None,
        }))),
        Err(failure) => {
            // Never dropped here: that may block, and must not in a host's own runtime.
            runtime.shutdown_background();
            Err(failure)
        }
    }
}

/// A handle on an agent of this process, which ends with it.
pub(crate) fn attach(
    embedded: Embedded,
    connect_ms: u32,
    call: Duration,
) -> Result<*mut kvf_agent, Failure> {
    let at = embedded.addresses();
    let (socket, descriptors) = (at.socket.clone(), at.descriptor_socket.clone());
    let within = Duration::from_millis(connect_ms.into());
    match connect(&socket, Some(descriptors), within, call) {
        Ok(agent) => {
            // SAFETY: just made, and nobody else has it yet.
            unsafe { (*agent).embedded = Some(embedded) };
            Ok(agent)
        }
        Err(failure) => {
            // What it could not be asked says more than how it ended.
            let _ = embedded.close();
            Err(failure)
        }
    }
}

/// Ends the connection: gives up every pull that is under way, waits for a callback that is running, and
/// frees the handle. Pulls are still to be freed, before or after. NULL is nothing to close. Within 3
/// seconds, and as long as callbacks take. KVF_WRONG_THREAD from a callback: the handle stays.
///
/// Of kvf_embed: then ends the agent. Coordinators are told, other processes' calls end, and its sockets, memory and
/// threads are given back; within 9 seconds more. KVF_FENCED: closed, and the agent had ended before, because
/// another one took over its name; KVF_DEADLINE: closed, and something that was still under way was dropped.
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
            agent.embedded.map_or(Ok(()), Embedded::close)
        })
    }
}
