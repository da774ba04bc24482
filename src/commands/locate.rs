//! `kvferry locate`: which nodes hold these blocks?

use kvferry_proto::{BlockHash, HashError, HashLen, MAX_HASHES_PER_REQUEST, PackedHashes, pb};
use serde::Serialize;

use crate::{
    cli::LocateArgs,
    client::{self, Call, ClientError, Coordinator},
    failure::Done,
    manifest::{Manifest, ManifestError},
    output::{self, OutputError},
};

/// Why nothing was located.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LocateError {
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    Hash(#[from] HashError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Output(#[from] OutputError),
}

/// One owner of a block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Owner {
    node: String,
    region: u32,
    slot: u32,
    generation: u64,
}

#[derive(Debug, Serialize)]
struct Located {
    block: usize,
    hash: String,
    owners: Vec<Owner>,
}

pub(crate) async fn run(args: LocateArgs) -> Result<Done, LocateError> {
    let (namespace, hash_len, hashes) = wanted(&args)?;
    let mut coordinator = client::coordinator(&args.reach).await?;
    let mut located = Vec::with_capacity(hashes.len());
    for part in hashes.chunks(MAX_HASHES_PER_REQUEST) {
        let packed = PackedHashes::pack(hash_len, part)?;
        let answers = locate(&mut coordinator, &args, &namespace, packed).await?;
        let whole = answers.len() == part.len();
        for (hash, owners) in part.iter().zip(answers) {
            located.push(Located {
                block: located.len(),
                hash: hash.to_string(),
                owners,
            });
        }
        if !whole {
            break;
        }
    }
    print(&args, &located, hashes.len())?;
    let found = located.iter().filter(|block| !block.owners.is_empty());
    Ok(match found.count() == hashes.len() {
        true => Done::All,
        false => Done::InPart,
    })
}

fn wanted(args: &LocateArgs) -> Result<(String, HashLen, Vec<BlockHash>), LocateError> {
    if let Some(path) = &args.manifest {
        let manifest = Manifest::read(path)?;
        return Ok((manifest.namespace, manifest.hash_len, manifest.hashes));
    }
    let hashes = args
        .hashes
        .iter()
        .map(|text| BlockHash::from_hex(text))
        .collect::<Result<Vec<_>, _>>()?;
    // clap wants at least one hash where there is no manifest; others are compared with the first.
    let hash_len = match hashes.first() {
        Some(hash) => hash.hash_len(),
        None => HashLen::new(32)?,
    };
    Ok((args.namespace.clone().unwrap_or_default(), hash_len, hashes))
}

/// The owners of each block that was answered for.
async fn locate(
    coordinator: &mut Coordinator,
    args: &LocateArgs,
    namespace: &str,
    hashes: PackedHashes,
) -> Result<Vec<Vec<Owner>>, ClientError> {
    let mode = match args.prefix {
        true => pb::LocateMode::Prefix,
        false => pb::LocateMode::Set,
    };
    let asked = hashes.len();
    let request = pb::LocateRequest {
        namespace: namespace.to_owned(),
        hashes: Some(hashes.into()),
        mode: mode.into(),
        max_candidates: args.owners,
        ..pb::LocateRequest::default()
    };
    let call = Call::coordinator("locate the blocks", args.reach.bound());
    let answer = call.answer(coordinator.locate(request)).await?;
    columns(&answer, asked).ok_or_else(|| ClientError::nonsense(call, "columns that do not fit"))
}

/// Reads the columns; None where they do not belong together.
fn columns(answer: &pb::LocateResponse, asked: usize) -> Option<Vec<Vec<Owner>>> {
    let answered = answer.answered as usize;
    let candidates = answer.owner_index.len();
    let lengths = [answer.slots.len(), answer.generations.len()];
    if answered > asked
        || answer.candidate_counts.len() != answered
        || lengths != [candidates, candidates]
    {
        return None;
    }
    let mut column = 0..candidates;
    let mut blocks = Vec::with_capacity(answered);
    for count in &answer.candidate_counts {
        let owners = (0..*count).map(|_| {
            let at = column.next()?;
            let region = answer.owners.get(answer.owner_index[at] as usize)?;
            Some(Owner {
                node: region.node.clone(),
                region: region.region,
                slot: answer.slots[at],
                generation: answer.generations[at],
            })
        });
        blocks.push(owners.collect::<Option<Vec<_>>>()?);
    }
    column.is_empty().then_some(blocks)
}

fn print(args: &LocateArgs, located: &[Located], asked: usize) -> Result<(), OutputError> {
    if args.json {
        return output::json(&located);
    }
    output::rows(
        ["blocks", "count", "nodes"],
        ranges(located),
        "no blocks were asked for",
    )?;
    let found = located.iter().filter(|block| !block.owners.is_empty());
    output::line(&format!(
        "{} of {asked} blocks have an owner",
        found.count()
    ))
}

/// Neighbours with the same owners in one row.
fn ranges(located: &[Located]) -> Vec<[String; 3]> {
    let nodes = |block: &Located| -> Vec<String> {
        let mut nodes: Vec<_> = block
            .owners
            .iter()
            .map(|owner| owner.node.clone())
            .collect();
        // In one order: which of them is nearest changes from block to block.
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    };
    located
        .chunk_by(|a, b| nodes(a) == nodes(b))
        .filter_map(|run| {
            let (first, last) = (run.first()?, run.last()?);
            let span = match run.len() {
                1 => first.block.to_string(),
                _ => format!("{}-{}", first.block, last.block),
            };
            let owners = match nodes(first) {
                none if none.is_empty() => "-".to_owned(),
                some => some.join(", "),
            };
            Some([span, run.len().to_string(), owners])
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer() -> pb::LocateResponse {
        let owner = |node: &str, region| pb::LocatedRegion {
            node: node.into(),
            region,
            ..pb::LocatedRegion::default()
        };
        pb::LocateResponse {
            answered: 3,
            owners: vec![owner("a", 1), owner("b", 4)],
            candidate_counts: vec![2, 0, 1],
            owner_index: vec![0, 1, 1],
            slots: vec![7, 8, 9],
            generations: vec![2, 4, 6],
            ..pb::LocateResponse::default()
        }
    }

    #[test]
    fn columns_become_owners() {
        let blocks = columns(&answer(), 3).unwrap();
        assert_eq!(blocks[0].len(), 2);
        assert!(blocks[1].is_empty());
        let last = Owner {
            node: "b".into(),
            region: 4,
            slot: 9,
            generation: 6,
        };
        assert_eq!(blocks[2], [last]);
    }

    #[test]
    fn columns_that_do_not_fit_are_refused() {
        let cases: [fn(&mut pb::LocateResponse); 5] = [
            |a| a.slots.truncate(2),
            |a| a.owner_index[2] = 2,
            |a| a.candidate_counts = vec![2, 0, 2],
            |a| a.candidate_counts = vec![1, 0, 1],
            |a| a.answered = 4,
        ];
        for spoil in cases {
            let mut bad = answer();
            spoil(&mut bad);
            assert_eq!(columns(&bad, 3), None);
        }
    }

    #[test]
    fn neighbours_with_the_same_owners_share_a_row() {
        let block = |block, nodes: &[&str]| Located {
            block,
            hash: String::new(),
            owners: nodes
                .iter()
                .map(|node| Owner {
                    node: (*node).into(),
                    region: 1,
                    slot: 0,
                    generation: 2,
                })
                .collect(),
        };
        let blocks = [
            block(0, &["a"]),
            block(1, &["a"]),
            block(2, &[]),
            block(3, &["a", "b"]),
        ];
        let rows = ranges(&blocks);
        assert_eq!(rows[0], ["0-1", "2", "a"]);
        assert_eq!(rows[1], ["2", "1", "-"]);
        assert_eq!(rows[2], ["3", "1", "a, b"]);
    }
}
