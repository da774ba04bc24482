//! A reader: asks where blocks are, also in storage.

use std::{sync::Arc, time::Duration};

use kvferry_proto::pb::{
    self, coordinator_client::CoordinatorClient, locations_client::LocationsClient,
};
use tokio::time::sleep;

use super::{
    counts::Kind,
    world::{Draw, RUN, World, packed},
};
use crate::{BenchError, locate::connect, workload::NAMESPACE};

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(5);

pub(super) async fn run(world: Arc<World>, number: u32) -> Result<(), BenchError> {
    let mut draw = Draw::new(world.plan.seed, 2 << 32 | u64::from(number));
    let channel = connect(&world.url).await?;
    let mut coordinator = CoordinatorClient::new(channel.clone());
    let mut locations = LocationsClient::new(channel);
    let mut turn = 0u64;
    while !world.over() {
        turn += 1;
        let blocks = world.blocks(&mut draw, RUN);
        let hashes = Some(packed(blocks.into_iter()));
        let namespace = NAMESPACE.to_owned();
        if turn.is_multiple_of(4) {
            let request = pb::FindLocationsRequest { namespace, hashes };
            locations.find_locations(request).await?;
        } else {
            let mode = match turn % 2 {
                0 => pb::LocateMode::Prefix,
                _ => pb::LocateMode::Set,
            };
            let request = pb::LocateRequest {
                namespace,
                hashes,
                mode: mode.into(),
                with_locations: true,
                ..pb::LocateRequest::default()
            };
            coordinator.locate(request).await?;
        }
        world.counts.add(Kind::Asked, RUN);
        sleep(PAUSE).await;
    }
    Ok(())
}
