//! An inference engine, as far as the agent can tell: memory of its own in /dev/shm, and calls over
//! the unix socket.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use kvferry_proto::pb::{
    self, BlockOutcome, OutcomeKind, agent_client::AgentClient, pull_request::Destination,
};
use sha2::{Digest, Sha256};
use tokio::{net::UnixStream, sync::oneshot};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};
use tower::service_fn;

use crate::cluster::pack;

/// Planes and bytes of a small block: cheap to move, and still in several pieces.
pub(crate) const PLANES: u32 = 4;
pub(crate) const PLANE_BYTES: u64 = 4096;
pub(crate) const BLOCK_BYTES: u64 = PLANES as u64 * PLANE_BYTES;

/// The namespace most tests use.
pub(crate) fn namespace(name: &str) -> pb::NamespaceSpec {
    pb::NamespaceSpec {
        name: name.to_owned(),
        layout: Some(pb::Layout {
            dtype: "bf16".to_owned(),
            tokens_per_block: 16,
            plane_count: PLANES,
            plane_bytes: PLANE_BYTES,
        }),
        hash_len: 32,
        checksum: pb::ChecksumPolicy::Sampled.into(),
    }
}

/// The n-th block's bytes: nothing repeats within or between blocks.
pub(crate) fn block(n: u64) -> Vec<u8> {
    (0..BLOCK_BYTES / 8)
        .flat_map(|word| {
            (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ word.wrapping_mul(0xd1b5_4a32_d192_ed03))
                .to_le_bytes()
        })
        .collect()
}

/// The n-th block's hash.
pub(crate) fn hash(n: u64) -> Vec<u8> {
    Sha256::digest(n.to_le_bytes()).to_vec()
}

pub(crate) fn hashes(blocks: impl Iterator<Item = u64>) -> Vec<Vec<u8>> {
    blocks.map(hash).collect()
}

/// A client of one agent.
#[derive(Clone)]
pub(crate) struct Engine {
    pub(crate) api: AgentClient<Channel>,
}

impl Engine {
    pub(crate) async fn connect(socket: &Path) -> Self {
        Self::try_connect(socket)
            .await
            .expect("the agent's socket answers")
    }

    /// None where nobody answers.
    pub(crate) async fn try_connect(socket: &Path) -> Option<Self> {
        let path = socket.to_owned();
        let channel = Endpoint::from_static("http://agent.invalid")
            .connect_with_connector(service_fn(move |_| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            }))
            .await
            .ok()?;
        let api = AgentClient::new(channel).max_decoding_message_size(16 << 20);
        Some(Self { api })
    }

    /// A region of this engine, plane after plane, in a file of its own.
    pub(crate) async fn region(&self, spec: pb::NamespaceSpec, slots: u32) -> Memory {
        self.try_region(spec, slots)
            .await
            .expect("the region is registered")
    }

    /// None where the agent has gone.
    pub(crate) async fn try_region(&self, spec: pb::NamespaceSpec, slots: u32) -> Option<Memory> {
        let file = tempfile::Builder::new()
            .prefix("kvferry-e2e-")
            .tempfile_in("/dev/shm")
            .expect("a file in /dev/shm");
        file.as_file()
            .set_len(u64::from(slots) * BLOCK_BYTES)
            .expect("room in /dev/shm");
        let info = self
            .clone()
            .api
            .register_region(pb::RegisterRegionRequest {
                namespace: Some(spec),
                source: Some(pb::register_region_request::Source::Path(pb::PathSource {
                    path: file.path().display().to_string(),
                })),
                geometry: Some(planar(slots)),
                keep_on_disconnect: false,
            })
            .await
            .ok()?
            .into_inner();
        Some(Memory {
            region: info.region,
            slots,
            path: file.path().to_owned(),
            _file: file,
        })
    }

    /// A pool of the agent's own.
    pub(crate) async fn pool(&self, spec: pb::NamespaceSpec, blocks: u64) -> u32 {
        self.clone()
            .api
            .register_region(pb::RegisterRegionRequest {
                namespace: Some(spec),
                source: Some(pb::register_region_request::Source::Pool(pb::PoolSource {
                    bytes: blocks * BLOCK_BYTES,
                    hugepages: false,
                })),
                geometry: None,
                keep_on_disconnect: false,
            })
            .await
            .expect("the pool is made")
            .into_inner()
            .region
    }

    /// Reserves slots of an engine's region, writes blocks, seals them, and waits until the
    /// coordinator lists them.
    pub(crate) async fn publish(
        &self,
        memory: &Memory,
        first_slot: u32,
        blocks: std::ops::Range<u64>,
    ) {
        let slots: Vec<u32> = (first_slot..).take(blocks.clone().count()).collect();
        let mut api = self.api.clone();
        api.reserve(pb::ReserveRequest {
            region: memory.region,
            count: 0,
            slots: slots.clone(),
        })
        .await
        .expect("slots are reserved");
        for (slot, n) in slots.iter().zip(blocks.clone()) {
            memory.write(*slot, &block(n));
        }
        let sealed = api
            .seal(pb::SealRequest {
                region: memory.region,
                slots,
                hashes: Some(pack(&hashes(blocks))),
                chained: true,
                parent: Vec::new().into(),
                wait_announced_ms: 60_000,
            })
            .await
            .expect("slots are sealed")
            .into_inner();
        assert!(sealed.announced, "the coordinator confirmed");
    }

    /// Pulls blocks into slots of `memory` from slot 0 on (or into the pool), and gives the
    /// outcomes in order of index.
    pub(crate) async fn pull(
        &self,
        namespace: &str,
        blocks: &[u64],
        memory: Option<&Memory>,
        timeout: Duration,
    ) -> Result<Vec<BlockOutcome>, Status> {
        let destination = match memory {
            Some(memory) => Destination::Slots(pb::SlotDestination {
                region: memory.region,
                slots: (0..blocks.len() as u32).collect(),
            }),
            None => Destination::Pool(pb::PoolDestination { pin_ttl_ms: 0 }),
        };
        self.pull_to(namespace, blocks, destination, timeout, None)
            .await
    }

    /// As `pull` into slots of `memory`; says so when the first blocks have come.
    pub(crate) async fn pull_telling(
        &self,
        namespace: &str,
        blocks: &[u64],
        memory: &Memory,
        timeout: Duration,
        first: oneshot::Sender<()>,
    ) -> Result<Vec<BlockOutcome>, Status> {
        let destination = Destination::Slots(pb::SlotDestination {
            region: memory.region,
            slots: (0..blocks.len() as u32).collect(),
        });
        self.pull_to(namespace, blocks, destination, timeout, Some(first))
            .await
    }

    /// As `pull`, into these slots of a region.
    pub(crate) async fn pull_slots(
        &self,
        namespace: &str,
        blocks: &[u64],
        region: u32,
        slots: Vec<u32>,
        timeout: Duration,
    ) -> Result<Vec<BlockOutcome>, Status> {
        let destination = Destination::Slots(pb::SlotDestination { region, slots });
        self.pull_to(namespace, blocks, destination, timeout, None)
            .await
    }

    async fn pull_to(
        &self,
        namespace: &str,
        blocks: &[u64],
        destination: Destination,
        timeout: Duration,
        mut first: Option<oneshot::Sender<()>>,
    ) -> Result<Vec<BlockOutcome>, Status> {
        let mut stream = self
            .api
            .clone()
            .pull(pb::PullRequest {
                namespace: namespace.to_owned(),
                hashes: Some(pack(&hashes(blocks.iter().copied()))),
                timeout_ms: timeout.as_millis() as u32,
                destination: Some(destination),
                ..pb::PullRequest::default()
            })
            .await?
            .into_inner();
        let mut outcomes: Vec<Option<BlockOutcome>> = vec![None; blocks.len()];
        while let Some(event) = stream.message().await? {
            for outcome in event.outcomes {
                let place = &mut outcomes[outcome.index as usize];
                assert!(place.is_none(), "two outcomes for one block: {outcome:?}");
                if outcome.kind() == OutcomeKind::Pulled
                    && let Some(first) = first.take()
                {
                    // Who wanted to know may have gone.
                    let _ = first.send(());
                }
                *place = Some(outcome);
            }
        }
        Ok(outcomes
            .into_iter()
            .enumerate()
            .map(|(i, outcome)| outcome.unwrap_or_else(|| panic!("no outcome for block {i}")))
            .collect())
    }

    pub(crate) async fn stats(&self) -> pb::StatsResponse {
        let stats = self.clone().api.stats(pb::StatsRequest {}).await;
        stats.expect("stats").into_inner()
    }
}

/// Everything pulled, by this transport.
pub(crate) fn assert_all(outcomes: &[BlockOutcome], kind: OutcomeKind, transport: &str) {
    for outcome in outcomes {
        assert_eq!(outcome.kind(), kind, "{outcome:?}");
        assert_eq!(outcome.transport, transport, "{outcome:?}");
    }
}

/// An engine's memory.
pub(crate) struct Memory {
    pub(crate) region: u32,
    pub(crate) slots: u32,
    pub(crate) path: PathBuf,
    _file: tempfile::NamedTempFile,
}

impl Memory {
    fn open(&self) -> File {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(&self.path)
            .expect("the region's file")
    }

    fn plane_offset(&self, slot: u32, plane: u32) -> u64 {
        (u64::from(plane) * u64::from(self.slots) + u64::from(slot)) * PLANE_BYTES
    }

    pub(crate) fn write(&self, slot: u32, bytes: &[u8]) {
        let file = self.open();
        for (plane, piece) in bytes.chunks(PLANE_BYTES as usize).enumerate() {
            file.write_all_at(piece, self.plane_offset(slot, plane as u32))
                .expect("the block is written");
        }
    }

    pub(crate) fn read(&self, slot: u32) -> Vec<u8> {
        let file = self.open();
        let mut bytes = vec![0; BLOCK_BYTES as usize];
        for (plane, piece) in bytes.chunks_mut(PLANE_BYTES as usize).enumerate() {
            file.read_exact_at(piece, self.plane_offset(slot, plane as u32))
                .expect("the block is read");
        }
        bytes
    }
}

/// Plane after plane, each with all slots.
pub(crate) fn planar(slots: u32) -> pb::Geometry {
    pb::Geometry {
        slots,
        planes: (0..u64::from(PLANES))
            .map(|plane| pb::Plane {
                base: plane * u64::from(slots) * PLANE_BYTES,
                stride: PLANE_BYTES,
                len: PLANE_BYTES,
            })
            .collect(),
    }
}
