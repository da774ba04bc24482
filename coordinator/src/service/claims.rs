//! Claims: who may produce or store a block.

use std::{sync::Arc, time::Duration};

use kvferry_proto::{
    Incarnation, InvalidMessage, MAX_MESSAGE_BYTES, NamespaceName, NodeId,
    pb::{self, claims_server},
};
use kvferry_security::{Access, Right};
use tonic::{Request, Response, Status};

use super::{compression::negotiated, hub::Hub, parse, status};
use crate::directory::{
    ClaimHolder, ClaimLease, ClaimOutcome, ClaimPurpose, ClaimQuery, Claimed, DEFAULT_CLAIM_TTL,
    Directory, MAX_CLAIM_TTL,
};

/// `kvferry.v1.Claims` over one directory.
#[derive(Debug, Clone)]
pub(crate) struct ClaimsService {
    hub: Arc<Hub>,
}

impl ClaimsService {
    pub(crate) fn server(hub: Arc<Hub>) -> claims_server::ClaimsServer<Self> {
        let server = claims_server::ClaimsServer::new(Self { hub })
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        negotiated!(server)
    }
}

#[tonic::async_trait]
impl claims_server::Claims for ClaimsService {
    async fn claim(
        &self,
        request: Request<pb::ClaimRequest>,
    ) -> Result<Response<pb::ClaimResponse>, Status> {
        let access = self.hub.access(request.extensions());
        claim(&self.hub, &access, request.into_inner()).map(Response::new)
    }

    async fn renew_claims(
        &self,
        request: Request<pb::RenewClaimsRequest>,
    ) -> Result<Response<pb::RenewClaimsResponse>, Status> {
        let access = self.hub.access(request.extensions());
        let pb::RenewClaimsRequest { token, ttl_ms } = request.into_inner();
        let directory = self.hub.read();
        if !is_own(&access, &directory, token) {
            return Ok(Response::new(pb::RenewClaimsResponse { claims: 0 }));
        }
        let claims = directory.renew_claims(self.hub.now(), token, ttl(ttl_ms));
        Ok(Response::new(pb::RenewClaimsResponse {
            claims: claims as u32,
        }))
    }

    async fn release_claims(
        &self,
        request: Request<pb::ReleaseClaimsRequest>,
    ) -> Result<Response<pb::ReleaseClaimsResponse>, Status> {
        let access = self.hub.access(request.extensions());
        let pb::ReleaseClaimsRequest { token, hashes } = request.into_inner();
        let hashes = hashes.filter(|hashes| !hashes.hashes.is_empty());
        let hashes = hashes.map(parse::hashes).transpose();
        let hashes = hashes.map_err(status::message)?;
        let directory = self.hub.read();
        if !is_own(&access, &directory, token) {
            return Ok(Response::new(pb::ReleaseClaimsResponse { released: 0 }));
        }
        let released = directory.release_claims(self.hub.now(), token, hashes.as_ref());
        Ok(Response::new(pb::ReleaseClaimsResponse {
            released: released as u32,
        }))
    }

    async fn list_claims(
        &self,
        request: Request<pb::ListClaimsRequest>,
    ) -> Result<Response<pb::ListClaimsResponse>, Status> {
        let namespace = match request.get_ref().namespace.as_str() {
            "" => None,
            name => Some(NamespaceName::new(name).map_err(InvalidMessage::from)?),
        };
        let access = self.hub.access(request.extensions());
        if let Some(name) = &namespace {
            access.must(Right::Read, name.as_str(), "list claims")?;
        }
        let list = {
            let directory = self.hub.read();
            let readable = |name: &NamespaceName| access.may(Right::Read, name.as_str());
            directory.list_claims_where(self.hub.now(), namespace.as_ref(), readable)
        };
        let list = list.map_err(|error| status::namespace_unknown(&error))?;
        Ok(Response::new(pb::ListClaimsResponse {
            claims: list.claims,
            leases: list.leases,
            listed: list.listed.iter().map(lease).collect(),
        }))
    }
}

#[allow(clippy::result_large_err)] // tonic's signature
fn claim(
    hub: &Hub,
    access: &Access,
    request: pb::ClaimRequest,
) -> Result<pb::ClaimResponse, Status> {
    let purpose = match request.purpose() {
        pb::ClaimPurpose::Produce | pb::ClaimPurpose::Unspecified => ClaimPurpose::Produce,
        pb::ClaimPurpose::Store => ClaimPurpose::Store,
    };
    let namespace = NamespaceName::new(&request.namespace).map_err(InvalidMessage::from)?;
    let hashes = request.hashes.ok_or(InvalidMessage::Missing("hashes"))?;
    let hashes = parse::hashes(hashes).map_err(status::message)?;
    let node = NodeId::new(&request.node).map_err(InvalidMessage::from)?;
    let incarnation = Incarnation::new(request.incarnation).map_err(InvalidMessage::from)?;
    access.must(Right::Claim, namespace.as_str(), "claim blocks")?;
    access.must_be(node.as_str(), "claim blocks")?;
    let ttl = ttl(request.ttl_ms);
    let query = ClaimQuery {
        namespace: &namespace,
        hashes: &hashes,
        node: &node,
        incarnation,
        purpose,
        ttl,
    };
    let directory = hub.read();
    let claimed = directory.claim(hub.now(), &query);
    drop(directory);
    let claimed = claimed.map_err(|error| status::claim(&error))?;
    Ok(response(claimed, ttl))
}

/// A token is a number, and no secret: another's lease is as good as none.
fn is_own(access: &Access, directory: &Directory, token: u64) -> bool {
    access.is_unrestricted()
        || directory.lease_of(token).is_some_and(|(namespace, node)| {
            access.may(Right::Claim, namespace.as_str()) && access.may_be(node.as_str())
        })
}

fn ttl(ttl_ms: u32) -> Duration {
    match ttl_ms {
        0 => DEFAULT_CLAIM_TTL,
        ms => Duration::from_millis(ms.into()).min(MAX_CLAIM_TTL),
    }
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

fn response(claimed: Claimed, ttl: Duration) -> pb::ClaimResponse {
    let mut holder_index = Vec::new();
    let state = |outcome: &ClaimOutcome| match outcome {
        ClaimOutcome::Granted => pb::ClaimState::Granted.into(),
        ClaimOutcome::Stored => pb::ClaimState::Stored.into(),
        ClaimOutcome::Claimed(holder) => {
            holder_index.push(*holder);
            pb::ClaimState::Claimed.into()
        }
    };
    let holder = |holder: ClaimHolder| pb::ClaimHolder {
        node: holder.node.to_string(),
        expires_in_ms: millis(holder.expires_in),
    };
    pb::ClaimResponse {
        states: claimed.outcomes.iter().map(state).collect(),
        token: claimed.token.unwrap_or(0),
        ttl_ms: claimed.token.map_or(0, |_| millis(ttl)),
        holders: claimed.holders.into_iter().map(holder).collect(),
        holder_index,
    }
}

fn lease(lease: &ClaimLease) -> pb::ClaimLease {
    pb::ClaimLease {
        namespace: lease.namespace.to_string(),
        node: lease.node.to_string(),
        claims: lease.claims as u32,
        expires_in_ms: millis(lease.expires_in),
    }
}
