//! The hot call, from a request to an answer of any kind.

use kvferry_proto::{InvalidMessage, Labels, MAX_HASHES_PER_REQUEST, NamespaceName, NodeId, pb};
use kvferry_security::{Access, Right};
use tonic::Status;

use super::{hub::Hub, parse, status, wire::Columns};
use crate::directory::{
    DEFAULT_CANDIDATES, Directory, LocateError, LocateMode, LocateQuery, Located, LocatedOwner,
};

/// As it travels.
pub(super) fn columns(
    hub: &Hub,
    access: &Access,
    request: pb::LocateRequest,
) -> Result<Columns, Status> {
    let asked = request.hashes.as_ref();
    let blocks = asked.map_or(0, |h| h.hashes.len() / (h.hash_len as usize).max(1));
    let mut columns = Columns::with_room(blocks.min(MAX_HASHES_PER_REQUEST));
    ask(access, request, draw(hub), |query| {
        hub.read().locate_into(query, &mut columns)
    })?;
    hub.metrics().located(blocks, columns.found());
    Ok(columns)
}

/// As a message.
pub(super) fn locate(
    hub: &Hub,
    access: &Access,
    request: pb::LocateRequest,
) -> Result<pb::LocateResponse, Status> {
    let mut located = Located::default();
    ask(access, request, draw(hub), |query| {
        hub.read().locate_into(query, &mut located)
    })?;
    Ok(response(located))
}

/// Answers the message from a directory, as the service does.
///
/// # Errors
/// What the caller is told.
#[allow(clippy::result_large_err)] // tonic's signature
pub fn answer(
    directory: &Directory,
    request: pb::LocateRequest,
) -> Result<pb::LocateResponse, Status> {
    let mut located = Located::default();
    ask(&Access::unrestricted(), request, 0, |query| {
        directory.locate_into(query, &mut located)
    })?;
    Ok(response(located))
}

/// Another number for every question: the clock's nanoseconds are as good as any, and shared by nobody.
fn draw(hub: &Hub) -> u64 {
    hub.now().as_nanos() as u64
}

/// The directory is locked for `find` only, not while messages are parsed and built.
#[allow(clippy::result_large_err)] // tonic's signature
fn ask(
    access: &Access,
    request: pb::LocateRequest,
    draw: u64,
    find: impl FnOnce(&LocateQuery<'_>) -> Result<(), LocateError>,
) -> Result<(), Status> {
    let mode = match request.mode() {
        pb::LocateMode::Prefix => LocateMode::Prefix,
        pb::LocateMode::Set | pb::LocateMode::Unspecified => LocateMode::Set,
    };
    let namespace = NamespaceName::new(&request.namespace).map_err(InvalidMessage::from)?;
    access.must(Right::Read, namespace.as_str(), "locate blocks")?;
    let hashes = request.hashes.ok_or(InvalidMessage::Missing("hashes"))?;
    let hashes = parse::hashes(hashes).map_err(status::message)?;
    let prefer = Labels::new(request.prefer_labels).map_err(InvalidMessage::from)?;
    let exclude = match request.exclude_node.as_str() {
        "" => None,
        name => Some(NodeId::new(name).map_err(InvalidMessage::from)?),
    };
    let query = LocateQuery {
        namespace: &namespace,
        hashes: &hashes,
        mode,
        max_candidates: match request.max_candidates {
            0 => DEFAULT_CANDIDATES,
            wanted => wanted as usize,
        },
        host_id: &request.host_id,
        prefer: &prefer,
        exclude: exclude.as_ref(),
        draw,
        locations: request.with_locations,
    };
    find(&query).map_err(|error| status::locate(&error))
}

pub(super) fn response(located: Located) -> pb::LocateResponse {
    pb::LocateResponse {
        answered: located.counts.len() as u32,
        owners: located.owners.iter().map(owner).collect(),
        candidate_counts: located.counts,
        owner_index: located.owner_index,
        slots: located.slots,
        generations: located.generations,
        checksums: located.checksums,
        locations: located.locations,
        location_blocks: located.location_blocks,
        location_index: located.location_index,
    }
}

fn owner(owner: &LocatedOwner) -> pb::LocatedRegion {
    pb::LocatedRegion {
        node: owner.node.to_string(),
        incarnation: owner.incarnation.get(),
        region: owner.region.0,
        addresses: Some((&*owner.addresses).into()),
        geometry: Some((&*owner.geometry).into()),
    }
}
