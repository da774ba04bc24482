//! `kvferry namespaces`: list, describe, create, delete.

use kvferry_proto::{
    ChecksumPolicy, HashLen, InvalidMessage, Layout, NamespaceName, NamespaceSpec, pb,
};
use serde::Serialize;

use super::tool::ToolError;
use crate::{
    cli::{CreateArgs, NamespacesAction, NamespacesArgs},
    client::{self, Call, Coordinator},
    failure::Done,
    output::{self, OutputError},
    size::ByteSize,
};

/// A namespace, as it is printed.
#[derive(Debug, Serialize)]
struct Namespace {
    name: String,
    dtype: String,
    tokens_per_block: u32,
    plane_count: u32,
    plane_bytes: u64,
    block_bytes: u64,
    hash_len: usize,
    checksum: String,
    fingerprint: String,
    blocks: u64,
    owners: u64,
    bytes: u64,
    regions: u32,
}

impl TryFrom<pb::NamespaceInfo> for Namespace {
    type Error = InvalidMessage;
    fn try_from(info: pb::NamespaceInfo) -> Result<Self, InvalidMessage> {
        let spec: NamespaceSpec = info
            .spec
            .ok_or(InvalidMessage::Missing("namespace"))?
            .try_into()?;
        Ok(Self {
            name: spec.name.to_string(),
            dtype: spec.layout.dtype().to_owned(),
            tokens_per_block: spec.layout.tokens_per_block(),
            plane_count: spec.layout.plane_count(),
            plane_bytes: spec.layout.plane_bytes(),
            block_bytes: spec.layout.block_bytes(),
            hash_len: spec.hash_len.get(),
            checksum: spec.checksum.to_string(),
            fingerprint: info.fingerprint,
            blocks: info.blocks,
            owners: info.owners,
            bytes: info.bytes,
            regions: info.regions,
        })
    }
}

pub(crate) async fn run(args: NamespacesArgs) -> Result<Done, ToolError> {
    let mut coordinator = client::coordinator(&args.reach).await?;
    let bound = args.reach.bound();
    match args.action.unwrap_or(NamespacesAction::List) {
        NamespacesAction::List => {
            let answer = Call::coordinator("list namespaces", bound)
                .answer(coordinator.list_namespaces(pb::ListNamespacesRequest {}))
                .await?;
            let namespaces = answer.namespaces.into_iter().map(Namespace::try_from);
            print_list(namespaces.collect::<Result<_, _>>()?, args.json)?;
        }
        NamespacesAction::Describe { name } => {
            let call = Call::coordinator("describe the namespace", bound);
            describe(&mut coordinator, call, name, args.json).await?;
        }
        NamespacesAction::Create(create) => {
            let spec = spec(&create).map_err(ToolError::Usage)?;
            let request = pb::CreateNamespaceRequest {
                spec: Some((&spec).into()),
            };
            Call::coordinator("create the namespace", bound)
                .answer(coordinator.create_namespace(request))
                .await?;
            let call = Call::coordinator("describe the namespace", bound);
            describe(&mut coordinator, call, create.name, args.json).await?;
        }
        NamespacesAction::Delete { name, force } => {
            let request = pb::DeleteNamespaceRequest {
                name: name.clone(),
                force,
            };
            let answer = Call::coordinator("delete the namespace", bound)
                .answer(coordinator.delete_namespace(request))
                .await?;
            print_deleted(&name, answer.blocks_removed, args.json)?;
        }
    }
    Ok(Done::All)
}

fn spec(create: &CreateArgs) -> Result<NamespaceSpec, InvalidMessage> {
    Ok(NamespaceSpec {
        name: NamespaceName::new(&create.name)?,
        layout: Layout::new(
            &create.dtype,
            create.tokens_per_block,
            create.planes,
            create.plane_bytes.0,
        )?,
        hash_len: HashLen::new(create.hash_len as usize)?,
        // clap lets no other word through.
        checksum: match create.checksum.as_str() {
            "always" => ChecksumPolicy::Always,
            "sampled" => ChecksumPolicy::Sampled,
            _ => ChecksumPolicy::Off,
        },
    })
}

async fn describe(
    coordinator: &mut Coordinator,
    call: Call,
    name: String,
    json: bool,
) -> Result<(), ToolError> {
    let request = pb::DescribeNamespaceRequest { name };
    let info = call.answer(coordinator.describe_namespace(request)).await?;
    print_one(&Namespace::try_from(info)?, json)?;
    Ok(())
}

fn print_list(namespaces: Vec<Namespace>, json: bool) -> Result<(), OutputError> {
    if json {
        return output::json(&namespaces);
    }
    let row = |namespace: Namespace| {
        [
            namespace.name,
            namespace.blocks.to_string(),
            namespace.owners.to_string(),
            ByteSize(namespace.bytes).to_string(),
            ByteSize(namespace.block_bytes).to_string(),
            namespace.fingerprint.chars().take(12).collect(),
        ]
    };
    output::rows(
        ["namespace", "blocks", "copies", "bytes", "block", "layout"],
        namespaces.into_iter().map(row).collect(),
        "there are no namespaces",
    )
}

fn print_one(namespace: &Namespace, json: bool) -> Result<(), OutputError> {
    if json {
        return output::json(namespace);
    }
    let layout = format!(
        "{}, {} tokens, {} planes of {} ({} a block)",
        namespace.dtype,
        namespace.tokens_per_block,
        namespace.plane_count,
        ByteSize(namespace.plane_bytes),
        ByteSize(namespace.block_bytes)
    );
    output::facts([
        ("namespace", namespace.name.clone()),
        ("layout", layout),
        ("fingerprint", namespace.fingerprint.clone()),
        ("hashes", format!("{} bytes", namespace.hash_len)),
        ("checksum", namespace.checksum.clone()),
        ("blocks", namespace.blocks.to_string()),
        ("copies", namespace.owners.to_string()),
        ("bytes", ByteSize(namespace.bytes).to_string()),
        ("regions", namespace.regions.to_string()),
    ])
}

fn print_deleted(name: &str, blocks_removed: u64, json: bool) -> Result<(), OutputError> {
    #[derive(Serialize)]
    struct Deleted<'a> {
        name: &'a str,
        blocks_removed: u64,
    }
    if json {
        return output::json(&Deleted {
            name,
            blocks_removed,
        });
    }
    output::line(&format!(
        "deleted {name}; {blocks_removed} blocks are no longer listed"
    ))
}
