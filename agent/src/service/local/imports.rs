//! Engines' memory: which connection a region ends with, which file it lies in, and which pulls may
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

use kvferry_proto::{Geometry, RegionId};
use parking_lot::Mutex;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::region::{ClientId, Region};

/// Longest wait for pulls into a region that ends. Reads are cancelled first, which every transport
/// settles soon; what takes longer is a device that does not answer.
const SETTLE_BOUND: Duration = Duration::from_secs(10);
/// How often it is looked whether they have.
const SETTLE_POLL: Duration = Duration::from_millis(2);

/// All engines' regions that are registered, or that ended and are still written to.
#[derive(Debug, Default)]
pub(crate) struct Imports(Mutex<HashMap<RegionId, Import>>);

#[derive(Debug)]
struct Import {
    /// None: it stays when its engine goes.
    client: Option<ClientId>,
    file: Option<(u64, u64)>,
    geometry: Geometry,
    /// Cancelled when the region ends.
    ended: CancellationToken,
    /// Held by every pull into the region, until all its reads have settled.
    written: Weak<()>,
}

/// Another region has the same bytes, or had them and is still written to.
#[derive(Debug, thiserror::Error)]
#[error(
    "region {region} already covers this memory: unregister it first, or register other bytes of the file"
)]
pub(crate) struct Covered {
    region: RegionId,
}

/// Pulls into a region that ended have not settled.
#[derive(Debug, thiserror::Error)]
#[error(
    "reads into region {region} have not settled yet: its memory must not be used for anything else; unregister it again to wait on"
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
    /// Enters the region that `register` makes, unless the memory is taken. `client`: whose connection
    /// it ends with.
    pub(super) fn admit<E: From<Covered>>(
        &self,
        client: Option<ClientId>,
        file: Option<(u64, u64)>,
        geometry: &Geometry,
        register: impl FnOnce() -> Result<Arc<Region>, E>,
    ) -> Result<Arc<Region>, E> {
        // Held until the region is entered, so that of two calls for one file one sees the other.
        let mut imports = self.0.lock();
        imports.retain(|_, import| !import.is_over());
        let taken = imports
            .iter()
            .find(|(_, other)| other.file == file && overlap(&other.geometry, geometry));
        if let Some((&region, _)) = taken {
            return Err(Covered { region }.into());
        }
        let region = register()?;
        let import = Import {
            client,
            file,
            geometry: geometry.clone(),
            ended: CancellationToken::new(),
            written: Weak::new(),
        };
        imports.insert(region.id, import);
        Ok(region)
    }

    /// Lets a pull write to a region; None where the region has ended.
    pub(super) fn writer(&self, region: RegionId) -> Option<Writer> {
        let mut imports = self.0.lock();
        let import = imports.get_mut(&region)?;
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
        let imports = self.0.lock();
        imports
            .iter()
            .filter(|(_, import)| import.client == Some(client))
            .map(|(region, _)| *region)
            .collect()
    }

    /// No pull may begin to write to the region, and those that do should stop. True where it is known.
    pub(super) fn end(&self, region: RegionId) -> bool {
        let imports = self.0.lock();
        let import = imports.get(&region);
        if let Some(import) = import {
            import.ended.cancel();
        }
        import.is_some()
    }

    /// Waits until nothing writes to a region that has ended.
    pub(super) async fn settled(&self, region: RegionId) -> Result<(), StillWritten> {
        let settled = async {
            while self.is_written(region) {
                sleep(SETTLE_POLL).await;
            }
        };
        timeout(SETTLE_BOUND, settled)
            .await
            .map_err(|_| StillWritten { region })?;
        self.0.lock().retain(|_, import| !import.is_over());
        Ok(())
    }

    fn is_written(&self, region: RegionId) -> bool {
        let imports = self.0.lock();
        imports
            .get(&region)
            .is_some_and(|import| import.written.strong_count() > 0)
    }
}

impl Import {
    fn is_over(&self) -> bool {
        self.ended.is_cancelled() && self.written.strong_count() == 0
    }
}

/// Could a byte belong to both? Judged by extents: interleaved regions count as overlapping.
fn overlap(a: &Geometry, b: &Geometry) -> bool {
    let start = |g: &Geometry| g.planes().iter().map(|plane| plane.base).min().unwrap_or(0);
    start(a) < b.end() && start(b) < a.end()
}
