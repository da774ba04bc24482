//! Whatever is dropped in whatever order, the kernel gets all of it back.

use std::fs;

use kvferry_ibverbs::lost_bytes;

use crate::rig::{self, at, memory, patterned};

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Kilobytes that devices hold of this process.
fn pinned_kb() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPin:"));
    let words = line.unwrap_or("0").split_whitespace().next();
    words.unwrap_or("0").parse().unwrap()
}

#[test]
fn everything_is_given_back_whatever_is_dropped_first() {
    let (descriptors, pinned) = (open_descriptors(), pinned_kb());
    for order in 0..4 {
        let Some(rig) = rig::rig() else { return };
        let (reader, owner) = rig.connected();
        let (source, target) = (patterned(1 << 20, 1), memory(1 << 20));
        let (from, to) = (rig.owner.readable(&source), rig.reader.local(&target));
        let mut chain = reader.chain();
        let piece = to.piece(0..1 << 20).unwrap();
        chain.push(1, at(from.key(), 0), [piece]).unwrap();
        reader.post(&mut chain).unwrap();
        assert_eq!(pinned_kb(), pinned + 2048);
        // What is in flight, and what it needs, outlives whatever goes first.
        match order {
            0 => drop((rig, from, to, owner, source, target, chain, reader)),
            1 => drop((reader, to, target, chain, owner, from, source, rig)),
            2 => drop((to, target, reader, rig, source, from, owner, chain)),
            _ => {
                assert_eq!(rig.reader.collect(1)[0].result, Ok(()));
                drop((source, target, from, to, rig, chain, owner, reader));
            }
        }
        assert_eq!(open_descriptors(), descriptors, "order {order}");
        assert_eq!(pinned_kb(), pinned, "order {order}");
        assert_eq!(lost_bytes(), 0, "order {order}");
    }
}
