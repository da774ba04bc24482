//! Once a later incarnation of a node was let in, an earlier one changes nothing.

use kvferry_coordinator::directory::{Effect, NodeInfo};

use super::Broken;
use crate::{
    promise::Promise,
    world::{Pid, World},
};

/// What a coordinator knows of a node, before it hears an earlier incarnation of it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Known(NodeInfo);

/// None where it is no earlier one.
pub(crate) fn before(world: &World, coordinator: usize, pid: Pid) -> Option<Known> {
    let incarnation = world.incarnation(pid)?;
    let info = look(world, coordinator, pid)?;
    (info.incarnation > incarnation).then_some(Known(info))
}

/// It has heard it.
pub(crate) fn after(
    world: &mut World,
    coordinator: usize,
    pid: Pid,
    known: &Known,
    effects: &[Effect],
) {
    world.stats.fenced_heard += 1;
    let answered = effects.iter().any(|effect| {
        matches!(
            effect,
            Effect::Ack { .. } | Effect::Welcome { .. } | Effect::NodeRemoved { .. }
        )
    });
    let same = look(world, coordinator, pid).is_some_and(|info| info == known.0);
    let broken: Broken = (answered || !same).then(|| {
        let detail = format!(
            "process {pid} was fenced by incarnation {} and still changed something: {effects:?}",
            known.0.incarnation
        );
        (Promise::FencedIsVoid, detail)
    });
    world.check(broken);
}

fn look(world: &World, coordinator: usize, pid: Pid) -> Option<NodeInfo> {
    let name = world.name_of(pid)?;
    let directory = world.coordinators[coordinator].directory.as_ref()?;
    // Silence is measured from the start of time, so that only a message changes it.
    directory.node(std::time::Duration::ZERO, name).ok()
}
