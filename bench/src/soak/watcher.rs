//! A router that comes, goes, comes back, and now and then reads nothing.

use std::{sync::Arc, time::Duration};

use kvferry_proto::{
    Reason,
    pb::{self, watch_client::WatchClient, watch_message::Message},
    reason_of,
};
use tokio::time::{Instant, sleep};
use tonic::{Status, Streaming};

use super::{
    counts::Kind,
    world::{Draw, World},
};
use crate::{BenchError, locate::connect, workload::NAMESPACE};

/// A watcher that reads nothing for so long is cut off: the coordinator waits ten seconds, once its
/// windows are full.
const STALL: Duration = Duration::from_secs(13);
/// A watch's longest time; a short soak's are shorter.
const LONGEST: Duration = Duration::from_secs(8);
/// Before it comes back.
const PAUSE: Duration = Duration::from_millis(100);

/// Where to go on: the coordinator's lifetime, and the last number.
type Place = (u64, u64);

pub(super) async fn run(world: Arc<World>, number: u32) -> Result<(), BenchError> {
    let mut draw = Draw::new(world.plan.seed, 1 << 32 | u64::from(number));
    let mut place = None;
    let mut turn = u64::from(number);
    while !world.over() {
        turn += 1;
        // Every third forgets where it was.
        place = place.filter(|_| turn % 3 != 0);
        let mut client = WatchClient::new(connect(&world.url).await?);
        let (epoch, seq) = place.unwrap_or_default();
        let request = pb::WatchRequest {
            namespace: NAMESPACE.into(),
            epoch,
            seq,
        };
        let watched = match client.watch(request).await {
            Ok(stream) => {
                let kind = match place {
                    Some(_) => Kind::WatchResumed,
                    None => Kind::Watched,
                };
                world.counts.add(kind, 1);
                let mut stream = stream.into_inner();
                if turn % 5 == 0 {
                    world.counts.add(Kind::WatchStalled, 1);
                    world.wait_until(Instant::now() + STALL).await;
                }
                let half = (world.plan.time / 6).min(LONGEST).as_millis() as u64 / 2;
                let time = Duration::from_millis(half + draw.below(half.max(1)));
                read(&world, &mut stream, &mut place, Instant::now() + time).await
            }
            Err(status) => Err(status),
        };
        if let Err(status) = watched {
            place = None;
            cut(&world, status)?;
        }
        sleep(PAUSE).await;
    }
    Ok(())
}

/// Takes everything in, for some time.
async fn read(
    world: &World,
    stream: &mut Streaming<pb::WatchMessage>,
    place: &mut Option<Place>,
    until: Instant,
) -> Result<(), Status> {
    let mut epoch = place.map_or(0, |(epoch, _)| epoch);
    loop {
        let message = tokio::select! {
            () = world.wait_until(until) => return Ok(()),
            message = stream.message() => message?,
        };
        let Some(pb::WatchMessage { seq, message }) = message else {
            return Err(Status::internal("a watch ended without a reason"));
        };
        if let Some(Message::Started(started)) = message {
            epoch = started.epoch;
        }
        if seq != 0 {
            *place = Some((epoch, seq));
        }
    }
}

/// The coordinator may end a watch, for a reason that a slow reader must expect.
fn cut(world: &World, status: Status) -> Result<(), BenchError> {
    match reason_of(&status) {
        Some(Reason::WatchTooSlow | Reason::WatchTooOld) => {
            world.counts.add(Kind::WatchCut, 1);
            Ok(())
        }
        _ => Err(status.into()),
    }
}
