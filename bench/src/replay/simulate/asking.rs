//! Questions to the coordinator and their answers, in the messages in which they travel.

use kvferry_agent::{
    coordinators::Located,
    session::{LogEntry, inventory_messages},
    transfer::{Candidate, Event as PullEvent, OpId, SourceHint, SourceKey},
};
use kvferry_coordinator::{answer_locate, directory, parse};
use kvferry_proto::{BlockHash, PackedHashes, pb};

use super::{Event, OutOfStep, ReplayError, World, job::Pull, node::incarnation};

/// Candidates asked for, as agents do.
const CANDIDATES: u32 = 3;
/// What the network makes of every link: a remote node's.
const DISTANCE: u8 = 1;

impl World<'_> {
    /// Introduces a node to the coordinator, with an inventory of all it has: an empty pool.
    pub(super) fn introduce(&mut self, number: usize) -> Result<(), ReplayError> {
        let Some(node) = self.nodes.get(number) else {
            return Ok(());
        };
        let hello = pb::Hello {
            node: node.name.to_string(),
            incarnation: incarnation()?.get(),
            addresses: Some(pb::NodeAddresses {
                // Read back as the node's number.
                host_id: node.name.to_string(),
                ..pb::NodeAddresses::default()
            }),
            oldest_delta: 1,
            next_delta: 1,
            ..pb::Hello::default()
        };
        let hello = parse::hello(hello).map_err(|_| OutOfStep::Message("a hello"))?;
        let session = directory::SessionId(number as u64);
        self.tell(directory::Event::Hello { session, hello })?;
        let Some(node) = self.nodes.get_mut(number) else {
            return Ok(());
        };
        let (inventory, seq) = node.store.inventory(|| node.log.seal_position());
        node.next_delta = seq + 1;
        for part in inventory_messages(&inventory, seq) {
            let part = parse::inventory(part).map_err(|_| OutOfStep::Message("an inventory"))?;
            self.tell(directory::Event::Inventory { session, part })?;
        }
        Ok(())
    }

    /// Sends what a node's log has; the coordinator takes it in at once.
    pub(super) fn announce(&mut self, number: usize) -> Result<(), ReplayError> {
        let Some(node) = self.nodes.get_mut(number) else {
            return Ok(());
        };
        node.announcing = false;
        let mut deltas = Vec::new();
        loop {
            match node.log.read(node.next_delta) {
                LogEntry::Delta(delta) => {
                    deltas.push(delta.to_message(node.next_delta));
                    node.next_delta += 1;
                }
                LogEntry::UpToDate => break,
                LogEntry::Forgotten => {
                    return Err(OutOfStep::Forgotten.into());
                }
            }
        }
        for delta in deltas {
            self.asked.deltas += 1;
            let delta = parse::delta(delta).map_err(|_| OutOfStep::Message("a delta"))?;
            let session = directory::SessionId(number as u64);
            self.tell(directory::Event::Delta { session, delta })?;
        }
        Ok(())
    }

    fn tell(&mut self, event: directory::Event) -> Result<(), ReplayError> {
        use directory::Effect;
        for effect in self.directory.handle(self.now, event) {
            match effect {
                Effect::Welcome { .. } | Effect::Ack { .. } => {}
                other => return Err(OutOfStep::Effect(format!("{other:?}")).into()),
            }
        }
        Ok(())
    }

    /// Lets a question travel: a pull engine's, or a look-up's where there is no operation.
    pub(super) fn ask(
        &mut self,
        job: u64,
        node: usize,
        op: Option<OpId>,
        hashes: &[&BlockHash],
    ) -> Result<(), ReplayError> {
        self.asked.locates += 1;
        self.asked.hashes += hashes.len() as u64;
        let name = self.nodes.get(node).map(|node| node.name.to_string());
        let name = name.unwrap_or_default();
        let packed = PackedHashes::pack(self.spec.hash_len, hashes.iter().copied())?;
        let request = Box::new(pb::LocateRequest {
            namespace: self.spec.name.to_string(),
            hashes: Some(packed.into()),
            max_candidates: CANDIDATES,
            host_id: name.clone(),
            exclude_node: name,
            ..pb::LocateRequest::default()
        });
        let arrives = Event::Asked { job, op, request };
        self.queue.at(self.now + self.network.way(), arrives);
        Ok(())
    }

    /// A question arrives, and is answered.
    pub(super) fn answer(
        &mut self,
        job: u64,
        op: Option<OpId>,
        request: pb::LocateRequest,
    ) -> Result<(), ReplayError> {
        let answer = answer_locate(&self.directory, request)
            .map_err(|status| OutOfStep::Refused(status.message().to_owned()))?;
        let answered = Event::Answered {
            job,
            op,
            answer: Box::new(answer),
        };
        self.queue.at(self.now + self.network.way(), answered);
        Ok(())
    }

    /// An answer to a pull engine, in its words; as the agent's driver puts it.
    pub(super) fn understand(
        &self,
        pull: &mut Pull,
        op: OpId,
        answer: pb::LocateResponse,
    ) -> Result<PullEvent, ReplayError> {
        let located = Located::parse(answer, pull.places.len(), self.spec.layout.block_bytes())?;
        let mut owners = Vec::new();
        for owner in &located.owners {
            let Some(&node) = self.names.get(&owner.peer.node) else {
                return Err(OutOfStep::Message("an owner").into());
            };
            let known = pull.sources.iter().position(|source| *source == node);
            let place = known.unwrap_or(pull.sources.len());
            if known.is_none() {
                pull.sources.push(node);
            }
            owners.push((SourceKey(place as u32), owner.region));
        }
        let hints = owners.iter().map(|(source, _)| SourceHint {
            source: *source,
            suspect: false,
            distance: DISTANCE,
        });
        let candidates = (0..located.len()).map(|block| {
            let places = located.candidates(block).iter();
            let known = places.filter_map(|place| {
                let &(source, region) = owners.get(place.owner)?;
                Some(Candidate {
                    source,
                    region,
                    slot: place.slot,
                    generation: place.generation,
                    checksum: place.checksum,
                    spans: 1,
                })
            });
            known.collect()
        });
        Ok(PullEvent::Located {
            op,
            hints: hints.collect(),
            candidates: candidates.collect(),
        })
    }
}
