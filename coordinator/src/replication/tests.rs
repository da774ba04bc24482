//! The planner by itself, and with a directory: copies come, and then it stops.

use std::{collections::BTreeMap, time::Duration};

use kvferry_proto::{
    BlockHash, ChecksumPolicy, Geometry, HashLen, Incarnation, Labels, Layout, NamespaceName,
    NamespaceSpec, NodeAddresses, NodeId, PackedHashes, RegionId,
};
use proptest::{collection::vec, prelude::*};

use super::*;
use crate::directory::{
    Bounds, CopyTarget, Delta, Directory, DirectoryConfig, Event, Hello, RegionChange,
    RegionDeclaration, SealedSlots, SessionId,
};

const BLOCK_BYTES: u64 = 64;

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn name() -> NamespaceName {
    NamespaceName::new("t/m").unwrap()
}

fn node(number: u32) -> NodeId {
    NodeId::new(&format!("n{number}")).unwrap()
}

fn hash(number: u64) -> BlockHash {
    BlockHash::new(&number.to_be_bytes()).unwrap()
}

fn target(number: u32, host: &str) -> CopyTarget {
    CopyTarget {
        handle: number,
        node: node(number),
        session: SessionId(number.into()),
        host_id: host.into(),
        member: true,
    }
}

fn lack(block: u64, holders: &[u32]) -> Lack {
    Lack {
        hash: hash(block),
        holders: holders.to_vec(),
    }
}

fn plan(planner: &mut Planner, now: u64, lacking: &[Lack], targets: &[CopyTarget]) -> Plan {
    let (namespace, block_bytes) = (&name(), BLOCK_BYTES);
    let sight = Sight {
        namespace,
        block_bytes,
        cause: &Cause::Wanted,
        lacking,
        targets,
    };
    planner.plan(at(now), 0, sight)
}

/// Who copies how many blocks.
fn told(plan: &Plan) -> BTreeMap<String, Vec<usize>> {
    let mut told: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for order in &plan.orders {
        let each = told.entry(order.node.to_string()).or_default();
        each.push(order.hashes.len());
    }
    told
}

fn done(
    planner: &mut Planner,
    now: u64,
    order: &Order,
    verdict: Verdict,
    failed: &[u32],
) -> Option<Outcome> {
    // What is said to be copied is in the directory.
    let holds = |_: &Order, _: &BlockHash| true;
    planner.done(at(now), order.session, order.id, (verdict, failed), holds)
}

#[test]
fn a_copy_goes_to_another_host_and_the_load_is_spread() {
    let mut planner = Planner::default();
    let targets = [
        target(1, "h1"),
        target(2, "h1"),
        target(3, "h2"),
        target(4, "h3"),
    ];
    let lacking: Vec<_> = (0..40).map(|block| lack(block, &[1])).collect();
    let far = plan(&mut planner, 0, &lacking, &targets);
    let even = [("n3", vec![20]), ("n4", vec![20])].map(|(n, of)| (n.to_owned(), of));
    assert_eq!(told(&far), even.into());
    assert!(!far.waits);
    assert_eq!(far.orders[0].session, SessionId(3));

    // Where there is no other host, any other node.
    let mut planner = Planner::default();
    let near = plan(&mut planner, 0, &lacking, &targets[..2]);
    assert_eq!(told(&near), [("n2".to_owned(), vec![40])].into());
}

#[test]
fn what_is_under_way_is_not_ordered_again() {
    let mut planner = Planner::default();
    let targets = [target(1, "a"), target(2, "b"), target(3, "c")];
    let lacking = [lack(7, &[1])];
    let first = plan(&mut planner, 0, &lacking, &targets);
    assert_eq!(first.orders.len(), 1);
    assert_eq!(plan(&mut planner, 0, &lacking, &targets), Plan::default());
    let copied = Outcome {
        namespace: name(),
        cause: Cause::Wanted,
        copied: 1,
        failed: 0,
    };
    let order = &first.orders[0];
    assert_eq!(
        done(&mut planner, 1, order, Verdict::Done, &[]),
        Some(copied)
    );
    assert!(planner.is_idle());
    assert_eq!(
        done(&mut planner, 1, order, Verdict::Done, &[]),
        None,
        "once"
    );
}

#[test]
fn orders_are_bounded_and_the_rest_waits() {
    let mut planner = Planner::default();
    let targets = [target(1, "a"), target(2, "b")];
    let lacking: Vec<_> = (0..300).map(|block| lack(block, &[1])).collect();
    let first = plan(&mut planner, 0, &lacking, &targets);
    assert_eq!(told(&first), [("n2".to_owned(), vec![64, 64])].into());
    assert!(first.waits);
    let again = plan(&mut planner, 0, &lacking, &targets);
    assert!(again.orders.is_empty() && again.waits);
    done(&mut planner, 1, &first.orders[1], Verdict::Done, &[]);
    let rest = plan(&mut planner, 1, &lacking[128..], &targets);
    assert_eq!(told(&rest), [("n2".to_owned(), vec![64])].into());

    // Large blocks travel in smaller orders.
    let sight = Sight {
        namespace: &name(),
        block_bytes: 24 << 20,
        cause: &Cause::Wanted,
        lacking: &lacking,
        targets: &targets,
    };
    let orders = Planner::default().plan(at(0), 0, sight).orders;
    assert!(orders.iter().all(|order| order.hashes.len() == 2));

    // And all of them together are bounded.
    let many: Vec<_> = (2..400).map(|n| target(n, &format!("h{n}"))).collect();
    let lacking: Vec<_> = (0..100_000).map(|block| lack(block, &[1])).collect();
    let mut planner = Planner::default();
    assert_eq!(
        plan(&mut planner, 0, &lacking[..40_000], &many)
            .orders
            .len(),
        256
    );
    assert!(!planner.has_room());
}

#[test]
fn what_failed_is_tried_elsewhere_and_here_again_later() {
    let mut planner = Planner::default();
    let targets = [target(1, "a"), target(2, "b"), target(3, "c")];
    let lacking = [lack(7, &[1])];
    let mut tried = Vec::new();
    for _ in 0..2 {
        let plan = plan(&mut planner, 0, &lacking, &targets);
        tried.push(plan.orders[0].node.clone());
        done(&mut planner, 0, &plan.orders[0], Verdict::Done, &[0]);
    }
    tried.sort();
    assert_eq!(tried, [node(2), node(3)]);
    let nobody = plan(&mut planner, 1, &lacking, &targets);
    assert_eq!(nobody, Plan::default(), "nobody is left, so nothing waits");
    planner.tick(at(31));
    assert_eq!(plan(&mut planner, 31, &lacking, &targets).orders.len(), 1);
}

/// Found by the simulation: a node that has the block in a region which was deleted by force says that it has it, and nobody
/// finds it there. It was told to copy it in every round.
#[test]
fn what_is_said_to_be_copied_and_is_not_shown_is_ordered_there_again_later() {
    let mut planner = Planner::default();
    let targets = [target(1, "a"), target(2, "b")];
    let lacking = [lack(7, &[1]), lack(8, &[1])];
    for round in 0..3 {
        let now = round * 30;
        planner.tick(at(now));
        let order = plan(&mut planner, now, &lacking, &targets).orders.remove(0);
        assert_eq!(order.hashes, [hash(7), hash(8)]);
        let shown = |order: &Order, block: &BlockHash| {
            assert_eq!(order.node, node(2));
            *block == hash(8)
        };
        let said = (Verdict::Done, &[][..]);
        let outcome = planner.done(at(now), order.session, order.id, said, shown);
        let outcome = outcome.unwrap();
        assert_eq!((outcome.copied, outcome.failed), (1, 1));
        // The other one was made, and went again: nothing speaks against making it anew.
        for now in [now, now + 29] {
            let again = plan(&mut planner, now, &lacking, &targets).orders;
            assert_eq!(again.len(), 1);
            assert_eq!(again[0].hashes, [hash(8)]);
            done(&mut planner, now, &again[0], Verdict::Done, &[]);
        }
    }
}

#[test]
fn who_is_busy_full_or_unwilling_is_left_alone_for_a_while() {
    let targets = [target(1, "a"), target(2, "b")];
    let lacking = [lack(7, &[1])];
    for (verdict, pause) in [
        (Verdict::Busy, 1),
        (Verdict::Full, 10),
        (Verdict::Refused, 600),
    ] {
        let mut planner = Planner::default();
        let order = plan(&mut planner, 0, &lacking, &targets).orders.remove(0);
        let outcome = done(&mut planner, 0, &order, verdict, &[0]).unwrap();
        assert_eq!((outcome.copied, outcome.failed), (0, 1));
        assert!(
            plan(&mut planner, pause - 1, &lacking, &targets)
                .orders
                .is_empty()
        );
        assert_eq!(
            plan(&mut planner, pause, &lacking, &targets).orders.len(),
            1
        );
    }
}

#[test]
fn orders_end_with_their_time_and_with_their_stream() {
    let mut planner = Planner::default();
    let targets = [target(1, "a"), target(2, "b"), target(3, "c")];
    let lacking = [lack(7, &[1]), lack(8, &[1])];
    let orders = plan(&mut planner, 0, &lacking, &targets).orders;
    assert_eq!(orders.len(), 2);
    let foreign = Order {
        session: SessionId(9),
        ..orders[0].clone()
    };
    let foreign = done(&mut planner, 1, &foreign, Verdict::Done, &[]);
    assert_eq!(foreign, None, "another stream's word");
    assert_eq!(planner.session_ended(at(1), orders[0].session).len(), 1);
    assert_eq!(planner.tick(at(29)), []);
    assert_eq!(planner.tick(at(30)).len(), 1);
    assert!(planner.is_idle());
    assert_eq!(done(&mut planner, 30, &orders[1], Verdict::Done, &[]), None);
}

#[test]
fn copies_stay_in_the_namespace_unless_a_node_goes() {
    let stranger = CopyTarget {
        member: false,
        ..target(2, "b")
    };
    let lacking = [lack(7, &[1])];
    let targets = [stranger];
    let mut planner = Planner::default();
    assert_eq!(plan(&mut planner, 0, &lacking, &targets), Plan::default());
    let sight = Sight {
        namespace: &name(),
        block_bytes: BLOCK_BYTES,
        cause: &Cause::Drain(node(1)),
        lacking: &lacking,
        targets: &targets,
    };
    assert_eq!(planner.plan(at(0), 0, sight).orders.len(), 1);
}

#[test]
fn wishes_are_bounded_expire_and_are_taken_back() {
    let mut wants = Wants::default();
    let there = |_: &NodeId| true;
    let hashes: Vec<_> = (0..65_536).map(hash).collect();
    assert_eq!(wants.want(&name(), &hashes, 3, at(5)), Ok(()));
    assert_eq!(wants.want(&name(), &hashes[..1], 3, at(5)), Err(TooManyHot));
    assert_eq!(wants.want(&name(), &hashes[1..], 0, at(0)), Ok(()));
    assert_eq!(wants.status(&name()).hot, 1);
    let sums = wants.sums(at(0));
    assert_eq!((sums.namespaces, sums.hot), (1, 1));
    wants.set_copies(&name(), 2);
    wants.tick(at(5), there);
    assert_eq!(
        (wants.status(&name()).hot, wants.status(&name()).min_copies),
        (0, 2)
    );
    wants.set_copies(&name(), 1);
    assert!(wants.is_empty());
    wants.drain(&node(1), at(9));
    assert_eq!(
        wants.drain_status(at(8), &node(1)).unwrap().state,
        DrainState::Moving
    );
    assert_eq!(
        wants.drain_status(at(9), &node(1)).unwrap().state,
        DrainState::Expired
    );
    let drains = |now| wants.sums(at(now)).drains.map(|(_, drains)| drains);
    assert_eq!((drains(8), drains(9)), ([1, 0, 0], [0, 0, 1]));
    wants.tick(at(9), |_| false);
    assert!(wants.is_empty());
    assert_eq!(wants.sums(at(9)), Wants::default().sums(at(0)));
}

// ---- with a directory

/// A fleet whose agents do what they are told, or fail to.
struct Fleet {
    now: Duration,
    directory: Directory,
    wants: Wants,
    planner: Planner,
    rounds: Rounds,
    /// Next delta and next free slot of each node.
    nodes: Vec<(u64, u32)>,
}

impl Fleet {
    fn new(nodes: u32) -> Self {
        let directory = Directory::new(DirectoryConfig {
            epoch: 1,
            hide_after: at(1_000_000),
            purge_after: at(2_000_000),
            bounds: Bounds::default(),
        });
        let mut fleet = Self {
            now: at(0),
            directory,
            wants: Wants::default(),
            planner: Planner::default(),
            rounds: Rounds::default(),
            nodes: Vec::new(),
        };
        for number in 0..nodes {
            let hello = Hello {
                node: node(number),
                incarnation: Incarnation::new(1).unwrap(),
                addresses: NodeAddresses::default(),
                labels: Labels::default(),
                coordinator_epoch: 1,
                oldest_delta: 1,
                next_delta: 1,
            };
            let session = SessionId(number.into());
            fleet
                .directory
                .handle(at(0), Event::Hello { session, hello });
            let region = RegionDeclaration {
                region: RegionId(1),
                namespace: NamespaceSpec {
                    name: name(),
                    layout: Layout::new("u8", 16, 1, BLOCK_BYTES).unwrap(),
                    hash_len: HashLen::new(8).unwrap(),
                    checksum: ChecksumPolicy::Off,
                },
                geometry: Geometry::contiguous(4_096, BLOCK_BYTES).unwrap(),
                denied: None,
            };
            let delta = Delta {
                seq: 1,
                regions_added: vec![region],
                ..Delta::default()
            };
            fleet
                .directory
                .handle(at(0), Event::Delta { session, delta });
            fleet.nodes.push((2, 0));
        }
        fleet
    }

    fn hold(&mut self, number: u32, hashes: &[BlockHash]) {
        let (seq, slot) = &mut self.nodes[number as usize];
        let added = SealedSlots {
            hashes: Some(PackedHashes::pack(HashLen::new(8).unwrap(), hashes).unwrap()),
            slots: (*slot..).take(hashes.len()).collect(),
            generations: vec![2; hashes.len()],
            checksums: Vec::new(),
        };
        let change = RegionChange {
            region: RegionId(1),
            removed_slots: Vec::new(),
            added,
        };
        let delta = Delta {
            seq: *seq,
            changes: vec![change],
            ..Delta::default()
        };
        *seq += 1;
        *slot += hashes.len() as u32;
        let session = SessionId(number.into());
        self.directory
            .handle(self.now, Event::Delta { session, delta });
    }

    /// One round; agents do what they are told, but where the coin says otherwise. Says how many
    /// orders were given.
    fn round(&mut self, coin: &mut impl FnMut() -> u8) -> usize {
        let mut given = 0;
        self.now += at(40);
        self.planner.tick(self.now);
        if self.rounds.is_over() {
            self.rounds.begin(self.now, &self.directory, &self.wants);
        }
        while let Some(seen) = self.rounds.look(&self.directory, &self.wants) {
            let Some(namespace) = &seen.namespace else {
                self.rounds.go_on(&mut self.wants, &seen);
                continue;
            };
            let sight = Sight {
                namespace,
                block_bytes: seen.block_bytes,
                cause: &seen.cause,
                lacking: &seen.lacking,
                targets: &self.directory.copy_targets(namespace),
            };
            let plan = self.planner.plan(self.now, given as u64, sight);
            for order in plan.orders {
                given += 1;
                self.obey(&order, coin());
            }
            if plan.waits {
                // Time passes; then the same slice again.
                return given;
            }
            self.rounds.go_on(&mut self.wants, &seen);
        }
        given
    }

    fn obey(&mut self, order: &Order, coin: u8) {
        let number: u32 = order.node.as_str()[1..].parse().unwrap();
        let (verdict, kept) = match coin % 8 {
            0 => (Verdict::Busy, 0),
            1 => (Verdict::Full, order.hashes.len() / 2),
            2 => (Verdict::Done, order.hashes.len() / 2),
            // Never heard of again.
            3 => return,
            _ => (Verdict::Done, order.hashes.len()),
        };
        if kept > 0 {
            self.hold(number, &order.hashes[..kept]);
        }
        let failed: Vec<u32> = (kept as u32..order.hashes.len() as u32).collect();
        let (now, session) = (self.now, order.session);
        let (said, directory) = ((verdict, &failed[..]), &self.directory);
        let holds = |order: &Order, hash: &BlockHash| {
            directory.is_held_by(&order.node, &order.namespace, hash)
        };
        let outcome = self.planner.done(now, session, order.id, said, holds);
        self.wants.note(&outcome.unwrap());
    }

    fn holders(&self, hash: BlockHash) -> usize {
        let mut holders = 0;
        self.directory
            .survey_blocks(&name(), &[hash], |seen| holders = seen.holders.len());
        holders
    }

    /// Rounds until one gives no order, and none is under way.
    fn settle(&mut self, mut coin: impl FnMut() -> u8) {
        for _ in 0..200 {
            if self.round(&mut coin) == 0 && self.planner.is_idle() {
                // What failed everywhere is tried again when that is forgotten.
                self.now += at(600);
                if self.round(&mut coin) == 0 {
                    return;
                }
            }
        }
        panic!("it never stops");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(96) })]

    /// Whatever agents do, all blocks get their copies, not one more, and then it stops; hot ones get
    /// more, and a node that goes leaves nothing behind that only it holds.
    #[test]
    fn copies_come_and_then_it_stops(
        placed in vec((0..5u32, 0..200u64), 1..120),
        coins in vec(any::<u8>(), 1..400),
        min_copies in 2..4u32,
        hot in 0..200u64,
    ) {
        let mut fleet = Fleet::new(5);
        let mut blocks: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
        for (number, block) in placed {
            let holders = blocks.entry(block).or_default();
            if !holders.contains(&number) {
                holders.push(number);
                fleet.hold(number, &[hash(block)]);
            }
        }
        // After so many turns all agents do as they are told.
        let mut coins = coins.into_iter();
        let mut coin = || coins.next().unwrap_or(7);
        fleet.wants.set_copies(&name(), min_copies);
        fleet.wants.want(&name(), &[hash(hot)], 4, at(1_000_000)).unwrap();
        fleet.settle(&mut coin);
        for (block, before) in &blocks {
            let wanted = if *block == hot { 4 } else { min_copies as usize };
            prop_assert_eq!(fleet.holders(hash(*block)), wanted.max(before.len()));
        }
        let status = fleet.wants.status(&name());
        prop_assert_eq!(status.lacking, 0);
        prop_assert_eq!(fleet.wants.status(&name()).min_copies, min_copies);

        fleet.wants.set_copies(&name(), 0);
        fleet.wants.want(&name(), &[hash(hot)], 0, at(0)).unwrap();
        for goes in [0, 1, 2] {
            fleet.directory.drain_node(&node(goes), true).unwrap();
            let deadline = fleet.now + at(10_000_000);
            fleet.wants.drain(&node(goes), deadline);
        }
        fleet.settle(&mut coin);
        for goes in [0, 1, 2] {
            let status = fleet.wants.drain_status(fleet.now, &node(goes)).unwrap();
            prop_assert_eq!(status.state, DrainState::Moved);
            fleet.directory.handle(fleet.now, Event::Goodbye { session: SessionId(goes.into()) });
        }
        for block in blocks.keys() {
            prop_assert!(fleet.holders(hash(*block)) > 0, "nothing was lost");
        }
    }
}
