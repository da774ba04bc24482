//! An operator deletes a namespace at a coordinator, with all that nodes hold of it: what was declared there by then is
//! not found again as long as its node is known.

use kvferry_coordinator::directory::{Effect, RegionRefusal};
use kvferry_proto::{Incarnation, NodeId, RegionId};

use super::{Process, World};
use crate::{invariants::deleted_is_gone, promise::Promise};

/// What was declared when its namespace was deleted.
pub(crate) type Deleted = (NodeId, Incarnation, RegionId);

impl World {
    pub(super) fn delete_namespace(&mut self, coordinator: usize, namespace: usize) {
        let name = self.conditions.spec(namespace).name.clone();
        let here = &mut self.coordinators[coordinator];
        // A call to one that stands still, or is not there, is not answered; the operator leaves it at that.
        let Some(directory) = here
            .directory
            .as_mut()
            .filter(|_| here.paused_until <= self.now)
        else {
            return;
        };
        let mut gone: Vec<Deleted> = Vec::new();
        for node in directory.nodes(std::time::Duration::ZERO) {
            let of_it = node.regions.iter().filter(|held| held.namespace == name);
            gone.extend(of_it.map(|held| (node.node.clone(), node.incarnation, held.region)));
        }
        // Nobody has declared it.
        let Ok((_, effects)) = directory.delete_namespace(&name, true) else {
            return;
        };
        here.deleted.extend(gone);
        here.deletions.insert(namespace);
        self.stats.namespaces_deleted += 1;
        self.claims_deleted(coordinator, namespace);
        self.storage.deleted(coordinator, namespace);
        for effect in effects {
            self.carry_out(coordinator, effect);
        }
        self.wake_routers(coordinator);
        let broken = deleted_is_gone::at_once(self, coordinator, namespace);
        self.check(broken);
    }

    /// A coordinator refuses a region: only because it was deleted.
    pub(super) fn region_refused(&mut self, coordinator: usize, effect: &Effect) {
        let Effect::RegionRefused {
            session,
            region,
            refusal,
        } = effect
        else {
            return;
        };
        let here = &self.coordinators[coordinator];
        let pid = here.sessions.get(&session.0).copied();
        let identity = pid.and_then(|pid| Some((self.name_of(pid)?, self.incarnation(pid)?)));
        let known = identity.is_some_and(|(node, incarnation)| {
            let key = (node.clone(), incarnation, *region);
            here.deleted.contains(&key)
        });
        if !known || !matches!(refusal, RegionRefusal::NamespaceDeleted { .. }) {
            let detail = format!("a region is refused: {refusal}");
            self.fail(Promise::HonestIsHeard, detail);
        }
    }

    /// Was a process's region deleted at a coordinator?
    pub(crate) fn is_deleted(
        &self,
        coordinator: usize,
        process: &Process,
        region: RegionId,
    ) -> bool {
        let key = (process.name.clone(), process.incarnation, region);
        self.coordinators[coordinator].deleted.contains(&key)
    }
}
