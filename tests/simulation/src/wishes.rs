//! What operators, engines and routers want of a world, beside blocks: decided by its seed, with randomness of its
//! own, so that worlds that want nothing are what they were.

use std::time::Duration;

use kvferry_coordinator::directory::{Bounds, NamespacePolicy};

use crate::{
    conditions::Conditions,
    names::{MODEL, OTHER},
    queue::SECOND,
    random::Random,
};

/// What copies that are wanted may take after the last fault, beyond what everything else may: an order that was lost
/// with its session or its answer ends after 30 s, its block is not tried on that node for 30 s, and then it is copied.
pub(crate) const COPIES_WITHIN: u64 = 70 * SECOND;
/// Slots of a process for chunks of tensors: two of the larger sets, and they meet.
const CHUNK_SLOTS: u32 = 12;
/// Namespaces of large worlds stay as they are: what is looked at here does not depend on the number of nodes.
const MANY_NODES: usize = 64;

/// Wishes of one world.
#[derive(Debug, Clone)]
pub(crate) struct Wishes {
    /// Routers that watch.
    pub(crate) routers: usize,
    /// Bytes of changes a coordinator keeps for them.
    pub(crate) watch_log_bytes: usize,
    /// Copies of every block; 0: nobody asks for any.
    pub(crate) min_copies: u32,
    /// Nodes are drained now and then, and blocks become hot.
    pub(crate) moves: bool,
    /// What is wanted of each tenant's namespace.
    pub(crate) policies: [NamespacePolicy; 2],
    /// Blocks with a location that a coordinator takes.
    pub(crate) locations: u64,
    /// Sets of tensors that nodes publish.
    pub(crate) sources: u64,
    /// Operators delete namespaces by force.
    pub(crate) deletes: bool,
}

impl Wishes {
    /// Those of a seed; makes room for copies where there are to be some.
    pub(crate) fn of(seed: u64, nodes: usize, conditions: &mut Conditions) -> Self {
        let mut random = Random::of(seed, 12);
        let few = nodes <= MANY_NODES;
        let copies = few && random.permille(300);
        if copies {
            // Room in every pool, and engines that publish seldom enough that copies are lacking.
            conditions.pool_slots = random.within(16, 40) as u32;
            let slots = u64::from(conditions.pool_slots);
            conditions.hashes = random.within(slots / 3, slots * 2 / 3);
            conditions.pace = random.pick(&[SECOND / 2, 2 * SECOND, 4 * SECOND]);
        }
        let ttl = random
            .pick(&[None, Some(2), Some(5)])
            .map(Duration::from_secs);
        let block = conditions.spec(MODEL).layout.block_bytes();
        let policy = NamespacePolicy {
            location_ttl: ttl,
            max_locations: random.pick(&[None, None, Some(3), Some(9)]),
            max_location_bytes: random.pick(&[None, None, Some(5 * block + 1)]),
            copies_wanted: random.pick(&[None, Some(1), Some(2)]),
            ..NamespacePolicy::default()
        };
        // Of their own, too: a world of one tenant whom nobody deletes is what it was.
        let mut apart = Random::of(seed, 19);
        if few && apart.permille(350) {
            conditions.tenants = 2;
        }
        let others_block = conditions.spec(OTHER).layout.block_bytes();
        let others = NamespacePolicy {
            location_ttl: apart.pick(&[None, Some(3)]).map(Duration::from_secs),
            max_locations: apart.pick(&[None, Some(2), Some(6)]),
            max_location_bytes: apart.pick(&[None, Some(4 * others_block)]),
            ..NamespacePolicy::default()
        };
        let deletes = few && apart.permille(250);
        let wishes = Self {
            deletes,
            routers: 1 + random.below(3) as usize,
            watch_log_bytes: random.pick(&[2 << 10, 16 << 10, Bounds::WATCH_LOG_BYTES]),
            min_copies: if copies {
                random.pick(&[0, 2, 2, 3])
            } else {
                0
            },
            moves: copies,
            policies: [policy, others],
            locations: random.pick(&[4, 20, 1_000]),
            sources: if few { random.pick(&[0, 1, 3]) } else { 0 },
        };
        if wishes.sources > 0 {
            conditions.chunk_slots = CHUNK_SLOTS;
        }
        wishes
    }

    /// Is anything to be copied at all?
    pub(crate) fn copies(&self) -> bool {
        self.moves
    }
}
