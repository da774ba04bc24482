//! Sets of tensors: published, found, and brought here.

mod publish;
mod pull;
mod set;
mod sources;
mod texts;
mod words;

use kvferry_client::Failure;

pub use publish::{kvf_publication, kvf_tensors_publish, kvf_tensors_withdraw};
pub use pull::{
    kvf_landed, kvf_landed_at, kvf_landed_free, kvf_landed_tensor, kvf_tensor_request,
    kvf_tensor_summary, kvf_tensors_pull,
};
pub use set::{kvf_source_tensors, kvf_tensor_set, kvf_tensors, kvf_tensors_at, kvf_tensors_free};
pub use sources::{
    KVF_MAX_SOURCES, kvf_source_remove, kvf_source_status, kvf_source_summary, kvf_sources,
    kvf_sources_at, kvf_sources_free, kvf_sources_list, kvf_worker, kvf_workers, kvf_workers_at,
    kvf_workers_free,
};
pub use words::{
    KVF_MAX_TENSORS, kvf_attribute, kvf_chunk_run, kvf_digest, kvf_source, kvf_source_cause,
    kvf_source_id, kvf_source_state, kvf_tensor,
};

fn beyond(index: usize, count: usize) -> Failure {
    Failure::invalid(format!("there is no {index} among {count}"))
}
