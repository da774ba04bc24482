//! What agents say in sessions, against a directory with small bounds: whatever it is, nothing stays of a node that is gone.

use std::time::Duration;

use kvferry_coordinator::{
    directory::{Bounds, Directory, DirectoryConfig, Event, SessionId},
    fuzz::session_events,
    parse,
};
use kvferry_proto::pb::{self, agent_message::Message as Said};
use prost::Message;

use crate::{Target, choices::Choices, world};

pub(super) const TARGET: Target = Target {
    name: "session",
    run,
    seeds,
};

const PURGE_AFTER: Duration = Duration::from_secs(30);
/// More than a run has sessions: it numbers them by a byte.
const SESSIONS: u64 = 4;

fn run(bytes: &[u8]) {
    let mut directory = Directory::new(DirectoryConfig {
        epoch: 1,
        hide_after: Duration::from_secs(3),
        purge_after: PURGE_AFTER,
        bounds: Bounds {
            namespaces: 2,
            nodes: 2,
            regions_per_node: 3,
            slots: 1 << 10,
            claims: 8,
            locations: 8,
            watch_log_bytes: Bounds::WATCH_LOG_BYTES,
        },
    });
    let mut now = Duration::ZERO;
    let mut choices = Choices::new(bytes);
    // The shell has the first message of a stream be a hello, and ends a stream on the first error.
    let mut open = [false; SESSIONS as usize];
    while !choices.is_empty() {
        let which = choices.u8();
        let session = u64::from(which) % SESSIONS;
        now += Duration::from_millis(u64::from(which >> 2) * 50);
        let Ok(message) = pb::AgentMessage::decode(choices.bytes()) else {
            continue;
        };
        let Some(said) = message.message else {
            directory.handle(now, Event::Tick);
            continue;
        };
        let at = session as usize;
        let session = SessionId(session + 1);
        let events = match said {
            Said::Hello(hello) => parse::hello(hello).ok().map(|hello| {
                open[at] = true;
                (Event::Hello { session, hello }, None)
            }),
            Said::Replicated(_) => continue,
            said if open[at] => session_events(session, said).ok(),
            _ => continue,
        };
        match events {
            Some((first, then)) => {
                for event in [Some(first), then].into_iter().flatten() {
                    directory.handle(now, event);
                }
            }
            None => {
                open[at] = false;
                directory.handle(now, Event::SessionEnded { session });
            }
        }
        assert!(directory.nodes(now).count() <= 2 && directory.namespaces().count() <= 2);
    }
    for session in 1..=SESSIONS {
        let session = SessionId(session);
        directory.handle(now, Event::SessionEnded { session });
    }
    directory.handle(now + PURGE_AFTER, Event::Tick);
    assert_eq!(directory.nodes(now + PURGE_AFTER).count(), 0);
    for namespace in directory.namespaces() {
        assert_eq!(
            (namespace.blocks, namespace.owners, namespace.regions),
            (0, 0, 0)
        );
    }
}

fn said(session: u8, said: Said) -> Vec<u8> {
    let message = pb::AgentMessage {
        message: Some(said),
    };
    world::part(session, &message.encode_to_vec())
}

/// A session's messages, from hello to goodbye.
pub(super) fn conversation(node: &str) -> Vec<Said> {
    let delta = pb::Delta {
        seq: 1,
        regions_added: vec![world::declaration(1, 8)],
        changes: vec![world::sealed(1, 0, 6)],
        ..pb::Delta::default()
    };
    let change = pb::RegionChange {
        region: 1,
        removed_slots: vec![0, 1],
        added: None,
    };
    let removal = pb::Delta {
        seq: 2,
        changes: vec![change],
        regions_removed: vec![2],
        ..pb::Delta::default()
    };
    let inventory = pb::Inventory {
        seq: 3,
        first: true,
        last: true,
        regions: vec![world::declaration(1, 8), world::declaration(2, 4)],
        sealed: vec![world::sealed(1, 4, 4), world::sealed(2, 4, 2)],
    };
    let heartbeat = pb::Heartbeat {
        number: 1,
        next_delta: 2,
        stale_blocks: 2,
        reads: vec![pb::SourceReads {
            node: "b".into(),
            bytes: 1 << 20,
        }],
    };
    vec![
        Said::Hello(world::hello(node)),
        Said::Delta(delta),
        Said::Heartbeat(heartbeat),
        Said::Delta(removal),
        Said::Inventory(inventory),
        Said::Goodbye(pb::Goodbye {}),
    ]
}

fn seeds() -> Vec<Vec<u8>> {
    let one: Vec<u8> = conversation("a")
        .into_iter()
        .flat_map(|message| said(0, message))
        .collect();
    let two = conversation("a").into_iter().zip(conversation("b"));
    let two = two.flat_map(|(a, b)| [said(1, a), said(2, b)].concat());
    vec![one, two.collect()]
}
