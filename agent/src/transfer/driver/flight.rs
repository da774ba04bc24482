//! Reads under way.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use kvferry_memory::HostMemory;
use tracing::Span;

use crate::{
    transfer::{
        Time,
        command::{BlockIndex, OpId, SourceKey},
        event::ReadFailure,
    },
    transport::{ConnectError, PendingRead, ReadError},
};

/// Where the words of a generation read arrive.
#[derive(Debug)]
pub(super) struct Words {
    pub(super) scratch: Arc<HostMemory>,
    /// Per slot asked for.
    pub(super) offsets: Vec<u64>,
}

/// One of the engine's operations; more than one read where a link's bounds cut it.
pub(super) struct Flight {
    pub(super) op: OpId,
    pub(super) source: SourceKey,
    pub(super) words: Option<Words>,
    /// Of a data read whose words come with it: whose they are.
    pub(super) blocks: Option<Vec<BlockIndex>>,
    /// When it began.
    pub(super) since: Time,
    /// Ends with it.
    pub(super) _span: Span,
    pub(super) reads: Vec<PendingRead>,
    pub(super) error: Option<ReadError>,
}

/// An operation that has settled.
pub(super) struct Settled {
    pub(super) op: OpId,
    pub(super) source: SourceKey,
    pub(super) words: Option<Words>,
    /// As of the flight.
    pub(super) blocks: Option<Vec<BlockIndex>>,
    /// When it began.
    pub(super) since: Time,
    pub(super) result: Result<(), ReadError>,
}

/// All reads of a pull. They are polled together and not as tasks: there are few, and a task each
/// would cost every read two more wake-ups.
#[derive(Default)]
pub(super) struct Flights(Vec<Flight>);

impl Flights {
    pub(super) fn add(&mut self, flight: Flight) {
        self.0.push(flight);
    }

    pub(super) fn cancel(&self, op: OpId) {
        let flight = self.0.iter().find(|flight| flight.op == op);
        for read in flight.iter().flat_map(|flight| &flight.reads) {
            read.cancel();
        }
    }

    /// Sources with reads under way, some more than once.
    pub(super) fn sources(&self) -> impl Iterator<Item = SourceKey> + '_ {
        self.0.iter().map(|flight| flight.source)
    }

    /// Waits for the next one to settle; for ever if there is none.
    pub(super) async fn next(&mut self) -> Settled {
        poll_fn(|context| self.poll(context)).await
    }

    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Settled> {
        for place in 0..self.0.len() {
            let flight = &mut self.0[place];
            if flight.poll(context).is_ready() {
                // Keeps the order: earlier reads are of earlier blocks.
                let flight = self.0.remove(place);
                return Poll::Ready(Settled {
                    op: flight.op,
                    source: flight.source,
                    words: flight.words,
                    blocks: flight.blocks,
                    since: flight.since,
                    result: flight.error.map_or(Ok(()), Err),
                });
            }
        }
        Poll::Pending
    }
}

impl Flight {
    /// Ready when all its reads have settled. One that failed cancels the others.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let mut failed = false;
        let error = &mut self.error;
        self.reads
            .retain_mut(|read| match Pin::new(read).poll(context) {
                Poll::Pending => true,
                Poll::Ready(result) => {
                    if let (Err(why), None) = (result, &error) {
                        *error = Some(why);
                        failed = true;
                    }
                    false
                }
            });
        if failed {
            self.reads.iter().for_each(PendingRead::cancel);
        }
        match self.reads.is_empty() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }
}

/// What the engine needs to know of an error.
pub(super) fn failure(error: &ReadError) -> ReadFailure {
    match error {
        ReadError::Cancelled => ReadFailure::Cancelled,
        ReadError::LinkLost { .. } => ReadFailure::LinkLost,
        ReadError::TicketRefused { .. } => ReadFailure::Denied,
        ReadError::NoLink { error, .. } if error.is_denial() => ReadFailure::Denied,
        ReadError::NoLink {
            error: ConnectError::NoPath { .. },
            ..
        } => ReadFailure::NoPath,
        ReadError::NoLink { .. } => ReadFailure::LinkLost,
        ReadError::RegionGone { .. } => ReadFailure::RegionGone,
        ReadError::SpanRefused { .. } => ReadFailure::SpanRefused,
        ReadError::Invalid(_) | ReadError::Local(_) | ReadError::LocalGpu(_) => ReadFailure::Local,
    }
}
