use proptest::prelude::*;

use super::*;
use crate::{HashLen, MAX_SLOTS, RegionId, SourceId, pb};

fn message(name: &str, offset: u64, elements: u64) -> pb::TensorDescriptor {
    pb::TensorDescriptor {
        name: name.into(),
        dtype: "BF16".into(),
        shape: vec![elements],
        offset,
        bytes: 2 * elements,
    }
}

fn tensor(name: &str, offset: u64, elements: u64) -> Tensor {
    Tensor::try_from(message(name, offset, elements)).unwrap()
}

#[test]
fn a_set_is_the_same_in_any_order_and_another_with_any_change() {
    let (a, b) = (tensor("a", 0, 10), tensor("b", 20, 600));
    let one = TensorTable::new(1024, 2, vec![a.clone(), b.clone()]).unwrap();
    let other = TensorTable::new(1024, 2, vec![b.clone(), a.clone()]).unwrap();
    assert_eq!(one, other);
    assert_eq!(one.tensor_bytes(), 1220);
    assert_eq!(one.chunks_of(&a), 0..1);
    assert_eq!(one.chunks_of(&b), 0..2);
    for changed in [
        TensorTable::new(1024, 3, vec![a.clone(), b.clone()]),
        TensorTable::new(2048, 2, vec![a.clone(), b.clone()]),
        TensorTable::new(1024, 2, vec![tensor("a", 2, 10), b.clone()]),
        TensorTable::new(1024, 2, vec![tensor("c", 0, 10), b]),
        TensorTable::new(1024, 2, vec![a]),
    ] {
        assert_ne!(changed.unwrap().digest(), one.digest());
    }
}

#[test]
fn what_cannot_be_is_refused() {
    use TensorError as E;
    let table = |tensors| TensorTable::new(1024, 2, tensors).unwrap_err();
    let a = || tensor("a", 0, 1);
    assert!(matches!(table(vec![]), E::Count { count: 0 }));
    assert!(matches!(table(vec![a(), a()]), E::Twice { .. }));
    assert!(matches!(
        table(vec![tensor("a", 2040, 5)]),
        E::Outside { .. }
    ));
    assert!(matches!(
        table(vec![tensor("a", u64::MAX, 5)]),
        E::Outside { .. }
    ));
    assert!(TensorTable::new(0, 1, vec![a()]).is_err());
    assert!(TensorTable::new(1, MAX_SLOTS + 1, vec![a()]).is_err());

    let refused = |change: fn(&mut pb::TensorDescriptor)| {
        let mut message = message("a", 0, 3);
        change(&mut message);
        Tensor::try_from(message).unwrap_err()
    };
    assert!(matches!(refused(|t| t.bytes = 7), E::Bytes { want: 6, .. }));
    assert!(matches!(refused(|t| t.name.clear()), E::Name(_)));
    assert!(matches!(
        refused(|t| t.dtype = "a b".into()),
        E::Dtype { .. }
    ));
    assert!(matches!(
        refused(|t| t.shape = vec![1 << 40; 2]),
        E::Shape { .. }
    ));
    assert!(matches!(
        refused(|t| t.shape = vec![1; 17]),
        E::Shape { .. }
    ));
    // A name whose size is not known is taken as it is.
    let mut odd = message("a", 0, 3);
    (odd.dtype, odd.bytes) = ("Q4_K".into(), 5);
    assert!(Tensor::try_from(odd).is_ok());

    let run = |slots| ChunkRun {
        region: RegionId(1),
        first_slot: 0,
        slots,
    };
    assert!(ChunkRuns::new([]).is_err());
    assert!(ChunkRuns::new([run(0)]).is_err());
    assert!(ChunkRuns::new(vec![run(1); MAX_RUNS + 1]).is_err());
    let runs = ChunkRuns::new([run(2), run(3)]).unwrap();
    assert_eq!(runs.covers(5), Ok(()));
    assert!(runs.covers(6).is_err());
}

#[test]
fn chunks_of_different_workers_are_different_blocks() {
    let id = |n: u8| SourceId::new(&[n; 16]).unwrap();
    let digest = |n: u8| TableDigest::new(&[n; 16]).unwrap();
    let len = HashLen::new(32).unwrap();
    let chunks = |source, rank, set| Chunks::new(id(source), rank, digest(set), len).unwrap();
    let all = [
        chunks(1, 0, 1),
        chunks(2, 0, 1),
        chunks(1, 1, 1),
        chunks(1, 0, 2),
    ];
    let mut hashes: Vec<_> = all.iter().flat_map(|c| [c.hash(0), c.hash(1)]).collect();
    hashes.sort();
    hashes.dedup();
    assert_eq!(hashes.len(), 8);
    let short = Chunks::new(id(1), 0, digest(1), HashLen::new(16).unwrap()).unwrap();
    assert_eq!(short.hash(7).as_bytes(), &all[0].hash(7).as_bytes()[..16]);
    assert!(Chunks::new(id(1), 0, digest(1), HashLen::new(8).unwrap()).is_err());
    assert!(Chunks::new(id(1), 0, digest(1), HashLen::new(64).unwrap()).is_err());
}

proptest! {
    #[test]
    fn no_message_makes_a_tensor_outside_its_chunks(
        chunk_bytes in any::<u64>(), chunks in any::<u32>(),
        tensors in proptest::collection::vec(
            (".{0,6}", prop_oneof!["BF16", "U8", ".{0,3}"], any::<[u64; 2]>(), any::<u64>(), any::<u64>()),
            0..4,
        ),
    ) {
        let parsed: Result<Vec<_>, _> = tensors
            .into_iter()
            .map(|(name, dtype, shape, offset, bytes)| Tensor::try_from(pb::TensorDescriptor {
                name, dtype, shape: shape.to_vec(), offset, bytes,
            }))
            .collect();
        if let Ok(table) = parsed.and_then(|all| TensorTable::new(chunk_bytes, chunks, all)) {
            for tensor in table.tensors() {
                let range = table.chunks_of(tensor);
                prop_assert!(range.start <= range.end && range.end <= chunks);
            }
        }
    }
}
