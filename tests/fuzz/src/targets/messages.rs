//! Messages into the types that cannot be wrong; and that those are not.

use kvferry_proto::{
    ChunkRuns, Geometry, HashLen, Labels, Layout, NamespaceSpec, NodeAddresses, PackedHashes, Slot,
    SourceIdentity, Tensor, pb,
};
use prost::Message;

use crate::{Target, world};

pub(super) const TARGET: Target = Target {
    name: "messages",
    run,
    seeds,
};

fn run(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else {
        return;
    };
    match kind % 9 {
        0 => again::<pb::NamespaceSpec, NamespaceSpec>(bytes),
        1 => again::<pb::Layout, Layout>(bytes),
        2 => geometry(bytes),
        3 => again::<pb::NodeAddresses, NodeAddresses>(bytes),
        4 => again::<pb::SourceIdentity, SourceIdentity>(bytes),
        5 => {
            if let Ok(message) = pb::Hello::decode(bytes) {
                let labels = Labels::new(message.labels.clone());
                assert!(labels.is_err() || message.labels.len() <= 32);
            }
        }
        6 => packed(bytes),
        7 => {
            let message = pb::TensorDescriptor::decode(bytes).unwrap_or_default();
            if let Ok(tensor) = Tensor::try_from(message.clone()) {
                assert_eq!(pb::TensorDescriptor::from(&tensor), message);
                assert!(tensor.encoded_bytes() >= tensor.name().len());
            }
        }
        _ => {
            if let Ok(message) = pb::PublishedTensors::decode(bytes)
                && let Ok(runs) = ChunkRuns::try_from(message.runs)
            {
                let chunks = u32::try_from(runs.slots());
                assert!(chunks.is_err() || runs.covers(chunks.unwrap()).is_ok());
                assert_eq!(ChunkRuns::try_from(Vec::from(&runs)), Ok(runs));
            }
        }
    }
}

/// What is taken is taken again when it is sent on, as the same.
fn again<M, T>(bytes: &[u8])
where
    M: Message + Default + for<'a> From<&'a T>,
    T: TryFrom<M> + PartialEq + std::fmt::Debug,
    T::Error: std::fmt::Display + std::fmt::Debug,
{
    let Ok(message) = M::decode(bytes) else {
        return;
    };
    match T::try_from(message) {
        Ok(taken) => assert_eq!(T::try_from(M::from(&taken)).unwrap(), taken),
        // For people, whatever it was.
        Err(why) => assert!(!why.to_string().is_empty()),
    }
}

/// Slots of which each byte is looked at.
const MAX_LOOKED_AT: u32 = 16;

/// No byte of two slots, none beyond the end.
fn geometry(bytes: &[u8]) {
    again::<pb::Geometry, Geometry>(bytes);
    let Ok(Ok(geometry)) = pb::Geometry::decode(bytes).map(Geometry::try_from) else {
        return;
    };
    let last = Slot(geometry.slots() - 1);
    let mut ranges: Vec<_> = (0..geometry.slots().min(MAX_LOOKED_AT))
        .map(Slot)
        .chain([last])
        .collect();
    ranges.dedup();
    let mut ranges: Vec<_> = ranges
        .into_iter()
        .flat_map(|slot| geometry.ranges(slot))
        .collect();
    ranges.sort_by_key(|range| (range.start, range.end));
    for pair in ranges.windows(2) {
        assert!(pair[0].end <= pair[1].start, "two slots share bytes");
    }
    assert!(ranges.iter().all(|range| range.end <= geometry.end()));
    assert_eq!(geometry.ranges(Slot(geometry.slots())).count(), 0);
    let block: u64 = geometry
        .ranges(last)
        .map(|range| range.end - range.start)
        .sum();
    assert_eq!(block, geometry.block_bytes());
}

fn packed(bytes: &[u8]) {
    let Ok(message) = pb::PackedHashes::decode(bytes) else {
        return;
    };
    let Ok(len) = HashLen::new(message.hash_len as usize) else {
        return;
    };
    if let Ok(hashes) = PackedHashes::parse(message.clone(), len) {
        assert_eq!(hashes.len() * len.get(), message.hashes.len());
        assert_eq!(hashes.get(hashes.len()), None);
        let each = hashes.to_hashes();
        assert_eq!(PackedHashes::pack(len, &each).unwrap(), hashes);
        assert_eq!(pb::PackedHashes::from(hashes), message);
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let spec = pb::NamespaceSpec::from(&world::spec());
    let runs = vec![pb::ChunkRun {
        region: 1,
        first_slot: 2,
        slots: 3,
    }];
    let planes = |of: &[(u64, u64, u64)]| {
        of.iter()
            .map(|(base, stride, len)| pb::Plane {
                base: *base,
                stride: *stride,
                len: *len,
            })
            .collect()
    };
    let interleaved = pb::Geometry {
        slots: 3,
        planes: planes(&[(0, 32, 8), (8, 32, 8), (40, 32, 8)]),
    };
    let apart = pb::Geometry {
        slots: 2,
        planes: planes(&[(0, 16, 16), (64, 20, 8)]),
    };
    let mut seeds = vec![
        world::tagged(0, &spec),
        world::tagged(1, spec.layout.as_ref().unwrap()),
        world::tagged(2, &world::geometry(4)),
        world::tagged(2, &interleaved),
        world::tagged(2, &apart),
        world::tagged(3, &world::addresses()),
        world::tagged(4, &world::identity()),
        world::tagged(5, &world::hello("a")),
        world::tagged(6, &world::hashes(1, 3)),
        world::tagged(
            8,
            &pb::PublishedTensors {
                runs,
                ..pb::PublishedTensors::default()
            },
        ),
    ];
    seeds.extend(
        world::tensors()
            .iter()
            .map(|tensor| world::tagged(7, tensor)),
    );
    seeds
}
