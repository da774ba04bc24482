//! What `--announce` prints: one JSON line, once everything is bound.

use std::{net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

/// A coordinator is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CoordinatorReady {
    /// Always true: the line says so.
    pub(crate) ready: bool,
    /// Its process.
    pub(crate) pid: u32,
    /// Where agents and tools reach it.
    pub(crate) listen: SocketAddr,
    /// Where its metrics are read; null where they are off.
    pub(crate) metrics: Option<SocketAddr>,
}

/// An agent is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AgentReady {
    /// Always true: the line says so.
    pub(crate) ready: bool,
    /// Its process.
    pub(crate) pid: u32,
    /// Its name.
    pub(crate) node: String,
    /// Its gRPC peer service.
    pub(crate) peer: SocketAddr,
    /// Its TCP data plane.
    pub(crate) data: SocketAddr,
    /// Where its metrics are read; null where they are off.
    pub(crate) metrics: Option<SocketAddr>,
    /// Its local API.
    pub(crate) socket: PathBuf,
    /// Where it hands descriptors over.
    pub(crate) descriptor_socket: PathBuf,
}
