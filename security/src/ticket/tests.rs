#![allow(clippy::unwrap_used)]

use std::{collections::HashSet, time::Duration};

use kvferry_observe::Label;
use kvferry_proto::{Incarnation, NamespaceName, NodeId};
use proptest::prelude::*;

use super::*;

const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
const LATER: Duration = Duration::from_secs(3600);

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn owner() -> (NodeId, Incarnation) {
    (node("owner"), Incarnation::new(42).unwrap())
}

fn issuer(seed: u8) -> Issuer {
    Issuer::new(SigningKey::from_seed(&[seed; 32]).unwrap())
}

fn reader() -> ReaderKey {
    ReaderKey::from_seed(&[9; 32]).unwrap()
}

fn ticket() -> Ticket {
    let (owner, incarnation) = owner();
    Ticket {
        reader: node("reader"),
        reader_key: reader().public(),
        owner,
        incarnation,
        scopes: vec![Scope::new("a/llama").unwrap(), Scope::new("b/*").unwrap()],
        expires: NOW.after(Duration::from_secs(300)),
    }
}

fn ring() -> KeyRing {
    KeyRing::new(issuer(1).public())
}

fn issued(ticket: &Ticket) -> Vec<u8> {
    issuer(1).issue(LATER, ticket).unwrap()
}

fn verify(now: UnixMillis, bytes: &[u8]) -> Result<Ticket, Refusal> {
    let (owner, incarnation) = owner();
    ring().verify(now, &owner, incarnation, bytes)
}

#[test]
fn what_was_issued_is_what_is_verified() {
    let bytes = issued(&ticket());
    let verified = verify(NOW, &bytes).unwrap();
    assert_eq!(verified, ticket());
    let may = |name| verified.covers(&NamespaceName::new(name).unwrap());
    assert!(may("a/llama") && may("b/llama") && may("b/x"));
    assert!(!may("a/llama-2") && !may("a") && !may("c/llama") && !may("b"));
}

#[test]
fn without_one_nobody_gets_in() {
    assert_eq!(verify(NOW, &[]), Err(Refusal::Absent));
    assert_eq!(verify(NOW, b"KVT"), Err(Refusal::Malformed));
    assert_eq!(
        verify(NOW, &[0; MAX_TICKET_BYTES + 1]),
        Err(Refusal::Malformed)
    );
    let none = KeyRing::default();
    let (owner, incarnation) = owner();
    let refused = none.verify(NOW, &owner, incarnation, &issued(&ticket()));
    assert_eq!(refused, Err(Refusal::UnknownKey));
}

#[test]
fn it_expires_by_more_than_clocks_differ() {
    let bytes = issued(&ticket());
    let end = ticket().expires.after(CLOCK_DRIFT);
    assert!(verify(UnixMillis(end.0 - 1), &bytes).is_ok());
    assert_eq!(verify(end, &bytes), Err(Refusal::Expired));
    // A coordinator's clock that is a day ahead makes no tickets for a day.
    let day = Duration::from_secs(86_400);
    let expires = NOW.after(day);
    let long = issued(&Ticket {
        expires,
        ..ticket()
    });
    assert_eq!(verify(NOW, &long), Err(Refusal::TooLong));
}

#[test]
fn another_owners_is_of_no_use() {
    let elsewhere = Ticket {
        owner: node("another"),
        ..ticket()
    };
    let refused = verify(NOW, &issued(&elsewhere));
    assert_eq!(refused, Err(Refusal::OtherOwner));
    let earlier = Ticket {
        incarnation: Incarnation::new(41).unwrap(),
        ..ticket()
    };
    let refused = verify(NOW, &issued(&earlier));
    assert_eq!(refused, Err(Refusal::OtherOwner));
}

#[test]
fn another_signers_is_of_no_use() {
    let bytes = issuer(2).issue(LATER, &ticket()).unwrap();
    assert_eq!(verify(NOW, &bytes), Err(Refusal::UnknownKey));
    // Also where it names a key that is known.
    let mut forged = bytes;
    forged[4..12].copy_from_slice(&issued(&ticket())[4..12]);
    assert_eq!(verify(NOW, &forged), Err(Refusal::BadSignature));
}

#[test]
fn a_stolen_ticket_proves_nothing() {
    let bytes = issued(&ticket());
    let verified = verify(NOW, &bytes).unwrap();
    let (nonce, other) = (Nonce([5; 32]), Nonce([6; 32]));
    let proof = reader().prove(Purpose::Data, &nonce, &bytes);
    assert!(verified.is_proven(Purpose::Data, &nonce, &bytes, &proof));
    // Played again, for another nonce; at another door; with another ticket of the same reader.
    assert!(!verified.is_proven(Purpose::Data, &other, &bytes, &proof));
    assert!(!verified.is_proven(Purpose::Rdma, &nonce, &bytes, &proof));
    let another = issued(&Ticket {
        expires: NOW.after(Duration::from_secs(301)),
        ..ticket()
    });
    assert!(!verified.is_proven(Purpose::Data, &nonce, &another, &proof));
    // With a key of the thief's own; with none.
    let thief = ReaderKey::from_seed(&[10; 32]).unwrap();
    let stolen = thief.prove(Purpose::Data, &nonce, &bytes);
    assert!(!verified.is_proven(Purpose::Data, &nonce, &bytes, &stolen));
    assert!(!verified.is_proven(Purpose::Data, &nonce, &bytes, &[]));
    assert!(!verified.is_proven(Purpose::Data, &nonce, &bytes, &[0; PROOF_BYTES]));
}

#[test]
fn more_than_a_ticket_holds_is_not_issued() {
    let long = Scope::new(&"n".repeat(256)).unwrap();
    for scopes in [vec![], vec![Scope::all(); MAX_SCOPES + 1], vec![long; 32]] {
        let too_long = issuer(1).issue(LATER, &Ticket { scopes, ..ticket() });
        assert!(too_long.is_err());
    }
}

#[test]
fn keys_are_turned_over_without_a_gap() {
    let (old, new) = ("11".repeat(32), "22".repeat(32));
    let before = Issuer::parse(&old).unwrap();
    let after = Issuer::parse(&format!("# rotated\n{new}\n\n{old}\n")).unwrap();
    let (owner, incarnation) = owner();
    let good = |ring: &KeyRing, bytes: &[u8]| ring.verify(NOW, &owner, incarnation, bytes).is_ok();
    let (knows_old, knows_both) = (KeyRing::new(before.public()), KeyRing::new(after.public()));
    // Just started, it signs with what all know; later with the new one.
    let early = after.issue(Duration::ZERO, &ticket()).unwrap();
    let late = after.issue(SETTLE, &ticket()).unwrap();
    assert!(good(&knows_old, &early) && good(&knows_both, &early));
    assert!(!good(&knows_old, &late) && good(&knows_both, &late));
}

#[test]
fn a_key_file_is_read_or_refused() {
    assert!(matches!(
        Issuer::parse("# none\n"),
        Err(KeyFileError::Count { count: 0 })
    ));
    let many = format!("{}\n", "ab".repeat(32)).repeat(MAX_KEYS + 1);
    assert!(matches!(
        Issuer::parse(&many),
        Err(KeyFileError::Count { .. })
    ));
    for line in ["+1".repeat(32), "ab".repeat(31), "é".repeat(32)] {
        let text = format!("#\n{line}");
        assert!(matches!(
            Issuer::parse(&text),
            Err(KeyFileError::Line { line: 2 })
        ));
    }
    assert_ne!(
        SigningKey::new_line().unwrap(),
        SigningKey::new_line().unwrap()
    );
    assert!(Issuer::parse(&SigningKey::new_line().unwrap()).is_ok());
}

#[test]
fn keys_are_not_shown() {
    let seed = [0x5a; 32];
    let key = SigningKey::from_seed(&seed).unwrap();
    let reader = ReaderKey::from_seed(&seed).unwrap();
    let shown = format!(
        "{key:?} {reader:?} {:?}",
        Issuer::new(SigningKey::from_seed(&seed).unwrap())
    );
    assert!(
        !shown.contains("5a5a") && !shown.contains("90, 90"),
        "{shown}"
    );
}

#[test]
fn refusals_travel_as_one_byte() {
    let codes: HashSet<u8> = Refusal::ALL.iter().map(|refusal| refusal.code()).collect();
    assert_eq!(codes.len(), Refusal::ALL.len());
    assert!(!codes.contains(&0) && codes.iter().all(|code| *code < 16));
    for refusal in Refusal::ALL {
        assert_eq!(Refusal::from_code(refusal.code()), *refusal);
    }
    assert_eq!(Refusal::from_code(200), Refusal::Other);
}

proptest! {
    /// Whatever bit of a ticket is turned, nobody gets in with it.
    #[test]
    fn no_flip_goes_unnoticed(at in 0usize..1 << 16, bit in 0u8..8) {
        let mut bytes = issued(&ticket());
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        prop_assert!(verify(NOW, &bytes).is_err());
    }

    #[test]
    fn neither_does_a_cut_or_an_addition(keep in 0usize..1 << 16, more in proptest::collection::vec(any::<u8>(), 1..80)) {
        let bytes = issued(&ticket());
        prop_assert!(verify(NOW, &bytes[..keep % bytes.len()]).is_err());
        prop_assert!(verify(NOW, &[&bytes[..], &more].concat()).is_err());
        prop_assert!(verify(NOW, &[&more[..], &bytes].concat()).is_err());
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(verify(NOW, &bytes).is_err());
        let with_magic = [&b"KVT\x01"[..], &bytes].concat();
        prop_assert!(verify(NOW, &with_magic).is_err());
        // Also what a coordinator would have signed is taken apart with care.
        if let Ok(presented) = claims::Presented::of(&with_magic) {
            let _ = presented.parse();
        }
    }

    #[test]
    fn tickets_round_trip(
        names in proptest::collection::vec("[a-z0-9/:@-]{1,40}[*]?", 1..MAX_SCOPES),
        reader in "[a-z0-9.-]{1,128}",
        expires in NOW.0..NOW.0 + 3_000_000,
    ) {
        let scopes = names.iter().map(|name| Scope::new(name).unwrap()).collect();
        let ticket = Ticket { reader: node(&reader), scopes, expires: UnixMillis(expires), ..ticket() };
        prop_assert_eq!(verify(NOW, &issued(&ticket)).unwrap(), ticket);
    }
}
