//! Locations: which blocks lie in shared storage.

use std::{sync::Arc, time::Duration};

use kvferry_proto::{
    BlockHash, InvalidMessage, Location, MAX_MESSAGE_BYTES, NamespaceName, PackedHashes,
    pb::{self, locations_server},
};
use kvferry_security::{Access, Right};
use tonic::{Request, Response, Status};

use super::{admin, compression::negotiated, hub::Hub, parse, status};
use crate::directory::{NamespacePolicy, PutLocations};

/// `kvferry.v1.Locations` over one directory.
#[derive(Debug, Clone)]
pub(crate) struct LocationsService {
    hub: Arc<Hub>,
}

impl LocationsService {
    pub(crate) fn server(hub: Arc<Hub>) -> locations_server::LocationsServer<Self> {
        let server = locations_server::LocationsServer::new(Self { hub })
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        negotiated!(server)
    }
}

#[tonic::async_trait]
impl locations_server::Locations for LocationsService {
    async fn put_locations(
        &self,
        request: Request<pb::PutLocationsRequest>,
    ) -> Result<Response<pb::PutLocationsResponse>, Status> {
        let access = self.hub.access(request.extensions());
        put(&self.hub, &access, request.into_inner()).map(Response::new)
    }

    async fn remove_locations(
        &self,
        request: Request<pb::RemoveLocationsRequest>,
    ) -> Result<Response<pb::RemoveLocationsResponse>, Status> {
        let access = self.hub.access(request.extensions());
        let request = request.into_inner();
        let (namespace, hashes) = blocks(&request.namespace, request.hashes)?;
        access.must(Right::Write, namespace.as_str(), "remove locations")?;
        let location = match request.location.as_str() {
            "" => None,
            text => Some(Location::new(text)?),
        };
        let removed = (self.hub.read()).remove_locations(&namespace, &hashes, location.as_ref());
        let removed = removed.map_err(|error| status::location(&error))?;
        Ok(Response::new(pb::RemoveLocationsResponse { removed }))
    }

    async fn find_locations(
        &self,
        request: Request<pb::FindLocationsRequest>,
    ) -> Result<Response<pb::FindLocationsResponse>, Status> {
        let access = self.hub.access(request.extensions());
        let request = request.into_inner();
        let (namespace, hashes) = blocks(&request.namespace, request.hashes)?;
        access.must(Right::Read, namespace.as_str(), "find locations")?;
        let found = self.hub.read().find_locations(&namespace, &hashes);
        let found = found.map_err(|error| status::location(&error))?;
        let location_of = found.rows.iter().map(|row| row.map_or(0, |row| row + 1));
        Ok(Response::new(pb::FindLocationsResponse {
            location_of: location_of.collect(),
            locations: found.locations.iter().map(Location::to_string).collect(),
        }))
    }

    async fn set_namespace_policy(
        &self,
        request: Request<pb::SetNamespacePolicyRequest>,
    ) -> Result<Response<pb::NamespacePolicyInfo>, Status> {
        let access = self.hub.access(request.extensions());
        let request = request.into_inner();
        let name = NamespaceName::new(&request.namespace).map_err(InvalidMessage::from)?;
        access.must(Right::Admin, name.as_str(), "set the namespace's policy")?;
        access.did("set the namespace's policy", name.as_str());
        let policy = request.policy.unwrap_or_default();
        let wish = |value: u64| (value != 0).then_some(value);
        let policy = NamespacePolicy {
            location_ttl: wish(policy.location_ttl_ms).map(Duration::from_millis),
            max_locations: wish(policy.max_locations),
            max_location_bytes: wish(policy.max_location_bytes),
            copies_wanted: (policy.copies_wanted != 0).then_some(policy.copies_wanted),
            max_slots: wish(policy.max_slots),
            max_slot_bytes: wish(policy.max_slot_bytes),
        };
        let set = self
            .hub
            .update(|directory| match directory.set_policy(&name, policy) {
                Ok(effects) => (Ok(()), effects),
                Err(error) => (Err(error), Vec::new()),
            });
        set.map_err(|error| status::namespace_unknown(&error))?;
        describe(&self.hub, &name).map(Response::new)
    }

    async fn get_namespace_policy(
        &self,
        request: Request<pb::GetNamespacePolicyRequest>,
    ) -> Result<Response<pb::NamespacePolicyInfo>, Status> {
        let name = &request.get_ref().namespace;
        let name = NamespaceName::new(name).map_err(InvalidMessage::from)?;
        let access = self.hub.access(request.extensions());
        admin::must_see(&access, &name, "see the namespace's policy")?;
        describe(&self.hub, &name).map(Response::new)
    }
}

#[allow(clippy::result_large_err)] // tonic's signature
fn put(
    hub: &Hub,
    access: &Access,
    request: pb::PutLocationsRequest,
) -> Result<pb::PutLocationsResponse, Status> {
    let (namespace, hashes) = blocks(&request.namespace, request.hashes)?;
    access.must(Right::Write, namespace.as_str(), "put locations")?;
    let location = Location::new(&request.location)?;
    let parent = match request.parent.is_empty() {
        true => None,
        false => Some(BlockHash::new(&request.parent).map_err(InvalidMessage::from)?),
    };
    let put = PutLocations {
        namespace: &namespace,
        hashes: &hashes,
        location: &location,
        chain: request.chained.then_some(parent),
        token: (request.claim_token != 0).then_some(request.claim_token),
    };
    let directory = hub.read();
    let outcome = directory.put_locations(hub.now(), &put);
    drop(directory);
    let outcome = outcome.map_err(|error| status::location(&error))?;
    Ok(pb::PutLocationsResponse {
        added: outcome.added,
        evicted: outcome.evicted,
    })
}

#[allow(clippy::result_large_err)] // tonic's signature
fn blocks(
    namespace: &str,
    hashes: Option<pb::PackedHashes>,
) -> Result<(NamespaceName, PackedHashes), Status> {
    let namespace = NamespaceName::new(namespace).map_err(InvalidMessage::from)?;
    let hashes = hashes.ok_or(InvalidMessage::Missing("hashes"))?;
    Ok((namespace, parse::hashes(hashes).map_err(status::message)?))
}

#[allow(clippy::result_large_err)] // tonic's signature
fn describe(hub: &Hub, name: &NamespaceName) -> Result<pb::NamespacePolicyInfo, Status> {
    let known = hub.read().policy(name);
    let (policy, locations) = known.map_err(|error| status::namespace_unknown(&error))?;
    let ttl = policy.location_ttl.unwrap_or_default().as_millis();
    Ok(pb::NamespacePolicyInfo {
        policy: Some(pb::NamespacePolicy {
            location_ttl_ms: u64::try_from(ttl).unwrap_or(u64::MAX),
            max_locations: policy.max_locations.unwrap_or(0),
            max_location_bytes: policy.max_location_bytes.unwrap_or(0),
            copies_wanted: policy.copies_wanted.unwrap_or(0),
            max_slots: policy.max_slots.unwrap_or(0),
            max_slot_bytes: policy.max_slot_bytes.unwrap_or(0),
        }),
        locations,
    })
}
