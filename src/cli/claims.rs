//! What can be typed after `kvferry claims`.

use clap::{Args, Subcommand};

use crate::client::Reach;

#[derive(Debug, Args)]
pub(crate) struct ClaimsArgs {
    #[command(subcommand)]
    pub(crate) action: Option<ClaimsAction>,
    /// Print JSON.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ClaimsAction {
    /// Who holds claims now, and how many (also without a word).
    List {
        /// Of this namespace only.
        #[arg(long, short)]
        namespace: Option<String>,
    },
    /// Claim blocks for the agent on this host; they stay until released, published or expired.
    Claim {
        /// Block hashes, in hexadecimal.
        #[arg(value_name = "HASH", required = true)]
        hashes: Vec<String>,
        /// The namespace the hashes belong to.
        #[arg(long, short)]
        namespace: String,
        /// How long they are held at most.
        #[arg(long, default_value_t = 30_000, value_name = "MS",
              value_parser = clap::value_parser!(u32).range(1..=600_000))]
        ttl_ms: u32,
    },
    /// Give back all that was claimed under a token.
    Release {
        /// As `claim` printed it.
        token: String,
    },
}
