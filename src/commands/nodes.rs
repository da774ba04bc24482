//! `kvferry nodes`: list, describe, drain.

use std::{collections::BTreeMap, time::Duration};

use kvferry_proto::pb::{self, drain_status};
use serde::Serialize;

use super::tool::ToolError;
use crate::{
    cli::{NodesAction, NodesArgs},
    client::{self, Call, Coordinator},
    failure::Done,
    output::{self, OutputError},
    size::{ByteSize, duration},
};

/// How often a drain that is waited for is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

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
    drain: Option<Drain>,
    regions: Vec<Region>,
}

/// How far a drain is.
#[derive(Debug, Serialize)]
struct Drain {
    state: &'static str,
    /// Blocks that only this node holds; None before all were looked at.
    left: Option<u64>,
    copied: u64,
    deadline_ms_left: u64,
}

impl From<&pb::DrainStatus> for Drain {
    fn from(status: &pb::DrainStatus) -> Self {
        Self {
            state: match status.state() {
                drain_status::State::Unspecified => "unknown",
                drain_status::State::Moving => "moving",
                drain_status::State::Moved => "moved",
                drain_status::State::Expired => "expired",
            },
            left: (status.rounds > 0).then_some(status.left),
            copied: status.copied,
            deadline_ms_left: status.deadline_ms_left,
        }
    }
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
            drain: info.drain.as_ref().map(Drain::from),
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
    let mut coordinator = client::coordinator(&args.reach).await?;
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
        NodesAction::Drain {
            node,
            undo,
            deadline_ms,
            wait,
        } => {
            let request = pb::DrainNodeRequest {
                node,
                undo,
                deadline_ms,
            };
            let info = Call::coordinator("drain the node", bound)
                .answer(coordinator.drain_node(request))
                .await?;
            match wait {
                true => moved(&mut coordinator, bound, info).await?,
                false => info,
            }
        }
    };
    let left = info
        .drain
        .as_ref()
        .is_some_and(|drain| drain.state() == drain_status::State::Expired);
    print_one(&Node::from(info), args.json)?;
    Ok(if left { Done::InPart } else { Done::All })
}

/// Waits until a drain is over, or the node is gone.
async fn moved(
    coordinator: &mut Coordinator,
    bound: Duration,
    mut info: pb::NodeInfo,
) -> Result<pb::NodeInfo, ToolError> {
    let moving = |info: &pb::NodeInfo| {
        let drain = info.drain.as_ref();
        drain.is_some_and(|drain| drain.state() == drain_status::State::Moving)
    };
    while moving(&info) {
        tokio::time::sleep(LOOK_AGAIN).await;
        let node = info.node.clone();
        info = Call::coordinator("describe the node", bound)
            .answer(coordinator.describe_node(pb::DescribeNodeRequest { node }))
            .await?;
    }
    Ok(info)
}

fn seen(node: &Node) -> String {
    match node.last_seen_ms_ago {
        // Finer than that the coordinator does not say.
        ms @ 0..1_000 => format!("{ms} ms ago"),
        ms => format!("{} ago", duration(Duration::from_millis(ms))),
    }
}

/// Its state, and while it is drained how far that is.
fn standing(node: &Node) -> String {
    match &node.drain {
        None => node.state.to_owned(),
        Some(drain) => {
            let left = drain.left.map(|left| format!(", {left} left"));
            let left = left.unwrap_or_default();
            format!("{} ({}{left})", node.state, drain.state)
        }
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
        let (seen, serving, state) = (seen(&node), serving(&node), standing(&node));
        [
            node.node,
            state,
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
        ("state", standing(node)),
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
