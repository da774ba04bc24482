//! Blocks by value, for tools and small engines: pulled into the pool where they are not here, then
//! streamed out.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use kvferry_proto::{
    BlockHash, Generation, NamespaceSpec, RegionId, Slot, pb,
    pb::{BlockOutcome, OutcomeKind},
};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::Status;
use tracing::Instrument;

use super::{
    BoxStream, LocalApi,
    pull::{Pull, PullInto},
    slots::unpack,
    status::OrStatus,
};
use crate::{
    region::{Chain, ClientId, Memory, MemoryFault, PinId, Region},
    service::client::ClientHandle,
};

/// Bytes of one message: large enough to be efficient, small beside the message bound.
const PIECE_BYTES: usize = 1 << 20;
/// Messages waiting for a reader that is slow.
const PIECES_AHEAD: usize = 8;
/// The share of the pool that one step pulls: others need room too.
const POOL_SHARE: u32 = 4;

impl LocalApi {
    pub(super) async fn get_blocks(
        &self,
        client: ClientHandle,
        request: pb::GetRequest,
    ) -> Result<BoxStream<pb::GetResponse>, Status> {
        let timeout = self.pull_timeout(request.timeout_ms);
        let deadline = Instant::now() + timeout;
        let spec = self.namespace(&request.namespace, deadline).await?;
        let hashes = unpack(request.hashes, spec.hash_len)?.to_hashes();
        let pool = self.pool_for(&spec).or_status()?;
        let (sender, receiver) = mpsc::channel(PIECES_AHEAD);
        let getting = Getting {
            api: self.clone(),
            client: client.id(),
            spec,
            pool,
            private: request.no_replica || !self.defaults.replicate,
            deadline,
            sender,
        };
        let running = async move {
            if let Err(status) = getting.run(&hashes).await {
                // A reader that went away does not want to know.
                let _ = getting.sender.send(Err(status)).await;
            }
        };
        tokio::spawn(running.in_current_span());
        Ok(Box::pin(ReceiverStream::new(receiver).map(move |piece| {
            let _belongs_to = &client;
            piece
        })))
    }
}

struct Getting {
    api: LocalApi,
    client: ClientId,
    spec: Arc<NamespaceSpec>,
    pool: Arc<Region>,
    private: bool,
    deadline: Instant,
    sender: mpsc::Sender<Result<pb::GetResponse, Status>>,
}

impl Getting {
    async fn run(&self, hashes: &[BlockHash]) -> Result<(), Status> {
        let step = (self.pool.geometry.slots() / POOL_SHARE).max(1) as usize;
        for (number, batch) in hashes.chunks(step).enumerate() {
            let (outcomes, pin) = self.pull(batch).await?;
            for (index, outcome) in outcomes.into_iter().enumerate() {
                let index = (number * step + index) as u32;
                self.deliver(BlockOutcome { index, ..outcome }).await?;
            }
            if let Some(pin) = pin {
                // It may have expired while the reader was slow.
                let _ = self.api.store.release(self.client, pin);
            }
        }
        Ok(())
    }

    /// Brings some blocks into the pool; their outcomes, in order, and the pin that keeps them.
    async fn pull(
        &self,
        hashes: &[BlockHash],
    ) -> Result<(Vec<BlockOutcome>, Option<PinId>), Status> {
        let pull = Pull {
            spec: Arc::clone(&self.spec),
            hashes: hashes.to_vec(),
            chain: Chain::Unknown,
            into: PullInto::Pool {
                region: Arc::clone(&self.pool),
                ttl: None,
            },
            private: self.private,
            spare: false,
            stages: None,
            columns: false,
            known: None,
            timeout: self
                .deadline
                .saturating_duration_since(Instant::now())
                .max(Duration::from_millis(1)),
        };
        let mut events = self.api.start_pull(self.client, pull)?;
        let mut outcomes = vec![None; hashes.len()];
        let mut pin = None;
        while let Some(event) = events.recv().await {
            for outcome in event.outcomes {
                if let Some(place) = outcomes.get_mut(outcome.index as usize) {
                    *place = Some(outcome);
                }
            }
            if let Some(summary) = event.summary {
                pin = (summary.pin != 0).then_some(PinId(summary.pin));
            }
        }
        let outcomes = outcomes
            .into_iter()
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| Status::aborted("the agent is stopping"))?;
        Ok((outcomes, pin))
    }

    /// A block's outcome with its bytes, in pieces. Bytes are sent only when all of them are valid.
    async fn deliver(&self, outcome: BlockOutcome) -> Result<(), Status> {
        let here = matches!(outcome.kind(), OutcomeKind::Pulled | OutcomeKind::Local);
        let (outcome, bytes) = if here {
            self.read(outcome).await?
        } else {
            (outcome, Bytes::new())
        };
        let mut first = Some(outcome);
        let mut rest = bytes;
        loop {
            let data = rest.split_to(rest.len().min(PIECE_BYTES));
            let piece = pb::GetResponse {
                outcome: first.take(),
                data,
            };
            self.sender
                .send(Ok(piece))
                .await
                .map_err(|_| Status::cancelled("the reader went away"))?;
            if rest.is_empty() {
                return Ok(());
            }
        }
    }

    /// A validated read of this agent's own memory.
    async fn read(&self, outcome: BlockOutcome) -> Result<(BlockOutcome, Bytes), Status> {
        let stale = |outcome: BlockOutcome| {
            let outcome = BlockOutcome {
                kind: OutcomeKind::Stale.into(),
                detail: "it was overwritten here before it could be read: get it again".to_owned(),
                ..outcome
            };
            Ok((outcome, Bytes::new()))
        };
        let Some(region) = self.api.store.region(RegionId(outcome.region)) else {
            return stale(outcome);
        };
        let slot = Slot(outcome.slot);
        let copied = match region.memory {
            Memory::Host(_) => block(&region, slot),
            // A GPU is waited for.
            Memory::Gpu(_) => {
                let region = Arc::clone(&region);
                tokio::task::spawn_blocking(move || block(&region, slot))
                    .await
                    .map_err(|_| Status::internal("reading the block failed"))?
            }
        };
        let bytes = copied.map_err(|error| Status::internal(error.to_string()))?;
        let word = region.generations.load(slot.0).map(Generation);
        if word != Some(Generation(outcome.generation)) {
            return stale(outcome);
        }
        Ok((outcome, bytes.into()))
    }
}

/// The bytes in a slot as they are now.
fn block(region: &Region, slot: Slot) -> Result<Vec<u8>, MemoryFault> {
    let mut bytes = Vec::with_capacity(region.geometry.block_bytes() as usize);
    let ranges = region.geometry.ranges(slot);
    region
        .memory
        .fold(ranges, |piece| bytes.extend_from_slice(piece))?;
    Ok(bytes)
}
