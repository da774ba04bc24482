//! List, get, status.

use super::*;

#[test]
fn a_source_is_ready_when_every_rank_is() {
    let mut world = World::new();
    let of = ("m", 2);
    let id = identity("m", 2).id();
    let state = |world: &World| world.sources.status(at(9), id).unwrap().0;
    world.publish(at(0), "a", of, 0, Said::Ready).unwrap();
    let summary = state(&world);
    assert_eq!(summary.state, SourceState::Initialising);
    assert_eq!(
        (summary.ranks_ready, summary.tensors, summary.bytes),
        (1, 4, 32)
    );
    world.publish(at(0), "b", of, 0, Said::Ready).unwrap();
    assert_eq!(state(&world).ranks_ready, 1);
    world
        .publish(at(0), "b", of, 1, Said::Initialising)
        .unwrap();
    assert_eq!(state(&world).state, SourceState::Initialising);
    let ranks = [0, 1].map(|rank| announced(id, rank, 1, &table(4), Said::Ready));
    world.announce(at(1), "b", ranks.into()).unwrap();
    let summary = state(&world);
    assert_eq!(summary.state, SourceState::Ready);
    assert_eq!(
        (summary.ranks_ready, summary.ready, summary.tensors),
        (2, 3, 8)
    );
    world.sources.observe(at(2), &node("b"), silent(1));
    assert_eq!(state(&world).state, SourceState::Stale);
    world.sources.observe(at(2), &node("b"), None);
    world.sources.observe(at(2), &node("a"), None);
    assert_eq!(state(&world).state, SourceState::Gone);
}

#[test]
fn get_takes_the_set_most_workers_are_ready_with() {
    let mut world = World::new();
    let id = identity("m", 1).id();
    let mut publish = |name: &str, tensors, said| {
        let table = table(tensors);
        let who = world.who(name, 1);
        let worker = announced(id, 0, 1, &table, said);
        world
            .sources
            .publish(at(0), &who, there(1), identity("m", 1), worker, table)
            .unwrap();
    };
    publish("a", 4, Said::Initialising);
    publish("b", 4, Said::Initialising);
    publish("c", 6, Said::Ready);
    let get = |world: &World, digest| world.sources.get(at(1), id, 0, digest);
    let got = get(&world, None).unwrap();
    assert_eq!(*got.table, table(6));
    assert_eq!(got.workers.len(), 3);
    let got = get(&world, Some(table(4).digest())).unwrap();
    assert_eq!(*got.table, table(4));
    // With the last worker of a set goes the set.
    world.sources.observe(at(1), &node("c"), None);
    assert_eq!(*get(&world, None).unwrap().table, table(4));
    let error = get(&world, Some(table(6).digest())).unwrap_err();
    assert!(matches!(
        error,
        GetError::Nobody {
            rank: 0,
            gone: 1,
            ..
        }
    ));
    assert!(matches!(
        world.sources.get(at(1), id, 1, None),
        Err(GetError::Rank(_))
    ));
    let other = identity("x", 1).id();
    assert!(matches!(
        world.sources.get(at(1), other, 0, None),
        Err(GetError::Unknown(_))
    ));
}

#[test]
fn pages_follow_each_other_and_filters_hold() {
    let mut world = World::new();
    for n in 0..25 {
        let name = format!("{}/{n}", ["x", "y"][n % 2]);
        world
            .publish(at(0), "a", (&name, 1), 0, Said::Ready)
            .unwrap();
    }
    let list = |filter: &Filter, limit| {
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let page = world.sources.list(filter, after, limit);
            assert!(page.sources.len() <= limit);
            seen.extend(page.sources.into_iter().map(|s| s.source));
            match page.next {
                Some(next) => after = Some(next),
                None => return seen,
            }
        }
    };
    let all = list(&Filter::default(), 7);
    assert_eq!(all.len(), 25);
    assert!(all.is_sorted());
    let named = |prefix: &str| Filter {
        name_prefix: prefix.into(),
        ..Filter::default()
    };
    assert_eq!(list(&named("x/"), 3).len(), 13);
    assert_eq!(list(&named("z"), 3).len(), 0);
    let elsewhere = NamespaceName::new("elsewhere").unwrap();
    let elsewhere = Filter {
        namespace: Some(elsewhere),
        ..Filter::default()
    };
    assert_eq!(list(&elsewhere, 3).len(), 0);
}
