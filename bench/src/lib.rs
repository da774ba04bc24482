//! What kvferry's benchmarks are made of; the binaries beside it are small.
//!
//! | module | what |
//! | --- | --- |
//! | [`workload`] | which block is where, and what its hash is: all computed, nothing stored |
//! | [`stats`] | percentiles and medians over rounds |
//! | [`report`] | a figure, for people or as a line of JSON |
//! | [`memory`] | what the process holds |
//! | [`server`] | a coordinator on threads of its own |
//! | [`publish`] | agents that publish through sessions |
//! | [`locate`] | readers that ask |
//! | [`open_loop`] | readers that ask at a fixed rate |
//! | [`claims`] | nodes that claim blocks and release them |
//! | [`watch`] | a router that watches |
//! | [`churn`] | nodes that replace blocks while readers ask |
//! | [`vanish`] | a node that goes while readers ask |
//! | [`coordinator`] | all of these, one after the other: `kvferry bench coordinator` |
//! | [`compare`] | what changed between two runs of a benchmark |
//! | [`soak`] | an hour of churn in minutes, and the curve of the coordinator's memory |
//! | [`in_process`] | the directory without a wire |
//! | [`random_lines`] | its yardstick: what memory gives at most |
//! | [`cpu_time`] | a thread's time on a core |
//! | [`instructions`] | pieces of work whose instructions are counted |
//! | [`replay`] | a request trace through a cluster, real or simulated |
//! | [`transfer`] | pulls between real agents, beside plain sockets and copies |

pub mod churn;
pub mod claims;
pub mod compare;
pub mod coordinator;
pub mod cpu_time;
pub mod in_process;
pub mod instructions;
mod light;
pub mod locate;
pub mod memory;
pub mod open_loop;
mod page;
mod plot;
pub mod publish;
pub mod random_lines;
pub mod replay;
pub mod report;
pub mod server;
pub mod soak;
pub mod stats;
pub mod transfer;
pub mod vanish;
pub mod watch;
pub mod workload;

/// Why a benchmark stopped. None of these is a slow figure.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The coordinator did not start.
    #[error(transparent)]
    Start(#[from] kvferry_coordinator::StartError),
    /// Threads or sockets could not be had.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// No connection.
    #[error(transparent)]
    Connect(#[from] tonic::transport::Error),
    /// A call was refused.
    #[error("a call failed: {0}")]
    Call(Box<tonic::Status>),
    /// A message of ours made no sense: a defect of the benchmark.
    #[error(transparent)]
    Message(#[from] kvferry_proto::InvalidMessage),
    /// The coordinator said or did something else than was asked.
    #[error("wrong answer: {0}")]
    Wrong(String),
}

impl From<tonic::Status> for BenchError {
    fn from(status: tonic::Status) -> Self {
        Self::Call(Box::new(status))
    }
}
