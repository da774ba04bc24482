//! What a coordinator can be told, and which values make sense.

use std::{net::SocketAddr, ops::RangeInclusive, path::PathBuf, time::Duration};

use kvferry_observe::MetricsListen;
use kvferry_security::tls::TlsFiles;
use serde::Deserialize;

use crate::directory::Bounds;

/// Configuration of a coordinator. Names carry units; every key has a default.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CoordinatorConfig {
    /// Where to listen for agents and tools.
    pub listen: SocketAddr,
    /// Where metrics and health are read (HTTP), or `off`.
    pub listen_metrics: MetricsListen,
    /// Certificate (PEM, with its chain) of the port; with `tls_key` it speaks TLS only.
    pub tls_cert: Option<PathBuf>,
    /// The certificate's key.
    pub tls_key: Option<PathBuf>,
    /// Who issues clients' certificates; each client must show one then.
    pub tls_ca: Option<PathBuf>,
    /// Who may do what; without it whoever gets in may do everything.
    pub policy: Option<PathBuf>,
    /// Allows to listen beyond loopback in clear, with nobody asked who they are.
    pub insecure: bool,
    /// Keys to sign tickets with, which only this user can read; `kvferry keys ticket` makes them. None: owners let
    /// readers in without tickets.
    pub ticket_key: Option<PathBuf>,
    /// How long a ticket lets its reader in, in milliseconds. Rights taken away end no later.
    pub ticket_ttl_ms: u32,
    /// Allows metrics beyond loopback, in clear, to whoever asks.
    pub insecure_metrics: bool,
    /// How often agents are told to send a sign of life, in milliseconds.
    pub heartbeat_interval_ms: u32,
    /// A node silent for this long is not offered to readers, in milliseconds.
    pub hide_after_ms: u32,
    /// A node silent for this long is forgotten, in milliseconds.
    pub purge_after_ms: u32,
    /// Most namespaces.
    pub max_namespaces: u32,
    /// Most nodes, hidden ones included.
    pub max_nodes: u32,
    /// Most regions of one node.
    pub max_regions_per_node: u32,
    /// Most slots of all regions together; bounds blocks and memory (about 66 bytes a sealed
    /// slot of a namespace with hashes of 32 bytes).
    pub max_slots: u64,
    /// Most claims held at a time, over all nodes and namespaces.
    pub max_claims: u64,
    /// Most blocks with a location, over all namespaces; some 200 bytes each. Over it the least
    /// recently used are forgotten.
    pub max_locations: u64,
    /// Most sessions at a time, those that have not said hello included.
    pub max_sessions: u32,
}

impl Default for CoordinatorConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7400)),
            listen_metrics: MetricsListen::At(SocketAddr::from(([127, 0, 0, 1], 7409))),
            tls_cert: None,
            tls_key: None,
            tls_ca: None,
            policy: None,
            insecure: false,
            ticket_key: None,
            // A reader of a hundred owners asks every other second; a reader that was thrown out reads on for minutes.
            ticket_ttl_ms: 300_000,
            insecure_metrics: false,
            heartbeat_interval_ms: 1_000,
            // Three heartbeats: one may be late and one lost.
            hide_after_ms: 3_000,
            // A restart of an agent on the same host, or a short network cut, costs no resync.
            purge_after_ms: 30_000,
            max_namespaces: Bounds::DEFAULT_NAMESPACES,
            max_nodes: Bounds::DEFAULT_NODES,
            max_regions_per_node: Bounds::DEFAULT_REGIONS_PER_NODE,
            max_slots: Bounds::DEFAULT_SLOTS,
            max_claims: Bounds::DEFAULT_CLAIMS,
            max_locations: Bounds::DEFAULT_LOCATIONS,
            // Every node twice: a session that is being replaced still counts.
            max_sessions: 2 * Bounds::DEFAULT_NODES,
        }
    }
}

/// A value that makes no sense. Nothing was bound.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A number outside its range.
    #[error("{key} = {value}: must be {min} to {max}")]
    OutOfRange {
        /// The key.
        key: &'static str,
        /// Its value.
        value: u64,
        /// The least that is allowed.
        min: u64,
        /// The most that is allowed.
        max: u64,
    },
    /// The world could reach a server that asks nobody who they are.
    #[error(
        "listen = \"{listen}\": only loopback addresses are allowed without TLS; give it a certificate \
         (--tls-cert, --tls-key; `kvferry keys` makes them), or set insecure = true (--insecure) where the \
         network itself keeps strangers out"
    )]
    NotLoopback {
        /// The address.
        listen: SocketAddr,
    },
    /// The world could read the metrics.
    #[error(
        "listen_metrics = \"{listen}\": only loopback addresses are allowed, since metrics are told in clear \
         to whoever asks; set insecure_metrics = true (--insecure-metrics) where that may be"
    )]
    MetricsNotLoopback {
        /// The address.
        listen: SocketAddr,
    },
    /// A CA to ask clients by, and no certificate to be known by.
    #[error(
        "tls_ca is set and tls_cert is not: without a certificate of its own the port speaks no TLS (--tls-cert, --tls-key)"
    )]
    CaAlone,
    /// Two listeners on one port.
    #[error("listen and listen_metrics are both {value}: give them different ports")]
    SamePort {
        /// As given.
        value: SocketAddr,
    },
}

impl CoordinatorConfig {
    /// Checks every value.
    ///
    /// # Errors
    /// [`ConfigError`] names the first key that is wrong, its value, and what is allowed.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let metrics = self.listen_metrics.address();
        let files = self.tls_files();
        if files.ca.is_some() && files.cert.is_none() && files.key.is_none() {
            return Err(ConfigError::CaAlone);
        }
        let secure = self.listen.ip().is_loopback() || files.serve();
        if !self.insecure && !secure {
            let listen = self.listen;
            return Err(ConfigError::NotLoopback { listen });
        }
        if let Some(listen) = metrics
            && !(self.insecure || self.insecure_metrics || listen.ip().is_loopback())
        {
            return Err(ConfigError::MetricsNotLoopback { listen });
        }
        if metrics == Some(self.listen) && self.listen.port() != 0 {
            return Err(ConfigError::SamePort { value: self.listen });
        }
        let (heartbeat, hide) = (self.heartbeat_interval_ms, self.hide_after_ms);
        // Shorter ones are load without use; longer ones are refused by owners.
        check("ticket_ttl_ms", self.ticket_ttl_ms, 1_000..=3_600_000)?;
        // Faster heartbeats are load without use; slower ones hide nothing in time.
        check("heartbeat_interval_ms", heartbeat, 10..=60_000)?;
        // One heartbeat may always be lost.
        check("hide_after_ms", hide, heartbeat * 2..=600_000)?;
        check("purge_after_ms", self.purge_after_ms, hide..=86_400_000)?;
        check("max_namespaces", self.max_namespaces, 1..=1 << 20)?;
        check("max_nodes", self.max_nodes, 1..=1 << 16)?;
        // A message declares at most 256 regions, a node at most 256 of those messages.
        let regions = self.max_regions_per_node;
        check("max_regions_per_node", regions, 1..=1 << 16)?;
        // A place in an index has 32 bits, six of them for the shard; at half of that no shard is full.
        check("max_slots", self.max_slots, 1..=1 << 31)?;
        // At some 200 bytes each.
        check("max_claims", self.max_claims, 1..=1 << 26)?;
        // A row's number has 32 bits.
        check("max_locations", self.max_locations, 1..=1 << 31)?;
        check("max_sessions", self.max_sessions, 1..=1 << 17)
    }

    /// The files of the port's TLS.
    #[must_use]
    pub fn tls_files(&self) -> TlsFiles {
        TlsFiles {
            cert: self.tls_cert.clone(),
            key: self.tls_key.clone(),
            ca: self.tls_ca.clone(),
        }
    }

    pub(crate) fn bounds(&self) -> Bounds {
        Bounds {
            namespaces: self.max_namespaces,
            nodes: self.max_nodes,
            regions_per_node: self.max_regions_per_node,
            slots: self.max_slots,
            claims: self.max_claims,
            locations: self.max_locations,
            watch_log_bytes: Bounds::WATCH_LOG_BYTES,
        }
    }

    pub(crate) fn hide_after(&self) -> Duration {
        Duration::from_millis(self.hide_after_ms.into())
    }

    pub(crate) fn ticket_ttl(&self) -> Duration {
        Duration::from_millis(self.ticket_ttl_ms.into())
    }

    pub(crate) fn purge_after(&self) -> Duration {
        Duration::from_millis(self.purge_after_ms.into())
    }
}

fn check<N: Into<u64> + Copy>(
    key: &'static str,
    value: N,
    range: RangeInclusive<N>,
) -> Result<(), ConfigError> {
    let (value, min, max) = (value.into(), (*range.start()).into(), (*range.end()).into());
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(ConfigError::OutOfRange {
        key,
        value,
        min,
        max,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_keys_are_known() {
        CoordinatorConfig::default().validate().unwrap();
        let config: CoordinatorConfig =
            toml::from_str("listen = \"127.0.0.1:0\"\nhide_after_ms = 5000").unwrap();
        assert_eq!(config.hide_after_ms, 5_000);
        assert!(toml::from_str::<CoordinatorConfig>("hide_after = 5").is_err());
    }

    #[test]
    fn a_bad_value_is_named_with_its_range() {
        let config = CoordinatorConfig {
            hide_after_ms: 1_500,
            ..CoordinatorConfig::default()
        };
        let error = config.validate().unwrap_err();
        assert_eq!(
            error.to_string(),
            "hide_after_ms = 1500: must be 2000 to 600000"
        );
    }

    #[test]
    fn beyond_loopback_must_be_asked_for() {
        let mut config = CoordinatorConfig {
            listen: SocketAddr::from(([0, 0, 0, 0], 7400)),
            ..CoordinatorConfig::default()
        };
        let error = config.validate().unwrap_err();
        assert!(matches!(error, ConfigError::NotLoopback { .. }));
        config.insecure = true;
        assert_eq!(config.validate(), Ok(()));
        config.insecure = false;
        config.tls_cert = Some("c.pem".into());
        assert!(config.validate().is_err(), "half a pair is none");
        config.tls_key = Some("k.pem".into());
        assert_eq!(config.validate(), Ok(()));
        let alone = CoordinatorConfig {
            tls_ca: Some("ca.pem".into()),
            ..CoordinatorConfig::default()
        };
        assert_eq!(alone.validate(), Err(ConfigError::CaAlone));
        let mut metrics = CoordinatorConfig {
            listen_metrics: MetricsListen::At(SocketAddr::from(([0, 0, 0, 0], 7409))),
            ..CoordinatorConfig::default()
        };
        let error = metrics.validate().unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("listen_metrics = \"0.0.0.0:7409\": only loopback")
        );
        metrics.insecure_metrics = true;
        assert_eq!(metrics.validate(), Ok(()));
    }

    #[test]
    fn metrics_have_a_port_of_their_own() {
        let mut config = CoordinatorConfig::default();
        config.listen_metrics = MetricsListen::At(config.listen);
        let error = config.validate().unwrap_err();
        assert!(matches!(error, ConfigError::SamePort { .. }), "{error}");
        config.listen.set_port(0);
        config.listen_metrics = MetricsListen::At(config.listen);
        assert_eq!(config.validate(), Ok(()), "each gets a free one");
        config.listen_metrics = MetricsListen::Off;
        assert_eq!(config.validate(), Ok(()));
    }
}
