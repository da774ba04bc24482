//! Where metrics are read from, as it is configured.

use std::{fmt, net::SocketAddr, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

/// An address, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricsListen {
    /// There is no such port.
    Off,
    /// Here.
    At(SocketAddr),
}

impl MetricsListen {
    /// Where to listen, if anywhere.
    #[must_use]
    pub fn address(self) -> Option<SocketAddr> {
        match self {
            Self::Off => None,
            Self::At(address) => Some(address),
        }
    }
}

/// Neither an address nor `off`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither IP:PORT nor off")]
pub struct ListenError(String);

impl FromStr for MetricsListen {
    type Err = ListenError;
    fn from_str(text: &str) -> Result<Self, ListenError> {
        match text {
            "off" => Ok(Self::Off),
            text => match text.parse() {
                Ok(address) => Ok(Self::At(address)),
                Err(_) => Err(ListenError(text.to_owned())),
            },
        }
    }
}

impl fmt::Display for MetricsListen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::At(address) => address.fmt(f),
        }
    }
}

impl<'de> Deserialize<'de> for MetricsListen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

impl Serialize for MetricsListen {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Settings {
        listen_metrics: MetricsListen,
    }

    fn read(text: &str) -> Result<MetricsListen, toml::de::Error> {
        toml::from_str(&format!("listen_metrics = {text}"))
            .map(|settings: Settings| settings.listen_metrics)
    }

    #[test]
    fn an_address_or_off_and_nothing_else() {
        assert_eq!(read("\"off\"").unwrap(), MetricsListen::Off);
        let at = read("\"[::1]:7409\"").unwrap();
        assert_eq!(at.to_string(), "[::1]:7409");
        assert!(at.address().unwrap().ip().is_loopback());
        for bad in ["\"on\"", "\"\"", "\"localhost:7409\"", "7409", "false"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
