//! A worker in full, from a stream of messages.

use std::time::Duration;

use kvferry_proto::{
    InvalidMessage, MAX_TENSORS, SourceError, SourceIdentity, Tensor, TensorError, TensorTable, pb,
};
use tokio::time::timeout;
use tonic::{Status, Streaming};

use super::{parse, say};
use crate::{
    service::status,
    sources::{Announced, Announcer},
};

/// The whole stream must have come by then: it holds a place.
const RECEIVE_WITHIN: Duration = Duration::from_secs(30);
/// Bytes of one worker's descriptors, as encoded: as many tensors as are allowed, with names of some
/// 400 bytes.
const MAX_TABLE_BYTES: usize = 64 << 20;

pub(super) struct Whole {
    pub(super) who: Announcer,
    pub(super) identity: SourceIdentity,
    pub(super) worker: Announced,
    pub(super) table: TensorTable,
}

pub(super) async fn receive(stream: Streaming<pb::PublishSourceRequest>) -> Result<Whole, Status> {
    timeout(RECEIVE_WITHIN, take(stream))
        .await
        .map_err(|_| say::slow_publisher(RECEIVE_WITHIN.as_millis()))?
}

async fn take(mut stream: Streaming<pb::PublishSourceRequest>) -> Result<Whole, Status> {
    let first = stream.message().await.map_err(status::inbound)?;
    let pb::PublishSourceRequest { header, tensors } = first.unwrap_or_default();
    let header = header.ok_or(InvalidMessage::Missing("header"))?;
    let who = parse::announcer(&header.node, header.incarnation, header.number)?;
    let identity = header.identity.ok_or(InvalidMessage::Missing("identity"))?;
    let identity = SourceIdentity::try_from(identity)?;
    let worker = header.worker.ok_or(InvalidMessage::Missing("worker"))?;
    let worker = parse::announced(worker)?;
    if worker.source != identity.id() {
        return Err(InvalidMessage::Missing("the identity's own id in the worker").into());
    }
    identity.check_rank(worker.rank).map_err(invalid)?;
    let count = header.tensors as usize;
    if count > MAX_TENSORS {
        return Err(InvalidMessage::from(TensorError::Count { count }).into());
    }
    let (mut all, mut bytes) = (Vec::with_capacity(count), 0);
    let mut next = tensors;
    loop {
        for tensor in next {
            let tensor = Tensor::try_from(tensor).map_err(InvalidMessage::from)?;
            bytes += tensor.encoded_bytes();
            all.push(tensor);
        }
        if all.len() > count || bytes > MAX_TABLE_BYTES {
            return Err(say::too_many_tensors(count, MAX_TABLE_BYTES));
        }
        match stream.message().await.map_err(status::inbound)? {
            Some(message) => next = message.tensors,
            None => break,
        }
    }
    if all.len() != count {
        return Err(InvalidMessage::Columns {
            what: "tensors",
            got: all.len(),
            want: count,
        }
        .into());
    }
    let table = TensorTable::new(header.chunk_bytes, header.chunks, all);
    Ok(Whole {
        who,
        identity,
        worker,
        table: table.map_err(InvalidMessage::from)?,
    })
}

fn invalid(error: SourceError) -> Status {
    InvalidMessage::from(error).into()
}
