//! Who copies what, from the sight of what is lacking.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use kvferry_proto::{BlockHash, NamespaceName, NodeId};

use super::choice::{Choice, Chosen};
use crate::{
    directory::{CopyTarget, SessionId},
    sabotage::{self, Bug},
};

/// Orders one agent has at a time: one at work, and one behind it. Engines' pulls come first there.
const MAX_ORDERS_PER_NODE: usize = 2;
/// Orders under way: what a large fleet's links notice least, and what a round's sight may have stale.
const MAX_ORDERS: usize = 256;
/// Blocks of one order: its end is heard of soon, and what fails with it is little.
const MAX_BLOCKS_PER_ORDER: usize = 64;
/// Bytes of one order, unless one block alone has more: a second of a slow link.
const MAX_BYTES_PER_ORDER: u64 = 64 << 20;
/// How long an agent has for an order. After that it counts as failed, whatever is heard later.
const ORDER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a node that failed to copy a block, or said that it has it where the directory does not show it (it may lie
/// in a region that is refused), is not told to again.
const AVOID_FOR_BLOCK: Duration = Duration::from_secs(30);
/// Blocks whose failures are remembered, and nodes that are left alone. Beyond that all are forgotten:
/// some are tried again too soon, that is all.
const MAX_FAILURES: usize = 16_384;
const MAX_AVOIDED: usize = 16_384;
/// How long a node that has no room, or enough to do, is left alone.
const AVOID_BUSY: Duration = Duration::from_secs(1);
const AVOID_FULL: Duration = Duration::from_secs(10);
/// And one that takes no copies at all.
const AVOID_REFUSED: Duration = Duration::from_secs(600);

/// Number of an order, unique in the planner's lifetime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OrderId(pub u64);

/// A block that lacks a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lack {
    /// Which.
    pub hash: BlockHash,
    /// Handles of the nodes that hold it.
    pub holders: Vec<u32>,
}

/// Why copies are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// There should be more of them. They stay with nodes that have regions of the namespace.
    Wanted,
    /// Only this node holds them, and it goes. Any node may take them.
    Drain(NodeId),
}

/// What a plan is made from, all of one namespace and one cause.
#[derive(Debug, Clone, Copy)]
pub struct Sight<'a> {
    /// Whose blocks.
    pub namespace: &'a NamespaceName,
    /// Bytes of one.
    pub block_bytes: u64,
    /// Why.
    pub cause: &'a Cause,
    /// Those that lack a copy.
    pub lacking: &'a [Lack],
    /// Who can be told.
    pub targets: &'a [CopyTarget],
}

/// What is to be told to whom.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Now.
    pub orders: Vec<Order>,
    /// Blocks are left that somebody could take who has enough to do right now.
    pub waits: bool,
}

/// Copies to be made by one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Its number.
    pub id: OrderId,
    /// By whom.
    pub node: NodeId,
    /// On which host.
    pub host_id: String,
    /// On which stream that is told.
    pub session: SessionId,
    /// Of which namespace.
    pub namespace: NamespaceName,
    /// Which blocks.
    pub hashes: Vec<BlockHash>,
    /// How long it has.
    pub timeout: Duration,
}

/// What an agent says of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It tried.
    Done,
    /// It has enough to do.
    Busy,
    /// It has no free slot.
    Full,
    /// It takes no copies.
    Refused,
}

/// What came of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Of which namespace.
    pub namespace: NamespaceName,
    /// Why it was given.
    pub cause: Cause,
    /// Blocks that were copied.
    pub copied: usize,
    /// Blocks that were not.
    pub failed: usize,
}

/// What came of one block of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Came {
    Copied,
    /// Its node does not take blocks, for now.
    NotNow,
    /// Its node does not get this one.
    NotHere,
}

#[derive(Debug)]
struct UnderWay {
    order: Order,
    cause: Cause,
    until: Duration,
}

/// Plans copies, and follows them. Knows no clock: `now` never goes back.
#[derive(Debug, Default)]
pub struct Planner {
    next: u64,
    orders: BTreeMap<OrderId, UnderWay>,
    /// Blocks of orders under way.
    blocks: HashSet<(NamespaceName, BlockHash)>,
    /// Nodes that failed to copy a block, and until when they are not told to again.
    failures: HashMap<(NamespaceName, BlockHash), Vec<(NodeId, Duration)>>,
    /// Nodes to be left alone in a namespace, until then.
    avoided: HashMap<(NodeId, NamespaceName), Duration>,
}

impl Planner {
    /// Orders for blocks that lack a copy: one more copy of each, as far as bounds allow. What is left
    /// out is seen again in a later round. `draw` is any number; equal targets are told in turn from it.
    pub fn plan(&mut self, now: Duration, draw: u64, sight: Sight<'_>) -> Plan {
        let Sight {
            namespace,
            block_bytes,
            targets,
            ..
        } = sight;
        let most = (MAX_BYTES_PER_ORDER / block_bytes.max(1)).max(1);
        let most = MAX_BLOCKS_PER_ORDER.min(usize::try_from(most).unwrap_or(1));
        let mut batches: BTreeMap<usize, Vec<BlockHash>> = BTreeMap::new();
        let mut plan = Plan::default();
        let mut choice = Choice::new(targets, &self.room(now, draw, sight, most));
        for (turn, lack) in (0..).zip(sight.lacking) {
            let block = (namespace.clone(), lack.hash);
            if self.blocks.contains(&block) && !sabotage::is(Bug::CopiesOrderedTwice) {
                continue;
            }
            let failures = self.failures.get(&block).map_or(&[][..], Vec::as_slice);
            let turn = (draw as usize).wrapping_add(turn);
            match choice.choose(now, turn, lack, failures) {
                Chosen::Taken(at) => {
                    batches.entry(at).or_default().push(lack.hash);
                    self.blocks.insert(block);
                }
                Chosen::Later => plan.waits = true,
                Chosen::Nobody => {}
            }
        }
        for (at, hashes) in batches {
            for hashes in hashes.chunks(most) {
                let order = self.begin(now, sight, &targets[at], hashes);
                plan.orders.push(order);
            }
        }
        plan
    }

    /// Blocks each target may get; None where it takes none at all.
    fn room(&self, now: Duration, draw: u64, sight: Sight<'_>, most: usize) -> Vec<Option<usize>> {
        let mut busy: HashMap<&NodeId, usize> = HashMap::new();
        for known in self.orders.values() {
            *busy.entry(&known.order.node).or_default() += 1;
        }
        let mut left = MAX_ORDERS.saturating_sub(self.orders.len());
        let count = sight.targets.len();
        let mut room = vec![None; count];
        // Where there are more targets than orders, others have their turn with another draw.
        for turn in 0..count {
            let at = (draw as usize).wrapping_add(turn) % count;
            let target = &sight.targets[at];
            let key = (target.node.clone(), sight.namespace.clone());
            let avoided = self.avoided.get(&key).is_some_and(|until| now < *until);
            let takes = target.member || matches!(sight.cause, Cause::Drain(_));
            if avoided || !takes {
                continue;
            }
            let busy = busy.get(&target.node).copied().unwrap_or(0);
            let orders = MAX_ORDERS_PER_NODE.saturating_sub(busy).min(left);
            left -= orders;
            room[at] = Some(orders * most);
        }
        room
    }

    fn begin(
        &mut self,
        now: Duration,
        sight: Sight<'_>,
        target: &CopyTarget,
        hashes: &[BlockHash],
    ) -> Order {
        self.next += 1;
        let order = Order {
            id: OrderId(self.next),
            node: target.node.clone(),
            host_id: target.host_id.clone(),
            session: target.session,
            namespace: sight.namespace.clone(),
            hashes: hashes.to_vec(),
            timeout: ORDER_TIMEOUT,
        };
        let under_way = UnderWay {
            order: order.clone(),
            cause: sight.cause.clone(),
            until: now + ORDER_TIMEOUT,
        };
        self.orders.insert(order.id, under_way);
        order
    }

    /// An agent says what came of an order. None where it is not under way, or not that session's.
    ///
    /// `holds`: does the directory show that the order's node has this block? Agents answer after the coordinator has
    /// acknowledged the copies, so that what is not shown was not made for anybody to find, or is gone again.
    pub fn done(
        &mut self,
        now: Duration,
        session: SessionId,
        id: OrderId,
        (verdict, failed): (Verdict, &[u32]),
        holds: impl Fn(&Order, &BlockHash) -> bool,
    ) -> Option<Outcome> {
        let known = self.orders.get(&id)?;
        if known.order.session != session {
            return None;
        }
        let known = self.orders.remove(&id)?;
        let order = &known.order;
        let pause = match verdict {
            Verdict::Done => None,
            Verdict::Busy => Some(AVOID_BUSY),
            Verdict::Full => Some(AVOID_FULL),
            Verdict::Refused => Some(AVOID_REFUSED),
        };
        if let Some(pause) = pause {
            if self.avoided.len() >= MAX_AVOIDED {
                self.avoided.clear();
            }
            let key = (order.node.clone(), order.namespace.clone());
            self.avoided.insert(key, now + pause);
        }
        let failed: HashSet<u32> = match verdict {
            Verdict::Done | Verdict::Full => failed.iter().copied().collect(),
            Verdict::Busy | Verdict::Refused => (0..order.hashes.len() as u32).collect(),
        };
        let came = |order: &Order, index, hash: &BlockHash| match failed.contains(&index) {
            true if verdict == Verdict::Done => Came::NotHere,
            true => Came::NotNow,
            false if holds(order, hash) || sabotage::is(Bug::CopiesBelieved) => Came::Copied,
            false => Came::NotHere,
        };
        Some(self.end(now, known, came))
    }

    /// Ends orders whose time is up.
    pub fn tick(&mut self, now: Duration) -> Vec<Outcome> {
        self.failures.retain(|_, failed| {
            failed.retain(|(_, until)| now < *until);
            !failed.is_empty()
        });
        self.avoided.retain(|_, until| now < *until);
        self.end_those(now, |known| now >= known.until)
    }

    /// Ends the orders of a stream that is no more.
    pub fn session_ended(&mut self, now: Duration, session: SessionId) -> Vec<Outcome> {
        self.end_those(now, |known| known.order.session == session)
    }

    fn end_those(&mut self, now: Duration, which: impl Fn(&UnderWay) -> bool) -> Vec<Outcome> {
        let over = self.orders.iter().filter(|(_, known)| which(known));
        let over: Vec<OrderId> = over.map(|(id, _)| *id).collect();
        let ended = over.into_iter().filter_map(|id| {
            let known = self.orders.remove(&id)?;
            Some(self.end(now, known, |_, _, _| Came::NotHere))
        });
        ended.collect()
    }

    /// Blocks that failed are not tried on that node for a while, where it is the node's fault.
    fn end(
        &mut self,
        now: Duration,
        known: UnderWay,
        came: impl Fn(&Order, u32, &BlockHash) -> Came,
    ) -> Outcome {
        let UnderWay { order, cause, .. } = known;
        let (mut copied, mut lost) = (0, 0);
        for (index, hash) in (0..).zip(&order.hashes) {
            let block = (order.namespace.clone(), *hash);
            self.blocks.remove(&block);
            match came(&order, index, hash) {
                Came::Copied => copied += 1,
                Came::NotNow => lost += 1,
                Came::NotHere => {
                    lost += 1;
                    if self.failures.len() >= MAX_FAILURES {
                        self.failures.clear();
                    }
                    let failed = self.failures.entry(block).or_default();
                    failed.push((order.node.clone(), now + AVOID_FOR_BLOCK));
                }
            }
        }
        Outcome {
            namespace: order.namespace,
            cause,
            copied,
            failed: lost,
        }
    }

    /// Orders under way in a namespace.
    #[must_use]
    pub fn in_flight(&self, namespace: &NamespaceName) -> usize {
        let orders = self.orders.values();
        orders.filter(|o| o.order.namespace == *namespace).count()
    }

    /// Nothing is under way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.orders.is_empty()
    }

    /// May another order be given at all?
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.orders.len() < MAX_ORDERS
    }
}
