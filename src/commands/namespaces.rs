//! `kvferry namespaces`: list, describe, create, delete, and what is wanted of one.

use kvferry_proto::{
    ChecksumPolicy, HashLen, InvalidMessage, Layout, NamespaceName, NamespaceSpec, pb,
};
use serde::Serialize;

use super::tool::ToolError;
use crate::{
    cli::{CreateArgs, NamespacesAction, NamespacesArgs, PolicyArgs},
    client::{self, Call, Coordinator, Reach},
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
        NamespacesAction::Policy(wanted) => policy(&args.reach, wanted, args.json).await?,
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

/// Says what is wanted of a namespace, and shows it.
async fn policy(reach: &Reach, wanted: PolicyArgs, json: bool) -> Result<(), ToolError> {
    let mut client = client::locations(reach).await?;
    let request = pb::GetNamespacePolicyRequest {
        namespace: wanted.name.clone(),
    };
    let mut info = Call::coordinator("see the namespace's policy", reach.bound())
        .answer(client.get_namespace_policy(request))
        .await?;
    let policy = info.policy.get_or_insert_default();
    let before = *policy;
    let bytes = |size: ByteSize| size.0;
    let told = |to: &mut u64, wanted: Option<u64>| *to = wanted.unwrap_or(*to);
    told(&mut policy.max_slots, wanted.max_slots);
    told(&mut policy.max_slot_bytes, wanted.max_slot_bytes.map(bytes));
    told(&mut policy.max_locations, wanted.max_locations);
    told(
        &mut policy.max_location_bytes,
        wanted.max_location_bytes.map(bytes),
    );
    told(&mut policy.location_ttl_ms, wanted.location_ttl_ms);
    policy.copies_wanted = wanted.copies_wanted.unwrap_or(policy.copies_wanted);
    if *policy != before {
        let request = pb::SetNamespacePolicyRequest {
            namespace: wanted.name.clone(),
            policy: info.policy,
        };
        info = Call::coordinator("set the namespace's policy", reach.bound())
            .answer(client.set_namespace_policy(request))
            .await?;
    }
    print_policy(&wanted.name, &info, json)?;
    Ok(())
}

fn print_policy(name: &str, info: &pb::NamespacePolicyInfo, json: bool) -> Result<(), OutputError> {
    #[derive(Serialize)]
    struct Policy<'a> {
        name: &'a str,
        max_slots: Option<u64>,
        max_slot_bytes: Option<u64>,
        copies_wanted: Option<u32>,
        max_locations: Option<u64>,
        max_location_bytes: Option<u64>,
        location_ttl_ms: Option<u64>,
        locations: u64,
    }
    let policy = info.policy.unwrap_or_default();
    let wish = |value: u64| (value != 0).then_some(value);
    let policy = Policy {
        name,
        max_slots: wish(policy.max_slots),
        max_slot_bytes: wish(policy.max_slot_bytes),
        copies_wanted: (policy.copies_wanted != 0).then_some(policy.copies_wanted),
        max_locations: wish(policy.max_locations),
        max_location_bytes: wish(policy.max_location_bytes),
        location_ttl_ms: wish(policy.location_ttl_ms),
        locations: info.locations,
    };
    if json {
        return output::json(&policy);
    }
    let said = |wish: Option<String>| wish.unwrap_or_else(|| "-".into());
    let count = |wish: Option<u64>| said(wish.map(|count| count.to_string()));
    let bytes = |wish: Option<u64>| said(wish.map(|bytes| ByteSize(bytes).to_string()));
    output::facts([
        ("namespace", name.to_owned()),
        ("slots at most", count(policy.max_slots)),
        ("slot bytes at most", bytes(policy.max_slot_bytes)),
        ("copies wanted", count(policy.copies_wanted.map(u64::from))),
        ("locations", policy.locations.to_string()),
        ("locations at most", count(policy.max_locations)),
        ("location bytes at most", bytes(policy.max_location_bytes)),
        ("location TTL, ms", count(policy.location_ttl_ms)),
    ])
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
