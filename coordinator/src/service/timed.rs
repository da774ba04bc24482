//! A generated service whose calls pass the gate, and are counted and timed. Locate is not among them: its router does
//! that itself, without a second box around its answer.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use tonic::{
    body::Body,
    codegen::{Service, http},
    server::NamedService,
};

use super::Hub;
use crate::metrics::Called;

/// A service, and where its calls are counted.
#[derive(Debug, Clone)]
pub(crate) struct Timed<S> {
    hub: Arc<Hub>,
    inner: S,
}

impl<S> Timed<S> {
    pub(crate) fn new(hub: &Arc<Hub>, inner: S) -> Self {
        let hub = Arc::clone(hub);
        Self { hub, inner }
    }
}

impl<S: NamedService> NamedService for Timed<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Timed<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let (since, called) = (Instant::now(), Called::of(request.uri().path()));
        let hub = Arc::clone(&self.hub);
        if let Err(status) = hub.gate().admit(&mut request) {
            let answer = status.into_http();
            hub.metrics().answered(called, since, answer.headers());
            return Box::pin(std::future::ready(Ok(answer)));
        }
        let answering = self.inner.call(request);
        Box::pin(async move {
            let answer = answering.await?;
            hub.metrics().answered(called, since, answer.headers());
            Ok(answer)
        })
    }
}
