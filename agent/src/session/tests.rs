//! The session's rules, one test each, by exact commands.

use std::{sync::Arc, time::Duration};

use kvferry_memory::{GenerationTable, HostMemory};
use kvferry_proto::{
    BlockHash, ChecksumPolicy, Generation, Geometry, HashLen, Layout, NamespaceName, NamespaceSpec,
    RegionId, Slot,
};

use super::{ChangeLog, Command, Event, LogEntry, Open, SessionConfig, SessionMachine};
use crate::region::{Change, ChangeSink, Region};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn commands(machine: &mut SessionMachine) -> Vec<Command> {
    std::iter::from_fn(|| machine.poll_command()).collect()
}

fn tick(next_delta: u64) -> Event {
    Event::Tick { next_delta }
}

fn welcome(epoch: u64, expect_delta: Option<u64>) -> Event {
    Event::Welcomed {
        epoch,
        heartbeat: ms(1000),
        expect_delta,
    }
}

fn beat(number: u64, next_delta: u64) -> Command {
    Command::SendHeartbeat { number, next_delta }
}

/// A machine that was just welcomed and asked for deltas from 1.
fn live() -> SessionMachine {
    let mut machine = SessionMachine::new(SessionConfig::default());
    machine.handle(ms(0), tick(1));
    machine.handle(ms(0), Event::Connected);
    machine.handle(ms(0), welcome(7, Some(1)));
    assert_eq!(
        commands(&mut machine),
        [Command::Connect, Command::SendHello { epoch: 0 }]
    );
    machine
}

#[test]
fn deltas_follow_each_other_within_a_window() {
    let mut machine = live();
    machine.handle(ms(1), tick(4));
    assert_eq!(
        commands(&mut machine),
        [1, 2, 3].map(Command::SendDelta).to_vec()
    );
    machine.handle(ms(1), tick(4));
    assert_eq!(commands(&mut machine), []);
    machine.handle(ms(2), tick(1000));
    assert_eq!(commands(&mut machine).len(), 61);
    machine.handle(ms(3), Event::Acknowledged(2));
    assert_eq!(
        commands(&mut machine),
        [65, 66].map(Command::SendDelta).to_vec()
    );
    assert_eq!(machine.acknowledged(), 2);
}

#[test]
fn a_coordinator_that_expects_a_later_delta_gets_just_that() {
    let mut machine = live();
    machine.handle(ms(1), tick(10));
    commands(&mut machine);
    machine.handle(ms(2), Event::Disconnected);
    machine.handle(ms(500), tick(10));
    machine.handle(ms(500), Event::Connected);
    machine.handle(ms(500), welcome(7, Some(8)));
    assert_eq!(
        commands(&mut machine),
        [
            Command::Connect,
            Command::SendHello { epoch: 7 },
            Command::SendDelta(8),
            Command::SendDelta(9),
        ]
    );
    assert_eq!(machine.acknowledged(), 7);
}

#[test]
fn a_restarted_coordinator_gets_an_inventory_and_what_came_after() {
    let mut machine = live();
    machine.handle(ms(1), tick(5));
    machine.handle(ms(1), Event::Acknowledged(4));
    commands(&mut machine);
    machine.handle(ms(2), Event::Disconnected);
    machine.handle(ms(500), tick(5));
    machine.handle(ms(500), Event::Connected);
    machine.handle(ms(500), welcome(8, None));
    assert_eq!(machine.acknowledged(), 0);
    assert!(!machine.is_live());
    machine.handle(ms(501), tick(7));
    assert_eq!(
        commands(&mut machine),
        [
            Command::Connect,
            Command::SendHello { epoch: 7 },
            Command::SendInventory
        ]
    );
    machine.handle(ms(502), Event::InventorySent(5));
    assert_eq!(commands(&mut machine), [Command::SendDelta(6)]);
    machine.handle(ms(503), Event::Acknowledged(6));
    assert_eq!(machine.acknowledged(), 6);
}

/// Found by the simulation: the coordinator forgot a node that was silent, and the log had moved on.
#[test]
fn a_coordinator_that_forgot_us_has_acknowledged_nothing() {
    let mut machine = live();
    machine.handle(ms(1), tick(10));
    machine.handle(ms(2), Event::Acknowledged(9));
    assert_eq!(machine.acknowledged(), 9);
    machine.handle(ms(3), Event::Disconnected);
    machine.handle(ms(10_000), tick(10));
    machine.handle(ms(10_000), Event::Connected);
    // The same lifetime, and yet it wants everything.
    machine.handle(ms(10_001), welcome(7, None));
    machine.handle(ms(10_001), Event::InventorySent(9));
    assert_eq!(machine.acknowledged(), 0);
    machine.handle(ms(10_002), Event::Acknowledged(9));
    assert_eq!(machine.acknowledged(), 9);
}

#[test]
fn a_coordinator_that_expects_what_never_was_gets_an_inventory() {
    for expected in [0, 5, u64::MAX] {
        let mut machine = SessionMachine::new(SessionConfig::default());
        machine.handle(ms(0), tick(4));
        machine.handle(ms(0), Event::Connected);
        commands(&mut machine);
        machine.handle(ms(1), welcome(7, Some(expected)));
        assert_eq!(commands(&mut machine), [Command::SendInventory]);
        assert_eq!(machine.acknowledged(), 0);
    }
}

#[test]
fn what_has_ended_stays_ended() {
    let mut fenced = live();
    fenced.handle(ms(1), Event::Fenced);
    assert_eq!(commands(&mut fenced), [Command::GiveUp]);
    let mut stopped = SessionMachine::new(SessionConfig::default());
    stopped.handle(ms(0), Event::Stop);
    for mut ended in [fenced, stopped] {
        ended.handle(ms(2), Event::Fenced);
        ended.handle(ms(60_000), tick(9));
        assert_eq!(commands(&mut ended), []);
        assert_eq!(ended.poll_timeout(), None);
    }
}

#[test]
fn a_gap_leads_to_one_inventory() {
    let mut machine = live();
    machine.handle(ms(1), tick(3));
    machine.handle(ms(1), Event::ResyncRequested);
    machine.handle(ms(1), Event::ResyncRequested);
    // Deltas that were still to be sent are in the inventory.
    assert_eq!(commands(&mut machine), [Command::SendInventory]);
    assert_eq!(machine.resyncs(), 1);
    machine.handle(ms(2), Event::InventorySent(2));
    assert_eq!(commands(&mut machine), []);
    machine.handle(ms(3), Event::DeltaForgotten);
    assert_eq!(commands(&mut machine), [Command::SendInventory]);
}

#[test]
fn acknowledgements_of_what_was_never_sent_count_for_nothing() {
    let mut machine = live();
    machine.handle(ms(1), tick(3));
    machine.handle(ms(1), Event::Acknowledged(u64::MAX));
    assert_eq!(machine.acknowledged(), 2);
}

#[test]
fn heartbeats_are_sent_and_silence_ends_the_session() {
    let mut machine = live();
    assert_eq!(machine.poll_timeout(), Some(ms(1000)));
    machine.handle(ms(1000), tick(1));
    assert_eq!(commands(&mut machine), [beat(1, 1)]);
    machine.handle(ms(1001), Event::HeartbeatAnswered);
    for now in [2000, 3000, 4000, 5000] {
        machine.handle(ms(now), tick(1));
    }
    assert_eq!(commands(&mut machine).len(), 4);
    machine.handle(ms(5001), tick(1));
    assert_eq!(commands(&mut machine), [Command::Disconnect]);
    // Late words of the old stream change nothing.
    machine.handle(ms(5002), Event::HeartbeatAnswered);
    machine.handle(ms(5002), welcome(7, Some(1)));
    machine.handle(ms(5002), Event::Disconnected);
    assert_eq!(commands(&mut machine), []);
}

#[test]
fn heartbeats_say_which_delta_comes_next_after_what_was_sent() {
    let mut machine = live();
    machine.handle(ms(1), tick(4));
    commands(&mut machine);
    // Deltas that are found with the heartbeat follow it.
    machine.handle(ms(1000), tick(6));
    let (four, five) = (Command::SendDelta(4), Command::SendDelta(5));
    assert_eq!(commands(&mut machine), [beat(1, 4), four, five]);
    // The window is full: what is recorded and not sent does not count.
    machine.handle(ms(1500), tick(1000));
    commands(&mut machine);
    machine.handle(ms(2000), tick(1000));
    assert_eq!(commands(&mut machine), [beat(2, 65)]);
    // On another stream it is what that coordinator asked for.
    machine.handle(ms(2001), Event::Disconnected);
    machine.handle(ms(2500), tick(1000));
    machine.handle(ms(2500), Event::Connected);
    machine.handle(ms(2500), welcome(7, Some(1000)));
    machine.handle(ms(3500), tick(1000));
    assert_eq!(
        commands(&mut machine).last(),
        Some(&beat(3, 1000)),
        "as it asked"
    );
}

#[test]
fn heartbeats_say_nothing_while_an_inventory_is_due() {
    let mut machine = live();
    machine.handle(ms(1), Event::ResyncRequested);
    machine.handle(ms(1000), tick(9));
    assert_eq!(commands(&mut machine), [Command::SendInventory, beat(1, 0)]);
    machine.handle(ms(1001), Event::InventorySent(8));
    machine.handle(ms(2000), tick(9));
    assert_eq!(commands(&mut machine), [beat(2, 9)]);
    // One that waits behind deltas which are not sent any more.
    machine.handle(ms(2001), tick(12));
    machine.handle(ms(3000), tick(12));
    machine.handle(ms(3000), Event::DeltaForgotten);
    assert_eq!(commands(&mut machine), [beat(3, 0), Command::SendInventory]);
}

/// It is sent when there is something in it; told as sent before that, each heartbeat would cost an inventory.
#[test]
fn a_delta_that_was_taken_back_is_not_said_to_have_been_sent() {
    let mut machine = live();
    machine.handle(ms(1), tick(4));
    machine.handle(ms(1000), tick(4));
    let sent: Vec<_> = (0..3).filter_map(|_| machine.poll_command()).collect();
    assert_eq!(sent, [1, 2, 3].map(Command::SendDelta).to_vec());
    machine.handle(ms(1000), Event::DeltaTakenBack(3));
    assert_eq!(commands(&mut machine), [beat(1, 3)]);
    machine.handle(ms(1001), tick(3));
    assert_eq!(commands(&mut machine), []);
    machine.handle(ms(1002), tick(4));
    assert_eq!(commands(&mut machine), [Command::SendDelta(3)]);
}

#[test]
fn pauses_grow_with_failures_and_are_bounded() {
    let mut machine = SessionMachine::new(SessionConfig::default());
    let mut now = ms(0);
    let mut pauses = Vec::new();
    for _ in 0..12 {
        machine.handle(now, tick(1));
        assert_eq!(commands(&mut machine), [Command::Connect]);
        machine.handle(now, Event::Disconnected);
        let until = machine.poll_timeout().unwrap();
        pauses.push(until - now);
        now = until;
    }
    assert!(pauses[0] >= ms(50) && pauses[0] <= ms(100), "{pauses:?}");
    assert!(pauses[11] >= ms(2500) && pauses[11] <= ms(5000));
}

#[test]
fn a_hello_without_answer_is_tried_again() {
    let mut machine = SessionMachine::new(SessionConfig::default());
    machine.handle(ms(0), tick(1));
    machine.handle(ms(0), Event::Connected);
    machine.handle(ms(4999), tick(1));
    commands(&mut machine);
    machine.handle(ms(5000), tick(1));
    assert_eq!(commands(&mut machine), [Command::Disconnect]);
    assert!(machine.poll_timeout().unwrap() > ms(5000));
}

#[test]
fn who_was_fenced_after_a_welcome_gives_up_and_who_was_not_keeps_asking() {
    let mut old = live();
    old.handle(ms(1), Event::Fenced);
    assert_eq!(commands(&mut old), [Command::GiveUp]);
    assert_eq!(old.poll_timeout(), None);

    let mut new = SessionMachine::new(SessionConfig::default());
    new.handle(ms(0), tick(1));
    new.handle(ms(0), Event::Connected);
    commands(&mut new);
    new.handle(ms(1), Event::Fenced);
    assert_eq!(commands(&mut new), [Command::Disconnect]);
    assert!(new.poll_timeout().is_some());
}

#[test]
fn stopping_says_goodbye_once() {
    let mut machine = live();
    machine.handle(ms(1), Event::Stop);
    machine.handle(ms(1), Event::Stop);
    assert_eq!(commands(&mut machine), [Command::SendGoodbye]);
}

// ---- the log ------------------------------------------------------------------------------------

fn region(id: u32) -> Arc<Region> {
    let spec = NamespaceSpec {
        name: NamespaceName::new("n").unwrap(),
        layout: Layout::new("u8", 1, 1, 8).unwrap(),
        hash_len: HashLen::new(8).unwrap(),
        checksum: ChecksumPolicy::Off,
    };
    Arc::new(Region {
        id: RegionId(id),
        namespace: Arc::new(spec),
        geometry: Geometry::contiguous(4, 8).unwrap(),
        memory: HostMemory::anonymous(32).unwrap().into(),
        generations: Arc::new(GenerationTable::new(4).unwrap()),
        pool: true,
    })
}

fn sealed(region: u32, slot: u32, hash: u8, generation: u64) -> Change {
    Change::Sealed {
        region: RegionId(region),
        slot: Slot(slot),
        hash: BlockHash::new(&[hash; 8]).unwrap(),
        generation: Generation(generation),
        checksum: None,
    }
}

fn removed(region: u32, slot: u32) -> Change {
    Change::Removed {
        region: RegionId(region),
        slot: Slot(slot),
    }
}

fn read(log: &ChangeLog, seq: u64) -> kvferry_proto::pb::Delta {
    match log.read(seq) {
        LogEntry::Delta(delta) => delta.to_message(seq),
        other => panic!("{other:?} at {seq}"),
    }
}

#[test]
fn a_batch_says_the_last_state_of_each_slot() {
    let log = ChangeLog::new();
    log.record(Change::RegionAdded(region(1)));
    log.record(sealed(1, 0, 1, 2));
    log.record(removed(1, 0));
    log.record(sealed(1, 0, 2, 4));
    log.record(sealed(1, 1, 3, 2));
    log.record(removed(1, 1));
    let delta = read(&log, 1);
    assert_eq!(delta.regions_added.len(), 1);
    assert_eq!(delta.changes.len(), 1);
    let change = &delta.changes[0];
    assert_eq!(change.removed_slots, [1]);
    let added = change.added.as_ref().unwrap();
    assert_eq!(
        (&added.slots[..], &added.generations[..]),
        (&[0][..], &[4][..])
    );
    assert!(added.checksums.is_empty());
}

#[test]
fn the_log_keeps_no_memory_of_regions() {
    let log = ChangeLog::new();
    let region = region(1);
    let memory = Arc::downgrade(&region);
    log.record(Change::RegionAdded(region));
    assert_eq!(read(&log, 1).regions_added.len(), 1);
    log.record(Change::RegionRemoved(RegionId(1)));
    assert!(memory.upgrade().is_none());
}

#[test]
fn a_region_that_came_and_went_is_not_spoken_of() {
    let log = ChangeLog::new();
    log.record(Change::RegionAdded(region(1)));
    log.record(sealed(1, 0, 1, 2));
    log.record(Change::RegionRemoved(RegionId(1)));
    assert!(
        matches!(log.read(1), LogEntry::Delta(delta) if delta.is_empty())
            || matches!(log.read(1), LogEntry::UpToDate)
    );
    log.record(Change::RegionRemoved(RegionId(9)));
    assert_eq!(read(&log, 1).regions_removed, [9]);
}

#[test]
fn the_log_keeps_no_regions_memory() {
    let log = ChangeLog::new();
    let gone = region(1);
    let memory = gone.memory.host().map(Arc::downgrade).unwrap();
    log.record(Change::RegionAdded(gone));
    assert_eq!(read(&log, 1).regions_added.len(), 1);
    log.record(Change::RegionRemoved(RegionId(1)));
    assert!(memory.upgrade().is_none());
    assert_eq!(read(&log, 1).regions_added.len(), 1);
}

#[test]
fn what_was_read_once_is_read_the_same_again() {
    let log = ChangeLog::new();
    log.record(sealed(1, 0, 1, 2));
    let first = read(&log, 1);
    log.record(sealed(1, 1, 2, 2));
    assert_eq!(read(&log, 1), first);
    assert_eq!(read(&log, 2).seq, 2);
    assert!(matches!(log.read(3), LogEntry::UpToDate));
    assert_eq!(log.bounds(), (1, 3));
    assert_eq!(log.seal_position(), 2);
}

/// Who waits for a batch: nobody, until somebody says so, or a region comes or goes.
#[test]
fn a_batch_is_news_when_it_is_said_to_be() {
    let log = ChangeLog::new();
    let mut woken = log.subscribe();
    let mut is_woken = || std::mem::replace(&mut woken, log.subscribe()).has_changed();
    assert_eq!(log.open(), Open::Nothing);
    log.hurry();
    assert!(!is_woken().unwrap());
    // The first change begins a batch, and is heard of; another one is not.
    log.record(removed(1, 0));
    assert!(is_woken().unwrap());
    log.record(sealed(1, 0, 1, 2));
    assert!(!is_woken().unwrap());
    assert_eq!(log.open(), Open::Changes);
    log.hurry();
    assert_eq!(log.open(), Open::News);
    assert!(is_woken().unwrap());
    log.hurry();
    assert!(!is_woken().unwrap());
    // The next batch is none.
    assert_eq!(read(&log, 1).changes.len(), 1);
    assert_eq!(log.open(), Open::Nothing);
    log.record(removed(1, 0));
    assert!(is_woken().unwrap());
    assert_eq!(log.open(), Open::Changes);
    log.record(Change::RegionAdded(region(2)));
    assert!(is_woken().unwrap());
    assert_eq!(log.open(), Open::News);
    log.record(removed(1, 1));
    assert!(!is_woken().unwrap());
    // Who waits for all of it closes it.
    assert_eq!(log.seal_position(), 2);
    assert!(is_woken().unwrap());
    assert_eq!(log.open(), Open::Nothing);
    assert_eq!(log.seal_position(), 2);
    assert!(!is_woken().unwrap());
}

/// Other sessions close a batch by reading it, at any moment, and nobody is woken by it: what was recorded keeps its number.
#[test]
fn what_was_recorded_last_has_its_number_before_it_is_read_and_after() {
    let log = ChangeLog::new();
    assert_eq!((log.last(), log.filling()), (0, (1, Open::Nothing)));
    log.record(removed(1, 0));
    assert_eq!((log.last(), log.filling()), (1, (1, Open::Changes)));
    assert_eq!(read(&log, 1).changes.len(), 1);
    assert_eq!((log.last(), log.filling()), (1, (2, Open::Nothing)));
    // What came and went is nothing.
    log.record(Change::RegionAdded(region(2)));
    assert_eq!((log.last(), log.filling()), (2, (2, Open::News)));
    log.record(Change::RegionRemoved(RegionId(2)));
    assert_eq!((log.last(), log.filling()), (1, (2, Open::Nothing)));
}

#[test]
fn the_log_forgets_from_its_start() {
    let log = ChangeLog::new();
    for round in 0..300 {
        log.record(sealed(1, 0, 1, round * 2 + 2));
        log.seal_position();
    }
    assert_eq!(log.bounds(), (45, 301));
    assert!(matches!(log.read(44), LogEntry::Forgotten));
    assert_eq!(read(&log, 45).seq, 45);
}
