//! Agents are told to copy, and what they say of it counts.

use kvferry_proto::pb::{
    self, agent_message::Message as Said, coordinator_message::Message as Told,
    replicated::Verdict, replication_client::ReplicationClient,
};
use tonic::transport::Channel;

use crate::{
    Code, Reason, Running,
    agent::{Agent, sealed},
    assert_refused, packed, soon, start,
};

async fn client(running: &Running) -> ReplicationClient<Channel> {
    ReplicationClient::connect(running.url.clone())
        .await
        .unwrap()
}

fn min(min_copies: u32) -> pb::SetCopiesRequest {
    pb::SetCopiesRequest {
        namespace: "t/m".into(),
        min_copies,
    }
}

fn hot(hashes: &[u64], copies: u32) -> pb::WantCopiesRequest {
    pb::WantCopiesRequest {
        namespace: "t/m".into(),
        hashes: Some(packed(hashes)),
        copies,
        ttl_ms: 0,
    }
}

async fn ordered(agent: &mut Agent) -> pb::Replicate {
    match agent.hear().await {
        Told::Replicate(order) => *order,
        other => panic!("{other:?} is no order"),
    }
}

#[tokio::test]
async fn an_order_names_blocks_and_owners_and_its_answer_counts() {
    let mut running = start().await;
    let _owner = Agent::join(&mut running, "a", &[1, 2]).await;
    let mut taker = Agent::join(&mut running, "b", &[2]).await;
    let mut client = client(&running).await;
    client.set_copies(min(2)).await.unwrap();
    let order = ordered(&mut taker).await;
    assert_eq!(order.hashes, Some(packed(&[1])));
    assert_eq!(order.namespace.unwrap().name, "t/m");
    let from = order.from.unwrap();
    assert_eq!((from.owners[0].node.as_str(), from.slots), ("a", vec![1]));

    // It failed, so it is not asked again for a while; then a third node may take it.
    let replicated = |order: u64, failed: &[u32]| {
        Said::Replicated(pb::Replicated {
            order,
            verdict: Verdict::Done.into(),
            failed: failed.to_vec(),
        })
    };
    taker.say(replicated(order.order, &[0])).await;
    let mut third = Agent::join(&mut running, "c", &[7]).await;
    let order = loop {
        let order = ordered(&mut third).await;
        if order.hashes == Some(packed(&[1])) {
            break order;
        }
        // Its own block 7 goes to another, and others' to it: all in the same way.
        third.say(replicated(order.order, &[0])).await;
    };
    third.delta(1, sealed(&[1])).await;
    assert_eq!(third.hear().await, Told::Ack(pb::Ack { seq: 1 }));
    third.say(replicated(order.order, &[])).await;
    let status = soon(async {
        loop {
            let namespace = "t/m".to_owned();
            let request = pb::DescribeCopiesRequest { namespace };
            let status = client.describe_copies(request).await.unwrap().into_inner();
            if status.copied == 1 {
                break status;
            }
            tokio::task::yield_now().await;
        }
    });
    let status = status.await;
    assert_eq!((status.min_copies, status.copied), (2, 1));
    assert!(status.failed >= 1);
}

#[tokio::test]
async fn what_cannot_be_asked_for_is_refused() {
    let mut running = start().await;
    let mut client = client(&running).await;
    let unknown = client.set_copies(min(2)).await;
    assert_refused(unknown, Code::NotFound, Reason::NamespaceUnknown);
    let _agent = Agent::join(&mut running, "a", &[1]).await;
    let bad = (Code::InvalidArgument, Reason::InvalidArgument);
    assert_refused(client.set_copies(min(17)).await, bad.0, bad.1);
    assert_refused(client.want_copies(hot(&[1], 17)).await, bad.0, bad.1);
    let forever = pb::WantCopiesRequest {
        ttl_ms: 86_400_001,
        ..hot(&[1], 2)
    };
    assert_refused(client.want_copies(forever).await, bad.0, bad.1);
    let status = client.want_copies(hot(&[1, 2], 2)).await.unwrap();
    assert_eq!(status.into_inner().hot, 2);
    let many: Vec<u64> = (0..65_535).collect();
    let over = client.want_copies(hot(&many, 2)).await;
    assert_refused(over, Code::ResourceExhausted, Reason::BoundReached);
    let status = client.want_copies(hot(&[1, 2], 0)).await.unwrap();
    assert_eq!(status.into_inner().hot, 0);
}
