//! What can be said to the long-running commands: a flag per key of their configuration.

use std::path::PathBuf;

use clap::Args;
use kvferry_agent::config::ByteSize;
use serde::Serialize;

/// What a supervising process wants of a long-running command.
#[derive(Debug, Args)]
pub(crate) struct Supervised {
    /// Print one JSON line with the bound addresses to stdout once ready.
    #[arg(long)]
    pub(crate) announce: bool,
    /// Stop when stdin closes, so that nothing outlives the process that started it.
    #[arg(long)]
    pub(crate) until_stdin_closes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CoordinatorArgs {
    /// TOML file with settings [env: KVFERRY_CONFIG=].
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) settings: CoordinatorFlags,
    #[command(flatten)]
    pub(crate) supervised: Supervised,
}

/// A field per key of the coordinator's configuration.
#[derive(Debug, Default, Args, Serialize)]
pub(crate) struct CoordinatorFlags {
    /// Where to listen for agents and tools [default: 127.0.0.1:7400].
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) listen: Option<String>,
    /// Where metrics and health are read over HTTP [default: 127.0.0.1:7409].
    #[arg(long, value_name = "IP:PORT|off")]
    pub(crate) listen_metrics: Option<String>,
    /// Certificate of the port (PEM, with its chain): it speaks TLS only then.
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_cert: Option<String>,
    /// The certificate's key.
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_key: Option<String>,
    /// Who issues clients' certificates (PEM): each client must show one then.
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_ca: Option<String>,
    /// Who may do what (TOML); without it whoever gets in may do everything.
    #[arg(long, value_name = "FILE")]
    pub(crate) policy: Option<String>,
    /// Listen beyond this host in clear, with nobody asked who they are.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) insecure: Option<bool>,
    /// Keys to sign tickets with, from `kvferry keys ticket` [default: none, and readers need none].
    #[arg(long, value_name = "FILE")]
    pub(crate) ticket_key: Option<String>,
    /// How long a ticket lets its reader in [default: 300000].
    #[arg(long, value_name = "MS")]
    pub(crate) ticket_ttl_ms: Option<u32>,
    /// Metrics beyond this host, in clear, to whoever asks.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) insecure_metrics: Option<bool>,
    /// How often agents give a sign of life.
    #[arg(long, value_name = "MS")]
    pub(crate) heartbeat_interval_ms: Option<u32>,
    /// A node silent for this long is not offered to readers.
    #[arg(long, value_name = "MS")]
    pub(crate) hide_after_ms: Option<u32>,
    /// A node silent for this long is forgotten.
    #[arg(long, value_name = "MS")]
    pub(crate) purge_after_ms: Option<u32>,
    /// Most namespaces.
    #[arg(long, value_name = "N")]
    pub(crate) max_namespaces: Option<u32>,
    /// Most nodes.
    #[arg(long, value_name = "N")]
    pub(crate) max_nodes: Option<u32>,
    /// Most regions of one node.
    #[arg(long, value_name = "N")]
    pub(crate) max_regions_per_node: Option<u32>,
    /// Most slots of all regions together.
    #[arg(long, value_name = "N")]
    pub(crate) max_slots: Option<u64>,
    /// Most claims held at a time.
    #[arg(long, value_name = "N")]
    pub(crate) max_claims: Option<u64>,
    /// Most blocks with a location.
    #[arg(long, value_name = "N")]
    pub(crate) max_locations: Option<u64>,
    /// Most sessions at a time.
    #[arg(long, value_name = "N")]
    pub(crate) max_sessions: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct AgentArgs {
    /// TOML file with settings [env: KVFERRY_CONFIG=].
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) settings: AgentFlags,
    #[command(flatten)]
    pub(crate) supervised: Supervised,
}

/// A field per key of the agent's configuration.
#[derive(Debug, Default, Args, Serialize)]
pub(crate) struct AgentFlags {
    /// The node's name, unique in the cluster [default: the host's name].
    #[arg(long, value_name = "NAME")]
    pub(crate) node: Option<String>,
    /// Coordinators to keep a session with [default: http://127.0.0.1:7400].
    #[arg(long, alias = "coordinator", value_name = "URL[,URL]")]
    pub(crate) coordinators: Option<String>,
    /// Where other agents' questions arrive [default: 127.0.0.1:7401].
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) listen_peer: Option<String>,
    /// Where other agents' reads arrive [default: 127.0.0.1:7402].
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) listen_data: Option<String>,
    /// Where metrics and health are read over HTTP [default: 127.0.0.1:7403].
    #[arg(long, value_name = "IP:PORT|off")]
    pub(crate) listen_metrics: Option<String>,
    /// The address other nodes are told; needed where the agent listens on all addresses.
    #[arg(long, value_name = "IP")]
    pub(crate) advertise_host: Option<String>,
    /// The unix socket of the local API [default: $XDG_RUNTIME_DIR/kvferry/NODE.sock].
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<String>,
    /// Labels readers may prefer owners by.
    #[arg(long, value_name = "KEY=VALUE[,...]")]
    pub(crate) labels: Option<String>,
    /// Memory of a pool whose registration does not say how much [default: 1 GiB].
    #[arg(long, value_name = "SIZE")]
    pub(crate) pool_bytes: Option<ByteSize>,
    /// Back pools with huge pages.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) hugepages: Option<bool>,
    /// What a full pool gives up first [default: prefix].
    #[arg(long, value_parser = ["prefix", "lru"], value_name = "POLICY")]
    pub(crate) eviction: Option<String>,
    /// Which way bytes come [default: auto].
    #[arg(long, value_parser = ["auto", "rdma", "tcp", "shm"], value_name = "KIND")]
    pub(crate) transport: Option<String>,
    /// RDMA devices to use [default: all].
    #[arg(long, value_name = "DEVICE[:PORT][,...]")]
    pub(crate) nics: Option<String>,
    /// The place in the ports' GID tables to use [default: RoCE v2 over IPv4, else over IPv6].
    #[arg(long, value_name = "N")]
    pub(crate) gid_index: Option<u32>,
    /// RDMA queue pairs to each peer and device [default: 2].
    #[arg(long, value_name = "N")]
    pub(crate) qps_per_peer: Option<u32>,
    /// Data connections to each peer [default: 4].
    #[arg(long, value_name = "N")]
    pub(crate) tcp_connections_per_peer: Option<u32>,
    /// A peer that sends nothing for this long in a transfer is given up [default: 2000].
    #[arg(long, value_name = "MS")]
    pub(crate) stall_bound_ms: Option<u64>,
    /// Deadline of a pull that names none [default: 10000].
    #[arg(long, value_name = "MS")]
    pub(crate) pull_timeout_ms: Option<u64>,
    /// How messages to and from coordinators are compressed [default: none]; zstd needs a build with that feature.
    #[arg(long, value_parser = ["none", "zstd"], value_name = "KIND")]
    pub(crate) coordinator_compression: Option<String>,
    /// Publish what was pulled [default: true].
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) replicate: Option<bool>,
    /// Whether readers need tickets [default: auto, where a coordinator signs some].
    #[arg(long, value_parser = ["auto", "always", "never"], value_name = "WHEN")]
    pub(crate) require_tickets: Option<String>,
    /// Users of other agents on this host, which may map this one's memory for reading; engines and tools take
    /// --socket-users [default: none].
    #[arg(long, alias = "allow-uid", value_name = "UID[,UID]")]
    pub(crate) allow_uids: Option<String>,
    /// This node's certificate (PEM, with its chain), for coordinators and peers.
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_cert: Option<String>,
    /// The certificate's key.
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_key: Option<String>,
    /// Who issues the certificates of coordinators and peers (PEM); peers must show one.
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_ca: Option<String>,
    /// Payload by TLS only: the data port speaks it, and peers are asked for it. RDMA is left alone.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) data_tls: Option<bool>,
    /// A file with the token that coordinators know this agent by.
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<String>,
    /// Listen beyond this host in clear, with nobody asked who they are.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) insecure: Option<bool>,
    /// Metrics beyond this host, in clear, to whoever asks.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) insecure_metrics: Option<bool>,
    /// Users whose engines and tools may do by the local API what this one's may; another agent that only reads takes
    /// --allow-uids [default: none].
    #[arg(long, value_name = "USER[,...]")]
    pub(crate) socket_users: Option<String>,
}
