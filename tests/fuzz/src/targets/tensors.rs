//! Tables of tensors and the runs their chunks lie in.

use kvferry_proto::{ChunkRuns, Chunks, HashLen, SourceId, Tensor, TensorTable, pb};
use prost::Message;

use crate::{Target, choices::Choices, world};

pub(super) const TARGET: Target = Target {
    name: "tensors",
    run,
    seeds,
};

fn run(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let (chunk_bytes, chunks, hash_len) = (choices.number(), choices.number(), choices.below(70));
    let bytes = choices.rest();
    if let Ok(message) = pb::PublishTensorsRequest::decode(bytes) {
        table(chunk_bytes, chunks as u32, message.tensors, hash_len);
        if let Some(header) = message.header
            && let Ok(runs) = ChunkRuns::try_from(header.runs)
        {
            assert!(runs.slots() >= runs.as_slice().len() as u64);
        }
    }
}

fn table(chunk_bytes: u64, chunks: u32, tensors: Vec<pb::TensorDescriptor>, hash_len: usize) {
    let tensors = tensors.into_iter().map(Tensor::try_from);
    let Ok(tensors) = tensors.collect::<Result<Vec<_>, _>>() else {
        return;
    };
    let count = tensors.len();
    let Ok(table) = TensorTable::new(chunk_bytes, chunks, tensors) else {
        return;
    };
    assert_eq!(table.tensors().len(), count);
    for tensor in table.tensors() {
        let range = table.chunks_of(tensor);
        assert!(range.start <= range.end && range.end <= table.chunks());
        assert_eq!(range.is_empty(), tensor.bytes() == 0);
        // All its bytes, and no chunk too many.
        if !range.is_empty() {
            let (first, end) = (u64::from(range.start), u64::from(range.end));
            let (start, stop) = (tensor.offset(), tensor.offset() + tensor.bytes());
            assert!(first * chunk_bytes <= start && start < (first + 1) * chunk_bytes);
            assert!((end - 1) * chunk_bytes < stop && stop <= end * chunk_bytes);
        }
    }
    if let Ok(len) = HashLen::new(hash_len)
        && let Ok(hashes) = Chunks::new(SourceId::new(&[1; 16]).unwrap(), 0, table.digest(), len)
    {
        assert_eq!(hashes.hash(0).hash_len(), len);
        assert_ne!(hashes.hash(0), hashes.hash(1));
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let message = pb::PublishTensorsRequest {
        header: Some(pb::PublishTensorsHeader {
            identity: Some(world::identity()),
            rank: 1,
            runs: vec![pb::ChunkRun {
                region: 1,
                first_slot: 0,
                slots: 3,
            }],
            ready: true,
            ..pb::PublishTensorsHeader::default()
        }),
        tensors: world::tensors(),
    };
    vec![[&[16, 3, 32], &message.encode_to_vec()[..]].concat()]
}
