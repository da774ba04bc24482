//! Watching begins.

use std::{collections::VecDeque, sync::Arc};

use kvferry_proto::NamespaceName;

use super::{
    super::{BoundReached, Directory, NamespaceUnknown, slots::Slot},
    Change, CopyChange, Log, MAX_LOGS, MAX_WATCHERS, Rows, WatchEnd, Watcher,
};

/// What is still to be told of what was there.
#[derive(Debug)]
pub(super) struct Scan {
    /// Nodes and regions, told first.
    first: Vec<Arc<Change>>,
    /// Handles of regions; the first one's slots before `from` are told.
    regions: VecDeque<u32>,
    from: u32,
}

/// Some of what was there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scanned {
    /// What changed before that, in order.
    pub changes: Vec<Arc<Change>>,
    /// Copies that are there, after those changes.
    pub rows: Rows,
}

/// Why watching did not begin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// There is no such namespace.
    #[error(transparent)]
    NamespaceUnknown(#[from] NamespaceUnknown),
    /// The number is of another lifetime of the coordinator. Start anew.
    #[error("the coordinator was restarted: its epoch is {now:x}, not {asked:x}; start anew")]
    Restarted {
        /// The epoch asked for.
        asked: u64,
        /// The coordinator's.
        now: u64,
    },
    /// What came after the number is not kept any more. Start anew.
    #[error("changes after {seq} are not kept any more; start anew")]
    TooOld {
        /// The number asked for.
        seq: u64,
    },
    /// Too many watch. Try again later.
    #[error(transparent)]
    Bound(#[from] BoundReached),
}

impl Directory {
    /// Begins to watch a namespace: after a change of (epoch, number), or with all there is.
    ///
    /// # Errors
    /// [`WatchError`]; nothing is watched then.
    pub fn watch(
        &mut self,
        name: &NamespaceName,
        after: Option<(u64, u64)>,
    ) -> Result<Watcher, WatchError> {
        if let Some((asked, _)) = after
            && asked != self.config.epoch
        {
            return Err(WatchError::Restarted {
                asked,
                now: self.config.epoch,
            });
        }
        let (handle, namespace) = self
            .catalog
            .named(name)
            .ok_or_else(|| NamespaceUnknown { name: name.clone() })?;
        let spec = namespace.spec.clone();
        let known = namespace.log.clone();
        if let Some((_, seq)) = after
            && !known.as_ref().is_some_and(|log| log.reaches(seq))
        {
            return Err(WatchError::TooOld { seq });
        }
        let log = match known {
            Some(log) => log,
            None => self.catalog.start_log(handle)?,
        };
        if !log.join(MAX_WATCHERS) {
            return Err(BoundReached {
                what: "watchers of one namespace",
                limit: MAX_WATCHERS as u64,
                remedy: "share a stream between routers, or try again later",
            }
            .into());
        }
        Ok(Watcher {
            seq: after.map_or_else(|| log.last(), |(_, seq)| seq),
            log,
            spec,
            namespace: handle,
            scan: after.is_none().then(|| self.scan_from_start(handle)),
        })
    }

    fn scan_from_start(&self, namespace: u32) -> Scan {
        let nodes = self.names.values().filter_map(|handle| {
            let node = self.nodes.get(*handle)?;
            Some(Change::Node(node.watched(*handle)))
        });
        let regions: VecDeque<u32> = self.catalog.regions_of(namespace).collect();
        let told = regions.iter().filter_map(|handle| {
            let region = self.catalog.region(*handle)?;
            Some(Change::Region(region.watched(*handle)))
        });
        Scan {
            first: nodes.chain(told).map(Arc::new).collect(),
            regions,
            from: 0,
        }
    }

    /// Tells a watcher some of what is there, of at most so many slots; None once all is told.
    ///
    /// # Errors
    /// [`WatchEnd`]: there will be no more.
    pub fn scan(&self, watcher: &mut Watcher, slots: u32) -> Result<Option<Scanned>, WatchEnd> {
        let Some(scan) = &mut watcher.scan else {
            return Ok(None);
        };
        if !scan.first.is_empty() {
            // Nothing changed between: they were read when the watcher's number was.
            return Ok(Some(Scanned {
                changes: std::mem::take(&mut scan.first),
                rows: Rows::default(),
            }));
        }
        while let Some(&handle) = scan.regions.front() {
            let here = self.catalog.region(handle);
            let here = here.filter(|r| r.namespace == watcher.namespace && !r.gone);
            let namespace = here.and_then(|region| self.catalog.namespace_of(region));
            // Another namespace may have the handle by now. Then the log has ended.
            let namespace = namespace.filter(|namespace| {
                let log = namespace.log.as_ref();
                log.is_some_and(|log| Arc::ptr_eq(log, &watcher.log))
            });
            let (Some(region), Some(namespace)) = (here, namespace) else {
                scan.regions.pop_front();
                scan.from = 0;
                continue;
            };
            let table = region.slots.lock();
            let start = table.skip_empty(scan.from).min(region.slot_count());
            let end = region.slot_count().min(start.saturating_add(slots.max(1)));
            let mut rows = Rows::default();
            for slot in start..end {
                let Slot::Sealed(place) = table.get(slot) else {
                    continue;
                };
                namespace.index.entry(place, |hash, mut copies| {
                    let here = |held: &super::super::index::Held| {
                        (held.owner.region, held.owner.slot) == (handle, slot)
                    };
                    if let Some(held) = copies.find(here) {
                        rows.push(CopyChange::Added, (handle, slot), held.generation, hash);
                    }
                });
            }
            // Read while nothing of this region can change: the rows are as of this number.
            let (changes, last) = watcher.log.after(watcher.seq, usize::MAX)?;
            drop(table);
            watcher.seq = last;
            scan.from = end;
            if end == region.slot_count() {
                scan.regions.pop_front();
                scan.from = 0;
            }
            return Ok(Some(Scanned { changes, rows }));
        }
        watcher.scan = None;
        // Regions that went before they were looked at: that they did is told before all counts as
        // told.
        let (changes, last) = watcher.log.after(watcher.seq, usize::MAX)?;
        watcher.seq = last;
        Ok(Some(Scanned {
            changes,
            rows: Rows::default(),
        }))
    }
}

impl super::super::catalog::Catalog {
    /// Begins to keep what changes in a namespace.
    fn start_log(&mut self, handle: u32) -> Result<Arc<Log>, BoundReached> {
        if self.logs().count() >= MAX_LOGS {
            return Err(BoundReached {
                what: "watched namespaces",
                limit: MAX_LOGS as u64,
                remedy: "watch fewer, or wait a minute for those that were left",
            });
        }
        let log = Arc::new(Log::new(
            self.next_log,
            self.bounds.watch_log_bytes,
            Arc::clone(&self.counts),
        ));
        if let Some(namespace) = self.namespaces.get_mut(handle) {
            namespace.log = Some(log.clone());
        }
        Ok(log)
    }
}
