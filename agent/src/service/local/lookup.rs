//! Which blocks could be had, and from where?

use std::{sync::Arc, time::Duration};

use kvferry_proto::{BlockHash, InvalidMessage, NamespaceName, NamespaceSpec, PackedHashes, pb};
use tokio::time::Instant;
use tonic::Status;

use super::{
    LocalApi,
    slots::unpack,
    status::{IntoStatus, OrStatus},
};
use crate::coordinators::{CoordinatorError, LocateRequest, Located};

/// A look-up that names no timeout.
const DEFAULT_LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest one: who waits longer should pull.
const MAX_LOOKUP_TIMEOUT: Duration = Duration::from_secs(60);

impl LocalApi {
    pub(super) async fn find_blocks(
        &self,
        request: pb::LookupRequest,
    ) -> Result<pb::LookupResponse, Status> {
        let wait = match request.timeout_ms {
            0 => DEFAULT_LOOKUP_TIMEOUT,
            ms => Duration::from_millis(ms.into()).min(MAX_LOOKUP_TIMEOUT),
        };
        let deadline = Instant::now() + wait;
        let spec = self.namespace(&request.namespace, deadline).await?;
        let hashes = unpack(request.hashes, spec.hash_len)?.to_hashes();
        let local = self.store.find_many(&spec.name, &hashes);
        // What is here needs no coordinator.
        let unknown: Vec<usize> = (0..hashes.len()).filter(|i| local[*i].is_none()).collect();
        let mut places: Vec<_> = local
            .iter()
            .map(|held| match held {
                Some(_) => pb::BlockPlace::Local,
                None => pb::BlockPlace::Missing,
            })
            .collect();
        if !unknown.is_empty() {
            let asked = unknown.iter().map(|i| &hashes[*i]);
            let located = self.locate(&spec, asked, deadline).await.or_status()?;
            for (answer, index) in unknown.iter().enumerate() {
                if !located.candidates(answer).is_empty() {
                    places[*index] = pb::BlockPlace::Remote;
                }
            }
        }
        if request.prefix {
            let end = places
                .iter()
                .position(|place| *place == pb::BlockPlace::Missing);
            places.truncate(end.unwrap_or(places.len()));
        }
        Ok(pb::LookupResponse {
            places: places.into_iter().map(Into::into).collect(),
        })
    }

    /// What a namespace is: as the local regions have it, else as the coordinator does.
    pub(super) async fn namespace(
        &self,
        name: &str,
        deadline: Instant,
    ) -> Result<Arc<NamespaceSpec>, Status> {
        let name = NamespaceName::new(name).map_err(InvalidMessage::from)?;
        if let Some(spec) = self.store.namespace(&name) {
            return Ok(spec);
        }
        self.coordinators
            .describe_namespace(&name, deadline)
            .await
            .map(Arc::new)
            .map_err(IntoStatus::into_status)
    }

    /// Asks the coordinators for owners other than this node.
    pub(super) async fn locate<'a>(
        &self,
        spec: &NamespaceSpec,
        hashes: impl IntoIterator<Item = &'a BlockHash>,
        deadline: Instant,
    ) -> Result<Located, CoordinatorError> {
        let hashes = PackedHashes::pack(spec.hash_len, hashes).map_err(|error| {
            CoordinatorError::Refused {
                reason: InvalidMessage::from(error.clone()).reason(),
                message: error.to_string(),
            }
        })?;
        let request = LocateRequest {
            namespace: spec,
            hashes,
            prefix: false,
            max_candidates: self.defaults.max_candidates,
            host_id: &self.identity.addresses.host_id,
            prefer: &self.identity.labels,
            exclude: &self.identity.node,
        };
        self.coordinators.locate(request, deadline).await
    }
}
