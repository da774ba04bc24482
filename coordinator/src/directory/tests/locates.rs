//! Who is offered, and in which order.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

struct Ask<'a> {
    hashes: &'a [u64],
    mode: LocateMode,
    max: usize,
    host: &'a str,
    prefer: &'a [(&'a str, &'a str)],
    exclude: Option<&'a str>,
    draw: u64,
}

const ASK: Ask<'static> = Ask {
    hashes: &[7],
    mode: LocateMode::Set,
    max: 16,
    host: "",
    prefer: &[],
    exclude: None,
    draw: 0,
};

fn labels(pairs: &[(&str, &str)]) -> Labels {
    let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    Labels::new(pairs.iter().map(own)).unwrap()
}

fn ask(directory: &Directory, ask: &Ask<'_>) -> Result<Located, LocateError> {
    directory.locate(&LocateQuery {
        namespace: &namespace("t/m"),
        hashes: &packed(ask.hashes),
        mode: ask.mode,
        max_candidates: ask.max,
        host_id: ask.host,
        prefer: &labels(ask.prefer),
        exclude: ask.exclude.map(node).as_ref(),
        draw: ask.draw,
        locations: false,
    })
}

fn names(directory: &Directory, question: &Ask<'_>) -> Vec<String> {
    spell(&ask(directory, question).unwrap()).concat()
}

/// Node number i holds hash 7 in slot i.
fn join_at(directory: &mut Directory, i: u32, name: &str, host: &str, with: &[(&str, &str)]) {
    let event = Event::Hello {
        session: SessionId(i.into()),
        hello: Hello {
            node: node(name),
            incarnation: incarnation(1),
            addresses: NodeAddresses {
                host_id: host.into(),
                ..NodeAddresses::default()
            },
            labels: labels(with),
            coordinator_epoch: EPOCH,
            oldest_delta: 1,
            next_delta: 1,
        },
    };
    directory.handle(at(0), event);
    directory.handle(at(0), first_delta(i.into(), &[(i, 7, 2)]));
}

#[test]
fn host_first_then_labels_then_the_rest_and_draining_last() {
    let mut directory = directory();
    join_at(&mut directory, 1, "far", "h2", &[]);
    join_at(&mut directory, 2, "rack", "h2", &[("rack", "r1")]);
    join_at(
        &mut directory,
        3,
        "both",
        "h2",
        &[("rack", "r1"), ("zone", "z1")],
    );
    join_at(&mut directory, 4, "host", "h1", &[]);
    join_at(&mut directory, 5, "leaving", "h1", &[("rack", "r1")]);
    directory.drain_node(&node("leaving"), true).unwrap();
    let question = Ask {
        host: "h1",
        prefer: &[("rack", "r1"), ("zone", "z1")],
        ..ASK
    };
    let order = ["host/4@2", "both/3@2", "rack/2@2", "far/1@2", "leaving/5@2"];
    assert_eq!(names(&directory, &question), order);
    assert_eq!(
        names(&directory, &Ask { max: 2, ..question }),
        order[..2],
        "cut after ranking"
    );
    let without = Ask {
        host: "h1",
        exclude: Some("host"),
        max: 1,
        ..ASK
    };
    directory.drain_node(&node("leaving"), false).unwrap();
    assert_eq!(names(&directory, &without), ["leaving/5@2"], "drain undone");
}

#[test]
fn equals_are_spread_over_askers_and_blocks() {
    let mut directory = directory();
    for i in 0..4 {
        join_at(&mut directory, i, &format!("n{i}"), "h", &[]);
    }
    let mut first = BTreeSet::new();
    for asker in 0..64 {
        let asker = format!("asker{asker}");
        let question = Ask {
            exclude: Some(&asker),
            ..ASK
        };
        let answer = names(&directory, &question);
        assert_eq!(answer.len(), 4);
        assert_eq!(answer, names(&directory, &question), "the same every time");
        first.insert(answer[0].clone());
    }
    assert_eq!(first.len(), 4);
}

/// How often of a thousand draws each of the nodes comes first.
fn firsts(directory: &Directory, question: &Ask<'_>) -> BTreeMap<String, u32> {
    let mut firsts = BTreeMap::new();
    for draw in 0..1_000 {
        let question = Ask { draw, ..*question };
        let answer = names(directory, &question);
        assert_eq!(answer, names(directory, &question), "the same every time");
        let name = answer[0].split('/').next().unwrap();
        *firsts.entry(name.to_owned()).or_default() += 1;
    }
    firsts
}

#[test]
fn readers_are_spread_over_draws_and_away_from_who_serves_much() {
    let mut directory = directory();
    for (i, name) in (1..).zip(["a", "b", "c"]) {
        join_at(&mut directory, i, name, "h", &[]);
    }
    let even = firsts(&directory, &ASK);
    assert!(even.values().all(|n| (270..400).contains(n)), "{even:?}");

    let read = |directory: &mut Directory, ms, gigabytes: u64| {
        let event = Event::Reads {
            session: SessionId(2),
            reads: vec![(node("a"), gigabytes << 30), (node("nobody"), 1)],
        };
        assert_eq!(directory.handle(at(ms), event), []);
    };
    read(&mut directory, 10, 2);
    let served = |directory: &Directory, ms| {
        let info = directory.node(at(ms), &node("a")).unwrap();
        info.served_bytes_per_second
    };
    assert_eq!(served(&directory, 10), 744_261_117, "2 GiB x ln 2 / 2 s");
    let busy = firsts(&directory, &ASK);
    assert!(
        (15..80).contains(&busy["a"]),
        "a twelfth of others: {busy:?}"
    );
    assert!(busy["b"].abs_diff(busy["c"]) < 120, "{busy:?}");

    // Nearness comes before load, and load before nothing else.
    directory.drain_node(&node("b"), true).unwrap();
    directory.drain_node(&node("c"), true).unwrap();
    assert_eq!(firsts(&directory, &ASK)["a"], 1_000);
    directory.drain_node(&node("b"), false).unwrap();
    directory.drain_node(&node("c"), false).unwrap();

    // Nobody reads there any more: a sign of life is enough to notice.
    let beat = Event::Heartbeat {
        session: SessionId(1),
        number: 1,
        next_delta: None,
    };
    directory.handle(at(60_010), beat);
    assert_eq!(served(&directory, 60_010), 0);
    assert_eq!(firsts(&directory, &ASK), even);
}

#[test]
fn a_second_copy_on_one_node_comes_after_other_nodes() {
    let mut directory = directory();
    join(&mut directory, 1, "a", &[(0, 7, 2), (1, 7, 2), (2, 7, 2)]);
    join(&mut directory, 2, "b", &[(0, 7, 2)]);
    let answer = names(&directory, &ASK);
    let mut firsts: Vec<&str> = answer[..2].iter().map(String::as_str).collect();
    firsts.sort_unstable();
    assert_eq!(firsts, ["a/0@2", "b/0@2"]);
    assert_eq!(answer[2..], ["a/1@2", "a/2@2"]);
}

#[test]
fn prefix_stops_at_the_first_miss_and_set_does_not() {
    let mut directory = directory();
    join(&mut directory, 1, "a", &[(0, 1, 2), (1, 2, 2), (2, 4, 2)]);
    let hashes = &[1, 2, 3, 4];
    let prefix = Ask {
        hashes,
        mode: LocateMode::Prefix,
        ..ASK
    };
    let located = ask(&directory, &prefix).unwrap();
    assert_eq!((located.counts, located.slots), (vec![1, 1], vec![0, 1]));
    let located = ask(&directory, &Ask { hashes, ..ASK }).unwrap();
    assert_eq!(located.counts, [1, 1, 0, 1]);
    assert_eq!(located.owners.len(), 1, "an owner is named once");
    let excluded = Ask {
        exclude: Some("a"),
        ..prefix
    };
    assert_eq!(ask(&directory, &excluded).unwrap(), Located::default());
}

#[test]
fn checksums_travel_where_there_are_any() {
    let mut directory = directory();
    join(&mut directory, 1, "a", &[(0, 7, 2)]);
    assert_eq!(ask(&directory, &ASK).unwrap().checksums, [0; 0]);
    let mut with = change(1, &[], &[(1, 8, 2)]);
    with.added.checksums = vec![55];
    let next = Delta {
        seq: 2,
        changes: vec![with],
        ..Delta::default()
    };
    directory.handle(at(0), delta(1, next));
    let question = Ask {
        hashes: &[7, 8],
        ..ASK
    };
    assert_eq!(ask(&directory, &question).unwrap().checksums, [0, 55]);
}

#[test]
fn what_cannot_be_answered_is_an_error_and_no_miss() {
    let mut directory = directory();
    assert_eq!(
        ask(&directory, &ASK),
        Err(NamespaceUnknown {
            name: namespace("t/m")
        }
        .into())
    );
    join(&mut directory, 1, "a", &[(0, 7, 2)]);
    let name = namespace("t/m");
    let long = PackedHashes::new(HashLen::new(16).unwrap(), vec![0; 32].into()).unwrap();
    let many = packed(&vec![1; 65_536]);
    let prefer = Labels::default();
    let query = LocateQuery {
        namespace: &name,
        hashes: &long,
        mode: LocateMode::Set,
        max_candidates: 3,
        host_id: "",
        prefer: &prefer,
        exclude: None,
        draw: 0,
        locations: false,
    };
    assert!(matches!(
        directory.locate(&query),
        Err(LocateError::HashLength(_))
    ));
    let query = LocateQuery {
        hashes: &many,
        ..query
    };
    assert_eq!(directory.locate(&query).unwrap().counts.len(), 65_536);
    let query = LocateQuery {
        max_candidates: 99,
        ..query
    };
    assert_eq!(
        directory.locate(&query),
        Err(LocateError::TooManyCandidates {
            hashes: 65_536,
            candidates: 16
        })
    );
}

#[test]
fn an_owner_table_that_outgrows_a_message_is_an_error() {
    const PLANES: u64 = 1_024;
    let mut directory = directory();
    let mut wide = declaration(1, "t/m", 1);
    wide.namespace.layout = Layout::new("u8", 16, PLANES as u32, 1).unwrap();
    let plane = |base| kvferry_proto::Plane {
        base,
        stride: 1,
        len: 1,
    };
    wide.geometry = Geometry::new(1, (0..PLANES).map(plane).collect()).unwrap();
    // Each takes some 8 kB to name; every node holds a block of its own.
    for n in 1..=300u64 {
        directory.handle(at(0), hello(n, &format!("n{n}"), 1));
        let first = Delta {
            seq: 1,
            regions_added: vec![wide.clone()],
            changes: vec![change(1, &[], &[(0, n, 2)])],
            ..Delta::default()
        };
        directory.handle(at(0), delta(n, first));
    }
    let hashes: Vec<u64> = (1..=300).collect();
    let question = |hashes| ask(&directory, &Ask { hashes, ..ASK });
    assert!(question(&hashes) == Err(LocateError::TooManyOwners));
    assert_eq!(question(&hashes[..100]).unwrap().owners.len(), 100);
}
