//! Publishing a set of tensors from regions of this agent, and ending that.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use kvferry_proto::{
    BlockHash, ChunkRuns, Chunks, InvalidMessage, NamespaceSpec, Reason, RegionId, Slot,
    SourceIdentity, Tensor, TensorTable, pb, refusal,
};
use tokio::time::timeout;
use tonic::{Code, Status, Streaming};
use tracing::info;

use super::{
    LocalApi, receive,
    registry::{EnterError, MAX_PUBLISHING, Name, Set},
};
use crate::{
    region::{Chain, Checksums, ClientId, Holder, Seal},
    service::{
        client::ClientHandle,
        local::{slots::unknown_region, status::OrStatus},
    },
};

/// Chunks sealed in one step: their checksums are read under no lock, their slots under one.
const CHUNKS_PER_SEAL: usize = 1024;
/// Longest wait for coordinators.
const MAX_WAIT: Duration = Duration::from_secs(60);

impl LocalApi {
    pub(super) async fn publish_tensors(
        &self,
        client: &ClientHandle,
        stream: Streaming<pb::PublishTensorsRequest>,
    ) -> Result<pb::PublishTensorsResponse, Status> {
        let Ok(_place) = self.tensors.publishing.try_acquire() else {
            return Err(too_many("publications are being received", MAX_PUBLISHING));
        };
        let (header, tensors) = receive::receive(stream).await?;
        let wait = Duration::from_millis(header.wait_announced_ms.into());
        let set = self.set(header, tensors)?;
        let (source, digest) = (set.source, set.table.digest());
        let revision = self.enter_set(client.id(), set).await?;
        let announced = timeout(wait.min(MAX_WAIT), self.tensors.announced(revision))
            .await
            .is_ok();
        Ok(pb::PublishTensorsResponse {
            source: Bytes::copy_from_slice(source.as_bytes()),
            digest: Bytes::copy_from_slice(digest.as_bytes()),
            announced,
        })
    }

    /// Seals a set's chunks where it is ready, and enters it. Gives the registry's revision.
    pub(super) async fn enter_set(&self, client: ClientId, mut set: Set) -> Result<u64, Status> {
        self.tensors.reap(&self.store);
        self.tensors.check(&set).map_err(|error| refused(&error))?;
        if set.ready {
            let api = self.clone();
            // Checksums read every byte: not on a thread that others wait for.
            set = tokio::task::spawn_blocking(move || {
                api.seal_chunks(client, &set)?;
                // The words first: if they are the same later, the chunks were there in between.
                let words = set.fingerprint(&api.store);
                set.words = words.filter(|_| set.is_whole(&api.store) == Some(true));
                Ok::<_, Status>(set)
            })
            .await
            .map_err(|_| Status::internal("sealing the chunks failed"))??;
            set.position = self.log.seal_position();
        }
        let (source, rank, ready) = (set.source, set.rank, set.ready);
        let revision = self.tensors.enter(set).map_err(|error| refused(&error))?;
        info!(%source, rank, ready, "tensors published");
        Ok(revision)
    }

    /// Checks what an engine wants to publish.
    #[allow(clippy::result_large_err)] // tonic's signature
    fn set(&self, header: pb::PublishTensorsHeader, tensors: Vec<Tensor>) -> Result<Set, Status> {
        let identity = header.identity.ok_or(InvalidMessage::Missing("identity"))?;
        let identity = SourceIdentity::try_from(identity)?;
        identity
            .check_rank(header.rank)
            .map_err(InvalidMessage::from)?;
        let runs = ChunkRuns::try_from(header.runs)?;
        let spec = self.store.namespace(&identity.namespace).ok_or_else(|| {
            let text = format!(
                "namespace {} has no region here: register the tensors' memory first",
                identity.namespace
            );
            refusal(Code::NotFound, Reason::NamespaceUnknown, text)
        })?;
        self.check_runs(&spec, &runs)?;
        let chunks = u32::try_from(runs.slots()).unwrap_or(u32::MAX);
        let table = TensorTable::new(spec.layout.block_bytes(), chunks, tensors)
            .map_err(InvalidMessage::from)?;
        let source = identity.id();
        let names = Chunks::new(source, header.rank, table.digest(), spec.hash_len)
            .map_err(InvalidMessage::from)?;
        Ok(Set {
            source,
            identity: Arc::new(identity),
            rank: header.rank,
            table: Arc::new(table),
            runs,
            names,
            ready: header.ready,
            owns_regions: header.unregister_with_it,
            publication: 0,
            position: 0,
            words: None,
        })
    }

    /// Engines' regions of the namespace, and no slot twice.
    #[allow(clippy::result_large_err)] // tonic's signature
    fn check_runs(&self, spec: &NamespaceSpec, runs: &ChunkRuns) -> Result<(), Status> {
        let wrong = |text| refusal(Code::InvalidArgument, Reason::InvalidArgument, text);
        let mut spans = BTreeSet::new();
        for run in runs.as_slice() {
            let region = self
                .store
                .region(run.region)
                .ok_or_else(|| unknown_region(run.region.0))?;
            if *region.namespace != *spec || region.pool {
                return Err(wrong(format!(
                    "region {} is a pool, or of another namespace than {}: tensors lie in regions \
                     of their engine",
                    region.id, spec.name
                )));
            }
            // As many as fit, as was parsed.
            let end = run.first_slot + run.slots;
            if end > region.geometry.slots() {
                let slots = region.geometry.slots();
                return Err(refusal(
                    Code::InvalidArgument,
                    Reason::SlotOutOfRegion,
                    format!(
                        "region {} has {slots} slots; a run ends at {end}",
                        region.id
                    ),
                ));
            }
            spans.insert((run.region, run.first_slot, end));
        }
        let overlap =
            |(a, b): (&(RegionId, u32, u32), &(RegionId, u32, u32))| a.0 == b.0 && b.1 < a.2;
        if spans.len() < runs.as_slice().len()
            || spans.iter().zip(spans.iter().skip(1)).any(overlap)
        {
            return Err(wrong("two runs share slots".to_owned()));
        }
        Ok(())
    }

    /// Seals the chunks that are not sealed; those that are and were private become public.
    #[allow(clippy::result_large_err)] // tonic's signature
    fn seal_chunks(&self, client: ClientId, set: &Set) -> Result<(), Status> {
        for (region, blocks) in set.blocks() {
            let held = self
                .store
                .hold(region, &blocks)
                .ok_or_else(|| unknown_region(region.0))?;
            let (mut there, mut missing) = (Vec::new(), Vec::new());
            for (block, held) in blocks.into_iter().zip(held) {
                match held {
                    true => there.push(block.0),
                    false => missing.push(block),
                }
            }
            self.store.make_public(region, &there);
            for batch in missing.chunks(CHUNKS_PER_SEAL) {
                self.seal_batch(client, region, batch)?;
            }
        }
        Ok(())
    }

    /// For the engine, so that slots it had reserved itself count as free.
    #[allow(clippy::result_large_err)] // tonic's signature
    fn seal_batch(
        &self,
        client: ClientId,
        region: RegionId,
        blocks: &[(Slot, BlockHash)],
    ) -> Result<(), Status> {
        let holder = Holder::Client(client);
        let (slots, hashes): (Vec<_>, Vec<_>) = blocks.iter().copied().unzip();
        self.store
            .reserve_slots(self.now(), holder, region, &slots)
            .or_status()?;
        let seal = Seal {
            holder,
            region,
            slots: &slots,
            hashes: &hashes,
            chain: Chain::Unknown,
            checksums: Checksums::Compute,
            pin: None,
            private: false,
        };
        let sealed = self.store.seal(self.now(), &seal);
        if sealed.is_err() {
            // The region may have gone, with the reservations.
            let _ = self.store.abort(holder, region, &slots);
        }
        sealed.or_status().map(|_| ())
    }

    /// Ends a publication; false where there is none.
    pub(super) async fn withdraw_set(&self, name: Name, publication: Option<u64>) -> bool {
        let Some(set) = self.tensors.take(name, publication) else {
            return false;
        };
        for (region, blocks) in set.blocks() {
            if set.owns_regions {
                // It may have gone with its engine already.
                let _ = self.unregister(region).await;
                continue;
            }
            let kept = self.store.drop_blocks(region, &blocks);
            if kept > 0 {
                info!(%region, kept, "pinned chunks stay until they are released");
            }
        }
        true
    }
}

pub(super) fn too_many(what: &str, max: usize) -> Status {
    let text = format!("{max} {what}, as many as may be: wait for some to end");
    refusal(Code::ResourceExhausted, Reason::BoundReached, text)
}

fn refused(error: &EnterError) -> Status {
    let (code, reason) = match error {
        EnterError::Exists { .. } => (Code::AlreadyExists, Reason::SourceExists),
        EnterError::Full => (Code::ResourceExhausted, Reason::BoundReached),
    };
    refusal(code, reason, error.to_string())
}
