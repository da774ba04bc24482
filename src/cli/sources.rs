//! `kvferry sources ...`

use std::path::PathBuf;

use clap::{Args, Subcommand};
use kvferry_agent::config::ByteSize;

use crate::client::Reach;

#[derive(Debug, Args)]
pub(crate) struct SourcesArgs {
    #[command(subcommand)]
    pub(crate) action: Option<SourcesAction>,
    /// Print JSON.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SourcesAction {
    /// All sources, light (also without a word).
    List(ListSources),
    /// One rank's workers and tensors.
    Get {
        /// The source's id.
        id: String,
        /// Which rank.
        #[arg(long, default_value_t = 0)]
        rank: u32,
    },
    /// How a source and its workers stand.
    Status {
        /// The source's id.
        id: String,
    },
    /// End a source's workers: their agents withdraw them.
    Remove {
        /// The source's id.
        id: String,
        /// Only this node's.
        #[arg(long)]
        node: Option<String>,
    },
    /// Publish the tensors of safetensors files from this host's memory.
    #[command(after_help = "\
The tensors are copied to shared memory, and stay there until they are withdrawn or removed, or the
agent ends. Files that are published together are one set.

Example:
  kvferry sources publish model-*.safetensors --name org/llama-3-8b --revision main")]
    Publish(PublishArgs),
    /// End what this host's agent publishes of a source.
    Withdraw {
        /// The source's id.
        id: String,
        /// Which rank.
        #[arg(long, default_value_t = 0)]
        rank: u32,
    },
    /// Bring tensors here, as a safetensors file.
    #[command(after_help = "\
What has come is kept beside the output until all is here: run the same command again to go on, also
when it was interrupted. A restart of this host's agent loses it.

Example:
  kvferry sources pull 4455c7c819490e180ae6928fa6bb8549 -o model.safetensors")]
    Pull(PullArgs),
}

#[derive(Debug, Args, Default)]
pub(crate) struct ListSources {
    /// Only of this namespace.
    #[arg(long, short)]
    pub(crate) namespace: Option<String>,
    /// Only with a name that begins so.
    #[arg(long)]
    pub(crate) name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct PublishArgs {
    /// Safetensors files.
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// The source's name: a model's, say.
    #[arg(long)]
    pub(crate) name: String,
    /// Which version of it.
    #[arg(long, default_value = "")]
    pub(crate) revision: String,
    /// The namespace its chunks belong to; created where it does not exist.
    #[arg(long, short, default_value = "sources")]
    pub(crate) namespace: String,
    /// Which rank these tensors are of.
    #[arg(long, default_value_t = 0)]
    pub(crate) rank: u32,
    /// Ranks there are. The ranks of one source have one id only if it is given by --content.
    #[arg(long, default_value_t = 1)]
    pub(crate) world_size: u32,
    /// What else tells it apart; several may be given.
    #[arg(long, value_name = "KEY=VALUE", value_parser = attribute)]
    pub(crate) attribute: Vec<(String, String)>,
    /// A digest of the whole source's content, in hexadecimal [default: SHA-256 of the tensors'
    /// bytes where there is one rank].
    #[arg(long, value_name = "HEX")]
    pub(crate) content: Option<String>,
    /// Bytes of a chunk in a new namespace; an existing one keeps its own.
    #[arg(long, default_value = "2MiB", value_name = "SIZE")]
    pub(crate) chunk_bytes: ByteSize,
    /// Where the memory is made.
    #[arg(long, default_value = "/dev/shm", value_name = "DIR")]
    pub(crate) dir: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// The source's id.
    pub(crate) id: String,
    /// Which rank.
    #[arg(long, default_value_t = 0)]
    pub(crate) rank: u32,
    /// Where the tensors go. The file appears whole or not at all.
    #[arg(long, short, value_name = "PATH")]
    pub(crate) output: PathBuf,
    /// Only this tensor; several may be given.
    #[arg(long, value_name = "NAME")]
    pub(crate) tensor: Vec<String>,
    /// Only tensors with a name that begins so; several may be given.
    #[arg(long, value_name = "TEXT")]
    pub(crate) prefix: Vec<String>,
    /// Give up what an interrupted pull has left, and pull nothing.
    #[arg(long)]
    pub(crate) discard: bool,
}

fn attribute(text: &str) -> Result<(String, String), &'static str> {
    match text.split_once('=') {
        Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
        None => Err("write KEY=VALUE"),
    }
}
