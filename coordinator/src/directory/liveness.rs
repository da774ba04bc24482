//! Who speaks for a node, and whether it still does.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::Mutex;

use super::{
    BoundReached, CloseCause, Directory, Effect, Hello, ProtocolError, RemovalCause, SessionId,
    load::Load,
    node::{Node, Penalty, Progress, SyncState},
};
use crate::sabotage::{self, Bug};

impl Directory {
    pub(super) fn hello(&mut self, now: Duration, session: SessionId, hello: Hello) -> Vec<Effect> {
        if let Some(handle) = self.end_session(session) {
            // Nothing of the message is applied, and a session that breaks the protocol ends.
            self.touch(now, handle, &mut Vec::new());
            return vec![close(session, ProtocolError::SecondHello)];
        }
        let Some(&handle) = self.names.get(&hello.node) else {
            return self.admit(now, session, hello, false);
        };
        let Some(node) = self.nodes.get(handle) else {
            return Vec::new();
        };
        let (known, draining) = (node.incarnation, node.draining);
        if hello.incarnation < known && !sabotage::is(Bug::FencingSkipped) {
            let cause = CloseCause::OldIncarnation {
                node: hello.node,
                known,
                got: hello.incarnation,
            };
            return vec![close(session, cause)];
        }
        if hello.incarnation == known {
            return self.reconnect(now, session, handle, hello);
        }
        let mut effects = Vec::new();
        if let Some(old) = node.session {
            let cause = CloseCause::Fenced {
                node: hello.node.clone(),
                incarnation: known,
                by: hello.incarnation,
            };
            effects.push(close(old, cause));
        }
        effects.extend(self.remove_node(handle, RemovalCause::Fenced));
        effects.extend(self.admit(now, session, hello, draining));
        effects
    }

    /// A node that is not known, or not in this incarnation.
    fn admit(
        &mut self,
        now: Duration,
        session: SessionId,
        hello: Hello,
        draining: bool,
    ) -> Vec<Effect> {
        if self.nodes.len() >= self.config.bounds.nodes as usize {
            return vec![close(session, BoundReached::nodes(&self.config.bounds))];
        }
        let name = hello.node.clone();
        let mut node = Node {
            name: hello.node.clone(),
            incarnation: hello.incarnation,
            addresses: Arc::default(),
            labels: hello.labels.clone(),
            session: None,
            hidden: false,
            draining,
            regions: BTreeMap::new(),
            progress: Mutex::new(Progress {
                last_seen: now,
                applied: 0,
                sync: SyncState::Live,
                load: Load::default(),
            }),
            penalty: Penalty::default(),
        };
        let welcome = welcome(self.config.epoch, &mut node, session, hello);
        let handle = self.nodes.insert(node);
        self.names.insert(name, handle);
        self.sessions.insert(session, handle);
        self.tell_node(handle);
        vec![welcome]
    }

    /// The same incarnation on a new stream: the newer stream goes on, what was said stays.
    fn reconnect(
        &mut self,
        now: Duration,
        session: SessionId,
        handle: u32,
        hello: Hello,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.touch(now, handle, &mut effects);
        let Some(node) = self.nodes.get_mut(handle) else {
            return effects;
        };
        if let Some(old) = node.session.take() {
            self.sessions.remove(&old);
            let cause = CloseCause::Replaced {
                node: node.name.clone(),
                incarnation: node.incarnation,
            };
            effects.push(close(old, cause));
        }
        effects.push(welcome(self.config.epoch, node, session, hello));
        self.sessions.insert(session, handle);
        // The node may be reached elsewhere now.
        self.write_rows(handle);
        self.tell_node(handle);
        effects
    }

    /// The node of an open session, seen just now.
    pub(super) fn heard(
        &mut self,
        now: Duration,
        session: SessionId,
        effects: &mut Vec<Effect>,
    ) -> Option<u32> {
        let handle = self.sessions.get(&session).copied()?;
        self.touch(now, handle, effects);
        Some(handle)
    }

    /// A session that broke the protocol or a bound.
    pub(super) fn fail(&mut self, session: SessionId, cause: CloseCause) -> Effect {
        self.end_session(session);
        close(session, cause)
    }

    pub(super) fn goodbye(&mut self, session: SessionId) -> Vec<Effect> {
        let Some(handle) = self.end_session(session) else {
            return Vec::new();
        };
        let mut effects = vec![close(session, CloseCause::Goodbye)];
        effects.extend(self.remove_node(handle, RemovalCause::Goodbye));
        effects
    }

    /// Forgets a session; the node stays, for it may come back on another stream.
    pub(super) fn end_session(&mut self, session: SessionId) -> Option<u32> {
        let handle = self.sessions.remove(&session)?;
        if let Some(node) = self.nodes.get_mut(handle) {
            node.session = None;
        }
        Some(handle)
    }

    /// Would a tick do anything? Asked first, because it needs the directory only to read.
    #[must_use]
    pub fn tick_is_due(&self, now: Duration) -> bool {
        if self.leases.lock().expiry_is_due(now) {
            return true;
        }
        self.names
            .values()
            .filter_map(|handle| self.nodes.get(*handle))
            .any(|node| {
                let silent = now.saturating_sub(node.progress.lock().last_seen);
                silent >= self.config.purge_after
                    || (silent >= self.config.hide_after && !node.hidden)
            })
            || self.catalog.idle_log_is_due(now)
    }

    pub(super) fn tick(&mut self, now: Duration) -> Vec<Effect> {
        self.leases.get_mut().expire(now);
        let mut effects = Vec::new();
        let (mut purge, mut hidden) = (Vec::new(), Vec::new());
        self.catalog.drop_idle_logs(now);
        for handle in self.names.values() {
            let Some(node) = self.nodes.get_mut(*handle) else {
                continue;
            };
            let silent = now.saturating_sub(node.progress.get_mut().last_seen);
            if silent >= self.config.purge_after && !sabotage::is(Bug::SilentNeverPurged) {
                purge.push((*handle, silent));
            } else if silent >= self.config.hide_after && !node.hidden {
                node.hidden = true;
                hidden.push(*handle);
                self.catalog.totals.hidden.add(1);
                effects.push(Effect::NodeHidden {
                    node: node.name.clone(),
                });
            }
        }
        for handle in hidden {
            self.tell_node(handle);
        }
        for (handle, silent) in purge {
            if let Some(node) = self.nodes.get(handle)
                && let Some(session) = node.session
            {
                let cause = CloseCause::Silent {
                    node: node.name.clone(),
                    silent_ms: u64::try_from(silent.as_millis()).unwrap_or(u64::MAX),
                };
                effects.push(close(session, cause));
            }
            effects.extend(self.remove_node(handle, RemovalCause::Silent));
        }
        effects
    }

    fn touch(&mut self, now: Duration, handle: u32, effects: &mut Vec<Effect>) {
        if let Some(node) = self.nodes.get_mut(handle) {
            node.progress.get_mut().last_seen = now;
            if node.hidden {
                node.hidden = false;
                self.catalog.totals.hidden.add(-1);
                effects.push(Effect::NodeShown {
                    node: node.name.clone(),
                });
                self.tell_node(handle);
            }
        }
    }

    fn remove_node(&mut self, handle: u32, cause: RemovalCause) -> Option<Effect> {
        let node = self.nodes.remove(handle)?;
        self.names.remove(&node.name);
        self.tell_node_gone(handle);
        self.catalog.totals.hidden.add(-i64::from(node.hidden));
        self.leases.get_mut().end_node(handle);
        if let Some(session) = node.session
            && !sabotage::is(Bug::FencedSessionKept)
        {
            self.sessions.remove(&session);
        }
        for (_, region) in node.accepted() {
            self.catalog.remove(region);
        }
        Some(Effect::NodeRemoved {
            node: node.name,
            incarnation: node.incarnation,
            cause,
        })
    }
}

fn close(session: SessionId, cause: impl Into<CloseCause>) -> Effect {
    Effect::Close {
        session,
        cause: cause.into(),
    }
}

/// Binds the session to the node and settles where to go on from.
fn welcome(epoch: u64, node: &mut Node, session: SessionId, hello: Hello) -> Effect {
    node.session = Some(session);
    node.addresses = Arc::new(hello.addresses);
    node.labels = hello.labels;
    let progress = node.progress.get_mut();
    let expect_delta = progress.expected();
    // What the agent can send again must meet what is here, and nothing may be known in part.
    let resync = hello.coordinator_epoch != epoch
        || !matches!(progress.sync, SyncState::Live)
        || !(hello.oldest_delta..=hello.next_delta).contains(&expect_delta);
    let resync = resync && !sabotage::is(Bug::AckBeforeInventory);
    if resync {
        progress.sync = SyncState::Awaiting;
    }
    Effect::Welcome {
        session,
        expect_delta,
        resync,
    }
}
