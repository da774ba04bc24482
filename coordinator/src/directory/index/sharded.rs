//! An index in parts, each under its own lock.
//!
//! A look-up holds the locks of all shards it needs, taken in order of their numbers; whoever
//! writes holds one at a time. So nobody waits in a circle.

use std::{ops::ControlFlow, sync::Arc};

use kvferry_memory::prefetch;
use parking_lot::{RwLock, RwLockReadGuard};

use super::{
    Held, Owner, Place,
    buckets::{Bucket, Buckets},
    secret::Secret,
    shard::{Copies, Entry, MAX_ENTRIES, Room, Shard},
    table::SMALL,
};
use crate::directory::totals::{Tally, Totals};

/// Bits of a hash that choose the shard: what a position leaves of 32. With 64 shards a writer
/// locks a sixty-fourth, and a set of shards is one machine word.
const SHARD_BITS: u32 = 6;
const SHARDS: usize = 1 << SHARD_BITS;
const _: () = assert!(MAX_ENTRIES == 1 << (u32::BITS - SHARD_BITS));
/// Hashes looked up under one set of locks: some tens of microseconds that a writer may wait.
const CHUNK: usize = 1_024;
/// Look-ups on their way at a time: 64 were two and a half times as fast as 32 by plain loads, and 1.5
/// times as fast as 24 (docs/benchmarks.md); from 48 on it makes little difference.
const GROUP: usize = 64;
/// Writes under one lock: some ten microseconds that a look-up may wait.
const WRITES: usize = 64;

/// A copy to be added.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Sealing {
    /// Which of the hashes given with it.
    pub(in super::super) hash: u32,
    pub(in super::super) held: Held,
    bits: u64,
}

impl Sealing {
    pub(in super::super) fn new(hash: u32, held: Held) -> Self {
        Self {
            hash,
            held,
            bits: 0,
        }
    }
}

/// Where blocks are counted: in all, and apart, so that a deleted namespace can be taken out again.
#[derive(Debug)]
pub(in super::super) struct Counts {
    block_bytes: u64,
    all: Arc<Totals>,
    own: Totals,
}

impl Counts {
    pub(super) fn new(block_bytes: u64, all: &Arc<Totals>) -> Self {
        Self {
            block_bytes,
            all: Arc::clone(all),
            own: Totals::default(),
        }
    }

    fn count(&self, tally: &Tally) {
        self.own.count(tally, self.block_bytes);
        self.all.count(tally, self.block_bytes);
    }

    pub(super) fn forget(&self) {
        self.all.forget(&self.own);
    }
}

/// An index in parts.
#[derive(Debug)]
pub(in super::super) struct Sharded<const N: usize> {
    shards: Box<[RwLock<Shard<N>>]>,
    counts: Counts,
    secret: Secret,
    hash_len: usize,
}

fn shard_of(bits: u64) -> usize {
    (bits >> (u64::BITS - SHARD_BITS)) as usize
}

impl Place {
    /// What no place is: the last positions of a shard are not used.
    pub(in super::super) const NONE: u32 = u32::MAX;
    /// Nor is this.
    pub(in super::super) const PENDING: u32 = u32::MAX - 1;

    fn new(shard: usize, at: u32) -> Self {
        Self((shard as u32) << (u32::BITS - SHARD_BITS) | at)
    }

    fn shard(self) -> usize {
        (self.0 >> (u32::BITS - SHARD_BITS)) as usize
    }

    fn at(self) -> u32 {
        self.0 & (MAX_ENTRIES - 1)
    }
}

impl<const N: usize> Sharded<N> {
    pub(super) fn new(hash_len: usize, counts: Counts) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            counts,
            secret: Secret::new(),
            hash_len,
        }
    }

    pub(super) fn counts(&self) -> &Counts {
        &self.counts
    }

    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().len()).sum()
    }

    pub(super) fn hash_len(&self) -> usize {
        self.hash_len
    }

    fn key(&self, hash: &[u8]) -> [u8; N] {
        let mut key = [0; N];
        // The caller has checked the length; were it wrong, the key would be cut, not the process.
        let len = hash.len().min(N);
        key[..len].copy_from_slice(&hash[..len]);
        key
    }

    fn key_at(&self, hashes: &[u8], number: usize) -> [u8; N] {
        let start = number * self.hash_len;
        // A constant length is a move of some words; any other is a call.
        if self.hash_len == N
            && let Some(Ok(key)) = hashes.get(start..start + N).map(<[u8; N]>::try_from)
        {
            return key;
        }
        self.key(hashes.get(start..start + self.hash_len).unwrap_or(&[]))
    }

    fn hash_of(&self) -> impl Fn(&[u8; N]) -> u64 {
        |key| self.secret.hash(key)
    }

    pub(super) fn insert(
        &self,
        hashes: &[u8],
        batch: &mut [Sealing],
        mut placed: impl FnMut(&Sealing, Option<Place>),
    ) {
        for sealing in &mut *batch {
            sealing.bits = self
                .secret
                .hash(&self.key_at(hashes, sealing.hash as usize));
        }
        batch.sort_unstable_by_key(|sealing| shard_of(sealing.bits));
        let mut tally = Tally::default();
        for same in batch.chunk_by(|a, b| shard_of(a.bits) == shard_of(b.bits)) {
            let number = shard_of(same[0].bits);
            for some in same.chunks(WRITES) {
                self.insert_some(number, hashes, some, &mut placed, &mut tally);
            }
        }
        self.counts.count(&tally);
    }

    /// All of one shard, under one lock.
    fn insert_some(
        &self,
        number: usize,
        hashes: &[u8],
        some: &[Sealing],
        placed: &mut impl FnMut(&Sealing, Option<Place>),
        tally: &mut Tally,
    ) {
        let shard = &self.shards[number];
        // What is large is made and its memory touched while nobody waits.
        let (wants, wants_room) = {
            let shard = shard.read();
            (shard.wants(some.len()), shard.wants_room(some.len()))
        };
        let mut larger = wants.filter(|n| *n > SMALL).map(Buckets::new);
        let mut room = match wants_room {
            true => Shard::room(),
            false => Room::default(),
        };
        // Dropped in the end, when the lock is free again.
        let mut retired = Vec::new();
        let mut shard = shard.write();
        if let Some(buckets) = shard.wants(some.len()) {
            let larger = match larger.take() {
                Some(larger) if larger.buckets() >= buckets => larger,
                // Small, or another writer was faster.
                _ => Buckets::new(buckets),
            };
            retired.extend(shard.grow_into(larger, self.hash_of()));
        }
        some.iter().for_each(|s| shard.prefetch(s.bits));
        for sealing in some {
            let key = self.key_at(hashes, sealing.hash as usize);
            let added = shard.insert(sealing.bits, &key, sealing.held, &mut room);
            placed(sealing, added.map(|(at, _)| Place::new(number, at)));
            added
                .into_iter()
                .for_each(|(_, copies)| tally.added(copies));
        }
        retired.extend(shard.step(some.len(), self.hash_of()));
        drop(shard);
    }

    pub(super) fn reseal(&self, place: Place, hash: &[u8], held: Held) -> bool {
        let mut shard = self.shards[place.shard()].write();
        shard.reseal(place.at(), &self.key(hash), held)
    }

    pub(super) fn entry<R>(
        &self,
        place: Place,
        read: impl FnOnce(&[u8], Copies<'_>) -> R,
    ) -> Option<R> {
        let shard = self.shards[place.shard()].read();
        let (key, copies) = shard.entry(place.at())?;
        Some(read(&key[..self.hash_len.min(N)], copies))
    }

    pub(super) fn remove(&self, batch: &mut [(Place, Owner)]) {
        batch.sort_unstable_by_key(|(place, _)| place.0);
        let mut tally = Tally::default();
        for same in batch.chunk_by(|a, b| a.0.shard() == b.0.shard()) {
            let number = same[0].0.shard();
            for some in same.chunks(WRITES) {
                self.remove_some(number, some, &mut tally);
            }
            self.shrink(number);
        }
        self.counts.count(&tally);
    }

    fn remove_some(&self, number: usize, some: &[(Place, Owner)], tally: &mut Tally) {
        let mut retired = Vec::new();
        let mut shard = self.shards[number].write();
        some.iter().for_each(|s| shard.prefetch_entry(s.0.at()));
        for (place, owner) in some {
            let left = shard.remove(place.at(), *owner, self.hash_of());
            left.into_iter().for_each(|left| tally.removed(left));
        }
        retired.extend(shard.step(some.len(), self.hash_of()));
        drop(shard);
    }

    /// A table that lost most of its blocks gives the memory back.
    fn shrink(&self, number: usize) {
        let shard = &self.shards[number];
        let Some(buckets) = shard.read().wants_less() else {
            return;
        };
        let smaller = Buckets::new(buckets);
        let mut shard = shard.write();
        let still = shard.wants_less().is_some_and(|n| n <= smaller.buckets());
        let retired = still.then(|| shard.grow_into(smaller, self.hash_of()));
        drop(shard);
        drop(retired);
    }

    pub(super) fn look_up<B>(
        &self,
        hashes: &[u8],
        mut visit: impl FnMut(Copies<'_>) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        for chunk in hashes.chunks(CHUNK * self.hash_len) {
            self.look_up_chunk(chunk, &mut visit)?;
        }
        ControlFlow::Continue(())
    }

    /// In groups, so that many misses overlap: while a group's copies are visited, the entries of the next group and the
    /// buckets of the one after are on their way.
    fn look_up_chunk<B>(
        &self,
        hashes: &[u8],
        visit: &mut impl FnMut(Copies<'_>) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        let count = hashes.len() / self.hash_len;
        let mut bits = [0u64; CHUNK];
        let mut needed = 0u64;
        for (number, bits) in bits[..count].iter_mut().enumerate() {
            *bits = self.secret.hash(&self.key_at(hashes, number));
            needed |= 1 << shard_of(*bits);
        }
        let locked = self.lock(needed);
        let group = |number: usize| {
            let start = count.min(number * GROUP);
            &bits[start..count.min(start + GROUP)]
        };
        let groups = count.div_ceil(GROUP);
        let mut homes = ask_buckets(&locked, group(0));
        let mut guesses = [[None; GROUP]; 2];
        for number in 0..=groups {
            ask_entries(&locked, group(number), &homes, &mut guesses[number % 2]);
            homes = ask_buckets(&locked, group(number + 1));
            if let Some(number) = number.checked_sub(1) {
                let (bits, guesses) = (group(number), &guesses[number % 2]);
                self.visit_group(&locked, hashes, number * GROUP, (bits, guesses), visit)?;
            }
        }
        ControlFlow::Continue(())
    }

    /// In order of their numbers; see above.
    fn lock(&self, needed: u64) -> Locked<'_, N> {
        let mut locked = [const { None }; SHARDS];
        let mut left = needed;
        while left != 0 {
            let number = left.trailing_zeros() as usize;
            locked[number] = Some(self.shards[number].read());
            left &= left - 1;
        }
        locked
    }

    /// The entries that were asked for: those that are right, and by a search those that are not.
    fn visit_group<B>(
        &self,
        locked: &Locked<'_, N>,
        hashes: &[u8],
        first: usize,
        (bits, guesses): (&[u64], &[Option<Guess<'_, N>>; GROUP]),
        visit: &mut impl FnMut(Copies<'_>) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        for (number, (guess, bits)) in guesses.iter().zip(bits).enumerate() {
            let key = self.key_at(hashes, first + number);
            let copies = shard(locked, *bits).map_or(Copies::NONE, |shard| match guess {
                Some((at, entry)) if entry.is_of(&key) => shard.copies(*at, entry),
                _ => shard.find(*bits, &key),
            });
            visit(copies)?;
        }
        ControlFlow::Continue(())
    }

    /// Pages that take memory, and room of the tables.
    #[cfg(test)]
    pub(super) fn footprint(&self) -> (usize, usize) {
        let each = self.shards.iter().map(|shard| shard.read().footprint());
        each.fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1))
    }
}

/// Shards under their locks.
type Locked<'a, const N: usize> = [Option<RwLockReadGuard<'a, Shard<N>>>; SHARDS];
/// A position that may be the key's, and what is there.
type Guess<'a, const N: usize> = (u32, &'a Entry<N>);

fn shard<'a, const N: usize>(locked: &'a Locked<'_, N>, bits: u64) -> Option<&'a Shard<N>> {
    locked[shard_of(bits)].as_deref()
}

/// Asks for a group's buckets. Asking is a loop of nothing else: a processor has as many page walks under way as it
/// sees such instructions at a time.
fn ask_buckets<'a, const N: usize>(
    locked: &'a Locked<'_, N>,
    bits: &[u64],
) -> [Option<&'a Bucket>; GROUP] {
    let mut homes = [None; GROUP];
    for (home, bits) in homes.iter_mut().zip(bits) {
        *home = shard(locked, *bits).and_then(|shard| shard.home(*bits));
    }
    homes.iter().flatten().for_each(|home| prefetch(*home));
    homes
}

/// Reads a group's buckets, and asks for the entries that they name.
fn ask_entries<'a, const N: usize>(
    locked: &'a Locked<'_, N>,
    bits: &[u64],
    homes: &[Option<&Bucket>; GROUP],
    guesses: &mut [Option<Guess<'a, N>>; GROUP],
) {
    // One key in thirty is not in its own bucket, but nearly always in the next.
    let mut passed = [0; GROUP];
    let mut count = 0;
    for (number, (home, bits)) in homes.iter().zip(bits).enumerate() {
        guesses[number] = None;
        let (Some(shard), Some(home)) = (shard(locked, *bits), home) else {
            continue;
        };
        let mut positions = home.guesses(*bits);
        match positions.next() {
            Some(at) => guesses[number] = shard.peek(at).map(|entry| (at, entry)),
            None if home.is_passed() => {
                shard.next(*bits).into_iter().for_each(prefetch);
                passed[count] = number;
                count += 1;
            }
            None => {}
        }
        positions.for_each(|at| shard.prefetch_entry(at));
    }
    (guesses.iter().take(bits.len()).flatten()).for_each(|(_, entry)| entry.prefetch());
    for number in &passed[..count] {
        let (bits, guess) = (bits[*number], &mut guesses[*number]);
        let shard = shard(locked, bits);
        let at = shard.and_then(|shard| shard.next(bits)?.guesses(bits).next());
        *guess = at.and_then(|at| Some((at, shard?.peek(at)?)));
        guess.iter().for_each(|(_, entry)| entry.prefetch());
    }
}
