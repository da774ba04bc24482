//! One file a target.

mod answers;
mod config;
mod coordinator_calls;
mod directory;
mod local_calls;
mod locate;
mod messages;
mod metrics_port;
mod pull_engine;
mod rdma;
mod safetensors;
mod session;
mod session_machine;
mod shm;
mod sources;
mod store;
mod tcp_frames;
mod tcp_owner;
mod tcp_reader;
mod tensors;
mod text;
mod trace;

use crate::Target;

/// All of them.
pub const TARGETS: &[Target] = &[
    answers::TARGET,
    config::TARGET,
    coordinator_calls::TARGET,
    directory::TARGET,
    local_calls::TARGET,
    locate::TARGET,
    messages::TARGET,
    metrics_port::TARGET,
    pull_engine::TARGET,
    rdma::TARGET,
    safetensors::TARGET,
    session::TARGET,
    session_machine::TARGET,
    shm::TARGET,
    sources::TARGET,
    store::TARGET,
    tcp_frames::TARGET,
    tcp_owner::TARGET,
    tcp_reader::TARGET,
    tensors::TARGET,
    text::TARGET,
    trace::TARGET,
];
