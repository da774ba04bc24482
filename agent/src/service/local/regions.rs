//! Registering memory.

use std::{path::Path, sync::Arc};

use kvferry_memory::{HostMemory, HugePages};
use kvferry_proto::{Geometry, InvalidMessage, NamespaceSpec, Reason, RegionId, pb, refusal};
use tonic::{Code, Status};
use tracing::{info, warn};

use super::{
    LocalApi,
    status::{IntoStatus, OrStatus},
};
use crate::{
    coordinators::CoordinatorError,
    region::{ClientId, PoolOptions, Region, RegisterError},
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
        let owner = (!keep).then_some(client);
        self.imports.admit(owner, file, &geometry, || {
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
        for region in self.imports.of_client(client) {
            // Nobody says any more what writes to it, so nobody may read it.
            self.imports.end(region);
            if let Ok(blocks) = self.store.unregister(region) {
                info!(%region, blocks, "region ended with its engine's connection");
            }
        }
        self.store
            .release_holder(crate::region::Holder::Client(client));
        self.release_claims_of(client);
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
