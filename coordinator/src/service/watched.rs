//! What changed in a namespace, as it travels. Public, so that the simulation's messages go through the
//! very same code.

use std::sync::Arc;

use kvferry_proto::{
    HashLen,
    pb::{self, watch_message::Message},
};

use super::admin::node_state;
use crate::directory::{Change, CopyChange, Rows, WatchedNode};

/// Changes up to number `last`, with the number each can be gone on from. Rows that follow each other
/// travel together.
#[must_use]
pub fn messages(changes: &[Arc<Change>], last: u64, hash_len: HashLen) -> Vec<(u64, Message)> {
    let mut messages = Vec::new();
    let mut rows = Rows::default();
    let mut seq = last - changes.len() as u64;
    for change in changes {
        if let Change::Rows(more) = &**change {
            rows.extend(more);
            seq += 1;
            continue;
        }
        if let Some(told) = copies(std::mem::take(&mut rows), hash_len) {
            messages.push((seq, told));
        }
        seq += 1;
        messages.push((seq, structure(change)));
    }
    messages.extend(copies(rows, hash_len).map(|told| (last, told)));
    messages
}

fn structure(change: &Change) -> Message {
    match change {
        Change::Node(told) => Message::Node(node(told)),
        Change::NodeGone(number) => Message::NodeGone(*number),
        Change::Region(region) => Message::Region(pb::WatchedRegion {
            number: region.number,
            node: region.node,
            region: region.region.0,
            slots: region.slots,
        }),
        Change::RegionGone(number) => Message::RegionGone(*number),
        Change::Rows(_) => Message::Rows(pb::WatchedRows::default()),
    }
}

fn node(told: &WatchedNode) -> pb::WatchedNode {
    let labels = told.labels.iter();
    pb::WatchedNode {
        number: told.number,
        node: told.node.to_string(),
        incarnation: told.incarnation.get(),
        state: node_state(told.state).into(),
        addresses: Some((&*told.addresses).into()),
        labels: labels
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect(),
    }
}

/// None where there are none.
#[must_use]
pub fn copies(rows: Rows, hash_len: HashLen) -> Option<Message> {
    if rows.is_empty() {
        return None;
    }
    let change = |change: &CopyChange| match change {
        CopyChange::Added => pb::CopyChange::Added.into(),
        CopyChange::Removed => pb::CopyChange::Removed.into(),
        CopyChange::Moved => pb::CopyChange::Moved.into(),
    };
    Some(Message::Rows(pb::WatchedRows {
        changes: rows.changes.iter().map(change).collect(),
        regions: rows.regions,
        slots: rows.slots,
        generations: rows.generations,
        hashes: Some(pb::PackedHashes {
            hash_len: hash_len.get() as u32,
            hashes: rows.hashes.into(),
        }),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(slots: &[u32]) -> Arc<Change> {
        let n = slots.len();
        Arc::new(Change::Rows(Rows {
            changes: vec![CopyChange::Added; n],
            regions: vec![0; n],
            slots: slots.to_vec(),
            generations: vec![2; n],
            hashes: vec![7; 8 * n],
        }))
    }

    #[test]
    fn neighbours_travel_together_under_the_last_number() {
        let changes = [
            rows(&[1]),
            rows(&[2, 3]),
            Arc::new(Change::NodeGone(4)),
            rows(&[5]),
        ];
        let told = messages(&changes, 14, HashLen::new(8).unwrap());
        let slots = |message: &Message| match message {
            Message::Rows(rows) => rows.slots.clone(),
            _ => Vec::new(),
        };
        let told: Vec<_> = told.iter().map(|(seq, m)| (*seq, slots(m))).collect();
        assert_eq!(told, [(12, vec![1, 2, 3]), (13, vec![]), (14, vec![5])]);
    }
}
