//! What targets share: real messages to begin with, regions to read, and a runtime.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use kvferry_agent::region::{Region, RegionCatalog};
use kvferry_memory::{GenerationTable, HostMemory, HugePages};
use kvferry_proto::{
    ChecksumPolicy, Geometry, HashLen, Incarnation, Layout, NamespaceName, NamespaceSpec, RegionId,
    pb,
};
use prost::Message;
use tokio::runtime::{Builder, Runtime};

/// Bytes of a block everywhere here.
pub(crate) const BLOCK_BYTES: u64 = 64;
/// The lifetime of the owner that everybody reads from.
pub(crate) const INCARNATION: u64 = 7;

pub(crate) fn spec() -> NamespaceSpec {
    NamespaceSpec {
        name: NamespaceName::new("t/m").unwrap(),
        layout: Layout::new("u8", 16, 1, BLOCK_BYTES).unwrap(),
        hash_len: HashLen::new(8).unwrap(),
        checksum: ChecksumPolicy::Off,
    }
}

pub(crate) fn geometry(slots: u32) -> pb::Geometry {
    (&Geometry::contiguous(slots, BLOCK_BYTES).unwrap()).into()
}

/// So many hashes: their numbers, from `first` on.
pub(crate) fn hashes(first: u64, count: u64) -> pb::PackedHashes {
    let bytes = (first..first + count).flat_map(u64::to_be_bytes);
    pb::PackedHashes {
        hash_len: 8,
        hashes: bytes.collect::<Vec<u8>>().into(),
    }
}

/// What an agent says of itself.
pub(crate) fn hello(node: &str) -> pb::Hello {
    pb::Hello {
        node: node.into(),
        incarnation: INCARNATION,
        addresses: Some(addresses()),
        labels: HashMap::from([("rack".to_owned(), "r1".to_owned())]),
        coordinator_epoch: 1,
        oldest_delta: 1,
        next_delta: 1,
    }
}

pub(crate) fn addresses() -> pb::NodeAddresses {
    pb::NodeAddresses {
        peer: "127.0.0.1:7401".into(),
        data: "[::1]:7402".into(),
        shm: "/run/a.fds".into(),
        host_id: "h".into(),
        rdma: true,
        data_tls: true,
    }
}

pub(crate) fn declaration(region: u32, slots: u32) -> pb::RegionDeclaration {
    pb::RegionDeclaration {
        region,
        namespace: Some((&spec()).into()),
        geometry: Some(geometry(slots)),
    }
}

/// Sealed slots 0 and on, with hashes of these numbers.
pub(crate) fn sealed(region: u32, first: u64, count: u64) -> pb::RegionChange {
    pb::RegionChange {
        region,
        removed_slots: Vec::new(),
        added: Some(pb::SealedSlots {
            hashes: Some(hashes(first, count)),
            slots: (0..count as u32).collect(),
            generations: vec![2; count as usize],
            checksums: vec![9; count as usize],
        }),
    }
}

/// Tensors in chunks of 16 bytes.
pub(crate) fn tensors() -> Vec<pb::TensorDescriptor> {
    let tensor = |name: &str, offset, bytes| pb::TensorDescriptor {
        name: name.into(),
        dtype: "BF16".into(),
        shape: vec![bytes / 2],
        offset,
        bytes,
    };
    vec![
        tensor("model.a", 0, 24),
        tensor("model.b", 24, 8),
        tensor("c", 40, 4),
    ]
}

pub(crate) fn identity() -> pb::SourceIdentity {
    pb::SourceIdentity {
        namespace: "weights".into(),
        name: "org/llama".into(),
        revision: "main".into(),
        world_size: 2,
        attributes: HashMap::from([("dtype".to_owned(), "bf16".to_owned())]),
        content: vec![1, 2, 3].into(),
    }
}

/// Region 1: 8 slots in one plane. Region 2: 4 slots, sealed.
pub(crate) fn catalog() -> Arc<RegionCatalog> {
    let catalog = RegionCatalog::new(Incarnation::new(INCARNATION).unwrap());
    for (id, slots) in [(1, 8), (2, 4)] {
        let bytes = u64::from(slots) * BLOCK_BYTES;
        let memory = HostMemory::pool("kvferry-fuzz", bytes, HugePages::Off).unwrap();
        let content: Vec<u8> = (0..bytes).map(|n| (n * 7 + id) as u8).collect();
        memory.write_at(0, &content).unwrap();
        let generations = Arc::new(GenerationTable::new(slots).unwrap());
        if id == 2 {
            for slot in 0..slots {
                generations.seal(slot).unwrap();
            }
        }
        catalog.insert(Arc::new(Region {
            id: RegionId(id as u32),
            namespace: Arc::new(spec()),
            geometry: Geometry::contiguous(slots, BLOCK_BYTES).unwrap(),
            memory: memory.into(),
            generations,
            pool: true,
        }));
    }
    Arc::new(catalog)
}

/// One thread, which looks at sockets at every turn.
pub(crate) fn runtime() -> Runtime {
    let mut builder = Builder::new_current_thread();
    builder.enable_all().event_interval(1).build().unwrap()
}

/// Runs it on this thread's runtime.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: Runtime = runtime();
    }
    RUNTIME.with(|runtime| runtime.block_on(future))
}

/// A stream in pieces: as long as the cuts say, and the rest in one.
pub(crate) fn cut<'a>(mut stream: &'a [u8], cuts: &[u8]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    for len in cuts {
        let len = usize::from(*len).clamp(1, stream.len().max(1));
        if len >= stream.len() {
            break;
        }
        let (piece, rest) = stream.split_at(len);
        pieces.push(piece);
        stream = rest;
    }
    if !stream.is_empty() {
        pieces.push(stream);
    }
    pieces
}

/// With a byte before it.
pub(crate) fn tagged(tag: u8, message: &impl Message) -> Vec<u8> {
    let mut out = vec![tag];
    message.encode(&mut out).unwrap();
    out
}

/// As one part of an input: a byte, the length, the bytes.
pub(crate) fn part(tag: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    out.extend((bytes.len() as u16).to_le_bytes());
    out.extend(bytes);
    out
}

/// A message as gRPC frames it.
pub(crate) fn framed(message: &[u8], out: &mut Vec<u8>) {
    out.push(0);
    out.extend((message.len() as u32).to_be_bytes());
    out.extend(message);
}

/// Messages as gRPC frames them, one after another.
pub(crate) fn stream(messages: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::new();
    messages
        .iter()
        .for_each(|message| framed(message, &mut out));
    out
}

/// Calls of a service: for each a byte that says which, and a body. Where the byte says so, the body is one message and is
/// framed; else it is taken as it is, frames and all.
pub(crate) fn calls(bytes: &[u8], paths: &[&'static str]) -> Vec<(&'static str, Bytes)> {
    let mut choices = crate::choices::Choices::new(bytes);
    let mut calls = Vec::new();
    while !choices.is_empty() && calls.len() < MAX_CALLS {
        let which = choices.u8();
        let body = choices.bytes();
        let path = paths[usize::from(which & 0x7f) % paths.len()];
        let mut framed_body = Vec::new();
        match which & 0x80 {
            0 => framed(body, &mut framed_body),
            _ => framed_body.extend_from_slice(body),
        }
        calls.push((path, framed_body.into()));
    }
    calls
}

/// Calls of one run.
const MAX_CALLS: usize = 24;
