//! The services without their sockets.

use std::{future::poll_fn, sync::Arc, task::Poll, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use kvferry_proto::{
    MAX_MESSAGE_BYTES,
    pb::{self, replication_server::ReplicationServer, watch_server::WatchServer},
};
use tonic::{
    Status,
    body::Body,
    codegen::{Service, http},
    service::Routes,
};

use super::{
    ClaimsService, CoordinatorRouter, Hub, HubConfig, LocationsService, ReplicationService,
    SourcesService, WatchService, locate, session, wire::Columns,
};
use crate::directory::{Bounds, Directory, DirectoryConfig, Event, SessionId};

/// What a session's message says.
///
/// # Errors
/// What ends the session.
#[allow(clippy::result_large_err)] // tonic's signature
pub fn session_events(
    session: SessionId,
    message: pb::agent_message::Message,
) -> Result<(Event, Option<Event>), Status> {
    session::events(session, message)
}

/// Answers a question as it travels: by the columns that are written while the index is searched.
///
/// # Errors
/// What the caller is told.
#[allow(clippy::result_large_err)] // tonic's signature
pub fn locate_as_sent(
    directory: &Directory,
    request: pb::LocateRequest,
) -> Result<Vec<u8>, Status> {
    let mut columns = Columns::with_room(0);
    locate::ask(request, 0, |query| {
        directory.locate_into(query, &mut columns)
    })?;
    Ok(columns.encoded())
}

/// Turns given to the tasks behind an answer before it is left alone. Streams have no end of their own.
const TURNS: usize = 24;

/// Every service of a coordinator over one hub, as it is served, and what runs beside them.
pub struct Calls {
    hub: Arc<Hub>,
    sources: SourcesService,
    routes: Routes,
}

impl Default for Calls {
    fn default() -> Self {
        let hub = Arc::new(Hub::new(HubConfig {
            directory: DirectoryConfig {
                epoch: 1,
                hide_after: Duration::from_secs(3),
                purge_after: Duration::from_secs(30),
                // Small, so that they are met.
                bounds: Bounds {
                    namespaces: 4,
                    nodes: 4,
                    regions_per_node: 4,
                    slots: 1 << 12,
                    claims: 64,
                    locations: 64,
                },
            },
            heartbeat_interval_ms: 1_000,
            hide_after_ms: 3_000,
            max_sessions: 4,
        }));
        let sources = SourcesService::new(hub.clone());
        let replication = ReplicationServer::new(ReplicationService::new(hub.clone()));
        let routes = Routes::new(CoordinatorRouter::new(hub.clone()))
            .add_service(WatchServer::new(WatchService::new(hub.clone())))
            .add_service(replication.max_decoding_message_size(MAX_MESSAGE_BYTES))
            .add_service(sources.clone().server())
            .add_service(ClaimsService::server(hub.clone()))
            .add_service(LocationsService::server(hub.clone()));
        Self {
            hub,
            sources,
            routes,
        }
    }
}

impl Calls {
    /// Carries out what the service does beside its calls. Never returns.
    pub async fn beside(&self) {
        tokio::join!(self.hub.sweep(), self.hub.replicate());
    }

    /// What the service does now and then.
    pub fn tick(&self) {
        self.hub.tick();
        self.sources.tick();
    }

    /// One call with this body, framed as gRPC has it. What it answers within some turns comes back.
    pub async fn call(&self, path: &str, body: Bytes) -> Vec<u8> {
        answer(self.routes.clone(), path, body).await
    }
}

async fn answer(mut routes: Routes, path: &str, body: Bytes) -> Vec<u8> {
    let request = http::Request::post(path)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Body::new(Full::new(body)));
    let Ok(request) = request else {
        return Vec::new();
    };
    let mut answered = Vec::new();
    let talk = async {
        let Ok(response) = routes.call(request).await;
        let mut body = response.into_body();
        while let Some(Ok(frame)) = body.frame().await {
            if let Ok(data) = frame.into_data() {
                answered.extend_from_slice(&data);
            }
        }
    };
    let mut talk = Box::pin(talk);
    for _ in 0..TURNS {
        let done = poll_fn(|cx| Poll::Ready(talk.as_mut().poll(cx).is_ready())).await;
        if done {
            break;
        }
        tokio::task::yield_now().await;
    }
    drop(talk);
    answered
}
