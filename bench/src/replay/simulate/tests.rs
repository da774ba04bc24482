use super::*;
use crate::replay::{route::Routing, trace::tests::request};

/// Conversations of four turns each, a second apart, that share a system prompt of two blocks.
fn trace(conversations: u64) -> Trace {
    let mut requests = Vec::new();
    for turn in 0..4 {
        for conversation in 0..conversations {
            let own = (0..=2 * turn).map(|block| 100 + 1000 * conversation + block);
            let blocks: Vec<u64> = [0, 1].into_iter().chain(own).collect();
            requests.push(request(
                1_000 * (turn * conversations + conversation),
                &blocks,
            ));
        }
    }
    Trace { requests }
}

fn plan(nodes: u32, blocks: u64) -> Plan {
    Plan {
        nodes,
        pool_bytes: blocks << 20,
        block_bytes: 1 << 20,
        model: "test".to_owned(),
        routing: Routing::RoundRobin,
        speed: 1.0,
        // A block takes about half a millisecond: every prompt is stored when the next one comes.
        prefill_tokens_per_s: 1e6,
    }
}

fn network(nic_gbit_per_s: f64) -> Network {
    Network {
        nic_gbit_per_s,
        rtt: Duration::from_micros(50),
    }
}

fn run(plan: &Plan, network: Network, trace: &Trace) -> ReplayResult {
    let mut ticks = 0;
    let kind = EvictionKind::default();
    let result = replay(plan, network, kind, trace, || ticks += 1).unwrap();
    // Every request is through, and every token is accounted for.
    assert_eq!(
        (result.requests, ticks),
        (trace.requests.len() as u64, trace.requests.len())
    );
    let tokens: u64 = trace.requests.iter().map(|r| r.input_tokens).sum();
    assert_eq!(result.tokens.all(), tokens);
    result
}

#[test]
fn a_cluster_with_room_for_everything_finds_all_that_can_be_found() {
    let trace = trace(8);
    for nodes in [1, 3, 8] {
        let result = run(&plan(nodes, 4096), network(100.0), &trace);
        assert!((result.hit - trace.best_hit()).abs() < 1e-9, "{result:?}");
        assert!(result.not_pulled.is_empty());
        assert_eq!((result.evictions, result.not_stored), (0, 0));
        assert_eq!(result.tokens.remote > 0, nodes > 1);
        assert_eq!(result.bytes_pulled, result.blocks.remote << 20);
        assert_eq!(result.balance.sources > 0, nodes > 1);
    }
}

#[test]
fn the_same_plan_gives_the_same_result() {
    let (trace, plan) = (trace(20), plan(4, 40));
    let mut results = [0, 1].map(|_| run(&plan, network(10.0), &trace));
    for result in &mut results {
        (result.took_s, result.load) = (0.0, 0.0);
    }
    assert_eq!(results[0], results[1]);
}

#[test]
fn pools_without_room_evict_and_find_less() {
    let trace = trace(40);
    let small = run(&plan(4, 24), network(100.0), &trace);
    let large = run(&plan(4, 4096), network(100.0), &trace);
    assert!(small.evictions > 0);
    assert!(small.hit < large.hit, "{} {}", small.hit, large.hit);
    // A prompt that does not fit a pool at all is computed and not kept.
    let tiny = run(&plan(2, 2), network(100.0), &trace);
    assert!(tiny.not_stored > 0 && tiny.hit < small.hit);
}

#[test]
fn a_pull_takes_as_long_as_its_bytes_do() {
    let trace = trace(8);
    let fast = run(&plan(2, 4096), network(100.0), &trace);
    let slow = run(&plan(2, 4096), network(1.0), &trace);
    // At 1 Gbit/s a MiB takes 8.4 ms, and every pulled block crossed a reader's port.
    let least = slow.bytes_pulled as f64 * 8.0 / 1e9;
    assert!(
        slow.pull_s >= least && slow.pull_s < 1.5 * least,
        "{} {least}",
        slow.pull_s
    );
    assert!(fast.pull_s < slow.pull_s / 10.0);
    // Half a millisecond a block: computing it again would have been faster.
    assert_eq!(slow.slower_than_prefill, slow.pulls);
    assert!(slow.gain() < 1.0 && fast.gain() > 1.0);
}

#[test]
fn a_conversation_that_stays_on_its_node_needs_no_pull() {
    let trace = trace(8);
    let prefix = Plan {
        routing: Routing::Prefix,
        ..plan(4, 4096)
    };
    let (prefix, robin) = (
        run(&prefix, network(100.0), &trace),
        run(&plan(3, 4096), network(100.0), &trace),
    );
    assert!(prefix.tokens.local > robin.tokens.local, "{prefix:?}");
    assert!((prefix.hit - robin.hit).abs() < 1e-9);
}

#[test]
fn an_owner_that_overwrites_what_is_read_is_noticed() {
    // Pools of a few blocks, many prompts at a time, a slow network: hints age, slots are reused while
    // they are read, and the generation words say so.
    let mut stale = 0;
    for prompts in [5, 11, 17, 29] {
        let prompt = |n: u64| {
            let own = 100 * (10 + n % prompts);
            request(3 * n, &[0, 1, own, own + 1, own + 2])
        };
        let trace = Trace {
            requests: (0..400).map(prompt).collect(),
        };
        let result = run(&plan(4, 16), network(1.0), &trace);
        stale += result.not_pulled.get("stale").copied().unwrap_or(0);
        assert!(result.hit < result.best_hit);
    }
    assert!(stale > 0);
}

#[test]
fn a_pool_without_room_for_a_block_is_refused() {
    let plan = Plan {
        pool_bytes: 1000,
        ..plan(2, 1)
    };
    let refused = replay(&plan, network(1.0), EvictionKind::Lru, &trace(1), || ());
    assert!(matches!(refused, Err(ReplayError::PoolTooSmall { .. })));
}
