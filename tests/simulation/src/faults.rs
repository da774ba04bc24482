//! The schedule of faults: drawn from the seed before anything runs, so that it can be cut down to
//! those that matter without shifting the others.

use crate::{
    queue::{MS, Micros, SECOND},
    random::Random,
    wishes::Wishes,
};

/// Longest fault.
const LONGEST: Micros = 12 * SECOND;

/// Something goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// When.
    pub at: Micros,
    /// For how long, where it lasts.
    pub lasts: Micros,
    /// What.
    pub kind: Kind,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A process dies. Its peers hear of it, or (silent) do not. Another starts when it is over.
    Crash {
        /// Whose.
        node: usize,
        /// The host is gone, not only the process.
        silent: bool,
        /// The next process's clock is behind: its incarnation is the smaller one.
        clock_behind: bool,
    },
    /// A process says goodbye and ends; another starts when it is over.
    Leave {
        /// Whose.
        node: usize,
    },
    /// A process stands still.
    Pause {
        /// Whose.
        node: usize,
    },
    /// A process stands still, and another is started in its place meanwhile.
    Replace {
        /// Whose.
        node: usize,
    },
    /// Nothing gets through between one end and all others.
    Partition {
        /// Whose, coordinators after the nodes.
        end: usize,
        /// What it sends is lost.
        out: bool,
        /// What it is sent is lost.
        into: bool,
    },
    /// A coordinator loses everything.
    CoordinatorCrash {
        /// Which.
        coordinator: usize,
        /// Agents are not told.
        silent: bool,
    },
    /// A coordinator stands still.
    CoordinatorPause {
        /// Which.
        coordinator: usize,
    },
    /// All sessions of a node are cut.
    BreakSessions {
        /// Whose.
        node: usize,
    },
    /// One delta of a node is lost although its stream goes on: what a middlebox or a bug may do.
    LoseDelta {
        /// Whose.
        node: usize,
    },
    /// An owner evicts and overwrites without pause.
    Churn {
        /// Whose.
        node: usize,
    },
    /// The engine dies in the middle of what it does; its agent lives on.
    EngineDeath {
        /// Whose.
        node: usize,
    },
    /// The pool is taken out of service and made anew.
    Reregister {
        /// Whose.
        node: usize,
    },
    /// Everything that is not pinned is dropped.
    EvictAll {
        /// Whose.
        node: usize,
    },
    /// A router reads nothing.
    RouterStalls {
        /// Which.
        router: usize,
    },
    /// A router's stream is lost; it goes on from where it was.
    RouterBreaks {
        /// Which.
        router: usize,
    },
    /// A router forgets everything.
    RouterRestarts {
        /// Which.
        router: usize,
    },
    /// An operator has a node drained.
    Drain {
        /// Whose.
        node: usize,
        /// It is not taken back.
        for_good: bool,
    },
    /// Some blocks are hot: more copies of them are wanted.
    Heat,
    /// An operator deletes a namespace by force, with all that nodes hold of it.
    DeleteNamespace {
        /// By number.
        namespace: usize,
        /// Where; None: at every coordinator.
        coordinator: Option<usize>,
    },
}

/// The faults of a seed; all are over by `until`.
#[must_use]
pub(crate) fn schedule(
    seed: u64,
    nodes: usize,
    coordinators: usize,
    namespaces: &[usize],
    wishes: &Wishes,
    until: Micros,
) -> Vec<Fault> {
    let mut random = Random::of(seed, 1);
    // From calm to one a second.
    let pace = random.pick(&[1, 2, 3, 6, 15]) * SECOND;
    let scale = (nodes as u64 / 16).max(1);
    let mut faults = Vec::new();
    for _ in 0..until / pace * scale {
        let at = random.below(until * 9 / 10);
        let longest = LONGEST.min(until - at);
        let lasts = match random.below(3) {
            0 => random.within(MS, 200 * MS),
            1 => random.within(100 * MS, 3 * SECOND),
            _ => random.within(SECOND, LONGEST),
        };
        faults.push(Fault {
            at,
            lasts: lasts.min(longest),
            kind: kind(&mut random, nodes, coordinators),
        });
    }
    faults.extend(around(seed, nodes, wishes, until));
    faults.extend(last_words(seed, nodes, until));
    if wishes.deletes {
        faults.extend(deletions(seed, coordinators, namespaces, until));
    }
    faults.sort_by_key(|fault| fault.at);
    faults
}

/// What happens around agents and coordinators: drawn apart, so that the others are what they were.
fn around(seed: u64, nodes: usize, wishes: &Wishes, until: Micros) -> Vec<Fault> {
    let mut random = Random::of(seed, 15);
    let mut faults = Vec::new();
    let each = (until / (6 * SECOND)).min(200);
    for turn in 0..each * 2 {
        let at = random.below(until * 9 / 10);
        let lasts = random.within(10 * MS, 14 * SECOND).min(until - at);
        let router = random.below(wishes.routers as u64) as usize;
        let node = random.below(nodes as u64) as usize;
        let what = random.below(3);
        let kind = match (turn < each, what) {
            (true, 0) => Kind::RouterStalls { router },
            (true, 1) => Kind::RouterBreaks { router },
            (true, _) => Kind::RouterRestarts { router },
            (false, _) if !wishes.copies() => continue,
            (false, 0) => Kind::Heat,
            (false, _) => Kind::Drain {
                node,
                for_good: random.permille(300),
            },
        };
        faults.push(Fault { at, lasts, kind });
    }
    faults
}

/// The last delta of some nodes is lost, and none follows it: only heartbeats tell. They come when nothing else is done
/// any more but one publication of each process.
fn last_words(seed: u64, nodes: usize, until: Micros) -> Vec<Fault> {
    let mut random = Random::of(seed, 22);
    let some = random.below(3);
    let one = |_| Fault {
        at: until,
        lasts: 0,
        kind: Kind::LoseDelta {
            node: random.below(nodes as u64) as usize,
        },
    };
    (0..some).map(one).collect()
}

/// What operators delete by force, of the namespaces that there are.
fn deletions(seed: u64, coordinators: usize, namespaces: &[usize], until: Micros) -> Vec<Fault> {
    let mut random = Random::of(seed, 20);
    let each = 1 + random.below(3);
    let one = |_| Fault {
        at: random.within(until / 4, until * 9 / 10),
        lasts: 0,
        kind: Kind::DeleteNamespace {
            namespace: random.pick(namespaces),
            coordinator: random
                .permille(500)
                .then(|| random.below(coordinators as u64) as usize),
        },
    };
    (0..each).map(one).collect()
}

fn kind(random: &mut Random, nodes: usize, coordinators: usize) -> Kind {
    let node = random.below(nodes as u64) as usize;
    let coordinator = random.below(coordinators as u64) as usize;
    match random.below(16) {
        0 | 1 => Kind::Crash {
            node,
            silent: random.permille(400),
            clock_behind: random.permille(200),
        },
        2 => Kind::Leave { node },
        3 | 4 => Kind::Pause { node },
        5 => Kind::Replace { node },
        6 | 7 => {
            let direction = random.below(3);
            Kind::Partition {
                end: random.below((nodes + coordinators) as u64) as usize,
                out: direction != 0,
                into: direction != 1,
            }
        }
        8 => Kind::CoordinatorCrash {
            coordinator,
            silent: random.permille(400),
        },
        9 => Kind::CoordinatorPause { coordinator },
        10 => Kind::BreakSessions { node },
        11 => Kind::LoseDelta { node },
        12 | 13 => Kind::Churn { node },
        14 => Kind::EngineDeath { node },
        _ => match random.permille(500) {
            true => Kind::Reregister { node },
            false => Kind::EvictAll { node },
        },
    }
}
