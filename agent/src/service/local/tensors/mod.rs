//! Sets of tensors: published from this agent's memory, and brought here from others'.
//!
//! A set's chunks are blocks in slots of ordinary regions. So a tensor is read as a block is, and
//! validated as a block is: its bytes are the published ones if the words of its chunks' slots say so.
//! What is here is what the slots hold: no second book of it is kept, and a pull that was interrupted
//! goes on with the slots that are not sealed yet.

mod keeper;
mod publish;
mod pull;
mod receive;
mod registry;

use bytes::Bytes;
use kvferry_proto::{
    InvalidMessage, MAX_MESSAGE_BYTES, SourceId, pb, pb::tensors_server::TensorsServer,
};
use tonic::{Request, Response, Status, Streaming};

use super::{BoxStream, ClientHandle, LocalApi, status::OrStatus};

pub(crate) use keeper::keep_announced;
pub(crate) use registry::Registry;

/// `kvferry.v1.Tensors`, beside the rest of the local API.
pub(crate) struct TensorsApi(LocalApi);

impl TensorsApi {
    pub(crate) fn server(api: LocalApi) -> TensorsServer<Self> {
        TensorsServer::new(Self(api))
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }
}

#[tonic::async_trait]
impl pb::tensors_server::Tensors for TensorsApi {
    type PullTensorsStream = BoxStream<pb::PullTensorsEvent>;

    async fn publish(
        &self,
        request: Request<Streaming<pb::PublishTensorsRequest>>,
    ) -> Result<Response<pb::PublishTensorsResponse>, Status> {
        let client = ClientHandle::of(&request)?;
        let published = self
            .0
            .publish_tensors(&client, request.into_inner())
            .await?;
        Ok(Response::new(published))
    }

    async fn withdraw(
        &self,
        request: Request<pb::WithdrawTensorsRequest>,
    ) -> Result<Response<pb::WithdrawTensorsResponse>, Status> {
        let request = request.into_inner();
        let source = SourceId::new(&request.source).map_err(InvalidMessage::from)?;
        let withdrawn = self.0.withdraw_set((source, request.rank), None).await;
        Ok(Response::new(pb::WithdrawTensorsResponse { withdrawn }))
    }

    async fn list_published(
        &self,
        _: Request<pb::ListPublishedRequest>,
    ) -> Result<Response<pb::ListPublishedResponse>, Status> {
        self.0.tensors.reap(&self.0.store);
        let (sets, _) = self.0.tensors.all();
        let published = sets.iter().map(|set| pb::PublishedTensors {
            source: Bytes::copy_from_slice(set.source.as_bytes()),
            identity: Some((&*set.identity).into()),
            rank: set.rank,
            state: match set.standing(&self.0.store) {
                registry::Standing::Initialising => pb::SourceState::Initialising,
                registry::Standing::Ready => pb::SourceState::Ready,
                registry::Standing::Rewritten => pb::SourceState::Stale,
                registry::Standing::Lost => pb::SourceState::Gone,
            }
            .into(),
            digest: Bytes::copy_from_slice(set.table.digest().as_bytes()),
            tensors: set.table.tensors().len() as u32, // bounded
            bytes: set.table.tensor_bytes(),
            runs: (&set.runs).into(),
        });
        Ok(Response::new(pb::ListPublishedResponse {
            published: published.collect(),
        }))
    }

    async fn pull_tensors(
        &self,
        request: Request<pb::PullTensorsRequest>,
    ) -> Result<Response<Self::PullTensorsStream>, Status> {
        let client = ClientHandle::of(&request)?;
        let stream = self.0.pull_tensors(client, request.into_inner()).await?;
        Ok(Response::new(stream))
    }

    async fn list_sources(
        &self,
        request: Request<pb::ListSourcesRequest>,
    ) -> Result<Response<pb::ListSourcesResponse>, Status> {
        let deadline = self.0.control_deadline();
        let asked = self
            .0
            .coordinators
            .list_sources(request.into_inner(), deadline);
        Ok(Response::new(asked.await.or_status()?))
    }

    async fn get_source(
        &self,
        request: Request<pb::GetSourceRequest>,
    ) -> Result<Response<pb::GetSourceResponse>, Status> {
        let (message, deadline) = (request.into_inner(), self.0.control_deadline());
        let asked = self.0.coordinators.source_page(&message, deadline);
        Ok(Response::new(asked.await.or_status()?))
    }

    async fn source_status(
        &self,
        request: Request<pb::SourceStatusRequest>,
    ) -> Result<Response<pb::SourceStatusResponse>, Status> {
        let source = SourceId::new(&request.into_inner().source).map_err(InvalidMessage::from)?;
        let deadline = self.0.control_deadline();
        let asked = self.0.coordinators.source_status(source, deadline);
        Ok(Response::new(asked.await.or_status()?))
    }

    async fn remove_source(
        &self,
        request: Request<pb::RemoveSourceRequest>,
    ) -> Result<Response<pb::RemoveSourceResponse>, Status> {
        let deadline = self.0.control_deadline();
        let asked = self
            .0
            .coordinators
            .remove_source(request.into_inner(), deadline);
        Ok(Response::new(asked.await.or_status()?))
    }
}
