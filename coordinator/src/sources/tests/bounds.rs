//! Over a bound nothing is lost, and what is gone makes way.

use super::*;

fn small() -> Bounds {
    Bounds {
        sources: 2,
        workers_per_source: 2,
        workers_per_node: 2,
        table_bytes: 2 * table(4).encoded_bytes(),
    }
}

fn limit(refused: Result<Published, PublishError>) -> &'static str {
    match refused.unwrap_err() {
        PublishError::Bound(error) => error.what,
        other => panic!("{other}"),
    }
}

#[test]
fn sources_workers_and_bytes_are_bounded() {
    let mut world = World::with(small());
    let ready = Said::Ready;
    world.publish(at(0), "a", ("m", 1), 0, ready).unwrap();
    world.publish(at(0), "b", ("m", 1), 0, ready).unwrap();
    let refused = world.publish(at(0), "c", ("m", 1), 0, ready);
    assert_eq!(limit(refused), "workers of a source");
    // Light announcements take no room either: the agent is sent to publish, and hears why not.
    let worker = announced(identity("m", 1).id(), 0, 1, &table(4), ready);
    assert_eq!(
        world.announce(at(0), "c", vec![worker]).unwrap().unknown,
        [0]
    );
    world.publish(at(0), "a", ("n", 1), 0, ready).unwrap();
    assert_eq!(
        limit(world.publish(at(0), "b", ("o", 1), 0, ready)),
        "sources"
    );
    assert_eq!(
        limit(world.publish(at(0), "a", ("o", 1), 0, ready)),
        "workers of a node"
    );
    // What ended makes way, though it is not old.
    world.sources.observe(at(1), &node("a"), None);
    world.publish(at(1), "b", ("o", 1), 0, ready).unwrap();
    world.publish(at(1), "c", ("m", 1), 0, ready).unwrap();
}

#[test]
fn descriptors_count_once_however_many_have_them() {
    let mut world = World::with(Bounds {
        workers_per_source: 9,
        ..small()
    });
    for name in ["a", "b", "c"] {
        world
            .publish(at(0), name, ("m", 3), 0, Said::Ready)
            .unwrap();
    }
    assert_eq!(world.sources.table_bytes, table(4).encoded_bytes());
    world.publish(at(0), "a", ("m", 3), 1, Said::Ready).unwrap();
    let refused = world.publish(at(0), "b", ("m", 3), 2, Said::Ready);
    assert_eq!(limit(refused), "bytes of tensor descriptors");
}

#[test]
fn nonsense_is_refused_by_name() {
    let mut world = World::new();
    let id = identity("m", 1).id();
    let refused = world.publish(at(0), "a", ("m", 1), 1, Said::Ready);
    assert!(matches!(refused, Err(PublishError::Rank(_))));
    let who = world.who("a", 1);
    let worker = announced(id, 0, 1, &table(4), Said::Ready);
    let publish = |world: &mut World, worker, table| {
        world
            .sources
            .publish(at(0), &who, there(1), identity("m", 1), worker, table)
    };
    let refused = publish(&mut world, worker.clone(), table(6));
    assert!(matches!(refused, Err(PublishError::Digest { .. })));
    let short = Announced {
        runs: runs(1),
        ..worker
    };
    assert!(matches!(
        publish(&mut world, short, table(4)),
        Err(PublishError::Runs(_))
    ));
    let twice = world.announce(at(0), "a", vec![worker.clone(), worker.clone()]);
    assert!(matches!(twice, Err(AnnounceError::Twice { .. })));
    let many = (0..257)
        .map(|rank| Announced {
            rank,
            ..worker.clone()
        })
        .collect();
    assert!(matches!(
        world.announce(at(0), "a", many),
        Err(AnnounceError::Bound(_))
    ));
    assert!(
        world
            .sources
            .list(&Filter::default(), None, 9)
            .sources
            .is_empty()
    );
}
