//! Blocks by value, for tools and small engines.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use kvferry_proto::{BlockHash, InvalidMessage, Slot, pb};
use tokio::time::timeout;
use tonic::{Status, Streaming};

use super::{
    LocalApi,
    slots::{chain, unpack},
    status::{IntoStatus, OrStatus},
};
use crate::region::{Chain, Checksums, Holder, Region, Seal, SealOutcome};

/// Longest pause between two pieces of a put; the writer is gone then.
const PIECE_TIMEOUT: Duration = Duration::from_secs(30);

/// Blocks being written into the pool, one after the other. What was not sealed is given back.
struct Writer<'a> {
    api: &'a LocalApi,
    holder: Holder,
    region: Arc<Region>,
    hashes: Vec<BlockHash>,
    parent: Chain,
    /// The block that comes next, and how much of it was written.
    index: usize,
    written: u64,
    slot: Option<Slot>,
    stored: u64,
    present: u64,
}

impl LocalApi {
    pub(super) async fn put_blocks(
        &self,
        mut stream: Streaming<pb::PutRequest>,
    ) -> Result<pb::PutResponse, Status> {
        let first = next(&mut stream)
            .await?
            .ok_or(InvalidMessage::Missing("the first message"))?;
        let deadline = self.control_deadline();
        let spec = self.namespace(&first.namespace, deadline).await?;
        let hashes = unpack(first.hashes, spec.hash_len)?.to_hashes();
        let mut writer = Writer {
            api: self,
            holder: self.new_holder(),
            region: self.pool_for(&spec).or_status()?,
            hashes,
            parent: chain(first.chained, &first.parent)?,
            index: 0,
            written: 0,
            slot: None,
            stored: 0,
            present: 0,
        };
        writer.take(first.data).await?;
        while let Some(piece) = next(&mut stream).await? {
            writer.take(piece.data).await?;
        }
        writer.finish()?;
        let (blocks_stored, blocks_already_present) = (writer.stored, writer.present);
        let region = writer.region.id;
        drop(writer);
        let wait = Duration::from_millis(first.wait_announced_ms.into());
        Ok(pb::PutResponse {
            blocks_stored,
            blocks_already_present,
            announced: self.announced(region, wait).await,
        })
    }
}

async fn next(stream: &mut Streaming<pb::PutRequest>) -> Result<Option<pb::PutRequest>, Status> {
    timeout(PIECE_TIMEOUT, stream.message())
        .await
        .map_err(|_| Status::deadline_exceeded("no further piece arrived in time"))?
}

impl Writer<'_> {
    /// Takes the next bytes, which may end one block and begin others.
    async fn take(&mut self, mut data: Bytes) -> Result<(), Status> {
        let block_bytes = self.region.geometry.block_bytes();
        while !data.is_empty() {
            if self.index == self.hashes.len() {
                return Err(InvalidMessage::OutOfBounds {
                    what: "the number of bytes",
                    got: self.hashes.len() as u64 * block_bytes + data.len() as u64,
                    max: self.hashes.len() as u64 * block_bytes,
                }
                .into());
            }
            if self.written == 0 {
                self.begin()?;
            }
            let len = (block_bytes - self.written).min(data.len() as u64);
            let piece = data.split_to(len as usize);
            if let Some(slot) = self.slot {
                self.write(slot, &piece)?;
            }
            self.written += len;
            if self.written == block_bytes {
                self.end().await?;
            }
        }
        Ok(())
    }

    #[allow(clippy::result_large_err)] // tonic's signature
    fn begin(&mut self) -> Result<(), Status> {
        let hash = &self.hashes[self.index];
        let name = &self.region.namespace.name;
        if self.api.store.find(name, hash).is_some() {
            self.present += 1;
            return Ok(());
        }
        let now = self.api.now();
        let slot = self
            .api
            .store
            .reserve_one(now, self.holder, self.region.id)
            .or_status()?;
        self.slot = Some(slot);
        Ok(())
    }

    #[allow(clippy::result_large_err)] // tonic's signature
    fn write(&self, slot: Slot, piece: &[u8]) -> Result<(), Status> {
        // A pool is contiguous: one range per slot.
        let start = self
            .region
            .geometry
            .ranges(slot)
            .next()
            .map_or(0, |r| r.start);
        self.region
            .memory
            .write_at(start + self.written, piece)
            .map_err(|error| Status::internal(error.to_string()))
    }

    async fn end(&mut self) -> Result<(), Status> {
        let hash = self.hashes[self.index];
        if let Some(slot) = self.slot.take() {
            let (store, holder, region, parent) = (
                Arc::clone(&self.api.store),
                self.holder,
                self.region.id,
                self.parent,
            );
            let now = self.api.now();
            let outcome = tokio::task::spawn_blocking(move || {
                store.seal(
                    now,
                    &Seal {
                        holder,
                        region,
                        slots: &[slot],
                        hashes: &[hash],
                        chain: parent,
                        checksums: Checksums::Compute,
                        pin: None,
                        private: false,
                    },
                )
            })
            .await
            .map_err(|_| Status::internal("sealing failed"))?
            .map_err(IntoStatus::into_status)?;
            match outcome.first() {
                Some(SealOutcome {
                    duplicate: false, ..
                }) => self.stored += 1,
                _ => self.present += 1,
            }
        }
        if let Chain::From(_) = self.parent {
            self.parent = Chain::From(Some(hash));
        }
        self.index += 1;
        self.written = 0;
        Ok(())
    }

    #[allow(clippy::result_large_err)] // tonic's signature
    fn finish(&self) -> Result<(), Status> {
        if self.index < self.hashes.len() {
            return Err(InvalidMessage::Columns {
                what: "whole blocks of bytes",
                got: self.index,
                want: self.hashes.len(),
            }
            .into());
        }
        Ok(())
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        self.api.store.release_holder(self.holder);
    }
}
