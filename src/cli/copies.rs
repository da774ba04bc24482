//! What can be typed after `kvferry copies`.

use clap::Args;

use crate::client::Reach;

#[derive(Debug, Args)]
pub(crate) struct CopiesArgs {
    /// Whose blocks.
    pub(crate) namespace: String,
    /// Have this many copies of every block, on different nodes; 1 takes it back.
    #[arg(long, value_name = "COPIES", value_parser = clap::value_parser!(u32).range(1..=16),
          conflicts_with = "hot")]
    pub(crate) min: Option<u32>,
    /// Blocks to have more copies of: their hashes, in hexadecimal.
    #[arg(long, value_name = "HASH", num_args = 1.., requires = "copies")]
    pub(crate) hot: Vec<String>,
    /// Copies of the hot blocks; 0 takes back what was asked for them.
    #[arg(long, value_parser = clap::value_parser!(u32).range(..=16), requires = "hot")]
    pub(crate) copies: Option<u32>,
    /// How long the hot blocks are to have them.
    #[arg(long, default_value_t = 3_600_000, value_name = "MS",
          value_parser = clap::value_parser!(u32).range(1..=86_400_000))]
    pub(crate) ttl_ms: u32,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) reach: Reach,
}
