//! What deltas do, and what they may not.

use super::*;

#[test]
fn removals_come_before_additions_and_a_slot_is_replaced() {
    let mut directory = directory();
    join(&mut directory, 1, "a", &[(0, 7, 2), (1, 8, 2)]);
    let effects = directory.handle(at(1), change_delta(1, 2, &[0, 5], &[(0, 9, 4), (1, 10, 4)]));
    assert_eq!(effects, [ack(1, 2)]);
    assert_eq!(
        find(&directory, &[7, 8, 9, 10]),
        [vec![], vec![], vec!["a/0@4"], vec!["a/1@4"]]
    );
    let info = directory.namespace(&namespace("t/m")).unwrap();
    assert_eq!((info.blocks, info.owners, info.bytes), (2, 2, 128));
}

#[test]
fn one_hash_in_several_slots_of_a_node() {
    let mut directory = directory();
    join(&mut directory, 1, "a", &[(0, 7, 2), (1, 7, 4)]);
    let info = directory.namespace(&namespace("t/m")).unwrap();
    assert_eq!((info.blocks, info.owners), (1, 2));
    assert_eq!(find(&directory, &[7]), [["a/0@2", "a/1@4"]]);
    directory.handle(at(1), change_delta(1, 2, &[0], &[]));
    assert_eq!(find(&directory, &[7]), [["a/1@4"]]);
    // Sealed again with the same bytes: only the generation moves.
    directory.handle(at(1), change_delta(1, 3, &[], &[(1, 7, 6)]));
    assert_eq!(find(&directory, &[7]), [["a/1@6"]]);
}

#[test]
fn duplicates_are_acknowledged_and_gaps_resynced() {
    let mut directory = directory();
    join(&mut directory, 1, "a", &[(0, 7, 2)]);
    assert_eq!(
        directory.handle(at(1), first_delta(1, &[(0, 99, 8)])),
        [ack(1, 1)]
    );
    assert_eq!(
        directory.handle(at(1), change_delta(1, 4, &[0], &[])),
        [Effect::ResyncRequest {
            session: SessionId(1),
            expected: 2,
            got: 4
        }]
    );
    // Until the inventory is complete, deltas are ignored, the right one included.
    assert_eq!(directory.handle(at(1), change_delta(1, 5, &[0], &[])), []);
    assert_eq!(directory.handle(at(1), change_delta(1, 2, &[0], &[])), []);
    assert_eq!(find(&directory, &[7]), [["a/0@2"]]);
    // And a reconnect doesn't forget that.
    let hello = hello_from(2, "a", 1, EPOCH, 1, 9);
    assert_eq!(
        directory.handle(at(2), hello).last(),
        Some(&welcome(2, 2, true))
    );
}

#[test]
fn a_heartbeat_tells_of_a_lost_last_delta_once() {
    for way in [Directory::handle as Way, step_by_step as Way] {
        let mut directory = directory();
        join(&mut directory, 1, "a", &[(0, 7, 2)]);
        let beat = |number, next_delta| Event::Heartbeat {
            session: SessionId(1),
            number,
            next_delta,
        };
        let ack_of = |number| Effect::HeartbeatAck {
            session: SessionId(1),
            number,
        };
        // An agent that does not say, one that is in step, and one that says less than is known.
        for (number, next_delta) in [(1, None), (2, Some(2)), (3, Some(1))] {
            let effects = way(&mut directory, at(1), beat(number, next_delta));
            assert_eq!(effects, [ack_of(number)]);
        }
        // Deltas 2 and 3 were lost.
        let request = Effect::ResyncRequest {
            session: SessionId(1),
            expected: 2,
            got: 4,
        };
        assert_eq!(
            way(&mut directory, at(2), beat(4, Some(4))),
            [ack_of(4), request.clone()]
        );
        // While the inventory is due, and while it comes in, it is not asked for again.
        assert_eq!(
            way(&mut directory, at(3), beat(5, Some(4))),
            [ack_of(5)],
            "it is due"
        );
        let part = |first, last| Event::Inventory {
            session: SessionId(1),
            part: InventoryPart {
                seq: 3,
                first,
                last,
                regions: first
                    .then(|| declaration(1, "t/m", 16))
                    .into_iter()
                    .collect(),
                sealed: Vec::new(),
            },
        };
        assert_eq!(way(&mut directory, at(4), part(true, false)), []);
        assert_eq!(
            way(&mut directory, at(4), beat(6, Some(4))),
            [ack_of(6)],
            "it comes in"
        );
        assert_eq!(way(&mut directory, at(5), part(false, true)), [ack(1, 3)]);
        while directory.sweep(1) {}
        assert_eq!(find(&directory, &[7]), [[""; 0]]);
        assert_eq!(
            way(&mut directory, at(6), beat(7, Some(4))),
            [ack_of(7)],
            "in step again"
        );
        // The next loss is another one, also of a node that was hidden.
        directory.handle(at(6) + HIDE, Event::Tick);
        let shown = Effect::NodeShown { node: node("a") };
        let again = Effect::ResyncRequest {
            session: SessionId(1),
            expected: 4,
            got: 5,
        };
        assert_eq!(
            way(&mut directory, at(7) + HIDE, beat(8, Some(5))),
            [shown, ack_of(8), again]
        );
    }
}

#[test]
fn regions_come_and_go() {
    let mut directory = directory();
    join(&mut directory, 1, "a", &[(0, 7, 2)]);
    let next = Delta {
        seq: 2,
        regions_removed: vec![RegionId(1), RegionId(77)],
        regions_added: vec![declaration(2, "t/m", 4)],
        changes: vec![change(2, &[], &[(3, 8, 2)])],
    };
    assert_eq!(directory.handle(at(1), delta(1, next)), [ack(1, 2)]);
    assert_eq!(find(&directory, &[7, 8]), [vec![], vec!["a/3@2"]]);
    assert_eq!(directory.catalog.totals(), (1, 4));
}

#[test]
fn a_mismatch_refuses_the_region_and_ignores_what_it_holds() {
    let mut directory = directory();
    join(&mut directory, 1, "a", &[(0, 7, 2)]);
    directory.handle(at(0), hello(2, "b", 1));
    let mut other = declaration(1, "t/m", 4);
    other.namespace.layout = Layout::new("u8", 32, 1, BLOCK_BYTES).unwrap();
    let text = spec("t/m").mismatch(&other.namespace).unwrap();
    assert!(text.contains(&other.namespace.layout.fingerprint().to_string()));
    assert!(text.contains(&spec("t/m").layout.fingerprint().to_string()));
    let first = Delta {
        seq: 1,
        regions_added: vec![other],
        changes: vec![change(1, &[], &[(0, 8, 2)])],
        ..Delta::default()
    };
    assert_eq!(
        directory.handle(at(1), delta(2, first)),
        [
            Effect::RegionRefused {
                session: SessionId(2),
                region: RegionId(1),
                refusal: RegionRefusal::NamespaceMismatch(text),
            },
            ack(2, 1)
        ]
    );
    // Later ones need not even fit: nobody knows what they would have to fit.
    assert_eq!(
        directory.handle(at(1), change_delta(2, 2, &[900], &[(901, 8, 2)])),
        [ack(2, 2)]
    );
    assert_eq!(find(&directory, &[7, 8]), [vec!["a/0@2"], vec![]]);
    assert_eq!(directory.node(at(1), &node("b")).unwrap().regions, []);
    let gone = Delta {
        seq: 3,
        regions_removed: vec![RegionId(1)],
        ..Delta::default()
    };
    assert_eq!(directory.handle(at(1), delta(2, gone)), [ack(2, 3)]);
    assert_eq!(
        directory.handle(at(1), change_delta(2, 4, &[0], &[])),
        [closed(
            2,
            ProtocolError::RegionUnknown {
                region: RegionId(1)
            }
        )]
    );
}

#[test]
fn a_geometry_that_makes_no_block_is_refused() {
    let mut directory = directory();
    directory.handle(at(0), hello(1, "a", 1));
    let mut bad = declaration(1, "t/m", 4);
    bad.geometry = Geometry::contiguous(4, 63).unwrap();
    let error = bad.geometry.fits_layout(&bad.namespace.layout).unwrap_err();
    let first = Delta {
        seq: 1,
        regions_added: vec![bad],
        ..Delta::default()
    };
    assert_eq!(
        directory.handle(at(0), delta(1, first)),
        [
            Effect::RegionRefused {
                session: SessionId(1),
                region: RegionId(1),
                refusal: RegionRefusal::Geometry(error),
            },
            ack(1, 1)
        ]
    );
    assert_eq!(directory.namespaces().count(), 0, "none is left behind");
}

#[test]
fn nonsense_ends_the_session_and_applies_nothing() {
    let region = RegionId(1);
    let good = change(1, &[0], &[(1, 8, 2)]);
    let ragged = |columns: fn(&mut SealedSlots)| {
        let mut change = change(1, &[], &[(2, 9, 2)]);
        columns(&mut change.added);
        change
    };
    let long = {
        let mut change = change(1, &[], &[(2, 9, 2)]);
        let len = HashLen::new(16).unwrap();
        change.added.hashes = Some(PackedHashes::new(len, vec![1; 16].into()).unwrap());
        change
    };
    let cases = [
        (
            change(2, &[0], &[]),
            ProtocolError::RegionUnknown {
                region: RegionId(2),
            },
        ),
        (
            change(1, &[16], &[]),
            ProtocolError::SlotOutOfRegion {
                region,
                slot: 16,
                slots: 16,
            },
        ),
        (
            change(1, &[], &[(16, 9, 2)]),
            ProtocolError::SlotOutOfRegion {
                region,
                slot: 16,
                slots: 16,
            },
        ),
        (
            change(1, &[], &[(2, 9, 3)]),
            ProtocolError::NotSealed {
                region,
                slot: 2,
                generation: 3,
            },
        ),
        (
            long,
            ProtocolError::HashLength {
                region,
                got: 16,
                want: 8,
            },
        ),
        (
            ragged(|added| added.slots.push(3)),
            ProtocolError::Ragged {
                region,
                hashes: 1,
                slots: 2,
                generations: 1,
                checksums: 0,
            },
        ),
        (
            ragged(|added| added.generations.clear()),
            ProtocolError::Ragged {
                region,
                hashes: 1,
                slots: 1,
                generations: 0,
                checksums: 0,
            },
        ),
        (
            ragged(|added| added.checksums = vec![1, 2]),
            ProtocolError::Ragged {
                region,
                hashes: 1,
                slots: 1,
                generations: 1,
                checksums: 2,
            },
        ),
    ];
    for (bad, error) in cases {
        let mut directory = directory();
        join(&mut directory, 1, "a", &[(0, 7, 2)]);
        let next = Delta {
            seq: 2,
            regions_removed: Vec::new(),
            regions_added: vec![declaration(9, "t/new", 4)],
            changes: vec![good.clone(), bad],
        };
        assert_eq!(directory.handle(at(1), delta(1, next)), [closed(1, error)]);
        assert_eq!(find(&directory, &[7, 8]), [vec!["a/0@2"], vec![]]);
        assert_eq!(directory.namespaces().count(), 1);
        // The node may come back and go on where it was.
        assert_eq!(
            directory.handle(at(2), hello_from(2, "a", 1, EPOCH, 1, 2)),
            [welcome(2, 2, false)]
        );
    }
}

#[test]
fn a_region_id_is_used_once() {
    let redeclare = |removed: Vec<RegionId>, added: Vec<RegionDeclaration>| {
        let mut directory = directory();
        join(&mut directory, 1, "a", &[]);
        let next = Delta {
            seq: 2,
            regions_removed: removed,
            regions_added: added,
            ..Delta::default()
        };
        directory.handle(at(1), delta(1, next))
    };
    let twice = |region| {
        [closed(
            1,
            ProtocolError::RegionDeclaredTwice {
                region: RegionId(region),
            },
        )]
    };
    let one = || declaration(1, "t/m", 16);
    let two = || declaration(2, "t/m", 16);
    assert_eq!(redeclare(vec![], vec![one()]), twice(1));
    assert_eq!(redeclare(vec![RegionId(1)], vec![one()]), twice(1));
    assert_eq!(redeclare(vec![], vec![two(), two()]), twice(2));
}

#[test]
fn bounds_refuse_regions_and_lose_nothing() {
    let bounds = Bounds {
        namespaces: 2,
        regions_per_node: 3,
        slots: 40,
        ..Bounds::default()
    };
    let mut directory = directory_of(bounds);
    join(&mut directory, 1, "a", &[(0, 7, 2)]);
    let refused = |region: u32, refusal: BoundReached| Effect::RegionRefused {
        session: SessionId(1),
        region: RegionId(region),
        refusal: refusal.into(),
    };
    let next = Delta {
        seq: 2,
        regions_added: vec![
            declaration(2, "t/m", 25),
            declaration(3, "t/n", 20),
            declaration(4, "t/o", 1),
            declaration(5, "t/n", 1),
            declaration(6, "t/n", 1),
        ],
        ..Delta::default()
    };
    assert_eq!(
        directory.handle(at(1), delta(1, next)),
        [
            refused(2, BoundReached::slots(&bounds)),
            refused(4, BoundReached::namespaces(&bounds)),
            refused(6, BoundReached::regions(&bounds)),
            ack(1, 2)
        ]
    );
    assert_eq!(find(&directory, &[7]), [["a/0@2"]]);
    assert_eq!(directory.catalog.totals(), (3, 37));
}
