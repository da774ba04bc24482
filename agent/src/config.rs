//! What an agent can be told, and what it refuses before it binds anything.

mod size;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

pub use kvferry_observe::MetricsListen;
use kvferry_proto::{IdError, Labels, NodeId};
use kvferry_security::tls::{DialRefusal, Secured, TlsFiles};
use serde::{Deserialize, Serialize};
use tonic::{codec::CompressionEncoding, codegen::http::Uri};

pub use crate::{tickets::RequireTickets, transport::rdma::QPS_PER_PEER};
pub use size::{ByteSize, SizeError};

/// Longest path of a unix socket, in bytes: `sun_path` holds 108 with the closing zero.
pub const MAX_SOCKET_PATH: usize = 107;
/// Where users' names are looked for.
const USERS: &str = "/etc/passwd";
/// What the descriptor socket's path has behind the local API's.
pub const DESCRIPTOR_SUFFIX: &str = ".fds";
/// Most coordinators: each is told every delta.
pub const MAX_COORDINATORS: usize = 8;
/// Smallest and largest pool: one block of a small model, and more memory than a host has.
pub const POOL_BYTES: (u64, u64) = (1 << 20, 1 << 46);
/// Fewest and most connections to one peer: beyond 16 they only take each other's turns.
pub const TCP_CONNECTIONS_PER_PEER: (u64, u64) = (1, 16);
/// Places of a GID table: the verbs have 8 bits for one.
pub const GID_INDEX: (u64, u64) = (0, 255);
/// Most users that may map regions: it is looked through at every connection.
pub const MAX_ALLOWED_UIDS: usize = 64;
/// How long a peer may stay silent in a transfer: below, a busy peer is called dead; above, a
/// dead one eats the deadlines of most pulls.
pub const STALL_BOUND_MS: (u64, u64) = (50, 60_000);
/// Deadlines of pulls, as `PullRequest.timeout_ms` allows them.
pub const PULL_TIMEOUT_MS: (u64, u64) = (1, 600_000);

/// Which way bytes come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TransportChoice {
    /// The best one each peer can be reached by.
    #[default]
    Auto,
    /// RDMA only: peers without it are unreachable.
    Rdma,
    /// Sockets only.
    Tcp,
    /// Shared memory only: peers on other hosts are unreachable.
    Shm,
}

/// What a full pool gives up first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EvictionChoice {
    /// The least recently used block that no other block continues.
    #[default]
    Prefix,
    /// The least recently used block.
    Lru,
}

/// How what is said to coordinators, and heard from them, is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Not at all: hashes do not get smaller, and within a data centre time is dearer than bytes.
    #[default]
    None,
    /// By zstd, in builds with the feature `zstd`.
    Zstd,
}

impl Compression {
    /// As gRPC has it. None also where this build cannot.
    pub(crate) fn encoding(self) -> Option<CompressionEncoding> {
        match self {
            Self::None => None,
            #[cfg(feature = "zstd")]
            Self::Zstd => Some(CompressionEncoding::Zstd),
            #[cfg(not(feature = "zstd"))]
            Self::Zstd => None,
        }
    }
}

/// Settings of one agent. Every field has a default; names carry their units.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AgentConfig {
    /// The node's name, unique in the cluster. Default: the host's name.
    pub node: String,
    /// Coordinators to keep a session with, as `https://host:port` or `http://host:port`.
    pub coordinators: Vec<String>,
    /// Where other agents' questions arrive (gRPC).
    pub listen_peer: SocketAddr,
    /// Where other agents' reads arrive (TCP data plane).
    pub listen_data: SocketAddr,
    /// Where metrics and health are read (HTTP), or `off`. Not the coordinator's port, so that both may run
    /// on one host as they come.
    pub listen_metrics: MetricsListen,
    /// The address other nodes are told; required where an agent listens on all addresses.
    pub advertise_host: Option<IpAddr>,
    /// The unix socket of the local API. Default: see [`default_socket_path`].
    pub socket: Option<PathBuf>,
    /// Labels readers may prefer owners by (rack, zone, ...).
    pub labels: BTreeMap<String, String>,
    /// Memory of a pool whose registration does not say how much.
    pub pool_bytes: ByteSize,
    /// Back pools with huge pages where the kernel has some.
    pub hugepages: bool,
    /// What a full pool gives up first.
    pub eviction: EvictionChoice,
    /// Which way bytes come.
    pub transport: TransportChoice,
    /// RDMA devices to use, with a port where it is not the first usable one (`mlx5_0`, `mlx5_1:2`); empty: all.
    pub nics: Vec<String>,
    /// The place in the port's GID table to use; by default RoCE v2 over IPv4, else over IPv6.
    pub gid_index: Option<u32>,
    /// RDMA queue pairs to each peer and device.
    pub qps_per_peer: u32,
    /// Data connections to each peer.
    pub tcp_connections_per_peer: u32,
    /// A peer that sends nothing for this long in a transfer is given up.
    pub stall_bound_ms: u64,
    /// Deadline of a pull that names none.
    pub pull_timeout_ms: u64,
    /// How messages to and from coordinators are compressed.
    pub coordinator_compression: Compression,
    /// Publish what was pulled, so that others can read it here.
    pub replicate: bool,
    /// Whether readers need tickets.
    pub require_tickets: RequireTickets,
    /// Users besides the agent's own whose processes may map regions for reading, with a ticket where those are
    /// needed: other agents of this host. The local API is not theirs (`socket_users`).
    pub allow_uids: Vec<u32>,
    /// This node's certificate (PEM, with its chain): shown to coordinators and peers, and what the Peer
    /// service speaks TLS by.
    pub tls_cert: Option<PathBuf>,
    /// The certificate's key.
    pub tls_key: Option<PathBuf>,
    /// Who issues the certificates of coordinators and peers; peers must show one.
    pub tls_ca: Option<PathBuf>,
    /// Payload leaves and reaches this host by TLS only: the data port speaks it, peers are asked for it, and RDMA, which
    /// cannot be encrypted, is left alone.
    pub data_tls: bool,
    /// A file with the token that coordinators know this agent by.
    pub token_file: Option<PathBuf>,
    /// Listen beyond this host in clear, with nobody asked who they are, and send the token in clear.
    pub insecure: bool,
    /// Metrics beyond this host, in clear, to whoever asks.
    pub insecure_metrics: bool,
    /// Users, by number or name, whose processes may use the local API and its memory beside this one's, without a
    /// ticket: engines and tools.
    pub socket_users: Vec<String>,
}

impl Default for AgentConfig {
    fn default() -> Self {
        let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Self {
            node: host_name(),
            coordinators: vec!["http://127.0.0.1:7400".to_owned()],
            listen_peer: loopback(7401),
            listen_data: loopback(7402),
            listen_metrics: MetricsListen::At(loopback(7403)),
            advertise_host: None,
            socket: None,
            labels: BTreeMap::new(),
            pool_bytes: ByteSize(1 << 30),
            hugepages: false,
            eviction: EvictionChoice::default(),
            transport: TransportChoice::default(),
            nics: Vec::new(),
            gid_index: None,
            qps_per_peer: 2,
            tcp_connections_per_peer: 4,
            stall_bound_ms: 2_000,
            pull_timeout_ms: 10_000,
            coordinator_compression: Compression::default(),
            replicate: true,
            require_tickets: RequireTickets::default(),
            allow_uids: Vec::new(),
            tls_cert: None,
            tls_key: None,
            tls_ca: None,
            data_tls: false,
            token_file: None,
            insecure: false,
            insecure_metrics: false,
            socket_users: Vec::new(),
        }
    }
}

/// Why a configuration was refused. Nothing was bound or created.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A number outside its bounds.
    #[error("{key} = {value}: allowed are {min} to {max}")]
    OutOfRange {
        /// Which setting.
        key: &'static str,
        /// As given.
        value: u64,
        /// Smallest allowed.
        min: u64,
        /// Largest allowed.
        max: u64,
    },
    /// A name or label that cannot be one.
    #[error("{key}: {source}")]
    Name {
        /// Which setting.
        key: &'static str,
        /// What is wrong with it.
        source: IdError,
    },
    /// A device that cannot be one.
    #[error(
        "nics: {value:?} is no DEVICE or DEVICE:PORT (such as mlx5_0 or mlx5_0:1; see `kvferry doctor`)"
    )]
    Nic {
        /// As given.
        value: String,
    },
    /// No coordinator, or too many.
    #[error("coordinators names {count}: allowed are 1 to {MAX_COORDINATORS}")]
    CoordinatorCount {
        /// How many there are.
        count: usize,
    },
    /// A coordinator that is no `http://host:port` or `https://host:port`.
    #[error("coordinators: {value:?} is no http://host:port or https://host:port")]
    CoordinatorAddress {
        /// As given.
        value: String,
    },
    /// More users than a list of people has.
    #[error("allow_uids names {count} users: at most {MAX_ALLOWED_UIDS} are allowed")]
    TooManyUids {
        /// How many there are.
        count: usize,
    },
    /// A coordinator that cannot be dialled with what is set.
    #[error("coordinators: {0}")]
    Coordinator(DialRefusal),
    /// A compression this build does not have.
    #[error(
        "coordinator_compression = \"zstd\": this build has no zstd; build with `--features zstd`, or set \"none\""
    )]
    NoZstd,
    /// A socket path longer than the system takes.
    #[error(
        "socket: {path} is {len} bytes long; at most {max} are allowed: choose a shorter path",
        path = path.display()
    )]
    SocketTooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        len: usize,
        /// The bound.
        max: usize,
    },
    /// A socket path other processes cannot find.
    #[error("socket: {path} is not absolute; other processes are told it", path = path.display())]
    SocketRelative {
        /// The path.
        path: PathBuf,
    },
    /// Listening on all addresses tells peers none.
    #[error(
        "{key} = {value} is all addresses of this host: set advertise_host to the one other nodes reach it by"
    )]
    AdvertiseMissing {
        /// Which setting.
        key: &'static str,
        /// As given.
        value: SocketAddr,
    },
    /// An advertised address nobody can connect to.
    #[error("advertise_host = {value}: other nodes cannot connect to it")]
    AdvertiseUnusable {
        /// As given.
        value: IpAddr,
    },
    /// TLS for payload without what it takes.
    #[error(
        "data_tls: {missing} is not set; it takes this node's certificate, its key, and the CA that owners are known by (--tls-cert, --tls-key, --tls-ca; `kvferry keys` makes them)"
    )]
    DataTls {
        /// Which setting.
        missing: &'static str,
    },
    /// TLS for payload, over what has none.
    #[error(
        "data_tls and transport = \"rdma\" exclude each other: what goes over RDMA is not encrypted; set transport = \"auto\", or data_tls = false"
    )]
    DataTlsOverRdma,
    /// Listening beyond this host without saying so.
    #[error(
        "{key} = {value} can be reached from other hosts, and without TLS nobody is asked who they are: give this node a certificate (--tls-cert, --tls-key, --tls-ca; `kvferry keys` makes them), or set insecure = true (--insecure) where the network is trusted"
    )]
    Insecure {
        /// Which setting.
        key: &'static str,
        /// As given.
        value: SocketAddr,
    },
    /// Metrics beyond this host without saying so.
    #[error(
        "listen_metrics = {value} can be reached from other hosts, and metrics are told in clear to whoever asks: set insecure_metrics = true (--insecure-metrics) where that may be"
    )]
    InsecureMetrics {
        /// As given.
        value: SocketAddr,
    },
    /// A user that this host does not have.
    #[error(
        "socket_users: this host has no user {value:?}; give its number, or its name in {USERS}"
    )]
    NoSuchUser {
        /// As given.
        value: String,
    },
    /// Two listeners on one port.
    #[error("{keys} are both {value}: give them different ports")]
    SamePort {
        /// Which two.
        keys: &'static str,
        /// As given.
        value: SocketAddr,
    },
}

impl AgentConfig {
    /// Checks every setting.
    ///
    /// # Errors
    /// [`ConfigError`] names the setting, its value and what is allowed.
    pub fn validate(&self) -> Result<(), ConfigError> {
        NodeId::new(&self.node).map_err(|source| ConfigError::Name {
            key: "node",
            source,
        })?;
        Labels::new(self.labels.clone()).map_err(|source| ConfigError::Name {
            key: "labels",
            source,
        })?;
        self.check_numbers()?;
        self.check_nics()?;
        if self.allow_uids.len() > MAX_ALLOWED_UIDS {
            let count = self.allow_uids.len();
            return Err(ConfigError::TooManyUids { count });
        }
        self.check_coordinators()?;
        self.check_listeners()?;
        self.check_data_tls()?;
        self.socket_uids()?;
        self.check_socket()
    }

    /// The numbers of the users that may use the local API beside this one.
    ///
    /// # Errors
    /// [`ConfigError::NoSuchUser`].
    pub fn socket_uids(&self) -> Result<Vec<u32>, ConfigError> {
        let named = std::fs::read_to_string(USERS).unwrap_or_default();
        let uid = |value: &String| {
            let number = value.parse().ok();
            let uid = number.or_else(|| uid_in(&named, value));
            uid.ok_or_else(|| ConfigError::NoSuchUser {
                value: value.clone(),
            })
        };
        self.socket_users.iter().map(uid).collect()
    }

    /// The files of TLS.
    #[must_use]
    pub fn tls_files(&self) -> TlsFiles {
        TlsFiles {
            cert: self.tls_cert.clone(),
            key: self.tls_key.clone(),
            ca: self.tls_ca.clone(),
        }
    }

    /// What the agent brings along where it dials.
    #[must_use]
    pub fn secured(&self) -> Secured {
        Secured {
            files: self.tls_files(),
            token: self.token_file.clone(),
            insecure: self.insecure,
        }
    }

    /// The unix socket of the local API.
    #[must_use]
    pub fn socket_path(&self) -> PathBuf {
        self.socket
            .clone()
            .unwrap_or_else(|| default_socket_path(&self.node))
    }

    /// The unix socket descriptors are handed over by, beside the local API's.
    #[must_use]
    pub fn descriptor_socket_path(&self) -> PathBuf {
        let mut path = self.socket_path().into_os_string();
        path.push(DESCRIPTOR_SUFFIX);
        path.into()
    }

    fn check_numbers(&self) -> Result<(), ConfigError> {
        for (key, value, (min, max)) in [
            ("pool_bytes", self.pool_bytes.0, POOL_BYTES),
            (
                "tcp_connections_per_peer",
                u64::from(self.tcp_connections_per_peer),
                TCP_CONNECTIONS_PER_PEER,
            ),
            ("qps_per_peer", u64::from(self.qps_per_peer), QPS_PER_PEER),
            (
                "gid_index",
                u64::from(self.gid_index.unwrap_or(0)),
                GID_INDEX,
            ),
            ("stall_bound_ms", self.stall_bound_ms, STALL_BOUND_MS),
            ("pull_timeout_ms", self.pull_timeout_ms, PULL_TIMEOUT_MS),
        ] {
            if !(min..=max).contains(&value) {
                return Err(ConfigError::OutOfRange {
                    key,
                    value,
                    min,
                    max,
                });
            }
        }
        Ok(())
    }

    fn check_nics(&self) -> Result<(), ConfigError> {
        let bad = |nic: &&String| {
            let (name, port) = nic.split_once(':').unwrap_or((nic, "1"));
            name.is_empty() || !port.parse::<u8>().is_ok_and(|port| port > 0)
        };
        match self.nics.iter().find(bad) {
            Some(value) => Err(ConfigError::Nic {
                value: value.clone(),
            }),
            None => Ok(()),
        }
    }

    fn check_coordinators(&self) -> Result<(), ConfigError> {
        if self.coordinator_compression == Compression::Zstd && !cfg!(feature = "zstd") {
            return Err(ConfigError::NoZstd);
        }
        let count = self.coordinators.len();
        if !(1..=MAX_COORDINATORS).contains(&count) {
            return Err(ConfigError::CoordinatorCount { count });
        }
        if let Some(value) = self.coordinators.iter().find(|url| !is_http(url)) {
            return Err(ConfigError::CoordinatorAddress {
                value: value.clone(),
            });
        }
        let dialled = |url: &String| self.secured().check(url).map_err(ConfigError::Coordinator);
        self.coordinators
            .iter()
            .try_for_each(|url| dialled(url).map(drop))
    }

    fn check_listeners(&self) -> Result<(), ConfigError> {
        if let Some(value) = self.advertise_host
            && (value.is_unspecified() || value.is_multicast())
        {
            return Err(ConfigError::AdvertiseUnusable { value });
        }
        let metrics = self.listen_metrics.address();
        if let Some(value) = metrics
            && !(self.insecure || self.insecure_metrics || value.ip().is_loopback())
        {
            return Err(ConfigError::InsecureMetrics { value });
        }
        let secure = self.insecure || self.tls_files().serve();
        for (key, value) in [
            ("listen_peer", self.listen_peer),
            ("listen_data", self.listen_data),
        ] {
            if !secure && !value.ip().is_loopback() {
                return Err(ConfigError::Insecure { key, value });
            }
            if value.ip().is_unspecified() && self.advertise_host.is_none() {
                return Err(ConfigError::AdvertiseMissing { key, value });
            }
        }
        let (peer, data) = (self.listen_peer, self.listen_data);
        for (keys, one, other) in [
            ("listen_peer and listen_data", Some(peer), data),
            ("listen_metrics and listen_peer", metrics, peer),
            ("listen_metrics and listen_data", metrics, data),
        ] {
            if one == Some(other) && other.port() != 0 {
                return Err(ConfigError::SamePort { keys, value: other });
            }
        }
        Ok(())
    }

    fn check_data_tls(&self) -> Result<(), ConfigError> {
        if !self.data_tls {
            return Ok(());
        }
        for (missing, file) in [
            ("tls_cert", &self.tls_cert),
            ("tls_key", &self.tls_key),
            ("tls_ca", &self.tls_ca),
        ] {
            if file.is_none() {
                return Err(ConfigError::DataTls { missing });
            }
        }
        match self.transport {
            TransportChoice::Rdma => Err(ConfigError::DataTlsOverRdma),
            TransportChoice::Auto | TransportChoice::Tcp | TransportChoice::Shm => Ok(()),
        }
    }

    fn check_socket(&self) -> Result<(), ConfigError> {
        let path = self.descriptor_socket_path();
        let len = path.as_os_str().len();
        if len > MAX_SOCKET_PATH {
            return Err(ConfigError::SocketTooLong {
                path: self.socket_path(),
                len: len - DESCRIPTOR_SUFFIX.len(),
                max: MAX_SOCKET_PATH - DESCRIPTOR_SUFFIX.len(),
            });
        }
        if !path.is_absolute() {
            return Err(ConfigError::SocketRelative {
                path: self.socket_path(),
            });
        }
        Ok(())
    }
}

/// Where a node's local API is, where nobody says otherwise: `$XDG_RUNTIME_DIR/kvferry/<node>.sock`,
/// or `/tmp/kvferry-<uid>/<node>.sock` where there is no such directory.
#[must_use]
pub fn default_socket_path(node: &str) -> PathBuf {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let uid = rustix::process::getuid().as_raw();
    socket_path_in(runtime.as_deref(), uid, node)
}

fn socket_path_in(runtime: Option<&Path>, uid: u32, node: &str) -> PathBuf {
    let directory = match runtime {
        Some(runtime) if runtime.is_absolute() => runtime.join("kvferry"),
        _ => PathBuf::from(format!("/tmp/kvferry-{uid}")),
    };
    directory.join(format!("{node}.sock"))
}

/// The host's name, as the kernel has it.
#[must_use]
pub fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

/// `name:password:uid:...`, a line each.
fn uid_in(users: &str, name: &str) -> Option<u32> {
    let mut lines = users.lines().map(|line| line.split(':'));
    lines.find_map(|mut fields| {
        let found = fields.next()? == name;
        fields.nth(1)?.parse().ok().filter(|_| found)
    })
}

fn is_http(url: &str) -> bool {
    url.parse::<Uri>().is_ok_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.host().is_some_and(|host| !host.is_empty())
            && uri.port_u16().is_some_and(|port| port != 0)
            && matches!(uri.path(), "" | "/")
    })
}

#[cfg(test)]
mod tests;
