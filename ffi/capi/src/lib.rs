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
mod error;
mod gpu;
mod map;
mod pull;
mod regions;
mod slots;
mod stats;
mod status;
mod values;
mod version;
mod words;

pub use agent::{KVF_MAX_TIMEOUT_MS, kvf_agent, kvf_close, kvf_open, kvf_options};
pub use blocks::{kvf_evict, kvf_evicted, kvf_lookup, kvf_pin, kvf_pinned, kvf_place, kvf_release};
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
pub use values::{kvf_put, kvf_put_result};
pub use version::{KVF_ABI_VERSION, kvf_abi_version, kvf_version};
pub use words::{
    KVF_CHAINED, KVF_HUGEPAGES, KVF_KEEP_ON_DISCONNECT, KVF_MAX_HASHES, KVF_NO_REPLICA,
    kvf_checksum, kvf_geometry, kvf_hashes, kvf_namespace, kvf_plane,
};
