//! What coordinators know of sources, for whoever pulls tensors.

use bytes::Bytes;
use kvferry_proto::{
    Incarnation, InvalidMessage, NodeId, SourceId, SourceIdentity, TableDigest, Tensor,
    TensorTable, pb, pb::sources_client::SourcesClient,
};
use kvferry_security::tls::Line;
use tokio::time::Instant;

use super::{CoordinatorError, Coordinators};

/// One rank of a source.
#[derive(Debug)]
pub struct GotSource {
    /// What the source is; its id is the one asked for.
    pub identity: SourceIdentity,
    /// The rank's tensors; their digest is the one named.
    pub table: TensorTable,
    /// Workers that have these tensors, and whether they are ready.
    pub workers: Vec<(NodeId, Incarnation, pb::SourceState)>,
}

impl Coordinators {
    /// The client of one coordinator's sources, by its place in the list.
    pub(crate) fn sources_of(&self, coordinator: usize) -> Option<SourcesClient<Line>> {
        let (_, client) = self.sources.get(coordinator)?;
        Some(client.clone())
    }

    /// A rank's tensors, page by page, checked to be the set whose digest was named.
    ///
    /// # Errors
    /// [`CoordinatorError`]; `Refused` says by its reason that there is none (yet).
    pub async fn get_source(
        &self,
        source: SourceId,
        rank: u32,
        digest: Option<TableDigest>,
        deadline: Instant,
    ) -> Result<GotSource, CoordinatorError> {
        let mut request = pb::GetSourceRequest {
            source: Bytes::copy_from_slice(source.as_bytes()),
            rank,
            digest: digest
                .map(|digest| Bytes::copy_from_slice(digest.as_bytes()))
                .unwrap_or_default(),
            ..pb::GetSourceRequest::default()
        };
        let (address, mut first) = self.get_page(&request, deadline).await?;
        let nonsense = |source| CoordinatorError::Nonsense {
            address: address.to_owned(),
            source,
        };
        request.digest = first.digest.clone();
        let mut tensors = parse(std::mem::take(&mut first.tensors)).map_err(nonsense)?;
        // Never more than a set may have, whatever is answered.
        while tensors.len() < (first.tensor_count as usize).min(kvferry_proto::MAX_TENSORS) {
            request.first = tensors.len() as u32; // bounded
            let (_, page) = self.get_page(&request, deadline).await?;
            if page.tensors.is_empty() {
                return Err(nonsense(InvalidMessage::Missing("the rest of the tensors")));
            }
            tensors.extend(parse(page.tensors).map_err(nonsense)?);
        }
        check(source, digest, first, tensors).map_err(nonsense)
    }

    async fn get_page(
        &self,
        request: &pb::GetSourceRequest,
        deadline: Instant,
    ) -> Result<(&str, pb::GetSourceResponse), CoordinatorError> {
        let ask = async |mut client: SourcesClient<Line>, request| client.get(request).await;
        self.ask(&self.sources, deadline, request.clone(), ask)
            .await
    }

    /// A page of sources.
    ///
    /// # Errors
    /// [`CoordinatorError`].
    pub async fn list_sources(
        &self,
        request: pb::ListSourcesRequest,
        deadline: Instant,
    ) -> Result<pb::ListSourcesResponse, CoordinatorError> {
        let ask = async |mut client: SourcesClient<Line>, request| client.list(request).await;
        let answer = self.ask(&self.sources, deadline, request, ask).await;
        answer.map(|(_, answer)| answer)
    }

    /// A page of a rank's tensors, as the coordinator gives it.
    ///
    /// # Errors
    /// [`CoordinatorError`].
    pub async fn source_page(
        &self,
        request: &pb::GetSourceRequest,
        deadline: Instant,
    ) -> Result<pb::GetSourceResponse, CoordinatorError> {
        let answer = self.get_page(request, deadline).await;
        answer.map(|(_, answer)| answer)
    }

    /// Ends workers of a source.
    ///
    /// # Errors
    /// [`CoordinatorError`].
    pub async fn remove_source(
        &self,
        request: pb::RemoveSourceRequest,
        deadline: Instant,
    ) -> Result<pb::RemoveSourceResponse, CoordinatorError> {
        let ask = async |mut client: SourcesClient<Line>, request| client.remove(request).await;
        let answer = self.ask(&self.sources, deadline, request, ask).await;
        answer.map(|(_, answer)| answer)
    }

    /// How a source's workers stand.
    ///
    /// # Errors
    /// [`CoordinatorError`].
    pub async fn source_status(
        &self,
        source: SourceId,
        deadline: Instant,
    ) -> Result<pb::SourceStatusResponse, CoordinatorError> {
        let request = pb::SourceStatusRequest {
            source: Bytes::copy_from_slice(source.as_bytes()),
        };
        let ask = async |mut client: SourcesClient<Line>, request| client.status(request).await;
        let answer = self.ask(&self.sources, deadline, request, ask).await;
        answer.map(|(_, answer)| answer)
    }

    /// Tells of workers that could not be read from.
    ///
    /// # Errors
    /// [`CoordinatorError`].
    pub async fn report_sources(
        &self,
        request: pb::ReportSourcesRequest,
        deadline: Instant,
    ) -> Result<(), CoordinatorError> {
        let ask = async |mut client: SourcesClient<Line>, request| client.report(request).await;
        let told = self.ask(&self.sources, deadline, request, ask).await;
        told.map(|_| ())
    }
}

pub(super) fn parse(tensors: Vec<pb::TensorDescriptor>) -> Result<Vec<Tensor>, InvalidMessage> {
    let tensors = tensors.into_iter().map(Tensor::try_from);
    Ok(tensors.collect::<Result<_, _>>()?)
}

/// Ids and digests are computed anew: what a coordinator says is not taken for true.
pub(super) fn check(
    source: SourceId,
    digest: Option<TableDigest>,
    answer: pb::GetSourceResponse,
    tensors: Vec<Tensor>,
) -> Result<GotSource, InvalidMessage> {
    let identity = answer
        .identity
        .ok_or(InvalidMessage::Missing("the source's identity"))?;
    let identity = SourceIdentity::try_from(identity)?;
    if identity.id() != source {
        return Err(InvalidMessage::Missing("the identity that was asked for"));
    }
    let said = TableDigest::new(&answer.digest)?;
    let table = TensorTable::new(answer.chunk_bytes, answer.chunks, tensors)?;
    if table.digest() != said || digest.is_some_and(|digest| digest != said) {
        return Err(InvalidMessage::Missing("the set of tensors of that digest"));
    }
    let mut workers = Vec::new();
    for worker in answer.workers {
        if worker.digest == answer.digest {
            let node = NodeId::new(&worker.node)?;
            let incarnation = Incarnation::new(worker.incarnation)?;
            workers.push((node, incarnation, worker.state()));
        }
    }
    Ok(GotSource {
        identity,
        table,
        workers,
    })
}
