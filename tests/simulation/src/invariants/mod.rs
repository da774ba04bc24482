//! What must hold: one file per promise. Each looks from outside, with the simulation's own books.

pub(crate) mod bounds_hold;
pub(crate) mod buffers_are_owned;
pub(crate) mod bytes_are_published;
pub(crate) mod claims_are_exclusive;
pub(crate) mod converges;
pub(crate) mod copies_come;
pub(crate) mod deleted_is_gone;
pub(crate) mod fenced_is_void;
pub(crate) mod locations_stay;
pub(crate) mod namespaces_are_apart;
pub(crate) mod pinned_stays;
pub(crate) mod published_is_found;
pub(crate) mod pulls_end;
pub(crate) mod sources_are_true;
pub(crate) mod stalls_are_bounded;
pub(crate) mod watchers_agree;

use crate::{promise::Promise, world::World};

/// What is broken, and how; None where nothing is.
pub(crate) type Broken = Option<(Promise, String)>;

impl World {
    /// Takes note of a broken promise.
    pub(crate) fn check(&mut self, broken: Broken) {
        if let Some((promise, detail)) = broken {
            self.fail(promise, detail);
        }
    }
}

/// Everything that can be checked at any moment.
pub(crate) fn probe(world: &mut World) {
    let broken = [
        published_is_found::check(world),
        bounds_hold::tables(world),
        bytes_are_published::audit(world),
        watchers_agree::probe(world),
        stalls_are_bounded::all(world),
        deleted_is_gone::probe(world),
    ];
    world.stats.probes += 1;
    for broken in broken {
        world.check(broken);
    }
}
