//! Adds up what requests report.

use std::{collections::BTreeMap, time::Duration};

use super::{
    Plan,
    result::{Balance, Means, NetworkResult, ReplayResult, Split},
    tokens_of,
    trace::{Request, Trace},
};
use crate::{
    stats::Samples,
    transfer::{process, result::Times},
};

/// What became of a block of a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// It was here.
    Local,
    /// It was pulled, from this node.
    From(String),
    /// It was asked for and did not come: an outcome's name.
    Not(String),
}

/// One request, when it is through.
#[derive(Debug, Default)]
pub struct Served {
    /// What was asked for, which is the prefix that was said to exist. All behind it is a miss.
    pub found: Vec<Found>,
    /// How late it began.
    pub late: Duration,
    /// Until it knew where its blocks are.
    pub lookup: Duration,
    /// Until they were here, after that; zero where nothing was pulled.
    pub pull: Duration,
    /// Computed blocks for which there was no room.
    pub not_stored: u64,
    /// Bytes compared.
    pub verified_bytes: u64,
}

impl Served {
    /// Blocks at the front that need no computing.
    #[must_use]
    pub fn prefix(&self) -> usize {
        let here = |found: &&Found| !matches!(found, Found::Not(_));
        self.found.iter().take_while(here).count()
    }
}

/// See the module's page.
#[derive(Debug, Default)]
pub struct Ledger {
    requests: u64,
    tokens: Split,
    blocks: Split,
    sources: BTreeMap<String, u64>,
    not_pulled: BTreeMap<String, u64>,
    blocks_pulled: u64,
    pulls: u64,
    slower: u64,
    pull_time: Duration,
    tokens_pulled: u64,
    not_stored: u64,
    verified_bytes: u64,
    late: Samples,
    lookup: Samples,
    pull: Samples,
}

/// What a ledger cannot know.
#[derive(Debug)]
pub struct Rest {
    /// Where the figures come from.
    pub means: Means,
    /// In the run's time.
    pub span: Duration,
    /// Blocks given up to make room, on all nodes.
    pub evictions: u64,
    /// Where it was modelled.
    pub network: Option<NetworkResult>,
    /// How long it took.
    pub took: Duration,
}

impl Ledger {
    /// Takes a request in.
    pub fn add(&mut self, plan: &Plan, request: &Request, served: &Served) {
        self.requests += 1;
        let prefix = served.prefix();
        // Tokens of the prefix, by where each of its blocks came from.
        let mut pulled = 0;
        for (place, found) in served.found.iter().enumerate() {
            let tokens = tokens_of(request, place + 1) - tokens_of(request, place);
            let counts = place < prefix;
            match found {
                Found::Local if counts => {
                    self.tokens.local += tokens;
                    self.blocks.local += 1;
                }
                Found::From(_) if counts => {
                    self.tokens.remote += tokens;
                    self.blocks.remote += 1;
                    pulled += tokens;
                }
                _ => {}
            }
            match found {
                Found::Local => {}
                Found::From(node) => {
                    *self.sources.entry(node.clone()).or_default() += 1;
                    self.blocks_pulled += 1;
                }
                Found::Not(outcome) => {
                    *self.not_pulled.entry(outcome.clone()).or_default() += 1;
                }
            }
        }
        self.tokens.miss += request.input_tokens - tokens_of(request, prefix);
        self.blocks.miss += (request.blocks.len() - prefix) as u64;
        self.late.push(served.late);
        self.lookup.push(served.lookup);
        if served.found.iter().any(|found| *found != Found::Local) {
            self.pulls += 1;
            self.pull.push(served.pull);
            self.pull_time += served.pull;
            self.slower += u64::from(served.pull > plan.prefill(pulled));
        }
        self.tokens_pulled += pulled;
        self.not_stored += served.not_stored;
        self.verified_bytes += served.verified_bytes;
    }

    /// The result.
    #[must_use]
    pub fn close(mut self, plan: &Plan, trace: &Trace, rest: &Rest) -> ReplayResult {
        let real = rest.means == Means::Processes;
        let busiest = self.sources.values().copied().max().unwrap_or(0) as f64;
        let all = self.blocks_pulled.max(1) as f64;
        ReplayResult {
            name: plan.name(),
            means: rest.means,
            nodes: plan.nodes,
            pool_bytes: plan.pool_bytes,
            block_bytes: plan.block_bytes,
            model: plan.model.clone(),
            routing: plan.routing.as_str().to_owned(),
            speed: plan.speed,
            requests: self.requests,
            span_s: rest.span.as_secs_f64(),
            tokens: self.tokens,
            blocks: self.blocks,
            hit: self.tokens.hit(),
            best_hit: trace.best_hit(),
            bytes_pulled: self.blocks_pulled * plan.block_bytes,
            pulls: self.pulls,
            lookup_us: Times::of(&mut self.lookup),
            pull_us: Times::of(&mut self.pull),
            pull_s: self.pull_time.as_secs_f64(),
            prefill_tokens_per_s: plan.prefill_tokens_per_s,
            prefill_saved_s: plan.prefill(self.tokens_pulled).as_secs_f64(),
            prefill_spared_locally_s: plan.prefill(self.tokens.local).as_secs_f64(),
            slower_than_prefill: self.slower,
            balance: Balance {
                sources: self.sources.len() as u64,
                busiest_share: busiest / all,
                busiest_to_mean: busiest * f64::from(plan.nodes) / all,
            },
            not_pulled: self.not_pulled,
            evictions: rest.evictions,
            not_stored: self.not_stored,
            late_us: real.then(|| Times::of(&mut self.late)),
            verified_bytes: real.then_some(self.verified_bytes),
            network: rest.network,
            took_s: rest.took.as_secs_f64(),
            load: process::load(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::{route::Routing, trace::tests::request};

    pub(crate) fn plan() -> Plan {
        Plan {
            nodes: 2,
            pool_bytes: 1 << 20,
            block_bytes: 1 << 10,
            model: "test".to_owned(),
            routing: Routing::RoundRobin,
            speed: 1.0,
            prefill_tokens_per_s: 512.0,
        }
    }

    #[test]
    fn only_the_unbroken_front_of_a_prompt_is_a_hit() {
        let mut ledger = Ledger::default();
        let mut prompt = request(0, &[1, 2, 3, 4, 5]);
        prompt.input_tokens -= 500;
        let from = |node: &str| Found::From(node.to_owned());
        let served = Served {
            found: vec![
                Found::Local,
                from("a"),
                Found::Not("stale".to_owned()),
                from("a"),
            ],
            pull: Duration::from_millis(1_500),
            ..Served::default()
        };
        assert_eq!(served.prefix(), 2);
        ledger.add(&plan(), &prompt, &served);
        let trace = Trace {
            requests: vec![prompt],
        };
        let rest = Rest {
            means: Means::Processes,
            span: Duration::ZERO,
            evictions: 0,
            network: None,
            took: Duration::ZERO,
        };
        let result = ledger.close(&plan(), &trace, &rest);
        let blocks = |local, remote, miss| Split {
            local,
            remote,
            miss,
        };
        assert_eq!(result.blocks, blocks(1, 1, 3));
        assert_eq!(result.tokens, blocks(512, 512, 2 * 512 + 12));
        // What was pulled behind the hole travelled all the same.
        assert_eq!(result.bytes_pulled, 2 << 10);
        assert_eq!(result.not_pulled["stale"], 1);
        // One block at 512 tokens a second would have been computed in one second.
        assert_eq!(
            (result.prefill_saved_s, result.slower_than_prefill),
            (1.0, 1)
        );
        assert_eq!(result.balance.busiest_to_mean, 2.0);
    }
}
