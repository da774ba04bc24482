//! What the machine gives without kvferry: plain sockets and plain copies, in processes of their own.
//!
//! The owner serves bytes of its memory, request by request; the reader asks for the blocks of a batch
//! with one write, and takes the answers block by block. Blocks in many pieces are gathered and scattered by vectored
//! writes and reads, a block a call. No validation, no directory, no engine: the
//! least that a transfer of that shape can cost.

mod child;
pub mod read_bw;
mod sockets;

use std::{
    io,
    path::{Path, PathBuf},
    process::Stdio,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use super::{TransferError, point::size, process::cpu_seconds};

pub use child::{Role, run};
use read_bw::Device;

/// What the reader is told to do, as one line of JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Which yardstick.
    pub kind: Kind,
    /// Bytes of a block.
    pub block_bytes: u64,
    /// Pieces that a block lies in, on both sides, each in a part of the memory of its own.
    pub pieces: u32,
    /// Blocks of a batch.
    pub batch: u32,
    /// Connections, or threads that copy.
    pub lanes: u32,
    /// How long; at least one batch is measured.
    pub millis: u64,
}

/// Sockets or copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Plain sockets.
    Sockets,
    /// Copies between two shared mappings.
    Memcpy,
    /// `ib_read_bw`, in two processes of its own.
    ReadBw,
}

impl Task {
    /// In a few words.
    #[must_use]
    pub fn name(&self) -> String {
        let block = match u64::from(self.pieces) {
            0 | 1 => size(self.block_bytes),
            pieces => format!("({pieces} x {})", size(self.block_bytes / pieces)),
        };
        let shape = format!("{} x {block}", self.batch);
        match self.kind {
            Kind::Sockets => format!("sockets {shape}, {} conn", self.lanes),
            Kind::ReadBw => format!("ib_read_bw {}", size(self.block_bytes)),
            Kind::Memcpy => format!("memcpy {shape}, {} thread(s)", self.lanes),
        }
    }
}

/// What came of it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Done {
    /// Bytes that arrived.
    pub bytes: u64,
    /// How long it took.
    pub nanos: u64,
    /// Per batch.
    pub batch_nanos: Vec<u64>,
}

/// The line an owner prints: where it listens.
#[derive(Debug, Serialize, Deserialize)]
struct Listening {
    port: u16,
}

/// The two processes. They end with this guard.
pub struct Yardstick {
    owner: Process,
    reader: Process,
    /// `ib_read_bw`, and the device that it reads over.
    read_bw: Option<(PathBuf, Device)>,
}

impl Yardstick {
    /// Starts both: `program` with `arguments` and a role runs [`run`]. Each has `bytes` of memory.
    ///
    /// # Errors
    /// [`TransferError::Yardstick`].
    pub async fn start(
        program: &Path,
        arguments: &[&str],
        bytes: u64,
    ) -> Result<Self, TransferError> {
        let bytes = bytes.to_string();
        let start = |role: &str, more: &[String]| {
            let mut command = Command::new(program);
            command.args(arguments).args(["--role", role]);
            command.args(["--bytes", &bytes]).args(more);
            Process::start(&mut command)
        };
        let mut owner = start("owner", &[])?;
        let listening: Listening = owner.line().await?;
        let port = ["--port".to_owned(), listening.port.to_string()];
        let mut reader = start("reader", &port)?;
        reader.line::<Done>().await?;
        Ok(Self {
            owner,
            reader,
            read_bw: None,
        })
    }

    /// Has `ib_read_bw` over this device beside what is pulled by RDMA, where it is installed.
    #[must_use]
    pub fn with_device(mut self, device: Option<Device>) -> Self {
        self.read_bw = read_bw::installed().zip(device);
        self
    }

    /// Is there `ib_read_bw` and a device for it?
    #[must_use]
    pub fn has_read_bw(&self) -> bool {
        self.read_bw.is_some()
    }

    /// Measures; gives the processor time of both processes too.
    ///
    /// # Errors
    /// [`TransferError::Yardstick`] or [`TransferError::ReadBw`].
    pub async fn measure(&mut self, task: &Task) -> Result<(Done, f64), TransferError> {
        if task.kind == Kind::ReadBw {
            let (program, device) = self.read_bw.as_ref().ok_or(TransferError::Yardstick)?;
            return read_bw::measure(program, device, task).await;
        }
        let used = |pids: [u32; 2]| pids.into_iter().map(cpu_seconds).sum::<f64>();
        let before = used(self.pids());
        self.reader.tell(task).await?;
        let done = self.reader.line().await?;
        Ok((done, used(self.pids()) - before))
    }

    /// Owner and reader.
    #[must_use]
    pub fn pids(&self) -> [u32; 2] {
        [self.owner.pid, self.reader.pid]
    }
}

struct Process {
    pid: u32,
    /// Killed when this goes.
    _child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Process {
    fn start(command: &mut Command) -> Result<Self, TransferError> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let gone = || TransferError::from(io::Error::from(io::ErrorKind::BrokenPipe));
        let (input, output) = (child.stdin.take(), child.stdout.take());
        Ok(Self {
            pid: child.id().ok_or_else(gone)?,
            input: input.ok_or_else(gone)?,
            output: BufReader::new(output.ok_or_else(gone)?),
            _child: child,
        })
    }

    async fn tell(&mut self, task: &Task) -> Result<(), TransferError> {
        let mut line = serde_json::to_string(task)?;
        line.push('\n');
        self.input.write_all(line.as_bytes()).await?;
        Ok(self.input.flush().await?)
    }

    async fn line<T: DeserializeOwned>(&mut self) -> Result<T, TransferError> {
        let mut line = String::new();
        match self.output.read_line(&mut line).await? {
            0 => Err(TransferError::Yardstick),
            _ => Ok(serde_json::from_str(&line)?),
        }
    }
}
