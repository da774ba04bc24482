//! The devices an agent uses, opened once.

use std::sync::{
    Arc, Weak,
    atomic::{AtomicU32, Ordering},
};

use dashmap::DashMap;
use kvferry_ibverbs::{Library, LinkLayer, ListError, LoadError, LocalAddress};
use kvferry_memory::MemoryError;
use tokio::sync::{broadcast, oneshot};
use tracing::{info, warn};

use super::{
    config::{RdmaConfig, SWEEP_EVERY},
    device::{Device, DeviceError},
    events::{self, DeviceEvent, EVENTS_KEPT},
    link::Shared,
    memory::LocalMemories,
    poller,
};

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
    #[error("no RDMA device can be used: {}", told(reasons))]
    Unusable {
        /// One per device.
        reasons: Vec<DeviceError>,
    },
    /// There is no memory for small reads.
    #[error("no memory for RDMA: {0}")]
    Scratch(#[from] MemoryError),
}

/// Several things, for people.
pub(super) fn told(things: &[impl std::fmt::Display]) -> String {
    let words: Vec<String> = things.iter().map(ToString::to_string).collect();
    words.join("; ")
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
        let locals = LocalMemories::new(&mut list, &mut reasons)?;
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
            events::watch(&devices, device);
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

/// Lets go of memory that nobody else has any more.
async fn upkeep(devices: Weak<Devices>) {
    loop {
        tokio::time::sleep(SWEEP_EVERY).await;
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
