//! `kvferry watch`: what changes in a namespace, as routers are told it.

use std::collections::HashMap;

use kvferry_proto::pb::{self, watch_message::Message};
use serde::Serialize;
use tonic::Streaming;

use super::tool::ToolError;
use crate::{
    cli::watch::WatchArgs,
    client::{self, Call},
    failure::Done,
    output,
};

/// One thing that was told, as it is printed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Told {
    /// What `--from` takes to go on after this; None while that cannot be.
    from: Option<String>,
    #[serde(flatten)]
    what: What,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum What {
    Started {
        from_start: bool,
    },
    Node {
        node: String,
        incarnation: String,
        state: &'static str,
    },
    NodeGone {
        node: String,
    },
    Region {
        node: String,
        region: u32,
        slots: u32,
    },
    RegionGone {
        node: String,
        region: u32,
    },
    Added(Copy),
    Removed(Copy),
    Moved(Copy),
    Synced,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Copy {
    hash: String,
    node: String,
    region: u32,
    slot: u32,
    generation: u64,
}

/// Names for the numbers that are told.
#[derive(Debug, Default)]
struct Names {
    epoch: u64,
    nodes: HashMap<u32, String>,
    /// The node's number, and the node's own number for it.
    regions: HashMap<u32, (u32, u32)>,
}

pub(crate) async fn run(args: WatchArgs) -> Result<Done, ToolError> {
    let mut client = client::watch(&args.reach).await?;
    let call = Call::coordinator("tell what changes in the namespace", args.reach.bound());
    let (epoch, seq) = args.from.map_or((0, 0), |from| (from.epoch, from.seq));
    let request = pb::WatchRequest {
        namespace: args.namespace.clone(),
        epoch,
        seq,
    };
    let mut stream = call.answer(client.watch(request)).await?;
    let mut names = Names::default();
    while let Some(message) = next(&mut stream, call).await? {
        for told in names.take_in(message) {
            if !print(&told, args.json)? || (args.once && told.what == What::Synced) {
                return Ok(Done::All);
            }
        }
    }
    Ok(Done::All)
}

/// However long it takes: nothing may change for hours.
async fn next(
    stream: &mut Streaming<pb::WatchMessage>,
    call: Call,
) -> Result<Option<pb::WatchMessage>, ToolError> {
    match stream.message().await {
        Ok(message) => Ok(message),
        Err(status) => Ok(call.within(async { Err(status) }).await?),
    }
}

impl Names {
    fn take_in(&mut self, message: pb::WatchMessage) -> Vec<Told> {
        let whats = match message.message {
            Some(Message::Started(started)) => {
                self.epoch = started.epoch;
                vec![What::Started {
                    from_start: started.from_start,
                }]
            }
            Some(Message::Node(node)) => {
                self.nodes.insert(node.number, node.node.clone());
                vec![What::Node {
                    state: super::nodes::state(node.state()),
                    node: node.node,
                    incarnation: format!("{:x}", node.incarnation),
                }]
            }
            Some(Message::NodeGone(number)) => {
                self.regions.retain(|_, region| region.0 != number);
                let node = self.nodes.remove(&number);
                vec![What::NodeGone {
                    node: node.unwrap_or_else(|| unnamed(number)),
                }]
            }
            Some(Message::Region(region)) => {
                let known = (region.node, region.region);
                self.regions.insert(region.number, known);
                vec![What::Region {
                    node: self.node(region.node),
                    region: region.region,
                    slots: region.slots,
                }]
            }
            Some(Message::RegionGone(number)) => {
                let (node, region) = self.region(number);
                self.regions.remove(&number);
                vec![What::RegionGone { node, region }]
            }
            Some(Message::Rows(rows)) => self.copies(&rows),
            Some(Message::Synced(pb::WatchSynced {})) => vec![What::Synced],
            // Something a later version tells.
            None => Vec::new(),
        };
        let from = (message.seq != 0).then(|| format!("{:x}:{}", self.epoch, message.seq));
        let count = whats.len();
        let told = whats.into_iter().enumerate().map(|(number, what)| Told {
            // Only after the last of a message has all of it been taken in.
            from: from.clone().filter(|_| number + 1 == count),
            what,
        });
        told.collect()
    }

    fn copies(&self, rows: &pb::WatchedRows) -> Vec<What> {
        let hashes = rows.hashes.clone().unwrap_or_default();
        let len = (hashes.hash_len as usize).max(1);
        let columns = rows.regions.iter().zip(&rows.slots).zip(&rows.generations);
        let columns = columns.zip(hashes.hashes.chunks_exact(len));
        let copy = |(((region, slot), generation), hash): (((&u32, &u32), &u64), &[u8])| {
            let (node, region) = self.region(*region);
            Copy {
                hash: hash.iter().map(|byte| format!("{byte:02x}")).collect(),
                node,
                region,
                slot: *slot,
                generation: *generation,
            }
        };
        let what = |(change, copy)| match change {
            pb::CopyChange::Removed => What::Removed(copy),
            pb::CopyChange::Moved => What::Moved(copy),
            pb::CopyChange::Added | pb::CopyChange::Unspecified => What::Added(copy),
        };
        rows.changes().zip(columns.map(copy)).map(what).collect()
    }

    fn region(&self, number: u32) -> (String, u32) {
        match self.regions.get(&number) {
            Some((node, region)) => (self.node(*node), *region),
            // Told of before this stream went on.
            None => (unnamed(number), 0),
        }
    }

    fn node(&self, number: u32) -> String {
        let known = self.nodes.get(&number).cloned();
        known.unwrap_or_else(|| unnamed(number))
    }
}

/// A number this stream gave no name to: it went on from another one, which did.
fn unnamed(number: u32) -> String {
    format!("#{number}")
}

/// False where nobody reads any more.
fn print(told: &Told, json: bool) -> Result<bool, output::OutputError> {
    if json {
        return output::json_told(told);
    }
    let from = told.from.as_deref().unwrap_or("-");
    let text = match &told.what {
        What::Started { from_start: true } => "started with what is there".to_owned(),
        What::Started { from_start: false } => "goes on".to_owned(),
        What::Node {
            node,
            state,
            incarnation,
        } => format!("node {node} {state} (incarnation {incarnation})"),
        What::NodeGone { node } => format!("node {node} gone with all it held"),
        What::Region {
            node,
            region,
            slots,
        } => format!("region {node}/{region} of {slots} slots"),
        What::RegionGone { node, region } => format!("region {node}/{region} gone"),
        What::Added(copy) => format!("+ {}", spell(copy)),
        What::Removed(copy) => format!("- {}", spell(copy)),
        What::Moved(copy) => format!("~ {}", spell(copy)),
        What::Synced => "synced: this is all there is".to_owned(),
    };
    output::told(&format!("{from}  {text}"))
}

fn spell(copy: &Copy) -> String {
    let Copy {
        hash,
        node,
        region,
        slot,
        ..
    } = copy;
    format!("{hash} {node}/{region}/{slot}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(seq: u64, message: Message) -> pb::WatchMessage {
        pb::WatchMessage {
            seq,
            message: Some(message),
        }
    }

    #[test]
    fn numbers_get_their_names_and_a_message_can_be_gone_on_from_when_all_of_it_is_printed() {
        let mut names = Names {
            epoch: 0xab,
            ..Names::default()
        };
        names.take_in(message(
            0,
            Message::Node(pb::WatchedNode {
                number: 4,
                node: "a".into(),
                ..pb::WatchedNode::default()
            }),
        ));
        names.take_in(message(
            0,
            Message::Region(pb::WatchedRegion {
                number: 9,
                node: 4,
                region: 1,
                slots: 8,
            }),
        ));
        let rows = pb::WatchedRows {
            changes: vec![pb::CopyChange::Added.into(), pb::CopyChange::Removed.into()],
            regions: vec![9, 9],
            slots: vec![3, 4],
            generations: vec![2, 0],
            hashes: Some(pb::PackedHashes {
                hash_len: 8,
                hashes: [[1; 8], [2; 8]].concat().into(),
            }),
        };
        let told = names.take_in(message(7, Message::Rows(rows)));
        let copy = |hash: &str, slot, generation| Copy {
            hash: hash.repeat(8),
            node: "a".into(),
            region: 1,
            slot,
            generation,
        };
        assert_eq!(
            told,
            [
                Told {
                    from: None,
                    what: What::Added(copy("01", 3, 2)),
                },
                Told {
                    from: Some("ab:7".into()),
                    what: What::Removed(copy("02", 4, 0)),
                },
            ]
        );
        let told = names.take_in(message(8, Message::NodeGone(4)));
        assert_eq!(told[0].what, What::NodeGone { node: "a".into() });
        assert_eq!(names.region(9).0, "#9");
    }
}
