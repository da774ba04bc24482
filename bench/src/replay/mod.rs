//! A request trace through a cluster: what its caches would have spared whom.
//!
//! | module | what |
//! | --- | --- |
//! | [`trace`] | the trace, parsed |
//! | [`model`] | how many bytes a token's KV takes |
//! | [`route`] | which node gets a request |
//! | [`live`] | in real time, through real agents |
//! | [`simulate`] | faster: the same code over a modelled network |
//! | [`ledger`], [`result`] | what came of it |
//! | [`table`], [`html`] | for people |

mod engine;
pub mod html;
pub mod ledger;
pub mod live;
pub mod model;
pub mod result;
pub mod route;
pub mod simulate;
pub mod table;
pub mod trace;

use std::time::Duration;

use bytes::BytesMut;
use kvferry_proto::BlockHash;
use route::Routing;
pub(crate) use trace::tokens_of;

use crate::workload::put_hash;

/// By when every block of a pull has an outcome.
pub(crate) const PULL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a request keeps its blocks at most, should it never end.
pub(crate) const PIN_TTL: Duration = Duration::from_secs(600);

/// What a trace is driven through.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Agents, each beside an engine of its own.
    pub nodes: u32,
    /// Memory of each one's pool.
    pub pool_bytes: u64,
    /// Bytes of a block of [`trace::TOKENS_PER_BLOCK`] tokens.
    pub block_bytes: u64,
    /// Where the size of a block comes from, in words.
    pub model: String,
    /// Which node gets a request.
    pub routing: Routing,
    /// The trace's times are divided by this, and so is the time a prefill takes.
    pub speed: f64,
    /// Tokens a node computes in a second.
    pub prefill_tokens_per_s: f64,
}

impl Plan {
    /// How long computing so many tokens takes where time is not compressed.
    #[must_use]
    pub fn prefill(&self, tokens: u64) -> Duration {
        Duration::try_from_secs_f64(tokens as f64 / self.prefill_tokens_per_s)
            .unwrap_or(Duration::MAX)
    }

    /// How long it takes in a run.
    pub(crate) fn compressed_prefill(&self, tokens: u64) -> Duration {
        self.prefill(tokens).div_f64(self.speed)
    }

    /// When a request arrives in a run.
    pub(crate) fn arrival(&self, request: &trace::Request) -> Duration {
        request.at.div_f64(self.speed)
    }

    /// Blocks a pool has room for.
    #[must_use]
    pub fn slots(&self) -> u64 {
        self.pool_bytes / self.block_bytes.max(1)
    }

    /// In a few words, unique among the plans of a run.
    #[must_use]
    pub fn name(&self) -> String {
        format!(
            "{} nodes x {}, {}",
            self.nodes,
            crate::transfer::point::size(self.pool_bytes),
            self.routing.as_str()
        )
    }
}

/// A block's hash, from its number in the trace.
pub(crate) fn hash(number: u64) -> Result<BlockHash, ReplayError> {
    let mut bytes = BytesMut::with_capacity(crate::workload::HASH_LEN);
    put_hash(number, &mut bytes);
    Ok(BlockHash::new(&bytes)?)
}

/// Why a replay stopped. None of these is a poor hit ratio.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The plan leaves a pool without room for a single block.
    #[error(
        "a pool of {pool_bytes} bytes has no room for a block of {block_bytes}: give nodes larger pools, or blocks fewer bytes"
    )]
    PoolTooSmall {
        /// The pool.
        pool_bytes: u64,
        /// The block.
        block_bytes: u64,
    },
    /// The machine cannot hold the pools.
    #[error(
        "pools of {wanted} bytes in all do not fit the {available} bytes this machine has left: fewer nodes, smaller pools, or --simulate"
    )]
    NoMemory {
        /// All pools together.
        wanted: u64,
        /// What the kernel calls available.
        available: u64,
    },
    /// A block has other bytes than those it was stored with.
    #[error("WRONG BYTES: block {block} in slot {slot} of {node}")]
    WrongBytes {
        /// Its number in the trace.
        block: u64,
        /// Where it lies.
        slot: u32,
        /// Whose.
        node: String,
    },
    /// A pull ended without an outcome for every block.
    #[error("a pull gave {got} outcomes for {want} blocks")]
    Outcomes {
        /// Outcomes.
        got: usize,
        /// Blocks.
        want: usize,
    },
    /// An agent refused a call.
    #[error("{node}: a call failed: {source}")]
    Call {
        /// Which.
        node: String,
        /// What it said.
        source: Box<tonic::Status>,
    },
    /// An agent cannot be reached.
    #[error("no agent answers: {0}")]
    Connect(#[from] tonic::transport::Error),
    /// A pool's memory could not be had.
    #[error(transparent)]
    Descriptor(#[from] kvferry_agent::transport::shm::DescriptorError),
    /// A pool's memory could not be mapped.
    #[error(transparent)]
    Memory(#[from] kvferry_memory::MemoryError),
    /// A pool's memory cannot be read or written.
    #[error(transparent)]
    Access(#[from] kvferry_memory::AccessError),
    /// A simulated pool could not be made.
    #[error("a simulated pool cannot be made: {0}")]
    Pool(#[from] kvferry_agent::region::RegisterError),
    /// The simulated parts disagree: a defect, in the model or in what it drives.
    #[error("the simulation is out of step: {0}")]
    OutOfStep(simulate::OutOfStep),
    /// A layout cannot be had.
    #[error(transparent)]
    Layout(#[from] kvferry_proto::LayoutError),
    /// A geometry makes no sense.
    #[error(transparent)]
    Geometry(#[from] kvferry_proto::GeometryError),
    /// A name makes no sense.
    #[error(transparent)]
    Name(#[from] kvferry_proto::IdError),
    /// A message makes no sense: a defect of the benchmark.
    #[error(transparent)]
    Message(#[from] kvferry_proto::InvalidMessage),
    /// As above, of hashes.
    #[error(transparent)]
    Hash(#[from] kvferry_proto::HashError),
    /// A task of ours was lost.
    #[error("a task of the benchmark ended: {0}")]
    Task(#[from] tokio::task::JoinError),
    /// The system does not say something.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl Plan {
    /// A pool must hold a block.
    pub(crate) fn check(&self) -> Result<(), ReplayError> {
        match self.slots() {
            0 => Err(ReplayError::PoolTooSmall {
                pool_bytes: self.pool_bytes,
                block_bytes: self.block_bytes,
            }),
            _ => Ok(()),
        }
    }
}
