//! An engine as the benchmark plays it: memory of its own, deposited with its agent, and the local API.

use std::{
    ops::Range,
    os::fd::AsFd,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use hyper_util::rt::TokioIo;
use kvferry_agent::transport::shm::DescriptorClient;
use kvferry_memory::{HostMemory, HugePages};
use kvferry_proto::{
    BlockHash, Geometry, HashLen, NamespaceSpec, PackedHashes, Plane, Slot,
    pb::{self, agent_client::AgentClient},
};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use super::{TransferError, point::Point};

/// By when every block has an outcome. A pull that takes longer is a fault, not a slow figure.
const PULL_TIMEOUT_MS: u32 = 30_000;
/// Until the coordinator has listed what was sealed.
const ANNOUNCE_MS: u32 = 20_000;
/// Blocks of one reserve or seal call.
const SEAL_BLOCKS: usize = 4096;
/// Until the agent answers: longer than a pull may take.
const CALL_BOUND: Duration = Duration::from_secs(60);

/// Where an agent is.
#[derive(Debug, Clone)]
pub struct AgentAt {
    /// Its name.
    pub node: String,
    /// Its process.
    pub pid: u32,
    /// Its local API.
    pub socket: PathBuf,
    /// Where memory is left with it.
    pub descriptor_socket: PathBuf,
}

/// One pull call, as the engine saw it.
#[derive(Debug, Clone)]
pub(super) struct Pulled {
    /// When blocks' outcomes came, from the call on, and how many came then.
    pub(super) blocks: Vec<(Duration, u32)>,
    pub(super) locate: Duration,
    pub(super) wire: Duration,
    pub(super) total: Duration,
}

/// An engine whose memory is one region, slot after slot in every plane.
#[derive(Debug, Clone)]
pub(super) struct Engine {
    pub(super) memory: Arc<HostMemory>,
    pub(super) geometry: Arc<Geometry>,
    pub(super) at: AgentAt,
    agent: AgentClient<Channel>,
    region: u32,
    namespace: String,
    hash_len: HashLen,
}

impl Engine {
    /// Makes memory for `slots` blocks and registers it.
    pub(super) async fn start(
        at: &AgentAt,
        spec: &NamespaceSpec,
        point: &Point,
        slots: u32,
    ) -> Result<Self, TransferError> {
        let bytes = u64::from(slots) * point.block_bytes();
        let memory = HostMemory::pool("kvferry-bench", bytes, HugePages::Off)?;
        let planes = (0..u64::from(point.planes)).map(|plane| Plane {
            base: plane * u64::from(slots) * point.plane_bytes,
            stride: point.plane_bytes,
            len: point.plane_bytes,
        });
        let geometry = Geometry::new(slots, planes.collect())
            .map_err(|error| TransferError::Point(error.to_string()))?;
        let descriptors = DescriptorClient::connect(&at.descriptor_socket, None).await?;
        let token = descriptors.deposit(memory.descriptor()?.as_fd()).await?;
        let mut agent = connect(at).await?;
        let request = pb::RegisterRegionRequest {
            namespace: Some(spec.into()),
            source: Some(pb::register_region_request::Source::Deposit(
                pb::DepositSource { token },
            )),
            geometry: Some((&geometry).into()),
            keep_on_disconnect: false,
        };
        let region = agent.register_region(request).await?.into_inner().region;
        Ok(Self {
            memory: Arc::new(memory),
            geometry: Arc::new(geometry),
            at: at.clone(),
            agent,
            region,
            namespace: spec.name.to_string(),
            hash_len: spec.hash_len,
        })
    }

    /// Gives its memory back to nobody.
    pub(super) async fn stop(mut self) -> Result<(), TransferError> {
        let region = self.region;
        let request = pb::UnregisterRegionRequest { region };
        self.agent.unregister_region(request).await?;
        Ok(())
    }

    /// Declares slots complete, and waits until the coordinator lists them.
    pub(super) async fn publish(
        &mut self,
        slots: &[u32],
        hashes: &[BlockHash],
    ) -> Result<(), TransferError> {
        let mut last = None;
        let ends = slots.len().div_ceil(SEAL_BLOCKS);
        for (number, (slots, hashes)) in slots
            .chunks(SEAL_BLOCKS)
            .zip(hashes.chunks(SEAL_BLOCKS))
            .enumerate()
        {
            let request = pb::ReserveRequest {
                region: self.region,
                count: 0,
                slots: slots.to_vec(),
            };
            self.agent.reserve(request).await?;
            let request = pb::SealRequest {
                region: self.region,
                slots: slots.to_vec(),
                hashes: Some(PackedHashes::pack(self.hash_len, hashes)?.into()),
                chained: false,
                parent: Default::default(),
                // Sealed in order: what is listed last has all before it listed too.
                wait_announced_ms: if number + 1 == ends { ANNOUNCE_MS } else { 0 },
            };
            last = Some(self.agent.seal(request).await?.into_inner().announced);
        }
        match last {
            Some(false) => Err(TransferError::NotListed),
            _ => Ok(()),
        }
    }

    /// Drops everything it holds.
    pub(super) async fn evict_all(&mut self) -> Result<(), TransferError> {
        let none: [BlockHash; 0] = [];
        let request = pb::EvictRequest {
            namespace: self.namespace.clone(),
            hashes: Some(PackedHashes::pack(self.hash_len, &none)?.into()),
        };
        self.agent.evict(request).await?;
        Ok(())
    }

    /// Pulls blocks into slots over `transport`; an error unless all of them came that way.
    pub(super) async fn pull(
        &self,
        hashes: &pb::PackedHashes,
        slots: Vec<u32>,
        transport: &str,
        private: bool,
    ) -> Result<Pulled, TransferError> {
        let want = slots.len();
        let region = self.region;
        let request = pb::PullRequest {
            namespace: self.namespace.clone(),
            hashes: Some(hashes.clone()),
            timeout_ms: PULL_TIMEOUT_MS,
            destination: Some(pb::pull_request::Destination::Slots(pb::SlotDestination {
                region,
                slots,
            })),
            no_replica: private,
            chained: false,
            parent: Default::default(),
            columns: true,
            stages: Vec::new(),
        };
        let mut agent = self.agent.clone();
        let began = Instant::now();
        let mut stream = agent.pull(request).await?.into_inner();
        let (mut pulled, mut summary) = (0, pb::PullSummary::default());
        let mut blocks = Vec::new();
        while let Some(event) = stream.message().await? {
            for outcome in &event.outcomes {
                if outcome.kind() != pb::OutcomeKind::Pulled || outcome.transport != transport {
                    return Err(TransferError::NotPulled {
                        block: outcome.index,
                        outcome: format!("{:?}", outcome.kind()),
                        transport: outcome.transport.clone(),
                        detail: outcome.detail.clone(),
                    });
                }
            }
            for way in &event.pulled {
                if way.transport != transport {
                    return Err(TransferError::NotPulled {
                        block: way.indices.first().copied().unwrap_or(0),
                        outcome: "Pulled".to_owned(),
                        transport: way.transport.clone(),
                        detail: String::new(),
                    });
                }
            }
            let columns = event.pulled.iter().map(|way| way.indices.len());
            let count = event.outcomes.len() + columns.sum::<usize>();
            if count > 0 {
                // As many as a request's hashes at most.
                blocks.push((began.elapsed(), count as u32));
            }
            pulled += count;
            summary = event.summary.unwrap_or(summary);
        }
        if pulled != want {
            return Err(TransferError::Outcomes { got: pulled, want });
        }
        Ok(Pulled {
            blocks,
            locate: Duration::from_micros(summary.locate_us),
            wire: Duration::from_micros(summary.wire_us),
            total: Duration::from_micros(summary.total_us),
        })
    }

    /// Hashes as they go over the wire.
    pub(super) fn pack(&self, hashes: &[BlockHash]) -> Result<pb::PackedHashes, TransferError> {
        Ok(PackedHashes::pack(self.hash_len, hashes)?.into())
    }

    /// Where a slot's bytes are.
    pub(super) fn ranges(&self, slot: u32) -> impl Iterator<Item = Range<u64>> + '_ {
        self.geometry.ranges(Slot(slot))
    }

    /// A slot's bytes, in block order.
    pub(super) fn read(&self, slot: u32, into: &mut [u8]) -> Result<(), TransferError> {
        let mut rest = into;
        for range in self.ranges(slot) {
            let len = rest.len().min((range.end - range.start) as usize);
            let (piece, after) = rest.split_at_mut(len);
            self.memory.read_at(range.start, piece)?;
            rest = after;
        }
        Ok(())
    }

    /// Writes a slot's bytes.
    pub(super) fn write(&self, slot: u32, from: &[u8]) -> Result<(), TransferError> {
        let mut rest = from;
        for range in self.ranges(slot) {
            let len = rest.len().min((range.end - range.start) as usize);
            let (piece, after) = rest.split_at(len);
            self.memory.write_at(range.start, piece)?;
            rest = after;
        }
        Ok(())
    }
}

/// Speaks the agent's local API, on a connection of its own.
pub(crate) async fn connect(at: &AgentAt) -> Result<AgentClient<Channel>, tonic::transport::Error> {
    let socket = at.socket.clone();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    // The name is never looked up: the connector knows the way.
    let endpoint = Endpoint::from_static("http://agent").timeout(CALL_BOUND);
    let channel = endpoint.connect_with_connector(connector).await?;
    Ok(AgentClient::new(channel).max_decoding_message_size(kvferry_proto::MAX_MESSAGE_BYTES))
}
