//! One agent's session with one coordinator, as a pure machine: events in, commands out.
//!
//! Call order: feed [`SessionMachine::handle`] with everything that happens, then take commands from
//! [`SessionMachine::poll_command`] until there are none, then sleep until
//! [`SessionMachine::poll_timeout`] or the next event. A timer that fires is `Event::Tick`.

use std::{collections::VecDeque, time::Duration};

use crate::sabotage::{self, Bug};

/// Deltas under way without acknowledgement: enough to fill a long path, few enough to resend.
const MAX_UNACKNOWLEDGED: u64 = 64;
/// Sessions give a coordinator this many of its own heartbeat intervals before they think it gone.
const SILENT_INTERVALS: u32 = 4;

/// Durations the machine goes by.
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// How long a coordinator may take to answer a hello.
    pub welcome_timeout: Duration,
    /// First pause after a failure; doubles with each.
    pub backoff_min: Duration,
    /// Longest pause.
    pub backoff_max: Duration,
    /// Heartbeat interval until a coordinator has named its own.
    pub heartbeat: Duration,
    /// Seeds the jitter of pauses, so that a fleet does not reconnect in step.
    pub seed: u64,
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self {
            welcome_timeout: Duration::from_secs(5),
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(5),
            heartbeat: Duration::from_secs(1),
            seed: 0,
        }
    }
}

/// What happened. Times are durations since the agent's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Time passed, or the log has something new.
    Tick {
        /// The number the log's next new delta will have, counting the open one if it holds anything.
        next_delta: u64,
    },
    /// The stream that `Command::Connect` asked for is open.
    Connected,
    /// It could not be opened, or it ended.
    Disconnected,
    /// The coordinator answered the hello.
    Welcomed {
        /// Its lifetime.
        epoch: u64,
        /// How often it wants to hear from us.
        heartbeat: Duration,
        /// The next delta it expects; None: it wants an inventory.
        expect_delta: Option<u64>,
    },
    /// Everything up to and including this delta is in its directory.
    Acknowledged(u64),
    /// It saw a gap and wants an inventory.
    ResyncRequested,
    /// It answered a heartbeat.
    HeartbeatAnswered,
    /// `Command::SendInventory` was carried out; it contains all deltas up to this one.
    InventorySent(u64),
    /// `Command::SendDelta` found that the log does not reach back that far.
    DeltaForgotten,
    /// `Command::SendDelta` found nothing under that number, which was to be the next: what was recorded had been
    /// taken back (a region that came and went).
    DeltaTakenBack(u64),
    /// The coordinator says that it goes away.
    Closing,
    /// The coordinator says that a later incarnation of this node lives.
    Fenced,
    /// The agent stops.
    Stop,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Open a stream.
    Connect,
    /// Say hello on it. `epoch` is the coordinator lifetime last spoken with, 0 for none.
    SendHello {
        /// See above.
        epoch: u64,
    },
    /// Send the delta of that number from the log.
    SendDelta(u64),
    /// Send a full inventory.
    SendInventory,
    /// Send a heartbeat.
    SendHeartbeat {
        /// Strictly growing.
        number: u64,
        /// The delta that comes next, after those sent before this command; 0 while an inventory is due.
        next_delta: u64,
    },
    /// Say goodbye, then close the stream.
    SendGoodbye,
    /// Close the stream.
    Disconnect,
    /// Give up for good: a later incarnation of this node took over.
    GiveUp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting { until: Duration },
    Connecting,
    Greeting { until: Duration },
    Live { resyncing: bool },
    Ended,
}

/// See the module's page.
#[derive(Debug)]
pub struct SessionMachine {
    config: SessionConfig,
    state: State,
    commands: VecDeque<Command>,
    epoch: u64,
    heartbeat: Duration,
    next_heartbeat: Duration,
    heartbeats: u64,
    last_heard: Duration,
    failures: u32,
    random: u64,
    /// The next delta to send.
    cursor: u64,
    acknowledged: u64,
    next_delta: u64,
    was_welcomed: bool,
    resyncs: u64,
}

impl SessionMachine {
    /// A session that wants to connect at once.
    #[must_use]
    pub fn new(config: SessionConfig) -> Self {
        Self {
            heartbeat: config.heartbeat,
            random: config.seed | 1,
            config,
            state: State::Waiting {
                until: Duration::ZERO,
            },
            commands: VecDeque::new(),
            epoch: 0,
            next_heartbeat: Duration::ZERO,
            heartbeats: 0,
            last_heard: Duration::ZERO,
            failures: 0,
            cursor: 1,
            acknowledged: 0,
            next_delta: 1,
            was_welcomed: false,
            resyncs: 0,
        }
    }

    /// The last delta the coordinator has confirmed; inventories count as the deltas they contain.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Are deltas on their way whose acknowledgement has not come?
    #[must_use]
    pub fn awaits_acknowledgement(&self) -> bool {
        self.is_live() && self.acknowledged + 1 < self.cursor
    }

    /// Is the session established and not in the middle of an inventory?
    #[must_use]
    pub fn is_live(&self) -> bool {
        matches!(self.state, State::Live { resyncing: false })
    }

    /// How many inventories were sent.
    #[must_use]
    pub fn resyncs(&self) -> u64 {
        self.resyncs
    }

    /// The next thing to do.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// When to call [`SessionMachine::handle`] with a tick at the latest; None: never again.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        match self.state {
            State::Waiting { until } | State::Greeting { until } => Some(until),
            State::Live { .. } => Some(self.next_heartbeat.min(self.silence_ends())),
            // The shell's own connect bound ends this one.
            State::Connecting | State::Ended => None,
        }
    }

    /// Takes what happened.
    pub fn handle(&mut self, now: Duration, event: Event) {
        match event {
            Event::Tick { next_delta } => self.tick(now, next_delta),
            Event::Stop => self.stop(),
            // After the end there is nothing to give up, and no way back.
            Event::Fenced if self.state == State::Ended => {}
            Event::Fenced => self.fenced(now),
            Event::Disconnected => self.disconnected(now),
            Event::Connected if self.state == State::Connecting => {
                self.state = State::Greeting {
                    until: now + self.config.welcome_timeout,
                };
                self.commands
                    .push_back(Command::SendHello { epoch: self.epoch });
            }
            Event::Welcomed {
                epoch,
                heartbeat,
                expect_delta,
            } if matches!(self.state, State::Greeting { .. }) => {
                self.welcomed(now, epoch, heartbeat, expect_delta);
            }
            // Late words of a stream that is no more.
            _ if !matches!(self.state, State::Live { .. }) => {}
            Event::Acknowledged(seq) => {
                self.last_heard = now;
                // More than was sent cannot be confirmed.
                self.acknowledged = self.acknowledged.max(seq.min(self.cursor - 1));
                self.send_deltas();
            }
            Event::HeartbeatAnswered => self.last_heard = now,
            Event::ResyncRequested => {
                self.last_heard = now;
                self.resync();
            }
            Event::DeltaForgotten => self.resync(),
            Event::DeltaTakenBack(seq) => self.taken_back(seq),
            Event::InventorySent(seq) => {
                self.state = State::Live { resyncing: false };
                self.cursor = seq + 1;
                self.send_deltas();
            }
            Event::Closing => {
                self.commands.push_back(Command::Disconnect);
                self.pause(now);
            }
            Event::Connected | Event::Welcomed { .. } => {}
        }
    }

    fn tick(&mut self, now: Duration, next_delta: u64) {
        self.next_delta = self.next_delta.max(next_delta);
        match self.state {
            State::Waiting { until } if now >= until => {
                self.state = State::Connecting;
                self.commands.push_back(Command::Connect);
            }
            State::Greeting { until } if now >= until => {
                self.commands.push_back(Command::Disconnect);
                self.pause(now);
            }
            State::Live { .. } if now >= self.silence_ends() => {
                self.commands.push_back(Command::Disconnect);
                self.pause(now);
            }
            State::Live { .. } => {
                if now >= self.next_heartbeat {
                    self.heartbeats += 1;
                    self.next_heartbeat = now + self.heartbeat;
                    self.commands.push_back(Command::SendHeartbeat {
                        number: self.heartbeats,
                        next_delta: if self.is_live() { self.cursor } else { 0 },
                    });
                }
                self.send_deltas();
            }
            State::Waiting { .. } | State::Connecting | State::Greeting { .. } | State::Ended => {}
        }
    }

    fn welcomed(
        &mut self,
        now: Duration,
        epoch: u64,
        heartbeat: Duration,
        expect_delta: Option<u64>,
    ) {
        self.epoch = epoch;
        self.heartbeat = heartbeat.max(Duration::from_millis(10));
        self.next_heartbeat = now + self.heartbeat;
        self.last_heard = now;
        self.failures = 0;
        self.was_welcomed = true;
        self.state = State::Live { resyncing: false };
        match expect_delta {
            // One that was never recorded is nonsense, and nothing would be sent until it was.
            Some(expected) if (1..=self.next_delta).contains(&expected) => {
                self.cursor = expected;
                self.acknowledged = expected - 1;
                self.send_deltas();
            }
            _ => {
                // It knows nothing of us (any more), or only in part: what it confirmed is void, also
                // where it is the same lifetime, which may have forgotten a node that was silent.
                self.acknowledged = 0;
                self.resync();
            }
        }
    }

    fn resync(&mut self) {
        if self.state == (State::Live { resyncing: false }) {
            self.state = State::Live { resyncing: true };
            self.resyncs += 1;
            self.commands
                .retain(|command| !matches!(command, Command::SendDelta(_)));
            // Those deltas are not sent now: nobody is to miss them.
            self.limit_heartbeats(0);
            if sabotage::is(Bug::ResyncDropped) {
                self.state = State::Live { resyncing: false };
                self.cursor = self.next_delta;
                return;
            }
            self.commands.push_back(Command::SendInventory);
        }
    }

    /// There is no such delta, for now: it is sent when there is, and until then not said to have been.
    fn taken_back(&mut self, seq: u64) {
        self.cursor = self.cursor.min(seq);
        self.next_delta = self.next_delta.min(seq);
        self.limit_heartbeats(seq);
    }

    /// Heartbeats that were not sent yet speak of no delta from there on.
    fn limit_heartbeats(&mut self, most: u64) {
        for command in &mut self.commands {
            if let Command::SendHeartbeat { next_delta, .. } = command {
                *next_delta = most.min(*next_delta);
            }
        }
    }

    fn send_deltas(&mut self) {
        while self.is_live()
            && self.cursor < self.next_delta
            && (self.cursor <= self.acknowledged + MAX_UNACKNOWLEDGED
                || sabotage::is(Bug::WindowIgnored))
        {
            self.commands.push_back(Command::SendDelta(self.cursor));
            if sabotage::is(Bug::AcknowledgedTooMuch) {
                self.acknowledged = self.cursor;
            }
            self.cursor += 1;
        }
    }

    fn fenced(&mut self, now: Duration) {
        if self.was_welcomed {
            // We were the node's voice and somebody later is now: there is no way back.
            self.commands.push_back(Command::GiveUp);
            self.state = State::Ended;
        } else {
            // A newer incarnation is remembered, perhaps of a process that died with a clock that
            // ran ahead. It will be purged if it is dead; until then we keep asking.
            self.commands.push_back(Command::Disconnect);
            self.pause(now);
        }
    }

    fn disconnected(&mut self, now: Duration) {
        if !matches!(self.state, State::Ended | State::Waiting { .. }) {
            self.pause(now);
        }
    }

    fn stop(&mut self) {
        match self.state {
            State::Live { .. } => self.commands.push_back(Command::SendGoodbye),
            State::Connecting | State::Greeting { .. } => {
                self.commands.push_back(Command::Disconnect);
            }
            State::Waiting { .. } | State::Ended => {}
        }
        self.state = State::Ended;
    }

    fn silence_ends(&self) -> Duration {
        self.last_heard + self.heartbeat * SILENT_INTERVALS
    }

    /// Waits before the next try: a random time up to a bound that doubles with each failure.
    fn pause(&mut self, now: Duration) {
        let factor = 1u32 << self.failures.min(16);
        let bound = (self.config.backoff_min * factor).min(self.config.backoff_max);
        self.failures = self.failures.saturating_add(1);
        // xorshift64: jitter needs no better.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let share = (self.random % 512) as u32 + 512;
        self.state = State::Waiting {
            until: now + bound * share / 1024,
        };
    }
}
