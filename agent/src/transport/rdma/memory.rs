//! Local memory that READs land in: registered once, with every device, for as long as somebody has it.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{Arc, Weak},
};

use kvferry_ibverbs::{LocalRegion, RegisterError};
use kvferry_memory::{HostMemory, HugePages, MemoryError};
use parking_lot::Mutex;
use tracing::{info, warn};

use super::{
    device::{Device, DeviceError},
    gpu, numa,
};
use crate::gpu::GpuMemory;

/// Bytes of one place to put a small read: a generation read has at most 8 KiB.
pub(super) const SCRATCH_BYTES: u64 = 16 << 10;
/// How many places: small reads under way at a time; more register their own memory.
const SCRATCH_PLACES: u32 = 64;

/// Memory registered for READs to land in; a place per device, None where that device does not take it.
pub(super) struct LocalMemory {
    pub(super) regions: Vec<Option<Arc<LocalRegion>>>,
    /// Where it lies.
    pub(super) numa_node: Option<u32>,
}

struct Known {
    memory: Weak<HostMemory>,
    local: Arc<LocalMemory>,
}

/// A GPU's memory, registered or found not to be.
struct KnownGpu {
    memory: Weak<GpuMemory>,
    /// None: no device takes it, and reads into it are staged.
    local: Option<Arc<LocalMemory>>,
}

/// What is registered, and registered scratch for what is not worth it.
pub(super) struct LocalMemories {
    known: Mutex<HashMap<usize, Known>>,
    /// By the address of the `Arc`'s value, which no other has as long as the `Weak` is here.
    gpus: Mutex<HashMap<usize, KnownGpu>>,
    /// Held while a GPU's memory is registered: reads that begin at once register it once.
    registering_gpu: Mutex<()>,
    scratch: Arc<Scratch>,
}

impl LocalMemories {
    /// Devices that cannot even register the scratch leave the list, with a reason.
    pub(super) fn new(
        devices: &mut Vec<Arc<Device>>,
        reasons: &mut Vec<DeviceError>,
    ) -> Result<Self, MemoryError> {
        let bytes = SCRATCH_BYTES * u64::from(SCRATCH_PLACES);
        let mut local = LocalMemory {
            regions: Vec::new(),
            numa_node: None,
        };
        let pool = HostMemory::pool("kvferry-rdma-scratch", bytes, HugePages::Off)?;
        let memory = Arc::new(pool);
        devices.retain(
            |device| match device.cache.local(&memory, 0..memory.len()) {
                Ok(region) => {
                    local.regions.push(Some(region));
                    true
                }
                Err(error) => {
                    tracing::warn!(device = device.name(), "RDMA device not used: {error}");
                    reasons.push(error.into());
                    false
                }
            },
        );
        // Indices are places in the list, so they are given anew.
        for (index, device) in devices.iter_mut().enumerate() {
            if let Some(device) = Arc::get_mut(device) {
                device.index = index;
            }
        }
        Ok(Self {
            known: Mutex::default(),
            gpus: Mutex::default(),
            registering_gpu: Mutex::new(()),
            scratch: Arc::new(Scratch {
                memory,
                local: Arc::new(local),
                free: Mutex::new((0..SCRATCH_PLACES).collect()),
            }),
        })
    }

    /// What was registered before. Costs a look into a table.
    pub(super) fn find(&self, memory: &Arc<HostMemory>) -> Option<Arc<LocalMemory>> {
        let known = self.known.lock();
        let found = known.get(&Arc::as_ptr(memory).addr())?;
        Some(Arc::clone(&found.local))
    }

    /// Registers all of a memory with all devices. Takes time: a second for some gigabytes.
    ///
    /// # Errors
    /// The last device's reason, where none took it.
    pub(super) fn register(
        &self,
        devices: &[Arc<Device>],
        memory: &Arc<HostMemory>,
    ) -> Result<Arc<LocalMemory>, RegisterError> {
        if let Some(found) = self.find(memory) {
            return Ok(found);
        }
        let mut failure: Option<RegisterError> = None;
        let regions: Vec<_> = devices
            .iter()
            .map(|device| match device.cache.local(memory, 0..memory.len()) {
                Ok(region) => Some(region),
                Err(error) => {
                    failure = Some(error);
                    None
                }
            })
            .collect();
        if let (Some(error), true) = (failure, regions.iter().all(Option::is_none)) {
            return Err(error);
        }
        let local = Arc::new(LocalMemory {
            regions,
            numa_node: numa::node_of(memory),
        });
        let known = Known {
            memory: Arc::downgrade(memory),
            local: Arc::clone(&local),
        };
        let before = self.known.lock().insert(Arc::as_ptr(memory).addr(), known);
        drop(before); // deregisters, without the lock
        Ok(local)
    }

    /// Where READs land in a GPU's memory: None where that was not tried, Some(None) where no device takes it.
    #[allow(clippy::option_option)] // three answers, said above
    pub(super) fn find_gpu(&self, memory: &Arc<GpuMemory>) -> Option<Option<Arc<LocalMemory>>> {
        let gpus = self.gpus.lock();
        let found = gpus.get(&Arc::as_ptr(memory).addr())?;
        Some(found.local.clone())
    }

    /// Registers all of a GPU's memory with all devices, or remembers that none takes it. Takes time.
    pub(super) fn register_gpu(&self, devices: &[Arc<Device>], memory: &Arc<GpuMemory>) {
        let _one_at_a_time = self.registering_gpu.lock();
        if self.find_gpu(memory).is_some() {
            return;
        }
        let (gpu, bytes) = (memory.gpu().context().device().uuid(), memory.len());
        let local = match gpu::landing(devices, memory) {
            Ok(local) => {
                let count = local.regions.iter().flatten().count();
                info!(%gpu, bytes, devices = count, "RDMA READs land straight in this memory of the GPU");
                Some(Arc::new(local))
            }
            Err(why) => {
                warn!(%gpu, bytes, "reads into this memory of the GPU are staged through host memory: {why}");
                None
            }
        };
        let memory_known = KnownGpu {
            memory: Arc::downgrade(memory),
            local,
        };
        let address = Arc::as_ptr(memory).addr();
        self.gpus.lock().insert(address, memory_known);
    }

    /// Lets go of a GPU's memory: its region has ended.
    pub(super) fn forget_gpu(&self, devices: &[Arc<Device>], memory: &Arc<GpuMemory>) {
        let gone = self.gpus.lock().remove(&Arc::as_ptr(memory).addr());
        for device in devices {
            device.cache.forget(memory.device_memory());
        }
        drop(gone);
    }

    /// Lets go of one memory: it is not what was registered any more.
    pub(super) fn forget(&self, devices: &[Arc<Device>], memory: &Arc<HostMemory>) {
        let gone = self.known.lock().remove(&Arc::as_ptr(memory).addr());
        for device in devices {
            device.cache.forget(memory);
        }
        drop(gone);
    }

    /// Lets go of memory that only its registrations keep alive.
    pub(super) fn forget_unused(&self, devices: &[Arc<Device>]) {
        let mut unused = Vec::new();
        self.known.lock().retain(|_, known| {
            let registered = known.local.regions.iter().flatten().count();
            let used = known.memory.strong_count() > registered;
            if !used {
                unused.extend(known.memory.upgrade());
            }
            used
        });
        for memory in unused {
            devices.iter().for_each(|d| d.cache.forget(&memory));
        }
        // Registrations hold what is behind it, not the GpuMemory: nobody else has it when it is gone.
        let gone: Vec<KnownGpu> = {
            let mut gpus = self.gpus.lock();
            let gone = gpus.extract_if(|_, known| known.memory.strong_count() == 0);
            gone.map(|(_, known)| known).collect()
        };
        let regions = gone.iter().filter_map(|known| known.local.as_ref());
        let regions = regions.flat_map(|local| local.regions.iter().flatten());
        for (region, device) in regions.flat_map(|r| devices.iter().map(move |d| (r, d))) {
            device.cache.forget_region(region);
        }
    }

    /// A place for a small read, while there are any.
    pub(super) fn scratch(&self, bytes: u64) -> Option<Place> {
        if bytes > SCRATCH_BYTES {
            return None;
        }
        let number = self.scratch.free.lock().pop()?;
        Some(Place {
            scratch: Arc::clone(&self.scratch),
            number,
        })
    }
}

struct Scratch {
    memory: Arc<HostMemory>,
    local: Arc<LocalMemory>,
    free: Mutex<Vec<u32>>,
}

/// One place of the scratch; free again when dropped, so drop it only when nothing writes to it.
pub(super) struct Place {
    scratch: Arc<Scratch>,
    number: u32,
}

impl Place {
    pub(super) fn local(&self) -> &Arc<LocalMemory> {
        &self.scratch.local
    }

    pub(super) fn memory(&self) -> &Arc<HostMemory> {
        &self.scratch.memory
    }

    /// Its first `len` bytes.
    pub(super) fn range(&self, len: u64) -> Range<u64> {
        let start = u64::from(self.number) * SCRATCH_BYTES;
        start..start + len.min(SCRATCH_BYTES)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.scratch.free.lock().push(self.number);
    }
}
