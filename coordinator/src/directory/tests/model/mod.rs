//! The directory against a model that is plain maps and no cleverness: after every operation both
//! answer every question alike.

mod claims;
mod compare;
mod locations;
mod simple;
mod tame;
#[cfg(test)]
mod watched;

use std::collections::BTreeSet;

use proptest::{collection::vec, option, prelude::*};

use self::compare::{compare, compare_offered};
use self::simple::Model;
use super::*;

const NODES: [&str; 3] = ["a", "b", "c"];
const NAMESPACES: [&str; 2] = ["t/m", "t/n"];
const SLOTS: u32 = 4;
const HASHES: u64 = 6;
const LIMITS: Bounds = Bounds {
    namespaces: 2,
    nodes: 2,
    regions_per_node: 2,
    slots: 5 * SLOTS as u64,
    claims: 5,
    locations: 4,
    watch_log_bytes: Bounds::WATCH_LOG_BYTES,
};

/// Slots sealed as (slot, hash, generation).
type Added = Vec<(u32, u64, u64)>;

#[derive(Debug, Clone)]
struct Declare {
    region: u32,
    namespace: usize,
    /// Two namespaces of one name and different variants mismatch.
    variant: u32,
}

#[derive(Debug, Clone)]
struct Change {
    region: u32,
    removed: Vec<u32>,
    added: Added,
}

#[derive(Debug, Clone)]
enum Said {
    /// `skew` from the expected number.
    Delta {
        skew: i64,
        removed: Vec<u32>,
        added: Vec<Declare>,
        changes: Vec<Change>,
    },
    Inventory {
        seq: u64,
        first: bool,
        last: bool,
        regions: Vec<Declare>,
        sealed: Vec<(u32, Added)>,
    },
    /// `skew` of the next delta from the expected number; None: not said.
    Heartbeat {
        skew: Option<i64>,
    },
    Goodbye,
    Ended,
    /// A second one.
    Hello,
}

#[derive(Debug, Clone)]
enum Operation {
    Hello {
        node: usize,
        /// From the one that is known.
        incarnation_skew: i64,
        knows_us: bool,
        oldest: u64,
        next: u64,
    },
    /// `back` sessions before the newest: what old streams say changes nothing. What is not wild
    /// is bent into something a correct agent could say.
    Say {
        back: u64,
        wild: bool,
        said: Said,
    },
    Tick {
        advance_ms: u64,
    },
    Create {
        namespace: usize,
        variant: u32,
    },
    Delete {
        namespace: usize,
        force: bool,
    },
    Drain {
        node: usize,
        draining: bool,
    },
    Claim(claims::Operation),
    Locations(locations::Operation),
}

fn declare() -> impl Strategy<Value = Declare> {
    (1..5u32, 0..2usize, prop_oneof![9 => Just(0), 1 => Just(1)]).prop_map(
        |(region, namespace, variant)| Declare {
            region,
            namespace,
            variant,
        },
    )
}

/// Now and then a slot that isn't there, or one that isn't sealed.
fn added() -> impl Strategy<Value = Added> {
    let slot = prop_oneof![60 => 0..SLOTS, 1 => Just(SLOTS)];
    let generation = prop_oneof![60 => (1..9u64).prop_map(|n| n * 2), 1 => Just(3)];
    vec((slot, 0..HASHES, generation), 0..5)
}

fn change() -> impl Strategy<Value = Change> {
    let region = prop_oneof![8 => 1..3u32, 1 => 3..5u32];
    (region, vec(0..SLOTS, 0..2), added()).prop_map(|(region, removed, added)| Change {
        region,
        removed,
        added,
    })
}

fn said() -> impl Strategy<Value = Said> {
    let skew = prop_oneof![12 => Just(0i64), 1 => -2..0i64, 1 => 1..3i64];
    let delta = (
        skew,
        vec(1..5u32, 0..2),
        vec(declare(), 0..2),
        vec(change(), 0..3),
    )
        .prop_map(|(skew, removed, added, changes)| Said::Delta {
            skew,
            removed,
            added,
            changes,
        });
    // From the smallest on: those in step first.
    let skew = prop_oneof![3 => Just(None), 3 => Just(Some(0i64)), 1 => (-2..3i64).prop_map(Some)];
    let heartbeat = skew.prop_map(|skew| Said::Heartbeat { skew });
    let seq = prop_oneof![9 => Just(3u64), 1 => 0..6u64];
    let sealed = vec((1..4u32, added()), 0..3);
    let regions = vec(declare(), 0..3);
    let inventory = (
        seq,
        prop::bool::weighted(0.6),
        any::<bool>(),
        regions,
        sealed,
    )
        .prop_map(|(seq, first, last, regions, sealed)| Said::Inventory {
            seq,
            first,
            last,
            regions,
            sealed,
        });
    prop_oneof![
            300 => delta,
            200 => inventory,
            20 => heartbeat,
    4 => Just(Said::Goodbye), 4 => Just(Said::Ended), 2 => Just(Said::Hello),
        ]
}

fn operation() -> impl Strategy<Value = Operation> {
    let hello = (
        prop_oneof![5 => 0..2usize, 1 => Just(2)],
        prop_oneof![10 => Just(0i64), 1 => Just(1), 1 => Just(-1)],
        prop::bool::weighted(0.8),
        prop_oneof![5 => Just(1u64), 1 => 0..6u64],
        option::weighted(0.1, 1..6u64),
    );
    let hello =
        hello.prop_map(
            |(node, incarnation_skew, knows_us, oldest, next)| Operation::Hello {
                node,
                incarnation_skew,
                knows_us,
                oldest,
                next: next.unwrap_or(1_000),
            },
        );
    let variant = prop_oneof![4 => Just(0u32), 1 => Just(1)];
    prop_oneof![
        5 => hello,
        40 => (0..2u64, prop::bool::weighted(0.04), said()).prop_map(|(back, wild, said)| Operation::Say { back, wild, said }),
        3 => (0..4_000u64).prop_map(|advance_ms| Operation::Tick { advance_ms }),
        1 => Just(Operation::Tick { advance_ms: 20_000 }),
        1 => (0..2usize, variant).prop_map(|(namespace, variant)| Operation::Create { namespace, variant }),
        1 => (0..2usize, any::<bool>()).prop_map(|(namespace, force)| Operation::Delete { namespace, force }),
        1 => (0..NODES.len(), any::<bool>()).prop_map(|(node, draining)| Operation::Drain { node, draining }),
        12 => claims::operation().prop_map(Operation::Claim),
        12 => locations::operation().prop_map(Operation::Locations),
    ]
}

fn declared(declare: &Declare) -> RegionDeclaration {
    let mut declaration = declaration(declare.region, NAMESPACES[declare.namespace], SLOTS);
    declaration.namespace = variant_spec(declare.namespace, declare.variant);
    declaration
}

fn variant_spec(name: usize, variant: u32) -> NamespaceSpec {
    NamespaceSpec {
        layout: Layout::new("u8", 16 + variant, 1, BLOCK_BYTES).unwrap(),
        ..spec(NAMESPACES[name])
    }
}

/// The event that says it; `expected` is what the model expects of the session.
fn event(session: u64, expected: u64, said: &Said) -> Event {
    let id = SessionId(session);
    match said {
        Said::Delta {
            skew,
            removed,
            added,
            changes,
        } => delta(
            session,
            Delta {
                seq: expected.saturating_add_signed(*skew),
                regions_removed: removed.iter().copied().map(RegionId).collect(),
                regions_added: added.iter().map(declared).collect(),
                changes: changes
                    .iter()
                    .map(|c| super::change(c.region, &c.removed, &c.added))
                    .collect(),
            },
        ),
        Said::Inventory {
            seq,
            first,
            last,
            regions,
            sealed: slots,
        } => Event::Inventory {
            session: id,
            part: InventoryPart {
                seq: *seq,
                first: *first,
                last: *last,
                regions: regions.iter().map(declared).collect(),
                sealed: slots
                    .iter()
                    .map(|(region, added)| (RegionId(*region), sealed(added)))
                    .collect(),
            },
        },
        Said::Heartbeat { skew } => Event::Heartbeat {
            session: id,
            number: 1,
            next_delta: skew.map(|skew| expected.saturating_add_signed(skew)),
        },
        Said::Goodbye => Event::Goodbye { session: id },
        Said::Ended => Event::SessionEnded { session: id },
        Said::Hello => hello(session, "a", 9),
    }
}

fn run(directory: &mut Directory, model: &mut Model, operation: &Operation, way: Way) {
    let now = model.now;
    let effects = match operation {
        Operation::Hello {
            node,
            incarnation_skew,
            knows_us,
            oldest,
            next,
        } => {
            let session = model.open();
            let incarnation = model.incarnation(*node, *incarnation_skew);
            let epoch = if *knows_us { EPOCH } else { 0 };
            let event = hello_from(session, NODES[*node], incarnation, epoch, *oldest, *next);
            let resync = model.hello(session, *node, incarnation, *knows_us, *oldest..=*next);
            let effects = way(directory, now, event);
            let told = effects.iter().find_map(|effect| match effect {
                Effect::Welcome { resync, .. } => Some(*resync),
                _ => None,
            });
            assert_eq!(told, resync);
            effects
        }
        Operation::Say { back, wild, said } => {
            let session = model.newest.saturating_sub(*back);
            let said = if *wild {
                said.clone()
            } else {
                model.tame(session, said.clone())
            };
            let event = event(session, model.expected(session), &said);
            model.say(session, &said);
            // What an inventory did not name is offered until it is swept out.
            let unswept = directory.sweep_is_due();
            let effects = way(directory, now, event);
            let hinted = effects.iter().filter_map(|effect| match effect {
                Effect::Surplus { copies, .. } => Some(copies),
                _ => None,
            });
            let hinted: Vec<_> = hinted
                .flatten()
                .map(|copy| (copy.region.0, copy.slot, copy.generation))
                .collect();
            let want = std::mem::take(&mut model.surplus);
            assert!(unswept || hinted == want, "{hinted:?}, not {want:?}");
            let asked = effects.iter().find_map(|effect| match effect {
                Effect::ResyncRequest { expected, got, .. } => Some((*expected, *got)),
                _ => None,
            });
            assert_eq!(asked, std::mem::take(&mut model.asked));
            effects
        }
        Operation::Tick { advance_ms } => {
            model.tick(at(*advance_ms));
            let effects = way(directory, model.now, Event::Tick);
            locations::tidy(directory, model);
            effects
        }
        Operation::Create { namespace, variant } => {
            let outcome = directory.create_namespace(&variant_spec(*namespace, *variant));
            assert_eq!(outcome.ok(), model.create(*namespace, *variant));
            Vec::new()
        }
        Operation::Delete {
            namespace: n,
            force,
        } => {
            let outcome = directory.delete_namespace(&namespace(NAMESPACES[*n]), *force);
            assert_eq!(outcome.is_ok(), model.delete(*n, *force));
            Vec::new()
        }
        Operation::Drain { node: n, draining } => {
            let outcome = directory.drain_node(&node(NODES[*n]), *draining);
            assert_eq!(outcome.is_ok(), model.drain(*n, *draining));
            Vec::new()
        }
        Operation::Claim(operation) => {
            claims::run(directory, model, operation);
            Vec::new()
        }
        Operation::Locations(operation) => {
            locations::run(directory, model, operation);
            Vec::new()
        }
    };
    model.end_claims();
    model.end_locations();
    let closed: BTreeSet<u64> = effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Close { session, .. } => Some(session.0),
            _ => None,
        })
        .collect();
    assert_eq!(closed, std::mem::take(&mut model.closed));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1024) })]

    #[test]
    fn directory_and_model_agree(operations in vec(operation(), 1..80)) {
        agree(&operations, Directory::handle);
    }

    /// The same in the steps that a shell takes.
    #[test]
    fn directory_and_model_agree_step_by_step(operations in vec(operation(), 1..80)) {
        agree(&operations, step_by_step_and_sweep);
    }

    /// However long the sweep takes, what went is offered to nobody, and in the end all is well.
    #[test]
    fn what_went_is_invisible_before_it_is_swept(operations in vec((operation(), 0..3u32), 1..80)) {
        let mut directory = directory_of(LIMITS);
        let mut model = Model::default();
        for (operation, sweep) in &operations {
            run(&mut directory, &mut model, operation, step_by_step);
            if directory.sweep(*sweep) {
                compare_offered(&directory, &model);
            } else {
                directory.reap();
                compare(&directory, &model);
            }
        }
        while directory.sweep(1) {}
        directory.reap();
        compare(&directory, &model);
    }
}

fn agree(operations: &[Operation], way: Way) {
    let mut directory = directory_of(LIMITS);
    let mut model = Model::default();
    for operation in operations {
        run(&mut directory, &mut model, operation, way);
        compare(&directory, &model);
    }
    way(&mut directory, model.now + PURGE, Event::Tick);
    assert_empty(&directory);
}

/// The same, with the operations that a fuzzer chose.
#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz(bytes: &[u8]) {
    let (way, bytes): (Way, _) = match bytes.split_first() {
        Some((first, rest)) if first % 2 == 1 => (step_by_step_and_sweep, rest),
        Some((_, rest)) => (Directory::handle, rest),
        None => (Directory::handle, bytes),
    };
    agree(&crate::fuzz::chosen(&operation(), bytes), way);
}
