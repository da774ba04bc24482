//! Blocks that lie in shared storage.

use super::*;
use kvferry_proto::Location;

fn place(text: &str) -> Location {
    Location::new(text).unwrap()
}

fn put(directory: &Directory, now: u64, hashes: &[u64], location: &str) -> PutOutcome {
    put_under(directory, now, hashes, location, None)
}

fn put_under(
    directory: &Directory,
    now: u64,
    hashes: &[u64],
    location: &str,
    token: Option<u64>,
) -> PutOutcome {
    let put = PutLocations {
        namespace: &namespace("t/m"),
        hashes: &packed(hashes),
        location: &place(location),
        chain: Some(None),
        token,
    };
    directory.put_locations(at(now), &put).unwrap()
}

/// The location of each, "" for none.
fn lie(directory: &Directory, hashes: &[u64]) -> Vec<String> {
    let found = directory.find_locations(&namespace("t/m"), &packed(hashes));
    let found = found.unwrap();
    let text = |row: &Option<u32>| row.map_or("", |row| found.locations[row as usize].as_str());
    found.rows.iter().map(|row| text(row).to_owned()).collect()
}

fn forget(directory: &Directory, hashes: &[u64], location: Option<&str>) -> u64 {
    let location = location.map(place);
    let gone = directory.remove_locations(&namespace("t/m"), &packed(hashes), location.as_ref());
    gone.unwrap()
}

fn locate(directory: &Directory, mode: LocateMode, hashes: &[u64], locations: bool) -> Located {
    let query = LocateQuery {
        draw: 0,
        namespace: &namespace("t/m"),
        hashes: &packed(hashes),
        mode,
        max_candidates: 3,
        host_id: "",
        prefer: &Labels::default(),
        exclude: None,
        locations,
    };
    directory.locate(&query).unwrap()
}

/// A node with blocks 1 and 2.
fn with_node() -> Directory {
    let mut directory = directory();
    join(&mut directory, 1, "a", &[(0, 1, 2), (1, 2, 2)]);
    directory
}

#[test]
fn a_location_is_put_replaced_and_removed() {
    let directory = with_node();
    assert_eq!(put(&directory, 0, &[1, 3, 3], "s3://a").added, 2);
    assert_eq!(put(&directory, 0, &[3, 4], "fs:/b").added, 1);
    assert_eq!(
        lie(&directory, &[1, 2, 3, 4]),
        ["s3://a", "", "fs:/b", "fs:/b"]
    );
    assert_eq!(forget(&directory, &[3, 9], Some("s3://a")), 0);
    assert_eq!(forget(&directory, &[3, 9], Some("fs:/b")), 1);
    assert_eq!(forget(&directory, &[1, 4], None), 2);
    assert_eq!(lie(&directory, &[1, 3, 4]), [""; 3]);
    assert_eq!(directory.locations(), 0);
    let table = &directory.catalog.namespace(&namespace("t/m")).unwrap();
    assert!(table.locations.lock().nothing_is_left());
}

#[test]
fn locate_names_locations_of_what_nobody_offers_where_it_is_asked_to() {
    let directory = with_node();
    put(&directory, 0, &[1, 3], "s3://a");
    put(&directory, 0, &[5], "fs:/b");
    let hashes = [1, 2, 3, 4, 5];
    let set = locate(&directory, LocateMode::Set, &hashes, true);
    assert_eq!(set.counts, [1, 1, 0, 0, 0]);
    assert_eq!(
        (set.location_blocks, set.location_index),
        (vec![2, 4], vec![0, 1])
    );
    assert_eq!(set.locations, ["s3://a", "fs:/b"]);
    let prefix = locate(&directory, LocateMode::Prefix, &hashes, true);
    assert_eq!(
        (prefix.counts, prefix.location_blocks),
        (vec![1, 1, 0], vec![2])
    );
    let plain = locate(&directory, LocateMode::Prefix, &hashes, false);
    assert_eq!((plain.counts, plain.locations), (vec![1, 1], vec![]));
}

#[test]
fn a_stored_block_needs_no_claim_and_storing_fulfils_one() {
    let directory = with_node();
    let claim = |purpose, hashes: &[u64]| {
        let query = ClaimQuery {
            namespace: &namespace("t/m"),
            hashes: &packed(hashes),
            node: &node("a"),
            incarnation: incarnation(1),
            purpose,
            ttl: at(1_000),
        };
        directory.claim(at(0), &query).unwrap()
    };
    use ClaimOutcome::{Claimed, Granted, Stored};
    put(&directory, 0, &[3], "s3://a");
    let produce = claim(ClaimPurpose::Produce, &[1, 3, 4]);
    assert_eq!(produce.outcomes, [Stored, Stored, Granted]);
    // What lies in memory may be offloaded by one; who computes it is another matter.
    let store = claim(ClaimPurpose::Store, &[1, 3, 4]);
    assert_eq!(store.outcomes, [Granted, Stored, Granted]);
    let second = claim(ClaimPurpose::Store, &[1]);
    assert_eq!(second.outcomes, [Claimed(0)]);
    put_under(&directory, 1, &[1], "s3://a", store.token);
    assert_eq!(claim(ClaimPurpose::Store, &[1]).outcomes, [Stored]);
    assert_eq!(directory.claims_held(), 2);
}

#[test]
fn a_quota_of_slots_refuses_a_region_and_leaves_others_theirs() {
    let mut directory = directory();
    let quota = |slots, bytes| NamespacePolicy {
        max_slots: slots,
        max_slot_bytes: bytes,
        ..NamespacePolicy::default()
    };
    join(&mut directory, 1, "a", &[(0, 7, 2)]);
    let name = namespace("t/m");
    let mut seq = 1;
    let mut declare = |directory: &mut Directory, region, name: &str| {
        seq += 1;
        let delta = Delta {
            seq,
            regions_added: vec![declaration(region, name, 16)],
            ..Delta::default()
        };
        let session = SessionId(1);
        let effects = directory.handle(at(1), Event::Delta { session, delta });
        effects.into_iter().find_map(|effect| match effect {
            Effect::RegionRefused { refusal, .. } => Some(refusal.to_string()),
            _ => None,
        })
    };
    directory.set_policy(&name, quota(Some(31), None)).unwrap();
    let refused = declare(&mut directory, 2, "t/m").unwrap();
    assert!(
        refused.contains("31") && refused.contains("quota"),
        "{refused}"
    );
    assert_eq!(declare(&mut directory, 3, "t/other"), None, "another's");
    // Raised: who was refused is heard again, once.
    let enough = quota(None, Some(48 * BLOCK_BYTES));
    let asked = Effect::DeclareAgain {
        session: SessionId(1),
    };
    assert_eq!(directory.set_policy(&name, enough), Ok(vec![asked]));
    let regions = [(1, "t/m"), (2, "t/m"), (3, "t/other"), (4, "t/m")];
    let part = InventoryPart {
        seq: 3,
        first: true,
        last: true,
        regions: regions.map(|(id, name)| declaration(id, name, 16)).into(),
        sealed: vec![(RegionId(1), sealed(&[(0, 7, 2)]))],
    };
    let session = SessionId(1);
    let effects = directory.handle(at(1), Event::Inventory { session, part });
    assert_eq!(effects, [ack(1, 3)], "just enough for all of them");
    // Lowered: what is there stays, and nobody is asked.
    assert_eq!(
        directory.set_policy(&name, quota(Some(1), None)),
        Ok(vec![])
    );
    assert_eq!(
        directory.set_policy(&name, quota(Some(2), None)),
        Ok(vec![])
    );
    assert_ne!(find(&directory, &[7]), [[""; 0]]);
    // What goes makes room.
    let goodbye = Event::Goodbye {
        session: SessionId(1),
    };
    directory.handle(at(2), goodbye);
    directory.set_policy(&name, quota(Some(16), None)).unwrap();
    join(&mut directory, 2, "b", &[(0, 7, 2)]);
    assert_ne!(find(&directory, &[7]), [[""; 0]]);
}

#[test]
fn a_quota_forgets_the_least_recently_used_leaves() {
    let mut directory = with_node();
    let quota = |most, bytes| NamespacePolicy {
        max_locations: most,
        max_location_bytes: bytes,
        ..NamespacePolicy::default()
    };
    let name = namespace("t/m");
    directory.set_policy(&name, quota(Some(4), None)).unwrap();
    put(&directory, 0, &[10, 11, 12], "x");
    put(&directory, 0, &[20], "x");
    // 12 is the end of the chain that was used before 20.
    assert_eq!(put(&directory, 0, &[30], "x").evicted, 1);
    assert_eq!(lie(&directory, &[12]), [""]);
    // Asked for: now 20 is the coldest leaf.
    lie(&directory, &[10, 11]);
    put(&directory, 0, &[40], "x");
    assert_eq!(lie(&directory, &[10, 11, 20]), ["x", "x", ""]);
    // Lowered: the rest goes with the next ticks.
    directory
        .set_policy(&name, quota(None, Some(2 * BLOCK_BYTES)))
        .unwrap();
    assert!(directory.tidy_is_due(at(0)));
    assert!(directory.tidy(at(0), 1));
    assert!(!directory.tidy(at(0), 1));
    assert_eq!(directory.locations(), 2);
    assert!(!directory.tidy_is_due(at(0)));
}

#[test]
fn the_bound_forgets_the_least_recently_used_of_all_namespaces() {
    let mut directory = directory_of(Bounds {
        locations: 3,
        ..Bounds::default()
    });
    for name in ["t/m", "t/n"] {
        directory.create_namespace(&spec(name)).unwrap();
    }
    put(&directory, 0, &[1, 2], "x");
    let other = PutLocations {
        namespace: &namespace("t/n"),
        hashes: &packed(&[1, 2]),
        location: &place("y"),
        chain: None,
        token: None,
    };
    let outcome = directory.put_locations(at(0), &other).unwrap();
    assert_eq!((outcome.added, outcome.evicted), (2, 1));
    assert_eq!(lie(&directory, &[1, 2]), ["x", ""]);
    directory
        .delete_namespace(&namespace("t/n"), false)
        .unwrap();
    assert_eq!(directory.locations(), 1);
}

#[test]
fn a_location_expires_unless_its_block_is_offered_from_memory() {
    let mut directory = with_node();
    let ttl = NamespacePolicy {
        location_ttl: Some(at(1_000)),
        ..NamespacePolicy::default()
    };
    directory.set_policy(&namespace("t/m"), ttl).unwrap();
    put(&directory, 0, &[1, 3], "x");
    put(&directory, 500, &[4], "x");
    assert!(!directory.tidy_is_due(at(999)));
    directory.handle(at(1_000), Event::Tick);
    assert_eq!(lie(&directory, &[1, 3, 4]), ["x", "", "x"]);
    directory.handle(at(1_400), change_delta(1, 2, &[0], &[]));
    directory.handle(at(1_500), Event::Tick);
    assert_eq!(lie(&directory, &[1, 4]), ["x", ""], "1 has until 2,000");
    directory.handle(at(2_000), Event::Tick);
    assert_eq!(lie(&directory, &[1]), [""]);
    assert_eq!(directory.locations(), 0);
}
