//! The oracle, and what is checked on every command.

use super::super::super::*;
use super::{BLOCK, Flight, Place, World};

impl World {
    pub(super) fn obey(&mut self) {
        while let Some(command) = self.engine.poll_command() {
            self.execute(command);
        }
    }

    fn execute(&mut self, command: Command) {
        match command {
            Command::Locate { op, blocks } => {
                assert!(blocks.len() <= self.config.locate_blocks);
                self.locate = Some((op, blocks));
            }
            Command::Prepare { blocks } => {
                for block in blocks {
                    assert_eq!(self.local[block as usize].place, Place::None);
                    self.local[block as usize].place = Place::Asked;
                }
            }
            Command::Connect { source } => self.connects.push(source),
            Command::Read { op, source, slots } => self.begin(op, source, slots, false),
            Command::ReadGenerations { op, source, slots } => {
                self.begin(op, source, slots, true);
            }
            Command::Cancel { op } => {
                if let Some(flight) = self.flights.get_mut(&op) {
                    flight.cancelled = true;
                    // Settles soon, or only in the end.
                    flight.hangs &= self.random.percent(20);
                }
            }
            Command::Suspect { .. } | Command::Distrust { .. } => {}
            Command::Verify { block, .. } => {
                self.assert_untouched(block);
                self.local[block as usize].verifying = true;
            }
            Command::Land { block, .. } => {
                self.assert_untouched(block);
                self.assert_right(block);
                self.local[block as usize].landing = true;
            }
            Command::Abandon { block } => {
                self.assert_untouched(block);
                self.local[block as usize].place = Place::Gone;
            }
            Command::Finish { block, outcome, .. } => self.finish(block, outcome),
        }
    }

    /// The destination is ours, and nothing else touches it.
    fn assert_untouched(&self, block: u32) {
        let local = &self.local[block as usize];
        assert_eq!(local.place, Place::Held, "block {block}");
        assert!(!local.verifying && !local.landing, "block {block}");
        let touched = |flight: &Flight| flight.slots.iter().any(|read| read.block == block);
        assert!(!self.flights.values().any(touched), "block {block}");
    }

    /// The oracle: both halves are from one sealed version of this block.
    fn assert_right(&self, block: u32) {
        let Some((source, [Some(one), Some(two)], corrupt)) = self.local[block as usize].bytes
        else {
            panic!("block {block} has no bytes");
        };
        let right = &self.owners[source.0 as usize][block as usize].right;
        assert!(
            one == two && right.contains(&one) && !corrupt,
            "wrong bytes in {block}: {one} {two} of {right:?}"
        );
    }

    fn begin(&mut self, op: OpId, source: SourceKey, slots: Vec<SlotRead>, generations: bool) {
        assert!(!self.cancelled && !slots.is_empty());
        for read in &slots {
            self.assert_untouched(read.block);
            assert!(!self.given_up.contains(&read.block), "nobody wants it");
        }
        let bytes = |count: usize| count as u64 * BLOCK;
        // Here all blocks have checksums, or none has.
        assert!(generations || self.corrupt || !self.link.needs_checksum);
        if generations {
            assert!(slots.len() <= self.config.generation_words);
        } else {
            let data = || self.flights.values().filter(|flight| !flight.generations);
            let all: usize = data().map(|flight| flight.slots.len()).sum();
            let here: usize = data()
                .filter(|flight| flight.source == source)
                .map(|flight| flight.slots.len())
                .sum();
            let sum = |used: usize| bytes(used + slots.len());
            assert!(slots.len() <= self.config.op_blocks);
            let group = |read: &SlotRead| read.block / self.config.group_blocks;
            assert!(slots.iter().all(|read| group(read) == group(&slots[0])));
            assert!(sum(0) <= self.link.max_bytes.max(BLOCK));
            assert!(here == 0 || sum(here) <= self.link.window_bytes);
            assert!(all == 0 || sum(all) <= self.config.inflight_bytes);
            let mut busy: BTreeSet<_> = data().map(|flight| flight.source).collect();
            busy.insert(source);
            assert!(busy.len() <= self.config.max_sources);
        }
        let flight = Flight {
            source,
            seen: vec![[None; 2]; slots.len()],
            slots,
            generations,
            cancelled: false,
            hangs: self.random.percent(self.hang),
        };
        assert!(self.flights.insert(op, flight).is_none());
    }

    fn finish(&mut self, block: u32, outcome: Outcome) {
        let local = &mut self.local[block as usize];
        assert_eq!(local.outcome.replace(outcome), None, "a second outcome");
        if outcome == Outcome::Missing {
            assert_eq!(local.place, Place::None);
        }
        if outcome.is_settled() {
            assert!(matches!(local.place, Place::None | Place::Gone));
        }
        assert!(outcome != Outcome::Corrupt || self.corrupt);
        if matches!(outcome, Outcome::Cancelled { .. }) {
            assert!(self.cancelled || self.given_up.contains(&block));
        }
        if outcome == Outcome::Pulled {
            self.assert_right(block);
        }
    }
}
