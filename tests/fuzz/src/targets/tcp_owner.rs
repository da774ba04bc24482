//! An owner's data connection: the reader's stream, cut at random places, against a model of what it asks for.

use std::sync::Arc;

use kvferry_agent::{fuzz::tcp, region::RegionCatalog};

use super::tcp_frames::requests;
use crate::{Target, choices::Choices, world};

pub(super) const TARGET: Target = Target {
    name: "tcp_owner",
    run,
    seeds,
};

fn run(bytes: &[u8]) {
    thread_local! {
        static CATALOG: Arc<RegionCatalog> = world::catalog();
    }
    let mut choices = Choices::new(bytes);
    let cuts = choices.bytes();
    let pieces = world::cut(choices.rest(), cuts);
    let catalog = CATALOG.with(Arc::clone);
    world::block_on(tcp::owner(&catalog, &pieces));
}

fn with_cuts(cuts: &[u8], stream: &[u8]) -> Vec<u8> {
    let mut out = (cuts.len() as u16).to_le_bytes().to_vec();
    out.extend(cuts);
    out.extend(stream);
    out
}

fn seeds() -> Vec<Vec<u8>> {
    let stream = tcp::sent_by_reader(world::INCARNATION, &requests());
    let other = tcp::sent_by_reader(1, &requests());
    vec![
        with_cuts(&[], &stream),
        with_cuts(&[3, 17, 1, 1, 40, 9], &stream),
        with_cuts(&[20], &stream[..stream.len() - 5]),
        with_cuts(&[], &other),
    ]
}
