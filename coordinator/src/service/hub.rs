//! The directory and the open sessions, under one lock: effects reach a session's queue in the
//! order in which the directory made them.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use kvferry_proto::pb::{self, coordinator_message::Message};
use parking_lot::{RwLock, RwLockReadGuard};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tonic::Status;

use super::{outbound::Outbound, parse::MAX_REGIONS_PER_MESSAGE, status};
use crate::directory::{Directory, DirectoryConfig, Effect, Event, SessionId};

/// Messages that may wait for one agent. One event makes at most `ROOM` of them, and an operator's
/// forced delete about as many; an agent this far behind does not read.
const QUEUE: usize = 4 * ROOM;
/// Room the queue must have before the next message of an agent is taken in: a refusal for each
/// region of a message, and an answer.
pub(super) const ROOM: usize = MAX_REGIONS_PER_MESSAGE + 2;

/// What the shell needs beside the directory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HubConfig {
    pub(crate) directory: DirectoryConfig,
    pub(crate) heartbeat_interval_ms: u32,
    pub(crate) hide_after_ms: u32,
    pub(crate) max_sessions: usize,
}

/// Shared by every call.
#[derive(Debug)]
pub(crate) struct Hub {
    config: HubConfig,
    start: Instant,
    next_session: AtomicU64,
    state: RwLock<State>,
    closing: watch::Sender<bool>,
}

#[derive(Debug)]
struct State {
    directory: Directory,
    sessions: HashMap<SessionId, Handle>,
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
        Self {
            config,
            start: Instant::now(),
            next_session: AtomicU64::new(1),
            state: RwLock::new(State {
                directory: Directory::new(config.directory),
                sessions: HashMap::new(),
            }),
            closing: watch::Sender::new(false),
        }
    }

    /// Time as the directory counts it.
    pub(super) fn now(&self) -> Duration {
        self.start.elapsed()
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
        outcome
    }

    /// Hands an event to the directory and carries the effects out.
    pub(super) fn handle(&self, event: Event) {
        // The time is read under the lock: it must not go back from one event to the next.
        self.update(|directory| ((), directory.handle(self.start.elapsed(), event)));
    }

    /// Hides and purges the silent.
    pub(crate) fn tick(&self) {
        self.handle(Event::Tick);
    }

    /// Opens a session.
    pub(super) fn open(&self) -> Result<(Session, Outbound), Status> {
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
        state.close(session, error);
        let ended = Event::SessionEnded { session };
        state.directory.handle(self.start.elapsed(), ended);
    }

    /// Tells every session that the coordinator goes away; no new one is opened.
    pub(crate) fn close(&self) {
        self.closing.send_replace(true);
    }

    /// How many sessions are open, those that have not said hello included.
    pub(crate) fn sessions(&self) -> usize {
        self.state.read().sessions.len()
    }
}

impl State {
    fn carry_out(&mut self, config: &HubConfig, effect: Effect) {
        match effect {
            Effect::Welcome {
                session,
                expect_delta,
                resync,
            } => {
                let welcome = pb::Welcome {
                    epoch: config.directory.epoch,
                    heartbeat_interval_ms: config.heartbeat_interval_ms,
                    hide_after_ms: config.hide_after_ms,
                    expect_delta,
                    resync,
                };
                self.send(session, Message::Welcome(welcome));
            }
            Effect::Ack { session, seq } => self.send(session, Message::Ack(pb::Ack { seq })),
            Effect::ResyncRequest {
                session,
                expected,
                got,
            } => {
                tracing::warn!(session = session.0, expected, got, "gap in deltas, resync");
                let request = pb::ResyncRequest {
                    expected_seq: expected,
                    got_seq: got,
                };
                self.send(session, Message::Resync(request));
            }
            Effect::HeartbeatAck { session, number } => {
                self.send(session, Message::HeartbeatAck(pb::HeartbeatAck { number }));
            }
            Effect::RegionRefused {
                session,
                region,
                refusal,
            } => {
                tracing::warn!(session = session.0, %region, %refusal, "region refused");
                let refused = pb::RegionRefused {
                    region: region.0,
                    reason: status::region(&refusal).into(),
                    message: refusal.to_string(),
                };
                self.send(session, Message::RegionRefused(refused));
            }
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
        }
    }

    /// Queues a message; an agent whose queue is full is cut off.
    fn send(&mut self, session: SessionId, message: Message) {
        let Some(handle) = self.sessions.get(&session) else {
            return;
        };
        let message = pb::CoordinatorMessage {
            message: Some(message),
        };
        if let Err(mpsc::error::TrySendError::Full(_)) = handle.messages.try_send(message) {
            tracing::warn!(
                session = session.0,
                "session cut off: the agent does not read"
            );
            self.close(session, Some(status::slow_agent()));
        }
    }

    fn close(&mut self, session: SessionId, error: Option<Status>) {
        if let Some(handle) = self.sessions.remove(&session) {
            if let Some(error) = error {
                // The far end may have gone already.
                handle.close.send(error).ok();
            }
            handle.stop.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use kvferry_proto::{Reason, reason_of};
    use tokio_stream::StreamExt;

    use super::*;
    use crate::directory::Bounds;

    fn hub() -> Hub {
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
