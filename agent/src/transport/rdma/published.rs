//! What readers may read: regions and their generation words, registered with every device.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use kvferry_ibverbs::{
    DomainError, ProtectionDomain, ReadableRegion, RegionCache, RegisterError, RemoteKey,
};
use kvferry_memory::GenerationTable;
use kvferry_proto::{Incarnation, RegionId, pb};
use parking_lot::Mutex;
use tokio::sync::watch;
use tracing::{error, info};

use super::{
    config::{MAX_DESCRIBED, MAX_REGISTRATIONS},
    device::{Device, register_options},
    devices::Devices,
    gpu::{self, GpuRegisterError},
    wire::memory_message,
};
use kvferry_security::ticket::{Refusal, Scope};

use crate::region::{Memory, Region, RegionCatalog};

/// Why regions are not described.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PublishError {
    /// Keys are told to readers with a session: connect first.
    #[error("there is no such RDMA session")]
    NoSession,
    /// A request that cannot be.
    #[error("more than {MAX_DESCRIBED} regions in one request")]
    TooMany,
}

/// Why there is nothing to prove a path with: readers cannot use that device.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum NoProbe {
    /// No memory for it.
    #[error("the owner has no memory to prove a path with")]
    NoMemory,
    /// The device does not take it: the message says which limit to raise.
    #[error(transparent)]
    Register(Arc<RegisterError>),
}

/// A region's registrations; a place per device, None where that device did not take it.
struct Registered {
    region: Arc<Region>,
    devices: Vec<Option<(Arc<ReadableRegion>, Arc<ReadableRegion>)>>,
}

/// Where readers of one kind are let in: a protection domain of each device, with what is registered there. A key of
/// one domain opens nothing to a queue pair of another.
struct Room {
    domain: Arc<ProtectionDomain>,
    cache: Arc<RegionCache>,
}

/// The registrations of a catalogue's regions, those of all namespaces or of some.
pub(super) struct Published {
    devices: Arc<Devices>,
    catalog: Arc<RegionCatalog>,
    /// Regions of which namespaces; None: of all.
    scopes: Option<Vec<Scope>>,
    /// One per device.
    rooms: Vec<Room>,
    regions: Mutex<HashMap<RegionId, Arc<Registered>>>,
    /// Held while something is registered, so that nothing is twice.
    registering: Mutex<()>,
    /// Holds the incarnation: what readers prove their paths with.
    _probe: Option<GenerationTable>,
    probes: Vec<Result<Arc<ReadableRegion>, NoProbe>>,
}

impl Published {
    /// Of all namespaces, in the devices' own domains.
    pub(super) fn new(devices: &Arc<Devices>, catalog: &Arc<RegionCatalog>) -> Self {
        let rooms = devices.list.iter().map(|device| Room {
            domain: Arc::clone(&device.domain),
            cache: Arc::clone(&device.cache),
        });
        Self::within(devices, catalog, None, rooms.collect())
    }

    /// Of these namespaces, in domains of their own.
    pub(super) fn apart(
        devices: &Arc<Devices>,
        catalog: &Arc<RegionCatalog>,
        scopes: Vec<Scope>,
    ) -> Result<Self, DomainError> {
        let room = |device: &Arc<Device>| {
            let domain = ProtectionDomain::new(&device.context)?;
            let cache = RegionCache::new(&domain, MAX_REGISTRATIONS, register_options());
            Ok(Room {
                domain,
                cache: Arc::new(cache),
            })
        };
        let rooms = devices.list.iter().map(room).collect::<Result<_, _>>()?;
        Ok(Self::within(devices, catalog, Some(scopes), rooms))
    }

    fn within(
        devices: &Arc<Devices>,
        catalog: &Arc<RegionCatalog>,
        scopes: Option<Vec<Scope>>,
        rooms: Vec<Room>,
    ) -> Self {
        // Only this process maps it for writing.
        let word = catalog.incarnation().get().to_le_bytes();
        let probe = GenerationTable::new(1).ok();
        let probe = probe.filter(|table| table.memory().write_at(0, &word).is_ok());
        let register = |room: &Room| {
            let memory = probe.as_ref().ok_or(NoProbe::NoMemory)?.memory();
            let registered = room.cache.readable(memory, 0..memory.len());
            registered.map_err(|error| NoProbe::Register(Arc::new(error)))
        };
        let probes = rooms.iter().map(register).collect();
        Self {
            devices: Arc::clone(devices),
            catalog: Arc::clone(catalog),
            scopes,
            rooms,
            regions: Mutex::default(),
            registering: Mutex::new(()),
            probes,
            _probe: probe,
        }
    }

    pub(super) fn incarnation(&self) -> Incarnation {
        self.catalog.incarnation()
    }

    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.catalog.changes()
    }

    /// The domain of a device that readers of these regions are connected in.
    pub(super) fn domain(&self, device: usize) -> Option<&Arc<ProtectionDomain>> {
        self.rooms.get(device).map(|room| &room.domain)
    }

    /// Are these regions those of these scopes? `None`: of all.
    pub(super) fn is_of(&self, scopes: Option<&[Scope]>) -> bool {
        self.scopes.as_deref() == scopes
    }

    fn covers(&self, region: &Region) -> bool {
        let name = &region.namespace.name;
        let scopes = self.scopes.as_ref();
        scopes.is_none_or(|scopes| scopes.iter().any(|scope| scope.covers(name)))
    }

    /// Eight bytes that hold the incarnation, as a device knows them.
    pub(super) fn probe(&self, device: usize) -> Result<RemoteKey, NoProbe> {
        match self.probes.get(device) {
            Some(Ok(region)) => Ok(region.key()),
            Some(Err(why)) => Err(why.clone()),
            None => Err(NoProbe::NoMemory),
        }
    }

    /// Registers what the catalogue has, and lets go of what it has not any more. Takes time.
    pub(super) fn sync(&self) {
        let there = self.catalog.all();
        for region in there.iter().filter(|region| self.covers(region)) {
            self.registered(region);
        }
        let there: HashSet<RegionId> = self.catalog.all().iter().map(|r| r.id).collect();
        let gone: Vec<Arc<Registered>> = {
            let mut regions = self.regions.lock();
            let gone = regions.extract_if(|id, _| !there.contains(id));
            gone.map(|(_, region)| region).collect()
        };
        for registered in gone {
            let devices = &self.devices.list;
            if let Memory::Gpu(memory) = &registered.region.memory {
                // Its engine waits for it.
                self.devices.locals.forget_gpu(devices, memory);
            }
            for room in &self.rooms {
                match &registered.region.memory {
                    Memory::Host(memory) => room.cache.forget(memory),
                    Memory::Gpu(memory) => room.cache.forget(memory.device_memory()),
                }
                room.cache.forget(registered.region.generations.memory());
            }
        }
    }

    /// A region as readers are told of it; registers it where that has not happened.
    pub(super) fn describe(&self, id: RegionId) -> Result<pb::RdmaRegion, PublishError> {
        let mut message = pb::RdmaRegion {
            region: id.0,
            ..Default::default()
        };
        let Some(region) = self.catalog.get(id) else {
            return Ok(message);
        };
        if !self.covers(&region) {
            message.refused = Refusal::OtherNamespace.code().into();
            return Ok(message);
        }
        message.exists = true;
        let registered = self.registered(&region);
        for (device, keys) in registered.devices.iter().enumerate() {
            if let Some((data, words)) = keys {
                message.keys.push(pb::RdmaKeys {
                    device: u32::try_from(device).unwrap_or(u32::MAX),
                    data: Some(memory_message(data.key())),
                    generations: Some(memory_message(words.key())),
                });
            }
        }
        Ok(message)
    }

    fn registered(&self, region: &Arc<Region>) -> Arc<Registered> {
        let known = || self.regions.lock().get(&region.id).map(Arc::clone);
        if let Some(known) = known() {
            return known;
        }
        let _one_at_a_time = self.registering.lock();
        if let Some(known) = known() {
            return known;
        }
        let registered = Arc::new(Registered {
            devices: self.register(region),
            region: Arc::clone(region),
        });
        self.regions
            .lock()
            .insert(region.id, Arc::clone(&registered));
        registered
    }

    fn register(&self, region: &Region) -> Vec<Option<(Arc<ReadableRegion>, Arc<ReadableRegion>)>> {
        let memory = &region.memory;
        let words = region.generations.memory();
        let devices = self.devices.list.iter().zip(&self.rooms);
        let registered: Vec<_> = devices
            .map(|(device, room)| {
                let data = match memory {
                    Memory::Host(memory) => room
                        .cache
                        .readable(memory, 0..memory.len())
                        .map_err(Into::into),
                    Memory::Gpu(memory) => {
                        gpu::readable(device, (&room.domain, &room.cache), memory)
                    }
                };
                let both =
                    data.and_then(|data| Ok((data, room.cache.readable(words, 0..words.len())?)));
                both.map_err(|error: GpuRegisterError| error!(region = %region.id, "{error}"))
                    .ok()
            })
            .collect();
        let count = registered.iter().flatten().count();
        let bytes = memory.len();
        let id = region.id;
        if count > 0 {
            info!(region = %id, bytes, devices = count, "region readable by RDMA");
        } else {
            error!(region = %id, bytes, "no RDMA device registers the region: it is served by TCP and shared memory only");
        }
        registered
    }
}
