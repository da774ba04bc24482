//! The oracle: who published which bytes under which hash, in which namespace (see `names`). It knows nothing of
//! generations, checksums or directories.

use std::collections::{BTreeMap, BTreeSet};

use kvferry_agent::region::Region;
use kvferry_proto::Slot;

use crate::random::Random;

/// Bytes of a block that say whose they are: hash and version.
const HEAD: usize = 16;

/// Every version of every block that was ever published.
#[derive(Debug, Default)]
pub(crate) struct History {
    versions: BTreeMap<u64, BTreeSet<u64>>,
    last: u64,
}

impl History {
    /// Somebody is about to write a block: a version of its own, so that bytes of two writers are
    /// told apart even under one hash.
    pub(crate) fn new_version(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// From now on these bytes may be delivered under this hash.
    pub(crate) fn published(&mut self, hash: u64, version: u64) {
        self.versions.entry(hash).or_default().insert(version);
    }

    /// Was anything ever published as this block?
    pub(crate) fn knows(&self, number: u64) -> bool {
        self.versions.contains_key(&number)
    }

    /// Every block that was ever published.
    pub(crate) fn hashes(&self) -> impl Iterator<Item = u64> + '_ {
        self.versions.keys().copied()
    }

    /// Are these bytes, whole, what somebody published under this hash?
    ///
    /// # Errors
    /// What they are instead.
    pub(crate) fn check(&self, hash: u64, bytes: &[u8]) -> Result<(), String> {
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(word)
        };
        let (of, version) = (word(0), word(8));
        let known = self.versions.get(&hash);
        if of != hash {
            return Err(format!("the bytes begin as block {of}"));
        }
        if !known.is_some_and(|known| known.contains(&version)) {
            return Err(format!("version {version} was never published"));
        }
        let want = content(hash, version, bytes.len());
        match want.iter().zip(bytes).position(|(a, b)| a != b) {
            None => Ok(()),
            Some(at) => Err(format!(
                "version {version}, but from byte {at} on something else"
            )),
        }
    }
}

/// The bytes of one version of one block.
#[must_use]
pub(crate) fn content(hash: u64, version: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 8);
    bytes.extend_from_slice(&hash.to_le_bytes());
    bytes.extend_from_slice(&version.to_le_bytes());
    let mut random = Random::of(hash, version);
    while bytes.len() < len.max(HEAD) {
        bytes.extend_from_slice(&random.next().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// The bytes that lie in a slot now.
#[must_use]
pub(crate) fn bytes_of(region: &Region, slot: Slot) -> Vec<u8> {
    let mut bytes = vec![0; region.geometry.block_bytes() as usize];
    let mut at = 0;
    for range in region.geometry.ranges(slot) {
        let len = (range.end - range.start) as usize;
        if region
            .memory
            .read_at(range.start, &mut bytes[at..at + len])
            .is_err()
        {
            unreachable!("a geometry lies in its memory");
        }
        at += len;
    }
    bytes
}

/// Writes some of a slot's bytes, as its engine does.
pub(crate) fn write_part(region: &Region, slot: Slot, from: usize, part: &[u8]) {
    let (mut at, end) = (0, from + part.len());
    for range in region.geometry.ranges(slot) {
        let len = (range.end - range.start) as usize;
        let (low, high) = (from.max(at), end.min(at + len));
        if low < high {
            let target = range.start + (low - at) as u64;
            if region
                .memory
                .write_at(target, &part[low - from..high - from])
                .is_err()
            {
                unreachable!("a geometry lies in its memory");
            }
        }
        at += len;
    }
}
