//! What coordinators answer to agents.

use kvferry_agent::{coordinators::Located, fuzz::coordinators};
use kvferry_proto::{SourceId, SourceIdentity, TableDigest, Tensor, TensorTable, pb};
use prost::Message;

use crate::{Target, world};

pub(super) const TARGET: Target = Target {
    name: "answers",
    run,
    seeds,
};

fn run(bytes: &[u8]) {
    let [kind, asked, bytes @ ..] = bytes else {
        return;
    };
    let asked = usize::from(*asked);
    match kind % 4 {
        0 => located(bytes, asked),
        1 => {
            let answer = pb::ClaimResponse::decode(bytes).ok();
            if let Some(Ok(claimed)) = answer.map(|answer| coordinators::claimed(answer, asked)) {
                assert_eq!(claimed.states.len(), asked);
                for row in &claimed.holder_index {
                    assert!(claimed.holders.get(*row as usize).is_some());
                }
            }
        }
        2 => {
            if let Ok(answer) = pb::FindLocationsResponse::decode(bytes)
                && coordinators::found(&answer, asked).is_ok()
            {
                // 0 is none.
                let known = |row: &u32| *row as usize <= answer.locations.len();
                assert!(answer.location_of.len() == asked && answer.location_of.iter().all(known));
            }
        }
        _ => {
            let Ok(answer) = pb::GetSourceResponse::decode(bytes) else {
                return;
            };
            let said = answer.identity.clone().map(SourceIdentity::try_from);
            let id = match said {
                Some(Ok(identity)) => identity.id(),
                _ => SourceId::new(&[0; 16]).unwrap(),
            };
            // Whatever is said of digests, the one that is used is that of the tensors.
            let mut answer = answer;
            if asked % 2 == 1
                && let Some(digest) = digest_of(&answer)
            {
                answer.digest = digest.as_bytes().to_vec().into();
            }
            if let Ok(got) = coordinators::got_source(id, None, answer.clone()) {
                assert_eq!(got.identity.id(), id);
                assert_eq!(got.table.digest().as_bytes(), answer.digest.as_ref());
            }
        }
    }
}

fn digest_of(answer: &pb::GetSourceResponse) -> Option<TableDigest> {
    let tensors = answer.tensors.iter().cloned().map(Tensor::try_from);
    let tensors = tensors.collect::<Result<_, _>>().ok()?;
    let table = TensorTable::new(answer.chunk_bytes, answer.chunks, tensors).ok()?;
    Some(table.digest())
}

fn located(bytes: &[u8], asked: usize) {
    let Ok(answer) = pb::LocateResponse::decode(bytes) else {
        return;
    };
    let Ok(located) = Located::parse(answer.clone(), asked, world::BLOCK_BYTES) else {
        return;
    };
    assert!(located.len() <= asked);
    let mut candidates = 0;
    for block in 0..asked + 1 {
        for candidate in located.candidates(block) {
            candidates += 1;
            let owner = &located.owners[candidate.owner];
            assert!(owner.geometry.contains(candidate.slot));
            assert_eq!(owner.geometry.block_bytes(), world::BLOCK_BYTES);
        }
    }
    assert_eq!(candidates, answer.slots.len());
    let some = [asked, 0, asked / 2];
    assert_eq!(located.subset(&some).len(), some.len());
}

pub(super) fn locate_response() -> pb::LocateResponse {
    pb::LocateResponse {
        answered: 3,
        owners: vec![pb::LocatedRegion {
            node: "a".into(),
            incarnation: world::INCARNATION,
            region: 1,
            addresses: Some(world::addresses()),
            geometry: Some(world::geometry(4)),
        }],
        candidate_counts: vec![1, 0, 2],
        owner_index: vec![0, 0, 0],
        slots: vec![0, 2, 3],
        generations: vec![2, 4, 300],
        checksums: vec![1, 0, u64::MAX],
        locations: vec!["s3://b".into()],
        location_blocks: vec![1],
        location_index: vec![0],
    }
}

fn seeds() -> Vec<Vec<u8>> {
    use pb::ClaimState::{Claimed, Granted, Stored};
    let claimed = pb::ClaimResponse {
        states: [Granted, Claimed, Stored].map(i32::from).to_vec(),
        token: 5,
        ttl_ms: 1_000,
        holders: vec![pb::ClaimHolder::default()],
        holder_index: vec![0],
    };
    let found = pb::FindLocationsResponse {
        locations: vec!["s3://b".into()],
        location_of: vec![0, 1, 1],
    };
    let got = pb::GetSourceResponse {
        identity: Some(world::identity()),
        workers: vec![pb::SourceWorker {
            node: "a".into(),
            incarnation: 7,
            ..pb::SourceWorker::default()
        }],
        digest: vec![0; 16].into(),
        chunk_bytes: 16,
        chunks: 3,
        tensor_count: 3,
        tensors: world::tensors(),
    };
    let asked = |kind: u8, asked: u8, message: &[u8]| [&[kind, asked], message].concat();
    vec![
        asked(0, 3, &locate_response().encode_to_vec()),
        asked(1, 3, &claimed.encode_to_vec()),
        asked(2, 3, &found.encode_to_vec()),
        asked(3, 1, &got.encode_to_vec()),
    ]
}
