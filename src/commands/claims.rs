//! `kvferry claims`: list, claim, release.

use std::time::Duration;

use kvferry_proto::{BlockHash, InvalidMessage, PackedHashes, pb};
use serde::Serialize;

use super::tool::ToolError;
use crate::{
    cli::{ClaimsAction, ClaimsArgs},
    client::{self, Call},
    failure::Done,
    output,
    size::duration,
};

#[derive(Debug, Serialize)]
struct List {
    claims: u64,
    leases: u64,
    listed: Vec<Lease>,
}

#[derive(Debug, Serialize)]
struct Lease {
    namespace: String,
    node: String,
    claims: u32,
    expires_in_ms: u32,
}

#[derive(Debug, Serialize)]
struct Claimed {
    token: Option<String>,
    ttl_ms: u32,
    blocks: Vec<Block>,
}

#[derive(Debug, Serialize)]
struct Block {
    hash: String,
    state: &'static str,
    /// Who holds it, where that is another.
    holder: Option<String>,
    expires_in_ms: Option<u32>,
}

pub(crate) async fn run(args: ClaimsArgs) -> Result<Done, ToolError> {
    let action = args
        .action
        .unwrap_or(ClaimsAction::List { namespace: None });
    let bound = args.reach.bound();
    match action {
        ClaimsAction::List { namespace } => {
            let mut claims = client::claims(&args.reach).await?;
            let request = pb::ListClaimsRequest {
                namespace: namespace.unwrap_or_default(),
            };
            let list = Call::coordinator("list claims", bound)
                .answer(claims.list_claims(request))
                .await?;
            print_list(list, args.json)
        }
        ClaimsAction::Claim {
            hashes,
            namespace,
            ttl_ms,
        } => {
            let hashes = parse(&hashes).map_err(ToolError::Usage)?;
            let mut agent = client::local_claims(&args.reach.socket()).await?;
            let call = Call::agent("claim the blocks", bound);
            let request = pb::ClaimBlocksRequest {
                namespace,
                hashes: Some(pack(&hashes).map_err(ToolError::Usage)?.into()),
                ttl_ms,
                keep_on_disconnect: true,
                purpose: pb::ClaimPurpose::Produce.into(),
            };
            let answer = call.answer(agent.claim_blocks(request)).await?;
            print_claimed(&hashes, &answer, args.json)
        }
        ClaimsAction::Release { token } => {
            let token = u64::from_str_radix(&token, 16);
            let token = token.map_err(|_| ToolError::Usage(InvalidMessage::Missing("a token")))?;
            let mut agent = client::local_claims(&args.reach.socket()).await?;
            let request = pb::ReleaseClaimsRequest {
                token,
                hashes: None,
            };
            let answer = Call::agent("release the claims", bound)
                .answer(agent.release_blocks(request))
                .await?;
            match args.json {
                true => output::json(&serde_json::json!({ "released": answer.released }))?,
                false => output::line(&format!("{} claims released", answer.released))?,
            }
            Ok(Done::All)
        }
    }
}

fn parse(hashes: &[String]) -> Result<Vec<BlockHash>, InvalidMessage> {
    let hashes = hashes.iter().map(|text| BlockHash::from_hex(text));
    Ok(hashes.collect::<Result<Vec<_>, _>>()?)
}

fn pack(hashes: &[BlockHash]) -> Result<PackedHashes, InvalidMessage> {
    let first = hashes.first().ok_or(InvalidMessage::Missing("a hash"))?;
    Ok(PackedHashes::pack(first.hash_len(), hashes)?)
}

fn print_list(list: pb::ListClaimsResponse, json: bool) -> Result<Done, ToolError> {
    let lease = |lease: pb::ClaimLease| Lease {
        namespace: lease.namespace,
        node: lease.node,
        claims: lease.claims,
        expires_in_ms: lease.expires_in_ms,
    };
    let list = List {
        claims: list.claims,
        leases: list.leases,
        listed: list.listed.into_iter().map(lease).collect(),
    };
    if json {
        output::json(&list)?;
        return Ok(Done::All);
    }
    let row = |lease: Lease| {
        [
            lease.namespace,
            lease.node,
            lease.claims.to_string(),
            in_a_while(lease.expires_in_ms),
        ]
    };
    let rows = list.listed.into_iter().map(row).collect();
    output::rows(
        ["namespace", "node", "claims", "expires"],
        rows,
        "no claims",
    )?;
    output::line(&format!("{} claims in {} leases", list.claims, list.leases))?;
    Ok(Done::All)
}

fn print_claimed(
    hashes: &[BlockHash],
    answer: &pb::ClaimResponse,
    json: bool,
) -> Result<Done, ToolError> {
    if answer.states.len() != hashes.len() {
        return Err(ToolError::Answer(InvalidMessage::Columns {
            what: "states",
            got: answer.states.len(),
            want: hashes.len(),
        }));
    }
    let mut rows = answer.holder_index.iter();
    let mut blocks = Vec::new();
    for (hash, state) in hashes.iter().zip(answer.states()) {
        let (state, holder) = match state {
            pb::ClaimState::Granted => ("granted", None),
            pb::ClaimState::Stored => ("stored", None),
            pb::ClaimState::Claimed => {
                let row = rows.next().and_then(|row| usize::try_from(*row).ok());
                ("claimed", row.and_then(|row| answer.holders.get(row)))
            }
            pb::ClaimState::Unspecified => ("unknown", None),
        };
        blocks.push(Block {
            hash: hash.to_string(),
            state,
            holder: holder.map(|holder| holder.node.clone()),
            expires_in_ms: holder.map(|holder| holder.expires_in_ms),
        });
    }
    let others = blocks.iter().any(|block| block.state == "claimed");
    let claimed = Claimed {
        token: (answer.token != 0).then(|| format!("{:016x}", answer.token)),
        ttl_ms: answer.ttl_ms,
        blocks,
    };
    if json {
        output::json(&claimed)?;
    } else {
        let row = |block: Block| {
            [
                block.hash,
                block.state.to_owned(),
                block.holder.unwrap_or_default(),
                block.expires_in_ms.map_or_else(String::new, in_a_while),
            ]
        };
        let rows = claimed.blocks.into_iter().map(row).collect();
        output::rows(["block", "state", "holder", "expires"], rows, "no blocks")?;
        if let Some(token) = claimed.token {
            output::line(&format!("token {token}, for {} ms", claimed.ttl_ms))?;
        }
    }
    Ok(match others {
        true => Done::InPart,
        false => Done::All,
    })
}

fn in_a_while(ms: u32) -> String {
    format!("in {}", duration(Duration::from_millis(ms.into())))
}
