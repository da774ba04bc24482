//! Look-ups and the operators' calls.

use kvferry_proto::pb;

use crate::{Code, Reason, agent::Agent, assert_refused, fingerprint, locate, packed, spec, start};

#[tokio::test]
async fn an_answer_names_all_a_reader_needs() {
    let mut running = start().await;
    let _agent = Agent::join(&mut running, "a", &[1, 2]).await;
    let request = pb::LocateRequest {
        mode: pb::LocateMode::Prefix.into(),
        ..locate(&[1, 2, 3, 1])
    };
    let answer = running.client.locate(request).await.unwrap().into_inner();
    assert_eq!(answer.answered, 2);
    assert_eq!(answer.candidate_counts, [1, 1]);
    assert_eq!((answer.slots, answer.generations), (vec![1, 2], vec![2, 2]));
    assert_eq!(answer.owner_index, [0, 0]);
    let owner = &answer.owners[0];
    assert_eq!((owner.node.as_str(), owner.incarnation), ("a", 1));
    assert_eq!(owner.geometry.as_ref().unwrap().slots, 16);

    let excluded = pb::LocateRequest {
        exclude_node: "a".into(),
        ..locate(&[1])
    };
    let answer = running.client.locate(excluded).await.unwrap().into_inner();
    assert_eq!((answer.answered, answer.candidate_counts), (1, vec![0]));
}

#[tokio::test]
async fn a_question_that_cannot_be_answered_is_no_miss() {
    let mut running = start().await;
    let unknown = running.client.locate(locate(&[1])).await;
    assert_refused(unknown, Code::NotFound, Reason::NamespaceUnknown);

    let _agent = Agent::join(&mut running, "a", &[1]).await;
    assert_eq!(running.counts(&[99]).await, [0], "this is a miss");
    let ask = |hash_len: u32, bytes: usize| pb::LocateRequest {
        hashes: Some(pb::PackedHashes {
            hash_len,
            hashes: vec![0; bytes].into(),
        }),
        ..locate(&[])
    };
    for (hash_len, bytes) in [(16, 16), (4, 4), (65, 65)] {
        let wrong = running.client.locate(ask(hash_len, bytes)).await;
        assert_refused(wrong, Code::InvalidArgument, Reason::HashLength);
    }
    let ragged = running.client.locate(ask(8, 9)).await;
    assert_refused(ragged, Code::InvalidArgument, Reason::InvalidArgument);
    let many = running.client.locate(ask(8, 8 * 65_537)).await;
    assert_refused(many, Code::ResourceExhausted, Reason::BoundReached);
    let wide = pb::LocateRequest {
        max_candidates: 16,
        ..ask(8, 8 * 65_536)
    };
    let wide = running.client.locate(wide).await;
    assert_refused(wide, Code::ResourceExhausted, Reason::BoundReached);
    let none = pb::LocateRequest {
        hashes: None,
        ..locate(&[])
    };
    let none = running.client.locate(none).await;
    assert_refused(none, Code::InvalidArgument, Reason::InvalidArgument);
}

#[tokio::test]
async fn a_message_that_is_too_long_is_refused_and_the_connection_stays() {
    let mut running = start().await;
    let _agent = Agent::join(&mut running, "a", &[1]).await;
    let request = pb::LocateRequest {
        hashes: Some(packed(&vec![1; (8 << 20) / 8])),
        ..locate(&[])
    };
    let status = running.client.locate(request).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange);
    assert_eq!(running.counts(&[1]).await, [1]);
}

#[tokio::test]
async fn the_largest_answer_fits_a_message() {
    let mut running = start().await;
    let mut agents = Vec::new();
    for name in ["a", "b", "c", "d"] {
        agents.push(Agent::join(&mut running, name, &[1]).await);
    }
    let request = pb::LocateRequest {
        max_candidates: 4,
        ..locate(&vec![1; 65_536])
    };
    let answer = running.client.locate(request).await.unwrap().into_inner();
    assert_eq!(answer.slots.len(), 4 * 65_536);
}

#[tokio::test]
async fn namespaces_are_created_described_and_deleted() {
    let mut running = start().await;
    let client = &mut running.client;
    let create = |tokens| pb::CreateNamespaceRequest {
        spec: Some(spec(tokens)),
    };
    for created in [true, false] {
        let answer = client.create_namespace(create(16)).await.unwrap();
        let answer = answer.into_inner();
        assert_eq!(answer.created, created);
        assert_eq!(answer.fingerprint, fingerprint(&spec(16)));
    }
    let mismatch = client.create_namespace(create(32)).await;
    let text = mismatch.as_ref().unwrap_err().message().to_owned();
    for tokens in [16, 32] {
        assert!(text.contains(&fingerprint(&spec(tokens))), "{text}");
    }
    let code = Code::FailedPrecondition;
    assert_refused(mismatch, code, Reason::NamespaceMismatch);

    let _agent = Agent::join(&mut running, "a", &[1, 2]).await;
    let _other = Agent::join(&mut running, "b", &[2]).await;
    let client = &mut running.client;
    let name = || "t/m".to_owned();
    let describe = pb::DescribeNamespaceRequest { name: name() };
    let info = client.describe_namespace(describe.clone()).await.unwrap();
    let info = info.into_inner();
    assert_eq!((info.blocks, info.owners, info.bytes), (2, 3, 192));
    assert_eq!((info.regions, info.spec), (2, Some(spec_off())));
    let all = client.list_namespaces(pb::ListNamespacesRequest {}).await;
    assert_eq!(all.unwrap().into_inner().namespaces.len(), 1);

    let delete = |force| pb::DeleteNamespaceRequest {
        name: name(),
        force,
    };
    let in_use = client.delete_namespace(delete(false)).await;
    assert_refused(in_use, code, Reason::NamespaceInUse);
    let deleted = client.delete_namespace(delete(true)).await.unwrap();
    assert_eq!(deleted.into_inner().blocks_removed, 2);
    let gone = client.describe_namespace(describe).await;
    assert_refused(gone, Code::NotFound, Reason::NamespaceUnknown);
}

/// As the coordinator spells it: no checksums is OFF.
fn spec_off() -> pb::NamespaceSpec {
    pb::NamespaceSpec {
        checksum: pb::ChecksumPolicy::Off.into(),
        ..spec(16)
    }
}

#[tokio::test]
async fn nodes_are_listed_described_and_drained() {
    let mut running = start().await;
    let _agent = Agent::join(&mut running, "a", &[1, 2]).await;
    let client = &mut running.client;
    let drain = |undo| pb::DrainNodeRequest {
        node: "a".into(),
        undo,
        deadline_ms: 0,
    };
    let info = client.drain_node(drain(false)).await.unwrap().into_inner();
    assert_eq!(info.state(), pb::NodeState::Draining);
    assert_eq!(info.drain.unwrap().state(), pb::drain_status::State::Moving);
    let info = client.drain_node(drain(true)).await.unwrap().into_inner();
    assert_eq!((info.state(), info.drain), (pb::NodeState::Live, None));
    assert_eq!((info.blocks, info.bytes), (2, 128));
    assert_eq!((info.regions[0].slots, info.regions[0].sealed), (16, 2));
    let unknown = pb::DrainNodeRequest {
        node: "z".into(),
        undo: false,
        deadline_ms: 0,
    };
    let unknown = client.drain_node(unknown).await;
    assert_refused(unknown, Code::NotFound, Reason::NodeUnknown);
}
