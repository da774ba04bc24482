//! The fake coordinator.

use std::pin::Pin;

use kvferry_proto::{
    Reason,
    pb::{
        self,
        coordinator_server::{Coordinator, CoordinatorServer},
    },
    refusal,
};
use tokio_stream::Stream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::World;

pub(super) struct FakeCoordinator(pub(super) World);

type Reply<T> = Result<Response<T>, Status>;

impl FakeCoordinator {
    pub(super) fn service(self) -> CoordinatorServer<Self> {
        CoordinatorServer::new(self)
    }

    fn info(&self, name: &str) -> Result<pb::NamespaceInfo, Status> {
        let state = self.0.state();
        match state.namespaces.get(name) {
            Some(spec) => Ok(pb::NamespaceInfo {
                spec: Some(spec.clone()),
                ..pb::NamespaceInfo::default()
            }),
            None => Err(refusal(
                Code::NotFound,
                Reason::NamespaceUnknown,
                format!("there is no namespace {name}"),
            )),
        }
    }
}

#[tonic::async_trait]
impl Coordinator for FakeCoordinator {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<pb::CoordinatorMessage, Status>> + Send>>;

    async fn session(&self, _: Request<Streaming<pb::AgentMessage>>) -> Reply<Self::SessionStream> {
        Err(Status::unimplemented("session"))
    }

    async fn locate(&self, request: Request<pb::LocateRequest>) -> Reply<pb::LocateResponse> {
        let packed = request.into_inner().hashes.unwrap();
        let state = self.0.state();
        let mut answer = pb::LocateResponse::default();
        for hash in packed.hashes.chunks_exact(packed.hash_len as usize) {
            let copies = state.blocks.get(hash).map_or(&[][..], Vec::as_slice);
            answer.candidate_counts.push(copies.len() as u32);
            for copy in copies {
                answer.owner_index.push(answer.owners.len() as u32);
                answer.slots.push(0);
                answer.generations.push(2);
                answer.owners.push(pb::LocatedRegion {
                    node: copy.node.clone(),
                    region: copy.region,
                    ..pb::LocatedRegion::default()
                });
            }
        }
        answer.answered = answer.candidate_counts.len() as u32;
        Ok(Response::new(answer))
    }

    async fn create_namespace(
        &self,
        request: Request<pb::CreateNamespaceRequest>,
    ) -> Reply<pb::CreateNamespaceResponse> {
        let spec = request.into_inner().spec.unwrap();
        let mut state = self.0.state();
        let before = state.namespaces.insert(spec.name.clone(), spec);
        Ok(Response::new(pb::CreateNamespaceResponse {
            created: before.is_none(),
            fingerprint: String::new(),
        }))
    }

    async fn describe_namespace(
        &self,
        request: Request<pb::DescribeNamespaceRequest>,
    ) -> Reply<pb::NamespaceInfo> {
        self.info(&request.into_inner().name).map(Response::new)
    }

    async fn list_namespaces(
        &self,
        _: Request<pb::ListNamespacesRequest>,
    ) -> Reply<pb::ListNamespacesResponse> {
        Err(Status::unimplemented("list_namespaces"))
    }

    async fn delete_namespace(
        &self,
        _: Request<pb::DeleteNamespaceRequest>,
    ) -> Reply<pb::DeleteNamespaceResponse> {
        Err(Status::unimplemented("delete_namespace"))
    }

    async fn list_nodes(&self, _: Request<pb::ListNodesRequest>) -> Reply<pb::ListNodesResponse> {
        Err(Status::unimplemented("list_nodes"))
    }

    async fn describe_node(&self, _: Request<pb::DescribeNodeRequest>) -> Reply<pb::NodeInfo> {
        Err(Status::unimplemented("describe_node"))
    }

    async fn drain_node(&self, _: Request<pb::DrainNodeRequest>) -> Reply<pb::NodeInfo> {
        Err(Status::unimplemented("drain_node"))
    }
}
