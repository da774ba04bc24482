//! Locate: from the bytes of a request to the bytes of an answer, written while the index is searched; and to what a
//! reader makes of it.

use std::time::Duration;

use kvferry_agent::coordinators::Located;
use kvferry_coordinator::{
    answer_locate,
    directory::{Bounds, Directory, DirectoryConfig, Event, PutLocations, SessionId},
    fuzz::locate_as_sent,
    parse,
};
use kvferry_proto::{Location, PackedHashes, pb};
use prost::Message;

use crate::{Target, world};

pub(super) const TARGET: Target = Target {
    name: "locate",
    run,
    seeds,
};

fn run(bytes: &[u8]) {
    thread_local! {
        static DIRECTORY: Directory = directory();
    }
    let Ok(request) = pb::LocateRequest::decode(bytes) else {
        return;
    };
    let asked = request.hashes.as_ref().map_or(0, |h| h.hashes.len() / 8);
    let (sent, message) = DIRECTORY.with(|directory| {
        (
            locate_as_sent(directory, request.clone()),
            answer_locate(directory, request),
        )
    });
    match (sent, message) {
        (Ok(sent), Ok(message)) => {
            assert_eq!(sent, message.encode_to_vec(), "the codec is not prost's");
            // A reader takes every answer of a coordinator.
            let located = Located::parse(message, asked, world::BLOCK_BYTES).unwrap();
            assert!(located.len() <= asked);
        }
        (Err(one), Err(other)) => assert_eq!(one.code(), other.code()),
        (one, other) => panic!("one answers, the other does not: {one:?} {other:?}"),
    }
}

/// Two owners, one of them draining; blocks 0 to 5, 3 to 8; locations of 100 to 102.
fn directory() -> Directory {
    let mut directory = Directory::new(DirectoryConfig {
        epoch: 1,
        hide_after: Duration::from_secs(3),
        purge_after: Duration::from_secs(30),
        bounds: Bounds::default(),
    });
    directory.create_namespace(&world::spec()).unwrap();
    for (session, (node, first)) in (1..).zip([("a", 0), ("b", 3), ("c", 3)]) {
        let session = SessionId(session);
        let hello = parse::hello(world::hello(node)).unwrap();
        directory.handle(Duration::ZERO, Event::Hello { session, hello });
        let delta = pb::Delta {
            seq: 1,
            regions_added: vec![world::declaration(1, 8)],
            changes: vec![world::sealed(1, first, 6)],
            ..pb::Delta::default()
        };
        let delta = parse::delta(delta).unwrap();
        directory.handle(Duration::ZERO, Event::Delta { session, delta });
    }
    let draining = "c".parse().unwrap();
    directory.drain_node(&draining, true).unwrap();
    let spec = world::spec();
    let hashes = PackedHashes::parse(world::hashes(100, 3), spec.hash_len).unwrap();
    let put = PutLocations {
        namespace: &spec.name,
        hashes: &hashes,
        location: &Location::new("s3://bucket").unwrap(),
        chain: None,
        token: None,
    };
    directory.put_locations(Duration::ZERO, &put).unwrap();
    directory
}

pub(super) fn request() -> pb::LocateRequest {
    pb::LocateRequest {
        namespace: "t/m".into(),
        hashes: Some(world::hashes(0, 10)),
        mode: pb::LocateMode::Set.into(),
        host_id: "h".into(),
        ..pb::LocateRequest::default()
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let locations = pb::LocateRequest {
        hashes: Some(world::hashes(98, 6)),
        with_locations: true,
        max_candidates: 3,
        ..request()
    };
    let prefix = pb::LocateRequest {
        mode: pb::LocateMode::Prefix.into(),
        exclude_node: "a".into(),
        prefer_labels: [("rack".to_owned(), "r1".to_owned())].into(),
        max_candidates: 1,
        ..request()
    };
    [request(), locations, prefix]
        .iter()
        .map(Message::encode_to_vec)
        .collect()
}
