//! One configuration, for each of the protocols that are spoken over it.

use std::sync::Arc;

use rustls::{ClientConfig, ServerConfig};

use super::data::DATA;

/// What gRPC is spoken over.
pub(super) const H2: &[u8] = b"h2";

/// A configuration that says what is to be spoken (ALPN).
pub(super) trait Speaks: Clone {
    fn protocols(&mut self) -> &mut Vec<Vec<u8>>;
}

impl Speaks for ClientConfig {
    fn protocols(&mut self) -> &mut Vec<Vec<u8>> {
        &mut self.alpn_protocols
    }
}

impl Speaks for ServerConfig {
    fn protocols(&mut self) -> &mut Vec<Vec<u8>> {
        &mut self.alpn_protocols
    }
}

/// The same, but for what is spoken over it.
#[derive(Debug)]
pub(super) struct Configs<C> {
    pub(super) grpc: Arc<C>,
    pub(super) data: Arc<C>,
}

impl<C: Speaks> From<C> for Configs<C> {
    fn from(config: C) -> Self {
        let spoken = |protocol: &[u8]| {
            let mut config = config.clone();
            *config.protocols() = vec![protocol.to_vec()];
            Arc::new(config)
        };
        Self {
            grpc: spoken(H2),
            data: spoken(DATA),
        }
    }
}
