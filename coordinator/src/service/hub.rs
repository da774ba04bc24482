//! The directory and the open sessions, under one lock: effects reach a session's queue in the
//! order in which the directory made them.
//!
//! The lock is for structure: who is there, which regions there are. Look-ups, and the slots that
//! sessions tell of, hold it to read only, and the latter for a slice at a time; whoever holds it to
//! write does so for microseconds.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use kvferry_proto::pb::{self, coordinator_message::Message};
use kvferry_security::{Access, Gate, ticket::PublicKey};
use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tonic::{Extensions, Status};

use super::{
    copying::Copying, outbound::Outbound, parse::MAX_REGIONS_PER_MESSAGE, status, told::message,
};
use crate::{
    directory::{
        Begun, Counts, Directory, DirectoryConfig, Effect, Event, Gone, Rest, SessionId, Sizes,
        Totals,
    },
    metrics::{Ended, Metrics},
};

/// Slots taken in or swept out before a writer that waits is let in: some hundred microseconds.
const SLICE: usize = 1_024;
/// What went is nobody's hurry: after a millisecond of sweeping comes one of rest (a timer's two),
/// so that look-ups find a core free even where there are few. Without it the 99th percentile of
/// Locate is a turn of the system's scheduler, some four milliseconds.
const SWEEPS_PER_REST: u32 = 4;
const SWEEP_REST: Duration = Duration::from_millis(1);
/// Messages that may wait for one agent. One event makes at most `ROOM` of them, and an operator's
/// forced delete about as many; an agent this far behind does not read.
const QUEUE: usize = 4 * ROOM;
/// Room the queue must have before the next message of an agent is taken in: a refusal for each
/// region of a message, an answer, and a hint.
pub(super) const ROOM: usize = MAX_REGIONS_PER_MESSAGE + 3;

/// What the shell needs beside the directory.
#[derive(Debug, Clone)]
pub(crate) struct HubConfig {
    pub(crate) directory: DirectoryConfig,
    pub(crate) heartbeat_interval_ms: u32,
    pub(crate) hide_after_ms: u32,
    pub(crate) max_sessions: usize,
    /// What tickets are signed with, as agents are told.
    pub(crate) ticket_keys: Vec<PublicKey>,
}

/// Shared by every call.
#[derive(Debug)]
pub(crate) struct Hub {
    config: HubConfig,
    start: Instant,
    next_session: AtomicU64,
    state: RwLock<State>,
    /// Locked before the state.
    copying: Copying,
    /// Something may have to be swept out of the directory.
    swept: Notify,
    closing: watch::Sender<bool>,
    metrics: Arc<Metrics>,
    gate: Gate,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) directory: Directory,
    sessions: HashMap<SessionId, Handle>,
    metrics: Arc<Metrics>,
}

/// The near end of a session's stream.
#[derive(Debug)]
struct Handle {
    messages: mpsc::Sender<pb::CoordinatorMessage>,
    close: oneshot::Sender<Status>,
    stop: Arc<Notify>,
}

/// What a session's task holds.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) messages: mpsc::Sender<pb::CoordinatorMessage>,
    /// Tells the task that the session was ended from elsewhere.
    pub(super) stop: Arc<Notify>,
    pub(super) closing: watch::Receiver<bool>,
}

impl Hub {
    pub(crate) fn new(config: HubConfig) -> Self {
        let metrics = Arc::<Metrics>::default();
        let directory = Directory::new(config.directory);
        Self {
            config,
            start: Instant::now(),
            next_session: AtomicU64::new(1),
            state: RwLock::new(State {
                directory,
                sessions: HashMap::new(),
                metrics: Arc::clone(&metrics),
            }),
            copying: Copying::default(),
            swept: Notify::new(),
            closing: watch::Sender::new(false),
            metrics,
            gate: Gate::open(),
        }
    }

    /// Asks this gate who may do what, instead of letting everybody do everything.
    pub(crate) fn behind(mut self, gate: Gate) -> Self {
        self.gate = gate;
        self
    }

    /// Who may come in.
    pub(crate) fn gate(&self) -> &Gate {
        &self.gate
    }

    /// What the caller of a request may do.
    pub(super) fn access(&self, extensions: &Extensions) -> Access {
        self.gate.access(extensions)
    }

    /// Time as the directory counts it.
    pub(super) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    pub(super) fn copying(&self) -> &Copying {
        &self.copying
    }

    /// Directory and sessions, to read.
    pub(super) fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read()
    }

    /// What is counted.
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// What there is in all.
    pub(crate) fn totals(&self) -> Arc<Totals> {
        self.read().totals()
    }

    /// What became of claims, locations and watchers.
    pub(crate) fn counts(&self) -> Arc<Counts> {
        self.read().counts()
    }

    /// How full the directory's tables are.
    pub(crate) fn sizes(&self) -> Sizes {
        self.read().sizes()
    }

    /// The most sessions at a time.
    pub(crate) fn max_sessions(&self) -> usize {
        self.config.max_sessions
    }

    /// Reads the directory.
    pub(super) fn read(&self) -> impl std::ops::Deref<Target = Directory> {
        RwLockReadGuard::map(self.state.read(), |state| &state.directory)
    }

    /// Changes the directory and carries the effects out.
    pub(super) fn update<T>(&self, change: impl FnOnce(&mut Directory) -> (T, Vec<Effect>)) -> T {
        let mut state = self.state.write();
        let (outcome, effects) = change(&mut state.directory);
        for effect in effects {
            state.carry_out(&self.config, effect);
        }
        if state.directory.sweep_is_due() || state.directory.reap_is_due() {
            self.swept.notify_one();
        }
        outcome
    }

    /// Hands an event to the directory and carries the effects out.
    pub(super) fn handle(&self, event: Event) {
        let state = self.state.read();
        // Two events may read the time in one order and be taken in in the other; the directory
        // keeps the later time.
        match state.directory.begin_shared(self.now(), event) {
            Ok(Begun { effects, rest }) => {
                let cut_off = state.carry_out_shared(&self.config, effects);
                self.go_on(state, rest, cut_off, true);
            }
            Err(event) => {
                drop(state);
                self.handle_alone(*event);
            }
        }
    }

    /// An event that changes structure.
    fn handle_alone(&self, event: Event) {
        let mut state = self.state.write();
        // The time is read under the lock: it must not go back from one event to the next.
        let Begun { effects, rest } = state.directory.begin(self.start.elapsed(), event);
        for effect in effects {
            state.carry_out(&self.config, effect);
        }
        if state.directory.sweep_is_due() {
            self.swept.notify_one();
        }
        if rest.is_some() {
            // Look-ups come in from here on, other events do not.
            let state = RwLockWriteGuard::downgrade(state);
            self.go_on(state, rest, Vec::new(), false);
        }
    }

    /// Takes in the slots a message names, a slice at a time. `between` says whether others may
    /// change structure between two slices.
    fn go_on(
        &self,
        mut state: RwLockReadGuard<'_, State>,
        rest: Option<Rest>,
        mut cut_off: Vec<SessionId>,
        between: bool,
    ) {
        let mut finish = None;
        if let Some(mut rest) = rest {
            loop {
                match state.directory.go_on(&mut rest, SLICE) {
                    Gone::On if between => RwLockReadGuard::bump(&mut state),
                    Gone::On => {}
                    Gone::Through(effects) => {
                        cut_off.extend(state.carry_out_shared(&self.config, effects));
                        break;
                    }
                    Gone::ToFinish => {
                        finish = Some(rest);
                        break;
                    }
                }
            }
        }
        drop(state);
        if let Some(rest) = finish {
            self.update(|directory| ((), directory.finish(rest)));
            self.swept.notify_one();
        }
        if !cut_off.is_empty() {
            let mut state = self.state.write();
            for session in cut_off {
                state.cut_off(session);
            }
        }
    }

    /// Hides and purges the silent.
    pub(crate) fn tick(&self) {
        let due = self.state.read().directory.tick_is_due(self.now());
        if due {
            self.handle_alone(Event::Tick);
        }
        self.tidy();
    }

    /// Forgets locations whose time is over. Between two slices others come in.
    fn tidy(&self) {
        let mut state = self.state.read();
        if state.directory.tidy_is_due(self.now()) {
            while state.directory.tidy(self.now(), SLICE) {
                RwLockReadGuard::bump(&mut state);
            }
        }
    }

    /// Sweeps out what went whenever something did. Never returns.
    pub(crate) async fn sweep(&self) {
        loop {
            self.swept.notified().await;
            // Whoever asks at once where else the blocks are comes first.
            tokio::time::sleep(SWEEP_REST).await;
            let mut slices = 0;
            while self.sweep_slice() {
                slices += 1;
                if slices % SWEEPS_PER_REST == 0 {
                    tokio::time::sleep(SWEEP_REST).await;
                } else {
                    // Calls that wait for this thread come first.
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    /// False when nothing is left.
    fn sweep_slice(&self) -> bool {
        let state = self.state.read();
        let more = state.directory.sweep(SLICE as u32);
        let reap = state.directory.reap_is_due();
        drop(state);
        // Dropped here, where nobody waits for it.
        drop(reap.then(|| self.state.write().directory.reap()));
        more
    }

    /// Opens a session.
    pub(super) fn open(&self) -> Result<(Session, Outbound<pb::CoordinatorMessage>), Status> {
        let closing = self.closing.subscribe();
        if *closing.borrow() {
            return Err(status::shutting_down());
        }
        let id = SessionId(self.next_session.fetch_add(1, Ordering::Relaxed));
        let (messages, queue) = mpsc::channel(QUEUE);
        let (close, closed) = oneshot::channel();
        let stop = Arc::new(Notify::new());
        let handle = Handle {
            messages: messages.clone(),
            close,
            stop: stop.clone(),
        };
        let mut state = self.state.write();
        if state.sessions.len() >= self.config.max_sessions {
            return Err(status::too_many_sessions(self.config.max_sessions));
        }
        state.sessions.insert(id, handle);
        let session = Session {
            id,
            messages,
            stop,
            closing,
        };
        Ok((session, Outbound::new(queue, closed)))
    }

    /// Ends a session from its own task: with an error, or well.
    pub(super) fn end(&self, session: SessionId, error: Option<Status>) {
        let mut state = self.state.write();
        if state.close(session, error) {
            self.metrics.ended(Ended::Lost);
        }
        let ended = Event::SessionEnded { session };
        state.directory.begin(self.start.elapsed(), ended);
        drop(state);
        self.copying_ends(session);
    }

    /// Ends the session of an agent whose rights have changed, and forgets its node: when it comes back
    /// all it holds is looked at anew.
    pub(super) fn revoke(&self, session: SessionId, status: Status) {
        let mut state = self.state.write();
        if state.close(session, Some(status)) {
            self.metrics.ended(Ended::Revoked);
        }
        let now = self.start.elapsed();
        let goodbye = state.directory.begin(now, Event::Goodbye { session });
        for effect in goodbye.effects {
            state.carry_out(&self.config, effect);
        }
        if state.directory.sweep_is_due() {
            self.swept.notify_one();
        }
        drop(state);
        self.copying_ends(session);
    }

    /// Tells every session that the coordinator goes away; no new one is opened.
    pub(crate) fn close(&self) {
        self.closing.send_replace(true);
    }

    /// True once the coordinator goes away.
    pub(super) fn closing(&self) -> watch::Receiver<bool> {
        self.closing.subscribe()
    }

    /// How many sessions are open, those that have not said hello included.
    pub(crate) fn sessions(&self) -> usize {
        self.state.read().sessions.len()
    }
}

impl State {
    /// Carries out what needs the sessions only to read. Sessions to be cut off come back.
    fn carry_out_shared(&self, config: &HubConfig, effects: Vec<Effect>) -> Vec<SessionId> {
        let mut full = Vec::new();
        for effect in effects {
            self.metrics.effect(&effect);
            if let Some((session, message)) = message(config, effect)
                && !self.try_send(session, message)
            {
                full.push(session);
            }
        }
        full
    }

    fn carry_out(&mut self, config: &HubConfig, effect: Effect) {
        self.metrics.effect(&effect);
        match effect {
            Effect::Close { session, cause } => {
                tracing::info!(session = session.0, %cause, "session closed");
                self.close(session, status::close(&cause));
            }
            Effect::NodeHidden { node } => tracing::warn!(%node, "node hidden: silent"),
            Effect::NodeShown { node } => tracing::info!(%node, "node shown again"),
            Effect::NodeRemoved {
                node,
                incarnation,
                cause,
            } => tracing::info!(%node, %incarnation, ?cause, "node removed"),
            effect => {
                if let Some((session, message)) = message(config, effect)
                    && !self.try_send(session, message)
                {
                    self.cut_off(session);
                }
            }
        }
    }

    /// Queues a message; false where the queue is full.
    pub(super) fn try_send(&self, session: SessionId, message: Message) -> bool {
        let Some(handle) = self.sessions.get(&session) else {
            return true;
        };
        let message = pb::CoordinatorMessage {
            message: Some(message),
        };
        let sent = handle.messages.try_send(message);
        !matches!(sent, Err(mpsc::error::TrySendError::Full(_)))
    }

    /// Ends the session of an agent whose queue is full.
    fn cut_off(&mut self, session: SessionId) {
        tracing::warn!(
            session = session.0,
            "session cut off: the agent does not read"
        );
        if self.close(session, Some(status::slow_agent())) {
            self.metrics.ended(Ended::Slow);
        }
    }

    /// False where it was closed already.
    fn close(&mut self, session: SessionId, error: Option<Status>) -> bool {
        let Some(handle) = self.sessions.remove(&session) else {
            return false;
        };
        if let Some(error) = error {
            // The far end may have gone already.
            handle.close.send(error).ok();
        }
        handle.stop.notify_one();
        true
    }
}

#[cfg(test)]
pub(super) mod tests {
    use kvferry_proto::{Reason, reason_of};
    use tokio_stream::StreamExt;

    use super::*;
    use crate::directory::Bounds;

    pub(in crate::service) fn hub() -> Hub {
        Hub::new(HubConfig {
            directory: DirectoryConfig {
                epoch: 1,
                hide_after: Duration::from_secs(3),
                purge_after: Duration::from_secs(30),
                bounds: Bounds::default(),
            },
            heartbeat_interval_ms: 1_000,
            hide_after_ms: 3_000,
            max_sessions: 1,
            ticket_keys: Vec::new(),
        })
    }

    fn say(hub: &Hub, session: SessionId, messages: usize) {
        let ack = |seq: u64| Effect::Ack { session, seq };
        hub.update(|_| ((), (1..=messages as u64).map(ack).collect()));
    }

    #[tokio::test]
    async fn an_agent_that_does_not_read_is_cut_off() {
        let hub = hub();
        let (session, mut outbound) = hub.open().unwrap();
        say(&hub, session.id, QUEUE);
        assert_eq!(hub.sessions(), 1);
        say(&hub, session.id, 1);
        assert_eq!(hub.sessions(), 0, "its place is free at once");
        session.stop.notified().await;
        let status = outbound.next().await.unwrap().unwrap_err();
        assert_eq!(reason_of(&status), Some(Reason::BoundReached));
        assert!(outbound.next().await.is_none());
    }

    #[tokio::test]
    async fn a_good_end_sends_what_is_queued_first() {
        let hub = hub();
        let (session, mut outbound) = hub.open().unwrap();
        say(&hub, session.id, 3);
        hub.end(session.id, None);
        drop(session);
        let mut heard = 0;
        while let Some(message) = outbound.next().await {
            message.unwrap();
            heard += 1;
        }
        assert_eq!(heard, 3);
    }

    #[test]
    fn no_session_is_opened_while_closing() {
        let hub = hub();
        hub.close();
        let status = hub.open().map(drop).unwrap_err();
        assert_eq!(reason_of(&status), Some(Reason::ShuttingDown));
    }
}
