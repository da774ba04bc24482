//! `kvferry nodes`: list, describe, drain.

use std::{collections::BTreeMap, time::Duration};

use kvferry_proto::pb;
use serde::Serialize;

use super::tool::ToolError;
use crate::{
    cli::{NodesAction, NodesArgs},
    client::{self, Call},
    failure::Done,
    output::{self, OutputError},
    size::{ByteSize, duration},
};

/// A node, as it is printed.
#[derive(Debug, Serialize)]
struct Node {
    node: String,
    state: &'static str,
    incarnation: String,
    peer: String,
    data: String,
    host_id: String,
    labels: BTreeMap<String, String>,
    blocks: u64,
    bytes: u64,
    last_seen_ms_ago: u64,
    applied_delta: u64,
    /// What others read from it lately.
    served_bytes_per_second: u64,
    regions: Vec<Region>,
}

#[derive(Debug, Serialize)]
struct Region {
    region: u32,
    namespace: String,
    slots: u32,
    sealed: u64,
}

impl From<pb::NodeInfo> for Node {
    fn from(info: pb::NodeInfo) -> Self {
        let state = state(info.state());
        let addresses = info.addresses.unwrap_or_default();
        let region = |region: pb::NodeRegion| Region {
            region: region.region,
            namespace: region.namespace,
            slots: region.slots,
            sealed: region.sealed,
        };
        Self {
            node: info.node,
            state,
            incarnation: format!("{:x}", info.incarnation),
            peer: addresses.peer,
            data: addresses.data,
            host_id: addresses.host_id,
            labels: info.labels.into_iter().collect(),
            blocks: info.blocks,
            bytes: info.bytes,
            last_seen_ms_ago: info.last_seen_ms_ago,
            applied_delta: info.applied_delta,
            served_bytes_per_second: info.served_bytes_per_second,
            regions: info.regions.into_iter().map(region).collect(),
        }
    }
}

/// In a word.
pub(super) fn state(state: pb::NodeState) -> &'static str {
    match state {
        pb::NodeState::Unspecified => "unknown",
        pb::NodeState::Live => "live",
        pb::NodeState::Hidden => "hidden",
        pb::NodeState::Draining => "draining",
    }
}

pub(crate) async fn run(args: NodesArgs) -> Result<Done, ToolError> {
    let mut coordinator = client::coordinator(&args.reach.coordinator).await?;
    let bound = args.reach.bound();
    let info = match args.action.unwrap_or(NodesAction::List) {
        NodesAction::List => {
            let nodes = Call::coordinator("list nodes", bound)
                .answer(coordinator.list_nodes(pb::ListNodesRequest {}))
                .await?;
            let nodes = nodes.nodes.into_iter().map(Node::from).collect();
            print_list(nodes, args.json)?;
            return Ok(Done::All);
        }
        NodesAction::Describe { node } => {
            let request = pb::DescribeNodeRequest { node };
            Call::coordinator("describe the node", bound)
                .answer(coordinator.describe_node(request))
                .await?
        }
        NodesAction::Drain { node, undo } => {
            let request = pb::DrainNodeRequest { node, undo };
            Call::coordinator("drain the node", bound)
                .answer(coordinator.drain_node(request))
                .await?
        }
    };
    print_one(&Node::from(info), args.json)?;
    Ok(Done::All)
}

fn seen(node: &Node) -> String {
    match node.last_seen_ms_ago {
        // Finer than that the coordinator does not say.
        ms @ 0..1_000 => format!("{ms} ms ago"),
        ms => format!("{} ago", duration(Duration::from_millis(ms))),
    }
}

fn serving(node: &Node) -> String {
    format!("{}/s", ByteSize(node.served_bytes_per_second))
}

fn print_list(nodes: Vec<Node>, json: bool) -> Result<(), OutputError> {
    if json {
        return output::json(&nodes);
    }
    let row = |node: Node| {
        let (seen, serving) = (seen(&node), serving(&node));
        [
            node.node,
            node.state.to_owned(),
            node.blocks.to_string(),
            ByteSize(node.bytes).to_string(),
            serving,
            seen,
            node.peer,
            node.data,
        ]
    };
    output::rows(
        [
            "node", "state", "blocks", "bytes", "serves", "seen", "peer", "data",
        ],
        nodes.into_iter().map(row).collect(),
        "no node has a session with this coordinator",
    )
}

fn print_one(node: &Node, json: bool) -> Result<(), OutputError> {
    if json {
        return output::json(node);
    }
    let labels: Vec<_> = node
        .labels
        .iter()
        .map(|(k, v)| format!("{k}={v}"))
        .collect();
    output::facts([
        ("node", node.node.clone()),
        ("state", node.state.to_owned()),
        ("incarnation", node.incarnation.clone()),
        ("seen", seen(node)),
        ("peer", node.peer.clone()),
        ("data", node.data.clone()),
        ("host", node.host_id.clone()),
        ("labels", labels.join(", ")),
        ("blocks", node.blocks.to_string()),
        ("bytes", ByteSize(node.bytes).to_string()),
        ("serves", serving(node)),
        ("deltas", node.applied_delta.to_string()),
    ])?;
    let row = |region: &Region| {
        [
            region.region.to_string(),
            region.namespace.clone(),
            region.slots.to_string(),
            region.sealed.to_string(),
        ]
    };
    output::rows(
        ["region", "namespace", "slots", "sealed"],
        node.regions.iter().map(row).collect(),
        "no regions",
    )
}
