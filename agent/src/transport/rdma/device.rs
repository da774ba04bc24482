//! One device, opened.

use std::sync::{Arc, atomic::AtomicUsize};

use kvferry_ibverbs::{
    ChannelError, CompletionChannel, CompletionQueue, ConnectOptions, Context, DomainError,
    GidPreference, LocalAddress, OpenError, PairError, PairOptions, PortAddressError, PortState,
    ProtectionDomain, QueryError, QueueError, QueuePair, RegionCache, RegisterError,
    RegisterOptions, Reset,
};

use super::config::{
    CHUNK_PIECES, LANE_WINDOW_BYTES, MAX_ANSWERING_PAIRS, MAX_REGISTRATIONS, PAIR_DEPTH,
    READER_COMPLETIONS, RdmaConfig, SIGNAL_EVERY, SOFTWARE_TIMEOUT_EXPONENT, SOFTWARE_WINDOW_BYTES,
};

/// Why a device is not used. Others may be.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// It does not open: the message says what it lacks.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It does not answer.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// `nics` names a port that it does not have: choose another.
    #[error("{device} has no port {port}")]
    NoSuchPort {
        /// The device.
        device: String,
        /// The port.
        port: u8,
    },
    /// It has none at all.
    #[error("{device} has no port")]
    NoPort {
        /// The device.
        device: String,
    },
    /// It has no room: another program has it.
    #[error(transparent)]
    Domain(#[from] DomainError),
    /// As above.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// As above.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// It registers no memory, not even a little: the message says which limit to raise.
    #[error(transparent)]
    Register(#[from] RegisterError),
}

/// An open device, and the port of it that is used.
pub(super) struct Device {
    pub(super) index: usize,
    pub(super) guid: u64,
    pub(super) port: u8,
    pub(super) context: Arc<Context>,
    pub(super) domain: Arc<ProtectionDomain>,
    /// Where our READs end.
    pub(super) reading: Arc<CompletionQueue>,
    /// Of queue pairs that only answer: nothing ever arrives there.
    answering: Arc<CompletionQueue>,
    pub(super) cache: Arc<RegionCache>,
    gid: GidPreference,
    /// READs posted and not over: as long as there are any, polling is worth it.
    pub(super) in_flight: AtomicUsize,
}

impl Device {
    pub(super) fn open(
        device: &kvferry_ibverbs::Device,
        index: usize,
        port: Option<u8>,
        config: &RdmaConfig,
    ) -> Result<Self, DeviceError> {
        let context = device.open()?;
        let gid = config
            .gid_index
            .map_or(GidPreference::Auto, GidPreference::Index);
        let port = choose_port(&context, port, gid)?;
        let domain = ProtectionDomain::new(&context)?;
        let channel = CompletionChannel::new(&context)?;
        let most = context.attributes().max_completions;
        let room = READER_COMPLETIONS.min(most);
        let reading = CompletionQueue::new(&context, room, Some(&channel))?;
        let room = (MAX_ANSWERING_PAIRS * 2).min(most);
        let answering = CompletionQueue::new(&context, room, None)?;
        let options = register_options();
        Ok(Self {
            index,
            guid: device.guid(),
            port,
            cache: Arc::new(RegionCache::new(&domain, MAX_REGISTRATIONS, options)),
            context,
            domain,
            reading,
            answering,
            gid,
            in_flight: AtomicUsize::new(0),
        })
    }

    pub(super) fn name(&self) -> &str {
        self.context.name()
    }

    /// Bytes on one of its queue pairs at a time.
    pub(super) fn window_bytes(&self) -> u64 {
        match self.context.is_software() {
            true => SOFTWARE_WINDOW_BYTES,
            false => LANE_WINDOW_BYTES,
        }
    }

    /// How its queue pairs read.
    pub(super) fn connect_options(&self) -> ConnectOptions {
        let usual = ConnectOptions::default();
        match self.context.is_software() {
            true => ConnectOptions {
                timeout_exponent: SOFTWARE_TIMEOUT_EXPONENT,
                ..usual
            },
            false => usual,
        }
    }

    /// Where its queue pairs live, as the port is now.
    pub(super) fn address(&self) -> Result<LocalAddress, PortAddressError> {
        self.context.address(self.port, self.gid)
    }

    /// A queue pair to read with.
    pub(super) fn reading_pair(&self) -> Result<QueuePair<Reset>, PairError> {
        let options = PairOptions {
            depth: PAIR_DEPTH,
            max_pieces: CHUNK_PIECES,
            signal_every: SIGNAL_EVERY,
        };
        let pair = QueuePair::new(&self.domain, &self.reading, options)?;
        tracing::debug!(
            device = self.context.name(),
            qp_num = pair.qp_num(),
            depth = pair.depth(),
            inline_bytes = pair.inline_bytes(),
            "a queue pair to read with"
        );
        Ok(pair)
    }

    /// A queue pair that a peer reads with: what is registered with this domain, and nothing else.
    pub(super) fn answering_pair(
        &self,
        domain: &Arc<ProtectionDomain>,
    ) -> Result<QueuePair<Reset>, PairError> {
        let options = PairOptions {
            depth: 1,
            max_pieces: 1,
            signal_every: 1,
        };
        QueuePair::new(domain, &self.answering, options)
    }
}

/// How memory is registered.
pub(super) fn register_options() -> RegisterOptions {
    RegisterOptions {
        relaxed_ordering: true,
    }
}

/// The port asked for; else the first that can carry traffic, else the first.
fn choose_port(
    context: &Context,
    wanted: Option<u8>,
    gid: GidPreference,
) -> Result<u8, DeviceError> {
    let ports = context.ports()?;
    let device = || context.name().to_owned();
    if let Some(port) = wanted {
        return match ports.iter().any(|known| known.number == port) {
            true => Ok(port),
            false => Err(DeviceError::NoSuchPort {
                device: device(),
                port,
            }),
        };
    }
    let usable = ports
        .iter()
        .find(|port| port.state == PortState::Active && context.address(port.number, gid).is_ok());
    usable
        .or(ports.first())
        .map(|port| port.number)
        .ok_or_else(|| DeviceError::NoPort { device: device() })
}
