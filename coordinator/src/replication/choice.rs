//! Which of many targets takes a block.

use std::{collections::HashMap, time::Duration};

use kvferry_proto::NodeId;

use super::Lack;
use crate::directory::CopyTarget;

/// Targets that could take a block and are compared: the best of so many is as good as the best of all,
/// and a slice of a thousand blocks is planned in a millisecond however many nodes there are.
const COMPARED: usize = 32;

/// What one plan knows of its targets.
#[derive(Debug)]
pub(super) struct Choice<'a> {
    targets: &'a [CopyTarget],
    hosts: HashMap<u32, &'a str>,
    /// Blocks each may get, and those it got.
    room: Vec<usize>,
    load: Vec<usize>,
    /// Targets with room, by place: members of the namespace, then others.
    open: [Vec<usize>; 2],
    /// Those that have enough to do.
    full: Vec<usize>,
}

/// Who takes a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chosen {
    /// The target at this place.
    Taken(usize),
    /// One that has enough to do right now.
    Later,
    /// None.
    Nobody,
}

/// Nodes that failed to copy a block lately, and until when they are not told to again.
pub(super) type Failures = [(NodeId, Duration)];

impl<'a> Choice<'a> {
    /// `room`: how many blocks each may get; None for those that take none at all.
    pub(super) fn new(targets: &'a [CopyTarget], room: &[Option<usize>]) -> Self {
        let (mut open, mut full) = ([Vec::new(), Vec::new()], Vec::new());
        for (at, room) in room.iter().enumerate() {
            match room {
                None => {}
                Some(0) => full.push(at),
                Some(_) => open[usize::from(!targets[at].member)].push(at),
            }
        }
        let hosts = targets.iter().map(|t| (t.handle, t.host_id.as_str()));
        Self {
            targets,
            hosts: hosts.collect(),
            room: room.iter().map(|room| room.unwrap_or(0)).collect(),
            load: vec![0; targets.len()],
            open,
            full,
        }
    }

    /// Chooses: members first, then another host than those that have it, then who got least; equals
    /// in turn.
    pub(super) fn choose(
        &mut self,
        now: Duration,
        turn: usize,
        lack: &Lack,
        failures: &Failures,
    ) -> Chosen {
        for group in 0..self.open.len() {
            if let Some(at) = self.best(now, turn, lack, failures, group) {
                self.load[at] += 1;
                if self.load[at] >= self.room[at] {
                    self.open[group].retain(|other| *other != at);
                    self.full.push(at);
                }
                return Chosen::Taken(at);
            }
        }
        let mut busy = self.full.iter();
        match busy.any(|at| self.may_take(now, lack, failures, *at)) {
            true => Chosen::Later,
            false => Chosen::Nobody,
        }
    }

    fn best(
        &self,
        now: Duration,
        turn: usize,
        lack: &Lack,
        failures: &Failures,
        group: usize,
    ) -> Option<usize> {
        let open = self.open.get(group)?;
        let (before, after) = open.split_at(turn.checked_rem(open.len())?);
        let hosts = lack.holders.iter().filter_map(|h| self.hosts.get(h));
        let hosts: Vec<&str> = hosts.copied().filter(|host| !host.is_empty()).collect();
        let able = after.iter().chain(before).copied();
        let able = able.filter(|at| self.may_take(now, lack, failures, *at));
        // The first of equals: they come in turn.
        able.take(COMPARED).min_by_key(|at| {
            let same_host = hosts.contains(&self.targets[*at].host_id.as_str());
            (same_host, self.load[*at])
        })
    }

    fn may_take(&self, now: Duration, lack: &Lack, failures: &Failures, at: usize) -> bool {
        let target = &self.targets[at];
        let failed = |(node, until): &(NodeId, Duration)| *node == target.node && now < *until;
        !lack.holders.contains(&target.handle) && !failures.iter().any(failed)
    }
}
