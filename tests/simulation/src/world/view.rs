//! What a router makes of what it is told: nodes, regions and copies, applied message by message.

use std::collections::BTreeMap;

use kvferry_proto::pb::{self, watch_message::Message};

/// A node, as it is told.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SeenNode {
    pub(crate) node: String,
    pub(crate) incarnation: u64,
    pub(crate) state: i32,
}

/// See the module's page.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    /// What to go on from: epoch and number.
    pub(crate) at: Option<(u64, u64)>,
    epoch: u64,
    /// Everything that was there has been told.
    pub(crate) synced: bool,
    pub(crate) nodes: BTreeMap<u32, SeenNode>,
    /// The node's number, and its own number of the region.
    pub(crate) regions: BTreeMap<u32, (u32, u32)>,
    /// Region and slot to hash and generation.
    pub(crate) copies: BTreeMap<(u32, u32), (Vec<u8>, u64)>,
}

impl View {
    /// What a router does with a message.
    ///
    /// # Errors
    /// What it should not have been told.
    pub(crate) fn apply(&mut self, told: &pb::WatchMessage) -> Result<(), String> {
        match &told.message {
            Some(Message::Started(started)) => {
                if started.from_start {
                    *self = Self::default();
                } else if self.at.map(|(epoch, _)| epoch) != Some(started.epoch) {
                    return Err("a stream goes on from another lifetime".to_owned());
                }
                self.epoch = started.epoch;
            }
            Some(Message::Node(node)) => {
                let seen = SeenNode {
                    node: node.node.clone(),
                    incarnation: node.incarnation,
                    state: node.state,
                };
                self.nodes.insert(node.number, seen);
            }
            Some(Message::NodeGone(number)) => {
                if self.nodes.remove(number).is_none() && self.synced {
                    return Err(format!("node {number} is gone, which was not there"));
                }
                self.regions.retain(|_, (node, _)| node != number);
                self.forget_copies();
            }
            Some(Message::Region(region)) => {
                if !self.nodes.contains_key(&region.node) {
                    return Err(format!("a region of node {}, not told of", region.node));
                }
                let seen = (region.node, region.region);
                self.regions.insert(region.number, seen);
            }
            Some(Message::RegionGone(number)) => {
                if self.regions.remove(number).is_none() && self.synced {
                    return Err(format!("region {number} is gone, which was not there"));
                }
                self.forget_copies();
            }
            Some(Message::Rows(rows)) => self.rows(rows)?,
            Some(Message::Synced(_)) => self.synced = true,
            None => return Err("an empty message".to_owned()),
        }
        if told.seq > 0 {
            if let Some((_, before)) = self.at.filter(|(epoch, _)| *epoch == self.epoch)
                && told.seq < before
            {
                return Err(format!("number {} after {before}", told.seq));
            }
            self.at = Some((self.epoch, told.seq));
        }
        Ok(())
    }

    fn rows(&mut self, rows: &pb::WatchedRows) -> Result<(), String> {
        let packed = rows.hashes.clone().unwrap_or_default();
        let hashes = packed
            .hashes
            .chunks_exact((packed.hash_len as usize).max(1));
        let places = rows.regions.iter().zip(&rows.slots).zip(&rows.generations);
        for ((change, ((&region, &slot), &generation)), hash) in
            rows.changes().zip(places).zip(hashes)
        {
            if !self.regions.contains_key(&region) {
                return Err(format!("a copy in region {region}, not told of"));
            }
            let before = match change {
                pb::CopyChange::Removed => self.copies.remove(&(region, slot)),
                _ => (self.copies).insert((region, slot), (hash.to_vec(), generation)),
            };
            let same = before.is_some_and(|(known, _)| known == hash);
            if !same && self.synced && change != pb::CopyChange::Added {
                return Err(format!(
                    "slot {slot} of region {region}: {change:?} of a block that was not there"
                ));
            }
        }
        Ok(())
    }

    fn forget_copies(&mut self) {
        let regions = &self.regions;
        self.copies
            .retain(|(region, _), _| regions.contains_key(region));
    }
}
