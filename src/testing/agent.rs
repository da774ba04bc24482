//! The fake agent.

use std::{collections::HashMap, pin::Pin, sync::Mutex};

use kvferry_proto::{
    MAX_MESSAGE_BYTES,
    pb::{
        self,
        agent_server::{Agent, AgentServer},
    },
};
use tokio_stream::{Stream, iter};
use tonic::{Request, Response, Status, Streaming};

use super::{Copy, CopyBytes, Region, World};

pub(super) struct FakeAgent {
    node: String,
    transport: &'static str,
    world: World,
    regions: Mutex<HashMap<u32, std::sync::Arc<Region>>>,
    infos: Mutex<Vec<pb::RegionInfo>>,
}

type Reply<T> = Result<Response<T>, Status>;
type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl FakeAgent {
    pub(super) fn new(node: &str, transport: &'static str, world: World) -> Self {
        Self {
            node: node.to_owned(),
            transport,
            world,
            regions: Mutex::default(),
            infos: Mutex::default(),
        }
    }

    pub(super) fn service(self) -> AgentServer<Self> {
        AgentServer::new(self).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// The outcome for one hash, and its bytes where there are some.
    fn fetch(&self, index: usize, hash: &[u8]) -> (pb::BlockOutcome, Vec<u8>) {
        let state = self.world.state();
        let copies = state.blocks.get(hash).map_or(&[][..], Vec::as_slice);
        let local = copies.iter().find(|copy| copy.node == self.node);
        let alive = copies.iter().find(|copy| !state.dead.contains(&copy.node));
        let (kind, copy) = match (local, alive, copies) {
            (Some(copy), _, _) => (pb::OutcomeKind::Local, Some(copy)),
            (None, Some(copy), _) => (pb::OutcomeKind::Pulled, Some(copy)),
            (None, None, []) => (pb::OutcomeKind::Missing, None),
            (None, None, _) => (pb::OutcomeKind::Unreachable, None),
        };
        let mut bytes = copy.map(Copy::read).unwrap_or_default();
        if state.spoil
            && let Some(byte) = bytes.last_mut()
        {
            *byte ^= 1;
        }
        let outcome = pb::BlockOutcome {
            index: index as u32,
            kind: kind.into(),
            source_node: copy.map(|copy| copy.node.clone()).unwrap_or_default(),
            transport: self.transport.to_owned(),
            detail: "as the fake has it".to_owned(),
            settled: true,
            ..pb::BlockOutcome::default()
        };
        (outcome, bytes)
    }

    fn hold(&self, hash: &[u8], region: u32, bytes: CopyBytes) {
        let mut state = self.world.state();
        let copies = state.blocks.entry(hash.to_vec()).or_default();
        copies.retain(|copy| copy.node != self.node);
        copies.push(Copy {
            node: self.node.clone(),
            region,
            bytes,
        });
    }

    fn region(&self, region: u32) -> Result<std::sync::Arc<Region>, Status> {
        let regions = self.regions.lock().unwrap();
        let found = regions.get(&region).cloned();
        found.ok_or_else(|| Status::not_found("no such region"))
    }
}

fn split(hashes: Option<pb::PackedHashes>) -> Vec<Vec<u8>> {
    let packed = hashes.unwrap();
    let chunks = packed.hashes.chunks_exact(packed.hash_len as usize);
    chunks.map(<[u8]>::to_vec).collect()
}

#[tonic::async_trait]
impl Agent for FakeAgent {
    type GetStream = Replies<pb::GetResponse>;
    type PullStream = Replies<pb::PullEvent>;

    async fn register_region(
        &self,
        request: Request<pb::RegisterRegionRequest>,
    ) -> Reply<pb::RegionInfo> {
        let request = request.into_inner();
        let spec = request.namespace.unwrap();
        let region = self.infos.lock().unwrap().len() as u32 + 1;
        let mut geometry = request.geometry;
        let pool = match request.source.unwrap() {
            pb::register_region_request::Source::Path(source) => {
                let planes = geometry.clone().unwrap().planes;
                let opened = Region::open(&source.path, planes);
                self.regions.lock().unwrap().insert(region, opened.into());
                false
            }
            _ => {
                geometry = Some(pb::Geometry {
                    slots: 8,
                    planes: vec![],
                });
                true
            }
        };
        let info = pb::RegionInfo {
            region,
            namespace: spec.name,
            geometry,
            pool,
            ..pb::RegionInfo::default()
        };
        self.infos.lock().unwrap().push(info.clone());
        Ok(Response::new(info))
    }

    async fn reserve(&self, request: Request<pb::ReserveRequest>) -> Reply<pb::ReserveResponse> {
        let slots = request.into_inner().slots;
        Ok(Response::new(pb::ReserveResponse { slots }))
    }

    async fn seal(&self, request: Request<pb::SealRequest>) -> Reply<pb::SealResponse> {
        let request = request.into_inner();
        let region = self.region(request.region)?;
        for (slot, hash) in request.slots.iter().zip(split(request.hashes)) {
            self.hold(
                &hash,
                request.region,
                CopyBytes::Slot(region.clone(), *slot),
            );
        }
        Ok(Response::new(pb::SealResponse {
            announced: true,
            ..pb::SealResponse::default()
        }))
    }

    async fn abort(&self, _: Request<pb::AbortRequest>) -> Reply<pb::AbortResponse> {
        Ok(Response::new(pb::AbortResponse {}))
    }

    async fn put(&self, request: Request<Streaming<pb::PutRequest>>) -> Reply<pb::PutResponse> {
        let mut stream = request.into_inner();
        let header = stream.message().await?.unwrap();
        let mut bytes = header.data.to_vec();
        while let Some(message) = stream.message().await? {
            bytes.extend_from_slice(&message.data);
        }
        let hashes = split(header.hashes);
        let spec = self.world.state().namespaces[&header.namespace].clone();
        let layout = spec.layout.unwrap();
        let block_bytes = layout.plane_bytes as usize * layout.plane_count as usize;
        assert_eq!(bytes.len(), hashes.len() * block_bytes);
        for (hash, block) in hashes.iter().zip(bytes.chunks(block_bytes)) {
            self.hold(hash, 1, CopyBytes::Value(block.to_vec()));
        }
        Ok(Response::new(pb::PutResponse {
            announced: true,
            blocks_stored: hashes.len() as u64,
            blocks_already_present: 0,
        }))
    }

    async fn get(&self, request: Request<pb::GetRequest>) -> Reply<Self::GetStream> {
        let mut replies = Vec::new();
        for (index, hash) in split(request.into_inner().hashes).iter().enumerate() {
            let (outcome, bytes) = self.fetch(index, hash);
            // The outcome with the first half, then the rest.
            let (first, rest) = bytes.split_at(bytes.len() / 2);
            replies.push(Ok(pb::GetResponse {
                outcome: Some(outcome),
                data: first.to_vec().into(),
            }));
            if !rest.is_empty() {
                replies.push(Ok(pb::GetResponse {
                    outcome: None,
                    data: rest.to_vec().into(),
                }));
            }
        }
        Ok(Response::new(Box::pin(iter(replies))))
    }

    async fn pull(&self, request: Request<pb::PullRequest>) -> Reply<Self::PullStream> {
        let request = request.into_inner();
        let Some(pb::pull_request::Destination::Slots(to)) = request.destination else {
            return Err(Status::unimplemented("slots only"));
        };
        let region = self.region(to.region)?;
        let mut events = Vec::new();
        for (index, hash) in split(request.hashes).iter().enumerate() {
            let (outcome, bytes) = self.fetch(index, hash);
            if !bytes.is_empty() {
                region.write(to.slots[index], &bytes);
                self.hold(
                    hash,
                    to.region,
                    CopyBytes::Slot(region.clone(), to.slots[index]),
                );
            }
            events.push(Ok(pb::PullEvent {
                outcomes: vec![outcome],
                ..pb::PullEvent::default()
            }));
        }
        // Outcomes come as blocks land, not in order.
        events.reverse();
        events.push(Ok(pb::PullEvent {
            summary: Some(pb::PullSummary::default()),
            ..pb::PullEvent::default()
        }));
        Ok(Response::new(Box::pin(iter(events))))
    }

    async fn evict(&self, request: Request<pb::EvictRequest>) -> Reply<pb::EvictResponse> {
        let hashes = split(request.into_inner().hashes);
        let mut state = self.world.state();
        for (hash, copies) in &mut state.blocks {
            if hashes.is_empty() || hashes.contains(hash) {
                copies.retain(|copy| copy.node != self.node);
            }
        }
        Ok(Response::new(pb::EvictResponse::default()))
    }

    async fn stats(&self, _: Request<pb::StatsRequest>) -> Reply<pb::StatsResponse> {
        let infos = self.infos.lock().unwrap().clone();
        let regions = infos.into_iter().map(|info| pb::RegionStats {
            region: Some(info),
            ..pb::RegionStats::default()
        });
        Ok(Response::new(pb::StatsResponse {
            node: self.node.clone(),
            regions: regions.collect(),
            ..pb::StatsResponse::default()
        }))
    }

    async fn unregister_region(
        &self,
        _: Request<pb::UnregisterRegionRequest>,
    ) -> Reply<pb::UnregisterRegionResponse> {
        Err(Status::unimplemented("unregister_region"))
    }

    async fn lookup(&self, _: Request<pb::LookupRequest>) -> Reply<pb::LookupResponse> {
        Err(Status::unimplemented("lookup"))
    }

    async fn pin(&self, _: Request<pb::PinRequest>) -> Reply<pb::PinResponse> {
        Err(Status::unimplemented("pin"))
    }

    async fn release(&self, _: Request<pb::ReleaseRequest>) -> Reply<pb::ReleaseResponse> {
        Err(Status::unimplemented("release"))
    }
}
