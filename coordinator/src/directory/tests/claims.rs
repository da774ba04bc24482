//! Who may produce a block.

use super::*;

fn ask(directory: &Directory, now: u64, name: &str, lifetime: u64, hashes: &[u64]) -> Claimed {
    try_ask(directory, now, name, lifetime, hashes).unwrap()
}

fn try_ask(
    directory: &Directory,
    now: u64,
    name: &str,
    lifetime: u64,
    hashes: &[u64],
) -> Result<Claimed, ClaimError> {
    directory.claim(
        at(now),
        &ClaimQuery {
            namespace: &namespace("t/m"),
            hashes: &packed(hashes),
            node: &node(name),
            incarnation: incarnation(lifetime),
            purpose: ClaimPurpose::Produce,
            ttl: at(1_000),
        },
    )
}

const GRANTED: ClaimOutcome = ClaimOutcome::Granted;
const STORED: ClaimOutcome = ClaimOutcome::Stored;
const CLAIMED: ClaimOutcome = ClaimOutcome::Claimed(0);

/// Nodes a and b, a with block 7.
fn two_nodes() -> Directory {
    let mut directory = directory();
    join(&mut directory, 1, "a", &[(0, 7, 2)]);
    join(&mut directory, 2, "b", &[]);
    directory
}

#[test]
fn one_is_granted_the_other_hears_who_holds_it() {
    let directory = two_nodes();
    let first = ask(&directory, 0, "a", 1, &[7, 8, 9, 8]);
    assert_eq!(first.outcomes, [STORED, GRANTED, GRANTED, GRANTED]);
    let second = ask(&directory, 400, "b", 1, &[9, 10, 8]);
    assert_eq!(second.outcomes, [CLAIMED, GRANTED, CLAIMED]);
    let holder = ClaimHolder {
        node: node("a"),
        expires_in: at(600),
    };
    assert_eq!(second.holders, [holder]);
    assert_ne!(first.token, second.token);
    // Another engine of the same node is another claimant.
    assert_eq!(ask(&directory, 400, "a", 1, &[8]).outcomes, [CLAIMED]);
    assert_eq!(ask(&directory, 400, "a", 1, &[8, 7]).token, None);
    assert_eq!(directory.claims_held(), 3);
}

#[test]
fn publishing_fulfils_a_claim_and_whoever_publishes_has_stored() {
    let mut directory = two_nodes();
    ask(&directory, 0, "a", 1, &[8, 9]);
    directory.handle(at(1), change_delta(1, 2, &[], &[(1, 8, 2)]));
    assert_eq!(directory.claims_held(), 1);
    assert_eq!(ask(&directory, 2, "b", 1, &[8]).outcomes, [STORED]);
    // b publishes what a claimed: stored, and a's claim stands.
    directory.handle(at(3), change_delta(2, 2, &[], &[(0, 9, 2)]));
    assert_eq!(ask(&directory, 4, "b", 1, &[9]).outcomes, [STORED]);
    assert_eq!(directory.claims_held(), 1);
    directory.handle(at(5), change_delta(2, 3, &[0], &[]));
    assert_eq!(ask(&directory, 6, "b", 1, &[9]).outcomes, [CLAIMED]);
}

#[test]
fn what_only_a_silent_node_has_can_be_claimed() {
    let mut directory = two_nodes();
    let beat = |session| Event::Heartbeat {
        session: SessionId(session),
        number: 1,
        next_delta: None,
    };
    directory.handle(HIDE, beat(2));
    directory.handle(HIDE, Event::Tick);
    assert_eq!(ask(&directory, 3_000, "b", 1, &[7]).outcomes, [GRANTED]);
}

#[test]
fn a_lease_ends_by_release_by_time_and_by_renewal_later() {
    let mut directory = two_nodes();
    let token = ask(&directory, 0, "a", 1, &[8, 9]).token.unwrap();
    assert_eq!(
        directory.release_claims(at(1), token, Some(&packed(&[8, 11]))),
        1
    );
    assert_eq!(ask(&directory, 1, "b", 1, &[8]).outcomes, [GRANTED]);
    assert_eq!(directory.renew_claims(at(900), token, at(1_000)), 1);
    // b's lease ended at 1,001, a's goes on until 1,900.
    assert!(directory.tick_is_due(at(1_001)));
    directory.handle(at(1_001), Event::Tick);
    assert_eq!(directory.claims_held(), 1);
    assert_eq!(ask(&directory, 1_899, "b", 1, &[9]).outcomes, [CLAIMED]);
    assert_eq!(ask(&directory, 1_900, "b", 1, &[9]).outcomes, [GRANTED]);
    assert_eq!(directory.renew_claims(at(1_900), token, at(1_000)), 0);
    assert_eq!(directory.release_claims(at(1_900), token, None), 0);
    assert_eq!(ask(&directory, 1_901, "a", 1, &[9]).outcomes, [CLAIMED]);
}

#[test]
fn a_renewal_for_less_takes_nothing_of_what_the_claimant_was_told() {
    let directory = two_nodes();
    let token = ask(&directory, 0, "a", 1, &[8]).token.unwrap();
    assert_eq!(directory.renew_claims(at(100), token, at(5_000)), 1);
    // Sent before that one, or by a part of the engine that knows nothing of it.
    assert_eq!(directory.renew_claims(at(200), token, at(1_000)), 1);
    assert_eq!(ask(&directory, 5_099, "b", 1, &[8]).outcomes, [CLAIMED]);
    assert_eq!(ask(&directory, 5_100, "b", 1, &[8]).outcomes, [GRANTED]);
}

#[test]
fn the_end_of_an_incarnation_frees_its_claims() {
    let mut directory = two_nodes();
    let token = ask(&directory, 0, "a", 1, &[8]).token.unwrap();
    // A lost stream alone frees nothing: the agent comes back.
    directory.handle(
        at(1),
        Event::SessionEnded {
            session: SessionId(1),
        },
    );
    assert_eq!(ask(&directory, 1, "b", 1, &[8]).outcomes, [CLAIMED]);
    directory.handle(at(2), hello_from(3, "a", 2, 0, 1, 1));
    assert_eq!(ask(&directory, 2, "b", 1, &[8]).outcomes, [GRANTED]);
    assert_eq!(directory.renew_claims(at(2), token, at(1_000)), 0);
    let fenced = try_ask(&directory, 2, "a", 1, &[9]);
    assert!(matches!(fenced, Err(ClaimError::Fenced { .. })));
    let early = try_ask(&directory, 2, "a", 3, &[9]);
    assert!(matches!(early, Err(ClaimError::NodeUnknown(_))));

    directory.handle(
        at(3),
        Event::Goodbye {
            session: SessionId(2),
        },
    );
    assert_eq!(directory.claims_held(), 0);
}

#[test]
fn a_deleted_namespace_takes_its_claims_along() {
    let mut directory = two_nodes();
    let token = ask(&directory, 0, "a", 1, &[8]).token.unwrap();
    directory.delete_namespace(&namespace("t/m"), true).unwrap();
    assert_eq!(directory.claims_held(), 0);
    directory.create_namespace(&spec("t/m")).unwrap();
    assert_eq!(ask(&directory, 1, "b", 1, &[8]).outcomes, [GRANTED]);
    assert_eq!(directory.renew_claims(at(1), token, at(1)), 0);
}

#[test]
fn over_a_bound_nothing_is_claimed() {
    let bounds = Bounds {
        claims: 3,
        ..Bounds::default()
    };
    let mut directory = directory_of(bounds);
    join(&mut directory, 1, "a", &[]);
    ask(&directory, 0, "a", 1, &[1, 2]);
    let over = try_ask(&directory, 0, "a", 1, &[3, 4]);
    assert_eq!(over, Err(BoundReached::claims(3).into()));
    assert_eq!(directory.claims_held(), 2);
    assert_eq!(ask(&directory, 0, "a", 1, &[4, 4]).outcomes, [GRANTED; 2]);

    let many: Vec<u64> = (0..=MAX_HASHES_PER_CLAIM as u64).collect();
    let many = try_ask(&directory, 0, "a", 1, &many);
    assert_eq!(many, Err(BoundReached::hashes_per_claim().into()));
}

/// A lease of many hashes ends at once, and is forgotten in slices.
#[test]
fn a_large_lease_is_free_before_it_is_forgotten() {
    let mut directory = two_nodes();
    let all: Vec<u64> = (100..100 + MAX_HASHES_PER_CLAIM as u64).collect();
    ask(&directory, 0, "a", 1, &all);
    directory.begin(at(1), hello_from(3, "a", 2, 0, 1, 1));
    assert_eq!(directory.claims_held(), 0);
    assert!(directory.sweep_is_due());
    let granted = ask(&directory, 2, "b", 1, &all);
    assert!(granted.outcomes.iter().all(|outcome| *outcome == GRANTED));
    while directory.sweep(100) {}
    let kept = ask(&directory, 3, "a", 2, &all);
    assert!(kept.outcomes.iter().all(|outcome| *outcome == CLAIMED));
    directory.handle(PURGE + at(5), Event::Tick);
    while directory.sweep(100) {}
    assert_empty(&directory);
}
