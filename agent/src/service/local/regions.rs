//! Registering memory.

use std::{collections::HashMap, path::Path, sync::Arc};

use kvferry_memory::{HostMemory, HugePages};
use kvferry_proto::{Geometry, InvalidMessage, NamespaceSpec, Reason, RegionId, pb, refusal};
use parking_lot::Mutex;
use tonic::{Code, Status};
use tracing::{info, warn};

use super::{LocalApi, status::OrStatus};
use crate::{
    coordinators::CoordinatorError,
    region::{ClientId, PoolOptions, Region, RegisterError},
};

use pb::register_region_request::Source;

/// Which connection an engine's region ends with, and which file it lies in.
#[derive(Debug)]
struct Import {
    client: Option<ClientId>,
    file: Option<(u64, u64)>,
}

/// Engines' regions. One region at a time covers a byte: two generation tables over the same memory
/// would each believe in bytes the other lets be overwritten.
#[derive(Debug, Default)]
pub(crate) struct Imports(Mutex<HashMap<RegionId, Import>>);

impl LocalApi {
    pub(super) async fn register(
        &self,
        client: ClientId,
        request: pb::RegisterRegionRequest,
    ) -> Result<pb::RegionInfo, Status> {
        let spec = NamespaceSpec::try_from(
            request
                .namespace
                .ok_or(InvalidMessage::Missing("namespace"))?,
        )?;
        let geometry = request.geometry.map(Geometry::try_from).transpose()?;
        let source = request.source.ok_or(InvalidMessage::Missing("source"))?;
        self.agree(&spec).await?;

        let api = self.clone();
        let keep = request.keep_on_disconnect;
        // Mapping and clearing memory takes as long as there is memory.
        let region = tokio::task::spawn_blocking(move || match source {
            Source::Pool(pool) => api.add_pool(spec, &pool),
            Source::Path(path) => {
                if !Path::new(&path.path).is_absolute() {
                    return Err(refusal(
                        Code::InvalidArgument,
                        Reason::InvalidArgument,
                        format!("{:?} is no absolute path", path.path),
                    ));
                }
                let memory = HostMemory::import_path(Path::new(&path.path)).or_status()?;
                api.import(client, spec, geometry, memory, keep)
            }
            Source::Deposit(deposit) => {
                let descriptor = api.deposits.take(deposit.token).ok_or_else(|| {
                    refusal(
                        Code::NotFound,
                        Reason::InvalidArgument,
                        "no descriptor lies under that token: deposit it anew, and keep the \
                         descriptor socket open until the region is registered",
                    )
                })?;
                let memory = HostMemory::import(descriptor).or_status()?;
                api.import(client, spec, geometry, memory, keep)
            }
        })
        .await
        .map_err(|_| Status::internal("registering the region failed"))??;
        info!(
            region = %region.id,
            namespace = %region.namespace.name,
            slots = region.geometry.slots(),
            bytes = region.memory.len(),
            pool = region.pool,
            "region registered"
        );
        Ok(self.describe_region(&region))
    }

    /// The namespace is what every coordinator says it is, where one can be asked.
    async fn agree(&self, spec: &NamespaceSpec) -> Result<(), Status> {
        let deadline = self.control_deadline();
        match self.coordinators.create_namespace(spec, deadline).await {
            Ok(()) => Ok(()),
            Err(error @ CoordinatorError::Unreachable { .. }) => {
                // The session tells it later; if it then refuses, the log says so.
                warn!("registering without the coordinator's word: {error}");
                Ok(())
            }
            error => error.or_status(),
        }
    }

    pub(super) fn add_pool(
        &self,
        spec: NamespaceSpec,
        pool: &pb::PoolSource,
    ) -> Result<Arc<Region>, Status> {
        let options = PoolOptions {
            bytes: if pool.bytes == 0 {
                self.defaults.pool_bytes
            } else {
                pool.bytes
            },
            hugepages: if pool.hugepages || self.defaults.hugepages {
                HugePages::Required
            } else {
                HugePages::Off
            },
            eviction: self.defaults.eviction,
        };
        self.store.add_pool(spec, options).or_status()
    }

    fn import(
        &self,
        client: ClientId,
        spec: NamespaceSpec,
        geometry: Option<Geometry>,
        memory: HostMemory,
        keep: bool,
    ) -> Result<Arc<Region>, Status> {
        let geometry = geometry.ok_or(InvalidMessage::Missing("geometry"))?;
        geometry
            .fits(&spec.layout, memory.len())
            .map_err(RegisterError::from)
            .or_status()?;
        let file = memory.file_identity().or_status()?;
        // Held until the region is entered, so that of two calls for one file one sees the other.
        let mut imports = self.imports.0.lock();
        imports.retain(|region, _| self.store.region(*region).is_some());
        for (id, import) in imports.iter() {
            let Some(other) = self.store.region(*id) else {
                continue;
            };
            if import.file == file && overlap(&other.geometry, &geometry) {
                return Err(refusal(
                    Code::AlreadyExists,
                    Reason::MemoryInUse,
                    format!(
                        "region {id} already covers this memory: unregister it first, or register \
                         other bytes of the file"
                    ),
                ));
            }
        }
        let region = self.store.import(spec, geometry, memory).or_status()?;
        let client = (!keep).then_some(client);
        imports.insert(region.id, Import { client, file });
        Ok(region)
    }

    pub(super) fn unregister(&self, region: RegionId) -> Result<u64, Status> {
        let removed = self.store.unregister(region).or_status()?;
        self.imports.0.lock().remove(&region);
        info!(%region, blocks = removed, "region unregistered");
        Ok(removed)
    }

    /// What an engine leaves behind when its connection ends.
    pub(crate) fn client_gone(&self, client: ClientId) {
        let mut imports = self.imports.0.lock();
        let orphans: Vec<_> = imports
            .iter()
            .filter(|(_, import)| import.client == Some(client))
            .map(|(region, _)| *region)
            .collect();
        for region in orphans {
            imports.remove(&region);
            // Nobody says any more what writes to it, so nobody may read it.
            if let Ok(blocks) = self.store.unregister(region) {
                info!(%region, blocks, "region ended with its engine's connection");
            }
        }
        drop(imports);
        self.store
            .release_holder(crate::region::Holder::Client(client));
    }

    pub(super) fn describe_region(&self, region: &Region) -> pb::RegionInfo {
        pb::RegionInfo {
            region: region.id.0,
            namespace: region.namespace.name.to_string(),
            fingerprint: region.namespace.layout.fingerprint().to_string(),
            geometry: Some((&region.geometry).into()),
            pool: region.pool,
            descriptor_socket: self.identity.addresses.shm.clone().unwrap_or_default(),
            incarnation: self.identity.incarnation.get(),
        }
    }
}

/// Could a byte belong to both? Judged by extents: interleaved regions count as overlapping.
fn overlap(a: &Geometry, b: &Geometry) -> bool {
    let start = |g: &Geometry| g.planes().iter().map(|plane| plane.base).min().unwrap_or(0);
    start(a) < b.end() && start(b) < a.end()
}
