//! A set of tensors from an engine's stream of messages.

use std::time::Duration;

use kvferry_proto::{InvalidMessage, MAX_TENSORS, Reason, Tensor, TensorError, pb, refusal};
use tokio::time::timeout;
use tonic::{Code, Status, Streaming};

/// The whole stream must have come by then.
const RECEIVE_WITHIN: Duration = Duration::from_secs(30);
/// Bytes of one set's descriptors, as encoded; as a coordinator takes them.
const MAX_TABLE_BYTES: usize = 64 << 20;

pub(super) async fn receive(
    stream: Streaming<pb::PublishTensorsRequest>,
) -> Result<(pb::PublishTensorsHeader, Vec<Tensor>), Status> {
    timeout(RECEIVE_WITHIN, take(stream)).await.map_err(|_| {
        let text = format!("the tensors had not come within {RECEIVE_WITHIN:?}");
        refusal(Code::DeadlineExceeded, Reason::Deadline, text)
    })?
}

async fn take(
    mut stream: Streaming<pb::PublishTensorsRequest>,
) -> Result<(pb::PublishTensorsHeader, Vec<Tensor>), Status> {
    let first = stream.message().await?.unwrap_or_default();
    let header = first.header.ok_or(InvalidMessage::Missing("header"))?;
    let (mut all, mut bytes) = (Vec::new(), 0);
    let mut next = first.tensors;
    loop {
        for tensor in next {
            let tensor = Tensor::try_from(tensor).map_err(InvalidMessage::from)?;
            bytes += tensor.encoded_bytes();
            all.push(tensor);
        }
        if all.len() > MAX_TENSORS {
            let count = all.len();
            return Err(InvalidMessage::from(TensorError::Count { count }).into());
        }
        if bytes > MAX_TABLE_BYTES {
            let text = format!(
                "more than {MAX_TABLE_BYTES} bytes of descriptors: publish the set in several"
            );
            return Err(refusal(Code::ResourceExhausted, Reason::BoundReached, text));
        }
        match stream.message().await? {
            Some(message) => next = message.tensors,
            None => return Ok((header, all)),
        }
    }
}
