//! What an engine reserved or pinned ends with its connection.

use kvferry_proto::{
    Reason,
    pb::{self},
    reason_of,
};

use crate::{
    cluster::{Cluster, eventually, pack},
    engine::{Engine, hashes, namespace},
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
