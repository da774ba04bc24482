//! A coordinator's answer, parsed.

use kvferry_proto::{
    Checksum, Generation, Geometry, IdError, Incarnation, InvalidMessage, NodeAddresses, NodeId,
    RegionId, Slot, pb,
};

use crate::transport::PeerTarget;

/// Most distinct (node, region) pairs one answer may name: more than a request can use.
const MAX_OWNERS: usize = 65_536;

/// One region of one owner, as a reader needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnerRegion {
    /// Whom to connect to.
    pub peer: PeerTarget,
    /// Which of its regions.
    pub region: RegionId,
    /// Where the region's slots lie.
    pub geometry: Geometry,
}

/// Where a block may be. A hint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocatedCandidate {
    /// Index into [`Located::owners`]; one beyond its end names nobody.
    pub owner: usize,
    /// The slot of the owner's region.
    pub slot: Slot,
    /// What the slot's generation must be after the bytes have arrived.
    pub generation: Generation,
    /// What the bytes must hash to.
    pub checksum: Option<Checksum>,
}

/// The answer for a list of hashes, in their order. Blocks past its end have no owner.
#[derive(Debug, Clone, Default)]
pub struct Located {
    /// The owners named.
    pub owners: Vec<OwnerRegion>,
    candidates: Vec<LocatedCandidate>,
    /// Where each block's candidates end in `candidates`.
    ends: Vec<usize>,
}

impl Located {
    /// An answer from its parts: the candidates of each block, in order.
    pub fn new(
        owners: Vec<OwnerRegion>,
        blocks: impl IntoIterator<Item = Vec<LocatedCandidate>>,
    ) -> Self {
        let mut located = Self {
            owners,
            ..Self::default()
        };
        for candidates in blocks {
            located.candidates.extend(candidates);
            located.ends.push(located.candidates.len());
        }
        located
    }

    /// The answer for some of the blocks, in this order. One past its end has no owner.
    #[must_use]
    pub fn subset(&self, blocks: &[usize]) -> Self {
        let each = blocks.iter().map(|block| self.candidates(*block).to_vec());
        Self::new(self.owners.clone(), each)
    }

    /// How many blocks the answer speaks of.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// True when it speaks of none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The candidates of the i-th hash, nearest first; empty where nobody has it.
    #[must_use]
    pub fn candidates(&self, index: usize) -> &[LocatedCandidate] {
        let Some(&end) = self.ends.get(index) else {
            return &[];
        };
        let start = match index {
            0 => 0,
            _ => self.ends[index - 1],
        };
        &self.candidates[start..end]
    }

    /// Checks an answer to a request of `asked` hashes about blocks of `block_bytes` bytes.
    ///
    /// # Errors
    /// [`InvalidMessage`] when the columns do not fit each other or an owner makes no sense.
    pub fn parse(
        message: pb::LocateResponse,
        asked: usize,
        block_bytes: u64,
    ) -> Result<Self, InvalidMessage> {
        let bound = |what, got: usize, max: usize| {
            if got > max {
                return Err(InvalidMessage::OutOfBounds {
                    what,
                    got: got as u64,
                    max: max as u64,
                });
            }
            Ok(())
        };
        bound(
            "the number of blocks answered",
            message.candidate_counts.len(),
            asked,
        )?;
        bound("the number of owners", message.owners.len(), MAX_OWNERS)?;
        let owners = message
            .owners
            .into_iter()
            .map(|owner| parse_owner(owner, block_bytes))
            .collect::<Result<Vec<_>, _>>()?;

        let mut ends = Vec::with_capacity(message.candidate_counts.len());
        let mut total = 0usize;
        for count in &message.candidate_counts {
            total = total.saturating_add(*count as usize);
            ends.push(total);
        }
        let column = |what, got: usize| {
            if got != total {
                return Err(InvalidMessage::Columns {
                    what,
                    got,
                    want: total,
                });
            }
            Ok(())
        };
        column("owner_index", message.owner_index.len())?;
        column("slots", message.slots.len())?;
        column("generations", message.generations.len())?;
        if !message.checksums.is_empty() {
            column("checksums", message.checksums.len())?;
        }
        let candidates = (0..total)
            .map(|i| {
                let owner = message.owner_index[i] as usize;
                let slot = Slot(message.slots[i]);
                let region = owners.get(owner).ok_or(InvalidMessage::OutOfBounds {
                    what: "an owner's index",
                    got: owner as u64,
                    max: owners.len() as u64,
                })?;
                if !region.geometry.contains(slot) {
                    return Err(InvalidMessage::OutOfBounds {
                        what: "a slot",
                        got: u64::from(slot.0),
                        max: u64::from(region.geometry.slots()) - 1,
                    });
                }
                Ok(LocatedCandidate {
                    owner,
                    slot,
                    generation: Generation(message.generations[i]),
                    checksum: message
                        .checksums
                        .get(i)
                        .and_then(|sum| Checksum::from_wire(*sum)),
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            owners,
            candidates,
            ends,
        })
    }
}

fn parse_owner(owner: pb::LocatedRegion, block_bytes: u64) -> Result<OwnerRegion, InvalidMessage> {
    let geometry = Geometry::try_from(
        owner
            .geometry
            .ok_or(InvalidMessage::Missing("an owner's geometry"))?,
    )?;
    if geometry.block_bytes() != block_bytes {
        return Err(kvferry_proto::GeometryError::BlockBytes {
            got: geometry.block_bytes(),
            want: block_bytes,
        }
        .into());
    }
    let named = |error: IdError| InvalidMessage::Id(error);
    Ok(OwnerRegion {
        peer: PeerTarget {
            node: NodeId::new(&owner.node).map_err(named)?,
            incarnation: Incarnation::new(owner.incarnation).map_err(named)?,
            addresses: NodeAddresses::try_from(
                owner
                    .addresses
                    .ok_or(InvalidMessage::Missing("an owner's addresses"))?,
            )?,
        },
        region: RegionId(owner.region),
        geometry,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer() -> pb::LocateResponse {
        pb::LocateResponse {
            answered: 3,
            owners: vec![pb::LocatedRegion {
                node: "a".into(),
                incarnation: 5,
                region: 1,
                addresses: Some(pb::NodeAddresses::default()),
                geometry: Some((&Geometry::contiguous(4, 16).unwrap()).into()),
            }],
            candidate_counts: vec![1, 0, 2],
            owner_index: vec![0, 0, 0],
            slots: vec![0, 2, 3],
            generations: vec![2, 4, 6],
            checksums: vec![],
            ..pb::LocateResponse::default()
        }
    }

    #[test]
    fn columns_become_candidates() {
        let located = Located::parse(answer(), 3, 16).unwrap();
        assert_eq!(located.len(), 3);
        assert_eq!(located.candidates(0).len(), 1);
        assert_eq!(located.candidates(1), []);
        assert_eq!(located.candidates(2)[1].slot, Slot(3));
        assert_eq!(located.candidates(3), []);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let refused = |change: fn(&mut pb::LocateResponse)| {
            let mut message = answer();
            change(&mut message);
            Located::parse(message, 3, 16).unwrap_err()
        };
        refused(|m| m.candidate_counts.push(0));
        refused(|m| m.candidate_counts[0] = u32::MAX);
        refused(|m| m.slots[0] = 4);
        refused(|m| m.owner_index[2] = 1);
        refused(|m| m.generations.clear());
        refused(|m| m.checksums = vec![1]);
        refused(|m| m.owners[0].incarnation = 0);
        refused(|m| m.owners[0].geometry = None);
        assert!(Located::parse(answer(), 3, 32).is_err());
    }
}
