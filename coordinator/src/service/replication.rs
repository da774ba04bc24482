//! How many copies there should be: the calls.

use std::{sync::Arc, time::Duration};

use kvferry_proto::{
    InvalidMessage, NamespaceName, NamespaceSpec,
    pb::{self, replication_server::Replication},
};
use kvferry_security::{Access, Right};
use tonic::{Request, Response, Status};

use super::{admin, hub::Hub, parse, status};
use crate::replication::{DEFAULT_HOT, MAX_COPIES, MAX_TIME};

/// `kvferry.v1.Replication` over one hub.
#[derive(Debug, Clone)]
pub(crate) struct ReplicationService {
    hub: Arc<Hub>,
}

impl ReplicationService {
    pub(crate) fn new(hub: Arc<Hub>) -> Self {
        Self { hub }
    }

    #[allow(clippy::result_large_err)] // tonic's signature
    fn spec(
        &self,
        access: &Access,
        right: Option<Right>,
        name: &str,
    ) -> Result<NamespaceSpec, Status> {
        let name = NamespaceName::new(name).map_err(InvalidMessage::from)?;
        match right {
            Some(right) => access.must(right, name.as_str(), "say how many copies there should be"),
            None => admin::must_see(access, &name, "see how many copies there are"),
        }?;
        let info = self.hub.read().namespace(&name);
        info.map(|info| info.spec)
            .map_err(|error| status::namespace_unknown(&error))
    }

    fn status(&self, name: &NamespaceName) -> Response<pb::CopiesStatus> {
        let (status, in_flight) = self.hub.copies_status(name);
        Response::new(pb::CopiesStatus {
            min_copies: status.min_copies,
            hot: status.hot,
            lacking: status.lacking,
            surveyed: status.surveyed,
            rounds: status.rounds,
            in_flight: in_flight as u32,
            copied: status.copied,
            failed: status.failed,
        })
    }
}

/// Within its bound, or what is usual where it is not said.
#[allow(clippy::result_large_err)] // tonic's signature
pub(super) fn time(what: &'static str, ms: u32, usual: Duration) -> Result<Duration, Status> {
    let asked = match ms {
        0 => usual,
        ms => Duration::from_millis(ms.into()),
    };
    let bound = MAX_TIME.as_millis() as usize;
    parse::at_most(what, asked.as_millis() as usize, bound)?;
    Ok(asked)
}

#[tonic::async_trait]
impl Replication for ReplicationService {
    async fn set_copies(
        &self,
        request: Request<pb::SetCopiesRequest>,
    ) -> Result<Response<pb::CopiesStatus>, Status> {
        let access = self.hub.access(request.extensions());
        let request = request.into_inner();
        let spec = self.spec(&access, Some(Right::Admin), &request.namespace)?;
        access.did("set copies", spec.name.as_str());
        parse::at_most(
            "min_copies",
            request.min_copies as usize,
            MAX_COPIES as usize,
        )?;
        self.hub
            .wants(|_, wants| wants.set_copies(&spec.name, request.min_copies));
        Ok(self.status(&spec.name))
    }

    async fn want_copies(
        &self,
        request: Request<pb::WantCopiesRequest>,
    ) -> Result<Response<pb::CopiesStatus>, Status> {
        let access = self.hub.access(request.extensions());
        let request = request.into_inner();
        let spec = self.spec(&access, Some(Right::Admin), &request.namespace)?;
        let hashes = request.hashes.ok_or(InvalidMessage::Missing("hashes"))?;
        let hashes = kvferry_proto::PackedHashes::parse(hashes, spec.hash_len);
        let hashes = hashes.map_err(status::message)?.to_hashes();
        parse::at_most("copies", request.copies as usize, MAX_COPIES as usize)?;
        let ttl = time("ttl_ms", request.ttl_ms, DEFAULT_HOT)?;
        self.hub
            .wants(|now, wants| wants.want(&spec.name, &hashes, request.copies, now + ttl))
            .map_err(|error| status::too_many_hot(&error))?;
        Ok(self.status(&spec.name))
    }

    async fn describe_copies(
        &self,
        request: Request<pb::DescribeCopiesRequest>,
    ) -> Result<Response<pb::CopiesStatus>, Status> {
        let access = self.hub.access(request.extensions());
        let spec = self.spec(&access, None, &request.get_ref().namespace)?;
        Ok(self.status(&spec.name))
    }
}
