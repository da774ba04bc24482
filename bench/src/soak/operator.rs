//! An operator: wishes copies, drains nodes, and makes namespaces that do not last.

use std::{sync::Arc, time::Duration};

use kvferry_proto::pb::{
    self, coordinator_client::CoordinatorClient, locations_client::LocationsClient,
    replication_client::ReplicationClient, watch_client::WatchClient,
};
use tokio::time::sleep;
use tonic::transport::Channel;

use super::{
    counts::Kind,
    policy,
    world::{Draw, RUN, World, packed},
};
use crate::{
    BenchError,
    locate::connect,
    workload::{self, NAMESPACE},
};

/// Between two things it does.
const PAUSE: Duration = Duration::from_millis(50);
/// How long copies are wished for.
const WISH_TTL_MS: u32 = 2_000;

pub(super) async fn run(world: Arc<World>) -> Result<(), BenchError> {
    let channel = connect(&world.url).await?;
    let mut operator = Operator {
        draw: Draw::new(world.plan.seed, 3 << 32),
        replication: ReplicationClient::new(channel.clone()),
        coordinator: CoordinatorClient::new(channel.clone()),
        channel,
        world,
    };
    let mut turn = 0u64;
    while !operator.world.over() {
        turn += 1;
        match turn % 4 {
            0 => operator.pass_by(turn).await?,
            1 => operator.wish(2).await?,
            2 => operator.drain(turn % 8 == 6).await?,
            _ => operator.wish(0).await?,
        }
        // A namespace's own wish, for a second of every ten.
        match turn % 200 {
            20 => operator.copies(2).await?,
            40 => operator.copies(0).await?,
            _ => {}
        }
        sleep(PAUSE).await;
    }
    Ok(())
}

struct Operator {
    world: Arc<World>,
    draw: Draw,
    channel: Channel,
    replication: ReplicationClient<Channel>,
    coordinator: CoordinatorClient<Channel>,
}

impl Operator {
    /// Copies of some blocks; zero takes back a wish that was most likely never made.
    async fn wish(&mut self, copies: u32) -> Result<(), BenchError> {
        let blocks = self.world.blocks(&mut self.draw, RUN);
        let request = pb::WantCopiesRequest {
            namespace: NAMESPACE.into(),
            hashes: Some(packed(blocks.into_iter())),
            copies,
            ttl_ms: WISH_TTL_MS,
        };
        let answer = self.replication.want_copies(request).await;
        if self.world.unless_refused(answer)?.is_some() && copies > 0 {
            self.world.counts.add(Kind::Wished, RUN);
        }
        Ok(())
    }

    async fn copies(&mut self, min_copies: u32) -> Result<(), BenchError> {
        let request = pb::SetCopiesRequest {
            namespace: NAMESPACE.into(),
            min_copies,
        };
        self.replication.set_copies(request).await?;
        Ok(())
    }

    /// Drains some node that is there, or all of them no more.
    async fn drain(&mut self, undo: bool) -> Result<(), BenchError> {
        let nodes = self.coordinator.list_nodes(pb::ListNodesRequest {});
        let nodes = nodes.await?.into_inner().nodes;
        let one = self.draw.below(nodes.len().max(1) as u64) as usize;
        for (at, node) in nodes.into_iter().enumerate() {
            if !undo && at != one {
                continue;
            }
            let request = pb::DrainNodeRequest {
                node: node.node,
                undo,
                deadline_ms: 1_000,
            };
            let answer = self.coordinator.drain_node(request).await;
            if self.world.unless_refused(answer)?.is_some() && !undo {
                self.world.counts.add(Kind::Drained, 1);
            }
        }
        Ok(())
    }

    /// A namespace with a policy, locations and a watcher, from its making to its end.
    async fn pass_by(&mut self, turn: u64) -> Result<(), BenchError> {
        let name = format!("soak/passing/{turn}");
        let spec = pb::NamespaceSpec {
            name: name.clone(),
            ..workload::spec()
        };
        let request = pb::CreateNamespaceRequest { spec: Some(spec) };
        self.coordinator.create_namespace(request).await?;
        let mut locations = LocationsClient::new(self.channel.clone());
        locations.set_namespace_policy(policy(&name)).await?;
        let put = pb::PutLocationsRequest {
            namespace: name.clone(),
            hashes: Some(packed(Vec::from_iter(0..RUN).into_iter())),
            location: format!("s3://{name}"),
            ..pb::PutLocationsRequest::default()
        };
        locations.put_locations(put).await?;
        let wish = pb::WantCopiesRequest {
            namespace: name.clone(),
            hashes: Some(packed(std::iter::once(turn))),
            copies: 2,
            ttl_ms: WISH_TTL_MS,
        };
        self.replication.want_copies(wish).await?;
        let watch = pb::WatchRequest {
            namespace: name.clone(),
            ..pb::WatchRequest::default()
        };
        // Logs that linger are bounded, those of namespaces that are gone too.
        let watched = WatchClient::new(self.channel.clone()).watch(watch).await;
        let watched = self.world.unless_refused(watched)?;
        let request = pb::DeleteNamespaceRequest { name, force: true };
        self.coordinator.delete_namespace(request).await?;
        drop(watched);
        self.world.counts.add(Kind::Namespace, 1);
        Ok(())
    }
}
