//! Who hears that enough others hold a block.

use super::*;

fn wanting(copies: u32) -> Directory {
    let mut directory = directory();
    directory.create_namespace(&spec("t/m")).unwrap();
    let policy = NamespacePolicy {
        copies_wanted: Some(copies),
        ..NamespacePolicy::default()
    };
    directory.set_policy(&namespace("t/m"), policy).unwrap();
    directory
}

fn surplus(session: u64, copies: &[(u32, u64)]) -> Effect {
    let copy = |(slot, generation): &(u32, u64)| SurplusCopy {
        region: RegionId(1),
        slot: *slot,
        generation: *generation,
    };
    Effect::Surplus {
        session: SessionId(session),
        copies: copies.iter().map(copy).collect(),
    }
}

fn joined(directory: &mut Directory, session: u64, name: &str) {
    directory.handle(at(0), hello(session, name, 1));
    directory.handle(at(0), first_delta(session, &[]));
}

#[test]
fn the_one_who_came_last_hears_it() {
    let mut directory = wanting(2);
    for (session, name) in [(1, "a"), (2, "b"), (3, "c")] {
        joined(&mut directory, session, name);
    }
    let seal = |directory: &mut Directory, session, added: &[(u32, u64, u64)]| {
        directory.handle(at(1), change_delta(session, 2, &[], added))
    };
    assert_eq!(
        seal(&mut directory, 1, &[(0, 7, 2), (1, 7, 4)]),
        [ack(1, 2)]
    );
    assert_eq!(seal(&mut directory, 2, &[(0, 7, 2)]), [ack(2, 2)]);
    let told = seal(&mut directory, 3, &[(4, 8, 2), (5, 7, 6)]);
    assert_eq!(told, [ack(3, 2), surplus(3, &[(5, 6)])]);
    // A node that is drained is no reason to give up another's copy.
    directory.drain_node(&node("a"), true).unwrap();
    let again = directory.handle(at(2), change_delta(3, 3, &[], &[(5, 7, 8)]));
    assert_eq!(again, [ack(3, 3)]);
    assert_eq!(find(&directory, &[7])[0].len(), 4, "it is a hint");
}

#[test]
fn an_inventory_is_answered_with_hints_too() {
    let mut directory = wanting(1);
    joined(&mut directory, 1, "a");
    directory.handle(at(0), change_delta(1, 2, &[], &[(0, 7, 2)]));
    directory.handle(at(1), hello_from(2, "b", 1, 0, 1, 1));
    let part = InventoryPart {
        seq: 4,
        first: true,
        last: true,
        regions: vec![declaration(1, "t/m", 16)],
        sealed: vec![(RegionId(1), sealed(&[(3, 7, 2), (4, 8, 2)]))],
    };
    let event = Event::Inventory {
        session: SessionId(2),
        part,
    };
    let told = directory.handle(at(1), event);
    assert_eq!(told, [ack(2, 4), surplus(2, &[(3, 2)])]);
}
