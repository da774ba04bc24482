//! Which chunks a pull of tensors needs, where they go, and which tensors are here when a chunk is.
//! Pure: nothing is read, asked or timed.

use std::{collections::HashSet, sync::Arc};

use kvferry_proto::{Slot, TableDigest, Tensor, TensorTable};

/// Most (tensor, chunk) pairs of one pull. Tensors that share no bytes have at most one for each
/// chunk and each tensor; only a set made to do harm has more than this.
const MAX_PAIRS: u64 = 1 << 25;

/// Why a plan cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// None of the names is in the set.
    #[error("no tensor of the set has one of the names or prefixes")]
    Nothing,
    /// The destination is too small.
    #[error("{needed} slots from slot {first_slot} on are needed; the region has {slots}")]
    TooSmall {
        /// Slots that it takes.
        needed: u64,
        /// From here on.
        first_slot: u32,
        /// Of the region.
        slots: u32,
    },
    /// Tensors that lie on each other many times over.
    #[error("the tensors share too many bytes: ask for fewer of them")]
    Overlapping,
}

/// Which tensors are wanted.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// Those of these names,
    pub names: Vec<String>,
    /// and those that begin so. Neither: all.
    pub prefixes: Vec<String>,
}

impl Wish {
    fn is_all(&self) -> bool {
        self.names.is_empty() && self.prefixes.is_empty()
    }
}

/// A pull of tensors, as far as it is.
#[derive(Debug)]
pub struct Plan {
    table: Arc<TensorTable>,
    /// Wanted tensors, as indices into the table.
    wanted: Vec<u32>,
    /// Chunks each of them still lacks.
    lacks: Vec<u32>,
    /// Wanted chunks, in order. A place is an index into these.
    chunks: Vec<u32>,
    here: Vec<bool>,
    left: usize,
    /// Per place, where its tensors begin in `users`; one more at the end.
    starts: Vec<u32>,
    /// Indices into `wanted`.
    users: Vec<u32>,
    packed: bool,
    unknown: Vec<String>,
}

impl Plan {
    /// `packed`: only wanted chunks get slots, one after another.
    ///
    /// # Errors
    /// [`PlanError`].
    pub fn new(table: Arc<TensorTable>, wish: &Wish, packed: bool) -> Result<Self, PlanError> {
        let names: HashSet<&str> = wish.names.iter().map(String::as_str).collect();
        let all = wish.is_all();
        let is_wanted = |tensor: &Tensor| {
            let name = tensor.name();
            all || names.contains(name) || wish.prefixes.iter().any(|p| name.starts_with(&**p))
        };
        let tensors = table.tensors();
        let wanted: Vec<u32> = (0..)
            .zip(tensors)
            .filter(|(_, tensor)| is_wanted(tensor))
            .map(|(index, _)| index)
            .collect();
        if wanted.is_empty() {
            return Err(PlanError::Nothing);
        }
        let known = |name: &&String| {
            tensors
                .binary_search_by(|tensor| tensor.name().cmp(name.as_str()))
                .is_ok()
        };
        let unknown = wish.names.iter().filter(|n| !known(n)).cloned().collect();
        let ranges = || {
            wanted
                .iter()
                .map(|i| table.chunks_of(&tensors[*i as usize]))
        };
        let pairs: u64 = ranges().map(|range| range.len() as u64).sum();
        if pairs > MAX_PAIRS {
            return Err(PlanError::Overlapping);
        }
        let mut pairs: Vec<(u32, u32)> = (0..)
            .zip(ranges())
            .flat_map(|(tensor, range)| range.map(move |chunk| (chunk, tensor)))
            .collect();
        pairs.sort_unstable();
        let (mut chunks, mut starts) = (Vec::new(), Vec::new());
        for (at, (chunk, _)) in (0..).zip(&pairs) {
            if chunks.last() != Some(chunk) {
                chunks.push(*chunk);
                starts.push(at);
            }
        }
        starts.push(pairs.len() as u32); // at most MAX_PAIRS
        Ok(Self {
            lacks: ranges().map(|range| range.len() as u32).collect(),
            here: vec![false; chunks.len()],
            left: chunks.len(),
            users: pairs.into_iter().map(|(_, tensor)| tensor).collect(),
            table,
            wanted,
            chunks,
            starts,
            packed,
            unknown,
        })
    }

    /// Is there room for it? `slots`: of the region.
    ///
    /// # Errors
    /// [`PlanError::TooSmall`].
    pub fn fits(&self, first_slot: u32, slots: u32) -> Result<(), PlanError> {
        let needed = u64::from(self.slots());
        if u64::from(first_slot) + needed > u64::from(slots) {
            return Err(PlanError::TooSmall {
                needed,
                first_slot,
                slots,
            });
        }
        Ok(())
    }

    /// Slots it needs.
    #[must_use]
    pub fn slots(&self) -> u32 {
        match self.packed {
            true => self.chunks.len() as u32, // at most the set's chunks
            false => self.table.chunks(),
        }
    }

    /// The wanted chunks; a place is an index into them.
    #[must_use]
    pub fn chunks(&self) -> &[u32] {
        &self.chunks
    }

    /// Where the chunk at a place goes, from the first slot on.
    #[must_use]
    pub fn slot(&self, place: usize, first_slot: u32) -> Slot {
        let nth = match self.packed {
            true => place as u32, // an index into at most 2^24
            false => self.chunks.get(place).copied().unwrap_or_default(),
        };
        Slot(first_slot + nth)
    }

    /// Of the set.
    #[must_use]
    pub fn digest(&self) -> TableDigest {
        self.table.digest()
    }

    /// Names that are in no tensor of the set.
    #[must_use]
    pub fn unknown(&self) -> &[String] {
        &self.unknown
    }

    /// How many are wanted.
    #[must_use]
    pub fn tensors(&self) -> usize {
        self.wanted.len()
    }

    /// A wanted tensor.
    #[must_use]
    pub fn tensor(&self, wanted: usize) -> Option<&Tensor> {
        self.table.tensors().get(*self.wanted.get(wanted)? as usize)
    }

    /// Is every tensor of the set wanted, each chunk in its own slot?
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let chunks = self.table.chunks() as usize;
        self.chunks.len() == chunks && self.wanted.len() == self.table.tensors().len()
    }

    /// Places of chunks that are not here.
    #[must_use]
    pub fn missing(&self) -> Vec<usize> {
        let places = self.here.iter().enumerate();
        places.filter(|(_, here)| !**here).map(|(p, _)| p).collect()
    }

    /// Chunks that are not here.
    #[must_use]
    pub fn left(&self) -> usize {
        self.left
    }

    /// The chunk at a place is here. Gives the wanted tensors that are whole by that.
    pub fn land(&mut self, place: usize) -> Vec<usize> {
        match self.here.get_mut(place) {
            Some(here) if !*here => *here = true,
            _ => return Vec::new(),
        }
        self.left -= 1;
        let mut whole = Vec::new();
        for user in self.users_of(place) {
            if let Some(lacks) = self.lacks.get_mut(user) {
                *lacks -= 1;
                if *lacks == 0 {
                    whole.push(user);
                }
            }
        }
        whole
    }

    /// Wanted tensors without bytes: here from the start.
    #[must_use]
    pub fn empty(&self) -> Vec<usize> {
        let lacks = self.lacks.iter().enumerate();
        let empty = |(index, _): &(usize, &u32)| {
            self.tensor(*index)
                .is_some_and(|tensor| tensor.bytes() == 0)
        };
        lacks.filter(empty).map(|(index, _)| index).collect()
    }

    /// Wanted tensors that lack chunks.
    #[must_use]
    pub fn lacking(&self) -> Vec<usize> {
        let lacks = self.lacks.iter().enumerate();
        lacks.filter(|(_, n)| **n > 0).map(|(i, _)| i).collect()
    }

    /// Places of a wanted tensor's chunks: consecutive, and so are their slots.
    #[must_use]
    pub fn places_of(&self, wanted: usize) -> std::ops::Range<usize> {
        let Some(tensor) = self.tensor(wanted) else {
            return 0..0;
        };
        let range = self.table.chunks_of(tensor);
        let first = self.chunks.partition_point(|chunk| *chunk < range.start);
        first..first + range.len()
    }

    /// Where a wanted tensor's first byte lies, from the first slot's first byte on.
    #[must_use]
    pub fn offset(&self, wanted: usize) -> u64 {
        let Some(tensor) = self.tensor(wanted) else {
            return 0;
        };
        let chunk_bytes = self.table.chunk_bytes();
        let nth = match tensor.bytes() {
            0 => return 0,
            _ => self.slot(self.places_of(wanted).start, 0).0,
        };
        u64::from(nth) * chunk_bytes + tensor.offset() % chunk_bytes
    }

    fn users_of(&self, place: usize) -> Vec<usize> {
        let range = self.starts.get(place..place + 2);
        let Some([start, end]) = range else {
            return Vec::new();
        };
        let users = self.users.get(*start as usize..*end as usize);
        users.into_iter().flatten().map(|u| *u as usize).collect()
    }
}

#[cfg(test)]
mod tests {
    use kvferry_proto::pb;
    use proptest::prelude::*;

    use super::*;

    fn table(chunk_bytes: u64, chunks: u32, spans: &[(u64, u64)]) -> Arc<TensorTable> {
        let tensor = |(n, (offset, bytes)): (usize, &(u64, u64))| {
            Tensor::try_from(pb::TensorDescriptor {
                name: format!("t{n:02}"),
                dtype: "U8".into(),
                shape: vec![*bytes],
                offset: *offset,
                bytes: *bytes,
            })
            .unwrap()
        };
        let tensors = spans.iter().enumerate().map(tensor).collect();
        Arc::new(TensorTable::new(chunk_bytes, chunks, tensors).unwrap())
    }

    fn named(names: &[&str]) -> Wish {
        Wish {
            names: names.iter().map(ToString::to_string).collect(),
            prefixes: Vec::new(),
        }
    }

    #[test]
    fn a_tensor_is_whole_with_its_last_chunk() {
        // Chunks of 10: t00 in 0, t01 in 0 to 2, t02 without bytes, t03 in 4.
        let table = table(10, 5, &[(0, 5), (5, 20), (30, 0), (40, 10)]);
        let mut plan = Plan::new(table, &Wish::default(), false).unwrap();
        assert_eq!(plan.chunks(), [0, 1, 2, 4]);
        assert_eq!(plan.empty(), [2]);
        assert_eq!(plan.lacking(), [0, 1, 3]);
        assert!(plan.land(2).is_empty());
        assert_eq!(plan.land(0), [0]);
        assert!(plan.land(0).is_empty(), "once");
        assert_eq!(plan.land(1), [1]);
        assert_eq!(plan.missing(), [3]);
        assert_eq!(plan.slot(3, 7), Slot(11));
        assert_eq!(plan.land(3), [3]);
        assert_eq!((plan.left(), plan.lacking()), (0, vec![]));
        assert_eq!(plan.offset(3), 40);
        assert!(!plan.is_whole(), "nobody wanted chunk 3");
    }

    #[test]
    fn packed_chunks_follow_each_other() {
        let table = table(10, 5, &[(0, 5), (5, 20), (38, 10)]);
        let plan = Plan::new(table, &named(&["t02", "x"]), true).unwrap();
        assert_eq!(plan.chunks(), [3, 4]);
        assert_eq!(plan.unknown(), ["x"]);
        assert_eq!((plan.slot(0, 1), plan.slot(1, 1)), (Slot(1), Slot(2)));
        assert_eq!((plan.slots(), plan.offset(0)), (2, 8));
        assert_eq!(plan.fits(1, 3), Ok(()));
        assert!(plan.fits(2, 3).is_err());
    }

    #[test]
    fn wishes_are_names_or_prefixes() {
        let table = table(10, 1, &[(0, 1), (1, 1), (2, 1)]);
        let wanted = |wish: &Wish| Plan::new(Arc::clone(&table), wish, false).map(|p| p.tensors());
        assert_eq!(wanted(&Wish::default()), Ok(3));
        assert_eq!(wanted(&named(&["t01", "t02"])), Ok(2));
        let prefix = |p: &str| Wish {
            prefixes: vec![p.into()],
            ..Wish::default()
        };
        assert_eq!(wanted(&prefix("t0")), Ok(3));
        assert_eq!(wanted(&prefix("u")), Err(PlanError::Nothing));
    }

    #[test]
    fn a_set_made_to_do_harm_is_refused() {
        let table = table(1, 1 << 20, &[(0, 1 << 20); 40]);
        let plan = Plan::new(table, &Wish::default(), false);
        assert_eq!(plan.map(|_| ()), Err(PlanError::Overlapping));
    }

    proptest! {
        #[test]
        fn every_tensor_is_whole_once_and_where_it_is_said(
            spans in proptest::collection::vec((0..90u64, 0..10u64), 1..8),
            chunk_bytes in 1..12u64, packed: bool, order in any::<u64>(), wish in 1..255u8,
        ) {
            let chunks = 100u64.div_ceil(chunk_bytes) as u32;
            let table = table(chunk_bytes, chunks, &spans);
            let names: Vec<_> = (0..spans.len()).filter(|n| wish & 1 << n != 0)
                .map(|n| format!("t{n:02}")).collect();
            prop_assume!(!names.is_empty());
            let wish = Wish { names, prefixes: Vec::new() };
            let mut plan = Plan::new(Arc::clone(&table), &wish, packed).unwrap();
            // The owner's memory: byte i of chunk-space is i. Chunks land in their slots.
            let mut memory = vec![255; (plan.slots() as u64 * chunk_bytes) as usize];
            let mut whole = plan.empty();
            let mut places = plan.missing();
            let mut state = order;
            while !places.is_empty() {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let place = places.swap_remove((state >> 33) as usize % places.len());
                let (chunk, slot) = (u64::from(plan.chunks()[place]), u64::from(plan.slot(place, 0).0));
                for byte in 0..chunk_bytes {
                    memory[(slot * chunk_bytes + byte) as usize] = (chunk * chunk_bytes + byte) as u8;
                }
                let now = plan.land(place);
                for tensor in now {
                    let at = plan.offset(tensor) as usize;
                    let it = plan.tensor(tensor).unwrap();
                    for n in 0..it.bytes() as usize {
                        prop_assert_eq!(memory[at + n], (it.offset() as usize + n) as u8);
                    }
                    whole.push(tensor);
                }
            }
            whole.sort_unstable();
            prop_assert_eq!(whole, (0..plan.tensors()).collect::<Vec<_>>());
            prop_assert_eq!(plan.left(), 0);
        }
    }
}
