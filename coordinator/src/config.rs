//! What a coordinator can be told, and which values make sense.

use std::{net::SocketAddr, ops::RangeInclusive, time::Duration};

use kvferry_observe::MetricsListen;
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
    /// Allows to listen beyond loopback although nothing is encrypted or authenticated yet.
    pub insecure: bool,
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
            insecure: false,
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
        "{key} = \"{listen}\": only loopback addresses are allowed, because there is no TLS yet; \
         set insecure = true (--insecure) where the network itself keeps strangers out"
    )]
    NotLoopback {
        /// Which setting.
        key: &'static str,
        /// The address.
        listen: SocketAddr,
    },
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
        let listeners = [
            Some(("listen", self.listen)),
            metrics.map(|at| ("listen_metrics", at)),
        ];
        for (key, listen) in listeners.into_iter().flatten() {
            if !self.insecure && !listen.ip().is_loopback() {
                return Err(ConfigError::NotLoopback { key, listen });
            }
        }
        if metrics == Some(self.listen) && self.listen.port() != 0 {
            return Err(ConfigError::SamePort { value: self.listen });
        }
        let (heartbeat, hide) = (self.heartbeat_interval_ms, self.hide_after_ms);
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
        assert!(matches!(
            error,
            ConfigError::NotLoopback { key: "listen", .. }
        ));
        config.insecure = true;
        assert_eq!(config.validate(), Ok(()));
        let metrics = CoordinatorConfig {
            listen_metrics: MetricsListen::At(SocketAddr::from(([0, 0, 0, 0], 7409))),
            ..CoordinatorConfig::default()
        };
        let error = metrics.validate().unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("listen_metrics = \"0.0.0.0:7409\": only loopback")
        );
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
