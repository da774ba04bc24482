//! How a read becomes READs: where it lands, where the regions lie, and what it is cut into.

use std::sync::Arc;

use kvferry_ibverbs::RegisterError;
use kvferry_proto::{NodeId, RegionId, RemoteSpan};
use tokio::task::{JoinError, spawn_blocking};

use super::{
    config::{CHUNK_BYTES, CHUNK_PIECES},
    cut::cut,
    device::Device,
    fault::Loss,
    landing::Landing,
    link::Shared,
    op::{Item, ReadOp, RemoteKeys, RemoteRegion, Target},
    owner_client::CallError,
};
use crate::transport::{
    ReadError,
    spans::{SpanRefusal, check_words, coalesce_local},
};

/// What stands in the way of reading by RDMA.
pub(super) enum Obstacle {
    /// The read is refused, by whatever way it came.
    Refused(ReadError),
    /// Another transport may do it.
    NotByRdma(NotByRdma),
}

/// Why another transport must read.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotByRdma {
    /// No device of ours takes the memory to read into: the message says which limit to raise.
    #[error(transparent)]
    Local(#[from] RegisterError),
    /// No device of the owner took the region.
    #[error("{node} does not serve region {region} by RDMA")]
    Region {
        /// The owner.
        node: NodeId,
        /// Which.
        region: RegionId,
    },
    /// The program ends.
    #[error("the memory was not registered: {0}")]
    Task(#[from] JoinError),
}

impl Shared {
    /// Finds where READs can land without waiting for anything. False where the memory must be registered first.
    pub(super) fn aim_at_once(&self, op: &ReadOp) -> bool {
        let locals = &self.devices.locals;
        let Landing::Host(spans) = op.landing() else {
            return op.target().is_some();
        };
        let target = match locals.find(&spans.memory) {
            Some(local) => Some(Target { local, place: None }),
            None => locals.scratch(op.bytes()).map(|place| Target {
                local: Arc::clone(place.local()),
                place: Some(place),
            }),
        };
        match target {
            Some(target) => {
                op.aim(target);
                true
            }
            None => false,
        }
    }

    pub(super) fn known(&self, remote: &[RemoteSpan]) -> Option<Vec<Arc<RemoteRegion>>> {
        let mut regions: Vec<Arc<RemoteRegion>> = Vec::with_capacity(remote.len());
        for span in remote {
            let region = match regions.last() {
                Some(last) if last.id == span.region => Arc::clone(last),
                _ => Arc::clone(&*self.regions.get(&span.region)?),
            };
            if region.keys.is_empty() || check(&region, span).is_err() {
                return None;
            }
            regions.push(region);
        }
        Some(regions)
    }

    /// Hands a prepared read to the queue pairs.
    pub(super) fn start(
        &self,
        op: &Arc<ReadOp>,
        remote: &[RemoteSpan],
        regions: &[Arc<RemoteRegion>],
    ) {
        let place = op.target().and_then(|target| target.place.as_ref());
        let local = match place {
            Some(place) => vec![place.range(op.bytes())],
            None => coalesce_local(op.landing().ranges().to_vec()),
        };
        let device = |d: &Arc<Device>| d.context.attributes().max_pieces;
        let pieces = self.devices.list.iter().map(device).min().unwrap_or(1);
        let pieces = pieces.clamp(1, CHUNK_PIECES) as usize;
        let cuts = cut(
            remote.iter().map(|span| span.len),
            local,
            CHUNK_BYTES,
            pieces,
        );
        op.add(cuts.len());
        let items = cuts.into_iter().filter_map(|cut| {
            let (span, region) = (remote.get(cut.span)?, regions.get(cut.span)?);
            Some(Item {
                op: Arc::clone(op),
                region: Arc::clone(region),
                part: span.part,
                // Checked to be inside the region.
                offset: span.offset.saturating_add(cut.offset),
                len: cut.len_bytes(),
                into: cut.into,
                attempts: 0,
            })
        });
        let items: Vec<Item> = items.collect();
        self.act(|lanes, after| lanes.enqueue(items, after));
        op.over(Ok(()));
        // It may have been cancelled while it was on its way here.
        if op.is_cancelled() && !op.is_settled() {
            self.cancel(op);
        }
    }

    /// Registers the memory and asks for the regions first.
    pub(super) async fn prepare(
        self: Arc<Self>,
        op: Arc<ReadOp>,
        remote: Vec<RemoteSpan>,
        asked: Vec<RemoteSpan>,
    ) {
        let ready = async {
            let regions = self.describe(&remote).await?;
            if op.target().is_none() {
                self.register(&op).await?;
            }
            Ok(regions)
        };
        let ready = tokio::select! {
            () = op.cancelled() => return op.over(Ok(())),
            ready = ready => ready,
        };
        match ready {
            Ok(regions) => self.start(&op, &remote, &regions),
            Err(Obstacle::Refused(error)) => op.over(Err(error)),
            Err(Obstacle::NotByRdma(why)) => self.read_behind(&op, asked, &why).await,
        }
    }

    async fn register(&self, op: &ReadOp) -> Result<(), Obstacle> {
        let Landing::Host(spans) = op.landing() else {
            // It was aimed when it began.
            return Ok(());
        };
        let (devices, memory) = (Arc::clone(&self.devices), Arc::clone(&spans.memory));
        let registered =
            spawn_blocking(move || devices.locals.register(&devices.list, &memory)).await;
        match registered {
            Ok(Ok(local)) => {
                op.aim(Target { local, place: None });
                Ok(())
            }
            Ok(Err(error)) => Err(Obstacle::NotByRdma(error.into())),
            Err(error) => Err(Obstacle::NotByRdma(error.into())),
        }
    }

    /// The spans' regions, checked; asks the owner for those that are not known.
    async fn describe(&self, remote: &[RemoteSpan]) -> Result<Vec<Arc<RemoteRegion>>, Obstacle> {
        let unknown = || {
            let mut unknown: Vec<RegionId> = remote.iter().map(|span| span.region).collect();
            unknown.retain(|id| !self.regions.contains_key(id));
            unknown.sort_unstable();
            unknown.dedup();
            unknown
        };
        if !unknown().is_empty() {
            let _asking = self.asking.lock().await;
            let unknown = unknown();
            let described = self.client.describe(&unknown).await;
            let described = described.map_err(|error| {
                if let CallError::Ticket(refusal) = error {
                    // A new link begins with another ticket.
                    self.client.ticket_refused(&self.peer, refusal);
                    self.lose(Loss::Ticket(refusal));
                    return Obstacle::Refused(ReadError::TicketRefused {
                        node: self.peer.node.clone(),
                        refusal,
                    });
                }
                Obstacle::Refused(self.lost(&error))
            })?;
            for (id, region) in unknown.iter().zip(described) {
                match region {
                    Some(region) => {
                        self.regions.insert(*id, Arc::new(region));
                    }
                    None => {
                        self.regions.remove(id);
                        return Err(Obstacle::Refused(ReadError::RegionGone {
                            node: self.peer.node.clone(),
                            region: id.0,
                        }));
                    }
                }
            }
        }
        let mut regions = Vec::with_capacity(remote.len());
        for span in remote {
            let region = self.regions.get(&span.region).map(|r| Arc::clone(&r));
            let region = region
                .ok_or_else(|| Obstacle::Refused(self.lost(&"a region was forgotten meanwhile")))?;
            if region.keys.is_empty() {
                return Err(Obstacle::NotByRdma(NotByRdma::Region {
                    node: self.peer.node.clone(),
                    region: span.region,
                }));
            }
            check(&region, span).map_err(|refusal| {
                Obstacle::Refused(ReadError::SpanRefused {
                    node: self.peer.node.clone(),
                    detail: refusal.as_str(),
                })
            })?;
            regions.push(region);
        }
        Ok(regions)
    }

    /// The owner refused a key: it has another one now, or the region is gone.
    pub(super) fn ask_again(&self, mut item: Item) {
        let Some(shared) = self.me.upgrade() else {
            return item.op.over(Err(self.lost(&Loss::Dropped)));
        };
        self.runtime.spawn(async move {
            let span = RemoteSpan {
                region: item.region.id,
                part: item.part,
                offset: item.offset,
                len: item.len,
            };
            // Others may have asked meanwhile: only the void keys are forgotten.
            shared
                .regions
                .remove_if(&span.region, |_, known| Arc::ptr_eq(known, &item.region));
            match shared.describe(&[span]).await {
                Ok(regions) => {
                    item.region = regions.into_iter().next().unwrap_or(item.region);
                    shared.act(|lanes, after| lanes.enqueue([item], after));
                }
                Err(Obstacle::Refused(error)) => item.op.over(Err(error)),
                Err(Obstacle::NotByRdma(why)) => item.op.over(Err(shared.lost(&why))),
            }
        });
    }
}

/// Is the span inside the region, as every one of its devices knows it?
pub(super) fn check(region: &RemoteRegion, span: &RemoteSpan) -> Result<(), SpanRefusal> {
    check_words(span)?;
    let inside = |keys: &RemoteKeys| {
        let memory = match span.part {
            kvferry_proto::Part::Data => keys.data,
            kvferry_proto::Part::Generations => keys.generations,
        };
        span.end().is_some_and(|end| end <= memory.len)
    };
    match region.keys.iter().all(inside) {
        true => Ok(()),
        false => Err(SpanRefusal::OutOfRange),
    }
}
