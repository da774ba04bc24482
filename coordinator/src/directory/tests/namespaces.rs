//! Namespaces and nodes, as operators see them.

use super::*;

#[test]
fn creation_is_idempotent_and_a_mismatch_names_both_fingerprints() {
    let mut directory = directory();
    assert_eq!(directory.create_namespace(&spec("t/m")), Ok(true));
    assert_eq!(directory.create_namespace(&spec("t/m")), Ok(false));
    let mut other = spec("t/m");
    other.layout = Layout::new("u8", 16, 2, 32).unwrap();
    let Err(CreateNamespaceError::Mismatch(text)) = directory.create_namespace(&other) else {
        panic!("another layout was taken in");
    };
    assert!(text.contains(&other.layout.fingerprint().to_string()));
    assert!(text.contains(&spec("t/m").layout.fingerprint().to_string()));
}

#[test]
fn the_bound_of_namespaces_counts_deleted_ones_out() {
    let bounds = Bounds {
        namespaces: 1,
        ..Bounds::default()
    };
    let mut directory = directory_of(bounds);
    directory.create_namespace(&spec("a")).unwrap();
    assert_eq!(
        directory.create_namespace(&spec("b")),
        Err(BoundReached::namespaces(&bounds).into())
    );
    directory.delete_namespace(&namespace("a"), false).unwrap();
    assert_eq!(directory.create_namespace(&spec("b")), Ok(true));
}

#[test]
fn a_namespace_in_use_is_deleted_by_force_only() {
    let mut directory = directory();
    let name = namespace("t/m");
    let unknown = NamespaceUnknown { name: name.clone() };
    assert_eq!(
        directory.delete_namespace(&name, true),
        Err(unknown.clone().into())
    );
    join(&mut directory, 1, "a", &[(0, 7, 2), (1, 7, 2)]);
    assert_eq!(
        directory.delete_namespace(&name, false),
        Err(DeleteNamespaceError::InUse {
            name: name.clone(),
            regions: 1
        })
    );
    assert_eq!(find(&directory, &[7]).concat().len(), 2);
    let (blocks, effects) = directory.delete_namespace(&name, true).unwrap();
    assert_eq!((blocks, effects.len()), (1, 1));
    assert_eq!(directory.namespace(&name), Err(unknown));
    assert_eq!(directory.catalog.totals(), (0, 0));
    // What is said about the region is acknowledged and ignored.
    let effects = directory.handle(at(1), change_delta(1, 2, &[99], &[(3, 9, 2)]));
    assert_eq!(effects, [ack(1, 2)]);
    // Another namespace of that name is another namespace.
    join(&mut directory, 2, "b", &[(0, 7, 2)]);
    assert_eq!(find(&directory, &[7]), [["b/0@2"]]);
    directory.handle(
        at(2),
        Event::Goodbye {
            session: SessionId(1),
        },
    );
    assert_eq!(find(&directory, &[7]), [["b/0@2"]]);
}

#[test]
fn a_node_is_described_and_its_drain_outlasts_a_restart() {
    let mut directory = directory();
    join(&mut directory, 1, "a", &[(0, 7, 2), (1, 8, 2)]);
    directory.drain_node(&node("a"), true).unwrap();
    let info = directory.node(at(40), &node("a")).unwrap();
    assert_eq!(info.state, NodeState::Draining);
    assert_eq!((info.blocks, info.bytes, info.silent), (2, 128, at(40)));
    assert_eq!(
        info.regions,
        [NodeRegion {
            region: RegionId(1),
            namespace: namespace("t/m"),
            slots: 16,
            sealed: 2
        }]
    );
    directory.handle(at(50), hello(2, "a", 2));
    let info = directory.node(at(50), &node("a")).unwrap();
    assert_eq!((info.state, info.blocks), (NodeState::Draining, 0));
    let unknown = NodeUnknown { node: node("z") };
    assert_eq!(directory.drain_node(&node("z"), true), Err(unknown.clone()));
    assert_eq!(directory.node(at(0), &node("z")), Err(unknown));
    assert_eq!(directory.nodes(at(50)).count(), 1);
}
