//! The coordinator over real gRPC on loopback.

// clippy.toml lets tests unwrap; it does not see that helpers beside them are tests, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod agent;
mod claims;
mod lifecycle;
mod locate;
mod locations;
mod metrics;
mod replication;
mod sessions;
mod sources;
mod watch;

use std::{future::Future, net::SocketAddr, time::Duration};

use kvferry_coordinator::{Coordinator, CoordinatorConfig, MetricsListen, ServeError};
use kvferry_proto::{
    MAX_MESSAGE_BYTES, Reason,
    pb::{self, coordinator_client::CoordinatorClient},
    reason_of,
};
use tokio::{sync::oneshot, task::JoinHandle, time::timeout};
use tonic::{Code, Status, transport::Channel};

/// Far more than anything here takes; a test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(90);

struct Running {
    client: CoordinatorClient<Channel>,
    url: String,
    metrics: SocketAddr,
    epoch: u64,
    stop: Option<oneshot::Sender<()>>,
    served: JoinHandle<Result<(), ServeError>>,
}

async fn start() -> Running {
    start_with(config()).await
}

/// Agents here say nothing by themselves: they are not missed for it, unless a test is about that.
fn config() -> CoordinatorConfig {
    CoordinatorConfig {
        listen: ([127, 0, 0, 1], 0).into(),
        listen_metrics: MetricsListen::At(([127, 0, 0, 1], 0).into()),
        hide_after_ms: 300_000,
        purge_after_ms: 600_000,
        ..CoordinatorConfig::default()
    }
}

async fn start_with(config: CoordinatorConfig) -> Running {
    let coordinator = Coordinator::bind(&config).unwrap();
    let url = format!("http://{}", coordinator.local_addr());
    let metrics = coordinator.metrics_addr().unwrap();
    let epoch = coordinator.epoch();
    let (stop, stopped) = oneshot::channel();
    let served = tokio::spawn(coordinator.serve(async {
        stopped.await.ok();
    }));
    let client = CoordinatorClient::connect(url.clone())
        .await
        .unwrap()
        .max_decoding_message_size(MAX_MESSAGE_BYTES);
    Running {
        client,
        url,
        metrics,
        epoch,
        stop: Some(stop),
        served,
    }
}

impl Running {
    async fn stop(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        soon(self.served).await.unwrap().unwrap();
    }

    /// How many candidates each block has, set mode.
    async fn counts(&mut self, hashes: &[u64]) -> Vec<u32> {
        let request = locate(hashes);
        let answer = self.client.locate(request).await.unwrap().into_inner();
        answer.candidate_counts
    }

    /// Waits until the blocks have these counts.
    async fn until_counts(&mut self, hashes: &[u64], want: &[u32]) {
        let seen = async {
            while self.counts(hashes).await != want {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        soon(seen).await;
    }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("it takes too long")
}

fn locate(hashes: &[u64]) -> pb::LocateRequest {
    pb::LocateRequest {
        namespace: "t/m".into(),
        hashes: Some(packed(hashes)),
        ..pb::LocateRequest::default()
    }
}

fn packed(hashes: &[u64]) -> pb::PackedHashes {
    let bytes: Vec<u8> = hashes.iter().flat_map(|hash| hash.to_be_bytes()).collect();
    pb::PackedHashes {
        hash_len: 8,
        hashes: bytes.into(),
    }
}

fn spec(tokens_per_block: u32) -> pb::NamespaceSpec {
    pb::NamespaceSpec {
        name: "t/m".into(),
        layout: Some(pb::Layout {
            dtype: "u8".into(),
            tokens_per_block,
            plane_count: 1,
            plane_bytes: 64,
        }),
        hash_len: 8,
        checksum: 0,
    }
}

fn fingerprint(spec: &pb::NamespaceSpec) -> String {
    let spec = kvferry_proto::NamespaceSpec::try_from(spec.clone()).unwrap();
    spec.layout.fingerprint().to_string()
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(outcome: Result<T, Status>, code: Code, reason: Reason) {
    let status = outcome.unwrap_err();
    assert_eq!(
        (status.code(), reason_of(&status)),
        (code, Some(reason)),
        "{status}"
    );
}
