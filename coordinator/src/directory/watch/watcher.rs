//! One watcher of a namespace.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use kvferry_proto::NamespaceSpec;

use super::{Change, Log, start::Scan};

/// How far one watcher is. Dropping it is leaving.
#[derive(Debug)]
pub struct Watcher {
    pub(super) log: Arc<Log>,
    /// Everything up to here was handed out.
    pub(super) seq: u64,
    pub(super) spec: NamespaceSpec,
    /// Handle of the namespace.
    pub(super) namespace: u32,
    /// What is still to be told of what was there.
    pub(super) scan: Option<Scan>,
}

/// Why a watcher is told no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WatchEnd {
    /// What comes next is not kept any more. Start anew.
    #[error("changes came faster than they were taken, and are not kept any more: start anew")]
    TooSlow,
    /// The namespace was deleted.
    #[error("the namespace was deleted")]
    Deleted,
}

impl Watcher {
    /// What the namespace is.
    #[must_use]
    pub fn spec(&self) -> &NamespaceSpec {
        &self.spec
    }

    /// Does it start with what is there? Then [`Directory::scan`](super::super::Directory::scan)
    /// hands that out.
    #[must_use]
    pub fn scans(&self) -> bool {
        self.scan.is_some()
    }

    /// The number of the last change that was handed out.
    #[must_use]
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// The next changes: as many as take at most so many bytes, but one at least. Pending, and woken
    /// later, while there are none.
    ///
    /// # Errors
    /// [`WatchEnd`]: there will be no more.
    pub fn poll_changes(
        &mut self,
        cx: &mut Context<'_>,
        max_bytes: usize,
    ) -> Poll<Result<Vec<Arc<Change>>, WatchEnd>> {
        let polled = self.log.poll_after(cx, self.seq, max_bytes);
        polled.map_ok(|(changes, last)| {
            self.seq = last;
            changes
        })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.log.leave();
    }
}
