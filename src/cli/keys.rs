//! What can be said to `kvferry keys`.

use std::{net::IpAddr, path::PathBuf};

use clap::{Args, Subcommand};

#[derive(Debug, Args)]
pub(crate) struct KeysArgs {
    #[command(subcommand)]
    pub(crate) action: KeysAction,
    /// Where the files are, and go.
    #[arg(
        long,
        global = true,
        default_value = "kvferry-keys",
        value_name = "DIR"
    )]
    pub(crate) dir: PathBuf,
    /// Replace files that are there: to renew what expires.
    #[arg(long, global = true)]
    pub(crate) force: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeysAction {
    /// Make a CA (ca.pem, ca.key), and a policy to begin with (policy.toml).
    Ca {
        /// What it is called.
        #[arg(long, default_value = "kvferry CA")]
        name: String,
        /// How long it is valid.
        #[arg(long, default_value_t = 3_650, value_name = "DAYS",
              value_parser = clap::value_parser!(u32).range(1..=36_500))]
        days: u32,
    },
    /// Make a certificate of that CA (NAME.pem, NAME.key): a coordinator's, a node's, or a person's.
    Cert {
        /// Whose: for an agent, its node's name.
        name: String,
        /// More names it is reached by.
        #[arg(long, value_name = "NAME[,...]", value_delimiter = ',')]
        dns: Vec<String>,
        /// Addresses it is reached by.
        #[arg(long, value_name = "IP[,...]", value_delimiter = ',')]
        ip: Vec<IpAddr>,
        /// How long it is valid.
        #[arg(long, default_value_t = 365, value_name = "DAYS",
              value_parser = clap::value_parser!(u32).range(1..=36_500))]
        days: u32,
    },
    /// Make a key to sign tickets with, for the coordinators' `ticket_key`.
    #[command(after_help = "\
All coordinators of a cluster have the same file. To change the key: `--rotate`, copy the file to all of them, restart
them one after the other. What the key before signed stays good, and is signed with it for a minute more.

Examples:
  kvferry keys ticket /etc/kvferry/ticket.key
  kvferry keys ticket --rotate /etc/kvferry/ticket.key")]
    Ticket {
        /// The file; only its owner will be able to read it.
        file: PathBuf,
        /// Put a new key before the one that is there, which is kept to be believed.
        #[arg(long)]
        rotate: bool,
    },
    /// Make a token (NAME.token), and print what the policy needs of it.
    Token {
        /// Whose.
        name: String,
    },
}
