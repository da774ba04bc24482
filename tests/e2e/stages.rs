//! Pulls in stages: an engine hears of a block's first planes before its last ones have come, and of nothing that is not there.

#[allow(dead_code, unreachable_pub)] // Of the conformance suite, which does more with it.
#[path = "../conformance/proxy.rs"]
mod proxy;

use std::{net::SocketAddr, time::Duration};

use kvferry_proto::pb::{self, OutcomeKind, pull_request::Destination};
use proxy::Proxy;
use tokio::time::{sleep, timeout};
use tonic::{Code, Status, Streaming};

use crate::{
    cluster::{Cluster, eventually, pack},
    engine::{Engine, Memory, PLANE_BYTES, PLANES, block, hashes, namespace},
};

const TIMEOUT: Duration = Duration::from_secs(60);
/// Planes of each stage.
const STAGES: [u32; 3] = [1, 1, 2];
/// Blocks of a pull, into slots from this one on.
const BLOCKS: u64 = 3;
const FIRST_SLOT: u32 = 4;
/// Lets the first stage through, and not all of the second.
const ONE_STAGE_AND_A_HALF: u64 = BLOCKS * PLANE_BYTES * 3 / 2;
/// Of a request for a stage of one plane of neighbouring blocks, with their words: its head, and where each of the two lies.
const STAGE_REQUEST: u64 = 8 + 2 * 24;
/// A reader with one connection, on which answers follow each other, that takes no pause for a stall.
const READER: [&str; 6] = [
    "--transport",
    "tcp",
    "--tcp-connections-per-peer",
    "1",
    "--stall-bound-ms",
    "60000",
];

fn spec(checksum: pb::ChecksumPolicy) -> pb::NamespaceSpec {
    pb::NamespaceSpec {
        checksum: checksum.into(),
        ..namespace("n")
    }
}

/// A pull in stages, and what was heard of it.
struct Staged {
    events: Streaming<pb::PullEvent>,
    /// Per block.
    outcomes: Vec<Option<OutcomeKind>>,
    stages: u32,
    ended: bool,
}

impl Staged {
    async fn start(engine: &Engine, to: &Memory, blocks: u64) -> Self {
        let slots = (FIRST_SLOT..).take(blocks as usize).collect();
        let destination = Destination::Slots(pb::SlotDestination {
            region: to.region,
            slots,
        });
        let asked = ask(engine, blocks, destination, &STAGES).await;
        Self {
            events: asked.expect("the pull begins"),
            outcomes: vec![None; blocks as usize],
            stages: 0,
            ended: false,
        }
    }

    /// The next event; whatever it says must be true in the destination by now.
    async fn next(&mut self, to: &Memory) {
        let event = self.events.message().await.expect("the pull goes on");
        let Some(event) = event else {
            self.ended = true;
            assert_eq!(self.stages as usize, STAGES.len());
            return assert!(self.outcomes.iter().all(Option::is_some));
        };
        assert!(event.stages_landed >= self.stages, "it never lowers");
        self.stages = event.stages_landed;
        for outcome in event.outcomes {
            let told = self.outcomes[outcome.index as usize].replace(outcome.kind());
            assert_eq!(told, None, "two outcomes for one block");
        }
        for (n, outcome) in (0..).zip(&self.outcomes) {
            let planes = match outcome {
                None => STAGES[..self.stages as usize].iter().sum(),
                Some(OutcomeKind::Pulled | OutcomeKind::Local) => PLANES,
                Some(_) => 0,
            };
            let bytes = u64::from(planes) * PLANE_BYTES;
            let there = to.read(FIRST_SLOT + n);
            assert!(
                there[..bytes as usize] == block(u64::from(n))[..bytes as usize],
                "block {n} is not there as far as was told"
            );
        }
    }

    async fn until(&mut self, stage: u32, to: &Memory) {
        while self.stages < stage {
            assert!(!self.ended);
            self.next(to).await;
        }
    }

    async fn end(mut self, to: &Memory) -> Vec<OutcomeKind> {
        while !self.ended {
            self.next(to).await;
        }
        self.outcomes.into_iter().flatten().collect()
    }
}

async fn ask(
    engine: &Engine,
    blocks: u64,
    destination: Destination,
    stages: &[u32],
) -> Result<Streaming<pb::PullEvent>, Status> {
    let request = pb::PullRequest {
        namespace: "n".into(),
        hashes: Some(pack(&hashes(0..blocks))),
        timeout_ms: TIMEOUT.as_millis() as u32,
        destination: Some(destination),
        stages: stages.to_vec(),
        ..pb::PullRequest::default()
    };
    let events = engine.clone().api.pull(request).await?;
    Ok(events.into_inner())
}

/// An owner of the blocks and one more, that is reached at an address of its own, where somebody stands in between.
async fn owner(cluster: &mut Cluster, name: &str, host: &str) -> (Engine, Memory, Proxy) {
    let flags = ["--advertise-host", host, "--transport", "tcp"];
    let engine = cluster.agent(name, &flags).await;
    let real = cluster.agent_data_address(name);
    let listen = SocketAddr::new(host.parse().unwrap(), real.port());
    let proxy = Proxy::start_at(listen, real).await;
    let memory = engine.region(spec(pb::ChecksumPolicy::Off), 16).await;
    engine.publish(&memory, 0, 0..BLOCKS).await;
    (engine, memory, proxy)
}

/// A pull whose first stage has landed and whose second is held up by what stands in between.
struct HeldUp {
    /// Its regions go with it.
    owner: (Engine, Memory),
    proxy: Proxy,
    reader: Engine,
    to: Memory,
    pull: Staged,
}

/// Of the blocks of an owner "a" that was not there before.
async fn held_up(cluster: &mut Cluster) -> HeldUp {
    held_up_by(cluster, |proxy| proxy.allow(ONE_STAGE_AND_A_HALF)).await
}

async fn held_up_by(cluster: &mut Cluster, hold: impl FnOnce(&Proxy)) -> HeldUp {
    let (engine, memory, proxy) = owner(cluster, "a", "127.0.0.2").await;
    let reader = cluster.agent("b", &READER).await;
    let to = reader.region(spec(pb::ChecksumPolicy::Off), 16).await;
    // One more block, so that there is a link.
    engine.publish(&memory, 9, 9..10).await;
    let outcomes = reader.pull("n", &[9], Some(&to), TIMEOUT).await.unwrap();
    assert_eq!(outcomes[0].kind(), OutcomeKind::Pulled);
    hold(&proxy);
    let mut pull = Staged::start(&reader, &to, BLOCKS).await;
    pull.until(1, &to).await;
    HeldUp {
        owner: (engine, memory),
        proxy,
        reader,
        to,
        pull,
    }
}

#[tokio::test]
async fn a_stage_is_told_while_the_next_is_held_up() {
    let mut cluster = Cluster::start().await;
    let held_up = held_up(&mut cluster).await;
    let (b, to, mut pull) = (held_up.reader, held_up.to, held_up.pull);
    // Nothing more is told but that it is under way.
    let more = async {
        while pull.stages == 1 {
            pull.next(&to).await;
        }
    };
    assert!(timeout(Duration::from_millis(300), more).await.is_err());
    assert!(pull.outcomes.iter().all(Option::is_none));
    assert_eq!(b.stats().await.reservations, BLOCKS);
    held_up.proxy.allow(u64::MAX);
    assert_eq!(pull.end(&to).await, [OutcomeKind::Pulled; BLOCKS as usize]);
    assert_eq!(b.stats().await.bytes_pulled, (BLOCKS + 1) * 4 * PLANE_BYTES);
}

#[tokio::test]
async fn an_owner_that_goes_between_stages_is_replaced_by_another() {
    let mut cluster = Cluster::start().await;
    let held_up = held_up(&mut cluster).await;
    // It is found when the first one's link is lost, and with it the only owner that was known.
    let c = cluster.agent("c", &["--transport", "tcp"]).await;
    let memory = c.region(spec(pb::ChecksumPolicy::Off), 16).await;
    c.publish(&memory, 0, 0..BLOCKS).await;
    cluster.take_agent("a").kill().await;
    held_up.proxy.cut();
    let outcomes = held_up.pull.end(&held_up.to).await;
    assert_eq!(outcomes, [OutcomeKind::Pulled; BLOCKS as usize]);
}

/// What is held back is what the reader asks for, so that the owner looks at its words after it has overwritten.
#[tokio::test]
async fn a_block_that_its_owner_overwrites_between_stages_is_stale_and_the_others_come() {
    let mut cluster = Cluster::start().await;
    let held_up = held_up_by(&mut cluster, |proxy| proxy.allow_requests(STAGE_REQUEST)).await;
    let (b, to, mut pull) = (held_up.reader, held_up.to, held_up.pull);
    let (a, from) = &held_up.owner;
    assert_eq!(pull.stages, 1);
    // The first is being written, the second is another block by now.
    let reserve = pb::ReserveRequest {
        region: from.region,
        count: 0,
        slots: vec![0],
    };
    a.api.clone().reserve(reserve).await.unwrap();
    from.write(0, &block(50));
    a.publish(from, 1, 51..52).await;
    held_up.proxy.allow_requests(u64::MAX);
    pull.until(3, &to).await;
    use OutcomeKind::{Pulled, Stale};
    assert_eq!(pull.end(&to).await, [Stale, Stale, Pulled]);
    let stats = b.stats().await;
    // The one before the test, and the third.
    assert_eq!((stats.reservations, stats.blocks_pulled), (0, 2));
    assert_eq!(stats.bytes_pulled, 2 * 4 * PLANE_BYTES);
}

#[tokio::test]
async fn a_pull_given_up_between_stages_leaves_its_slots_to_the_engine() {
    let mut cluster = Cluster::start().await;
    let held_up = held_up(&mut cluster).await;
    let (mut b, to) = (held_up.reader, held_up.to);
    drop(held_up.pull);

    let slots: Vec<u32> = (FIRST_SLOT..).take(BLOCKS as usize).collect();
    let reserve = pb::ReserveRequest {
        region: to.region,
        count: 0,
        slots: slots.clone(),
    };
    eventually("the slots are free", || {
        let (mut api, reserve) = (b.api.clone(), reserve.clone());
        async move { api.reserve(reserve).await.is_ok() }
    })
    .await;
    let ours = block(77);
    slots.iter().for_each(|slot| to.write(*slot, &ours));
    held_up.proxy.allow(u64::MAX);
    sleep(Duration::from_millis(200)).await;
    assert!(slots.iter().all(|slot| to.read(*slot) == ours));
    b.api
        .abort(pb::AbortRequest {
            region: to.region,
            slots,
        })
        .await
        .unwrap();
    // And they can be pulled into.
    let pull = Staged::start(&b, &to, BLOCKS).await;
    assert_eq!(pull.end(&to).await, [OutcomeKind::Pulled; BLOCKS as usize]);
}

/// By every transport, and whatever part of the blocks has checksums. What is local already is copied.
#[tokio::test]
async fn what_is_told_is_there_and_what_is_to_be_verified_comes_whole() {
    const MANY: u64 = 40;
    use pb::ChecksumPolicy::{Always, Off, Sampled};
    for policy in [Off, Sampled, Always] {
        let mut cluster = Cluster::start().await;
        let a = cluster.agent("a", &[]).await;
        let from = a.region(spec(policy), 64).await;
        a.publish(&from, 0, 0..MANY).await;
        for (name, transport) in [("b", "tcp"), ("c", "shm")] {
            let reader = cluster.agent(name, &["--transport", transport]).await;
            let to = reader.region(spec(policy), 64).await;
            // A few are here already.
            let here = reader.region(spec(policy), 4).await;
            reader.publish(&here, 0, 0..2).await;
            let mut pull = Staged::start(&reader, &to, MANY).await;
            while !pull.ended {
                pull.next(&to).await;
                let open = pull.outcomes.iter().any(Option::is_none);
                assert!(policy != Always || pull.stages == 0 || !open);
            }
            let mut expected = vec![OutcomeKind::Pulled; MANY as usize];
            expected[..2].fill(OutcomeKind::Local);
            assert_eq!(pull.end(&to).await, expected);
        }
    }
}

#[tokio::test]
async fn a_block_that_is_missing_holds_no_stage_up_and_a_corrupt_one_is_not_told_of() {
    let mut cluster = Cluster::start().await;
    let a = cluster.agent("a", &[]).await;
    let from = a.region(spec(pb::ChecksumPolicy::Always), 16).await;
    a.publish(&from, 0, 0..2).await;
    let reader = cluster.agent("b", &[]).await;
    let to = reader.region(spec(pb::ChecksumPolicy::Always), 16).await;
    // Bad memory: other bytes than were sealed.
    from.write(1, &block(5));
    let kinds = Staged::start(&reader, &to, BLOCKS).await.end(&to).await;
    use OutcomeKind::{Corrupt, Missing, Pulled};
    assert_eq!(kinds, [Pulled, Corrupt, Missing]);
    assert_eq!(reader.stats().await.reservations, 0);
}

#[tokio::test]
async fn stages_that_cannot_be_are_refused_before_anything_is_reserved() {
    let mut cluster = Cluster::start().await;
    let b = cluster.agent("b", &[]).await;
    let to = b.region(spec(pb::ChecksumPolicy::Off), 16).await;
    b.pool(spec(pb::ChecksumPolicy::Off), 4).await;
    let into_slots = Destination::Slots(pb::SlotDestination {
        region: to.region,
        slots: vec![4, 5, 6],
    });
    let into_pool = Destination::Pool(pb::PoolDestination { pin_ttl_ms: 0 });
    for (destination, stages, says) in [
        (into_slots.clone(), vec![1, 2], "together the layout's 4"),
        (into_slots.clone(), vec![0, 4], "each at least 1"),
        (into_slots, vec![4; 2], "together 8"),
        (into_pool, vec![2, 2], "for slots of an engine's region"),
    ] {
        let refused = ask(&b, BLOCKS, destination, &stages).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains(says), "{refused}");
    }
    assert_eq!(b.stats().await.reservations, 0);
}
