//! Engines' memory: which connection a region ends with, where it lies, and which pulls may
//! still write to it.
//!
//! One region at a time covers a byte: two generation tables over the same memory would each believe
//! in bytes the other lets be overwritten. And memory is given back to its engine only when no pull
//! writes to it any more.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use kvferry_memory::MemoryError;
use kvferry_proto::{Geometry, RegionId};
use parking_lot::Mutex;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    gpu::Gpu,
    region::{ClientId, Memory, Region},
};

/// Longest wait for pulls into a region that ends. Reads are cancelled first, which every transport
/// settles soon; what takes longer is a device that does not answer.
const SETTLE_BOUND: Duration = Duration::from_secs(10);
/// How often it is looked whether they have.
const SETTLE_POLL: Duration = Duration::from_millis(2);

/// All engines' regions that are registered, or that ended and are still written to.
#[derive(Debug, Default)]
pub(crate) struct Imports(Mutex<Admitted>);

#[derive(Debug, Default)]
struct Admitted {
    regions: HashMap<RegionId, Import>,
    /// The agent stops: no more are entered.
    closed: bool,
}

#[derive(Debug)]
struct Import {
    /// None: it stays when its engine goes.
    client: Option<ClientId>,
    place: Place,
    geometry: Geometry,
    /// A GPU's memory, which its engine may not free before it is closed: registrations and copies under way hold it
    /// too.
    on_gpu: Weak<kvferry_cuda::GpuMemory>,
    /// Whose it is.
    gpu: Weak<Gpu>,
    /// Cancelled when the region ends.
    ended: CancellationToken,
    /// Held by every pull into the region, until all its reads have settled.
    written: Weak<()>,
}

/// Where an engine's memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In a file: device and inode.
    File(Option<(u64, u64)>),
    /// On a GPU. An allocation has one address in this process, however often it was opened.
    Gpu {
        /// Of the region's first byte.
        address: u64,
    },
}

impl Place {
    /// # Errors
    /// [`MemoryError::Descriptor`].
    pub(super) fn of(memory: &Memory) -> Result<Self, MemoryError> {
        Ok(match memory {
            Memory::Host(memory) => Self::File(memory.file_identity()?),
            Memory::Gpu(memory) => Self::Gpu {
                address: memory.device_memory().device_address(),
            },
        })
    }

    /// Where two places lie towards each other; None where they are apart.
    fn beside(self, other: Self) -> Option<(u64, u64)> {
        match (self, other) {
            (Self::File(one), Self::File(two)) => (one == two).then_some((0, 0)),
            (Self::Gpu { address: one }, Self::Gpu { address: two }) => Some((one, two)),
            _ => None,
        }
    }
}

/// Why memory is not entered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotAdmitted {
    /// Another region has the same bytes, or had them and is still written to.
    #[error(
        "region {region} already covers this memory: unregister it first, or register other bytes of the file"
    )]
    Covered {
        /// Which.
        region: RegionId,
    },
    /// The agent stops.
    #[error("this agent is stopping: register again with the one that comes after it")]
    Stopping,
}

/// Pulls into a region that ended have not settled.
#[derive(Debug, thiserror::Error)]
#[error(
    "reads into region {region}, or out of it on a GPU, have not settled yet: its memory must not be freed or used for anything else; unregister it again to wait on"
)]
pub(crate) struct StillWritten {
    region: RegionId,
}

/// The right of one pull to write to a region's memory.
#[derive(Debug, Clone)]
pub(super) struct Writer {
    ended: CancellationToken,
    _held: Arc<()>,
}

impl Writer {
    /// Completes when the region ends: then nothing should be written any more.
    pub(super) async fn region_ended(&self) {
        self.ended.cancelled().await;
    }
}

impl Imports {
    /// Enters the region that `register` makes of the memory, unless it is taken. `client`: whose connection
    /// it ends with.
    pub(super) fn admit<E: From<NotAdmitted>>(
        &self,
        client: Option<ClientId>,
        memory: Memory,
        place: Place,
        geometry: &Geometry,
        register: impl FnOnce(Memory) -> Result<Arc<Region>, E>,
    ) -> Result<Arc<Region>, E> {
        let (on_gpu, gpu) = match memory.gpu() {
            Some(memory) => (
                Arc::downgrade(memory.device_memory()),
                Arc::downgrade(memory.gpu()),
            ),
            None => Default::default(),
        };
        // Held until the region is entered, so that of two calls for one file one sees the other.
        let mut admitted = self.0.lock();
        if admitted.closed {
            return Err(NotAdmitted::Stopping.into());
        }
        let imports = &mut admitted.regions;
        imports.retain(|_, import| !import.is_over());
        let taken = imports
            .iter()
            .find(|(_, other)| match other.place.beside(place) {
                Some((there, here)) => overlap((there, &other.geometry), (here, geometry)),
                None => false,
            });
        if let Some((&region, _)) = taken {
            return Err(NotAdmitted::Covered { region }.into());
        }
        let region = register(memory)?;
        let import = Import {
            client,
            place,
            on_gpu,
            gpu,
            geometry: geometry.clone(),
            ended: CancellationToken::new(),
            written: Weak::new(),
        };
        imports.insert(region.id, import);
        Ok(region)
    }

    /// Lets a pull write to a region; None where the region has ended.
    pub(super) fn writer(&self, region: RegionId) -> Option<Writer> {
        let mut admitted = self.0.lock();
        let import = admitted.regions.get_mut(&region)?;
        if import.ended.is_cancelled() {
            return None;
        }
        let held = import.written.upgrade().unwrap_or_else(|| {
            let held = Arc::new(());
            import.written = Arc::downgrade(&held);
            held
        });
        Some(Writer {
            ended: import.ended.clone(),
            _held: held,
        })
    }

    /// The regions that end with a client's connection.
    pub(super) fn of_client(&self, client: ClientId) -> Vec<RegionId> {
        self.0.lock().that(|owner| owner == client)
    }

    /// Enters no more, and gives the regions that end with some client's connection.
    pub(super) fn close(&self) -> Vec<RegionId> {
        let mut admitted = self.0.lock();
        admitted.closed = true;
        admitted.that(|_| true)
    }

    /// No pull may begin to write to the region, and those that do should stop. True where it is known.
    pub(super) fn end(&self, region: RegionId) -> bool {
        let admitted = self.0.lock();
        let import = admitted.regions.get(&region);
        if let Some(import) = import {
            import.ended.cancel();
        }
        import.is_some()
    }

    /// Waits until nothing writes to a region that has ended, and a GPU's memory is closed.
    pub(super) async fn settled(&self, region: RegionId) -> Result<(), StillWritten> {
        let settled = async {
            while self.is_used(region) {
                sleep(SETTLE_POLL).await;
            }
        };
        timeout(SETTLE_BOUND, settled)
            .await
            .map_err(|_| StillWritten { region })?;
        let mut admitted = self.0.lock();
        admitted.regions.retain(|_, import| !import.is_over());
        Ok(())
    }

    fn is_used(&self, region: RegionId) -> bool {
        let admitted = self.0.lock();
        admitted.regions.get(&region).is_some_and(Import::is_used)
    }
}

impl Admitted {
    /// Regions that end with the connection of such a client.
    fn that(&self, is: impl Fn(ClientId) -> bool) -> Vec<RegionId> {
        let theirs = self.regions.iter();
        let theirs = theirs.filter(|(_, import)| import.client.is_some_and(&is));
        theirs.map(|(region, _)| *region).collect()
    }
}

impl Import {
    fn is_over(&self) -> bool {
        self.ended.is_cancelled() && !self.is_used()
    }

    fn is_used(&self) -> bool {
        // Copies that nobody waits for hold the memory until somebody looks.
        if let Some(gpu) = self.gpu.upgrade() {
            gpu.sweep();
        }
        self.written.strong_count() > 0 || self.on_gpu.strong_count() > 0
    }
}

/// Could a byte belong to both? Judged by extents: interleaved regions count as overlapping. Each counts from a place
/// of its own.
fn overlap((at_a, a): (u64, &Geometry), (at_b, b): (u64, &Geometry)) -> bool {
    let start = |g: &Geometry| g.planes().iter().map(|plane| plane.base).min().unwrap_or(0);
    let end = |at: u64, g: &Geometry| at.saturating_add(g.end());
    at_a.saturating_add(start(a)) < end(at_b, b) && at_b.saturating_add(start(b)) < end(at_a, a)
}

#[cfg(test)]
mod tests {
    use kvferry_memory::HostMemory;
    use kvferry_proto::Plane;

    use super::*;

    #[test]
    fn an_agent_that_stops_enters_nothing_more() {
        let imports = Imports::default();
        let admit = || {
            let memory = Arc::new(HostMemory::anonymous(4096).unwrap());
            let plane = Plane {
                base: 0,
                stride: 4096,
                len: 4096,
            };
            let geometry = Geometry::new(1, vec![plane]).unwrap();
            let registered = |_| {
                Err(NotAdmitted::Covered {
                    region: RegionId(7),
                })
            };
            imports.admit(
                None,
                memory.into(),
                Place::File(None),
                &geometry,
                registered,
            )
        };
        let refused = admit().unwrap_err();
        assert!(
            matches!(refused, NotAdmitted::Covered { region } if region.0 == 7),
            "asked"
        );
        assert_eq!(imports.close(), []);
        let refused = admit().unwrap_err();
        assert!(matches!(refused, NotAdmitted::Stopping), "{refused}");
    }
}
