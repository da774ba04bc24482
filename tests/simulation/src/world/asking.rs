//! A pull asks who holds its blocks, and understands the answer.

use kvferry_agent::{
    coordinators::Located,
    transfer::{
        BlockIndex, Candidate, Candidates, Event as PullEvent, OpId, SourceHint, SourceKey,
    },
    transport::PeerHealth,
};
use kvferry_proto::pb;

use super::{Act, Event, Process, World, pull::Pull};
use crate::queue::{Micros, SECOND};

/// Until a unary call is given up.
const CALL_BOUND: Micros = 2 * SECOND;
/// Candidates asked for.
const CANDIDATES: u32 = 3;

impl World {
    pub(super) fn ask(
        &mut self,
        process: &mut Process,
        pull: &Pull,
        op: OpId,
        blocks: &[BlockIndex],
    ) {
        let hashes: Vec<_> = blocks
            .iter()
            .map(|block| pull.hashes[*block as usize])
            .collect();
        let packed = self.conditions.names.pack(pull.namespace, &hashes);
        let request = Box::new(pb::LocateRequest {
            namespace: self.conditions.spec(pull.namespace).name.to_string(),
            hashes: Some(packed.into()),
            max_candidates: CANDIDATES,
            host_id: process.name.to_string(),
            exclude_node: process.name.to_string(),
            ..pb::LocateRequest::default()
        });
        let coordinator = process.random.below(self.coordinators.len() as u64) as usize;
        let copies = match (
            self.chance(self.conditions.loss),
            self.chance(self.conditions.duplicates),
        ) {
            (true, _) => 0,
            (false, true) => 2,
            (false, false) => 1,
        };
        for _ in 0..copies {
            let way = self.way();
            let locate = Event::Locate {
                coordinator,
                pid: process.pid,
                pull: pull.id,
                op,
                request: request.clone(),
            };
            self.queue.at(self.now + way, locate);
        }
        let act = Act::Located {
            pull: pull.id,
            op,
            answer: Err(true),
        };
        self.later(process.pid, CALL_BOUND, act);
    }

    /// An answer, in the engine's words; as the driver does it.
    pub(super) fn understand(
        &mut self,
        process: &mut Process,
        id: u64,
        op: OpId,
        answer: pb::LocateResponse,
    ) -> Option<PullEvent> {
        let pull = process.pulls.get_mut(&id)?;
        let block_bytes = self.conditions.spec(pull.namespace).layout.block_bytes();
        let Ok(located) = Located::parse(answer, pull.hashes.len(), block_bytes) else {
            return Some(PullEvent::LocateFailed {
                op,
                retryable: true,
            });
        };
        Some(understood(&process.health, pull, op, &located))
    }
}

/// What an answer means, in the engine's words.
pub(super) fn understood(
    health: &PeerHealth,
    pull: &mut Pull,
    op: OpId,
    located: &Located,
) -> PullEvent {
    pull.locates += 1;
    pull.troubled |= pull.locates > 1;
    let mut owners = Vec::new();
    for owner in &located.owners {
        let next = SourceKey(pull.peers.len() as u32);
        let name = (owner.peer.node.clone(), owner.peer.incarnation);
        let source = *pull.keys.entry(name).or_insert(next);
        match pull.peers.get_mut(source.0 as usize) {
            Some(known) => *known = owner.peer.clone(),
            None => pull.peers.push(owner.peer.clone()),
        }
        pull.geometries
            .insert((source, owner.region), owner.geometry.clone());
        owners.push((source, owner.region, owner.geometry.planes().len() as u32));
    }
    for (owner, &(source, ..)) in located.owners.iter().zip(&owners) {
        match health.is_suspect(&owner.peer.node, owner.peer.incarnation) {
            true => pull.suspects.insert(source),
            false => pull.suspects.remove(&source),
        };
    }
    let suspects = &pull.suspects;
    let hints = owners.iter().map(|&(source, ..)| SourceHint {
        source,
        suspect: suspects.contains(&source),
        distance: 1,
    });
    let candidates = (0..located.len()).map(|block| {
        let places = located.candidates(block).iter();
        let known = places.filter_map(|place| {
            let &(source, region, spans) = owners.get(place.owner)?;
            Some(Candidate {
                source,
                region,
                slot: place.slot,
                generation: place.generation,
                checksum: place.checksum,
                spans,
            })
        });
        known.collect::<Candidates>()
    });
    let (hints, candidates) = (hints.collect(), candidates.collect::<Vec<_>>());
    pull.must_suspect |= candidates
        .iter()
        .any(|some| some.iter().all(|one| suspects.contains(&one.source)));
    PullEvent::Located {
        op,
        hints,
        candidates,
    }
}
