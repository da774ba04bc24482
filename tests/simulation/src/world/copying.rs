//! Copies that operators want: the coordinator's half. The real planner and its rounds, and a shell that does what the
//! hub's does; and operators, who say again what is wanted to coordinators that lost everything.

use std::{collections::BTreeMap, time::Duration};

use kvferry_coordinator::{
    copy_order,
    directory::SessionId,
    replication::{OrderId, Planner, Rounds, Sight, Verdict, Wants},
};
use kvferry_proto::{
    BlockHash, NamespaceName, NodeId,
    pb::{self, coordinator_message::Message as Answer, replicated},
};

use super::{Event, World, network::Down};
use crate::{
    invariants::copies_come,
    names::{MODEL, number},
    queue::{MS, Micros, SECOND},
    random::Random,
};

/// How often a coordinator looks for what is lacking.
pub(super) const COPY_TICK: Micros = 100 * MS;
/// Slices looked at in one tick.
const SLICES: u32 = 8;
/// How often operators look whether what they want is known.
const OPERATORS: Micros = 3 * SECOND;
/// Longest that a hot block is wanted, or a drain goes on: beyond the world's end.
const LONG: Duration = Duration::from_secs(86_400);

/// One coordinator's half.
#[derive(Debug, Default)]
pub(crate) struct Copying {
    pub(crate) wants: Wants,
    pub(crate) planner: Planner,
    rounds: Rounds,
    /// The simulation's own account: blocks of orders that have not ended.
    pub(crate) under_way: BTreeMap<OrderId, UnderWay>,
    /// And copies that were not made, though their nodes had tried: when they are not ordered there before.
    pub(crate) not_made: BTreeMap<(NodeId, NamespaceName, BlockHash), Duration>,
    operators_at: Micros,
}

/// An order that has not ended.
#[derive(Debug)]
pub(crate) struct UnderWay {
    session: SessionId,
    pub(crate) node: NodeId,
    pub(crate) namespace: NamespaceName,
    pub(crate) hashes: Vec<BlockHash>,
    until: Duration,
}

/// What operators want.
#[derive(Debug)]
pub(crate) struct Operators {
    pub(crate) random: Random,
    /// Nodes that are to be drained.
    pub(crate) drains: Vec<usize>,
    /// Blocks that are hot, and of how many copies.
    pub(crate) hot: Option<(Vec<u64>, u32)>,
}

impl Operators {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            random: Random::of(seed, 14),
            drains: Vec::new(),
            hot: None,
        }
    }
}

impl World {
    /// Looks for what lacks copies, and orders some.
    pub(super) fn copy_tick(&mut self, coordinator: usize) {
        let next = self.now + COPY_TICK;
        self.queue.at(next, Event::CopyTick(coordinator));
        let here = &self.coordinators[coordinator];
        if here.directory.is_none() || here.paused_until > self.now {
            return;
        }
        self.operate(coordinator);
        self.wake_routers(coordinator);
        let now = self.now;
        let here = &mut self.coordinators[coordinator];
        let local = here.local(now);
        let (copying, Some(directory)) = (&mut here.copying, &here.directory) else {
            return;
        };
        if copying.wants.is_empty() && copying.planner.is_idle() {
            return;
        }
        for outcome in copying.planner.tick(local) {
            copying.wants.note(&outcome);
        }
        copying.under_way.retain(|_, order| local < order.until);
        copying.not_made.retain(|_, until| local < *until);
        copying
            .wants
            .tick(local, |node| directory.is_draining(node));
        if copying.rounds.is_over() {
            copying.rounds.begin(local, directory, &copying.wants);
        }
        for _ in 0..SLICES {
            if !self.look_for_lacking(coordinator) {
                break;
            }
        }
    }

    /// As the hub does it. False where it is to be looked at again, or the round is over.
    fn look_for_lacking(&mut self, coordinator: usize) -> bool {
        let now = self.now;
        let draw = self.operators.random.next();
        let here = &mut self.coordinators[coordinator];
        let local = here.local(now);
        let (copying, Some(directory)) = (&mut here.copying, &here.directory) else {
            return false;
        };
        let Some(seen) = copying.rounds.look(directory, &copying.wants) else {
            return false;
        };
        let (mut waits, mut orders) = (false, Vec::new());
        if let (Some(namespace), false) = (&seen.namespace, seen.lacking.is_empty()) {
            let sight = Sight {
                namespace,
                block_bytes: seen.block_bytes,
                cause: &seen.cause,
                lacking: &seen.lacking,
                targets: &directory.copy_targets(namespace),
            };
            let plan = copying.planner.plan(local, draw, sight);
            waits = plan.waits;
            for order in plan.orders {
                let message = copy_order(directory, &order, draw);
                orders.push((order, message));
            }
        }
        for (order, message) in orders {
            let broken = copies_come::ordered(self, coordinator, &order, &seen.cause);
            self.check(broken);
            self.stats.copies_ordered += order.hashes.len() as u64;
            let under_way = &mut self.coordinators[coordinator].copying.under_way;
            let known = UnderWay {
                session: order.session,
                node: order.node,
                namespace: order.namespace,
                hashes: order.hashes,
                until: local + order.timeout,
            };
            under_way.insert(order.id, known);
            let said = Down::Said(Answer::Replicate(Box::new(message)));
            self.send_down(order.session.0, said);
        }
        if waits {
            return false;
        }
        let copying = &mut self.coordinators[coordinator].copying;
        copying.rounds.go_on(&mut copying.wants, &seen);
        !copying.rounds.is_over()
    }

    /// An agent says what came of an order.
    pub(super) fn replicated(
        &mut self,
        coordinator: usize,
        session: SessionId,
        message: &pb::Replicated,
    ) {
        let verdict = match message.verdict() {
            replicated::Verdict::Done => Verdict::Done,
            replicated::Verdict::Full => Verdict::Full,
            replicated::Verdict::Refused => Verdict::Refused,
            replicated::Verdict::Busy | replicated::Verdict::Unspecified => Verdict::Busy,
        };
        let (order, now) = (OrderId(message.order), self.now);
        let here = &mut self.coordinators[coordinator];
        let local = here.local(now);
        let (copying, Some(directory)) = (&mut here.copying, &here.directory) else {
            return;
        };
        let ended = copying.planner.done(
            local,
            session,
            order,
            (verdict, &message.failed),
            |order, hash| directory.is_held_by(&order.node, &order.namespace, hash),
        );
        if let Some(outcome) = ended {
            self.stats.copies_made += outcome.copied as u64;
            copying.wants.note(&outcome);
            if let Some(known) = copying.under_way.remove(&order)
                && verdict == Verdict::Done
            {
                copies_come::answered(self, coordinator, &known, &message.failed);
            }
        }
    }

    /// A stream is no more.
    pub(super) fn copying_ends(&mut self, coordinator: usize, session: SessionId) {
        let now = self.now;
        let here = &mut self.coordinators[coordinator];
        let local = here.local(now);
        let copying = &mut here.copying;
        for outcome in copying.planner.session_ended(local, session) {
            copying.wants.note(&outcome);
        }
        copying
            .under_way
            .retain(|_, order| order.session != session);
    }

    /// Operators look whether a coordinator knows what they want.
    fn operate(&mut self, coordinator: usize) {
        let now = self.now;
        let here = &mut self.coordinators[coordinator];
        if now < here.copying.operators_at {
            return;
        }
        here.copying.operators_at = now + OPERATORS;
        let local = here.local(now);
        let Some(directory) = &mut here.directory else {
            return;
        };
        let name = &self.conditions.spec(MODEL).name;
        if directory.namespace_spec(name).is_none() {
            return;
        }
        let wants = &mut here.copying.wants;
        for tenant in 0..self.conditions.tenants {
            let name = &self.conditions.spec(tenant).name;
            let wanted = wants.status(name).min_copies == self.wishes.min_copies;
            if !wanted && directory.namespace_spec(name).is_some() {
                wants.set_copies(name, self.wishes.min_copies);
            }
        }
        let status = wants.status(name);
        if let Some((hot, copies)) = &self.operators.hot
            && status.hot == 0
        {
            let names = &self.conditions.names;
            let hashes = hot.iter().map(|hash| names.hash(number(MODEL, *hash)));
            let hashes: Vec<_> = hashes.collect();
            // A handful is far below the bound.
            let _ = wants.want(name, &hashes, *copies, local + LONG);
        }
        for (at, node) in self.nodes.iter().enumerate() {
            let wanted = self.operators.drains.contains(&at);
            let known = wants.drain_status(local, &node.name).is_some();
            // One that is not there now is told of later.
            if wanted && !known && directory.drain_node(&node.name, true).is_ok() {
                wants.drain(&node.name, local + LONG);
            }
            if !wanted && known {
                wants.undo_drain(&node.name);
                let _ = directory.drain_node(&node.name, false);
            }
        }
    }
}
