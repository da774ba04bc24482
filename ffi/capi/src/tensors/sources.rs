//! Which sources coordinators know, and how they stand.

use std::ffi::{CString, c_char};

use bytes::Bytes;
use kvferry_client::{Cause, Failure};
use kvferry_proto::pb;

use super::{
    beyond,
    texts::lent,
    words::{digest_or_none, kvf_digest, kvf_source_id, source_bytes, source_id},
};
use crate::{
    agent::{handle, kvf_agent},
    boundary::{self, Growing, guard},
    kvf_error, kvf_status,
};

/// Most sources of one list.
pub const KVF_MAX_SOURCES: usize = 65_536;
/// Sources asked for at a time; the most that an answer may have.
const PER_PAGE: u32 = 1000;

/// A source in a list, or its standing. Its texts belong to the list, or to the workers, that it came with.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct kvf_source_summary {
    /// sizeof(kvf_source_summary).
    pub size: usize,
    /// Its id.
    pub source: kvf_source_id,
    /// Of its chunks.
    pub namespace_name: *const c_char,
    /// Its name.
    pub name: *const c_char,
    /// Its revision; may be empty.
    pub revision: *const c_char,
    /// Ranks there are.
    pub world_size: u32,
    /// A kvf_source_state.
    pub state: u32,
    /// Ranks with a worker that is ready.
    pub ranks_ready: u32,
    /// Workers that are not complete yet.
    pub workers_initialising: u32,
    /// Workers that can be pulled from.
    pub workers_ready: u32,
    /// Workers that may not be what they were.
    pub workers_stale: u32,
    /// Workers that have ended lately.
    pub workers_gone: u32,
    /// Tensors of all ranks that have live workers.
    pub tensors: u64,
    /// Their bytes.
    pub bytes: u64,
}

// SAFETY: repr(C), begins with its size, pointers, integers and arrays of them only.
unsafe impl Growing for kvf_source_summary {
    const FIRST_SIZE: usize = size_of::<Self>();
}

struct Summary {
    namespace: CString,
    name: CString,
    revision: CString,
    id: kvf_source_id,
    world_size: u32,
    said: pb::SourceSummary,
}

impl TryFrom<pb::SourceSummary> for Summary {
    type Error = Failure;

    fn try_from(mut said: pb::SourceSummary) -> Result<Self, Failure> {
        let identity = said.identity.take().unwrap_or_default();
        Ok(Self {
            namespace: lent(identity.namespace),
            name: lent(identity.name),
            revision: lent(identity.revision),
            id: source_id(&said.source)?,
            world_size: identity.world_size,
            said,
        })
    }
}

impl Summary {
    fn to_c(&self) -> kvf_source_summary {
        kvf_source_summary {
            size: size_of::<kvf_source_summary>(),
            source: self.id,
            namespace_name: self.namespace.as_ptr(),
            name: self.name.as_ptr(),
            revision: self.revision.as_ptr(),
            world_size: self.world_size,
            state: self.said.state as u32, // the numbers are the same
            ranks_ready: self.said.ranks_ready,
            workers_initialising: self.said.workers_initialising,
            workers_ready: self.said.workers_ready,
            workers_stale: self.said.workers_stale,
            workers_gone: self.said.workers_gone,
            tensors: self.said.tensors,
            bytes: self.said.bytes,
        }
    }
}

/// Sources, as they were when they were asked for.
pub struct kvf_sources(Vec<Summary>);

/// The sources that coordinators know of, in `*sources`, which is then the caller's, to be given to kvf_sources_free; their
/// number in `*count`. NULL for namespace_name or name_prefix: of every namespace, of every name. More than KVF_MAX_SOURCES:
/// KVF_BOUND_REACHED. Within call_timeout_ms for each thousand.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_sources_list(
    agent: *const kvf_agent,
    namespace_name: *const c_char,
    name_prefix: *const c_char,
    sources: *mut *mut kvf_sources,
    count: *mut usize,
    error: *mut kvf_error,
) -> kvf_status {
    // SAFETY: what the header demands of the caller is what these demand.
    unsafe {
        guard(error, || {
            let connection = handle(agent)?.connection();
            let place = boundary::out(sources, "the place for the sources")?;
            let number = boundary::out(count, "count")?;
            let text = |text: *const c_char, what| match text.is_null() {
                true => Ok(String::new()),
                false => boundary::text(text, what),
            };
            let mut request = pb::ListSourcesRequest {
                namespace: text(namespace_name, "namespace_name")?,
                name_prefix: text(name_prefix, "name_prefix")?,
                after: Bytes::new(),
                limit: PER_PAGE,
            };
            let mut all = Vec::new();
            loop {
                let asked = request.clone();
                let page = connection.call_tensors(connection.timeout, |mut api| async move {
                    api.list_sources(asked).await
                })?;
                for source in page.sources {
                    all.push(Summary::try_from(source)?);
                }
                if page.next.is_empty() || page.next <= request.after {
                    break;
                }
                if all.len() >= KVF_MAX_SOURCES {
                    return Err(Failure::new(
                        Cause::BoundReached,
                        format!("more than {KVF_MAX_SOURCES} sources: name a prefix"),
                    ));
                }
                request.after = page.next;
            }
            number.set(all.len());
            place.set(Box::into_raw(Box::new(kvf_sources(all))));
            Ok(())
        })
    }
}

/// One of the sources, from 0 on. `source.size` is to be set.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_sources_at(
    sources: *const kvf_sources,
    index: usize,
    source: *mut kvf_source_summary,
    error: *mut kvf_error,
) -> kvf_status {
    // SAFETY: what the header demands of the caller is what these demand.
    unsafe {
        guard(error, || {
            let all = &boundary::reference(sources, "the sources")?.0;
            let it = all.get(index).ok_or_else(|| beyond(index, all.len()))?;
            boundary::write_sized(source, &it.to_c(), "kvf_source_summary")
        })
    }
}

/// Frees sources, with their texts. NULL is nothing to free.
///
/// # Safety
/// The rules at the top; the last call with these.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_sources_free(sources: *mut kvf_sources) {
    // SAFETY: they came from Box::into_raw, and this is the last call with them.
    unsafe { boundary::free(sources) };
}

/// One node's set of tensors for one rank.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct kvf_worker {
    /// sizeof(kvf_worker).
    pub size: usize,
    /// Its node; belongs to the workers it came with.
    pub node: *const c_char,
    /// The node's lifetime.
    pub incarnation: u64,
    /// How long it has been in its state.
    pub ms_in_state: u64,
    /// Its rank.
    pub rank: u32,
    /// A kvf_source_state.
    pub state: u32,
    /// A kvf_source_cause.
    pub cause: u32,
    /// Readers that reported it lately.
    pub reporters: u32,
    /// Of its tensors.
    pub digest: kvf_digest,
}

// SAFETY: repr(C), begins with its size, pointers, integers and arrays of them only.
unsafe impl Growing for kvf_worker {
    const FIRST_SIZE: usize = size_of::<Self>();
}

/// A source's workers, as they were when they were asked for.
pub struct kvf_workers {
    summary: Summary,
    all: Vec<(CString, pb::SourceWorker)>,
}

/// How a source stands, and its workers, by rank and node, in `*workers`: the caller's, to be given to kvf_workers_free; their
/// number in `*count`. `summary` may be NULL; else its size is to be set, and its texts belong to the workers.
/// KVF_SOURCE_UNKNOWN: there is none. Within call_timeout_ms.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_source_status(
    agent: *const kvf_agent,
    source: *const kvf_source_id,
    summary: *mut kvf_source_summary,
    workers: *mut *mut kvf_workers,
    count: *mut usize,
    error: *mut kvf_error,
) -> kvf_status {
    // SAFETY: what the header demands of the caller is what these demand.
    unsafe {
        guard(error, || {
            let connection = handle(agent)?.connection();
            let place = boundary::out(workers, "the place for the workers")?;
            let number = boundary::out(count, "count")?;
            let request = pb::SourceStatusRequest {
                source: source_bytes(source)?,
            };
            let answer = connection.call_tensors(connection.timeout, |mut api| async move {
                api.source_status(request).await
            })?;
            let made = Box::new(kvf_workers {
                summary: answer.summary.unwrap_or_default().try_into()?,
                all: answer
                    .workers
                    .into_iter()
                    .map(|mut it| (lent(std::mem::take(&mut it.node)), it))
                    .collect(),
            });
            if !summary.is_null() {
                boundary::write_sized(summary, &made.summary.to_c(), "kvf_source_summary")?;
            }
            number.set(made.all.len());
            place.set(Box::into_raw(made));
            Ok(())
        })
    }
}

/// One of the workers, from 0 on. `worker.size` is to be set.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_workers_at(
    workers: *const kvf_workers,
    index: usize,
    worker: *mut kvf_worker,
    error: *mut kvf_error,
) -> kvf_status {
    // SAFETY: what the header demands of the caller is what these demand.
    unsafe {
        guard(error, || {
            let all = &boundary::reference(workers, "the workers")?.all;
            let (node, it) = all.get(index).ok_or_else(|| beyond(index, all.len()))?;
            let told = kvf_worker {
                size: size_of::<kvf_worker>(),
                node: node.as_ptr(),
                incarnation: it.incarnation,
                ms_in_state: it.ms_in_state,
                rank: it.rank,
                state: it.state as u32, // the numbers are the same
                cause: it.cause as u32, // likewise
                reporters: it.reporters,
                digest: digest_or_none(&it.digest),
            };
            boundary::write_sized(worker, &told, "kvf_worker")
        })
    }
}

/// Frees workers, with their texts. NULL is nothing to free.
///
/// # Safety
/// The rules at the top; the last call with these.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_workers_free(workers: *mut kvf_workers) {
    // SAFETY: they came from Box::into_raw, and this is the last call with them.
    unsafe { boundary::free(workers) };
}

/// Ends workers of a source: they are offered no more at once, and their agents withdraw them. `node`: only this one's; NULL:
/// all. `*workers_removed` may be NULL. KVF_SOURCE_UNKNOWN: there is none. Within call_timeout_ms.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_source_remove(
    agent: *const kvf_agent,
    source: *const kvf_source_id,
    node: *const c_char,
    workers_removed: *mut u32,
    error: *mut kvf_error,
) -> kvf_status {
    // SAFETY: what the header demands of the caller is what these demand.
    unsafe {
        guard(error, || {
            let connection = handle(agent)?.connection();
            let place = boundary::optional_out(workers_removed, "workers_removed")?;
            let request = pb::RemoveSourceRequest {
                source: source_bytes(source)?,
                node: match node.is_null() {
                    true => String::new(),
                    false => boundary::text(node, "the node")?,
                },
            };
            let answer = connection.call_tensors(connection.timeout, |mut api| async move {
                api.remove_source(request).await
            })?;
            if let Some(place) = place {
                place.set(answer.workers_removed);
            }
            Ok(())
        })
    }
}
