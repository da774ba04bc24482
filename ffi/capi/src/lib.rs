//! `libkvferry`: the agent's local API for C.
//!
//! `include/kvferry.h` is made from this crate; the names here are therefore those of C. Every exported
//! function is a thin shell: it checks what it was given ([`boundary`]), calls safe code, and turns the
//! result into a [`kvf_status`]. No panic leaves it.

// The header is made from these names.
#![allow(non_camel_case_types)]

mod agent;
mod blocks;
mod boundary;
mod cancel;
mod embed;
mod error;
mod gpu;
mod map;
mod pull;
mod regions;
mod slots;
mod stats;
mod status;
mod tensors;
mod threads;
mod values;
mod version;
mod words;

pub use agent::{KVF_MAX_TIMEOUT_MS, kvf_agent, kvf_close, kvf_open, kvf_options};
pub use blocks::{kvf_evict, kvf_evicted, kvf_lookup, kvf_pin, kvf_pinned, kvf_place, kvf_release};
pub use cancel::{kvf_cancel, kvf_canceller, kvf_canceller_free, kvf_canceller_new};
pub use embed::{
    KVF_LOG_DEBUG, KVF_LOG_ERROR, KVF_LOG_INFO, KVF_LOG_TRACE, KVF_LOG_WARN,
    KVF_MAX_WORKER_THREADS, kvf_addresses, kvf_embed, kvf_embed_addresses, kvf_embed_options,
    kvf_log_callback, kvf_setting,
};
pub use error::{KVF_MESSAGE_BYTES, kvf_error};
pub use gpu::{kvf_cuda_ipc, kvf_register_cuda_ipc};
pub use map::{kvf_region_map, kvf_region_open};
pub use pull::{
    KVF_MAX_PULLS, kvf_outcome, kvf_outcome_kind, kvf_pull, kvf_pull_callback, kvf_pull_cancel,
    kvf_pull_eventfd, kvf_pull_free, kvf_pull_poll, kvf_pull_request, kvf_pull_start,
    kvf_pull_summary, kvf_pull_summary_of, kvf_pull_wait,
};
pub use regions::{
    kvf_region, kvf_region_describe, kvf_register_fd, kvf_register_path, kvf_register_pool,
    kvf_unregister,
};
pub use slots::{kvf_abort, kvf_reserve, kvf_reserve_pool, kvf_seal, kvf_sealed};
pub use stats::{kvf_region_stats, kvf_stats, kvf_stats_get, kvf_stats_regions};
pub use status::{kvf_status, kvf_status_text};
pub use tensors::{
    KVF_MAX_SOURCES, KVF_MAX_TENSORS, kvf_attribute, kvf_chunk_run, kvf_digest, kvf_landed,
    kvf_landed_at, kvf_landed_free, kvf_landed_tensor, kvf_publication, kvf_source,
    kvf_source_cause, kvf_source_id, kvf_source_remove, kvf_source_state, kvf_source_status,
    kvf_source_summary, kvf_source_tensors, kvf_sources, kvf_sources_at, kvf_sources_free,
    kvf_sources_list, kvf_tensor, kvf_tensor_request, kvf_tensor_set, kvf_tensor_summary,
    kvf_tensors, kvf_tensors_at, kvf_tensors_free, kvf_tensors_publish, kvf_tensors_pull,
    kvf_tensors_withdraw, kvf_worker, kvf_workers, kvf_workers_at, kvf_workers_free,
};
pub use values::{kvf_put, kvf_put_result};
pub use version::{KVF_ABI_VERSION, kvf_abi_version, kvf_version};
pub use words::{
    KVF_CHAINED, KVF_FRESH_MEMORY, KVF_HUGEPAGES, KVF_KEEP_ON_DISCONNECT, KVF_MAX_HASHES,
    KVF_NO_REPLICA, KVF_PACKED, KVF_SERVE, KVF_UNREGISTER_WITH_IT, kvf_checksum, kvf_geometry,
    kvf_hashes, kvf_namespace, kvf_plane,
};
