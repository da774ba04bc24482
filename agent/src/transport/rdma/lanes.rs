//! The queue pairs of a link, and which READ goes to which.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Instant,
};

use kvferry_ibverbs::{WorkError, WorkStatus};

use super::{
    config::MAX_ATTEMPTS,
    fault::{Cause, Loss, ReadFault},
    lane::Lane,
    op::{Item, ReadOp},
    poller::Ended,
};

/// What must be done after the lock is given back.
#[derive(Default)]
pub(super) struct After {
    /// Reads of which one READ is over.
    pub(super) over: Vec<(Arc<ReadOp>, Result<(), ReadFault>)>,
    /// Reads whose memory a device keeps for ever.
    pub(super) never: Vec<Arc<ReadOp>>,
    /// READs whose key the owner refused.
    pub(super) refused: Vec<Item>,
    /// Queue pairs with nothing on them any more: to be dropped.
    pub(super) gone: Vec<Lane>,
    /// The link's keeper has something to do.
    pub(super) wake: bool,
}

/// A link's READs and queue pairs.
#[derive(Default)]
pub(super) struct Lanes {
    /// Of tokens.
    link: u32,
    pub(super) list: Vec<Lane>,
    queue: VecDeque<Item>,
    flying: HashMap<u32, (u64, Item)>,
    next: u32,
    /// Why the link is lost.
    pub(super) lost: Option<Loss>,
    /// Received in READs that are over.
    pub(super) received: u64,
}

impl Lanes {
    pub(super) fn new(link: u32, list: Vec<Lane>) -> Self {
        Self {
            link,
            list,
            ..Self::default()
        }
    }

    pub(super) fn open(&self) -> usize {
        self.list.iter().filter(|lane| lane.is_open()).count()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.flying.is_empty()
    }

    /// More READs.
    pub(super) fn enqueue(&mut self, items: impl IntoIterator<Item = Item>, after: &mut After) {
        self.queue.extend(items);
        self.pump(after);
    }

    /// READs are over, however they ended.
    pub(super) fn ended(&mut self, ended: Vec<Ended>, after: &mut After) {
        for (number, result) in ended {
            let Some((lane, item)) = self.flying.remove(&number) else {
                continue;
            };
            let lane = self.list.iter_mut().find(|known| known.id == lane);
            if let Some(lane) = lane {
                lane.over(&item);
                if let Err(WorkError::Failed(status)) = result
                    && status != WorkStatus::Flushed
                {
                    let path = (lane.device.index, lane.remote);
                    let cause = Cause::from(status);
                    lane.close(cause.clone());
                    self.close_path(path, &cause);
                }
            }
            match result {
                Ok(()) => {
                    self.received += item.len;
                    after.over.push((item.op, Ok(())));
                }
                Err(WorkError::Unsettled) => after.never.push(item.op),
                Err(error) => self.again(item, error, after),
            }
        }
        self.drop_drained(after);
        self.pump(after);
    }

    /// What one queue pair could not reach, no other on the same path will.
    fn close_path(&mut self, (device, remote): (usize, u32), cause: &Cause) {
        if matches!(cause, Cause::Path(_)) {
            let same = |lane: &&mut Lane| lane.device.index == device && lane.remote == remote;
            for lane in self.list.iter_mut().filter(same) {
                lane.close(cause.clone());
            }
        }
    }

    /// A READ that failed is done again, unless nobody wants it or it has been tried enough.
    fn again(&mut self, mut item: Item, error: WorkError, after: &mut After) {
        if item.op.is_cancelled() {
            return after.over.push((item.op, Ok(())));
        }
        if let WorkError::Failed(status) = error {
            item.attempts += u8::from(status != WorkStatus::Flushed);
            if status == WorkStatus::RemoteAccess && item.attempts < MAX_ATTEMPTS {
                return after.refused.push(item);
            }
        }
        match item.attempts < MAX_ATTEMPTS {
            true => self.queue.push_back(item),
            false => after.over.push((item.op, Err(error.into()))),
        }
    }

    /// Closes queue pairs, all that `which` says.
    pub(super) fn close(
        &mut self,
        cause: &Cause,
        which: impl Fn(&Lane) -> bool,
        after: &mut After,
    ) {
        for lane in self.list.iter_mut().filter(|lane| which(lane)) {
            lane.close(cause.clone());
        }
        self.drop_drained(after);
        self.pump(after);
    }

    /// Closes the queue pairs that still have READs of this read.
    pub(super) fn close_under(&mut self, op: &Arc<ReadOp>, after: &mut After) {
        let lanes: Vec<u64> = self
            .flying
            .values()
            .filter(|(_, item)| Arc::ptr_eq(&item.op, op))
            .map(|(lane, _)| *lane)
            .collect();
        self.close(&Cause::Ours, |lane| lanes.contains(&lane.id), after);
    }

    /// Takes READs that were not posted yet out of the queue. True where others are with a device.
    pub(super) fn withdraw(&mut self, op: &Arc<ReadOp>, after: &mut After) -> bool {
        let mut kept = VecDeque::with_capacity(self.queue.len());
        for item in self.queue.drain(..) {
            match Arc::ptr_eq(&item.op, op) {
                true => after.over.push((item.op, Ok(()))),
                false => kept.push_back(item),
            }
        }
        self.queue = kept;
        self.flying
            .values()
            .any(|(_, item)| Arc::ptr_eq(&item.op, op))
    }

    /// Nothing will complete any more: what waits ends now, what is with a device when it comes back.
    pub(super) fn lose(&mut self, why: Loss, after: &mut After) {
        let why = self.lost.get_or_insert(why).clone();
        for item in self.queue.drain(..) {
            after.over.push((item.op, Err(why.clone().into())));
        }
        for lane in &mut self.list {
            lane.close(Cause::Ours);
        }
        self.drop_drained(after);
        after.wake = true;
    }

    /// Queue pairs that a device did not drain by then. Dropping them ends their READs one way or the other.
    pub(super) fn overdue(&mut self, before: Instant) -> Vec<Lane> {
        let late = |lane: &mut Lane| lane.closed_before(before);
        self.list.extract_if(.., late).collect()
    }

    /// Reads with READs that will never come back.
    pub(super) fn abandon(&mut self) -> Vec<Arc<ReadOp>> {
        let flying = self.flying.drain();
        flying.map(|(_, (_, item))| item.op).collect()
    }

    fn drop_drained(&mut self, after: &mut After) {
        let mut path = None;
        for lane in self.list.extract_if(.., |lane| lane.is_drained()) {
            if let Some(Cause::Path(why)) = lane.cause() {
                path = Some(why.clone());
            }
            after.gone.push(lane);
            after.wake = true;
        }
        // With another queue pair, or one that only a cancel closed, there is a way yet.
        if let Some(why) = path
            && self.lost.is_none()
            && self
                .list
                .iter()
                .all(|lane| matches!(lane.cause(), Some(Cause::Path(_))))
        {
            self.lose(Loss::Path(why), after);
        }
    }

    /// Hands READs to queue pairs while there is room.
    fn pump(&mut self, after: &mut After) {
        if let Some(why) = self.lost.clone() {
            for item in self.queue.drain(..) {
                after.over.push((item.op, Err(why.clone().into())));
            }
            return;
        }
        while let Some(item) = self.queue.pop_front() {
            if item.op.is_cancelled() {
                after.over.push((item.op, Ok(())));
                continue;
            }
            let own = item.op.lane();
            let own = own.filter(|own| {
                let mut list = self.list.iter();
                list.any(|lane| lane.id == *own && lane.could_carry(&item))
            });
            let fitting = self.list.iter_mut().filter(|l| l.could_carry(&item));
            let best = fitting
                .filter(|lane| own.is_none_or(|own| lane.id == own) && lane.has_room(&item))
                .min_by_key(|lane| lane.rank(&item));
            if let Some(lane) = best {
                let number = self.next;
                self.next = self.next.wrapping_add(1);
                item.op.goes_to(lane.id);
                if lane.chain(self.link, number, &item) {
                    self.flying.insert(number, (lane.id, item));
                } else {
                    after.over.push((item.op, Err(ReadFault::Outside)));
                }
            } else if self.open() == 0 || self.list.iter().any(|l| l.could_carry(&item)) {
                // An open queue pair will come back to it; without one, it waits for the keeper.
                self.queue.push_front(item);
                break;
            } else {
                after.over.push((item.op, Err(ReadFault::NoDevice)));
            }
        }
        self.ring(after);
    }

    /// One doorbell per queue pair.
    fn ring(&mut self, after: &mut After) {
        for lane in &mut self.list {
            for number in lane.ring().into_iter().rev() {
                after.wake = true;
                if let Some((_, item)) = self.flying.remove(&number) {
                    lane.took_back(&item);
                    self.queue.push_front(item);
                }
            }
        }
    }
}
