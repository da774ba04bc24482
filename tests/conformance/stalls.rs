//! Owners that stop in the middle: reads settle all the same, and then nothing writes any more.

use std::{sync::Arc, time::Duration};

use kvferry_agent::transport::{Link, PendingRead, ReadError, ReadRequest};
use kvferry_memory::HostMemory;

use crate::world::{Stalls, check_alive, contents, data, eventually, local, settled, whole};

const BYTES: u64 = 6 << 20;
/// Settling must not wait for the peer, which does nothing until it is told to.
const PROMPTLY: Duration = Duration::from_secs(60);

fn start(link: &Arc<dyn Link>) -> (Arc<HostMemory>, PendingRead) {
    let memory = local(BYTES);
    let pending = link.read(ReadRequest {
        remote: vec![data(0..BYTES)],
        local: whole(&memory),
    });
    (memory, pending)
}

async fn cancelled(pending: PendingRead) {
    pending.cancel();
    pending.cancel();
    let result = tokio::time::timeout(PROMPTLY, pending).await;
    let result = result.expect("a cancelled read did not settle");
    assert!(matches!(result, Err(ReadError::Cancelled)), "{result:?}");
}

pub async fn cancel_mid_payload(world: impl Stalls) {
    let link = world.link().await;
    check_alive(&link).await;
    let before = link.received_bytes();
    world.stall_after(1 << 20);
    let (first, pending_first) = start(&link);
    let (second, pending_second) = start(&link);
    eventually("received a part", || {
        link.received_bytes() > before + 100_000
    })
    .await;
    cancelled(pending_first).await;
    cancelled(pending_second).await;
    // The memory is ours again: whatever is in it stays.
    for memory in [&first, &second] {
        memory.write_at(0, &vec![0xAA; BYTES as usize]).unwrap();
    }
    world.resume();
    // What the owner still sends goes nowhere, and what follows is right.
    check_alive(&link).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    for memory in [&first, &second] {
        assert!(contents(memory, 0..BYTES).iter().all(|byte| *byte == 0xAA));
    }
}

pub async fn cancel_unanswered(world: impl Stalls) {
    let link = world.link().await;
    world.stall_after(0);
    let (_, kept) = start(&link);
    let reads: Vec<_> = (0..20).map(|_| start(&link).1).collect();
    for pending in reads {
        cancelled(pending).await;
    }
    let canceller = kept.canceller().unwrap();
    tokio::spawn(async move { canceller.cancel() });
    let result = tokio::time::timeout(PROMPTLY, kept).await.unwrap();
    assert!(matches!(result, Err(ReadError::Cancelled)), "{result:?}");
    world.resume();
}

pub async fn loss_settles(world: impl Stalls) {
    let link = world.link().await;
    world.stall_after(1 << 20);
    let reads: Vec<_> = (0..20).map(|_| start(&link)).collect();
    world.kill();
    for (memory, pending) in reads {
        let result = settled(pending).await;
        assert!(
            matches!(result, Err(ReadError::LinkLost { .. })),
            "{result:?}"
        );
        memory.write_at(0, &vec![0xAA; BYTES as usize]).unwrap();
        assert!(contents(&memory, 0..BYTES).iter().all(|byte| *byte == 0xAA));
    }
    eventually("lost", || link.is_lost()).await;
}

pub async fn drop_link_settles(world: impl Stalls) {
    let link = world.link().await;
    world.stall_after(1 << 20);
    let reads: Vec<_> = (0..5).map(|_| start(&link).1).collect();
    drop(link);
    for pending in reads {
        let result = settled(pending).await;
        assert!(
            matches!(result, Err(ReadError::LinkLost { .. })),
            "{result:?}"
        );
    }
}
