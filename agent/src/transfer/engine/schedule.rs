//! Which block goes to which source, and which reads begin.

use super::{Op, PullEngine, State};
use crate::transfer::{
    block::Block,
    command::{BlockIndex, Command, SlotRead, SourceKey},
    source::{Path, Source},
};
use crate::transport::Capabilities;

/// What one read may take.
struct Room {
    blocks: usize,
    spans: usize,
    needs_checksum: bool,
}

impl PullEngine {
    /// Hands out all the work that is possible now. Generation reads come first: they end blocks,
    /// and earlier blocks are worth more.
    pub(super) fn schedule(&mut self) {
        self.ask();
        self.assign();
        // Each time spends candidates, so it ends.
        while self.refuse_unverifiable() {
            self.assign();
        }
        self.read_generations();
        self.connect();
        self.read();
        while self.steal() {
            self.read();
        }
    }

    /// Gives waiting blocks to sources, earliest first.
    fn assign(&mut self) {
        let waiting: Vec<_> = self.waiting.iter().collect();
        let mut active = self.sources.values().filter(|s| s.is_active()).count();
        for index in waiting {
            let Some((place, key)) = self.choose(index, active) else {
                continue;
            };
            self.waiting.remove(index);
            if let Some(source) = self.sources.get_mut(&key) {
                active += usize::from(!source.is_active());
                source.queue.insert(index);
            }
            if let Some(block) = self.block_mut(index) {
                block.current = place;
                block.state = State::Queued;
            }
        }
    }

    /// The best candidate: trusted, then near, then least loaded (in stripes, so that neighbours stay
    /// together). None while every source that has the block would be one too many.
    fn choose(&self, index: BlockIndex, active: usize) -> Option<(usize, SourceKey)> {
        let stripe = self.config.stripe_bytes.max(1);
        let full = active >= self.config.max_sources.max(1);
        self.blocks
            .get(index as usize)?
            .left()
            .filter_map(|(place, candidate)| {
                let key = candidate.source;
                let source = self.sources.get(&key)?;
                if full && !source.is_active() {
                    return None;
                }
                let load = source.load_bytes(self.block_bytes) / stripe;
                Some(((source.rank(), load, key, place), (place, key)))
            })
            .min_by_key(|(order, _)| *order)
            .map(|(_, choice)| choice)
    }

    fn connect(&mut self) {
        for (&key, source) in &mut self.sources {
            if source.path == Path::Closed && !source.queue.is_empty() {
                source.path = Path::Opening {
                    since: self.now,
                    late: false,
                };
                source.connects += 1;
                self.commands.push_back(Command::Connect { source: key });
            }
        }
    }

    fn read_generations(&mut self) {
        let most = self.config.generation_words.max(1);
        let ready: Vec<_> = self
            .sources
            .iter()
            .filter(|(_, source)| source.checking.is_none() && !source.unchecked.is_empty())
            .map(|(&key, _)| key)
            .collect();
        for key in ready {
            let Some(source) = self.sources.get(&key) else {
                continue;
            };
            let indices: Vec<_> = source.unchecked.iter().take(most).collect();
            self.begin(key, &indices, true);
        }
    }

    /// Fills the windows of all sources, the one with the earliest block first.
    fn read(&mut self) {
        loop {
            let next = self
                .sources
                .iter()
                .filter_map(|(&key, source)| {
                    let first = source.queue.first()?;
                    Some((first, key, self.room(source)?))
                })
                .min_by_key(|(first, key, _)| (*first, *key));
            let Some((_, key, room)) = next else {
                return;
            };
            let indices = self.batch(key, &room);
            self.begin(key, &indices, false);
        }
    }

    /// What the next read from this source may take; None when nothing. A source without reads under
    /// way may always have one block, however large, and so may a pull.
    fn room(&self, source: &Source) -> Option<Room> {
        let Path::Open(link) = source.path else {
            return None;
        };
        let block = self.block_bytes;
        let left = |bound: u64, used: u64| match used {
            0 => bound.max(block),
            _ => bound.saturating_sub(used),
        };
        let bytes = self
            .op_bytes(&link)
            .min(left(link.window_bytes, source.inflight_bytes))
            .min(left(self.config.inflight_bytes, self.inflight_bytes));
        let blocks = usize::try_from(bytes / block).unwrap_or(usize::MAX);
        (blocks > 0).then(|| Room {
            blocks: blocks.min(self.config.op_blocks.max(1)),
            spans: link.max_spans,
            needs_checksum: link.needs_checksum,
        })
    }

    /// Bytes of one read, never less than a block.
    fn op_bytes(&self, link: &Capabilities) -> u64 {
        // Not over a software device: the words of each read are a read of their own there, and cost as much as some data.
        let verified = !self.must_verify.is_empty() && !link.needs_checksum;
        let most = match verified {
            true => self.config.verified_op_bytes.min(self.config.op_bytes),
            false => self.config.op_bytes,
        };
        (link.window_bytes / self.config.ops_per_window.max(1))
            .min(most)
            .min(link.max_bytes)
            .max(self.block_bytes)
    }

    /// The next blocks of a queue that can be one read: of one region and one group, within the room.
    fn batch(&self, key: SourceKey, room: &Room) -> Vec<BlockIndex> {
        let (mut batch, mut spans, mut place) = (Vec::new(), 0usize, None);
        let Some(source) = self.sources.get(&key) else {
            return batch;
        };
        for index in source.queue.iter().take(room.blocks) {
            let Some(block) = self.blocks.get(index as usize) else {
                break;
            };
            let Some(candidate) = block.candidate() else {
                break;
            };
            spans = spans.saturating_add(candidate.spans as usize);
            let here = (candidate.region, index / self.config.group_blocks.max(1));
            let fits = spans <= room.spans && !block.alone && *place.get_or_insert(here) == here;
            if !batch.is_empty() && !fits {
                break;
            }
            batch.push(index);
            if block.alone {
                break;
            }
        }
        batch
    }

    /// Begins a read of these blocks' data or generations.
    fn begin(&mut self, key: SourceKey, indices: &[BlockIndex], generations: bool) {
        let op = self.new_op();
        let slots: Vec<_> = indices
            .iter()
            .filter_map(|&index| slot_read(index, self.blocks.get(index as usize)?))
            .collect();
        let bytes = match generations {
            true => 0,
            false => self.block_bytes.saturating_mul(slots.len() as u64),
        };
        let idle = !self.owes(key);
        let Some(source) = self.sources.get_mut(&key) else {
            return;
        };
        if idle {
            source.progress_at = self.now;
        }
        source.inflight_bytes += bytes;
        self.inflight_bytes += bytes;
        if generations {
            source.checking = Some(op);
        }
        for &index in indices {
            source.queue.remove(index);
            source.unchecked.remove(index);
        }
        let epoch = source.epoch;
        for &index in indices {
            self.set_state(
                index,
                match generations {
                    true => State::Checking(op),
                    false => State::Reading(op),
                },
            );
        }
        self.ops.insert(
            op,
            Op {
                source: key,
                epoch,
                bytes,
                generations,
                cancelled: false,
                slots: slots.clone(),
            },
        );
        self.push(match generations {
            true => Command::ReadGenerations {
                op,
                source: key,
                slots,
            },
            false => Command::Read {
                op,
                source: key,
                slots,
            },
        });
    }

    /// Lets a source that ran dry take one read's worth of blocks from the longest queue that has
    /// blocks it holds too. Nearer sources are not relieved by farther ones unless they have no link
    /// yet: a slow path would only hold up the end. True when something moved.
    fn steal(&mut self) -> bool {
        let active = self.sources.values().filter(|s| s.is_active()).count();
        let full = active >= self.config.max_sources.max(1);
        let thieves: Vec<_> = self
            .sources
            .iter()
            .filter(|(_, source)| source.queue.is_empty() && !source.troubled)
            .filter(|(_, source)| source.is_active() || !full)
            .filter_map(|(&key, source)| Some((key, self.room(source)?, source.rank())))
            .collect();
        for (thief, room, rank) in thieves {
            let victim = self
                .sources
                .iter()
                .filter(|(key, source)| {
                    let slower = source.rank() >= rank || !matches!(source.path, Path::Open(_));
                    **key != thief && slower && !source.queue.is_empty()
                })
                .max_by_key(|(key, source)| (source.queue.len(), std::cmp::Reverse(**key)));
            let Some((&victim, source)) = victim else {
                continue;
            };
            let loot: Vec<_> = source
                .queue
                .iter()
                .take(self.config.steal_scan)
                .filter_map(|index| {
                    let block = self.blocks.get(index as usize)?;
                    let (place, candidate) = block.left().find(|(_, c)| c.source == thief)?;
                    let suits = candidate.checksum.is_some() || !room.needs_checksum;
                    suits.then_some((index, place))
                })
                .take(room.blocks)
                .collect();
            if loot.is_empty() {
                continue;
            }
            for (index, place) in loot {
                if let Some(source) = self.sources.get_mut(&victim) {
                    source.queue.remove(index);
                }
                if let Some(source) = self.sources.get_mut(&thief) {
                    source.queue.insert(index);
                }
                if let Some(block) = self.block_mut(index) {
                    block.current = place;
                }
            }
            return true;
        }
        false
    }
}

fn slot_read(index: BlockIndex, block: &Block) -> Option<SlotRead> {
    let candidate = block.candidate()?;
    Some(SlotRead {
        block: index,
        region: candidate.region,
        slot: candidate.slot,
    })
}
