//! An engine as the demo plays it: memory of its own in a file, and the agent's local API.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use kvferry_proto::{BlockHash, HashError, HashLen, NamespaceSpec, PackedHashes, pb};
use rustix::fs::{FallocateFlags, fallocate};

use super::workload::{BLOCK_BYTES, PLANE_BYTES, PLANES};
use crate::client::{self, Agent, Call, ClientError};

/// What a call beside a pull may take.
const CALL_BOUND: Duration = Duration::from_secs(60);
/// How long blocks may take to be listed by the coordinator.
const ANNOUNCE_MS: u32 = 30_000;
/// Outcomes are due by the pull's deadline; this much later they must be here.
const DEADLINE_SLACK: Duration = Duration::from_secs(2);

/// Why an engine could not do its part.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    #[error("{path}: {source}", path = path.display())]
    Memory { path: PathBuf, source: io::Error },
    #[error("on {node}: {source}")]
    Agent { node: String, source: ClientError },
    #[error("the hashes cannot be packed: {0}")]
    Hashes(#[from] HashError),
    #[error("the coordinator did not confirm {node}'s blocks within {ANNOUNCE_MS} ms")]
    NotAnnounced { node: String },
    #[error("a pull on {node} gave {got} outcomes for {want} blocks")]
    Outcomes {
        node: String,
        got: usize,
        want: usize,
    },
}

/// How an engine lays its blocks out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// One plane per layer and K or V, as engines do: a block lies in 64 pieces.
    LayerFirst,
    /// Block after block.
    Contiguous,
}

impl Shape {
    /// Planes over `slots` slots, from byte 0 on.
    fn planes(self, slots: u32) -> Vec<pb::Plane> {
        match self {
            Self::LayerFirst => (0..u64::from(PLANES))
                .map(|plane| pb::Plane {
                    base: plane * u64::from(slots) * PLANE_BYTES,
                    stride: PLANE_BYTES,
                    len: PLANE_BYTES,
                })
                .collect(),
            Self::Contiguous => vec![pb::Plane {
                base: 0,
                stride: BLOCK_BYTES,
                len: BLOCK_BYTES,
            }],
        }
    }
}

/// The engine's KV memory: a file that its agent maps.
#[derive(Debug)]
pub(super) struct KvMemory {
    file: File,
    path: PathBuf,
    planes: Vec<pb::Plane>,
}

impl KvMemory {
    fn create(path: PathBuf, shape: Shape, slots: u32) -> Result<Self, EngineError> {
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path);
        let allocated = opened.and_then(|file| {
            // Taken now: a full file system is an error here and a dead agent later.
            let bytes = u64::from(slots) * BLOCK_BYTES;
            fallocate(&file, FallocateFlags::empty(), 0, bytes)?;
            Ok(file)
        });
        match allocated {
            Ok(file) => Ok(Self {
                file,
                path,
                planes: shape.planes(slots),
            }),
            Err(source) => Err(EngineError::Memory { path, source }),
        }
    }

    /// Writes a slot, plane by plane.
    pub(super) fn write(&self, slot: u32, block: &[u8]) -> Result<(), EngineError> {
        let mut rest = block;
        for plane in &self.planes {
            let (piece, after) = rest.split_at(rest.len().min(plane.len as usize));
            let written = self.file.write_all_at(piece, offset(plane, slot));
            written.map_err(|source| self.failed(source))?;
            rest = after;
        }
        Ok(())
    }

    /// Reads a slot, plane by plane.
    pub(super) fn read(&self, slot: u32, block: &mut [u8]) -> Result<(), EngineError> {
        let mut rest = block;
        for plane in &self.planes {
            let (piece, after) = rest.split_at_mut(rest.len().min(plane.len as usize));
            let read = self.file.read_exact_at(piece, offset(plane, slot));
            read.map_err(|source| self.failed(source))?;
            rest = after;
        }
        Ok(())
    }

    fn failed(&self, source: io::Error) -> EngineError {
        EngineError::Memory {
            path: self.path.clone(),
            source,
        }
    }
}

fn offset(plane: &pb::Plane, slot: u32) -> u64 {
    plane.base + u64::from(slot) * plane.stride
}

/// What a pull came to.
#[derive(Debug)]
pub(super) struct Pulled {
    /// One per hash, in the order of the request.
    pub(super) outcomes: Vec<pb::BlockOutcome>,
    pub(super) summary: pb::PullSummary,
    /// As the engine saw it.
    pub(super) ended: Instant,
}

/// One engine; clones share its memory and its connection.
#[derive(Debug, Clone)]
pub(super) struct Engine {
    pub(super) node: String,
    pub(super) memory: Arc<KvMemory>,
    agent: Agent,
    region: u32,
    namespace: String,
    hash_len: HashLen,
}

impl Engine {
    /// Makes the memory and registers it with the agent behind the socket.
    pub(super) async fn start(
        node: &str,
        socket: &Path,
        directory: &Path,
        spec: &NamespaceSpec,
        shape: Shape,
        slots: u32,
    ) -> Result<Self, EngineError> {
        let memory = KvMemory::create(directory.join(node), shape, slots)?;
        let of_agent = |source| EngineError::Agent {
            node: node.to_owned(),
            source,
        };
        let mut agent = client::agent(socket).await.map_err(of_agent)?;
        let source = pb::PathSource {
            path: memory.path.display().to_string(),
        };
        let request = pb::RegisterRegionRequest {
            namespace: Some(spec.into()),
            source: Some(pb::register_region_request::Source::Path(source)),
            geometry: Some(pb::Geometry {
                slots,
                planes: memory.planes.clone(),
            }),
            // Ends with this engine.
            keep_on_disconnect: false,
        };
        let region = Call::agent("register the memory", CALL_BOUND)
            .answer(agent.register_region(request))
            .await
            .map_err(of_agent)?;
        // Mapped on both sides now: without a name it is gone with its users, however they end.
        fs::remove_file(&memory.path).map_err(|source| memory.failed(source))?;
        Ok(Self {
            node: node.to_owned(),
            memory: Arc::new(memory),
            agent,
            region: region.region,
            namespace: spec.name.to_string(),
            hash_len: spec.hash_len,
        })
    }

    /// Takes slots for writing.
    pub(super) async fn reserve(&mut self, slots: &[u32]) -> Result<(), EngineError> {
        let request = pb::ReserveRequest {
            region: self.region,
            count: 0,
            slots: slots.to_vec(),
        };
        let call = Call::agent("reserve slots", CALL_BOUND);
        let answer = call.answer(self.agent.reserve(request)).await;
        answer.map(drop).map_err(|source| self.failed(source))
    }

    /// Declares reserved slots complete, and waits until the coordinator lists them.
    pub(super) async fn seal(
        &mut self,
        slots: &[u32],
        hashes: &[BlockHash],
        parent: Option<BlockHash>,
    ) -> Result<(), EngineError> {
        let request = pb::SealRequest {
            region: self.region,
            slots: slots.to_vec(),
            hashes: Some(self.packed(hashes)?),
            chained: true,
            parent: parent_bytes(parent),
            wait_announced_ms: ANNOUNCE_MS,
        };
        let bound = CALL_BOUND + Duration::from_millis(u64::from(ANNOUNCE_MS));
        let call = Call::agent("seal slots", bound);
        let answer = call.answer(self.agent.seal(request)).await;
        match answer.map_err(|source| self.failed(source))?.announced {
            true => Ok(()),
            false => Err(EngineError::NotAnnounced {
                node: self.node.clone(),
            }),
        }
    }

    /// Gives reserved slots back unsealed.
    pub(super) async fn abort(&mut self, slots: &[u32]) -> Result<(), EngineError> {
        let request = pb::AbortRequest {
            region: self.region,
            slots: slots.to_vec(),
        };
        let call = Call::agent("take slots back", CALL_BOUND);
        let answer = call.answer(self.agent.abort(request)).await;
        answer.map(drop).map_err(|source| self.failed(source))
    }

    /// Drops these blocks; all of them where none is named.
    pub(super) async fn evict(&mut self, hashes: &[BlockHash]) -> Result<(), EngineError> {
        let request = pb::EvictRequest {
            namespace: self.namespace.clone(),
            hashes: Some(self.packed(hashes)?),
        };
        let call = Call::agent("evict blocks", CALL_BOUND);
        let answer = call.answer(self.agent.evict(request)).await;
        answer.map(drop).map_err(|source| self.failed(source))
    }

    /// Pulls blocks into slots; `landed` is called as outcomes arrive, with their number.
    pub(super) async fn pull(
        &mut self,
        hashes: &[BlockHash],
        slots: Vec<u32>,
        parent: Option<BlockHash>,
        timeout_ms: u32,
        mut landed: impl FnMut(usize),
    ) -> Result<Pulled, EngineError> {
        let request = pb::PullRequest {
            namespace: self.namespace.clone(),
            hashes: Some(self.packed(hashes)?),
            timeout_ms,
            destination: Some(pb::pull_request::Destination::Slots(pb::SlotDestination {
                region: self.region,
                slots,
            })),
            no_replica: false,
            chained: true,
            parent: parent_bytes(parent),
            columns: false,
            stages: Vec::new(),
        };
        let bound = Duration::from_millis(u64::from(timeout_ms)) + DEADLINE_SLACK;
        let call = Call::agent("give every block an outcome", bound);
        let mut agent = self.agent.clone();
        // One bound over the whole stream: it is the deadline that is shown.
        let collected = call.within(async {
            let mut stream = agent.pull(request).await?.into_inner();
            let mut outcomes = Vec::new();
            let mut summary = None;
            while let Some(event) = stream.message().await? {
                landed(event.outcomes.len());
                outcomes.extend(event.outcomes);
                summary = summary.or(event.summary);
            }
            Ok((outcomes, summary))
        });
        let (outcomes, summary) = collected.await.map_err(|source| self.failed(source))?;
        Ok(Pulled {
            outcomes: self.in_order(outcomes, hashes.len())?,
            summary: summary.unwrap_or_default(),
            ended: Instant::now(),
        })
    }

    /// Exactly one outcome per block, sorted.
    fn in_order(
        &self,
        mut outcomes: Vec<pb::BlockOutcome>,
        want: usize,
    ) -> Result<Vec<pb::BlockOutcome>, EngineError> {
        let got = outcomes.len();
        outcomes.sort_by_key(|outcome| outcome.index);
        let each = (0..want).zip(&outcomes);
        if got != want || !{ each }.all(|(index, outcome)| outcome.index as usize == index) {
            return Err(EngineError::Outcomes {
                node: self.node.clone(),
                got,
                want,
            });
        }
        Ok(outcomes)
    }

    fn packed(&self, hashes: &[BlockHash]) -> Result<pb::PackedHashes, HashError> {
        Ok(PackedHashes::pack(self.hash_len, hashes)?.into())
    }

    fn failed(&self, source: ClientError) -> EngineError {
        EngineError::Agent {
            node: self.node.clone(),
            source,
        }
    }
}

fn parent_bytes(parent: Option<BlockHash>) -> Bytes {
    parent.map_or_else(Bytes::new, |hash| Bytes::copy_from_slice(hash.as_bytes()))
}

#[cfg(test)]
mod tests {
    use kvferry_proto::Geometry;

    use super::*;
    use crate::demo::workload::Workload;

    #[test]
    fn a_block_comes_back_from_any_shape() {
        let directory = tempfile::tempdir().unwrap();
        let block: Vec<u8> = (0..BLOCK_BYTES).map(|n| (n / PLANE_BYTES) as u8).collect();
        let other = vec![0xee; BLOCK_BYTES as usize];
        for shape in [Shape::LayerFirst, Shape::Contiguous] {
            let path = directory.path().join(format!("{shape:?}"));
            let memory = KvMemory::create(path, shape, 3).unwrap();
            memory.write(1, &block).unwrap();
            memory.write(0, &other).unwrap();
            memory.write(2, &other).unwrap();
            let mut read = vec![0; block.len()];
            memory.read(1, &mut read).unwrap();
            assert!(read == block, "{shape:?}");
        }
    }

    #[test]
    fn layers_come_before_slots() {
        let planes = Shape::LayerFirst.planes(10);
        assert_eq!(planes.len(), 64);
        assert_eq!(planes[1].base, 10 * PLANE_BYTES);
        assert_eq!(offset(&planes[1], 2), 12 * PLANE_BYTES);
    }

    #[test]
    fn every_shape_is_a_geometry_of_the_layout() {
        let input = tempfile::NamedTempFile::new().unwrap();
        fs::write(input.path(), "x").unwrap();
        let workload = Workload::open(input.path(), 1).unwrap();
        for shape in [Shape::LayerFirst, Shape::Contiguous] {
            let geometry = pb::Geometry {
                slots: 10,
                planes: shape.planes(10),
            };
            let geometry = Geometry::try_from(geometry).unwrap();
            geometry
                .fits(&workload.spec().layout, 10 * BLOCK_BYTES)
                .unwrap();
        }
    }
}
