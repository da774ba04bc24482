//! Registering memory.

use std::{path::Path, sync::Arc};

use kvferry_cuda::{InvalidUuid, IpcHandle};
use kvferry_memory::{HostMemory, HugePages};
use kvferry_proto::{Geometry, InvalidMessage, NamespaceSpec, Reason, RegionId, pb, refusal};
use tonic::{Code, Status};
use tracing::{error, info, warn};

use super::{
    LocalApi,
    imports::Place,
    status::{IntoStatus, OrStatus},
};
use crate::{
    coordinators::CoordinatorError,
    gpu::IpcSource,
    region::{ClientId, Memory, PoolOptions, Region, RegisterError},
};

use pb::register_region_request::Source;

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
                    return Err(invalid(format!("{:?} is no absolute path", path.path)));
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
            Source::CudaIpc(source) => {
                if keep {
                    return Err(invalid(
                        "keep_on_disconnect is not to be had for GPU memory: it is undefined what a \
                         CUDA IPC handle opens when its process has ended; register the memory \
                         anew after a restart",
                    ));
                }
                let memory = api.gpus.import(&ipc_source(&source)?).or_status()?;
                api.import(client, spec, geometry, memory, false)
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
            gpu = device_of(&region.memory),
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

    pub(super) fn import(
        &self,
        client: ClientId,
        spec: NamespaceSpec,
        geometry: Option<Geometry>,
        memory: impl Into<Memory>,
        keep: bool,
    ) -> Result<Arc<Region>, Status> {
        let memory = memory.into();
        let geometry = geometry.ok_or(InvalidMessage::Missing("geometry"))?;
        geometry
            .fits(&spec.layout, memory.len())
            .map_err(RegisterError::from)
            .or_status()?;
        let place = Place::of(&memory).or_status()?;
        let owner = (!keep).then_some(client);
        self.imports
            .admit(owner, memory, place, &geometry, |memory| {
                self.store
                    .import(spec, geometry.clone(), memory)
                    .map_err(IntoStatus::into_status)
            })
    }

    /// Ends a region. When this returns, nothing writes to its memory any more.
    pub(super) async fn unregister(&self, region: RegionId) -> Result<u64, Status> {
        let imported = self.imports.end(region);
        let removed = match self.store.unregister(region) {
            Ok(removed) => removed,
            // Ended before, by a call that did not see its reads settle.
            Err(_) if imported => 0,
            error => return error.or_status(),
        };
        if imported {
            self.imports.settled(region).await.or_status()?;
        }
        info!(%region, blocks = removed, "region unregistered");
        Ok(removed)
    }

    /// What an engine leaves behind when its connection ends.
    pub(crate) fn client_gone(&self, client: ClientId) {
        // Nobody says any more what writes to them, so nobody may read them.
        self.end_imports(self.imports.of_client(client), "its engine's connection");
        self.store
            .release_holder(crate::region::Holder::Client(client));
        self.release_claims_of(client);
    }

    /// Ends the regions of every engine that is connected, and takes no more: before their connections are ended,
    /// because an engine that has lost its agent writes to its memory as it likes.
    pub(crate) fn end_engines(&self) {
        self.end_imports(self.imports.close(), "this agent");
    }

    fn end_imports(&self, regions: Vec<RegionId>, with: &str) {
        for region in regions {
            self.imports.end(region);
            if let Ok(blocks) = self.store.unregister(region) {
                info!(%region, blocks, "region ended with {with}");
            }
        }
    }

    /// Regions on GPUs that are lost: nobody can say what their memory holds, so nobody may read it, and the
    /// directory is told. Their engines hear of it with their next call.
    pub(crate) fn end_lost_gpus(&self) {
        for region in self.store.catalog().all() {
            let Some(memory) = region.memory.gpu() else {
                continue;
            };
            let context = memory.gpu().context();
            let Some(why) = context.lost_by() else {
                continue;
            };
            self.gpus.lose(context.device().uuid());
            self.imports.end(region.id);
            if let Ok(blocks) = self.store.unregister(region.id) {
                error!(region = %region.id, blocks, "region ended: its GPU is lost to this agent: {why}");
            }
        }
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
            device_uuid: device_of(&region.memory),
        }
    }
}

fn device_of(memory: &Memory) -> String {
    let device = memory.gpu().map(|memory| memory.gpu().context().device());
    device.map_or_else(String::new, |device| device.uuid().to_string())
}

#[allow(clippy::result_large_err)] // tonic's signature
fn ipc_source(source: &pb::CudaIpcSource) -> Result<IpcSource, Status> {
    let device = source.device_uuid.parse();
    let handle = IpcHandle::try_from(&source.handle[..]);
    Ok(IpcSource {
        device: device.map_err(|error: InvalidUuid| invalid(error.to_string()))?,
        handle: handle.map_err(|error| invalid(error.to_string()))?,
        offset: source.offset,
        len: source.length,
    })
}

fn invalid(message: impl Into<String>) -> Status {
    refusal(Code::InvalidArgument, Reason::InvalidArgument, message)
}
