//! Directory and model, question by question.

use super::simple::{Model, Place};
use super::*;

/// Both answer every question alike.
pub(super) fn compare(directory: &Directory, model: &Model) {
    compare_totals(directory, model);
    for (index, name) in NAMESPACES.iter().enumerate() {
        compare_namespace(directory, model, index, &namespace(name));
    }
    let mut slots = 0;
    for (index, name) in NODES.iter().enumerate() {
        let info = directory.node(model.now, &node(name)).ok();
        let Some(known) = model.nodes.get(&index) else {
            assert_eq!(info, None);
            continue;
        };
        let info = info.expect("the model knows this node");
        assert_eq!(info.incarnation.get(), known.incarnation);
        assert_eq!(info.state, known.state());
        assert_eq!(info.applied_delta, known.applied);
        assert_eq!(info.silent, model.now - known.last_seen);
        let regions: Vec<(u32, usize, u32)> = known
            .accepted()
            .map(|(id, region)| (id, region.namespace, region.slots.len() as u32))
            .collect();
        let told: Vec<(u32, usize, u32)> = info
            .regions
            .iter()
            .map(|r| {
                let name = r.namespace.as_str();
                let index = NAMESPACES.iter().position(|n| *n == name).unwrap();
                (r.region.0, index, r.sealed)
            })
            .collect();
        assert_eq!(told, regions);
        let blocks: u64 = regions.iter().map(|r| u64::from(r.2)).sum();
        assert_eq!((info.blocks, info.bytes), (blocks, blocks * BLOCK_BYTES));
        slots += regions.len() as u64 * u64::from(SLOTS);
    }
    assert_eq!(directory.catalog.totals().1, slots);
    assert_eq!(directory.sessions.len(), model.sessions().count());
    claims::compare(directory, model);
    locations::compare(directory, model);
}

/// What was counted step by step is what there is.
fn compare_totals(directory: &Directory, model: &Model) {
    let totals = directory.totals();
    let owners = model
        .namespaces
        .keys()
        .flat_map(|&namespace| (0..HASHES).map(move |hash| model.owners(namespace, hash).len()));
    assert_eq!(totals.told(), Totals::expected(owners, BLOCK_BYTES));
    assert_eq!(
        totals.added.get() - totals.removed.get(),
        totals.copies.get()
    );
    let hidden = model.nodes.keys().filter(|node| model.hidden(**node));
    assert_eq!(totals.hidden.get(), hidden.count() as u64);
    let counts = directory.counts();
    let ended = counts.claims_ended.iter().map(|(_, ended)| ended.get());
    let claims = counts.claims_granted.get() - ended.sum::<u64>();
    let held = directory.claims_held();
    assert_eq!((counts.claims.get(), claims), (held, held));
    let ended = counts.locations_ended.iter().map(|(_, ended)| ended.get());
    let locations = counts.locations_added.get() - ended.sum::<u64>();
    let there = directory.locations();
    assert_eq!((counts.locations.get(), locations), (there, there));
    assert_eq!(counts.locations_bytes.get(), there * BLOCK_BYTES);
    let sizes = directory.sizes();
    assert_eq!(sizes.nodes, model.nodes.len());
    assert_eq!(sizes.namespaces, model.namespaces.len());
}

fn compare_namespace(directory: &Directory, model: &Model, index: usize, name: &NamespaceName) {
    let hashes: Vec<u64> = (0..HASHES).collect();
    let hashes = packed(&hashes);
    let prefer = Labels::default();
    let query = LocateQuery {
        namespace: name,
        hashes: &hashes,
        mode: LocateMode::Set,
        max_candidates: MAX_CANDIDATES,
        host_id: "",
        prefer: &prefer,
        exclude: None,
        draw: 0,
        locations: false,
    };
    if !model.namespaces.contains_key(&index) {
        assert!(directory.namespace(name).is_err());
        assert!(directory.locate(&query).is_err());
        return;
    }
    let all: Vec<Vec<Place>> = (0..HASHES).map(|hash| model.owners(index, hash)).collect();
    let info = directory.namespace(name).unwrap();
    assert_eq!(info.spec, variant_spec(index, model.namespaces[&index]));
    let blocks = all.iter().filter(|owners| !owners.is_empty()).count();
    assert_eq!(info.blocks, blocks as u64);
    assert_eq!(info.owners, all.concat().len() as u64);
    assert_eq!(info.bytes, info.owners * BLOCK_BYTES);
    assert_eq!(info.regions as usize, model.regions_of(index));

    let offered: Vec<Vec<Place>> = all
        .into_iter()
        .map(|owners| {
            owners
                .into_iter()
                .filter(|o| !model.hidden(o.node))
                .collect()
        })
        .collect();
    let located = directory.locate(&query).unwrap();
    let told = places(&located);
    for (told, offered) in told.iter().zip(&offered) {
        let draining: Vec<bool> = told.iter().map(|p| model.nodes[&p.node].draining).collect();
        assert!(draining.is_sorted(), "draining nodes come last");
        let mut told = told.clone();
        told.sort_unstable();
        let mut offered = offered.clone();
        offered.sort_unstable();
        assert_eq!(told, offered);
    }
    let prefix = LocateQuery {
        mode: LocateMode::Prefix,
        ..query
    };
    let prefix = directory.locate(&prefix).unwrap();
    let run = offered
        .iter()
        .take_while(|owners| !owners.is_empty())
        .count();
    assert_eq!(places(&prefix), told[..run]);
}

fn places(located: &Located) -> Vec<Vec<Place>> {
    let mut row = 0;
    let block = |count: &u32| {
        let rows = row..row + *count as usize;
        row = rows.end;
        let place = |row: usize| {
            let owner = &located.owners[located.owner_index[row] as usize];
            let name = owner.node.as_str();
            Place {
                node: NODES.iter().position(|n| *n == name).unwrap(),
                incarnation: owner.incarnation.get(),
                region: owner.region.0,
                slot: located.slots[row],
                generation: located.generations[row],
            }
        };
        rows.map(place).collect()
    };
    located.counts.iter().map(block).collect()
}

/// Owners that are offered live, and every block the model offers is.
pub(super) fn compare_offered(directory: &Directory, model: &Model) {
    let hashes: Vec<u64> = (0..HASHES).collect();
    for (index, name) in NAMESPACES.iter().enumerate() {
        let located = directory.locate(&LocateQuery {
            namespace: &namespace(name),
            hashes: &packed(&hashes),
            mode: LocateMode::Set,
            max_candidates: MAX_CANDIDATES,
            host_id: "",
            prefer: &Labels::default(),
            exclude: None,
            draw: 0,
            locations: false,
        });
        let Ok(located) = located else {
            assert!(!model.namespaces.contains_key(&index));
            continue;
        };
        for (hash, told) in (0..).zip(places(&located)) {
            for place in &told {
                let node = &model.nodes[&place.node];
                assert_eq!(place.incarnation, node.incarnation);
                assert!(node.accepted().any(|(id, _)| id == place.region));
            }
            let mut offered = model.owners(index, hash).into_iter();
            assert!(offered.all(|o| model.hidden(o.node) || told.contains(&o)));
        }
    }
}
