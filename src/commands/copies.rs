//! `kvferry copies`: how many copies a namespace's blocks should have, and how far that is.

use kvferry_proto::{BlockHash, HashError, PackedHashes, pb};
use serde::Serialize;

use super::tool::ToolError;
use crate::{
    cli::copies::CopiesArgs,
    client::{self, Call},
    failure::Done,
    output,
};

/// As it is printed.
#[derive(Debug, Serialize)]
struct Status {
    namespace: String,
    min_copies: u32,
    hot: u64,
    lacking: u64,
    surveyed: u64,
    rounds: u64,
    in_flight: u32,
    copied: u64,
    failed: u64,
}

pub(crate) async fn run(args: CopiesArgs) -> Result<Done, ToolError> {
    let hot = pack(&args.hot).map_err(|error| ToolError::Usage(error.into()))?;
    let mut client = client::replication(&args.reach).await?;
    let namespace = args.namespace.clone();
    let bound = args.reach.bound();
    let status = match (args.min, hot) {
        (Some(min_copies), _) => {
            let request = pb::SetCopiesRequest {
                namespace,
                min_copies,
            };
            Call::coordinator("have copies made", bound)
                .answer(client.set_copies(request))
                .await?
        }
        (None, Some(hashes)) => {
            let request = pb::WantCopiesRequest {
                namespace,
                hashes: Some(hashes.into()),
                copies: args.copies.unwrap_or_default(),
                ttl_ms: args.ttl_ms,
            };
            Call::coordinator("have copies made", bound)
                .answer(client.want_copies(request))
                .await?
        }
        (None, None) => {
            let request = pb::DescribeCopiesRequest { namespace };
            Call::coordinator("say how far copies are", bound)
                .answer(client.describe_copies(request))
                .await?
        }
    };
    print(&status, &args)?;
    Ok(Done::All)
}

/// None where there are none.
fn pack(hashes: &[String]) -> Result<Option<PackedHashes>, HashError> {
    let hashes = hashes.iter().map(|text| BlockHash::from_hex(text));
    let hashes = hashes.collect::<Result<Vec<_>, _>>()?;
    let Some(first) = hashes.first() else {
        return Ok(None);
    };
    PackedHashes::pack(first.hash_len(), &hashes).map(Some)
}

fn print(status: &pb::CopiesStatus, args: &CopiesArgs) -> Result<(), output::OutputError> {
    let status = Status {
        namespace: args.namespace.clone(),
        min_copies: status.min_copies,
        hot: status.hot,
        lacking: status.lacking,
        surveyed: status.surveyed,
        rounds: status.rounds,
        in_flight: status.in_flight,
        copied: status.copied,
        failed: status.failed,
    };
    if args.json {
        return output::json(&status);
    }
    output::facts([
        ("namespace", status.namespace),
        ("copies", status.min_copies.max(1).to_string()),
        ("hot blocks", status.hot.to_string()),
        (
            "lacking",
            format!("{} of {}", status.lacking, status.surveyed),
        ),
        ("rounds", status.rounds.to_string()),
        ("orders", status.in_flight.to_string()),
        ("copied", status.copied.to_string()),
        ("failed", status.failed.to_string()),
    ])
}
