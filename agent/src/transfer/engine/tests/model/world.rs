//! The world: what happens, and when.

mod checks;

use std::collections::BTreeMap;

use super::super::*;
use crate::transfer::{ConnectFailure, ReadFailure};

const BLOCK: u64 = 10;

/// What a fuzzer chose, then SplitMix64.
struct Random {
    chosen: std::vec::IntoIter<u8>,
    state: u64,
}

impl Random {
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        let chosen = self.chosen.next().map(|first| match n {
            0..=256 => u64::from(first),
            _ => u64::from(first) << 8 | u64::from(self.chosen.next().unwrap_or(0)),
        });
        chosen.unwrap_or_else(|| self.next()) % n.max(1)
    }

    fn percent(&mut self, n: u64) -> bool {
        self.below(100) < n
    }
}

/// A slot that is meant to hold the block of its own number.
struct OwnerSlot {
    generation: u64,
    /// Generations with which it was sealed holding that block.
    right: Vec<u64>,
}

/// Two halves of the slot, each as of some moment during the read.
type Halves = [Option<u64>; 2];

struct Flight {
    source: SourceKey,
    slots: Vec<SlotRead>,
    generations: bool,
    cancelled: bool,
    hangs: bool,
    seen: Vec<Halves>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    None,
    Asked,
    Held,
    Gone,
}

struct Local {
    place: Place,
    /// What lies in the destination: from whom, and the generations of its halves.
    bytes: Option<(SourceKey, Halves, bool)>,
    verifying: bool,
    landing: bool,
    outcome: Option<Outcome>,
}

pub(in super::super) struct World {
    random: Random,
    engine: PullEngine,
    config: TransferConfig,
    link: Capabilities,
    now: Time,
    deadline: Time,
    owners: Vec<Vec<OwnerSlot>>,
    local: Vec<Local>,
    flights: BTreeMap<OpId, Flight>,
    locate: Option<(OpId, Vec<u32>)>,
    connects: Vec<SourceKey>,
    churn: u64,
    fail: u64,
    hang: u64,
    corrupt: bool,
    outage: u64,
    cancelled: bool,
    gives_up: bool,
    given_up: BTreeSet<u32>,
}

impl World {
    pub(in super::super) fn new(seed: u64) -> Self {
        Self::of(Random {
            chosen: Vec::new().into_iter(),
            state: seed,
        })
    }

    #[cfg(feature = "fuzzing")]
    pub(in super::super) fn chosen(bytes: Vec<u8>) -> Self {
        Self::of(Random {
            chosen: bytes.into_iter(),
            state: 0,
        })
    }

    fn of(mut random: Random) -> Self {
        let blocks = random.below(14) as u32 + 1;
        let sources = random.below(4) + 1;
        let owners = (0..sources)
            .map(|_| {
                (0..blocks)
                    .map(|_| OwnerSlot {
                        generation: 2,
                        right: vec![2],
                    })
                    .collect()
            })
            .collect();
        let config = TransferConfig {
            op_bytes: BLOCK * (1 + random.below(6)),
            op_blocks: 1 + random.below(5) as usize,
            group_blocks: match random.below(3) {
                0 => 1 + random.below(9) as u32,
                _ => u32::MAX,
            },
            ops_per_window: 1 + random.below(4),
            inflight_bytes: random.below(8) * BLOCK,
            generation_words: 1 + random.below(5) as usize,
            stripe_bytes: 1 + random.below(30),
            max_sources: 1 + random.below(4) as usize,
            locate_blocks: 1 + random.below(14) as usize,
            stall_bound: ms(50 + random.below(200)),
            ..TransferConfig::default()
        };
        let timeout = ms(20 + random.below(1_500));
        let request = PullRequest {
            blocks,
            block_bytes: BLOCK,
            timeout,
            must_verify: BTreeSet::new(),
        };
        let mut often = |percents: &[u64]| percents[random.below(percents.len() as u64) as usize];
        Self {
            churn: often(&[0, 5, 30, 60]),
            fail: often(&[0, 5, 30]),
            hang: often(&[0, 5, 40]),
            outage: often(&[0, 0, 30, 100]),
            corrupt: often(&[0, 1]) == 1,
            gives_up: often(&[0, 0, 1]) == 1,
            link: Capabilities {
                max_spans: 1 + random.below(6) as usize,
                max_bytes: BLOCK * (1 + random.below(8)),
                window_bytes: random.below(80),
                distance: 1,
                needs_checksum: random.percent(30),
                span_bytes: 0,
            },
            engine: PullEngine::new(config.clone(), request, Time::ZERO),
            config,
            random,
            now: Time::ZERO,
            deadline: timeout,
            owners,
            local: (0..blocks)
                .map(|_| Local {
                    place: Place::None,
                    bytes: None,
                    verifying: false,
                    landing: false,
                    outcome: None,
                })
                .collect(),
            flights: BTreeMap::new(),
            locate: None,
            connects: Vec::new(),
            cancelled: false,
            given_up: BTreeSet::new(),
        }
    }

    /// To the end; every promise is checked on the way.
    pub(in super::super) fn run(mut self) -> Vec<Outcome> {
        self.obey();
        let mut steps = 0;
        while !self.engine.is_finished() {
            steps += 1;
            assert!(steps < 50_000, "it does not end");
            let due = self.engine.poll_timeout().expect("it must ask for time");
            let step = self.now + ms(self.random.below(12));
            self.now = step.min(due.max(self.now));
            self.overwrite();
            self.look();
            for _ in 0..self.random.below(4) {
                self.something_happens();
            }
            if self.now >= due {
                self.engine.handle_timeout(self.now);
            }
            self.obey();
            assert!(self.now <= self.deadline);
        }
        // What hung settles at last.
        self.now += ms(60_000);
        for _ in 0..10_000 {
            if self.engine.is_drained() {
                break;
            }
            for flight in self.flights.values_mut() {
                flight.hangs = false;
            }
            self.something_happens();
            self.obey();
        }
        assert!(self.engine.is_drained() && self.flights.is_empty());
        assert_eq!(self.engine.inflight_bytes, 0);
        assert!(self.local.iter().all(|local| local.place != Place::Held));
        let outcomes = self.local.iter().map(|local| local.outcome);
        outcomes.map(|outcome| outcome.unwrap()).collect()
    }

    fn overwrite(&mut self) {
        for slots in &mut self.owners {
            for slot in slots {
                if self.random.percent(self.churn / 4) {
                    slot.generation += 1;
                    // Sealed again, with the same block or with another.
                    if slot.generation.is_multiple_of(2) && self.random.percent(60) {
                        slot.right.push(slot.generation);
                    }
                }
            }
        }
    }

    fn word(&self, source: SourceKey, slot: Slot) -> u64 {
        self.owners[source.0 as usize][slot.0 as usize].generation
    }

    /// Reads under way fetch some of what they are to fetch.
    fn look(&mut self) {
        let mut flights = std::mem::take(&mut self.flights);
        for flight in flights.values_mut() {
            for (read, halves) in flight.slots.iter().zip(&mut flight.seen) {
                for half in halves {
                    if half.is_none() && self.random.percent(30) {
                        *half = Some(self.word(flight.source, read.slot));
                    }
                }
            }
        }
        self.flights = flights;
    }

    fn tell(&mut self, event: Event) {
        self.engine.handle(self.now, event);
    }

    fn something_happens(&mut self) {
        match self.random.below(12) {
            0 | 1 => self.answer_locate(),
            2 => self.answer_connect(),
            3 => self.prepare(),
            4 => self.finish_local(),
            5 => self.nonsense(),
            6 if self.random.below(500) == 0 => {
                self.cancelled = true;
                self.tell(Event::Cancel);
            }
            7 if self.gives_up && self.random.below(60) == 0 => {
                let block = self.random.below(self.local.len() as u64 + 1) as u32;
                self.given_up.insert(block);
                self.tell(Event::GiveUp { block });
            }
            _ => self.settle(),
        }
    }

    fn answer_locate(&mut self) {
        let Some((op, blocks)) = self.locate.take() else {
            return;
        };
        if self.random.percent(self.outage) {
            let retryable = self.random.percent(90);
            return self.tell(Event::LocateFailed { op, retryable });
        }
        let mut candidates = Vec::new();
        for block in blocks {
            let mut found = Vec::new();
            for source in 0..self.owners.len() as u32 {
                let slot = &self.owners[source as usize][block as usize];
                let right = slot.right.len() as u64;
                if self.random.percent(70) {
                    // Now or some time ago.
                    let old = match self.random.percent(60) {
                        true => right - 1,
                        false => self.random.below(right),
                    };
                    let generation = Generation(slot.right[old as usize]);
                    let checksum = self.corrupt.then(|| Checksum::of_bytes(b"x"));
                    found.push(Candidate {
                        generation,
                        checksum,
                        spans: 1 + self.random.below(2) as u32,
                        ..at(SourceKey(source), block)
                    });
                }
            }
            candidates.push(found.into());
        }
        if self.random.percent(5) {
            candidates.pop();
        }
        self.tell(Event::Located {
            op,
            hints: Vec::new(),
            candidates,
        });
    }

    fn answer_connect(&mut self) {
        let Some(source) = self.connects.pop() else {
            return;
        };
        let failure = match self.random.below(6) {
            0 | 1 => ConnectFailure::Unreachable,
            2 | 3 => ConnectFailure::WrongIncarnation,
            4 => ConnectFailure::Denied,
            _ => ConnectFailure::Refused,
        };
        let capabilities = self.link;
        let event = match self.random.percent(self.fail) {
            true => Event::ConnectFailed { source, failure },
            false => Event::Connected {
                source,
                capabilities,
            },
        };
        self.tell(event);
    }

    fn prepare(&mut self) {
        for block in 0..self.local.len() as u32 {
            let local = &mut self.local[block as usize];
            if local.place != Place::Asked || self.random.percent(20) {
                continue;
            }
            if self.random.percent(self.fail / 5) {
                local.place = Place::Gone;
                self.tell(Event::NoSpace { block });
            } else {
                local.place = Place::Held;
                self.tell(Event::Prepared { block });
            }
        }
    }

    /// Checksums and landings.
    fn finish_local(&mut self) {
        for block in 0..self.local.len() as u32 {
            let local = &mut self.local[block as usize];
            if std::mem::take(&mut local.verifying) {
                let ok = local.bytes.is_some_and(|(.., corrupt)| !corrupt);
                self.tell(Event::Verified { block, ok });
            } else if std::mem::take(&mut local.landing) {
                if self.random.percent(self.fail / 5) {
                    self.tell(Event::LandFailed { block });
                } else {
                    local.place = Place::Gone;
                    self.tell(Event::Landed { block });
                }
            }
        }
    }

    fn nonsense(&mut self) {
        let any = self.random.below(self.local.len() as u64 + 2) as u32;
        let op = OpId(u64::MAX - self.random.below(3));
        let event = match self.random.below(7) {
            0 => Event::ReadDone { op },
            1 => words(op.0, &[2, 4]),
            2 => failed(op.0, ReadFailure::LinkLost),
            3 => Event::Connected {
                source: SourceKey(any + 100),
                capabilities: self.link,
            },
            4 => Event::Progress {
                source: SourceKey(any),
                received_bytes: self.random.next(),
            },
            5 => Event::Landed {
                block: any + self.local.len() as u32,
            },
            _ => located(op.0, vec![vec![at(A, 0)]]),
        };
        self.tell(event);
    }

    /// One read ends, one way or another.
    fn settle(&mut self) {
        let ready: Vec<_> = self
            .flights
            .iter()
            .filter(|(_, flight)| !flight.hangs)
            .map(|(&op, _)| op)
            .collect();
        let Some(&op) = ready.get(self.random.below(ready.len() as u64) as usize) else {
            return;
        };
        let Some(flight) = self.flights.remove(&op) else {
            return;
        };
        let seen: Vec<_> = flight
            .slots
            .iter()
            .zip(&flight.seen)
            .map(|(read, halves)| {
                let last = self.word(flight.source, read.slot);
                halves.map(|half| Some(half.unwrap_or(last)))
            })
            .collect();
        let failed = self.random.percent(self.fail);
        if !flight.generations {
            for (read, halves) in flight.slots.iter().zip(&seen) {
                let corrupt = self.corrupt && self.random.percent(10);
                let halves = if failed { [None; 2] } else { *halves };
                self.local[read.block as usize].bytes = Some((flight.source, halves, corrupt));
            }
        }
        let event = if failed || flight.cancelled && self.random.percent(70) {
            let failure = match self.random.below(6) {
                _ if flight.cancelled => ReadFailure::Cancelled,
                0 => ReadFailure::RegionGone,
                1 => ReadFailure::SpanRefused,
                2 if self.random.percent(10) => ReadFailure::Local,
                3 => ReadFailure::Denied,
                4 => ReadFailure::NoPath,
                _ => ReadFailure::LinkLost,
            };
            Event::ReadFailed { op, failure }
        } else if flight.generations {
            let words = seen.iter().filter_map(|halves| halves[0]).collect();
            Event::GenerationsDone { op, words }
        } else {
            Event::ReadDone { op }
        };
        self.tell(event);
    }
}
