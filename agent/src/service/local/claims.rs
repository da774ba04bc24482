//! Claims for the engines of this host.

use std::time::Duration;

use kvferry_proto::{
    MAX_MESSAGE_BYTES, PackedHashes, Reason, pb,
    pb::local_claims_server::{LocalClaims, LocalClaimsServer},
    refusal,
};
use tonic::{Code, Request, Response, Status};

use super::{LocalApi, leases::MAX_LEASES, slots::unpack, status::OrStatus};
use crate::{region::ClientId, service::client::ClientHandle};

/// What the coordinator takes where a renewal names no time.
const DEFAULT_TTL_MS: u32 = 30_000;

impl LocalApi {
    pub(crate) fn claims_server(self) -> LocalClaimsServer<Self> {
        LocalClaimsServer::new(self)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    async fn claim(
        &self,
        client: ClientId,
        request: pb::ClaimBlocksRequest,
    ) -> Result<pb::ClaimResponse, Status> {
        let purpose = request.purpose();
        let deadline = self.control_deadline();
        let spec = self.namespace(&request.namespace, deadline).await?;
        let hashes = unpack(request.hashes, spec.hash_len)?.to_hashes();
        // Before anything is granted that nobody could release.
        if !self.leases.has_room() {
            return Err(refusal(
                Code::ResourceExhausted,
                Reason::BoundReached,
                format!("{MAX_LEASES} leases of claims are held on this host: release some"),
            ));
        }
        let local = match purpose {
            // What is in memory may lie nowhere else.
            pb::ClaimPurpose::Store => vec![None; hashes.len()],
            _ => self.store.find_many(&spec.name, &hashes),
        };
        let unknown: Vec<usize> = (0..hashes.len()).filter(|i| local[*i].is_none()).collect();
        let mut response = pb::ClaimResponse {
            states: vec![pb::ClaimState::Stored.into(); hashes.len()],
            ..pb::ClaimResponse::default()
        };
        if unknown.is_empty() {
            return Ok(response);
        }
        let asked = unknown.iter().map(|i| &hashes[*i]);
        let asked = PackedHashes::pack(spec.hash_len, asked).or_status()?;
        let wanted = pb::ClaimRequest {
            namespace: spec.name.to_string(),
            hashes: Some(asked.into()),
            node: self.identity.node.to_string(),
            incarnation: self.identity.incarnation.get(),
            ttl_ms: request.ttl_ms,
            purpose: purpose.into(),
        };
        let claimed = (self.coordinators)
            .claim(wanted, unknown.len(), deadline)
            .await
            .or_status()?;
        for (index, state) in unknown.iter().zip(&claimed.states) {
            response.states[*index] = (*state).into();
        }
        if let Some(granted) = claimed.granted {
            let client = (!request.keep_on_disconnect).then_some(client);
            self.leases.add(self.now(), granted, client);
            response.token = granted.token;
            response.ttl_ms = u32::try_from(granted.ttl.as_millis()).unwrap_or(u32::MAX);
        }
        response.holders = claimed.holders;
        response.holder_index = claimed.holder_index;
        Ok(response)
    }

    /// Gives back what a connection had claimed. Where no coordinator answers, it expires.
    pub(super) fn release_claims_of(&self, client: ClientId) {
        let left = self.leases.take_of(client);
        if left.is_empty() {
            return;
        }
        let api = self.clone();
        tokio::spawn(async move {
            let deadline = api.control_deadline();
            for granted in left {
                let released = api.coordinators.release_claims(granted, None, deadline);
                if let Err(error) = released.await {
                    tracing::warn!("claims of an engine that went expire later: {error}");
                    return;
                }
            }
        });
    }
}

#[tonic::async_trait]
impl LocalClaims for LocalApi {
    async fn claim_blocks(
        &self,
        request: Request<pb::ClaimBlocksRequest>,
    ) -> Result<Response<pb::ClaimResponse>, Status> {
        // Held to the end: a connection that goes takes with it what was granted by then.
        let client = ClientHandle::of(&request)?;
        let response = self.claim(client.id(), request.into_inner()).await?;
        Ok(Response::new(response))
    }

    async fn renew_blocks(
        &self,
        request: Request<pb::RenewClaimsRequest>,
    ) -> Result<Response<pb::RenewClaimsResponse>, Status> {
        let pb::RenewClaimsRequest { token, ttl_ms } = request.into_inner();
        let Some(granted) = self.leases.get(token) else {
            return Ok(Response::new(pb::RenewClaimsResponse { claims: 0 }));
        };
        let deadline = self.control_deadline();
        let renewed = (self.coordinators).renew_claims(granted, ttl_ms, deadline);
        let claims = renewed.await.or_status()?;
        match (claims, ttl_ms) {
            (0, _) => self.leases.remove(token),
            (_, 0) => self.renewed(token, DEFAULT_TTL_MS),
            (_, ttl_ms) => self.renewed(token, ttl_ms),
        }
        Ok(Response::new(pb::RenewClaimsResponse { claims }))
    }

    async fn release_blocks(
        &self,
        request: Request<pb::ReleaseClaimsRequest>,
    ) -> Result<Response<pb::ReleaseClaimsResponse>, Status> {
        let pb::ReleaseClaimsRequest { token, hashes } = request.into_inner();
        let Some(granted) = self.leases.get(token) else {
            return Ok(Response::new(pb::ReleaseClaimsResponse { released: 0 }));
        };
        let hashes = hashes.filter(|hashes| !hashes.hashes.is_empty());
        let all = hashes.is_none();
        let deadline = self.control_deadline();
        let released = (self.coordinators).release_claims(granted, hashes, deadline);
        let released = released.await.or_status()?;
        if all {
            self.leases.remove(token);
        }
        Ok(Response::new(pb::ReleaseClaimsResponse { released }))
    }
}

impl LocalApi {
    fn renewed(&self, token: u64, ttl_ms: u32) {
        let ttl = Duration::from_millis(ttl_ms.into());
        self.leases.renewed(self.now(), token, ttl);
    }
}
