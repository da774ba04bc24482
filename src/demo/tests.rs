//! The demo's phases against fakes: right bytes pass, and everything else is noticed.

use std::sync::Arc;

use tempfile::{NamedTempFile, TempDir};

use super::{
    engine::{Engine, Shape},
    phases::{self, PhaseError},
    workload::{BLOCK_BYTES, Workload},
};
use crate::testing::World;

const BLOCKS: u32 = 10;

struct Stage {
    world: World,
    workload: Arc<Workload>,
    engines: [Engine; 3],
    _directory: TempDir,
}

async fn stage() -> Stage {
    let world = World::default();
    let directory = tempfile::tempdir().unwrap();
    let input = NamedTempFile::new().unwrap();
    let bytes: Vec<u8> = (0..3_000_017u32).map(|n| (n % 249) as u8).collect();
    std::fs::write(input.path(), bytes).unwrap();
    let workload = Arc::new(Workload::open(input.path(), BLOCKS).unwrap());
    let mut engines = Vec::new();
    for (node, transport, shape) in [
        ("a", "auto", Shape::LayerFirst),
        ("b", "tcp", Shape::LayerFirst),
        ("c", "shm", Shape::Contiguous),
    ] {
        let socket = directory.path().join(format!("{node}.sock"));
        world.serve_agent(node, transport, &socket);
        let spec = workload.spec();
        let engine = Engine::start(node, &socket, directory.path(), spec, shape, BLOCKS).await;
        engines.push(engine.unwrap());
    }
    let Ok(engines) = <[Engine; 3]>::try_from(engines) else {
        panic!("three engines");
    };
    Stage {
        world,
        workload,
        engines,
        _directory: directory,
    }
}

#[tokio::test]
async fn every_phase_passes_where_all_is_well() {
    let Stage {
        world,
        workload,
        engines: [mut a, mut b, mut c],
        _directory,
    } = stage().await;
    let all = u64::from(BLOCKS) * BLOCK_BYTES;
    let published = phases::publish(&mut a, &workload).await.unwrap();
    assert_eq!(published.bytes, all);
    let over_tcp = phases::pull(&b, &workload, "tcp").await.unwrap();
    assert_eq!((over_tcp.blocks, over_tcp.bytes), (10, all));
    phases::pull(&c, &workload, "shm").await.unwrap();
    let kill = async {
        world.kill("a");
        Ok(())
    };
    let survived = phases::pull_while_the_owner_dies(&mut b, &mut c, &workload, kill)
        .await
        .unwrap();
    // The last two calls begin when the owner is gone: their odd blocks have nobody left.
    assert!(survived.paths["unreachable"] >= 1, "{:?}", survived.paths);
    assert!(survived.paths.values().sum::<usize>() == 10);
    assert!(survived.blocks >= 5, "every block with a replica came");
}

#[tokio::test]
async fn one_wrong_byte_fails_the_demo() {
    let mut stage = stage().await;
    phases::publish(&mut stage.engines[0], &stage.workload)
        .await
        .unwrap();
    stage.world.spoil();
    let pulled = phases::pull(&stage.engines[1], &stage.workload, "tcp").await;
    assert!(matches!(pulled, Err(PhaseError::Mismatch { .. })));
}

#[tokio::test]
async fn another_path_fails_the_demo() {
    let mut stage = stage().await;
    phases::publish(&mut stage.engines[0], &stage.workload)
        .await
        .unwrap();
    let pulled = phases::pull(&stage.engines[2], &stage.workload, "tcp").await;
    assert!(matches!(pulled, Err(PhaseError::Path { want: "tcp", .. })));
}

#[tokio::test]
async fn a_lost_replica_fails_the_demo() {
    let mut stage = stage().await;
    let [a, b, c] = &mut stage.engines;
    phases::publish(a, &stage.workload).await.unwrap();
    let world = stage.world.clone();
    let hashes = stage.workload.hashes().to_vec();
    // Nobody pulled on c: the even blocks have no replica when the owner dies.
    let kill = async {
        world.kill("a");
        for hash in &hashes {
            world.forget(hash.as_bytes());
        }
        Ok(())
    };
    let survived = phases::pull_while_the_owner_dies(b, c, &stage.workload, kill).await;
    assert!(matches!(
        survived,
        Err(PhaseError::NotPulled {
            outcome: "missing",
            ..
        })
    ));
}
