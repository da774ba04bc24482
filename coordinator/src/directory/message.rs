//! A session's message in steps: what changes structure needs the directory for itself, what changes
//! slots shares it with look-ups, a slice at a time.

use std::time::Duration;

use kvferry_proto::{NodeId, RegionId};

use super::{
    CloseCause, Delta, Directory, Effect, Event, InventoryPart, SealedSlots, SessionId,
    SurplusCopy,
    inventory::Receiving,
    node::{Node, Standing, SyncState},
};

/// What is left of a message: its slots, which [`Directory::go_on`] takes in, slice by slice.
#[derive(Debug)]
pub struct Rest {
    session: SessionId,
    node: u32,
    message: Message,
    /// The change to go on with, and how many of its removed and of its added slots are done.
    change: usize,
    removed: usize,
    added: usize,
    /// Copies the agent is to be told of in the end.
    surplus: Vec<SurplusCopy>,
}

#[derive(Debug)]
enum Message {
    Delta(Delta),
    Inventory(InventoryPart),
}

impl Message {
    fn change(&self, number: usize) -> Option<(RegionId, &[u32], &SealedSlots)> {
        match self {
            Self::Delta(delta) => {
                let change = delta.changes.get(number)?;
                Some((change.region, &change.removed_slots, &change.added))
            }
            Self::Inventory(part) => {
                let (region, sealed) = part.sealed.get(number)?;
                Some((*region, &[], sealed))
            }
        }
    }
}

/// What comes after the first step of an event.
#[derive(Debug)]
pub struct Begun {
    /// To be carried out, before what comes later.
    pub effects: Vec<Effect>,
    /// To be gone on with.
    pub rest: Option<Rest>,
}

impl Begun {
    fn done(effects: Vec<Effect>) -> Self {
        Self {
            effects,
            rest: None,
        }
    }
}

/// How far a message is after a slice.
#[derive(Debug)]
pub enum Gone {
    /// Go on.
    On,
    /// All of it is in the directory.
    Through(Vec<Effect>),
    /// All slots are in the directory; [`Directory::finish`] ends the inventory.
    ToFinish,
}

impl Rest {
    fn new(session: SessionId, node: u32, message: Message) -> Self {
        Self {
            session,
            node,
            message,
            change: 0,
            removed: 0,
            added: 0,
            surplus: Vec::new(),
        }
    }

    /// What the agent is told of its copies, after all else.
    fn hint(&mut self) -> Option<Effect> {
        let copies = std::mem::take(&mut self.surplus);
        (!copies.is_empty()).then_some(Effect::Surplus {
            session: self.session,
            copies,
        })
    }
}

impl Directory {
    /// Takes in all of an event but the slots it names.
    ///
    /// Between this and the end of [`go_on`](Self::go_on) nothing else may change the directory
    /// when the event declared or removed regions. Look-ups may come between.
    pub fn begin(&mut self, now: Duration, event: Event) -> Begun {
        match event {
            Event::Hello { session, hello } => Begun::done(self.hello(now, session, hello)),
            Event::Delta { session, delta } => self.begin_delta(now, session, delta),
            Event::Heartbeat {
                session,
                number,
                next_delta,
            } => {
                let mut effects = Vec::new();
                if let Some(handle) = self.heard(now, session, &mut effects)
                    && let Some(node) = self.nodes.get(handle)
                {
                    node.was_read(now, 0);
                    effects.push(Effect::HeartbeatAck { session, number });
                    effects.extend(node.missed(session, next_delta));
                }
                Begun::done(effects)
            }
            Event::Reads { session, reads } => {
                let mut effects = Vec::new();
                if self.heard(now, session, &mut effects).is_some() {
                    self.take_reads(now, &reads);
                }
                Begun::done(effects)
            }
            Event::Inventory { session, part } => self.begin_inventory(now, session, part),
            Event::Goodbye { session } => Begun::done(self.goodbye(session)),
            Event::SessionEnded { session } => {
                self.end_session(session);
                Begun::done(Vec::new())
            }
            Event::Tick => Begun::done(self.tick(now)),
        }
    }

    fn begin_delta(&mut self, now: Duration, session: SessionId, delta: Delta) -> Begun {
        let mut effects = Vec::new();
        let Some(node) = self.heard(now, session, &mut effects) else {
            return Begun::done(effects);
        };
        if let Some(answer) = self.out_of_turn(node, session, &delta) {
            effects.extend(answer);
            return Begun::done(effects);
        }
        if let Err(cause) = self.check_delta(node, &delta) {
            effects.push(self.fail(session, cause));
            return Begun::done(effects);
        }
        self.change_regions(node, session, &delta, &mut effects);
        Begun {
            effects,
            rest: Some(Rest::new(session, node, Message::Delta(delta))),
        }
    }

    fn begin_inventory(&mut self, now: Duration, session: SessionId, part: InventoryPart) -> Begun {
        let mut effects = Vec::new();
        let Some(node) = self.heard(now, session, &mut effects) else {
            return Begun::done(effects);
        };
        if let Err(cause) = self.check_part(node, &part) {
            effects.push(self.fail(session, cause));
            return Begun::done(effects);
        }
        self.name_regions(node, session, &part, &mut effects);
        Begun {
            effects,
            rest: Some(Rest::new(session, node, Message::Inventory(part))),
        }
    }

    /// As [`begin`](Self::begin), for events that change nothing but slots and what is known of
    /// their own session: those are nearly all there are.
    ///
    /// # Errors
    /// The event comes back where it needs [`begin`](Self::begin). Nothing was changed.
    pub fn begin_shared(&self, now: Duration, event: Event) -> Result<Begun, Box<Event>> {
        let (Event::Delta { session, .. }
        | Event::Heartbeat { session, .. }
        | Event::Reads { session, .. }
        | Event::Inventory { session, .. }) = &event
        else {
            return Err(event.into());
        };
        let session = *session;
        let Some(&handle) = self.sessions.get(&session) else {
            return Ok(Begun::done(Vec::new()));
        };
        // A hidden node is to be shown again.
        let Some(node) = self.nodes.get(handle).filter(|node| !node.hidden) else {
            return Err(event.into());
        };
        match event {
            Event::Delta { delta, .. } => {
                let structure =
                    !delta.regions_added.is_empty() || !delta.regions_removed.is_empty();
                if structure || self.check_delta(handle, &delta).is_err() {
                    return Err(Event::Delta { session, delta }.into());
                }
                touch(node, now);
                Ok(match self.out_of_turn(handle, session, &delta) {
                    Some(answer) => Begun::done(answer),
                    None => Begun {
                        effects: Vec::new(),
                        rest: Some(Rest::new(session, handle, Message::Delta(delta))),
                    },
                })
            }
            Event::Inventory { part, .. } => {
                let structure = part.first || !part.regions.is_empty();
                if structure || self.check_part(handle, &part).is_err() {
                    return Err(Event::Inventory { session, part }.into());
                }
                touch(node, now);
                Ok(Begun {
                    effects: Vec::new(),
                    rest: Some(Rest::new(session, handle, Message::Inventory(part))),
                })
            }
            Event::Heartbeat {
                number, next_delta, ..
            } => {
                touch(node, now);
                node.was_read(now, 0);
                let ack = Effect::HeartbeatAck { session, number };
                let missed = node.missed(session, next_delta);
                Ok(Begun::done([ack].into_iter().chain(missed).collect()))
            }
            Event::Reads { reads, .. } => {
                touch(node, now);
                self.take_reads(now, &reads);
                Ok(Begun::done(Vec::new()))
            }
            other => Err(other.into()),
        }
    }

    fn take_reads(&self, now: Duration, reads: &[(NodeId, u64)]) {
        for (name, bytes) in reads {
            let handle = self.names.get(name);
            if let Some(node) = handle.and_then(|handle| self.nodes.get(*handle)) {
                node.was_read(now, *bytes);
            }
        }
    }

    /// Takes in at most `slots` slots of a message. A session that was closed, fenced or replaced in
    /// the meantime changes nothing any more.
    pub fn go_on(&self, rest: &mut Rest, slots: usize) -> Gone {
        if self.sessions.get(&rest.session) != Some(&rest.node) {
            return Gone::Through(Vec::new());
        }
        let Some(node) = self.nodes.get(rest.node) else {
            return Gone::Through(Vec::new());
        };
        let mut progress = node.progress.lock();
        let mut receiving = match (&rest.message, &mut progress.sync) {
            (Message::Delta(_), SyncState::Live) => None,
            (Message::Inventory(part), SyncState::Receiving(receiving))
                if receiving.seq == part.seq =>
            {
                Some(receiving)
            }
            _ => return Gone::Through(Vec::new()),
        };
        let mut left = slots;
        while let Some((region, removed, added)) = rest.message.change(rest.change) {
            if left == 0 {
                return Gone::On;
            }
            let to_remove = removed.len().min(rest.removed + left);
            let removed = &removed[rest.removed.min(to_remove)..to_remove];
            left -= removed.len();
            rest.removed = to_remove;
            let to_add = added.slots.len().min(rest.added + left);
            let range = rest.added..to_add;
            left -= range.len();
            rest.added = to_add;
            if let Some(Standing::Accepted(handle)) = node.regions.get(&region) {
                self.catalog.clear(*handle, removed.iter().copied());
                if let Some(receiving) = &mut receiving {
                    receiving.name(region, &added.slots[range.clone()]);
                }
                self.catalog.seal(*handle, added, range.clone());
                self.fulfil(rest.node, *handle, added, range.clone());
                let surplus = &mut rest.surplus;
                self.surplus(rest.node, *handle, added, range, surplus);
            }
            let all_removed = rest
                .message
                .change(rest.change)
                .is_none_or(|(_, removed, added)| {
                    rest.removed == removed.len() && rest.added == added.slots.len()
                });
            if all_removed {
                rest.change += 1;
                (rest.removed, rest.added) = (0, 0);
            }
        }
        match &rest.message {
            Message::Delta(delta) => {
                progress.applied = delta.seq;
                let ack = Effect::Ack {
                    session: rest.session,
                    seq: delta.seq,
                };
                Gone::Through([ack].into_iter().chain(rest.hint()).collect())
            }
            Message::Inventory(part) if part.last => Gone::ToFinish,
            Message::Inventory(_) => Gone::Through(rest.hint().into_iter().collect()),
        }
    }

    /// Ends an inventory whose slots are all in the directory.
    pub fn finish(&mut self, mut rest: Rest) -> Vec<Effect> {
        let current = self.sessions.get(&rest.session) == Some(&rest.node);
        let hint = rest.hint();
        match rest.message {
            Message::Inventory(part) if current => {
                let mut effects = self.finish_inventory(rest.node, rest.session, part.seq);
                effects.extend(hint);
                effects
            }
            _ => Vec::new(),
        }
    }

    /// All steps of one event, for those who have the directory to themselves.
    pub(super) fn all_steps(&mut self, now: Duration, event: Event) -> Vec<Effect> {
        let Begun { mut effects, rest } = self.begin(now, event);
        if let Some(mut rest) = rest {
            match self.go_on(&mut rest, usize::MAX) {
                Gone::On => {}
                Gone::Through(more) => effects.extend(more),
                Gone::ToFinish => effects.extend(self.finish(rest)),
            }
        }
        effects
    }
}

fn touch(node: &Node, now: Duration) {
    let mut progress = node.progress.lock();
    progress.last_seen = progress.last_seen.max(now);
}

/// A message that ends its session.
pub(super) type Checked = Result<(), CloseCause>;

impl Receiving {
    fn name(&mut self, region: RegionId, slots: &[u32]) {
        let named = self.named.entry(region).or_default();
        slots.iter().for_each(|slot| named.insert(*slot));
    }
}
