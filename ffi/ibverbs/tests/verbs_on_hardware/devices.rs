//! What devices tell of themselves.

use kvferry_ibverbs::{
    GidKind, GidPreference, Library, LinkLayer, ListError, PortAddressError, PortState,
};

use crate::rig;

#[test]
fn devices_are_listed_with_ports_and_addresses() {
    let contexts = match rig::contexts() {
        Ok(contexts) => contexts,
        Err(why) => return rig::skip(&why),
    };
    for context in contexts {
        let attributes = context.attributes();
        println!(
            "{} numa {:?} {attributes:?}",
            context.name(),
            context.numa_node()
        );
        assert!(attributes.max_queue_depth > 0 && attributes.max_pieces > 0);
        assert!(attributes.initiator_depth > 0 && attributes.responder_depth > 0);
        assert!(attributes.max_region_bytes > 0 && attributes.ports > 0);
        for port in context.ports().unwrap() {
            let gids = context.gids(port.number).unwrap();
            println!("  {port:?}");
            for gid in &gids {
                println!("    {gid}");
            }
            let chosen = context.address(port.number, GidPreference::Auto);
            match (port.state, port.link_layer) {
                (PortState::Active, LinkLayer::Ethernet) => {
                    let chosen = chosen.unwrap();
                    let entry = gids
                        .iter()
                        .find(|entry| entry.index == u32::from(chosen.gid_index))
                        .unwrap();
                    assert_eq!(entry.kind, GidKind::RoceV2);
                    let any_v4 = gids
                        .iter()
                        .any(|e| e.kind == GidKind::RoceV2 && e.gid.ip().is_ipv4());
                    assert_eq!(chosen.gid.ip().is_ipv4(), any_v4);
                }
                (PortState::Active, LinkLayer::InfiniBand) => assert!(chosen.unwrap().lid > 0),
                _ => assert!(matches!(chosen, Err(PortAddressError::Address(_)))),
            }
            let error = context
                .address(port.number, GidPreference::Index(201))
                .unwrap_err();
            println!("  {error}");
            assert!(error.to_string().contains(context.name()));
        }
    }
}

#[test]
fn a_port_that_is_not_there_is_an_error() {
    let Some(rig) = rig::rig() else { return };
    let error = rig.reader.context.port(99).unwrap_err();
    assert_eq!(error.port, 99);
}

#[test]
fn missing_device_nodes_are_told() {
    if std::env::var("KVFERRY_RDMA_NO_NODES").is_err() {
        return println!("skipped: KVFERRY_RDMA_NO_NODES is not set");
    }
    let error = Library::load().unwrap().devices().unwrap_err();
    println!("{error}");
    assert!(matches!(&error, ListError::NoNodes { devices } if !devices.is_empty()));
    assert!(error.to_string().contains("--device /dev/infiniband"));
}
