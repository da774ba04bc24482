//! Reads that fail: typed, soon, and with the memory free afterwards.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use kvferry_ibverbs::{
    ChainError, ConnectOptions, PairOptions, PostError, ProtectionDomain, QueuePair,
    ReadableRegion, ReadyToSend, RegisterOptions, RemotePiece, WorkError, WorkStatus, lost_bytes,
};

use crate::rig::{self, Rig, at, contents, memory, patterned};

const BYTES: u64 = 4096;

/// Posts READs, one after the other in memory, of which number `wrong` names a key that is none.
fn post(
    rig: &Rig,
    pair: &QueuePair<ReadyToSend>,
    from: RemotePiece,
    count: u64,
    wrong: Option<u64>,
) -> std::sync::Weak<kvferry_memory::HostMemory> {
    let target = memory(count * BYTES);
    let to = rig.reader.local(&target);
    let mut chain = pair.chain();
    for read in 0..count {
        let piece = to.piece(read * BYTES..(read + 1) * BYTES).unwrap();
        let rkey = from.rkey ^ if wrong == Some(read) { 0x5500 } else { 0 };
        chain
            .push(read, RemotePiece { rkey, ..from }, [piece])
            .unwrap();
    }
    assert_eq!(pair.post(&mut chain).unwrap() as u64, count);
    // From here on only the queue pair holds the memory.
    Arc::downgrade(&target)
}

/// What keeps tenants apart: memory registered with one protection domain is not to be read over a queue pair of
/// another, whoever knows its key.
#[test]
fn a_key_of_another_domain_opens_nothing() {
    let Some(rig) = rig::rig() else { return };
    let (reader, _owner) = rig.connected();
    let secret = patterned(BYTES, 1);
    let apart = ProtectionDomain::new(&rig.owner.context).unwrap();
    let key = ReadableRegion::register(&apart, &secret, 0..BYTES, RegisterOptions::default());
    let key = key.unwrap().key();
    let target = memory(BYTES);
    let to = rig.reader.local(&target);
    let mut chain = reader.chain();
    chain
        .push(1, at(key, 0), [to.piece(0..BYTES).unwrap()])
        .unwrap();
    reader.post(&mut chain).unwrap();
    let done = rig.reader.collect(1);
    let failed = WorkError::Failed(WorkStatus::RemoteAccess);
    assert_eq!(done[0].result, Err(failed), "{done:?}");
    assert!(contents(&target, 0, BYTES).iter().all(|byte| *byte == 0));
}

#[test]
fn a_wrong_key_is_told_as_such_and_the_memory_is_free_afterwards() {
    let Some(rig) = rig::rig() else { return };
    let (reader, _owner) = rig.connected();
    let source = patterned(BYTES, 1);
    let from = rig.owner.readable(&source);
    let target = post(&rig, &reader, at(from.key(), 0), 8, Some(3));
    assert!(target.upgrade().is_some(), "held while in flight");
    let start = Instant::now();
    let done = rig.reader.collect(8);
    assert!(start.elapsed() < rig::PATIENCE);
    let failed = WorkError::Failed(WorkStatus::RemoteAccess);
    assert_eq!(done[3].result, Err(failed), "{done:?}");
    assert!(
        done[..3]
            .iter()
            .all(|finished| finished.result != Err(failed))
    );
    let flushed = WorkError::Failed(WorkStatus::Flushed);
    assert!(
        done[4..]
            .iter()
            .all(|finished| finished.result == Err(flushed))
    );
    println!("{:?}: {failed}", start.elapsed());
    assert_eq!(reader.in_flight(), 0);
    assert_eq!(reader.closed_by(), Some(WorkStatus::RemoteAccess));
    assert!(target.upgrade().is_none(), "free once settled");
    let mut chain = reader.chain();
    let to = rig.reader.local(&memory(BYTES));
    chain
        .push(1, at(from.key(), 0), [to.piece(0..8).unwrap()])
        .unwrap();
    assert!(matches!(
        reader.post(&mut chain),
        Err(PostError::Broken {
            status: Some(WorkStatus::RemoteAccess)
        })
    ));
}

#[test]
fn a_region_that_was_dropped_is_refused() {
    let Some(rig) = rig::rig() else { return };
    let (reader, _owner) = rig.connected();
    let from = rig.owner.readable(&patterned(BYTES, 1));
    let key = from.key();
    drop(from);
    post(&rig, &reader, at(key, 0), 1, None);
    assert_eq!(
        rig.reader.collect(1)[0].result,
        Err(WorkError::Failed(WorkStatus::RemoteAccess))
    );
}

#[test]
fn a_peer_that_is_gone_is_noticed() {
    let Some(rig) = rig::rig() else { return };
    let (reader, owner) = rig.connected();
    let source = patterned(BYTES, 1);
    let from = rig.owner.readable(&source);
    drop(owner);
    let target = post(&rig, &reader, at(from.key(), 0), 4, None);
    let start = Instant::now();
    let done = rig.reader.collect(4);
    println!("{:?}: {done:?}", start.elapsed());
    assert!(start.elapsed() < rig::PATIENCE);
    let gone = Err(WorkError::Failed(WorkStatus::RetriesExceeded));
    assert_eq!(done[0].result, gone);
    assert!(done.iter().all(|finished| finished.result.is_err()));
    assert!(target.upgrade().is_none());
    drop(reader);
}

#[test]
fn dropping_a_pair_with_reads_in_flight_settles_it() {
    let Some(rig) = rig::rig() else { return };
    let lost = lost_bytes();
    // A peer that will not answer for long: what is in flight stays so until it is given up.
    let slow = ConnectOptions {
        retries: 6,
        timeout_exponent: 20,
        ..ConnectOptions::default()
    };
    let (reader, owner) = rig.connect(PairOptions::default(), slow);
    let (other, _owner2) = rig.connected();
    let source = patterned(BYTES, 1);
    let from = rig.owner.readable(&source);
    drop(owner);
    let target = post(&rig, &reader, at(from.key(), 0), 64, None);
    assert!(target.upgrade().is_some());
    let start = Instant::now();
    drop(reader);
    println!("settled within {:?}", start.elapsed());
    // Not as long as the peer is waited for: half a minute.
    assert!(start.elapsed() < Duration::from_secs(12));
    assert!(target.upgrade().is_none(), "free once settled");
    assert_eq!(lost_bytes(), lost);
    let done = rig.reader.collect(64);
    assert!(
        done.iter().all(|finished| finished.result.is_err()),
        "{done:?}"
    );
    // And the others on the same completion queue go on.
    post(&rig, &other, at(from.key(), 0), 2, None);
    assert!(
        rig.reader
            .collect(2)
            .iter()
            .all(|finished| finished.result == Ok(()))
    );
}

#[test]
fn closing_while_reads_are_under_way_settles_all_of_them() {
    let Some(rig) = rig::rig() else { return };
    for round in 0..10 {
        let (reader, _owner) = rig.connected();
        let source = patterned(BYTES, 1);
        let from = rig.owner.readable(&source);
        let target = post(&rig, &reader, at(from.key(), 0), 100, None);
        std::thread::sleep(Duration::from_micros(300 * round));
        let memory = target.upgrade();
        let closed = reader.close();
        assert!(closed.settle(rig::PATIENCE).unwrap(), "round {round}");
        assert_eq!(closed.in_flight(), 0);
        if let Some(memory) = memory {
            // It is ours again: answers that are still on the wire must not arrive.
            let bytes = vec![0xee; usize::try_from(memory.len()).unwrap()];
            memory.write_at(0, &bytes).unwrap();
            std::thread::sleep(Duration::from_millis(20));
            assert!(contents(&memory, 0, memory.len()) == bytes, "round {round}");
        }
        assert!(target.upgrade().is_none());
        assert_eq!(rig.reader.collect(100).len(), 100);
    }
}

#[test]
fn wrong_use_is_refused_before_the_device_sees_it() {
    let Some(rig) = rig::rig() else { return };
    let options = PairOptions {
        max_pieces: 2,
        ..PairOptions::default()
    };
    let (reader, _owner) = rig.connect(options, ConnectOptions::default());
    let source = patterned(BYTES, 1);
    let from = rig.owner.readable(&source);
    let to = rig.reader.local(&memory(BYTES));
    let piece = || to.piece(0..8).unwrap();
    let mut chain = reader.chain();
    let remote = at(from.key(), 0);
    assert_eq!(chain.push(1, remote, []), Err(ChainError::Empty));
    let most = reader.max_pieces();
    let many: Vec<_> = (0..=most).map(|_| piece()).collect();
    assert!(matches!(
        chain.push(1, remote, many),
        Err(ChainError::TooManyPieces { .. })
    ));
    let most = reader.max_read_bytes();
    let big = memory(u64::from(most) + 8);
    let halves = rig.reader.local(&big);
    let half = u64::from(most) / 2 + 4;
    let pieces = [halves.piece(0..half), halves.piece(half..2 * half)];
    assert_eq!(
        chain.push(1, remote, pieces.map(Option::unwrap)),
        Err(ChainError::TooLong {
            bytes: u64::from(most) + 8,
            most
        })
    );
    assert_eq!(reader.post(&mut chain).unwrap(), 0);
    let foreign = kvferry_ibverbs::ProtectionDomain::new(&rig.reader.context).unwrap();
    let elsewhere = kvferry_ibverbs::LocalRegion::register(
        &foreign,
        &memory(BYTES),
        0..BYTES,
        kvferry_ibverbs::RegisterOptions::default(),
    )
    .unwrap();
    chain
        .push(1, remote, [elsewhere.piece(0..8).unwrap()])
        .unwrap();
    assert!(matches!(
        reader.post(&mut chain),
        Err(PostError::ForeignRegion)
    ));
    chain.clear();
    chain.push(1, remote, [piece()]).unwrap();
    assert_eq!(reader.post(&mut chain).unwrap(), 1);
    assert_eq!(rig.reader.collect(1)[0].result, Ok(()));
}

/// It removes a device: only where somebody said that it may, and in a guest of its own.
#[test]
fn a_device_that_is_removed_in_use_holds_nobody_up() {
    if std::env::var("KVFERRY_RDMA_UNPLUG").is_err() {
        return println!("skipped: KVFERRY_RDMA_UNPLUG is not set");
    }
    let Some(rig) = rig::rig() else { return };
    let slow = ConnectOptions {
        timeout_exponent: 20,
        ..ConnectOptions::default()
    };
    let (reader, owner) = rig.connect(PairOptions::default(), slow);
    let source = patterned(BYTES, 1);
    let from = rig.owner.readable(&source);
    drop(owner);
    let target = post(&rig, &reader, at(from.key(), 0), 8, None);
    let mut removal = std::process::Command::new("rdma")
        .args(["link", "del", rig.reader.context.name()])
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let start = Instant::now();
    drop(reader);
    println!(
        "closed within {:?}, {} bytes lost",
        start.elapsed(),
        lost_bytes()
    );
    assert!(start.elapsed() < Duration::from_secs(12));
    // Either the device gave it up, or it is never freed.
    assert_eq!(target.upgrade().is_some(), lost_bytes() > 0);
    assert_eq!(rig.reader.collect(8).len(), 8);
    drop((from, rig));
    assert!(removal.wait().unwrap().success());
}
