//! What comes from a coordinator: a channel, then a stream, then its messages.

use kvferry_proto::{
    Reason,
    pb::{self, coordinator_message::Message as Answer},
    reason_of,
};
use kvferry_security::tls::Line;
use tokio::task::JoinHandle;
use tonic::{Code, Status, Streaming};

use crate::coordinators::describe;

/// What may arrive from the coordinator's side.
pub(super) enum Inbound {
    Nothing,
    Opening(JoinHandle<Result<Line, tonic::transport::Error>>),
    Calling(JoinHandle<Result<Streaming<pb::CoordinatorMessage>, Status>>),
    Open(Box<Streaming<pb::CoordinatorMessage>>),
}

/// What did arrive.
pub(super) enum Arrived {
    Channel(Line),
    Stream(Box<Streaming<pb::CoordinatorMessage>>),
    Answer(Answer),
    /// The channel was refused, or the stream ended; with what was said of it.
    Lost(String),
    /// The coordinator refuses this incarnation.
    Fenced(String),
}

impl Inbound {
    /// The next thing that arrives; never, while nothing is under way.
    pub(super) async fn next(&mut self) -> Arrived {
        match self {
            Self::Nothing => std::future::pending().await,
            Self::Opening(opening) => match opening.await {
                Ok(Ok(channel)) => Arrived::Channel(channel),
                Ok(Err(error)) => Arrived::Lost(causes(&error)),
                Err(error) => Arrived::Lost(error.to_string()),
            },
            Self::Calling(calling) => match calling.await {
                Ok(Ok(stream)) => Arrived::Stream(Box::new(stream)),
                Ok(Err(status)) => lost(&status),
                Err(error) => Arrived::Lost(error.to_string()),
            },
            Self::Open(stream) => match stream.message().await {
                Ok(Some(pb::CoordinatorMessage {
                    message: Some(answer),
                })) => Arrived::Answer(answer),
                // A message of a kind we do not know yet: a newer coordinator.
                Ok(Some(_)) => Arrived::Answer(Answer::HeartbeatAck(pb::HeartbeatAck::default())),
                Ok(None) => Arrived::Lost("the coordinator ended the stream".to_owned()),
                Err(status) => lost(&status),
            },
        }
    }

    /// Gives up whatever is under way.
    pub(super) fn abort(&mut self) {
        match std::mem::replace(self, Self::Nothing) {
            Self::Opening(task) => task.abort(),
            Self::Calling(task) => task.abort(),
            Self::Nothing | Self::Open(_) => {}
        }
    }
}

fn lost(status: &Status) -> Arrived {
    // An older stream of ours that was replaced by a newer one is aborted; that is no takeover.
    if reason_of(status) == Some(Reason::Fenced) && status.code() != Code::Aborted {
        Arrived::Fenced(status.message().to_owned())
    } else {
        Arrived::Lost(describe(status))
    }
}

/// An error with everything beneath it.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
