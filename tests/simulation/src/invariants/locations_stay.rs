//! A location that was put is found until it is removed, its time is over, or it is evicted over a quota or a bound;
//! and what was removed, or is over, is not found any more.

use std::time::Duration;

use super::{Broken, published_is_found::places};
use crate::{
    names::namespace_of,
    promise::Promise,
    world::{
        World,
        storage::{Book, location},
    },
};

fn failed(detail: String) -> Broken {
    Some((Promise::LocationsStay, detail))
}

/// A coordinator answered where a block lies. `evicted`: what it says that it evicted in its lifetime.
pub(crate) fn found(
    book: &mut Book,
    local: Duration,
    number: u64,
    answered: Option<&str>,
    evicted: u64,
) -> Broken {
    let Some(row) = book.rows.get(&number).copied() else {
        let at = answered?;
        return failed(format!(
            "block {number} is said to lie at {at}, where nobody put it, or it was removed"
        ));
    };
    let said = location(row.place);
    match answered {
        Some(at) if at == said.as_str() => None,
        Some(at) => failed(format!("block {number} lies at {said}, not at {at}")),
        None => {
            book.rows.remove(&number);
            if row.until.is_some_and(|until| until <= local) {
                return None;
            }
            book.lost += 1;
            (book.lost > evicted).then(|| {
                let lost = book.lost;
                let detail = format!(
                    "block {number}'s location {said} is gone before its time; {lost} went so, {evicted} \
                     were evicted"
                );
                (Promise::LocationsStay, detail)
            })
        }
    }
}

/// A coordinator has just looked whose time is over.
pub(crate) fn after_tick(world: &mut World, coordinator: usize, local: Duration) -> Broken {
    let directory = world.coordinators[coordinator].directory.as_ref()?;
    let (bound, held) = (world.wishes.locations, directory.locations());
    if held > bound {
        let detail = format!("coordinator {coordinator} has {held} locations of at most {bound}");
        return Some((Promise::BoundsHold, detail));
    }
    (0..world.conditions.tenants)
        .find_map(|tenant| within_quota(world, coordinator, tenant))
        .or_else(|| {
            let tenants = 0..world.conditions.tenants;
            let each = tenants.map(|tenant| over(world, coordinator, local, tenant));
            each.fold(None, |broken, next| broken.or(next))
        })
}

/// Each namespace has its own.
fn within_quota(world: &World, coordinator: usize, tenant: usize) -> Broken {
    let directory = world.coordinators[coordinator].directory.as_ref()?;
    let spec = world.conditions.spec(tenant);
    if let Ok((policy, located)) = directory.policy(&spec.name) {
        let by_bytes = policy
            .max_location_bytes
            .map(|most| most / spec.layout.block_bytes());
        let most = policy
            .max_locations
            .unwrap_or(u64::MAX)
            .min(by_bytes.unwrap_or(u64::MAX));
        if located > most {
            let name = &spec.name;
            let detail = format!("{name} has {located} locations, its quota is {most}");
            return Some((Promise::BoundsHold, detail));
        }
    }
    None
}

/// What is over in a namespace is gone.
fn over(world: &mut World, coordinator: usize, local: Duration, tenant: usize) -> Broken {
    let directory = world.coordinators[coordinator].directory.as_ref()?;
    let name = &world.conditions.spec(tenant).name;
    let rows = world.storage.books[coordinator].rows.iter();
    let over = rows.filter(|(number, row)| {
        namespace_of(**number) == tenant && row.until.is_some_and(|until| until <= local)
    });
    let over: Vec<u64> = over.map(|(number, _)| *number).collect();
    if over.is_empty() {
        return None;
    }
    let packed = world.conditions.names.pack(tenant, &over);
    let found = directory.find_locations(name, &packed).ok()?;
    let mut broken = None;
    for (number, row) in over.iter().zip(&found.rows) {
        let offered = !places(world, directory, *number).0.is_empty();
        let book = &world.storage.books[coordinator];
        let until = book.rows.get(number).and_then(|row| row.until);
        if row.is_some() && !offered {
            broken = failed(format!(
                "block {number}'s location was to end at {until:?}, nobody offers the block, and at {local:?} \
                 it is still found"
            ));
        }
    }
    let ttl = world.wishes.policies[tenant].location_ttl;
    let rows = &mut world.storage.books[coordinator].rows;
    for (number, row) in over.iter().zip(&found.rows) {
        match (row, rows.get_mut(number)) {
            // Offered from memory: its time began anew.
            (Some(_), Some(row)) => row.until = ttl.map(|ttl| local + ttl),
            _ => {
                rows.remove(number);
            }
        }
    }
    broken
}
