//! What can be typed after `kvferry`.

pub(crate) mod bench;
mod claims;
pub(crate) mod copies;
mod daemons;
mod keys;
mod sources;
pub(crate) mod watch;

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use kvferry_agent::config::ByteSize;

use crate::{
    client::{Known, Reach},
    demo::DemoArgs,
};

pub(crate) use claims::{ClaimsAction, ClaimsArgs};
pub(crate) use daemons::{AgentArgs, CoordinatorArgs};
#[cfg(test)]
pub(crate) use daemons::{AgentFlags, CoordinatorFlags};
pub(crate) use keys::{KeysAction, KeysArgs};
pub(crate) use sources::{ListSources, PublishArgs, PullArgs, SourcesAction, SourcesArgs};

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  it failed; the last line says what, to whom, and what to do
  2  bad usage or a refused setting; nothing was started or changed
  3  done in part: some blocks were not found or not pulled";

const SETTINGS_HELP: &str = "\
Settings come from a TOML file, KVFERRY_* variables and flags; flags win over variables, and those
over the file. A key `stall_bound_ms` of the file is KVFERRY_STALL_BOUND_MS and --stall-bound-ms.";

/// Moves KV-cache blocks between LLM inference nodes.
#[derive(Debug, Parser)]
#[command(version, after_help = EXIT_CODES, propagate_version = true)]
pub(crate) struct Cli {
    /// What is logged to stderr: a level, or a filter such as kvferry_agent=debug.
    #[arg(long, global = true, env = "KVFERRY_LOG", value_name = "FILTER")]
    pub(crate) log: Option<String>,
    /// Log JSON lines.
    #[arg(long, global = true)]
    pub(crate) log_json: bool,
    /// Send traces to an OpenTelemetry collector (OTLP over gRPC).
    #[cfg(feature = "otlp")]
    #[arg(long, global = true, env = "KVFERRY_OTLP_ENDPOINT", value_name = "URL")]
    pub(crate) otlp_endpoint: Option<String>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the coordinator: it knows which node holds which block.
    #[command(after_help = SETTINGS_HELP)]
    Coordinator(CoordinatorArgs),
    /// Run the agent beside an inference process.
    #[command(after_help = SETTINGS_HELP)]
    Agent(Box<AgentArgs>),
    /// Show the main job on this machine: publish, pull over TCP and shared memory, kill an owner.
    #[command(after_help = "\
Examples:
  kvferry demo
  kvferry demo --bytes 64MiB --json
  kvferry demo --input model.safetensors --bytes 4GiB")]
    Demo(DemoArgs),
    /// Measure transfers on this host, and compare runs.
    Bench(bench::BenchArgs),
    /// Cut a file into blocks, publish them, and write a manifest of their hashes.
    #[command(after_help = "\
A block's hash is the SHA-256 of its parent's hash and its bytes: equal files have equal hashes, and
whoever gets a block can check it.

Example:
  kvferry put prompt.kv --namespace team/llama-3-8b --wait-ms 5000")]
    Put(PutArgs),
    /// Bring a file back from its manifest, from wherever its blocks are.
    #[command(after_help = "Example:\n  kvferry get prompt.kv.kvf.json -o prompt.kv")]
    Get(GetArgs),
    /// Which nodes hold these blocks?
    #[command(after_help = "\
Examples:
  kvferry locate --manifest prompt.kv.kvf.json
  kvferry locate --namespace team/llama-3-8b dc918a88b139e5afe60b88eda27508d4aee16c10fdc354791efea06206ac0749")]
    Locate(LocateArgs),
    /// List, describe and drain nodes.
    Nodes(NodesArgs),
    /// List, describe, create and delete namespaces.
    Namespaces(NamespacesArgs),
    /// What changes in a namespace, as routers are told it: all that is there, then every change.
    #[command(after_help = "\
Every line begins with what --from takes to go on after it; \"-\" where that cannot be.

Examples:
  kvferry watch team/llama-3-8b
  kvferry watch team/llama-3-8b --once --json
  kvferry watch team/llama-3-8b --from 5f3a9c:120")]
    Watch(watch::WatchArgs),
    /// How many copies a namespace's blocks should have, and how far that is.
    #[command(after_help = "\
Examples:
  kvferry copies team/llama-3-8b
  kvferry copies team/llama-3-8b --min 2
  kvferry copies team/llama-3-8b --hot 4f1c... 9ab0... --copies 4 --ttl-ms 600000")]
    Copies(copies::CopiesArgs),
    /// Named sets of tensors (weights): list, describe, remove, publish and pull.
    Sources(SourcesArgs),
    /// Who may produce which blocks: list, claim and release.
    #[command(
        after_help = "Example:\n  kvferry claims claim -n team/llama-3-8b dc918a88b139e5afe60b88eda27508d4aee16c10fdc354791efea06206ac0749"
    )]
    Claims(ClaimsArgs),
    /// Make a CA, certificates, tokens, and the key of tickets, to secure a cluster with.
    #[command(after_help = "\
Examples:
  kvferry keys ca
  kvferry keys cert coordinator --ip 10.0.0.1
  kvferry keys cert node-7
  kvferry keys token router
  kvferry keys ticket /etc/kvferry/ticket.key")]
    Keys(KeysArgs),
    /// What the agent on this host holds and did.
    Stats(StatsArgs),
    /// What this host has for moving bytes, what is wrong with it and what to do; and how a peer is reached.
    #[command(after_help = "Example:\n  kvferry doctor --peer 10.0.0.2:7401")]
    Doctor(DoctorArgs),
    /// Print a shell's completions.
    #[command(after_help = "Example:\n  kvferry completions bash > /etc/bash_completion.d/kvferry")]
    Completions {
        /// Which shell's.
        shell: Shell,
    },
}

#[derive(Debug, Args)]
pub(crate) struct PutArgs {
    /// The file to publish.
    pub(crate) file: PathBuf,
    /// The namespace its blocks belong to; created where it does not exist.
    #[arg(long, short)]
    pub(crate) namespace: String,
    /// Bytes of a block in a new namespace; an existing one keeps its own.
    #[arg(long, default_value = "2MiB", value_name = "SIZE")]
    pub(crate) block_bytes: ByteSize,
    /// Memory of the agent's pool, where it has none for the namespace yet [default: the agent's own].
    #[arg(long, alias = "pool", value_name = "SIZE")]
    pub(crate) pool_bytes: Option<ByteSize>,
    /// Where the manifest goes [default: FILE.kvf.json].
    #[arg(long, value_name = "PATH")]
    pub(crate) manifest: Option<PathBuf>,
    /// Wait at most this long for the coordinator to list the blocks; 0: do not wait.
    #[arg(long, default_value_t = 5_000, value_name = "MS", value_parser = clap::value_parser!(u32).range(..=60_000))]
    pub(crate) wait_ms: u32,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    /// The manifest `put` wrote.
    pub(crate) manifest: PathBuf,
    /// Where the file goes. It appears whole or not at all.
    #[arg(long, short, value_name = "PATH")]
    pub(crate) output: PathBuf,
    /// Memory of the agent's pool, where it has none for the namespace yet [default: the agent's own].
    #[arg(long, alias = "pool", value_name = "SIZE")]
    pub(crate) pool_bytes: Option<ByteSize>,
    /// Do not publish what was pulled as a replica.
    #[arg(long)]
    pub(crate) no_replica: bool,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

#[derive(Debug, Args)]
pub(crate) struct LocateArgs {
    /// Block hashes, in hexadecimal.
    #[arg(
        value_name = "HASH",
        requires = "namespace",
        conflicts_with = "manifest",
        required_unless_present = "manifest"
    )]
    pub(crate) hashes: Vec<String>,
    /// The namespace the hashes belong to.
    #[arg(long, short, conflicts_with = "manifest")]
    pub(crate) namespace: Option<String>,
    /// Take namespace and hashes from a manifest.
    #[arg(long, short, value_name = "PATH")]
    pub(crate) manifest: Option<PathBuf>,
    /// Stop at the first block that nobody holds.
    #[arg(long)]
    pub(crate) prefix: bool,
    /// Owners to name per block.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub(crate) owners: u32,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

#[derive(Debug, Args)]
pub(crate) struct NodesArgs {
    #[command(subcommand)]
    pub(crate) action: Option<NodesAction>,
    /// Print JSON.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NodesAction {
    /// All nodes (also without a word).
    List,
    /// One node, with its regions and labels.
    Describe {
        /// Its name.
        node: String,
    },
    /// Offer a node last, give it no new work, and copy elsewhere what only it holds.
    Drain {
        /// Its name.
        node: String,
        /// Take the drain back.
        #[arg(long)]
        undo: bool,
        /// How long blocks are copied.
        #[arg(long, default_value_t = 600_000, value_name = "MS",
              value_parser = clap::value_parser!(u32).range(1..=86_400_000))]
        deadline_ms: u32,
        /// Wait until others hold all it holds, or the deadline has passed: then the exit code is 3.
        #[arg(long, conflicts_with = "undo")]
        wait: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct NamespacesArgs {
    #[command(subcommand)]
    pub(crate) action: Option<NamespacesAction>,
    /// Print JSON.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NamespacesAction {
    /// All namespaces (also without a word).
    List,
    /// One namespace: its layout, blocks, owners and bytes.
    Describe {
        /// Its name.
        name: String,
    },
    /// Create one; the same one again is no error, another layout is.
    Create(CreateArgs),
    /// Delete one.
    Delete {
        /// Its name.
        name: String,
        /// Although nodes still hold blocks of it.
        #[arg(long)]
        force: bool,
    },
    /// What is wanted of one: quotas, and how long locations are kept.
    ///
    /// Without options what was said is shown. Each option says one thing anew and leaves the others; 0 takes it back. A coordinator
    /// that restarts has to be told again.
    Policy(PolicyArgs),
}

#[derive(Debug, Args)]
pub(crate) struct PolicyArgs {
    /// Its name.
    pub(crate) name: String,
    /// Slots that nodes may declare in it, all together: a region beyond is refused.
    #[arg(long, value_name = "SLOTS")]
    pub(crate) max_slots: Option<u64>,
    /// The same in bytes of blocks.
    #[arg(long, value_name = "SIZE")]
    pub(crate) max_slot_bytes: Option<ByteSize>,
    /// Nodes that hold a block at most: copies beyond are the first that their pools evict.
    #[arg(long, value_name = "COPIES")]
    pub(crate) copies_wanted: Option<u32>,
    /// Blocks with a location in shared storage: beyond, the least recently used are forgotten.
    #[arg(long, value_name = "BLOCKS")]
    pub(crate) max_locations: Option<u64>,
    /// The same in bytes of blocks.
    #[arg(long, value_name = "SIZE")]
    pub(crate) max_location_bytes: Option<ByteSize>,
    /// How long after it was put a location is forgotten.
    #[arg(long, value_name = "MS")]
    pub(crate) location_ttl_ms: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Its name: tenant, model and layout, as you like.
    pub(crate) name: String,
    /// Element type, a free name.
    #[arg(long, default_value = "bf16")]
    pub(crate) dtype: String,
    /// Tokens a block stands for.
    #[arg(long, default_value_t = 16)]
    pub(crate) tokens_per_block: u32,
    /// Pieces of a block: layers x (K, V).
    #[arg(long, default_value_t = 64)]
    pub(crate) planes: u32,
    /// Bytes of a piece.
    #[arg(long, default_value = "32KiB", value_name = "SIZE")]
    pub(crate) plane_bytes: ByteSize,
    /// Bytes of a block's hash.
    #[arg(long, default_value_t = 32)]
    pub(crate) hash_len: u32,
    /// Which blocks carry a checksum.
    #[arg(long, value_parser = ["off", "sampled", "always"], default_value = "off")]
    pub(crate) checksum: String,
}

#[derive(Debug, Args)]
pub(crate) struct StatsArgs {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Try every way to this agent: its Peer service (`listen_peer`).
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) peer: Option<SocketAddr>,
    /// The node's name, whose certificate the peer must show [default: its address].
    #[arg(long, value_name = "NODE", requires = "peer")]
    pub(crate) peer_name: Option<String>,
    #[command(flatten)]
    pub(crate) known: Known,
    /// RDMA devices to try, as the agent's setting [default: all].
    #[arg(long, value_name = "DEVICE[:PORT][,...]", value_delimiter = ',')]
    pub(crate) nics: Vec<String>,
    /// The place in the ports' GID tables to use [default: RoCE v2 over IPv4, else over IPv6].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=255))]
    pub(crate) gid_index: Option<u32>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn hashes_or_a_manifest_but_not_both() {
        let parse = |words: &str| Cli::try_parse_from(words.split(' '));
        assert!(parse("kvferry locate").is_err());
        assert!(parse("kvferry locate aa").is_err());
        assert!(parse("kvferry locate -n t/m aa bb").is_ok());
        assert!(parse("kvferry locate -m a.json").is_ok());
        assert!(parse("kvferry locate -n t/m -m a.json aa").is_err());
    }

    #[test]
    fn switches_can_be_turned_off() {
        let cli = Cli::try_parse_from(["kvferry", "agent", "--replicate=false", "--insecure"]);
        let Command::Agent(args) = cli.unwrap().command else {
            panic!("not an agent");
        };
        assert_eq!(args.settings.replicate, Some(false));
        assert_eq!(args.settings.insecure, Some(true));
    }
}
