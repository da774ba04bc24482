//! Pieces of work whose instructions are counted: a count is the same on a quiet machine and on a busy
//! one, so that a regression of a few percent shows anywhere. It says nothing of caches and waits; figures
//! in seconds are the other benchmarks'.
//!
//! | file | what |
//! | --- | --- |
//! | [`work`] | the pieces |
//! | [`count`] | counting, by callgrind, in a process of its own |

pub mod count;
pub mod work;

/// Why nothing was counted.
#[derive(Debug, thiserror::Error)]
pub enum InstructionsError {
    /// No valgrind, or it cannot be run.
    #[error("valgrind cannot be run: {0}; install it (Debian: apt-get install valgrind)")]
    Valgrind(std::io::Error),
    /// The work failed under it; what it said is above.
    #[error("{work} ended with {status} under valgrind")]
    Failed {
        /// Which.
        work: String,
        /// How.
        status: std::process::ExitStatus,
    },
    /// There is no count in what it said.
    #[error("valgrind gave no count for {work}")]
    NoCount {
        /// Which.
        work: String,
    },
    /// A piece of work came to something else than it should.
    #[error("{0} did not come to what it should: a defect")]
    Wrong(&'static str),
    /// A message of ours made no sense: a defect of the benchmark.
    #[error(transparent)]
    Message(#[from] kvferry_proto::InvalidMessage),
    /// A pool could not be made.
    #[error(transparent)]
    Pool(#[from] kvferry_agent::region::RegisterError),
    /// An earlier run cannot be read.
    #[error("{path}: {source}", path = path.display())]
    Earlier {
        /// Where.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// An earlier run makes no sense.
    #[error("not a line of an earlier run: {0}")]
    Json(#[from] serde_json::Error),
}
