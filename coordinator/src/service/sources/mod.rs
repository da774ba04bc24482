//! `kvferry.v1.Sources`: the shell around the [machine of sources](crate::sources).

mod parse;
mod publish;
mod say;

use std::sync::Arc;

use kvferry_proto::{
    InvalidMessage, MAX_MESSAGE_BYTES, NamespaceName, NodeId, SourceId, TableDigest, pb,
    pb::sources_server::SourcesServer,
};
use kvferry_security::{Access, Right};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status, Streaming};

use super::{compression::negotiated, hub::Hub};
use crate::sources::{
    Bounds, DEFAULT_PAGE, Filter, MAX_PAGE, MAX_REPORTS, SourceUnknown, Sources, WorkerState,
};

/// Publications being received: each may hold some 64 MiB until it is complete.
const MAX_PUBLISHING: usize = 8;
/// Tensors in an answer, at most.
const MAX_TENSORS_PER_PAGE: usize = 8_192;
/// Bytes of tensors in an answer: what a rank's workers leave of a message of 8 MiB.
const MAX_PAGE_BYTES: usize = 2 << 20;

/// The sources of one coordinator; cheap to clone.
///
/// Whether a node is there is asked of the directory, at every tick and whenever the node speaks: no
/// event can be missed. So locks are taken in this order: sources, then directory.
#[derive(Debug, Clone)]
pub(crate) struct SourcesService(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    hub: Arc<Hub>,
    machine: Mutex<Sources>,
    publishing: Semaphore,
}

impl SourcesService {
    pub(crate) fn new(hub: Arc<Hub>) -> Self {
        Self(Arc::new(Shared {
            hub,
            machine: Mutex::new(Sources::new(Bounds::default())),
            publishing: Semaphore::new(MAX_PUBLISHING),
        }))
    }

    pub(crate) fn server(self) -> SourcesServer<Self> {
        let server = SourcesServer::new(self)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        negotiated!(server)
    }

    /// Looks which nodes are still there, and lets time pass.
    pub(crate) fn tick(&self) {
        let mut machine = self.0.machine.lock();
        let speakers: Vec<NodeId> = machine.speakers().cloned().collect();
        let present: Vec<_> = {
            let directory = self.0.hub.read();
            let presence = |node: &NodeId| directory.presence(node);
            speakers.iter().map(presence).collect()
        };
        // Read under the lock: it must not go back from one event to the next.
        let now = self.0.hub.now();
        for (node, presence) in speakers.iter().zip(present) {
            machine.observe(now, node, presence);
        }
        machine.tick(now);
        self.0.tell(&mut machine);
    }

    fn machine(&self) -> MutexGuard<'_, Sources> {
        self.0.machine.lock()
    }
}

impl Shared {
    /// Logs and counts what changed.
    fn tell(&self, machine: &mut Sources) {
        let metrics = self.hub.metrics();
        for change in machine.take_changes() {
            let (source, rank, node) = (change.source, change.rank, change.node);
            let state = change.state;
            metrics.source_changed(state);
            match state {
                WorkerState::Stale(_) => {
                    tracing::warn!(%source, rank, %node, ?state, "worker of a source");
                }
                _ => tracing::info!(%source, rank, %node, ?state, "worker of a source"),
            }
        }
        metrics.sources(&machine.sums());
    }
}

/// Whether the caller may know of a source. One that it may not know of looks as one that is not there.
fn sees(access: &Access, machine: &Sources, source: SourceId) -> bool {
    access.is_unrestricted()
        || machine
            .namespace_of(source)
            .is_some_and(|name| access.may(Right::Read, name.as_str()))
}

#[tonic::async_trait]
impl pb::sources_server::Sources for SourcesService {
    async fn announce(
        &self,
        request: Request<pb::AnnounceSourcesRequest>,
    ) -> Result<Response<pb::AnnounceSourcesResponse>, Status> {
        let access = self.0.hub.access(request.extensions());
        let request = request.into_inner();
        let who = parse::announcer(&request.node, request.incarnation, request.number)?;
        access.must_be(who.node.as_str(), "announce sources")?;
        let workers = request.workers.into_iter().map(parse::announced);
        let workers = workers.collect::<Result<Vec<_>, _>>()?;
        let mut machine = self.machine();
        // To whoever may not write there, a source is as one that is not there: to be published in full.
        let mut unknown = Vec::new();
        let mut places = Vec::with_capacity(workers.len());
        let mut taken = Vec::with_capacity(workers.len());
        for (place, worker) in (0..).zip(workers) {
            let name = machine.namespace_of(worker.source);
            if name.is_none_or(|name| access.may(Right::Write, name.as_str())) {
                places.push(place);
                taken.push(worker);
            } else {
                unknown.push(place);
            }
        }
        let workers = taken;
        let presence = self.0.hub.read().presence(&who.node);
        let answer = machine.announce(self.0.hub.now(), &who, presence, workers);
        self.0.tell(&mut machine);
        let answer = answer.map_err(|error| say::announce(&error))?;
        let told = |index: u32| places.get(index as usize).copied();
        unknown.extend(answer.unknown.into_iter().filter_map(told));
        Ok(Response::new(pb::AnnounceSourcesResponse {
            unknown,
            removed: answer.removed.into_iter().filter_map(told).collect(),
        }))
    }

    async fn publish(
        &self,
        request: Request<Streaming<pb::PublishSourceRequest>>,
    ) -> Result<Response<pb::PublishSourceResponse>, Status> {
        let Ok(_place) = self.0.publishing.try_acquire() else {
            return Err(say::too_many_publishing(MAX_PUBLISHING));
        };
        let access = self.0.hub.access(request.extensions());
        let whole = publish::receive(request.into_inner()).await?;
        access.must_be(whole.who.node.as_str(), "publish a source")?;
        let namespace = whole.identity.namespace.as_str();
        access.must(Right::Write, namespace, "publish a source")?;
        let mut machine = self.machine();
        let presence = self.0.hub.read().presence(&whole.who.node);
        let now = self.0.hub.now();
        let published = machine.publish(
            now,
            &whole.who,
            presence,
            whole.identity,
            whole.worker,
            whole.table,
        );
        self.0.tell(&mut machine);
        let published = published.map_err(|error| say::publish(&error))?;
        Ok(Response::new(pb::PublishSourceResponse {
            removed: published == crate::sources::Published::Removed,
        }))
    }

    async fn report(
        &self,
        request: Request<pb::ReportSourcesRequest>,
    ) -> Result<Response<pb::ReportSourcesResponse>, Status> {
        let access = self.0.hub.access(request.extensions());
        let request = request.into_inner();
        let who = parse::announcer(&request.node, request.incarnation, 0)?;
        access.must_be(who.node.as_str(), "report workers of sources")?;
        if request.reports.len() > MAX_REPORTS {
            return Err(say::too_many_reports(request.reports.len()));
        }
        let reports = request.reports.iter().map(parse::report);
        let mut reports = reports.collect::<Result<Vec<_>, _>>()?;
        let mut machine = self.machine();
        // As reports of what is not there.
        reports.retain(|report| sees(&access, &machine, report.source));
        let presence = self.0.hub.read().presence(&who.node);
        // Whoever has no session may be anybody.
        if !presence.is_some_and(|there| there.attached && there.incarnation == who.incarnation) {
            return Err(say::no_session(&who));
        }
        let counted = machine.report(self.0.hub.now(), &who.node, &reports);
        self.0.tell(&mut machine);
        Ok(Response::new(pb::ReportSourcesResponse { counted }))
    }

    async fn list(
        &self,
        request: Request<pb::ListSourcesRequest>,
    ) -> Result<Response<pb::ListSourcesResponse>, Status> {
        let access = self.0.hub.access(request.extensions());
        let request = request.into_inner();
        let namespace = match request.namespace.as_str() {
            "" => None,
            name => Some(NamespaceName::new(name).map_err(InvalidMessage::from)?),
        };
        if let Some(name) = &namespace {
            access.must(Right::Read, name.as_str(), "list sources")?;
        }
        let filter = Filter {
            namespace,
            name_prefix: request.name_prefix,
        };
        let after = match &request.after[..] {
            [] => None,
            id => Some(SourceId::new(id).map_err(InvalidMessage::from)?),
        };
        let limit = match request.limit as usize {
            0 => DEFAULT_PAGE,
            limit => limit.min(MAX_PAGE),
        };
        let readable = |name: &NamespaceName| access.may(Right::Read, name.as_str());
        let page = self.machine().list_where(&filter, after, limit, readable);
        Ok(Response::new(pb::ListSourcesResponse {
            sources: page.sources.iter().map(say::summary).collect(),
            next: page.next.map(say::id).unwrap_or_default(),
        }))
    }

    async fn get(
        &self,
        request: Request<pb::GetSourceRequest>,
    ) -> Result<Response<pb::GetSourceResponse>, Status> {
        let access = self.0.hub.access(request.extensions());
        let request = request.into_inner();
        let id = SourceId::new(&request.source).map_err(InvalidMessage::from)?;
        let digest = match &request.digest[..] {
            [] => None,
            digest => Some(TableDigest::new(digest).map_err(InvalidMessage::from)?),
        };
        let got = {
            let machine = self.machine();
            if !sees(&access, &machine, id) {
                return Err(say::unknown(SourceUnknown { source: id }));
            }
            machine.get(self.0.hub.now(), id, request.rank, digest)
        };
        // The tensors are shared: messages are built while others ask.
        let got = got.map_err(|error| say::get(&error))?;
        let limit = match request.limit as usize {
            0 => MAX_TENSORS_PER_PAGE,
            limit => limit.min(MAX_TENSORS_PER_PAGE),
        };
        let all = got.table.tensors();
        let rest = all.get(request.first as usize..).unwrap_or_default();
        let mut bytes = 0;
        let page = rest.iter().take(limit).take_while(|tensor| {
            bytes += tensor.encoded_bytes();
            bytes <= MAX_PAGE_BYTES
        });
        Ok(Response::new(pb::GetSourceResponse {
            identity: Some((&*got.identity).into()),
            tensors: page.map(Into::into).collect(),
            tensor_count: all.len() as u32, // bounded
            digest: say::digest(got.table.digest()),
            chunk_bytes: got.table.chunk_bytes(),
            chunks: got.table.chunks(),
            workers: match request.first {
                0 => got.workers.iter().map(say::worker).collect(),
                _ => Vec::new(),
            },
        }))
    }

    async fn status(
        &self,
        request: Request<pb::SourceStatusRequest>,
    ) -> Result<Response<pb::SourceStatusResponse>, Status> {
        let access = self.0.hub.access(request.extensions());
        let id = SourceId::new(&request.get_ref().source).map_err(InvalidMessage::from)?;
        let status = {
            let machine = self.machine();
            if !sees(&access, &machine, id) {
                return Err(say::unknown(SourceUnknown { source: id }));
            }
            machine.status(self.0.hub.now(), id)
        };
        let (summary, workers) = status.map_err(say::unknown)?;
        let worker = |worker| pb::SourceWorker {
            runs: Vec::new(),
            ..say::worker(worker)
        };
        Ok(Response::new(pb::SourceStatusResponse {
            summary: Some(say::summary(&summary)),
            workers: workers.iter().map(worker).collect(),
        }))
    }

    async fn remove(
        &self,
        request: Request<pb::RemoveSourceRequest>,
    ) -> Result<Response<pb::RemoveSourceResponse>, Status> {
        let access = self.0.hub.access(request.extensions());
        let request = request.into_inner();
        let id = SourceId::new(&request.source).map_err(InvalidMessage::from)?;
        let node = match request.node.as_str() {
            "" => None,
            name => Some(NodeId::new(name).map_err(InvalidMessage::from)?),
        };
        let mut machine = self.machine();
        if !sees(&access, &machine, id) {
            return Err(say::unknown(SourceUnknown { source: id }));
        }
        if let Some(name) = machine.namespace_of(id) {
            access.must(Right::Admin, name.as_str(), "remove a source")?;
        }
        access.did("remove a source", &id.to_string());
        let removed = machine.remove(self.0.hub.now(), id, node.as_ref());
        self.0.tell(&mut machine);
        let workers_removed = removed.map_err(say::unknown)?;
        Ok(Response::new(pb::RemoveSourceResponse { workers_removed }))
    }
}
