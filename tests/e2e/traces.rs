//! One pull is one trace: from the engine's own span, across the agent, to the coordinator. Spans are
//! taken in by a collector in this process.

use std::{
    collections::HashMap,
    convert::Infallible,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use kvferry_proto::pb::{self, pull_request::Destination};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Request, Response, Status,
    body::Body,
    codegen::{Service, http},
    server::{Grpc, NamedService, UnaryService},
    transport::Server,
};
use tonic_prost::ProstCodec;

use crate::{
    cluster::{Cluster, eventually, pack},
    engine::{hashes, namespace},
};

/// What is needed of OTLP's messages, under its field numbers.
#[derive(Clone, PartialEq, prost::Message)]
struct Export {
    #[prost(message, repeated, tag = "1")]
    resources: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scopes: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ScopeSpans {
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Exported>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Exported {
    #[prost(bytes = "vec", tag = "1")]
    trace: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AnyValue {
    #[prost(string, tag = "1")]
    text: String,
}

fn text<'a>(attributes: &'a [KeyValue], key: &str) -> &'a str {
    let found = attributes.iter().find(|one| one.key == key);
    found
        .and_then(|one| one.value.as_ref())
        .map_or("", |value| value.text.as_str())
}

/// A span, and the service that sent it.
type Seen = Arc<Mutex<Vec<(String, Exported)>>>;

#[derive(Clone, Default)]
struct Collector(Seen);

impl NamedService for Collector {
    const NAME: &'static str = "opentelemetry.proto.collector.trace.v1.TraceService";
}

impl UnaryService<Export> for Collector {
    type Response = ();
    type Future = std::future::Ready<Result<Response<()>, Status>>;

    fn call(&mut self, request: Request<Export>) -> Self::Future {
        let mut seen = self.0.lock().unwrap();
        for resource in request.into_inner().resources {
            let attributes = resource.resource.unwrap_or_default().attributes;
            let service = text(&attributes, "service.name").to_owned();
            let spans = resource.scopes.into_iter().flat_map(|scope| scope.spans);
            seen.extend(spans.map(|span| (service.clone(), span)));
        }
        std::future::ready(Ok(Response::new(())))
    }
}

impl Service<http::Request<Body>> for Collector {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let collector = self.clone();
        Box::pin(async move {
            let codec = ProstCodec::<(), Export>::default();
            Ok(Grpc::new(codec).unary(collector, request).await)
        })
    }
}

async fn collect() -> (SocketAddr, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let collector = Collector::default();
    let seen = Arc::clone(&collector.0);
    let serving = Server::builder().add_service(collector);
    tokio::spawn(serving.serve_with_incoming(TcpListenerStream::new(listener)));
    (at, seen)
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn one_pull_is_one_trace() {
    let (at, seen) = collect().await;
    let endpoint = format!("http://{at}");
    let traced = ["--otlp-endpoint", &endpoint];
    let mut cluster = Cluster::start_with(&traced).await;
    let a = cluster.agent("a", &[]).await;
    let mut b = cluster
        .agent("b", &[&traced[..], &["--transport", "tcp"]].concat())
        .await;
    let from = a.region(namespace("n"), 8).await;
    a.publish(&from, 0, 0..8).await;
    let to = b.region(namespace("n"), 8).await;

    let mut request = Request::new(pb::PullRequest {
        namespace: "n".into(),
        hashes: Some(pack(&hashes(0..8))),
        destination: Some(Destination::Slots(pb::SlotDestination {
            region: to.region,
            slots: (0..8).collect(),
        })),
        ..pb::PullRequest::default()
    });
    let parent = format!("00-{TRACE}-{PARENT}-01").parse().unwrap();
    request.metadata_mut().insert("traceparent", parent);
    let mut events = b.api.pull(request).await.unwrap().into_inner();
    while events.message().await.unwrap().is_some() {}

    // An orderly end sends what is left.
    cluster.take_agent("b").terminate().await;
    cluster.take_coordinator().terminate().await;
    eventually("all spans have come", || async {
        let seen = seen.lock().unwrap();
        let locates = seen
            .iter()
            .filter(|(_, span)| text(&span.attributes, "method") == "Locate");
        seen.iter().any(|(_, span)| span.name == "pull") && locates.count() > 0
    })
    .await;

    let seen = seen.lock().unwrap();
    let of_trace: HashMap<&str, &(String, Exported)> = seen
        .iter()
        .filter(|(_, span)| hex(&span.trace) == TRACE)
        .map(|one| (one.1.name.as_str(), one))
        .collect();
    let span = |name: &str| {
        of_trace
            .get(name)
            .unwrap_or_else(|| panic!("no {name}: {seen:?}"))
    };
    let (service, pull) = span("pull");
    assert_eq!(
        (service.as_str(), hex(&pull.parent).as_str()),
        ("kvferry-agent", PARENT)
    );
    for name in ["locate", "connect", "read"] {
        let (service, child) = span(name);
        assert_eq!(
            (service, &child.parent),
            (&"kvferry-agent".to_owned(), &pull.id),
            "{name}"
        );
    }
    let (service, located) = span("coordinator");
    assert_eq!(service, "kvferry-coordinator");
    assert_eq!(text(&located.attributes, "method"), "Locate");
    assert_eq!(
        located.parent,
        span("locate").1.id,
        "it goes on from the agent's question"
    );
    let (_, read) = span("read");
    assert_eq!(text(&read.attributes, "node"), "a");
    assert_eq!(text(&read.attributes, "transport"), "tcp");
}
