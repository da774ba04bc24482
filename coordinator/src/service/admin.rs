//! Namespaces and nodes, for operators.

use kvferry_proto::{InvalidMessage, NamespaceName, NamespaceSpec, NodeId, pb};
use kvferry_security::{Access, Denied, Right};
use tonic::Status;

use super::{hub::Hub, replication, status};
use crate::{
    directory::{NamespaceInfo, NodeInfo, NodeState},
    replication::{DEFAULT_DRAIN, DrainState, DrainStatus},
};

pub(super) fn create_namespace(
    hub: &Hub,
    access: &Access,
    request: pb::CreateNamespaceRequest,
) -> Result<pb::CreateNamespaceResponse, Status> {
    let spec = request.spec.ok_or(InvalidMessage::Missing("spec"))?;
    let spec = NamespaceSpec::try_from(spec)?;
    let name = spec.name.as_str();
    // Who may publish makes it by publishing.
    if !access.may(Right::Admin, name) {
        access.must(Right::Write, name, "create the namespace")?;
    }
    let created = hub
        .update(|directory| (directory.create_namespace(&spec), Vec::new()))
        .map_err(|error| status::create_namespace(&error))?;
    if created {
        access.did("create the namespace", name);
    }
    Ok(pb::CreateNamespaceResponse {
        created,
        fingerprint: spec.layout.fingerprint().to_string(),
    })
}

pub(super) fn list_namespaces(hub: &Hub, access: &Access) -> pb::ListNamespacesResponse {
    pb::ListNamespacesResponse {
        namespaces: hub
            .read()
            .namespaces()
            .filter(|info| access.sees(info.spec.name.as_str()))
            .map(|info| namespace(&info))
            .collect(),
    }
}

pub(super) fn describe_namespace(
    hub: &Hub,
    access: &Access,
    request: &pb::DescribeNamespaceRequest,
) -> Result<pb::NamespaceInfo, Status> {
    let name = NamespaceName::new(&request.name).map_err(InvalidMessage::from)?;
    must_see(access, &name, "describe blocks")?;
    let info = hub.read().namespace(&name);
    info.map(|info| namespace(&info))
        .map_err(|error| status::namespace_unknown(&error))
}

/// Any right in a namespace is enough to know what it is; else it looks as if it were not there, and were.
pub(super) fn must_see(
    access: &Access,
    name: &NamespaceName,
    what: &'static str,
) -> Result<(), Denied> {
    match access.sees(name.as_str()) {
        true => Ok(()),
        false => access.must(Right::Read, name.as_str(), what),
    }
}

pub(super) fn delete_namespace(
    hub: &Hub,
    access: &Access,
    request: &pb::DeleteNamespaceRequest,
) -> Result<pb::DeleteNamespaceResponse, Status> {
    let name = NamespaceName::new(&request.name).map_err(InvalidMessage::from)?;
    access.must(Right::Admin, name.as_str(), "delete the namespace")?;
    access.did("delete the namespace", name.as_str());
    let outcome = hub.update(
        |directory| match directory.delete_namespace(&name, request.force) {
            Ok((blocks, effects)) => (Ok(blocks), effects),
            Err(error) => (Err(error), Vec::new()),
        },
    );
    outcome
        .map(|blocks_removed| pb::DeleteNamespaceResponse { blocks_removed })
        .map_err(|error| status::delete_namespace(&error))
}

pub(super) fn list_nodes(hub: &Hub, access: &Access) -> pb::ListNodesResponse {
    let nodes: Vec<NodeInfo> = {
        let directory = hub.read();
        // Read under the lock: no node can have been seen later.
        directory.nodes(hub.now()).collect()
    };
    pb::ListNodesResponse {
        nodes: nodes
            .into_iter()
            .map(|info| node(hub, access, info))
            .collect(),
    }
}

pub(super) fn describe_node(
    hub: &Hub,
    access: &Access,
    request: &pb::DescribeNodeRequest,
) -> Result<pb::NodeInfo, Status> {
    let name = NodeId::new(&request.node).map_err(InvalidMessage::from)?;
    let info = hub.read().node(hub.now(), &name);
    info.map(|info| node(hub, access, info))
        .map_err(|error| status::node_unknown(&error))
}

pub(super) fn drain_node(
    hub: &Hub,
    access: &Access,
    request: &pb::DrainNodeRequest,
) -> Result<pb::NodeInfo, Status> {
    let name = NodeId::new(&request.node).map_err(InvalidMessage::from)?;
    // An agent may send its own node away.
    if !access.may_be(name.as_str()) {
        access.must_everywhere(Right::Admin, "drain nodes")?;
    }
    access.did("drain", name.as_str());
    let deadline = replication::time("deadline_ms", request.deadline_ms, DEFAULT_DRAIN)?;
    let info = hub.update(|directory| {
        let drained = directory.drain_node(&name, !request.undo);
        let info = drained.and_then(|()| directory.node(hub.now(), &name));
        (info, Vec::new())
    });
    let info = info.map_err(|error| status::node_unknown(&error))?;
    hub.wants(|now, wants| match request.undo {
        true => wants.undo_drain(&name),
        false => wants.drain(&name, now + deadline),
    });
    Ok(node(hub, access, info))
}

fn namespace(info: &NamespaceInfo) -> pb::NamespaceInfo {
    pb::NamespaceInfo {
        spec: Some((&info.spec).into()),
        fingerprint: info.spec.layout.fingerprint().to_string(),
        blocks: info.blocks,
        owners: info.owners,
        bytes: info.bytes,
        regions: info.regions,
    }
}

pub(super) fn node_state(state: NodeState) -> pb::NodeState {
    match state {
        NodeState::Live => pb::NodeState::Live,
        NodeState::Hidden => pb::NodeState::Hidden,
        NodeState::Draining => pb::NodeState::Draining,
    }
}

fn drain(status: DrainStatus) -> pb::DrainStatus {
    let state = match status.state {
        DrainState::Moving => pb::drain_status::State::Moving,
        DrainState::Moved => pb::drain_status::State::Moved,
        DrainState::Expired => pb::drain_status::State::Expired,
    };
    pb::DrainStatus {
        state: state.into(),
        left: status.left,
        rounds: status.rounds,
        copied: status.copied,
        deadline_ms_left: u64::try_from(status.deadline.as_millis()).unwrap_or(u64::MAX),
    }
}

fn node(hub: &Hub, access: &Access, info: NodeInfo) -> pb::NodeInfo {
    let drained = hub.drain_status(&info.node);
    let state = node_state(info.state);
    let seen = info.regions.into_iter();
    let seen = seen.filter(|region| access.sees(region.namespace.as_str()));
    let regions = seen.map(|region| pb::NodeRegion {
        region: region.region.0,
        namespace: region.namespace.to_string(),
        slots: region.slots,
        sealed: region.sealed.into(),
    });
    pb::NodeInfo {
        node: info.node.to_string(),
        incarnation: info.incarnation.get(),
        state: state.into(),
        addresses: Some((&*info.addresses).into()),
        labels: info
            .labels
            .iter()
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect(),
        blocks: info.blocks,
        bytes: info.bytes,
        last_seen_ms_ago: u64::try_from(info.silent.as_millis()).unwrap_or(u64::MAX),
        applied_delta: info.applied_delta,
        served_bytes_per_second: info.served_bytes_per_second,
        drain: drained.map(drain),
        regions: regions.collect(),
    }
}
