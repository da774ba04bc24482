//! Claims over gRPC.

use kvferry_observe::read_page;
use kvferry_proto::pb::{self, agent_message::Message as Said, claims_client::ClaimsClient};

use crate::{Code, Reason, agent::Agent, agent::sealed, assert_refused, packed, start};

fn claim(node: &str, hashes: &[u64]) -> pb::ClaimRequest {
    pb::ClaimRequest {
        namespace: "t/m".into(),
        hashes: Some(packed(hashes)),
        node: node.into(),
        incarnation: 1,
        ttl_ms: 0,
        purpose: 0,
    }
}

#[tokio::test]
async fn a_claim_is_granted_once_fulfilled_by_publishing_and_freed_by_goodbye() {
    use pb::ClaimState::{Claimed, Granted, Stored};
    let mut running = start().await;
    let mut a = Agent::join(&mut running, "a", &[1]).await;
    let _b = Agent::join(&mut running, "b", &[]).await;
    let mut claims = ClaimsClient::connect(running.url.clone()).await.unwrap();

    let first = claims.claim(claim("a", &[1, 2, 3])).await.unwrap();
    let first = first.into_inner();
    let states: Vec<_> = first.states().collect();
    assert_eq!(states, [Stored, Granted, Granted]);
    assert_eq!((first.token != 0, first.ttl_ms), (true, 30_000));
    let second = claims.claim(claim("b", &[2, 3])).await.unwrap();
    let second = second.into_inner();
    assert!(second.states().all(|state| state == Claimed));
    assert_eq!((second.token, second.holder_index), (0, vec![0, 0]));
    assert_eq!(second.holders[0].node, "a");

    a.delta(1, sealed(&[2])).await;
    assert!(matches!(
        a.hear().await,
        pb::coordinator_message::Message::Ack(_)
    ));
    let renew = pb::RenewClaimsRequest {
        token: first.token,
        ttl_ms: 300_000,
    };
    let renewed = claims.renew_claims(renew).await.unwrap().into_inner();
    assert_eq!(renewed.claims, 1, "the other is stored");
    let list = claims.list_claims(pb::ListClaimsRequest::default()).await;
    let list = list.unwrap().into_inner();
    assert_eq!((list.claims, list.leases), (1, 1));
    assert!((30_001..=300_000).contains(&list.listed[0].expires_in_ms));

    a.say(Said::Goodbye(pb::Goodbye {})).await;
    a.end().await.unwrap();
    let told = read_page(running.metrics, "/metrics").await.unwrap().1;
    for sample in [
        "claims 0",
        "claims_granted_total 2",
        "claims_ended_total{cause=\"fulfilled\"} 1",
        "claims_ended_total{cause=\"node_gone\"} 1",
        "requests_total{method=\"Claims/Claim\",outcome=\"ok\"} 2",
        "request_duration_seconds_count{method=\"Claims/RenewClaims\",outcome=\"ok\"} 1",
    ] {
        let line = format!("\nkvferry_coordinator_{sample}\n");
        assert!(told.contains(&line), "no {sample} in {told}");
    }
    let third = claims.claim(claim("b", &[3])).await.unwrap().into_inner();
    assert_eq!(third.states().next(), Some(Granted));
    let release = pb::ReleaseClaimsRequest {
        token: third.token,
        hashes: None,
    };
    let released = claims.release_claims(release.clone()).await.unwrap();
    assert_eq!(released.into_inner().released, 1);
    let again = claims.release_claims(release).await.unwrap();
    assert_eq!(again.into_inner().released, 0);
}

#[tokio::test]
async fn who_cannot_claim_is_told_why() {
    let mut running = start().await;
    let mut claims = ClaimsClient::connect(running.url.clone()).await.unwrap();
    let unknown = claims.claim(claim("a", &[1])).await;
    assert_refused(unknown, Code::NotFound, Reason::NamespaceUnknown);
    let _a = Agent::join(&mut running, "a", &[]).await;
    let stranger = claims.claim(claim("z", &[1])).await;
    assert_refused(stranger, Code::NotFound, Reason::NodeUnknown);
    let mut old = claim("a", &[1]);
    old.incarnation = 0;
    let old = claims.claim(old).await;
    assert_refused(old, Code::InvalidArgument, Reason::InvalidArgument);
    let mut wide = claim("a", &[]);
    wide.hashes = Some(pb::PackedHashes {
        hash_len: 16,
        hashes: vec![0; 16].into(),
    });
    let wide = claims.claim(wide).await;
    assert_refused(wide, Code::InvalidArgument, Reason::HashLength);
    let many: Vec<u64> = (0..10_000).collect();
    let many = claims.claim(claim("a", &many)).await;
    assert_refused(many, Code::ResourceExhausted, Reason::BoundReached);
}
