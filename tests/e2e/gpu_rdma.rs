//! As `gpu`, over RDMA without host memory between (GPUDirect): on two devices on a wire, which `tests/rdma` has.
//!
//! `KVFERRY_RDMA_DEVICES=OWNER,READER` names them. The agents see a fake libcuda whose memory devices can register by its
//! address, and a peer-memory module if the machine says there is one.

use std::time::Duration;

use kvferry_cuda::peer_memory_loaded;
use kvferry_observe::read_page;
use kvferry_proto::pb::{self, OutcomeKind};

use crate::{
    cluster::{Cluster, eventually},
    engine::{Engine, assert_all, namespace},
    gpu::{Allocation, Gpu, failing, pull_what_can_be, register, unregister},
};

const TIMEOUT: Duration = Duration::from_secs(60);

/// The owner's and the reader's device; None where there are none, or not as the test wants it. Said aloud.
fn devices(peer_memory: bool) -> Option<[String; 2]> {
    let Ok(names) = std::env::var("KVFERRY_RDMA_DEVICES") else {
        println!("skipped: KVFERRY_RDMA_DEVICES names no two RDMA devices");
        return None;
    };
    if peer_memory_loaded() != peer_memory {
        println!(
            "skipped: the peer-memory module is loaded: {}",
            !peer_memory
        );
        return None;
    }
    let (owner, reader) = names.split_once(',')?;
    Some([owner.to_owned(), reader.to_owned()])
}

/// An agent on one device that uses nothing else.
async fn agent(
    cluster: &mut Cluster,
    node: &str,
    device: &str,
    environment: &[(String, String)],
) -> Engine {
    let mapped = ("FAKE_CUDA_MAPPED".to_owned(), "1".to_owned());
    let environment: Vec<_> = environment.iter().cloned().chain([mapped]).collect();
    let flags = ["--transport", "rdma", "--nics", device];
    cluster.agent_with(node, &flags, &environment).await
}

/// Software devices bring only what has a checksum.
async fn checked(memory: &Allocation<'_>, engine: &Engine) -> u32 {
    let namespace = pb::NamespaceSpec {
        checksum: pb::ChecksumPolicy::Always.into(),
        ..namespace("n")
    };
    let request = pb::RegisterRegionRequest {
        namespace: Some(namespace),
        ..memory.request()
    };
    register(engine, request).await.unwrap().region
}

/// Reads into GPUs that an agent began: straight and staged.
async fn reads(cluster: &Cluster, node: &str) -> (u64, u64) {
    let at = cluster.agent_metrics(node);
    let (_, page) = read_page(at, "/metrics").await.unwrap();
    let count = |way: &str| {
        let sample = format!("kvferry_agent_gpu_reads_total{{way=\"{way}\"}} ");
        let found = page.lines().find_map(|line| line.strip_prefix(&sample));
        found.unwrap().parse().unwrap()
    };
    (count("straight"), count("staged"))
}

#[tokio::test]
async fn blocks_go_from_gpu_to_gpu_straight() {
    let Some([left, right]) = devices(true) else {
        return;
    };
    let gpu = Gpu::new();
    let mut cluster = Cluster::start().await;
    let a = agent(&mut cluster, "a", &left, &[gpu.environment()]).await;
    let b = agent(&mut cluster, "b", &right, &[gpu.environment()]).await;
    let (from, to) = (gpu.allocate(64), gpu.allocate(64));
    let published = checked(&from, &a).await;
    let landed = checked(&to, &b).await;
    from.publish(&a, published, 0..64).await;
    let wanted: Vec<u64> = (0..64).rev().collect();
    let slots = (0..64).collect();
    let outcomes = b.pull_slots("n", &wanted, landed, slots, TIMEOUT).await;
    assert_all(&outcomes.unwrap(), OutcomeKind::Pulled, "rdma");
    to.assert_holds(&wanted);
    let (straight, staged) = reads(&cluster, "b").await;
    assert!(straight > 0 && staged == 0, "{straight} {staged}");
    // Deregistered and closed: the engines may free.
    assert_eq!(unregister(&b, landed).await.unwrap(), 64);
    assert_eq!(unregister(&a, published).await.unwrap(), 64);
}

#[tokio::test]
async fn an_owner_killed_in_mid_pull_leaves_no_wrong_byte_and_memory_that_can_be_had_back() {
    let Some([left, right]) = devices(true) else {
        return;
    };
    let gpu = Gpu::new();
    let mut cluster = Cluster::start().await;
    let a = agent(&mut cluster, "a", &left, &[gpu.environment()]).await;
    let b = agent(&mut cluster, "b", &right, &[gpu.environment()]).await;
    let (from, to) = (gpu.allocate(512), gpu.allocate(512));
    let published = checked(&from, &a).await;
    let landed = checked(&to, &b).await;
    from.publish(&a, published, 0..512).await;
    let wanted: Vec<u64> = (0..512).collect();
    let owner = cluster.take_agent("a");
    let (outcomes, ()) = tokio::join!(
        b.pull_slots("n", &wanted, landed, (0..512).collect(), TIMEOUT),
        async {
            tokio::time::sleep(Duration::from_millis(60)).await;
            owner.kill().await;
        }
    );
    for (outcome, n) in outcomes.unwrap().iter().zip(&wanted) {
        assert!(outcome.settled, "{outcome:?}");
        if outcome.kind() == OutcomeKind::Pulled {
            let right = to.read(outcome.slot) == crate::engine::block(*n);
            assert!(right, "block {n} differs");
        }
    }
    assert_eq!(reads(&cluster, "b").await.1, 0);
    unregister(&b, landed).await.unwrap();
}

#[tokio::test]
async fn a_reader_that_loses_its_gpu_before_a_flush_never_frees_what_may_be_written() {
    let Some([left, right]) = devices(true) else {
        return;
    };
    let gpu = Gpu::new();
    let mut cluster = Cluster::start().await;
    let a = agent(&mut cluster, "a", &left, &[gpu.environment()]).await;
    // Once it is tried out, three reads are flushed.
    let lost = failing(&gpu, "cuFlushGPUDirectRDMAWrites", 700, 4);
    let b = agent(&mut cluster, "b", &right, &lost).await;
    let (from, to) = (gpu.allocate(16), gpu.allocate(16));
    let published = checked(&from, &a).await;
    let landed = checked(&to, &b).await;
    from.publish(&a, published, 0..16).await;
    let mut pulled = 0;
    let failed = loop {
        let timeout = Duration::from_secs(6);
        let outcome = pull_what_can_be(&b, &to, landed, pulled, timeout).await;
        if outcome.kind() != OutcomeKind::Pulled {
            break outcome;
        }
        pulled += 1;
    };
    assert_eq!((pulled, failed.settled), (3, false), "{failed:?}");
    eventually("the region has ended", || async {
        let later = b.pull_slots("n", &[9], landed, vec![9], TIMEOUT).await;
        later.is_err()
    })
    .await;
    let ended = tokio::time::timeout(Duration::from_millis(500), unregister(&b, landed)).await;
    assert!(ended.is_err(), "{ended:?}");
}

#[tokio::test]
async fn where_no_device_takes_it_gpu_memory_is_pulled_into_by_staging() {
    let Some([left, right]) = devices(false) else {
        return;
    };
    let gpu = Gpu::new();
    let mut cluster = Cluster::start().await;
    let a = agent(&mut cluster, "a", &left, &[]).await;
    let b = agent(&mut cluster, "b", &right, &[gpu.environment()]).await;
    let spec = pb::NamespaceSpec {
        checksum: pb::ChecksumPolicy::Always.into(),
        ..namespace("n")
    };
    let from = a.region(spec, 32).await;
    a.publish(&from, 0, 0..32).await;
    let to = gpu.allocate(32);
    let landed = checked(&to, &b).await;
    let wanted: Vec<u64> = (0..32).collect();
    let slots = (0..32).collect();
    let outcomes = b.pull_slots("n", &wanted, landed, slots, TIMEOUT).await;
    assert_all(&outcomes.unwrap(), OutcomeKind::Pulled, "rdma");
    to.assert_holds(&wanted);
    let (straight, staged) = reads(&cluster, "b").await;
    assert!(straight == 0 && staged > 0, "{straight} {staged}");
}
