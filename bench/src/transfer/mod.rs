//! Transfers between real agents, beside what the machine gives without them.
//!
//! | module | what |
//! | --- | --- |
//! | [`point`] | what is measured: one point is one way to pull |
//! | [`measure`] | the rounds of one point: pulls and yardsticks in turn, bytes compared |
//! | [`yardstick`] | plain sockets and plain copies, in processes of their own |
//! | [`process`] | processor time, ours and others' |
//! | [`result`] | what came of a point |
//! | [`table`], [`html`], [`compare`] | for people |

pub mod compare;
mod engine;
pub mod html;
pub mod measure;
pub mod point;
pub mod process;
pub mod result;
mod rounds;
pub mod table;
pub mod yardstick;

pub use engine::AgentAt;
pub(crate) use engine::connect;

/// Why a measurement stopped. None of these is a slow figure.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// A block did not come, or not the way it should.
    #[error("block {block} was not pulled as asked: {outcome} over {transport:?}: {detail}")]
    NotPulled {
        /// Its number in the call.
        block: u32,
        /// What became of it.
        outcome: String,
        /// How it came.
        transport: String,
        /// What the agent said.
        detail: String,
    },
    /// A pull ended without an outcome for every block.
    #[error("a pull gave {got} outcomes for {want} blocks")]
    Outcomes {
        /// Outcomes.
        got: usize,
        /// Blocks.
        want: usize,
    },
    /// A block has other bytes than its owner's.
    #[error("WRONG BYTES: block {block} on {node} differs from its owner's")]
    WrongBytes {
        /// Its number.
        block: u64,
        /// Who pulled it.
        node: String,
    },
    /// The coordinator did not list what was published.
    #[error("the coordinator did not list the owner's blocks in time")]
    NotListed,
    /// The point cannot be measured.
    #[error("not a point that can be measured: {0}")]
    Point(String),
    /// A yardstick's process ended; what it said is above.
    #[error("a yardstick's process ended before it was told to")]
    Yardstick,
    /// `ib_read_bw` gave no figure.
    #[error("ib_read_bw gave no figure: {0}")]
    ReadBw(String),
    /// An agent refused a call.
    #[error("a call failed: {0}")]
    Call(Box<tonic::Status>),
    /// An agent cannot be reached.
    #[error("no agent answers: {0}")]
    Connect(#[from] tonic::transport::Error),
    /// Memory could not be handed to an agent.
    #[error(transparent)]
    Deposit(#[from] kvferry_agent::transport::shm::DescriptorError),
    /// No memory.
    #[error(transparent)]
    Memory(#[from] kvferry_memory::MemoryError),
    /// Memory cannot be read or written.
    #[error(transparent)]
    Access(#[from] kvferry_memory::AccessError),
    /// A message of ours made no sense: a defect of the benchmark.
    #[error(transparent)]
    Message(#[from] kvferry_proto::InvalidMessage),
    /// As above, of hashes.
    #[error(transparent)]
    Hash(#[from] kvferry_proto::HashError),
    /// Pipes or sockets.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A line to or from a yardstick's process makes no sense.
    #[error("a yardstick's process was misunderstood: {0}")]
    Json(#[from] serde_json::Error),
    /// A task of ours was lost.
    #[error("a task of the benchmark ended: {0}")]
    Task(#[from] tokio::task::JoinError),
}

impl From<tonic::Status> for TransferError {
    fn from(status: tonic::Status) -> Self {
        Self::Call(Box::new(status))
    }
}
