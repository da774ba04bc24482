//! What the log says of the metrics port.

use std::net::SocketAddr;

use tracing::{info, warn};

/// Where metrics are read, and by whom they can be.
pub(crate) fn note_metrics(at: Option<SocketAddr>) {
    match at {
        None => info!("no metrics port: listen_metrics is off"),
        Some(at) if at.ip().is_loopback() => info!(metrics = %at, "metrics are served"),
        Some(at) => warn!(
            metrics = %at,
            "metrics are served beyond this host: whoever reaches the port reads counts, durations and \
             coordinators' addresses (no KV, no names of namespaces or blocks)"
        ),
    }
}
