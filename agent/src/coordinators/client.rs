//! Unary calls to whichever coordinator answers. Each is a full replica of soft state, so any will do.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use kvferry_observe::trace;
use kvferry_proto::{
    InvalidMessage, Labels, MAX_MESSAGE_BYTES, NamespaceName, NamespaceSpec, NodeId, PackedHashes,
    Reason, pb,
    pb::{
        claims_client::ClaimsClient, coordinator_client::CoordinatorClient,
        locations_client::LocationsClient, sources_client::SourcesClient,
        tickets_client::TicketsClient,
    },
    reason_of,
};
use kvferry_security::tls::{Dialer, Line};
use tokio::time::{Instant, timeout_at};
use tonic::{Code, Request, Response, Status, transport::Endpoint};

use super::Located;
use crate::config::Compression;

/// Longest wait for a TCP connection: a coordinator in the same data centre answers in milliseconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// An idle connection is checked this often, so that a coordinator that vanished is noticed before
/// a request needs it.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// One coordinator gets at most this share of a call's time while there are others to ask.
const SHARE_OF_DEADLINE: u32 = 3;

/// Why a coordinator's answer is not to be had. Never to be taken for "nobody has the block".
#[derive(Debug, thiserror::Error)]
pub enum CoordinatorError {
    /// None answered in time: ask again later.
    #[error(
        "no coordinator answers ({tried} tried; the last, {address}: {detail}); whether the blocks exist is unknown"
    )]
    Unreachable {
        /// How many were asked.
        tried: usize,
        /// The last one.
        address: String,
        /// What it or the network said.
        detail: String,
    },
    /// The namespace is not known there: create it.
    #[error("{message}")]
    NamespaceUnknown {
        /// As the coordinator put it.
        message: String,
    },
    /// The coordinator refuses the request as it is: repeating it is of no use.
    #[error("{message}")]
    Refused {
        /// For programs.
        reason: Reason,
        /// For people.
        message: String,
    },
    /// The answer makes no sense.
    #[error("coordinator {address} answered nonsense: {source}")]
    Nonsense {
        /// Which one.
        address: String,
        /// What is wrong.
        source: InvalidMessage,
    },
}

/// A generated client that compresses what it sends, and says that it takes answers like that.
macro_rules! compressed {
    ($client:expr, $compression:expr) => {
        $compression
            .encoding()
            .into_iter()
            .fold($client, |client, encoding| {
                client.send_compressed(encoding).accept_compressed(encoding)
            })
    };
}
pub(crate) use compressed;

/// An address that is no URI.
#[derive(Debug, thiserror::Error)]
#[error("{address:?} is no coordinator address; write https://HOST:PORT or http://HOST:PORT")]
pub struct BadAddress {
    address: String,
}

/// Clients of all coordinators, asked in turn until one answers.
#[derive(Debug)]
pub struct Coordinators {
    clients: Vec<(String, CoordinatorClient<Line>)>,
    /// Over the same connections, in the same order.
    pub(super) claims: Vec<(String, ClaimsClient<Line>)>,
    pub(super) locations: Vec<(String, LocationsClient<Line>)>,
    pub(super) sources: Vec<(String, SourcesClient<Line>)>,
    pub(super) tickets: Vec<(String, TicketsClient<Line>)>,
    /// The one that answered last; the next call starts there.
    pub(super) preferred: AtomicUsize,
}

impl Coordinators {
    /// Prepares clients; connections are made when they are needed.
    ///
    /// # Errors
    /// [`BadAddress`].
    pub fn new(
        addresses: &[String],
        compression: Compression,
        dialer: &Dialer,
    ) -> Result<Self, BadAddress> {
        let (mut clients, mut sources) = (Vec::new(), Vec::new());
        let (mut claims, mut locations) = (Vec::new(), Vec::new());
        let mut tickets = Vec::new();
        for address in addresses {
            let channel = dialer.lazy(&endpoint(address)?);
            let client = CoordinatorClient::new(channel.clone())
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES);
            clients.push((address.clone(), compressed!(client, compression)));
            let client = SourcesClient::new(channel.clone())
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES);
            sources.push((address.clone(), compressed!(client, compression)));
            let client = ClaimsClient::new(channel.clone());
            claims.push((address.clone(), compressed!(client, compression)));
            tickets.push((address.clone(), TicketsClient::new(channel.clone())));
            let client = LocationsClient::new(channel)
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES);
            locations.push((address.clone(), compressed!(client, compression)));
        }
        Ok(Self {
            clients,
            claims,
            locations,
            sources,
            tickets,
            preferred: AtomicUsize::new(0),
        })
    }

    /// Asks where blocks are.
    ///
    /// # Errors
    /// [`CoordinatorError`]; a missing block is no error but an empty list of candidates.
    pub async fn locate(
        &self,
        request: LocateRequest<'_>,
        deadline: Instant,
    ) -> Result<Located, CoordinatorError> {
        let asked = request.hashes.len();
        let message = pb::LocateRequest {
            namespace: request.namespace.name.to_string(),
            hashes: Some(request.hashes.into()),
            mode: if request.prefix {
                pb::LocateMode::Prefix
            } else {
                pb::LocateMode::Set
            }
            .into(),
            max_candidates: request.max_candidates,
            host_id: request.host_id.to_owned(),
            prefer_labels: request
                .prefer
                .iter()
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .collect::<BTreeMap<_, _>>()
                .into_iter()
                .collect(),
            exclude_node: request.exclude.to_string(),
            with_locations: false,
        };
        let (address, answer) = self
            .call(deadline, message, async |mut client, request| {
                client.locate(request).await
            })
            .await?;
        Located::parse(answer, asked, request.namespace.layout.block_bytes()).map_err(|source| {
            CoordinatorError::Nonsense {
                address: address.to_owned(),
                source,
            }
        })
    }

    /// Creates a namespace, or finds that it is there and the same.
    ///
    /// # Errors
    /// [`CoordinatorError::Refused`] with `Reason::NamespaceMismatch` names both fingerprints.
    pub async fn create_namespace(
        &self,
        spec: &NamespaceSpec,
        deadline: Instant,
    ) -> Result<(), CoordinatorError> {
        let message = pb::CreateNamespaceRequest {
            spec: Some(spec.into()),
        };
        self.call(deadline, message, async |mut client, request| {
            client.create_namespace(request).await
        })
        .await
        .map(|_| ())
    }

    /// What a namespace is.
    ///
    /// # Errors
    /// [`CoordinatorError::NamespaceUnknown`] where it is not there.
    pub async fn describe_namespace(
        &self,
        name: &NamespaceName,
        deadline: Instant,
    ) -> Result<NamespaceSpec, CoordinatorError> {
        let message = pb::DescribeNamespaceRequest {
            name: name.to_string(),
        };
        let (address, info) = self
            .call(deadline, message, async |mut client, request| {
                client.describe_namespace(request).await
            })
            .await?;
        info.spec
            .ok_or(InvalidMessage::Missing("the namespace's spec"))
            .and_then(NamespaceSpec::try_from)
            .map_err(|source| CoordinatorError::Nonsense {
                address: address.to_owned(),
                source,
            })
    }

    /// Asks one after the other until one answers, within the deadline.
    async fn call<M: Clone, A>(
        &self,
        deadline: Instant,
        message: M,
        ask: impl AsyncFn(CoordinatorClient<Line>, Request<M>) -> Result<Response<A>, Status>,
    ) -> Result<(&str, A), CoordinatorError> {
        self.ask(&self.clients, deadline, message, ask).await
    }

    /// As `call`, of any of a coordinator's services.
    pub(super) async fn ask<'a, C: Clone, M: Clone, A>(
        &self,
        clients: &'a [(String, C)],
        deadline: Instant,
        message: M,
        ask: impl AsyncFn(C, Request<M>) -> Result<Response<A>, Status>,
    ) -> Result<(&'a str, A), CoordinatorError> {
        let first = self.preferred.load(Ordering::Relaxed);
        let (index, answer) = ask_in_turn(clients, first, deadline, message, ask).await?;
        self.preferred.store(index, Ordering::Relaxed);
        Ok((&clients[index].0, answer))
    }
}

/// Asks one after the other, from `first` on, until one answers, within the deadline; which one it
/// was comes with the answer.
pub(super) async fn ask_in_turn<C: Clone, M: Clone, A>(
    clients: &[(String, C)],
    first: usize,
    deadline: Instant,
    message: M,
    ask: impl AsyncFn(C, Request<M>) -> Result<Response<A>, Status>,
) -> Result<(usize, A), CoordinatorError> {
    let count = clients.len();
    let mut last = ("none", "none is configured".to_owned());
    for turn in 0..count {
        let index = (first + turn) % count;
        let (address, client) = &clients[index];
        let left = deadline.saturating_duration_since(Instant::now());
        let share = if turn + 1 == count {
            left
        } else {
            left / SHARE_OF_DEADLINE
        };
        let mut request = Request::new(message.clone());
        request.set_timeout(share);
        // One trace goes on at the coordinator.
        let parent = trace::traceparent().and_then(|parent| parent.parse().ok());
        if let Some(parent) = parent {
            request.metadata_mut().insert(trace::HEADER, parent);
        }
        let until = Instant::now() + share;
        match timeout_at(until, ask(client.clone(), request)).await {
            Ok(Ok(answer)) => return Ok((index, answer.into_inner())),
            Ok(Err(status)) => match refused(&status) {
                Some(error) => return Err(error),
                None => last = (address, describe(&status)),
            },
            Err(_) => {
                last = (
                    address,
                    format!("no answer within {} ms", share.as_millis()),
                );
            }
        }
    }
    Err(CoordinatorError::Unreachable {
        tried: count,
        address: last.0.to_owned(),
        detail: last.1,
    })
}

/// What to ask [`Coordinators::locate`].
#[derive(Debug)]
pub struct LocateRequest<'a> {
    /// Whose blocks.
    pub namespace: &'a NamespaceSpec,
    /// Which.
    pub hashes: PackedHashes,
    /// Only the longest run from the first on.
    pub prefix: bool,
    /// Candidates per block.
    pub max_candidates: u32,
    /// The asker's host.
    pub host_id: &'a str,
    /// Labels of owners to prefer.
    pub prefer: &'a Labels,
    /// Not this node.
    pub exclude: &'a NodeId,
}

/// The settings of every connection to a coordinator.
pub(crate) fn endpoint(address: &str) -> Result<Endpoint, BadAddress> {
    let endpoint = Endpoint::from_shared(address.to_owned())
        .ok()
        .filter(|endpoint| matches!(endpoint.uri().scheme_str(), Some("http" | "https")))
        .ok_or_else(|| BadAddress {
            address: address.to_owned(),
        })?;
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true))
}

/// The coordinator's own word that asking again or elsewhere is of no use; None for an outage.
fn refused(status: &Status) -> Option<CoordinatorError> {
    let message = status.message().to_owned();
    match (reason_of(status), status.code()) {
        (Some(Reason::NamespaceUnknown), _) => Some(CoordinatorError::NamespaceUnknown { message }),
        (Some(Reason::ShuttingDown | Reason::Deadline), _) => None,
        (Some(reason), _) => Some(CoordinatorError::Refused { reason, message }),
        // Without a reason of ours these still say that the request itself is at fault.
        (
            None,
            Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::Unimplemented,
        ) => Some(CoordinatorError::Refused {
            reason: Reason::InvalidArgument,
            message,
        }),
        (None, _) => None,
    }
}

/// A status with what lies beneath it: tonic's own text for a refused connection is "transport error".
pub(crate) fn describe(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
