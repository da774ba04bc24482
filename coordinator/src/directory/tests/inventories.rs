//! Full inventories, whole and in parts.

use super::*;

fn part(session: u64, part: InventoryPart) -> Event {
    Event::Inventory {
        session: SessionId(session),
        part,
    }
}

fn named(slots: &[(u32, u64, u64)]) -> Vec<(RegionId, SealedSlots)> {
    vec![(RegionId(1), sealed(slots))]
}

/// Node "a" with hashes 7, 8, 9 in slots 0, 1, 2, asked for an inventory.
fn out_of_step() -> Directory {
    let mut directory = directory();
    join(&mut directory, 1, "a", &[(0, 7, 2), (1, 8, 2), (2, 9, 2)]);
    directory.handle(at(1), change_delta(1, 5, &[], &[]));
    directory
}

fn first() -> InventoryPart {
    InventoryPart {
        seq: 5,
        first: true,
        regions: vec![declaration(1, "t/m", 16)],
        sealed: named(&[(0, 7, 2)]),
        ..InventoryPart::default()
    }
}

fn last() -> InventoryPart {
    InventoryPart {
        seq: 5,
        last: true,
        sealed: named(&[(1, 18, 4), (3, 10, 2)]),
        ..InventoryPart::default()
    }
}

#[test]
fn what_is_not_named_is_gone_with_the_last_part_and_not_before() {
    let mut directory = out_of_step();
    assert_eq!(directory.handle(at(2), part(1, first())), []);
    assert_eq!(
        find(&directory, &[7, 8, 9]),
        [["a/0@2"], ["a/1@2"], ["a/2@2"]]
    );
    assert_eq!(directory.handle(at(2), part(1, last())), [ack(1, 5)]);
    assert_eq!(
        find(&directory, &[7, 8, 9, 18, 10]),
        [vec!["a/0@2"], vec![], vec![], vec!["a/1@4"], vec!["a/3@2"]]
    );
    assert_eq!(
        directory.handle(at(3), change_delta(1, 6, &[3], &[])),
        [ack(1, 6)]
    );
}

#[test]
fn regions_that_are_not_named_are_gone() {
    let mut directory = out_of_step();
    let only = InventoryPart {
        seq: 9,
        first: true,
        last: true,
        regions: vec![declaration(2, "t/m", 4)],
        sealed: vec![(RegionId(2), sealed(&[(0, 11, 2)]))],
    };
    assert_eq!(directory.handle(at(2), part(1, only)), [ack(1, 9)]);
    assert_eq!(
        find(&directory, &[7, 8, 9, 11]),
        [vec![], vec![], vec![], vec!["a/0@2"]]
    );
    assert_eq!(directory.catalog.totals(), (1, 4));
    let info = directory.node(at(2), &node("a")).unwrap();
    assert_eq!(info.applied_delta, 9);
}

#[test]
fn a_first_part_starts_over() {
    let mut directory = out_of_step();
    directory.handle(at(2), part(1, first()));
    let again = InventoryPart {
        sealed: named(&[(2, 9, 2)]),
        ..first()
    };
    directory.handle(at(2), part(1, again));
    directory.handle(at(2), part(1, last()));
    assert_eq!(
        find(&directory, &[7, 9, 10]),
        [vec![], vec!["a/2@2"], vec!["a/3@2"]]
    );
}

#[test]
fn two_inventories_may_follow_each_other() {
    let mut directory = out_of_step();
    directory.handle(at(2), part(1, first()));
    directory.handle(at(2), part(1, last()));
    let second = InventoryPart {
        seq: 8,
        last: true,
        sealed: named(&[]),
        ..first()
    };
    assert_eq!(directory.handle(at(3), part(1, second)), [ack(1, 8)]);
    assert_eq!(find(&directory, &[7, 10]), [[""; 0], [""; 0]]);
}

#[test]
fn a_session_that_breaks_off_leaves_hints_and_resyncs() {
    let mut directory = out_of_step();
    directory.handle(at(2), part(1, first()));
    assert_eq!(
        directory
            .handle(at(3), hello_from(2, "a", 1, EPOCH, 1, 9))
            .last(),
        Some(&welcome(2, 2, true))
    );
    // The rest of the inventory of the old stream is not the rest of one on the new stream.
    assert_eq!(
        directory.handle(at(3), part(2, last())),
        [closed(2, ProtocolError::InventoryNotStarted)]
    );
    assert_eq!(find(&directory, &[8]), [["a/1@2"]]);
}

#[test]
fn deltas_are_ignored_while_an_inventory_comes_in() {
    let mut directory = out_of_step();
    directory.handle(at(2), part(1, first()));
    assert_eq!(directory.handle(at(2), change_delta(1, 6, &[0], &[])), []);
    directory.handle(at(2), part(1, last()));
    assert_eq!(find(&directory, &[7]), [["a/0@2"]]);
}

#[test]
fn nonsense_ends_the_session() {
    let started = |bad: InventoryPart| {
        let mut directory = out_of_step();
        directory.handle(at(2), part(1, first()));
        let effects = directory.handle(at(2), part(1, bad));
        assert_eq!(find(&directory, &[9]), [["a/2@2"]], "nothing is lost");
        effects
    };
    let other_seq = InventoryPart { seq: 6, ..last() };
    assert_eq!(
        started(other_seq),
        [closed(1, ProtocolError::InventorySeq { got: 6, want: 5 })]
    );
    let changed = InventoryPart {
        regions: vec![declaration(1, "t/m", 17)],
        ..last()
    };
    assert_eq!(
        started(changed),
        [closed(
            1,
            ProtocolError::RegionChanged {
                region: RegionId(1)
            }
        )]
    );
    let outside = InventoryPart {
        sealed: named(&[(16, 1, 2)]),
        ..last()
    };
    assert_eq!(
        started(outside),
        [closed(
            1,
            ProtocolError::SlotOutOfRegion {
                region: RegionId(1),
                slot: 16,
                slots: 16
            }
        )]
    );
    let unknown = InventoryPart {
        sealed: vec![(RegionId(4), sealed(&[]))],
        ..last()
    };
    assert_eq!(
        started(unknown),
        [closed(
            1,
            ProtocolError::RegionUnknown {
                region: RegionId(4)
            }
        )]
    );
}

#[test]
fn a_refused_region_gets_another_chance_but_a_deleted_one_does_not() {
    let mut directory = out_of_step();
    let (blocks, effects) = directory.delete_namespace(&namespace("t/m"), true).unwrap();
    let refused = Effect::RegionRefused {
        session: SessionId(1),
        region: RegionId(1),
        refusal: RegionRefusal::NamespaceDeleted {
            namespace: namespace("t/m"),
        },
    };
    assert_eq!((blocks, effects), (3, vec![refused.clone()]));
    assert_eq!(directory.handle(at(2), part(1, first())), [refused]);
    assert_eq!(directory.handle(at(2), part(1, last())), [ack(1, 5)]);
    assert_eq!(directory.namespaces().count(), 0);

    // A mismatch is looked at again: the namespace may be another one by now.
    let mut other = spec("t/n");
    other.layout = Layout::new("u8", 1, 1, BLOCK_BYTES).unwrap();
    directory.create_namespace(&other).unwrap();
    let second = InventoryPart {
        seq: 6,
        last: true,
        regions: vec![declaration(1, "t/m", 16), declaration(2, "t/n", 4)],
        ..first()
    };
    assert_eq!(directory.handle(at(3), part(1, second.clone())).len(), 3);
    directory
        .delete_namespace(&namespace("t/n"), false)
        .unwrap();
    assert_eq!(directory.handle(at(3), part(1, second)).len(), 2);
    let info = directory.namespace(&namespace("t/n")).unwrap();
    assert_eq!(info.regions, 1);
}
