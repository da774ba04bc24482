//! Reserve, seal, abort, evict, pin: the store's operations, one call each.

use std::time::Duration;

use kvferry_proto::{
    BlockHash, HashLen, InvalidMessage, NamespaceName, NamespaceSpec, PackedHashes, Reason,
    RegionId, Slot, pb, refusal,
};
use tonic::{Code, Status};

use super::{LocalApi, status::OrStatus};
use crate::region::{Chain, Checksums, ClientId, EvictWhat, Held, Holder, PinId, Seal};

/// Most slots one call names: as many as hashes fit in a request.
const MAX_SLOTS_PER_CALL: usize = kvferry_proto::MAX_HASHES_PER_REQUEST;
/// Longest wait for a coordinator's confirmation.
const MAX_WAIT_ANNOUNCED: Duration = Duration::from_secs(60);

impl LocalApi {
    pub(super) fn reserve_slots(
        &self,
        client: ClientId,
        request: &pb::ReserveRequest,
    ) -> Result<pb::ReserveResponse, Status> {
        let region = RegionId(request.region);
        let holder = Holder::Client(client);
        let now = self.now();
        let slots = if request.slots.is_empty() {
            bounded(request.count as usize)?;
            let slots = self
                .store
                .reserve_pool(now, holder, region, request.count)
                .or_status()?;
            slots.iter().map(|slot| slot.0).collect()
        } else {
            bounded(request.slots.len())?;
            let slots = to_slots(&request.slots);
            self.store
                .reserve_slots(now, holder, region, &slots)
                .or_status()?;
            request.slots.clone()
        };
        Ok(pb::ReserveResponse { slots })
    }

    pub(super) async fn seal_slots(
        &self,
        client: ClientId,
        request: pb::SealRequest,
    ) -> Result<pb::SealResponse, Status> {
        bounded(request.slots.len())?;
        let region = self
            .store
            .region(RegionId(request.region))
            .ok_or_else(|| unknown_region(request.region))?;
        let hashes = unpack(request.hashes, region.namespace.hash_len)?.to_hashes();
        let slots = to_slots(&request.slots);
        let chain = chain(request.chained, &request.parent)?;
        let api = self.clone();
        let seal = move || {
            api.store
                .seal(
                    api.now(),
                    &Seal {
                        holder: Holder::Client(client),
                        region: region.id,
                        slots: &slots,
                        hashes: &hashes,
                        chain,
                        checksums: Checksums::Compute,
                        pin: None,
                        private: false,
                    },
                )
                .or_status()
        };
        // Checksums read every byte: not on a thread that others wait for.
        let outcomes = tokio::task::spawn_blocking(seal)
            .await
            .map_err(|_| Status::internal("sealing failed"))??;
        let announced = self
            .announced(
                RegionId(request.region),
                Duration::from_millis(request.wait_announced_ms.into()),
            )
            .await;
        let mut response = pb::SealResponse {
            announced,
            ..pb::SealResponse::default()
        };
        for (slot, outcome) in request.slots.iter().zip(&outcomes) {
            response.generations.push(outcome.held.generation.0);
            if outcome.duplicate {
                response.duplicate_slots.push(*slot);
            }
        }
        Ok(response)
    }

    pub(super) fn abort_slots(
        &self,
        client: ClientId,
        request: &pb::AbortRequest,
    ) -> Result<(), Status> {
        bounded(request.slots.len())?;
        self.store
            .abort(
                Holder::Client(client),
                RegionId(request.region),
                &to_slots(&request.slots),
            )
            .or_status()
    }

    pub(super) fn evict_blocks(
        &self,
        request: pb::EvictRequest,
    ) -> Result<pb::EvictResponse, Status> {
        let name = NamespaceName::new(&request.namespace).map_err(InvalidMessage::from)?;
        let hashes = match request.hashes {
            Some(packed) if !packed.hashes.is_empty() => {
                let spec = self.local_namespace(&name)?;
                Some(unpack(Some(packed), spec.hash_len)?.to_hashes())
            }
            _ => None,
        };
        let what = hashes.as_deref().map_or(EvictWhat::All, EvictWhat::Blocks);
        let evicted = self.store.evict(self.now(), &name, what).or_status()?;
        self.log.hurry();
        Ok(pb::EvictResponse {
            evicted: evicted.evicted,
            kept_pinned: evicted.kept_pinned,
        })
    }

    pub(super) fn pin_blocks(
        &self,
        client: ClientId,
        request: pb::PinRequest,
    ) -> Result<pb::PinResponse, Status> {
        let name = NamespaceName::new(&request.namespace).map_err(InvalidMessage::from)?;
        let spec = self.local_namespace(&name)?;
        let hashes = unpack(request.hashes, spec.hash_len)?.to_hashes();
        let ttl = ttl(request.ttl_ms);
        let (pin, held) = self
            .store
            .pin(self.now(), client, &name, &hashes, ttl)
            .or_status()?;
        Ok(pb::PinResponse {
            pin: pin.0,
            blocks: held.into_iter().map(pinned).collect(),
        })
    }

    pub(super) fn release_pin(
        &self,
        client: ClientId,
        request: &pb::ReleaseRequest,
    ) -> Result<(), Status> {
        self.store.release(client, PinId(request.pin)).or_status()
    }

    /// Waits until every coordinator has confirmed everything recorded so far; false when one had not
    /// in time, or refuses the region.
    pub(super) async fn announced(&self, region: RegionId, wait: Duration) -> bool {
        let position = self.log.seal_position();
        let all = async {
            for session in &self.sessions {
                let mut status = session.clone();
                let confirmed = status.wait_for(|status| status.acknowledged >= position);
                // A refusal comes before the word that takes in what the region was declared with.
                match confirmed.await {
                    Ok(status) if !status.refused.contains(&region) => {}
                    _ => return false,
                }
            }
            true
        };
        // A wait of zero still sees what is already so.
        tokio::time::timeout(wait.min(MAX_WAIT_ANNOUNCED), all)
            .await
            .unwrap_or(false)
    }

    /// The namespace as this agent's own regions have it.
    #[allow(clippy::result_large_err)] // tonic's signature
    fn local_namespace(
        &self,
        name: &NamespaceName,
    ) -> Result<std::sync::Arc<NamespaceSpec>, Status> {
        self.store.namespace(name).ok_or_else(|| {
            refusal(
                Code::NotFound,
                Reason::NamespaceUnknown,
                format!("namespace {name} has no region here: register one first"),
            )
        })
    }
}

/// Hashes of the namespace's length.
#[allow(clippy::result_large_err)] // tonic's signature
pub(super) fn unpack(
    packed: Option<pb::PackedHashes>,
    hash_len: HashLen,
) -> Result<PackedHashes, Status> {
    let packed = packed.ok_or(InvalidMessage::Missing("hashes"))?;
    Ok(PackedHashes::parse(packed, hash_len).map_err(InvalidMessage::from)?)
}

#[allow(clippy::result_large_err)] // tonic's signature
pub(super) fn chain(chained: bool, parent: &[u8]) -> Result<Chain, Status> {
    if !chained {
        return Ok(Chain::Unknown);
    }
    let parent = (!parent.is_empty())
        .then(|| BlockHash::new(parent).map_err(InvalidMessage::from))
        .transpose()?;
    Ok(Chain::From(parent))
}

pub(super) fn ttl(ms: u32) -> Option<Duration> {
    (ms != 0).then(|| Duration::from_millis(ms.into()))
}

pub(super) fn to_slots(slots: &[u32]) -> Vec<Slot> {
    slots.iter().copied().map(Slot).collect()
}

#[allow(clippy::result_large_err)] // tonic's signature
pub(super) fn bounded(slots: usize) -> Result<(), Status> {
    if slots > MAX_SLOTS_PER_CALL {
        return Err(refusal(
            Code::ResourceExhausted,
            Reason::BoundReached,
            format!(
                "{slots} slots in one call; at most {MAX_SLOTS_PER_CALL} are allowed: split it"
            ),
        ));
    }
    Ok(())
}

pub(super) fn unknown_region(region: u32) -> Status {
    refusal(
        Code::NotFound,
        Reason::RegionUnknown,
        format!("region {region} is not registered: register it again"),
    )
}

fn pinned(held: Option<Held>) -> pb::PinnedBlock {
    held.map_or_else(pb::PinnedBlock::default, |held| pb::PinnedBlock {
        pinned: true,
        region: held.region.0,
        slot: held.slot.0,
        generation: held.generation.0,
    })
}
