//! A pull ends by its deadline, with exactly one outcome for each block.

use std::time::Duration;

use kvferry_agent::transfer::{BlockIndex, Outcome};

use super::Broken;
use crate::{promise::Promise, world::pull::Pull};

/// What a timer may be late by: the look happens after the engine's own.
pub(crate) const SLACK: Duration = Duration::from_millis(1);

/// An outcome is given.
pub(crate) fn finish(pull: &mut Pull, block: BlockIndex, outcome: Outcome) -> Broken {
    let id = pull.id;
    let broken = |detail| Some((Promise::PullsEnd, detail));
    match pull.outcomes.get_mut(block as usize) {
        None => broken(format!("pull {id} has no block {block}")),
        Some(Some(first)) => broken(format!(
            "block {block} of pull {id} ends twice: {first:?}, then {outcome:?}"
        )),
        Some(empty) => {
            *empty = Some(outcome);
            None
        }
    }
}

/// It says that every outcome is given.
pub(crate) fn all_given(pull: &Pull) -> Broken {
    let open = pull.outcomes.iter().position(Option::is_none)?;
    let detail = format!("pull {} ended without an outcome for block {open}", pull.id);
    Some((Promise::PullsEnd, detail))
}

/// It says that it is over: every destination has landed or was given back.
pub(crate) fn given_back(pull: &Pull) -> Broken {
    let block = pull.destinations.keys().next()?;
    let detail = format!(
        "pull {} is over and still has a place for block {block}",
        pull.id
    );
    Some((Promise::Converges, detail))
}

/// Its deadline has passed, on the clock of its own process, which was running.
pub(crate) fn at_deadline(pull: &Pull) -> Broken {
    if pull.engine.is_finished() {
        return None;
    }
    let open = pull
        .outcomes
        .iter()
        .filter(|outcome| outcome.is_none())
        .count();
    let detail = format!(
        "pull {} goes on after its deadline ({:?}) with {open} blocks open",
        pull.id, pull.deadline
    );
    Some((Promise::PullsEnd, detail))
}
