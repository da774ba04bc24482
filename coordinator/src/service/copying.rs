//! What of the planner of copies needs the directory and the sessions.

use std::time::Duration;

use kvferry_proto::{
    Labels, NamespaceName, NodeId, PackedHashes,
    pb::{self, coordinator_message::Message, replicated},
};
use parking_lot::Mutex;

use super::{hub::Hub, locate};
use crate::{
    directory::{Directory, LocateMode, LocateQuery, SessionId},
    metrics::Ordered,
    replication::{
        CopiesStatus, DrainStatus, Order, OrderId, Outcome, Planner, Rounds, Sight, Verdict, Wants,
    },
};

/// How often what lacks copies is looked for, while anything is asked for.
const TICK: Duration = Duration::from_millis(50);
/// Slices looked at in one tick: some milliseconds of it, so that look-ups find the core free.
const SLICES_PER_TICK: u32 = 16;
/// Owners named for each block of an order: the first, and two to fail over to.
const CANDIDATES: usize = 3;

/// What is asked for, what is under way, and where the looking is. Locked before the directory.
#[derive(Debug, Default)]
pub(super) struct Copying(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    wants: Wants,
    planner: Planner,
    rounds: Rounds,
}

impl Hub {
    /// Has copies made as long as some are asked for. Never returns.
    pub(crate) async fn replicate(&self) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if !self.copying_begins() {
                continue;
            }
            for _ in 0..SLICES_PER_TICK {
                if !self.look_for_lacking() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
    }

    /// False where nothing is asked for, nor under way.
    fn copying_begins(&self) -> bool {
        let inner = &mut *self.copying().0.lock();
        let now = self.now();
        if inner.wants.is_empty() && inner.planner.is_idle() {
            self.metrics().wanted(&inner.wants.sums(now));
            return false;
        }
        for outcome in inner.planner.tick(now) {
            self.order_ended(&mut inner.wants, Ordered::TimedOut, &outcome);
        }
        let directory = self.read();
        inner.wants.tick(now, |node| directory.is_draining(node));
        self.metrics().wanted(&inner.wants.sums(now));
        if inner.rounds.is_over() {
            inner.rounds.begin(now, &directory, &inner.wants);
        }
        true
    }

    /// Looks at one slice, and orders what it lacks. False where it is to be looked at again, or the
    /// round is over.
    fn look_for_lacking(&self) -> bool {
        let inner = &mut *self.copying().0.lock();
        let state = self.state();
        let directory = &state.directory;
        let Some(seen) = inner.rounds.look(directory, &inner.wants) else {
            return false;
        };
        if let (Some(namespace), false) = (&seen.namespace, seen.lacking.is_empty()) {
            let now = self.now();
            let sight = Sight {
                namespace,
                block_bytes: seen.block_bytes,
                cause: &seen.cause,
                lacking: &seen.lacking,
                targets: &directory.copy_targets(namespace),
            };
            let draw = now.as_nanos() as u64;
            let plan = inner.planner.plan(now, draw, sight);
            self.metrics().ordered(plan.orders.len());
            for order in plan.orders {
                let message = Message::Replicate(Box::new(self::order(directory, &order, draw)));
                let sent = state.try_send(order.session, message);
                if !sent {
                    // It does not read: it has enough to do, and has copied nothing.
                    let busy = (Verdict::Busy, &[][..]);
                    let (session, id) = (order.session, order.id);
                    let ended = inner.planner.done(now, session, id, busy, |_, _| false);
                    if let Some(outcome) = ended {
                        self.order_ended(&mut inner.wants, Ordered::Busy, &outcome);
                    }
                }
            }
            if plan.waits {
                return false;
            }
        }
        drop(state);
        inner.rounds.go_on(&mut inner.wants, &seen);
        !inner.rounds.is_over()
    }

    /// An agent says what came of an order.
    pub(super) fn replicated(&self, session: SessionId, message: &pb::Replicated) {
        let verdict = match message.verdict() {
            replicated::Verdict::Done => Verdict::Done,
            replicated::Verdict::Full => Verdict::Full,
            replicated::Verdict::Refused => Verdict::Refused,
            replicated::Verdict::Busy | replicated::Verdict::Unspecified => Verdict::Busy,
        };
        let order = OrderId(message.order);
        let inner = &mut *self.copying().0.lock();
        let directory = self.read();
        let ended = inner.planner.done(
            self.now(),
            session,
            order,
            (verdict, &message.failed),
            |order, hash| directory.is_held_by(&order.node, &order.namespace, hash),
        );
        drop(directory);
        if let Some(outcome) = ended {
            self.order_ended(&mut inner.wants, verdict.into(), &outcome);
        }
    }

    /// A stream is no more: what it was told to do is not done.
    pub(super) fn copying_ends(&self, session: SessionId) {
        let inner = &mut *self.copying().0.lock();
        for outcome in inner.planner.session_ended(self.now(), session) {
            self.order_ended(&mut inner.wants, Ordered::SessionLost, &outcome);
        }
    }

    fn order_ended(&self, wants: &mut Wants, why: Ordered, outcome: &Outcome) {
        self.metrics().order_ended(why, outcome);
        wants.note(outcome);
    }

    /// Changes what is asked for.
    pub(super) fn wants<T>(&self, change: impl FnOnce(Duration, &mut Wants) -> T) -> T {
        change(self.now(), &mut self.copying().0.lock().wants)
    }

    /// How far a namespace's copies are, and how many orders are under way for it.
    pub(super) fn copies_status(&self, name: &NamespaceName) -> (CopiesStatus, usize) {
        let inner = self.copying().0.lock();
        (inner.wants.status(name), inner.planner.in_flight(name))
    }

    /// How far a drain is.
    pub(super) fn drain_status(&self, node: &NodeId) -> Option<DrainStatus> {
        let now = self.now();
        self.copying().0.lock().wants.drain_status(now, node)
    }
}

/// What the agent is told.
#[must_use]
pub fn order(directory: &Directory, order: &Order, draw: u64) -> pb::Replicate {
    let spec = directory.namespace_spec(&order.namespace);
    let hashes = spec.and_then(|spec| PackedHashes::pack(spec.hash_len, &order.hashes).ok());
    let from = hashes.as_ref().and_then(|hashes| {
        let query = LocateQuery {
            namespace: &order.namespace,
            hashes,
            mode: LocateMode::Set,
            max_candidates: CANDIDATES,
            host_id: &order.host_id,
            prefer: &Labels::default(),
            exclude: Some(&order.node),
            draw,
            locations: false,
        };
        directory.locate(&query).ok()
    });
    pb::Replicate {
        order: order.id.0,
        namespace: spec.map(Into::into),
        hashes: hashes.map(Into::into),
        from: from.map(locate::response),
        timeout_ms: order.timeout.as_millis() as u32,
    }
}
