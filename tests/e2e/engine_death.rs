//! What an engine reserved or pinned ends with its connection.

use std::time::Duration;

use kvferry_proto::{
    Reason,
    pb::{self},
    reason_of,
};

use crate::{
    cluster::{Cluster, eventually, pack},
    engine::{BLOCK_BYTES, Engine, hashes, namespace},
};

#[tokio::test]
async fn reservations_and_pins_die_with_the_connection() {
    let mut cluster = Cluster::start().await;
    let mut survivor = cluster.agent("a", &[]).await;
    let pool = survivor.pool(namespace("n"), 8).await;
    let memory = survivor.region(namespace("n"), 8).await;
    survivor.publish(&memory, 0, 0..4).await;

    let mut victim = Engine::connect(&cluster.socket("a")).await;
    let reserve = |region, count, slots| pb::ReserveRequest {
        region,
        count,
        slots,
    };
    victim.api.reserve(reserve(pool, 8, vec![])).await.unwrap();
    victim
        .api
        .reserve(reserve(memory.region, 0, vec![5, 6]))
        .await
        .unwrap();
    let pinned = victim
        .api
        .pin(pb::PinRequest {
            namespace: "n".into(),
            hashes: Some(pack(&hashes(0..2))),
            ttl_ms: 0,
        })
        .await
        .unwrap()
        .into_inner();
    assert!(pinned.blocks.iter().all(|block| block.pinned));

    // Others cannot have what is taken, and are told so.
    let error = survivor.api.reserve(reserve(pool, 1, vec![])).await;
    let error = error.unwrap_err();
    assert_eq!(error.code(), tonic::Code::ResourceExhausted, "{error:?}");
    assert_eq!(reason_of(&error), Some(Reason::PoolFull));
    let error = survivor
        .api
        .reserve(reserve(memory.region, 0, vec![5]))
        .await;
    assert_eq!(reason_of(&error.unwrap_err()), Some(Reason::SlotBusy));
    let error = survivor
        .api
        .reserve(reserve(memory.region, 0, vec![1]))
        .await;
    assert_eq!(reason_of(&error.unwrap_err()), Some(Reason::SlotBusy));

    drop(victim);
    eventually("all is free again", || async {
        let stats = survivor.stats().await;
        stats.reservations == 0 && stats.pins == 0
    })
    .await;
    survivor
        .api
        .reserve(reserve(pool, 8, vec![]))
        .await
        .unwrap();
    survivor
        .api
        .reserve(reserve(memory.region, 0, vec![1, 5]))
        .await
        .unwrap();
}

#[tokio::test]
async fn nobody_seals_what_another_reserved() {
    let mut cluster = Cluster::start().await;
    let mut one = cluster.agent("a", &[]).await;
    let mut other = Engine::connect(&cluster.socket("a")).await;
    let memory = one.region(namespace("n"), 8).await;
    one.api
        .reserve(pb::ReserveRequest {
            region: memory.region,
            count: 0,
            slots: vec![3],
        })
        .await
        .unwrap();
    let seal = pb::SealRequest {
        region: memory.region,
        slots: vec![3],
        hashes: Some(pack(&hashes(3..4))),
        ..pb::SealRequest::default()
    };
    let error = other.api.seal(seal.clone()).await.unwrap_err();
    assert_eq!(reason_of(&error), Some(Reason::SlotNotReserved));
    one.api.seal(seal.clone()).await.unwrap();
    let error = one.api.seal(seal).await.unwrap_err();
    assert_eq!(reason_of(&error), Some(Reason::SlotAlreadySealed));
}

#[tokio::test]
async fn memory_is_given_back_only_when_nothing_writes_to_it_any_more() {
    let mut cluster = Cluster::start().await;
    let a = cluster.agent("a", &[]).await;
    let flags = ["--transport", "tcp", "--stall-bound-ms", "60000"];
    let mut b = cluster.agent("b", &flags).await;
    let from = a.region(namespace("n"), 64).await;
    a.publish(&from, 0, 0..64).await;
    let to = b.region(namespace("n"), 64).await;
    // Longer than anybody waits here: who waits for the end of it learns that it timed out.
    let timeout = Duration::from_secs(300);
    b.pull("n", &[0], Some(&to), timeout).await.unwrap();

    // The owner stops while it is read; the reader wants its memory back.
    cluster.agent_process("a").signal("STOP");
    let wanted: Vec<u64> = (0..64).collect();
    let pulling = {
        let (b, region, slots) = (b.clone(), to.region, (0..to.slots).collect());
        tokio::spawn(async move { b.pull_slots("n", &wanted, region, slots, timeout).await })
    };
    eventually("the pull is under way", || async {
        b.stats().await.pulls_in_flight == 1
    })
    .await;
    let request = pb::UnregisterRegionRequest { region: to.region };
    b.api.unregister_region(request).await.unwrap();
    let outcomes = pulling.await.unwrap().unwrap();
    assert!(
        outcomes
            .iter()
            .all(|outcome| outcome.kind() == pb::OutcomeKind::Cancelled),
        "{outcomes:?}"
    );

    // It is the engine's again: what the owner still sends goes nowhere.
    let pattern = vec![0xAA; BLOCK_BYTES as usize];
    (0..64).for_each(|slot| to.write(slot, &pattern));
    cluster.agent_process("a").signal("CONT");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!((0..64).all(|slot| to.read(slot) == pattern));
}
