//! Sessions: in step, out of step, fenced, silent, too large.

use std::time::Duration;

use kvferry_coordinator::CoordinatorConfig;
use kvferry_proto::pb::{
    self, agent_message::Message as Said, coordinator_message::Message as Told,
};

use crate::{
    Code, Reason,
    agent::{Agent, hello, region, sealed},
    assert_refused, config, fingerprint, soon, spec, start, start_with,
};

#[tokio::test]
async fn a_gap_leads_to_a_resync_and_goodbye_removes() {
    let mut running = start().await;
    let mut agent = Agent::join(&mut running, "a", &[1, 2]).await;
    assert_eq!(running.counts(&[1, 2, 3]).await, [1, 1, 0]);
    agent.delta(1, sealed(&[3])).await;
    assert_eq!(agent.hear().await, Told::Ack(pb::Ack { seq: 1 }));
    assert_eq!(running.counts(&[1, 2, 3]).await, [1, 1, 1]);

    agent.delta(3, sealed(&[4])).await;
    let request = pb::ResyncRequest {
        expected_seq: 2,
        got_seq: 3,
    };
    assert_eq!(agent.hear().await, Told::Resync(request));
    agent
        .inventory(3, vec![region(16)], vec![sealed(&[4])])
        .await;
    assert_eq!(agent.hear().await, Told::Ack(pb::Ack { seq: 3 }));
    // What an inventory does not name is swept out behind it.
    running.until_counts(&[1, 2, 3, 4], &[0, 0, 0, 1]).await;

    let stale = pb::Heartbeat {
        stale_blocks: 3,
        ..beat(5, &[])
    };
    agent.say(Said::Heartbeat(stale)).await;
    let answer = Told::HeartbeatAck(pb::HeartbeatAck { number: 5 });
    assert_eq!(agent.hear().await, answer);

    // Delta 4 was lost, and no other follows it.
    let missed = pb::Heartbeat {
        next_delta: 5,
        ..beat(6, &[])
    };
    agent.say(Said::Heartbeat(missed)).await;
    let answer = Told::HeartbeatAck(pb::HeartbeatAck { number: 6 });
    assert_eq!(agent.hear().await, answer);
    let request = pb::ResyncRequest {
        expected_seq: 4,
        got_seq: 5,
    };
    assert_eq!(agent.hear().await, Told::Resync(request));

    agent.say(Said::Goodbye(pb::Goodbye {})).await;
    agent.end().await.unwrap();
    assert_eq!(running.counts(&[4]).await, [0]);
    let nodes = running.client.list_nodes(pb::ListNodesRequest {}).await;
    assert_eq!(nodes.unwrap().into_inner().nodes, []);
}

#[tokio::test]
async fn a_newer_incarnation_fences_the_older() {
    let mut running = start().await;
    let mut old = Agent::join(&mut running, "a", &[1]).await;
    let mut new = Agent::open(&mut running, hello("a", 2)).await;
    assert!(new.welcome().await.resync);
    assert_refused(old.end().await, Code::FailedPrecondition, Reason::Fenced);
    assert_eq!(running.counts(&[1]).await, [0]);

    let mut late = Agent::open(&mut running, hello("a", 1)).await;
    let error = late.end().await.unwrap_err();
    assert!(error.message().contains("incarnation 1"), "{error}");
    assert!(error.message().contains("known 2"), "{error}");
    assert_refused(
        Err::<(), _>(error),
        Code::FailedPrecondition,
        Reason::Fenced,
    );
}

#[tokio::test]
async fn a_reconnect_goes_on_where_it_was() {
    let mut running = start().await;
    let mut agent = Agent::join(&mut running, "a", &[1]).await;
    let again = pb::Hello {
        coordinator_epoch: running.epoch,
        ..hello("a", 1)
    };
    let mut second = Agent::open(&mut running, again).await;
    let welcome = second.welcome().await;
    assert_eq!((welcome.resync, welcome.expect_delta), (false, 1));
    assert_refused(agent.end().await, Code::Aborted, Reason::Fenced);
    assert_eq!(running.counts(&[1]).await, [1]);
}

#[tokio::test]
async fn a_restarted_coordinator_asks_for_everything() {
    let first = start().await;
    let epoch = first.epoch;
    first.stop().await;
    let mut running = start().await;
    assert_ne!(running.epoch, epoch);
    let known = pb::Hello {
        coordinator_epoch: epoch,
        next_delta: 8,
        ..hello("a", 1)
    };
    let mut agent = Agent::open(&mut running, known).await;
    let welcome = agent.welcome().await;
    assert_eq!((welcome.resync, welcome.epoch), (true, running.epoch));
    agent
        .inventory(7, vec![region(16)], vec![sealed(&[1])])
        .await;
    assert_eq!(agent.hear().await, Told::Ack(pb::Ack { seq: 7 }));
    assert_eq!(running.counts(&[1]).await, [1]);
}

#[tokio::test]
async fn the_silent_are_hidden_then_purged() {
    let mut running = start_with(CoordinatorConfig {
        heartbeat_interval_ms: 50,
        hide_after_ms: 1_000,
        // Long enough to be seen hidden in between, on any machine.
        purge_after_ms: 8_000,
        ..config()
    })
    .await;
    let mut agent = Agent::join(&mut running, "a", &[1]).await;
    running.until_counts(&[1], &[0]).await;
    let describe = pb::DescribeNodeRequest { node: "a".into() };
    let info = running.client.describe_node(describe.clone()).await;
    let info = info.unwrap().into_inner();
    assert_eq!((info.state(), info.blocks), (pb::NodeState::Hidden, 1));

    let heard = soon(async {
        // It may be hidden again before anybody looks.
        for number in 1.. {
            agent.say(Said::Heartbeat(beat(number, &[]))).await;
            agent.hear().await;
            if running.counts(&[1]).await == [1] {
                return;
            }
        }
    });
    heard.await;

    assert_refused(agent.end().await, Code::Unavailable, Reason::Deadline);
    let gone = running.client.describe_node(describe).await;
    assert_refused(gone, Code::NotFound, Reason::NodeUnknown);
}

#[tokio::test]
async fn a_mismatch_refuses_the_region_with_both_fingerprints() {
    let mut running = start().await;
    let _first = Agent::join(&mut running, "a", &[1]).await;
    let mut second = Agent::open(&mut running, hello("b", 1)).await;
    second.welcome().await;
    second
        .inventory(0, vec![region(32)], vec![sealed(&[2])])
        .await;
    let Told::RegionRefused(refused) = second.hear().await else {
        panic!("the region was taken in");
    };
    assert_eq!(refused.reason(), Reason::NamespaceMismatch);
    for tokens in [16, 32] {
        assert!(refused.message.contains(&fingerprint(&spec(tokens))));
    }
    assert_eq!(second.hear().await, Told::Ack(pb::Ack { seq: 0 }));
    assert_eq!(running.counts(&[1, 2]).await, [1, 0]);
}

#[tokio::test]
async fn what_no_agent_sends_ends_the_session_with_a_reason() {
    let mut running = start().await;
    let invalid = Code::InvalidArgument;
    let too_much = Code::ResourceExhausted;

    let mut agent = Agent::open_silent(&mut running).await;
    agent.delta(1, sealed(&[1])).await;
    assert_refused(agent.end().await, invalid, Reason::InvalidArgument);

    let mut agent = Agent::open(&mut running, hello("no spaces", 1)).await;
    assert_refused(agent.end().await, invalid, Reason::InvalidArgument);

    let mut agent = Agent::join(&mut running, "a", &[1]).await;
    agent.delta(1, sealed(&[16])).await;
    assert_refused(agent.end().await, invalid, Reason::SlotOutOfRegion);

    let mut agent = Agent::join(&mut running, "a", &[1]).await;
    let mut wrong = sealed(&[2]);
    if let Some(hashes) = wrong.added.as_mut().and_then(|added| added.hashes.as_mut()) {
        hashes.hash_len = 4;
    }
    agent.delta(1, wrong).await;
    assert_refused(agent.end().await, invalid, Reason::HashLength);

    let mut agent = Agent::join(&mut running, "a", &[1]).await;
    let mut many = sealed(&[]);
    many.removed_slots = vec![0; 65_537];
    agent.delta(1, many).await;
    assert_refused(agent.end().await, too_much, Reason::BoundReached);

    let mut agent = Agent::join(&mut running, "a", &[1]).await;
    let mut large = sealed(&[]);
    large.removed_slots = vec![u32::MAX; 2 << 20];
    agent.delta(1, large).await;
    assert_refused(agent.end().await, too_much, Reason::BoundReached);

    assert_eq!(running.counts(&[1]).await, [1], "nothing was lost");
}

#[tokio::test]
async fn sessions_are_bounded() {
    let mut running = start_with(CoordinatorConfig {
        max_sessions: 1,
        ..config()
    })
    .await;
    let _agent = Agent::join(&mut running, "a", &[1]).await;
    let more = running.client.session(tokio_stream::empty()).await;
    assert_refused(
        more.map(drop),
        Code::ResourceExhausted,
        Reason::BoundReached,
    );
}

#[tokio::test]
async fn a_burst_of_deltas_is_taken_in_order() {
    let mut running = start().await;
    let mut agent = Agent::join(&mut running, "a", &[1]).await;
    for seq in 1..=5_000 {
        agent.delta(seq, sealed(&[seq % 16])).await;
    }
    let last = Told::Ack(pb::Ack { seq: 5_000 });
    while agent.hear().await != last {}
    assert_eq!(running.counts(&[8, 15]).await, [1, 1]);
}

#[tokio::test]
async fn what_readers_tell_is_what_a_node_serves() {
    let mut running = start().await;
    let _owner = Agent::join(&mut running, "a", &[1]).await;
    let mut reader = Agent::join(&mut running, "b", &[]).await;
    let megabytes = 100 << 20;
    let told = beat(1, &[("a", megabytes), ("nobody", 7)]);
    reader.say(Said::Heartbeat(told)).await;
    let ack = pb::HeartbeatAck { number: 1 };
    assert_eq!(reader.hear().await, Told::HeartbeatAck(ack));
    let client = &mut running.client;
    let served = soon(async {
        loop {
            let node = "a".to_owned();
            let info = client.describe_node(pb::DescribeNodeRequest { node }).await;
            match info.unwrap().into_inner().served_bytes_per_second {
                0 => tokio::time::sleep(Duration::from_millis(10)).await,
                served => break served,
            }
        }
    });
    assert!(served.await < megabytes);

    let many: Vec<_> = (0..65).map(|_| ("a", 1)).collect();
    reader.say(Said::Heartbeat(beat(2, &many))).await;
    let error = reader.end().await.map(drop);
    assert_refused(error, Code::InvalidArgument, Reason::InvalidArgument);
}

fn beat(number: u64, reads: &[(&str, u64)]) -> pb::Heartbeat {
    let read = |(node, bytes): &(&str, u64)| pb::SourceReads {
        node: (*node).into(),
        bytes: *bytes,
    };
    pb::Heartbeat {
        number,
        reads: reads.iter().map(read).collect(),
        ..pb::Heartbeat::default()
    }
}
