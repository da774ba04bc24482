//! Tests of the directory as a machine: events in, exact effects out.

mod changes;
mod claims;
mod inventories;
mod liveness;
mod locates;
mod locations;
mod model;
mod namespaces;
mod surplus;
mod watch;

use std::time::Duration;

use kvferry_proto::{
    BlockHash, ChecksumPolicy, Geometry, HashLen, Incarnation, Labels, Layout, NamespaceName,
    NamespaceSpec, NodeAddresses, NodeId, PackedHashes, RegionId,
};

use super::*;

const EPOCH: u64 = 0xabc;
const HIDE: Duration = Duration::from_secs(3);
const PURGE: Duration = Duration::from_secs(30);
const BLOCK_BYTES: u64 = 64;

fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn directory() -> Directory {
    directory_of(Bounds::default())
}

fn directory_of(bounds: Bounds) -> Directory {
    Directory::new(DirectoryConfig {
        epoch: EPOCH,
        hide_after: HIDE,
        purge_after: PURGE,
        bounds,
    })
}

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn namespace(name: &str) -> NamespaceName {
    NamespaceName::new(name).unwrap()
}

fn spec(name: &str) -> NamespaceSpec {
    NamespaceSpec {
        name: namespace(name),
        layout: Layout::new("u8", 16, 1, BLOCK_BYTES).unwrap(),
        hash_len: HashLen::new(8).unwrap(),
        checksum: ChecksumPolicy::Off,
    }
}

fn incarnation(number: u64) -> Incarnation {
    Incarnation::new(number).unwrap()
}

fn hash(number: u64) -> BlockHash {
    BlockHash::new(&number.to_be_bytes()).unwrap()
}

fn packed(numbers: &[u64]) -> PackedHashes {
    let hashes: Vec<BlockHash> = numbers.iter().map(|n| hash(*n)).collect();
    PackedHashes::pack(HashLen::new(8).unwrap(), &hashes).unwrap()
}

fn hello(session: u64, name: &str, lifetime: u64) -> Event {
    hello_from(session, name, lifetime, EPOCH, 1, 1)
}

fn hello_from(
    session: u64,
    name: &str,
    lifetime: u64,
    epoch: u64,
    oldest: u64,
    next: u64,
) -> Event {
    Event::Hello {
        session: SessionId(session),
        hello: Hello {
            node: node(name),
            incarnation: incarnation(lifetime),
            addresses: NodeAddresses::default(),
            labels: Labels::default(),
            coordinator_epoch: epoch,
            oldest_delta: oldest,
            next_delta: next,
        },
    }
}

fn declaration(region: u32, namespace: &str, slots: u32) -> RegionDeclaration {
    RegionDeclaration {
        region: RegionId(region),
        namespace: spec(namespace),
        geometry: Geometry::contiguous(slots, BLOCK_BYTES).unwrap(),
        denied: None,
    }
}

/// (slot, hash, generation) of each.
fn sealed(slots: &[(u32, u64, u64)]) -> SealedSlots {
    let hashes: Vec<u64> = slots.iter().map(|s| s.1).collect();
    SealedSlots {
        hashes: (!slots.is_empty()).then(|| packed(&hashes)),
        slots: slots.iter().map(|s| s.0).collect(),
        generations: slots.iter().map(|s| s.2).collect(),
        checksums: Vec::new(),
    }
}

fn change(region: u32, removed: &[u32], added: &[(u32, u64, u64)]) -> RegionChange {
    RegionChange {
        region: RegionId(region),
        removed_slots: removed.to_vec(),
        added: sealed(added),
    }
}

fn delta(session: u64, delta: Delta) -> Event {
    Event::Delta {
        session: SessionId(session),
        delta,
    }
}

/// A delta that declares region 1 of namespace "t/m" with 16 slots, and seals slots of it.
fn first_delta(session: u64, added: &[(u32, u64, u64)]) -> Event {
    delta(
        session,
        Delta {
            seq: 1,
            regions_added: vec![declaration(1, "t/m", 16)],
            changes: vec![change(1, &[], added)],
            ..Delta::default()
        },
    )
}

fn change_delta(session: u64, seq: u64, removed: &[u32], added: &[(u32, u64, u64)]) -> Event {
    delta(
        session,
        Delta {
            seq,
            changes: vec![change(1, removed, added)],
            ..Delta::default()
        },
    )
}

fn welcome(session: u64, expect_delta: u64, resync: bool) -> Effect {
    Effect::Welcome {
        session: SessionId(session),
        expect_delta,
        resync,
    }
}

fn ack(session: u64, seq: u64) -> Effect {
    Effect::Ack {
        session: SessionId(session),
        seq,
    }
}

fn closed(session: u64, cause: impl Into<CloseCause>) -> Effect {
    Effect::Close {
        session: SessionId(session),
        cause: cause.into(),
    }
}

fn removed(name: &str, lifetime: u64, cause: RemovalCause) -> Effect {
    Effect::NodeRemoved {
        node: node(name),
        incarnation: incarnation(lifetime),
        cause,
    }
}

/// A node with region 1 of "t/m" and these slots, in sync at delta 1.
fn join(directory: &mut Directory, session: u64, name: &str, added: &[(u32, u64, u64)]) {
    let effects = directory.handle(at(0), hello(session, name, 1));
    assert_eq!(effects, [welcome(session, 1, false)]);
    let effects = directory.handle(at(0), first_delta(session, added));
    assert_eq!(effects, [ack(session, 1)]);
}

/// Candidates of each block as "node/slot@generation", set mode.
fn find(directory: &Directory, hashes: &[u64]) -> Vec<Vec<String>> {
    let name = namespace("t/m");
    let hashes = packed(hashes);
    let located = directory
        .locate(&LocateQuery {
            namespace: &name,
            hashes: &hashes,
            mode: LocateMode::Set,
            max_candidates: MAX_CANDIDATES,
            host_id: "",
            prefer: &Labels::default(),
            exclude: None,
            draw: 0,
            locations: false,
        })
        .unwrap();
    spell(&located)
}

fn spell(located: &Located) -> Vec<Vec<String>> {
    let mut row = 0;
    let block = |count: &u32| {
        let rows = row..row + *count as usize;
        row = rows.end;
        rows.map(|row| {
            let owner = &located.owners[located.owner_index[row] as usize];
            let (slot, generation) = (located.slots[row], located.generations[row]);
            format!("{}/{slot}@{generation}", owner.node)
        })
        .collect()
    };
    located.counts.iter().map(block).collect()
}

/// How an event is taken in.
type Way = fn(&mut Directory, Duration, Event) -> Vec<Effect>;

/// As a shell does that shares the directory with look-ups: what needs it only to read first, and
/// slots one by one. Nothing is swept.
fn step_by_step(directory: &mut Directory, now: Duration, event: Event) -> Vec<Effect> {
    let begun = directory.begin_shared(now, event);
    let begun = begun.or_else(|event| Ok::<_, ()>(directory.begin(now, *event)));
    let Begun { mut effects, rest } = begun.unwrap();
    if let Some(mut rest) = rest {
        effects.extend(loop {
            match directory.go_on(&mut rest, 1) {
                Gone::On => {}
                Gone::Through(effects) => break effects,
                Gone::ToFinish => break directory.finish(rest),
            }
        });
    }
    effects
}

fn step_by_step_and_sweep(directory: &mut Directory, now: Duration, event: Event) -> Vec<Effect> {
    let effects = step_by_step(directory, now, event);
    while directory.sweep(1) {}
    directory.reap();
    effects
}

/// Nothing is left of nodes that are gone.
fn assert_empty(directory: &Directory) {
    assert_eq!(directory.catalog.totals(), (0, 0));
    for info in directory.namespaces() {
        assert_eq!((info.blocks, info.owners, info.regions), (0, 0, 0));
    }
    assert!(directory.sessions.is_empty());
    assert!(directory.leases.lock().is_empty());
    assert_eq!(directory.nodes.len(), 0);
}
