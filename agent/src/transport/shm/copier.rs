//! Copies on a few threads of their own, so that a large one holds up neither caller nor runtime.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use kvferry_proto::{NodeId, Part, RemoteSpan};
use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::{
    mapped::{CopyError, MappedRegion},
    watch::Watch,
};
use crate::transport::{ReadError, operation::Operation};

/// Copied between two looks at whether anybody still wants it: how long a cancel may wait (0.2 ms).
const CHUNK_BYTES: u64 = 1 << 20;
/// Most copies that wait for a thread. A reader this far ahead of memory is asked to hold on by losing.
const MAX_WAITING: usize = 4096;
/// Most threads: a few cores fill the memory bus.
const MAX_THREADS: usize = 4;

/// One read whose regions are all mapped and whose spans are all inside them.
pub(super) struct Copy {
    pub(super) node: NodeId,
    pub(super) operation: Arc<Operation>,
    pub(super) parts: Vec<(Arc<MappedRegion>, RemoteSpan)>,
    pub(super) received: Arc<AtomicU64>,
    pub(super) owner: Arc<Watch>,
}

impl Copy {
    /// Copies everything and settles; stops where nobody wants it any more.
    pub(super) fn run(self) {
        for (region, span) in &self.parts {
            let mut rest = *span;
            while rest.len > 0 {
                let mut chunk = rest;
                chunk.len = rest.len.min(CHUNK_BYTES);
                let mut guard = self.operation.target();
                let Some(target) = guard.as_mut() else {
                    return;
                };
                let copied = region.copy(&chunk, target);
                drop(guard);
                if let Err(error) = copied {
                    return self.operation.settle(Err(self.explain(error)));
                }
                self.received.fetch_add(chunk.len, Ordering::Relaxed);
                rest.offset += chunk.len;
                rest.len -= chunk.len;
            }
        }
        // Words say nothing of what was written after their owner's death: see `watch.rs`.
        let words = |(_, span): &(_, RemoteSpan)| span.part == Part::Generations;
        if self.parts.iter().any(words) && self.owner.hung_up() {
            return self.operation.settle(Err(ReadError::LinkLost {
                node: self.node.clone(),
                detail: "it hung up while it was read".to_owned(),
            }));
        }
        self.operation.settle(Ok(()));
    }

    fn explain(&self, error: CopyError) -> ReadError {
        match error {
            CopyError::Local(error) => error,
            CopyError::Remote(refusal) => ReadError::SpanRefused {
                node: self.node.clone(),
                detail: refusal.as_str(),
            },
        }
    }
}

/// The threads, borrowed from the runtime's blocking ones only while there is work.
#[derive(Clone)]
pub(super) struct Copier {
    shared: Arc<Mutex<Waiting>>,
    threads: usize,
}

#[derive(Default)]
struct Waiting {
    copies: VecDeque<Copy>,
    running: usize,
}

impl Copier {
    pub(super) fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            shared: Arc::default(),
            threads: cores.min(MAX_THREADS),
        }
    }

    /// Copies soon. Gives the copy back where too many wait.
    pub(super) fn submit(&self, copy: Copy, runtime: &Handle) -> Result<(), Copy> {
        let mut waiting = self.shared.lock();
        if waiting.copies.len() >= MAX_WAITING {
            return Err(copy);
        }
        waiting.copies.push_back(copy);
        if waiting.running < self.threads {
            waiting.running += 1;
            let shared = Arc::clone(&self.shared);
            runtime.spawn_blocking(move || work(&shared));
        }
        Ok(())
    }
}

fn work(shared: &Mutex<Waiting>) {
    loop {
        let copy = {
            let mut waiting = shared.lock();
            match waiting.copies.pop_front() {
                Some(copy) => copy,
                None => {
                    waiting.running -= 1;
                    return;
                }
            }
        };
        copy.run();
    }
}
