//! What can be typed after `kvferry keys`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Debug, Args)]
pub(crate) struct KeysArgs {
    #[command(subcommand)]
    pub(crate) action: KeysAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeysAction {
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
}
