//! An agent within the calling process.

mod log;

use std::{
    cell::RefCell,
    ffi::{c_char, c_void},
    path::PathBuf,
    thread::available_parallelism,
};

use kvferry_agent::{AgentAddresses, MAX_WORKERS, worker_threads};
use kvferry_client::{Embedded, Failure, agent_settings};
use tokio::runtime::Builder;
use tracing::{Dispatch, dispatcher::DefaultGuard};

use crate::{
    agent::{self, kvf_agent, timeout},
    boundary::{self, Growing, guard},
    error::to_c_text,
    kvf_error, kvf_status,
    threads::take_no_signals,
};
pub use log::{
    KVF_LOG_DEBUG, KVF_LOG_ERROR, KVF_LOG_INFO, KVF_LOG_TRACE, KVF_LOG_WARN, kvf_log_callback,
};

/// Most threads that an embedded agent may be given: more only take each other's turns.
pub const KVF_MAX_WORKER_THREADS: u32 = 64;
const _: () = assert!(MAX_WORKERS <= KVF_MAX_WORKER_THREADS as usize);
/// Most settings of one agent: there are not half as many.
const MAX_SETTINGS: usize = 256;
/// How long the first call tries; the agent is there already.
const CONNECT_TIMEOUT_MS: u32 = 5_000;
/// Waits that are not said.
const DEFAULT_TIMEOUT_MS: u32 = 5_000;

/// One setting of `kvferry agent`, as its flags have them: "pool_bytes" and "4GiB". Lists are a,b and maps are k=v,k=v.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct kvf_setting {
    /// The key, as in a settings file.
    pub key: *const c_char,
    /// Its value.
    pub value: *const c_char,
}

/// What an embedded agent is to be. All bits zero but `size`: an agent with nothing but defaults, on their ports.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct kvf_embed_options {
    /// sizeof(kvf_embed_options).
    pub size: usize,
    /// A settings file (TOML), as `kvferry agent --config` has it; NULL for none.
    pub settings_file: *const c_char,
    /// Settings, laid over the file's; NULL with a count of 0. No environment variable is looked at.
    pub settings: *const kvf_setting,
    /// How many there are.
    pub setting_count: usize,
    /// Deadline of calls that have none of their own; 0 means 5,000; at most KVF_MAX_TIMEOUT_MS.
    pub call_timeout_ms: u32,
    /// Threads that carry calls and sockets; 0: half of the processors, at least 1 and at most 8; at most
    /// KVF_MAX_WORKER_THREADS. Copies have threads of their own, while there are some.
    pub worker_threads: u32,
    /// Who is told what the agent has to say; NULL: nobody.
    pub log: kvf_log_callback,
    /// Handed to the callback.
    pub log_user: *mut c_void,
    /// KVF_LOG_ERROR to KVF_LOG_TRACE: no finer than that; 0 means KVF_LOG_WARN.
    pub log_level: u32,
}

// SAFETY: repr(C), begins with its size, pointers, integers and an Option<extern fn> only.
unsafe impl Growing for kvf_embed_options {
    const FIRST_SIZE: usize = size_of::<Self>();
}

/// Where an embedded agent is to be found. Texts end with a NUL.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct kvf_addresses {
    /// sizeof(kvf_addresses).
    pub size: usize,
    /// Its node name.
    pub node: [c_char; 136],
    /// Its lifetime.
    pub incarnation: u64,
    /// IP:PORT where other agents' questions arrive.
    pub peer: [c_char; 64],
    /// IP:PORT where other agents' reads arrive.
    pub data: [c_char; 64],
    /// IP:PORT where its metrics are read; empty where they are off.
    pub metrics: [c_char; 64],
    /// The unix socket of its local API: for kvf_open, also of other processes, and for `kvferry stats --socket`.
    pub socket: [c_char; 108],
    /// Where descriptors are handed over.
    pub descriptor_socket: [c_char; 112],
}

// SAFETY: repr(C), begins with its size, integers only.
unsafe impl Growing for kvf_addresses {
    const FIRST_SIZE: usize = size_of::<Self>();
}

/// Starts an agent within this process, the same as `kvferry agent` with these settings, and opens a connection to it.
/// `*agent` is then as kvf_open gives it, and kvf_close ends the agent, too. Any number of agents may be in one process,
/// each with a node name, ports and a socket of its own; other processes may use it by its socket. It takes no
/// signals and writes no log of its own. KVF_INVALID_ARGUMENT: a setting that cannot be; KVF_SYSTEM: a port, socket or
/// device that is not to be had. Within 35 seconds; it waits for no coordinator.
///
/// # Safety
/// The rules at the top. `options.log_user` is used from threads of the library until kvf_close has returned, or this has
/// without success.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_embed(
    options: *const kvf_embed_options,
    agent: *mut *mut kvf_agent,
    error: *mut kvf_error,
) -> kvf_status {
    // SAFETY: what the header demands of the caller is what these demand.
    unsafe {
        guard(error, || {
            let place = boundary::out(agent, "the place for the handle")?;
            let options = boundary::sized(options, "kvf_embed_options")?;
            let file = match options.settings_file.is_null() {
                true => None,
                false => Some(PathBuf::from(boundary::text(
                    options.settings_file,
                    "settings_file",
                )?)),
            };
            let settings = settings(options.settings, options.setting_count)?;
            let config = agent_settings(file.as_deref(), &settings)?;
            let call = timeout(
                options.call_timeout_ms,
                DEFAULT_TIMEOUT_MS,
                "call_timeout_ms",
            )?;
            let threads = threads(options.worker_threads)?;
            let log = log::dispatch(options.log, options.log_user, options.log_level)?;
            let embedded = Embedded::start(&mut builder(threads, log), config)?;
            place.set(agent::attach(embedded, CONNECT_TIMEOUT_MS, call)?);
            Ok(())
        })
    }
}

/// Where an embedded agent is to be found. `addresses.size` is to be set. KVF_INVALID_ARGUMENT for a handle of kvf_open.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_embed_addresses(
    agent: *const kvf_agent,
    addresses: *mut kvf_addresses,
    error: *mut kvf_error,
) -> kvf_status {
    // SAFETY: what the header demands of the caller is what these demand.
    unsafe {
        guard(error, || {
            let embedded = agent::handle(agent)?.embedded();
            let embedded = embedded.ok_or_else(|| {
                Failure::invalid("this agent was not started by kvf_embed: it is elsewhere")
            })?;
            boundary::write_sized(addresses, &told(embedded.addresses()), "kvf_addresses")
        })
    }
}

fn told(at: &AgentAddresses) -> kvf_addresses {
    let metrics = at.metrics.map(|it| it.to_string()).unwrap_or_default();
    kvf_addresses {
        size: size_of::<kvf_addresses>(),
        node: to_c_text(at.node.as_str()),
        incarnation: at.incarnation.get(),
        peer: to_c_text(&at.peer.to_string()),
        data: to_c_text(&at.data.to_string()),
        metrics: to_c_text(&metrics),
        socket: to_c_text(&at.socket.display().to_string()),
        descriptor_socket: to_c_text(&at.descriptor_socket.display().to_string()),
    }
}

/// # Safety
/// `settings` is NULL or points to `count` of them, whose texts end with a NUL.
unsafe fn settings(
    settings: *const kvf_setting,
    count: usize,
) -> Result<Vec<(String, String)>, Failure> {
    // SAFETY: the caller's promise.
    let settings = unsafe { boundary::slice(settings, count, MAX_SETTINGS, "settings") }?;
    let mut pairs = Vec::with_capacity(settings.len());
    for setting in settings {
        // SAFETY: the caller's promise.
        pairs.push(unsafe {
            (
                boundary::text(setting.key, "a setting's key")?,
                boundary::text(setting.value, "a setting's value")?,
            )
        });
    }
    Ok(pairs)
}

fn threads(given: u32) -> Result<usize, Failure> {
    match given {
        0 => Ok(worker_threads(
            available_parallelism().map_or(1, usize::from),
        )),
        1..=KVF_MAX_WORKER_THREADS => Ok(given as usize),
        _ => Err(Failure::invalid(format!(
            "worker_threads is {given}; at most {KVF_MAX_WORKER_THREADS} is allowed"
        ))),
    }
}

thread_local! {
    /// What this thread's words go to, for as long as it lives.
    static LOG: RefCell<Option<DefaultGuard>> = const { RefCell::new(None) };
}

/// The agent's threads: they take no signals, and their words go to the caller's log and nowhere else.
fn builder(threads: usize, log: Option<Dispatch>) -> Builder {
    let mut builder = Builder::new_multi_thread();
    builder
        .worker_threads(threads)
        .thread_name("kvferry-agent")
        .on_thread_start(move || {
            take_no_signals();
            agent::this_is_the_librarys();
            if let Some(log) = &log {
                let guard = tracing::dispatcher::set_default(log);
                LOG.with(|slot| drop(slot.replace(Some(guard))));
            }
        })
        .on_thread_stop(|| LOG.with(|slot| drop(slot.take())));
    builder
}
