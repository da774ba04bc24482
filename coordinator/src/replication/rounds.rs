//! Looks through the directory for blocks that lack copies: a slice at a time, round after round.

use std::{collections::VecDeque, time::Duration};

use kvferry_proto::{BlockHash, NamespaceName, NodeId};

use super::{Cause, Lack, Wants};
use crate::directory::{Directory, Survey, Surveyed};

/// Slots looked at in one step: some hundred microseconds in which a session of that region waits.
const SLOTS: u32 = 1_024;
/// Hot blocks looked at in one step.
const HOT: usize = 1_024;

/// One thing to look through.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Task {
    /// All of a namespace.
    Namespace(NamespaceName, Survey),
    /// Blocks of a namespace that are wanted one by one, the next ones last.
    Hot(NamespaceName, Vec<BlockHash>),
    /// All that a node holds.
    Node(NodeId, Survey),
}

/// Where the looking is.
#[derive(Debug, Default)]
pub struct Rounds {
    tasks: VecDeque<Task>,
    /// What the task at hand will be when its step is done.
    next: Option<Task>,
}

/// What was seen in one step: blocks of one namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Whose; None where the region or namespace that was to be looked at is gone.
    pub namespace: Option<NamespaceName>,
    /// Why they are looked at.
    pub cause: Cause,
    /// Bytes of a block.
    pub block_bytes: u64,
    /// Those that lack a copy.
    pub lacking: Vec<Lack>,
    /// How many were looked at.
    pub surveyed: u64,
}

impl Rounds {
    /// Begins a round: everything that is asked for.
    pub fn begin(&mut self, now: Duration, directory: &Directory, wants: &Wants) {
        self.tasks.clear();
        for node in wants.draining(now) {
            let survey = directory.survey_node(node);
            self.tasks.push_back(Task::Node(node.clone(), survey));
        }
        for (name, all) in wants.namespaces() {
            self.tasks.push_back(match all {
                true => Task::Namespace(name.clone(), directory.survey_namespace(name)),
                false => Task::Hot(name.clone(), wants.hot(name)),
            });
        }
    }

    /// Is a round under way?
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Looks at the next blocks; again at the same ones until [`go_on`](Self::go_on).
    pub fn look(&mut self, directory: &Directory, wants: &Wants) -> Option<Seen> {
        let task = self.tasks.front()?;
        let (namespace, cause) = match task {
            Task::Namespace(name, _) | Task::Hot(name, _) => (Some(name), Cause::Wanted),
            Task::Node(node, survey) => (
                directory.surveyed_namespace(survey),
                Cause::Drain(node.clone()),
            ),
        };
        let namespace = namespace.cloned();
        let spec = namespace.as_ref().and_then(|n| directory.namespace_spec(n));
        let mut next = task.clone();
        let (mut lacking, mut surveyed) = (Vec::new(), 0);
        let mut visit = |seen: Surveyed<'_>| {
            surveyed += 1;
            let lacks = match &cause {
                Cause::Wanted => (seen.staying as u32) < wants.copies_of(seen.namespace, seen.hash),
                Cause::Drain(_) => seen.live == 0,
            };
            if let (true, Ok(hash)) = (lacks, BlockHash::new(seen.hash)) {
                let holders = seen.holders.to_vec();
                lacking.push(Lack { hash, holders });
            }
        };
        let more = match &mut next {
            Task::Namespace(_, survey) | Task::Node(_, survey) => {
                directory.survey(survey, SLOTS, &mut visit)
            }
            Task::Hot(name, hashes) => {
                let rest = hashes.len().saturating_sub(HOT);
                directory.survey_blocks(name, &hashes[rest..], &mut visit);
                hashes.truncate(rest);
                rest > 0
            }
        };
        self.next = more.then_some(next);
        Some(Seen {
            block_bytes: spec.map_or(0, |spec| spec.layout.block_bytes()),
            namespace,
            cause,
            lacking,
            surveyed,
        })
    }

    /// What was seen is dealt with: on to the next.
    pub fn go_on(&mut self, wants: &mut Wants, seen: &Seen) {
        let lacking = seen.lacking.len() as u64;
        if let Some(namespace) = &seen.namespace {
            wants.count(&seen.cause, namespace, seen.surveyed, lacking);
        }
        let Some(task) = self.tasks.pop_front() else {
            return;
        };
        match (self.next.take(), task) {
            (Some(next), _) => self.tasks.push_front(next),
            (None, Task::Namespace(name, _) | Task::Hot(name, _)) => {
                wants.namespace_round_ends(&name);
            }
            (None, Task::Node(node, _)) => wants.drain_round_ends(&node),
        }
    }
}
