//! Routers: each watches one coordinator and keeps what it is told. The coordinator's half stands for the
//! service's task per watcher: it tells what is there, slice by slice, then what changes, when it is woken; and it
//! cuts off who does not read. They have randomness of their own: a world without routers is otherwise the same.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use kvferry_coordinator::{
    directory::{WatchEnd, WatchError, Watcher},
    watched,
};
use kvferry_proto::pb::{self, watch_message::Message};

use super::{Event, World, view::View};
use crate::{
    promise::Promise,
    queue::{MS, Micros, SECOND},
    random::Random,
};

/// Messages on their way to a router, or not read: what a connection's window takes.
pub(crate) const WINDOW: usize = 4;
/// A watcher that reads nothing for this long is cut off, as the service does it.
const READ_WITHIN: Micros = 10 * SECOND;
/// Slots told of at a time at the start: few, so that much happens in between.
const SLICE: u32 = 2;
/// What a message of changes takes, about.
const MESSAGE_BYTES: usize = 600;
/// How often a router looks whether its coordinator is still the one it speaks to.
const LOOK: Micros = 2 * SECOND;

/// What happens to a router.
#[derive(Debug, Clone, Copy)]
pub(crate) enum RouterEvent {
    /// It asks to watch.
    Watch { attempt: u64 },
    /// Its coordinator's task for it goes on.
    Tell { attempt: u64 },
    /// The front of its stream may have arrived.
    Arrive { attempt: u64 },
    /// It looks whether its coordinator is there.
    Look,
}

/// See the module's page.
#[derive(Debug)]
pub(crate) struct Router {
    pub(crate) coordinator: usize,
    /// What it watches.
    pub(crate) namespace: usize,
    pub(crate) view: View,
    pub(crate) stream: Option<Telling>,
    random: Random,
    /// Counts streams: what belongs to an old one is told apart by it.
    attempt: u64,
    pub(crate) stands_until: Micros,
}

/// A stream: the coordinator's half of it, and the way.
#[derive(Debug)]
pub(crate) struct Telling {
    /// The coordinator's lifetime.
    pub(crate) lifetime: u64,
    /// None once it has ended.
    pub(crate) watcher: Option<Watcher>,
    woken: Arc<Woken>,
    /// It waits to be woken: everything was told.
    pub(crate) waits: bool,
    /// Made, and not sent.
    pub(crate) made: VecDeque<pb::WatchMessage>,
    stuck_since: Option<Micros>,
    /// On the way; None: it ends.
    pub(crate) pipe: VecDeque<(Micros, Option<pb::WatchMessage>)>,
    last: Micros,
    tell_at: Option<Micros>,
}

#[derive(Debug, Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Router {
    pub(super) fn new(seed: u64, number: usize, coordinator: usize, namespace: usize) -> Self {
        Self {
            coordinator,
            namespace,
            view: View::default(),
            stream: None,
            random: Random::of(seed, 500 + number as u64),
            attempt: 0,
            stands_until: 0,
        }
    }
}

impl World {
    pub(super) fn router(&mut self, at: usize, event: RouterEvent) {
        let current = self.routers[at].attempt;
        match event {
            RouterEvent::Watch { attempt } if attempt == current => self.watch(at),
            RouterEvent::Tell { attempt } if attempt == current => {
                if let Some(stream) = &mut self.routers[at].stream {
                    stream.tell_at = None;
                }
                self.tell_router(at);
            }
            RouterEvent::Arrive { attempt } if attempt == current => self.router_hears(at),
            RouterEvent::Look => self.router_looks(at),
            // Of a stream that is no more.
            _ => {}
        }
    }

    /// Its stream is gone; it asks for another one. With what it knows, or anew.
    pub(super) fn router_again(&mut self, at: usize, forgets: bool) {
        let router = &mut self.routers[at];
        router.stream = None;
        router.attempt += 1;
        if forgets {
            router.view = View::default();
        }
        let (attempt, wait) = (router.attempt, router.random.within(10 * MS, 700 * MS));
        let watch = Event::Router(at, RouterEvent::Watch { attempt });
        self.queue.at(self.now + wait, watch);
    }

    /// The request arrives at its coordinator.
    fn watch(&mut self, at: usize) {
        let coordinator = self.routers[at].coordinator;
        let end = self.end_of_router(at);
        let blocked = self.blocked_either(end, self.end_of(coordinator));
        let here = &mut self.coordinators[coordinator];
        let stands = blocked.is_some() || here.paused_until > self.now;
        let epoch = here.epoch;
        let Some(directory) = here.directory.as_mut().filter(|_| !stands) else {
            return self.router_again(at, false);
        };
        let router = &mut self.routers[at];
        let spec = self.conditions.spec(router.namespace);
        let name = &spec.name;
        let after = router.view.at.filter(|_| router.view.synced);
        let watcher = match directory.watch(name, after) {
            Ok(watcher) => watcher,
            Err(WatchError::Restarted { .. } | WatchError::TooOld { .. }) => {
                self.stats.watches_anew += 1;
                return self.router_again(at, true);
            }
            Err(WatchError::NamespaceUnknown(_) | WatchError::Bound(_)) => {
                return self.router_again(at, false);
            }
        };
        let from_start = watcher.scans();
        let started = pb::WatchMessage {
            seq: if from_start { 0 } else { watcher.seq() },
            message: Some(Message::Started(pb::WatchStarted {
                epoch,
                namespace: Some(spec.into()),
                from_start,
            })),
        };
        router.stream = Some(Telling {
            lifetime: epoch,
            watcher: Some(watcher),
            woken: Arc::default(),
            waits: false,
            made: [started].into(),
            stuck_since: None,
            pipe: VecDeque::new(),
            last: self.now,
            tell_at: None,
        });
        self.stats.watches += 1;
        self.stats.watches_resumed += u64::from(!from_start);
        self.tell_router(at);
    }

    /// What its coordinator's task does until it has to wait.
    fn tell_router(&mut self, at: usize) {
        let here = &self.coordinators[self.routers[at].coordinator];
        let paused = here.paused_until;
        let (epoch, now) = (here.epoch, self.now);
        let Some(stream) = &self.routers[at].stream else {
            return;
        };
        if here.directory.is_none() || stream.lifetime != epoch {
            return;
        }
        if paused > now {
            return self.tell_router_at(at, paused);
        }
        let watched = self.routers[at].namespace;
        let hash_len = self.conditions.spec(watched).hash_len;
        let mut slices = 0;
        loop {
            if !self.send_made(at) {
                return;
            }
            let router = &mut self.routers[at];
            let here = &self.coordinators[router.coordinator];
            let (Some(stream), Some(directory)) = (&mut router.stream, &here.directory) else {
                return;
            };
            let Some(watcher) = &mut stream.watcher else {
                return;
            };
            if watcher.scans() {
                slices += 1;
                if slices > 1 {
                    // Others come in between two slices.
                    let wait = router.random.below(2 * MS);
                    return self.tell_router_at(at, now + wait);
                }
                match directory.scan(watcher, SLICE) {
                    Ok(Some(scanned)) => {
                        let changes = watched::messages(&scanned.changes, u64::MAX, hash_len);
                        let changes = changes.into_iter().map(|(_, message)| message);
                        let all = changes.chain(watched::copies(scanned.rows, hash_len));
                        stream.made.extend(all.map(|message| told(0, message)));
                    }
                    Ok(None) => {}
                    Err(end) => return self.end_watch(at, end),
                }
                if !watcher.scans() {
                    let synced = Message::Synced(pb::WatchSynced {});
                    stream.made.push_back(told(watcher.seq(), synced));
                }
                continue;
            }
            let waker = Waker::from(Arc::clone(&stream.woken));
            let mut cx = Context::from_waker(&waker);
            match watcher.poll_changes(&mut cx, MESSAGE_BYTES) {
                Poll::Pending => {
                    stream.waits = true;
                    return;
                }
                Poll::Ready(Ok(changes)) => {
                    let all = watched::messages(&changes, watcher.seq(), hash_len);
                    let all = all.into_iter().map(|(seq, message)| told(seq, message));
                    stream.made.extend(all);
                }
                Poll::Ready(Err(end)) => return self.end_watch(at, end),
            }
        }
    }

    /// Sends what was made. False where the router has to read first.
    fn send_made(&mut self, at: usize) -> bool {
        loop {
            let now = self.now;
            let router = &mut self.routers[at];
            let Some(stream) = &mut router.stream else {
                return false;
            };
            if stream.made.is_empty() {
                return true;
            }
            if stream.pipe.len() >= WINDOW {
                let since = *stream.stuck_since.get_or_insert(now);
                if now < since + READ_WITHIN {
                    self.tell_router_at(at, since + READ_WITHIN);
                } else {
                    self.stats.watchers_stuck += 1;
                    self.send_router(at, None);
                }
                return false;
            }
            stream.stuck_since = None;
            let message = stream.made.pop_front();
            self.send_router(at, message);
        }
    }

    fn end_watch(&mut self, at: usize, end: WatchEnd) {
        match end {
            WatchEnd::TooSlow => self.stats.watchers_behind += 1,
            WatchEnd::Deleted => {
                let router = &self.routers[at];
                let here = &self.coordinators[router.coordinator];
                self.stats.watches_deleted += 1;
                if !here.deletions.contains(&router.namespace) {
                    let detail = "nobody deleted the namespace".to_owned();
                    self.fail(Promise::WatchersAgree, detail);
                }
            }
        }
        self.send_router(at, None);
    }

    /// None: the stream ends, after what is on its way.
    fn send_router(&mut self, at: usize, message: Option<pb::WatchMessage>) {
        let (low, high) = match self.is_quiet() {
            true => (20, 2 * MS),
            false => self.conditions.delay,
        };
        let now = self.now;
        let router = &mut self.routers[at];
        let way = router.random.within(low, high);
        let Some(stream) = &mut router.stream else {
            return;
        };
        if message.is_none() {
            stream.watcher = None;
            stream.made.clear();
        }
        let ready = (now + way).max(stream.last);
        stream.last = ready;
        stream.pipe.push_back((ready, message));
        let attempt = router.attempt;
        let arrive = Event::Router(at, RouterEvent::Arrive { attempt });
        self.queue.at(ready, arrive);
    }

    fn tell_router_at(&mut self, at: usize, when: Micros) {
        let router = &mut self.routers[at];
        let attempt = router.attempt;
        if let Some(stream) = &mut router.stream
            && stream.tell_at.is_none_or(|known| when < known)
        {
            stream.tell_at = Some(when);
            let tell = Event::Router(at, RouterEvent::Tell { attempt });
            self.queue.at(when, tell);
        }
    }

    /// Something changed at a coordinator: the tasks that were woken go on.
    pub(super) fn wake_routers(&mut self, coordinator: usize) {
        for at in 0..self.routers.len() {
            let router = &mut self.routers[at];
            if router.coordinator != coordinator {
                continue;
            }
            let Some(stream) = &mut router.stream else {
                continue;
            };
            if stream.woken.0.swap(false, Ordering::Relaxed) {
                stream.waits = false;
                let wait = router.random.below(500);
                self.tell_router_at(at, self.now + wait);
            }
        }
    }

    /// What is at the front of its stream arrives, if it may, and is read, unless the router stands still.
    fn router_hears(&mut self, at: usize) {
        let router = &self.routers[at];
        let (stands, attempt) = (router.stands_until, router.attempt);
        let front = router.stream.as_ref().and_then(|s| s.pipe.front());
        let Some(ready) = front.map(|(ready, _)| *ready) else {
            return;
        };
        let arrive = Event::Router(at, RouterEvent::Arrive { attempt });
        let cut = self.blocked(self.end_of(router.coordinator), self.end_of_router(at));
        let until = cut.max((stands > self.now).then_some(stands));
        if ready > self.now {
            return;
        }
        if let Some(until) = until {
            return self.queue.at(until, arrive);
        }
        let router = &mut self.routers[at];
        let told = router.stream.as_mut().and_then(|s| s.pipe.pop_front());
        match told {
            Some((_, Some(message))) => {
                self.stats.watch_messages += 1;
                let wrong = router.view.apply(&message).err();
                if let Some(wrong) = wrong {
                    let detail = format!("router {at} is told: {wrong}");
                    self.fail(Promise::WatchersAgree, detail);
                }
                self.queue.at(self.now, arrive);
                // There is room for another one.
                self.tell_router_at(at, self.now);
            }
            Some((_, None)) => self.router_again(at, false),
            None => {}
        }
    }

    /// The service's keep-alive, from the router's side.
    fn router_looks(&mut self, at: usize) {
        self.queue
            .at(self.now + LOOK, Event::Router(at, RouterEvent::Look));
        let router = &self.routers[at];
        let here = &self.coordinators[router.coordinator];
        let lost = router
            .stream
            .as_ref()
            .is_some_and(|s| here.directory.is_none() || s.lifetime != here.epoch);
        if lost {
            self.router_again(at, false);
        }
    }

    /// Routers' ends come after the coordinators'.
    fn end_of_router(&self, at: usize) -> usize {
        self.nodes.len() + self.coordinators.len() + at
    }
}

fn told(seq: u64, message: Message) -> pb::WatchMessage {
    pb::WatchMessage {
        seq,
        message: Some(message),
    }
}
