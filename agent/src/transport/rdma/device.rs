//! The devices an agent uses, opened once.

use std::{
    io,
    os::fd::AsFd,
    sync::{
        Arc, Weak,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
};

use dashmap::DashMap;
use kvferry_ibverbs::{
    AsyncEvent, CompletionChannel, CompletionQueue, Context, GidPreference, Library, LinkLayer,
    ListError, LoadError, LocalAddress, PairOptions, PortAddressError, PortState, ProtectionDomain,
    QueuePair, RegionCache, RegisterOptions, Reset,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use tokio::sync::{broadcast, oneshot};
use tracing::{info, warn};

use super::{
    config::{
        IDLE_WAIT, MAX_ANSWERING_PAIRS, MAX_REGISTRATIONS, PAIR_DEPTH, READER_COMPLETIONS,
        RdmaConfig, SIGNAL_EVERY,
    },
    link::Shared,
    memory::LocalMemories,
    poller,
};

/// Events kept for watchers that are behind; who loses some finds out by its READs.
const EVENTS_KEPT: usize = 256;

/// Why an agent has no RDMA. A reason for one line in the log, not for a failed start.
#[derive(Debug, thiserror::Error)]
pub enum NoRdma {
    /// No libibverbs.
    #[error(transparent)]
    Library(#[from] LoadError),
    /// The devices cannot be listed.
    #[error(transparent)]
    List(#[from] ListError),
    /// There is none.
    #[error("there is no RDMA device")]
    NoDevice,
    /// There are devices, and the filter leaves none.
    #[error("none of the RDMA devices ({}) is one of `nics` ({})", found.join(", "), wanted.join(", "))]
    Filtered {
        /// What is there.
        found: Vec<String>,
        /// What was asked for.
        wanted: Vec<String>,
    },
    /// There are devices, and none can be used.
    #[error("no RDMA device can be used: {}", reasons.join("; "))]
    Unusable {
        /// One per device.
        reasons: Vec<String>,
    },
}

/// What happened to a device, or to a queue pair on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DeviceEvent {
    /// Nothing goes through it any more.
    Down { device: usize },
    /// A queue pair of ours is in the error state.
    Pair { qp_num: u32 },
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
    pub(super) cache: RegionCache,
    gid: GidPreference,
    /// READs posted and not over: as long as there are any, polling is worth it.
    pub(super) in_flight: AtomicUsize,
}

impl Device {
    fn open(
        device: &kvferry_ibverbs::Device,
        index: usize,
        port: Option<u8>,
        config: &RdmaConfig,
    ) -> Result<Self, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let context = device.open().map_err(|e| text(&e))?;
        let gid = config
            .gid_index
            .map_or(GidPreference::Auto, GidPreference::Index);
        let port = choose_port(&context, port, gid)?;
        let domain = ProtectionDomain::new(&context).map_err(|e| text(&e))?;
        let channel = CompletionChannel::new(&context).map_err(|e| text(&e))?;
        let most = context.attributes().max_completions;
        let room = READER_COMPLETIONS.min(most);
        let reading = CompletionQueue::new(&context, room, Some(&channel)).map_err(|e| text(&e))?;
        let room = (MAX_ANSWERING_PAIRS * 2).min(most);
        let answering = CompletionQueue::new(&context, room, None).map_err(|e| text(&e))?;
        let options = RegisterOptions {
            relaxed_ordering: true,
        };
        Ok(Self {
            index,
            guid: device.guid(),
            port,
            cache: RegionCache::new(&domain, MAX_REGISTRATIONS, options),
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

    /// Where its queue pairs live, as the port is now.
    pub(super) fn address(&self) -> Result<LocalAddress, PortAddressError> {
        self.context.address(self.port, self.gid)
    }

    /// A queue pair to read with.
    pub(super) fn reading_pair(&self) -> Result<QueuePair<Reset>, kvferry_ibverbs::PairError> {
        let options = PairOptions {
            depth: PAIR_DEPTH,
            max_pieces: super::config::CHUNK_PIECES,
            signal_every: SIGNAL_EVERY,
        };
        QueuePair::new(&self.domain, &self.reading, options)
    }

    /// A queue pair that a peer reads with.
    pub(super) fn answering_pair(&self) -> Result<QueuePair<Reset>, kvferry_ibverbs::PairError> {
        let options = PairOptions {
            depth: 1,
            max_pieces: 1,
            signal_every: 1,
        };
        QueuePair::new(&self.domain, &self.answering, options)
    }
}

/// The port asked for; else the first that can carry traffic, else the first.
fn choose_port(context: &Context, wanted: Option<u8>, gid: GidPreference) -> Result<u8, String> {
    let ports = context.ports().map_err(|error| error.to_string())?;
    if let Some(wanted) = wanted {
        let known = ports.iter().any(|port| port.number == wanted);
        return match known {
            true => Ok(wanted),
            false => Err(format!("{} has no port {wanted}", context.name())),
        };
    }
    let usable = ports
        .iter()
        .find(|port| port.state == PortState::Active && context.address(port.number, gid).is_ok());
    usable
        .or(ports.first())
        .map(|port| port.number)
        .ok_or_else(|| format!("{} has no port", context.name()))
}

/// All devices that are used, with what links and owners share of them.
pub struct Devices {
    pub(super) config: RdmaConfig,
    pub(super) list: Vec<Arc<Device>>,
    pub(super) locals: LocalMemories,
    /// Links by the high half of their READs' tokens.
    pub(super) links: DashMap<u32, Weak<Shared>>,
    /// READs that prove a path, by the low half of their tokens; the high half is 0.
    pub(super) probes: DashMap<u32, oneshot::Sender<Result<(), kvferry_ibverbs::WorkError>>>,
    next_number: AtomicU32,
    pub(super) events: broadcast::Sender<DeviceEvent>,
}

impl Devices {
    /// Loads the library and opens the devices that the configuration leaves. Must be called on a tokio
    /// runtime.
    ///
    /// # Errors
    /// [`NoRdma`] says why there is none.
    pub fn open(config: RdmaConfig) -> Result<Arc<Self>, NoRdma> {
        let found = Library::load()?.devices()?;
        if found.is_empty() {
            return Err(NoRdma::NoDevice);
        }
        let (mut list, mut reasons) = (Vec::new(), Vec::new());
        for device in &found {
            let Some(port) = selected(&config.nics, device.name()) else {
                continue;
            };
            match Device::open(device, list.len(), port, &config) {
                Ok(device) => list.push(Arc::new(device)),
                Err(reason) => {
                    warn!(device = device.name(), "RDMA device not used: {reason}");
                    reasons.push(reason);
                }
            }
        }
        if list.is_empty() && reasons.is_empty() {
            return Err(NoRdma::Filtered {
                found: found.iter().map(|device| device.name().into()).collect(),
                wanted: config.nics,
            });
        }
        if config.nics.is_empty() {
            prefer_cards(&mut list);
        }
        let locals = LocalMemories::new(&mut list, &mut reasons);
        if list.is_empty() {
            return Err(NoRdma::Unusable { reasons });
        }
        let devices = Arc::new(Self {
            config,
            list,
            locals,
            links: DashMap::new(),
            probes: DashMap::new(),
            next_number: AtomicU32::new(1),
            events: broadcast::channel(EVENTS_KEPT).0,
        });
        for device in &devices.list {
            devices.introduce(device);
            poller::start(&devices, device);
            watch(&devices, device);
        }
        tokio::spawn(upkeep(Arc::downgrade(&devices)));
        Ok(devices)
    }

    fn introduce(&self, device: &Device) {
        let (name, port, node) = (device.name(), device.port, device.context.numa_node());
        match device.address() {
            Ok(address) => info!(
                device = name,
                port,
                gid = %address.gid,
                mtu = address.mtu.bytes(),
                numa_node = node,
                software = device.context.is_software(),
                "RDMA device ready"
            ),
            Err(error) => warn!(
                device = name,
                port, "RDMA device cannot be used now: {error}"
            ),
        }
    }

    pub(super) fn tell(&self, event: DeviceEvent) {
        // Nobody may be listening yet.
        let _ = self.events.send(event);
    }

    fn heard(&self, name: &str, index: usize, event: AsyncEvent) {
        match event {
            AsyncEvent::PortActive { port } => info!(device = name, port, "RDMA port is up"),
            AsyncEvent::PortError { port } => {
                warn!(
                    device = name,
                    port, "RDMA port is down: its peers are reached another way"
                );
                self.tell(DeviceEvent::Down { device: index });
            }
            AsyncEvent::DeviceFatal | AsyncEvent::CompletionQueueError => {
                warn!(device = name, "RDMA device failed; see the kernel's log");
                self.tell(DeviceEvent::Down { device: index });
            }
            AsyncEvent::QueuePairFatal { qp_num }
            | AsyncEvent::QueuePairRequest { qp_num }
            | AsyncEvent::QueuePairAccess { qp_num } => self.tell(DeviceEvent::Pair { qp_num }),
            other => tracing::debug!(device = name, ?other, "RDMA event"),
        }
    }

    /// Is there one among them that does not vouch for its bytes? Then links use it too, and all that comes over them is
    /// taken with checksums only.
    pub(super) fn need_checksums(&self) -> bool {
        self.list.iter().any(|device| device.context.is_software())
    }

    /// Their names, for messages to people.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.list.iter().map(|d| d.name().to_owned()).collect()
    }

    /// A number for a link or a probe. Never 0.
    pub(super) fn next_number(&self) -> u32 {
        loop {
            let number = self.next_number.fetch_add(1, Ordering::Relaxed);
            if number != 0 && !self.links.contains_key(&number) {
                return number;
            }
        }
    }

    /// The device with this index nearest to a peer's address, among those `fits` leaves: most leading bits of the
    /// GID in common.
    pub(super) fn nearest<'a>(
        candidates: impl Iterator<Item = &'a (usize, LocalAddress)>,
        gid: kvferry_ibverbs::Gid,
        layer: LinkLayer,
        load: impl Fn(usize) -> usize,
    ) -> Option<(usize, LocalAddress)> {
        candidates
            .filter(|(_, address)| {
                address.link_layer == layer
                    && (layer == LinkLayer::InfiniBand
                        || address.gid.ip().is_ipv4() == gid.ip().is_ipv4())
            })
            .max_by_key(|(index, address)| {
                let common = u128::from_be_bytes(address.gid.0) ^ u128::from_be_bytes(gid.0);
                (common.leading_zeros(), std::cmp::Reverse(load(*index)))
            })
            .copied()
    }
}

impl std::fmt::Debug for Devices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

/// Beside a card, software devices are only used where they are named: with one of them every read would need a
/// checksum.
fn prefer_cards(list: &mut Vec<Arc<Device>>) {
    if list.iter().any(|device| !device.context.is_software()) {
        list.retain(|device| {
            let card = !device.context.is_software();
            if !card {
                info!(
                    device = device.name(),
                    "RDMA device not used: it is software, and there is a card"
                );
            }
            card
        });
    }
}

/// Is the device one of `nics`? With the port that is named there.
fn selected(nics: &[String], name: &str) -> Option<Option<u8>> {
    if nics.is_empty() {
        return Some(None);
    }
    nics.iter().find_map(|nic| match nic.split_once(':') {
        None => (nic == name).then_some(None),
        Some((device, port)) => (device == name).then(|| port.parse().ok()),
    })
}

/// Starts the thread that tells links and owners what the device reports. It ends when all is dropped, or the
/// device is gone.
fn watch(devices: &Arc<Devices>, device: &Device) {
    let (all, index) = (Arc::downgrade(devices), device.index);
    let context = Arc::clone(&device.context);
    let started = std::thread::Builder::new()
        .name(format!("rdma-events-{}", device.name()))
        .spawn(move || {
            let Err(error) = tell_events(&all, &context, index) else {
                return;
            };
            warn!(device = context.name(), "RDMA device is gone: {error}");
            if let Some(all) = all.upgrade() {
                all.tell(DeviceEvent::Down { device: index });
            }
        });
    if let Err(error) = started {
        warn!(
            device = device.name(),
            "cannot watch for its events: {error}"
        );
    }
}

fn tell_events(all: &Weak<Devices>, context: &Context, index: usize) -> io::Result<()> {
    let bound = Timespec::try_from(IDLE_WAIT).ok();
    loop {
        let mut fds = [PollFd::from_borrowed_fd(context.as_fd(), PollFlags::IN)];
        match poll(&mut fds, bound.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let Some(all) = all.upgrade() else {
            return Ok(());
        };
        while let Some(event) = context.next_event()? {
            all.heard(context.name(), index, event);
        }
    }
}

/// Lets go of memory that nobody else has any more.
async fn upkeep(devices: Weak<Devices>) {
    loop {
        tokio::time::sleep(super::config::KEEPALIVE).await;
        match devices.upgrade() {
            Some(devices) => devices.locals.forget_unused(&devices.list),
            None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nics_name_devices_and_ports() {
        let nics = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(selected(&[], "mlx5_0"), Some(None));
        assert_eq!(selected(&nics(&["mlx5_1"]), "mlx5_0"), None);
        let two = nics(&["mlx5_0", "mlx5_1:2"]);
        assert_eq!(selected(&two, "mlx5_0"), Some(None));
        assert_eq!(selected(&two, "mlx5_1"), Some(Some(2)));
    }
}
