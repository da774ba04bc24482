//! Locations for the engines of this host: told to the coordinators, who keep them.

use kvferry_proto::{
    MAX_MESSAGE_BYTES, pb,
    pb::local_locations_server::{LocalLocations, LocalLocationsServer},
};
use tonic::{Request, Response, Status};

use super::{LocalApi, status::OrStatus};

impl LocalApi {
    pub(crate) fn locations_server(self) -> LocalLocationsServer<Self> {
        LocalLocationsServer::new(self)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }
}

#[tonic::async_trait]
impl LocalLocations for LocalApi {
    async fn put_block_locations(
        &self,
        request: Request<pb::PutLocationsRequest>,
    ) -> Result<Response<pb::PutLocationsResponse>, Status> {
        let (message, deadline) = (request.into_inner(), self.control_deadline());
        let put = self.coordinators.put_locations(message, deadline);
        Ok(Response::new(put.await.or_status()?))
    }

    async fn remove_block_locations(
        &self,
        request: Request<pb::RemoveLocationsRequest>,
    ) -> Result<Response<pb::RemoveLocationsResponse>, Status> {
        let (message, deadline) = (request.into_inner(), self.control_deadline());
        let removed = self.coordinators.remove_locations(message, deadline);
        Ok(Response::new(removed.await.or_status()?))
    }

    async fn find_block_locations(
        &self,
        request: Request<pb::FindLocationsRequest>,
    ) -> Result<Response<pb::FindLocationsResponse>, Status> {
        let (message, deadline) = (request.into_inner(), self.control_deadline());
        let hashes = message.hashes.as_ref();
        let asked = hashes.map_or(0, |h| h.hashes.len() / (h.hash_len as usize).max(1));
        let found = self.coordinators.find_locations(message, asked, deadline);
        Ok(Response::new(found.await.or_status()?))
    }
}
