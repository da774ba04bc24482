//! The descriptor socket: frames, and an owner's connection with descriptors beside them.

use std::sync::Arc;

use kvferry_agent::{fuzz::shm, region::RegionCatalog};

use crate::{Target, choices::Choices, world};

pub(super) const TARGET: Target = Target {
    name: "shm",
    run,
    seeds,
};

fn run(bytes: &[u8]) {
    thread_local! {
        static CATALOG: Arc<RegionCatalog> = world::catalog();
    }
    shm::frames(bytes);
    let mut choices = Choices::new(bytes);
    let mut pieces = Vec::new();
    while !choices.is_empty() && pieces.len() < 64 {
        let head = choices.u8();
        let len = usize::from(head & 0x3f);
        let rest = choices.rest();
        let (piece, rest) = rest.split_at(len.min(rest.len()));
        choices = Choices::new(rest);
        // Up to three where a frame has two at most.
        pieces.push((piece, usize::from(head >> 6)));
    }
    let catalog = CATALOG.with(Arc::clone);
    world::block_on(shm::owner(&catalog, &pieces));
}

fn seeds() -> Vec<Vec<u8>> {
    let hello = |incarnation: u64| {
        let mut frame = b"KVFs\x01\0\0\0".to_vec();
        frame.extend(incarnation.to_le_bytes());
        frame
    };
    let open = |region: u32, writable: u8| {
        let mut frame = vec![1, writable, 0, 0];
        frame.extend(region.to_le_bytes());
        frame.extend(world::INCARNATION.to_le_bytes());
        frame
    };
    let mut deposit = vec![0; 16];
    deposit[0] = 2;
    let input = |pieces: &[(&[u8], u8)]| {
        let mut out = Vec::new();
        for (piece, descriptors) in pieces {
            out.push(piece.len() as u8 | descriptors << 6);
            out.extend(*piece);
        }
        out
    };
    let (hello, other) = (hello(world::INCARNATION), hello(3));
    let (one, two, none) = (open(1, 0), open(2, 1), open(5, 0));
    let opened = [0; 24];
    vec![
        input(&[(&hello, 0), (&one, 0), (&two, 0), (&none, 0)]),
        input(&[
            (&hello[..5], 0),
            (&hello[5..], 0),
            (&deposit, 1),
            (&deposit, 1),
            (&deposit, 2),
        ]),
        input(&[(&other, 0)]),
        hello.clone(),
        one,
        opened.to_vec(),
    ]
}
