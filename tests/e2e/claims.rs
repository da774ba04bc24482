//! A block is produced by one engine of all.

use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use kvferry_proto::pb::{
    self, ClaimState,
    ClaimState::{Claimed, Granted, Stored},
    local_claims_client::LocalClaimsClient,
};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::{
    cluster::{Cluster, MISSES, eventually, pack, run},
    engine::{Engine, hash, hashes, namespace},
};

/// A connection to an agent.
pub(crate) async fn channel(socket: &Path) -> Channel {
    let path: PathBuf = socket.to_owned();
    Endpoint::from_static("http://agent.invalid")
        .connect_with_connector(service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        }))
        .await
        .unwrap()
}

struct Claimant(LocalClaimsClient<Channel>);

impl Claimant {
    async fn connect(socket: &Path) -> Self {
        Self(LocalClaimsClient::new(channel(socket).await))
    }

    async fn claim(&mut self, blocks: std::ops::Range<u64>, keep: bool) -> pb::ClaimResponse {
        let request = pb::ClaimBlocksRequest {
            namespace: "n".into(),
            hashes: Some(pack(&hashes(blocks))),
            ttl_ms: 0,
            keep_on_disconnect: keep,
            purpose: 0,
        };
        self.0.claim_blocks(request).await.unwrap().into_inner()
    }
}

fn states(response: &pb::ClaimResponse) -> Vec<ClaimState> {
    response.states().collect()
}

/// Two agents with regions of namespace "n"; the coordinator knows both.
async fn two(cluster: &mut Cluster) -> [Engine; 2] {
    let engines = [cluster.agent("a", &[]).await, cluster.agent("b", &[]).await];
    for engine in &engines {
        engine.pool(namespace("n"), 8).await;
    }
    for node in ["a", "b"] {
        eventually("its session is there", || async {
            cluster.live_blocks(node).await.is_some()
        })
        .await;
    }
    engines
}

#[tokio::test]
async fn one_engine_is_granted_a_block_until_it_publishes_or_goes() {
    let mut cluster = Cluster::start().await;
    let [engine, _other] = two(&mut cluster).await;
    let memory = engine.region(namespace("n"), 8).await;
    let mut a = Claimant::connect(&cluster.socket("a")).await;
    let mut b = Claimant::connect(&cluster.socket("b")).await;

    let granted = a.claim(0..3, false).await;
    assert_eq!(states(&granted), [Granted; 3]);
    let refused = b.claim(0..4, false).await;
    assert_eq!(states(&refused), [Claimed, Claimed, Claimed, Granted]);
    assert_eq!(refused.holders[0].node, "a");
    assert_ne!(refused.token, 0);

    // What is published is stored, here and there.
    engine.publish(&memory, 0, 0..1).await;
    assert_eq!(states(&a.claim(0..1, false).await), [Stored]);
    eventually("b hears that it is stored", || {
        let mut b = b.0.clone();
        async move {
            let request = pb::ClaimBlocksRequest {
                namespace: "n".into(),
                hashes: Some(pack(&[hash(0)])),
                ..pb::ClaimBlocksRequest::default()
            };
            let answer = b.claim_blocks(request).await.unwrap().into_inner();
            states(&answer) == [Stored]
        }
    })
    .await;
    let renew = pb::RenewClaimsRequest {
        token: granted.token,
        ttl_ms: 60_000,
    };
    let renewed = a.0.renew_blocks(renew).await.unwrap().into_inner();
    assert_eq!(renewed.claims, 2);

    // What is released is another's; what is left goes with the connection.
    let release = pb::ReleaseClaimsRequest {
        token: granted.token,
        hashes: Some(pack(&[hash(1)])),
    };
    let released = a.0.release_blocks(release).await.unwrap().into_inner();
    assert_eq!(released.released, 1);
    assert_eq!(states(&b.claim(1..3, false).await), [Granted, Claimed]);
    drop(a);
    eventually("the rest is free", || {
        let socket = cluster.socket("b");
        async move {
            let mut b = Claimant::connect(&socket).await;
            states(&b.claim(2..3, true).await) == [Granted]
        }
    })
    .await;
}

#[tokio::test]
async fn a_dead_node_claims_nothing_and_a_shell_can_claim() {
    let mut cluster = Cluster::start_with(&MISSES).await;
    let _engines = two(&mut cluster).await;
    let dir = cluster.dir.path().to_owned();
    let coordinator = format!("http://{}", cluster.coordinator_address);
    let sockets = ["a", "b"].map(|node| cluster.socket(node).display().to_string());
    let blocks = hashes(0..2);
    let hex = |bytes: &Vec<u8>| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let (first, second) = (hex(&blocks[0]), hex(&blocks[1]));
    let claims = async |socket: &str, words: &[&str]| {
        let reach = ["--socket", socket, "--coordinator", &coordinator, "--json"];
        let args = [&["claims"], words, &reach].concat();
        let (code, out, error) = run(&args, &dir).await;
        let json: serde_json::Value = serde_json::from_str(&out).expect(&error);
        (code, json)
    };

    let (code, claimed) = claims(&sockets[0], &["claim", "-n", "n", &first, &second]).await;
    assert_eq!(
        (code, &claimed["blocks"][1]["state"]),
        (0, &"granted".into())
    );
    let (code, refused) = claims(&sockets[1], &["claim", "-n", "n", &first]).await;
    assert_eq!((code, &refused["blocks"][0]["holder"]), (3, &"a".into()));
    let (_, list) = claims(&sockets[1], &["list"]).await;
    assert_eq!((&list["claims"], &list["leases"]), (&2.into(), &1.into()));
    let token = claimed["token"].as_str().unwrap();
    let (_, released) = claims(&sockets[0], &["release", token]).await;
    assert_eq!(released["released"], 2);

    claims(&sockets[0], &["claim", "-n", "n", &first]).await;
    cluster.take_agent("a").kill().await;
    eventually("the dead node's claim is free", || async {
        let (code, _) = claims(&sockets[1], &["claim", "-n", "n", &first]).await;
        code == 0
    })
    .await;
}
