//! Nodes that claim blocks and give the claims back, in a closed loop.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use kvferry_proto::pb::{self, claims_client::ClaimsClient};
use tonic::transport::Channel;

use crate::{
    BenchError,
    locate::connect,
    stats::Samples,
    workload::{HASH_LEN, NAMESPACE, Workload, mix, pack},
};

/// Hashes of one claim that are stored already, and as many that nobody has: half of a prompt's blocks are
/// known.
const HALF: u64 = 32;
/// Blocks that nobody has and all nodes claim: few, so that they get in each other's way.
const WANTED: u64 = 1_024;

/// What was seen.
#[derive(Debug, Default)]
pub struct Claimed {
    /// Times of claims; the releases between them are not in there.
    pub samples: Samples,
    /// Hashes that were granted.
    pub granted: u64,
    /// Hashes that another node had claimed.
    pub refused: u64,
    /// Hashes that are stored.
    pub stored: u64,
    /// How long it took, releases included.
    pub time: Duration,
}

impl Claimed {
    /// Hashes answered for in a second.
    #[must_use]
    pub fn hashes_per_second(&self) -> f64 {
        (self.granted + self.refused + self.stored) as f64 / self.time.as_secs_f64()
    }
}

/// Which of the wanted blocks somebody holds a claim of, as the claimants know.
type Held = Arc<[AtomicBool]>;

/// Every node claims and releases on a connection of its own. No two may ever hold one claim.
///
/// # Errors
/// [`BenchError`] when a call fails, or an answer cannot be right.
pub async fn run(url: &str, workload: Workload, time: Duration) -> Result<Claimed, BenchError> {
    let held: Held = (0..WANTED).map(|_| AtomicBool::new(false)).collect();
    let mut channels = Vec::new();
    for _ in 0..workload.nodes {
        channels.push(connect(url).await?);
    }
    let start = Instant::now();
    let mut tasks = Vec::new();
    for (node, channel) in (0..).zip(channels) {
        let claimant = Claimant {
            client: ClaimsClient::new(channel),
            node: format!("node{node}"),
            held: Arc::clone(&held),
            seen: Claimed::default(),
        };
        tasks.push(tokio::spawn(claimant.claim_until(
            start + time,
            workload.blocks,
            mix(node + 1),
        )));
    }
    let mut all = Claimed::default();
    for task in tasks {
        let seen = task.await.map_err(|e| BenchError::Wrong(e.to_string()))??;
        all.samples.merge(seen.samples);
        all.granted += seen.granted;
        all.refused += seen.refused;
        all.stored += seen.stored;
    }
    all.time = start.elapsed();
    Ok(all)
}

struct Claimant {
    client: ClaimsClient<Channel>,
    node: String,
    held: Held,
    seen: Claimed,
}

impl Claimant {
    async fn claim_until(
        mut self,
        end: Instant,
        blocks: u64,
        mut random: u64,
    ) -> Result<Claimed, BenchError> {
        while Instant::now() < end {
            random = mix(random.wrapping_add(0x9e37_79b9_7f4a_7c15));
            let stored = random % (blocks - HALF + 1);
            let wanted = (random >> 32) % (WANTED - HALF + 1);
            let numbers: Vec<u64> = (stored..stored + HALF)
                .chain((wanted..wanted + HALF).map(|n| blocks + n))
                .collect();
            let request = pb::ClaimRequest {
                namespace: NAMESPACE.into(),
                hashes: Some(pb::PackedHashes {
                    hash_len: HASH_LEN as u32,
                    hashes: pack(numbers.into_iter()),
                }),
                node: self.node.clone(),
                incarnation: 1,
                purpose: pb::ClaimPurpose::Produce.into(),
                ttl_ms: 0,
            };
            let asked = Instant::now();
            let answer = self.client.claim(request).await?.into_inner();
            self.seen.samples.push(asked.elapsed());
            let granted = self.check(&answer, wanted)?;
            if granted.is_empty() {
                continue;
            }
            // Nobody may be granted one before this is said.
            for wanted in granted {
                self.held[wanted].store(false, Ordering::SeqCst);
            }
            let release = pb::ReleaseClaimsRequest {
                token: answer.token,
                hashes: None,
            };
            self.client.release_claims(release).await?;
        }
        Ok(self.seen)
    }

    /// Which of the wanted blocks were granted.
    fn check(&mut self, answer: &pb::ClaimResponse, wanted: u64) -> Result<Vec<usize>, BenchError> {
        let states: Vec<pb::ClaimState> = answer.states().collect();
        if states.len() as u64 != 2 * HALF {
            let text = format!("{} of {} hashes answered", states.len(), 2 * HALF);
            return Err(BenchError::Wrong(text));
        }
        let mut granted = Vec::new();
        for (number, state) in (0..).zip(states) {
            match (number < HALF, state) {
                (true, pb::ClaimState::Stored) => self.seen.stored += 1,
                (false, pb::ClaimState::Claimed) => self.seen.refused += 1,
                (false, pb::ClaimState::Granted) => {
                    let wanted = (wanted + number - HALF) as usize;
                    if self.held[wanted].swap(true, Ordering::SeqCst) {
                        return Err(BenchError::Wrong("a claim was granted twice".into()));
                    }
                    self.seen.granted += 1;
                    granted.push(wanted);
                }
                (stored, state) => {
                    let text = format!("{state:?} for a block that is stored: {stored}");
                    return Err(BenchError::Wrong(text));
                }
            }
        }
        Ok(granted)
    }
}
