//! One namespace's blocks that lie in storage which outlasts nodes: block hash -> location.
//!
//! Nothing is allocated until the first location is put. A row takes some 200 bytes; locations are
//! kept once each, so that blocks whose keys follow from their hashes share one.

use std::{
    collections::{BTreeSet, HashMap},
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::Duration,
};

use hashbrown::HashTable;
use kvferry_proto::BlockHash;

use super::slab::Slab;
use crate::sabotage::{self, Bug};

/// Which block lies where.
#[derive(Debug)]
pub(super) struct LocationTable {
    secret: RandomState,
    rows: Slab<Row>,
    by_hash: HashTable<u32>,
    names: Slab<Name>,
    by_name: HashMap<Arc<str>, u32>,
    /// Rows that no row names as its parent, the least recently used first.
    leaves: BTreeSet<(u64, u32)>,
    /// Rows that expire.
    due: BTreeSet<(Duration, u32)>,
}

#[derive(Debug)]
struct Name {
    text: Arc<str>,
    rows: u32,
}

#[derive(Debug, Clone, Copy)]
struct Row {
    hash: BlockHash,
    name: u32,
    /// A number that grows with every use, over all namespaces. Never used twice.
    used: u64,
    /// When it was put: tells it from what its number may stand for later.
    born: u64,
    /// Row and birth of the block before it in its chain.
    parent: Option<(u32, u64)>,
    children: u32,
    expires: Option<Duration>,
}

/// A block that is put at a location.
#[derive(Debug, Clone, Copy)]
pub(super) struct Put {
    pub(super) hash: BlockHash,
    /// The block before it in its chain, where that is known.
    pub(super) parent: Option<BlockHash>,
    pub(super) expires: Option<Duration>,
    /// The number of this use.
    pub(super) used: u64,
}

impl Default for LocationTable {
    fn default() -> Self {
        Self {
            secret: RandomState::new(),
            rows: Slab::new(),
            by_hash: HashTable::new(),
            names: Slab::new(),
            by_name: HashMap::new(),
            leaves: BTreeSet::new(),
            due: BTreeSet::new(),
        }
    }
}

impl LocationTable {
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    fn find(&self, hash: &[u8]) -> Option<u32> {
        if self.by_hash.is_empty() {
            return None;
        }
        let same = |at: &u32| {
            let row = self.rows.get(*at);
            row.is_some_and(|row| row.hash.as_bytes() == hash)
        };
        self.by_hash.find(self.secret.hash_one(hash), same).copied()
    }

    /// Changes a row, and moves it to where it then belongs.
    fn update(&mut self, at: u32, change: impl FnOnce(&mut Row)) {
        let Some(row) = self.rows.get_mut(at) else {
            return;
        };
        let before = *row;
        change(row);
        let after = *row;
        if before.children == 0 {
            self.leaves.remove(&(before.used, at));
        }
        if after.children == 0 {
            self.leaves.insert((after.used, at));
        }
        if before.expires != after.expires {
            self.due.extend(after.expires.map(|expires| (expires, at)));
            if let Some(expires) = before.expires {
                self.due.remove(&(expires, at));
            }
        }
    }

    /// Says where a block lies; true where it was nowhere before. A block has one location: the
    /// last one put.
    pub(super) fn put(&mut self, put: &Put, location: &str) -> bool {
        let name = self.name(location);
        if let Some(at) = self.find(put.hash.as_bytes()) {
            let old = self.rows.get(at).map(|row| row.name);
            self.update(at, |row| {
                row.name = name;
                row.used = put.used;
                if !sabotage::is(Bug::LocationsExpireEarly) {
                    row.expires = put.expires;
                }
            });
            self.forget_name(old);
            return false;
        }
        let parent = put.parent.and_then(|hash| self.find(hash.as_bytes()));
        let parent = parent.and_then(|at| Some((at, self.rows.get(at)?.born)));
        let at = self.rows.insert(Row {
            hash: put.hash,
            name,
            used: put.used,
            born: put.used,
            parent,
            children: 0,
            expires: put.expires,
        });
        let rows = &self.rows;
        let secret = &self.secret;
        let rehash = |at: &u32| {
            let row = rows.get(*at);
            row.map_or(0, |row| secret.hash_one(row.hash.as_bytes()))
        };
        let bits = secret.hash_one(put.hash.as_bytes());
        self.by_hash.insert_unique(bits, at, rehash);
        self.leaves.insert((put.used, at));
        self.due.extend(put.expires.map(|expires| (expires, at)));
        if let Some((parent, _)) = parent {
            self.update(parent, |row| row.children += 1);
        }
        true
    }

    /// The number of a location, which counts one more row.
    fn name(&mut self, location: &str) -> u32 {
        if let Some(&name) = self.by_name.get(location) {
            if let Some(name) = self.names.get_mut(name) {
                name.rows += 1;
            }
            return name;
        }
        let text: Arc<str> = location.into();
        let name = self.names.insert(Name {
            text: text.clone(),
            rows: 1,
        });
        self.by_name.insert(text, name);
        name
    }

    fn forget_name(&mut self, name: Option<u32>) {
        let Some((at, name)) = name.and_then(|at| Some((at, self.names.get_mut(at)?))) else {
            return;
        };
        name.rows -= 1;
        if name.rows == 0
            && let Some(gone) = self.names.remove(at)
        {
            self.by_name.remove(&gone.text);
        }
    }

    /// Forgets a block's location; only if it is this one, where one is given.
    pub(super) fn remove(&mut self, hash: &[u8], location: Option<&str>) -> bool {
        let Some(at) = self.find(hash) else {
            return false;
        };
        let here = self.location_at(at);
        if location.is_some_and(|location| here != Some(location)) {
            return false;
        }
        if sabotage::is(Bug::LocationRemoveLost) {
            return false;
        }
        self.remove_at(at)
    }

    fn remove_at(&mut self, at: u32) -> bool {
        let Some(row) = self.rows.get(at).copied() else {
            return false;
        };
        let bits = self.secret.hash_one(row.hash.as_bytes());
        if let Ok(entry) = self.by_hash.find_entry(bits, |other| *other == at) {
            entry.remove();
        }
        self.rows.remove(at);
        self.leaves.remove(&(row.used, at));
        if let Some(expires) = row.expires {
            self.due.remove(&(expires, at));
        }
        self.forget_name(Some(row.name));
        if let Some((parent, born)) = row.parent
            && self.rows.get(parent).is_some_and(|row| row.born == born)
        {
            self.update(parent, |row| row.children -= 1);
        }
        true
    }

    /// Where a block lies: the number of its location, and the location.
    pub(super) fn get(&self, hash: &[u8]) -> Option<(u32, &str)> {
        let row = self.rows.get(self.find(hash)?)?;
        Some((row.name, &self.names.get(row.name)?.text))
    }

    fn location_at(&self, at: u32) -> Option<&str> {
        let name = self.rows.get(at)?.name;
        Some(&self.names.get(name)?.text)
    }

    /// A block's location was asked for.
    pub(super) fn touch(&mut self, hash: &[u8], used: u64) {
        if let Some(at) = self.find(hash) {
            self.update(at, |row| row.used = used);
        }
    }

    /// When the row that would be evicted next was used last. None where there is none.
    pub(super) fn coldest(&self) -> Option<u64> {
        self.leaves.first().map(|(used, _)| *used)
    }

    /// Forgets the least recently used of the blocks that no other follows. There is one wherever
    /// there is a row: a parent is there before its children.
    pub(super) fn evict(&mut self) -> bool {
        let leaf = self.leaves.first().map(|(_, at)| *at);
        leaf.is_some_and(|at| self.remove_at(at))
    }

    /// Blocks whose time is over, at most so many.
    pub(super) fn expired(&self, now: Duration, most: usize) -> Vec<BlockHash> {
        let due = self.due.iter().take_while(|(expires, _)| *expires <= now);
        due.take(most)
            .filter_map(|(_, at)| Some(self.rows.get(*at)?.hash))
            .collect()
    }

    /// Is a block's time over?
    pub(super) fn expiry_is_due(&self, now: Duration) -> bool {
        self.due.first().is_some_and(|(expires, _)| *expires <= now)
    }

    /// A block whose time was over has a new one, or is forgotten; unless it was put anew meanwhile.
    pub(super) fn expire(
        &mut self,
        now: Duration,
        hash: &BlockHash,
        again: Option<Duration>,
    ) -> bool {
        let Some(at) = self.find(hash.as_bytes()) else {
            return false;
        };
        let expires = self.rows.get(at).and_then(|row| row.expires);
        if expires.is_none_or(|expires| expires > now) {
            return false;
        }
        match again {
            Some(later) => {
                self.update(at, |row| row.expires = Some(later));
                false
            }
            None => self.remove_at(at),
        }
    }
}

#[cfg(any(test, feature = "fuzzing"))]
impl LocationTable {
    /// No row, and nothing that a row leaves behind.
    pub(super) fn nothing_is_left(&self) -> bool {
        self.rows.len() == 0
            && self.by_hash.is_empty()
            && self.names.len() == 0
            && self.by_name.is_empty()
            && self.leaves.is_empty()
            && self.due.is_empty()
    }
}
