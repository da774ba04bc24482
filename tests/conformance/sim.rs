//! The simulated transport: the same suite, and what only it has.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use kvferry_agent::{
    region::RegionCatalog,
    transport::{
        PeerTarget, ReadRequest, Transport,
        sim::{SimFaults, SimNetwork},
    },
};
use kvferry_proto::NodeAddresses;

use crate::world::{Stalls, World, catalog, contents, data, local, peer, read, settled, whole};

pub struct SimWorld {
    network: SimNetwork,
    catalog: Arc<RegionCatalog>,
}

impl World for SimWorld {
    async fn start() -> Self {
        let world = Self {
            network: SimNetwork::new(7),
            catalog: catalog(),
        };
        let owner = world.peer().node;
        world.network.start(&owner, Arc::clone(&world.catalog));
        world
    }
    fn catalog(&self) -> Arc<RegionCatalog> {
        Arc::clone(&self.catalog)
    }
    fn transport(&self) -> Arc<dyn Transport> {
        Arc::new(self.network.transport())
    }
    fn peer(&self) -> PeerTarget {
        peer(NodeAddresses::default())
    }
    fn kill(&self) {
        self.network.stop(&self.peer().node);
    }
}

impl Stalls for SimWorld {
    fn stall_after(&self, bytes: u64) {
        let owner = self.peer().node;
        if bytes == 0 {
            return self.network.freeze(&owner, true);
        }
        let (network, left) = (self.network.clone(), AtomicI64::new(bytes as i64));
        self.network.set_hook(Some(Arc::new(move |chunk| {
            let len = chunk.span.len as i64;
            if left.fetch_sub(len, Ordering::Relaxed) <= len {
                network.freeze(&chunk.node, true);
            }
        })));
    }
    fn resume(&self) {
        self.network.set_hook(None);
        self.network.freeze(&self.peer().node, false);
    }
}

/// An owner that overwrites the bytes behind the one that is read: old before, new after.
#[tokio::test]
async fn reads_tear_where_the_hook_overwrites() {
    let world = SimWorld::start().await;
    let region = world.catalog.get(crate::world::REGION).unwrap();
    let before = contents(region.memory.host().unwrap(), 0..REGION_PIECE);
    world.network.set_hook(Some(Arc::new(move |chunk| {
        if chunk.span.offset > 0 {
            region
                .memory
                .write_at(0, &vec![0xCC; REGION_PIECE as usize])
                .unwrap();
        }
    })));
    let memory = local(REGION_PIECE);
    read(
        &world.link().await,
        vec![data(0..REGION_PIECE)],
        whole(&memory),
    )
    .await
    .unwrap();
    let after = contents(&memory, 0..REGION_PIECE);
    assert_eq!(after[..100], before[..100]);
    assert!(after[after.len() - 100..].iter().all(|byte| *byte == 0xCC));
}
const REGION_PIECE: u64 = 256 << 10;

/// The same seed, the same faults in the same order. In simulated time: what hangs is given up by nothing else.
#[tokio::test(start_paused = true)]
async fn a_seed_repeats_its_faults() {
    async fn outcomes(seed: u64) -> Vec<String> {
        let network = SimNetwork::new(seed);
        let target = peer(NodeAddresses::default());
        network.start(&target.node, catalog());
        network.set_faults(SimFaults {
            gone_ppm: 200_000,
            hang_ppm: 100_000,
            lost_ppm: 100_000,
            delay: Duration::ZERO..=Duration::from_millis(1),
            ..SimFaults::default()
        });
        let transport = network.transport();
        let mut outcomes = Vec::new();
        for _ in 0..60 {
            let link = transport.connect(&target).await.unwrap();
            let pending = link.read(ReadRequest {
                remote: vec![data(0..50_000)],
                local: whole(&local(50_000)),
            });
            let canceller = pending.canceller().unwrap();
            let result = tokio::select! {
                result = settled(pending) => result,
                () = async {
                    tokio::time::sleep(Duration::from_millis(150)).await;
                    canceller.cancel();
                    std::future::pending::<()>().await;
                } => unreachable!(),
            };
            outcomes.push(match result {
                Ok(()) => "ok".to_owned(),
                Err(error) => error.to_string(),
            });
        }
        outcomes
    }
    let (first, again, other) = tokio::join!(outcomes(5), outcomes(5), outcomes(6));
    assert_eq!(first, again);
    assert_ne!(first, other);
    for expected in ["ok", "cancelled", "does not serve", "is lost"] {
        assert!(
            first.iter().any(|outcome| outcome.contains(expected)),
            "{first:?}"
        );
    }
}
