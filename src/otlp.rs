//! Traces to an OpenTelemetry collector. Behind the feature `otlp`.

use std::{collections::HashMap, time::Duration};

use kvferry_observe::trace::{self, Propagator};
use opentelemetry::{propagation::TextMapPropagator, trace::TracerProvider};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig};
use opentelemetry_sdk::{Resource, propagation::TraceContextPropagator, trace::SdkTracerProvider};
use tracing::{Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{Layer, filter::Targets, registry::LookupSpan};

/// A collector that takes no spans for this long gets none: they are dropped, and nobody waits.
const EXPORT_BOUND: Duration = Duration::from_secs(5);
/// What is left at the end may take this long to be sent.
const FLUSH_BOUND: Duration = Duration::from_secs(3);

/// Sends spans as long as it lives. The library holds at most 2,048 of them and drops the rest;
/// which traces are sampled is said by `OTEL_TRACES_SAMPLER` (all, where it is not).
pub(crate) struct Traces(SdkTracerProvider);

impl Traces {
    /// For an endpoint such as `http://collector:4317` (gRPC). Must be called on the runtime.
    pub(crate) fn new(endpoint: &str, service: &'static str) -> Result<Self, ExporterBuildError> {
        let exporter = SpanExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint)
            .with_timeout(EXPORT_BOUND)
            .build()?;
        let resource = Resource::builder().with_service_name(service).build();
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource)
            .build();
        trace::install(W3c(TraceContextPropagator::new()));
        Ok(Self(provider))
    }

    /// What turns spans of traces, and nothing else, into what is sent.
    pub(crate) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let target = Targets::new().with_target(trace::TARGET, tracing::Level::INFO);
        let tracer = self.0.tracer("kvferry");
        let layer = tracing_opentelemetry::layer().with_tracer(tracer);
        layer.with_location(false).with_filter(target)
    }

    /// Sends what is left.
    pub(crate) async fn end(self) {
        let flushed =
            tokio::task::spawn_blocking(move || self.0.shutdown_with_timeout(FLUSH_BOUND));
        if let Ok(Err(error)) = flushed.await {
            tracing::warn!("the last traces were not sent: {error}");
        }
    }
}

/// W3C's trace context.
struct W3c(TraceContextPropagator);

impl Propagator for W3c {
    fn carry(&self, span: &Span) -> Option<String> {
        let mut headers = HashMap::new();
        self.0.inject_context(&span.context(), &mut headers);
        headers.remove(trace::HEADER)
    }

    fn adopt(&self, span: &Span, traceparent: &str) {
        let headers = HashMap::from([(trace::HEADER.to_owned(), traceparent.to_owned())]);
        // A span that is not exported has no parent to be set, either.
        let _ = span.set_parent(self.0.extract(&headers));
    }
}
