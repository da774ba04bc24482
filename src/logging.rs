//! Logs, to stderr; and traces, where this build exports some.

use std::io::{self, IsTerminal};

use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::ParseError,
    layer::SubscriberExt,
    util::{SubscriberInitExt, TryInitError},
};

use crate::cli::Cli;

/// Why logging could not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoggingError {
    /// No filter.
    #[error("--log {filter:?} is no log filter: {source}; write a level, or target=level,...")]
    Filter { filter: String, source: ParseError },
    /// Traces have nowhere to go.
    #[cfg(feature = "otlp")]
    #[error("--otlp-endpoint {endpoint:?}: {source}; write http://HOST:PORT")]
    Traces {
        endpoint: String,
        source: opentelemetry_otlp::ExporterBuildError,
    },
    /// There is a logger already: a fault of this program.
    #[error("logging could not start: {0}")]
    Start(#[from] TryInitError),
}

/// Logging has started.
#[derive(Default)]
pub(crate) struct Logging {
    #[cfg(feature = "otlp")]
    traces: Option<crate::otlp::Traces>,
}

impl Logging {
    /// Sends what is left to be sent.
    pub(crate) async fn end(self) {
        #[cfg(feature = "otlp")]
        if let Some(traces) = self.traces {
            traces.end().await;
        }
    }
}

/// Starts logging what the filter lets through; `usual` where none is given. `service` is what traces
/// are sent under.
#[cfg_attr(not(feature = "otlp"), allow(unused_variables))]
pub(crate) fn start(
    cli: &Cli,
    usual: &str,
    service: &'static str,
) -> Result<Logging, LoggingError> {
    let text = cli.log.as_deref().unwrap_or(usual);
    let filter = EnvFilter::try_new(text).map_err(|source| LoggingError::Filter {
        filter: text.to_owned(),
        source,
    })?;
    let logs = tracing_subscriber::fmt::layer()
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    let logs: Box<dyn Layer<Registry> + Send + Sync> = if cli.log_json {
        logs.json().with_filter(filter).boxed()
    } else {
        logs.with_filter(filter).boxed()
    };
    let subscriber = tracing_subscriber::registry().with(logs);
    #[cfg(feature = "otlp")]
    if let Some(endpoint) = &cli.otlp_endpoint {
        let traces = crate::otlp::Traces::new(endpoint, service).map_err(|source| {
            let endpoint = endpoint.clone();
            LoggingError::Traces { endpoint, source }
        })?;
        subscriber.with(traces.layer()).try_init()?;
        return Ok(Logging {
            traces: Some(traces),
        });
    }
    subscriber.try_init()?;
    Ok(Logging::default())
}
