//! The generated service, but for Locate, which has a codec of its own.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use kvferry_observe::{Label, trace, traced};
use kvferry_proto::{MAX_MESSAGE_BYTES, pb, pb::coordinator_server::CoordinatorServer};
use tonic::{
    Request, Response, Status,
    body::Body,
    codegen::{Service, http},
    server::{Grpc, NamedService, UnaryService},
};

use tracing::Instrument;

use super::{CoordinatorService, Hub, compression::negotiated, locate, unary, wire};
use crate::metrics::Called;

/// `kvferry.v1.Coordinator` as a server takes it.
#[derive(Debug, Clone)]
pub(crate) struct CoordinatorRouter {
    hub: Arc<Hub>,
    rest: CoordinatorServer<CoordinatorService>,
}

impl CoordinatorRouter {
    pub(crate) fn new(hub: Arc<Hub>) -> Self {
        let rest = CoordinatorServer::new(CoordinatorService::new(hub.clone()))
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let rest = negotiated!(rest);
        Self { hub, rest }
    }
}

impl NamedService for CoordinatorRouter {
    const NAME: &'static str = <CoordinatorServer<CoordinatorService> as NamedService>::NAME;
}

type Answering = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

impl Service<http::Request<Body>> for CoordinatorRouter {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answering;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<http::Request<Body>>::poll_ready(&mut self.rest, cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Answering {
        let (since, called) = (Instant::now(), Called::of(request.uri().path()));
        let hub = self.hub.clone();
        if let Err(status) = hub.gate().admit(&mut request) {
            let answer = status.into_http();
            hub.metrics().answered(called, since, answer.headers());
            return Box::pin(std::future::ready(Ok(answer)));
        }
        let span = traced!(
            "coordinator",
            otel.kind = "server",
            method = called.as_str()
        );
        if !span.is_none() {
            let parent = request.headers().get(trace::HEADER);
            trace::adopt(&span, parent.map(|parent| parent.as_bytes()));
        }
        if called != Called::Locate {
            let answering = self.rest.call(request);
            return Box::pin(async move {
                let answer = answering.await?;
                hub.metrics().answered(called, since, answer.headers());
                Ok(answer)
            });
        }
        if unary::is_plain(request.headers()) {
            let answering = async move {
                let answer = plain_locate(&hub, request).await;
                let answer = answer.unwrap_or_else(Status::into_http);
                hub.metrics().answered(called, since, answer.headers());
                Ok(answer)
            };
            return Box::pin(answering.instrument(span));
        }
        let answering = async move {
            let grpc = Grpc::new(wire::LocateCodec)
                .apply_max_message_size_config(Some(MAX_MESSAGE_BYTES), Some(MAX_MESSAGE_BYTES));
            let mut grpc = negotiated!(grpc);
            let answer = grpc.unary(Locate(hub.clone()), request).await;
            hub.metrics().answered(called, since, answer.headers());
            Ok(answer)
        };
        Box::pin(answering.instrument(span))
    }
}

async fn plain_locate(
    hub: &Hub,
    request: http::Request<Body>,
) -> Result<http::Response<Body>, Status> {
    let (head, body) = request.into_parts();
    let access = hub.access(&head.extensions);
    let request = wire::request(unary::message(body).await?)?;
    let columns = locate::columns(hub, &access, request)?;
    unary::answer(columns.max_len(), |out| columns.put(out))
}

struct Locate(Arc<Hub>);

impl UnaryService<pb::LocateRequest> for Locate {
    type Response = wire::Columns;
    // An answer from memory: there is nothing to wait for.
    type Future = std::future::Ready<Result<Response<wire::Columns>, Status>>;

    fn call(&mut self, request: Request<pb::LocateRequest>) -> Self::Future {
        let access = self.0.access(request.extensions());
        let columns = locate::columns(&self.0, &access, request.into_inner());
        std::future::ready(columns.map(Response::new))
    }
}
