//! An engine as the replay plays it: it keeps prompts in its agent's pool, whose memory it maps.

use std::sync::Arc;

use bytes::Bytes;
use kvferry_agent::transport::shm::DescriptorClient;
use kvferry_memory::HostMemory;
use kvferry_proto::{
    BlockHash, Geometry, HashLen, Incarnation, NamespaceSpec, PackedHashes, RegionId, Slot,
    pb::{self, agent_client::AgentClient},
};
use tonic::{Code, Status, transport::Channel};

use super::{PIN_TTL, PULL_TIMEOUT, ReplayError, hash, ledger::Found};
use crate::{
    transfer::{self, AgentAt},
    workload::mix,
};

/// What a pull came to.
#[derive(Debug, Default)]
pub(super) struct Pulled {
    /// One per block.
    pub(super) found: Vec<Found>,
    /// Where the blocks that are here lie.
    pub(super) slots: Vec<Option<u32>>,
    /// Keeps them there.
    pub(super) pin: u64,
}

/// See the module's page.
#[derive(Debug, Clone)]
pub(super) struct Engine {
    pub(super) at: AgentAt,
    agent: AgentClient<Channel>,
    memory: Arc<HostMemory>,
    geometry: Arc<Geometry>,
    region: u32,
    namespace: String,
    hash_len: HashLen,
}

impl Engine {
    /// Has the agent make a pool and maps it.
    pub(super) async fn start(
        at: &AgentAt,
        spec: &NamespaceSpec,
        pool_bytes: u64,
    ) -> Result<Self, ReplayError> {
        let mut agent = transfer::connect(at).await?;
        let pool = pb::PoolSource {
            bytes: pool_bytes,
            hugepages: false,
        };
        let request = pb::RegisterRegionRequest {
            namespace: Some(spec.into()),
            source: Some(pb::register_region_request::Source::Pool(pool)),
            geometry: None,
            keep_on_disconnect: false,
        };
        let info = agent.register_region(request).await;
        let info = info.map_err(|status| refused(at, status))?.into_inner();
        let descriptors = DescriptorClient::connect(&at.descriptor_socket, None).await?;
        let region = descriptors
            .open_region(
                RegionId(info.region),
                Incarnation::new(info.incarnation)?,
                true,
            )
            .await?;
        let geometry = info
            .geometry
            .ok_or(kvferry_proto::InvalidMessage::Missing("geometry"))?;
        Ok(Self {
            at: at.clone(),
            agent,
            memory: Arc::new(HostMemory::import(region.data)?),
            geometry: Arc::new(geometry.try_into()?),
            region: info.region,
            namespace: spec.name.to_string(),
            hash_len: spec.hash_len,
        })
    }

    /// How many blocks from the first on are somewhere.
    pub(super) async fn prefix(&self, blocks: &[u64]) -> Result<usize, ReplayError> {
        let request = pb::LookupRequest {
            namespace: self.namespace.clone(),
            hashes: Some(self.pack(blocks)?),
            prefix: true,
            timeout_ms: 0,
        };
        let answer = self.agent.clone().lookup(request).await;
        let places = answer.map_err(|s| self.refused(s))?.into_inner().places;
        Ok(places.len().min(blocks.len()))
    }

    /// Brings blocks into the pool, and keeps them there until they are released.
    pub(super) async fn pull(&self, blocks: &[u64]) -> Result<Pulled, ReplayError> {
        let pool = pb::PoolDestination {
            pin_ttl_ms: PIN_TTL.as_millis() as u32,
        };
        let request = pb::PullRequest {
            namespace: self.namespace.clone(),
            hashes: Some(self.pack(blocks)?),
            timeout_ms: PULL_TIMEOUT.as_millis() as u32,
            destination: Some(pb::pull_request::Destination::Pool(pool)),
            no_replica: false,
            chained: true,
            parent: Bytes::new(),
            columns: false,
            stages: Vec::new(),
        };
        let answer = self.agent.clone().pull(request).await;
        let mut stream = answer.map_err(|s| self.refused(s))?.into_inner();
        let mut found = vec![None; blocks.len()];
        let mut pulled = Pulled {
            slots: vec![None; blocks.len()],
            ..Pulled::default()
        };
        while let Some(event) = stream.message().await.map_err(|s| self.refused(s))? {
            for outcome in event.outcomes {
                let kind = outcome.kind();
                let place = outcome.index as usize;
                let (Some(found), Some(slot)) = (found.get_mut(place), pulled.slots.get_mut(place))
                else {
                    continue;
                };
                *found = Some(match kind {
                    pb::OutcomeKind::Local => Found::Local,
                    pb::OutcomeKind::Pulled => Found::From(outcome.source_node),
                    other => Found::Not(outcome_name(other)),
                });
                let here = matches!(kind, pb::OutcomeKind::Local | pb::OutcomeKind::Pulled);
                *slot = here.then_some(outcome.slot);
            }
            if let Some(summary) = event.summary {
                pulled.pin = summary.pin;
            }
        }
        let got = found.iter().flatten().count();
        let want = blocks.len();
        if got != want {
            return Err(ReplayError::Outcomes { got, want });
        }
        pulled.found = found.into_iter().flatten().collect();
        Ok(pulled)
    }

    /// Stores blocks that follow `parent`, as after a prefill. False where the pool has no room.
    pub(super) async fn store(
        &self,
        blocks: &[u64],
        parent: Option<u64>,
    ) -> Result<bool, ReplayError> {
        let mut agent = self.agent.clone();
        let request = pb::ReserveRequest {
            region: self.region,
            count: blocks.len() as u32,
            slots: Vec::new(),
        };
        let slots = match agent.reserve(request).await {
            Ok(answer) => answer.into_inner().slots,
            Err(status) if status.code() == Code::ResourceExhausted => return Ok(false),
            Err(status) => return Err(self.refused(status)),
        };
        let (engine, numbers, written) = (self.clone(), blocks.to_vec(), slots.clone());
        tokio::task::spawn_blocking(move || {
            let mut bytes = vec![0; engine.geometry.block_bytes() as usize];
            for (number, slot) in numbers.into_iter().zip(written) {
                fill(number, &mut bytes);
                engine.memory.write_at(engine.start_of(slot), &bytes)?;
            }
            Ok::<_, ReplayError>(())
        })
        .await??;
        let parent = parent.map(hash).transpose()?;
        let request = pb::SealRequest {
            region: self.region,
            slots,
            hashes: Some(self.pack(blocks)?),
            chained: true,
            parent: parent.map_or_else(Bytes::new, |hash| Bytes::copy_from_slice(hash.as_bytes())),
            wait_announced_ms: 0,
        };
        agent.seal(request).await.map_err(|s| self.refused(s))?;
        Ok(true)
    }

    /// Compares blocks with what was stored under their numbers; gives the bytes. They must be pinned.
    pub(super) async fn verify(
        &self,
        blocks: &[u64],
        slots: &[Option<u32>],
    ) -> Result<u64, ReplayError> {
        let here = blocks.iter().zip(slots);
        let here: Vec<(u64, u32)> = here.filter_map(|(n, slot)| Some((*n, (*slot)?))).collect();
        let engine = self.clone();
        let compared = tokio::task::spawn_blocking(move || {
            let len = engine.geometry.block_bytes() as usize;
            let (mut want, mut got) = (vec![0; len], vec![0; len]);
            for (block, slot) in &here {
                fill(*block, &mut want);
                engine.memory.read_at(engine.start_of(*slot), &mut got)?;
                if want != got {
                    return Err(ReplayError::WrongBytes {
                        block: *block,
                        slot: *slot,
                        node: engine.at.node,
                    });
                }
            }
            Ok((here.len() * len) as u64)
        });
        compared.await?
    }

    /// Lets go of what a pull kept.
    pub(super) async fn release(&self, pin: u64) -> Result<(), ReplayError> {
        let request = pb::ReleaseRequest { pin };
        let released = self.agent.clone().release(request).await;
        released.map(drop).map_err(|status| self.refused(status))
    }

    /// Blocks its pool has given up to make room.
    pub(super) async fn evictions(&self) -> Result<u64, ReplayError> {
        let answer = self.agent.clone().stats(pb::StatsRequest {}).await;
        let regions = answer.map_err(|s| self.refused(s))?.into_inner().regions;
        Ok(regions.iter().map(|region| region.evictions).sum())
    }

    fn pack(&self, blocks: &[u64]) -> Result<pb::PackedHashes, ReplayError> {
        let hashes: Vec<BlockHash> = blocks.iter().map(|n| hash(*n)).collect::<Result<_, _>>()?;
        Ok(PackedHashes::pack(self.hash_len, &hashes)?.into())
    }

    /// A pool is contiguous: one range per slot.
    fn start_of(&self, slot: u32) -> u64 {
        let first = self.geometry.ranges(Slot(slot)).next();
        first.map_or(0, |range| range.start)
    }

    fn refused(&self, status: Status) -> ReplayError {
        refused(&self.at, status)
    }
}

fn refused(at: &AgentAt, status: Status) -> ReplayError {
    ReplayError::Call {
        node: at.node.clone(),
        source: Box::new(status),
    }
}

/// As in JSON: "timed_out".
pub(super) fn outcome_name(kind: pb::OutcomeKind) -> String {
    let name = kind.as_str_name();
    let name = name.strip_prefix("OUTCOME_KIND_").unwrap_or(name);
    name.to_ascii_lowercase()
}

/// The bytes of a block, from its number.
fn fill(number: u64, bytes: &mut [u8]) {
    let mut state = mix(number ^ 0x6b76_6665_7272_7921);
    for word in bytes.chunks_mut(8) {
        state = mix(state.wrapping_add(0x9e37_79b9_7f4a_7c15));
        word.copy_from_slice(&state.to_le_bytes()[..word.len()]);
    }
}
